"""Money on a card, from the terminal's side: authenticate, pay, load, undo, recover (card.md §4, profile.md).

Before the command that changes the card the journal gets INTENT; afterwards COMMITTED with the card's proof, or
NOT DONE. When the answer is lost OutcomeUnknown names the intent: :func:`recover` closes it with the same card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hmac import compare_digest
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from cardlib.apdu import SW, Command, meaning
from cardlib.errors import FormatError, MacMismatch, NotFound, OneCardError, OutcomeUnknown, Refused, StatusError
from cardlib.fields import Record
from cardlib.iso7816 import external_authenticate, get_challenge, internal_authenticate, read_binary, read_record
from cardlib.profile import LogRecord, PublicInfo, Purpose, Purse, TransactionType, aid, issuer_id, load_profile
from cardlib.records import Outcome, Transaction, tac_input
from cardlib.sam import Host, LoadInit, PurchaseInit, Sam
from cardlib.tlv import find
from cardlib.transport import Transport, exchange, send

MAX_LOG = 20
"""Records that file 0018 keeps (profile.md)."""
REFUSALS = range(0x6700, 0x6F00)
"""Status words with which a card refuses before it writes; 64xx, 65xx and 6F00 leave it open what happened."""
PURSE_REFUSALS = range(0x9300, 0x9500)
INITIALIZE_ERRORS = {SW.FUNDS: "balance", SW.COUNTER_FULL: "counter_full"}
LOADS = {Purse.SUBSIDY: TransactionType.LOAD_ED, Purse.MAIN: TransactionType.LOAD_EP}
PURCHASES = {Purse.SUBSIDY: TransactionType.PURCHASE_ED, Purse.MAIN: TransactionType.PURCHASE_EP}
COMPOSITE_FILE = 0x0017
CHANGING = 0
"""Key set that 0015 names while an application's keys are being replaced: real ones are 1 to 255 (keys.md)."""
MAX_BALANCE_FEN = 0xFFFFFFFF

Initialized = TypeVar("Initialized", bound=Record)


class Journal(Protocol):
    """A terminal's write-ahead journal. Each call returns only when the entry is on disk."""

    def intent(self, move: Transaction, /) -> int:
        """Write what is about to happen; returns the number that closes it."""

    def committed(self, ref: int, move: Transaction, /) -> None:
        """Close an intent: the card did it."""

    def not_done(self, ref: int, reason: str, /) -> None:
        """Close an intent: the card did not do it."""


@dataclass(frozen=True, slots=True)
class CardSession:
    """An application of a card that is selected. ``purpose`` is what we authenticated as; None: not at all."""

    enterprise_id: int
    public_info: PublicInfo
    purpose: Purpose | None
    blocked: bool = False

    @property
    def factor(self) -> bytes:
        """Diversification factor: the card's serial, 8 bytes."""
        return self.public_info.card_serial

    @property
    def version(self) -> int:
        """Number of the key set the card holds (0015)."""
        return self.public_info.key_set


@dataclass(frozen=True, slots=True)
class MoneyRequest:
    """What to do with which purse. ``when`` is local BCD time (7), ``terminal`` empty for the SAM's own number."""

    purse: Purse
    amount_fen: int
    when: bytes
    utc_ms: int
    list_version: int = 0
    request_id: str = ""
    undo_of: bytes = b""
    terminal: bytes = b""


class Receipt(NamedTuple):
    """A committed move and the number of its intent in the journal."""

    ref: int
    move: Transaction


class TransactionProof(NamedTuple):
    """What GET TRANSACTION PROVE answers: MAC2 or MAC3 (zeros for loads) and TAC (zeros for unloads)."""

    mac: bytes
    tac: bytes


# Opening an application (profile.md, mutual authentication at every tap)


