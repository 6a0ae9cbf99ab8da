"""Sends what the queue holds: one job after the other for each card, again until it is proven (ota.md).

The work behind an entry is the flow of every desk, with a card behind scripts instead of one in a reader. A process
that is killed leaves an entry that the next one takes over, and a counter on disk that is never used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from backoffice import airkeys, airmenu, cards, chips, jobs, members, wallet
from backoffice.airkeys import AirKeys
from backoffice.airqueue import MONEY, OPEN, AirJob, AirState, get, inner_id, write
from backoffice.cards import NewCard
from backoffice.database import PLATFORM, Tx
from backoffice.jobs import LEASE_MS, Result
from backoffice.operators import Operator, Permission, Role, require
from backoffice.station import Office
from cardlib.apdu import SW, Command
from cardlib.errors import (
    Conflict,
    DatabaseError,
    LineTimeout,
    NotFound,
    OneCardError,
    Refused,
    StatusError,
    TransportError,
)
from cardlib.iso7816 import MF, Protect, block_application, delete_df, unblock_application, update_binary
from cardlib.ota import ISSUER_TAR, ONE_CARD_SPI, AirCard, command, put_key_set
from cardlib.profile import CardKind, Purpose, aid, load_profile
from cardlib.records import Outcome
from cardlib.transport import send
from keymgmt.keys import KeyRef
from keymgmt.personalise import protector
from keymgmt.softsam import protector as key_protector

ATTEMPTS = 8
"""Times that a job is begun before a person has to look; each sends a packet ``TRIES`` times."""
TRIES = 3
FIRST_RETRY_MS, LAST_RETRY_MS = 30_000, 3_600_000
SCAN = 200
HERE_ALREADY = 0x6A86
"""PUT KEY says that the keyset is there: it is replaced."""
S = AirState


class Carrier(Protocol):
    """The way to a phone: a message centre, or a simulated phone."""

    def carry(self, number: str, user_data: list[bytes]) -> Iterable[bytes]:
        """Send short messages to a subscriber; user data that comes back until it answered or time is up.

        Raises TransportError when they could not be sent.
        """

    requests: deque[tuple[str, bytes]]
    """Number and user data of what a SIM sent by itself (ota.md, From the SIM menu)."""

    def poll(self) -> None:
        """Take what came by itself."""

    def text(self, number: str, text: str) -> None:
        """Send a text for the holder, best effort."""


@dataclass(frozen=True, slots=True)
class Server:
    """Sends what is due. Several may run, also in other processes: a card belongs to one of them at a time."""

    office: Office
    carrier: Carrier
    tries: int = TRIES
    attempts: int = ATTEMPTS
    pace: Callable[[int], None] = lambda _: None
    """Waits until so many messages may leave (rate limit)."""

    def card(self, keys: AirKeys, number: str, hold: Callable[[], None] = lambda: None) -> AirCard:
        """The card in the phone with this number, under a keyset; ``hold`` is asked before each message."""

        def carry(user_data: list[bytes]) -> Iterable[bytes]:
            hold()
            self.pace(len(user_data))
            return self.carrier.carry(number, user_data)

        return AirCard(keys.key_set, keys.next_counter, carry, tries=self.tries)

    def run(self, limit: int = 0) -> Iterator[AirJob]:
        """Do what is due, one after the other, at most ``limit`` jobs if given; each as it ended for now."""
        done = 0
        while (not limit or done < limit) and (taken := self._take()) is not None:
            yield self._do(*taken)
            done += 1

    def answer(self) -> int:
        """Do what holders asked from their menus; how many had an answer. A repeated or foreign one gets none."""
        self.carrier.poll()
        answered = 0
        while self.carrier.requests:
            number, user_data = self.carrier.requests.popleft()
            text = airmenu.take(self.office, number, user_data)
            if text is not None:
                self.carrier.text(number, text)
                answered += 1
        return answered

    def one(self, air_id: str) -> AirJob:
        """Do what is due until one job is proven, failed, or has to wait; as it stands then."""
        for job in self.run():
            if job.air_id == air_id:
                return job
        with self.office.db.read() as tx:
            return get(tx, self.office.enterprise_id, air_id)

    def _take(self) -> tuple[AirJob, str] | None:
        """The next job that is due, if its card has no earlier one and nobody works on it."""
        enterprise_id = self.office.enterprise_id
        with self.office.db.write() as tx:
            rows = tx.all(
                f"SELECT * FROM air_job AS mine WHERE enterprise_id = ? AND {OPEN} AND due_ms <= ?"
                " AND (attempts < ? OR state = 'sent')"
                " AND NOT EXISTS (SELECT air_id FROM air_job WHERE enterprise_id = mine.enterprise_id"
                f" AND card_serial = mine.card_serial AND air_id < mine.air_id AND {OPEN})"
                " ORDER BY due_ms, air_id LIMIT ?",
                (enterprise_id, tx.now_ms, self.attempts, SCAN),
            )
            free = (row for row in rows if row["lease_until_ms"] <= tx.now_ms or not jobs.alive(row["owner"]))
            row = next(free, None)
            if row is None:
                return None
            owner = jobs.new_owner(self.office.db)
            tx.execute(
                "UPDATE air_job SET state = 'sent', attempts = attempts + 1, owner = ?, lease_until_ms = ?,"
                " changed_ms = ? WHERE enterprise_id = ? AND air_id = ?",
                (owner, tx.now_ms + LEASE_MS, tx.now_ms, enterprise_id, row["air_id"]),
            )
            return get(tx, enterprise_id, row["air_id"]), owner

    def _do(self, job: AirJob, owner: str) -> AirJob:
        office = self.office
        operator = Operator(office.enterprise_id, job.actor, Role(job.role))
        try:
            outcome = ACTS[job.kind](_Task(self, job, owner, operator))
        except DatabaseError:
            raise  # nothing can be written down: whoever takes the job over finds it as it was
        except OneCardError as error:
            return self._ended(job, owner, error)
        with office.db.write() as tx:
            if self.hold(tx, job, owner):
                write(tx, office.enterprise_id, job.air_id, S.PROVEN, outcome, "")
            return get(tx, office.enterprise_id, job.air_id)

    def _ended(self, job: AirJob, owner: str, error: OneCardError) -> AirJob:
        """What did not work is tried later where that can help. Nothing is called failed that may have happened."""
        enterprise_id = self.office.enterprise_id
        with self.office.db.write() as tx:
            if self.hold(tx, job, owner):
                lost = isinstance(error, TransportError) and job.kind not in MONEY
                unknown = lost or _is_open(tx, enterprise_id, job.air_id)
                again = job.attempts < self.attempts and (unknown or isinstance(error, _PASSING))
                state = S.UNKNOWN if unknown else S.QUEUED if again else S.FAILED
                wait_ms = min(FIRST_RETRY_MS << job.attempts - 1, LAST_RETRY_MS)
                write(tx, enterprise_id, job.air_id, state, {}, str(error), tx.now_ms + wait_ms)
            return get(tx, enterprise_id, job.air_id)

    def hold(self, tx: Tx, job: AirJob, owner: str) -> bool:
        """Renew this process's lease of a job; False when another one has it by now."""
        return tx.execute(
            "UPDATE air_job SET lease_until_ms = ? WHERE enterprise_id = ? AND air_id = ? AND owner = ?",
            (tx.now_ms + LEASE_MS, self.office.enterprise_id, job.air_id, owner),
        ).rowcount > 0  # fmt: skip


