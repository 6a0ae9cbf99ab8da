"""The back office with a card in its reader: its host, its journal, and jobs that a crash can't lose.

What it does to a card's money goes the way of every terminal: intent, proof, record, settlement. Only the
account that stands against it is named by an order, since nobody at a till was paid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from threading import local
from typing import Any, cast

import cbor2

from backoffice import chips, jobs, journals, registry, rotation
from backoffice.database import Database, Tx
from backoffice.jobs import Job, Result
from backoffice.operators import Operator, Role
from backoffice.registry import TerminalKind
from backoffice.sequences import Position
from backoffice.settlement import observe, settle_cards
from cardlib.apdu import Command
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, FormatError, MacMismatch, NotFound, OneCardError, OutcomeUnknown, Refused
from cardlib.iso7816 import get_challenge
from cardlib.ota import AirCard
from cardlib.profile import (
    CardKind,
    PublicInfo,
    Purpose,
    Purse,
    TransactionType,
    aid,
    issuer_id,
    load_profile,
    make_serial,
)
from cardlib.purse import (
    LOADS,
    CardSession,
    identify,
    initialize_load,
    initialize_purchase,
    open_application,
    prove,
    recover,
)
from cardlib.records import DEFAULT_OFFSET_MIN, Event, JournalEntry, Outcome, Transaction, genesis, tac_input
from cardlib.sam import Host
from cardlib.transport import Transport
from keymgmt.delivery import KeySource, StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.personalise import APP_TYPE, Station
from keymgmt.rotate import active_version
from keymgmt.softsam import SoftSam
from keymgmt.store import KeyStore

OFFICE_TERMINAL = b"OFFICE"
"""Terminal number under which the back office itself moves money: merchant "office" (profile.md, Emptying a card)."""
BLOCK = 1024
"""Terminal sequences that one opening of the office's SAM takes for itself; gaps are normal (card.md §7.4)."""
SERIALS = 16
"""Card serials fetched at a time."""
ZERO = -1_000_000
"""Reference of a move of zero: it is not written before it happened, since no money can be lost by it."""
_ERRORS: dict[str, type[OneCardError]] = {"NotFound": NotFound, "Conflict": Conflict, "FormatError": FormatError}


def office_serial(enterprise_id: int) -> bytes:
    """Serial of the office's SAM: of kind SAM, platform 0, where no real SAM is."""
    return make_serial(CardKind.SAM, 0, enterprise_id)


class SequenceBlock:
    """A SAM's memory whose sequences come from the database, a block at a time: see ``keymgmt.softsam.SamMemory``."""

    def __init__(self, db: Database, enterprise_id: int, sam_serial: bytes) -> None:
        self._db, self._key = db, (enterprise_id, sam_serial)
        self._end = self.left = 0

    def load(self) -> bytes:
        """Take the next block."""
        with self._db.write() as tx:
            self._end = tx.value(
                "INSERT INTO station_sequence VALUES (?, ?, ?) ON CONFLICT (enterprise_id, sam_serial)"
                " DO UPDATE SET next_seq = station_sequence.next_seq + ? RETURNING next_seq",
                (*self._key, 1 + BLOCK, BLOCK),
            )
        self.left = BLOCK
        return cbor2.dumps([self._end - BLOCK, []])

    def save(self, state: bytes) -> None:
        """Nothing to keep: the whole block is given out already. Raises Refused when it is used up."""
        self.left = self._end - cbor2.loads(state)[0]
        if self.left < 0:
            raise Refused("station_sequence", "the station used up its numbers: open it again")


class Work:
    """A job in hand, phase by phase: what is done is known without asking again, and marked with one write."""

    def __init__(self, job: Job, steps: list[jobs.Step]) -> None:
        self.job, self.info, self.enterprise_id = job, job.info, job.enterprise_id
        self._results = {step.step: step.result for step in steps if step.state == "done"}

    def result(self, phase: str) -> Result | None:
        """What a phase came to, None while it is not done."""
        return self._results.get(phase)

    def conclude(self, name: str, act: Callable[[Tx], Result]) -> Result:
        """Do what only writes this database and end the job with what it returns, in one transaction."""
        return self.job.conclude(name, act)

    def under(self, prefix: str) -> list[str]:
        """What follows ``prefix`` in the names of phases done."""
        return [name.removeprefix(prefix) for name in self._results if name.startswith(prefix)]

    def phase(self, name: str, act: Callable[[], Result | None]) -> Result:
        """Do what touches the world, unless it is done. After a crash it runs again and must see what is there."""
        if name not in self._results:
            result = act() or {}
            self.job.done(name, result)
            self._results[name] = result
        return self._results[name]

    def once(self, name: str, act: Callable[[Tx], Result | None]) -> Result:
        """Do what only writes this database, and mark it in the same transaction."""
        if name not in self._results:
            self._results[name] = self.job.once(name, act)
        return self._results[name]


