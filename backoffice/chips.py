"""What the platform knows of every card: serials given, slots opened, phone numbers bound (requirement D2)."""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum, unique
from typing import NamedTuple

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import PLATFORM, Row, Tx
from backoffice.operators import Operator, Permission, require
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from cardlib.profile import CardKind, check_serial, make_serial

SLOTS = 8
_NUMBER = re.compile(r"\d{5,16}")


@unique
class CardState(StrEnum):
    """Life of a card as a thing (books.md, States)."""

    BLANK = "blank"
    WASHED = "washed"
    IN_USE = "in use"
    LOST = "lost"
    CANCELLED = "cancelled"
    REPLACED = "replaced"
    DESTROYED = "destroyed"


_S = CardState
NEXT: dict[CardState, tuple[CardState, ...]] = {
    _S.BLANK: (_S.WASHED, _S.DESTROYED),
    _S.WASHED: (_S.IN_USE, _S.LOST, _S.CANCELLED, _S.DESTROYED),
    _S.IN_USE: (_S.LOST, _S.CANCELLED, _S.REPLACED, _S.DESTROYED),
    _S.LOST: (_S.IN_USE, _S.WASHED, _S.CANCELLED, _S.REPLACED, _S.DESTROYED),
    _S.CANCELLED: (_S.DESTROYED,),
    _S.REPLACED: (_S.DESTROYED,),
    _S.DESTROYED: (),
}


class Card(NamedTuple):
    """A card, whichever enterprises are on it."""

    serial: bytes
    kind: CardKind
    state: CardState
    chip: str | None
    batch_id: str | None
    wash_version: int
    changed_ms: int


class Slot(NamedTuple):
    """Room on a card for one enterprise's application; ``opening`` until the card has it."""

    number: int
    enterprise_id: int
    state: str


class Binding(NamedTuple):
    """A phone number and its card."""

    number: str
    card_serial: bytes
    holder: str


def phone_number(text: str) -> str:
    """A phone number in its one form: digits, without China's own prefix. Raises FormatError."""
    digits = re.sub(r"[\s()\-.]", "", unicodedata.normalize("NFKC", text))
    digits = re.sub(r"^(\+|00)(86(?=1\d{10}$))?", "", digits)
    if not _NUMBER.fullmatch(digits) or not digits.isascii():
        raise FormatError("a phone number has 5 to 16 digits")
    return digits


def next_serial(tx: Tx, kind: CardKind, platform: int = 1) -> bytes:
    """Give a serial that was never given before, for good once the caller commits."""
    number = tx.value(
        "INSERT INTO serial_counter VALUES (?, ?, 2) ON CONFLICT (kind, platform)"
        " DO UPDATE SET next = serial_counter.next + 1 RETURNING next",
        (int(kind), platform),
    )
    return make_serial(kind, platform, number - 1)


def was_given(tx: Tx, serial: bytes) -> bool:
    """Whether a serial is one that this platform gave."""
    number = tx.value(
        "SELECT COALESCE(MAX(next), 0) FROM serial_counter WHERE kind = ? AND platform = ?", (serial[0], serial[1])
    )
    return int.from_bytes(serial[2:7], "big") < int(number)


def of_chip(tx: Tx, chip: str) -> Card | None:
    """The card that a chip became, or is becoming; None for a chip that was never begun."""
    row = tx.one("SELECT serial FROM card WHERE chip = ?", (chip,))
    return None if row is None else get(tx, row["serial"])


