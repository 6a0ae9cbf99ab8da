"""``onecard terminal scan|info|pair|clock|push|collect|param|diagnose``: the installer's tool, one terminal at a time.

Whatever a cut leaves, the same command goes on with: uploads at the terminal's offset, a collection at what is on disk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from cardlib.crypto.noise import fingerprint
from cardlib.errors import CheckFailed, ConfigError, Conflict, LineTimeout, NotFound, ReaderLost, Refused
from cardlib.serialport import SerialPort, ports
from cardlib.wire import cbor, smp
from cardlib.wire.authority import kind_of
from cardlib.wire.link import HelloAnswer, label_text, parse_label
from console import Noun, Session, pass_session
from terminals.identity import (
    Identity,
    authority,
    identity,
    identity_file,
    load_identity,
    now_ms,
    read_file,
    replace_file,
)
from terminals.installer import Client
from terminals.link import Master

FIRST_BAUD, SECOND_BAUD = 115_200, 9_600
LINE_TEST_BYTES, LINE_TEST_ROUNDS = 512, 8
INFO = (
    "serial", "model", "software", "x25519", "ed25519", "authority", "enterprise", "terminal", "sam",
    "config_version", "config_hash", "list_version", "site",
)  # fmt: skip
"""Names of what INFO answers, by key (cardlib.wire.smp)."""
INFO_TYPES = (str, str, str, bytes, bytes, bool, int, bytes, bytes, int, bytes, int, str)


@click.group(cls=Noun)
def command() -> None:
    """Terminals: registered in the back office, and run here."""


command.add_command(identity)
command.add_command(authority)


class Where(NamedTuple):
    """How to reach a terminal."""

    port: str
    baud: int | None = None
    address: int | None = None
    serial: str | None = None


class Line(NamedTuple):
    """A terminal found on an open port."""

    client: Client
    hello: HelloAnswer


def way(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say where the terminal is; they come as one :class:`Where`."""
    options = [
        click.option("--port", required=True, envvar="ONECARD_PORT", help="Name or URL (socket://, rfc2217://)."),
        click.option("--baud", type=click.IntRange(300, 4_000_000), help="115200, then 9600, when not given."),
        click.option("--address", type=click.IntRange(0, 126), help="On the line; looked for when not given."),
        click.option("--serial", help="Of the terminal that is meant, where several hang on one line."),
    ]

    def wrapped(*args: Any, port: str, baud: int | None, address: int | None, serial: str | None, **rest: Any) -> None:  # noqa: ANN401
        function(*args, where=Where(port, baud, address, serial), **rest)

    wrapped.__doc__ = function.__doc__
    wrapped.__name__ = function.__name__
    for option in [*reversed(options)]:
        wrapped = option(wrapped)
    return wrapped


second_file = click.option(
    "--second", type=click.Path(path_type=Path, dir_okay=False), help="A second operator's key file, with its token."
)


def _found(session: Session, where: Where) -> tuple[Master, dict[str, tuple[int, HelloAnswer]]]:
    """Open the port and ask who is there, at both first speeds unless one was given."""
    bauds = [where.baud] if where.baud else [FIRST_BAUD, SECOND_BAUD]
    port = session.keep(SerialPort(where.port, bauds[0]))
    master = Master(port, time.monotonic, os.urandom, port.gap_s)
    for baud in bauds if port.baud else bauds[:1]:
        if port.baud and port.baud != baud:
            port.set_baud(baud)
        if where.address is None:
            if found := master.discover():
                return master, found
            continue
        try:
            answer = master.hello(where.address)
        except LineTimeout:
            continue
        return master, {answer.serial: (where.address, answer)}
    return master, {}


