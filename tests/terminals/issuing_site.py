"""An office behind real HTTP and an issuing terminal of it: SAM, readers, a person who types."""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

from backoffice import operators, registry, tokens, web
from backoffice.lending import Desks
from backoffice.operators import Credential, Role
from backoffice.registry import TerminalKind
from backoffice.station import Office
from cardlib.errors import TransportError
from cardlib.readers import Presence, Reader
from cardlib.sam import IssuingSam, SamInfo
from cardlib.transport import Decorator, Transport
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import MemorySteps
from simulator.card import Card
from simulator.rig import EXPIRY, START, OneSam
from simulator.sam import SamCard
from simulator.world import QUICK
from terminals.config import Kind, TerminalConfig
from terminals.issuing import DeskRules, Fields, Issuing
from terminals.journal import Journal
from terminals.office import HttpOffice
from terminals.posts.issuing import IssuingPost
from terminals.screen import MemoryScreen
from tests.backoffice.adms_rig import running
from tests.backoffice.desk import TRANSPORT_KEY, World
from tests.backoffice.kit import ADMIN, ENTERPRISE, sam_serial, terminal_number
from tests.secretwatch import register

TERMINAL, SAM = terminal_number(777), sam_serial(777)
OPERATOR_SECRET = "the issuer's own secret"
HOLDER_PIN = "246824"
register(OPERATOR_SECRET, "an operator's secret")
RANDOM = Random(21)


class Site:
    """A world with an HTTP server that can be stopped and started, and what an issuing terminal needs."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        with world.db.write() as tx:
            registry.register(tx, ADMIN, ENTERPRISE, TERMINAL, TerminalKind.ISSUING, "issuing desk")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, TERMINAL, SAM)
            self.token = tokens.add(tx, ADMIN, ENTERPRISE, TERMINAL, 1, RANDOM.randbytes)[1]
            credential = Credential.make(OPERATOR_SECRET, RANDOM.randbytes, QUICK)
            operators.add_first(tx, ENTERPRISE, "anna", Role.ADMINISTRATOR, credential)
        register(self.token, "a web token")
        register(urlsafe_b64decode(self.token + "="), "a web token's bytes")
        self.sam = SamCard.vendor_fresh(TRANSPORT_KEY, world.random_bytes)
        plan = SamPlan("sam", SAM, TERMINAL, ENTERPRISE, SamKind.ISSUING, (1,), START, EXPIRY)
        assert world.office.initial is not None
        make_sam(self.sam, plan, world.office.initial, world.store, MemorySteps())
        self.sam.reset()
        self.port = 0
        self.said: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.secrets = {"operator secret": OPERATOR_SECRET, "holder pin": HOLDER_PIN}
        self.terminals: list[Issuing] = []
        self.lines: list[HttpOffice] = []

    @contextmanager
    def served(self, office: Office | None = None) -> Iterator[None]:
        """The office answers at ``port``, with nothing of acts before."""
        desks = Desks(office or self.world.office, self.world.store.using)
        server = web.http_server(web.Web(self.world.db, ENTERPRISE, desks.verbs()).app())
        try:
            with running(server) as self.port:
                yield
                desks.close()
        finally:
            desks.close()

    def line(self) -> HttpOffice:
        info = SamInfo(SAM, TERMINAL, ENTERPRISE)
        self.lines.append(HttpOffice(f"http://127.0.0.1:{self.port}", self.token, info, cast("Journal", None)))
        return self.lines[-1]

    def terminal(self, connect: Callable[[], Any] | None = None) -> Issuing:
        path = self.folder / f"terminal-{len(self.terminals)}.db"
        journal = Journal(path, ENTERPRISE, TERMINAL, SAM, self.world.clock)
        rules = DeskRules(labels=self.folder / "labels.txt", pin_sheet=self.folder / "pins.csv")
        config = TerminalConfig(1, Kind.ISSUING, ENTERPRISE, path, path, bytes(32), desk=rules)
        sams = OneSam(IssuingSam(self.sam))
        made = Issuing(config, journal, NoList(), sams, self.world.clock, RANDOM.randbytes, MemoryScreen())
        made.set_office(connect or self.line, rules)
        self.terminals.append(made)
        return made

    def post(self, terminal: Issuing | None = None, readers: list[Reader] | None = None) -> IssuingPost:
        return IssuingPost(
            terminal or self.terminal(), "anna", self.secrets.__getitem__, readers or [], self.said.append,
            self.events.append,
        )  # fmt: skip

    def close(self) -> None:
        for terminal in self.terminals:
            terminal.journal.close()
        for line in self.lines:
            line.close()


class NoList:
    """An issuing terminal lets nobody through: it needs no list."""

    version, created_ms = 0, None

    def lookup(self, card_serial: bytes) -> None:
        return None


class Pile:
    """Cards that somebody puts on a reader one after another."""

    def __init__(self, name: str, cards: list[Card]) -> None:
        self.name, self.cards = name, cards
        self.at = 0

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        now = Presence(self.at < len(self.cards), self.at)
        if now == known:
            time.sleep(0.01)
        return now

    def connect(self) -> Transport:
        self.at += 1
        self.cards[self.at - 1].reset()
        return self.cards[self.at - 1]


class Counted(Decorator):
    """A card that keeps what it was told, and can be pulled away."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.told: list[bytes] = []

    def transceive(self, command: bytes) -> bytes:
        self.told.append(command)
        return super().transceive(command)


class BadLine:
    """A line whose n-th call is lost: before the office hears it, or its answer on the way back."""

    def __init__(
        self, line: HttpOffice, lost_at: int, *, heard: bool, act: Callable[[], object] = lambda: None,
        for_good: bool = False,
    ) -> None:  # fmt: skip
        self.line, self.left, self.heard, self.act, self.for_good = line, lost_at, heard, act, for_good

    def call(self, verb: str, **fields: str | int) -> Fields:
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.for_good):
            return self.line.call(verb, **fields)
        if self.left == 0:
            if self.heard:
                self.line.call(verb, **fields)
            self.act()
        raise TransportError("the line broke")
