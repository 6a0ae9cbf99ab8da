"""Journaled jobs: steps with a state, so that what a crash interrupts continues and nothing is done twice.

A step that only writes the database is done and marked in one transaction (:meth:`Job.once`): exactly once.
A step that touches a card is marked begun, done, marked done (:meth:`Job.step`): after a crash in between it
runs again as a further attempt and must find out what the card already has.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from backoffice.database import Database, Row, Tx
from cardlib.errors import Conflict, NotFound, OneCardError

LEASE_MS = 60_000
"""How long a job belongs to a runner that says nothing; each step begins it anew."""

Result = dict[str, Any]
"""What a step or job came to: plain JSON, no secrets."""


class Info(NamedTuple):
    """A job as listed. States: running, done, failed, cancelled."""

    job_id: str
    kind: str
    subject: str
    arguments: Result
    state: str
    outcome: Result
    request_id: str | None
    actor: str
    created_ms: int
    changed_ms: int


class Step(NamedTuple):
    """A step that was begun or is done."""

    step: str
    state: str
    result: Result
    attempts: int


def start(
    tx: Tx,
    enterprise_id: int,
    kind: str,
    subject: str,
    arguments: Mapping[str, Any],
    actor: str,
    request_id: str | None = None,
) -> Info:
    """Write a new job, or give the one that is there: of the same request id, or running for the same subject.

    Raises Conflict when the one that is there was given other arguments.
    """
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    rows = tx.all(
        "SELECT * FROM job WHERE enterprise_id = ?"
        " AND (request_id = ? OR (kind = ? AND subject = ? AND state = 'running'))",
        (enterprise_id, request_id, kind, subject),
    )
    for row in rows:
        if (row["kind"], row["subject"], row["arguments"]) != (kind, subject, text):
            what = f"request id {request_id}" if row["request_id"] == request_id else f"{kind} of {subject}"
            raise Conflict(f"{what}: job {row['job_id']} was started with other arguments")
        if request_id is not None and row["request_id"] == request_id:
            return _info(row)
    if rows:
        return _info(rows[0])
    job_id = tx.new_id()
    tx.execute(
        "INSERT INTO job (enterprise_id, job_id, kind, subject, arguments, state, request_id, actor,"
        " created_ms, changed_ms) VALUES (?, ?, ?, ?, ?, 'running', ?, ?, ?, ?)",
        (enterprise_id, job_id, kind, subject, text, request_id, actor, tx.now_ms, tx.now_ms),
    )
    return get(tx, enterprise_id, job_id)


def idle_others(tx: Tx, enterprise_id: int, kind: str, subject: str, arguments: Mapping[str, Any]) -> list[str]:
    """Jobs of a subject with other ``arguments`` that nobody works on: to be cancelled if nothing was begun."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    rows = tx.all(
        "SELECT job_id, owner, lease_until_ms FROM job WHERE enterprise_id = ? AND kind = ? AND subject = ?"
        " AND state = 'running' AND arguments <> ?",
        (enterprise_id, kind, subject, text),
    )
    return [row["job_id"] for row in rows if row["lease_until_ms"] <= tx.now_ms or not alive(row["owner"])]


def cancel(tx: Tx, enterprise_id: int, job_id: str, message: str) -> None:
    """End a running job that nothing came of; its request id keeps that outcome."""
    outcome = json.dumps({"error": "Conflict", "reason": "", "message": message})
    tx.execute(
        "UPDATE job SET state = 'cancelled', outcome = ?, owner = '', changed_ms = ?"
        " WHERE enterprise_id = ? AND job_id = ? AND state = 'running'",
        (outcome, tx.now_ms, enterprise_id, job_id),
    )


def get(tx: Tx, enterprise_id: int, job_id: str) -> Info:
    """One job. Raises NotFound."""
    row = tx.one("SELECT * FROM job WHERE enterprise_id = ? AND job_id = ?", (enterprise_id, job_id))
    if row is None:
        raise NotFound(f"no job {job_id} in enterprise {enterprise_id}")
    return _info(row)


def by_request(tx: Tx, enterprise_id: int, request_id: str) -> Info | None:
    """The job that a request id started."""
    row = tx.one("SELECT * FROM job WHERE enterprise_id = ? AND request_id = ?", (enterprise_id, request_id))
    return None if row is None else _info(row)


def running(tx: Tx, enterprise_id: int, kind: str = "", limit: int = 1000) -> list[Info]:
    """Jobs that are not finished, oldest first, of one kind if given."""
    rows = tx.all(
        "SELECT * FROM job WHERE enterprise_id = ? AND state = 'running' AND (kind = ? OR ? = '')"
        " ORDER BY job_id LIMIT ?",
        (enterprise_id, kind, kind, limit),
    )
    return [_info(row) for row in rows]


