"""The blacklist: snapshot, delta and freshness files, their verification, and the list in memory (blacklist.md).

``"OCBL" | 01 | u32 head length | head | body | Ed25519 signature``; nothing of a file is parsed before its
signature was checked. The list key is either the enterprise's root signing key or one that it certified.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum, unique
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cbor2
from pyroaring import BitMap64

from cardlib import rice
from cardlib.crypto.signing import verify
from cardlib.errors import FormatError, MacMismatch, Refused
from cardlib.profile import MAX_ENTERPRISE_ID, CardKind, crc8

MAGIC, CERTIFICATE_MAGIC = b"OCBL\x01", b"OCLC\x01"
MAX_FILE = 64 << 20
MAX_HEAD = 1 << 16
MAX_ENTRIES = 1 << 24
SEQUENCE_BITS = 40
SIGNATURE = 64

_HIGH, _LOW = bytes(byte >> 4 for byte in range(256)), bytes(byte & 15 for byte in range(256))
_TO_HIGH = bytes(byte << 4 & 0xFF for byte in range(256))


@unique
class ListReason(IntEnum):
    """Why a card is listed: half a byte."""

    LOST = 0
    CANCELLED = 1
    REPLACED = 2
    FRAUD = 3
    SAM_LOST = 4


@unique
class FileKind(IntEnum):
    """What a list file does."""

    SNAPSHOT = 0
    DELTA = 1
    FRESHNESS = 2


class Signer(Protocol):
    """What signs lists: ``cardlib.crypto.signing.SigningKey``, or a key that stays in its module."""

    @property
    def public(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature."""


class Head(NamedTuple):
    """What a list file says about itself; its field's position is its key in CBOR, from 1."""

    enterprise_id: int
    kind: FileKind
    start: int
    to: int
    created_ms: int
    added: int
    removed: int
    key_id: bytes
    revoked: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Canonical CBOR."""
        values = (*self[:8], list(self.revoked))
        return cbor2.dumps(
            {key: int(v) if isinstance(v, int) else v for key, v in enumerate(values, 1)}, canonical=True
        )

    @classmethod
    def decode(cls, raw: bytes) -> Head:
        """Parse. Raises FormatError for anything missing, out of range or of the wrong type."""
        values = _map(raw, 9, "list head")
        numbers, key_id, revoked = values[:7], values[7], values[8]
        if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
            raise FormatError("list head: a number is missing or out of range")
        if type(key_id) is not bytes or len(key_id) != 8 or type(revoked) is not list:
            raise FormatError("list head: key id or revoked tokens are missing")
        if any(type(token) is not bytes or len(token) > 32 for token in revoked):
            raise FormatError("list head: a revoked token is no id")
        enterprise_id, kind, start, to, created_ms, added, removed = numbers
        if not 1 <= enterprise_id <= MAX_ENTERPRISE_ID or kind not in FileKind._value2member_map_:
            raise FormatError("list head: enterprise or kind is out of range")
        head = cls(enterprise_id, FileKind(kind), start, to, created_ms, added, removed, key_id, tuple(revoked))
        head.check()
        return head

    def check(self) -> None:
        """Raise FormatError when versions and counts do not fit the kind."""
        if max(self.added, self.removed) > MAX_ENTRIES:
            raise FormatError(f"list of more than {MAX_ENTRIES} entries")
        good = {
            FileKind.SNAPSHOT: self.start == 0 and not self.removed,
            FileKind.DELTA: 0 < self.start < self.to,
            FileKind.FRESHNESS: self.start == self.to and not self.added and not self.removed,
        }[self.kind]
        if not good or not self.to:
            raise FormatError(f"{self.kind.name.lower()} from {self.start} to {self.to} is no list")


class Certificate(NamedTuple):
    """The root's word for a list key: valid from ``not_before_ms``, in place of every lower ``serial``."""

    enterprise_id: int
    key: bytes
    not_before_ms: int
    serial: int

    def encode(self, root: Signer) -> bytes:
        """``"OCLC" | 01 | CBOR {1: enterprise, 2: key, 3: not before, 4: serial} | signature of the root``."""
        message = CERTIFICATE_MAGIC + cbor2.dumps(dict(enumerate(self, 1)), canonical=True)
        return message + root.sign(message)

    @classmethod
    def decode(cls, raw: bytes, root_key: bytes) -> Certificate:
        """Check the root's signature, then parse. Raises MacMismatch, FormatError."""
        if len(raw) > 256 or not raw.startswith(CERTIFICATE_MAGIC):
            raise FormatError("not a certificate of a list key")
        verify(root_key, raw[:-SIGNATURE], raw[-SIGNATURE:])
        enterprise_id, key, not_before_ms, serial = _map(raw[5:-SIGNATURE], 4, "certificate")
        if type(key) is not bytes or len(key) != 32:
            raise FormatError("certificate: the key is missing")
        if any(
            type(number) is not int or not 0 <= number < 1 << 63 for number in (enterprise_id, not_before_ms, serial)
        ):
            raise FormatError("certificate: a number is missing or out of range")
        return cls(enterprise_id, key, not_before_ms, serial)


