"""Wiegand formats of old panels: 26 (H10301), 34, 37 (H10302) and 37 with a facility code (H10304).

Even parity over the first half of the data, odd over the second; in 37 both include the 18th data bit.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cardlib.errors import FormatError


class Wiegand(Enum):
    """A format: bits in all, of the facility code, of the card number."""

    H10301 = (26, 8, 16)
    W34 = (34, 16, 16)
    H10302 = (37, 0, 35)
    H10304 = (37, 16, 19)

    @property
    def bits(self) -> int:
        """Bits with both parities."""
        return int(self.value[0])


class Credential(NamedTuple):
    """Facility code (0 where the format has none) and card number."""

    facility: int
    number: int


def encode(card: Credential, form: Wiegand, *, reverse_bytes: bool = False) -> bytes:
    """The bits, left-aligned in bytes; ``reverse_bytes`` sends the 4 bytes of format 34 in the other order.

    Raises FormatError when a number does not fit.
    """
    bits, facility, number = form.value
    if not (0 <= card.facility < 1 << facility and 0 <= card.number < 1 << number):
        raise FormatError(f"facility {card.facility}, number {card.number} do not fit {form.name}")
    data = _turned(card.facility << number | card.number, form, reverse_bytes)
    first, second = _halves(data, bits - 2)
    value = (first & 1) << (bits - 1) | data << 1 | (~second & 1)
    size = -(-bits // 8)
    return (value << (8 * size - bits)).to_bytes(size, "big")


def decode(raw: bytes, form: Wiegand, *, reverse_bytes: bool = False) -> Credential:
    """Inverse of encode. Raises FormatError when length, filling or a parity is wrong."""
    bits, _, number = form.value
    size = -(-bits // 8)
    whole = int.from_bytes(raw, "big")
    spare = 8 * size - bits
    if len(raw) != size or whole & ((1 << spare) - 1):
        raise FormatError(f"{len(raw)} bytes are no {form.name} of {bits} bits")
    value = whole >> spare
    data = value >> 1 & ((1 << bits - 2) - 1)
    first, second = _halves(data, bits - 2)
    if (first + (value >> bits - 1)) % 2 or not (second + value) % 2:
        raise FormatError(f"parity of a {form.name} number is wrong: read the card again")
    data = _turned(data, form, reverse_bytes)
    return Credential(data >> number, data & ((1 << number) - 1))


def _halves(data: int, size: int) -> tuple[int, int]:
    """Ones in the first and in the second half; of an odd number of bits the middle one is in both."""
    half = -(-size // 2)
    return (data >> size - half).bit_count(), (data & ((1 << half) - 1)).bit_count()


def _turned(data: int, form: Wiegand, reverse_bytes: bool) -> int:
    if not reverse_bytes:
        return data
    if form is not Wiegand.W34:
        raise FormatError(f"{form.name} has no byte order to choose: only 34 bits are four bytes")
    return int.from_bytes(data.to_bytes(4, "big"), "little")
