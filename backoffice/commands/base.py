"""What the back office's commands share: who acts and may he, one outcome per request id, dry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from backoffice import jobs, requests
from backoffice.database import Database, Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.requests import Outcome
from cardlib.errors import CardRemoved, ConfigError
from cardlib.transport import Transport
from console import Session, pass_session, plain

P = ParamSpec("P")


class _DryRunError(Exception):
    """Rolls a dry run's transaction back."""


def _roll_back() -> None:
    raise _DryRunError


def open_installation(session: Session, *, platform: bool = False, migrate: bool = False) -> Installation:
    """The installation of this invocation, closed at its end."""
    who, number = session.operator, session.enterprise
    purpose = click.get_current_context().command_path.partition(" ")[2]
    made = Installation(
        session.db, session.secret, operator=who, enterprise_id=number, purpose=purpose, platform=platform,
        migrate=migrate,
    )  # fmt: skip
    return session.keep(made)


def permitted(
    permission: Permission, *, platform: bool = False, migrate: bool = False
) -> Callable[[Callable[Concatenate[Session, Installation, P], None]], Callable[P, None]]:
    """Give a command its session and installation once its operator proved who he is and may do this.

    ``platform``: it is an act of the platform, whichever enterprise it is about. ``migrate`` brings the databases
    up to date first: operators are kept in them.
    """

    def decorate(command: Callable[Concatenate[Session, Installation, P], None]) -> Callable[P, None]:
        @pass_session
        @wraps(command)
        def run(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> None:
            office = open_installation(session, platform=platform, migrate=migrate and not session.dry_run)
            office.require(permission)
            command(session, office, *args, **kwargs)

        run.permission = permission  # type: ignore[attr-defined]  # tests ask every command for it
        return run

    return decorate


@contextmanager
def changing(session: Session, db: Database) -> Iterator[Tx]:
    """A write transaction; under ``--dry-run`` it is rolled back at its end, after every check was made."""
    try:
        with db.write() as tx:
            yield tx
            if session.dry_run:
                _roll_back()
    except _DryRunError:
        session.note("dry run: all checks passed, nothing was changed")


def act(
    session: Session,
    db: Database,
    enterprise_id: int,
    command: str,
    arguments: Mapping[str, Any],
    action: Callable[[Tx], Outcome],
) -> Outcome:
    """Run an action in one transaction, once per request id; under ``--dry-run`` check everything, change nothing."""
    if session.dry_run:
        with changing(session, db) as tx:
            outcome = action(tx)
        return {**outcome, "dry_run": True}
    return requests.once(db, enterprise_id, session.request_id or None, command, arguments, action)


def act_outside(
    session: Session,
    db: Database,
    enterprise_id: int,
    command: str,
    arguments: Mapping[str, Any],
    action: Callable[[], Any],
) -> Any:  # noqa: ANN401  # any JSON value
    """The same for an act on files, keys or a card; what a dry run leaves out is up to the action."""
    request_id = None if session.dry_run else session.request_id or None
    done = requests.around(db, enterprise_id, request_id, command, arguments, lambda: {"data": plain(action())})
    return done["data"]


def digest(file: Path) -> str:
    """SHA-256 of a file: what stands for it among a request's arguments. Raises ConfigError."""
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError as e:
        raise ConfigError(f"{file} can't be read: {e.strerror}") from e


class Absent:
    """Stands for the card of a request that has its outcome; ``serial`` is the card's, where it is known."""

    atr = b""

    def __init__(self, subject: str) -> None:
        try:
            self.serial = bytes.fromhex(subject)
        except ValueError:
            self.serial = b""

    def transceive(self, command: bytes) -> bytes:  # noqa: ARG002  # a transport's signature
        """Never gets here: the outcome is known."""
        raise CardRemoved("no card was opened: the request has its outcome")

    def close(self) -> None:
        """Nothing was opened."""


def open_card(session: Session, office: Installation, reader: str | None = None) -> Transport:
    """The card in --reader (or another); where the request id has its outcome already, none is needed."""
    if session.request_id:
        with office.database.read() as tx:
            known = jobs.by_request(tx, office.enterprise_id, session.request_id)
        if known is not None and known.state != "running":
            return Absent(known.subject)
    return session.open_card(reader)
