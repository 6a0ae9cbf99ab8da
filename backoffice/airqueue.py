"""The queue of what cards are to be told over the air (ota.md): a table of jobs, each with its state and attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum, unique
from typing import Any, NamedTuple

from backoffice import jobs, station
from backoffice.database import Row, Tx
from backoffice.jobs import Result
from backoffice.operators import Operator, Permission, require
from cardlib.errors import Conflict, FormatError, NotFound


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
KINDS = {
    "recharge": Permission.WALLET_RECHARGE,
    "subsidy": Permission.WALLET_SUBSIDY,
    "refund": Permission.WALLET_REFUND,
    "block": Permission.CARD_LOSE,
    "unblock": Permission.CARD_UNLOCK,
    "rights": Permission.MEMBER_CHANGE,
    "keyset": Permission.CARD_ISSUE,
    "delete": Permission.CARD_CANCEL,
}
"""What can be sent, and who may want it."""
MONEY = ("recharge", "subsidy", "refund")
"""Kinds whose outcome the desk's journal tells; the others say the same again until it is proven."""
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
    require(operator, KINDS[kind], enterprise_id)
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


def due(tx: Tx, enterprise_id: int) -> int:
    """How many jobs could be sent now."""
    count: int = tx.value(
        f"SELECT COUNT(*) FROM air_job WHERE enterprise_id = ? AND {OPEN} AND due_ms <= ?", (enterprise_id, tx.now_ms)
    )
    return count


def retry(tx: Tx, operator: Operator, enterprise_id: int, air_id: str) -> AirJob:
    """Let a job that failed, or whose outcome is unknown, be tried anew, at once. Raises Conflict, NotFound, Refused.

    A failed one begins again as a new job: what the first left undone is known to be undone.
    """
    job = get(tx, enterprise_id, air_id)
    require(operator, KINDS[job.kind], enterprise_id)
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
    require(operator, KINDS[job.kind], enterprise_id)
    if job.state is S.CANCELLED:
        return job
    inner = jobs.by_request(tx, enterprise_id, inner_id(air_id))
    begun = inner is not None and station.begun(tx, enterprise_id, inner.job_id)
    if job.state is not S.QUEUED or begun:
        state = f"{job.state} and begun" if begun else job.state
        raise Conflict(f"job {air_id} is {state}: what a card may have been told is not taken back")
    if inner is not None:
        jobs.cancel(tx, enterprise_id, inner.job_id, "taken back before anything was done")
    write(tx, enterprise_id, air_id, S.CANCELLED, {}, f"taken back by {operator.name}")
    return get(tx, enterprise_id, air_id)


def write(
    tx: Tx, enterprise_id: int, air_id: str, state: AirState, outcome: Result, trouble: str, due_ms: int = 0
) -> None:
    """Write how a job stands, and let it go."""
    tx.execute(
        "UPDATE air_job SET state = ?, outcome = ?, trouble = ?, due_ms = ?, owner = '', lease_until_ms = 0,"
        " changed_ms = ? WHERE enterprise_id = ? AND air_id = ?",
        (state.value, json.dumps(outcome, sort_keys=True), trouble, due_ms, tx.now_ms, enterprise_id, air_id),
    )


def inner_id(air_id: str) -> str:
    """Request id of the desk's job behind an entry."""
    return f"air:{air_id}"


def _job(row: Row) -> AirJob:
    values = {name: row[name] for name in AirJob._fields}
    kept = {"arguments": json.loads(row["arguments"]), "outcome": json.loads(row["outcome"])}
    return AirJob(**{**values, **kept, "state": AirState(row["state"])})
