"""The batch file of a chip vendor: which chip numbers, ATRs and transport keys belong together (keys.md, Washing).

UTF-8, a line each, ended by LF; hexadecimal in capitals; nothing else is accepted::

    onecard batch 1
    vendor: Example Chips
    batch: EX-2026-07
    kind: cpu-card              rfid-sim, cpu-card, sam, mother or authentication
    algorithm: 3des             or sm4
    wrapping: aes-256-gcm
    check: 8B0A7C               check value of the batch key
    chips: 2
    key: 5F…                    only where all chips have one transport key; the rows then have two columns
    chip,atr,key
    0102030405060708A1,3B67000…,9C…
    0102030405060708A2,3B67000… 3B87…,77…        (a chip with two faces has two ATRs)
    tag: 41…

The *batch key* is 32 bytes, agreed between vendor and platform. Its check value is the first 3 bytes of AES-CMAC
over 16 zero bytes. A wrapped key is nonce 12, ciphertext, tag 16 of AES-256-GCM under the batch key; associated data
are the first line, vendor, batch, kind, algorithm, chip and atr as they stand in the file, joined by LF (chip and atr
empty for the one key of a whole batch), so that a key is good in its own row only. ``tag`` is HMAC-SHA-256 over all
before its line, under HKDF-SHA-256 of the batch key (no salt, info ``onecard batch file``, 32 bytes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hmac import compare_digest
from typing import NamedTuple

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.sealing import NONCE_SIZE, TAG_SIZE, aes_check_value, hkdf, unseal, verify_hmac
from cardlib.errors import BadKcv, FormatError
from cardlib.profile import CardKind
from keymgmt.handle import KeyHandle

FIRST_LINE = "onecard batch 1"
WRAPPING = "aes-256-gcm"
TAG_INFO = b"onecard batch file"
MAX_BYTES = 64 << 20
MAX_CHIPS = 200_000
BATCH_KEY_BYTES = 32
KEY_BYTES = 16
WRAPPED_BYTES = NONCE_SIZE + KEY_BYTES + TAG_SIZE
KINDS = {kind.name.lower().replace("_", "-"): kind for kind in CardKind}
ALGORITHMS = {"3des": Algorithm.TDES, "sm4": Algorithm.SM4}
_HEADER = ("vendor", "batch", "kind", "algorithm", "wrapping", "check", "chips")
_PATTERNS = {
    "vendor": re.compile(r"[^\s,][^\x00-\x1f\x7f]{0,59}"),
    "batch": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}"),
    "check": re.compile(r"[0-9A-F]{6}"),
    "chips": re.compile(r"[1-9][0-9]{0,5}"),
    "key": re.compile(f"[0-9A-F]{{{2 * WRAPPED_BYTES}}}"),
    "chip": re.compile(r"(?:[0-9A-F]{2}){4,16}"),
    "atr": re.compile(r"(?:[0-9A-F]{2}){2,33}(?: (?:[0-9A-F]{2}){2,33}){0,3}"),
    "tag": re.compile(r"[0-9A-F]{64}"),
}


@dataclass(frozen=True, slots=True)
class BatchHead:
    """What all chips of a batch share; ``wrapped`` is the one transport key of all of them, empty where each has his.

    ``check`` (3 bytes) is the check value of the batch key.
    """

    vendor: str
    batch: str
    kind: CardKind
    algorithm: Algorithm
    check: bytes
    wrapped: bytes = b""

    def require_key(self, batch_key: bytes) -> None:
        """Raise FormatError when a batch key has another size, BadKcv when it is not this batch's."""
        if len(batch_key) != BATCH_KEY_BYTES:
            raise FormatError(f"a batch key has {BATCH_KEY_BYTES} bytes, not {len(batch_key)}")
        found = aes_check_value(batch_key)
        if not compare_digest(found, self.check):
            raise BadKcv(
                f"wrong batch key for batch {self.batch}: its check value is {found.hex().upper()}, the file of"
                f" {self.vendor} was made with {self.check.hex().upper()}"
            )

    def transport_key(self, chip: ChipRow, batch_key: bytes) -> KeyHandle:
        """The vendor's key of one chip, unwrapped. Raises BadKcv, and MacMismatch when its row was changed."""
        self.require_key(batch_key)
        own = chip.wrapped
        value = unseal(
            batch_key, own or self.wrapped, self._bound(chip if own else None), f"the transport key of chip {chip.chip}"
        )
        return KeyHandle(make_key(value, self.algorithm), f"transport key of batch {self.batch}")

    def _bound(self, chip: ChipRow | None) -> bytes:
        kind, algorithm = _name(KINDS, self.kind), _name(ALGORITHMS, self.algorithm)
        row = (chip.chip, chip.atr) if chip else ("", "")
        return "\n".join((FIRST_LINE, self.vendor, self.batch, kind, algorithm, *row)).encode()


