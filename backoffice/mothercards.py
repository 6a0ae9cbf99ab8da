"""Which mother card and authentication card each enterprise has: one pair at a time (requirement B2)."""

from __future__ import annotations

from typing import NamedTuple

from backoffice import audit, chips
from backoffice.audit import Event
from backoffice.database import PLATFORM, Tx
from backoffice.operators import Operator, Permission, require
from cardlib.errors import Conflict
from cardlib.profile import CardKind

COLUMNS = "serial, enterprise_id, authentication_serial, state"


class Pair(NamedTuple):
    """A mother card and its authentication card; ``making`` until both are proven, ``replaced`` by a later pair."""

    serial: bytes
    enterprise_id: int
    authentication_serial: bytes
    state: str


def current(tx: Tx, enterprise_id: int) -> Pair | None:
    """The enterprise's pair, None when it has none."""
    row = tx.one(f"SELECT {COLUMNS} FROM mother_card WHERE enterprise_id = ? AND state <> 'replaced'", (enterprise_id,))
    return None if row is None else Pair(*row)


def reserve(
    tx: Tx, actor: Operator, enterprise_id: int, mother: bytes | None, authentication: bytes | None, *, again: bool
) -> Pair:
    """The pair to be made of the two chips in the readers, given by their serials, None for chips that have none yet.

    ``again`` replaces the pair that the enterprise has. Raises Conflict where that was not said, or where a chip
    belongs to another pair.
    """
    require(actor, Permission.KEY_MANAGE, PLATFORM)
    held = current(tx, enterprise_id)
    if mother is not None:
        if held is None or held.serial != mother:
            text = f"mother card {mother.hex().upper()} is not the one of enterprise {enterprise_id}"
            raise Conflict(f"{text}: take that one, or a fresh chip")
        expected = held.authentication_serial
        if authentication not in (None, expected) or (authentication is None and held.state == "made"):
            raise Conflict(f"its authentication card is {expected.hex().upper()}: put that one into its reader")
        return held
    if authentication is not None:
        raise Conflict(
            f"authentication card {authentication.hex().upper()} belongs to a mother card: take a fresh chip"
        )
    if held is not None:
        _replace(tx, actor, held, again=again)
    serials = chips.next_serial(tx, CardKind.MOTHER), chips.next_serial(tx, CardKind.AUTHENTICATION)
    made = Pair(serials[0], enterprise_id, serials[1], "making")
    tx.execute("INSERT INTO mother_card VALUES (?, ?, ?, ?, ?)", (*made, tx.now_ms))
    return made


def _replace(tx: Tx, actor: Operator, held: Pair, *, again: bool) -> None:
    name = f"mother card {held.serial.hex().upper()}"
    if not again:
        begun = "was begun: put it in to go on" if held.state == "making" else "exists: an enterprise has one"
        raise Conflict(f"{name} {begun}. If it is lost or never got its serial, give --again")
    tx.execute("UPDATE mother_card SET state = 'replaced', changed_ms = ? WHERE serial = ?", (tx.now_ms, held.serial))
    note(tx, actor, held.serial, "replaced", enterprise=held.enterprise_id)


def made(tx: Tx, actor: Operator, pair: Pair, wash_version: int) -> None:
    """Both cards of a pair are made and proven; a repeat changes nothing but the time."""
    for serial in (pair.serial, pair.authentication_serial):
        chips.register(tx, actor, serial, wash_version=wash_version)
    tx.execute("UPDATE mother_card SET state = 'made', changed_ms = ? WHERE serial = ?", (tx.now_ms, pair.serial))
    note(tx, actor, pair.serial, "made", enterprise=pair.enterprise_id)


def note(tx: Tx, actor: Operator, serial: bytes, what: str, **details: int | str) -> None:
    """Write what happened with a mother card into the platform's audit log."""
    subject = f"card:{serial.hex().upper()}"
    audit.record(tx, PLATFORM, Event.MOTHER_CARD, actor.name, subject, outcome=what, **details)
