"""A recharge terminal as a process, on a real line to the office: cash, a voucher, a claim, a kill in the middle."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backoffice import registry, subsidies, vouchers
from backoffice.ledger import cash_account
from backoffice.registry import TerminalKind
from backoffice.subsidies import Way
from cardlib.blacklist import Blacklist, ListStore, snapshot
from cardlib.crypto import make_key
from cardlib.crypto.signing import SigningKey
from cardlib.profile import Purse
from cardlib.sam import CardSam
from keymgmt.handle import KeyHandle
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import MemorySteps
from simulator import image
from simulator.rig import EXPIRY, START
from simulator.sam import SamCard
from tests.backoffice.desk import TRANSPORT_KEY, serial_of
from tests.backoffice.kit import ADMIN, ENTERPRISE, sam_serial, terminal_number
from tests.onecard import onecard
from tests.secretwatch import WATCH, register
from tests.terminals.office_rig import Site, site

ROOT = Path(__file__).parent.parent.parent
SIGNER = SigningKey(bytes(range(32)))
PATIENCE_S = 60


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Site]:
    """An office at today's date, and the files of recharge terminal 1."""
    with site(tmp_path) as made:
        world = made.world
        world.now = time.time_ns() // 1_000_000
        sam = SamCard.vendor_fresh(TRANSPORT_KEY, world.random_bytes)
        plan = SamPlan(
            "sam", sam_serial(1), terminal_number(1), ENTERPRISE, SamKind.RECHARGE, (1,), START, EXPIRY
        )  # fmt: skip
        make_sam(sam, plan, KeyHandle(make_key(TRANSPORT_KEY), "vendor"), world.store, MemorySteps())
        sam.reset()
        assert CardSam(sam).info().terminal == terminal_number(1)
        image.save(sam, tmp_path / "sam.img")
        with world.db.write() as tx:
            registry.register(tx, ADMIN, ENTERPRISE, terminal_number(1), TerminalKind.RECHARGE, "desk")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, terminal_number(1), sam_serial(1))
        (tmp_path / "token").write_text(made.token(1) + "\n")
        listed = Blacklist.of(ENTERPRISE, 1, world.now, [])
        ListStore(tmp_path / "lists.db", ENTERPRISE, SIGNER.public).take(snapshot(SIGNER, listed))
        (tmp_path / "t.toml").write_text(
            f'version = 1\nkind = "recharge"\nenterprise_id = {ENTERPRISE}\njournal = "{tmp_path / "journal.db"}"\n'
            f'lists = "{tmp_path / "lists.db"}"\nlist_root_key = "{SIGNER.public.hex()}"\n'
            f'office_url = "http://127.0.0.1:{made.port}"\n'
        )
        yield made


def run(office: Site, *lines: str) -> str:
    """Run the terminal, type lines and quit; gives all that it said."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
    folder = office.folder
    extra = {
        "PYTHONPATH": str(ROOT), "ONECARD_OFFICE_TOKEN_FILE": str(folder / "token"),
        "ONECARD_VOUCHER_SECRET_FILE": str(folder / "secret"),
    }  # fmt: skip
    command = [
        onecard(), "terminal", "run", "--terminal", str(folder / "t.toml"), "--sam-reader",
        f"sim:{folder / 'sam.img'}", "--reader", f"sim:{folder / 'card.img'}", "--cashier", "kim", "--language", "en",
    ]  # fmt: skip
    done = subprocess.run(
        command, input="\n".join([*lines, "quit", ""]), env=known | extra, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False, cwd=folder,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    WATCH.saw("the console", said)
    return said


def test_a_morning_at_the_desk(office: Site) -> None:
    """Cash twice under one number is loaded once; a voucher and a claim follow; receipts are printed, books agree."""
    world, (card, serial) = office.world, office.world.issued()
    image.save(card, office.folder / "card.img")
    with world.db.write() as tx:
        [one] = vouchers.make(tx, ADMIN, ENTERPRISE, "b1", 1, 2_000, "2035-12-31", world.random_bytes)
        subsidies.grant(tx, ADMIN, ENTERPRISE, "g1", 202611, 3_000, Way.ADD, "2035-12-31")
    register(one.secret, "a voucher's secret")
    (office.folder / "secret").write_text(one.secret + "\n")
    said = run(
        office, "50 C1", "", "50 C1", "", f"voucher {one.number}", "", "claim", "", "claim", "", "", "0", "voucher x",
    )  # fmt: skip
    assert said.count("loaded 50.00, balance 50.00") == 2
    assert "loaded 20.00, balance 70.00" in said
    assert "loaded 30.00, balance 30.00" in said
    assert "Subsidy purse" in said
    assert "refused: the host refuses (host_refused)" in said
    assert "refused: the amount is not possible (amount_invalid)" in said
    assert said.count("is not understood here") == 2
    card = image.load(office.folder / "card.img")
    assert world.on_card(card) == {Purse.SUBSIDY: 3_000, Purse.MAIN: 7_000}
    assert serial_of(card) == serial
    assert world.books()[cash_account(terminal_number(1), "1")] == -5_000


def test_the_line_is_away_and_comes_back(office: Site) -> None:
    """While the office is away the amount stays keyed; nothing is loaded before it is back."""
    card, _ = office.world.issued()
    image.save(card, office.folder / "card.img")
    office.stop()
    assert "refused: the host can not be reached (host_unreachable)" in run(office, "50 C1", "")
    office.start()
    assert "loaded 50.00, balance 50.00" in run(office, "50 C1", "")
