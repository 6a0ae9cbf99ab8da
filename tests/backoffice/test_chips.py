"""Cards on the platform: serials never twice, slots within the card's room, one number for one card."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from backoffice import chips, enterprises
from backoffice.chips import CardState
from backoffice.database import PLATFORM, Database
from backoffice.operators import Operator, Role
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from cardlib.profile import CardKind, check_serial, make_serial
from tests.backoffice.conftest import ENTERPRISE

ROOT = Operator(PLATFORM, "root", Role.PLATFORM)
ISSUER = Operator(ENTERPRISE, "li", Role.ISSUER)
ONE, TWO = (make_serial(CardKind.RFID_SIM, 1, number) for number in (1, 2))
NUMBER = "13800138000"


@pytest.fixture
def washed(platform: Database) -> Database:
    """Two washed cards."""
    with platform.write() as tx:
        for serial in (ONE, TWO):
            chips.register(tx, ROOT, serial, chip=f"chip {serial.hex()}", wash_version=1)
    return platform


def give(database: Database) -> bytes:
    with database.write() as tx:
        return chips.next_serial(tx, CardKind.CPU_CARD)


def test_serials_are_never_given_twice(platform: Database) -> None:
    """Serials of a kind count up without a hole, also when several ask at once."""
    with ThreadPoolExecutor(3) as pool:
        given = list(pool.map(lambda _: give(platform), range(30)))
    assert sorted(given) == [make_serial(CardKind.CPU_CARD, 1, number) for number in range(1, 31)]
    assert {check_serial(serial) for serial in given} == {CardKind.CPU_CARD}


def test_registering_again(washed: Database) -> None:
    """A card is written down once; a chip never gets a second serial; a mistyped serial is refused."""
    with washed.write() as tx:
        assert chips.register(tx, ROOT, ONE, chip=f"chip {ONE.hex()}", wash_version=2).wash_version == 2
    with pytest.raises(Conflict, match=ONE.hex().upper()), washed.write() as tx:
        chips.register(tx, ROOT, make_serial(CardKind.RFID_SIM, 1, 3), chip=f"chip {ONE.hex()}")
    with pytest.raises(FormatError), washed.write() as tx:
        chips.register(tx, ROOT, ONE[:7] + b"\0")
    with pytest.raises(Refused), washed.write() as tx:
        chips.register(tx, ISSUER, ONE)


@pytest.mark.parametrize("state_from", list(CardState))
@pytest.mark.parametrize("state_to", list(CardState))
def test_guarded_states(washed: Database, state_from: CardState, state_to: CardState) -> None:
    """Only the allowed changes of a card's state happen; any other names what is possible."""
    with washed.write() as tx:
        tx.execute("UPDATE card SET state = ? WHERE serial = ?", (state_from.value, ONE))
    if state_to is state_from or state_to in chips.NEXT[state_from]:
        with washed.write() as tx:
            chips.change_state(tx, ONE, state_to, "root", "test")
            assert chips.get(tx, ONE).state is state_to
    else:
        with pytest.raises(Conflict, match=f"is {state_from}: it can become"), washed.write() as tx:
            chips.change_state(tx, ONE, state_to, "root", "test")


def test_slots(washed: Database) -> None:
    """An enterprise has one slot on a card, eight have room, the ninth is refused until one is closed."""
    with washed.write() as tx:
        for number in range(9):
            enterprises.register(tx, ROOT, 100 + number, f"e{number}", "x.db")
        for number in range(8):
            assert chips.reserve_slot(tx, ROOT, ONE, 100 + number) == (number + 1, 100 + number, "opening")
        assert chips.reserve_slot(tx, ROOT, ONE, 103) == (4, 103, "opening")
        chips.slot_opened(tx, ROOT, ONE, 103)
        assert chips.slots(tx, ONE)[3] == (4, 103, "open")
        assert chips.get(tx, ONE).state is CardState.IN_USE
    with pytest.raises(Refused) as full, washed.write() as tx:
        chips.reserve_slot(tx, ROOT, ONE, 108)
    assert full.value.reason == "no_slot"
    with washed.write() as tx:
        chips.slot_closed(tx, ROOT, ONE, 101)
        chips.slot_closed(tx, ROOT, ONE, 101)
        assert chips.reserve_slot(tx, ROOT, ONE, 108) == (2, 108, "opening")
    with pytest.raises(NotFound), washed.write() as tx:
        chips.slot_opened(tx, ROOT, TWO, 103)
    with pytest.raises(Refused), washed.write() as tx:
        chips.reserve_slot(tx, ISSUER, TWO, ENTERPRISE)


def refusal(database: Database, serial: bytes, number: str, holder: str) -> str:
    with pytest.raises(Refused) as refused, database.write() as tx:
        chips.bind_number(tx, serial, number, holder, "li")
    assert number not in str(refused.value)
    return refused.value.reason


def test_one_number_one_card(washed: Database) -> None:
    """A number has one card of one person, a card one number; each refusal says which rule."""
    with washed.write() as tx:
        chips.bind_number(tx, ONE, NUMBER, "Li Wei", "li")
        chips.bind_number(tx, ONE, NUMBER, "ｌi  wei", "li")
    assert refusal(washed, ONE, NUMBER, "Wang Fang") == "transfer"
    assert refusal(washed, TWO, NUMBER, "Wang Fang") == "transfer"
    assert refusal(washed, TWO, NUMBER, "Li Wei") == "number_has_card"
    assert refusal(washed, ONE, "13900139000", "Li Wei") == "number_changed"
    with pytest.raises(NotFound), washed.write() as tx:
        chips.bind_number(tx, make_serial(CardKind.RFID_SIM, 1, 99), "13900139000", "Li Wei", "li")


def test_cancel_and_issue_again(washed: Database) -> None:
    """A released number can be bound to a new card, of another person too."""
    with washed.write() as tx:
        chips.bind_number(tx, ONE, NUMBER, "Li Wei", "li")
        chips.release_number(tx, ONE, "li")
        chips.release_number(tx, ONE, "li")
        chips.bind_number(tx, TWO, NUMBER, "Wang Fang", "li")
        assert chips.binding(tx, number=NUMBER) == (NUMBER, TWO, "Wang Fang")
        assert chips.binding(tx, serial=ONE) is None


def test_reissue_keeps_the_number(washed: Database) -> None:
    """A replaced card's number moves to the new card, once."""
    with washed.write() as tx:
        chips.bind_number(tx, ONE, NUMBER, "Li Wei", "li")
        chips.rebind_number(tx, ONE, TWO, "li")
        chips.rebind_number(tx, ONE, TWO, "li")
        assert chips.binding(tx, serial=TWO) == (NUMBER, TWO, "Li Wei")
    with pytest.raises(NotFound), washed.write() as tx:
        chips.rebind_number(tx, ONE, make_serial(CardKind.RFID_SIM, 1, 3), "li")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("13800138000", NUMBER),
        ("+86 138-0013-8000", NUMBER),
        ("0086(138)00138000", NUMBER),
        ("１３８００１３８０００", NUMBER),
        ("+8613800138000", NUMBER),
        ("+49 30 1234567", "49301234567"),
        ("86100", "86100"),
    ],
)
def test_phone_number_has_one_form(text: str, number: str) -> None:
    """However it is written, a number is the same number."""
    assert chips.phone_number(text) == number


@pytest.mark.parametrize("text", ["", "1234", "1" * 17, "12345a", "+", "٠١٢٣٤٥٦", "1,380,013"])
def test_no_phone_number(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(FormatError):
        chips.phone_number(text)