def identify(card: Transport, enterprise_id: int) -> CardSession:
    """SELECT the enterprise's application and read who the card says it is; nothing is proven yet.

    A temporarily blocked application gives a session too (``blocked``): only its last proofs can be asked for.
    Raises Refused ``no_application``, ``card_blocked``, ``foreign_enterprise``; FormatError when 0015 is malformed.
    """
    answer = send(card, Command(0x00, 0xA4, 0x04, 0x00, aid(enterprise_id), 0))
    if answer.sw == SW.FILE_NOT_FOUND:
        raise Refused("no_application", f"the card has no application of enterprise {enterprise_id}")
    blocked = answer.sw == SW.NOT_SUPPORTED
    if blocked and not answer.data:
        raise Refused("card_blocked", "the card is blocked, or is no card of this system")
    if answer.sw != SW.OK and not blocked:
        raise StatusError(answer.sw, b"\x00\xa4\x04\x00", meaning(answer.sw))
    try:
        raw = find(answer.data, 0x6F, 0xA5, 0x9F0C)
    except (NotFound, FormatError):
        if blocked:
            raise Refused("application_blocked", "the application is blocked and does not say whose it is") from None
        raw = read_binary(card, 0x0015)
    info = PublicInfo.decode(raw)
    if info.issuer != issuer_id(enterprise_id):
        raise Refused("foreign_enterprise", f"the application names another issuer than enterprise {enterprise_id}")
    return CardSession(enterprise_id, info, None, blocked)


def open_application(
    card: Transport,
    sam: Sam,
    enterprise_id: int,
    random_bytes: Callable[[int], bytes],
    purpose: Purpose = Purpose.TERMINAL,
) -> CardSession:
    """Select and authenticate both ways, the card first (profile.md).

    Raises what :func:`identify` raises, Refused ``application_blocked``, ``keys_changing``, MacMismatch when the card
    did not prove itself, StatusError when it does not accept us.
    """
    session = identify(card, enterprise_id)
    if session.blocked:
        raise Refused("application_blocked", "the application is blocked: ask the issuer to unblock it")
    if session.version == CHANGING:
        raise Refused("keys_changing", "the card's keys were being renewed: present it where cards are recharged")
    return authenticate(card, sam, session, random_bytes, purpose)


def authenticate(
    card: Transport,
    sam: Sam,
    session: CardSession,
    random_bytes: Callable[[int], bytes],
    purpose: Purpose = Purpose.TERMINAL,
) -> CardSession:
    """Authenticate both ways with the key set that an identified session names. Raises MacMismatch, StatusError."""
    profile = load_profile()
    challenge = random_bytes(8)
    answer = internal_authenticate(card, profile.key(Purpose.CARD).kid(session.version), challenge)
    if not compare_digest(answer, sam.card_answer(session.factor, session.version, challenge)):
        raise MacMismatch(f"card {session.factor.hex().upper()} did not prove itself: it is no card of this enterprise")
    cryptogram = sam.authenticate(purpose, session.factor, session.version, get_challenge(card, 8))
    external_authenticate(card, profile.key(purpose).kid(session.version), cryptogram)
    return replace(session, purpose=purpose)


# Asking


def balance(card: Transport, purse: Purse) -> int:
    """GET BALANCE in fen (card.md §4.7)."""
    answer = exchange(card, Command(0x80, 0x5C, 0x00, purse, le=4))
    if len(answer) != 4:
        raise FormatError(f"the card gives its balance in {len(answer)} bytes")
    return int.from_bytes(answer, "big")


def iter_log(card: Transport) -> Iterator[LogRecord]:
    """Records of 0018, newest first, one command each as they are asked for (card.md §4.9)."""
    for number in range(1, MAX_LOG + 1):
        try:
            raw = read_record(card, 0x0018, number, le=LogRecord.size())
        except StatusError as e:
            if e.sw == SW.RECORD_NOT_FOUND:
                return
            raise
        yield LogRecord.decode(raw)


def read_log(card: Transport, limit: int = MAX_LOG) -> list[LogRecord]:
    """At most ``limit`` records of the transaction log, newest first."""
    return list(islice(iter_log(card), limit))


