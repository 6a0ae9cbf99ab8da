"""The books: conserved whatever happens, repeats recognised, tampering found."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backoffice import ledger
from backoffice.audit import Head, Proof
from backoffice.database import Database
from backoffice.ledger import Entry, transfer
from cardlib.errors import CheckFailed, Conflict, DatabaseError, FormatError, NotFound, Refused

ENTERPRISE = 7


def _tamper(db: Database, sql: str) -> None:
    """Change the file behind the program's back, guards removed."""
    raw = sqlite3.connect(db.path)
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute(sql)
    raw.commit()
    raw.close()


def _seal(db: Database, enterprise_id: int = ENTERPRISE) -> Head:
    with db.write() as tx:
        return ledger.seal(tx, enterprise_id)


def _verify(db: Database, kept: Head | None = None) -> Proof:
    with db.read() as tx:
        return ledger.verify(tx, ENTERPRISE, kept)


def test_repeat_changes_nothing_and_other_content_conflicts(db: Database) -> None:
    """The same entry twice is one entry; the same id with another amount or account is a conflict."""
    entry = transfer("r1", "load", 5, "bank", "card/1/main", 100, "anna")
    with db.write() as tx:
        assert ledger.post(tx, ENTERPRISE, entry) == 1
    with db.write() as tx:
        assert ledger.post(tx, ENTERPRISE, entry, transfer("r1", "load", 9, "bank", "card/1/main", 100, "ben")) == 0
        assert ledger.balance(tx, ENTERPRISE, "card/1/main") == 100
    for other in (("bank", "card/1/main", 101), ("bank", "card/2/main", 100)):
        with pytest.raises(Conflict), db.write() as tx:
            ledger.post(tx, ENTERPRISE, transfer("r1", "load", 5, *other, "anna"))
    with db.read() as tx:
        assert ledger.balances(tx, ENTERPRISE) == {"bank": -100, "card/1/main": 100}
        assert ledger.entry(tx, ENTERPRISE, "r1") == entry


@pytest.mark.parametrize(
    "postings", [{}, {"a": 1}, {"a": 1, "b": -2}, {"a": 0, "b": 0}, {"a": 10**16, "b": -(10**16)}, {"a": True, "b": -1}]
)
def test_unbalanced_entry_is_refused(db: Database, postings: dict[str, int]) -> None:
    """Amounts that are zero, absurd, no integers, or do not add up never enter the books."""
    with pytest.raises(FormatError), db.write() as tx:
        ledger.post(tx, ENTERPRISE, Entry("x", "load", 1, postings, "anna"))
    assert _verify(db).unsealed == 0


@pytest.mark.parametrize("amount_fen", [0, -5])
def test_transfer_of_nothing_is_refused(amount_fen: int) -> None:
    """Nothing and less than nothing can't be moved."""
    with pytest.raises(FormatError):
        transfer("x", "load", 1, "a", "b", amount_fen, "anna")


MOVES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(1, 10**9), st.booleans()), max_size=30
)


@settings(max_examples=40, deadline=None)
@given(moves=MOVES, repeat=st.integers(0, 29))
def test_conservation(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, str, int, bool]], repeat: int
) -> None:
    """Whatever is posted, repeated and sealed in whatever batches, accounts sum to zero and verify proves all of it."""
    with Database(tmp_path_factory.mktemp("l") / "e.db", "enterprise", migrate=True) as db:
        entries = [transfer(f"m{n}", "t", n, a, b, fen, "anna") for n, (a, b, fen, _) in enumerate(moves)]
        expected: dict[str, int] = {}
        sealed = 0
        for entry, (giver, getter, fen, seal) in zip(entries, moves, strict=True):
            with db.write() as tx:
                ledger.post(tx, ENTERPRISE, entry, *entries[repeat : repeat + 1][: entry.at_ms > repeat])
            expected[giver] = expected.get(giver, 0) - fen
            expected[getter] = expected.get(getter, 0) + fen
            sealed = _seal(db).number if seal else sealed
        with db.read() as tx:
            found = ledger.balances(tx, ENTERPRISE)
        assert found == expected
        assert sum(found.values()) == 0
        assert _verify(db)[:2] == (sealed, len(moves) - sealed)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE ledger_posting SET amount_fen = 11 WHERE entry_id = 'm1' AND account = 'b'",
        "UPDATE ledger_posting SET amount_fen = amount_fen * 2 WHERE entry_id = 'm1'",
        "UPDATE ledger_posting SET account = 'c' WHERE entry_id = 'm1' AND account = 'b'",
        "UPDATE ledger_entry SET operator = 'eve' WHERE entry_id = 'm1'",
        "UPDATE ledger_entry SET note = 'x' WHERE entry_id = 'm1'",
        "UPDATE ledger_entry SET posted_ms = posted_ms + 1 WHERE entry_id = 'm1'",
        "UPDATE ledger_entry SET digest = x'00' WHERE entry_id = 'm1'",
        "DELETE FROM ledger_posting WHERE entry_id = 'm1'",
        "DELETE FROM ledger_entry WHERE entry_id = 'm1'",
    ],
)
def test_tampering_is_found(db: Database, sql: str) -> None:
    """Each change behind the program's back to a sealed entry makes verify fail."""
    with db.write() as tx:
        ledger.post(tx, ENTERPRISE, *(transfer(f"m{n}", "t", n, "a", "b", 10, "anna") for n in range(3)))
    assert _seal(db).number == 3
    assert _verify(db).sealed == 3
    db.close()
    _tamper(db, sql)
    with pytest.raises(CheckFailed):
        _verify(db)


