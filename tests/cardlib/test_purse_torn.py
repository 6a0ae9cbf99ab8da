"""Every money move cut at every step of card and SAM, then recovered: money conserved, card and journal agree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from cardlib import iso7816 as iso
from cardlib.errors import OutcomeUnknown, TransportError
from cardlib.profile import DayCounters, LogRecord, Purpose, Purse, TransactionType
from cardlib.purse import balance, composite_debit, debit, load, read_log, recover, undo_offline, unload, withdraw
from cardlib.records import Outcome, Transaction, genesis, tac_input, verify_chain
from cardlib.sam import CardSam
from tests.cardlib.world import CARD_SERIAL, ENTERPRISE, PIN, TERMINAL, World, request

FILLED = {Purse.MAIN: 10_000, Purse.SUBSIDY: 2_000}
COUNTERS = DayCounters.of(date(2024, 8, 15), 2, 1, 300, 300).encode()
MAX_STEPS = 60
Act = Callable[[World], None]


def _load(world: World) -> None:
    load(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), request(Purse.MAIN, 500, 1))


def _load_subsidy(world: World) -> None:
    load(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), request(Purse.SUBSIDY, 500, 1))


def _pay(world: World) -> None:
    debit(world.card, world.sam, world.journal, world.tap(), request(Purse.MAIN, 1250, 1))


def _pay_subsidy(world: World) -> None:
    debit(world.card, world.sam, world.journal, world.tap(), request(Purse.SUBSIDY, 1250, 1))


def _withdraw(world: World) -> None:
    withdraw(world.card, world.sam, world.journal, world.tap(), request(Purse.SUBSIDY, 100, 1))


def _composite(world: World) -> None:
    composite_debit(world.card, world.sam, world.journal, world.tap(), request(Purse.MAIN, 300, 1), [COUNTERS])


def _unload(world: World) -> None:
    session = world.tap(Purpose.RECHARGE)
    unload(world.card, world.host, world.journal, session, request(Purse.SUBSIDY, 1500, 1))


def _undo(world: World) -> None:
    undo_offline(world.card, world.sam, world.journal, world.tap(), _paid(world), request(Purse.MAIN, 0, 2))


def _paid(world: World) -> Transaction:
    return next(m for m in world.journal.moves if not m.kind.online)


ACTS: dict[str, tuple[Act, Act | None]] = {
    "load": (_load, None),
    "load_subsidy": (_load_subsidy, None),
    "pay": (_pay, None),
    "pay_subsidy": (_pay_subsidy, None),
    "withdraw": (_withdraw, None),
    "composite": (_composite, None),
    "unload": (_unload, None),
    "undo": (_undo, _pay),
    "undo_composite": (_undo, _composite),
    "undo_subsidy": (_undo, _pay_subsidy),
}


def _world(prepare: Act | None) -> World:
    world = World()
    for purse, amount_fen in FILLED.items():
        world.fill(purse, amount_fen)
    if prepare:
        prepare(world)
    return world


def _recover_pending(world: World, purpose: Purpose = Purpose.TERMINAL) -> None:
    for ref, move in world.journal.pending:
        recover(world.card, world.sam, world.journal, world.tap(purpose), ref, move)


def _check(world: World) -> None:
    """Card and journal agree on balances, counters and log; nothing is open; every TAC is right."""
    assert not world.journal.pending
    moves = world.journal.moves
    world.tap()
    for purse in Purse:
        balance_fen, counters = 0, {True: 0, False: 0}
        for move in (m for m in moves if m.purse == purse):
            assert move.balance_before_fen == balance_fen
            assert move.card_seq == counters[move.kind.online], "counters rise by one, without gap"
            balance_fen = move.balance_after_fen
            counters[move.kind.online] += 1
        assert balance(world.card, purse) == balance_fen
    log = [LogRecord(m.card_seq + 1, 0, m.amount_fen, m.kind, m.terminal, m.when) for m in moves]
    assert read_log(world.card) == log[::-1]
    composite = any(m.kind == TransactionType.COMPOSITE for m in moves)
    assert (iso.read_record(world.card, 0x0017, 1, by_tag=True) == COUNTERS) is composite
    for move in moves:
        if move.kind != TransactionType.UNLOAD:
            world.host.verify_tac(CARD_SERIAL, move.key_version, move.algorithm, tac_input(move), move.tac)
    verify_chain(world.journal.entries, genesis(ENTERPRISE, TERMINAL))


def _cut(world: World, act: Act, step: int) -> bool:
    """Run a move with the card's power cut at a step; True when it was cut."""
    world.card.power.cut_at(step)
    unknown: list[int | str] = []
    try:
        act(world)
    except OutcomeUnknown as e:
        unknown = [e.journal_id]
    except TransportError:
        unknown = []  # lost before the intent: nothing can have happened
    assert [ref for ref, _ in world.journal.pending] == unknown
    cut = not world.card.power.on
    world.card.power.cut_at(0)
    return cut


