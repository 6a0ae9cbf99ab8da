"""Golomb-Rice coding of ascending numbers: within about 1 % of the entropy of a random set (blacklist.md, Files)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

from cardlib.errors import FormatError

MAX_COUNT = 1 << 24
MAX_QUOTIENT = 1 << 16
MAX_K = 40
CHUNK = 1 << 16
"""Bytes turned into text at a time: text is what Python searches fastest, but takes eight times the room."""


def encode(values: Sequence[int]) -> tuple[int, bytes]:
    """Code ascending distinct numbers by their gaps; returns k, the best one, and the bits."""
    gaps = [b - a - 1 for a, b in zip((-1, *values), values, strict=False)]
    k = best_k(gaps)
    mask, width = (1 << k) - 1, k + 1
    done, rest = bytearray(), ""
    for start in range(0, len(gaps), 4096):
        rest += "".join([f"{'1' * (gap >> k)}{gap & mask:0{width}b}" for gap in gaps[start : start + 4096]])
        whole = len(rest) & ~7
        done += _octets(rest[:whole])
        rest = rest[whole:]
    return k, bytes(done + _octets(rest + "0" * (-len(rest) % 8)))


def decode(bits: bytes | memoryview, k: int, count: int, limit: int) -> array[int]:
    """Inverse of :func:`encode`. Raises FormatError unless the bits are ``count`` codes below ``limit`` and padding."""
    if k > MAX_K or count > MAX_COUNT or count * (k + 1) > len(bits) * 8:
        raise FormatError("Rice code: too few bits for so many values")
    steps: array[int] = array("Q")
    add, text, at, left = steps.append, "", 0, count
    for start in range(0, len(bits), CHUNK):
        if not left:
            raise FormatError("Rice code: more bits than values")
        chunk = bits[start : start + CHUNK]
        text, at = f"{text[at:]}{int.from_bytes(chunk, 'big'):0{8 * len(chunk)}b}", 0
        find, last = text.find, len(text) - k
        while left:
            zero = find("0", at)
            quotient = (len(text) if zero < 0 else zero) - at
            if quotient > MAX_QUOTIENT:
                raise FormatError(f"Rice code: a quotient above {MAX_QUOTIENT}")
            if not -1 < zero < last:
                break
            end = zero + 1 + k
            add((quotient << k) + int(text[zero:end], 2) + 1)
            at, left = end, left - 1
    if left or len(text) - at > 7 or "1" in text[at:]:
        raise FormatError("Rice code: bits and count do not agree")
    if sum(steps) > limit:
        raise FormatError("Rice code: a value is out of range")
    if steps:
        steps[0] -= 1
    return array("Q", accumulate(steps))


def best_k(gaps: Sequence[int]) -> int:
    """The parameter with the shortest code, the smallest on a tie; none that needs a quotient above the limit.

    The size is convex in k, so the search walks from the mean gap's size to the minimum.
    """
    if not gaps:
        return 0

    def size(k: int) -> int:
        return len(gaps) * (k + 1) + sum([gap >> k for gap in gaps])

    least, widest = 0, max(gaps)
    while widest >> least > MAX_QUOTIENT:
        least += 1
    k = max(least, (sum(gaps) // len(gaps)).bit_length() - 1)
    best = size(k)
    while k > least and (smaller := size(k - 1)) <= best:
        k, best = k - 1, smaller
    while (larger := size(k + 1)) < best:
        k, best = k + 1, larger
    return k


def _octets(text: str) -> bytes:
    return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""
