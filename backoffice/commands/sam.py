"""``onecard sam``: the life of a SAM, from the vendor's chip in --reader to a blocked one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import click

from backoffice import chips, registry, requests
from backoffice.commands.base import act, act_outside, changing, permitted
from backoffice.commands.source import Source, key_source
from backoffice.commands.source import pin as pin_of
from backoffice.database import PLATFORM, Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.registry import TerminalKind
from cardlib.errors import ConfigError, Conflict
from cardlib.profile import CardKind, Purpose
from cardlib.sam import SamKey
from console import Hex, Noun, Session, table
from keymgmt.delivery import KeySource
from keymgmt.samload import (
    HOLDS,
    SamKind,
    SamPlan,
    SamWash,
    complete_versions,
    load_keys,
    load_sam,
    lock_sam,
    look,
    own_version,
    wash_sam,
)
from keymgmt.steps import FileSteps

SAM = Hex(8)
YEARS = 10
STEPS = "sams.steps"
key_sets_option = click.option(
    "--key-set", "key_sets", type=click.IntRange(1, 255), multiple=True,
    help="Key version to load, repeatable. [default: each that is complete]",
)  # fmt: skip
kind_option = click.option(
    "--kind", type=click.Choice([kind.value for kind in SamKind]), required=True, help="Its terminal's kind."
)
without_pin_option = click.option("--without-pin", is_flag=True, help="For tests: whoever takes the SAM can use it.")
since_option = click.option(
    "--since", type=click.DateTime(), help="When it was last seen for certain, UTC; now by default."
)


@click.group(cls=Noun)
def command() -> None:
    """SAMs: made for one terminal each, registered, given new keys, locked, replaced, reported lost."""


# Making


@dataclass(frozen=True, slots=True)
class _Order:
    """The SAM that is wanted; ``old`` is the one whose place it takes, ``asked`` what the operator asked for."""

    terminal: bytes
    kind: SamKind
    key_sets: tuple[int, ...]
    without_pin: bool
    asked: dict[str, Any]
    old: bytes | None = None

    def expect_socket(self, tx: Tx, office: Installation, serial: bytes | None) -> bool:
        kind = TerminalKind(self.kind.value)
        return registry.expect_socket(tx, office.enterprise_id, self.terminal, kind, serial, self.old)


@command.command()
@click.argument("terminal", type=Hex(6))
@kind_option
@click.option("--register", "name", help="Register its terminal too, under this name.")
@key_sets_option
@without_pin_option
@permitted(Permission.SAM_MANAGE)
@key_source
def personalize(
    session: Session, office: Installation, source: Source, terminal: bytes, kind: str, name: str | None,
    key_sets: tuple[int, ...], without_pin: bool,
) -> None:  # fmt: skip
    """Make the SAM in --reader that of TERMINAL, with that kind of terminal's keys only.

    A vendor-fresh SAM is washed first: asks for the vendor's transport key. Asks for the PIN that the terminal will
    present (4 to 12 hexadecimal digits). Interrupted, run it again with the same SAM. --dry-run shows the plan.
    """
    asked = {"terminal": terminal.hex(), "kind": kind, "name": name, "key_sets": sorted(set(key_sets))}

    def action() -> dict[str, Any]:
        if name is not None:
            with changing(session, office.database) as tx:
                registry.register(tx, office.operator, office.enterprise_id, terminal, TerminalKind(kind), name)
        return _make(session, office, source(), _Order(terminal, SamKind(kind), key_sets, without_pin, asked))

    _told(session, act_outside(session, office.platform, PLATFORM, "sam personalize", asked, action))


@command.command()
@click.argument("old", type=SAM)
@click.option("--lost", is_flag=True, help="OLD can't be found: refuse what it reports from then on.")
@since_option
@key_sets_option
@without_pin_option
@permitted(Permission.SAM_MANAGE)
@key_source
def replace(
    session: Session, office: Installation, source: Source, old: bytes, lost: bool, since: datetime | None,
    key_sets: tuple[int, ...], without_pin: bool,
) -> None:  # fmt: skip
    """Put the SAM in --reader in the place of OLD, a broken or lost one: same terminal, same kind, its keys.

    What OLD reported stays good; a lost one's later records are refused. Asks what personalize asks. Interrupted, run
    it again with the same new SAM. A broken one that still answers is locked afterwards (sam lock).
    """
    if since is not None and not lost:
        raise ConfigError("--since says when a SAM was lost: give --lost too")
    number, since_ms = office.enterprise_id, _since_ms(office, since)
    asked = {"old": old.hex(), "lost": lost, "since": since and since.isoformat(), "key_sets": sorted(set(key_sets))}

    def action() -> dict[str, Any]:
        with changing(session, office.database) as tx:  # first: a lost SAM is refused even when no other can be made
            gone = registry.sam(tx, number, old)
            if lost:
                registry.lose_sam(tx, office.operator, number, old, since_ms)
        order = _Order(gone.terminal, _kind(gone), key_sets, without_pin, asked, old)
        return _make(session, office, source(), order)

    _told(session, act_outside(session, office.platform, PLATFORM, "sam replace", asked, action))


def _make(session: Session, office: Installation, keys: KeySource, order: _Order) -> dict[str, Any]:
    """Wash the SAM in the reader if it is not, load it, write it into the books; a dry run only says how."""
    sam, number = session.open_card(), office.enterprise_id
    found = look(sam)
    if found.serial is not None and found.serial == order.old:
        raise Conflict("the SAM in the reader is the old one: insert the one that replaces it")
    with office.database.read() as tx:
        order.expect_socket(tx, office, found.serial)
    versions = tuple(sorted(set(order.key_sets))) or complete_versions(order.kind, keys)
    initial = None if found.washed else office.initial_key()
    pin = None if order.without_pin else pin_of(session, "sam pin", new=True)
    today = datetime.fromtimestamp(office.clock() / 1000, UTC).date()
    serial = found.serial or _new_serial(session, office, order.asked)
    expiry = today + timedelta(days=365 * YEARS)
    plan = SamPlan(serial.hex(), serial, order.terminal, number, order.kind, versions, today, expiry, pin=pin)
    plan.check()
    wash = initial and SamWash(plan.job, serial, number, initial, own_version=own_version(keys))
    if session.dry_run:
        return {"plan": [*(wash.lines() if wash else ()), *plan.lines()], "dry_run": True}
    steps = session.keep(FileSteps(office.folder / STEPS))
    if wash:
        wash_sam(sam, wash, office.keys, steps)
    listed = load_sam(sam, plan, keys, steps)
    with office.database.write() as tx:
        registry.note_sam_keys(tx, number, serial, listed)
        registered = order.expect_socket(tx, office, serial)
        if registered:
            registry.fit_sam(tx, office.operator, number, order.terminal, serial)
    return {
        "sam": serial, "terminal": order.terminal, "kind": order.kind.value, "replaces": order.old,
        "registered": registered, "keys": [_row(key) for key in listed],
    }  # fmt: skip


def _told(session: Session, data: dict[str, Any]) -> None:
    if "plan" in data:
        session.emit(data, data["plan"])
        return
    text = [f"SAM {data['sam']} is ready for terminal {data['terminal']}: {len(data['keys'])} keys"]
    if not data["registered"]:
        text += [f"not registered yet: onecard terminal register {data['terminal']} NAME --sam {data['sam']}"]
    session.emit(data, text)


def _new_serial(session: Session, office: Installation, asked: dict[str, Any]) -> bytes:
    """A serial never given before; the same request id goes on with the one that it was given."""
    if session.dry_run:
        with changing(session, office.platform) as tx:
            return chips.next_serial(tx, CardKind.SAM)

    def action(tx: Tx) -> dict[str, Any]:
        return {"serial": chips.next_serial(tx, CardKind.SAM).hex()}

    own_id = f"serial:{sha256(session.request_id.encode()).hexdigest()[:40]}" if session.request_id else None
    return bytes.fromhex(requests.once(office.platform, PLATFORM, own_id, "sam serial", asked, action)["serial"])


def _kind(sam: registry.Sam) -> SamKind:
    if sam.kind is TerminalKind.OFFICE:
        raise Conflict("the office's SAM is the key store itself: no SAM card is made for it")
    return SamKind(sam.kind.value)


# Keys, and the end


@command.command("load-keys")
@click.argument("serial", type=SAM)
@click.option(
    "--key-set", "key_sets", type=click.IntRange(1, 255), multiple=True, required=True, help="Key version, repeatable."
)
@permitted(Permission.SAM_MANAGE)
@key_source
def load_keys_command(
    session: Session, office: Installation, source: Source, serial: bytes, key_sets: tuple[int, ...]
) -> None:
    """Add key versions to SAM SERIAL in --reader: those of its terminal's kind. Needs no PIN.

    Interrupted, run it again.
    """
    versions, number = tuple(sorted(set(key_sets))), office.enterprise_id

    def action() -> dict[str, Any]:
        with office.database.read() as tx:
            known = registry.sam(tx, number, serial)
        if known.state != "active":
            raise Conflict(f"SAM {serial.hex().upper()} is {known.state}: it gets no more keys")
        purposes = HOLDS[_kind(known)]
        if session.dry_run:
            names = ", ".join(purpose.name.lower() for purpose in purposes)
            return {"plan": [f"load {names} into SAM {serial.hex().upper()}: versions {versions}"], "dry_run": True}
        listed = load_keys(session.open_card(), serial, purposes, versions, source())
        with office.database.write() as tx:
            registry.note_sam_keys(tx, number, serial, listed)
        return {"sam": serial, "terminal": known.terminal, "registered": True, "keys": [_row(key) for key in listed]}

    asked = {"sam": serial.hex(), "key_sets": list(versions)}
    _told(session, act_outside(session, office.database, number, "sam load-keys", asked, action))


@command.command()
@click.argument("serial", type=SAM)
@click.option("--confirm", "word", help="LOCK: the SAM is of no use any more.")
@permitted(Permission.SAM_MANAGE)
def lock(session: Session, office: Installation, serial: bytes, word: str | None) -> None:
    """Block SAM SERIAL in --reader for good, and take it out of its terminal in the books.

    Interrupted, run it again with the same SAM.
    """
    number, name = office.enterprise_id, serial.hex().upper()
    if not session.dry_run:
        session.confirm("LOCK", f"SAM {name} is blocked for good.", word)

    def action() -> dict[str, Any]:
        if session.dry_run:
            found = look(session.open_card()).serial
            if found != serial:
                raise Conflict(f"another SAM is in the reader: insert {name}")
            return {"sam": serial, "state": "retired", "dry_run": True}
        steps = session.keep(FileSteps(office.folder / STEPS))
        lock_sam(session.open_card(), serial, office.keys, steps)
        with office.database.write() as tx:
            registry.retire_sam(tx, office.operator, number, serial)
        return {"sam": serial, "state": "retired"}

    asked = {"sam": serial.hex()}
    session.emit(act_outside(session, office.database, number, "sam lock", asked, action))


@command.command("report-lost")
@click.argument("serial", type=SAM)
@since_option
@permitted(Permission.TERMINAL_MANAGE)
def report_lost(session: Session, office: Installation, serial: bytes, since: datetime | None) -> None:
    """Report SAM SERIAL lost: settlement refuses what it reports from then on."""
    number, since_ms = office.enterprise_id, _since_ms(office, since)

    def action(tx: Tx) -> dict[str, Any]:
        registry.lose_sam(tx, office.operator, number, serial, since_ms)
        return {"sam": serial.hex().upper(), "state": "lost", "since_ms": since_ms}

    arguments = {"sam": serial.hex(), "since": since and since.isoformat()}
    session.emit(act(session, office.database, number, "sam report-lost", arguments, action))


def _since_ms(office: Installation, since: datetime | None) -> int:
    return office.clock() if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)


# Looking


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


@command.command()
@click.argument("serial", type=SAM, required=False)
@permitted(Permission.TERMINAL_SHOW)
@key_source
def show(session: Session, office: Installation, source: Source, serial: bytes | None) -> None:
    """Show what the books say of SAM SERIAL; without SERIAL, what the SAM in --reader says of itself.

    The check values of its keys are compared with ours. Changes nothing, needs no PIN of the SAM.
    """
    if serial is None:
        session.emit(*_said(session, source))
        return
    with office.database.read() as tx:
        known = registry.sam(tx, office.enterprise_id, serial)
        keys = registry.sam_keys(tx, office.enterprise_id, serial)
    rows = [
        {"purpose": _purpose(row["purpose"]), "version": row["version"], "kcv": row["kcv"], "loaded": _day(row[3])}
        for row in keys
    ]
    data = {
        "sam": known.sam_serial, "terminal": known.terminal, "kind": known.kind.value, "state": known.state,
        "lost_since_ms": known.lost_ms,
    }  # fmt: skip
    session.emit(data | {"keys": rows}, [*table([data]), *table(rows)])


def _said(session: Session, source: Source) -> tuple[dict[str, Any], list[str]]:
    """What the SAM in the reader says of itself, as data and for people."""
    found = look(session.open_card())
    known = source().lines() if found.keys else ()
    ours: dict[tuple[int, int], bytes] = {(line.purpose, line.version): line.kcv for line in known}
    rows = [_row(key) | {"ours": ours.get((key.purpose, key.version)) == key.kcv} for key in found.keys]
    data = {
        "sam": found.serial, "washed": found.washed, "terminal": found.terminal, "enterprise": found.enterprise_id,
        "kinds": [kind.value for kind in found.kinds], "pin": found.pin,
    }  # fmt: skip
    return data | {"keys": rows}, [*table([data]), *table(rows)]


def _row(key: SamKey) -> dict[str, Any]:
    return {"purpose": _purpose(key.purpose), "version": key.version, "kcv": key.kcv}


def _purpose(code: int) -> str:
    return Purpose(code).name.lower() if code in set(Purpose) else f"{code:02X}"


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
