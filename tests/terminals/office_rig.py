"""A back office on a real socket and recharge terminals that call it, over a line that a test can break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from backoffice import registry, tokens
from backoffice.database import Database
from backoffice.hostcalls import HostCalls
from backoffice.registry import TerminalKind
from backoffice.web import Web, http_server
from cardlib.crypto import make_key
from cardlib.errors import OutcomeUnknown, Refused, TransportError
from cardlib.sam import CardSam
from cardlib.transport import Transport
from keymgmt.handle import KeyHandle
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import MemorySteps
from simulator.card import Card
from simulator.rig import EXPIRY, START
from simulator.sam import SamCard
from terminals.config import Kind, TerminalConfig
from terminals.journal import Journal
from terminals.office import HttpOffice
from terminals.policy import Rules
from terminals.pos import Pos
from terminals.recharge import Recharge
from terminals.runtime import Receipt, Terminal
from terminals.screen import MemoryScreen
from tests.backoffice.adms_rig import running
from tests.backoffice.desk import TRANSPORT_KEY, World
from tests.backoffice.kit import ADMIN, ENTERPRISE, sam_serial, terminal_number
from tests.secretwatch import register
from tests.terminals.shop import FixedLists, OneSam

KINDS: dict[Kind, type[Terminal]] = {Kind.RECHARGE: Recharge, Kind.POS: Pos}


class Line(HttpOffice):
    """The line to the office: a call's question or its answer can get lost, once."""

    calls = 0
    lose_question = lose_answer = 0
    lost: Callable[[], None] = staticmethod(lambda: None)

    def _once(self, verb: str, body: bytes) -> tuple[int, bytes]:
        self.calls += 1
        if self.calls == self.lose_question:
            self.lost()
            raise TimeoutError
        answer = super()._once(verb, body)
        if self.calls == self.lose_answer:
            self.lost()
            raise TimeoutError
        return answer

    def break_at(self, call: int, *, answer: bool) -> None:
        """Lose the question or the answer of the call so many from now."""
        self.lose_question, self.lose_answer = (0, self.calls + call) if answer else (self.calls + call, 0)


class Site:
    """The office of a world, served; terminals by number."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._stack = ExitStack()
        self._server = ExitStack()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Serve, on the port that was served before."""
        calls = HostCalls(self.world.new_office(), self.world.store.using)
        web = Web(self.world.db, ENTERPRISE, calls.verbs())
        self.port = self._server.enter_context(running(http_server(web.app()), self.port))

    def stop(self) -> None:
        """As a kill does: nothing is remembered but what is in the databases."""
        self._server.close()

    def restart(self) -> None:
        """The server's process ends, and another begins."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Close all terminals and the server."""
        self._stack.close()
        self._server.close()

    def token(self, number: int) -> str:
        """A token of a terminal."""
        with self.world.db.write() as tx:
            made = tokens.add(tx, ADMIN, ENTERPRISE, terminal_number(number), 30, self.world.random_bytes)[1]
        register(made, "a terminal's token")
        return made

    def terminal(self, number: int, kind: Kind = Kind.RECHARGE, rules: Rules | None = None) -> Terminal:
        """A terminal with its SAM, journal and line to the office, its shift open."""
        world, name, serial = self.world, terminal_number(number), sam_serial(number)
        sam = SamCard.vendor_fresh(TRANSPORT_KEY, world.random_bytes)
        plan = SamPlan("sam", serial, name, ENTERPRISE, SamKind(kind.value), (1,), START, EXPIRY)
        make_sam(sam, plan, KeyHandle(make_key(TRANSPORT_KEY), "vendor"), world.store, MemorySteps())
        with world.db.write() as tx:
            registry.register(tx, ADMIN, ENTERPRISE, name, TerminalKind(kind.value), f"terminal {number}")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, name, serial)
        opened = CardSam(sam)
        path = self.folder / f"terminal-{number}.db"
        journal = self._stack.enter_context(Journal(path, ENTERPRISE, name, serial, world.clock))
        line = Line(f"http://127.0.0.1:{self.port}", self.token(number), opened.info(), journal)
        self._stack.callback(line.close)
        config = TerminalConfig(1, kind, ENTERPRISE, path, path, bytes(32), rules=rules or Rules(ENTERPRISE))
        lists = FixedLists(created_ms=world.now)
        made = KINDS[kind](
            config, journal, lists, OneSam(opened), world.clock, world.random_bytes, MemoryScreen(), line
        )  # fmt: skip
        made.open_shift("zhang")
        return made

    def recharger(self, number: int, rules: Rules | None = None) -> Recharge:
        """A recharge terminal."""
        made = self.terminal(number, Kind.RECHARGE, rules)
        assert isinstance(made, Recharge)
        return made

    def collect(self, *terminals: Terminal) -> None:
        """All journals at the office, settled."""
        for terminal in terminals:
            line_of(terminal).send_journal()
        self.world.settle()


def line_of(terminal: Terminal) -> Line:
    """A terminal's line to the office."""
    assert isinstance(terminal.office, Line)
    return terminal.office


def patiently(card: Card, act: Callable[[Transport], Receipt], taps: int = 5) -> Receipt:
    """Present a card until it is done, whatever breaks on the way."""
    for _ in range(taps):
        card.power.cut_at(0)
        card.reset()
        try:
            return act(card)
        except (OutcomeUnknown, TransportError):
            continue
        except Refused as e:
            if e.reason != "host_unreachable":
                raise
    raise AssertionError("it never ends")


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A site in a folder, closed at the end."""
    world = World(folder)
    made = Site(folder, world)
    try:
        yield made
    finally:
        made.close()
        world.close()


__all__ = ["Database", "Line", "Site", "line_of", "patiently", "site"]
