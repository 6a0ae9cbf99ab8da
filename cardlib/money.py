"""Money as people write it: yuan with two decimals; inside it is an integer of fen."""

from __future__ import annotations

from cardlib.errors import FormatError

MAX_FEN = 99_999_999
"""Largest amount a person may key: 999 999.99 yuan; a purse holds 4 bytes."""


def yuan(fen: int) -> str:
    """1205 is 12.05."""
    return f"{'-' if fen < 0 else ''}{abs(fen) // 100}.{abs(fen) % 100:02d}"


def parse_yuan(text: str) -> int:
    """Fen of an amount like 12 or 12.50. Raises FormatError for zero, negative, too large, or no plain number."""
    whole, dot, cents = text.partition(".")
    digits = whole + cents
    good = whole and digits.isascii() and digits.isdecimal() and len(cents) <= 2 and bool(dot) == bool(cents)
    if not good or len(whole) > 12:
        raise FormatError(f"{text[:20]!r} is no amount: write yuan like 12 or 12.50")
    fen = int(whole) * 100 + int(cents.ljust(2, "0"))
    if not 0 < fen <= MAX_FEN:
        raise FormatError(f"{text} is out of range: 0.01 to {yuan(MAX_FEN)}")
    return fen
