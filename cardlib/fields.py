"""Fixed record layouts, declared once: a frozen dataclass whose annotations say how each field is coded.

    @dataclass(frozen=True, slots=True)
    class Passage(Record):
        zone: Annotated[int, U(2)]
        date: Annotated[date | None, BcdDate()]

The order of the fields is the order on the card. A last field whose codec has size 0 takes all that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date, time
from typing import Any, ClassVar, Protocol, Self, get_type_hints

from cardlib.errors import FormatError


class Codec(Protocol):
    """How one field is coded: a fixed size and both directions."""

    size: int

    def encode(self, value: Any) -> bytes: ...  # noqa: ANN401  # each codec narrows it
    def decode(self, raw: bytes) -> Any: ...  # noqa: ANN401


@dataclass(frozen=True)
class U:
    """Unsigned integer of ``size`` bytes, big-endian."""

    size: int

    def encode(self, value: int) -> bytes:
        """Raises FormatError when the value does not fit."""
        if not 0 <= value < 1 << 8 * self.size:
            raise FormatError(f"{value} does not fit {self.size} bytes")
        return value.to_bytes(self.size, "big")

    def decode(self, raw: bytes) -> int:
        """Inverse of encode."""
        return int.from_bytes(raw, "big")


@dataclass(frozen=True)
class Raw:
    """Exactly ``size`` bytes as they are."""

    size: int

    def encode(self, value: bytes) -> bytes:
        """Raises FormatError when the length is another."""
        if len(value) != self.size:
            raise FormatError(f"{len(value)} bytes where {self.size} belong")
        return value

    def decode(self, raw: bytes) -> bytes:
        """Inverse of encode."""
        return raw


@dataclass(frozen=True)
class Text:
    """UTF-8 in at most ``size`` bytes, padded with FF (a byte that UTF-8 never has)."""

    size: int

    def encode(self, value: str) -> bytes:
        """Raises FormatError when the text is too long or no UTF-8 can say it."""
        try:
            raw = value.encode()
        except UnicodeEncodeError as e:
            raise FormatError("text holds a character that UTF-8 can't code") from e
        if len(raw) > self.size:
            raise FormatError(f"text of {len(raw)} bytes where at most {self.size} fit")
        return raw.ljust(self.size, b"\xff")

    def decode(self, raw: bytes) -> str:
        """Inverse of encode. Raises FormatError when it is no UTF-8."""
        try:
            return raw.rstrip(b"\xff").decode()
        except UnicodeDecodeError as e:
            raise FormatError("text is no UTF-8") from e


@dataclass(frozen=True)
class Le:
    """Unsigned integer of ``size`` bytes, little-endian."""

    size: int

    def encode(self, value: int) -> bytes:
        """Raises FormatError when the value does not fit."""
        return U(self.size).encode(value)[::-1]

    def decode(self, raw: bytes) -> int:
        """Inverse of encode."""
        return int.from_bytes(raw, "little")


def _bcd(raw: bytes) -> str:
    digits = raw.hex()
    if not digits.isdecimal():
        raise FormatError(f"{digits.upper()} is no BCD")
    return digits


@dataclass(frozen=True)
class BcdDate:
    """YYYYMMDD in 4 BCD bytes; 00000000 is "no date", None."""

    size: ClassVar[int] = 4

    def encode(self, value: date | None) -> bytes:
        """None gives zeros."""
        return bytes(4) if value is None else bytes.fromhex(f"{value:%Y%m%d}".rjust(8, "0"))

    def decode(self, raw: bytes) -> date | None:
        """Raises FormatError when it is no day of the calendar."""
        if raw == bytes(4):
            return None
        digits = _bcd(raw)
        try:
            return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
        except ValueError as e:
            raise FormatError(f"{digits} is no date") from e


@dataclass(frozen=True)
class BcdTime:
    """hhmmss in 3 BCD bytes."""

    size: ClassVar[int] = 3

    def encode(self, value: time) -> bytes:
        """Seconds are the finest unit."""
        return bytes.fromhex(f"{value:%H%M%S}")

    def decode(self, raw: bytes) -> time:
        """Raises FormatError when it is no time of day."""
        digits = _bcd(raw)
        try:
            return time(int(digits[:2]), int(digits[2:4]), int(digits[4:]))
        except ValueError as e:
            raise FormatError(f"{digits} is no time of day") from e


_Layout = tuple[tuple[str, int, int, Callable[[Any], bytes], Callable[[bytes], Any]], ...]
_LAYOUTS: dict[type, _Layout] = {}


def _layout(cls: type[Record]) -> _Layout:
    """Offsets and codecs of a record class, worked out at its first use."""
    known = _LAYOUTS.get(cls)
    if known:
        return known
    hints = get_type_hints(cls, include_extras=True)
    rows, at = [], 0
    for field in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
        codec: Codec = hints[field.name].__metadata__[0]
        rows.append((field.name, at, at + codec.size, codec.encode, codec.decode))
        at += codec.size
    layout = _LAYOUTS[cls] = tuple(rows)
    return layout


class Record:
    """Base of fixed-length records. Subclasses are frozen dataclasses with annotated fields."""

    __slots__ = ()

    @classmethod
    def size(cls) -> int:
        """Length of the coding in bytes."""
        layout = _layout(cls)
        return layout[-1][2] if layout else 0

    def encode(self) -> bytes:
        """Code all fields in order. Raises FormatError naming the field that does not fit."""
        parts = []
        for name, _, _, encode, _ in _layout(type(self)):
            try:
                parts.append(encode(getattr(self, name)))
            except FormatError as e:
                raise FormatError(f"{type(self).__name__}.{name}: {e}") from e
        return b"".join(parts)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse exactly one record. Raises FormatError naming the field that is wrong."""
        layout = _layout(cls)
        size = layout[-1][2] if layout else 0
        is_open = bool(layout) and layout[-1][1] == size
        if len(raw) != size and not (is_open and len(raw) > size):
            raise FormatError(f"{cls.__name__}: {len(raw)} bytes where {size} belong")
        values = {}
        for name, start, end, _, decode in layout:
            try:
                values[name] = decode(raw[start : end if start < end else None])
            except FormatError as e:
                raise FormatError(f"{cls.__name__}.{name}: {e}") from e
        return cls(**values)
