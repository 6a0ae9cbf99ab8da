"""Databases on real files, with a clock and random bytes that a test controls."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from backoffice.database import Database

NOW = 1_790_000_000_000
ENTERPRISE = 1001


class Clock:
    """A clock that moves only when told."""

    def __init__(self, now_ms: int = NOW) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def forward(self, ms: int) -> None:
        self.now_ms += ms


@pytest.fixture
def clock() -> Clock:
    """A clock at NOW."""
    return Clock()


@pytest.fixture
def db(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    """An empty enterprise database."""
    path = tmp_path / "enterprise.db"
    with Database(path, "enterprise", migrate=True, now_ms=clock, random_bytes=random.Random(1).randbytes) as database:
        yield database


@pytest.fixture
def platform(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    """An empty platform database."""
    path = tmp_path / "platform.db"
    with Database(path, "platform", migrate=True, now_ms=clock, random_bytes=random.Random(2).randbytes) as database:
        yield database
