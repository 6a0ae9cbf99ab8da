"""Issuing in batch."""
from __future__ import annotations

from tests.bench.figures import Figure


def batch_issue() -> list[Figure]:
    return []
