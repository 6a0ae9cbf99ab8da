"""What the records of one purse say about each other: counters without holes, balances that follow (books.md, Gaps).

A purse has one balance and two counters (offline for payments, online for loads and unloads). Records of
one class are ordered by their counter; how the two classes interleave is told by the balances alone, since
the clocks of terminals are not to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    used: set[tuple[bool, int]] = set()
    sure: list[Move] = []
    reused: list[str] = []
    undone: list[str] = []
    maybe: list[Move] = []
    for move in sorted(moves, key=lambda m: (not m.sure, m.online, m.seq, m.utc_ms, m.key)):
        place = (move.online, move.seq)
        stale = place in used or move.seq < counters[move.online]
        if stale or (not move.sure and move.seq == said[move.online]):
            (reused if move.sure else undone).append(move.key)
        else:
            used.add(place)
            (sure if move.sure else maybe).append(move)
    lanes = [sorted((m for m in sure + maybe if m.online is online), key=lambda m: m.seq) for online in (False, True)]
    taken, position = _walk(start, lanes[0], lanes[1], seen)
    certain = lanes[0][: taken[0]] + lanes[1][: taken[1]]
    rest = [m for m in lanes[0][taken[0] :] + lanes[1][taken[1] :] if m.sure]
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


def _walk(
    start: Position, offline: Sequence[Move], online: Sequence[Move], seen: Position | None
) -> tuple[tuple[int, int], Position]:
    """Longest interleaving whose counters are contiguous and whose balances follow; ends on something sure.

    After k records the state is known by how many of them were offline and by which classes end in an
    unknown outcome that nothing has confirmed yet, so the search is over small sets. What the card said confirms
    an unknown end only when counters and balance are exactly those: a counter alone may have been used by another.
    """
    lanes, first = (offline, online), (start.offline_seq, start.online_seq)
    sums = (_sums(offline), _sums(online))
    states = {(0, (False, False))}
    best = (0, 0)
    for taken in range(len(offline) + len(online) + 1):
        following: set[tuple[int, tuple[bool, bool]]] = set()
        for i, open_ in states:
            at = (i, taken - i)
            balance = start.balance_fen + sums[0][at[0]] + sums[1][at[1]]
            if not any(open_) or seen == Position(balance, first[0] + at[0], first[1] + at[1]):
                best = at
            for n in (0, 1):
                if at[n] < len(lanes[n]) and lanes[n][at[n]][2:4] == (first[n] + at[n], balance):
                    other = lanes[1 - n][at[1 - n] - 1] if open_[1 - n] else None
                    own, rest = _opened(lanes[n][at[n]], open_[n], other)
                    following.add((i, (rest, own)) if n else (i + 1, (own, rest)))
        if not following:
            break
        states = following
    i, j = best
    return best, Position(start.balance_fen + sums[0][i] + sums[1][j], first[0] + i, first[1] + j)


def _opened(move: Move, was_open: bool, other: Move | None) -> tuple[bool, bool]:
    """Which classes, the move's own and the other, wait for confirmation once ``move`` is taken.

    A sure move confirms its own class by the counter, the other one by the balance that it started from.
    """
    if not move.sure:
        return True, other is not None
    return False, other is not None and (was_open or other.change_fen == 0)


def _sums(lane: Sequence[Move]) -> list[int]:
    sums = [0]
    for move in lane:
        sums.append(sums[-1] + move.change_fen)
    return sums


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
