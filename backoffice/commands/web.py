"""``onecard web``: the office over HTTP for terminals and operators, and the tokens they call it with."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from backoffice import tokens
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.station import Office
from backoffice.washing import batch_key
from cardlib.errors import ConfigError, FormatError
from console import Noun, Session, write_secret

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Noun)
def command() -> None:
    """The office over HTTP: serve terminals and operators, give them tokens."""


@command.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port to listen on.")
@click.option("--tls-cert", type=FILE, help="Certificate chain (PEM); needed beyond this machine, or a proxy is.")
@click.option("--tls-key", type=FILE, help="The certificate's key (PEM).")
@click.option("--behind-proxy", default="", help="Address of the TLS proxy before it; nobody else is answered.")
@click.option(
    "--platform-operator", help="Issuing terminals wash and open slots too, where platform and enterprise are one."
)
@permitted(Permission.TERMINAL_MANAGE)
def serve(
    session: Session,
    office: Installation,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    behind_proxy: str,
    platform_operator: str | None,
) -> None:
    """Serve terminals and operators of the enterprise until interrupted.

    Vendor keys of blank cards come from ONECARD_TRANSPORT_KEY_FILE, and from batch files by ONECARD_BATCH_KEY_FILE.
    """
    from backoffice import hostcalls, lending, web  # noqa: PLC0415  # the other verbs need no server

    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("a certificate and its key belong together: --tls-cert and --tls-key")
    tls = (tls_cert, tls_key) if tls_cert and tls_key else None
    with web.listen(host, port, behind_proxy, tls=tls is not None) as line:
        if session.dry_run:
            session.emit({"host": host, "port": port, "state": "not started"})
            return
        desks = session.keep(lending.Desks(_desk(office, platform_operator), office.keys.using))
        verbs = {**hostcalls.HostCalls(office.office(), office.keys.using).verbs(), **desks.verbs()}
        served = web.Web(office.database, office.enterprise_id, verbs, behind_proxy)
        server = web.http_server(served.app(), tls)
        session.note(f"serving {'https' if tls else 'http'}://{host}:{port}/v1/ until interrupted")
        server.run([line])


def _desk(office: Installation, platform_operator: str | None) -> Office:
    """What issuing terminals work with; vendor keys are read at the start, since nobody can be asked later."""
    if platform_operator is None:
        return office.office()
    actor = office.platform_operator(platform_operator)
    initial = office.initial_key() if os.environ.get("ONECARD_TRANSPORT_KEY_FILE") else None
    wrapping = batch_key(office.secret) if os.environ.get("ONECARD_BATCH_KEY_FILE") else None
    return replace(office.office(actor, initial), batch_key=wrapping)


@command.group("token")
def token_group() -> None:
    """Tokens: each is one terminal's or one operator's."""


def _holder(text: str) -> bytes | str:
    kind, _, name = text.partition(":")
    if kind == "operator" and name:
        return name
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise FormatError(f"{text}: a terminal's number of 12 hex digits, or operator:NAME, belongs here") from None


@token_group.command()
@click.argument("holder")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--days", type=int, default=365, show_default=True, help="How long it is good for.")
@permitted(Permission.TERMINAL_MANAGE)
def add(session: Session, office: Installation, holder: str, file: Path, days: int) -> None:
    """Make a token for HOLDER (a terminal's number, or operator:NAME) and write it to the new FILE (- is stdout)."""
    number, whose = office.enterprise_id, _holder(holder)

    def action(tx: Tx) -> dict[str, Any]:
        token_id, token = tokens.add(tx, office.operator, number, whose, days, office.random_bytes)
        if not session.dry_run:
            _hand_out(file, token)
        return {"token": token_id, "holder": holder, "file": str(file), "days": days}

    arguments = {"holder": holder, "file": str(file), "days": days}
    made = act(session, office.database, number, "web token add", arguments, action)
    session.emit(made, f"token {made['token']} of {holder}: only {file} has it, nobody can show it again")


def _hand_out(file: Path, token: str) -> None:
    if str(file) == "-":
        sys.stdout.write(token + "\n")
    else:
        write_secret(file, token + "\n")


@token_group.command("list")
@permitted(Permission.TERMINAL_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List all tokens: whose they are, until when, when they were last used."""
    with office.database.read() as tx:
        found = tokens.listing(tx, office.enterprise_id)
    session.emit([one._asdict() for one in found])


@token_group.command()
@click.argument("token")
@permitted(Permission.TERMINAL_MANAGE)
def revoke(session: Session, office: Installation, token: str) -> None:
    """Refuse TOKEN (its number from the list, not its value) from now on."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        tokens.revoke(tx, office.operator, number, token)
        return {"token": token, "state": "revoked"}

    session.emit(act(session, office.database, number, "web token revoke", {"token": token}, action))