class Part(NamedTuple):
    """What a file says of one prefix: sequences to add, their reasons (a byte each), ranks to remove."""

    added: array[int]
    reasons: bytes
    removed: array[int]


class ListFile(NamedTuple):
    """A verified and parsed file."""

    head: Head
    parts: dict[bytes, Part]


class Group(NamedTuple):
    """The listed cards of one prefix (kind, platform): their sequences, and a reason byte for each in order."""

    sequences: BitMap64
    reasons: bytes


class Blacklist:
    """A list in memory; look-up costs the same whatever its size. Never changed: :meth:`apply` gives a new one."""

    __slots__ = ("_groups", "created_ms", "enterprise_id", "revoked", "version")

    def __init__(
        self,
        enterprise_id: int,
        version: int = 0,
        created_ms: int = 0,
        groups: Mapping[bytes, Group] | None = None,
        revoked: tuple[bytes, ...] = (),
    ) -> None:
        self.enterprise_id, self.version, self.created_ms = enterprise_id, version, created_ms
        self._groups = dict(groups or {})
        self.revoked = revoked

    @classmethod
    def of(cls, enterprise_id: int, version: int, created_ms: int, entries: Iterable[tuple[bytes, int]]) -> Blacklist:
        """Build from (serial, reason) in any order. Raises FormatError for a serial given twice, or none at all."""
        groups: dict[bytes, dict[int, int]] = {}
        for serial, reason in entries:
            group = groups.setdefault(serial[:2], {})
            sequence = sequence_of(serial)
            if sequence in group:
                raise FormatError(f"card {serial.hex().upper()} is listed twice")
            group[sequence] = reason
        made = {}
        for prefix, group in groups.items():
            ordered = sorted(group)
            made[prefix] = Group(BitMap64(array("Q", ordered)), bytes(map(group.__getitem__, ordered)))
        return cls(enterprise_id, version, created_ms, made)

    def __contains__(self, serial: bytes) -> bool:
        group = self._groups.get(serial[:2])
        return group is not None and int.from_bytes(serial[2:7], "big") in group.sequences

    def __len__(self) -> int:
        return sum(len(group.reasons) for group in self._groups.values())

    def __iter__(self) -> Iterator[bytes]:
        """All serials, ascending."""
        for prefix, group in sorted(self._groups.items()):
            for sequence in group.sequences:
                body = prefix + sequence.to_bytes(5, "big")
                yield body + bytes([crc8(body)])

    def reason(self, serial: bytes) -> ListReason | None:
        """Why a card is listed; None when it is not."""
        if serial not in self:
            return None
        group = self._groups[serial[:2]]
        return ListReason(group.reasons[group.sequences.rank(int.from_bytes(serial[2:7], "big")) - 1])

    def group(self, prefix: bytes) -> Group:
        """The group of a prefix, empty if there is none."""
        return self._groups.get(prefix) or Group(BitMap64(), b"")

    def prefixes(self) -> list[bytes]:
        """Prefixes that have entries, ascending."""
        return sorted(self._groups)

    def apply(self, file: ListFile) -> Blacklist:
        """The list after a verified file; this one when the file says nothing new (the same again, out of order).

        Raises Refused: "list_foreign" (another enterprise's), "list_older" (an older snapshot), "list_gap" (a file
        that follows a version not here: ask for the snapshot or the delta from ``version``). Raises FormatError
        when a delta does not fit this list.
        """
        head = file.head
        if head.enterprise_id != self.enterprise_id:
            raise Refused("list_foreign", f"a list of enterprise {head.enterprise_id}, not {self.enterprise_id}")
        if head.kind is FileKind.SNAPSHOT and head.to < self.version:
            raise Refused("list_older", f"list version {head.to} is older than {self.version}, which is here")
        if head.to < self.version or (head.kind is FileKind.DELTA and head.to == self.version):
            return self
        if head.to == self.version:
            created_ms = max(self.created_ms, head.created_ms)
            return Blacklist(self.enterprise_id, self.version, created_ms, self._groups, head.revoked)
        if head.kind is not FileKind.SNAPSHOT and head.start != self.version:
            raise Refused("list_gap", f"the file follows list version {head.start}; here is {self.version}")
        groups = {} if head.kind is FileKind.SNAPSHOT else dict(self._groups)
        for prefix, part in file.parts.items():
            group = _changed(groups.get(prefix, Group(BitMap64(), b"")), part)
            groups[prefix] = group
            if not group.reasons:
                del groups[prefix]
        made = Blacklist(self.enterprise_id, head.to, head.created_ms, groups, head.revoked)
        if len(made) > MAX_ENTRIES:
            raise FormatError(f"list of more than {MAX_ENTRIES} entries")
        return made


