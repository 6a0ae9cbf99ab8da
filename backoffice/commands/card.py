"""``onecard card``: the life of a card, from washing to its end."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backoffice import cards, jobs, members
from backoffice.cards import NewCard, State
from backoffice.commands.air import need, way_options
from backoffice.commands.air import server as air_server
from backoffice.commands.base import changing, open_card, permitted
from backoffice.commands.source import Source, key_source, pin
from backoffice.database import PLATFORM
from backoffice.installation import Installation
from backoffice.jobs import Result
from backoffice.operators import Permission
from backoffice.ota_server import issue as air_issue
from backoffice.station import IssuingStation, Office
from cardlib.errors import CheckFailed, ConfigError, Conflict, OutcomeUnknown, Refused
from cardlib.iso7816 import pin_bytes, select
from cardlib.profile import CardKind, Purpose
from cardlib.sam import SAM_DF, IssuingSam, wants_pin
from console import Hex, Noun, Session

CARD = Hex(8)
NO_DRY_RUN = "what a card does can't be tried out"
KINDS = {"cpu-card": CardKind.CPU_CARD, "rfid-sim": CardKind.RFID_SIM}
kind_option = click.option(
    "--kind", type=click.Choice(list(KINDS)), default="cpu-card", show_default=True, help="Of a card without serial."
)
posted_option = click.option("--posted", is_flag=True, help="Sent by post: inactive until receipt is confirmed.")
platform_option = click.option(
    "--platform-operator", help="Washes and opens the slot too, where platform and enterprise are one organisation."
)
reason_option = click.option("--reason", default="", help="Why, for the audit log.")


@click.group(cls=Noun)
def command() -> None:
    """Cards: wash, issue, lose, unlock, reissue, cancel."""


def _desk(office: Installation, platform_operator: str | None) -> Office:
    """The office; with the platform's operator it also washes and opens slots."""
    if platform_operator is None:
        return office.office()
    return office.office(office.platform_operator(platform_operator), office.initial_key())


def _station(
    session: Session, office: Installation, source: Source, issuing_sam: str | None, key_set: int | None
) -> Office | None:
    """An office without key store: a mother card writes keys, an issuing SAM does everything else."""
    if not source.is_mother and issuing_sam is None:
        if key_set is not None:
            raise ConfigError("--key-set goes with a mother card: a key store knows its active version")
        return None
    if not source.is_mother or issuing_sam is None:
        raise ConfigError("a mother card issues with an issuing SAM: give --mother, --authentication, --issuing-sam")
    keys = source()
    held = sorted({line.version for line in keys.lines() if line.purpose is Purpose.CONTROL})
    if key_set not in held if key_set else len(held) != 1:
        raise ConfigError(f"the mother card holds key sets {', '.join(map(str, held))}: name one with --key-set")
    sam = session.open_card(issuing_sam)
    select(sam, SAM_DF)
    host = IssuingSam(sam, (lambda: pin(session, "sam pin")) if wants_pin(sam) else None)
    return office.office(issuing=IssuingStation(keys, host, key_set or held[0]))


def _done(session: Session, act: Callable[[], Result]) -> None:
    """Run a flow with a card in the reader; a torn one says how to go on."""
    try:
        outcome = act()
    except OutcomeUnknown as e:
        again = f"{e}. Present the same card and run the same command again: money moves once"
        raise OutcomeUnknown(e.journal_id, again) from e
    session.emit(outcome)


def _new_pin(session: Session) -> bytes:
    return pin_bytes(session.secret("holder pin", new=True))


@command.command()
@click.argument("member_number")
@kind_option
@posted_option
@platform_option
@click.option("--issuing-sam", help="Reader of an issuing SAM: with it and a mother card no key store is needed.")
@click.option("--key-set", type=click.IntRange(1, 255), help="Which, where the mother card holds several.")
@click.option("--over-the-air", type=CARD, help="Serial of the washed SIM in the member's phone: by short messages.")
@way_options
@permitted(Permission.CARD_ISSUE)
@key_source
def issue(
    session: Session, office: Installation, source: Source, /, member_number: str, kind: str, posted: bool,
    platform_operator: str | None, issuing_sam: str | None, key_set: int | None, over_the_air: bytes | None,
    **way: Any,  # noqa: ANN401  # options of the way
) -> None:  # fmt: skip
    """Make the card in --reader the card of MEMBER_NUMBER. Asks for the holder's PIN of 4 to 12 digits.

    Torn, it goes on when the same command runs again with the same card. With --mother, --authentication and
    --issuing-sam keys come from the mother card alone, onto a card whose slot the platform has opened.
    """
    session.refuse_dry_run(NO_DRY_RUN)
    if over_the_air is not None:
        server = need(air_server(session, office, way, platform_operator))
        pin, rid = _new_pin(session), session.request_id or None
        _done(session, lambda: air_issue(server, office.operator, member_number, over_the_air, pin, request_id=rid))
        return
    desk = _station(session, office, source, issuing_sam, key_set) or _desk(office, platform_operator)
    new = NewCard(open_card(session, office), _new_pin(session), posted, KINDS[kind])
    request_id = session.request_id or None
    _done(session, lambda: cards.issue(desk, office.operator, member_number, new, request_id=request_id))