_PASSING = (TransportError, StatusError, Conflict)
"""A card that is not there, a context that a tap or a reset ended, a job that another process has."""


def _is_open(tx: Tx, enterprise_id: int, air_id: str) -> bool:
    """Whether money of a job may have moved, and nobody knows."""
    inner = jobs.by_request(tx, enterprise_id, inner_id(air_id))
    return inner is not None and tx.one(
        "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND open = 1 AND outcome = ?"
        " AND request_id BETWEEN ? AND ? LIMIT 1",
        (enterprise_id, int(Outcome.UNKNOWN), f"{inner.job_id}:", f"{inner.job_id};"),
    ) is not None  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Task:
    """A job in hand: its card, who wanted it."""

    server: Server
    job: AirJob
    owner: str
    operator: Operator

    @property
    def office(self) -> Office:
        return self.server.office

    @property
    def serial(self) -> bytes:
        return self.job.card_serial

    @property
    def request_id(self) -> str:
        return inner_id(self.job.air_id)

    def _hold(self) -> None:
        with self.office.db.write() as tx:
            if not self.server.hold(tx, self.job, self.owner):
                raise Conflict(f"job {self.job.air_id} was taken over by another process")

    def card(self, keys: AirKeys) -> AirCard:
        """The card behind scripts under a keyset. Raises Refused ``no_number``."""
        with self.office.platform.read() as tx:
            bound = chips.binding(tx, serial=self.serial)
        if bound is None:
            raise Refused("no_number", f"card {self.serial.hex().upper()} has no phone number: nothing can reach it")
        return self.server.card(keys, bound.number, self._hold)

    def slot(self) -> int:
        """Number of the enterprise's slot. Raises NotFound for a card that was not issued here."""
        with self.office.db.read() as tx:
            slot: int | None = tx.value(
                "SELECT MAX(slot) FROM card_application WHERE enterprise_id = ? AND card_serial = ?",
                (self.office.enterprise_id, self.serial),
            )
        if slot is None:
            raise NotFound(f"enterprise {self.office.enterprise_id} has no card {self.serial.hex().upper()}")
        return slot

    def slot_card(self) -> AirCard:
        """The enterprise's own application. Raises as :meth:`card` and :meth:`slot`."""
        office = self.office
        return self.card(airkeys.of_slot(office.db, office.store, self.serial, office.enterprise_id, self.slot()))

    def protect(self) -> Protect:
        """Secure messaging under the application's maintenance key."""
        with self.office.db.read() as tx:
            version = cards.get(tx, self.office.enterprise_id, self.serial).key_version
        return protector(self.office.host(), self.serial, version, Purpose.MAINTENANCE)

    def opens(self, card: AirCard) -> bool:
        """Select the application: whether it answers. A blocked one is selected all the same. Raises StatusError."""
        card.ahead(Command(0x00, 0xA4, 0x04, 0x00, aid(self.office.enterprise_id)))
        asked = Command(0x00, 0xB0, 0x80 | load_profile().file("public").fid & 0x1F, 0, le=8)
        answer = send(card, asked)
        if answer.sw not in (SW.OK, SW.NOT_SUPPORTED):
            raise StatusError(answer.sw, asked.header, "the card has no application that could be told")
        return answer.sw == SW.OK


