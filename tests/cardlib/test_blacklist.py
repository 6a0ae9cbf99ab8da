"""Blacklist files: byte for byte as blacklist.md says, no way back, nothing half applied, little memory."""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib import blacklist, rice
from cardlib.blacklist import Blacklist, Certificate, FileKind, Head, ListReason, ListStore, key_id, open_file
from cardlib.crypto.signing import SigningKey
from cardlib.errors import FormatError, MacMismatch, Refused
from cardlib.profile import CardKind, make_serial

KEY, ROOT, STRANGER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
ONE = 1001
Entries = dict[bytes, int]


def sim(number: int, platform: int = 1, kind: CardKind = CardKind.RFID_SIM) -> bytes:
    return make_serial(kind, platform, number)


def of(version: int, entries: Entries, created_ms: int = 0) -> Blacklist:
    return Blacklist.of(ONE, version, created_ms or 1000 * version, entries.items())


def content(whole: Blacklist) -> Entries:
    found = {serial: whole.reason(serial) for serial in whole}
    return {serial: int(reason) for serial, reason in found.items() if reason is not None}


def slow_decode(raw: bytes) -> tuple[dict[int, Any], list[tuple[str, list[int], list[int], list[int]]]]:
    """A plain reader written from the page alone, bit by bit: prefix, added, reasons, removed ranks."""
    assert raw[:5] == b"OCBL\x01"
    size = int.from_bytes(raw[5:9], "big")
    head = cbor2.loads(raw[9 : 9 + size])
    body, groups, at = raw[9 + size : -64], [], 0

    def coded() -> list[int]:
        nonlocal at
        k, count, length = (
            body[at],
            int.from_bytes(body[at + 1 : at + 5], "big"),
            int.from_bytes(body[at + 5 : at + 9], "big"),
        )
        bits = [byte >> shift & 1 for byte in body[at + 9 : at + 9 + length] for shift in range(7, -1, -1)]
        at += 9 + length
        values: list[int] = []
        position, previous = 0, -1
        for _ in range(count):
            quotient = 0
            while bits[position]:
                quotient, position = quotient + 1, position + 1
            position += 1
            low = 0
            for _ in range(k):
                low, position = low << 1 | bits[position], position + 1
            previous += (quotient << k | low) + 1
            values.append(previous)
        assert len(bits) - position < 8
        assert not any(bits[position:])
        return values

    while at < len(body):
        prefix = body[at : at + 2].hex()
        at += 2
        added = coded()
        halves = body[at : at + (len(added) + 1) // 2].hex()
        at += (len(added) + 1) // 2
        groups.append((prefix, added, [int(half) for half in halves[: len(added)]], coded() if head[2] == 1 else []))
    return head, groups


def test_snapshot_byte_for_byte() -> None:
    """A small snapshot, worked out by hand from the page."""
    whole = of(3, {sim(5): 0, sim(6): 1, sim(9): 4, sim(2, kind=CardKind.CPU_CARD): 3})
    raw = blacklist.snapshot(KEY, whole)
    head = "a9 01 1903e9 02 00 03 00 04 03 05 190bb8 06 04 07 00 08 48" + key_id(KEY.public).hex() + "09 80"
    # gaps 5 0 2: k=0 codes 111110 0 110 in 10 bits, k=1 1101 00 100 in 9, k=2 1001 000 010 in 10: k is 1.
    first = "0101 01 00000003 00000002 d200 0140"
    # gap 2: k=0 codes 110, k=1 100, k=2 010, three bits each: the smallest k.
    second = "0201 00 00000001 00000001 c0 30"
    size = len(bytes.fromhex(head)).to_bytes(4, "big").hex()
    expected = bytes.fromhex("4f43424c 01" + size + head + first + second)
    assert raw[:-64] == expected
    assert raw[-64:] == KEY.sign(expected)


def test_delta_byte_for_byte() -> None:
    """A small delta, worked out by hand: additions with reasons, then ranks in the old list."""
    old, new = of(3, {sim(5): 0, sim(6): 1, sim(9): 4}), of(4, {sim(5): 0, sim(7): 2})
    raw = blacklist.delta(KEY, old, new)
    head = "a9 01 1903e9 02 01 03 03 04 04 05 190fa0 06 01 07 02 08 48" + key_id(KEY.public).hex() + "09 80"
    # added 7: k=2 gives 10 11, k=1 1110 1, k=3 0 111: k=2 and k=3 tie with 4 bits, the smallest wins.
    # removed ranks 1 2: gaps 1 0, k=0 gives 10 0.
    size = len(bytes.fromhex(head)).to_bytes(4, "big").hex()
    body = "0101 02 00000001 00000001 b0 20 00 00000002 00000001 80"
    assert raw[:-64] == bytes.fromhex("4f43424c 01" + size + head + body)
    assert content(old.apply(open_file(raw, KEY.public))) == content(new)


entries_strategy = st.dictionaries(
    st.builds(
        sim,
        st.one_of(st.integers(0, 60), st.integers(0, 2**40 - 1)),
        st.sampled_from([0, 1, 255]),
        st.sampled_from(list(CardKind)),
    ),
    st.integers(0, 4),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(entries_strategy, entries_strategy, st.data())
def test_snapshot_and_delta_of_any_lists(old: Entries, extra: Entries, data: st.DataObject) -> None:
    """Any list survives its file; any change survives its delta; a plain reader reads the same."""
    kept = {serial: reason for serial, reason in old.items() if data.draw(st.booleans())}
    new = {**kept, **extra}
    was, now = of(1, old), of(2, new)
    raw = blacklist.snapshot(KEY, was)
    assert content(Blacklist(ONE).apply(open_file(raw, KEY.public))) == old
    head, groups = slow_decode(raw)
    assert head[6] == len(old)
    plain = {
        bytes.fromhex(p) + s.to_bytes(5, "big"): r
        for p, added, reasons, _ in groups
        for s, r in zip(added, reasons, strict=True)
    }
    assert plain == {serial[:7]: reason for serial, reason in old.items()}
    change = blacklist.delta(KEY, was, now)
    changed = was.apply(open_file(change, KEY.public))
    assert content(changed) == new
    head, groups = slow_decode(change)
    assert (head[6], head[7]) == (sum(len(g[1]) for g in groups), sum(len(g[3]) for g in groups))
    assert blacklist.snapshot(KEY, changed) == blacklist.snapshot(KEY, now)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**40 - 1) | st.integers(0, 300), unique=True, max_size=60).map(sorted))