class ChipRow(NamedTuple):
    """One chip: its number, its ATRs (hexadecimal, blanks between), its wrapped key (empty where the batch has one)."""

    chip: str
    atr: str
    wrapped: bytes

    @property
    def atrs(self) -> tuple[bytes, ...]:
        """How the chip answers to reset, one for each face."""
        return tuple(map(bytes.fromhex, self.atr.split()))


class BatchFile(NamedTuple):
    """A batch file that was checked to its last row."""

    head: BatchHead
    chips: tuple[ChipRow, ...]


def read_batch(data: bytes, batch_key: bytes) -> BatchFile:
    """Check a vendor's file as a whole, each wrapped key too.

    Raises FormatError for a file that is empty, truncated or no batch file, or has a chip twice; BadKcv for another
    batch key; MacMismatch when anything in it was changed.
    """
    body, tag = _split(data)
    lines = iter(body.split("\n")[:-1])
    if (first := next(lines)) != FIRST_LINE:
        known = first.rpartition(" ")[0] == FIRST_LINE.rpartition(" ")[0]
        what = f"of a version that this program does not know ({first[:40]!r})" if known else "no batch file"
        raise FormatError(f"the file is {what}: its first line must be {FIRST_LINE!r}")
    head, count = _head(lines)
    head.require_key(batch_key)
    verify_hmac(
        hkdf(batch_key, TAG_INFO), body.encode(), tag, f"the tag of batch {head.batch}: the file was changed, it"
    )
    chips = tuple(_rows(lines, head))
    if len(chips) != count:
        raise FormatError(f"batch {head.batch} says {count} chips and lists {len(chips)}")
    for chip in chips if not head.wrapped else chips[:1]:
        head.transport_key(chip, batch_key)
    return BatchFile(head, chips)


def _split(data: bytes) -> tuple[str, bytes]:
    """All before the tag's line, and the tag."""
    if not data.strip():
        raise FormatError("the batch file is empty")
    if len(data) > MAX_BYTES:
        raise FormatError(f"a batch file has at most {MAX_BYTES >> 20} MiB: split the batch")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FormatError("the file is no batch file: it is not UTF-8") from e
    if "\r" in text:
        raise FormatError("the batch file's line ends were changed (CR): transfer it as it is, in binary")
    body, mark, last = text.rpartition("\ntag: ")
    if not mark or not last.endswith("\n") or not _PATTERNS["tag"].fullmatch(last[:-1]):
        if not text.startswith(FIRST_LINE.rpartition(" ")[0]):
            raise FormatError(f"the file is no batch file: its first line must be {FIRST_LINE!r}")
        raise FormatError("the batch file is truncated: its last line must be its tag; have it sent again")
    return body + "\n", bytes.fromhex(last)


def _head(lines: Iterator[str]) -> tuple[BatchHead, int]:
    """The head, and how many chips follow; the line of column names is taken too."""
    found = {name: _value(name, next(lines, "")) for name in _HEADER}
    wrapped, line = b"", next(lines, "")
    if line.startswith("key: "):
        wrapped, line = bytes.fromhex(_value("key", line)), next(lines, "")
    columns = "chip,atr" if wrapped else "chip,atr,key"
    if line != columns:
        raise FormatError(f"batch file: {columns!r} must stand before the chips")
    count = int(found["chips"])
    if count > MAX_CHIPS:
        raise FormatError(f"a batch has at most {MAX_CHIPS} chips, not {count}: split it")
    kind, algorithm = KINDS[found["kind"]], ALGORITHMS[found["algorithm"]]
    return BatchHead(found["vendor"], found["batch"], kind, algorithm, bytes.fromhex(found["check"]), wrapped), count


def _value(name: str, line: str) -> str:
    found, mark, value = line.partition(": ")
    if found != name or not mark:
        raise FormatError(f"batch file: the line '{name}: …' is missing")
    choices = {"kind": list(KINDS), "algorithm": list(ALGORITHMS), "wrapping": [WRAPPING]}.get(name)
    if choices and value not in choices:
        raise FormatError(f"batch file: {name} is {value[:40]!r}, this program knows {', '.join(choices)}")
    if not choices and not _PATTERNS[name].fullmatch(value):
        raise FormatError(f"batch file: {name} is malformed")
    return value


def _rows(lines: Iterator[str], head: BatchHead) -> Iterator[ChipRow]:
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        columns = line.split(",")
        names = ("chip", "atr") if head.wrapped else ("chip", "atr", "key")
        fits = len(columns) == len(names)
        if not fits or not all(_PATTERNS[n].fullmatch(c) for n, c in zip(names, columns, strict=True)):
            raise FormatError(f"batch {head.batch}: row {number} is malformed")
        if columns[0] in seen:
            raise FormatError(f"batch {head.batch}: chip {columns[0]} stands in it twice")
        seen.add(columns[0])
        yield ChipRow(columns[0], columns[1], b"" if head.wrapped else bytes.fromhex(columns[2]))


def _name(names: dict[str, CardKind] | dict[str, Algorithm], value: CardKind | Algorithm) -> str:
    return next(name for name, one in names.items() if one is value)
