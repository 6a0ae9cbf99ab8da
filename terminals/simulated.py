"""``onecard sim terminal``: a terminal's software behind a pseudo-terminal, without its hardware.

Its folder holds all that outlives a restart: who it is, pairing, configuration, journal, list and files.
``FOLDER/port`` always leads to the pseudo-terminal in use.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click

from cardlib.crypto.noise import StaticKey, fingerprint
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError, CryptoError, FormatError
from cardlib.serialport import PtyPort
from cardlib.wire.link import good_serial, label_text
from console import Noun, Session, pass_session
from terminals.config import Kind, parse
from terminals.guard import Guard, PairingFile
from terminals.journal import Journal
from terminals.link import Slave
from terminals.lists import TerminalLists
from terminals.services import ConfigStore, FileStore, Host

MAX_FILE = 1 << 24
FILES = frozenset({"config", "list", "firmware"})
SOFTWARE = "0.1.0"


@click.group(cls=Noun)
def command() -> None:
    """Simulated cards and SAMs, in the slots of a virtual PC/SC reader or in image files."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What the factory wrote into a terminal: keys in hex, the label's code, its place in an enterprise."""

    serial: str
    code: str
    x25519: str
    ed25519: str
    enterprise: int
    terminal: str
    sam: str

    def __repr__(self) -> str:
        return f"<_Made {self.serial}>"

    @classmethod
    def at(cls, folder: Path, serial: str, enterprise: int) -> Self:
        """Read, or make at the first start. Raises ConfigError."""
        path = folder / "made.json"
        if path.exists():
            try:
                return cls(**json.loads(path.read_bytes()))
            except (ValueError, TypeError) as e:
                raise ConfigError(f"{path} is damaged: take a new folder") from e
        number = secrets.token_bytes(3).hex()
        made = cls(
            serial, f"{secrets.randbelow(10**8):08}", secrets.token_hex(32), secrets.token_hex(32), enterprise,
            "310000" + number, "0301000000" + number,
        )  # fmt: skip
        for target, text in ((path, json.dumps(asdict(made))), (folder / "code", made.code + "\n")):
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(text)
        return made


class _Clock:
    """The computer's clock and a difference, which outlives a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._off_ms = int(path.read_text()) if path.exists() else 0

    def now_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000 + self._off_ms

    def set_ms(self, utc_ms: int) -> None:
        """Set it."""
        self.set_off(utc_ms - time.time_ns() // 1_000_000)

    def set_off(self, off_ms: int) -> None:
        """Be so much ahead of the computer."""
        beside = self._path.with_name("clock.new")
        beside.write_text(str(off_ms))
        beside.replace(self._path)
        self._off_ms = off_ms


class _Plug:
    """A port whose plug is pulled once so many bytes have left: the process ends there and then."""

    def __init__(self, port: PtyPort, cut_after: int | None) -> None:
        self._port, self._left = port, cut_after
        self.baud = port.baud
        self.read, self.set_baud = port.read, port.set_baud

    def write(self, data: bytes) -> None:
        """Send what may still leave."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                os._exit(137)  # as a kill: nothing is tidied up
        self._port.write(data)


