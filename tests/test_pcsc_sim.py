"""The simulated RFID-SIM in a real PC/SC stack: both faces in slots of their own, over one memory kept in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import Popen

from cardlib import pcsc
from tests.pcsc_world import PcscWorld, end, wait_present
from tests.simulator.uicc_desk import Host, Phone
from tests.test_pcsc import exchange

PIN = "31323334FFFFFFFF"


def manage(name: str, version: int) -> list[str]:
    """Open the security domain's channel at level 03 and read the registry; runs inside the world."""
    card = pcsc.connect(name)
    try:
        host = Host(Phone.at(card.transceive), version).open(3)
        return [host(f"80F2{kind}02024F00").hex() for kind in ("80", "10")]
    finally:
        card.close()


def start(world: PcscWorld, image: Path, *more: str) -> Popen[str]:
    """Put the SIM of an image into the first two slots."""
    argv = ["cli.py", "sim", "sim", "--vpcd-port", "35963", "--contactless-vpcd-port", "35964", "--image", str(image)]
    process = world.start([sys.executable, *argv, *more])
    for slot in (0, 1):
        world.call(wait_present, world.reader(slot), True)
    return process


def test_both_faces(tmp_path: Path) -> None:
    """A program finds a UICC in one slot and the card in the other; what it writes survives the process."""
    image = tmp_path / "sim.img"
    with PcscWorld(tmp_path / "world", slots=4) as world:
        made = world.run(
            [sys.executable, "cli.py", "sim", "make", str(image), "--rfid-sim", "--transport-key", "A1" * 16]
        )
        assert made.returncode == 0, made.stderr
        process = start(world, image)
        phone, contactless = world.reader(0), world.reader(1)
        answers = world.call(
            exchange, phone, "A0A40000023F00", "00A4000C022FE2", "00B000000A", "00A40400", "0020000108" + "00" * 8,
            "00A4000C023F00", "0020000108" + "00" * 8,
        )  # fmt: skip
        assert answers[0].startswith("3b9f96801fc6")
        assert answers[1:4] == ["9f16", "9000", "985898100000000000f19000"]
        assert answers[4][:2] == "61"
        assert answers[5:] == ["6d00", "9000", "63c2"]
        assert world.call(exchange, contactless, "00A40000023F00")[1].endswith("9000")
        world.start([sys.executable, "cli.py", "sim", "sam", "--vpcd-port", "35965", "--transport-key", "B2" * 16])
        world.call(wait_present, world.reader(2), True)
        atr, selected = world.call(exchange, world.reader(2), "00A40000023F00")
        assert (atr[:2], atr[4:8], selected[:2]) == ("3b", "0000", "61"), "a SAM beside it speaks T=0"
        for version in (0x01, 0x30):
            assert world.call(manage, phone, version)[0].startswith("e3")
        end(process)
        for slot in (0, 1):
            world.call(wait_present, world.reader(slot), False)
        start(world, image, "--no-menu")
        assert world.call(exchange, world.reader(0), "0020000100", "0020000108" + PIN)[1:] == ["63c2", "9000"]