def _recharge(task: _Task) -> Result:
    arguments = task.job.arguments
    return wallet.recharge(
        task.office, task.operator, task.slot_card(), task.serial, arguments["amount_fen"],
        account=arguments["account"], request_id=task.request_id,
    )  # fmt: skip


def _refund(task: _Task) -> Result:
    amount_fen = task.job.arguments["amount_fen"]
    return wallet.refund(
        task.office, task.operator, task.slot_card(), task.serial, amount_fen, request_id=task.request_id
    )


def _subsidise(task: _Task) -> Result:
    amount_fen = task.job.arguments["amount_fen"]
    return wallet.subsidise(
        task.office, task.operator, task.slot_card(), task.serial, amount_fen, request_id=task.request_id
    )


def _block(task: _Task) -> Result:
    """Block the application so that it can be unblocked again (card.md §3.2)."""
    card = task.slot_card()
    if task.opens(card):
        block_application(card, task.protect())
    return {"blocked": True}


def _unblock(task: _Task) -> Result:
    card = task.slot_card()
    if not task.opens(card):
        unblock_application(card, task.protect())
    return {"blocked": False}


def _rights(task: _Task) -> Result:
    """Write holder and access rights as the books have them now, each proven by its MAC."""
    office, profile = task.office, load_profile()
    with office.db.read() as tx:
        contents = cards.contents(tx, office.enterprise_id, task.serial)
    card, protect = task.slot_card(), task.protect()
    if not task.opens(card):
        raise Refused("application_blocked", "the application is blocked: unblock it first")
    for name, content in contents.items():
        update_binary(card, profile.file(name).fid, content, protect=protect)
    return {"written": sorted(contents)}


def _key_set(task: _Task) -> Result:
    put_keys(task.server, task.card(airkeys.of_platform(task.office.platform, task.office.store, task.serial)),
             task.serial, task.slot())  # fmt: skip
    return {"slot": task.slot()}


