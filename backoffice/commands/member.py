"""``onecard member``: the people of an enterprise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from backoffice import airmenu, members
from backoffice.commands.base import act, act_outside, changing, digest, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.members import Member
from backoffice.operators import Permission
from console import Noun, Session, plain, require_new, table, write_new

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Noun)
def command() -> None:
    """Members of the enterprise; imported from a spreadsheet or added one by one."""


@command.command("import")
@click.argument("file", type=FILE)
@permitted(Permission.MEMBER_CHANGE)
def import_command(session: Session, office: Installation, file: Path) -> None:
    """Add and update members from FILE (CSV or XLSX): all rows or none; every bad row is named."""
    number = office.enterprise_id

    def told(data: dict[str, Any]) -> None:
        counts = "{rows} rows: {added} added, {changed} changed, {unchanged} unchanged".format_map(data)
        session.emit(data, [*(table(data["faults"]) if data["faults"] else ()), counts])

    def action(tx: Tx) -> dict[str, Any]:
        report = members.import_file(tx, office.operator, number, file, dry_run=session.dry_run)
        data: dict[str, Any] = plain(report._asdict() | {"faults": [fault._asdict() for fault in report.faults]})
        if report.faults:
            told(data)
        report.check()
        return data

    arguments = {"file": digest(file)} if session.request_id else {}
    told(act(session, office.database, number, "member import", arguments, action))


@command.command()
@click.argument("member_number")
@click.argument("name")
@click.option("--phone", default="", help="Phone number: at most one card is bound to it.")
@click.option("--department", default="", help="Where he works.")
@permitted(Permission.MEMBER_CHANGE)
def add(session: Session, office: Installation, member_number: str, name: str, phone: str, department: str) -> None:
    """Add member MEMBER_NUMBER called NAME."""
    number, made = office.enterprise_id, Member(member_number, name, phone, department)

    def action(tx: Tx) -> dict[str, Any]:
        members.add(tx, office.operator, number, made)
        return members.get(tx, number, member_number)._asdict()

    session.emit(act(session, office.database, number, "member add", made._asdict(), action))


@command.command()
@click.argument("member_number")
@click.option("--name", help="Another name.")
@click.option("--phone", help="Another phone number; empty for none.")
@click.option("--department", help="Another department.")
@permitted(Permission.MEMBER_CHANGE)
def change(
    session: Session, office: Installation, member_number: str, name: str | None, phone: str | None,
    department: str | None,
) -> None:  # fmt: skip
    """Change what is known of MEMBER_NUMBER; a card in use forbids another name or phone number."""
    number = office.enterprise_id
    given = {"name": name, "phone_number": phone, "department": department}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}

    def action(tx: Tx) -> dict[str, Any]:
        members.change(tx, office.operator, number, members.get(tx, number, member_number)._replace(**changes))
        return members.get(tx, number, member_number)._asdict()

    arguments = {"member": member_number, **changes}
    session.emit(act(session, office.database, number, "member change", arguments, action))


@command.command()
@click.argument("member_number")
@permitted(Permission.MEMBER_CHANGE)
def leave(session: Session, office: Installation, member_number: str) -> None:
    """MEMBER_NUMBER leaves: personal data are removed, the phone number is free. Cancel the card first."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        members.leave(tx, office.operator, number, member_number)
        return {"member_number": member_number, "state": "left"}

    session.emit(act(session, office.database, number, "member leave", {"member": member_number}, action))


@command.command("list")
@click.option("--department", default="", help="Only of one department.")
@permitted(Permission.MEMBER_SHOW)
def list_command(session: Session, office: Installation, department: str) -> None:
    """List members."""
    with office.database.read() as tx:
        found = list(_all(tx, office.enterprise_id))
    session.emit([one._asdict() for one in found if department in ("", one.department)])


def _all(tx: Tx, enterprise_id: int) -> Iterator[Member]:
    """Every active member, page by page."""
    page = members.listing(tx, enterprise_id)
    while page:
        yield from page
        page = members.listing(tx, enterprise_id, after=page[-1].member_number)


@command.command()
@click.argument("target", type=FILE)
@permitted(Permission.MEMBER_SHOW)
def export(session: Session, office: Installation, target: Path) -> None:
    """Write all members to TARGET (.csv or .xlsx), in the form that import reads."""
    number = office.enterprise_id

    def action() -> dict[str, Any]:
        require_new(target)
        with office.database.read() as tx:
            raw = members.export(tx, office.operator, number, "xlsx" if target.suffix == ".xlsx" else "csv")
        if not session.dry_run:
            write_new(target, raw)
        return {"file": target, "bytes": len(raw)}

    session.emit(act_outside(session, office.database, number, "member export", {"target": str(target)}, action))


@command.command()
@permitted(Permission.MEMBER_SHOW)
def sample(session: Session, office: Installation) -> None:
    """Show where the sample spreadsheet of 50 members is."""
    path = members.sample()
    session.emit({"file": path, "enterprise": office.scope}, str(path))


@command.command("service-password")
@click.argument("member_number")
@permitted(Permission.MEMBER_CHANGE)
def service_password(session: Session, office: Installation, member_number: str) -> None:
    """Give MEMBER_NUMBER the service password of 4 to 12 digits by which he acts from the SIM's menu."""
    credential = airmenu.credential_of(session.secret("service password", new=True), office.random_bytes)
    with changing(session, office.database) as tx:
        airmenu.set_password(tx, office.operator, office.enterprise_id, member_number, credential)
    session.emit({"member": member_number, "service_password": "set"})
