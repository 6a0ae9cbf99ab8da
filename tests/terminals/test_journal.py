"""The journal file: append-only, chained, durable, one owner; every damage and every full disk is seen."""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.errors import CheckFailed, Conflict, DatabaseError, NotFound, OneCardError, Refused
from cardlib.profile import Purse, TransactionType
from cardlib.records import Event, JournalFile, Outcome, Transaction, local_when, pending
from terminals.journal import Job, JobState, Journal, LegState
from terminals.policy import Leg, Operation

NOW = 1_790_000_000_000
CARD = bytes.fromhex("01010000000001A7")
TERMINAL = bytes.fromhex("000000000042")
SAM = bytes.fromhex("03010000000009FF")
MOVE = Transaction(
    enterprise_id=1001, terminal=TERMINAL, sam_serial=SAM, terminal_seq=1, card_serial=CARD, purse=Purse.MAIN,
    kind=TransactionType.COMPOSITE, amount_fen=500, balance_before_fen=2_000, overdraft_fen=0, card_seq=7,
    key_version=1, algorithm=0, when=local_when(NOW), utc_ms=NOW,
)  # fmt: skip
DONE = replace(MOVE, tac=b"TACC", mac2_verified=True, outcome=Outcome.COMMITTED)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


def open_journal(path: Path, clock: Clock | None = None, free: int = 1 << 30, limit: int = 1 << 30) -> Journal:
    return Journal(path, 1001, TERMINAL, SAM, clock or Clock(), free_bytes=lambda: free, limit_bytes=limit)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path / "j.db") as opened:
        yield opened


def begin(
    journal: Journal, *fen: int, operation: Operation = Operation.PAY, sale: str = "", durable: bool = True
) -> Job:
    purses = (Purse.SUBSIDY, Purse.MAIN) if len(fen) == 2 else (Purse.MAIN,)
    return journal.begin(
        operation, CARD, [Leg(*pair) for pair in zip(purses, fen, strict=True)], sale=sale, durable=durable
    )


def pay(journal: Journal, fen: int = 500, sale: str = "") -> Job:
    job = begin(journal, fen, sale=sale, durable=False)
    leg = journal.leg(job, 0)
    leg.committed(leg.intent(replace(MOVE, amount_fen=fen)), replace(DONE, amount_fen=fen))
    return journal.job(job.id)


def test_a_payment_from_intent_to_commit(journal: Journal) -> None:
    """The intent is open until it is closed, sequences are contiguous, the job ends as done and proven."""
    job = begin(journal, 500)
    leg = journal.leg(job, 0)
    ref = leg.intent(MOVE)
    assert [entry.seq for entry in journal.open_intents()] == [ref]
    assert journal.job(job.id).legs[0].state is LegState.INTENT
    leg.committed(ref, DONE)
    job = journal.job(job.id)
    assert (job.state, job.legs[0].state, job.legs[0].proven, job.committed_fen) == (
        JobState.DONE, LegState.COMMITTED, True, 500,
    )  # fmt: skip
    assert journal.open_intents() == []
    assert journal.open_jobs() == []
    assert journal.transaction(job.legs[0]) == DONE
    assert [journal.entry(seq).event for seq in (1, 2)] == [Event.INTENT, Event.COMMITTED]
    journal.verify()


def test_a_job_that_is_not_durable_leaves_no_trace_before_its_intent(journal: Journal) -> None:
    """Nothing is written for a payment that ends before anything could change on the card."""
    job = begin(journal, 500, durable=False)
    assert journal.finish(job).state is JobState.VOID
    assert (journal.open_jobs(), journal.last_seq) == ([], 0)
    with pytest.raises(NotFound):
        journal.job(job.id)


def test_two_legs_end_apart(journal: Journal) -> None:
    """A split payment is done when both legs are; when the second was not, it is partial and says so in the chain."""
    job = begin(journal, 300, 200)
    first, second = journal.leg(job, 0), journal.leg(job, 1)
    first.committed(first.intent(replace(MOVE, purse=Purse.SUBSIDY, amount_fen=300)), replace(DONE, amount_fen=300))
    assert journal.job(job.id).state is JobState.OPEN
    ref = second.intent(replace(MOVE, amount_fen=200))
    with pytest.raises(Conflict):
        journal.finish(job)
    second.not_done(ref, "counter")
    assert journal.finish(job).state is JobState.PARTIAL
    assert journal.job(job.id).committed_fen == 300
    assert journal.collect().entries[-1].record is not None
    again = begin(journal, 300, 200)
    assert journal.finish(again).state is JobState.VOID
    journal.verify()


