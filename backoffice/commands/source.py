"""Where an enterprise's keys come from in a command: the key store, or --mother and --authentication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec

import click

from backoffice.installation import Installation
from cardlib.errors import ConfigError
from console import Session
from keymgmt.delivery import AuditedKeys, KeySource, StoreKeys, require_enterprise

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Source:
    """What its operator chose; ``mother`` and ``authentication`` are readers, or None for the key store."""

    session: Session
    office: Installation
    mother: str | None
    authentication: str | None

    @property
    def is_mother(self) -> bool:
        """Whether keys come from a mother card."""
        return self.mother is not None or self.authentication is not None

    def __call__(self) -> KeySource:
        """Open it, once for a command.

        With a mother card its PIN and the authentication card's are asked for, and no key passphrase. Raises
        ConfigError when only one reader was named, Conflict for another enterprise's card, what ``MotherCard`` raises.
        """
        if not self.is_mother:
            return StoreKeys(self.office.keys, self.office.enterprise_id)
        if self.mother is None or self.authentication is None:
            raise ConfigError("a mother card opens with its authentication card: give --mother and --authentication")
        from backoffice.commands.mother import open_mother  # noqa: PLC0415  # only with a mother card

        keys = open_mother(self.session, self.mother, self.authentication)
        require_enterprise(keys, self.office.enterprise_id)
        return AuditedKeys(keys, self.office.uses)


def key_source(
    command: Callable[Concatenate[Session, Installation, Source, P], None],
) -> Callable[Concatenate[Session, Installation, P], None]:
    """Give a command, below ``permitted``, the source that its operator chose."""

    @click.option("--mother", "mother_reader", help="Reader of a mother card: keys come from it, not from the store.")
    @click.option("--authentication", "other_reader", help="Reader of the mother card's authentication card.")
    @wraps(command)
    def run(session: Session, office: Installation, /, *args: P.args, **kwargs: P.kwargs) -> None:
        readers = (kwargs.pop(name, None) for name in ("mother_reader", "other_reader"))
        source = Source(session, office, *(None if reader is None else str(reader) for reader in readers))
        command(session, office, source, *args, **kwargs)

    return run


def pin(session: Session, name: str, *, new: bool = False) -> bytes:
    """Ask for a SAM's PIN: 4 to 12 hexadecimal digits. Raises ConfigError for anything else."""
    try:
        value = bytes.fromhex(session.secret(name, new=new))
    except ValueError:
        value = b""
    if not 2 <= len(value) <= 6:
        raise ConfigError(f"the {name} is 4 to 12 hexadecimal digits, an even number of them")
    return value