class Simulated:
    """The terminal's software over a folder; :meth:`start` is power on, nothing but the disk is remembered."""

    def __init__(self, folder: Path, made: _Made, kind: str, site: str) -> None:
        self.folder, self.made, self.kind, self.site = folder, made, kind, site
        self.clock = _Clock(folder / "clock")
        self.static = StaticKey(bytes.fromhex(made.x25519))
        terminal, sam = bytes.fromhex(made.terminal), bytes.fromhex(made.sam)
        self.journal = Journal(folder / "journal.db", made.enterprise, terminal, sam, self.clock.now_ms)
        self.pairing = PairingFile(folder / "pairing.json")
        if self.pairing.state == type(self.pairing.state)():
            self.pairing.save(code=made.code)
        self.stale = False
        self.start()

    def start(self) -> None:
        """Open what is on disk and be a terminal."""
        self.stale = False
        pairing, made = self.pairing, self.made
        settings = ConfigStore(self.folder / "config.signed", made.serial)
        self._authority = pairing.state.authority
        if authority := bytes.fromhex(self._authority):
            try:
                settings.open(authority)
            except (CryptoError, FormatError):  # another authority's: none is in force until this one gives its own
                settings.signed = None
        root_key = parse(settings.signed.body.decode()).list_root_key if settings.signed else bytes(32)
        self._etag = settings.etag
        self.host = Host(
            made.serial, f"OC-{self.kind.upper()}"[:16], SOFTWARE, self.clock,
            FileStore(self.folder / "files", MAX_FILE, FILES), self.static, SigningKey(bytes.fromhex(made.ed25519)),
            self.journal, TerminalLists(self.folder / "list.db", made.enterprise, root_key, self.journal), settings,
            lambda: bytes.fromhex(pairing.state.authority), self.site,
            tests={"screen": lambda: "a simulated screen showed its test picture"}, reset=self._reset,
        )  # fmt: skip

    def _reset(self) -> None:
        self.stale = True

    def reset_key(self) -> None:
        """The reset key: the label's code counts again, and whoever was paired is forgotten."""
        self.pairing.save(code=self.made.code, failures=0, failed_ms=0, pinned=(), authority="")
        self.start()

    def renew(self, guard: Guard) -> None:
        """Take up a configuration, an authority or a restart that came over the line."""
        changed = (self.host.settings.etag, self.pairing.state.authority) != (self._etag, self._authority)
        if changed or self.stale:
            self.start()
            guard.host = self.host


def _serve(one: Simulated, port: PtyPort, address: int, cut_after: int | None) -> None:
    guard = Guard(one.host, one.pairing, address, time.monotonic, os.urandom)
    slave = Slave(_Plug(port, cut_after), time.monotonic, address, guard, port.gap_s)
    while True:
        slave.poll()
        one.renew(guard)


def _link(folder: Path, name: str) -> Path:
    link, beside = folder / "port", folder / "port.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(name)
    beside.replace(link)
    return link


@command.command("terminal")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pty", is_flag=True, required=True, help="Be at the other end of a pseudo-terminal.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in Kind]), default="pos", show_default=True, help="What it is for."
)
@click.option("--serial", default="SIM-0001", show_default=True, help="On its label, at the first start.")
@click.option("--address", type=click.IntRange(0, 126), default=1, show_default=True, help="On the line.")
@click.option("--site", default="", help="Where it stands; tokens for another site are refused.")
@click.option("--reset", is_flag=True, help="Press the reset key: the label's code counts again.")
@click.option("--clock-off", type=int, help="Set its clock so many seconds ahead of (or, below 0, behind) this one.")
@click.option("--entries", type=click.IntRange(0, 100_000), default=0, help="Write so many notes into the journal.")
@click.option("--cut-after", type=click.IntRange(min=0), help="Pull the plug when so many bytes were sent.")
@pass_session
def terminal(session: Session, /, folder: Path, serial: str, **wanted: Any) -> None:  # noqa: ANN401  # click's options
    """Be a terminal with all its data in FOLDER; prints label and port. FOLDER/code has the label's code."""
    session.refuse_dry_run("a terminal runs or not")
    if not good_serial(serial):
        raise ConfigError(f"{serial!r} is no serial: 1 to 24 letters, digits, points, hyphens")
    folder.mkdir(parents=True, exist_ok=True)
    made = _Made.at(folder, serial, session.enterprise or 1001)
    one = Simulated(folder, made, wanted["kind"], wanted["site"])
    if wanted["clock_off"] is not None:
        one.clock.set_off(1000 * wanted["clock_off"])
    if wanted["reset"]:
        one.reset_key()
    for number in range(wanted["entries"]):
        one.journal.note("test", f"entry {number}")
    port = session.keep(PtyPort())
    label = label_text(fingerprint(one.static.public))
    data = {"port": port.name, "link": _link(folder, port.name), "serial": made.serial, "code": made.code}
    session.emit({**data, "fingerprint": label})
    _serve(one, port, wanted["address"], wanted["cut_after"])
