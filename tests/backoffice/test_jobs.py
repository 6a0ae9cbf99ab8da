"""Journaled jobs: interrupted anywhere they continue, nothing is done twice, two runners never meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from backoffice import jobs
from backoffice.database import Database, Tx
from cardlib.errors import CardRemoved, Conflict, NotFound, Refused
from keymgmt.steps import StepJournal
from tests.backoffice.conftest import ENTERPRISE, Clock


def start(db: Database, request_id: str | None = None, subject: str = "card:1", **arguments: str) -> jobs.Info:
    with db.write() as tx:
        return jobs.start(tx, ENTERPRISE, "issue", subject, arguments, "li", request_id)


def write_mark(tx: Tx) -> jobs.Result:
    count = tx.value("SELECT COUNT(*) FROM setting")
    tx.execute("INSERT INTO setting VALUES (1, ?, 'x', 0)", (f"mark{count}",))
    return {"count": count}


def pull_card(_: int) -> None:
    raise CardRemoved("pulled away")


def test_steps_run_once(db: Database) -> None:
    """A step that is done gives its result without acting again, in this run and the next."""
    job_id = start(db).job_id
    calls: list[int] = []

    def wash(attempt: int) -> jobs.Result:
        calls.append(attempt)
        return {"serial": "01"}

    for _ in range(2):
        with jobs.claim(db, ENTERPRISE, job_id) as job:
            assert job.step("wash", wash) == {"serial": "01"}
            assert job.once("record", write_mark) == {"count": 0}
    assert calls == [1]


def test_interrupted_step_runs_again_as_a_further_attempt(db: Database) -> None:
    """A card pulled away leaves the step begun; the next run is told that an attempt went before."""
    job_id = start(db).job_id
    for _ in range(2):
        with pytest.raises(CardRemoved), jobs.claim(db, ENTERPRISE, job_id) as job:
            job.step("wash", pull_card)
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        assert job.result("wash") is None
        assert job.step("wash", lambda attempt: {"attempt": attempt}) == {"attempt": 3}
    with db.read() as tx:
        assert jobs.steps(tx, ENTERPRISE, job_id) == [("wash", "done", {"attempt": 3}, 3)]


def test_database_step_is_done_and_marked_together(db: Database) -> None:
    """When a database step fails, neither its writing nor its mark stays."""
    job_id = start(db).job_id

    def fail(tx: Tx) -> None:
        write_mark(tx)
        raise Refused("rule", "no")

    with jobs.claim(db, ENTERPRISE, job_id) as job:
        with pytest.raises(Refused):
            job.once("record", fail)
        assert job.once("record", write_mark) == {"count": 0}


def test_outcome_and_request_id(db: Database) -> None:
    """A finished job is found by its request id with its outcome; without one, a new job begins."""
    first = start(db, "r-1")
    with jobs.claim(db, ENTERPRISE, first.job_id) as job:
        job.finish({"card": "01"})
    again = start(db, "r-1")
    assert (again.job_id, again.state, again.outcome) == (first.job_id, "done", {"card": "01"})
    assert start(db).job_id != first.job_id


def test_failed_job_says_why(db: Database) -> None:
    """A job that can't be mended ends with its error and is not run again."""
    job_id = start(db).job_id
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        job.fail(Refused("foreign", "not our card"))
    with db.read() as tx:
        kept = jobs.get(tx, ENTERPRISE, job_id)
        assert jobs.running(tx, ENTERPRISE) == []
    assert (kept.state, kept.outcome["reason"]) == ("failed", "foreign")
    with pytest.raises(Conflict, match="failed"), jobs.claim(db, ENTERPRISE, job_id):
        pass


def test_starting_again_continues(db: Database) -> None:
    """The same work on the same subject is the same job while it runs; other arguments are a conflict."""
    first = start(db, member="7")
    assert start(db, member="7").job_id == first.job_id
    assert start(db, "r-2", member="7").job_id == first.job_id
    with pytest.raises(Conflict, match="other arguments"):
        start(db, member="8")
    assert start(db, subject="card:2", member="8").job_id != first.job_id


