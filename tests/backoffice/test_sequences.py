"""Chaining a purse's records: certain as far as counters and balances allow, and not one step further."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from backoffice.sequences import Move, Position, follow

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=1, max_size=30)


def life(steps: list[tuple[bool, int]], start: Position = Position()) -> tuple[list[Move], Position]:  # noqa: B008  # immutable
    """What a purse did: loads and payments as far as its money goes."""
    balance, offline, online = start
    moves = []
    for n, (load, fen) in enumerate(steps):
        online_move = load or balance < fen
        change = fen if online_move else -fen
        moves.append(Move(f"m{n}", online_move, online if online_move else offline, balance, change, n))
        balance += change
        online += online_move
        offline += not online_move
    return moves, Position(balance, offline, online)


@given(steps=STEPS, seed=st.integers(0, 99))
def test_all_records_in_any_order_chain_to_the_end(steps: list[tuple[bool, int]], seed: int) -> None:
    """With nothing missing everything is certain, whatever order records come in and whatever clocks say."""
    moves, end = life(steps)
    rng = Random(seed)
    shuffled = [move._replace(utc_ms=rng.randrange(100)) for move in rng.sample(moves, len(moves))]
    chain = follow(Position(), shuffled)
    assert chain.position == end
    assert sorted(chain.certain) == sorted(move.key for move in moves)
    assert (chain.floating, chain.missing_offline, chain.missing_online, chain.outstanding_fen) == ([], [], [], 0)


@given(steps=STEPS, lost=st.sets(st.integers(0, 29), min_size=1))
def test_what_is_missing_is_named_and_its_amount_known(steps: list[tuple[bool, int]], lost: set[int]) -> None:
    """Counters of records taken out, but for those at the very end, are missing, and the amounts add up."""
    moves, end = life(steps)
    kept = [move for n, move in enumerate(moves) if n not in lost]
    chain = follow(Position(), kept)
    floating = [move for move in kept if move.key in chain.floating]
    if not floating:
        assert chain.outstanding_fen == 0
        return
    last = max(floating, key=lambda move: move.utc_ms)
    known = chain.position.balance_fen + chain.outstanding_fen + sum(move.change_fen for move in floating)
    assert known == last.before_fen + last.change_fen
    seen = follow(Position(), kept, end)
    for online, missing in ((False, seen.missing_offline), (True, seen.missing_online)):
        first = seen.position[1 + online]
        truth = {move.seq for n, move in enumerate(moves) if n in lost and move.online is online and move.seq >= first}
        assert set(missing) == truth
    total = seen.position.balance_fen + seen.outstanding_fen
    assert total + sum(move.change_fen for move in kept if move.key in seen.floating) == end.balance_fen


@given(steps=STEPS, torn=st.integers(0, 29), done=st.booleans())
def test_an_unknown_outcome_is_never_decided_wrongly(steps: list[tuple[bool, int]], torn: int, done: bool) -> None:
    """A move of unknown outcome that later records close is closed as it was; else it stays open."""
    moves, _ = life(steps)
    torn %= len(moves)
    unsure = moves[torn]._replace(sure=False)
    if done:
        told = [*moves[:torn], unsure, *moves[torn + 1 :]]
    else:
        before = Position(unsure.before_fen, *_counters(moves, torn))
        later, _ = life(steps[torn + 1 :], before)
        told = [*moves[:torn], unsure, *(move._replace(key=f"later {move.key}") for move in later)]
    chain = follow(Position(), told)
    # An equal move under the same number looks the same: nobody can tell, and money is the same too.
    twin = next((m for m in told if m.sure and m[1:5] == unsure[1:5]), None)
    if twin is None and done:
        assert chain.undone == []
    if twin is None and not done:
        assert chain.done == []


def _counters(moves: list[Move], upto: int) -> tuple[int, int]:
    return sum(not move.online for move in moves[:upto]), sum(move.online for move in moves[:upto])


def test_the_card_itself_closes_what_is_open() -> None:
    """What the card says at a station tells of an unknown payment whether its number was used."""
    load = Move("load", True, 0, 0, 100, 1)
    torn = Move("torn", False, 0, 100, -30, 2, sure=False)
    assert follow(Position(), [load, torn]).position == Position(100, 0, 1)
    assert follow(Position(), [load, torn], Position(70, 1, 1)).done == ["torn"]
    assert follow(Position(), [load, torn], Position(100, 0, 1)).undone == ["torn"]


def test_one_number_twice_is_told() -> None:
    """A counter that another record has already, now or before, is named as reused and never chained."""
    first, second = Move("a", False, 0, 50, -10, 1), Move("b", False, 0, 50, -20, 2)
    assert follow(Position(50), [first, second]).reused == ["b"]
    assert follow(Position(40, 1), [second]).reused == ["b"]


def test_a_counter_alone_confirms_nothing() -> None:
    """The card moved on, but its balance says that another move used the number: an unknown outcome stays open."""
    unknown = Move("u", False, 1, 7000, -3000, 10, sure=False)
    start = Position(7000, 1, 2)
    other = follow(start, [unknown], Position(6500, 2, 2))
    assert (other.done, other.position, other.missing_offline, other.outstanding_fen) == ([], start, [1], -500)
    assert follow(start, [unknown], Position(4000, 2, 2)).done == ["u"]
    assert follow(start, [unknown], Position(4000, 3, 2)).done == []