def test_in_doubt_stays_open_in_the_chain(journal: Journal) -> None:
    """What the card can't tell any more is no longer awaited here, and still an open intent for settlement."""
    job = begin(journal, 500)
    journal.leg(job, 0).intent(MOVE)
    journal.doubt(job, 0)
    assert journal.finish(job).state is JobState.IN_DOUBT
    assert journal.open_jobs() == []
    assert [entry.seq for entry in pending(journal.collect().entries)] == [1]
    journal.verify()


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """Jobs, intents, shift, head and acknowledgement survive; the chain goes on where it was."""
    with open_journal(tmp_path / "j.db") as first:
        assert first.open_shift("zhang") == 1
        pay(first, sale="R1")
        first.leg(begin(first, 400), 0).intent(replace(MOVE, terminal_seq=2))
        first.ack(2)
        head = first.last_seq, first.last_hash
    with open_journal(tmp_path / "j.db") as second:
        assert (second.last_seq, second.last_hash) == head
        assert [job.amount_fen for job in second.open_jobs()] == [400]
        assert (second.shift, second.acked_seq, second.standing().clock_floor_ms) == (1, 2, NOW)
        sale = second.sale("R1")
        assert sale is not None
        assert sale.state is JobState.DONE
        assert second.sale("") is None
        second.note("x")
        second.verify()


def test_one_process_and_one_terminal_own_the_file(tmp_path: Path) -> None:
    """A second opener, and a terminal with another number, are refused and change nothing."""
    with open_journal(tmp_path / "j.db"), pytest.raises(Conflict, match="another process"):
        open_journal(tmp_path / "j.db")
    with pytest.raises(Conflict, match="another terminal"):
        Journal(tmp_path / "j.db", 1001, bytes(6), SAM, Clock())
    with open_journal(tmp_path / "j.db"):
        pass
    with pytest.raises(DatabaseError):
        open_journal(tmp_path / "missing" / "j.db")


def edit(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    db.executescript("DROP TRIGGER entry_kept; DROP TRIGGER entry_fixed;" + ";".join(statements))
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = zeroblob(length(body)) WHERE seq = 2",
        "UPDATE entry SET hash = zeroblob(32) WHERE seq = 4",
        "DELETE FROM entry WHERE seq = 3",
        "DELETE FROM entry WHERE seq = 4",
        "INSERT INTO entry SELECT 5, utc_ms, body, hash FROM entry WHERE seq = 4",
        "UPDATE entry SET seq = 9 WHERE seq = 4",
        "UPDATE head SET last_seq = 3",
        "UPDATE leg SET state = 'intent', intent_seq = 2 WHERE job = 1",
    ],
)
def test_an_edited_file_is_not_opened(tmp_path: Path, statement: str) -> None:
    """Changing, removing or adding an entry is seen at the next start."""
    with open_journal(tmp_path / "j.db") as journal:
        pay(journal)
        pay(journal)
    edit(tmp_path / "j.db", statement)
    with pytest.raises(CheckFailed, match="damaged or edited"):
        open_journal(tmp_path / "j.db")


@pytest.mark.parametrize("seq", [1, 5])
def test_a_long_journal_is_followed_at_its_end_and_whole_when_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seq: int
) -> None:
    """An edit among the newest entries is seen at the start, one among older entries when they are collected."""
    monkeypatch.setattr("terminals.journal.START_CHECK", 4)
    with open_journal(tmp_path / "j.db") as journal:
        for _ in range(3):
            pay(journal)
    edit(tmp_path / "j.db", f"UPDATE entry SET body = zeroblob(length(body)) WHERE seq = {seq}")
    with contextlib.ExitStack() as stack:
        if seq == 5:
            with pytest.raises(CheckFailed, match="damaged or edited"):
                open_journal(tmp_path / "j.db")
            return
        journal = stack.enter_context(open_journal(tmp_path / "j.db"))
        assert journal.collect(3).entries
        with pytest.raises(CheckFailed, match="damaged or edited"):
            journal.collect(1)


def test_entries_can_not_be_changed_through_sql(journal: Journal) -> None:
    """The file itself refuses to change an entry, or to forget one that was not collected."""
    pay(journal)
    for sql in ("UPDATE entry SET utc_ms = 0", "DELETE FROM entry"):
        with pytest.raises(sqlite3.IntegrityError), journal._mutex:
            journal._db.execute(sql)