class PhaseSteps:
    """Steps of keymgmt within a phase: it asks the card, so only a refused key must outlive a crash."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen: dict[str, list[str]] = {}

    def done(self, job: str, step: str) -> None:
        """See ``keymgmt.steps.StepJournal``."""
        if "refused" in step:
            self._work.phase(f"{job}/{step}", lambda: None)
        self._seen.setdefault(job, []).append(step)

    def steps(self, job: str) -> list[str]:
        """See ``keymgmt.steps.StepJournal``."""
        return self._work.under(f"{job}/") + self._seen.get(job, [])


@dataclass(frozen=True, slots=True)
class IssuingStation:
    """Issuing without a key store: keys from a mother card, everything else by the issuing SAM (keys.md)."""

    keys: KeySource
    host: Host
    key_set: int


class _NoStore:
    """Stands for the key store at a station that has none."""

    def __getattr__(self, name: str) -> object:
        raise Refused("no_key_store", "this station has a mother card and no key store: do this where the store is")


def no_store() -> KeyStore:
    """A key store whose every use is Refused ``no_key_store``."""
    return cast("KeyStore", _NoStore())


@dataclass(frozen=True, slots=True)
class Office:
    """Everything the flows need: databases, keys, clock, randomness.

    ``platform_operator`` acts for the platform (washing, slots) where both are one organisation; ``initial`` is
    the vendor's key of cards that are not washed yet, ``batch_key`` unwraps those of chips in a batch file,
    ``card_version`` is that of the platform's keys in their MF. With ``issuing`` cards are personalised without
    ``store``.
    """

    platform: Database
    db: Database
    enterprise_id: int
    store: KeyStore
    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    platform_operator: Operator | None = None
    initial: KeyHandle | None = None
    offset_min: int = DEFAULT_OFFSET_MIN
    card_version: int = 1
    label: str = "ONECARD"
    issuing: IssuingStation | None = None
    batch_key: bytes | None = field(default=None, repr=False)
    _kept: local = field(default_factory=local, repr=False, compare=False)

    @property
    def key_set(self) -> int:
        """The version of the enterprise's keys that new cards get and others are brought to (keys.md, Rotation)."""
        return self.issuing.key_set if self.issuing else active_version(self.store, self.enterprise_id)

    def host(self) -> SoftSam:
        """The office's SAM as this thread has it open; no two openings share a sequence."""
        kept: tuple[SequenceBlock, SoftSam] | None = getattr(self._kept, "host", None)
        if kept is None or kept[0].left < BLOCK // 2:
            serial = office_serial(self.enterprise_id)
            memory = SequenceBlock(self.db, self.enterprise_id, serial)
            host = SoftSam(self.store, self.enterprise_id, OFFICE_TERMINAL, serial, memory)
            kept = self._kept.host = memory, host
        return kept[1]

    def next_serial(self, kind: CardKind) -> bytes:
        """A serial never given before; a few are fetched at a time, those not used are gaps."""
        waiting: dict[CardKind, list[bytes]] = self._kept.__dict__.setdefault("serials", {})
        if not waiting.get(kind):
            with self.platform.write() as tx:
                waiting[kind] = [chips.next_serial(tx, kind) for _ in range(SERIALS)][::-1]
        return waiting[kind].pop()

    def algorithm(self, key_set: int) -> Algorithm:
        """Algorithm of the enterprise's keys of a version."""
        if self.issuing:
            return next(line.algorithm for line in self.issuing.keys.lines() if line.version == key_set)
        return self.store.handle(KeyRef(Purpose.CONTROL, key_set, self.enterprise_id)).algorithm

    def source(self) -> KeySource:
        """What fills key files: the key store, or the mother card of a station without one."""
        return self.issuing.keys if self.issuing else StoreKeys(self.store, self.enterprise_id)

    def ready(self, tx: Tx) -> None:
        """Register the office as a terminal, once. Raises Refused ``sam`` where an issuing SAM is not registered."""
        found = registry.sams(tx, self.enterprise_id)
        if self.issuing:
            info = self.issuing.host.info()
            sam = found.get(info.serial)
            if sam is None or (sam.terminal, sam.kind, sam.state) != (info.terminal, TerminalKind.ISSUING, "active"):
                name, terminal = info.serial.hex().upper(), info.terminal.hex().upper()
                raise Refused(
                    "sam", f"issuing SAM {name} is not in use here: onecard terminal register {terminal} --kind issuing"
                )
            return
        serial = office_serial(self.enterprise_id)
        if serial not in found:
            actor = Operator(self.enterprise_id, "office", Role.ADMINISTRATOR)
            registry.register(tx, actor, self.enterprise_id, OFFICE_TERMINAL, TerminalKind.OFFICE, "office")
            registry.fit_sam(tx, actor, self.enterprise_id, OFFICE_TERMINAL, serial)

    def desk(self, work: Work, account: str = "") -> Desk:
        """What one job works with at the reader; money it moves stands against ``account``."""
        return Desk(self, work, self.issuing.host if self.issuing else self.host(), account)


