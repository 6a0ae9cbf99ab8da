"""``onecard wallet``: money to and from the card in the reader, and what the books say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from backoffice import ledger, wallet
from backoffice.commands.base import Absent, open_card, permitted
from backoffice.installation import Installation
from backoffice.jobs import Result
from backoffice.operators import Permission
from backoffice.station import Office
from cardlib.errors import OutcomeUnknown, Refused
from cardlib.money import yuan
from cardlib.profile import Purse
from cardlib.transport import Transport
from console import AMOUNT, Hex, Noun, Session
from keymgmt.steps import read_identity

Act = Callable[[Office, Transport, bytes], Result]
card_option = click.option("--card", type=Hex(8), help="Serial that the card must have.")


@click.group(cls=Noun)
def command() -> None:
    """Money to and from the card in the reader, and what the books say of it."""


def _serial(card: Transport, expected: bytes | None, number: int) -> bytes:
    if expected is not None:
        return expected
    if isinstance(card, Absent):
        return card.serial
    identity = read_identity(card)
    if identity is None or not identity.wash_version:
        raise Refused("no_application", f"this card is not washed: no application of enterprise {number} yet")
    return identity.serial


def _at_reader(session: Session, office: Installation, expected: bytes | None, act: Act) -> None:
    """One job with the card in the reader; a torn one says how to go on."""
    session.refuse_dry_run("money on a card can't be tried out")
    card = open_card(session, office)
    try:
        outcome = act(office.office(), card, _serial(card, expected, office.enterprise_id))
    except OutcomeUnknown as e:
        again = f"{e}. Present the same card and run the same command again: money moves once"
        raise OutcomeUnknown(e.journal_id, again) from e
    session.emit(outcome)


@command.command()
@click.argument("amount", type=AMOUNT)
@click.option("--account", default=ledger.BANK, show_default=True, help="Who paid: bank, cash/DRAWER, vouchers.")
@card_option
@permitted(Permission.WALLET_RECHARGE)
def recharge(session: Session, office: Installation, amount: int, account: str, card: bytes | None) -> None:
    """Load AMOUNT (yuan) into the main purse of the card in --reader."""
    request_id = session.request_id or None

    def act(desk: Office, chip: Transport, serial: bytes) -> Result:
        return wallet.recharge(desk, office.operator, chip, serial, amount, account=account, request_id=request_id)

    _at_reader(session, office, card, act)


@command.command()
@click.argument("amount", type=AMOUNT)
@card_option
@permitted(Permission.WALLET_SUBSIDY)
def subsidy(session: Session, office: Installation, amount: int, card: bytes | None) -> None:
    """Load AMOUNT (yuan) of subsidy into the subsidy purse of the card in --reader."""
    request_id = session.request_id or None
    _at_reader(
        session, office, card,
        lambda desk, chip, serial: wallet.subsidise(desk, office.operator, chip, serial, amount, request_id=request_id),
    )  # fmt: skip


@command.command()
@click.argument("amount", type=AMOUNT)
@card_option
@permitted(Permission.WALLET_REFUND)
def refund(session: Session, office: Installation, amount: int, card: bytes | None) -> None:
    """Take AMOUNT (yuan) off the main purse of the card in --reader and owe it to the holder."""
    request_id = session.request_id or None
    _at_reader(
        session, office, card,
        lambda desk, chip, serial: wallet.refund(desk, office.operator, chip, serial, amount, request_id=request_id),
    )  # fmt: skip


@command.command()
@card_option
@permitted(Permission.WALLET_REFUND)
def expire(session: Session, office: Installation, card: bytes | None) -> None:
    """Take what has expired off both purses of the card in --reader."""
    request_id = session.request_id or None
    _at_reader(
        session, office, card,
        lambda desk, chip, serial: wallet.expire(desk, office.operator, chip, serial, request_id=request_id),
    )  # fmt: skip


@command.command()
@click.argument("payment")
@permitted(Permission.WALLET_REFUND)
def undo(session: Session, office: Installation, payment: str) -> None:
    """Give PAYMENT (a posted record's id) back to the card in --reader, once, whatever terminal took it."""
    request_id = session.request_id or None
    _at_reader(
        session, office, b"",
        lambda desk, chip, _: wallet.undo(desk, office.operator, chip, payment, request_id=request_id),
    )  # fmt: skip


@command.command()
@click.argument("card", type=Hex(8))
@permitted(Permission.WALLET_SHOW)
def balance(session: Session, office: Installation, card: bytes) -> None:
    """Show what the books hold for both purses of CARD (its serial)."""
    with office.database.read() as tx:
        held = {p: ledger.balance(tx, office.enterprise_id, ledger.card_account(card, p)) for p in Purse}
    data: dict[str, Any] = {"card": card} | {f"{p.name.lower()}_fen": fen for p, fen in held.items()}
    session.emit(data, [f"{p.name.lower():<8} {yuan(fen)}" for p, fen in held.items()])


@command.command()
@click.argument("card", type=Hex(8))
@click.option(
    "--purse", type=click.Choice([p.name.lower() for p in Purse]), default="main", show_default=True, help="Which one."
)
@permitted(Permission.WALLET_SHOW)
def statement(session: Session, office: Installation, card: bytes, purse: str) -> None:
    """List the entries of one purse of CARD (its serial)."""
    account = ledger.card_account(card, Purse[purse.upper()])
    with office.database.read() as tx:
        rows = ledger.statement(tx, office.enterprise_id, account)
    session.emit([{key: row[key] for key in row.keys()} for row in rows])  # noqa: SIM118  # a row's keys
