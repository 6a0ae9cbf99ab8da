"""What the back office's commands share: who acts and may he, one outcome per request id, dry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import click

from backoffice import requests
from backoffice.database import Database, Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.requests import Outcome
from console import Session, pass_session

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
            office = open_installation(session, platform=platform, migrate=migrate)
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
