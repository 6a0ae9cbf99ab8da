"""``onecard doctor``: what is wrong with this installation, and what to do."""

from __future__ import annotations

import importlib.util
import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from backoffice import keystores
from backoffice.installation import is_made
from cardlib.errors import CheckFailed, OneCardError
from console import LeafCommand, Session, pass_session

ROOMS = ("cardlib", "keymgmt", "simulator", "terminals", "backoffice")
HOME = Path(__file__).parent.parent.parent


class Check(NamedTuple):
    """One thing looked at; ``fatal`` when nothing works without it."""

    what: str
    good: bool
    found: str
    advice: str = ""
    fatal: bool = True


def _rooms() -> Iterator[Check]:
    """The folder names are import names: something else of that name would be imported instead."""
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        place = Path(spec.origin).parent.parent if spec and spec.origin else None
        advice = f"another package named {room} is in the way: install onecard into an environment of its own"
        yield Check(f"package {room}", place == HOME, str(place), advice)


def _python() -> Check:
    return Check("Python 3.11 or newer", sys.version_info >= (3, 11), platform.python_version(), "install a newer one")


def _sqlite() -> Check:
    good = sqlite3.sqlite_version_info >= (3, 37)
    return Check("SQLite 3.37 or newer", good, sqlite3.sqlite_version, "install a newer Python or libsqlite3")


def _readers() -> Check:
    try:
        from cardlib import pcsc  # noqa: PLC0415  # pyscard is optional

        names = pcsc.list_readers()
    except OneCardError as e:
        return Check("PC/SC readers", False, "none", str(e), fatal=False)
    return Check("PC/SC readers", bool(names), ", ".join(names) or "none", "plug a reader in", fatal=False)


def _installation(folder: Path) -> Check:
    advice = "run `onecard init`, or name its directory with --db"
    return Check("installation", is_made(folder), str(folder), advice, fatal=False)


def _keys(folder: Path) -> Check:
    """Where the keys are, without opening them."""
    try:
        token = keystores.read(folder)
        if token is None:
            return Check("key store", True, "file")
        from keymgmt.pkcs11 import find_token  # noqa: PLC0415  # only with a module

        find_token(token.module, token.label)
    except OneCardError as e:
        return Check("key store", False, "none", str(e))
    return Check("key store", True, f"token {token.label} of {token.module.name}")


def _line(check: Check) -> str:
    return f"ok      {check.what}: {check.found}" if check.good else f"WRONG   {check.what}: {check.advice}"


@click.command("doctor", cls=LeafCommand)
@pass_session
def command(session: Session) -> None:
    """Check Python, packages, readers and the directory of --db. Exit code 8 when something essential is wrong."""
    folder = session.db
    looks: list[Callable[[], Check]] = [
        _python,
        _sqlite,
        _readers,
        lambda: _installation(folder),
        lambda: _keys(folder),
    ]
    checks = [*_rooms(), *(look() for look in looks)]
    session.emit([check._asdict() for check in checks], [_line(check) for check in checks])
    wrong = [check.what for check in checks if check.fatal and not check.good]
    if wrong:
        raise CheckFailed(f"{len(wrong)} essential things are wrong: {', '.join(wrong)}")