def sequence_of(serial: bytes) -> int:
    """The sequence number in a card serial. Raises FormatError when the serial is none."""
    if len(serial) != 8 or crc8(serial[:7]) != serial[7] or serial[0] not in CardKind._value2member_map_:
        raise FormatError(f"{serial.hex().upper()} is no card serial")
    return int.from_bytes(serial[2:7], "big")


def key_id(public: bytes) -> bytes:
    """How a list names the key that signed it."""
    return sha256(public).digest()[:8]


def snapshot(signer: Signer, whole: Blacklist) -> bytes:
    """The file of a whole list."""
    body = []
    for prefix in whole.prefixes():
        group = whole.group(prefix)
        body += [prefix, _coded(list(group.sequences)), _halves(group.reasons)]
    return _sign(signer, whole, FileKind.SNAPSHOT, 0, len(whole), 0, body)


def delta(signer: Signer, old: Blacklist, new: Blacklist) -> bytes:
    """The file that turns ``old`` into ``new``. A card with a changed reason is removed and added again."""
    body, added, removed = [], 0, 0
    for prefix in sorted({*old.prefixes(), *new.prefixes()}):
        was, now = old.group(prefix), new.group(prefix)
        changed = _reason_changes(was, now)
        add = list((now.sequences - was.sequences) | changed)
        ranks = [was.sequences.rank(one) - 1 for one in (was.sequences - now.sequences) | changed]
        if add or ranks:
            reasons = bytes(now.reasons[now.sequences.rank(one) - 1] for one in add)
            body += [prefix, _coded(add), _halves(reasons), _coded(ranks)]
        added, removed = added + len(add), removed + len(ranks)
    return _sign(signer, new, FileKind.DELTA, old.version, added, removed, body)


def freshness(signer: Signer, current: Blacklist) -> bytes:
    """The file that says: nothing changed until ``current.created_ms``."""
    return _sign(signer, current, FileKind.FRESHNESS, current.version, 0, 0, [])


def open_file(raw: bytes, *keys: bytes) -> ListFile:
    """Verify a file with one of the list keys trusted, then parse it. Raises MacMismatch, FormatError."""
    if not 9 + SIGNATURE <= len(raw) <= MAX_FILE or not raw.startswith(MAGIC):
        raise FormatError("not a blacklist file, or above 64 MiB")
    view = memoryview(raw)
    public = _signed_by(view, keys)
    size = int.from_bytes(view[5:9], "big")
    body = view[9 + size : -SIGNATURE]
    if size > min(MAX_HEAD, len(raw) - 9 - SIGNATURE):
        raise FormatError("blacklist file: the head is longer than the file")
    head = Head.decode(bytes(view[9 : 9 + size]))
    if head.key_id != key_id(public):
        raise FormatError("blacklist file: signed by a key that its head does not name")
    return ListFile(head, _parts(body, head))


def _signed_by(raw: memoryview, keys: Sequence[bytes]) -> bytes:
    message, signature = bytes(raw[:-SIGNATURE]), bytes(raw[-SIGNATURE:])
    for public in keys:
        try:
            verify(public, message, signature)
        except MacMismatch:
            continue
        return public
    raise MacMismatch("the blacklist's signature is not one of the keys trusted here")


