"""Reports, their canonical bytes, and the journal's chain and file."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import FormatError, MacMismatch
from cardlib.profile import Purse, TransactionType
from cardlib.records import (
    REPORTS,
    Event,
    JournalEntry,
    JournalFile,
    Note,
    Outcome,
    PassageReport,
    PunchReport,
    Report,
    Transaction,
    genesis,
    local_when,
    pending,
    tac_input,
    verify_chain,
)
from tests.vectors import by_category, raw

TERMINAL = bytes.fromhex("310000000101")
U8, U16, U24, U32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 24, 32))


def fixed(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


TEXT = st.text(st.characters(codec="utf-8"), max_size=16)
TRANSACTIONS = st.builds(
    Transaction,
    enterprise_id=U32,
    terminal=fixed(6),
    sam_serial=fixed(8),
    terminal_seq=U32,
    card_serial=fixed(8),
    purse=st.sampled_from(Purse),
    kind=st.sampled_from(TransactionType),
    amount_fen=U32,
    balance_before_fen=U32,
    overdraft_fen=U24,
    card_seq=U16,
    key_version=U8,
    algorithm=U8,
    when=fixed(7),
    utc_ms=st.integers(0, (1 << 48) - 1),
    tac=st.one_of(st.just(b""), fixed(4)),
    mac2_verified=st.booleans(),
    list_version=st.integers(0, (1 << 64) - 1),
    undo_of=st.one_of(st.just(b""), fixed(13)),
    outcome=st.sampled_from(Outcome),
    request_id=TEXT,
)
PUNCHES = st.builds(
    PunchReport, U32, fixed(6), fixed(8), fixed(7), U32, U8, U16, verified=st.booleans(), list_version=U32
)
PASSAGES = st.builds(
    PassageReport, U32, fixed(6), fixed(8), fixed(7), U32, U16, U16, U8, st.booleans(), TEXT, list_version=U32
)
REPORT: st.SearchStrategy[Report] = st.one_of(TRANSACTIONS, PUNCHES, PASSAGES, st.builds(Note, TEXT, TEXT))


def move(kind: TransactionType = TransactionType.PURCHASE_EP, amount_fen: int = 1250) -> Transaction:
    return Transaction(
        enterprise_id=7,
        terminal=TERMINAL,
        sam_serial=bytes.fromhex("03010000000001A0"),
        terminal_seq=11,
        card_serial=bytes.fromhex("02010000000009C3"),
        purse=kind.purse,
        kind=kind,
        amount_fen=amount_fen,
        balance_before_fen=10000,
        overdraft_fen=0,
        card_seq=4,
        key_version=1,
        algorithm=0,
        when=bytes.fromhex("20240815093045"),
        utc_ms=1_723_685_445_000,
    )


def chain(*steps: tuple[Event, int | None, Report | None]) -> tuple[JournalEntry, ...]:
    entries: list[JournalEntry] = []
    previous = genesis(7, TERMINAL)
    for seq, (event, ref, record) in enumerate(steps, 1):
        entries.append(JournalEntry(seq, event, ref, record, "", 1_723_685_445_000 + seq, previous))
        previous = entries[-1].hash
    return tuple(entries)


ENTRIES = chain(
    (Event.INTENT, None, move()),
    (Event.COMMITTED, 1, replace(move(), tac=b"\1\2\3\4", outcome=Outcome.COMMITTED)),
    (Event.INTENT, None, move(TransactionType.COMPOSITE)),
    (Event.RECORD, None, Note("shift_open", "operator 3")),
    (Event.NOT_DONE, 3, None),
    (Event.INTENT, None, move()),
)
FILE = JournalFile(7, TERMINAL, bytes.fromhex("03010000000001A0"), 1, genesis(7, TERMINAL), ENTRIES)


@given(REPORT)
def test_reports_come_back_from_their_only_coding(report: Report) -> None:
    """Every report decodes to itself, and its bytes are the canonical ones."""
    coded = report.encode()
    assert type(report).decode(coded) == report
    assert coded == cbor2.dumps(cbor2.loads(coded), canonical=True)


@given(st.data())
def test_one_flipped_bit_never_goes_unseen(data: st.DataObject) -> None:
    """A flipped bit gives another report or FormatError, never the same report."""
    report = data.draw(REPORT)
    coded = bytearray(report.encode())
    bit = data.draw(st.integers(0, len(coded) * 8 - 1))
    coded[bit // 8] ^= 1 << bit % 8
    try:
        assert type(report).decode(bytes(coded)) != report
    except FormatError:
        return


@given(st.one_of(st.binary(max_size=300), st.integers(0, 8).map(lambda n: b"\xbf" * n + b"\xd8\x1c" * n)))
def test_parsers_raise_only_their_own_error(noise: bytes) -> None:
    """Any bytes are a report, an entry, a file, or FormatError."""
    parsers = [kind.decode for kind in REPORTS]
    for parse in (*parsers, JournalFile.decode, lambda raw: JournalEntry.decode(raw, bytes(32))):
        try:
            parse(noise)
        except FormatError:
            continue


@given(st.recursive(st.one_of(st.integers(), st.none(), st.binary(), st.text(), st.booleans(), st.floats()),
                    lambda inner: st.dictionaries(st.integers(0, 25), inner, max_size=25), max_leaves=40))  # fmt: skip
def test_other_shapes_of_cbor_are_refused(value: object) -> None:
    """Well-formed CBOR that is no report is FormatError and nothing else."""
    coded = cbor2.dumps(value)
    for kind in (Transaction, PunchReport, PassageReport):
        with pytest.raises(FormatError):
            kind.decode(coded)
    with pytest.raises(FormatError):
        JournalEntry.decode(coded, bytes(32))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw + b"\0",
        lambda raw: b"\xbf" + raw[1:] + b"\xff",
        lambda raw: raw.replace(b"\x00\x18", b"\x18\x00\x18", 1) if b"\x00\x18" in raw else b"\xb8" + raw,
        lambda raw: cbor2.dumps(dict(reversed(cbor2.loads(raw).items()))),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 21: 0}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 16: 0}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 0: True}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 5: 9}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 7: 1 << 32}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 7: -1}),
        lambda raw: cbor2.dumps({**cbor2.loads(raw), 15: b"\1\2\3"}),
    ],
)
def test_other_codings_of_one_record_are_refused(spoil: object) -> None:
    """Trailing bytes, indefinite length, long integers, another order, extra keys, wrong types and ranges."""
    assert callable(spoil)
    with pytest.raises(FormatError):
        Transaction.decode(spoil(move().encode()))


def test_out_of_range_fields_are_named_when_coding() -> None:
    """A field that does not fit is refused with its name."""
    with pytest.raises(FormatError, match=r"Transaction\.card_seq"):
        replace(move(), card_seq=65536).encode()
    with pytest.raises(FormatError, match=r"Transaction\.terminal"):
        replace(move(), terminal=b"12345").encode()


def test_tac_inputs_are_those_of_the_vectors() -> None:
    """Loads, purchases, composite, withdrawal, overdraft and unload enter exactly the vectors' bytes."""
    checked = 0
    for vector in by_category("load", "purchase", "withdraw", "capp", "overdraft", "unload"):
        expected = vector["intermediate"].get("tac_input") or vector["intermediate"].get("mac3_input")
        if expected is None:
            continue
        v = raw(vector["inputs"])
        number = {name: int.from_bytes(value, "big") for name, value in v.items()}
        kind = TransactionType(number["type"])
        done = replace(
            move(kind, number.get("amount", number.get("new_limit", 0))),
            balance_before_fen=number["old_balance"],
            overdraft_fen=number.get("old_limit", 0),
            card_seq=number.get("online_seq_before", 0),
            terminal=v["terminal"],
            terminal_seq=number.get("terminal_seq", 0),
            when=v["date"] + v["time"],
        )
        assert tac_input(done).hex().upper() == expected, vector["id"]
        new_balance = vector["output"].get("new_balance")
        assert new_balance is None or done.balance_after_fen == int(new_balance, 16)
        checked += 1
    assert checked >= 18