@dataclass(slots=True)
class Desk:
    """One job at the reader: its host, and its journal in the books (``cardlib.purse.Journal``)."""

    office: Office
    work: Work
    host: Host
    account: str
    _foreign: dict[int, str] = field(default_factory=dict)
    _proofs: list[Transaction] = field(default_factory=list)
    _renews: bool = False

    def station(self) -> Station:
        """The same for :mod:`keymgmt`."""
        office = self.office
        steps = PhaseSteps(self.work)
        return Station(self.host, office.source(), steps, self, office.now_ms, office.random_bytes, office.offset_min)

    @property
    def terminal(self) -> bytes:
        """Under which number this desk moves money: the office's, or that of its issuing SAM."""
        return self.host.info().terminal

    def order(self, serial: bytes, purse: Purse, amount_fen: int) -> str:
        """Request id under which this job moves an amount; the same move of the same job is the same order."""
        return f"{self.work.info.job_id}:{serial.hex()}:{purse.value}:{amount_fen}"

    # Journal

    def intent(self, move: Transaction) -> int:
        """See ``cardlib.purse.Journal``: the record and its order, in one transaction with the chain."""
        if not move.amount_fen and not self._renews:
            return ZERO
        with self.office.db.write() as tx:
            self.work.job.hold(tx)
            self.office.ready(tx)
            if move.amount_fen:
                move = replace(move, request_id=self.order(move.card_serial, move.purse, move.amount_fen))
            if self.account and move.amount_fen:
                tx.execute(
                    "INSERT INTO money_order (enterprise_id, request_id, kind, card_serial, purse, amount_fen, account,"
                    " operator, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (move.enterprise_id, move.request_id, self.work.info.kind, move.card_serial, int(move.purse),
                     move.amount_fen, self.account, self.work.info.actor, tx.now_ms),
                )  # fmt: skip
            return self._append(tx, Event.INTENT, None, move)

    def committed(self, ref: int, move: Transaction) -> None:
        """See ``cardlib.purse.Journal``: posted in the same transaction."""
        if ref == ZERO:
            self._proofs.append(move)
            return
        with self.office.db.write() as tx:
            if ref in self._foreign:
                journals.close_record(tx, move.enterprise_id, self._foreign[ref], Outcome.COMMITTED, move.tac)
            else:
                stamped = replace(self._intent(tx, ref), tac=move.tac, mac2_verified=move.mac2_verified)
                self._append(tx, Event.COMMITTED, ref, replace(stamped, outcome=Outcome.COMMITTED))
            settle_cards(tx, move.enterprise_id, self.host, [move.card_serial], self.office.offset_min)

    def not_done(self, ref: int, reason: str) -> None:
        """See ``cardlib.purse.Journal``."""
        if ref == ZERO:
            return
        with self.office.db.write() as tx:
            enterprise_id = self.office.enterprise_id
            if ref in self._foreign:
                record_id = self._foreign[ref]
                journals.close_record(tx, enterprise_id, record_id, Outcome.NOT_DONE, b"", reason)
                serial = journals.load_move(tx, enterprise_id, record_id).card_serial
            else:
                serial = self._intent(tx, ref).card_serial
                self._append(tx, Event.NOT_DONE, ref, None, reason)
            settle_cards(tx, enterprise_id, self.host, [serial], self.office.offset_min)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Proofs of new keys on a card in use are journaled like payments: they use up numbers of its counter."""
        self._renews = True
        try:
            yield
        finally:
            self._renews = False

    def prove_new(self, tx: Tx, serial: bytes) -> None:
        """Write the payments of zero that proved a new application, checked as they were made (keys.md, Washing).

        Its certain records begin after them: torn attempts of zero before leave no gap. Where the TAC key was not at
        hand, settlement checks them.
        """
        enterprise_id, last = self.office.enterprise_id, self._proofs[-1]
        self.office.ready(tx)
        entries: list[JournalEntry] = []
        for move in self._proofs:
            entries.append(self._next(tx, entries, Event.INTENT, None, journals.intent_of(move)))
            entries.append(self._next(tx, entries, Event.COMMITTED, entries[-1].seq, move))
        hashes = [entry.previous for entry in entries[1:]] + [entries[-1].hash]
        journals.take(tx, enterprise_id, self.terminal, entries, hashes)
        checked = "verdict = 'posted', genuine = 1, booked = 'yes', open = 0, " if self.host.holds(Purpose.TAC) else ""
        tx.execute(
            f"UPDATE transaction_record SET {checked}chained = 1"
            " WHERE enterprise_id = ? AND card_serial = ? AND open = 1 AND amount_fen = 0",
            (enterprise_id, serial),
        )
        begins = Position(0, last.card_seq + 1, 0)
        observe(tx, enterprise_id, serial, last.purse, begins, self.office.now_ms(), fresh=True)
        self._proofs.clear()

    def _next(
        self,
        tx: Tx,
        before: list[JournalEntry],
        event: Event,
        ref: int | None,
        move: Transaction | None,
        reason: str = "",
    ) -> JournalEntry:
        """The entry that follows ``before``, or the end of the journal as it is here."""
        if before:
            seq, previous = before[-1].seq, before[-1].hash
        else:
            last = tx.one(
                "SELECT last_seq, last_hash FROM journal_span WHERE enterprise_id = ? AND terminal = ?",
                (self.office.enterprise_id, self.terminal),
            )
            seq, previous = (last[0], last[1]) if last else (0, genesis(self.office.enterprise_id, self.terminal))
        return JournalEntry(seq + 1, event, ref, move, reason, self.office.now_ms(), previous)

    def _append(self, tx: Tx, event: Event, ref: int | None, move: Transaction | None, reason: str = "") -> int:
        entry = self._next(tx, [], event, ref, move, reason)
        journals.take(tx, self.office.enterprise_id, self.terminal, [entry], [entry.hash])
        return entry.seq

    def _intent(self, tx: Tx, ref: int) -> Transaction:
        row = tx.one(
            "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND terminal = ? AND journal_seq = ?",
            (self.office.enterprise_id, self.terminal, ref),
        )
        if row is None:
            raise NotFound(f"the office's journal has no intent {ref}")
        return journals.load_move(tx, self.office.enterprise_id, row["record_id"])

    # Cards

    def open_moves(self, card_serial: bytes) -> list[tuple[int, Transaction]]:
        """Moves of a card whose outcome nobody knows, of whichever terminal: the card in the reader can tell."""
        enterprise_id = self.office.enterprise_id
        found = []
        with self.office.db.read() as tx:
            for row in tx.all(
                "SELECT record_id, terminal, journal_seq FROM transaction_record WHERE enterprise_id = ?"
                " AND card_serial = ? AND open = 1 AND outcome = ? ORDER BY utc_ms, record_id",
                (enterprise_id, card_serial, int(Outcome.UNKNOWN)),
            ):
                ref = row["journal_seq"]
                if row["terminal"] != self.terminal:
                    ref = -1 - len(self._foreign)
                    self._foreign[ref] = row["record_id"]
                found.append((ref, journals.load_move(tx, enterprise_id, row["record_id"])))
        return found

    def open_card(self, card: Transport, serial: bytes) -> CardSession:
        """Open the application as recharge authority, close what is open, note what the card says of its purses.

        Its keys are renewed first where that is due (keys.md, Rotation). Raises Conflict when another card is there,
        OutcomeUnknown when a move of this job can't be told.
        """
        if isinstance(card, AirCard):
            return self._open_air(card, serial)
        enterprise_id = self.office.enterprise_id
        found = identify(card, enterprise_id)
        if found.factor != serial:
            raise Conflict(f"this is card {found.factor.hex().upper()}: present card {serial.hex().upper()}")
        if not found.blocked:
            rotation.renew(self, card, found)
        session = open_application(card, self.host, enterprise_id, self.office.random_bytes, Purpose.RECHARGE)
        for ref, move in self.open_moves(serial):
            ended = recover(card, self.host, self, session, ref, move)
            if ended.outcome is Outcome.UNKNOWN and move.request_id.startswith(self.work.info.job_id):
                raise OutcomeUnknown(ref, f"whether {move.amount_fen} fen moved can't be told by the card any more")
        self.sight(card, session)
        return session

    def _open_air(self, card: AirCard, serial: bytes) -> CardSession:
        """The same over the air, with the scripts of ota.md only; balances are told by the INITIALIZE that follows.

        Its authentication goes ahead of the next command. Who the card is follows from its keyset.
        """
        office, enterprise_id = self.office, self.office.enterprise_id
        for ref, move in self.open_moves(serial):
            if move.kind in LOADS.values():
                self._ask_proof(card, ref, move)
        session = self._known(serial)
        if session.version != office.key_set:
            rotation.renew(self, card, identify(card, enterprise_id))
            session = self._known(serial)
        card.ahead(_select(enterprise_id))
        cryptogram = self.host.authenticate(Purpose.RECHARGE, serial, session.version, get_challenge(card, 8))
        kid = load_profile().key(Purpose.RECHARGE).kid(session.version)
        card.ahead(Command(0x00, 0x82, 0x00, kid, cryptogram))
        for ref, move in self.open_moves(serial):
            ended = recover(card, self.host, self, session, ref, move)
            if ended.outcome is Outcome.UNKNOWN and move.request_id.startswith(self.work.info.job_id):
                raise OutcomeUnknown(ref, f"whether {move.amount_fen} fen moved can't be told by the card any more")
        return session

    def _ask_proof(self, card: AirCard, ref: int, move: Transaction) -> None:
        """Close an open load by its proof, if the card has one (ota.md, Sessions, proof, retry).

        Its answer under a higher counter shows that the lost CREDIT can no longer come.
        """
        card.ahead(_select(move.enterprise_id))
        proof = prove(card, move.kind, move.card_seq + 1 & 0xFFFF)
        if proof is None:
            return
        try:
            self.host.verify_tac(move.card_serial, move.key_version, move.algorithm, tac_input(move), proof.tac)
        except MacMismatch:
            self.not_done(ref, "the card proves another move under this number")
            return
        self.committed(ref, replace(move, tac=proof.tac, mac2_verified=True, outcome=Outcome.COMMITTED))

    def _known(self, serial: bytes) -> CardSession:
        """What the books know of a card that is not here. Raises NotFound."""
        with self.office.db.read() as tx:
            row = tx.one(
                "SELECT key_version, starts, expires FROM card_application WHERE enterprise_id = ? AND card_serial = ?",
                (self.office.enterprise_id, serial),
            )
        if row is None:
            raise NotFound(f"enterprise {self.office.enterprise_id} has no card {serial.hex().upper()}")
        starts, expires = date.fromisoformat(row["starts"]), date.fromisoformat(row["expires"])
        issuer = issuer_id(self.office.enterprise_id)
        info = PublicInfo(issuer, APP_TYPE, row["key_version"], b"\0\0" + serial, starts, expires)
        return CardSession(self.office.enterprise_id, info, Purpose.RECHARGE)

    def sight(self, card: Transport, session: CardSession) -> dict[Purse, Position]:
        """Ask the card for balances and counters, and keep what it says for reconciliation."""
        office = self.office
        seen = {purse: position_on(card, self.host, session, purse) for purse in Purse}
        with office.db.write() as tx:
            for purse, said in seen.items():
                observe(tx, office.enterprise_id, session.factor, purse, said, office.now_ms())
            settle_cards(tx, office.enterprise_id, self.host, [session.factor], office.offset_min)
        return seen

    def moved(self, serial: bytes, purse: Purse, amount_fen: int) -> Transaction | None:
        """The committed move of this job's order, if it was carried out. Raises MacMismatch for a wrong proof."""
        enterprise_id = self.office.enterprise_id
        with self.office.db.read() as tx:
            row = tx.one(
                "SELECT record_id, verdict, cause FROM transaction_record WHERE enterprise_id = ? AND request_id = ?"
                " AND outcome = ?",
                (enterprise_id, self.order(serial, purse, amount_fen), int(Outcome.COMMITTED)),
            )
            if row is not None and row["verdict"] == "forged":
                raise MacMismatch(f"card {serial.hex().upper()} is not genuine, its proof was wrong: {row['cause']}")
            return journals.load_move(tx, enterprise_id, row["record_id"]) if row else None


