"""The list over time: versions, staged changes, and files that bring any terminal to the same list."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backoffice import blacklists
from backoffice.blacklists import DELTA_MS
from backoffice.database import Database
from backoffice.operators import Operator, Role
from cardlib.blacklist import Blacklist, FileKind, ListReason, ListStore, open_file
from cardlib.crypto.signing import SigningKey
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from cardlib.profile import CardKind, make_serial
from tests.backoffice.conftest import ENTERPRISE, Clock

KEY = SigningKey(bytes([1]) * 32)
LI = Operator(ENTERPRISE, "li", Role.ISSUER)
CARDS = [make_serial(CardKind.RFID_SIM, 1, number) for number in range(30)]
LOST, FRAUD = ListReason.LOST, ListReason.FRAUD


def change(db: Database, *lost: int, off: tuple[int, ...] = (), reason: ListReason = LOST) -> int:
    with db.write() as tx:
        for number in off:
            blacklists.remove(tx, LI, ENTERPRISE, CARDS[number])
        for number in lost:
            blacklists.add(tx, LI, ENTERPRISE, CARDS[number], reason)
        return blacklists.publish(tx, ENTERPRISE, "li")


def export(db: Database, have: int = 0) -> blacklists.Export:
    with db.read() as tx:
        return blacklists.export(tx, LI, ENTERPRISE, KEY, have)


def at_terminal(db: Database, terminal: Blacklist) -> Blacklist:
    return terminal.apply(open_file(export(db, terminal.version).raw, KEY.public))


def numbers(whole: Blacklist) -> list[int]:
    return [CARDS.index(serial) for serial in whole]


def test_versions_grow_by_one_with_each_change(db: Database) -> None:
    """Each published change makes the next version; publishing nothing makes none; the first may be empty."""
    assert [change(db), change(db), change(db, 3), change(db, 3), change(db, 4, 5), change(db, off=(3,))] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]


def test_files_lead_every_terminal_to_the_same_list(db: Database) -> None:
    """From no list or any version on, one file leads to the current list."""
    change(db)
    terminals = [Blacklist(ENTERPRISE)]
    for step in ((1, 2, 3), (4,), (5, 6)):
        change(db, *step)
        terminals.append(at_terminal(db, Blacklist(ENTERPRISE)))
    change(db, 7, off=(1, 5))
    kinds = [export(db, terminal.version).kind for terminal in terminals]
    assert kinds == [FileKind.SNAPSHOT, FileKind.SNAPSHOT, FileKind.DELTA, FileKind.DELTA]
    assert [numbers(at_terminal(db, terminal)) for terminal in terminals] == [[2, 3, 4, 6, 7]] * 4


def test_unchanged_list_is_renewed(db: Database, clock: Clock) -> None:
    """A terminal that has the current version gets a freshness file with the time of now."""
    change(db, 1)
    terminal = at_terminal(db, Blacklist(ENTERPRISE))
    clock.forward(1000)
    assert export(db, 1).kind is FileKind.FRESHNESS
    renewed = at_terminal(db, terminal)
    assert (renewed.created_ms, numbers(renewed)) == (clock.now_ms, [1])


def test_revoked_tokens_stand_in_every_file(db: Database, clock: Clock) -> None:
    """Snapshot, delta and freshness name each revoked token, until it would have expired by itself."""
    terminal = Blacklist(ENTERPRISE)
    change(db, 1, 2, 3)
    with db.write() as tx:
        assert blacklists.revoke_token(tx, LI, ENTERPRISE, b"tok1")
        assert not blacklists.revoke_token(tx, LI, ENTERPRISE, b"tok1")
    for kind in (FileKind.SNAPSHOT, FileKind.FRESHNESS, FileKind.DELTA):
        if kind is FileKind.DELTA:
            change(db, 4)
        assert export(db, terminal.version).kind is kind
        terminal = at_terminal(db, terminal)
        assert terminal.revoked == (b"tok1",)
    clock.now_ms += blacklists.TOKEN_MS
    assert at_terminal(db, terminal).revoked == ()


def test_long_absence_gets_the_snapshot(db: Database, clock: Clock) -> None:
    """A terminal more than 90 days behind gets the snapshot."""
    change(db, *range(20))
    change(db, 21)
    clock.forward(DELTA_MS)
    assert export(db, 1).kind is FileKind.DELTA
    clock.forward(1)
    assert export(db, 1).kind is FileKind.SNAPSHOT


def test_staged_is_not_yet_published(db: Database) -> None:
    """Files tell published versions only; what is staged waits."""
    change(db, 1)
    with db.write() as tx:
        blacklists.add(tx, LI, ENTERPRISE, CARDS[2], LOST)
        assert blacklists.staged(tx, ENTERPRISE) == (1, 0)
        listed = blacklists.listing(tx, ENTERPRISE)
    assert [(CARDS.index(entry.card_serial), entry.published) for entry in listed] == [(1, True), (2, False)]
    assert numbers(at_terminal(db, Blacklist(ENTERPRISE))) == [1]


def test_taken_back_before_it_was_published(db: Database) -> None:
    """A report and its withdrawal between two versions leave no trace in the list; both are in the audit log."""
    change(db, 1)
    with db.write() as tx:
        assert blacklists.add(tx, LI, ENTERPRISE, CARDS[2], LOST)
        assert not blacklists.add(tx, LI, ENTERPRISE, CARDS[2], LOST)
        assert blacklists.remove(tx, LI, ENTERPRISE, CARDS[2])
        assert not blacklists.remove(tx, LI, ENTERPRISE, CARDS[2])
        assert blacklists.remove(tx, LI, ENTERPRISE, CARDS[1])
        assert blacklists.add(tx, LI, ENTERPRISE, CARDS[1], LOST)
        assert blacklists.staged(tx, ENTERPRISE) == (0, 0)
        assert blacklists.publish(tx, ENTERPRISE, "li") == 1
        assert tx.value("SELECT COUNT(*) FROM audit_event WHERE event = 'blacklist.changed'") == 5


def test_changed_reason(db: Database) -> None:
    """A lost card that turns out a fraud changes its reason at every terminal, by delta too."""
    change(db, *range(10))
    terminal = at_terminal(db, Blacklist(ENTERPRISE))
    change(db, 4, reason=FRAUD)
    assert export(db, 1).kind is FileKind.DELTA
    assert at_terminal(db, terminal).reason(CARDS[4]) is FRAUD


def test_listed_and_unlocked_again_and_again(db: Database) -> None:
    """A card may come and go any number of times; no list holds it twice."""
    for _ in range(3):
        change(db, 1)
        change(db, off=(1,))
    assert change(db, 1) == 7
    assert numbers(at_terminal(db, Blacklist(ENTERPRISE))) == [1]


def test_pruned_after_expiry(db: Database) -> None:
    """A card whose application expired goes off the list; others stay."""
    change(db, 1, 2, 3)
    with db.write() as tx:
        tx.execute("INSERT INTO member VALUES (?, '1', 'n', NULL, '', 0, '', '', 'active', 0, 0)", (ENTERPRISE,))
        for number, expires in ((1, "2026-06-30"), (2, "2026-07-01")):
            tx.execute(
                "INSERT INTO card_application (enterprise_id, card_serial, member_number, kind, state, slot,"
                " key_version, starts, expires, created_ms, changed_ms)"
                " VALUES (?, ?, '1', 1, 'lost', 1, 1, '2021-07-01', ?, 0, 0)",
                (ENTERPRISE, CARDS[number], expires),
            )
        assert blacklists.prune(tx, ENTERPRISE, "2026-07-01", "li") == 1
        blacklists.publish(tx, ENTERPRISE, "li")
    assert numbers(at_terminal(db, Blacklist(ENTERPRISE))) == [2, 3]


def test_enterprises_apart(db: Database) -> None:
    """An enterprise's changes and versions are its own."""
    change(db, 1)
    with db.write() as tx:
        blacklists.put(tx, 2002, CARDS[1], FRAUD, "wang")
        assert blacklists.publish(tx, 2002, "wang") == 1
        assert blacklists.at(tx, ENTERPRISE, 1).reason(CARDS[1]) is LOST


