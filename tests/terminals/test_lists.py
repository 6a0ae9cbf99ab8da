"""The terminal's blacklist: taken atomically, never older, never another's; lost or put back it is as good as none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cardlib.blacklist import Blacklist, Certificate, ListReason, delta, freshness, snapshot
from cardlib.crypto.signing import SigningKey
from cardlib.errors import DatabaseError, FormatError, MacMismatch, OneCardError, Refused
from cardlib.profile import CardKind, make_serial
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.policy import DAY_MS
from terminals.reasons import Reason
from tests.terminals.shop import NOW, RULES, Shop, refused
from tests.terminals.test_journal import open_journal

ROOT = SigningKey.generate(Random(1).randbytes)
OTHER = SigningKey.generate(Random(2).randbytes)
CARDS = [make_serial(CardKind.CPU_CARD, 1, n) for n in range(1, 8)]


def listed(version: int, *entries: tuple[int, ListReason], created_ms: int = NOW, owner: int = 1001) -> Blacklist:
    return Blacklist.of(owner, version, created_ms, [(CARDS[n], reason) for n, reason in entries])


ONE = listed(1, (0, ListReason.LOST))
TWO = listed(2, (0, ListReason.LOST), (1, ListReason.SAM_LOST), created_ms=NOW + 1)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path / "j.db") as opened:
        yield opened


def lists_at(tmp_path: Path, journal: Journal) -> TerminalLists:
    return TerminalLists(tmp_path / "lists", 1001, ROOT.public, journal)


def test_reasons_and_steps(tmp_path: Path, journal: Journal) -> None:
    """Snapshot, delta and freshness come into force, survive a restart, and every reason class has a word."""
    lists = lists_at(tmp_path, journal)
    assert (lists.version, lists.created_ms, lists.lookup(CARDS[0])) == (0, None, None)
    assert lists.take(snapshot(ROOT, ONE)) == 1
    assert lists.take(delta(ROOT, ONE, TWO)) == 2
    assert lists.take(delta(ROOT, ONE, TWO)) == 2
    lists = lists_at(tmp_path, journal)
    assert [lists.lookup(card) for card in CARDS[:3]] == [Reason.LOST, Reason.FRAUD, None]
    later = listed(2, created_ms=NOW + DAY_MS)
    assert lists.take(freshness(ROOT, later)) == 2
    assert (lists.created_ms, journal.standing().clock_floor_ms, journal.list_version) == (
        NOW + DAY_MS,
        NOW + DAY_MS,
        2,
    )
    every = listed(3, *((n, reason) for n, reason in enumerate(ListReason)))
    lists.take(snapshot(ROOT, every))
    assert all(lists.lookup(card) for card in CARDS[: len(ListReason)])


@pytest.mark.parametrize(
    ("raw", "error", "reason"),
    [
        (snapshot(ROOT, ONE), Refused, "list_older"),
        (snapshot(ROOT, listed(9, owner=1002)), Refused, "list_foreign"),
        (delta(ROOT, listed(5), listed(6)), Refused, "list_gap"),
        (snapshot(OTHER, listed(9)), MacMismatch, ""),
        (snapshot(ROOT, listed(9))[:-1], MacMismatch, ""),
        (b"OCBL\x01", FormatError, ""),
        (b"", FormatError, ""),
        (Certificate(1002, OTHER.public, NOW, 1).encode(ROOT), Refused, "list_key"),
    ],
)
def test_what_is_not_taken(
    tmp_path: Path, journal: Journal, raw: bytes, error: type[OneCardError], reason: str
) -> None:
    """Older, foreign, forged, cut and out-of-order files are refused and the list in force stays, on disk too."""
    lists = lists_at(tmp_path, journal)
    lists.take(snapshot(ROOT, TWO))
    with pytest.raises(error) as caught:
        lists.take(raw)
    assert getattr(caught.value, "reason", "") == reason
    for again in (lists, lists_at(tmp_path, journal)):
        assert (again.version, again.lookup(CARDS[0])) == (2, Reason.LOST)
    assert not lists.trouble


def test_certified_list_key(tmp_path: Path, journal: Journal) -> None:
    """A list key certified by the root signs lists from then on."""
    lists = lists_at(tmp_path, journal)
    lists.take(Certificate(1001, OTHER.public, NOW - 1, 1).encode(ROOT))
    assert lists.take(snapshot(OTHER, ONE)) == 1
    assert lists_at(tmp_path, journal).version == 1


def test_an_old_copy_put_back_does_not_count(tmp_path: Path, journal: Journal) -> None:
    """A file restored from a backup, removed or damaged is found out; only a list as new as before ends it."""
    lists = lists_at(tmp_path, journal)
    lists.take(snapshot(ROOT, ONE))
    old = (tmp_path / "lists").read_bytes()
    lists.take(snapshot(ROOT, TWO))
    damaged = bytearray(old)
    damaged[70] ^= 1
    for content in (old, bytes(damaged), old[:-3], b"\0", None):
        if content is None:
            (tmp_path / "lists").unlink()
        else:
            (tmp_path / "lists").write_bytes(content)
        lists = lists_at(tmp_path, journal)
        assert lists.trouble
        assert (lists.version, lists.created_ms, lists.lookup(CARDS[0])) == (0, None, None)
        assert refused(lambda lists=lists: lists.take(snapshot(ROOT, ONE))) == "list_older"  # type: ignore[misc]
        assert lists.take(snapshot(ROOT, TWO)) == 2
        assert not lists.trouble


@pytest.mark.parametrize("dies", ["fsync", "replace"])
def test_power_cut_while_taking(tmp_path: Path, journal: Journal, dies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When power goes or the disk fails in the middle, the old list or the new one is in force afterwards."""
    lists = lists_at(tmp_path, journal)
    lists.take(snapshot(ROOT, ONE))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if dies == "fsync" else Path, dies, fail)
        with pytest.raises(DatabaseError):
            lists.take(snapshot(ROOT, TWO))
    assert lists.version == 1
    again = lists_at(tmp_path, journal)
    assert (again.version, again.trouble) == (1, "")
    assert again.take(snapshot(ROOT, TWO)) == 2


