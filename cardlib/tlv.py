"""BER-TLV (ISO 7816-4 Annex, ITU-T X.690 definite lengths). A TLV is its own encoding: a ``bytes`` subclass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from cardlib.errors import FormatError, NotFound

MAX_LENGTH = 0xFFFFFF


def _tag_end(raw: bytes, start: int) -> int:
    """Index behind the tag field that begins at ``start``; at most three tag bytes."""
    if start >= len(raw):
        raise FormatError("TLV: the tag is missing")
    if raw[start] & 0x1F != 0x1F:
        return start + 1
    for end in range(start + 2, start + 4):
        if end > len(raw):
            break
        if not raw[end - 1] & 0x80:
            return end
    raise FormatError(f"TLV: tag {raw[start : start + 3].hex().upper()} does not end")


def _length(raw: bytes, start: int) -> tuple[int, int]:
    """Length value and the index of the first value byte."""
    if start >= len(raw):
        raise FormatError("TLV: the length is missing")
    first = raw[start]
    if first < 0x80:
        return first, start + 1
    count = first & 0x7F
    field = raw[start + 1 : start + 1 + count]
    if not 1 <= count <= 3 or len(field) != count:
        raise FormatError(f"TLV: length field {raw[start : start + 4].hex().upper()} is not a definite length")
    return int.from_bytes(field, "big"), start + 1 + count


class Tlv(bytes):
    """One TLV object: the bytes themselves, with ``tag`` and ``value`` to look inside."""

    tag: int
    value: bytes

    def __new__(cls, tag: int, value: bytes | Iterable[bytes] = b"") -> Self:
        """Encode ``tag`` and ``value`` (a value's parts are joined). Raises FormatError on an impossible tag."""
        body = value if isinstance(value, bytes) else b"".join(value)
        head = tag.to_bytes(max(1, (tag.bit_length() + 7) // 8), "big")
        if _tag_end(head, 0) != len(head) or len(body) > MAX_LENGTH:
            raise FormatError(f"TLV: tag {tag:X} with {len(body)} bytes can't be coded")
        size = len(body)
        count = 0 if size < 0x80 else (size.bit_length() + 7) // 8
        length = bytes([size]) if not count else bytes([0x80 | count]) + size.to_bytes(count, "big")
        self = super().__new__(cls, head + length + body)
        self.tag, self.value = tag, body
        return self

    @classmethod
    def parse(cls, raw: bytes) -> tuple[Self, bytes]:
        """Take the first object off ``raw`` and return it with the rest. Raises FormatError."""
        end = _tag_end(raw, 0)
        size, start = _length(raw, end)
        if start + size > len(raw):
            raise FormatError(f"TLV {raw[:end].hex().upper()}: {size} bytes announced, {len(raw) - start} there")
        self = super().__new__(cls, raw[: start + size])
        self.tag, self.value = int.from_bytes(raw[:end], "big"), raw[start : start + size]
        return self, raw[start + size :]

    @classmethod
    def parse_list(cls, raw: bytes) -> list[Self]:
        """Parse objects until ``raw`` is used up. Raises FormatError."""
        found = []
        while raw:
            item, raw = cls.parse(raw)
            found.append(item)
        return found

    def __repr__(self) -> str:
        return f"Tlv({self.tag:X}, {len(self.value)} bytes)"


def find(raw: bytes, *path: int) -> bytes:
    """Value at the end of a path of tags. Raises NotFound when a tag is missing, FormatError on bad coding."""
    for tag in path:
        for item in Tlv.parse_list(raw):
            if item.tag == tag:
                raw = item.value
                break
        else:
            raise NotFound(f"TLV: tag {tag:X} is not there")
    return raw
