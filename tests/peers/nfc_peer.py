"""Runs in the peer's own environment: ``nfcpy`` activates a card on a PN532 and sends it APDUs. ``PORT COMMAND-HEX``.

It looks for readers in /dev by name; its driver itself takes any port, and a link named like a USB serial one will do.
Prints JSON: the chip, the card as the driver sees it, answers by nfcpy's own ISO 14443-4 and by the chip's.
"""

import json
import sys
from typing import Any

import nfc  # type: ignore[import-not-found]  # in its own environment
import nfc.clf.pn532  # type: ignore[import-not-found]  # likewise
import nfc.clf.transport  # type: ignore[import-not-found]  # likewise
import nfc.tag  # type: ignore[import-not-found]  # likewise


def by_the_chip(chipset: Any, apdu: bytes) -> str:
    """Let the chip activate the card (SetParameters, InListPassiveTarget) and speak to it (InDataExchange)."""
    chipset.rf_configuration(0x01, b"\x00")
    chipset.set_parameters(0x14)
    chipset.rf_configuration(0x05, b"\xff\x01\x00")
    assert chipset.in_list_passive_target(1, 0, b"") is not None
    room = chipset.host_command_frame_max_size - 3
    pieces = [apdu[at : at + room] for at in range(0, len(apdu), room)]
    for piece in pieces[:-1]:
        chipset.in_data_exchange(piece, 1.0, more=True)
    answer, more = chipset.in_data_exchange(pieces[-1], 1.0)
    while more:
        piece, more = chipset.in_data_exchange(b"", 1.0)
        answer += piece
    return str(answer.hex())


def main(port: str, *apdus: str) -> None:
    device = nfc.clf.pn532.init(nfc.clf.transport.TTY(port))
    front = nfc.ContactlessFrontend()
    front.device = device
    assert device.chipset.diagnose("line")
    target = front.sense(nfc.clf.RemoteTarget("106A"))
    tag = nfc.tag.activate(front, target)
    commands = [bytes.fromhex(one) for one in apdus]
    result = {
        "chip": device.chipset_name,
        "uid": target.sdd_res.hex(),
        "type": tag.type,
        "own": [tag.transceive(one).hex() for one in commands],
        "chip's": [by_the_chip(device.chipset, one) for one in commands],
    }
    front.close()
    sys.stdout.write(json.dumps(result))


main(*sys.argv[1:])