def connect(session: Session, where: Where) -> Line:
    """Open the port and find the one terminal that is meant.

    Raises ReaderLost with a hint by cause, LineTimeout when nobody answers, NotFound, Conflict when several do.
    """
    master, found = _found(session, where)
    if not found:
        raise LineTimeout(
            f"nobody answers at {where.port}: check cable, address, speed and power; on RS-485 swap A and B"
        )
    names = ", ".join(f"{serial} at {address}" for serial, (address, _) in sorted(found.items()))
    if where.serial and where.serial not in found:
        raise NotFound(f"terminal {where.serial} is not at {where.port}; there are {names}")
    if not where.serial and len(found) > 1:
        raise Conflict(f"several terminals are at {where.port} ({names}): name one with --serial")
    serial = where.serial or next(iter(found))
    address, hello = found[serial]
    return Line(Client(master, address, serial, time.monotonic, os.urandom), hello)


def told_apart(who: Identity, error: Refused) -> Refused:
    """A token that holds by this computer's clock and not by the terminal's says something of a clock."""
    if error.reason in {"expired", "not_yet"} and who.token.not_before_ms <= now_ms() <= who.token.not_after_ms:
        words = "by this computer's clock it holds, so one of the two clocks is wrong: set it, then repeat"
        return Refused(error.reason, f"{error}; {words}")
    return error


def open_session(line: Line, who: Identity) -> Client:
    """A session with a terminal that this installer was paired with. Raises Refused, MacMismatch, SessionEnded."""
    public = who.pinned(line.hello.serial)
    if public is None:
        raise Refused("not_paired", f"terminal {line.hello.serial} is not known here: use terminal pair first")
    try:
        line.client.open(who.installer, public)
    except Refused as e:
        raise told_apart(who, e) from e
    return line.client


def _paired_before(line: Line, who: Identity, label: bytes) -> bytes | None:
    """The key of a terminal that has pinned us, should a cut have kept that from us; the label vouches for the key."""
    if not line.hello.paired:
        return None
    public = bytes(info_of(line.client)["x25519"])
    try:
        if fingerprint(public) == label:
            line.client.open(who.installer, public)
            return public
    except Refused as e:
        if e.reason != "not_paired":
            raise
    return None


def pair_with(session: Session, line: Line, who: Identity, label: bytes, code_file: Path | None = None) -> Client:
    """First contact, by the label; the terminal is pinned. Raises Refused, FormatError."""
    if line.hello.fingerprint != label:  # link.md compares after message 2; a look at HELLO saves one of five tries
        raise Refused(
            "fingerprint", f"terminal {line.hello.serial} is not the one of this label: stop and look who it is"
        )
    try:
        public = _paired_before(line, who, label) or line.client.pair(
            who.installer, session.secret("pairing code", code_file), label
        )
    except Refused as e:
        raise told_apart(who, e) from e
    who.pin(line.hello.serial, public)
    return line.client


def info_of(client: Client) -> dict[str, Any]:
    """What the terminal says of itself. Raises FormatError."""
    values = cbor.fields(client.request(smp.INFO), "info", dict(enumerate(INFO_TYPES)))
    return dict(zip(INFO, values, strict=True))


def terminal_ms(client: Client) -> int:
    """The terminal's clock. Raises FormatError."""
    text = str(client.request(smp.DATETIME_GET).get("datetime", ""))
    try:
        return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except (ValueError, OverflowError) as e:
        raise ConfigError(f"terminal {client.serial} says {text[:40]!r} for the time") from e


def drift_words(drift_ms: int) -> str:
    """How far a clock is off, for people."""
    return f"{abs(drift_ms) / 1000:.1f} s {'ahead' if drift_ms > 0 else 'behind'}"


