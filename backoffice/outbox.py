"""Events to application subsystems, each delivered until acknowledged (books.md, States).

An event is written in the transaction of the act it tells of. A subsystem may get one twice, never none;
by its id it takes it once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from backoffice.database import Database, Tx
from cardlib.errors import Conflict, FormatError, NotFound, OneCardError

MAX_BODY = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class Told(NamedTuple):
    """An event as a subsystem gets it; ``attempts`` counts the tries that failed."""

    event_id: str
    topic: str
    body: dict[str, Any]
    at_ms: int
    attempts: int


class Backlog(NamedTuple):
    """What a subsystem has not acknowledged; ``oldest_ms`` is None when it has all."""

    subsystem: str
    open: int
    oldest_ms: int | None


def subscribe(tx: Tx, enterprise_id: int, subsystem: str) -> None:
    """Tell a subsystem all events from now on; a repeat changes nothing. Raises FormatError for a malformed name."""
    if not _NAME.fullmatch(subsystem):
        raise FormatError("a subsystem's name has 1 to 32 of a-z 0-9 . _ -")
    row = (enterprise_id, subsystem, tx.now_ms)
    tx.execute("INSERT INTO outbox_subsystem VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)


def unsubscribe(tx: Tx, enterprise_id: int, subsystem: str) -> None:
    """Tell a subsystem nothing any more. Raises Conflict while events wait for it, NotFound."""
    _check(tx, enterprise_id, subsystem)
    open_events = pending(tx, enterprise_id, subsystem, limit=1)
    if open_events:
        raise Conflict(f"subsystem {subsystem} has not acknowledged {open_events[0].event_id}")
    for table in ("outbox_delivery", "outbox_subsystem"):
        tx.execute(f"DELETE FROM {table} WHERE enterprise_id = ? AND subsystem = ?", (enterprise_id, subsystem))


def publish(tx: Tx, enterprise_id: int, topic: str, body: Mapping[str, Any]) -> str:
    """Write an event for all subsystems of the enterprise; returns its id. Raises FormatError above 4 KiB."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_BODY:
        raise FormatError(f"event {topic}: at most {MAX_BODY} bytes")
    event_id = tx.new_id()
    tx.execute("INSERT INTO outbox_event VALUES (?, ?, ?, ?, ?)", (enterprise_id, event_id, topic, text, tx.now_ms))
    tx.execute(
        "INSERT INTO outbox_delivery (enterprise_id, subsystem, event_id)"
        " SELECT enterprise_id, subsystem, ? FROM outbox_subsystem WHERE enterprise_id = ?",
        (event_id, enterprise_id),
    )
    return event_id


def pending(tx: Tx, enterprise_id: int, subsystem: str, limit: int = 100) -> list[Told]:
    """The oldest events that a subsystem has not acknowledged, in order. Raises NotFound."""
    _check(tx, enterprise_id, subsystem)
    rows = tx.all(
        "SELECT e.event_id, e.topic, e.body, e.at_ms, d.attempts FROM outbox_delivery d"
        " JOIN outbox_event e ON e.enterprise_id = d.enterprise_id AND e.event_id = d.event_id"
        " WHERE d.enterprise_id = ? AND d.subsystem = ? AND d.acknowledged_ms IS NULL ORDER BY d.event_id LIMIT ?",
        (enterprise_id, subsystem, limit),
    )
    return [Told(one, topic, json.loads(body), at_ms, tries) for one, topic, body, at_ms, tries in rows]


def acknowledge(tx: Tx, enterprise_id: int, subsystem: str, event_ids: Iterable[str]) -> int:
    """Note that events arrived; returns how many of them are news. Raises NotFound for one never sent there."""
    fresh = 0
    for event_id in event_ids:
        key = (enterprise_id, subsystem, event_id)
        where = "WHERE enterprise_id = ? AND subsystem = ? AND event_id = ?"
        changed = tx.execute(
            f"UPDATE outbox_delivery SET acknowledged_ms = ? {where} AND acknowledged_ms IS NULL", (tx.now_ms, *key)
        ).rowcount
        if not changed and tx.one(f"SELECT event_id FROM outbox_delivery {where}", key) is None:
            raise NotFound(f"subsystem {subsystem} was never told event {event_id}")
        fresh += changed
    return fresh


def deliver(
    db: Database, enterprise_id: int, subsystem: str, send: Callable[[Told], None], limit: int = 1000
) -> tuple[int, OneCardError | None]:
    """Send what is pending, in order, until one fails; returns how many arrived and the error that stopped it.

    ``send`` returns when the subsystem has acknowledged, else raises an error of this project.
    """
    with db.read() as tx:
        events = pending(tx, enterprise_id, subsystem, limit)
    for count, event in enumerate(events):
        try:
            send(event)
        except OneCardError as error:
            with db.write() as tx:
                tx.execute(
                    "UPDATE outbox_delivery SET attempts = attempts + 1"
                    " WHERE enterprise_id = ? AND subsystem = ? AND event_id = ?",
                    (enterprise_id, subsystem, event.event_id),
                )
            return count, error
        with db.write() as tx:
            acknowledge(tx, enterprise_id, subsystem, [event.event_id])
    return len(events), None


def backlog(tx: Tx, enterprise_id: int) -> list[Backlog]:
    """How far behind each subsystem is."""
    rows = tx.all(
        "SELECT s.subsystem, COUNT(e.event_id), MIN(e.at_ms) FROM outbox_subsystem s"
        " LEFT JOIN outbox_delivery d ON d.enterprise_id = s.enterprise_id AND d.subsystem = s.subsystem"
        " AND d.acknowledged_ms IS NULL"
        " LEFT JOIN outbox_event e ON e.enterprise_id = d.enterprise_id AND e.event_id = d.event_id"
        " WHERE s.enterprise_id = ? GROUP BY s.subsystem ORDER BY s.subsystem",
        (enterprise_id,),
    )
    return [Backlog(*row) for row in rows]


def _check(tx: Tx, enterprise_id: int, subsystem: str) -> None:
    key = (enterprise_id, subsystem)
    if tx.one("SELECT subsystem FROM outbox_subsystem WHERE enterprise_id = ? AND subsystem = ?", key) is None:
        raise NotFound(f"no subsystem {subsystem} in enterprise {enterprise_id}")
