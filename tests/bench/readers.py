"""Through pcscd and the virtual reader: the simulated card and SIM beside a card that only echoes."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from cardlib import pcsc
from tests.bench.figures import Figure
from tests.pcsc_world import PcscWorld, wait_present

COUNT = 3_000
ROUNDS = 5
READ = bytes.fromhex("00B0850010")
SELECT = bytes.fromhex("00A40000023F00")
SIM_READ = bytes.fromhex("00B000000A")
SIM_SELECT = bytes.fromhex("00A4000C022FE2")


def rate(name: str, select: str, read: str) -> float:
    """Commands per second on a reader; runs inside the world."""
    card, command = pcsc.connect(name), bytes.fromhex(read)
    try:
        best = 0.0
        card.transceive(bytes.fromhex(select))
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(COUNT):
                card.transceive(command)
            best = max(best, COUNT / (time.perf_counter() - began))
        return best
    finally:
        card.close()


def echo_ratio() -> list[Figure]:
    """READ BINARY on all three, in turn."""
    image = "kind = 'card'\nserial = '0201000000000785'\n"
    with tempfile.TemporaryDirectory() as folder, PcscWorld(Path(folder), slots=4) as world:
        world.start_card("tests.pcsc_world", slot=0)
        description = Path(folder) / "card.toml"
        description.write_text(image)
        world.start([sys.executable, "cli.py", "sim", "card", "--vpcd-port", "35964", "--image", str(description)])
        world.start([sys.executable, "cli.py", "sim", "sim", "--vpcd-port", "35965"])
        for slot in (1, 2):
            world.call(wait_present, world.reader(slot), True)
        echo, ours, phone = 0.0, 0.0, 0.0
        for _ in range(3):
            echo = max(echo, world.call(rate, world.reader(0), SELECT.hex(), READ.hex()))
            ours = max(ours, world.call(rate, world.reader(1), SELECT.hex(), READ.hex()))
            phone = max(phone, world.call(rate, world.reader(2), SIM_SELECT.hex(), SIM_READ.hex()))
    return [
        Figure("PC/SC: a card that only echoes", echo, "commands/s"),
        Figure("PC/SC: simulated card", ours, "commands/s"),
        Figure("  ratio of the two", ours / echo, "of 1", 0.9),
        Figure("PC/SC: phone face of a simulated SIM", phone, "commands/s"),
        Figure("  ratio to the echo", phone / echo, "of 1", 0.9),
    ]