class Progress:
    """Bytes done with rate and time left: a line that renews itself, or one now and then."""

    def __init__(self, session: Session, label: str) -> None:
        self._session, self._label, self._live = session, label, sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show it, if it is time."""
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if self._session.quiet or (done < total and now - self._shown < (0.2 if self._live else 2)):
            return
        self._shown = now
        line = f"{self._label}: {done}/{total} bytes"
        if rate := (done - self._first) / max(now - self._began, 0.001):  # not known of what came in one piece
            line += f", {rate:.0f}/s, {(total - done) / rate:.0f} s left"
        click.echo(f"\r{line}\033[K" if self._live else line, err=True, nl=not self._live or done == total)


def upload(session: Session, client: Client, name: str, raw: bytes) -> bytes:
    """Send a file with progress; returns its SHA-256."""
    return client.upload(name, raw, Progress(session, f"{client.serial} {name}"))


def config_changes(session: Session, client: Client, raw: bytes) -> tuple[dict[int, Any], int, list[str]]:
    """Upload a configuration; returns the payload that applies it, its version and the settings it changes."""
    digest = upload(session, client, "config", raw)
    _, etag = cbor.fields(client.request(smp.CONFIG_GET), "configuration", {0: int, 1: bytes})
    payload = {0: etag, 1: digest}
    version, changes = cbor.fields(client.request(smp.CONFIG_PLAN, payload), "plan", {0: int, 1: list})
    return payload, version, [str(one) for one in changes]


def push_list(session: Session, client: Client, raw: bytes) -> int:
    """Upload a list file or certificate and put it in force; returns the version in force."""
    (version,) = cbor.fields(client.request(smp.LIST_TAKE, {0: upload(session, client, "list", raw)}), "list", {0: int})
    return int(version)


def run_tests(client: Client, wanted: tuple[str, ...] = ("line", "card", "screen")) -> dict[str, tuple[bool, str]]:
    """Test line, card reader, screen: passed and words by name. A test that a terminal lacks has not passed."""
    results: dict[str, tuple[bool, str]] = {}
    for name in wanted:
        if name == "line":
            results[name] = _line_test(client)
            continue
        ask = {"card": smp.CARD_TEST, "screen": smp.SCREEN_TEST}[name]
        try:
            passed, words = cbor.fields(client.request(ask), "test", {0: bool, 1: str})
        except Refused as e:
            if e.reason != "unsupported":
                raise
            passed, words = False, str(e)
        results[name] = bool(passed), str(words)
    return results


def _line_test(client: Client) -> tuple[bool, str]:
    before, began = client.master.retries, time.monotonic()
    for _ in range(LINE_TEST_ROUNDS):
        data = os.urandom(LINE_TEST_BYTES)
        (back,) = cbor.fields(client.request(smp.LINE_TEST, {0: data, 1: len(data)}), "line test", {0: bytes})
        if back != data:
            return False, "other bytes came back than were sent"
    rate = 2 * LINE_TEST_ROUNDS * LINE_TEST_BYTES / max(time.monotonic() - began, 0.001)
    again = client.master.retries - before
    return again == 0, f"{again} of {LINE_TEST_ROUNDS} frames sent again, {rate:.0f} bytes/s"


def collect_into(client: Client, folder: Path) -> dict[str, Any]:
    """Bring the journal into ``folder``: the dump keeps what came, the file is for ``settle collect``.

    Returns serial, file, first_seq, last_seq. Raises CheckFailed, DatabaseError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = client.collect(folder / f"{client.serial}.dump")
    target = folder / f"{client.serial}.journal"
    replace_file(target, file.encode())
    last = file.first_seq + len(file.entries) - 1
    return {"serial": client.serial, "file": target, "first_seq": file.first_seq, "last_seq": last}


# --- verbs ---------------------------------------------------------------------------------------------------


def _row(port: str, address: int | None = None, answer: HelloAnswer | None = None, hint: str = "") -> dict[str, Any]:
    return {
        "port": port, "address": address, "serial": answer.serial if answer else None,
        "model": answer.model if answer else None, "paired": answer.paired if answer else None,
        "fingerprint": label_text(answer.fingerprint) if answer else None, "hint": hint,
    }  # fmt: skip


