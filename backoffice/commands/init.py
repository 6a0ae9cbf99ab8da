"""``onecard init``: an empty directory becomes an installation."""

from __future__ import annotations

from pathlib import Path

import click

from backoffice import keystores
from backoffice.commands.base import open_installation
from backoffice.keystores import Token
from cardlib.errors import ConfigError
from console import LeafCommand, Session, pass_session


@click.command("init", cls=LeafCommand)
@click.option("--hsm", "module", type=click.Path(path_type=Path), help="Keep keys in a token of this PKCS#11 module.")
@click.option("--token", "label", help="Label of the token, with --hsm.")
@click.option("--without-keys", is_flag=True, help="Make no root key: they come by ceremony or key block.")
@pass_session
def command(session: Session, module: Path | None, label: str | None, without_keys: bool) -> None:
    """Make databases, root keys and the first operator in the directory of --db.

    Asks for the operator's secret and for the passphrase of the key store, each twice; without a person they come
    from ONECARD_OPERATOR_SECRET_FILE and ONECARD_KEY_PASSPHRASE_FILE. Keep both: nothing can bring them back.

    With --hsm and --token the keys are made in that token of a hardware module, and none ever leaves it. It must be
    initialised and have a user PIN, which is asked for (ONECARD_HSM_PIN_FILE). Keys that the token has already are
    used as they are. The passphrase then protects what no module keeps: the keys that sign blacklists.
    """
    if (module is None) != (label is None):
        raise ConfigError("--hsm and --token go together: the module's file and the token's label")
    office = open_installation(session)
    office.require_none()
    token = keystores.choose(session.db, Token(module.absolute(), label) if module and label is not None else None)
    made = {"directory": session.db, "operator": session.operator, "token": token.label if token else None}
    where = f"{session.db}, its keys in token {token.label}" if token else f"{session.db}"
    if token is not None:
        from keymgmt.pkcs11 import find_token  # noqa: PLC0415  # only with a module

        token.check()
        find_token(token.module, token.label)
    if session.dry_run:
        session.emit({**made, "dry_run": True}, f"would make an installation in {where}")
        return
    secret = session.secret("operator secret", new=True)
    passphrase = session.secret("key passphrase", new=True)
    found = office.create(secret, passphrase, token=token, roots=not without_keys)
    session.emit(
        {**made, "keys_found": found},
        [
            f"Installation made in {where}; its first operator is {session.operator} (role platform).",
            *([f"The token had {found} keys already: they are used as they are."] if found else []),
            "Next: onecard enterprise register --enterprise 1 'Name of the enterprise'",
        ],
    )
