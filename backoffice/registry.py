"""Terminals of an enterprise and the SAMs in them: what settlement takes records from."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum, unique
from typing import NamedTuple

from backoffice import audit, blacklists
from backoffice.audit import Event
from backoffice.database import Row, Tx
from backoffice.operators import Operator, Permission, require
from cardlib.blacklist import ListReason
from cardlib.errors import Conflict, FormatError, NotFound
from cardlib.profile import CardKind, check_serial
from cardlib.sam import SamKey


@unique
class TerminalKind(StrEnum):
    """What a terminal is for; an office is the back office itself acting on a card in its reader."""

    ISSUING = "issuing"
    ACCESS = "access"
    ATTENDANCE = "attendance"
    POS = "pos"
    RECHARGE = "recharge"
    OFFICE = "office"


STATIONS = (TerminalKind.ISSUING, TerminalKind.OFFICE)
"""They act on the back office's own orders: on a card in any state, with money from named accounts."""


class Terminal(NamedTuple):
    """A terminal as registered; ``sam_serial`` is the SAM in it now."""

    terminal: bytes
    kind: TerminalKind
    name: str
    state: str
    sam_serial: bytes | None
    list_version: int
    list_seen_ms: int


class Sam(NamedTuple):
    """A SAM as registered. ``lost_ms``: what it reports from then on is refused."""

    sam_serial: bytes
    terminal: bytes
    kind: TerminalKind
    state: str
    lost_ms: int | None


def register(tx: Tx, operator: Operator, enterprise_id: int, terminal: bytes, kind: TerminalKind, name: str) -> None:
    """Register a terminal by its number of 6 bytes; the same again changes nothing.

    Raises Refused, FormatError, Conflict when it is registered as something else.
    """
    require(operator, Permission.TERMINAL_MANAGE, enterprise_id)
    if len(terminal) != 6:
        raise FormatError(f"a terminal number has 6 bytes, not {len(terminal)}")
    sql = "SELECT kind, name FROM terminal WHERE enterprise_id = ? AND terminal = ?"
    row = tx.one(sql, (enterprise_id, terminal))
    if row is not None:
        if (row["kind"], row["name"]) != (kind.value, name):
            raise Conflict(f"terminal {terminal.hex()} is registered as {row['kind']} {row['name']}")
        return
    tx.execute(
        "INSERT INTO terminal (enterprise_id, terminal, kind, name, state, created_ms, changed_ms)"
        " VALUES (?, ?, ?, ?, 'active', ?, ?)",
        (enterprise_id, terminal, kind.value, name, tx.now_ms, tx.now_ms),
    )
    _note(tx, enterprise_id, Event.TERMINAL_REGISTERED, operator, terminal, kind=kind.value)


def fit_sam(tx: Tx, operator: Operator, enterprise_id: int, terminal: bytes, sam_serial: bytes) -> None:
    """Say which SAM is in a terminal; the one before is retired. The same again changes nothing.

    Raises Refused, NotFound, FormatError for a mistyped serial, Conflict when the SAM is lost or elsewhere.
    """
    require(operator, Permission.TERMINAL_MANAGE, enterprise_id)
    if check_serial(sam_serial) is not CardKind.SAM:
        raise FormatError(f"{sam_serial.hex().upper()} is no SAM")
    get(tx, enterprise_id, terminal)
    sql = "SELECT terminal, state FROM terminal_sam WHERE enterprise_id = ? AND sam_serial = ?"
    row = tx.one(sql, (enterprise_id, sam_serial))
    if row is not None and (row["terminal"], row["state"]) == (terminal, "active"):
        return
    if row is not None:
        # The terminal's number is in the SAM: it never serves another terminal, nor again.
        raise Conflict(f"SAM {sam_serial.hex().upper()} is {row['state']} in terminal {row['terminal'].hex()}")
    tx.execute(
        "UPDATE terminal_sam SET state = 'retired' WHERE enterprise_id = ? AND terminal = ? AND state = 'active'",
        (enterprise_id, terminal),
    )
    tx.execute(
        "INSERT INTO terminal_sam (enterprise_id, sam_serial, terminal, state, since_ms) VALUES (?, ?, ?, 'active', ?)",
        (enterprise_id, sam_serial, terminal, tx.now_ms),
    )
    _note(tx, enterprise_id, Event.SAM_REGISTERED, operator, terminal, sam=sam_serial.hex().upper())


