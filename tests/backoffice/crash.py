"""Death of the program at any of its writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backoffice.database import Database, Tx


class Dead(BaseException):
    """The process is gone."""


class Guillotine:
    """Lets a process die before or after the commit of its n-th write; from then on nothing is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.after = False
        self.dead = False
        plain = Database.write

        @contextmanager
        def write(db: Database) -> Iterator[Tx]:
            if self.dead:
                raise Dead
            self.left -= 1
            with plain(db) as tx:
                yield tx
                if self.left == 0 and not self.after:
                    self.dead = True
                    raise Dead
            if self.left == 0:
                self.dead = True
                raise Dead

        monkeypatch.setattr(Database, "write", write)

    def arm(self, write: int, after: bool) -> None:
        self.left, self.after, self.dead = write, after, False

    def disarm(self) -> bool:
        """Whether the process died."""
        died, self.dead, self.left = self.dead, False, 0
        return died
