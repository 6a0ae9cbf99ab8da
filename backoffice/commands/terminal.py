"""``onecard terminal``, the back office's side: which terminals there are."""

from __future__ import annotations

from typing import Any

import click

from backoffice import registry
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.registry import TerminalKind
from console import Hex, Noun, Session

TERMINAL = Hex(6)
KINDS = [kind.value for kind in TerminalKind if kind is not TerminalKind.OFFICE]


@click.group(cls=Noun)
def command() -> None:
    """Terminals: registered in the back office, and run here."""


@command.command()
@click.argument("terminal", type=TERMINAL)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is for.")
@click.option("--sam", type=Hex(8), help="Serial of the SAM in it.")
@permitted(Permission.TERMINAL_MANAGE)
def register(session: Session, office: Installation, terminal: bytes, name: str, kind: str, sam: bytes | None) -> None:
    """Register TERMINAL (6 bytes, hexadecimal) under NAME, and the SAM in it."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        registry.register(tx, office.operator, number, terminal, TerminalKind(kind), name)
        if sam is not None:
            registry.fit_sam(tx, office.operator, number, terminal, sam)
        return {"terminal": terminal.hex().upper(), "kind": kind, "name": name}

    arguments = {"terminal": terminal.hex(), "name": name, "kind": kind, "sam": sam and sam.hex()}
    session.emit(act(session, office.database, number, "terminal register", arguments, action))


@command.command("list")
@permitted(Permission.TERMINAL_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List terminals with their SAM and the list version that they reported."""
    with office.database.read() as tx:
        found = registry.terminals(tx, office.enterprise_id)
    session.emit(
        [
            {
                "terminal": one.terminal,
                "kind": one.kind.value,
                "name": one.name,
                "state": one.state,
                "sam": one.sam_serial,
                "list_version": one.list_version,
            }
            for one in found
        ]
    )


@command.command()
@click.argument("terminal", type=TERMINAL)
@permitted(Permission.TERMINAL_MANAGE)
def retire(session: Session, office: Installation, terminal: bytes) -> None:
    """Take TERMINAL out of service: closing a day no longer waits for it."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        registry.retire(tx, office.operator, number, terminal)
        return {"terminal": terminal.hex().upper(), "state": "retired"}

    session.emit(act(session, office.database, number, "terminal retire", {"t": terminal.hex()}, action))
