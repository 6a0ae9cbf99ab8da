"""What all terminals share: one tap from card to receipt, its faults in words, recovery of what was torn.

A tap leases the SAM, authenticates both ways, first settles what this card left open here, then acts. Every
refusal leaves as ``Refused`` with a code of ``terminals.reasons``; a lost answer as ``OutcomeUnknown``; a card
pulled away before anything moved as ``TransportError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, cast

from cardlib.apdu import SW
from cardlib.errors import (
    CardRemoved,
    Conflict,
    DatabaseError,
    FormatError,
    LineTimeout,
    MacMismatch,
    NotFound,
    OneCardError,
    OutcomeUnknown,
    Refused,
    StatusError,
    TransportError,
)
from cardlib.iso7816 import (
    external_authenticate,
    get_challenge,
    pin_bytes,
    read_record,
    tries_left,
    update_record,
    verify_pin,
)
from cardlib.profile import DayCounters, Purpose, load_profile
from cardlib.purse import CardSession, MoneyRequest, identify, open_application, recover
from cardlib.records import Outcome, Transaction, local_when
from cardlib.sam import Host, Sam
from cardlib.transport import Transport
from terminals.journal import Job, JobState, Journal, LegState
from terminals.policy import Facts, Operation, counted, decide, local_time, uncounted
from terminals.prices import counting_day
from terminals.reasons import BY_CODE, Reason
from terminals.screen import Notice, Say, Screen

if TYPE_CHECKING:  # the configuration knows the rules of every kind of terminal
    from terminals.config import TerminalConfig

COUNTERS_FILE, COUNTERS_RECORD = 0x0017, 1
MAX_SALE = 64
REFUND_INS = 0x74
UNDOING = (Operation.UNDO_OFFLINE, Operation.UNDO_ONLINE)
SAID = {
    Operation.PAY: Say.PAID,
    Operation.UNDO_OFFLINE: Say.UNDONE,
    Operation.UNDO_ONLINE: Say.UNDONE,
    Operation.LOAD: Say.LOADED,
}
PURSE_REFUSALS = {
    "no_undo": Reason.UNDO_UNPROVEN,
    "sam_unusable": Reason.SAM_FAULT,
    "sam_pool_closed": Reason.SAM_FAULT,
}
"""Refusals of other rooms that a terminal has its own word for."""


class SamSource(Protocol):
    """Where a terminal gets its SAM for the length of a tap: ``cardlib.sam.SamPool``, or one in software."""

    def lease(self) -> AbstractContextManager[Sam]:
        """A SAM of one's own."""


class CardSource(Protocol):
    """Where cards come from."""

    def wait(self) -> Transport | None:
        """The next card presented, powered; None when the operator gave up."""


class Lists(Protocol):
    """The terminal's blacklist."""

    @property
    def version(self) -> int:
        """Version in force, 0 for none."""

    @property
    def created_ms(self) -> int | None:
        """When the list was last known to be true; None for none."""

    def lookup(self, card_serial: bytes) -> Reason | None:
        """Why a card is listed, or None."""


class Office(Protocol):
    """The back office over a line; its methods raise Refused when it says no, TransportError when it is away."""

    @property
    def host(self) -> Host:
        """Keys that no terminal holds."""

    def loading(self, request_id: str) -> Host:
        """The host for one load that was allowed: what it computes is good for that alone."""

    def allow_undo(self, paid: Transaction) -> None:
        """The payment is in the books, genuine, and not undone yet; its load is :func:`undo_request`."""

    def allow_load(self, card_serial: bytes, amount_fen: int, request_id: str, shift: int) -> None:
        """The card's main purse may be loaded by this much for cash of a shift."""

    def redeem(self, card_serial: bytes, number: str, secret: str) -> int:
        """The card's main purse may be loaded by a voucher's amount (fen), under the sale ``voucher:NUMBER``."""

    def claim(self, card_serial: bytes, balance_fen: int) -> tuple[str, int]:
        """The subsidy purse, which holds ``balance_fen``, may be loaded: the sale ``claim:PERIOD:...`` and fen."""


def undo_request(paid: Transaction) -> str:
    """Request id of the load that undoes a payment."""
    return f"undo:{paid.origin.hex()}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a job ended: its purse transactions with their proofs. ``recovered``: found out at a later tap."""

    job: Job
    moves: tuple[Transaction, ...]
    recovered: bool = False

    @property
    def amount_fen(self) -> int:
        """Money that moved; less than ``job.amount_fen`` when the job is PARTIAL."""
        return self.job.committed_fen

    @property
    def balance_fen(self) -> int:
        """What the last purse holds afterwards."""
        return self.moves[-1].balance_after_fen