def _delete(task: _Task) -> Result:
    """Delete a slot with all in it, under keyset 1: two scripts (ota.md, From the SIM menu).

    Raises Refused without the platform's operator, and ``not_settled`` while money is on it.
    """
    office = task.office
    actor = _platform_operator(office)
    with office.platform.read() as tx:
        if not any(one.enterprise_id == office.enterprise_id for one in chips.slots(tx, task.serial)):
            return _deleted(task)  # an earlier try got that far
    with office.db.read() as tx:
        left = cards.unsettled(tx, office.enterprise_id, task.serial)
    if left:
        raise Refused("not_settled", "; ".join(left))
    card = task.card(airkeys.of_platform(office.platform, office.store, task.serial))
    key = office.store.handle(KeyRef(Purpose.CARD_MAINTENANCE, office.card_version), task.serial)
    card.ahead(Command(0x00, 0xA4, 0x00, 0x00, MF.to_bytes(2, "big")))
    try:
        delete_df(card, load_profile().adf_first_fid + task.slot() - 1, key_protector(key))
    except StatusError as e:
        if e.sw != SW.FILE_NOT_FOUND:
            raise
    with office.platform.write() as tx:
        chips.slot_closed(tx, actor, task.serial, office.enterprise_id)
        if not chips.slots(tx, task.serial):
            chips.release_number(tx, task.serial, task.operator.name)
    return _deleted(task)


def _deleted(task: _Task) -> Result:
    enterprise_id = task.office.enterprise_id
    with task.office.db.write() as tx:
        cards.transition(tx, enterprise_id, task.serial, cards.State.CANCELLED, task.operator.name, "deleted")
    return {"deleted": True}


ACTS: dict[str, Callable[[_Task], Result]] = {
    "recharge": _recharge,
    "subsidy": _subsidise,
    "refund": _refund,
    "block": _block,
    "unblock": _unblock,
    "rights": _rights,
    "keyset": _key_set,
    "delete": _delete,
}


def _platform_operator(office: Office) -> Operator:
    actor = office.platform_operator
    if actor is None:
        raise Refused("platform", "slots are the platform's: name an operator of it with --platform-operator")
    require(actor, Permission.CARD_SLOT, PLATFORM)
    return actor


# Issuing -------------------------------------------------------------------------------------------------------------


def issue(
    server: Server, operator: Operator, member_number: str, serial: bytes, pin: bytes, *, request_id: str | None = None
) -> Result:
    """Make the washed SIM in a member's phone his card: slot, keyset, personalising, all by short messages.

    The same job as at the desk, so that it goes on where it stopped. Raises what ``cards.issue`` raises, LineTimeout
    when the phone does not answer: run it again.
    """
    office = server.office
    with office.db.read() as tx:
        number = members.get(tx, office.enterprise_id, member_number).phone_number
    if not number:
        raise Refused("no_number", f"member {member_number} has no phone number: nothing can reach him")
    keys = airkeys.of_platform(office.platform, office.store, serial)
    card = server.card(keys, number)

    def in_slot(slot: int) -> AirCard:
        put_keys(server, server.card(keys, number), serial, slot)
        return server.card(airkeys.of_slot(office.db, office.store, serial, office.enterprise_id, slot), number)

    new = NewCard(card, pin, kind=CardKind.RFID_SIM, in_slot=in_slot)
    return cards.issue(office, operator, member_number, new, request_id=request_id)


def put_keys(server: Server, card: AirCard, serial: bytes, slot: int) -> None:
    """Write a slot's keyset, sealed under the platform's KIK; the same again replaces it by itself."""
    office = server.office
    _platform_operator(office)
    platform = airkeys.of_platform(office.platform, office.store, serial)
    keys = airkeys.of_slot(office.db, office.store, serial, office.enterprise_id, slot)
    for replaces in (False, True):
        put = put_key_set(keys.key_set.number, keys.all, platform.kik, replaces=replaces)
        sent = command(card.key_set, card.next_counter(), [put], ONE_CARD_SPI, ISSUER_TAR)
        answer = card.prove(sent).answer
        if answer is None:
            raise LineTimeout("the card took the keyset, but its answer did not get through: run it again")
        if answer.sw == SW.OK or answer.sw >> 8 == 0x61:
            return
        if answer.sw != HERE_ALREADY or replaces:
            raise StatusError(answer.sw, put[:4], "the card does not take the slot's keyset")
