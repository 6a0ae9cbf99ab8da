"""The program dies at any write to any database, or by kill -9: the next run goes on, money moves once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backoffice import cards, ledger, wallet
from backoffice.jobs import LEASE_MS, Result
from cardlib import purse
from cardlib.errors import Conflict
from cardlib.profile import Purse
from simulator.card import Card
from tests.backoffice.crash import Dead, Guillotine
from tests.backoffice.desk import Counter, World
from tests.backoffice.kit import ADMIN

ROOT = Path(__file__).parents[2]


def survive(world: World, guillotine: Guillotine, chips: list[Card], work: Callable[[], object]) -> int:
    """Die at every write of ``work`` in turn, start again after the lease is over, until it is done; counts deaths."""
    write = 1
    for deaths in range(400):
        for chip in chips:
            chip.reset()
        guillotine.arm((write + 1) // 2, after=write % 2 == 0)
        with suppress(Dead):
            work()
        died = guillotine.disarm()
        world.now += LEASE_MS + 1
        world.office = world.new_office()
        if not died:
            return deaths
        # A run that goes on has fewer writes left, so the same count reaches further each time.
        write = write + 1 if write < 12 else 1
    raise AssertionError("it never ended")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh enterprise."""
    made = World(tmp_path)
    yield made
    made.close()


def test_issue_and_money(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, recharge, refund and cancel end as if nothing had happened."""
    guillotine = Guillotine(monkeypatch)
    number, card = world.member(1), world.blank()
    deaths = survive(
        world, guillotine, [card], lambda: cards.issue(world.office, ADMIN, number, world.new(card), request_id="i")
    )
    assert deaths > 5
    serial = bytes.fromhex(cards.issue(world.office, ADMIN, number, world.new(), request_id="i")["card"])
    survive(world, guillotine, [card], lambda: wallet.recharge(world.office, ADMIN, card, serial, 500, request_id="r"))
    survive(world, guillotine, [card], lambda: wallet.refund(world.office, ADMIN, card, serial, 20, request_id="f"))
    assert world.on_card(card)[Purse.MAIN] == world.purse(serial) == 480
    card.reset()
    survive(
        world, guillotine, [card], lambda: cards.cancel(world.office, ADMIN, serial, "x", card=card, request_id="c")
    )
    assert world.books() == {ledger.BANK: -500, ledger.REFUNDS: 500}
    assert world.state(serial) == ("cancelled", "cancelled")
    world.agrees()


@pytest.mark.parametrize("present", [True, False])
def test_reissue(world: World, monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    """A reissue that dies at each of its writes carries the money once, from the chip or from the books."""
    guillotine = Guillotine(monkeypatch)
    old, old_serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, old_serial, 500)
    old.reset()
    wallet.subsidise(world.office, ADMIN, old, old_serial, 70)
    till = Counter(world, 1)
    till.pay(old, 100)
    survive(world, guillotine, [], lambda: cards.lose(world.office, ADMIN, old_serial, "gone"))
    till.close_books()
    new = world.blank()
    outcomes: list[Result] = []

    def work() -> None:
        chip = old if present else None
        outcomes.append(cards.reissue(world.office, ADMIN, old_serial, world.new(new), old_card=chip, request_id="r"))

    assert survive(world, guillotine, [old, new], work) > 12
    serial = bytes.fromhex(outcomes[-1]["card"])
    assert outcomes[-1]["carried_fen"] == {"main": 400, "subsidy": 70}
    assert world.on_card(new) == {Purse.MAIN: 400, Purse.SUBSIDY: 70}
    assert (world.purse(serial), world.purse(old_serial), world.purse(old_serial, Purse.SUBSIDY)) == (400, 0, 0)
    assert ledger.TRANSFERS not in world.books()
    assert world.state(old_serial)[0] == "replaced"
    assert world.listed() == {old_serial.hex()}


def test_a_job_in_hand_is_nobody_elses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one administrator works on a card, a second one is told to wait, and moves nothing."""
    card, serial = world.issued()
    plain, seen = purse.load, []

    def load_slowly(*args: object) -> object:
        with pytest.raises(Conflict, match="being worked on"):
            wallet.recharge(world.new_office(), ADMIN, card, serial, 500)
        with pytest.raises(Conflict):
            wallet.recharge(world.new_office(), ADMIN, card, serial, 700)
        seen.append(True)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(wallet, "load", load_slowly)
    wallet.recharge(world.office, ADMIN, card, serial, 500)
    assert seen == [True]
    assert world.on_card(card)[Purse.MAIN] == 500


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.backoffice import desk
from backoffice import cards, wallet
from backoffice.database import Database
folder, write, image = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
world = desk.World.again(folder)
card = desk.Card.restore(image.read_bytes(), world.random_bytes)
transceive, plain, count = card.transceive, Database.write, [0]
def kept(command):
    answer = transceive(command)
    image.write_bytes(card.snapshot())
    return answer
card.transceive = kept
import contextlib
@contextlib.contextmanager
def counted(db):
    with plain(db) as tx:
        yield tx
    count[0] += 1
    if count[0] == write:
        os.kill(os.getpid(), 9)
Database.write = counted
serial = bytes.fromhex(sys.argv[4])
print(wallet.recharge(world.office, desk.ADMIN, card, serial, 300, request_id="k")["balance_fen"])
"""


def test_kill_9_between_writes(tmp_path: Path) -> None:
    """A real process killed after each commit leaves real files from which the next one finishes the recharge once."""
    world = World(tmp_path)
    card, serial = world.issued()
    image = tmp_path / "card.img"
    image.write_bytes(card.snapshot())
    world.close()
    killed, write, done = 0, 1, ""
    while not done:
        child = subprocess.run(
            [sys.executable, "-c", CHILD.format(root=str(ROOT)), tmp_path, str(write), image, serial.hex()],
            capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert child.returncode in (0, -signal.SIGKILL), child.stderr
        killed += child.returncode != 0
        done = child.stdout.strip()
        write = write + 1 if killed < 6 else 99
    assert killed >= 4
    assert done == "300"
    again = World.again(tmp_path)
    assert again.purse(serial) == again.on_card(Card.restore(image.read_bytes()))[Purse.MAIN] == 300
    again.agrees()
    again.close()
