"""The end of an application: emptied, wiped and blocked once, whatever tears on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardlib.apdu import Command
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict
from cardlib.iso7816 import block_application
from cardlib.profile import Purpose, Purse, TransactionType, aid
from cardlib.purse import MoneyRequest, identify, load, open_application
from cardlib.records import local_when
from cardlib.transport import send
from keymgmt.personalise import personalise, protector
from keymgmt.retire import WIPED, Emptied, retire
from keymgmt.slot import close_slot, directory, open_slot
from keymgmt.wash import wash
from simulator.card import Card
from tests.keymgmt.rig import ENTERPRISE, SERIAL, Rig, count_steps, cut

MONEY = {Purse.MAIN: 1234, Purse.SUBSIDY: 567}


def charged(rig: Rig) -> Card:
    """A finished card with money in both purses."""
    card = rig.card()
    wash(card, rig.wash_plan, rig.store, rig.steps)
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    personalise(card, rig.personal_plan, rig.station)
    session = open_application(card, rig.host, ENTERPRISE, rig.random.randbytes, Purpose.RECHARGE)
    for purse, amount_fen in MONEY.items():
        now = rig.station.now_ms()
        load(card, rig.host, rig.moves, session, MoneyRequest(purse, amount_fen, local_when(now), now))
    return card


def taken(rig: Rig) -> dict[TransactionType, int]:
    """Money that committed moves took off, by type."""
    sums: dict[TransactionType, int] = {}
    for move in rig.moves.ends.values():
        if move and move.kind in (TransactionType.PURCHASE_EP, TransactionType.UNLOAD):
            sums[move.kind] = sums.get(move.kind, 0) + move.amount_fen
    return sums


def assert_retired(rig: Rig, card: Card) -> None:
    """Nothing left: both purses taken off exactly once, holder gone, application blocked for good."""
    assert not rig.moves.open
    assert taken(rig) == {TransactionType.PURCHASE_EP: 1234, TransactionType.UNLOAD: 567}
    files = card.mf.files.value[0x3F01].files.value  # type: ignore[union-attr]
    assert files[0x16].data.value == WIPED.encode()  # type: ignore[union-attr]
    assert identify(card, ENTERPRISE).blocked
    assert retire(card, rig.station, "retire", SERIAL, ENTERPRISE) is None


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
def test_retire(tmp_path: Path, algorithm: Algorithm) -> None:
    """Money goes to the journal, the log is handed over, then nothing of the holder is left; the slot can be reused."""
    rig = Rig(tmp_path, algorithm)
    card = charged(rig)
    done = retire(card, rig.station, "retire", SERIAL, ENTERPRISE)
    assert isinstance(done, Emptied)
    assert done.main is not None
    assert done.subsidy is not None
    assert (done.main.move.amount_fen, done.subsidy.move.amount_fen) == (1234, 567)
    assert [record.amount_fen for record in done.log] == [567, 1234, 0]
    assert_retired(rig, card)
    close_slot(card, SERIAL, ENTERPRISE, rig.store, rig.steps, "close")
    assert directory(card) == {}


def test_an_empty_card(tmp_path: Path) -> None:
    """Empty purses need no payment."""
    rig = Rig(tmp_path)
    card = charged(rig)
    retire(card, rig.station, "retire", SERIAL, ENTERPRISE)
    close_slot(card, SERIAL, ENTERPRISE, rig.store, rig.steps, "close")
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    personalise(card, rig.personal_plan, rig.station)
    done = retire(card, rig.station, "retire again", SERIAL, ENTERPRISE)
    assert done is not None
    assert (done.main, done.subsidy) == (None, None)


def test_a_lost_card_found(tmp_path: Path) -> None:
    """A temporarily blocked application is unblocked first, else it could not be emptied."""
    rig = Rig(tmp_path)
    card = charged(rig)
    identify(card, ENTERPRISE)
    block_application(card, protector(rig.host, SERIAL, 1, Purpose.MAINTENANCE))
    assert retire(card, rig.station, "retire", SERIAL, ENTERPRISE)
    assert_retired(rig, card)


def test_another_card(tmp_path: Path) -> None:
    """Another card than the job's is refused with its serial, and keeps its money."""
    rig = Rig(tmp_path)
    card = charged(rig)
    with pytest.raises(Conflict, match=SERIAL.hex().upper()):
        retire(card, rig.station, "retire", bytes(8), ENTERPRISE)
    assert taken(rig) == {}
    assert send(card, Command(0, 0xA4, 4, 0, aid(ENTERPRISE), 0)).sw == 0x9000


def test_cut_everywhere(tmp_path: Path) -> None:
    """Cut at any step, then presented again with the journal's open moves: money is taken off exactly once."""
    rig = Rig(tmp_path)

    def act(card: Card) -> None:
        retire(card, rig.station, "retire", SERIAL, ENTERPRISE, rig.moves.open)

    total = count_steps(card := charged(rig), lambda: act(card))
    for at in range(1, total + 1):
        rig.moves.intents.clear()
        rig.moves.ends.clear()
        card = charged(rig)
        assert cut(card, at, lambda: act(card))  # noqa: B023
        act(card)
        assert_retired(rig, card)