def _select(enterprise_id: int) -> Command:
    return Command(0x00, 0xA4, 0x04, 0x00, aid(enterprise_id))


def position_on(card: Transport, host: Host, session: CardSession, purse: Purse) -> Position:
    """Balance and counters as the card tells them to a recharge authority, by INITIALIZE of nothing (card.md §4)."""
    profile, terminal = load_profile(), host.info().terminal
    pay = TransactionType.PURCHASE_EP if purse is Purse.MAIN else TransactionType.PURCHASE_ED
    add = TransactionType.LOAD_EP if purse is Purse.MAIN else TransactionType.LOAD_ED
    offline = initialize_purchase(card, pay, profile.key(Purpose.PURCHASE).kid(session.version), 0, terminal)
    online = initialize_load(card, add, profile.key(Purpose.LOAD).kid(session.version), 0, terminal)
    return Position(online.balance_fen, offline.seq, online.seq)


def run(
    office: Office,
    operator: Operator,
    kind: str,
    subject: str,
    arguments: dict[str, Any],
    request_id: str | None,
    act: Callable[[Work], Result],
) -> Result:
    """Do a job, continue the one that was interrupted, or give the outcome that this request id had.

    An error before its first step ends the job: nothing was begun. Later ones leave it to be continued.
    """
    enterprise_id = office.enterprise_id
    with office.db.write() as tx:
        _make_way(tx, enterprise_id, kind, subject, arguments)
        info = jobs.start(tx, enterprise_id, kind, subject, arguments, operator.name, request_id)
        if info.state != "running":
            return outcome_of(info)
        job = jobs.seize(tx, office.db, enterprise_id, info.job_id)
        steps = jobs.steps(tx, enterprise_id, info.job_id)
    with jobs.working(job):
        with _ends_before_first_step(office, job):
            result = act(Work(job, steps))
        if job.info.state != "running":
            return result
        if result.get("state") == "waiting":
            return {"job": info.job_id, **result}
        return job.finish({"job": info.job_id, **result})


