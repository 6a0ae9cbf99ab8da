"""Our Noise against the noiseprotocol package, each end in turn."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cardlib.crypto.noise import Handshake, Pattern, StaticKey

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".peers" / "noiseprotocol" / "bin" / "python"
OURS, THEIRS = StaticKey(os.urandom(32)), StaticKey(os.urandom(32))
PSK = os.urandom(32)


@contextmanager
def peer(pattern: Pattern, *, initiator: bool) -> Iterator[Callable[[str, bytes], bytes]]:
    """The peer in a process of its own: a function from act and bytes to bytes."""
    assert PYTHON.exists(), "the peer is missing: run script/peers"
    known = pattern is Pattern.KK
    setup = {
        "name": pattern.value.name.decode(), "initiator": initiator, "prologue": b"OCL1".hex(),
        "psk": "" if known else PSK.hex(), "static": THEIRS.private.hex(), "remote": OURS.public.hex() if known else "",
    }  # fmt: skip
    process = subprocess.Popen(
        [PYTHON, Path(__file__).with_name("noise_peer.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    stdin.write(json.dumps(setup) + "\n")

    def ask(act: str, data: bytes = b"") -> bytes:
        stdin.write(json.dumps([act, data.hex()]) + "\n")
        stdin.flush()
        return bytes.fromhex(json.loads(stdout.readline()))

    try:
        yield ask
    finally:
        stdin.close()
        process.wait(10)
        stdout.close()


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("initiator", [True, False])
def test_handshake_session_and_rekey(pattern: Pattern, initiator: bool) -> None:
    """Both patterns in both roles: payloads, handshake hash, messages both ways, and after a re-key."""
    known = pattern is Pattern.KK
    ours = Handshake(
        pattern, OURS, os.urandom, initiator=initiator, prologue=b"OCL1", remote=THEIRS.public if known else b"",
        psk=b"" if known else PSK, rekey_messages=3,
    )  # fmt: skip
    with peer(pattern, initiator=not initiator) as ask:
        turn = initiator
        while not ours.finished:
            if turn:
                assert ask("read", ours.write(b"payload")) == b"payload"
            else:
                assert ours.read(ask("write", b"answer")) == b"answer"
            turn = not turn
        assert ours.remote == THEIRS.public
        assert ask("hash", b"") == ours.hash
        session = ours.split()
        for number in range(7):
            if number and number % 3 == 0:
                ask("rekey", b"")
            assert ask("decrypt", session.encrypt(b"up")) == b"up"
            assert session.decrypt(ask("encrypt", b"down")) == b"down"
