"""What cards are told over the air: one job after the other for each card, sent again until it is proven (ota.md).

The queue is a table; the work behind an entry is the flow of every desk, with a card that is behind scripts instead
of one in a reader. A process that is killed leaves entries that the next one takes over, and a counter on disk that
is never used again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from functools import partial
from typing import Any, NamedTuple, Protocol

from backoffice import airkeys, audit, chips, jobs, members, station, wallet
from backoffice.airkeys import AirKeys
from backoffice.audit import Event
from backoffice.database import Row, Tx
from backoffice.jobs import LEASE_MS, Result
from backoffice.operators import Operator, Permission, Role, require
from backoffice.station import Office, Work
from cardlib.apdu import Command
from cardlib.errors import (
    Conflict,
    DatabaseError,
    FormatError,
    NotFound,
    OneCardError,
    Refused,
    StatusError,
    TransportError,
)
from cardlib.iso7816 import block_application, unblock_application, update_binary
from cardlib.ota import AirCard
from cardlib.profile import Purpose, Purse, aid, load_profile
from cardlib.records import Outcome
from cardlib.transport import send
from keymgmt.personalise import protector

ATTEMPTS = 8
"""Times that a job is begun before a person has to look; each sends a packet ``TRIES`` times."""
TRIES = 3
FIRST_RETRY_MS, LAST_RETRY_MS = 30_000, 3_600_000
SCAN = 200


class Carrier(Protocol):
    """The way to a phone: a message centre, or a simulated phone."""

    def carry(self, number: str, user_data: list[bytes]) -> Iterable[bytes]:
        """Send short messages to a subscriber; user data that comes back until it answered or time is up.

        Raises TransportError when they could not be sent.
        """


@unique
class AirState(StrEnum):
    """Of a job over the air. Only PROVEN says that the card did it, only FAILED and CANCELLED that it did not."""

    QUEUED = "queued"
    SENT = "sent"
    PROVEN = "proven"
    FAILED = "failed"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


S = AirState
OPEN = "state IN ('queued', 'sent', 'unknown')"


class AirJob(NamedTuple):
    """A job as listed. ``trouble``: why it is not proven yet."""

    air_id: str
    card_serial: bytes
    kind: str
    arguments: Result
    state: AirState
    attempts: int
    due_ms: int
    outcome: Result
    trouble: str
    request_id: str | None
    actor: str
    role: str
    created_ms: int
    changed_ms: int


def queue(
    tx: Tx, operator: Operator, enterprise_id: int, kind: str, serial: bytes, arguments: Mapping[str, Any],
    request_id: str | None = None,
) -> AirJob:  # fmt: skip
    """Write a job down; the same request id gives the first one. A card's earlier jobs come first.

    Raises Refused for want of permission, FormatError for a kind that is not known, Conflict for a request id that
    was used for something else.
    """
    if kind not in KINDS:
        raise FormatError(f"over the air there are {', '.join(KINDS)}, not {kind}")
    require(operator, KINDS[kind].permission, enterprise_id)
    text = json.dumps(arguments, sort_keys=True)
    row = None
    if request_id is not None:
        row = tx.one("SELECT * FROM air_job WHERE enterprise_id = ? AND request_id = ?", (enterprise_id, request_id))
    if row is not None:
        if (row["card_serial"], row["kind"], row["arguments"]) != (serial, kind, text):
            raise Conflict(f"request id {request_id}: job {row['air_id']} was queued with other arguments")
        return _job(row)
    # What an earlier job left open has to be closed first: it gets its tries again.
    tx.execute(
        "UPDATE air_job SET attempts = 0, due_ms = ? WHERE enterprise_id = ? AND card_serial = ? AND state = 'unknown'",
        (tx.now_ms, enterprise_id, serial),
    )
    air_id = tx.new_id()
    tx.execute(
        "INSERT INTO air_job (enterprise_id, air_id, card_serial, kind, arguments, state, due_ms, request_id, actor,"
        " role, created_ms, changed_ms) VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
        (enterprise_id, air_id, serial, kind, text, tx.now_ms, request_id, operator.name, operator.role.value,
         tx.now_ms, tx.now_ms),
    )  # fmt: skip
    return get(tx, enterprise_id, air_id)


def get(tx: Tx, enterprise_id: int, air_id: str) -> AirJob:
    """One job. Raises NotFound."""
    row = tx.one("SELECT * FROM air_job WHERE enterprise_id = ? AND air_id = ?", (enterprise_id, air_id))
    if row is None:
        raise NotFound(f"no job {air_id} over the air in enterprise {enterprise_id}")
    return _job(row)


def listing(tx: Tx, enterprise_id: int, state: AirState | None = None, serial: bytes = b"") -> list[AirJob]:
    """Jobs, oldest first, of one state or card if given."""
    rows = tx.all(
        "SELECT * FROM air_job WHERE enterprise_id = ? AND (state = ? OR ? = '') AND (card_serial = ? OR ? = x'')"
        " ORDER BY air_id",
        (enterprise_id, state or "", state or "", serial, serial),
    )
    return [_job(row) for row in rows]


def retry(tx: Tx, operator: Operator, enterprise_id: int, air_id: str) -> AirJob:
    """Let a job that failed, or whose outcome is unknown, be tried anew, at once. Raises Conflict, NotFound, Refused.

    A failed one begins again as a new job: what the first left undone is known to be undone.
    """
    job = get(tx, enterprise_id, air_id)
    require(operator, KINDS[job.kind].permission, enterprise_id)
    if job.state is S.FAILED:
        return queue(tx, operator, enterprise_id, job.kind, job.card_serial, job.arguments, f"{air_id}+{job.attempts}")
    if job.state not in (S.QUEUED, S.UNKNOWN):
        raise Conflict(f"job {air_id} is {job.state}: only one that failed, waits or is unknown is tried again")
    tx.execute(
        "UPDATE air_job SET attempts = 0, due_ms = ? WHERE enterprise_id = ? AND air_id = ?",
        (tx.now_ms, enterprise_id, air_id),
    )
    return get(tx, enterprise_id, air_id)


def cancel(tx: Tx, operator: Operator, enterprise_id: int, air_id: str) -> AirJob:
    """Take back a job that nothing was done for yet. Raises Conflict when something was, or may have been."""
    job = get(tx, enterprise_id, air_id)
    require(operator, KINDS[job.kind].permission, enterprise_id)
    if job.state is S.CANCELLED:
        return job
    inner = jobs.by_request(tx, enterprise_id, _request(air_id))
    begun = inner is not None and station.begun(tx, enterprise_id, inner.job_id)
    if job.state is not S.QUEUED or begun:
        state = f"{job.state} and begun" if begun else job.state
        raise Conflict(f"job {air_id} is {state}: what a card may have been told is not taken back")
    if inner is not None:
        jobs.cancel(tx, enterprise_id, inner.job_id, "taken back before anything was done")
    _write(tx, enterprise_id, air_id, S.CANCELLED, {}, f"taken back by {operator.name}")
    return get(tx, enterprise_id, air_id)


def _write(
    tx: Tx, enterprise_id: int, air_id: str, state: AirState, outcome: Result, trouble: str, due_ms: int = 0
) -> None:
    tx.execute(
        "UPDATE air_job SET state = ?, outcome = ?, trouble = ?, due_ms = ?, owner = '', lease_until_ms = 0,"
        " changed_ms = ? WHERE enterprise_id = ? AND air_id = ?",
        (state.value, json.dumps(outcome, sort_keys=True), trouble, due_ms, tx.now_ms, enterprise_id, air_id),
    )


def _request(air_id: str) -> str:
    """Request id of the desk's job behind an entry."""
    return f"air:{air_id}"