def steps(tx: Tx, enterprise_id: int, job_id: str) -> list[Step]:
    """The steps of a job, in the order they were begun."""
    rows = tx.all(
        "SELECT step, state, result, attempts FROM job_step WHERE enterprise_id = ? AND job_id = ? ORDER BY begun_id",
        (enterprise_id, job_id),
    )
    return [Step(step, state, json.loads(result), attempts) for step, state, result, attempts in rows]


@contextmanager
def claim(db: Database, enterprise_id: int, job_id: str) -> Iterator[Job]:
    """Take a running job to work on it; given back when the block ends, done or not.

    Raises Conflict when it is finished, or another living process has it. A dead one's job is taken over at once.
    """
    with db.write() as tx:
        job = seize(tx, db, enterprise_id, job_id)
    with working(job):
        yield job


def seize(tx: Tx, db: Database, enterprise_id: int, job_id: str) -> Job:
    """Take a running job in the caller's transaction, for :func:`working`. Raises as :func:`claim`."""
    owner = new_owner(db)
    row = tx.one("SELECT * FROM job WHERE enterprise_id = ? AND job_id = ?", (enterprise_id, job_id))
    if row is None:
        raise NotFound(f"no job {job_id} in enterprise {enterprise_id}")
    if row["state"] != "running":
        raise Conflict(f"job {job_id} is {row['state']}")
    if row["lease_until_ms"] > tx.now_ms and alive(row["owner"]):
        raise Conflict(f"job {job_id} is being worked on: wait for it, or for {LEASE_MS // 1000} s of silence")
    _take(tx, enterprise_id, job_id, owner, tx.now_ms + LEASE_MS)
    return Job(db, enterprise_id, _info(row), owner)


def new_owner(db: Database) -> str:
    """A name for whoever works on something in this process: :func:`alive` tells whether it may still be at it."""
    return f"{platform.node()}/{os.getpid()}/{db.random_bytes(6).hex()}"


@contextmanager
def working(job: Job) -> Iterator[None]:
    """Give a seized job back when the block ends without having ended it."""
    try:
        yield
    finally:
        if job.info.state == "running":
            with job.db.write() as tx:
                job.give_back(tx)