def prove(card: Transport, kind: TransactionType, seq: int) -> TransactionProof | None:
    """GET TRANSACTION PROVE for the counter *after* a move; None when the card keeps none (9406; card.md §4.8)."""
    answer = send(card, Command(0x80, 0x5A, 0x00, kind, seq.to_bytes(2, "big"), 8))
    if answer.sw == SW.NO_PROOF:
        return None
    if answer.sw != SW.OK:
        raise StatusError(answer.sw, b"\x80\x5a\x00" + bytes([kind]), meaning(answer.sw))
    if len(answer.data) != 8:
        raise FormatError(f"the card gives its proof in {len(answer.data)} bytes")
    return TransactionProof(answer.data[:4], answer.data[4:])


# Starting a move (card.md §4.2, §4.3, §4.5): nothing on the card changes yet


def initialize_purchase(
    card: Transport, kind: TransactionType, kid: int, amount_fen: int, terminal: bytes
) -> PurchaseInit:
    """INITIALIZE FOR PURCHASE, CASH WITHDRAW or CAPP PURCHASE. Raises Refused ``balance``, ``counter_full``."""
    p1 = {TransactionType.WITHDRAW: 2, TransactionType.COMPOSITE: 3}.get(kind, 1)
    return _initialize(card, PurchaseInit, p1, kind.purse, kid, amount_fen, terminal)


def initialize_load(card: Transport, kind: TransactionType, kid: int, amount_fen: int, terminal: bytes) -> LoadInit:
    """INITIALIZE FOR LOAD or UNLOAD. Raises Refused ``balance``, ``counter_full``."""
    p1 = 5 if kind == TransactionType.UNLOAD else 0
    return _initialize(card, LoadInit, p1, kind.purse, kid, amount_fen, terminal)


def _initialize(
    card: Transport, layout: type[Initialized], p1: int, purse: Purse, kid: int, amount_fen: int, terminal: bytes
) -> Initialized:
    data = bytes([kid]) + amount_fen.to_bytes(4, "big") + terminal
    try:
        return layout.decode(exchange(card, Command(0x80, 0x50, p1, purse, data, layout.size())))
    except StatusError as e:
        if e.sw in INITIALIZE_ERRORS:
            raise Refused(INITIALIZE_ERRORS[SW(e.sw)], meaning(e.sw)) from e
        raise


# Moving money


def debit(card: Transport, sam: Sam, journal: Journal, session: CardSession, request: MoneyRequest) -> Receipt:
    """Pay from a purse (card.md §4.3).

    Raises Refused ``balance`` and other refusals of the card with nothing done; OutcomeUnknown when its answer was
    lost; MacMismatch when the card's MAC2 is wrong: then hand nothing out. That card has answered, so asking it
    again tells no more: the move is journaled as committed, not verified, and the host's check of the TAC decides.
    """
    return _spend(card, sam, journal, session, request, PURCHASES[request.purse], ())


def withdraw(card: Transport, sam: Sam, journal: Journal, session: CardSession, request: MoneyRequest) -> Receipt:
    """Take cash from the subsidy purse (ED, type 04, card.md §4.3). Raises as :func:`debit`."""
    if request.purse != Purse.SUBSIDY:
        raise Refused("purse", "cash is withdrawn from the purse ED only")
    return _spend(card, sam, journal, session, request, TransactionType.WITHDRAW, ())


def composite_debit(
    card: Transport,
    sam: Sam,
    journal: Journal,
    session: CardSession,
    request: MoneyRequest,
    records: Sequence[bytes],
) -> Receipt:
    """Pay from the main purse and write records of 0017, each found by its identifier, in one act (card.md §4.4).

    Raises as :func:`debit`, and Refused ``purse`` for the subsidy purse, which has no composite payment.
    """
    if request.purse != Purse.MAIN:
        raise Refused("purse", "only the main purse pays in composite")
    return _spend(card, sam, journal, session, request, TransactionType.COMPOSITE, records)