def test_verify_compares_jobs_with_the_chain(tmp_path: Path) -> None:
    """A job that says committed while its intent is open in the chain is found by the full check."""
    with open_journal(tmp_path / "j.db") as journal:
        journal.leg(begin(journal, 500), 0).intent(MOVE)
        journal.verify()
    edit(tmp_path / "j.db", "UPDATE leg SET state = 'committed'")
    with open_journal(tmp_path / "j.db") as journal, pytest.raises(CheckFailed, match="open intents"):
        journal.verify()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_raises_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes are flipped or cut off, opening gives a whole journal or one of the project's errors."""
    path = tmp_path_factory.mktemp("damage") / "j.db"
    with open_journal(path) as journal:
        pay(journal)
        pay(journal)
        head = journal.last_hash
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 5000, 100]))])
    with contextlib.suppress(OneCardError), open_journal(path) as journal:
        journal.verify()
        assert (journal.last_seq, journal.last_hash) == (4, head)


def test_no_room_is_a_refusal_before_anything_is_begun(tmp_path: Path) -> None:
    """A full disk and a journal at its limit refuse new jobs; what was begun can still be finished."""
    for name, room, limit in (("a", 1000, 1 << 30), ("b", 1 << 30, 1 << 20)):
        with open_journal(tmp_path / name, free=room, limit=limit) as journal:
            with pytest.raises(Refused) as caught:
                begin(journal, 500)
            assert caught.value.reason == "storage_full"
            assert journal.open_jobs() == []
    free = [1 << 30]
    with Journal(tmp_path / "c", 1001, TERMINAL, SAM, Clock(), free_bytes=lambda: free[0]) as journal:
        leg = journal.leg(begin(journal, 500), 0)
        free[0] = 0
        leg.committed(leg.intent(MOVE), DONE)
        assert journal.open_jobs() == []


