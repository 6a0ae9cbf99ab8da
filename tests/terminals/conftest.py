"""Shops of a test are closed when it ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.terminals.shop import Shop


@pytest.fixture(autouse=True)
def _close_shops() -> Iterator[None]:
    yield
    while Shop.opened:
        Shop.opened.pop().journal.close()