@dataclass(frozen=True, slots=True)
class Tap:
    """One card on the reader, authenticated, with the SAM that did it."""

    card: Transport
    sam: Sam
    session: CardSession
    office: Office | None = None


class _Guard:
    """A SAM or host whose own faults are told apart from the card's: each call runs within ``errors``."""

    __slots__ = ("_errors", "_inner")

    def __init__(self, inner: object, errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._errors = errors

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the one inside has
        value = getattr(self._inner, name)
        return self._call(value) if callable(value) else value

    def _call(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            with self._errors():
                return method(*args, **options)

        return call


def guarded_sam(sam: Sam) -> Sam:
    """The SAM with its faults as Refused ``sam_fault``, ``key_version``, ``undo_unproven``."""
    return cast("Sam", _Guard(sam, _sam_errors))


def guarded_host(host: Host) -> Host:
    """The host with its faults as Refused ``host_unreachable``, ``host_refused``, ``key_version``."""
    return cast("Host", _Guard(host, host_errors))


@contextmanager
def _sam_errors() -> Iterator[None]:
    try:
        yield
    except (NotFound, StatusError) as e:
        if isinstance(e, StatusError) and e.command[1] == REFUND_INS and e.sw == SW.CONDITIONS:
            raise Reason.UNDO_UNPROVEN.refusal("the SAM has confirmed another payment since") from e
        missing = isinstance(e, NotFound) or e.sw in {SW.KEY_INDEX, SW.KEY_NOT_FOUND}
        raise (Reason.KEY_VERSION if missing else Reason.SAM_FAULT).refusal(str(e)) from e
    except (TransportError, FormatError) as e:
        raise Reason.SAM_FAULT.refusal(str(e)) from e


@contextmanager
def host_errors() -> Iterator[None]:
    """The back office's faults as refusals."""
    try:
        yield
    except (TransportError, DatabaseError, OSError) as e:
        raise Reason.HOST_UNREACHABLE.refusal(str(e)) from e
    except NotFound as e:
        raise Reason.KEY_VERSION.refusal(str(e)) from e
    except (StatusError, FormatError, Conflict) as e:
        raise Reason.HOST_REFUSED.refusal(str(e)) from e
    except Refused as e:
        if e.reason in BY_CODE:
            raise
        raise Reason.HOST_REFUSED.refusal(str(e)) from e


@contextmanager
def told() -> Iterator[None]:
    """A card's misbehaviour as refusals with a reason of the terminals' table."""
    try:
        yield
    except MacMismatch as e:
        raise Reason.ILLEGAL_CARD.refusal(str(e)) from e
    except FormatError as e:
        raise Reason.ILLEGAL_CARD.refusal(str(e)) from e
    except StatusError as e:
        raise Reason.CARD_REFUSED.refusal(str(e)) from e
    except Refused as e:
        if e.reason in PURSE_REFUSALS:
            raise PURSE_REFUSALS[e.reason].refusal(str(e)) from e
        raise


class Terminal:
    """The shared part of POS and recharge terminal. Everything it touches comes in through here.

    Raises Conflict when the SAM belongs to another enterprise than the configuration says.
    """

    purpose = Purpose.TERMINAL

    def __init__(
        self,
        config: TerminalConfig,
        journal: Journal,
        lists: Lists,
        sams: SamSource,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        screen: Screen,
        office: Office | None = None,
    ) -> None:
        self.config = config
        self.rules = config.rules
        self.journal = journal
        self.lists = lists
        self.now_ms = now_ms
        self.screen = screen
        self.office = office
        self._sams = sams
        self._random_bytes = random_bytes

    # --- shifts ----------------------------------------------------------------------------------------------

    def open_shift(self, operator: str) -> int:
        """Open the next shift and return its number. Raises Refused(no_operator), Conflict when one is open."""
        if not operator:
            raise Reason.NO_OPERATOR.refusal()
        return self.journal.open_shift(operator)

    def totals(self) -> dict[str, int]:
        """What is certain in the open shift, per operation and purse: ``pay_main_count``, ``pay_main_fen``, ..."""
        found: dict[str, int] = {}
        for operation, purse, count, fen in self.journal.moved(self._shift()):
            key = f"{operation.value}_{purse.name.lower()}"
            found |= {f"{key}_count": count, f"{key}_fen": fen}
        return found

    def close_shift(self) -> dict[str, int]:
        """Close the shift and return its totals. Raises Refused(shift_closed); jobs that wait for a card go on."""
        totals = self.totals()
        self.journal.close_shift(" ".join(f"{key}={value}" for key, value in totals.items()))
        return totals

    def _shift(self) -> int:
        shift = self.journal.shift
        if shift is None:
            raise Reason.SHIFT_CLOSED.refusal()
        return shift

    def collected(self, seq: int) -> int:
        """The back office has the journal up to ``seq``; forgets what is old enough and returns how many entries.

        Raises Conflict beyond the end.
        """
        self.journal.ack(seq)
        return self.journal.prune(self.config.keep_ms)

    # --- the tap loop ----------------------------------------------------------------------------------------

    def serve(self, source: CardSource, act: Callable[[Transport], Receipt]) -> Receipt:
        """Take cards until ``act`` has ended; a torn one is asked for again. Raises what ended it otherwise.

        When the operator gives up: OutcomeUnknown while money is in doubt, else CardRemoved.
        """
        lost: OneCardError = CardRemoved("no card was presented")
        self.screen.show(Notice(Say.PRESENT))
        while (card := source.wait()) is not None:
            try:
                receipt = act(card)
            except OutcomeUnknown as e:
                lost = e
                self.screen.show(Notice(Say.PRESENT_AGAIN))
            except TransportError:
                self.screen.show(Notice(Say.PRESENT_AGAIN))
            except Refused as e:
                self.screen.show(Notice(Say.REFUSED, reason=BY_CODE.get(e.reason)))
                if e.reason != Reason.PENDING_OTHER_CARD.code:
                    raise
            else:
                whole = receipt.amount_fen == receipt.job.amount_fen
                say = SAID[receipt.job.operation] if whole else Say.PARTLY
                self.screen.show(Notice(say, receipt.amount_fen, receipt.balance_fen))
                return receipt
            finally:
                card.close()
        raise lost

    @contextmanager
    def tap(self, card: Transport, office: Office | None = None) -> Iterator[Tap]:
        """One authenticated card, by the terminal's SAM, then as recharge authority by the office's host if given.

        Raises Refused with the reason, TransportError when the card is gone.
        """
        with told(), ExitStack() as stack:
            try:
                sam = guarded_sam(stack.enter_context(self._sams.lease()))
            except LineTimeout as e:
                raise Reason.SAM_FAULT.refusal(str(e)) from e
            yield Tap(card, sam, self._open(card, sam, office), office)

    def _open(self, card: Transport, sam: Sam, office: Office | None) -> CardSession:
        enterprise_id = self.config.enterprise_id
        if sam.info().enterprise_id != enterprise_id or sam.info().terminal != self.journal.terminal:
            raise Reason.SAM_FAULT.refusal("the SAM in the terminal is another terminal's")
        try:
            session = open_application(card, sam, enterprise_id, self._random_bytes, self.purpose)
        except Refused as e:
            if e.reason == Reason.APPLICATION_BLOCKED.code:
                self._close_blocked(card, sam)
            raise
        if office is None:
            return session
        self._authenticate(card, guarded_host(office.host), session, Purpose.RECHARGE)
        return replace(session, purpose=Purpose.RECHARGE)

    def _authenticate(self, card: Transport, keys: Sam, session: CardSession, purpose: Purpose) -> None:
        """Prove to a card that has proven itself already that we are somebody else too."""
        cryptogram = keys.authenticate(purpose, session.factor, session.version, get_challenge(card))
        external_authenticate(card, load_profile().key(purpose).kid(session.version), cryptogram)

    def verify_pin(self, tap: Tap, digits: str) -> None:
        """The holder's PIN, then the terminal again: the PIN's state may not write records (profile.md).

        Raises Refused ``pin_wrong`` with the tries left, ``pin_locked``, FormatError for what can't be a PIN.
        """
        try:
            verify_pin(tap.card, pin_bytes(digits))
        except StatusError as e:
            left = tries_left(e)
            if left is None:
                raise
            if left == 0:
                raise Reason.PIN_LOCKED.refusal() from None
            raise Reason.PIN_WRONG.refusal(f"{left} tries left") from None
        self._authenticate(tap.card, tap.sam, tap.session, self.purpose)

    # --- facts -----------------------------------------------------------------------------------------------

    def facts(self, operation: Operation, tap: Tap, amount_fen: int) -> Facts:
        """What every decision needs; operations add their own with ``dataclasses.replace``."""
        info = tap.session.public_info
        created_ms, standing = self.lists.created_ms, self.journal.standing()
        return Facts(
            operation=operation,
            card_serial=tap.session.factor,
            card_enterprise_id=int.from_bytes(info.issuer[4:], "big"),
            amount_fen=amount_fen,
            valid_from=info.start,
            valid_until=info.expiry,
            listed=self.lists.lookup(tap.session.factor),
            list_created_ms=created_ms,
            clock_floor_ms=max(standing.clock_floor_ms, created_ms or 0),
            oldest_uncollected_ms=standing.oldest_uncollected_ms,
            pending_other_card=any(job.card_serial != tap.session.factor for job in self._unresolved()),
            shift=standing.shift,
        )

    def require(self, facts: Facts) -> None:
        """Raise Refused when policy objects."""
        reason = decide(facts, self.rules, self.now_ms()).reason
        if reason is not None:
            raise reason.refusal()

    def _unresolved(self) -> list[Job]:
        return [job for job in self.journal.open_jobs() if job.waiting and not job.suspect]

    def serve_other(self, tap: Tap) -> None:
        """Before money of this card moves: log every other card that is still awaited as suspect."""
        for job in self._unresolved():
            if job.card_serial != tap.session.factor:
                self.journal.mark_suspect(job)

    def request(self, tap: Tap, job: Job, number: int) -> MoneyRequest:
        """One leg of a job as the purse protocol wants it."""
        leg, now_ms = job.legs[number], self.now_ms()
        when = local_when(now_ms, self.rules.utc_offset_min)
        terminal = tap.sam.info().terminal
        return MoneyRequest(
            leg.purse, leg.amount_fen, when, now_ms, self.lists.version, job.sale or f"{job.id}", terminal=terminal
        )

    # --- one leg ---------------------------------------------------------------------------------------------

    def run_leg(self, tap: Tap, job: Job, number: int, act: Callable[[], object]) -> None:
        """Do one purse transaction. Whatever goes wrong, the journal says how far it came before this raises.

        OutcomeUnknown also when an earlier leg stands and the card went away before this one began.
        """
        try:
            act()
        except OutcomeUnknown:
            raise
        except DatabaseError as e:
            if self._planned(job, number):
                raise
            raise OutcomeUnknown(job.id, "the journal can't be written: mend it, then present the same card") from e
        except OneCardError as e:
            half = self._give_up(tap, job, number, gone=isinstance(e, TransportError))
            if half.waiting:
                raise OutcomeUnknown(half.legs[0].intent_seq or 0, _half(half)) from e
            if half.state is JobState.PARTIAL and isinstance(e, Refused):
                raise Refused(e.reason, f"{e}; {_half(half)}") from e
            raise

    def _planned(self, job: Job, number: int) -> bool:
        """Whether the journal knows that a leg has not begun."""
        try:
            return self.journal.job(job.id).legs[number].state is LegState.PLANNED
        except OneCardError:
            return False

    def _give_up(self, tap: Tap, job: Job, number: int, *, gone: bool) -> Job:
        """Close a job of which a leg failed, its counters put right; while the card is gone it stays open."""
        now = self.journal.job(job.id)
        if not gone:
            disputed = now.legs[number].state is LegState.COMMITTED
            try:
                self.settle_counters(tap, now)
            except OneCardError:
                return now
            now = self.journal.finish(now, disputed=disputed)
        return now

    # --- counters on the card --------------------------------------------------------------------------------

    def read_counters(self, tap: Tap) -> DayCounters:
        """The card's day counters (0017 record 01)."""
        return DayCounters.decode(read_record(tap.card, COUNTERS_FILE, COUNTERS_RECORD, by_tag=True))

    def write_counters(self, tap: Tap, counters: bytes) -> None:
        """Replace them."""
        update_record(tap.card, COUNTERS_FILE, COUNTERS_RECORD, counters, by_tag=True)

    def counting_day(self, utc_ms: int) -> tuple[date, int]:
        """Day and meal that a payment of that time counts for."""
        return counting_day(self.rules.prices.periods, local_time(utc_ms, self.rules.utc_offset_min))

    def counters_by_leg(self, job: Job) -> list[bytes]:
        """The record as it must be when 0, 1, 2 legs of a job are done; empty when the job does not count."""
        if job.counters is None:
            return []
        base = DayCounters.decode(job.counters)
        sums = list(accumulate(leg.amount_fen for leg in job.legs))
        if job.operation is Operation.PAY:
            day, meal = self.counting_day(job.utc_ms)
            after = [counted(base, day, fen, meal=meal) for fen in sums]
        else:
            day, meal = self.counting_day(self.journal.job(job.undo_of or 0).utc_ms)
            last = len(sums) - 1
            after = [uncounted(base, day, fen, int(n == last), meal) for n, fen in enumerate(sums)]
        return [job.counters, *(record.encode() for record in after)]

    def settle_counters(self, tap: Tap, job: Job) -> None:
        """Make the counters say what was really paid (profile.md): they are written before a subsidy payment.

        A record that another terminal has written since is left alone: a counter may be off, never money.
        """
        stages = self.counters_by_leg(job)
        if not stages:
            return
        right = stages[len(job.committed)]
        found = self.read_counters(tap).encode()
        if found != right and found in stages:
            self.write_counters(tap, right)

    # --- recovery --------------------------------------------------------------------------------------------

    def resolve(self, tap: Tap, keep: Callable[[Job], bool]) -> Job | None:
        """Find out how everything ended that this card left open here, and close it.

        A half-done job that ``keep`` wants is returned to be continued. Raises TransportError when the card
        leaves again: everything is as it was, or better.
        """
        kept = None
        for job in self.journal.open_jobs():
            if job.card_serial == tap.session.factor:
                known = self._find_out(tap, job)
                self.settle_counters(tap, known)
                undecided = any(leg.state is LegState.IN_DOUBT for leg in known.legs)
                if known.committed and len(known.committed) < len(known.legs) and not undecided and keep(known):
                    kept = known
                else:
                    self.journal.finish(known)
        return kept

    def _find_out(self, tap: Tap, job: Job) -> Job:
        for leg in job.legs:
            if leg.state is LegState.INTENT:
                move = self.journal.transaction(leg)
                writer = self.journal.leg(job, leg.number)
                ended = recover(tap.card, tap.sam, writer, tap.session, leg.intent_seq or 0, move)
                if ended.outcome is Outcome.UNKNOWN:
                    self.journal.doubt(job, leg.number)
        return self.journal.job(job.id)

    def _close_blocked(self, card: Transport, sam: Sam) -> None:
        """A blocked application still proves its last payment; believed only while the SAM can check MAC2."""
        session = identify(card, self.config.enterprise_id)
        for job in self.journal.open_jobs():
            for leg in job.legs:
                if job.card_serial == session.factor and leg.state is LegState.INTENT:
                    move = self.journal.transaction(leg)
                    if sam.open_seq == move.terminal_seq:
                        recover(card, sam, self.journal.leg(job, leg.number), session, leg.intent_seq or 0, move)

    # --- sales -----------------------------------------------------------------------------------------------

    def known(self, sale: str, amount_fen: int, *, recovered: bool = False) -> Receipt | None:
        """What a sale number gave before, or None when it moved no money.

        Raises Conflict when it was for another amount, OutcomeUnknown when only settlement can tell.
        """
        if len(sale.encode()) > MAX_SALE:
            raise Conflict(f"a sale number has at most {MAX_SALE} bytes")
        job = self.journal.sale(sale) if sale else None
        if job is None or job.state is JobState.OPEN:
            return None
        if job.amount_fen != amount_fen:
            raise Conflict(f"sale {sale} was for {job.amount_fen} fen, not {amount_fen}")
        if job.state is JobState.IN_DOUBT:
            raise OutcomeUnknown(job.legs[0].intent_seq or 0, f"sale {sale} is in doubt until settlement")
        return self.receipt(job, recovered=recovered)

    def receipt(self, job: Job, *, recovered: bool = False) -> Receipt:
        """What the journal says of an ended job."""
        return Receipt(job, tuple(self.journal.transaction(leg) for leg in job.committed), recovered)


def _half(job: Job) -> str:
    return f"{job.committed_fen} of {job.amount_fen} fen moved: present the same card again"
