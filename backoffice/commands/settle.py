"""``onecard settle``: journals in, every record judged and posted, what is missing or wrong named."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from backoffice import audit, expiry, journals, ledger, operators, reconcile, settlement
from backoffice.commands.base import act, act_outside, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Operator, Permission
from cardlib.errors import CheckFailed, ConfigError
from cardlib.money import yuan
from cardlib.profile import Purse
from cardlib.records import JournalFile
from console import Hex, Noun, Session

FILE = click.Path(path_type=Path, dir_okay=False)
second_operator = click.option(
    "--second-operator", required=True, help="Who agrees; asked for his secret (ONECARD_SECOND_OPERATOR_SECRET_FILE)."
)


@click.group(cls=Noun)
def command() -> None:
    """Collect journals, verify, post, reconcile, close days."""


def _second(session: Session, office: Installation, name: str) -> Operator:
    """The second operator, who proves himself too."""
    secret = session.secret("second operator secret")
    return operators.authenticate(office.database, office.enterprise_id, name, secret)


@command.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@permitted(Permission.SETTLE_RUN)
def collect(session: Session, office: Installation, files: tuple[Path, ...]) -> None:
    """Take in journal FILES, each record once; a file may come again. Settles nothing yet."""
    raws = []
    for path in files:
        try:
            raws.append(path.read_bytes())
        except OSError as e:
            raise ConfigError(f"{path} can't be read: {e.strerror}") from e
    if session.dry_run:
        parsed = [JournalFile.decode(raw) for raw in raws]
        session.emit([{"terminal": one.terminal, "entries": len(one.entries)} for one in parsed])
        return

    def action() -> list[dict[str, Any]]:
        rows = []
        for path, raw in zip(files, session.progress(raws, len(raws), "journals"), strict=True):
            got = journals.collect(office.database, office.enterprise_id, raw)
            last = JournalFile.decode(raw)
            rows.append(
                {
                    "file": path,
                    "terminal": got.terminal,
                    "records": got.records,
                    "duplicates": got.duplicates,
                    "conflicts": len(got.conflicts),
                    "last_seq": last.first_seq + len(last.entries) - 1,
                }
            )
        return rows

    arguments = {"files": [sha256(raw).hexdigest() for raw in raws]}
    session.emit(act_outside(session, office.database, office.enterprise_id, "settle collect", arguments, action))


@command.command()
@permitted(Permission.SETTLE_RUN)
def run(session: Session, office: Installation) -> None:
    """Verify every TAC, post what is right, name what is not. Running it again changes nothing."""
    session.refuse_dry_run("settling twice changes nothing")
    number, desk = office.enterprise_id, office.office()

    def action() -> dict[str, Any]:
        done = settlement.settle(office.database, number, desk.host(), desk.offset_min)
        with office.database.write() as tx:
            ledger.seal(tx, number)
            audit.seal(tx, number)
        return {"entries": done.entries} | {verdict.value: count for verdict, count in sorted(done.verdicts.items())}

    session.emit(act_outside(session, office.database, number, "settle run", {}, action))


@command.command()
@permitted(Permission.SETTLE_SHOW)
def findings(session: Session, office: Installation) -> None:
    """List forged, doubled, contradicting and refused records by name; exit code 8 when there are any."""
    with office.database.read() as tx:
        found = settlement.findings(tx, office.enterprise_id)
    session.emit([one._asdict() for one in found])
    if found:
        raise CheckFailed(f"{len(found)} records need a look")


@command.command()
@permitted(Permission.SETTLE_SHOW)
def gaps(session: Session, office: Installation) -> None:
    """List the purses of which records are missing, and how much money that is."""
    with office.database.read() as tx:
        found = reconcile.gaps(tx, office.enterprise_id)
    session.emit(
        [
            {
                "card": gap.card_serial,
                "purse": gap.purse.name.lower(),
                "certain_fen": gap.certain.balance_fen,
                "missing_offline": gap.missing_offline,
                "missing_online": gap.missing_online,
                "outstanding_fen": gap.outstanding_fen,
            }
            for gap in found
        ]
    )


@command.command("reconcile")
@permitted(Permission.SETTLE_SHOW)
def reconcile_command(session: Session, office: Installation) -> None:
    """Compare each purse's books with what its card said last; exit code 8 when something is unexplained."""
    with office.database.read() as tx:
        found = reconcile.reconcile(tx, office.enterprise_id)
    session.emit(
        [
            {
                "card": one.card_serial,
                "purse": one.purse.name.lower(),
                "books": yuan(one.books_fen),
                "card_says": yuan(one.card_fen),
                "causes": list(one.causes),
                "unexplained_fen": one.unexplained_fen,
            }
            for one in found
        ]
    )
    unexplained = [one for one in found if one.unexplained_fen]
    if unexplained:
        raise CheckFailed(f"{len(unexplained)} purses differ from their books without a known cause")


@command.command("close-day")
@click.argument("day")
@click.option("--accept", multiple=True, help="TERMINAL=REASON: close without this terminal's journal.")
@permitted(Permission.SETTLE_CLOSE)
def close_day(session: Session, office: Installation, day: str, accept: tuple[str, ...]) -> None:
    """Close DAY (YYYY-MM-DD) when every terminal's journal is in, or its absence accepted by name."""
    accepted = {}
    for text in accept:
        terminal, equals, reason = text.partition("=")
        if not equals or not reason:
            raise ConfigError("write --accept TERMINAL=REASON")
        accepted[Hex(6).convert(terminal, None, None)] = reason
    number, offset_min = office.enterprise_id, office.enterprise.utc_offset_minutes

    def action(tx: Tx) -> dict[str, Any]:
        changed = reconcile.close_day(tx, office.operator, number, day, accepted, offset_min)
        return {"day": day, "state": "closed", "changed": changed}

    session.emit(act(session, office.database, number, "settle close-day", {"day": day, "accept": accept}, action))


