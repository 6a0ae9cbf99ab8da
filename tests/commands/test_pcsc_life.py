"""An administrator and a till at real PC/SC readers: processes, pcscd, the virtual reader, two simulated chips."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pcsc_world import PcscWorld, wait_present
from tests.secretwatch import register

TRANSPORT_KEY = "5152535455565758595A5B5C5D5E5F50"
SECRETS = {
    "OPERATOR_SECRET": "night of the readers",
    "PLATFORM_OPERATOR_SECRET": "night of the readers",
    "ADMINISTRATOR_SECRET": "night of the readers",
    "KEY_PASSPHRASE": "four slots are enough",
    "TRANSPORT_KEY": TRANSPORT_KEY,
    "SAM_PIN": "998877",
    "HOLDER_PIN": "314159",
}
TILL = "310000000777"
CARD_SLOT, SAM_SLOT = 0, 1
FIRST_PORT = 35963


class Desk:
    """The command line inside a PC/SC world, with its secrets in files."""

    def __init__(self, world: PcscWorld, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.env = {"ONECARD_DB": str(folder / "office"), "ONECARD_JSON": "1"}
        for name, value in SECRETS.items():
            register(value, name)
            file = folder / name
            file.write_text(value + "\n")
            self.env[f"ONECARD_{name}_FILE"] = str(file)

    def __call__(self, *args: str, code: int = 0) -> Any:
        """Run ``onecard ARGS`` and return its JSON."""
        ran = self.world.run([sys.executable, "cli.py", *args], env=self.env)
        assert ran.returncode == code, f"{args}: {ran.returncode} {ran.stderr}"
        return json.loads(ran.stdout) if ran.stdout else json.loads(ran.stderr.splitlines()[-1])

    def insert(self, kind: str, slot: int, image: Path) -> subprocess.Popen[str]:
        """Put the chip of an image into a slot, as ``onecard sim`` does."""
        port = str(FIRST_PORT + slot)
        process = self.world.start([sys.executable, "cli.py", "sim", kind, "--vpcd-port", port, "--image", str(image)])
        self.world.call(wait_present, self.world.reader(slot), True)
        return process


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """An enterprise with one member, a card and a SAM from the vendor in two readers."""
    with PcscWorld(tmp_path) as world:
        desk = Desk(world, tmp_path)
        desk("init")
        desk("enterprise", "register", "Readers Ltd", "--enterprise", "9")
        desk.env["ONECARD_ENTERPRISE"] = "9"
        desk.env["ONECARD_READER"] = f"pcsc:{world.reader(CARD_SLOT)}"
        desk.env["ONECARD_SAM_READER"] = f"pcsc:{world.reader(SAM_SLOT)}"
        desk("member", "add", "M1", "Reader")
        for kind, slot in (("card", CARD_SLOT), ("sam", SAM_SLOT)):
            image = tmp_path / f"{kind}.img"
            extra = ["--sam"] if kind == "sam" else []
            desk("sim", "make", str(image), "--transport-key", TRANSPORT_KEY, *extra)
            desk.insert(kind, slot, image)
        yield desk


def test_issue_recharge_and_pay_through_readers(desk: Desk) -> None:
    """A vendor-fresh card and SAM are made, charged and paid with, by processes that know only reader names."""
    made = desk("sam", "personalize", TILL, "--kind", "pos", "--reader", desk.env["ONECARD_SAM_READER"])
    desk("terminal", "register", TILL, "canteen", "--kind", "pos", "--sam", made["sam"])
    serial = desk("card", "issue", "M1", "--platform-operator", "admin")["card"]
    assert desk("wallet", "recharge", "50")["balance_fen"] == 50_00
    desk("blacklist", "build")
    key, list_file = desk("blacklist", "key")["list_root_key"], desk.folder / "list"
    desk("blacklist", "export", str(list_file))
    till = desk.folder / "till.toml"
    till.write_text(
        f'version = 1\nkind = "pos"\nenterprise_id = 9\njournal = "{desk.folder}/till.db"\n'
        f'lists = "{desk.folder}/till.list"\nlist_root_key = "{key}"\n'
    )
    desk.env["ONECARD_TERMINAL"] = str(till)
    desk("terminal", "take-list", str(list_file))
    desk("terminal", "shift", "open")
    paid = desk("terminal", "pay", "12.50", "--request-id", "lunch-1")
    assert (paid["amount_fen"], paid["balance_fen"], paid["card"]) == (12_50, 37_50, serial)
    assert desk("terminal", "pay", "12.50", "--request-id", "lunch-1")["balance_fen"] == 37_50
    assert desk("terminal", "undo")["balance_fen"] == 50_00
    desk("terminal", "pay", "99", code=1)
    desk("terminal", "export", str(desk.folder / "journal"))
    desk("settle", "collect", str(desk.folder / "journal"))
    assert desk("settle", "run")["posted"] == 2
    assert desk("settle", "findings") == []
    assert desk("wallet", "balance", serial)["main_fen"] == 50_00
