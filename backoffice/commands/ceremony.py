"""``onecard key``, ceremonies: a root key from components or shares; key blocks between systems."""

from __future__ import annotations

import click

from console import Noun


@click.group(cls=Noun)
def command() -> None:
    """Ceremonies: a root key from components or shares; key blocks between systems."""