def register(
    tx: Tx, actor: Operator, serial: bytes, chip: str | None = None, batch_id: str | None = None, wash_version: int = 0
) -> Card:
    """Write down a card that was washed (``wash_version`` above 0) or is about to be; the same again updates it.

    Raises Conflict when the chip has another serial or the serial another chip, FormatError for a mistyped serial.
    """
    require(actor, Permission.CARD_WASH, PLATFORM)
    kind = check_serial(serial)
    twin = tx.one("SELECT serial FROM card WHERE chip = ? AND serial <> ?", (chip, serial))
    if twin is not None:
        raise Conflict(f"chip {chip} is card {twin['serial'].hex().upper()}")
    known = find(tx, serial)
    if known is not None and chip and known.chip not in (None, chip):
        raise Conflict(f"card {serial.hex().upper()} is chip {known.chip}, not {chip}: one of them is a copy")
    state = CardState.WASHED if wash_version else CardState.BLANK
    tx.execute(
        "INSERT INTO card VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (serial) DO UPDATE SET"
        " wash_version = excluded.wash_version, changed_ms = excluded.changed_ms,"
        " chip = COALESCE(card.chip, excluded.chip), batch_id = COALESCE(card.batch_id, excluded.batch_id),"
        " state = CASE WHEN card.state = 'blank' THEN excluded.state ELSE card.state END",
        (serial, int(kind), state.value, chip, batch_id, wash_version, tx.now_ms, tx.now_ms),
    )
    event = Event.CARD_WASHED if wash_version else Event.CARD_REGISTERED
    audit.record(tx, PLATFORM, event, actor.name, f"card:{serial.hex().upper()}", version=wash_version)
    return get(tx, serial)


def get(tx: Tx, serial: bytes) -> Card:
    """One card. Raises NotFound."""
    card = find(tx, serial)
    if card is None:
        raise NotFound(f"the platform has no card {serial.hex().upper()}")
    return card


def find(tx: Tx, serial: bytes) -> Card | None:
    """One card, or None."""
    row = tx.one(f"SELECT {', '.join(Card._fields)} FROM card WHERE serial = ?", (serial,))
    return None if row is None else _card(row)


def change_state(tx: Tx, serial: bytes, state: CardState, actor: str, reason: str) -> None:
    """Move a card on in its life; a repeat changes nothing. Raises Conflict with what is possible."""
    card = get(tx, serial)
    if card.state is state:
        return
    if state not in NEXT[card.state]:
        possible = ", ".join(NEXT[card.state]) or "nothing"
        raise Conflict(f"card {serial.hex().upper()} is {card.state}: it can become {possible}, not {state}")
    tx.execute("UPDATE card SET state = ?, changed_ms = ? WHERE serial = ?", (state.value, tx.now_ms, serial))
    subject = f"card:{serial.hex().upper()}"
    details = {"state_from": card.state.value, "state_to": state.value, "reason": reason}
    audit.record(tx, PLATFORM, Event.CARD_CHANGED, actor, subject, **details)


def reserve_slot(tx: Tx, actor: Operator, serial: bytes, enterprise_id: int) -> Slot:
    """Set a slot aside for an enterprise; the one it has already, if any. Raises Refused("no_slot"), NotFound."""
    require(actor, Permission.CARD_SLOT, PLATFORM)
    get(tx, serial)
    taken = slots(tx, serial)
    for slot in taken:
        if slot.enterprise_id == enterprise_id:
            return slot
    free = set(range(1, SLOTS + 1)) - {slot.number for slot in taken}
    if not free:
        raise Refused("no_slot", f"card {serial.hex().upper()} holds {SLOTS} applications: close one first")
    slot = Slot(min(free), enterprise_id, "opening")
    tx.execute("INSERT INTO slot VALUES (?, ?, ?, ?, ?)", (serial, *slot, tx.now_ms))
    return slot


def slot_opened(tx: Tx, actor: Operator, serial: bytes, enterprise_id: int) -> None:
    """Note that the card has the slot; the card is in use from now on. Raises NotFound."""
    require(actor, Permission.CARD_SLOT, PLATFORM)
    changed = tx.execute(
        "UPDATE slot SET state = 'open', changed_ms = ? WHERE card_serial = ? AND enterprise_id = ?",
        (tx.now_ms, serial, enterprise_id),
    ).rowcount
    if not changed:
        raise NotFound(f"card {serial.hex().upper()} has no slot of enterprise {enterprise_id}")
    if get(tx, serial).state is CardState.WASHED:
        change_state(tx, serial, CardState.IN_USE, actor.name, "slot opened")
    subject = f"card:{serial.hex().upper()}"
    audit.record(tx, PLATFORM, Event.SLOT_OPENED, actor.name, subject, enterprise=enterprise_id)