def test_tac_input_refuses_what_no_card_computes() -> None:
    """Credit purchases have no TAC here; a balance below zero or above four bytes is malformed."""
    for bad in (
        move(TransactionType.CREDIT),
        move(TransactionType.UNLOAD, 10001),
        move(TransactionType.LOAD_EP, 0xFFFFFFFF),
    ):
        with pytest.raises(FormatError):
            tac_input(bad)


def test_origins_tell_moves_apart() -> None:
    """Purchases are named by SAM and sequence, loads by card, purse and online sequence; both have 13 bytes."""
    moves = [
        move(),
        replace(move(), terminal_seq=12),
        replace(move(), sam_serial=bytes(8)),
        move(TransactionType.LOAD_EP),
        move(TransactionType.LOAD_ED),
        replace(move(TransactionType.LOAD_EP), card_seq=5),
        replace(move(TransactionType.LOAD_EP), card_serial=bytes(8)),
    ]
    assert len({m.origin for m in moves}) == len(moves)
    assert {len(m.origin) for m in moves} == {13}
    assert replace(move(), undo_of=move().origin).encode()


def test_local_time_is_bcd_in_the_enterprises_zone() -> None:
    """UTC milliseconds become local BCD, +08:00 unless told otherwise."""
    assert local_when(1_723_685_445_999).hex() == "20240815093045"
    assert local_when(1_723_685_445_999, 0).hex() == "20240815013045"
    assert local_when(1_723_593_600_000 - 1, -60).hex() == "20240813225959"


