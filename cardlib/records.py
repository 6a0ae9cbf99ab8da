"""What a terminal reports and settlement reads: records, their canonical bytes, the journal's hash chain.

Every record is a CBOR map with integer keys, one byte string for one content: a decoder encodes again and
compares, so that duplicate keys, other number forms and trailing bytes are refused (books.md, link.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import IntEnum, unique
from hashlib import sha256
from typing import Annotated, Any, NamedTuple, Self, get_type_hints

import cbor2

from cardlib.errors import FormatError, MacMismatch
from cardlib.fields import Raw, Text, U
from cardlib.profile import Purse, TransactionType

MAGIC = b"OCJL\x01"
MAX_ENTRY = 4096
"""No canonical entry is longer; a longer one is refused before it is read."""
MAX_HEAD = 256
CHAIN_SIZE = 32
ORIGIN_SIZE = 13
DEFAULT_OFFSET_MIN = 480
"""Local time of an enterprise when it says nothing else: +08:00 (profile.md)."""


@unique
class Outcome(IntEnum):
    """How a money move ended (design: three outcomes)."""

    COMMITTED = 1
    NOT_DONE = 2
    UNKNOWN = 3


@unique
class Event(IntEnum):
    """What a journal entry says: of a money move, or a record that is complete at once."""

    INTENT = 1
    COMMITTED = 2
    NOT_DONE = 3
    RECORD = 4


@unique
class PunchDirection(IntEnum):
    """What a punch means: the value is what cards, records and ADMS say (terminals.md)."""

    IN = 0
    OUT = 1
    BREAK_OUT = 2
    BREAK_IN = 3
    OVERTIME_IN = 4
    OVERTIME_OUT = 5


ENTERING = (PunchDirection.IN, PunchDirection.BREAK_IN, PunchDirection.OVERTIME_IN)
"""Directions of a punch after which its holder is there."""


@dataclass(frozen=True)
class Maybe:
    """Limit of a byte string that has ``size`` bytes or none at all."""

    size: int

    def encode(self, value: bytes) -> bytes:
        """Raises FormatError on another length."""
        return Raw(self.size).encode(value) if value else value


class _Field(NamedTuple):
    """One field of a coded record: how its value is checked and what it becomes."""

    name: str
    type: type
    check: Callable[[Any], bytes] | None


_FIELDS: dict[type, tuple[_Field, ...]] = {}


def _fields_of(cls: type[Coded]) -> tuple[_Field, ...]:
    """Fields of a record class in the order of their CBOR keys, worked out at first use."""
    known = _FIELDS.get(cls)
    if known:
        return known
    hints = get_type_hints(cls, include_extras=True)
    rows = []
    for field in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
        hint = hints[field.name]
        kind, codec = (hint.__origin__, hint.__metadata__[0]) if hasattr(hint, "__metadata__") else (hint, None)
        rows.append(_Field(field.name, kind, codec and codec.encode))
    known = _FIELDS[cls] = tuple(rows)
    return known


def _loads(raw: bytes, what: str) -> dict[Any, Any]:
    try:
        value = cbor2.loads(raw)
    except cbor2.CBORError as e:
        raise FormatError(f"{what} is no CBOR") from e
    if type(value) is not dict:
        raise FormatError(f"{what} is no CBOR map")
    return value


class Coded:
    """Base of records in canonical CBOR. Subclasses are frozen dataclasses; a field's position is its key."""

    __slots__ = ()

    def to_map(self) -> dict[int, Any]:
        """The record as a map of plain values. Raises FormatError naming the field that is out of range."""
        found: dict[int, Any] = {}
        for key, (name, kind, check) in enumerate(_fields_of(type(self))):
            value = getattr(self, name)
            if check:
                try:
                    check(value)
                except FormatError as e:
                    raise FormatError(f"{type(self).__name__}.{name}: {e}") from e
            found[key] = int(value) if issubclass(kind, IntEnum) else value
        return found

    @classmethod
    def from_map(cls, raw: object) -> Self:
        """Inverse of :meth:`to_map`. Raises FormatError naming what is missing, unknown or wrong."""
        table = _fields_of(cls)
        if type(raw) is not dict or len(raw) != len(table):
            raise FormatError(f"{cls.__name__}: not a map of {len(table)} fields")
        values = {}
        for key, (name, kind, _) in enumerate(table):
            value = raw.get(key)
            plain = int if issubclass(kind, IntEnum) else kind
            if type(value) is not plain:
                raise FormatError(f"{cls.__name__}.{name} is missing or no {plain.__name__}")
            try:
                values[name] = value if plain is kind else kind(value)
            except ValueError as e:
                raise FormatError(f"{cls.__name__}.{name}: {value} is unknown") from e
        return cls(**values)

    def encode(self) -> bytes:
        """Canonical bytes. Raises FormatError naming the field that is out of range."""
        return cbor2.dumps(self.to_map(), canonical=True)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse exactly one record in its only coding. Raises FormatError."""
        self = cls.from_map(_loads(raw, cls.__name__))
        if self.encode() != raw:
            raise FormatError(f"{cls.__name__} is not in its canonical coding")
        return self


@dataclass(frozen=True, slots=True)
class Transaction(Coded):
    """One money move as a terminal or host saw it (books.md, Settlement).

    ``amount_fen`` of an overdraft update is the new limit, ``overdraft_fen`` the limit before. ``card_seq`` is
    the counter before the move, of the class that ``kind`` counts. ``terminal_seq`` is the SAM's; 0 for loads.
    ``tac`` of an unload is its MAC3. ``mac2_verified``: MAC2 was right in the SAM, or the host checked the
    TAC or MAC3. ``undo_of`` is the :attr:`origin` of the purchase that this load undoes, empty for others.
    """

    enterprise_id: Annotated[int, U(4)]
    terminal: Annotated[bytes, Raw(6)]
    sam_serial: Annotated[bytes, Raw(8)]
    terminal_seq: Annotated[int, U(4)]
    card_serial: Annotated[bytes, Raw(8)]
    purse: Annotated[Purse, U(1)]
    kind: Annotated[TransactionType, U(1)]
    amount_fen: Annotated[int, U(4)]
    balance_before_fen: Annotated[int, U(4)]
    overdraft_fen: Annotated[int, U(3)]
    card_seq: Annotated[int, U(2)]
    key_version: Annotated[int, U(1)]
    algorithm: Annotated[int, U(1)]
    when: Annotated[bytes, Raw(7)]
    utc_ms: Annotated[int, U(6)]
    tac: Annotated[bytes, Maybe(4)] = b""
    mac2_verified: bool = False
    list_version: Annotated[int, U(8)] = 0
    undo_of: Annotated[bytes, Maybe(ORIGIN_SIZE)] = b""
    outcome: Annotated[Outcome, U(1)] = Outcome.UNKNOWN
    request_id: Annotated[str, Text(64)] = ""

    @property
    def balance_after_fen(self) -> int:
        """Balance once the move is committed."""
        if self.kind in (TransactionType.LOAD_ED, TransactionType.LOAD_EP):
            return self.balance_before_fen + self.amount_fen
        if self.kind == TransactionType.OVERDRAFT:
            return self.balance_before_fen - self.overdraft_fen + self.amount_fen
        return self.balance_before_fen - self.amount_fen

    @property
    def origin(self) -> bytes:
        """13 bytes that no two moves share: SAM and its sequence, or card and online sequence (books.md)."""
        if self.kind.online:
            return b"L" + self.card_serial + bytes([self.purse, 0]) + self.card_seq.to_bytes(2, "big")
        return b"P" + self.sam_serial + self.terminal_seq.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class PunchReport(Coded):
    """One attendance punch; ``direction`` as in terminals.md (0 in, 1 out, ...); a UID-only one is not ``verified``."""

    enterprise_id: Annotated[int, U(4)]
    terminal: Annotated[bytes, Raw(6)]
    card_serial: Annotated[bytes, Raw(8)]
    when: Annotated[bytes, Raw(7)]
    utc_ms: Annotated[int, U(6)]
    direction: Annotated[int, U(1)]
    sequence: Annotated[int, U(2)]
    verified: bool = True
    list_version: Annotated[int, U(8)] = 0


@dataclass(frozen=True, slots=True)
class PassageReport(Coded):
    """One decision at a door, with its reason when it was refused."""

    enterprise_id: Annotated[int, U(4)]
    terminal: Annotated[bytes, Raw(6)]
    card_serial: Annotated[bytes, Raw(8)]
    when: Annotated[bytes, Raw(7)]
    utc_ms: Annotated[int, U(6)]
    zone: Annotated[int, U(2)]
    door: Annotated[int, U(2)]
    direction: Annotated[int, U(1)]
    granted: bool
    reason: Annotated[str, Text(64)] = ""
    list_version: Annotated[int, U(8)] = 0


@dataclass(frozen=True, slots=True)
class Note(Coded):
    """Anything else worth keeping in order: a shift opened, a clock set, an alarm. ``code`` is stable."""

    code: Annotated[str, Text(64)]
    text: Annotated[str, Text(1024)] = ""


Report = Transaction | PunchReport | PassageReport | Note
REPORTS: tuple[type[Transaction | PunchReport | PassageReport | Note], ...] = (
    Transaction, PunchReport, PassageReport, Note,
)  # fmt: skip


def local_when(utc_ms: int, offset_min: int = DEFAULT_OFFSET_MIN) -> bytes:
    """Date and time of the enterprise as cards and MACs have it: 7 BCD bytes YYYYMMDDhhmmss."""
    at = datetime.fromtimestamp(utc_ms // 1000, UTC) + timedelta(minutes=offset_min)
    return bytes.fromhex(f"{at:%Y%m%d%H%M%S}")


def tac_input(move: Transaction) -> bytes:
    """Bytes that enter the TAC of a money move, and the MAC3 of an unload (card.md §4.2 to §4.6).

    Raises FormatError for a kind that OC-1 cards do not have, and when the balance would leave its 4 bytes.
    """
    kind = move.kind
    tail = bytes([kind]) + move.terminal
    if not kind.online:
        if kind == TransactionType.CREDIT:
            raise FormatError("credit purchases (type 08) have no TAC in OC-1")
        return U(4).encode(move.amount_fen) + tail + U(4).encode(move.terminal_seq) + move.when
    size = 3 if kind == TransactionType.OVERDRAFT else 4
    head = U(4).encode(move.balance_after_fen) + U(2).encode(move.card_seq)
    return head + U(size).encode(move.amount_fen) + tail + move.when


def genesis(enterprise_id: int, terminal: bytes) -> bytes:
    """Hash before a journal's first entry: it binds the chain to one terminal of one enterprise."""
    return sha256(b"onecard journal 1" + U(4).encode(enterprise_id) + Raw(6).encode(terminal)).digest()


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of a terminal's journal. ``ref`` names the INTENT that a COMMITTED or NOT_DONE closes.

    ``seq`` counts from 1 without gaps; ``previous`` is the hash of the entry before (:func:`genesis` for the first).
    Raises FormatError when event, reference and record do not fit each other.
    """

    seq: int
    event: Event
    ref: int | None
    record: Report | None
    reason: str
    utc_ms: int
    previous: bytes

    def __post_init__(self) -> None:
        U(8).encode(self.seq), U(6).encode(self.utc_ms), Text(256).encode(self.reason)
        closes = self.event in (Event.COMMITTED, Event.NOT_DONE)
        money = self.event in (Event.INTENT, Event.COMMITTED)
        fits = isinstance(self.record, Transaction) if money else (self.record is None) == closes
        if closes != (self.ref is not None) or not fits or (self.ref is not None and not 0 < self.ref < self.seq):
            raise FormatError(f"journal entry {self.seq}: {self.event.name} with this reference or record can't be")

    def encode(self) -> bytes:
        """Canonical bytes without ``previous``. Raises FormatError."""
        body = self.record
        parts = {
            0: self.seq,
            1: int(self.event),
            2: self.ref,
            3: None if body is None else REPORTS.index(type(body)),
            4: None if body is None else body.to_map(),
            5: self.reason,
            6: self.utc_ms,
        }
        return cbor2.dumps(parts, canonical=True)

    @classmethod
    def decode(cls, raw: bytes, previous: bytes) -> Self:
        """Parse one entry that follows the hash ``previous``. Raises FormatError."""
        parts = _loads(raw, "journal entry")
        seq, event, ref, kind, body, reason, utc_ms = (parts.get(key) for key in range(7))
        if type(seq) is not int or type(event) is not int or type(utc_ms) is not int or type(reason) is not str:
            raise FormatError("journal entry: a field is missing or has the wrong type")
        if event not in Event._value2member_map_ or (ref is not None and type(ref) is not int) or seq < 1:
            raise FormatError(f"journal entry {seq}: event or reference is wrong")
        record: Report | None = None
        if kind is not None:
            if type(kind) is not int or not 0 <= kind < len(REPORTS):
                raise FormatError(f"journal entry {seq}: record of unknown kind")
            record = REPORTS[kind].from_map(body)
        self = cls(seq, Event(event), ref, record, reason, utc_ms, previous)
        if self.encode() != raw:
            raise FormatError(f"journal entry {seq} is not in its canonical coding")
        return self

    @property
    def hash(self) -> bytes:
        """SHA-256 over the hash before and the canonical bytes."""
        return sha256(self.previous + self.encode()).digest()


def verify_chain(entries: Iterable[JournalEntry], previous: bytes, first_seq: int = 1) -> bytes:
    """Follow the chain from ``previous`` and return its head. Raises MacMismatch naming the first broken entry."""
    for seq, entry in enumerate(entries, first_seq):
        if entry.seq != seq or entry.previous != previous:
            raise MacMismatch(f"journal: entry {seq} does not follow the one before it")
        previous = entry.hash
    return previous


def pending(entries: Iterable[JournalEntry]) -> list[JournalEntry]:
    """Intents that nothing closed yet, oldest first."""
    found: dict[int, JournalEntry] = {}
    for entry in entries:
        if entry.event is Event.INTENT:
            found[entry.seq] = entry
        elif entry.ref is not None:
            found.pop(entry.ref, None)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class JournalFile:
    """A stretch of one terminal's journal as it is exported: ``previous`` is the hash before its first entry.

    Bytes: ``OCJL 01 | length 2 | head | (length 2 | entry | hash 32)* | 0000 | SHA-256 of all before``; head is a
    CBOR map {0 enterprise, 1 terminal, 2 SAM serial, 3 sequence of the first entry, 4 hash before it}.
    """

    enterprise_id: int
    terminal: bytes
    sam_serial: bytes
    first_seq: int
    previous: bytes
    entries: tuple[JournalEntry, ...]

    @property
    def head(self) -> bytes:
        """Hash of the last entry, or ``previous`` when there is none."""
        return self.entries[-1].hash if self.entries else self.previous

    def encode(self) -> bytes:
        """The file's bytes. Raises MacMismatch when the entries are no chain, FormatError when one is too long."""
        verify_chain(self.entries, self.previous, self.first_seq)
        head = _Head(self.enterprise_id, self.terminal, self.sam_serial, self.first_seq, self.previous).encode()
        parts = [MAGIC, struct.pack(">H", len(head)), head]
        for entry in self.entries:
            raw = entry.encode()
            if len(raw) > MAX_ENTRY:
                raise FormatError(f"journal entry {entry.seq} has {len(raw)} bytes, more than {MAX_ENTRY}")
            parts += struct.pack(">H", len(raw)), raw, entry.hash
        body = b"".join([*parts, b"\0\0"])
        return body + sha256(body).digest()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse and verify a whole file. Raises FormatError that names the last good entry."""
        reader = _Reader(raw)
        if reader.take(len(MAGIC)) != MAGIC:
            raise FormatError("this is no journal file of version 1")
        head = _Head.decode(reader.take(reader.number(MAX_HEAD)))
        entries: list[JournalEntry] = []
        try:
            _read_entries(reader, head, entries)
        except FormatError as e:
            good = f"the last good entry is {entries[-1].seq}" if entries else "no entry is good"
            raise FormatError(f"journal file: {e}; {good}") from e
        return cls(head.enterprise_id, head.terminal, head.sam_serial, head.first_seq, head.previous, tuple(entries))


@dataclass(frozen=True, slots=True)
class _Head(Coded):
    """Head of a journal file."""

    enterprise_id: Annotated[int, U(4)]
    terminal: Annotated[bytes, Raw(6)]
    sam_serial: Annotated[bytes, Raw(8)]
    first_seq: Annotated[int, U(8)]
    previous: Annotated[bytes, Raw(CHAIN_SIZE)]


def _read_entries(reader: _Reader, head: _Head, entries: list[JournalEntry]) -> None:
    """Append entry after entry, so that what is good stays known when the next one is not."""
    previous = head.previous
    while size := reader.number(MAX_ENTRY):
        entry = JournalEntry.decode(reader.take(size), previous)
        if entry.seq != head.first_seq + len(entries) or reader.take(CHAIN_SIZE) != entry.hash:
            raise FormatError(f"entry {entry.seq} does not follow the one before it")
        entries.append(entry)
        previous = entry.hash
    body = reader.seen
    if reader.take(CHAIN_SIZE) != sha256(body).digest() or reader.left:
        raise FormatError("the hash at the end is wrong, or bytes follow it")


class _Reader:
    """Takes bytes off the front of a file that may end anywhere."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    @property
    def seen(self) -> bytes:
        return self._raw[: self._at]

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise FormatError(f"the file ends after {len(self._raw)} bytes, in the middle of something")
        self._at += size
        return self._raw[self._at - size : self._at]

    def number(self, limit: int) -> int:
        value = int.from_bytes(self.take(2), "big")
        if value > limit:
            raise FormatError(f"a length of {value} is more than {limit}")
        return value
