"""The key store against the audit log: a store rolled back to an older copy, with its head, is noticed here.

A store knows only itself. So the audit log keeps how far it was (``key.store_head``: number of entries and tag of the
last), noted whenever keys changed; at each opening the store must still go on from there. Who rolls back the log too
is caught by the head of the log that is kept elsewhere (``onecard audit verify --kept``).
"""

from __future__ import annotations

import json
from typing import Protocol

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import PLATFORM, Database, Tx
from keymgmt.store import Head

SUBJECT = "key:store"


class Chained(Protocol):
    """A store whose changes form a chain."""

    @property
    def head(self) -> Head:
        """How far it is."""

    def require_head(self, kept: Head) -> None:
        """Raise CryptoError unless it goes on from there."""


def noted(tx: Tx) -> Head | None:
    """The last head that the audit log knows of."""
    row = tx.one(
        "SELECT details FROM audit_event WHERE enterprise_id = ? AND event = ? ORDER BY event_id DESC LIMIT 1",
        (PLATFORM, Event.KEY_STORE_HEAD.value),
    )
    if row is None:
        return None
    details = json.loads(row["details"])
    return Head(details["number"], bytes.fromhex(details["digest"]))


def check(db: Database, store: Chained, actor: str) -> None:
    """At opening: raise CryptoError when the store is older than the log says; note what was added since."""
    with db.read() as tx:
        kept = noted(tx)
    if kept is not None:
        store.require_head(kept)
    note(db, store, actor)


def note(db: Database, store: Chained, actor: str) -> None:
    """After changes, before the store is closed: write into the log how far it is now; nothing when it is as noted."""
    with db.write() as tx:
        kept, head = noted(tx), store.head
        if kept is None or head.entries > kept.entries:
            audit.record(tx, PLATFORM, Event.KEY_STORE_HEAD, actor, SUBJECT, number=head.entries, digest=head.tag.hex())