def _spend(
    card: Transport,
    sam: Sam,
    journal: Journal,
    session: CardSession,
    request: MoneyRequest,
    kind: TransactionType,
    records: Sequence[bytes],
) -> Receipt:
    terminal = sam.info().terminal
    kid = load_profile().key(Purpose.PURCHASE).kid(session.version)
    init = initialize_purchase(card, kind, kid, request.amount_fen, terminal)
    if init.balance_fen < request.amount_fen:
        raise Refused("balance", meaning(SW.FUNDS))
    for record in records:
        exchange(card, Command(0x80, 0xDC, record[0], (COMPOSITE_FILE & 0x1F) << 3, record))
    terminal_seq, mac1 = sam.purchase_mac1(init, request.amount_fen, kind, request.when, session.factor)
    move = _move(sam, session, request, kind, init, terminal, terminal_seq)
    ref = journal.intent(move)
    data = terminal_seq.to_bytes(4, "big") + request.when + mac1
    answer = _commit(card, journal, ref, Command(0x80, 0x54, 0x01, 0x00, data, 8), 8)
    return _close(journal, ref, move, answer[:4], lambda: sam.verify_mac2(answer[4:]))


def load(card: Transport, host: Host, journal: Journal, session: CardSession, request: MoneyRequest) -> Receipt:
    """Credit a purse with the host's MAC2 (card.md §4.2); ``undo_of`` makes it an online undo.

    Needs a session as RECHARGE or the holder's PIN. Raises Refused ``maximum_balance``, MacMismatch when MAC1 is
    wrong (nothing done) or the TAC is (journaled as committed, not verified), OutcomeUnknown.
    """
    kind = LOADS[request.purse]
    terminal = request.terminal or host.info().terminal
    kid = load_profile().key(Purpose.LOAD).kid(session.version)
    init = initialize_load(card, kind, kid, request.amount_fen, terminal)
    _check_room(init, request.amount_fen)
    mac2 = host.load_mac2(init, request.amount_fen, kind, terminal, request.when, session.factor)
    move = _move(host, session, request, kind, init, terminal)
    ref = journal.intent(move)
    tac = _commit(card, journal, ref, Command(0x80, 0x52, 0x00, 0x00, request.when + mac2, 4), 4)

    def check() -> None:
        host.verify_tac(session.factor, move.key_version, move.algorithm, tac_input(move), tac)

    return _close(journal, ref, move, tac, check)


def unload(card: Transport, host: Host, journal: Journal, session: CardSession, request: MoneyRequest) -> Receipt:
    """Take money off the subsidy purse with the host's MAC2 (card.md §4.5); its MAC3 is kept as the proof.

    Raises Refused ``balance``, MacMismatch, OutcomeUnknown as :func:`load`.
    """
    if request.purse != Purse.SUBSIDY:
        raise Refused("purse", "only the subsidy purse is unloaded; empty the main purse by a purchase")
    kind, amount_fen, when = TransactionType.UNLOAD, request.amount_fen, request.when
    terminal = request.terminal or host.info().terminal
    kid = load_profile().key(Purpose.UNLOAD).kid(session.version)
    init = initialize_load(card, kind, kid, amount_fen, terminal)
    if init.balance_fen < amount_fen:
        raise Refused("balance", meaning(SW.FUNDS))
    mac2 = host.unload_mac2(init, amount_fen, terminal, when, session.factor)
    move = _move(host, session, request, kind, init, terminal)
    ref = journal.intent(move)
    mac3 = _commit(card, journal, ref, Command(0x80, 0x54, 0x03, 0x00, when + mac2, 4), 4)
    return _close(
        journal, ref, move, mac3, lambda: host.verify_mac3(init, amount_fen, terminal, when, session.factor, mac3)
    )


