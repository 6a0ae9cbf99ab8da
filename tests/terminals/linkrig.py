"""A terminal, an installer, and a line between them that keeps simulated time, loses bytes by seed, or is cut."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cardlib.crypto.noise import StaticKey, fingerprint
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ReaderLost
from cardlib.wire.authority import SignedFile, Token
from terminals.guard import Guard, PairingFile
from terminals.installer import Client, Installer
from terminals.journal import Journal
from terminals.link import Desk, Master, Slave
from terminals.lists import TerminalLists
from terminals.services import ConfigStore, FileStore, Host
from terminals.software import Firmware, ReaderKeys
from tests.secretwatch import register

NOW = 1_790_000_000_000
DAY_MS = 86_400_000
CODE = "27182818"
AUTHORITY = SigningKey(random.Random(11).randbytes(32))
ROOT = SigningKey(random.Random(12).randbytes(32))
INSTALLER = StaticKey(random.Random(13).randbytes(32))
OTHER = StaticKey(random.Random(14).randbytes(32))
TERMINAL = StaticKey(random.Random(15).randbytes(32))
VERBS = ("provision", "param", "clock", "push", "collect", "diagnose", "pair")
CONFIG = f"""version = VERSION
kind = "pos"
enterprise_id = 1001
journal = "j.db"
lists = "l.db"
list_root_key = "{"ab" * 32}"
"""
for _key in (INSTALLER, OTHER, TERMINAL):
    register(_key.private, "an X25519 key of the link's tests")


class Line:
    """Simulated time and bytes: at ``baud`` each byte takes its time, ``turn_s`` passes before each burst.

    ``spoil`` sees each burst and returns what arrives of it. After ``cut_at`` bytes in all the line is gone.
    """

    def __init__(
        self,
        baud: int = 0,
        turn_s: float = 0.0,
        spoil: Callable[[bytes], bytes] | None = None,
        cut_at: int | None = None,
    ) -> None:
        self.now = 1000.0
        self.baud, self.turn_s, self.spoil, self.cut_at = baud, turn_s, spoil, cut_at
        self.passed = 0
        self.slaves: list[Slave] = []
        self.ends: list[End] = []
        self.free_s = 0.0
        self.speeds: dict[int, int] = {}

    def clock(self) -> float:
        return self.now

    def end(self, *, leads: bool = False) -> End:
        made = End(self, leads, self.baud)
        self.ends.append(made)
        return made

    def send(self, sender: End, data: bytes) -> None:
        if self.cut_at is not None:
            data = data[: max(self.cut_at - self.passed, 0)]
        self.passed += len(data)
        heard = self.spoil(data) if self.spoil else data
        start = max(self.now + self.turn_s, self.free_s)
        per_byte = 10 / sender.baud if sender.baud else 0.0
        self.free_s = start + per_byte * len(heard)
        for end in self.ends:
            if end is not sender and (end.baud == sender.baud or not self.baud):
                end.queue.append((start, per_byte, heard))

    @property
    def cut(self) -> bool:
        return self.cut_at is not None and self.passed >= self.cut_at

    def step(self, reader: End) -> None:
        """Let the slaves work, then let time pass to the next thing that happens."""
        for slave in self.slaves:
            slave.poll()
        due = [
            end.queue[0][0] + end.queue[0][1] * min(len(end.queue[0][2]), 64)
            for end in self.ends
            if end.queue and (end is reader or not end.leads)
        ]
        self.now = max(min([*due, self.now + 0.005]), self.now + (0.0 if due and min(due) <= self.now else 0.0002))


@dataclass(eq=False)
class End:
    """One end of a line."""

    line: Line
    leads: bool
    baud: int
    queue: deque[tuple[float, float, bytes]] = field(default_factory=deque)

    def write(self, data: bytes) -> None:
        if self.leads and self.line.cut:
            raise ReaderLost("cut")
        self.line.send(self, data)

    def read(self) -> bytes:
        if self.leads:
            if self.line.cut and not self.queue:
                raise ReaderLost("cut")
            self.line.step(self)
        out = b""
        while self.queue and self.queue[0][0] <= self.line.now:
            start, per_byte, data = self.queue.popleft()
            count = len(data) if not per_byte else min(int((self.line.now - start) / per_byte + 1e-6), len(data))
            out += data[:count]
            if count < len(data):
                self.queue.appendleft((start + count * per_byte, per_byte, data[count:]))
                break
        return out

    def set_baud(self, baud: int) -> None:
        self.baud = baud


class WallClock:
    """The terminal's clock."""

    def __init__(self) -> None:
        self.ms = NOW
        self.back = False

    def now_ms(self) -> int:
        return self.ms

    def set_ms(self, utc_ms: int) -> None:
        self.ms = utc_ms