def _job(row: Row) -> AirJob:
    values = {name: row[name] for name in AirJob._fields}
    kept = {"arguments": json.loads(row["arguments"]), "outcome": json.loads(row["outcome"])}
    return AirJob(**{**values, **kept, "state": AirState(row["state"])})


# Doing them ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """Sends what is due. Several may run, also in other processes: a card belongs to one of them at a time."""

    office: Office
    carrier: Carrier
    tries: int = TRIES
    attempts: int = ATTEMPTS
    pace: Callable[[int], None] = lambda _: None
    """Waits until so many messages may leave (rate limit)."""

    def run(self, limit: int = 0) -> Iterator[AirJob]:
        """Do what is due, one after the other, at most ``limit`` jobs if given; each as it ended for now."""
        done = 0
        while (not limit or done < limit) and (taken := self._take()) is not None:
            yield self._do(*taken)
            done += 1

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
            outcome = KINDS[job.kind].act(self, _Task(self, job, owner, operator))
        except DatabaseError:
            raise  # nothing can be written down: whoever takes the job over finds it as it was
        except OneCardError as error:
            return self._ended(job, owner, error)
        with office.db.write() as tx:
            if self._hold(tx, job, owner):
                _write(tx, office.enterprise_id, job.air_id, S.PROVEN, outcome, "")
            return get(tx, office.enterprise_id, job.air_id)

    def _ended(self, job: AirJob, owner: str, error: OneCardError) -> AirJob:
        """What did not work is tried later where that can help. Nothing is called failed that may have happened."""
        enterprise_id = self.office.enterprise_id
        with self.office.db.write() as tx:
            if self._hold(tx, job, owner):
                lost = isinstance(error, TransportError) and not KINDS[job.kind].moves_money
                unknown = lost or _is_open(tx, enterprise_id, job.air_id)
                again = job.attempts < self.attempts and (unknown or isinstance(error, _PASSING))
                state = S.UNKNOWN if unknown else S.QUEUED if again else S.FAILED
                wait_ms = min(FIRST_RETRY_MS << job.attempts - 1, LAST_RETRY_MS)
                _write(tx, enterprise_id, job.air_id, state, {}, str(error), tx.now_ms + wait_ms)
            return get(tx, enterprise_id, job.air_id)

    def _hold(self, tx: Tx, job: AirJob, owner: str) -> bool:
        """Renew this process's lease of a job; False when another one has it by now."""
        return tx.execute(
            "UPDATE air_job SET lease_until_ms = ? WHERE enterprise_id = ? AND air_id = ? AND owner = ?",
            (tx.now_ms + LEASE_MS, self.office.enterprise_id, job.air_id, owner),
        ).rowcount > 0  # fmt: skip


