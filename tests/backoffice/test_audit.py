"""The audit log: typed, append-only, and every tampering with its sealed part is found."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from backoffice import audit
from backoffice.audit import Event, Head
from backoffice.database import Database
from cardlib.errors import CheckFailed, DatabaseError, FormatError

ONE = 1001


def fill(db: Database, count: int, enterprise_id: int = ONE) -> None:
    with db.write() as tx:
        for number in range(count):
            subject = f"card:{number:016X}"
            audit.record(tx, enterprise_id, Event.CARD_CHANGED, "li", subject, reason="lost", count=number)


def sealed(db: Database, count: int = 5) -> Head:
    fill(db, count)
    with db.write() as tx:
        return audit.seal(tx, ONE)


def tamper(db: Database, *statements: str) -> None:
    """Change the file as somebody with a database tool would: guards dropped first."""
    db.close()
    with sqlite3.connect(db.path) as raw:
        for guard in ("delete", "update", "seal"):
            raw.execute(f"DROP TRIGGER audit_event_{guard}")
        for statement in statements:
            raw.execute(statement)
    raw.close()


def verify(db: Database, kept: Head | None = None) -> audit.Proof:
    with db.read() as tx:
        return audit.verify(tx, ONE, kept)


def test_verify_proves_the_sealed_part_and_counts_the_rest(db: Database) -> None:
    """Sealed events are proven, later ones counted, another enterprise's are none of its business."""
    head = sealed(db)
    fill(db, 3)
    fill(db, 2, enterprise_id=2002)
    assert verify(db, head) == (5, 3, head)
    with db.write() as tx:
        longer = audit.seal(tx, ONE)
    assert verify(db, head) == (8, 0, longer)


def test_sealing_nothing_changes_nothing(db: Database) -> None:
    """Sealing twice gives the same end of the chain."""
    head = sealed(db)
    with db.write() as tx:
        assert audit.seal(tx, ONE) == head


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_event SET details = '{}' WHERE number = 3",
        "UPDATE audit_event SET actor = 'wang' WHERE number = 5",
        "UPDATE audit_event SET at_ms = at_ms + 1 WHERE number = 1",
        "UPDATE audit_event SET event = 'card.issued' WHERE number = 2",
        "UPDATE audit_event SET hash = zeroblob(32) WHERE number = 5",
        "DELETE FROM audit_event WHERE number = 1",
        "DELETE FROM audit_event WHERE number = 3",
        "UPDATE audit_event SET number = 10 - number",
        "INSERT INTO audit_event VALUES (1001, 'x', 0, 'card.issued', 'li', 'card:1', '{}', 6, zeroblob(32))",
    ],
)
def test_tampering_is_found(db: Database, change: str) -> None:
    """An entry edited, deleted, inserted or moved breaks the chain."""
    sealed(db)
    tamper(db, change)
    with pytest.raises(CheckFailed, match="audit log of 1001"):
        verify(db)


def test_two_entries_swapped(db: Database) -> None:
    """Two entries that changed places, hashes left behind, break the chain."""
    sealed(db)
    move = "UPDATE audit_event SET number = {} WHERE number = {}"
    tamper(db, move.format(99, 2), move.format(2, 4), move.format(4, 99))
    with pytest.raises(CheckFailed, match="entry 2"):
        verify(db)


def test_deletion_with_renumbering(db: Database) -> None:
    """Closing the hole after a deletion doesn't help: the hashes bind each number."""
    sealed(db)
    drop, move = "DELETE FROM audit_event WHERE number = {}", "UPDATE audit_event SET number = {} WHERE number = {}"
    tamper(db, drop.format(5), drop.format(2), move.format(2, 3), move.format(3, 4))
    with pytest.raises(CheckFailed, match="entry 2"):
        verify(db)


def test_truncation_is_found_against_a_kept_head(db: Database) -> None:
    """Cutting the end off is found by who kept the head; so is a chain made anew."""
    head = sealed(db)
    tamper(db, "DELETE FROM audit_event WHERE number > 3")
    assert verify(db).sealed == 3
    with pytest.raises(CheckFailed, match="ends at 3"):
        verify(db, head)
    with pytest.raises(CheckFailed, match="entry 2 is not the one"):
        verify(db, Head(2, bytes(32)))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_event SET details = '{}'",
        "UPDATE audit_event SET number = number + 100",
        "UPDATE audit_event SET hash = zeroblob(32)",
        "DELETE FROM audit_event",
    ],
)
def test_append_only(db: Database, change: str) -> None:
    """The database itself refuses to change or drop an event, or to seal it twice."""
    sealed(db)
    with pytest.raises(DatabaseError, match="append-only"), db.write() as tx:
        tx.execute(change)


@pytest.mark.parametrize(
    ("actor", "subject", "details"),
    [
        ("li", "card:1", {"pin": "123456"}),
        ("li", "card:1", {"name": "x" * 65}),
        ("li", "no kind", {}),
        ("", "card:1", {}),
    ],
)
def test_no_way_in_for_secrets(db: Database, actor: str, subject: str, details: dict[str, str]) -> None:
    """An event takes ids and numbers under known names only."""
    with pytest.raises(FormatError), db.write() as tx:
        audit.record(tx, ONE, Event.CARD_CHANGED, actor, subject, **details)


def test_entries_by_subject_and_page(db: Database) -> None:
    """Events are read back oldest first, of one subject if asked, page by page."""
    fill(db, 5)
    fill(db, 2)
    with db.read() as tx:
        one = audit.entries(tx, ONE, subject="card:0000000000000001")
        first = audit.entries(tx, ONE, limit=3)
        rest = audit.entries(tx, ONE, after=first[-1].event_id)
    assert [entry.details for entry in one] == [{"reason": "lost", "count": 1}] * 2
    assert [entry.details["count"] for entry in first + rest] == [0, 1, 2, 3, 4, 0, 1]


def test_head_as_text(db: Database) -> None:
    """A head written down is read back; anything else is refused."""
    head = sealed(db)
    assert Head.decode(head.encode() + "\n") == head
    for text in ("", "5", "5:00", "x:" + "0" * 64, f"-1:{'0' * 64}"):
        with pytest.raises(FormatError):
            Head.decode(text)


CHECK = """
previous=0000000000000000000000000000000000000000000000000000000000000000
while read -r hash line; do
    [ "$(printf %s "$previous$line" | sha256sum | cut -c 1-64)" = "$hash" ] || { echo "broken: $line"; exit 1; }
    previous=$hash
done
echo "$previous"
"""
"""What docs/keys.md gives an auditor: nothing of this project's."""


def check_export(lines: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", CHECK], input="".join(lines), capture_output=True, text=True, check=False)


def test_export_is_checked_without_our_code(db: Database) -> None:
    """A shell with sha256sum proves an export up to the sealed head, and finds a changed, missing or moved line."""
    head = sealed(db)
    with db.read() as tx:
        lines = [f"{line}\n" for line in audit.export(tx, ONE)]
    assert check_export(lines).stdout.strip() == head.hash.hex()
    for bad in (lines[1:], [*lines[:2], *lines[3:]], [lines[1], lines[0], *lines[2:]],
                [lines[0].replace('"lost"', '"found"'), *lines[1:]]):  # fmt: skip
        assert bad != lines
        assert check_export(bad).returncode == 1


def test_export_is_in_the_guide() -> None:
    """The guide shows the very check that is tested here."""
    guide = (Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8")
    assert CHECK.strip().removesuffix('echo "$previous"') in guide
