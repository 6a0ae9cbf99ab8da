"""Verbs of washing SAMs."""

from __future__ import annotations

import click

from backoffice.commands.base import permitted
from backoffice.commands.wash import options, wash_many, wash_one
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.washing import Wish
from cardlib.profile import CardKind
from console import Noun, Session


@click.group(cls=Noun)
def command() -> None:
    """Washing of SAMs."""


@command.command()
@options(one=True)
@permitted(Permission.CARD_WASH, platform=True)
def wash(
    session: Session, office: Installation, key_version: int, batch_id: str | None, chip: str | None, try_again: bool
) -> None:
    """Replace the vendor's key of the SAM in --reader by ours, and give it its serial; --enterprise says whose it is.

    Its transport key comes from the batch file that names its chip, else it is asked for. A wrong one is tried
    once. Interrupted, the same command goes on. --dry-run shows the plan for this SAM.
    """
    number = session.need_enterprise()
    wish = Wish(CardKind.SAM, batch_id, chip, key_version, number, try_again)
    arguments = {"enterprise": number, "key_version": key_version, "batch": batch_id, "chip": chip}
    wash_one(session, office, "sam wash", wish, arguments)


@command.command("wash-batch")
@options(one=False)
@permitted(Permission.CARD_WASH, platform=True)
def wash_batch(session: Session, office: Installation, key_version: int, batch_id: str | None) -> None:
    """Wash one SAM after another, all for --enterprise. Stopped, the same command goes on.

    Asks for one SAM after another; with --reader sim:FOLDER it washes all images there.
    """
    wash_many(session, office, Wish(CardKind.SAM, batch_id, None, key_version, session.need_enterprise()))
