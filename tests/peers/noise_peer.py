"""Runs in the peer's own environment: one end of a handshake by the ``noiseprotocol`` package, over JSON lines."""

import json
import sys
import warnings

from noise.connection import Keypair, NoiseConnection

warnings.simplefilter("ignore")
setup = json.loads(sys.stdin.readline())
peer = NoiseConnection.from_name(setup["name"].encode())
if setup["initiator"]:
    peer.set_as_initiator()
else:
    peer.set_as_responder()
peer.set_prologue(bytes.fromhex(setup["prologue"]))
if setup["psk"]:
    peer.set_psks(psk=bytes.fromhex(setup["psk"]))
peer.set_keypair_from_private_bytes(Keypair.STATIC, bytes.fromhex(setup["static"]))
if setup["remote"]:
    peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, bytes.fromhex(setup["remote"]))
peer.start_handshake()
for line in sys.stdin:
    act, data = json.loads(line)
    raw = bytes.fromhex(data)
    if act == "rekey":
        peer.rekey_outbound_cipher()
        peer.rekey_inbound_cipher()
        answer = b""
    elif act == "hash":
        answer = peer.get_handshake_hash()
    else:
        names = {"write": "write_message", "read": "read_message", "encrypt": "encrypt", "decrypt": "decrypt"}
        answer = bytes(getattr(peer, names[act])(raw))
    sys.stdout.write(json.dumps(answer.hex()) + "\n")
    sys.stdout.flush()
