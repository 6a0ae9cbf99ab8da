"""Cards that lie: each lie is what it says, by seed, repeatable, and leaves other answers alone."""

from __future__ import annotations

import pytest

from simulator.hostile import FalseBalance, Hostile, Lie, StuckCounter, Swapped, WrongTac, hostile
from tests.simulator.desk import Desk, application, at_home, card_key

PURCHASE, LOAD = card_key("purchase"), card_key("load")


def liar(lie: Lie, seed: int = 1, rate: float = 1.0) -> tuple[Desk, Hostile]:
    desk = at_home()
    desk.authenticate(2, card_key("recharge"))
    wrapped = hostile(desk.card, lie, seed, rate)
    return Desk(wrapped), wrapped


def differing_bits(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


@pytest.mark.parametrize(("lie", "part"), [(Lie.MAC2, slice(4, 8)), (Lie.TAC, slice(0, 4))], ids=["mac2", "tac"])
def test_one_bit_of_one_proof(lie: Lie, part: slice) -> None:
    """Exactly one bit of MAC2 or TAC is wrong in the debit's answer and again in the later proof."""
    honest = at_home().debit(1, 2, 5, PURCHASE)
    desk, wrapped = liar(lie)
    told = desk.debit(1, 2, 5, PURCHASE)
    assert differing_bits(told, honest) == differing_bits(told[part], honest[part]) == 1
    proof = desk("805A000602000108")
    assert differing_bits(proof[4:] + proof[:4], honest) == 1
    assert wrapped.lies == 2


def test_wrong_mac1() -> None:
    """INITIALIZE FOR LOAD's MAC1 is wrong, the rest of it right; a purchase's INITIALIZE is left alone."""
    desk, _ = liar(Lie.MAC1)
    honest, _ = liar(Lie.BALANCE, rate=0)
    told, true = desk.initialize(0, 2, 5), honest.initialize(0, 2, 5)
    assert told[:12] == true[:12]
    assert differing_bits(told, true) == 1
    assert desk.initialize(1, 2, 5) == honest.initialize(1, 2, 5)


def test_tac_of_a_load() -> None:
    """A load's TAC is wrong too."""
    desk, wrapped = liar(Lie.TAC)
    desk.load(2, 5, LOAD)
    assert wrapped.lies == 1
    assert isinstance(wrapped, WrongTac)


def test_stuck_counter() -> None:
    """Each INITIALIZE tells the first counter, so the card refuses what is computed from it."""
    desk, wrapped = liar(Lie.COUNTER)
    assert isinstance(wrapped, StuckCounter)
    desk.debit(1, 2, 5, PURCHASE)
    command = desk.debit_command(1, 2, 5, PURCHASE)
    desk(command, 0x9302)
    assert desk.initialize(1, 2, 0)[4:6] == b"\0\0"
    assert desk.initialize(0, 2, 0)[4:6] == b"\0\0"


def test_false_balance() -> None:
    """Balance and INITIALIZE tell the false sum, status words and other answers stay."""
    inner = at_home().card
    desk = Desk(FalseBalance(inner, balance_fen=99))
    assert desk.balance(2) == desk.balance(1) == 99
    assert desk.initialize(1, 2, 5)[:4] == b"\0\0\0\x63"
    desk.initialize(1, 2, 10_001, sw=0x9401)
    assert desk.chip.atr == inner.atr


def test_replayed_answers() -> None:
    """An earlier answer to the same kind of command comes back; the first one is true."""
    desk, wrapped = liar(Lie.REPLAY)
    desk.debit(1, 2, 5, PURCHASE)
    told = desk.initialize(1, 2, 6)
    assert told[4:6] == b"\0\0"
    assert wrapped.lies == 1


def test_same_seed_same_lies() -> None:
    """Two runs of one seed tell the same, another seed something else; rate 0 never lies."""

    def run(seed: int, rate: float) -> list[bytes]:
        desk, _ = liar(Lie.TAC, seed, rate)
        return [desk.debit(1, 2, 1, PURCHASE) for _ in range(20)]

    assert run(7, 0.5) == run(7, 0.5)
    assert run(7, 0.5) != run(8, 0.5)
    assert run(7, 0) == run(8, 0)
    told, true = run(7, 0.5), run(7, 0)
    assert 0 < sum(a != b for a, b in zip(told, true, strict=True)) < 20


def test_swapped_card() -> None:
    """From the chosen command on another card answers; closing closes both."""
    first = at_home()
    second = at_home(application=[application(files={"0002": {"balance_fen": 3}})])
    desk = Desk(Swapped(first.card, second.card, 1))
    assert [desk.balance(2) for _ in range(3)] == [10_000, 3, 3]
    desk.chip.close()
    assert not first.card.power.on
    assert not second.card.power.on
