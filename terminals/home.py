"""A whole terminal in one folder: who it is, pairing, configuration, journal, list and files outlive a restart.

:class:`Home` is the folder, :class:`Unit` the terminal at work over it: fresh from unpacking it serves only the
installer's line; a signed configuration makes it what it says, and a newer one takes effect between two taps.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from cardlib.crypto.noise import StaticKey, fingerprint
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError, Conflict, OneCardError, Refused, TransportError
from cardlib.profile import Purpose
from cardlib.sam import CardSam, SamInfo, SamPool
from cardlib.transport import Transport
from cardlib.wire.link import good_serial, label_text
from terminals.config import Kind, TerminalConfig, parse
from terminals.guard import Guard, PairingFile
from terminals.identity import read_json, replace_file
from terminals.journal import Journal
from terminals.link import Port, Slave
from terminals.lists import TerminalLists
from terminals.posts.base import Post
from terminals.runtime import Terminal
from terminals.screen import Notice, Say, Screen
from terminals.services import ConfigStore, FileStore, Host
from terminals.software import Firmware, ReaderKeys

MAX_FILE = 1 << 24
FILES = frozenset({"config", "list", "firmware", "keys"})
SOFTWARE = "0.1.0"
TIMER_S = 0.005
"""How often a line is looked at while an answer waits for its moment, or where its port can't be waited for."""
REOPEN_S = 2.0
"""How long after a port was lost it is opened again."""


@dataclass(frozen=True, slots=True)
class Made:
    """What the factory wrote into a terminal: keys in hex, the label's code; of its SAM who it is, once it was seen."""

    serial: str
    model: str
    code: str
    x25519: str
    ed25519: str
    enterprise: int
    terminal: str
    sam: str

    def __repr__(self) -> str:
        return f"<Made {self.serial}>"

    @property
    def sam_info(self) -> SamInfo:
        """Who its SAM is."""
        return SamInfo(bytes.fromhex(self.sam), bytes.fromhex(self.terminal), self.enterprise)

    @classmethod
    def at(cls, folder: Path, serial: str, model: str, sam: SamInfo | None, enterprise_id: int) -> Self:
        """Read, or make at the first start; without a SAM its numbers are invented.

        Raises ConfigError, Conflict when the SAM in the terminal is another terminal's.
        """
        path = folder / "made.json"
        if not path.exists():
            return cls._new(folder, serial, model, sam, enterprise_id)
        try:
            made = cls(**read_json(path))
        except (OneCardError, TypeError) as e:
            raise ConfigError(f"{path} is damaged: take a new folder") from e
        if sam is None or made.sam == sam.serial.hex():
            return made
        if (made.enterprise, made.terminal) != (sam.enterprise_id, sam.terminal.hex()):
            raise Conflict(f"the SAM is that of terminal {sam.terminal.hex()}, not of {made.terminal}: put its own in")
        made = replace(made, sam=sam.serial.hex())
        _write_secret(path, json.dumps(asdict(made)))
        return made

    @classmethod
    def _new(cls, folder: Path, serial: str, model: str, sam: SamInfo | None, enterprise_id: int) -> Self:
        if not good_serial(serial):
            raise ConfigError(f"{serial!r} is no serial: 1 to 24 letters, digits, points, hyphens")
        folder.mkdir(parents=True, exist_ok=True)
        number = secrets.token_bytes(3).hex()
        sam = sam or SamInfo(bytes.fromhex("0301000000" + number), bytes.fromhex("310000" + number), enterprise_id)
        made = cls(
            serial, model, f"{secrets.randbelow(10**8):08}", secrets.token_hex(32), secrets.token_hex(32),
            sam.enterprise_id, sam.terminal.hex(), sam.serial.hex(),
        )  # fmt: skip
        _write_secret(folder / "code", made.code + "\n")
        _write_secret(folder / "made.json", json.dumps(asdict(made)))
        return made