@pytest.mark.parametrize("seed", range(8))
def test_hostile_clock_and_lists_by_seed(tmp_path: Path, seed: int) -> None:
    """Whatever clock and lists do, a listed card never pays, and none pays on a list beyond B or a clock set back."""
    rng = Random(seed)
    shop = Shop(tmp_path)
    card, lost = shop.new_card(1, 0, 50_000), shop.new_card(2, 0, 50_000)
    lists = TerminalLists(tmp_path / "lists", 7, ROOT.public, shop.journal)
    shop.terminal.lists = lists
    true_ms, version, newest_ms = NOW, 0, 0
    serial = make_serial(CardKind.CPU_CARD, 1, 2)
    for _ in range(80):
        true_ms += rng.randint(0, DAY_MS)
        if rng.random() < 0.4:
            version = max(1, version + rng.choice((-1, 0, 1)))
            created_ms = true_ms - rng.choice((0, DAY_MS))
            raw = snapshot(ROOT, Blacklist.of(7, version, created_ms, [(serial, ListReason.LOST)]))
            if version < lists.version:
                assert refused(lambda raw=raw: lists.take(raw)) == "list_older"  # type: ignore[misc]
            else:
                lists.take(raw)
        shop.now_ms = true_ms + rng.choice((0, 0, 0, -2 * DAY_MS, 10 * DAY_MS, -true_ms))
        card.reset()
        lost.reset()
        age_ms = shop.now_ms - (lists.created_ms or 0)
        before, committed = shop.journal.standing().clock_floor_ms, len(shop.moves())
        assert refused(lambda: shop.pos.pay(lost, 1)) in {"lost", "clock_doubtful", "list_too_old"}
        try:
            shop.pos.pay(card, 1)
        except Refused as e:
            reason = e.reason
            assert reason == ("clock_doubtful" if shop.now_ms < before - 2_000 else "list_too_old")
            assert len(shop.moves()) == committed
        else:
            assert shop.now_ms >= before - 2_000
            assert age_ms <= RULES.list_reduced_ms
            newest_ms = max(newest_ms, shop.now_ms)
        version = lists.version or version
    assert newest_ms
    assert shop.look(lost).balances_fen == (0, 50_000)
