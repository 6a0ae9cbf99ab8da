"""``onecard audit``: who did what, and proof that nothing was changed since."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backoffice import audit
from backoffice.audit import Head
from backoffice.commands.base import act, permitted
from backoffice.database import PLATFORM, Database, Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from console import Noun, Session, write_new


@click.group(cls=Noun)
def command() -> None:
    """The audit log of the enterprise of --enterprise, else of the platform."""


def _database(office: Installation) -> Database:
    return office.platform if office.scope == PLATFORM else office.database


@command.command("list")
@click.option("--subject", default="", help="Only of one thing, like card:0201000000000785.")
@click.option("--after", default="", help="Only after this event id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many.")
@permitted(Permission.AUDIT_SHOW)
def list_command(session: Session, office: Installation, subject: str, after: str, limit: int) -> None:
    """List events, oldest first."""
    with _database(office).read() as tx:
        found = audit.entries(tx, office.scope, subject=subject, after=after, limit=limit)
    session.emit(
        [
            {
                "id": e.event_id,
                "at": f"{datetime.fromtimestamp(e.at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
                "event": e.event,
                "actor": e.actor,
                "subject": e.subject,
                "details": ", ".join(f"{k}={v}" for k, v in e.details.items()),
            }
            for e in found
        ]
    )


@command.command()
@permitted(Permission.AUDIT_SHOW)
def seal(session: Session, office: Installation) -> None:
    """Number and hash all events since the last seal; keep the head that is printed somewhere else."""

    def action(tx: Tx) -> dict[str, Any]:
        return {"head": audit.seal(tx, office.scope).encode()}

    outcome = act(session, _database(office), office.scope, "audit seal", {}, action)
    session.emit(outcome, outcome["head"])


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@permitted(Permission.AUDIT_SHOW)
def export(session: Session, office: Installation, file: Path) -> None:
    """Write the sealed events to FILE, a line each with its hash: checked with sha256sum, without this program.

    A line is 64 hex digits, a space and JSON; the digits are the SHA-256 of the digits before (64 zeros at first)
    and the JSON. The last digits are the head that `audit seal` printed.
    """
    with _database(office).read() as tx:
        proof = audit.verify(tx, office.scope)
        data = {"file": file, "events": proof.sealed, "unsealed": proof.unsealed, "head": proof.head.encode()}
        if session.dry_run:
            session.emit(data | {"dry_run": True}, f"would write {proof.sealed} events")
            return
        write_new(file, "".join(f"{line}\n" for line in audit.export(tx, office.scope)).encode())
    waiting = f"; {proof.unsealed} wait for `audit seal`" if proof.unsealed else ""
    session.emit(data, f"{file}: {proof.sealed} events, head {data['head']}{waiting}")


@command.command()
@click.option("--head", "kept", help="Head printed by an earlier seal: shows that nothing before it was cut off.")
@permitted(Permission.AUDIT_SHOW)
def verify(session: Session, office: Installation, kept: str | None) -> None:
    """Walk the whole chain; exit code 8 at the first event that was changed, removed or moved."""
    with _database(office).read() as tx:
        proof = audit.verify(tx, office.scope, Head.decode(kept) if kept else None)
    data = {"sealed": proof.sealed, "unsealed": proof.unsealed, "head": proof.head.encode()}
    session.emit(data, f"intact: {proof.sealed} events sealed, {proof.unsealed} waiting; head {data['head']}")