@command.command("issue-batch")
@click.argument("batch_id")
@click.option("--pin-sheet", type=click.Path(path_type=Path), required=True, help="CSV to write the PINs to (0600).")
@click.option("--department", default="", help="Only members of one department.")
@kind_option
@posted_option
@platform_option
@permitted(Permission.CARD_ISSUE)
def issue_batch(
    session: Session, office: Installation, batch_id: str, pin_sheet: Path, department: str, kind: str, posted: bool,
    platform_operator: str | None,
) -> None:  # fmt: skip
    """Issue cards to all members who have none. The same BATCH_ID continues where it was stopped.

    Asks for one card after another; with --reader sim:FOLDER the card of member N is FOLDER/N.img.
    """
    desk = _desk(office, platform_operator)
    with office.database.read() as tx:
        people = [one.member_number for one in _without_card(tx, office, department, batch_id)]
    if session.dry_run:
        session.emit({"members": people, "dry_run": True}, [f"would issue {len(people)} cards", *people])
        return
    write_pin = _pin_sheet(session, pin_sheet)

    def next_card(member: str) -> NewCard:
        digits = f"{int.from_bytes(office.random_bytes(8), 'big') % 1_000_000:06d}"
        new = NewCard(_reader_for(session, member), pin_bytes(digits), posted, KINDS[kind])
        write_pin(member, digits)
        return new

    outcomes = cards.issue_batch(desk, office.operator, people, next_card, batch_id=batch_id)
    rows = []
    for one in session.progress(outcomes, len(people), "cards"):
        card = one.outcome["card"] if one.outcome else None
        rows.append({"member": one.member_number, "card": card, "error": str(one.error) if one.error else None})
    session.emit(rows)
    failed = [row for row in rows if row["error"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(rows)} cards failed: mend the cause and run batch {batch_id} again")


def _without_card(tx: Any, office: Installation, department: str, batch_id: str) -> Iterator[members.Member]:  # noqa: ANN401
    """Members of a department without a card, and those this batch has begun."""
    after = ""
    while page := members.listing(tx, office.enterprise_id, after=after):
        after = page[-1].member_number
        for one in page:
            held = [c for c in cards.of_member(tx, office.enterprise_id, one.member_number) if c.state in _HELD]
            begun = jobs.by_request(tx, office.enterprise_id, f"{batch_id}:{one.member_number}")
            if department in ("", one.department) and (not held or begun):
                yield one


_HELD = (*cards.USABLE, State.LOST)


def _reader_for(session: Session, member: str) -> Any:  # noqa: ANN401  # a transport
    scheme, _, rest = session.reader.partition(":")
    if scheme == "sim" and Path(rest).is_dir():
        return session.open_card(f"sim:{Path(rest) / member}.img")
    if session.no_input:
        raise ConfigError("a batch asks for one card after another: it needs a person, or --reader sim:FOLDER")
    click.prompt(f"Put the card of member {member} on the reader, then press Enter", default="", err=True)
    return session.open_card()


def _pin_sheet(session: Session, path: Path) -> Callable[[str, str], None]:
    """Append a line per card, on disk before the card has the PIN."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    except OSError as e:
        raise ConfigError(f"pin sheet {path}: {e.strerror}") from e
    file = session.keep(os.fdopen(fd, "a", encoding="utf-8", newline=""))
    writer = csv.writer(file)

    def write(member: str, digits: str) -> None:
        writer.writerow([member, digits])
        file.flush()
        os.fsync(fd)

    return write


@command.command("list")
@click.option("--state", type=click.Choice([one.value for one in State]), help="Only cards in this state.")
@permitted(Permission.CARD_SHOW)
def list_command(session: Session, office: Installation, state: str | None) -> None:
    """List the enterprise's cards."""
    with office.database.read() as tx:
        found = cards.listing(tx, office.enterprise_id, State(state) if state else None)
    session.emit([_row(one) for one in found])


def _row(one: cards.Application) -> dict[str, Any]:
    return {
        "card": one.card_serial,
        "member": one.member_number,
        "kind": one.kind.name.lower(),
        "state": one.state.value,
        "expires": one.expires,
    }


@command.command()
@click.argument("card", type=CARD)
@permitted(Permission.CARD_SHOW)
def show(session: Session, office: Installation, card: bytes) -> None:
    """Show CARD (its serial) and its history."""
    with office.database.read() as tx:
        one = cards.get(tx, office.enterprise_id, card)
        past = cards.history(tx, office.enterprise_id, card)
    events = [
        f"{datetime.fromtimestamp(row['at_ms'] / 1000, UTC):%Y-%m-%d %H:%M} {row['state_from']} -> {row['state_to']}"
        f" by {row['actor']} {row['reason']}".rstrip()
        for row in past
    ]
    session.emit(_row(one) | {"replaces": one.replaces, "replaced_by": one.replaced_by, "history": events})


def _change(
    session: Session, office: Installation, card: bytes, since: Collection[State], to: State, act: Callable[[], Result]
) -> None:
    """A flow without a card in the reader; a dry run only checks the change of state, from one of ``since``."""
    if session.dry_run:
        with changing(session, office.database) as tx:
            now = cards.get(tx, office.enterprise_id, card).state
            if now not in since:
                raise Conflict(f"card {card.hex().upper()} is {now}, not {' or '.join(since)}")
            cards.transition(tx, office.enterprise_id, card, to, office.operator.name, "dry run")
        session.emit({"card": card, "state": to.value, "dry_run": True})
    else:
        session.emit(act())


@command.command()
@click.argument("card", type=CARD)
@reason_option
@permitted(Permission.CARD_LOSE)
def lose(session: Session, office: Installation, card: bytes, reason: str) -> None:
    """Report CARD (its serial) lost: on the next blacklist, subsystems told. Twice is once."""
    rid = session.request_id or None
    desk = office.office()
    _change(
        session, office, card, tuple(State), State.LOST,
        lambda: cards.lose(desk, office.operator, card, reason, request_id=rid),
    )  # fmt: skip


@command.command()
@click.argument("card", type=CARD)
@reason_option
@permitted(Permission.CARD_UNLOCK)
def unlock(session: Session, office: Installation, card: bytes, reason: str) -> None:
    """Lost CARD is found: active again, off the blacklist, subsystems told."""
    rid = session.request_id or None
    desk = office.office()
    _change(
        session, office, card, (State.LOST,), State.ACTIVE,
        lambda: cards.unlock(desk, office.operator, card, reason, request_id=rid),
    )  # fmt: skip


@command.command()
@click.argument("card", type=CARD)
@permitted(Permission.CARD_ISSUE)
def confirm(session: Session, office: Installation, card: bytes) -> None:
    """The holder has received posted CARD: active from now on."""
    rid = session.request_id or None
    desk = office.office()
    _change(
        session, office, card, (State.POSTED, State.ACTIVE), State.ACTIVE,
        lambda: cards.confirm_receipt(desk, office.operator, card, request_id=rid),
    )  # fmt: skip


@command.command()
@click.argument("old", type=CARD)
@click.option("--old-reader", help="Where the old card is; without it, it must be lost and the books decide.")
@kind_option
@posted_option
@platform_option
@click.option("--confirm", "word", help="REISSUE: the old card is ended for good.")
@permitted(Permission.CARD_REISSUE)
def reissue(
    session: Session, office: Installation, old: bytes, old_reader: str | None, kind: str, posted: bool,
    platform_operator: str | None, word: str | None,
) -> None:  # fmt: skip
    """Replace card OLD by the one in --reader, with its money. Asks for the holder's PIN."""
    session.refuse_dry_run(NO_DRY_RUN)
    session.confirm("REISSUE", f"Card {old.hex().upper()} is ended for good.", word)
    desk = _desk(office, platform_operator)
    new = NewCard(open_card(session, office), _new_pin(session), posted, KINDS[kind])
    present = open_card(session, office, old_reader) if old_reader else None
    request_id = session.request_id or None
    _done(session, lambda: cards.reissue(desk, office.operator, old, new, old_card=present, request_id=request_id))


@command.command()
@click.argument("card", type=CARD)
@click.option("--present", is_flag=True, help="The card is in --reader: it is emptied, wiped and blocked.")
@reason_option
@click.option("--confirm", "word", help="CANCEL: the card is ended for good.")
@permitted(Permission.CARD_CANCEL)
def cancel(session: Session, office: Installation, card: bytes, present: bool, reason: str, word: str | None) -> None:
    """End CARD (its serial): balance settled, number freed, listed, subsystems told."""
    session.refuse_dry_run(NO_DRY_RUN)
    session.confirm("CANCEL", f"Card {card.hex().upper()} is ended for good.", word)
    chip = open_card(session, office) if present else None
    desk, request_id = office.office(), session.request_id or None
    _done(session, lambda: cards.cancel(desk, office.operator, card, reason, card=chip, request_id=request_id))


@command.command("jobs")
@permitted(Permission.CARD_SHOW)
def jobs_command(session: Session, office: Installation) -> None:
    """List what was begun and not finished: run the same command again to go on."""
    if office.scope == PLATFORM:
        raise Refused("enterprise", "jobs belong to an enterprise: give --enterprise NUMBER")
    with office.database.read() as tx:
        found = jobs.running(tx, office.enterprise_id)
    session.emit(
        [
            {"job": j.job_id, "kind": j.kind, "subject": j.subject, "actor": j.actor, "since_ms": j.created_ms}
            for j in found
        ]
    )