@command.command()
@click.option("--port", "names", multiple=True, help="Look here only; may be repeated.")
@click.option("--baud", type=click.IntRange(300, 4_000_000), help="115200, then 9600, when not given.")
@pass_session
def scan(session: Session, names: tuple[str, ...], baud: int | None) -> None:
    """Say HELLO at every serial port: who answers at which address, or why a port can't be used."""
    rows: list[dict[str, Any]] = []
    known = {one.by_id: f"{one.description} {one.vendor_id or 0:04x}:{one.product_id or 0:04x}" for one in ports()}
    for name in names or known:
        try:
            _, found = _found(session, Where(name, baud))
        except ReaderLost as e:
            rows.append(_row(name, hint=str(e)))
            continue
        rows += [_row(name, address, answer) for address, answer in sorted(found.values(), key=lambda one: one[0])]
        if not found:
            rows.append(_row(name, hint=f"nobody answers: check cable, speed and power {known.get(name, '')}".strip()))
    session.emit(rows)


@command.command()
@click.option(
    "--identity", type=click.Path(path_type=Path, dir_okay=False), envvar="ONECARD_IDENTITY", help="To see all."
)
@way
@pass_session
def info(session: Session, identity: Path | None, where: Where) -> None:
    """Show one terminal: serial, versions, what is in force; its clock and SAM too in a session (--identity)."""
    who = load_identity(session, identity) if identity is not None else None
    line = connect(session, where)
    if who is not None:
        open_session(line, who)
    data: dict[str, Any] = {"address": line.client.address, "paired": line.hello.paired}
    data |= info_of(line.client)
    if who is not None:
        drift = terminal_ms(line.client) - now_ms()
        data |= {"drift_ms": drift, "sam_check_values": sam_values(line.client)}
    session.emit(data)


def sam_values(client: Client) -> dict[str, str]:
    """Check values of the keys in the terminal's SAM by name, empty without a SAM."""
    try:
        _, _, values = cbor.fields(client.request(smp.SAM_INFO), "SAM", {0: bytes, 1: bytes, 2: dict})
    except Refused:
        return {}
    return {str(name): value.hex().upper() for name, value in sorted(values.items())}


@command.command()
@click.option("--fingerprint", "label", required=True, help="26 characters on the terminal's label.")
@identity_file
@way
@pass_session
def pair(session: Session, label: str, identity: Path, where: Where) -> None:
    """Meet a terminal for the first time, by its label; asks for the label's code of 8 digits."""
    wanted = parse_label(label)
    who = load_identity(session, identity)
    line = connect(session, where)
    if session.dry_run:
        session.emit({"serial": line.hello.serial, "paired": False}, f"would pair with {line.hello.serial}")
        return
    pair_with(session, line, who, wanted)
    session.emit({"serial": line.hello.serial, "paired": True}, f"paired with terminal {line.hello.serial}")


@command.command()
@identity_file
@second_file
@way
@pass_session
def clock(session: Session, identity: Path, second: Path | None, where: Where) -> None:
    """Show how far the terminal's clock is off, then set it; --dry-run only shows.

    Before its newest record takes --second, and payments are refused until a newer list or configuration comes.
    """
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    drift = terminal_ms(client) - now_ms()
    session.note(f"the clock of {client.serial} is {drift_words(drift)}")
    if not session.dry_run:
        if second:
            _allow(session, client, second, "clock")
        client.set_clock(now_ms())
    after = terminal_ms(client) - now_ms()
    words = f"{client.serial}: was {drift_words(drift)}, is {drift_words(after)}"
    session.emit({"serial": client.serial, "drift_ms": drift, "now_drift_ms": after}, words)


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@identity_file
@way
@pass_session
def push(session: Session, file: Path, identity: Path, where: Where) -> None:
    """Send FILE (a signed configuration or firmware, a list or its certificate) and put it in force.

    Goes on after a cut.
    """
    session.refuse_dry_run("a file is sent or not; terminal param shows what a configuration changes")
    raw = read_file(file)
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    match kind_of(raw):
        case "config":
            payload, version, _ = config_changes(session, client, raw)
            client.request(smp.CONFIG_APPLY, payload)
            kind = "configuration"
        case "firmware":
            digest = upload(session, client, "firmware", raw)
            kind, (version, _) = "firmware", _firmware(client.request(smp.FIRMWARE_TAKE, {0: digest}))
        case "":
            kind, version = "list", push_list(session, client, raw)
        case other:
            raise ConfigError(f"{file} holds {other}: keys go by terminal load-keys")
    words = f"{client.serial}: {kind} version {version} in force"
    session.emit({"serial": client.serial, "file": file, "kind": kind, "version": version}, words)