class Terminal:
    """A terminal on disk, restarted by ``start``."""

    def __init__(self, folder: Path, serial: str = "POS-0001", *, entries: int = 0, key: StaticKey = TERMINAL) -> None:
        self.folder, self.serial, self.key = folder, serial, key
        folder.mkdir(parents=True, exist_ok=True)
        self.wall = WallClock()
        self.journal = Journal(
            folder / "j.db", 1001, bytes(5) + b"\x42", bytes.fromhex("03010000000009FF"), self.wall.now_ms
        )
        for number in range(entries):
            self.journal.note("test", f"entry {number} " + "x" * 60)
        self.lists = TerminalLists(folder / "l.db", 1001, ROOT.public, self.journal)
        self.pairing = PairingFile(folder / "pairing.json")
        if not self.pairing.state.pinned:
            self.pairing.save(code=CODE)
        self.resets = 0
        self.start()

    def start(self) -> None:
        """Power on: nothing but the disk is remembered."""
        self.pairing = PairingFile(self.folder / "pairing.json")
        files = FileStore(self.folder / "files", 1 << 20, frozenset({"config", "list", "firmware", "keys"}))
        settings = ConfigStore(self.folder / "config.signed", self.serial)
        if authority := bytes.fromhex(self.pairing.state.authority):
            settings.open(authority)
        self.host = Host(
            self.serial, "OC-POS", "0.1.0", self.wall, files, self.key, SigningKey(bytes(range(9, 41))), self.journal,
            self.lists, settings, lambda: bytes.fromhex(self.pairing.state.authority),
            tests={"card": lambda: "card seen"}, reset=self._reset,
            firmware=Firmware(self.folder / "firmware", (self.serial, "OC-POS")),
            reader_keys=ReaderKeys(self.folder, self.serial, lambda: self.key.private),
        )  # fmt: skip

    def _reset(self) -> None:
        self.resets += 1

    def connect(self, line: Line, address: int = 5, seed: int = 1, gap_s: float = 0.02) -> Guard:
        guard = Guard(self.host, self.pairing, address, line.clock, random.Random(seed).randbytes)
        plug(line, guard, address, gap_s)
        return guard

    @property
    def label(self) -> bytes:
        return fingerprint(self.key.public)


def plug(line: Line, desk: Desk, address: int, gap_s: float = 0.02) -> Slave:
    slave = Slave(line.end(), line.clock, address, desk, gap_s)
    line.slaves.append(slave)
    return slave


def token(static: StaticKey = INSTALLER, **changes: object) -> bytes:
    """A token of the authority."""
    values: dict[str, object] = {
        "x25519": static.public, "ed25519": bytes(32), "name": "An", "sites": ("east",), "verbs": VERBS,
        "not_before_ms": NOW - DAY_MS, "not_after_ms": NOW + 20 * DAY_MS, "token_id": b"tok1",
    }  # fmt: skip
    authority = changes.pop("authority", AUTHORITY)
    assert isinstance(authority, SigningKey)
    return Token(**{**values, **changes}).encode(authority)  # type: ignore[arg-type]


def installer(static: StaticKey = INSTALLER, **changes: Any) -> Installer:
    return Installer(static, token(static, **changes))


def client(line: Line, serial: str = "POS-0001", address: int = 5, seed: int = 2, gap_s: float = 0.02) -> Client:
    rng = random.Random(seed)
    return Client(
        Master(line.end(leads=True), line.clock, rng.randbytes, gap_s), address, serial, line.clock, rng.randbytes
    )


def config_file(version: int = 1, serial: str = "POS-0001", **changes: object) -> bytes:
    """A signed configuration."""
    values: dict[str, object] = {
        "kind": "config", "serial": serial, "version": version, "created_ms": NOW,
        "body": CONFIG.replace("VERSION", str(version)).encode(),
    }  # fmt: skip
    authority = changes.pop("authority", AUTHORITY)
    assert isinstance(authority, SigningKey)
    return SignedFile(**{**values, **changes}).encode(authority)  # type: ignore[arg-type]


def paired(terminal: Terminal, line: Line, seed: int = 2) -> Client:
    """A client in the session of a first pairing, the authority pinned."""
    terminal.connect(line)
    one = client(line, seed=seed)
    one.pair(installer(), CODE, terminal.label)
    return one


def losing(seed: int, rate: float) -> Callable[[bytes], bytes]:
    """Each byte may be lost, changed, doubled; now and then a whole burst is."""
    rng = random.Random(seed)

    def spoil(data: bytes) -> bytes:
        if rng.random() < 20 * rate:
            return b""
        out = bytearray()
        for byte in data:
            luck = rng.random()
            if luck < rate / 3:
                continue
            out.append(byte ^ (1 << rng.randrange(8)) if luck < rate * 2 / 3 else byte)
            if luck > 1 - rate / 3:
                out.append(byte)
        return bytes(out)

    return spoil