def undo_offline(
    card: Transport, sam: Sam, journal: Journal, session: CardSession, paid: Transaction, request: MoneyRequest
) -> Receipt:
    """Give back this SAM's last confirmed purchase by a load under the refund key (profile.md, Undo).

    Purse, amount and terminal are those of ``paid``; time, list version and request id come from ``request``.
    The TAC is checked by the host only. Raises Refused ``undo_other_card``, ``undo_unproven``, StatusError when SAM
    or card do not agree that this was their last payment, MacMismatch for MAC1, OutcomeUnknown.
    """
    if paid.card_serial != session.factor:
        raise Refused("undo_other_card", f"the payment was made with card {paid.card_serial.hex().upper()}")
    if paid.kind.online or paid.outcome != Outcome.COMMITTED or not paid.mac2_verified:
        raise Refused("undo_unproven", "only a payment that was proven at this terminal can be undone here")
    kind = LOADS[paid.purse]
    request = replace(request, purse=paid.purse, amount_fen=paid.amount_fen, undo_of=paid.origin)
    kid = load_profile().key(Purpose.REFUND).kid(session.version)
    init = initialize_load(card, kind, kid, paid.amount_fen, paid.terminal)
    _check_room(init, paid.amount_fen)
    mac2 = sam.refund_mac2(init, paid.amount_fen, kind, request.when, session.factor)
    move = _move(sam, session, request, kind, init, paid.terminal)
    ref = journal.intent(move)
    tac = _commit(card, journal, ref, Command(0x80, 0x52, 0x00, 0x00, request.when + mac2, 4), 4)
    return _close(journal, ref, move, tac, None)


def _check_room(init: LoadInit, amount_fen: int) -> None:
    if init.balance_fen + amount_fen > MAX_BALANCE_FEN:
        raise Refused("maximum_balance", "the purse would hold more than it can count")


def _move(
    sam: Sam,
    session: CardSession,
    request: MoneyRequest,
    kind: TransactionType,
    init: PurchaseInit | LoadInit,
    terminal: bytes,
    terminal_seq: int = 0,
) -> Transaction:
    """The move as the journal has it before it happens."""
    return Transaction(
        enterprise_id=session.enterprise_id,
        terminal=terminal,
        sam_serial=sam.info().serial,
        terminal_seq=terminal_seq,
        card_serial=session.factor,
        purse=request.purse,
        kind=kind,
        amount_fen=request.amount_fen,
        balance_before_fen=init.balance_fen,
        overdraft_fen=init.overdraft_fen if isinstance(init, PurchaseInit) else 0,
        card_seq=init.seq,
        key_version=init.key_version,
        algorithm=init.algorithm,
        when=request.when,
        utc_ms=request.utc_ms,
        list_version=request.list_version,
        undo_of=request.undo_of,
        request_id=request.request_id,
    )


def _commit(card: Transport, journal: Journal, ref: int, command: Command, size: int) -> bytes:
    """Send the command that changes the card. Raises StatusError with the intent closed, or OutcomeUnknown."""
    try:
        answer = send(card, command)
    except OneCardError as e:
        raise OutcomeUnknown(ref, "the card was lost while paying: present the same card again") from e
    if answer.sw == SW.OK and len(answer.data) == size:
        return answer.data
    if answer.sw in REFUSALS or answer.sw in PURSE_REFUSALS:
        journal.not_done(ref, f"status {answer.sw:04X}")
        raise StatusError(answer.sw, command.header, meaning(answer.sw))
    raise OutcomeUnknown(ref, f"the card's answer {answer.sw:04X} leaves it open: present the same card again")


def _close(journal: Journal, ref: int, move: Transaction, tac: bytes, check: Callable[[], None] | None) -> Receipt:
    """Journal a committed move with its proof, checked where it can be. Raises MacMismatch after journaling."""
    done = replace(move, tac=tac, outcome=Outcome.COMMITTED)
    try:
        done = replace(done, mac2_verified=check is not None and _checked(check))
    except MacMismatch:
        journal.committed(ref, done)
        raise
    journal.committed(ref, done)
    return Receipt(ref, done)


def _checked(check: Callable[[], None]) -> bool:
    """Whether a proof could be checked and is right; who checks it may be out of reach. Raises MacMismatch."""
    try:
        check()
    except MacMismatch:
        raise
    except OneCardError:
        return False
    return True


# Recovering (card.md §4.8)


