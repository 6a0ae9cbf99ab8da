"""What the records of one purse say about each other: counters without holes, balances that follow (books.md, Gaps).

A purse has one balance and two counters (offline for payments, online for loads and unloads). Records of
one class are ordered by their counter; how the two classes interleave is told by the balances alone, since
the clocks of terminals are not to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Position(NamedTuple):
    """Balance and the two counters that the purse's next transactions will show."""

    balance_fen: int = 0
    offline_seq: int = 0
    online_seq: int = 0


class Move(NamedTuple):
    """One transaction as a purse saw it; ``seq`` is the counter before, ``sure`` False when its outcome is unknown."""

    key: str
    online: bool
    seq: int
    before_fen: int
    change_fen: int
    utc_ms: int
    sure: bool = True


class Chain(NamedTuple):
    """Outcome of :func:`follow`.

    ``certain`` up to ``position``; ``missing_*`` are counters nobody reported yet, ``outstanding_fen`` the
    net change they made (negative: spent). With nothing missing, ``outstanding_fen`` of ``floating`` records
    is unexplained. ``done`` and ``undone`` are unknown outcomes that later records closed. ``reused`` showed a
    counter that another record has already.
    """

    position: Position
    certain: list[str]
    floating: list[str]
    missing_offline: list[int]
    missing_online: list[int]
    outstanding_fen: int
    done: list[str]
    undone: list[str]
    reused: list[str]


def follow(start: Position, moves: Iterable[Move], seen: Position | None = None) -> Chain:
    """Chain ``moves`` from ``start`` as far as counters and balances allow.

    ``seen`` is what the card itself said at the end, when that is known: it closes unknown outcomes too.
    """
    counters = (start.offline_seq, start.online_seq)
    said = (seen.offline_seq, seen.online_seq) if seen else (-1, -1)
    used: dict[tuple[bool, int], list[Move]] = {}
    reused: list[str] = []
    undone: list[str] = []
    for move in sorted(moves, key=lambda m: (not m.sure, m.online, m.seq, m.utc_ms, m.key)):
        rivals = used.get(move[1:3], [])
        stale = move.seq < counters[move.online] or any(rival.sure for rival in rivals)
        if stale or (not move.sure and move.seq == said[move.online]):
            (reused if move.sure else undone).append(move.key)
        else:
            used.setdefault(move[1:3], rivals).append(move)
    certain = _walk(start, used, seen)
    position = Position(
        start.balance_fen + sum(m.change_fen for m in certain),
        start.offline_seq + sum(not m.online for m in certain),
        start.online_seq + sum(m.online for m in certain),
    )
    keys, rest = {move.key for move in certain}, []
    for move in (move for rivals in used.values() for move in rivals if move.key not in keys):
        if move.sure:
            rest.append(move)
        elif move.seq < position[1 + move.online]:
            undone.append(move.key)
    tops = [max([said[o], *(m.seq + 1 for m in rest if m.online is bool(o))]) for o in (0, 1)]
    places = {(m.online, m.seq) for m in rest}
    missing = [
        [n for n in range(first, top) if (bool(online), n) not in places]
        for online, (first, top) in enumerate(zip(position[1:], tops, strict=True))
    ]
    return Chain(
        position,
        [m.key for m in certain if m.sure],
        [m.key for m in rest],
        missing[0],
        missing[1],
        _outstanding(position, rest, seen),
        [m.key for m in certain if not m.sure],
        undone,
        reused,
    )


class _State(NamedTuple):
    """Where a walk may stand: offline moves taken, balance, and of each class whether its last move is unconfirmed.

    ``still``: whether the last move of each class left the balance as it was, so that a balance confirms nothing.
    """

    offline: int
    balance_fen: int
    open: tuple[bool, bool] = (False, False)
    still: tuple[bool, bool] = (False, False)


class _Path(NamedTuple):
    """The moves that led to a state, last first."""

    move: Move
    before: _Path | None


def _walk(start: Position, used: Mapping[tuple[bool, int], list[Move]], seen: Position | None) -> list[Move]:
    """Longest interleaving whose counters are contiguous and whose balances follow; ends on something sure.

    Under one counter there may be several moves of unknown outcome, of which one at most happened. What the card said
    confirms an unknown end only when counters and balance are exactly those: a counter alone may have been used by
    another.
    """
    first = (start.offline_seq, start.online_seq)
    states: dict[_State, _Path | None] = {_State(0, start.balance_fen): None}
    best: _Path | None = None
    for taken in range(len(used) + 1):
        following: dict[_State, _Path | None] = {}
        for state, path in states.items():
            at = (first[0] + state.offline, first[1] + taken - state.offline)
            if not any(state.open) or seen == Position(state.balance_fen, *at):
                best = path
            for online in (False, True):
                for move in used.get((online, at[online]), ()):
                    if move.before_fen == state.balance_fen:
                        following.setdefault(_after(state, move), _Path(move, path))
        if not following:
            break
        states = following
    moves = []
    while best:
        moves.append(best.move)
        best = best.before
    return moves[::-1]


def _after(state: _State, move: Move) -> _State:
    """The state once ``move`` is taken.

    A sure move confirms its own class by the counter, the other one by the balance that it started from.
    """
    own, other = move.online, not move.online
    unsure = state.open[other] and (not move.sure or state.open[own] or state.still[other])
    opened, still = (not move.sure, unsure), (move.change_fen == 0, state.still[other])
    return _State(
        state.offline + (not own),
        state.balance_fen + move.change_fen,
        opened[::-1] if own else opened,
        still[::-1] if own else still,
    )


def _outstanding(position: Position, rest: Sequence[Move], seen: Position | None) -> int:
    """Net change that no record explains, up to the last thing known of the balance."""
    if seen:
        end, known = seen.balance_fen, rest
    elif rest:
        last = _latest(rest)
        end, known = last.before_fen, [m for m in rest if m is not last]
    else:
        return 0
    return end - position.balance_fen - sum(m.change_fen for m in known)


def _latest(rest: Sequence[Move]) -> Move:
    """The last of each class by counter, of those the later by clock."""
    tops = [max((m for m in rest if m.online is online), key=lambda m: m.seq, default=None) for online in (False, True)]
    return max((m for m in tops if m is not None), key=lambda m: m.utc_ms)
