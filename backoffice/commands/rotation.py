"""``onecard key``, rotation: from one key version to the next, without recalling cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from backoffice import audit, rotation
from backoffice.audit import Event
from backoffice.commands.base import act, act_outside, permitted
from backoffice.database import PLATFORM, Tx
from backoffice.installation import Installation
from backoffice.operators import Operator, Permission, require
from console import Noun, Session
from keymgmt.keys import KeyState
from keymgmt.rotate import active_version, rotated

version_argument = click.argument("version", type=click.IntRange(1, 255))


@click.group(cls=Noun)
def command() -> None:
    """Rotation: from one key version to the next, without recalling cards."""


@command.command()
@click.option(
    "--platform-operator", help="Makes missing root keys too, where platform and enterprise are one organisation."
)
@permitted(Permission.KEY_MANAGE)
def rotate(session: Session, office: Installation, platform_operator: str | None) -> None:
    """Make the enterprise's next key version, pending, or go on with the rotation there is; says what comes next."""
    store, number = office.keys, office.enterprise_id
    if session.dry_run:
        version = rotation.following(store, number)
        missing = [str(ref) for ref in rotation.missing_roots(store, version)]
        session.emit({"version": version, "missing_roots": missing, "dry_run": True})
        return
    root = office.platform_operator(platform_operator) if platform_operator else None

    def action() -> dict[str, Any]:
        if root:
            _make_roots(office, root, rotation.following(store, number))
        version = rotation.begin(store, number, office.operator.name)
        with office.database.write() as tx:
            audit.record(tx, number, Event.KEY_CHANGED, office.operator.name, f"key:set.{version}", version=version)
            return _outcome(tx, office, version)

    session.emit(act_outside(session, office.database, number, "key rotate", {}, action))


def _make_roots(office: Installation, root: Operator, version: int) -> None:
    require(root, Permission.KEY_MANAGE, PLATFORM)
    for ref in rotation.make_roots(office.keys, version, root.name):
        with office.platform.write() as tx:
            subject = f"key:{ref.purpose.name.lower()}.{version}"
            audit.record(tx, PLATFORM, Event.KEY_CHANGED, root.name, subject, state_to=KeyState.ACTIVE.value)


@command.command()
@permitted(Permission.KEY_SHOW)
def status(session: Session, office: Installation) -> None:
    """Show each key version of the enterprise: its state, and how many cards, SAMs and records still use it.

    Platform keys (of the MF of cards), slot and SAM control keys have versions of their own: they are listed below.
    """
    store, number = office.keys, office.enterprise_id
    with office.database.read() as tx:
        rows = [one._asdict() | {"state": one.state.value} for one in rotation.usage(tx, store, number)]
        following = rotation.next_step(tx, store, number)
    purposes = {spec.purpose for spec in rotated()}
    others = [
        {"purpose": info.ref.purpose.name.lower(), "version": info.ref.version, "state": info.state.value}
        for info in store.list()
        if info.ref.purpose not in purposes and info.ref.enterprise_id in (None, number)
    ]
    current = active_version(store, number)
    lines = [
        f"new cards get version {current}",
        *(
            f"version {row['version']}: {row['state']}; {row['cards']} cards, {row['torn']} torn, {row['sams']} SAMs"
            f" ({row['lacking']} lack it), {row['records']} open records"
            for row in rows
        ),
        *(f"{row['purpose']} version {row['version']}: {row['state']}" for row in others),
        f"next: {following}",
    ]
    session.emit({"current": current, "versions": rows, "others": others, "next": following}, lines)


@command.command()
@version_argument
@click.option("--confirm", "word", help="ACTIVATE, when SAMs lack the version.")
@permitted(Permission.KEY_MANAGE)
def activate(session: Session, office: Installation, version: int, word: str | None) -> None:
    """Let new cards have VERSION from now on, and let desks bring the others to it."""
    store, number = office.keys, office.enterprise_id
    with office.database.read() as tx:
        lacking = rotation.sams_lacking(tx, number, version)
    if lacking and not session.dry_run:
        session.confirm(
            "ACTIVATE",
            f"{len(lacking)} SAMs lack version {version} (first {lacking[0]}): their terminals will refuse its cards.",
            word,
        )

    def change(tx: Tx) -> int:
        if session.dry_run:
            rotation.check_activate(tx, store, number, version, without_sams=bool(lacking))
        else:
            rotation.activate(tx, store, number, version, office.operator.name, without_sams=bool(lacking))
        return version

    _change(session, office, "key activate", {"version": version}, change)


@command.command()
@version_argument
@permitted(Permission.KEY_MANAGE)
def retire(session: Session, office: Installation, version: int) -> None:
    """Let VERSION retire: it serves the cards that still hold it, and no others, until it is destroyed."""
    store, number = office.keys, office.enterprise_id

    def change(tx: Tx) -> int:
        if session.dry_run:
            rotation.check_retire(store, number, version)
        else:
            rotation.retire(tx, store, number, version, office.operator.name)
        return version

    _change(session, office, "key retire", {"version": version}, change)


@command.command()
@permitted(Permission.KEY_MANAGE)
def rollback(session: Session, office: Installation) -> None:
    """Go back to the version before: new cards get it again, desks bring the others back to it."""
    store, number = office.keys, office.enterprise_id

    def change(tx: Tx) -> int:
        if session.dry_run:
            return rotation.before(store, number)
        return rotation.roll_back(tx, store, number, office.operator.name)

    _change(session, office, "key rollback", {}, change)


@command.command()
@version_argument
@click.option("--confirm", "word", help="DESTROY: the version is gone for good.")
@permitted(Permission.KEY_MANAGE)
def destroy(session: Session, office: Installation, version: int, word: str | None) -> None:
    """Destroy VERSION of the enterprise's keys; refused while a card, a SAM or an open record needs it."""
    store, number = office.keys, office.enterprise_id
    if not session.dry_run:
        session.confirm("DESTROY", f"Key version {version} of enterprise {number} is destroyed for good.", word)

    def change(tx: Tx) -> int:
        if session.dry_run:
            rotation.check_destroy(tx, store, number, version)
        else:
            rotation.destroy(tx, store, number, version, office.operator.name)
        return version

    _change(session, office, "key destroy", {"version": version}, change)


def _change(
    session: Session, office: Installation, name: str, arguments: dict[str, Any], change: Callable[[Tx], int]
) -> None:
    """A change of state, once per request id; ``change`` returns the version it is about, and only checks if dry."""

    def action(tx: Tx) -> dict[str, Any]:
        return _outcome(tx, office, change(tx))

    session.emit(act(session, office.database, office.enterprise_id, name, arguments, action))


def _outcome(tx: Tx, office: Installation, version: int) -> dict[str, Any]:
    states = {one.version: one.state.value for one in rotation.usage(tx, office.keys, office.enterprise_id)}
    following = rotation.next_step(tx, office.keys, office.enterprise_id)
    return {"version": version, "state": states.get(version), "next": following}