def _write_secret(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class HomeClock:
    """The computer's clock and a difference, which outlives a restart."""

    def __init__(self, path: Path) -> None:
        self._path, self._back = path, path.with_name(path.name + ".back")
        self._off_ms = int(path.read_text()) if path.exists() else 0

    def now_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000 + self._off_ms

    def set_ms(self, utc_ms: int) -> None:
        """Set it."""
        self.set_off(utc_ms - time.time_ns() // 1_000_000)

    @property
    def back(self) -> bool:
        """See ``terminals.services.Clock``."""
        return self._back.exists()

    @back.setter
    def back(self, back: bool) -> None:
        if back:
            replace_file(self._back, b"")
        else:
            self._back.unlink(missing_ok=True)

    def set_off(self, off_ms: int) -> None:
        """Be so much ahead of the computer."""
        replace_file(self._path, str(off_ms).encode())
        self._off_ms = off_ms


class Home:
    """The terminal's folder; :meth:`start` is power on, nothing but the disk is remembered. One process has it open.

    ``tests`` are what ``diagnose`` runs; ``sams`` None for a terminal without a SAM.
    """

    def __init__(self, folder: Path, made: Made, site: str = "", sams: SamPool | None = None) -> None:
        self.folder, self.made, self.site, self.sams = folder, made, site, sams
        self.tests: dict[str, Callable[[], str]] = {}
        self.trouble = ""
        self.clock = HomeClock(folder / "clock")
        self.static = StaticKey(bytes.fromhex(made.x25519))
        terminal, sam = bytes.fromhex(made.terminal), bytes.fromhex(made.sam)
        self.journal = Journal(folder / "journal.db", made.enterprise, terminal, sam, self.clock.now_ms)
        self.pairing = PairingFile(folder / "pairing.json")
        if self.pairing.state == type(self.pairing.state)():
            self.pairing.save(code=made.code)
        self.start()

    def start(self) -> None:
        """Open what is on disk and be a terminal."""
        self._stale, self.trouble, self.config = False, "", None
        pairing, made = self.pairing, self.made
        settings = ConfigStore(self.folder / "config.signed", made.serial)
        self._authority = pairing.state.authority
        if authority := bytes.fromhex(self._authority):
            try:
                settings.open(authority)
                self.config = self._parsed(settings)
            except OneCardError as e:  # another authority's: none is in force until this one gives its own
                settings.signed = None
                self.trouble = f"the configuration is not used: {e}"
        root_key = self.config.list_root_key if self.config else bytes(32)
        self.lists = TerminalLists(self.folder / "list.db", made.enterprise, root_key, self.journal)
        self.trouble = self.trouble or self.lists.trouble
        self._etag = settings.etag
        firmware = Firmware(self.folder / "firmware", (made.serial, made.model))
        keys = ReaderKeys(self.folder, made.serial, lambda: bytes.fromhex(made.x25519))
        try:
            if authority:
                keys.open(authority)
        except OneCardError as e:
            self.trouble = self.trouble or f"the readers' keys are not used: {e}"
        software = f"{SOFTWARE}, firmware {firmware.current}" if firmware.current else SOFTWARE
        self.host = Host(
            made.serial, made.model, software, self.clock, FileStore(self.folder / "files", MAX_FILE, FILES),
            self.static, SigningKey(bytes.fromhex(made.ed25519)), self.journal, self.lists, settings,
            lambda: bytes.fromhex(pairing.state.authority), self.site, tests=self.tests, reset=self._reset,
            sam=self._sam if self.sams else None, keep_ms=self.config.keep_ms if self.config else None,
            firmware=firmware, reader_keys=keys,
        )  # fmt: skip

    config: TerminalConfig | None
    """What is in force; None before the first configuration."""

    def _parsed(self, settings: ConfigStore) -> TerminalConfig | None:
        """The configuration with this folder's own files, whatever files it names."""
        if settings.signed is None:
            return None
        read = parse(settings.signed.body.decode())
        self.journal.limit_bytes = read.journal_limit_bytes
        return replace(read, journal=self.journal.path, lists=self.folder / "list.db")

    def _sam(self) -> tuple[bytes, bytes, dict[str, bytes]]:
        """The SAM in the terminal as it is now: serial, terminal number, check value of each key."""
        assert self.sams is not None
        with self.sams.lease() as sam:
            named = {f"{_key_name(key.purpose)}-{key.version}": key.kcv for key in sam.keys()}  # noqa: SIM118  # no dict
            return sam.info().serial, sam.info().terminal, named

    def _reset(self) -> None:
        self._stale = True

    def reset_key(self) -> None:
        """The reset key: the label's code counts again, and whoever was paired is forgotten."""
        self.pairing.save(code=self.made.code, failures=0, failed_ms=0, pinned=(), authority="")
        self.start()

    def renew(self) -> bool:
        """Take up a configuration, an authority or a restart that came over the line; whether there was one."""
        changed = (self.host.settings.etag, self.pairing.state.authority) != (self._etag, self._authority)
        if changed or self._stale:
            self.start()
            return True
        return False

    def label(self) -> dict[str, Any]:
        """What is printed on the device, but the code, which stands in the folder's file ``code``."""
        return {"serial": self.made.serial, "fingerprint": label_text(fingerprint(self.static.public))}

    def close(self) -> None:
        """Let the journal go."""
        self.journal.close()


def _key_name(purpose: int) -> str:
    try:
        return Purpose(purpose).name.lower()
    except ValueError:
        return f"{purpose:02x}"


class OpenPort(Port, Protocol):
    """A line that can be waited for and closed."""

    gap_s: float

    def fileno(self) -> int | None:
        """What ``select`` waits for, None where nothing can be waited for."""

    def close(self) -> None:
        """Let it go."""


class Waiting:
    """The post of a terminal that is not provisioned yet, or can't be what its configuration says."""

    usage = "only an installer can make it work"

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def serve(self, card: Transport) -> dict[str, Any]:  # noqa: ARG002  # every card is refused alike
        """No card is served."""
        self._screen.show(Notice(Say.NOT_PROVISIONED))
        return {"event": "refused", "reason": "not_provisioned"}

    def order(self, words: list[str]) -> bool:  # noqa: ARG002  # nothing is understood
        """No line is."""
        return False

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """Nothing was begun."""


class Unit:
    """A terminal over its home, its line served between two taps (``terminals.run.Line``).

    ``make_post`` makes what serves cards from a configuration; ``open_port`` opens the line, None for none.
    """

    def __init__(
        self,
        home: Home,
        address: int,
        screen: Screen,
        make_post: Callable[[TerminalConfig, Home], tuple[Terminal, Post]],
        open_port: Callable[[], OpenPort] | None,
        note: Callable[[str], None],
    ) -> None:
        self._home, self._address, self._screen = home, address, screen
        self._make_post, self._open_port, self._note = make_post, open_port, note
        self._guard = Guard(home.host, home.pairing, address, time.monotonic, os.urandom)
        self._slave: Slave | None = None
        self._port: OpenPort | None = None
        self._lost_s = 0.0
        if open_port is not None:
            self._open(open_port)

    def _open(self, open_port: Callable[[], OpenPort]) -> None:
        self._port = port = open_port()
        self._slave = Slave(port, time.monotonic, self._address, self._guard, port.gap_s)

    def made(self) -> tuple[Terminal, Post]:
        """The terminal and its post by the configuration in force. It waits when there is none that it can be."""
        home = self._home
        if home.trouble:
            self._note(home.trouble)
        if home.config is not None:
            try:
                return self._make_post(home.config, home)
            except (ConfigError, Conflict, Refused, TransportError) as e:
                self._note(str(e))
        nothing = TerminalConfig(0, Kind.POS, home.made.enterprise, home.journal.path, home.folder, bytes(32))
        waiting = Terminal(
            nothing, home.journal, home.lists, home.sams or SamPool([]), home.clock.now_ms, os.urandom, self._screen
        )
        return waiting, Waiting(self._screen)

    def descriptors(self) -> list[int]:
        """What to wait for beside the keyboard."""
        number = self._port.fileno() if self._port else None
        return [] if number is None else [number]

    def wait_s(self, longest_s: float) -> float:
        """How long a turn may wait for something to come."""
        if self._slave is None or self._port is None:
            return longest_s
        return TIMER_S if self._slave.waiting or self._port.fileno() is None else longest_s

    def poll(self) -> bool:
        """Answer what has come on the line; True when the terminal became another one. A lost line is opened again."""
        if self._slave is None or self._port is None:
            if self._open_port is not None and time.monotonic() - self._lost_s > REOPEN_S:
                self._try_open(self._open_port)
            return False
        try:
            self._slave.poll()
        except TransportError as e:
            self._note(str(e))
            self._port.close()
            self._slave = self._port = None
            self._lost_s = time.monotonic()
        if self._home.renew():
            self._guard.host = self._home.host
            return True
        return False

    def _try_open(self, open_port: Callable[[], OpenPort]) -> None:
        try:
            self._open(open_port)
            self._note("the line is back")
        except TransportError:
            self._lost_s = time.monotonic()

    def close(self) -> None:
        """Let the line go."""
        if self._port:
            self._port.close()


def open_sams(open_sam: Callable[[], CardSam] | None, retry_ms: int) -> tuple[SamPool | None, SamInfo | None, str]:
    """The pool of a terminal's one SAM, who it is, and what is wrong with it; a SAM that fails is opened anew."""
    if open_sam is None:
        return None, None, ""
    opened: list[CardSam] = []
    trouble = ""
    try:
        opened.append(open_sam())
    except OneCardError as e:
        trouble = str(e)
    info = opened[0].info() if opened else None
    return SamPool([lambda: opened.pop() if opened else open_sam()], retry_ms), info, trouble