def test_request_id_for_another_job(db: Database) -> None:
    """A request id never stands for two jobs."""
    start(db, "r-1", member="7")
    with pytest.raises(Conflict, match="request id r-1"):
        start(db, "r-1", subject="card:2", member="7")


def test_two_runners(db: Database) -> None:
    """A job in work is not taken by a second runner, but free again when the first lets go."""
    job_id = start(db).job_id
    with (
        jobs.claim(db, ENTERPRISE, job_id),
        pytest.raises(Conflict, match="worked on"),
        jobs.claim(db, ENTERPRISE, job_id),
    ):
        pass
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        job.finish()


def test_silent_runner_loses_its_job(db: Database, clock: Clock) -> None:
    """After the lease a second runner takes over; the first can't write one more step, nor free the job."""
    job_id = start(db).job_id
    with jobs.claim(db, ENTERPRISE, job_id) as slow:
        slow.begin("wash")
        clock.forward(jobs.LEASE_MS)
        with jobs.claim(db, ENTERPRISE, job_id) as fresh:
            with pytest.raises(Conflict, match="taken over"):
                slow.done("wash")
            with pytest.raises(Conflict, match="taken over"):
                slow.once("record", write_mark)
            assert fresh.step("wash", lambda attempt: {"attempt": attempt}) == {"attempt": 2}


def test_working_runner_keeps_its_job(db: Database, clock: Clock) -> None:
    """Each step renews the lease."""
    job_id = start(db).job_id
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        for step in "abc":
            clock.forward(jobs.LEASE_MS - 1)
            job.step(step, lambda _: None)
        with pytest.raises(Conflict, match="worked on"), jobs.claim(db, ENTERPRISE, job_id):
            pass


def test_steps_on_a_card(db: Database) -> None:
    """The step journal that works on cards need is kept in the job: by part, in order, said twice without harm."""
    job_id = start(db).job_id
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        steps: StepJournal = jobs.JobSteps(job)
        for step in ("keys", "contents", "keys", "a last one"):
            steps.done("issue 01", step)
        steps.done("issue 010", "other")
        steps.done("issue 01/2", "other")
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        assert jobs.JobSteps(job).steps("issue 010") == ["other"]
        assert jobs.JobSteps(job).steps("issue 0") == []
        assert jobs.JobSteps(job).steps("issue 01")[:3] == ["keys", "contents", "a last one"]


CRASH = """
import sys, time
from backoffice import jobs
from backoffice.database import Database
db = Database(sys.argv[1], "enterprise")
with jobs.claim(db, 1001, sys.argv[2]) as job:
    job.once("record", lambda tx: {"by": "first"})
    job.begin("wash")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_killed_runner(db: Database) -> None:
    """After kill -9 the job is taken over at once, with what was done kept and what was begun known."""
    job_id = start(db).job_id
    command = [sys.executable, "-c", CRASH, str(db.path), job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "begun\n"
        with pytest.raises(Conflict, match="worked on"), jobs.claim(db, ENTERPRISE, job_id):
            pass
        os.kill(runner.pid, signal.SIGKILL)
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        assert job.once("record", write_mark) == {"by": "first"}
        assert job.step("wash", lambda attempt: {"attempt": attempt}) == {"attempt": 2}


def test_misuse(db: Database) -> None:
    """An unknown job is not found, another enterprise's neither, and a done step is not begun again."""
    job_id = start(db).job_id
    with pytest.raises(NotFound), jobs.claim(db, ENTERPRISE, "none"):
        pass
    with pytest.raises(NotFound), jobs.claim(db, 2002, job_id):
        pass
    with jobs.claim(db, ENTERPRISE, job_id) as job:
        job.step("wash", lambda _: None)
        with pytest.raises(Conflict, match="is done"):
            job.begin("wash")


def test_listing(db: Database, clock: Clock) -> None:
    """Running jobs are listed oldest first, by kind if asked."""
    first = start(db)
    clock.forward(5)
    second = start(db, subject="card:2")
    with db.write() as tx:
        jobs.start(tx, ENTERPRISE, "cancel", "card:3", {}, "li")
        assert [job.job_id for job in jobs.running(tx, ENTERPRISE, "issue")] == [first.job_id, second.job_id]
        assert len(jobs.running(tx, ENTERPRISE)) == 3