class Job:
    """A job in hand. Every method raises Conflict once another process has taken it over."""

    def __init__(self, db: Database, enterprise_id: int, info: Info, owner: str) -> None:
        self.db, self.enterprise_id, self.info = db, enterprise_id, info
        self._owner = owner

    def hold(self, tx: Tx) -> None:
        """Make sure, in the transaction of an act, that this process still has the job; renews its lease."""
        if _owner(tx, self.enterprise_id, self.info.job_id) != self._owner:
            raise Conflict(f"job {self.info.job_id} was taken over by another process")
        _take(tx, self.enterprise_id, self.info.job_id, self._owner, tx.now_ms + LEASE_MS)

    def give_back(self, tx: Tx) -> None:
        """Let the job go, unless another process has taken it over."""
        if _owner(tx, self.enterprise_id, self.info.job_id) == self._owner:
            _take(tx, self.enterprise_id, self.info.job_id, "", 0)

    def result(self, step: str) -> Result | None:
        """What a step came to, or None while it is not done."""
        with self.db.read() as tx:
            row = self._row(tx, step)
        return json.loads(row["result"]) if row is not None and row["state"] == "done" else None

    def begin(self, step: str) -> int:
        """Mark a step begun, on disk before its act; returns which attempt this is, from 1."""
        with self._writing() as tx:
            tx.execute(
                "INSERT INTO job_step (enterprise_id, job_id, step, state, begun_id) VALUES (?, ?, ?, 'begun', ?)"
                " ON CONFLICT (enterprise_id, job_id, step) DO UPDATE SET attempts = job_step.attempts + 1"
                " WHERE job_step.state = 'begun'",
                (self.enterprise_id, self.info.job_id, step, tx.new_id()),
            )
            row = self._row(tx, step)
            assert row is not None
            if row["state"] == "done":
                raise Conflict(f"job {self.info.job_id}: step {step} is done")
            attempts: int = row["attempts"]
            return attempts

    def done(self, step: str, result: Mapping[str, Any] | None = None) -> None:
        """Mark a begun step done with its result."""
        with self._writing() as tx:
            self._done(tx, step, result or {})

    def done_under(self, prefix: str) -> list[str]:
        """What follows ``prefix`` (ending in ``/``) in the names of steps done, oldest first."""
        with self.db.read() as tx:
            rows = tx.all(
                "SELECT step FROM job_step WHERE enterprise_id = ? AND job_id = ? AND step > ? AND step < ?"
                " AND state = 'done' ORDER BY begun_id",
                (self.enterprise_id, self.info.job_id, prefix, f"{prefix[:-1]}0"),
            )
        return [row["step"].removeprefix(prefix) for row in rows]

    def step(self, step: str, action: Callable[[int], Mapping[str, Any] | None]) -> Result:
        """Do a step that touches the world, unless it is done; returns its result.

        ``action`` gets the number of the attempt: above 1, an earlier one may have done all or part of it.
        """
        kept = self.result(step)
        if kept is not None:
            return kept
        result = dict(action(self.begin(step)) or {})
        self.done(step, result)
        return result

    def once(self, step: str, action: Callable[[Tx], Mapping[str, Any] | None]) -> Result:
        """Do a step that only writes this database, unless it is done; returns its result."""
        with self._writing() as tx:
            row = self._row(tx, step)
            if row is not None and row["state"] == "done":
                kept: Result = json.loads(row["result"])
                return kept
            result = dict(action(tx) or {})
            self._done(tx, step, result)
        return result

    def finish(self, outcome: Mapping[str, Any] | None = None) -> Result:
        """End the job with its outcome, which a repeat of its request id gets."""
        return self._end("done", dict(outcome or {}))

    def conclude(self, step: str, action: Callable[[Tx], Mapping[str, Any]]) -> Result:
        """Do a last step that only writes this database, and end the job with its result, in one transaction."""
        with self._writing() as tx:
            result = dict(action(tx))
            self._done(tx, step, {})
            self._write_end(tx, "done", result)
        self.info = self.info._replace(state="done", outcome=result)
        return result

    def fail(self, error: OneCardError, state: str = "failed") -> Result:
        """End the job for good because of an error that no further attempt can mend; or ``cancelled``."""
        reason = getattr(error, "reason", "")
        return self._end(state, {"error": type(error).__name__, "reason": reason, "message": str(error)})

    def _end(self, state: str, outcome: Result) -> Result:
        with self._writing() as tx:
            self._write_end(tx, state, outcome)
        self.info = self.info._replace(state=state, outcome=outcome)
        return outcome

    def _write_end(self, tx: Tx, state: str, outcome: Result) -> None:
        tx.execute(
            "UPDATE job SET state = ?, outcome = ?, owner = '', lease_until_ms = 0, changed_ms = ?"
            " WHERE enterprise_id = ? AND job_id = ?",
            (state, json.dumps(outcome, sort_keys=True), tx.now_ms, self.enterprise_id, self.info.job_id),
        )

    @contextmanager
    def _writing(self) -> Iterator[Tx]:
        with self.db.write() as tx:
            self.hold(tx)
            yield tx

    def _row(self, tx: Tx, step: str) -> Row | None:
        key = (self.enterprise_id, self.info.job_id, step)
        return tx.one("SELECT * FROM job_step WHERE enterprise_id = ? AND job_id = ? AND step = ?", key)

    def _done(self, tx: Tx, step: str, result: Mapping[str, Any]) -> None:
        text = json.dumps(result, sort_keys=True, separators=(",", ":"))
        tx.execute(
            "INSERT INTO job_step (enterprise_id, job_id, step, state, result, begun_id, done_ms)"
            " VALUES (?, ?, ?, 'done', ?, ?, ?) ON CONFLICT (enterprise_id, job_id, step)"
            " DO UPDATE SET state = 'done', result = excluded.result, done_ms = excluded.done_ms",
            (self.enterprise_id, self.info.job_id, step, text, tx.new_id(), tx.now_ms),
        )


class JobSteps:
    """The steps of keymgmt's jobs on cards, kept as steps of this one: see ``keymgmt.steps.StepJournal``."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def done(self, job: str, step: str) -> None:
        """Write that a step of the named part is done; returns when that is on disk."""
        self._job.done(f"{job}/{step}")

    def steps(self, job: str) -> list[str]:
        """Steps of the named part done so far, oldest first."""
        return self._job.done_under(f"{job}/")


def _info(row: Row) -> Info:
    values = {name: row[name] for name in Info._fields}
    return Info(**{**values, "arguments": json.loads(row["arguments"]), "outcome": json.loads(row["outcome"])})


def _owner(tx: Tx, enterprise_id: int, job_id: str) -> str:
    owner: str = tx.value("SELECT owner FROM job WHERE enterprise_id = ? AND job_id = ?", (enterprise_id, job_id))
    return owner


def _take(tx: Tx, enterprise_id: int, job_id: str, owner: str, until_ms: int) -> None:
    tx.execute(
        "UPDATE job SET owner = ?, lease_until_ms = ? WHERE enterprise_id = ? AND job_id = ?",
        (owner, until_ms, enterprise_id, job_id),
    )


def alive(owner: str) -> bool:
    """Whether a job's owner may still be at work; on another machine only the lease can tell."""
    node, pid, _ = owner.rsplit("/", 2)
    if node != platform.node():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