def test_refusals(db: Database) -> None:
    """No list yet, a version from nowhere, a mistyped serial, an operator without the right: each is refused."""
    with pytest.raises(NotFound, match="blacklist build"):
        export(db)
    change(db, 1)
    for have in (2, -1):
        with pytest.raises(Conflict):
            export(db, have)
    with pytest.raises(FormatError), db.write() as tx:
        blacklists.add(tx, LI, ENTERPRISE, CARDS[0][:7] + b"\0", LOST)
    auditor = Operator(ENTERPRISE, "anna", Role.AUDITOR)
    with pytest.raises(Refused), db.write() as tx:
        blacklists.add(tx, auditor, ENTERPRISE, CARDS[1], LOST)
    with pytest.raises(Refused), db.write() as tx:
        blacklists.remove(tx, auditor, ENTERPRISE, CARDS[1])
    with pytest.raises(Refused), db.read() as tx:
        blacklists.export(tx, auditor, ENTERPRISE, KEY)


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "publish", "sync"]), st.integers(0, 5), st.sampled_from(list(ListReason))
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_any_history(db: Database, tmp_path: Path, history: list[tuple[str, int, ListReason]]) -> None:
    """After any history, a terminal that syncs now and then has what was published last, and a new one too."""
    with db.write() as tx:
        enterprise = int(tx.value("SELECT COUNT(DISTINCT enterprise_id) FROM blacklist_version")) + 1
    path = tmp_path / f"list {enterprise}"
    model: dict[bytes, ListReason] = {}
    published: dict[bytes, ListReason] = {}
    boss = Operator(enterprise, "boss", Role.ADMINISTRATOR)
    for what, number, reason in [*history, ("publish", 0, LOST), ("sync", 0, LOST)]:
        with db.write() as tx:
            if what == "add":
                assert blacklists.put(tx, enterprise, CARDS[number], reason, "li") == (
                    model.get(CARDS[number]) is not reason
                )
                model[CARDS[number]] = reason
            elif what == "remove":
                assert blacklists.take_off(tx, enterprise, CARDS[number], "li") == (CARDS[number] in model)
                model.pop(CARDS[number], None)
            elif what == "publish":
                blacklists.publish(tx, enterprise, "li")
                published = dict(model)
            elif blacklists.version(tx, enterprise):
                store = ListStore(path, enterprise, KEY.public)
                store.take(blacklists.export(tx, boss, enterprise, KEY, store.current.version).raw)
                found = ListStore(path, enterprise, KEY.public).current
                assert {serial: found.reason(serial) for serial in found} == published
    with db.read() as tx:
        whole = blacklists.at(tx, enterprise, blacklists.version(tx, enterprise))
    assert {serial: whole.reason(serial) for serial in whole} == published
