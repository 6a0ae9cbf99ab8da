"""Through pcscd and the virtual reader: the simulated card beside a card that only echoes."""

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


def rate(name: str) -> float:
    """Commands per second on a reader; runs inside the world."""
    card = pcsc.connect(name)
    try:
        best = 0.0
        card.transceive(SELECT)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(COUNT):
                card.transceive(READ)
            best = max(best, COUNT / (time.perf_counter() - began))
        return best
    finally:
        card.close()


def echo_ratio() -> list[Figure]:
    """READ BINARY on both, in turn."""
    image = "kind = 'card'\nserial = '0201000000000785'\n"
    with tempfile.TemporaryDirectory() as folder, PcscWorld(Path(folder)) as world:
        world.start_card("tests.pcsc_world", slot=0)
        description = Path(folder) / "card.toml"
        description.write_text(image)
        world.start([sys.executable, "cli.py", "sim", "card", "--vpcd-port", "35964", "--image", str(description)])
        world.call(wait_present, world.reader(1), True)
        echo, ours = 0.0, 0.0
        for _ in range(3):
            echo = max(echo, world.call(rate, world.reader(0)))
            ours = max(ours, world.call(rate, world.reader(1)))
    return [
        Figure("PC/SC: a card that only echoes", echo, "commands/s"),
        Figure("PC/SC: simulated card", ours, "commands/s"),
        Figure("  ratio of the two", ours / echo, "of 1", 0.9),
    ]
