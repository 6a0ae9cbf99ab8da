"""``onecard sam``: SAMs for terminals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import click

from backoffice import chips, registry, requests
from backoffice.commands.base import act, act_outside, permitted
from backoffice.database import PLATFORM, Tx
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
    today = datetime.fromtimestamp(office.clock() / 1000, UTC).date()
    asked = {"terminal": terminal.hex(), "kind": kind, "key_set": key_set, "serial": serial and serial.hex()}

    def plan_of(serial: bytes) -> SamPlan:
        plan = SamPlan(
            serial.hex(), serial, terminal, office.enterprise_id, SamKind(kind), (key_set,), today,
            today + timedelta(days=365 * YEARS), pin=pin,
        )  # fmt: skip
        plan.check()
        return plan

    if session.dry_run:
        if serial is None:
            raise ConfigError("a dry run needs --serial: giving a serial can't be taken back")
        lines = plan_of(serial).lines()
        session.emit({"plan": lines, "dry_run": True}, lines)
        return

    def action() -> dict[str, Any]:
        own = serial or _new_serial(session, office, asked)
        session.note(f"making SAM {own.hex().upper()}; if this is interrupted, go on with --serial {own.hex()}")
        steps = session.keep(FileSteps(office.folder / "sams.steps"))
        keys = make_sam(session.open_card(), plan_of(own), initial, office.keys, steps)
        rows = [{"purpose": k.purpose, "version": k.version, "kcv": k.kcv} for k in keys]
        return {"sam": own, "terminal": terminal, "keys": rows}

    data = act_outside(session, office.platform, PLATFORM, "sam personalize", asked, action)
    session.emit(data, f"SAM {data['sam']} is ready for terminal {data['terminal']}: {len(data['keys'])} keys")


def _new_serial(session: Session, office: Installation, asked: dict[str, Any]) -> bytes:
    """A serial never given before; the same request id goes on with the one that it was given."""

    def action(tx: Tx) -> dict[str, Any]:
        return {"serial": chips.next_serial(tx, CardKind.SAM).hex()}

    own_id = f"serial:{sha256(session.request_id.encode()).hexdigest()[:40]}" if session.request_id else None
    return bytes.fromhex(requests.once(office.platform, PLATFORM, own_id, "sam serial", asked, action)["serial"])


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