def _firmware(answer: dict[Any, Any]) -> tuple[int, int]:
    """Version in force and the former one."""
    current, former = cbor.fields(answer, "firmware", {0: int, 1: int})
    return int(current), int(former)


@command.command()
@identity_file
@way
@pass_session
def rollback(session: Session, identity: Path, where: Where) -> None:
    """Go back to the terminal's former firmware; --dry-run shows which that is."""
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    current, former = _firmware(client.request(smp.FIRMWARE_GET))
    if not session.dry_run:
        current, former = _firmware(client.request(smp.FIRMWARE_BACK))
    words = f"{client.serial}: firmware {current} in force, {former or 'none'} kept"
    session.emit({"serial": client.serial, "version": current, "former": former}, words)


@command.command("load-keys")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@identity_file
@second_file
@way
@pass_session
def load_keys(session: Session, file: Path, identity: Path, second: Path | None, where: Where) -> None:
    """Put the readers' keys in FILE (sealed for this terminal) in force; takes two operators with the verb keys."""
    session.refuse_dry_run("keys are loaded or not")
    if second is None:
        raise ConfigError("keys are loaded by two operators: name the other one's key file with --second")
    raw = read_file(file)
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    _allow(session, client, second, "keys")
    digest = upload(session, client, "keys", raw)
    version, count = cbor.fields(client.request(smp.KEYS_LOAD, {0: digest}), "keys", {0: int, 1: int})
    words = f"{client.serial}: keys {version} of {count} readers in force"
    session.emit({"serial": client.serial, "version": version, "readers": count}, words)


def _allow(session: Session, client: Client, second: Path, verb: str) -> None:
    other = load_identity(session, second, "second identity")
    client.allow(other.installer.token, other.signing, verb)


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@identity_file
@way
@pass_session
def param(session: Session, file: Path | None, identity: Path, where: Where) -> None:
    """Show the configuration in force; with FILE, what it would change, and apply it unless --dry-run is given."""
    raw = read_file(file) if file else b""
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    version, etag = cbor.fields(client.request(smp.CONFIG_GET), "configuration", {0: int, 1: bytes})
    data: dict[str, Any] = {"serial": client.serial, "version": version, "etag": etag}
    if file:
        payload, new, changes = config_changes(session, client, raw)
        session.note(f"configuration {version} -> {new} changes: {', '.join(changes) or 'nothing'}")
        if not session.dry_run:
            version, etag = cbor.fields(client.request(smp.CONFIG_APPLY, payload), "configuration", {0: int, 1: bytes})
        data |= {"version": version, "etag": etag, "changes": changes}
    session.emit(data)


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@identity_file
@way
@pass_session
def collect(session: Session, folder: Path, identity: Path, where: Where) -> None:
    """Bring the journal into FOLDER, on disk before it is acknowledged; SERIAL.journal is for `settle collect`."""
    session.refuse_dry_run("what is collected is acknowledged")
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    data = collect_into(client, folder)
    session.emit(data, f"{data['file']}: entries {data['first_seq']} to {data['last_seq']}")


@command.command()
@click.option("--test", "tests", multiple=True, type=click.Choice(["line", "card", "screen"]), help="All when none.")
@identity_file
@way
@pass_session
def diagnose(session: Session, tests: tuple[str, ...], identity: Path, where: Where) -> None:
    """Test line, card reader and screen; exit 8 when one has not passed."""
    session.refuse_dry_run("a test is run or not")
    who = load_identity(session, identity)
    client = open_session(connect(session, where), who)
    results = run_tests(client, tests or ("line", "card", "screen"))
    session.emit([{"test": name, "passed": passed, "words": words} for name, (passed, words) in results.items()])
    if failed := [name for name, (passed, _) in results.items() if not passed]:
        raise CheckFailed(f"terminal {client.serial}: {', '.join(failed)} not passed")