def begun(tx: Tx, enterprise_id: int, job_id: str) -> bool:
    """Whether a job did anything that lasts: a step, or money that moved or may have."""
    return bool(jobs.steps(tx, enterprise_id, job_id)) or tx.one(
        "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND request_id BETWEEN ? AND ?"
        " AND outcome <> ? LIMIT 1",
        (enterprise_id, f"{job_id}:", f"{job_id};", int(Outcome.NOT_DONE)),
    ) is not None  # fmt: skip


def _make_way(tx: Tx, enterprise_id: int, kind: str, subject: str, arguments: dict[str, Any]) -> None:
    """Cancel a job that was asked for and never began, so that another with other arguments can."""
    for job_id in jobs.idle_others(tx, enterprise_id, kind, subject, arguments):
        if not begun(tx, enterprise_id, job_id):
            jobs.cancel(tx, enterprise_id, job_id, "nothing was done: another request took its place")


@contextmanager
def _ends_before_first_step(office: Office, job: Job) -> Iterator[None]:
    try:
        yield
    except (Refused, NotFound, Conflict, FormatError) as error:
        with office.db.read() as tx:
            lasting = begun(tx, office.enterprise_id, job.info.job_id)
        if not lasting:
            job.fail(error)
        raise


def outcome_of(info: jobs.Info) -> Result:
    """What a finished job came to. Raises the error that ended it."""
    if "error" not in info.outcome:
        return info.outcome
    message = info.outcome["message"]
    if info.outcome["error"] == "Refused":
        raise Refused(info.outcome["reason"], message)
    raise _ERRORS.get(info.outcome["error"], Conflict)(message)