def test_books_are_append_only(db: Database) -> None:
    """The program's own connection can't change or delete an entry, nor seal it twice."""
    with db.write() as tx:
        ledger.post(tx, ENTERPRISE, transfer("m1", "t", 1, "a", "b", 10, "anna"))
    _seal(db)
    for sql in (
        "UPDATE ledger_posting SET amount_fen = 1",
        "DELETE FROM ledger_posting",
        "UPDATE ledger_entry SET kind = 'x'",
        "UPDATE ledger_entry SET seal_seq = 9",
        "DELETE FROM ledger_entry",
    ):
        with pytest.raises(DatabaseError), db.write() as tx:
            tx.execute(sql)


def test_correction_needs_two_operators(db: Database) -> None:
    """A correction waits for another operator than its proposer; approving it twice posts it once."""
    fix = Entry("fix1", "correction", 9, {"a": 10, "b": -10}, "anna", corrects="m1", note="keyed twice")
    with db.write() as tx:
        ledger.post(tx, ENTERPRISE, transfer("m1", "t", 1, "a", "b", 10, "anna"))
        ledger.propose(tx, ENTERPRISE, fix)
        assert ledger.balance(tx, ENTERPRISE, "b") == 10
        assert [row["entry_id"] for row in ledger.proposals(tx, ENTERPRISE)] == ["fix1"]
    with pytest.raises(Refused) as refused, db.write() as tx:
        ledger.approve(tx, ENTERPRISE, "fix1", "anna")
    assert refused.value.reason == "two_operators"
    for _ in range(2):
        with db.write() as tx:
            ledger.approve(tx, ENTERPRISE, "fix1", "ben")
    with db.read() as tx:
        assert ledger.balance(tx, ENTERPRISE, "b") == 0
        assert ledger.entry(tx, ENTERPRISE, "fix1").second_operator == "ben"
        assert ledger.proposals(tx, ENTERPRISE) == []
        assert [(row["entry_id"], row["amount_fen"]) for row in ledger.statement(tx, ENTERPRISE, "b")] == [
            ("m1", 10), ("fix1", -10),
        ]  # fmt: skip
    with pytest.raises(NotFound), db.write() as tx:
        ledger.propose(tx, ENTERPRISE, Entry("fix2", "correction", 9, {"a": 1, "b": -1}, "anna", corrects="nothing"))
    with pytest.raises(NotFound), db.write() as tx:
        ledger.approve(tx, ENTERPRISE, "fix9", "ben")


def test_enterprises_are_apart(db: Database) -> None:
    """The same entry id in two enterprises is two entries, sealed in two chains."""
    with db.write() as tx:
        ledger.post(tx, 1, transfer("m1", "t", 1, "a", "b", 10, "anna"))
        ledger.post(tx, 2, transfer("m1", "t", 1, "a", "b", 20, "anna"))
    assert _seal(db, 1).number == _seal(db, 2).number == 1
    with db.read() as tx:
        assert (ledger.balance(tx, 1, "b"), ledger.balance(tx, 2, "b")) == (10, 20)


def test_kept_head_shows_truncation(db: Database) -> None:
    """A head kept elsewhere tells that entries at the end are gone, which the chain alone can't."""
    with db.write() as tx:
        ledger.post(tx, ENTERPRISE, *(transfer(f"m{n}", "t", n, "a", "b", 10, "anna") for n in range(3)))
    kept = _seal(db)
    assert _verify(db, kept).head == kept
    db.close()
    _tamper(db, "DELETE FROM ledger_posting WHERE entry_id = 'm2'")
    _tamper(db, "DELETE FROM ledger_entry WHERE entry_id = 'm2'")
    assert _verify(db).sealed == 2
    with pytest.raises(CheckFailed):
        _verify(db, kept)
