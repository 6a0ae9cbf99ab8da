"""A terminal provisioned by its plan over a simulated line that is cut at a byte, then finished by the same command."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from cardlib.blacklist import Blacklist, ListReason, snapshot
from cardlib.crypto.signing import SigningKey
from cardlib.errors import TransportError
from cardlib.profile import CardKind, make_serial
from cardlib.wire.authority import Token
from console import Session
from terminals import installing, provisioning
from terminals.identity import Identity
from terminals.installing import Where
from terminals.provisioning import Plan, Wanted, _provision
from tests.terminals.linkrig import AUTHORITY, CODE, NOW, ROOT, Line, Terminal, client, config_file, installer

LIST_VERSION = 7
_ENTRIES = [
    (make_serial(CardKind.CPU_CARD, 1, n), ListReason.LOST) for n in random.Random(4).sample(range(1 << 40), 90)
]
LIST = snapshot(ROOT, Blacklist.of(1001, LIST_VERSION, NOW - 1000, _ENTRIES))
ADDRESS = 5


class Place:
    """An installer with a plan, and the terminal that it is for; ``bursts`` are the sizes of what passed the line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.terminal = Terminal(folder / "t")
        self.terminal.wall.ms = NOW - 30_000
        (folder / "code").write_text(CODE + "\n")
        raw, who = config_file(1, created_ms=NOW - 1000), installer()
        wanted = Wanted(
            "POS-0001", self.terminal.label, Where("line"), folder / "code", raw, 1,
            {hashlib.sha256(LIST).hexdigest(): LIST}, ("card",), "", {},
        )  # fmt: skip
        self.plan = Plan("east", AUTHORITY.public, (wanted,), folder / "manifest.json")
        self.who = Identity(folder / "an.key", who, SigningKey(bytes(32)), Token.decode(who.token, None))
        self.bursts: list[int] = []

    def provision(self, cut_at: int | None = None, seed: int = 1) -> list[str]:
        """The command; returns the steps that it found to do. Raises TransportError when the line was cut."""

        def connect(_: Session, __: Where) -> installing.Line:
            line = Line(cut_at=cut_at, spoil=self._passing)
            self.terminal.connect(line, ADDRESS, seed)
            one = client(line, seed=seed + 1)
            return installing.Line(one, one.master.hello(ADDRESS))

        with patch.object(provisioning, "connect", connect), _time():
            (wanted,) = self.plan.terminals
            return [row["step"] for row in _provision(Session(quiet=True), self.plan, wanted, self.who)]

    def _passing(self, data: bytes) -> bytes:
        self.bursts.append(len(data))
        return data

    def faults(self) -> list[str]:
        """What is not as planned."""
        host, state = self.terminal.host, self.terminal.pairing.state
        right = {
            "configuration": host.settings.version == 1,
            "list": host.lists.version == LIST_VERSION,
            "pairing": (len(state.pinned), state.code, state.failures) == (1, "", 0),
            "authority": state.authority == AUTHORITY.public.hex(),
            "clock": abs(host.clock.now_ms() - NOW) < 1000,
            "leftovers": not list(host.files.folder.glob("*.part")),
        }
        self.terminal.journal.verify()
        return [name for name, good in right.items() if not good]


@contextmanager
def _time() -> Iterator[None]:
    with patch.object(provisioning, "now_ms", lambda: NOW), patch.object(installing, "now_ms", lambda: NOW):
        yield


def cut_at(folder: Path, byte: int) -> tuple[bool, list[str]]:
    """Provision with a cut, then again; whether the cut came, and what is not as planned in the end.

    At every other byte the terminal loses its power as well.
    """
    place = Place(folder)
    was_cut = True
    with suppress(TransportError):
        place.provision(byte)
        was_cut = False
    if byte % 2:
        place.terminal.start()
    place.provision(seed=3)
    faults = place.faults() + [f"{step} again" for step in place.provision(seed=5)]
    place.terminal.journal.close()
    return was_cut, faults