def slot_closed(tx: Tx, actor: Operator, serial: bytes, enterprise_id: int) -> None:
    """Forget a slot whose directory was deleted; a repeat changes nothing."""
    require(actor, Permission.CARD_SLOT, PLATFORM)
    tx.execute("DELETE FROM slot WHERE card_serial = ? AND enterprise_id = ?", (serial, enterprise_id))


def slots(tx: Tx, serial: bytes) -> list[Slot]:
    """The slots of a card, by number."""
    rows = tx.all("SELECT number, enterprise_id, state FROM slot WHERE card_serial = ? ORDER BY number", (serial,))
    return [Slot(*row) for row in rows]


def bind_number(tx: Tx, serial: bytes, number: str, holder: str, actor: str) -> None:
    """Bind a phone number to its one card and the card to its one number; the same again changes nothing.

    Raises Refused: "transfer" (the number's card is another person's), "number_has_card", "number_changed"
    (the card has another number). Raises NotFound for an unknown card.
    """
    get(tx, serial)
    bound = binding(tx, number=number)
    if bound is not None and _person(bound.holder) != _person(holder):
        raise Refused("transfer", f"number {mask(number)}: its card can't be transferred to another person")
    if bound is not None and bound.card_serial != serial:
        raise Refused(
            "number_has_card",
            f"number {mask(number)} has card {bound.card_serial.hex().upper()}: cancel or reissue that one",
        )
    if bound is not None:
        return
    other = binding(tx, serial=serial)
    if other is not None:
        raise Refused(
            "number_changed",
            f"card {serial.hex().upper()} belongs to number {mask(other.number)}: a changed number means cancel and"
            " issue again",
        )
    tx.execute("INSERT INTO phone_number VALUES (?, ?, ?, ?)", (number, serial, holder, tx.now_ms))
    audit.record(tx, PLATFORM, Event.NUMBER_BOUND, actor, f"card:{serial.hex().upper()}")


def rebind_number(tx: Tx, old_serial: bytes, new_serial: bytes, actor: str) -> None:
    """Move a number from a replaced card to the new one of the same person; a repeat changes nothing.

    Raises NotFound when the old card has no number, Refused when the new one has another.
    """
    bound = binding(tx, serial=old_serial)
    if bound is None:
        if binding(tx, serial=new_serial) is None:
            raise NotFound(f"card {old_serial.hex().upper()} has no phone number")
        return
    release_number(tx, old_serial, actor)
    bind_number(tx, new_serial, bound.number, bound.holder, actor)


def release_number(tx: Tx, serial: bytes, actor: str) -> None:
    """Free the number of a cancelled card, so that it can be issued again; a repeat changes nothing."""
    if tx.execute("DELETE FROM phone_number WHERE card_serial = ?", (serial,)).rowcount:
        audit.record(tx, PLATFORM, Event.NUMBER_RELEASED, actor, f"card:{serial.hex().upper()}")


def binding(tx: Tx, *, number: str = "", serial: bytes = b"") -> Binding | None:
    """The binding of a number, or of a card."""
    row = tx.one(
        "SELECT number, card_serial, holder FROM phone_number WHERE number = ? OR card_serial = ?", (number, serial)
    )
    return None if row is None else Binding(*row)


def mask(number: str) -> str:
    """A phone number for messages and logs: its ends only."""
    return f"{number[:3]}****{number[-2:]}"


def _person(name: str) -> str:
    """A name to compare: spelled alike for everyone who types it."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", name)).casefold()


def _card(row: Row) -> Card:
    serial, kind, state, *rest = row
    return Card(serial, CardKind(kind), CardState(state), *rest)