@command.command()
@permitted(Permission.SETTLE_CLOSE)
def expire(session: Session, office: Installation) -> None:
    """Once the enterprise's date is over, make void what cards hold. Again, it goes on with what was left."""
    number, offset_min = office.enterprise_id, office.enterprise.utc_offset_minutes

    def action() -> dict[str, Any]:
        with office.database.read() as tx:
            date, total = expiry.date_over(tx, number, offset_min), expiry.accounts(tx, number)
        found = expiry.expire(office.database, office.operator, number, offset_min, dry_run=session.dry_run)
        purses, fen, left = 0, 0, []
        for one in session.progress(found, total, "purses"):
            row = {"card": one.card_serial, "purse": one.purse.name.lower(), "amount_fen": one.amount_fen}
            if one.left:
                left.append(row | {"cause": one.left})
            else:
                purses, fen = purses + 1, fen + one.amount_fen
            if session.dry_run:
                session.note(
                    f"{one.card_serial.hex().upper()} {row['purse']} {yuan(one.amount_fen)} {one.left}".strip()
                )
        return {"date": date, "purses": purses, "expired_fen": fen, "left": left, "dry_run": session.dry_run}

    session.emit(act_outside(session, office.database, number, "settle expire", {}, action))


@command.command()
@click.argument("card", type=Hex(8))
@click.argument("purse", type=click.Choice([p.name.lower() for p in Purse]))
@click.option("--reason", required=True, help="Why, for the books.")
@permitted(Permission.LEDGER_CORRECT)
def unexpire(session: Session, office: Installation, card: bytes, purse: str, reason: str) -> None:
    """Propose to give the expired balance of PURSE of CARD back, once; another operator approves the entry."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        made = expiry.propose_reversal(tx, office.operator, number, card, Purse[purse.upper()], reason)
        return {"entry": made.entry_id, "postings": made.postings, "state": "proposed"}

    arguments = {"card": card.hex(), "purse": purse, "reason": reason}
    session.emit(act(session, office.database, number, "settle unexpire", arguments, action))


@command.command("accept-gap")
@click.argument("card", type=Hex(8))
@click.argument("purse", type=click.Choice([p.name.lower() for p in Purse]))
@click.option("--reason", required=True, help="Why, for the audit log.")
@second_operator
@permitted(Permission.LEDGER_CORRECT)
def accept_gap(
    session: Session, office: Installation, card: bytes, purse: str, reason: str, second_operator: str
) -> None:
    """Give up waiting for missing records of PURSE of CARD: books follow the card, the rest goes to differences."""
    second = _second(session, office, second_operator)
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        fen = reconcile.accept_gap(tx, office.operator, second, number, card, Purse[purse.upper()], reason)
        return {"card": card.hex().upper(), "purse": purse, "outstanding_fen": fen}

    arguments = {"card": card.hex(), "purse": purse, "reason": reason, "second": second_operator}
    session.emit(act(session, office.database, number, "settle accept-gap", arguments, action))


@command.command()
@click.argument("entry")
@permitted(Permission.LEDGER_CORRECT)
def approve(session: Session, office: Installation, entry: str) -> None:
    """Approve correction ENTRY that another operator proposed."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        approved = expiry.approve(tx, office.operator, number, entry)
        return {"entry": approved.entry_id, "postings": approved.postings}

    session.emit(act(session, office.database, number, "settle approve", {"entry": entry}, action))


@command.command()
@click.argument("entry")
@click.option("--from", "giver", required=True, help="Account that gives.")
@click.option("--to", "getter", required=True, help="Account that gets.")
@click.option("--amount-fen", type=click.IntRange(1, 2**53), required=True, help="How much, in fen.")
@click.option("--corrects", help="Entry that this puts right.")
@click.option("--note", required=True, help="Why.")
@permitted(Permission.LEDGER_CORRECT)
def propose(
    session: Session, office: Installation, entry: str, giver: str, getter: str, amount_fen: int,
    corrects: str | None, note: str,
) -> None:  # fmt: skip
    """Propose correction ENTRY; it is posted when another operator approves it."""
    if (corrects or entry).startswith("expiry/"):
        raise ConfigError("an expired balance is given back by `onecard settle unexpire CARD PURSE`")
    number = office.enterprise_id
    postings = {giver: -amount_fen, getter: amount_fen}

    def action(tx: Tx) -> dict[str, Any]:
        made = ledger.Entry(
            entry, "correction", tx.now_ms, postings, office.operator.name, corrects=corrects, note=note
        )
        ledger.propose(tx, number, made)
        return {"entry": entry, "state": "proposed"}

    arguments = {"entry": entry, "postings": postings, "corrects": corrects, "note": note}
    session.emit(act(session, office.database, number, "settle propose", arguments, action))


@command.command()
@permitted(Permission.SETTLE_SHOW)
def verify(session: Session, office: Installation) -> None:
    """Prove the books: every entry adds up, the sealed part is one unbroken chain. Exit code 8 when not."""
    with office.database.read() as tx:
        proof = ledger.verify(tx, office.enterprise_id)
    session.emit(proof._asdict() | {"head": proof.head.encode()})
