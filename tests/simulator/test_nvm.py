"""Transactional memory by itself: the redo log under power cuts at every step."""

from __future__ import annotations

import itertools

import pytest

from cardlib.errors import CardRemoved
from simulator.nvm import Cell, Nvm, Power


def test_writes_become_visible_at_commit() -> None:
    """Pending writes are not seen, commit shows them in order, abort forgets them; on_commit is called once."""
    nvm, power, calls = Nvm(), Power(), []
    nvm.on_commit = lambda: calls.append(1)
    a, b = nvm.root("a", 1), nvm.root("b", 2)
    nvm.write(a, 5)
    nvm.write(b, 6)
    nvm.write(b, 7)
    assert (a.value, b.value) == (1, 2)
    nvm.commit(power)
    nvm.write(a, 9)
    nvm.abort()
    nvm.commit(power)
    assert (a.value, b.value, calls) == (5, 7, [1])


def test_root_is_made_once() -> None:
    """The same name gives the same cell."""
    nvm = Nvm()
    assert nvm.root("x", 1) is nvm.root("x", 2)
    assert nvm.root("x", 3).value == 1


def commit_cut_at(step: int, recover_cuts: tuple[int, ...] = ()) -> tuple[list[int], bool]:
    """Cells after a commit of three writes cut at ``step`` and completed at power-on; whether it was cut."""
    nvm, power = Nvm(), Power()
    cells = [nvm.root(str(i), 0) for i in range(3)]
    for i, cell in enumerate(cells):
        nvm.write(cell, i + 10)
    power.cut_at(step)
    cut = False
    try:
        nvm.commit(power)
    except CardRemoved:
        cut = True
    for at in recover_cuts:
        power.on = True
        power.cut_at(at)
        with pytest.raises(CardRemoved):
            nvm.recover(power)
    nvm.recover(Power())
    assert not nvm.torn
    return [cell.value for cell in cells], cut


def test_power_cut_at_every_step() -> None:
    """Up to the mark nothing changes, from the mark on everything does; a step lies on each side of each write."""
    outcomes = []
    for step in itertools.count(1):
        values, cut = commit_cut_at(step)
        if not cut:
            break
        outcomes.append(values)
    assert len(outcomes) == 2 * (3 + 1 + 3 + 1)
    assert outcomes == [[0, 0, 0]] * 7 + [[10, 11, 12]] * 9


@pytest.mark.parametrize("at", range(1, 8))
def test_power_cut_while_completing(at: int) -> None:
    """Completion itself may be cut, again and again."""
    assert commit_cut_at(8, (at, 1, 2, at)) == ([10, 11, 12], True)


def test_cut_is_spent() -> None:
    """After the cut power stays away and nothing is armed any more; 0 disarms."""
    power = Power()
    power.cut_at(2)
    power.step()
    with pytest.raises(CardRemoved):
        power.step()
    assert (power.on, power.armed, power.steps) == (False, False, 2)
    power.cut_at(1)
    power.cut_at(0)
    assert not power.armed


def test_cell_shows_no_value() -> None:
    """Cells hold keys: their repr tells nothing."""
    assert "secret" not in repr(Cell("secret"))
