"""``onecard blacklist``: the cards that every terminal refuses."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backoffice import audit, blacklists
from backoffice.audit import Event
from backoffice.commands.base import act, act_outside, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.blacklist import ListReason
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError
from console import Hex, Noun, Session, require_new, write_new

CARD = Hex(8)
REASONS = [reason.name.lower() for reason in ListReason]


@click.group(cls=Noun)
def command() -> None:
    """The blacklist: staged changes, published versions, signed files for terminals."""


@command.command()
@click.argument("card", type=CARD)
@click.option("--reason", type=click.Choice(REASONS), default="fraud", show_default=True, help="Why it is listed.")
@permitted(Permission.BLACKLIST_CHANGE)
def add(session: Session, office: Installation, card: bytes, reason: str) -> None:
    """Stage CARD (its serial) for the next version. A lost card is better reported by `onecard card lose`."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        changed = blacklists.add(tx, office.operator, number, card, ListReason[reason.upper()])
        return {"card": card.hex().upper(), "listed": reason, "changed": changed}

    arguments = {"card": card.hex(), "reason": reason}
    session.emit(act(session, office.database, number, "blacklist add", arguments, action))


@command.command()
@click.argument("card", type=CARD)
@permitted(Permission.BLACKLIST_CHANGE)
def remove(session: Session, office: Installation, card: bytes) -> None:
    """Take CARD off the next version."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        return {"card": card.hex().upper(), "changed": blacklists.remove(tx, office.operator, number, card)}

    session.emit(act(session, office.database, number, "blacklist remove", {"card": card.hex()}, action))


@command.command("revoke-token")
@click.argument("token", type=Hex())
@permitted(Permission.BLACKLIST_CHANGE)
def revoke_token(session: Session, office: Installation, token: bytes) -> None:
    """Revoke an installer's TOKEN (its id) in every list file from the next export on."""
    number = office.enterprise_id
    if not 1 <= len(token) <= 32:
        raise ConfigError("a token's id has 1 to 32 bytes: see terminal identity show")

    def action(tx: Tx) -> dict[str, Any]:
        changed = blacklists.revoke_token(tx, office.operator, number, token)
        return {"token": token.hex().upper(), "changed": changed}

    session.emit(act(session, office.database, number, "blacklist revoke-token", {"token": token.hex()}, action))


@command.command("list")
@permitted(Permission.CARD_SHOW)
def list_command(session: Session, office: Installation) -> None:
    """List the cards of the next version; staged ones are not published yet."""
    with office.database.read() as tx:
        found = blacklists.listing(tx, office.enterprise_id)
    session.emit(
        [
            {
                "card": entry.card_serial,
                "reason": entry.reason.name.lower(),
                "since": f"{datetime.fromtimestamp(entry.at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
                "published": entry.published,
            }
            for entry in found
        ]
    )


@command.command()
@permitted(Permission.BLACKLIST_CHANGE)
def build(session: Session, office: Installation) -> None:
    """Publish what is staged as the next version; without changes the version stays."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        return {"version": blacklists.publish(tx, number, office.operator.name)}

    outcome = act(session, office.database, number, "blacklist build", {}, action)
    session.emit(outcome, f"list version {outcome['version']} is in force")


@command.command()
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--have", type=click.IntRange(min=0), default=0, help="Version the terminal has, for a smaller file.")
@permitted(Permission.BLACKLIST_EXPORT)
def export(session: Session, office: Installation, target: Path, have: int) -> None:
    """Write the signed file that brings a terminal with version --have up to date to TARGET."""
    number = office.enterprise_id

    def action() -> dict[str, Any]:
        require_new(target)
        with office.database.read() as tx:
            made = blacklists.export(tx, office.operator, number, _signer(session, office), have)
        if not session.dry_run:
            write_new(target, made.raw)
            with office.database.write() as tx:
                subject = f"blacklist:{made.version}"
                audit.record(tx, number, Event.BLACKLIST_EXPORTED, office.operator.name, subject)
        return {"file": target, "kind": made.kind.name.lower(), "version": made.version, "bytes": len(made.raw)}

    arguments = {"target": str(target), "have": have}
    data = act_outside(session, office.database, number, "blacklist export", arguments, action)
    session.emit(data, f"{target}: {data['kind']} of version {data['version']}, {data['bytes']} bytes")


def _signer(session: Session, office: Installation) -> SigningKey:
    """The signing key, which is made at its first use: a dry run is none."""
    if session.dry_run and not office.signer_file.exists():
        raise ConfigError("the lists' signing key would be made now: leave --dry-run out")
    return office.signer


@command.command()
@permitted(Permission.BLACKLIST_EXPORT)
def key(session: Session, office: Installation) -> None:
    """Show the public key that terminals check lists with (list_root_key in their configuration)."""
    public = _signer(session, office).public
    session.emit({"list_root_key": public}, public.hex())
