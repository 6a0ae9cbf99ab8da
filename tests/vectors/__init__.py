"""Known answers from an independent implementation, and how tests reach them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def pboc() -> dict[str, Any]:
    """The whole of pboc.json."""
    data: dict[str, Any] = json.loads((Path(__file__).parent / "pboc.json").read_text(encoding="utf-8"))
    return data


@cache
def ota() -> list[dict[str, Any]]:
    """The vectors of ota.json. An id may occur twice, so tests name them by their place."""
    data: dict[str, Any] = json.loads((Path(__file__).parent / "ota.json").read_text(encoding="utf-8"))
    vectors: list[dict[str, Any]] = data["vectors"]
    return vectors


def by_category(*categories: str) -> list[dict[str, Any]]:
    """Synthetic vectors of these categories, in file order."""
    return [v for v in pboc()["vectors"] if v["category"] in categories]


def public_by_op(*ops: str) -> list[dict[str, Any]]:
    """Public vectors of these operations, in file order."""
    return [v for v in pboc()["public_vectors"] if v["op"] in ops]


def raw(fields: dict[str, Any]) -> dict[str, bytes]:
    """The hex fields of a vector's part as bytes."""
    return {k: bytes.fromhex(v) for k, v in fields.items() if isinstance(v, str)}


def algorithm(vector: dict[str, Any]) -> int:
    """Algorithm identifier of a vector: SM4 or the DES family."""
    return 4 if vector["alg"] == "SM4" else 0