_PASSING = (TransportError, StatusError, Conflict)
"""A card that is not there, a context that a tap or a reset ended, a job that another process has."""


def _is_open(tx: Tx, enterprise_id: int, air_id: str) -> bool:
    """Whether money of a job may have moved, and nobody knows."""
    inner = jobs.by_request(tx, enterprise_id, _request(air_id))
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
    def serial(self) -> bytes:
        return self.job.card_serial

    @property
    def request_id(self) -> str:
        return _request(self.job.air_id)

    def card(self, keys: AirKeys) -> AirCard:
        """The card behind scripts under a keyset. Raises Refused ``no_number``."""
        with self.server.office.platform.read() as tx:
            bound = chips.binding(tx, serial=self.serial)
        if bound is None:
            raise Refused("no_number", f"card {self.serial.hex().upper()} has no phone number: nothing can reach it")
        return AirCard(keys.key_set, keys.next_counter, partial(self._carry, bound.number), tries=self.server.tries)

    def _carry(self, number: str, user_data: list[bytes]) -> Iterable[bytes]:
        server = self.server
        with server.office.db.write() as tx:
            if not server._hold(tx, self.job, self.owner):
                raise Conflict(f"job {self.job.air_id} was taken over by another process")
        server.pace(len(user_data))
        return server.carrier.carry(number, user_data)

    def slot_card(self) -> AirCard:
        """The enterprise's own application. Raises NotFound for a card that was not issued here."""
        office = self.server.office
        with office.db.read() as tx:
            slot = tx.value(
                "SELECT slot FROM card_application WHERE enterprise_id = ? AND card_serial = ?",
                (office.enterprise_id, self.serial),
            )
        if slot is None:
            raise NotFound(f"enterprise {office.enterprise_id} has no card {self.serial.hex().upper()}")
        return self.card(airkeys.of_slot(office.db, office.store, self.serial, office.enterprise_id, slot))

    def protect(self) -> Any:
        """Secure messaging under the application's maintenance key."""
        office = self.server.office
        with office.db.read() as tx:
            version = tx.value(
                "SELECT key_version FROM card_application WHERE enterprise_id = ? AND card_serial = ?",
                (office.enterprise_id, self.serial),
            )
        return protector(office.host(), self.serial, version, Purpose.MAINTENANCE)


def _recharge(server: Server, task: _Task) -> Result:
    arguments = task.job.arguments
    return wallet.recharge(
        server.office, task.operator, task.slot_card(), task.serial, arguments["amount_fen"],
        account=arguments["account"], request_id=task.request_id,
    )  # fmt: skip


def _subsidise(server: Server, task: _Task) -> Result:
    amount_fen = task.job.arguments["amount_fen"]
    return wallet.subsidise(
        server.office, task.operator, task.slot_card(), task.serial, amount_fen, request_id=task.request_id
    )


class Kind(NamedTuple):
    """What can be sent: who may, how it is done, and whether the desk's journal tells how it ended."""

    permission: Permission
    act: Callable[[Server, _Task], Result]
    moves_money: bool = False


KINDS = {
    "recharge": Kind(Permission.WALLET_RECHARGE, _recharge, moves_money=True),
    "subsidy": Kind(Permission.WALLET_SUBSIDY, _subsidise, moves_money=True),
}
