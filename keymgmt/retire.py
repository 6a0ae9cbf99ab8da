"""The end of an application on a card: close what is open, empty its purses, wipe it, block it (profile.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cardlib.apdu import SW
from cardlib.errors import Conflict, StatusError
from cardlib.iso7816 import block_application, unblock_application, update_binary
from cardlib.profile import Holder, LogRecord, Purpose, Purse, load_profile
from cardlib.purse import (
    CardSession,
    MoneyRequest,
    Receipt,
    balance,
    debit,
    identify,
    open_application,
    read_log,
    recover,
    unload,
)
from cardlib.records import Transaction, local_when
from cardlib.sam import Host
from cardlib.transport import Transport
from keymgmt.personalise import Station, protector

WIPED = Holder(0, 0, "", "")


@dataclass(frozen=True, slots=True)
class Emptied:
    """What was found and taken off: the card's log, newest first, and a receipt per purse that held money."""

    log: tuple[LogRecord, ...]
    main: Receipt | None
    subsidy: Receipt | None


def retire(
    card: Transport,
    station: Station,
    job: str,
    serial: bytes,
    enterprise_id: int,
    open_moves: Iterable[tuple[int, Transaction]] = (),
) -> Emptied | None:
    """Empty, wipe and permanently block one application; None when that is done already.

    ``open_moves`` are the journal's unfinished moves with this card. Raises Conflict when another card is there,
    OutcomeUnknown when the card was pulled away while money moved: present it again.
    """
    session = identify(card, enterprise_id)
    if session.factor != serial:
        raise Conflict(f"this is card {session.factor.hex().upper()}: present card {serial.hex().upper()}")
    if session.blocked and not _unblocked(card, station.host, session):
        station.steps.done(job, "blocked")
        return None
    session = open_application(card, station.host, enterprise_id, station.random_bytes)
    for ref, move in open_moves:
        recover(card, station.host, station.journal, session, ref, move)
    emptied = _empty(card, station, session)
    station.steps.done(job, "emptied")
    protect = protector(station.host, session.factor, session.version, Purpose.MAINTENANCE)
    update_binary(card, load_profile().file("holder").fid, WIPED.encode(), protect=protect)
    station.steps.done(job, "wiped")
    block_application(card, protect, permanent=True)
    station.steps.done(job, "blocked")
    return emptied


def _unblocked(card: Transport, host: Host, session: CardSession) -> bool:
    """Take a temporary block back, else a blocked application answers nothing; False when it is permanent."""
    try:
        unblock_application(card, protector(host, session.factor, session.version, Purpose.MAINTENANCE))
    except StatusError as e:
        if e.sw == SW.PERMANENTLY_BLOCKED:
            return False
        raise
    return True


def _empty(card: Transport, station: Station, session: CardSession) -> Emptied:
    """The main purse by a purchase of its balance, the subsidy purse by unload (profile.md, Emptying a card)."""
    log = tuple(read_log(card))
    main = subsidy = None
    if amount_fen := balance(card, Purse.MAIN):
        main = debit(card, station.host, station.journal, session, _all_of(station, Purse.MAIN, amount_fen))
    if amount_fen := balance(card, Purse.SUBSIDY):
        subsidy = unload(card, station.host, station.journal, session, _all_of(station, Purse.SUBSIDY, amount_fen))
    return Emptied(log, main, subsidy)


def _all_of(station: Station, purse: Purse, amount_fen: int) -> MoneyRequest:
    now = station.now_ms()
    return MoneyRequest(purse, amount_fen, local_when(now, station.offset_min), now)