def test_chain_hash_is_sha256_over_previous_and_bytes() -> None:
    """The chain's rule, recomputed by hand, and genesis differs by terminal and enterprise."""
    first = ENTRIES[0]
    assert first.hash == sha256(first.previous + first.encode()).digest()
    assert ENTRIES[1].previous == first.hash
    assert verify_chain(ENTRIES, genesis(7, TERMINAL)) == ENTRIES[-1].hash
    assert len({genesis(7, TERMINAL), genesis(8, TERMINAL), genesis(7, bytes(6))}) == 3


def test_a_changed_missing_or_moved_entry_breaks_the_chain() -> None:
    """Each entry left out, changed or swapped is found."""
    start = genesis(7, TERMINAL)
    for i in range(len(ENTRIES) - 1):
        with pytest.raises(MacMismatch):
            verify_chain(ENTRIES[:i] + ENTRIES[i + 1 :], start)
        with pytest.raises(MacMismatch):
            verify_chain((*ENTRIES[:i], replace(ENTRIES[i], utc_ms=1), *ENTRIES[i + 1 :]), start)
        with pytest.raises(MacMismatch):
            verify_chain((*ENTRIES[:i], ENTRIES[i + 1], ENTRIES[i], *ENTRIES[i + 2 :]), start)


@pytest.mark.parametrize(
    ("event", "ref", "record"),
    [
        (Event.INTENT, None, None),
        (Event.INTENT, 1, move()),
        (Event.COMMITTED, None, move()),
        (Event.COMMITTED, 1, Note("x")),
        (Event.NOT_DONE, 1, move()),
        (Event.NOT_DONE, None, None),
        (Event.NOT_DONE, 2, None),
        (Event.RECORD, None, None),
        (Event.RECORD, 1, Note("x")),
    ],
)
def test_entries_that_make_no_sense_do_not_exist(event: Event, ref: int | None, record: Report | None) -> None:
    """Event, reference and record must fit each other."""
    with pytest.raises(FormatError):
        JournalEntry(2, event, ref, record, "", 1, bytes(32))


def test_pending_are_the_intents_that_nothing_closed() -> None:
    """Committed and not-done intents are closed, others wait."""
    assert [entry.seq for entry in pending(ENTRIES)] == [6]
    assert [entry.seq for entry in pending(ENTRIES[:3])] == [3]


def test_journal_file_round_trip() -> None:
    """A file gives back its entries, a later stretch too, and an empty one keeps its head."""
    assert JournalFile.decode(FILE.encode()) == FILE
    assert FILE.head == ENTRIES[-1].hash
    later = replace(FILE, first_seq=4, previous=ENTRIES[2].hash, entries=ENTRIES[3:])
    assert JournalFile.decode(later.encode()) == later
    empty = replace(later, entries=())
    assert JournalFile.decode(empty.encode()).head == ENTRIES[2].hash
    with pytest.raises(MacMismatch):
        replace(FILE, entries=ENTRIES[1:]).encode()


def test_a_file_cut_anywhere_names_the_last_good_entry() -> None:
    """For every length shorter than the file: FormatError; once entries are in, the last good one is named."""
    whole = FILE.encode()
    ends = {len(replace(FILE, entries=ENTRIES[:n]).encode()) - 34: n for n in range(len(ENTRIES) + 1)}
    good = None
    for size in range(len(whole)):
        good = ends.get(size, good)
        with pytest.raises(FormatError) as caught:
            JournalFile.decode(whole[:size])
        if good is not None:
            assert str(caught.value).endswith(f"the last good entry is {good}" if good else "no entry is good")


def test_every_changed_byte_of_a_file_is_caught() -> None:
    """No byte of a journal file can change unseen."""
    whole = FILE.encode()
    for at in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << at * 5 % 8
        with pytest.raises(FormatError):
            JournalFile.decode(bytes(spoilt))
