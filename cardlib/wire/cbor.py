"""Deterministic CBOR (RFC 8949 §4.2.1) of the few types that our messages use: one value has one encoding only."""

from __future__ import annotations

from typing import Any

import cbor2

from cardlib.errors import FormatError

MAX_DEPTH = 8
_ATOMS = (int, bytes, str, bool, type(None))


def encode(value: object) -> bytes:
    """Encode whole numbers, bytes, texts, true, false, null, lists and maps. Raises FormatError for anything else."""
    try:
        return cbor2.dumps(_ordered(value, 0))
    except (cbor2.CBORError, ValueError, OverflowError) as e:
        raise FormatError(f"a value does not fit CBOR: {type(e).__name__}") from e


def decode(raw: bytes, what: str = "message") -> Any:  # noqa: ANN401  # whatever was sent; callers check types
    """Parse. Raises FormatError also for duplicate keys, trailing bytes and every encoding but the shortest."""
    try:
        value = cbor2.loads(raw)
    # A tag may build any object, and each class has its own error.
    except Exception as e:
        raise FormatError(f"{what} is no CBOR") from e
    if encode(value) != raw:
        raise FormatError(f"{what} is not in the one form that deterministic CBOR allows")
    return value


def decode_map(raw: bytes, what: str, wanted: dict[int, type], optional: dict[int, type] | None = None) -> list[Any]:
    """Values of a map with integer keys in the order of ``wanted``, then ``optional`` (None when missing).

    Raises FormatError when a field lacks, is one too many, or has another type.
    """
    value = decode(raw, what)
    if type(value) is not dict:
        raise FormatError(f"{what} is no map")
    return fields(value, what, wanted, optional)


def fields(
    value: dict[Any, Any], what: str, wanted: dict[int, type], optional: dict[int, type] | None = None
) -> list[Any]:
    """The same of a map that is parsed already. Raises FormatError."""
    extra = optional or {}
    if not wanted.keys() <= value.keys() <= {*wanted, *extra}:
        raise FormatError(f"{what} lacks a field, or has one too many")
    for key, kind in (wanted | extra).items():
        if key in value and type(value[key]) is not kind:
            raise FormatError(f"{what}: field {key} is no {kind.__name__}")
    return [value.get(key) for key in (wanted | extra)]


def _ordered(value: object, depth: int) -> object:
    """The same value, its maps in the order of their encoded keys (cbor2 keeps the order it finds)."""
    if type(value) is int and not -(1 << 64) <= value < 1 << 64:
        raise FormatError("CBOR: a number of more than 64 bits")
    if type(value) in _ATOMS:
        return value
    if depth > MAX_DEPTH:
        raise FormatError("CBOR is nested too deeply")
    if type(value) is list:
        return [_ordered(one, depth + 1) for one in value]
    if type(value) is dict:
        coded = sorted((cbor2.dumps(key), key) for key in value if type(key) in (int, str, bytes))
        if len(coded) != len(value):
            raise FormatError("a key in CBOR is a whole number, a text or bytes")
        return {key: _ordered(value[key], depth + 1) for _, key in coded}
    raise FormatError(f"{type(value).__name__} is no type of our CBOR")