def expect_socket(
    tx: Tx, enterprise_id: int, terminal: bytes, kind: TerminalKind, sam_serial: bytes | None, old: bytes | None = None
) -> bool:
    """Whether a terminal is registered, before a SAM is made for it; ``sam_serial`` is None for a new one.

    ``old`` is the SAM that it replaces. Raises Conflict when the terminal is another kind's or has another SAM, or
    the SAM was in use and is not any more.
    """
    known = sams(tx, enterprise_id).get(sam_serial or b"")
    if known is not None and (known.terminal, known.state) != (terminal, "active"):
        name = known.sam_serial.hex().upper()
        raise Conflict(f"SAM {name} is {known.state} in terminal {known.terminal.hex()}: take a fresh one")
    if tx.one("SELECT 1 FROM terminal WHERE enterprise_id = ? AND terminal = ?", (enterprise_id, terminal)) is None:
        return False
    found = get(tx, enterprise_id, terminal)
    if (found.kind, found.state) != (kind, "active"):
        raise Conflict(f"terminal {terminal.hex()} is a {found.state} {found.kind} terminal, not an active {kind} one")
    if found.sam_serial not in (None, sam_serial, old):
        assert found.sam_serial is not None
        raise Conflict(f"terminal {terminal.hex()} has SAM {found.sam_serial.hex().upper()}: replace it (sam replace)")
    return True


def retire_sam(tx: Tx, operator: Operator, enterprise_id: int, sam_serial: bytes) -> None:
    """A SAM was blocked: it is in no terminal and holds no key any more; a lost one stays lost. Raises Refused."""
    require(operator, Permission.TERMINAL_MANAGE, enterprise_id)
    note_sam_keys(tx, enterprise_id, sam_serial, ())
    known = sams(tx, enterprise_id).get(sam_serial)
    if known is None or known.state == "retired":
        return
    if known.state == "active":
        tx.execute(
            "UPDATE terminal_sam SET state = 'retired' WHERE enterprise_id = ? AND sam_serial = ?",
            (enterprise_id, sam_serial),
        )
    serial = sam_serial.hex().upper()
    _note(tx, enterprise_id, Event.TERMINAL_CHANGED, operator, known.terminal, sam=serial, state_to="retired")


def lose_sam(tx: Tx, operator: Operator, enterprise_id: int, sam_serial: bytes, since_ms: int) -> None:
    """Report a SAM lost: listed, and settlement refuses its records from ``since_ms`` on; a later time changes nothing.

    Raises Refused, NotFound.
    """
    require(operator, Permission.TERMINAL_MANAGE, enterprise_id)
    where, key = "WHERE enterprise_id = ? AND sam_serial = ?", (enterprise_id, sam_serial)
    row = tx.one(f"SELECT terminal, lost_ms FROM terminal_sam {where}", key)
    if row is None:
        raise NotFound(f"enterprise {enterprise_id} has no SAM {sam_serial.hex().upper()}")
    if row["lost_ms"] is not None and row["lost_ms"] <= since_ms:
        return
    tx.execute(f"UPDATE terminal_sam SET state = 'lost', lost_ms = ? {where}", (since_ms, *key))
    blacklists.put(tx, enterprise_id, sam_serial, ListReason.SAM_LOST, operator.name)
    _note(tx, enterprise_id, Event.SAM_LOST, operator, row["terminal"], sam=sam_serial.hex().upper())


def retire(tx: Tx, operator: Operator, enterprise_id: int, terminal: bytes) -> None:
    """Take a terminal out of service: closing a day does not wait for it any more. Raises Refused, NotFound."""
    require(operator, Permission.TERMINAL_MANAGE, enterprise_id)
    get(tx, enterprise_id, terminal)
    tx.execute(
        "UPDATE terminal SET state = 'retired', changed_ms = ? WHERE enterprise_id = ? AND terminal = ?",
        (tx.now_ms, enterprise_id, terminal),
    )
    _note(tx, enterprise_id, Event.TERMINAL_CHANGED, operator, terminal, state_to="retired")