def _sign(
    signer: Signer, whole: Blacklist, kind: FileKind, start: int, added: int, removed: int, body: list[bytes]
) -> bytes:
    head = Head(
        whole.enterprise_id, kind, start, whole.version, whole.created_ms, added, removed, key_id(signer.public),
        whole.revoked,
    )  # fmt: skip
    head.check()
    coded = head.encode()
    message = b"".join([MAGIC, len(coded).to_bytes(4, "big"), coded, *body])
    if len(message) + SIGNATURE > MAX_FILE or len(coded) > MAX_HEAD:
        raise FormatError("blacklist file above 64 MiB")
    return message + signer.sign(message)


def _map(raw: bytes, size: int, what: str) -> list[Any]:
    """Values of a CBOR map with the keys 1 to ``size``, in that order."""
    try:
        value = cbor2.loads(raw)
    except (cbor2.CBORError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"{what} is no CBOR") from error
    if type(value) is not dict or list(value) != list(range(1, size + 1)):
        raise FormatError(f"{what} lacks a field, or has one too many")
    return list(value.values())


def _parts(body: memoryview, head: Head) -> dict[bytes, Part]:
    """Parse the groups, none of them larger than the bytes that code it, so that no file can claim much memory."""
    parts: dict[bytes, Part] = {}
    last, at, added, removed = b"", 0, 0, 0
    while at < len(body):
        prefix = bytes(body[at : at + 2])
        if prefix <= last or prefix[0] not in CardKind._value2member_map_:
            raise FormatError("blacklist file: groups are out of order")
        values, at = _read_coded(body, at + 2, 1 << SEQUENCE_BITS)
        reasons, at = _read_halves(body, at, len(values))
        ranks: array[int] = array("Q")
        if head.kind is FileKind.DELTA:
            ranks, at = _read_coded(body, at, MAX_ENTRIES)
        if not values and not ranks:
            raise FormatError("blacklist file: an empty group")
        added, removed = added + len(values), removed + len(ranks)
        if max(added, removed) > MAX_ENTRIES:
            raise FormatError(f"list of more than {MAX_ENTRIES} entries")
        parts[prefix], last = Part(values, reasons, ranks), prefix
    if (added, removed) != (head.added, head.removed):
        raise FormatError("blacklist file: its head counts other entries than it has")
    return parts


def _changed(group: Group, part: Part) -> Group:
    """Take the removed ranks off, then put the added sequences in."""
    if part.removed and part.removed[-1] >= len(group.reasons):
        raise FormatError("delta: removes more than there is")
    kept, at = bytearray(), 0
    for rank in part.removed:
        kept += group.reasons[at:rank]
        at = rank + 1
    kept += group.reasons[at:]
    sequences = group.sequences - BitMap64([group.sequences[rank] for rank in part.removed])
    fresh = BitMap64(part.added)
    if not sequences.isdisjoint(fresh):
        raise FormatError("delta: adds what is listed already")
    if not sequences:
        return Group(fresh, part.reasons)
    merged = sequences | fresh
    reasons, at = bytearray(), 0
    for before, (sequence, reason) in enumerate(zip(part.added, part.reasons, strict=True)):
        end = merged.rank(sequence) - 1 - before
        reasons += kept[at:end]
        reasons.append(reason)
        at = end
    return Group(merged, bytes(reasons + kept[at:]))


def _reason_changes(was: Group, now: Group) -> BitMap64:
    both = was.sequences & now.sequences
    old, new = (
        bytes([reason for one, reason in zip(group.sequences, group.reasons, strict=True) if one in both])
        for group in (was, now)
    )
    return BitMap64() if old == new else BitMap64([one for one, a, b in zip(both, old, new, strict=True) if a != b])


