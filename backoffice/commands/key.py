"""``onecard key``: master keys by reference. Values are never shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from backoffice import audit
from backoffice.audit import Event
from backoffice.commands.base import act_outside, permitted
from backoffice.database import PLATFORM
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict
from cardlib.profile import Purpose
from console import Noun, Session
from keymgmt.keys import KeyInfo, KeyRef, KeyState, check_transition

PURPOSES = [purpose.name.lower() for purpose in Purpose if purpose is not Purpose.PIN]
ALL = "all"
ALGORITHMS = {"3des": Algorithm.TDES, "sm4": Algorithm.SM4}


@click.group(cls=Noun)
def command() -> None:
    """Master keys in the key store: purpose, version, state, check value. Values are never shown."""


def _row(info: KeyInfo) -> dict[str, Any]:
    return {
        "purpose": info.ref.purpose.name.lower(),
        "version": info.ref.version,
        "enterprise": info.ref.enterprise_id,
        "algorithm": info.algorithm.name,
        "kcv": info.kcv,
        "state": info.state.value,
        "made_by": info.made_by,
        "made": f"{datetime.fromtimestamp(info.made_at_ms / 1000, UTC):%Y-%m-%d}",
    }


@command.command("list")
@permitted(Permission.KEY_SHOW, platform=True)
def list_command(session: Session, office: Installation) -> None:
    """List all keys in the order they were made."""
    session.emit([_row(info) for info in office.keys.list()])


@command.command()
@click.argument("purpose", type=click.Choice([*PURPOSES, ALL]))
@click.argument("version", type=click.IntRange(1, 255))
@click.option("--algorithm", type=click.Choice(list(ALGORITHMS)), default="3des", show_default=True, help="Cipher.")
@click.option("--activate", is_flag=True, help="Make it active at once.")
@permitted(Permission.KEY_MANAGE, platform=True)
def make(session: Session, office: Installation, purpose: str, version: int, algorithm: str, activate: bool) -> None:
    """Make root key PURPOSE, VERSION from random bytes; it is pending until it is made active.

    PURPOSE all makes those of VERSION that are not there yet: beside the ones made by ceremony, say.
    """
    names = PURPOSES if purpose == ALL else [purpose]

    def missing() -> list[KeyRef]:
        there = {info.ref for info in office.keys.list()}
        refs = [ref for name in names if (ref := KeyRef(Purpose[name.upper()], version)) not in there]
        if not refs:
            what = f"all keys of version {version} exist" if purpose == ALL else f"{purpose} version {version} exists"
            raise Conflict(f"{what} already: give the next version")
        return refs

    if session.dry_run:
        refs = missing()
        session.emit({"keys": [str(ref) for ref in refs], "dry_run": True}, [f"would make {ref}" for ref in refs])
        return

    def action() -> list[dict[str, Any]]:
        return [_made(office, ref, ALGORITHMS[algorithm], activate) for ref in missing()]

    arguments = {"purpose": purpose, "version": version, "algorithm": algorithm, "activate": activate}
    made = act_outside(session, office.platform, PLATFORM, "key make", arguments, action)
    session.emit(made if purpose == ALL else made[0])


def _made(office: Installation, ref: KeyRef, algorithm: Algorithm, activate: bool) -> dict[str, Any]:
    info = office.keys.create(ref, algorithm, office.operator.name)
    _note(office, ref, info.state.value)
    if activate:
        info = office.keys.set_state(ref, KeyState.ACTIVE, office.operator.name)
        _note(office, ref, info.state.value)
    return _row(info)


@command.command()
@click.argument("purpose", type=click.Choice(PURPOSES))
@click.argument("version", type=click.IntRange(1, 255))
@click.argument("state", type=click.Choice([one.value for one in KeyState if one is not KeyState.PENDING]))
@click.option("--confirm", "word", help="DESTROY, for the state destroyed.")
@permitted(Permission.KEY_MANAGE, platform=True)
def state(session: Session, office: Installation, purpose: str, version: int, state: str, word: str | None) -> None:
    """Move root key PURPOSE, VERSION on: pending, active, retiring, destroyed."""
    ref = KeyRef(Purpose[purpose.upper()], version)
    if state == KeyState.DESTROYED:
        _expect_unused(office, ref)
    if session.dry_run:
        info = office.keys.info(ref)
        check_transition(ref, info.state, KeyState(state))
        session.emit(_row(info) | {"state": state, "dry_run": True})
        return
    if state == KeyState.DESTROYED:
        session.confirm("DESTROY", f"Key {ref} is destroyed for good: cards that have it only can't be used.", word)

    def action() -> dict[str, Any]:
        info = office.keys.set_state(ref, KeyState(state), office.operator.name)
        _note(office, ref, state)
        return _row(info)

    arguments = {"key": str(ref), "state": state}
    session.emit(act_outside(session, office.platform, PLATFORM, "key state", arguments, action))


def _expect_unused(office: Installation, ref: KeyRef) -> None:
    """Raise Conflict while an enterprise's key of this version descends from the root: its cards would be lost."""
    held = [info.ref for info in office.keys.list() if info.ref.root == ref and info.state is not KeyState.DESTROYED]
    users = sorted(one.enterprise_id for one in held if one.enterprise_id is not None)
    if users:
        names = ", ".join(map(str, users[:5])) + (", ..." if len(users) > 5 else "")
        raise Conflict(f"key {ref} is needed by enterprises {names}: each runs onecard key destroy {ref.version} first")


def _note(office: Installation, ref: KeyRef, state: str) -> None:
    with office.platform.write() as tx:
        audit.record(tx, PLATFORM, Event.KEY_CHANGED, office.operator.name, audit.key_subject(ref), state_to=state)
