"""``onecard operator``: people who may use this tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from backoffice import operators
from backoffice.commands.base import act, permitted
from backoffice.database import PLATFORM, Database, Tx
from backoffice.installation import Installation
from backoffice.operators import Credential, Permission, Role
from console import Noun, Session

secret_file = click.option("--new-secret-file", type=click.Path(path_type=Path), help="First line is the secret.")


@click.group(cls=Noun)
def command() -> None:
    """Operators of the enterprise of --enterprise, else of the platform."""


def _database(office: Installation) -> Database:
    return office.platform if office.scope == PLATFORM else office.database


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice([one.value for one in Role]), required=True, help="What he may do.")
@secret_file
@permitted(Permission.OPERATOR_MANAGE)
def add(session: Session, office: Installation, name: str, role: str, new_secret_file: Path | None) -> None:
    """Add operator NAME."""
    secret = "dry run only" if session.dry_run else session.secret("new operator secret", new_secret_file, new=True)
    credential = Credential.make(secret, office.random_bytes)

    def action(tx: Tx) -> dict[str, Any]:
        made = operators.add(tx, office.operator, office.scope, name, Role(role), credential)
        return {"operator": made.name, "role": made.role.value}

    session.emit(act(session, _database(office), office.scope, "operator add", {"name": name, "role": role}, action))


@command.command("list")
@permitted(Permission.OPERATOR_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List operators."""
    with _database(office).read() as tx:
        accounts = operators.accounts(tx, office.scope)
    session.emit([{"operator": a.name, "role": a.role, "state": a.state} for a in accounts])


@command.command()
@click.argument("name")
@secret_file
@permitted(Permission.OPERATOR_MANAGE)
def secret(session: Session, office: Installation, name: str, new_secret_file: Path | None) -> None:
    """Give operator NAME a new secret and lift a lock."""
    text = "dry run only" if session.dry_run else session.secret("new operator secret", new_secret_file, new=True)
    credential = Credential.make(text, office.random_bytes)

    def action(tx: Tx) -> dict[str, Any]:
        operators.change_secret(tx, office.operator, office.scope, name, credential)
        return {"operator": name, "secret": "changed"}

    session.emit(act(session, _database(office), office.scope, "operator secret", {"name": name}, action))


@command.command()
@click.argument("name")
@click.argument("role", type=click.Choice([one.value for one in Role]))
@permitted(Permission.OPERATOR_MANAGE)
def role(session: Session, office: Installation, name: str, role: str) -> None:
    """Give operator NAME another ROLE."""

    def action(tx: Tx) -> dict[str, Any]:
        operators.change_role(tx, office.operator, office.scope, name, Role(role))
        return {"operator": name, "role": role}

    session.emit(act(session, _database(office), office.scope, "operator role", {"name": name, "role": role}, action))


@command.command()
@click.argument("name")
@click.option("--enable", is_flag=True, help="Let a disabled operator in again.")
@permitted(Permission.OPERATOR_MANAGE)
def disable(session: Session, office: Installation, name: str, enable: bool) -> None:
    """Keep operator NAME out, or let him in again."""

    def action(tx: Tx) -> dict[str, Any]:
        operators.set_active(tx, office.operator, office.scope, name, enable)
        return {"operator": name, "state": "active" if enable else "disabled"}

    arguments = {"name": name, "enable": enable}
    session.emit(act(session, _database(office), office.scope, "operator disable", arguments, action))
