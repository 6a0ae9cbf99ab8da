"""``onecard notice``: short messages to members, sent through a message centre (SMPP)."""

from __future__ import annotations

import time
from typing import Any

import click

from backoffice import notices
from backoffice.attendance import month_days
from backoffice.commands.attendance import Span
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.enterprises import change_setting
from backoffice.installation import Installation
from backoffice.notices import Kind
from backoffice.operators import Permission
from cardlib.errors import FormatError, TransportError
from cardlib.wire.smpp import Address, Bind
from console import Noun, Session

TURN_S = 0.02
PATIENCE_S = 60.0
"""How long a sender that is not to stay tries to reach the centre."""
LEAVE_S = 5.0
"""How long one who stops waits for answers: what has none by then is unknown."""
STATES = ["waiting", "sending", "sent", "unknown", "rejected", "dropped"]


@click.group(cls=Noun)
def command() -> None:
    """Notices by short message: payments, recharges, loss, unlocking, monthly statements."""


@command.command()
@click.option("--smpp", "address", required=True, metavar="HOST:PORT", help="The message centre.")
@click.option("--system-id", required=True, help="Name to bind with; asks for the password.")
@click.option("--source", default="", help="Number or name that members see.")
@click.option("--signature", default="", help="Stands before each text, such as 【食堂】.")
@click.option("--tls", is_flag=True, help="Speak TLS, and check the centre's certificate.")
@click.option("--follow", is_flag=True, help="Stay, and send what comes, until interrupted.")
@permitted(Permission.NOTICE_SEND)
def send(
    session: Session, office: Installation, address: str, system_id: str, source: str, signature: str, tls: bool,
    follow: bool,
) -> None:  # fmt: skip
    """Gather what happened and send what waits. Asks for the centre's password (smpp password).

    A notice whose answer was lost is unknown and not sent again by itself: twice is worse than never.
    """
    from cardlib.netport import NetPort, parse_address, tls_context  # noqa: PLC0415  # sockets are for this verb alone

    host, port = parse_address(address)
    number, offset_min = office.enterprise_id, office.enterprise.utc_offset_minutes
    if session.dry_run:
        with office.database.read() as tx:
            waiting = sum(1 for _ in notices.listing(tx, number, "waiting"))
        session.emit({"waiting": waiting, "dry_run": True})
        return
    context = tls_context() if tls else None
    sender = notices.Sender(
        office.database, number, offset_min, lambda: NetPort.call(host, port, context),
        Bind(system_id, session.secret("smpp password")), source_address(source), time.monotonic, signature,
    )  # fmt: skip
    bound_s, trouble = time.monotonic(), ""
    try:
        while follow or not sender.is_idle:
            sender.poll()
            now = time.monotonic()
            bound_s = now if sender.esme.bound else bound_s
            if sender.esme.trouble not in ("", trouble):
                session.note(sender.esme.trouble)
            trouble = sender.esme.trouble
            if not follow and now - bound_s > PATIENCE_S:
                raise TransportError(f"{address}: {trouble or 'no answer'}; what was not sent waits")
            time.sleep(TURN_S)
    finally:
        until_s = time.monotonic() + LEAVE_S
        while sender.esme.bound and sender.esme.waiting and time.monotonic() < until_s:
            sender.poll(takes=False)
            time.sleep(TURN_S)
        sender.close()
    session.emit(sender.counts, [f"{count} {state}" for state, count in sender.counts.items()] or "nothing to send")


def source_address(text: str) -> Address:
    """A number, with + an international one, or a name of at most 11 characters (TON 5). Raises FormatError."""
    digits = text.removeprefix("+")
    if not digits or (digits.isascii() and digits.isdigit()):
        return Address(digits, int(text != digits), int(bool(digits)))
    if len(text) > 11:
        raise FormatError("a sender's name has at most 11 characters")
    return Address(text, 5, 0)


@command.command("list")
@click.option("--state", type=click.Choice(STATES), default=None, help="Only those in this state.")
@permitted(Permission.NOTICE_SHOW)
def list_command(session: Session, office: Installation, state: str | None) -> None:
    """List notices, the newest first, at most 1000; unknown ones may have arrived."""
    with office.database.read() as tx:
        found = list(notices.listing(tx, office.enterprise_id, state or ""))
    session.emit([one._asdict() for one in found])


@command.command()
@click.argument("origin")
@permitted(Permission.NOTICE_SEND)
def again(session: Session, office: Installation, origin: str) -> None:
    """Send a notice again that is unknown or was rejected; ORIGIN as listed. It may arrive twice."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        notices.again(tx, office.operator, number, origin)
        return {"origin": origin, "state": "waiting"}

    session.emit(act(session, office.database, number, "notice again", {"origin": origin}, action))


@command.command()
@click.argument("month")
@permitted(Permission.NOTICE_SEND)
def statements(session: Session, office: Installation, month: str) -> None:
    """Queue the statements of MONTH (YYYY-MM) for all members: what each spent, and how he attended. Twice is once."""
    number, offset_min = office.enterprise_id, office.enterprise.utc_offset_minutes
    month_days(month)

    def action(tx: Tx) -> dict[str, Any]:
        return {"month": month, "queued": notices.statements(tx, office.operator, number, month, offset_min)}

    session.emit(act(session, office.database, number, "notice statements", {"month": month}, action))


@command.command("opt-out")
@click.argument("member_number")
@click.argument("kinds", nargs=-1, type=click.Choice([kind.value for kind in Kind]))
@permitted(Permission.MEMBER_CHANGE)
def opt_out(session: Session, office: Installation, member_number: str, kinds: tuple[str, ...]) -> None:
    """Send MEMBER_NUMBER no notices of these KINDS any more; without KINDS he gets all again."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        notices.refuse(tx, office.operator, number, member_number, map(Kind, kinds))
        return {"member_number": member_number, "refused": sorted(set(kinds))}

    arguments = {"member": member_number, "kinds": sorted(set(kinds))}
    session.emit(act(session, office.database, number, "notice opt-out", arguments, action))


@command.command()
@click.argument("member_number")
@click.argument("language", type=click.Choice(["zh", "en", "default"]))
@permitted(Permission.MEMBER_CHANGE)
def language(session: Session, office: Installation, member_number: str, language: str) -> None:
    """Write to MEMBER_NUMBER in Chinese or English, or in the enterprise's language (setting notice_language)."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        notices.speak(tx, office.operator, number, member_number, "" if language == "default" else language)
        return {"member_number": member_number, "language": language}

    arguments = {"member": member_number, "language": language}
    session.emit(act(session, office.database, number, "notice language", arguments, action))


@command.command()
@click.argument("span", type=Span())
@permitted(Permission.SETTING_CHANGE)
def quiet(session: Session, office: Installation, span: tuple[int, int]) -> None:
    """Send nothing from HH:MM to HH:MM (SPAN, such as 22:00-07:00) but loss and unlocking; 00:00-00:00 for never."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        names = ("notice_quiet_from_min", "notice_quiet_until_min")
        for name, minute in zip(names, span, strict=True):
            change_setting(tx, office.operator, number, name, str(minute))
        return dict(zip(names, span, strict=True))

    session.emit(act(session, office.database, number, "notice quiet", {"span": list(span)}, action))
