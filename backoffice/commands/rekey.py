"""``onecard card``, rotation: the card in the reader gets the enterprise's active keys."""

from __future__ import annotations

import click

from backoffice import cards
from backoffice.commands.base import Absent, open_card, permitted
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.errors import Conflict
from console import Hex, Noun, Session
from keymgmt.rotate import RekeyPlan
from keymgmt.steps import read_identity


@click.group(cls=Noun)
def command() -> None:
    """Rotation of the card in the reader."""


@command.command()
@click.option("--card", type=Hex(8), help="Serial that the card must have.")
@permitted(Permission.CARD_ISSUE)
def rekey(session: Session, office: Installation, card: bytes | None) -> None:
    """Give the card in --reader the enterprise's active keys (second washing), or finish one that was torn.

    Money, PIN and contents stay. Recharge, refund, subsidy, reissue do this first by themselves. --dry-run shows the
    plan.
    """
    desk, chip = office.office(), open_card(session, office)
    if isinstance(chip, Absent):
        serial = chip.serial
    else:
        identity = read_identity(chip)
        if identity is None or not identity.wash_version:
            raise Conflict("this card is not washed yet: it has no keys of the enterprise to renew")
        serial = card or identity.serial
    if session.dry_run:
        lines = RekeyPlan("dry run", serial, office.enterprise_id, desk.key_set).lines()
        session.emit({"plan": lines, "dry_run": True}, lines)
        return
    request_id = session.request_id or None
    session.emit(cards.update_keys(desk, office.operator, chip, serial, request_id=request_id))