DISK_FULL = """
import resource, signal, sys
sys.path.insert(0, "")
from tests.terminals.test_journal import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open_journal(Path(sys.argv[1])) as journal:
    pay(journal)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1] + "-wal").stat().st_size + 9000,) * 2)
    paid, refused = 1, 0
    while refused < 3:
        try:
            pay(journal)
            paid += 1
        except Refused as e:
            assert e.reason == "storage_full"
            refused += 1
        except DatabaseError:
            refused += 1
    print(paid, len(journal.open_jobs()))
"""


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    """Real write errors end in a refusal or an open intent, never in a broken chain or a forgotten payment."""
    path = tmp_path / "j.db"
    run = subprocess.run([sys.executable, "-c", DISK_FULL, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    paid, waiting = map(int, run.stdout.split())
    with open_journal(path) as journal:
        journal.verify()
        assert len(journal.open_jobs()) == waiting
        assert journal.moved(0) == [(Operation.PAY, Purse.MAIN, paid, paid * 500)]


KILLED = """
import sys
sys.path.insert(0, "")
from tests.terminals.test_journal import *
with open_journal(Path(sys.argv[1])) as journal:
    while True:
        job = begin(journal, 300, 200)
        for number in (0, 1):
            leg = journal.leg(job, number)
            ref = leg.intent(MOVE)
            print("I", ref, flush=True)
            leg.committed(ref, DONE)
            print("C", ref, flush=True)
"""


@pytest.mark.parametrize("after", [3, 10, 29])
def test_kill_9_keeps_every_entry_that_was_promised(tmp_path: Path, after: int) -> None:
    """After kill -9 the chain is whole, holds all that was reported as written, and at most one more step."""
    path = tmp_path / "j.db"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline().split() for _ in range(after)]
        time.sleep(0.001 * after)
        child.send_signal(signal.SIGKILL)
        said += [line.split() for line in child.stdout.read().splitlines()]
    assert child.returncode == -signal.SIGKILL
    with open_journal(path) as journal:
        journal.verify()
        entries = journal.collect().entries
        written = [["I", str(e.seq)] if e.event is Event.INTENT else ["C", str(e.ref)] for e in entries]
        assert written[: len(said)] == said
        assert len(written) <= len(said) + 1
        assert len(journal.open_jobs()) <= 1
        for intent in journal.open_intents():
            journal.leg(journal.open_jobs()[0], len(entries) % 4 // 2).not_done(intent.seq, "test")
        journal.verify()


def test_export_is_whole_or_not_there(journal: Journal, tmp_path: Path) -> None:
    """The file decodes to the chain; a place that can't be written leaves nothing; only a collected part is skipped."""
    pay(journal)
    out = tmp_path / "out.jnl"
    assert journal.export(out) == 2
    whole = JournalFile.decode(out.read_bytes())
    assert (whole.first_seq, whole.head, whole.terminal) == (1, journal.last_hash, TERMINAL)
    journal.ack(2)
    pay(journal)
    assert journal.export(out) == 4
    assert JournalFile.decode(out.read_bytes()).previous == whole.head
    with pytest.raises(DatabaseError):
        journal.export(tmp_path / "no" / "out.jnl")
    with pytest.raises(NotFound):
        journal.collect(6)
    assert journal.collect(5).entries == ()
    assert [p.name for p in tmp_path.iterdir() if "jnl" in p.name] == ["out.jnl"]


def test_nothing_is_pruned_before_it_is_collected_and_old(tmp_path: Path) -> None:
    """Entries go only when acknowledged, older than asked, and before the first open intent; the chain still holds."""
    clock = Clock()
    with open_journal(tmp_path / "j.db", clock) as journal:
        pay(journal)
        waiting = begin(journal, 500)
        ref = journal.leg(waiting, 0).intent(replace(MOVE, terminal_seq=2))
        clock.ms += 1_000_000
        pay(journal)
        assert journal.prune(1_000) == 0
        journal.ack(5)
        assert journal.prune(2_000_000) == 0
        assert journal.prune(1_000) == 2
        with pytest.raises(NotFound):
            journal.entry(1)
        journal.leg(waiting, 0).not_done(ref, "test")
        journal.finish(waiting)
        journal.ack(journal.last_seq)
        clock.ms += 1_000_000
        assert journal.prune(0) == 3 + 1 - 0
        journal.verify()
        assert journal.collect().first_seq == 7
    with open_journal(tmp_path / "j.db", clock) as journal:
        assert journal.last_payment() is None
        assert pay(journal).legs[0].intent_seq == 7
        journal.verify()


def test_acknowledging(journal: Journal) -> None:
    """An acknowledgement only moves forward, and never beyond the end."""
    pay(journal)
    journal.ack(2)
    journal.ack(1)
    assert (journal.acked_seq, journal.standing().oldest_uncollected_ms) == (2, None)
    with pytest.raises(Conflict):
        journal.ack(3)
    journal.note("later")
    assert journal.standing().oldest_uncollected_ms == NOW


def test_shifts_and_totals(journal: Journal) -> None:
    """Totals are of the open shift and of what is certain; shifts open and close one at a time."""
    with pytest.raises(Conflict):
        journal.close_shift("")
    assert journal.open_shift("zhang") == 1
    with pytest.raises(Conflict):
        journal.open_shift("li")
    pay(journal, 500)
    pay(journal, 300)
    journal.leg(begin(journal, 100), 0).intent(MOVE)
    assert journal.moved(1) == [(Operation.PAY, Purse.MAIN, 2, 800)]
    journal.close_shift("2 800")
    assert journal.shift is None
    assert journal.open_shift("li") == 2
    assert journal.moved(2) == []


def test_last_payment_knows_its_undo(journal: Journal) -> None:
    """The newest payment is found with its proof; an undo under way or done marks it, a void one does not."""
    assert journal.last_payment() is None
    paid = pay(journal)
    found = journal.last_payment()
    assert found is not None
    assert (found[0], found[1].proven, found[1].undone) == (paid, True, False)
    assert journal.last_paid_ms(CARD) == NOW
    journal.finish(journal.begin(Operation.UNDO_OFFLINE, CARD, [Leg(Purse.MAIN, 500)], undo_of=paid.id))
    assert journal.last_payment() == found
    undo = journal.begin(Operation.UNDO_OFFLINE, CARD, [Leg(Purse.MAIN, 500)], undo_of=paid.id)
    leg = journal.leg(undo, 0)
    leg.committed(leg.intent(replace(MOVE, kind=TransactionType.LOAD_EP)), DONE)
    again = journal.last_payment()
    assert again is not None
    assert again[1].undone
    assert journal.last_paid_ms(CARD) is None


def test_clock_floor_ignores_notes(tmp_path: Path) -> None:
    """A note written while the clock was far ahead does not make it doubtful for years; a money move counts."""
    clock = Clock()
    with open_journal(tmp_path / "j.db", clock) as journal:
        clock.ms += 10**12
        journal.note("clock", "ahead")
        clock.ms = NOW
        assert journal.standing().clock_floor_ms == 0
        pay(journal)
        assert journal.standing().clock_floor_ms == NOW


def test_a_failing_transaction_changes_nothing(journal: Journal) -> None:
    """An entry that can't be coded is rolled back with its job, and the chain goes on."""
    job = begin(journal, 500)
    with contextlib.suppress(OneCardError):
        journal.leg(job, 0).intent(replace(MOVE, when=b"short"))
    assert (journal.last_seq, journal.job(job.id).legs[0].state) == (0, LegState.PLANNED)
    pay(journal)
    journal.verify()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
