"""``onecard key``, mother cards and their authentication cards."""

from __future__ import annotations

import click

from console import Noun


@click.group(cls=Noun)
def command() -> None:
    """Mother cards and their authentication cards."""
