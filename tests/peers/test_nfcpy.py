"""nfcpy drives our simulated PN532 behind a link named like a USB serial port."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from simulator.pn532 import SimulatedPn532
from simulator.reader import Chip
from simulator.rig import Enterprise
from tests.test_pn532 import UID, Echo, behind_pty

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".peers" / "nfcpy" / "bin" / "python"


def test_nfcpy_agrees(tmp_path: Path, enterprise: Enterprise) -> None:
    """An independent driver activates our chip's card and talks to it, by its own ISO 14443-4 and by the chip's."""
    assert PYTHON.exists(), "the peer is missing: run script/peers"
    cards: list[tuple[Chip, list[str]]] = [
        (enterprise.new_card(), ["00A4000000", "00B0950000"]),
        (Echo(), ["00112233", bytes(range(256)).hex() * 3]),
    ]
    for number, (card, apdus) in enumerate(cards):
        chip = SimulatedPn532()
        chip.put(card, UID)
        with behind_pty(chip) as pty:
            link = pty.link(tmp_path / f"ttyUSB{number}")
            command = [str(PYTHON), str(Path(__file__).with_name("nfc_peer.py")), str(link), *apdus]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout)
        card.reset()
        wanted = [card.transceive(bytes.fromhex(one)).hex() for one in apdus]
        assert told == {"chip": "PN532v1.6", "uid": UID.hex(), "type": "Type4Tag", "own": wanted, "chip's": wanted}
