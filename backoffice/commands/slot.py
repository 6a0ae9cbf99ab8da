"""``onecard card``, the platform's part beside washing: room for an enterprise's application."""

from __future__ import annotations

from typing import Any

import click

from backoffice import cards, enterprises
from backoffice.commands.base import act_outside, permitted
from backoffice.database import PLATFORM
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.errors import Conflict
from cardlib.profile import Purpose
from console import Noun, Session
from keymgmt.keys import KeyRef
from keymgmt.slot import SlotPlan
from keymgmt.steps import FileSteps, read_identity


@click.group(cls=Noun)
def command() -> None:
    """Cards: wash, issue, lose, unlock, reissue, cancel."""


@command.command("open-slot")
@click.option("--slot-version", type=click.IntRange(1, 255), default=1, show_default=True, help="Slot key to write.")
@click.option("--label", default="ONECARD", show_default=True, help="What phones and readers call the application.")
@permitted(Permission.CARD_SLOT, platform=True)
def open_slot_command(session: Session, office: Installation, slot_version: int, label: str) -> None:
    """Make room for the application of --enterprise on the washed card in --reader; the enterprise then issues it.

    The enterprise can do so with its mother card alone. An interrupted slot is made again by the same command.
    """
    number = office.enterprise_id
    arguments = {"enterprise": number, "slot_version": slot_version, "label": label}

    def action() -> dict[str, Any]:
        with office.platform.read() as tx:
            enterprises.require_active(tx, number)
        card = session.open_card()
        identity = read_identity(card)
        if identity is None or not identity.wash_version:
            raise Conflict("this card is not washed yet: run onecard card wash with it first")
        control = office.keys.handle(KeyRef(Purpose.SLOT, slot_version, number))
        plan = SlotPlan(
            f"slot {identity.serial.hex()}.{number}", identity.serial, number, label, control.algorithm,
            slot_version=slot_version,
        )  # fmt: skip
        plan.check()
        if session.dry_run:
            return {"card": identity.serial, "enterprise": number, "dry_run": True}
        steps = session.keep(FileSteps(office.folder / "cards.steps"))
        made = cards.prepare_slot(office.platform, office.operator, card, plan, office.keys, steps)
        return {"card": identity.serial, "enterprise": number, "slot": made}

    session.emit(act_outside(session, office.platform, PLATFORM, "card open-slot", arguments, action))