def _halves(reasons: bytes) -> bytes:
    """Two reasons a byte, the first in the high half."""
    even = reasons + bytes(len(reasons) % 2)
    high, low = int.from_bytes(even[::2].translate(_TO_HIGH), "big"), int.from_bytes(even[1::2], "big")
    return (high | low).to_bytes(len(even) // 2, "big")


def _read_halves(body: memoryview, at: int, count: int) -> tuple[bytes, int]:
    end = at + (count + 1) // 2
    raw = bytes(body[at:end])
    reasons = bytearray(2 * len(raw))
    reasons[::2], reasons[1::2] = raw.translate(_HIGH), raw.translate(_LOW)
    if len(raw) != end - at or any(reasons[count:]) or (reasons and max(reasons) > max(ListReason)):
        raise FormatError("blacklist file: reasons are missing or unknown")
    return bytes(reasons[:count]), end


def _coded(values: Sequence[int]) -> bytes:
    """``k 1 | count u32 | length u32 | Rice code`` of ascending values."""
    k, bits = rice.encode(values)
    return bytes([k]) + len(values).to_bytes(4, "big") + len(bits).to_bytes(4, "big") + bits


def _read_coded(body: memoryview, at: int, limit: int) -> tuple[array[int], int]:
    start = at + 9
    if start > len(body):
        raise FormatError("blacklist file: a group is cut off")
    k, count = body[at], int.from_bytes(body[at + 1 : at + 5], "big")
    end = start + int.from_bytes(body[at + 5 : start], "big")
    if end > len(body):
        raise FormatError("blacklist file: a group is cut off")
    return rice.decode(body[start:end], k, count, limit), end


class ListStore:
    """A terminal's list on disk: the files that made it, one after another, switched by one atomic rename.

    After a power cut the old or the new list is there. ``root_key`` is pinned at provisioning; a list must be
    signed by it, or by the key of the last certificate taken. Raises FormatError, MacMismatch when the file
    on disk is damaged: then the terminal has no list.
    """

    def __init__(self, path: Path, enterprise_id: int, root_key: bytes) -> None:
        self.path, self.enterprise_id = path, enterprise_id
        self._root_key = root_key
        self._certificate: Certificate | None = None
        self._raw_certificate = b""
        self._records: list[bytes] = []
        self.current = Blacklist(enterprise_id)
        stored = path.read_bytes() if path.exists() else b""
        at = 0
        while at < len(stored):
            end = at + 4 + int.from_bytes(stored[at : at + 4], "big")
            if end > len(stored):
                raise FormatError(f"{path.name} is cut off")
            self._take(stored[at + 4 : end])
            at = end

    def take(self, raw: bytes) -> Blacklist:
        """Take a list file or a certificate; returns the list in force, on disk. A repeat changes nothing.

        Raises what :func:`open_file` and :meth:`Blacklist.apply` raise, and Refused("list_key") for an older
        certificate, another enterprise's, or a list from before its key was valid.
        """
        before = self.current, self._certificate, self._raw_certificate, self._records
        self._take(raw)
        if (self.current, self._certificate) != before[:2]:
            try:
                self._save()
            except OSError:
                self.current, self._certificate, self._raw_certificate, self._records = before
                raise
        return self.current

    def _take(self, raw: bytes) -> None:
        if raw.startswith(CERTIFICATE_MAGIC):
            self._take_certificate(raw)
            return
        certified = [self._certificate.key] if self._certificate else []
        file = open_file(raw, *certified, self._root_key)
        newest = self._certificate
        if newest and file.head.key_id == key_id(newest.key) and file.head.created_ms < newest.not_before_ms:
            raise Refused("list_key", "the list is older than the certificate of its key")
        current = self.current.apply(file)
        if current is self.current:
            return
        if file.head.kind is FileKind.SNAPSHOT:
            records = [self._raw_certificate] if self._raw_certificate else []
        else:
            records = [one for one in self._records if not _is_freshness(one)]
        records = [*records, raw]
        if sum(map(len, records)) > MAX_FILE + MAX_HEAD:
            raise Refused("list_gap", "too many deltas: take a snapshot")
        self.current, self._records = current, records

    def _take_certificate(self, raw: bytes) -> None:
        certificate = Certificate.decode(raw, self._root_key)
        if certificate.enterprise_id != self.enterprise_id:
            raise Refused("list_key", f"a list key of enterprise {certificate.enterprise_id}")
        if self._certificate is not None and certificate.serial <= self._certificate.serial:
            if certificate == self._certificate:
                return
            raise Refused("list_key", f"certificate {certificate.serial} of a list key is not newer than the one here")
        self._certificate, self._raw_certificate = certificate, raw
        self._records = [*self._records, raw]

    def _save(self) -> None:
        fresh = self.path.with_name(f"{self.path.name}.new")
        with fresh.open("wb") as file:
            file.writelines(len(one).to_bytes(4, "big") + one for one in self._records)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_freshness(raw: bytes) -> bool:
    """Whether a file that was verified before is one of freshness."""
    size = int.from_bytes(raw[5:9], "big")
    return raw.startswith(MAGIC) and Head.decode(raw[9 : 9 + size]).kind is FileKind.FRESHNESS