def recover(
    card: Transport, sam: Sam, journal: Journal, session: CardSession, ref: int, move: Transaction
) -> Transaction:
    """Find out with the same card how a move ended, and close its intent; UNKNOWN leaves it open for settlement.

    ``move`` is the intent. A session that is only identified (blocked card) can prove that it was done, by a MAC2
    that the SAM still can verify, no more.
    Raises Refused ``other_card``; TransportError and StatusError leave all as it was: try again.
    """
    if move.card_serial != session.factor or move.enterprise_id != session.enterprise_id:
        raise Refused("other_card", f"the open move belongs to card {move.card_serial.hex().upper()}: present that one")
    proof = prove(card, move.kind, move.card_seq + 1 & 0xFFFF)
    if proof:
        done = _proven(sam, move, proof)
        if done and done.mac2_verified:
            journal.committed(ref, done)
            return done
        proof = proof if done else None
    if session.purpose is None:
        return move
    counter = None if proof else _counter(card, session, move)
    if counter == move.card_seq:
        return _not_done(journal, ref, move, "the card's counter did not move")
    outcome = _ask_log(card, move)
    if outcome is Outcome.NOT_DONE:
        return _not_done(journal, ref, move, "the card's log shows another move under this number")
    # The proof of the newest number is always kept (card.md §4.8): a log that shows our move there without it lies.
    contradicts = counter == move.card_seq + 1 & 0xFFFF
    if not proof and (outcome is Outcome.UNKNOWN or contradicts):
        return move
    done = _done(move, proof)
    journal.committed(ref, done)
    return done


def _done(move: Transaction, proof: TransactionProof | None) -> Transaction:
    """The move as committed, with the proof that the card still has."""
    tac = b"" if not proof else proof.mac if move.kind == TransactionType.UNLOAD else proof.tac
    return replace(move, tac=tac, outcome=Outcome.COMMITTED)


def _proven(sam: Sam, move: Transaction, proof: TransactionProof) -> Transaction | None:
    """The move with its proof, verified where the SAM still can; None when the proof is another move's."""
    done = _done(move, proof)
    if move.kind.online or (sam.info().serial, sam.open_seq) != (move.sam_serial, move.terminal_seq):
        return done
    try:
        return replace(done, mac2_verified=_checked(lambda: sam.verify_mac2(proof.mac)))
    except MacMismatch:
        return None


def _not_done(journal: Journal, ref: int, move: Transaction, reason: str) -> Transaction:
    journal.not_done(ref, reason)
    return replace(move, outcome=Outcome.NOT_DONE)


def _counter(card: Transport, session: CardSession, move: Transaction) -> int | None:
    """The counter that the move would have raised, from an INITIALIZE; None when the card does not tell it to us.

    A terminal without recharge authority may only begin a refund, and only of the last purchase (card.md §4).
    """
    profile, version = load_profile(), session.version
    try:
        if not move.kind.online:
            kid = profile.key(Purpose.PURCHASE).kid(version)
            return initialize_purchase(card, PURCHASES[move.purse], kid, 0, move.terminal).seq
        if move.kind == TransactionType.UNLOAD:
            return initialize_load(card, move.kind, profile.key(Purpose.UNLOAD).kid(version), 0, move.terminal).seq
        if session.purpose == Purpose.RECHARGE:
            return initialize_load(card, move.kind, profile.key(Purpose.LOAD).kid(version), 0, move.terminal).seq
        kid = profile.key(Purpose.REFUND).kid(version)
        return initialize_load(card, move.kind, kid, move.amount_fen, move.terminal).seq
    except (StatusError, Refused):
        return None


def _ask_log(card: Transport, move: Transaction) -> Outcome:
    """Look for the number after ``move.card_seq`` among the log records that the same counter numbered."""
    after = move.card_seq + 1 & 0xFFFF
    newest = None
    for record in iter_log(card):
        kind = TransactionType._value2member_map_.get(record.kind)
        if not isinstance(kind, TransactionType) or (kind.purse, kind.online) != (move.purse, move.kind.online):
            continue
        newest = record.seq if newest is None else newest
        if record.seq == after:
            found = (kind, record.amount_fen, record.terminal, record.when)
            same = found == (move.kind, move.amount_fen, move.terminal, move.when)
            return Outcome.COMMITTED if same else Outcome.NOT_DONE
    return Outcome.NOT_DONE if newest == move.card_seq else Outcome.UNKNOWN
