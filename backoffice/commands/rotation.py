"""``onecard key``, rotation: from one key version to the next, without recalling cards."""

from __future__ import annotations

import click

from console import Noun


@click.group(cls=Noun)
def command() -> None:
    """Rotation: from one key version to the next, without recalling cards."""
