"""``onecard db``: state of the databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from backoffice import audit, ledger
from backoffice.audit import Event
from backoffice.commands.base import act_outside, permitted
from backoffice.database import PLATFORM, Database
from backoffice.installation import Installation
from backoffice.operators import Permission
from console import Noun, Session


@click.group(cls=Noun)
def command() -> None:
    """The database of the enterprise of --enterprise, else of the platform."""


def _database(office: Installation) -> Database:
    return office.platform if office.scope == PLATFORM else office.database


@command.command()
@permitted(Permission.DATABASE_SHOW)
def status(session: Session, office: Installation) -> None:
    """Show file, size and schema version."""
    db = _database(office)
    size = db.path.stat().st_size
    session.emit({"file": db.path, "role": db.role, "schema": db.version(), "bytes": size})


@command.command()
@permitted(Permission.DATABASE_MANAGE, migrate=True)
def migrate(session: Session, office: Installation) -> None:
    """Bring the schema up to this program's version."""
    db = _database(office)
    session.emit({"file": db.path, "schema": db.version()})


@command.command()
@click.argument("target", type=click.Path(path_type=Path))
@permitted(Permission.DATABASE_MANAGE)
def backup(session: Session, office: Installation, target: Path) -> None:
    """Write a consistent copy to TARGET while others go on working."""
    db = _database(office)
    if session.dry_run:
        session.emit({"file": target, "dry_run": True})
        return

    def action() -> dict[str, Any]:
        db.backup(target)
        with db.write() as tx:
            audit.record(tx, office.scope, Event.DATABASE, office.operator.name, "database:backup")
        return {"file": target, "bytes": target.stat().st_size}

    session.emit(act_outside(session, db, office.scope, "db backup", {"target": str(target)}, action))


@command.command()
@permitted(Permission.DATABASE_SHOW)
def verify(session: Session, office: Installation) -> None:
    """Check structure, audit chain and, for an enterprise, that the books sum to zero. Exit code 8 when not."""
    db = _database(office)
    db.verify()
    with db.read() as tx:
        proof = audit.verify(tx, office.scope)
        found: dict[str, Any] = {"file": db.path, "audit_sealed": proof.sealed, "audit_unsealed": proof.unsealed}
        if office.scope != PLATFORM:
            found |= ledger.verify(tx, office.scope)._asdict()
    session.emit(found)
