"""``onecard enterprise``: who is served, with what, under which settings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backoffice import enterprises
from backoffice.commands.base import act, act_outside, changing, permitted
from backoffice.database import PLATFORM, Tx
from backoffice.enterprises import Application, Enterprise, Setting, State
from backoffice.installation import Installation
from backoffice.operators import Credential, Permission
from cardlib.errors import ConfigError
from console import Noun, Session


@click.group(cls=Noun)
def command() -> None:
    """Enterprises, what they subscribe to, and their settings."""


def _row(one: Enterprise) -> dict[str, Any]:
    created = datetime.fromtimestamp(one.created_ms / 1000, UTC)
    return {
        "enterprise": one.enterprise_id,
        "name": one.name,
        "state": one.state.value,
        "utc_offset_minutes": one.utc_offset_minutes,
        "since": f"{created:%Y-%m-%d}",
    }


@command.command()
@click.argument("name")
@click.option("--utc-offset-minutes", default=enterprises.CHINA_MINUTES, show_default=True, help="Local time.")
@click.option("--administrator-secret-file", type=click.Path(path_type=Path), help="First line is the secret.")
@permitted(Permission.ENTERPRISE_MANAGE, platform=True)
def register(
    session: Session, office: Installation, name: str, utc_offset_minutes: int, administrator_secret_file: Path | None
) -> None:
    """Register the enterprise of --enterprise under NAME, with its database and its administrator "admin"."""
    number = session.need_enterprise()
    if session.dry_run:
        with changing(session, office.platform) as tx:
            row = _row(office.register(tx, number, name, utc_offset_minutes))
        session.emit(row | {"dry_run": True})
        return
    secret = session.secret("administrator secret", administrator_secret_file, new=True)

    def action() -> dict[str, Any]:
        credential = Credential.make(secret, office.random_bytes)
        return _row(office.open_enterprise(number, name, utc_offset_minutes, credential))

    arguments = {"e": number, "name": name, "utc_offset_minutes": utc_offset_minutes}
    row = act_outside(session, office.platform, PLATFORM, "enterprise register", arguments, action)
    session.emit(row, f"Enterprise {number} {row['name']} is registered; its administrator is admin.")


@command.command("list")
@permitted(Permission.ENTERPRISE_SHOW, platform=True)
def list_command(session: Session, office: Installation) -> None:
    """List all enterprises."""
    with office.platform.read() as tx:
        session.emit([_row(one) for one in enterprises.listing(tx)])


@command.command()
@permitted(Permission.ENTERPRISE_SHOW)
def show(session: Session, office: Installation) -> None:
    """Show the enterprise, its subscriptions and settings."""
    with office.platform.read() as tx:
        row = _row(enterprises.get(tx, office.enterprise_id))
        row["subscriptions"] = sorted(one.value for one in enterprises.subscriptions(tx, office.enterprise_id))
    with office.database.read() as tx:
        row |= {one.name.lower(): enterprises.setting(tx, office.enterprise_id, one) for one in Setting}
    session.emit(row)


@command.command()
@click.argument("state", type=click.Choice([one.value for one in State]))
@click.option("--confirm", help="CLOSE, when closing for good.")
@permitted(Permission.ENTERPRISE_MANAGE, platform=True)
def state(session: Session, office: Installation, state: str, confirm: str | None) -> None:
    """Suspend, resume or close the enterprise; closed is for good."""
    number = office.enterprise_id
    if state == State.CLOSED and not session.dry_run:
        session.confirm("CLOSE", f"Enterprise {number} is closed for good.", confirm)

    def action(tx: Tx) -> dict[str, Any]:
        enterprises.change_state(tx, office.operator, number, State(state))
        return {"enterprise": number, "state": state}

    session.emit(act(session, office.platform, PLATFORM, "enterprise state", {"e": number, "s": state}, action))


@command.command()
@click.argument("application", type=click.Choice([one.value for one in Application]))
@click.option("--end", is_flag=True, help="End the subscription.")
@permitted(Permission.ENTERPRISE_MANAGE, platform=True)
def subscribe(session: Session, office: Installation, application: str, end: bool) -> None:
    """Subscribe the enterprise to APPLICATION, or end that."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        enterprises.subscribe(tx, office.operator, number, Application(application), not end)
        return {"enterprise": number, "subscriptions": sorted(enterprises.subscriptions(tx, number))}

    arguments = {"e": number, "a": application, "end": end}
    session.emit(act(session, office.platform, PLATFORM, "enterprise subscribe", arguments, action))


@command.command("set")
@click.argument("assignment")
@permitted(Permission.SETTING_CHANGE)
def set_command(session: Session, office: Installation, assignment: str) -> None:
    """Change a setting: ASSIGNMENT is NAME=VALUE. `onecard enterprise show` lists them."""
    name, equals, value = assignment.partition("=")
    if not equals:
        raise ConfigError("write the setting as NAME=VALUE")
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        return {"setting": name, "value": enterprises.change_setting(tx, office.operator, number, name, value)}

    arguments = {"name": name, "value": value}
    session.emit(act(session, office.database, number, "enterprise set", arguments, action))