def test_parameter_is_the_best(values: list[int]) -> None:
    """The chosen k gives the shortest code of all that keep within the quotient's limit, the smallest on a tie."""
    gaps = [b - a - 1 for a, b in zip([-1, *values], values, strict=False)]
    sizes = {k: sum((gap >> k) + 1 + k for gap in gaps) for k in range(41) if all(gap >> k <= 2**16 for gap in gaps)}
    k, bits = rice.encode(values)
    assert k == min(sizes, key=lambda one: (sizes[one], one))
    assert len(bits) == -(-sizes[k] // 8)
    assert list(rice.decode(bits, k, len(values), 2**40)) == values


def test_long_code_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code longer than the pieces it is read in comes back whole."""
    values = sorted(random.Random(5).sample(range(2**20), 3000))
    k, bits = rice.encode(values)
    for chunk in (1, 2, 7):
        monkeypatch.setattr(rice, "CHUNK", chunk)
        assert list(rice.decode(bits, k, len(values), 2**40)) == values


def bound_bits(of_all: int, listed: int) -> float:
    return (math.lgamma(of_all + 1) - math.lgamma(listed + 1) - math.lgamma(of_all - listed + 1)) / math.log(2)


def test_size_near_the_entropy_bound() -> None:
    """A tenth of all cards listed costs at most 1.05 of the bound, a delta of some at most 1.10, reasons apart."""
    chance = random.Random(7)
    cards, listed, gone, more = 200_000, 20_000, 300, 700
    old = chance.sample(range(cards), listed)
    rest = sorted(set(range(cards)) - set(old))
    new = old[gone:] + chance.sample(rest, more)
    was, now = of(1, dict.fromkeys(map(sim, old), 0)), of(2, dict.fromkeys(map(sim, new), 0))
    overhead = 64 + 9 + 40 + 11 + 9
    whole = len(blacklist.snapshot(KEY, was)) - listed // 2 - overhead
    assert whole * 8 <= 1.05 * bound_bits(cards, listed)
    change = len(blacklist.delta(KEY, was, now)) - more // 2 - overhead
    assert change * 8 <= 1.10 * (bound_bits(cards - listed, more) + bound_bits(listed, gone))


def test_lookup() -> None:
    """Listed is listed, everything else is not: neighbours, other platforms, other kinds."""
    whole = of(1, {sim(5): 3, sim(2**40 - 1): 0})
    assert whole.reason(sim(5)) is ListReason.FRAUD
    assert whole.reason(sim(2**40 - 1)) is ListReason.LOST
    for serial in (sim(4), sim(6), sim(5, 2), sim(5, kind=CardKind.CPU_CARD), sim(0)):
        assert serial not in whole
        assert whole.reason(serial) is None
    assert len(whole) == 2
    assert sim(5) not in Blacklist(ONE)


FILES: dict[str, bytes] = {
    "snapshot": blacklist.snapshot(KEY, of(3, {sim(n): n % 5 for n in range(0, 90, 7)})),
    "delta": blacklist.delta(KEY, of(3, {sim(n): 0 for n in range(9)}), of(4, {sim(n): 1 for n in range(4, 20)})),
    "freshness": blacklist.freshness(KEY, of(3, {})),
}


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_and_truncation(name: str) -> None:
    """One changed bit anywhere, or a cut at any byte, is caught by the signature or the form."""
    raw = FILES[name]
    for at in range(len(raw)):
        for bad in (raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :], raw[:at]):
            with pytest.raises((MacMismatch, FormatError)):
                open_file(bad, KEY.public)
    with pytest.raises(MacMismatch):
        open_file(raw + b"\0", KEY.public)


def test_foreign_key() -> None:
    """A file of a key that is not trusted is refused; any of several trusted keys will do."""
    with pytest.raises(MacMismatch):
        open_file(FILES["snapshot"], STRANGER.public)
    assert open_file(FILES["snapshot"], STRANGER.public, KEY.public).head.to == 3


HEAD = Head(ONE, FileKind.SNAPSHOT, 0, 3, 3000, 1, 0, key_id(KEY.public))
GROUP = bytes.fromhex("0101 00 00000001 00000001 c0 30")


def signed(head: Head | bytes, *body: bytes) -> bytes:
    coded = head if isinstance(head, bytes) else head.encode()
    message = b"".join([b"OCBL\x01", len(coded).to_bytes(4, "big"), coded, *body])
    return message + KEY.sign(message)


def test_hand_made_file_is_good() -> None:
    """The file that the next tests spoil is good itself."""
    assert open_file(signed(HEAD, GROUP), KEY.public).head == HEAD


@pytest.mark.parametrize(
    "body",
    [
        b"",
        GROUP[:-1],
        GROUP + b"\0",
        GROUP + GROUP,
        b"\x06" + GROUP[1:],
        bytes.fromhex("0101 00 00000001 00000001 c0 50"),
        bytes.fromhex("0101 00 00000001 00000001 c0 31"),
        bytes.fromhex("0101 00 00000001 00000001 c1 30"),
        bytes.fromhex("0101 00 00000001 00000001 ff 30"),
        bytes.fromhex("0101 00 00000001 00000002 c000 30"),
        bytes.fromhex("0101 00 00000001 00000002 c0 30"),
        bytes.fromhex("0101 29 00000001 00000006 000000000000 30"),
        bytes.fromhex("0101 28 00000001 00000006 c00000000000 30"),
        bytes.fromhex("0101 00 00000000 00000000"),
        bytes.fromhex("0101 00 ffffffff 00000001 00") + bytes(50),
        bytes.fromhex("0101 00 00000001 ffffffff c0 30"),
        bytes.fromhex("0101 00 00000002 00000001 c0 30"),
    ],
)
def test_malformed_body(body: bytes) -> None:
    """A signed body that breaks a rule is refused by its form, whatever it claims."""
    with pytest.raises(FormatError):
        open_file(signed(HEAD, body), KEY.public)


def test_largest_quotient() -> None:
    """A quotient of 65536 is read, a larger one refused, however long its run of ones."""
    ones = b"\xff" * 8192
    assert list(rice.decode(ones + b"\0", 0, 1, 2**40)) == [2**16]
    for more in (b"\x80", b"\xff" * 9 + b"\0", b"\xff" * 10**6):
        with pytest.raises(FormatError, match="quotient"):
            rice.decode(ones + more, 0, 1, 2**40)


def test_groups_out_of_order() -> None:
    """Groups come by ascending prefix."""
    other = b"\x02" + GROUP[1:]
    head = HEAD._replace(added=2)
    assert len(open_file(signed(head, GROUP, other), KEY.public).parts) == 2
    with pytest.raises(FormatError, match="order"):
        open_file(signed(head, other, GROUP), KEY.public)


@pytest.mark.parametrize(
    "head",
    [
        HEAD._replace(added=2),
        HEAD._replace(removed=1),
        HEAD._replace(start=1),
        HEAD._replace(to=0),
        HEAD._replace(enterprise_id=0),
        HEAD._replace(enterprise_id=2**32),
        HEAD._replace(added=2**24 + 1),
        HEAD._replace(kind=FileKind.FRESHNESS, start=3),
        HEAD._replace(kind=FileKind.DELTA, start=3),
        HEAD._replace(key_id=bytes(8)),
        HEAD._replace(key_id=b"x"),
        HEAD._replace(revoked=(bytes(33),)),
        b"",
        b"\xff",
        b"\x80",
        b"\x9f" * 40,
        b"\xc2\x41",
        cbor2.dumps({1: 2}),
        cbor2.dumps({**dict.fromkeys(range(1, 8), 0), 8: bytes(8), 9: []}),
        cbor2.dumps({**dict.fromkeys(range(1, 8), "3"), 8: bytes(8), 9: []}),
        cbor2.dumps({**dict.fromkeys(range(1, 8), True), 8: bytes(8), 9: []}),
        cbor2.dumps({**dict.fromkeys(range(1, 8), 2**70), 8: bytes(8), 9: []}),
        cbor2.dumps({**cbor2.loads(HEAD.encode()), 2: 3}),
        cbor2.dumps({**cbor2.loads(HEAD.encode()), 10: 0}),
        cbor2.dumps({**cbor2.loads(HEAD.encode()), 9: ["token"]}),
    ],
)
def test_malformed_head(head: Head | bytes) -> None:
    """A signed head that breaks a rule is refused."""
    with pytest.raises(FormatError):
        open_file(signed(head, GROUP), KEY.public)


def test_head_longer_than_the_file() -> None:
    """A head length that points outside is refused."""
    message = b"OCBL\x01" + (10**6).to_bytes(4, "big") + HEAD.encode()
    with pytest.raises(FormatError, match="head is longer"):
        open_file(message + KEY.sign(message), KEY.public)


@pytest.mark.parametrize("raw", [b"", b"OCBL\x01", b"OCBL\x02" + bytes(200), bytes(200)])
def test_no_list_file(raw: bytes) -> None:
    """Anything that is no list file is refused before a signature is looked at."""
    with pytest.raises(FormatError):
        open_file(raw, KEY.public)


def test_too_large_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit is neither read nor written."""
    monkeypatch.setattr(blacklist, "MAX_FILE", 100)
    with pytest.raises(FormatError, match="64 MiB"):
        open_file(FILES["snapshot"], KEY.public)
    with pytest.raises(FormatError, match="64 MiB"):
        blacklist.snapshot(KEY, of(1, dict.fromkeys(map(sim, range(0, 9000, 30)), 0)))


@pytest.mark.parametrize("entries", [[(sim(1), 0), (sim(1), 1)], [(bytes(8), 0)], [(sim(1)[:7] + b"x", 0)], [(b"", 0)]])
def test_bad_entries(entries: list[tuple[bytes, int]]) -> None:
    """A serial given twice, mistyped, or none at all makes no list."""
    with pytest.raises(FormatError):
        Blacklist.of(ONE, 1, 0, entries)


def test_delta_that_does_not_fit() -> None:
    """A delta that adds what is there, or removes what is not, is refused and the list stays."""
    raw = FILES["delta"]
    for wrong in (of(3, {sim(9): 0, **{sim(n): 0 for n in range(9)}}), of(3, {sim(1): 0})):
        before = content(wrong)
        with pytest.raises(FormatError, match="delta"):
            wrong.apply(open_file(raw, KEY.public))
        assert content(wrong) == before


VERSIONS: list[Entries] = [{sim(n): n % 5 for n in range(start, 2 * start)} for start in (1, 5, 8, 12)]


def parsed(make: Callable[..., bytes], *lists: Blacklist) -> blacklist.ListFile:
    return open_file(make(KEY, *lists), KEY.public)


def test_no_way_back() -> None:
    """An older snapshot is refused; old deltas and freshness files, in any order and repeated, change nothing."""
    lists = [of(version, entries) for version, entries in enumerate(VERSIONS, 1)]
    current = lists[3]
    with pytest.raises(Refused) as older:
        current.apply(parsed(blacklist.snapshot, lists[2]))
    assert older.value.reason == "list_older"
    for file in (
        parsed(blacklist.delta, lists[2], lists[3]),
        parsed(blacklist.delta, lists[0], lists[3]),
        parsed(blacklist.delta, lists[0], lists[1]),
        parsed(blacklist.freshness, lists[1]),
    ):
        assert current.apply(file) is current


def test_gap_asks_for_what_is_missing() -> None:
    """A file that follows a version not here is refused; the combined delta or the snapshot helps."""
    lists = [of(version, entries) for version, entries in enumerate(VERSIONS, 1)]
    for file in (parsed(blacklist.delta, lists[2], lists[3]), parsed(blacklist.freshness, lists[3])):
        for here in (lists[1], Blacklist(ONE)):
            with pytest.raises(Refused) as gap:
                here.apply(file)
            assert gap.value.reason == "list_gap"
    for file in (parsed(blacklist.delta, lists[1], lists[3]), parsed(blacklist.snapshot, lists[3])):
        assert content(lists[1].apply(file)) == VERSIONS[3]


def test_another_enterprise() -> None:
    """A list of another enterprise is refused, even when the key is trusted."""
    with pytest.raises(Refused) as foreign:
        Blacklist(2002).apply(open_file(FILES["snapshot"], KEY.public))
    assert foreign.value.reason == "list_foreign"


def test_freshness_renews_the_age_only() -> None:
    """A freshness file of the version in force makes the list younger, never older."""
    current = of(3, {sim(1): 0}, created_ms=5000)
    younger = current.apply(parsed(blacklist.freshness, of(3, {}, created_ms=9000)))
    assert (younger.created_ms, content(younger)) == (9000, {sim(1): 0})
    assert younger.apply(parsed(blacklist.freshness, of(3, {}, created_ms=7000))).created_ms == 9000


def test_revoked_tokens_travel() -> None:
    """Revoked tokens are those of the newest file."""
    whole = Blacklist(ONE, 2, 2000, {}, (b"token 1", b"token 2"))
    assert Blacklist(ONE).apply(parsed(blacklist.snapshot, whole)).revoked == (b"token 1", b"token 2")


@pytest.fixture
def store(tmp_path: Path) -> ListStore:
    """A terminal without a list, that trusts ROOT."""
    return ListStore(tmp_path / "list", ONE, ROOT.public)


def reopened(store: ListStore) -> ListStore:
    return ListStore(store.path, ONE, ROOT.public)


def fill(store: ListStore) -> list[Blacklist]:
    """Certificate, snapshot 1, delta to 2, freshness of 2, delta to 3."""
    lists = [of(version, entries) for version, entries in enumerate(VERSIONS, 1)]
    fresh = of(2, VERSIONS[1], created_ms=2500)
    store.take(Certificate(ONE, KEY.public, 500, 1).encode(ROOT))
    store.take(blacklist.snapshot(KEY, lists[0]))
    store.take(blacklist.delta(KEY, lists[0], lists[1]))
    store.take(blacklist.freshness(KEY, fresh))
    store.take(blacklist.delta(KEY, lists[1], lists[2]))
    return lists


def test_store_survives_restart(store: ListStore) -> None:
    """What was taken is there after a restart, and goes on from there; a snapshot replaces it all."""
    lists = fill(store)
    again = reopened(store)
    assert (again.current.version, content(again.current)) == (3, VERSIONS[2])
    size = store.path.stat().st_size
    again.take(blacklist.snapshot(KEY, lists[3]))
    assert store.path.stat().st_size < size
    assert content(reopened(store).current) == VERSIONS[3]


def test_list_signed_by_the_root_itself(store: ListStore) -> None:
    """A small enterprise may sign its lists with the root key, without a certificate."""
    store.take(blacklist.snapshot(ROOT, of(1, VERSIONS[0])))
    assert content(reopened(store).current) == VERSIONS[0]


def test_power_cut_while_writing(store: ListStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at any point of the switch, the terminal has the old list or the new one, never half of one."""
    lists = fill(store)
    change = blacklist.delta(KEY, lists[2], lists[3])

    def no_more(*_: object) -> None:
        raise OSError("power cut")

    for where, what in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as cut:
            cut.setattr(where, what, no_more)
            with pytest.raises(OSError, match="power cut"):
                store.take(change)
        assert content(store.current) == VERSIONS[2]
        assert content(reopened(store).current) == VERSIONS[2]
    assert content(reopened(store).take(change)) == VERSIONS[3]


def test_damaged_store(store: ListStore) -> None:
    """A damaged or cut-off file on disk is never taken for a list."""
    fill(store)
    raw = store.path.read_bytes()
    for at in range(4, len(raw), 29):
        store.path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :])
        with pytest.raises((FormatError, MacMismatch, Refused)):
            reopened(store)
    versions = []
    for size in range(len(raw) + 1):
        store.path.write_bytes(raw[:size])
        with contextlib.suppress(FormatError):
            versions.append(reopened(store).current.version)
    assert versions == [0, 0, 1, 2, 3], "nothing, certificate, and each whole file after it"


def test_new_list_key(store: ListStore) -> None:
    """A newer certificate of the root replaces the list key; the old key, and an older certificate, are refused."""
    fill(store)
    fresh = SigningKey(bytes([9]) * 32)
    store.take(Certificate(ONE, fresh.public, 3500, 2).encode(ROOT))
    with pytest.raises(MacMismatch):
        store.take(blacklist.snapshot(KEY, of(4, VERSIONS[3])))
    with pytest.raises(Refused, match="not newer"):
        store.take(Certificate(ONE, KEY.public, 500, 1).encode(ROOT))
    with pytest.raises(Refused, match="older than the certificate"):
        store.take(blacklist.snapshot(fresh, of(4, VERSIONS[3], created_ms=3499)))
    assert content(reopened(store).current) == VERSIONS[2]
    store.take(blacklist.snapshot(fresh, of(4, VERSIONS[3])))
    assert content(reopened(store).current) == VERSIONS[3]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (Certificate(ONE, KEY.public, 0, 1).encode(STRANGER), MacMismatch),
        (Certificate(2002, KEY.public, 0, 1).encode(ROOT), Refused),
        (Certificate(ONE, KEY.public[:31], 0, 1).encode(ROOT), FormatError),
        (Certificate(ONE, KEY.public, -1, 1).encode(ROOT), FormatError),
        (Certificate(ONE, KEY.public, 0, 1).encode(ROOT)[:-1], MacMismatch),
        (b"OCLC\x01", (FormatError, MacMismatch)),
        (b"OCLC\x01" + bytes(300), FormatError),
    ],
)
def test_bad_certificate(store: ListStore, raw: bytes, error: type[Exception]) -> None:
    """Only the root's own word makes a list key, for this enterprise."""
    with pytest.raises(error):
        store.take(raw)
    assert not store.path.exists()


def test_certificate_twice(store: ListStore) -> None:
    """The same certificate again changes nothing."""
    raw = Certificate(ONE, KEY.public, 0, 1).encode(ROOT)
    store.take(raw)
    before = store.path.read_bytes()
    store.take(raw)
    assert store.path.read_bytes() == before


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(list(FileKind)), st.integers(0, 3))
def test_any_signed_body_is_parsed_or_refused(body: bytes, kind: FileKind, added: int) -> None:
    """Whatever is signed, the parser raises only its own error."""
    start = {FileKind.SNAPSHOT: 0, FileKind.DELTA: 2, FileKind.FRESHNESS: 3}[kind]
    with contextlib.suppress(FormatError):
        open_file(signed(HEAD._replace(kind=kind, start=start, added=added), body), KEY.public)
