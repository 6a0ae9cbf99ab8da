"""``onecard wallet``: money to and from the card in the reader, and what the books say of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from backoffice import airqueue, ledger, subsidies, vouchers, wallet
from backoffice.commands.air import OVER_THE_AIR, settle, way_options
from backoffice.commands.air import server as air_server
from backoffice.commands.base import Absent, act, changing, open_card, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.jobs import Result
from backoffice.operators import Permission
from backoffice.station import Office
from cardlib.errors import ConfigError, OutcomeUnknown, Refused
from cardlib.money import yuan
from cardlib.profile import Purse
from cardlib.transport import Transport
from console import AMOUNT, Hex, Noun, Session, write_secret
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
@click.option("--over-the-air", is_flag=True, help=OVER_THE_AIR)
@way_options
@permitted(Permission.WALLET_RECHARGE)
def recharge(
    session: Session, office: Installation, /, amount: int, account: str, card: bytes | None, over_the_air: bool,
    **way: Any,  # noqa: ANN401  # options of the way
) -> None:  # fmt: skip
    """Load AMOUNT (yuan) into the main purse of the card in --reader.

    With --over-the-air --card SERIAL it is queued, and sent at once where --smpp or --phone says how.
    """
    if over_the_air:
        _over_the_air(session, office, card, {"amount_fen": amount, "account": account}, way)
        return
    request_id = session.request_id or None

    def act(desk: Office, chip: Transport, serial: bytes) -> Result:
        return wallet.recharge(desk, office.operator, chip, serial, amount, account=account, request_id=request_id)

    _at_reader(session, office, card, act)


def _over_the_air(
    session: Session, office: Installation, card: bytes | None, arguments: dict[str, Any], way: dict[str, Any]
) -> None:
    if card is None:
        raise ConfigError("over the air a card is named: give --card SERIAL")
    with changing(session, office.database) as tx:
        job = airqueue.queue(
            tx, office.operator, office.enterprise_id, "recharge", card, arguments, session.request_id or None
        )
    server = None if session.dry_run else air_server(session, office, way)
    session.emit(settle(server.one(job.air_id) if server else job))


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


@command.group("voucher")
def voucher_group() -> None:
    """Vouchers: number and secret on paper, good for one recharge at a terminal with a line."""


@voucher_group.command("make")
@click.argument("batch")
@click.argument("count", type=int)
@click.argument("amount", type=AMOUNT)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--expires", required=True, help="Last day on which they are good, like 2027-12-31.")
@permitted(Permission.WALLET_RECHARGE)
def make_vouchers(
    session: Session, office: Installation, batch: str, count: int, amount: int, file: Path, expires: str
) -> None:
    """Make COUNT vouchers of AMOUNT (yuan) as BATCH and write them to the new FILE: nobody can show them again."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        made = vouchers.make(tx, office.operator, number, batch, count, amount, expires, office.random_bytes)
        if not session.dry_run:
            lines = [
                "number,secret,yuan,expires",
                *(f"{one.number},{one.secret},{yuan(amount)},{expires}" for one in made),
            ]
            write_secret(file, "\n".join(lines) + "\n")
        return {"batch": batch, "vouchers": count, "amount_fen": amount, "file": str(file)}

    arguments = {"batch": batch, "count": count, "amount_fen": amount, "file": str(file), "expires": expires}
    session.emit(act(session, office.database, number, "wallet voucher make", arguments, action))


@voucher_group.command("list")
@permitted(Permission.WALLET_SHOW)
def list_vouchers(session: Session, office: Installation) -> None:
    """List batches of vouchers: how many there are, used, cancelled."""
    with office.database.read() as tx:
        found = vouchers.batches(tx, office.enterprise_id)
    session.emit([one._asdict() for one in found])


@voucher_group.command("cancel")
@click.argument("batch")
@permitted(Permission.WALLET_RECHARGE)
def cancel_vouchers(session: Session, office: Installation, batch: str) -> None:
    """Make what is not used of BATCH void."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        return {"batch": batch, "cancelled": vouchers.cancel(tx, office.operator, number, batch)}

    session.emit(act(session, office.database, number, "wallet voucher cancel", {"batch": batch}, action))


@command.group("grant")
def grant_group() -> None:
    """Subsidies that members claim at a recharge terminal."""


@grant_group.command("make")
@click.argument("batch")
@click.argument("period", type=int)
@click.argument("amount", type=AMOUNT)
@click.option("--expires", required=True, help="Last day on which they can be claimed, like 2027-01-31.")
@click.option(
    "--way", type=click.Choice([way.value for way in subsidies.Way]), default="add", show_default=True,
    help="Add to what the purse holds, or fill it up to the amount (the rest is zeroed).",
)  # fmt: skip
@click.option("--member", "named", multiple=True, help="For this member, again for others. [default: all active]")
@permitted(Permission.WALLET_SUBSIDY)
def make_grants(
    session: Session,
    office: Installation,
    batch: str,
    period: int,
    amount: int,
    expires: str,
    way: str,
    named: tuple[str, ...],
) -> None:
    """Grant members AMOUNT (yuan) for a PERIOD (a number like 202612) as BATCH, to be claimed once each."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        made = subsidies.grant(tx, office.operator, number, batch, period, amount, subsidies.Way(way), expires, named)
        return {"batch": batch, "period": period, "amount_fen": amount, "members": made}

    arguments = {
        "batch": batch, "period": period, "amount_fen": amount, "expires": expires, "way": way,
        "members": sorted(named),
    }  # fmt: skip
    session.emit(act(session, office.database, number, "wallet grant make", arguments, action))


@grant_group.command("list")
@permitted(Permission.WALLET_SHOW)
def list_grants(session: Session, office: Installation) -> None:
    """List batches of subsidies: for how many members, how many of them have claimed."""
    with office.database.read() as tx:
        found = subsidies.listing(tx, office.enterprise_id)
    session.emit([one._asdict() for one in found])
