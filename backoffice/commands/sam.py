"""``onecard sam``: SAMs for terminals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from backoffice import chips, registry
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.errors import ConfigError
from cardlib.profile import CardKind
from console import Hex, Noun, Session
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import FileSteps

YEARS = 10


@click.group(cls=Noun)
def command() -> None:
    """SAMs: made for one terminal each, registered, reported lost."""


@command.command()
@click.argument("terminal", type=Hex(6))
@click.option("--kind", type=click.Choice([kind.value for kind in SamKind]), required=True, help="Its terminal's kind.")
@click.option("--key-set", type=click.IntRange(1, 255), default=1, show_default=True, help="Key version to load.")
@click.option("--serial", type=Hex(8), help="Go on with a SAM whose making was interrupted.")
@click.option("--without-pin", is_flag=True, help="For tests: whoever takes the SAM can use it.")
@permitted(Permission.SAM_MANAGE)
def personalize(
    session: Session, office: Installation, terminal: bytes, kind: str, key_set: int, serial: bytes | None,
    without_pin: bool,
) -> None:  # fmt: skip
    """Make the vendor-fresh SAM in --reader the SAM of TERMINAL, with that kind of terminal's keys only.

    Asks for the vendor's transport key, and for the PIN that the terminal will present (4 to 12 hexadecimal digits).
    """
    initial = office.initial_key()
    pin = None if without_pin else _pin(session.secret("sam pin", new=True))
    if serial is None:
        if session.dry_run:
            raise ConfigError("a dry run needs --serial: giving a serial can't be taken back")
        with office.platform.write() as tx:
            serial = chips.next_serial(tx, CardKind.SAM)
    today = datetime.fromtimestamp(office.clock() / 1000, UTC).date()
    plan = SamPlan(
        serial.hex(), serial, terminal, office.enterprise_id, SamKind(kind), (key_set,), initial, today,
        today + timedelta(days=365 * YEARS), pin=pin,
    )  # fmt: skip
    plan.check()
    if session.dry_run:
        session.emit({"plan": plan.lines(), "dry_run": True}, plan.lines())
        return
    session.note(f"making SAM {serial.hex().upper()}; if this is interrupted, go on with --serial {serial.hex()}")
    steps = session.keep(FileSteps(office.folder / "sams.steps"))
    keys = make_sam(session.open_card(), plan, office.keys, steps)
    data: dict[str, Any] = {
        "sam": serial,
        "terminal": terminal,
        "keys": [{"purpose": k.purpose, "version": k.version, "kcv": k.kcv} for k in keys],
    }
    session.emit(data, f"SAM {serial.hex().upper()} is ready for terminal {terminal.hex().upper()}: {len(keys)} keys")


def _pin(text: str) -> bytes:
    try:
        pin = bytes.fromhex(text)
    except ValueError:
        pin = b""
    if not 2 <= len(pin) <= 6:
        raise ConfigError("a SAM's PIN is 4 to 12 hexadecimal digits, an even number of them")
    return pin


@command.command("list")
@permitted(Permission.TERMINAL_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List the SAMs that are or were in terminals."""
    with office.database.read() as tx:
        found = registry.sams(tx, office.enterprise_id)
    session.emit(
        [
            {"sam": one.sam_serial, "terminal": one.terminal, "kind": one.kind.value, "state": one.state}
            for one in found.values()
        ]
    )


@command.command("report-lost")
@click.argument("serial", type=Hex(8))
@click.option("--since", type=click.DateTime(), help="When it was last seen for certain, UTC; now by default.")
@permitted(Permission.TERMINAL_MANAGE)
def report_lost(session: Session, office: Installation, serial: bytes, since: datetime | None) -> None:
    """Report SAM SERIAL lost: settlement refuses what it reports from then on."""
    number = office.enterprise_id
    since_ms = office.clock() if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)

    def action(tx: Tx) -> dict[str, Any]:
        registry.lose_sam(tx, office.operator, number, serial, since_ms)
        return {"sam": serial.hex().upper(), "state": "lost", "since_ms": since_ms}

    arguments = {"sam": serial.hex(), "since": since and since.isoformat()}
    session.emit(act(session, office.database, number, "sam report-lost", arguments, action))