@pytest.mark.parametrize("name", ACTS)
def test_a_move_cut_at_every_step_is_recovered(name: str) -> None:
    """Cut at step 1, 2, 3...: after recovery card and journal agree, and doing it again then moves money once."""
    act, prepare = ACTS[name]
    outcomes = set()
    for step in range(1, MAX_STEPS):
        world = _world(prepare)
        before = len(world.journal.moves)
        cut = _cut(world, act, step)
        _recover_pending(world)
        _check(world)
        done = len(world.journal.moves) - before
        outcomes.add((cut, done))
        if not cut:
            break
        if not done:
            act(world)
            _check(world)
        assert len(world.journal.moves) == before + 1
    assert outcomes == {(True, 0), (True, 1), (False, 1)}, "cuts before and after the change, and a run without one"


@pytest.mark.parametrize("name", ["pay", "composite", "undo", "unload"])
def test_recovery_cut_at_every_step_is_repeated(name: str) -> None:
    """A recovery that is itself torn, once and again, closes the entry exactly once."""
    act, prepare = ACTS[name]
    for lost_before in (True, False):
        step = _step_of_change(act, prepare) - (1 if lost_before else 0)
        for again in range(1, MAX_STEPS):
            world = _world(prepare)
            assert _cut(world, act, step)
            pending = world.journal.pending
            cut = False
            world.card.power.cut_at(again)
            try:
                _recover_pending(world)
            except TransportError:
                cut = True
                assert world.journal.pending == pending
                _recover_pending(world)
            world.card.power.cut_at(0)
            _check(world)
            if not cut:
                break
        else:
            pytest.fail("recovery never ends")


def _step_of_change(act: Act, prepare: Act | None) -> int:
    """The first step at which a cut finds the move done."""
    for step in range(1, MAX_STEPS):
        world = _world(prepare)
        before = len(world.journal.moves)
        assert _cut(world, act, step)
        _recover_pending(world)
        if len(world.journal.moves) > before:
            return step
    raise AssertionError("the move is never done")


@pytest.mark.parametrize("name", ["pay", "composite", "undo"])
def test_the_sam_cut_at_every_step(name: str) -> None:
    """Power of the SAM goes at every step: money and journal agree, a terminal number is never given twice."""
    act, prepare = ACTS[name]
    for step in range(1, MAX_STEPS):
        world = _world(prepare)
        before = len(world.journal.moves)
        world.sam_card.power.cut_at(step)
        try:
            act(world)
        except TransportError:
            assert not world.journal.pending
        cut = not world.sam_card.power.on
        world.sam_card.power.cut_at(0)
        world.sam_card.reset()
        world.sam = CardSam(world.sam_card, lambda: PIN)
        _check(world)
        if len(world.journal.moves) == before:
            act(world)
            _check(world)
        assert len(world.journal.moves) == before + 1
        numbers = [m.terminal_seq for m in world.journal.moves if not m.kind.online]
        assert len(set(numbers)) == len(numbers)
        if not cut:
            break
    else:
        pytest.fail("the SAM never came through")


def test_card_and_sam_lost_together() -> None:
    """The terminal loses power: the SAM forgets its session, recovery commits without MAC2, undo is refused."""
    step = _step_of_change(_pay, None)
    world = _world(None)
    assert _cut(world, _pay, step)
    world.sam_card.reset()
    world.sam = CardSam(world.sam_card, lambda: PIN)
    _recover_pending(world)
    _check(world)
    assert (world.journal.moves[-1].mac2_verified, world.journal.moves[-1].outcome) == (False, Outcome.COMMITTED)


def test_a_hundred_torn_taps_with_one_card() -> None:
    """Random moves, each perhaps cut, each recovered by the next tap: the books of card and journal never part."""
    world = _world(None)
    for _ in range(100):
        act = world.random.choice([_load, _load_subsidy, _pay, _pay_subsidy, _withdraw, _composite, _unload])
        room = balance_of(world, Purse.SUBSIDY) >= 1500 and balance_of(world, Purse.MAIN) >= 1500
        if not room and act not in (_load, _load_subsidy):
            continue
        _cut(world, act, world.random.randrange(1, 70))
        _recover_pending(world)
        world.tap()
        for purse in Purse:
            moved = [m for m in world.journal.moves if m.purse == purse]
            assert balance(world.card, purse) == moved[-1].balance_after_fen
    assert not world.journal.pending
    assert len(world.journal.moves) > 30


def balance_of(world: World, purse: Purse) -> int:
    """Balance that the journal knows."""
    return [m for m in world.journal.moves if m.purse == purse][-1].balance_after_fen
