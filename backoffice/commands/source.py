"""Where an enterprise's keys come from in a command: the key store, or --mother and --authentication."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import click

from backoffice.installation import Installation
from cardlib.errors import ConfigError
from console import Session
from keymgmt.delivery import KeySource, StoreKeys, require_enterprise

P = ParamSpec("P")
Source = Callable[[], KeySource]
"""Opens the source when it is needed: once for a command."""


def key_source(
    command: Callable[Concatenate[Session, Installation, Source, P], None],
) -> Callable[Concatenate[Session, Installation, P], None]:
    """Give a command, below ``permitted``, the source that its operator chose.

    With a mother card its PIN and the authentication card's are asked for, and no key passphrase. Opening raises
    ConfigError when only one reader was named, Conflict for another enterprise's card, and what ``MotherCard`` raises.
    """

    @click.option("--mother", "mother_reader", help="Reader of a mother card: keys come from it, not from the store.")
    @click.option("--authentication", "other_reader", help="Reader of the mother card's authentication card.")
    @wraps(command)
    def run(session: Session, office: Installation, /, *args: P.args, **kwargs: P.kwargs) -> None:
        mother, other = kwargs.pop("mother_reader", None), kwargs.pop("other_reader", None)

        def source() -> KeySource:
            if mother is None and other is None:
                return StoreKeys(office.keys, office.enterprise_id)
            if mother is None or other is None:
                raise ConfigError(
                    "a mother card opens with its authentication card: give --mother and --authentication"
                )
            from keymgmt.mothercard import MotherCard, Pins  # noqa: PLC0415  # only with a mother card

            pins = Pins(pin(session, "mother pin"), pin(session, "authentication pin"))
            keys = MotherCard(session.open_card(str(mother)), session.open_card(str(other)), pins)
            require_enterprise(keys, office.enterprise_id)
            return keys

        command(session, office, source, *args, **kwargs)

    return run


def pin(session: Session, name: str, *, new: bool = False) -> bytes:
    """Ask for the PIN of a SAM or mother card: 4 to 12 hexadecimal digits. Raises ConfigError for anything else."""
    try:
        value = bytes.fromhex(session.secret(name, new=new))
    except ValueError:
        value = b""
    if not 2 <= len(value) <= 6:
        raise ConfigError(f"the {name} is 4 to 12 hexadecimal digits, an even number of them")
    return value
