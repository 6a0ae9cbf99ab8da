"""``onecard terminal adms``: attendance terminals of other makers that push over HTTP."""

from __future__ import annotations

from typing import Any

import click

from backoffice import adms
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.web import listen
from console import Noun, Session


@click.group(cls=Noun)
def command() -> None:
    """Terminals; merged into the noun of the same name."""


@command.group("adms")
def devices() -> None:
    """Attendance terminals of other makers: approve them, serve them."""


@devices.command()
@click.argument("device")
@click.option("--name", required=True, help="Where it hangs.")
@click.option("--address", default="", help="Address or network that it calls from. [default: anywhere]")
@permitted(Permission.TERMINAL_MANAGE)
def approve(session: Session, office: Installation, device: str, name: str, address: str) -> None:
    """Let DEVICE (its serial number) upload punches; they are marked as of an unverified source."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        adms.approve(tx, office.operator, number, device, name, address)
        return {"device": device, "name": name, "state": "approved"}

    arguments = {"device": device, "name": name, "address": address}
    session.emit(act(session, office.database, number, "terminal adms approve", arguments, action))


@devices.command()
@click.argument("device")
@permitted(Permission.TERMINAL_MANAGE)
def retire(session: Session, office: Installation, device: str) -> None:
    """Refuse DEVICE from now on; its punches stay."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        adms.retire(tx, office.operator, number, device)
        return {"device": device, "state": "retired"}

    session.emit(act(session, office.database, number, "terminal adms retire", {"device": device}, action))


@devices.command("list")
@permitted(Permission.TERMINAL_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List approved devices."""
    with office.database.read() as tx:
        found = adms.devices(tx, office.enterprise_id)
    session.emit([one._asdict() for one in found])


@devices.command("bad-lines")
@permitted(Permission.TERMINAL_SHOW)
def bad_lines(session: Session, office: Installation) -> None:
    """List uploaded lines that are no punch, without what may be secret in them."""
    with office.database.read() as tx:
        found = adms.bad_lines(tx, office.enterprise_id)
    session.emit(found)


@devices.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8081, show_default=True, help="Port to listen on.")
@click.option("--behind-proxy", default="", help="Address of the TLS proxy before it; nobody else is answered.")
@permitted(Permission.TERMINAL_MANAGE)
def serve(session: Session, office: Installation, host: str, port: int, behind_proxy: str) -> None:
    """Serve approved devices until interrupted. Devices are set to this host and port as their ADMS server."""
    offset_min = office.enterprise.utc_offset_minutes
    web = adms.web_server(adms.Server(office.database, office.enterprise_id, offset_min, behind_proxy))
    with listen(host, port, behind_proxy) as line:
        if session.dry_run:
            session.emit({"host": host, "port": port, "state": "not started"})
            return
        session.note(f"serving ADMS terminals at http://{host}:{port}/iclock/ until interrupted")
        web.run([line])