def seen_list(tx: Tx, enterprise_id: int, terminal: bytes, version: int) -> None:
    """Note which blacklist version a terminal says it has. Raises NotFound."""
    get(tx, enterprise_id, terminal)
    tx.execute(
        "UPDATE terminal SET list_version = ?, list_seen_ms = ? WHERE enterprise_id = ? AND terminal = ?",
        (version, tx.now_ms, enterprise_id, terminal),
    )


_SELECT = (
    "SELECT t.terminal, t.kind, t.name, t.state, s.sam_serial, t.list_version, t.list_seen_ms FROM terminal t"
    " LEFT JOIN terminal_sam s ON s.enterprise_id = t.enterprise_id AND s.terminal = t.terminal"
    " AND s.state = 'active' WHERE t.enterprise_id = ?"
)


def get(tx: Tx, enterprise_id: int, terminal: bytes) -> Terminal:
    """One terminal. Raises NotFound."""
    row = tx.one(f"{_SELECT} AND t.terminal = ?", (enterprise_id, terminal))
    if row is None:
        raise NotFound(f"enterprise {enterprise_id} has no terminal {terminal.hex()}")
    return Terminal(row[0], TerminalKind(row[1]), *list(row)[2:])


def terminals(tx: Tx, enterprise_id: int) -> list[Terminal]:
    """All terminals, by number."""
    rows = tx.all(f"{_SELECT} ORDER BY t.terminal", (enterprise_id,))
    return [Terminal(row[0], TerminalKind(row[1]), *list(row)[2:]) for row in rows]


def sams(tx: Tx, enterprise_id: int) -> dict[bytes, Sam]:
    """All SAMs that ever were in a terminal, by serial."""
    rows = tx.all(
        "SELECT s.sam_serial, s.terminal, t.kind, s.state, s.lost_ms FROM terminal_sam s JOIN terminal t"
        " ON t.enterprise_id = s.enterprise_id AND t.terminal = s.terminal WHERE s.enterprise_id = ?",
        (enterprise_id,),
    )
    return {row[0]: Sam(row[0], row[1], TerminalKind(row[2]), row[3], row[4]) for row in rows}


def sam(tx: Tx, enterprise_id: int, sam_serial: bytes) -> Sam:
    """One SAM that is or was in a terminal. Raises NotFound."""
    found = sams(tx, enterprise_id).get(sam_serial)
    if found is None:
        raise NotFound(f"enterprise {enterprise_id} has no terminal with SAM {sam_serial.hex().upper()}: register it")
    return found


def note_sam_keys(tx: Tx, enterprise_id: int, sam_serial: bytes, keys: Iterable[SamKey]) -> None:
    """Write down what a SAM lists, in place of what was known of it."""
    tx.execute("DELETE FROM sam_key WHERE enterprise_id = ? AND sam_serial = ?", (enterprise_id, sam_serial))
    rows = [(enterprise_id, sam_serial, key.purpose, key.version, key.kcv, tx.now_ms) for key in keys]
    tx.executemany("INSERT INTO sam_key VALUES (?, ?, ?, ?, ?, ?)", rows)


def sam_keys(tx: Tx, enterprise_id: int, sam_serial: bytes) -> list[Row]:
    """What a SAM was last seen to hold: purpose, version, kcv, loaded_ms."""
    return tx.all(
        "SELECT purpose, version, kcv, loaded_ms FROM sam_key WHERE enterprise_id = ? AND sam_serial = ?"
        " ORDER BY purpose, version",
        (enterprise_id, sam_serial),
    )


def sam_versions(tx: Tx, enterprise_id: int) -> dict[int, set[bytes]]:
    """Key version → serials of the SAMs in use that hold a key of it; lost and retired ones don't count."""
    rows = tx.all(
        "SELECT k.version, k.sam_serial FROM sam_key k LEFT JOIN terminal_sam s ON s.enterprise_id = k.enterprise_id"
        " AND s.sam_serial = k.sam_serial WHERE k.enterprise_id = ? AND COALESCE(s.state, 'active') = 'active'",
        (enterprise_id,),
    )
    found: dict[int, set[bytes]] = {}
    for version, serial in rows:
        found.setdefault(version, set()).add(serial)
    return found


def _note(tx: Tx, enterprise_id: int, event: Event, operator: Operator, terminal: bytes, **details: str) -> None:
    audit.record(tx, enterprise_id, event, operator.name, f"terminal:{terminal.hex().upper()}", **details)
