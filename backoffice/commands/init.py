"""``onecard init``: an empty directory becomes an installation."""

from __future__ import annotations

import click

from backoffice.commands.base import open_installation
from console import LeafCommand, Session, pass_session


@click.command("init", cls=LeafCommand)
@pass_session
def command(session: Session) -> None:
    """Make databases, root keys and the first operator in the directory of --db.

    Asks for the operator's secret and for the passphrase of the key store, each twice; without a person they come
    from ONECARD_OPERATOR_SECRET_FILE and ONECARD_KEY_PASSPHRASE_FILE. Keep both: nothing can bring them back.
    """
    office = open_installation(session)
    if session.dry_run:
        office.require_none()
        session.emit({"directory": session.db, "dry_run": True}, f"would make an installation in {session.db}")
        return
    secret = session.secret("operator secret", new=True)
    passphrase = session.secret("key passphrase", new=True)
    office.create(secret, passphrase)
    session.emit(
        {"directory": session.db, "operator": session.operator},
        [
            f"Installation made in {session.db}; its first operator is {session.operator} (role platform).",
            "Next: onecard enterprise register --enterprise 1 'Name of the enterprise'",
        ],
    )
