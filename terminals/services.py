"""What a terminal does for the other end of its line: plain functions over a :class:`Host`, one per command.

Each takes and gives the map of its message (``cardlib.wire.smp`` lists them). A refusal leaves as Refused; the
door (``terminals.guard``) has checked session and verb before.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cardlib.crypto.noise import StaticKey
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError, Conflict, DatabaseError, FormatError, NotFound, OneCardError, Refused
from cardlib.wire import cbor, smp
from cardlib.wire.authority import SignedFile, Token
from cardlib.wire.link import MAX_BODY
from cardlib.wire.smp import Command
from terminals import config
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.software import Firmware, ReaderKeys

CHUNK = 1024
MIN_CHUNK = 256
MAX_LINE_TEST = 60_000
HEAD_LABEL = b"OCJH1"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,26}")


class Clock(Protocol):
    """The terminal's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds."""

    def set_ms(self, utc_ms: int) -> None:
        """Set it."""

    back: bool
    """Set back by two operators, and no signed file has confirmed it since; outlives a restart."""


@dataclass(slots=True)
class _Incoming:
    """An upload under way: ``path`` holds what has come."""

    name: str
    size: int
    digest: bytes
    path: Path
    offset: int


class FileStore:
    """Files that came over the line, each whole or not there. What a cut left goes on when the same file comes again.

    ``known`` are the names allowed (None: any). Raises Refused, DatabaseError when the disk fails.
    """

    def __init__(self, folder: Path, max_bytes: int, known: frozenset[str] | None = None) -> None:
        self.folder, self.max_bytes, self.known = folder, max_bytes, known
        self._incoming: _Incoming | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a file is or will be. Raises Refused for a name that may not be."""
        plain = name.rsplit("/", 1)[-1] if self.known is None else name
        if not _NAME.fullmatch(plain) or (self.known is not None and plain not in self.known):
            raise Refused("name", f"no file {name[:40]!r} is taken here")
        return self.folder / plain

    def read(self, name: str) -> bytes:
        """A whole file. Raises NotFound."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError as e:
            raise Refused("not_found", f"no file {name} is here") from e
        except OSError as e:
            raise DatabaseError(f"{name} can't be read: {e.strerror}") from e

    def forget(self, name: str) -> None:
        """Remove a file."""
        self.path(name).unlink(missing_ok=True)

    def begin(self, name: str, size: int, digest: bytes) -> int:
        """Begin or go on with an upload; returns the offset at which to go on (``size``: all is here)."""
        path = self.path(name)
        if not 0 <= size <= self.max_bytes:
            raise Refused("too_large", f"{name}: {size} bytes are more than {self.max_bytes}")
        if digest and path.exists() and path.stat().st_size == size and _digest(path) == digest:
            self._incoming = None
            return size
        part = path.with_name(f"{path.name}.{digest.hex()[:32] or 'new'}.part")
        try:
            for other in self.folder.glob(f"{path.name}.*.part"):
                if other != part or not digest or other.stat().st_size > size:
                    other.unlink()
            part.touch()
            self._incoming = _Incoming(path.name, size, digest, part, part.stat().st_size)
        except OSError as e:
            raise DatabaseError(f"{name} can't be written: {e.strerror}") from e
        return self._incoming.offset

    def add(self, name: str, offset: int, data: bytes) -> int:
        """Add a chunk; returns the offset at which to go on. The last one makes the file, if its SHA-256 is right."""
        now = self._incoming
        path = self.path(name)
        if now is None or now.name != path.name:
            raise Refused("conflict", f"{name}: no upload is under way: begin at offset 0")
        if offset != now.offset:
            return now.offset
        if now.offset + len(data) > now.size:
            raise Refused("too_large", f"{name}: more than the {now.size} bytes that were said")
        try:
            with now.path.open("ab") as file:
                file.write(data)
                now.offset += len(data)
                if now.offset == now.size:
                    file.flush()
                    os.fsync(file.fileno())
            if now.offset == now.size:
                self._finish(now, path)
        except OSError as e:
            self._incoming = None
            raise DatabaseError(f"{name} can't be written: {e.strerror}") from e
        return now.offset

    def _finish(self, now: _Incoming, path: Path) -> None:
        self._incoming = None
        if now.digest and _digest(now.path) != now.digest:
            now.path.unlink()
            raise Refused("corrupt", f"{now.name}: its SHA-256 is wrong: send it again from the beginning")
        now.path.replace(path)
        _sync(self.folder)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ConfigStore:
    """The configuration in force: a signed file for this terminal alone, whose version only grows."""

    def __init__(self, path: Path, serial: str) -> None:
        self._path, self._serial = path, serial
        self.raw = path.read_bytes() if path.exists() else b""
        self.signed: SignedFile | None = None

    def open(self, authority: bytes) -> None:
        """Check what is on disk. Raises MacMismatch, FormatError, Refused."""
        if self.raw:
            self.signed = self.check(self.raw, authority)

    @property
    def version(self) -> int:
        """Version in force, 0 for none."""
        return self.signed.version if self.signed else 0

    @property
    def etag(self) -> bytes:
        """What stands for the configuration in force: the first 16 bytes of its SHA-256, empty for none."""
        return hashlib.sha256(self.raw).digest()[:16] if self.raw else b""

    def check(self, raw: bytes, authority: bytes) -> SignedFile:
        """Verify a file. Raises MacMismatch, FormatError, ConfigError, Refused when it is not for this terminal."""
        file = SignedFile.decode(raw, authority)
        if file.kind != "config" or file.serial != self._serial:
            raise Refused("foreign", f"a {file.kind} for terminal {file.serial}, not for {self._serial}")
        try:
            config.parse(file.body.decode(), f"configuration {file.version}")
        except UnicodeDecodeError as e:
            raise FormatError("the configuration is no UTF-8") from e
        return file

    def changes(self, file: SignedFile) -> list[str]:
        """Settings that would differ, by name."""
        old, new = (_settings(one.body) if one else {} for one in (self.signed, file))
        return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))

    def apply(self, raw: bytes, file: SignedFile) -> None:
        """Put a checked file in force. Raises Refused when its version does not grow, DatabaseError."""
        if raw == self.raw:
            return
        if file.version <= self.version:
            raise Refused("older", f"configuration {file.version} is not newer than {self.version}, which is in force")
        beside = self._path.with_name(self._path.name + ".new")
        try:
            with beside.open("wb") as out:
                out.write(raw)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(self._path)
            _sync(self._path.parent)
        except OSError as e:
            raise DatabaseError(f"{self._path} can't be written: {e.strerror}") from e
        self.raw, self.signed = raw, file


def _settings(body: bytes) -> dict[str, object]:
    parsed = config.parse(body.decode())
    flat = {key: getattr(parsed, key) for key in parsed.__slots__ if key != "rules"}
    return flat | {f"rules.{key}": getattr(parsed.rules, key) for key in parsed.rules.__slots__}


@dataclass
class Base:
    """What every terminal has, one on the bench too."""

    serial: str
    model: str
    software: str
    clock: Clock
    files: FileStore


def _nobody(verb: str) -> Token:
    raise Refused("second_operator", f"this takes a second operator's token with verb {verb}")


@dataclass
class Host(Base):
    """A terminal as its services see it. ``tests``: what ``card`` and ``screen`` do; each returns words or raises.

    ``keep_ms``: how long entries stay after they were collected; None for ever. ``second`` gives, once, the second
    operator who allowed an act of a verb, or raises Refused.
    """

    static: StaticKey
    signing: SigningKey
    journal: Journal
    lists: TerminalLists
    settings: ConfigStore
    authority: Callable[[], bytes]
    site: str = ""
    tests: dict[str, Callable[[], str]] = field(default_factory=dict)
    reset: Callable[[], None] = lambda: None
    sam: Callable[[], tuple[bytes, bytes, dict[str, bytes]]] | None = None
    keep_ms: int | None = None
    firmware: Firmware | None = None
    reader_keys: ReaderKeys | None = None
    second: Callable[[str], Token] = _nobody

    def newest_ms(self) -> int:
        """Time of the newest journal record or signed file."""
        last = self.journal.last_seq
        entry_ms = self.journal.entry(last).utc_ms if last and last >= self.journal.first_seq else 0
        created_ms = self.settings.signed.created_ms if self.settings.signed else 0
        return max(entry_ms, self.journal.standing().clock_floor_ms, self.lists.created_ms or 0, created_ms)

    def latest_ms(self) -> int:
        """The time that tokens are checked against: a clock set back does not lengthen them."""
        return max(self.clock.now_ms(), self.newest_ms())

    def clock_trusted(self) -> bool:
        """Whether the clock is not behind what the terminal has seen."""
        return 0 < self.newest_ms() <= self.clock.now_ms()

    def confirm_clock(self, created_ms: int) -> None:
        """A newly signed file is here: a clock set back that is not behind it counts again."""
        if self.clock.back and created_ms <= self.clock.now_ms():
            self.journal.note("clock_confirmed", f"by a file of {created_ms}")
            self.journal.clock_floor(created_ms)
            self.clock.back = False

    def revoked(self) -> frozenset[bytes]:
        """Ids of tokens that were revoked."""
        signed = self.settings.signed
        return frozenset((*self.lists.current.revoked, *(signed.revoked if signed else ())))


def _text_fields(
    payload: dict[Any, Any], wanted: dict[str, type], optional: dict[str, type] | None = None
) -> list[Any]:
    """Values of a map with MCUmgr's text keys; None when missing. Raises FormatError."""
    extra = optional or {}
    for key, kind in (wanted | extra).items():
        if (key in payload or key in wanted) and type(payload.get(key)) is not kind:
            raise FormatError(f"field {key} is missing or no {kind.__name__}")
    return [payload.get(key) for key in (wanted | extra)]


# --- group 0 -------------------------------------------------------------------------------------------------


def echo(_: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Say the same."""
    (text,) = _text_fields(payload, {"d": str})
    return {"r": text}


def params(_: Base, __: dict[Any, Any]) -> dict[Any, Any]:
    """Buffer size and count."""
    return {"buf_size": MAX_BODY, "buf_count": 1}


def os_info(host: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """As ``uname``: model, serial, software, for the letters asked for."""
    (letters,) = _text_fields(payload, {}, {"format": str})
    words = {"s": host.model, "n": host.serial, "v": host.software}
    wanted = "snv" if letters == "a" else letters or "s"
    return {"output": " ".join(words[letter] for letter in wanted if letter in words)}


def clock_get(host: Base, _: dict[Any, Any]) -> dict[Any, Any]:
    """Date and time, UTC."""
    now = datetime.fromtimestamp(host.clock.now_ms() / 1000, UTC)
    return {"datetime": now.replace(tzinfo=None).isoformat(timespec="milliseconds")}


def clock_set(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Set the clock. Before the newest journal record or signed file takes two operators, and leaves it doubtful.

    Doubtful until a newer signed file comes that the clock is not behind: payments are refused until then.
    """
    (text,) = _text_fields(payload, {"datetime": str})
    try:
        when = datetime.fromisoformat(text)
    except ValueError as e:
        raise FormatError(f"{text[:40]!r} is no date and time") from e
    utc_ms = round(when.replace(tzinfo=when.tzinfo or UTC).timestamp() * 1000)
    before_ms, newest_ms, who = host.clock.now_ms(), host.newest_ms(), ""
    if utc_ms < newest_ms:
        try:
            who = f" by {host.second('clock').name} too"
        except Refused as e:
            words = f"this time is before the newest journal record or signed file: {e}"
            raise Refused("clock_back", words) from e
        host.journal.clock_floor(max(before_ms, newest_ms))  # first: no cut leaves a clock that is believed
        host.clock.back = True
    host.clock.set_ms(utc_ms)
    host.journal.note("clock_set", f"from {before_ms} to {utc_ms}{who}")
    return {}


def reset(host: Host, _: dict[Any, Any]) -> dict[Any, Any]:
    """Start anew, once this was answered."""
    host.reset()
    return {}


# --- group 8 -------------------------------------------------------------------------------------------------


def upload(host: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Take a chunk; the answer says where to go on. At offset 0 come ``len`` and, to go on after a cut, ``sha``."""
    offset, data, name, size, digest = _text_fields(
        payload, {"off": int, "data": bytes, "name": str}, {"len": int, "sha": bytes}
    )
    if digest is not None and len(digest) != 32:
        raise FormatError("sha is a SHA-256 of 32 bytes")
    if offset == 0 and size is not None:
        have = host.files.begin(name, size, digest or b"")
        if have or (not data and size):
            return {"off": have}
    return {"off": host.files.add(name, offset, data)}


def download(host: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """A chunk of a file; at offset 0 its length too."""
    offset, name, size = _text_fields(payload, {"off": int, "name": str}, {"size": int})
    raw = host.files.read(name)
    if not 0 <= offset <= len(raw):
        raise FormatError(f"{name} has {len(raw)} bytes")
    chunk = raw[offset : offset + min(max(size or CHUNK, 1), CHUNK)]
    return {"off": offset, "data": chunk} | ({"len": len(raw)} if not offset else {})


def file_status(host: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Length of a file."""
    (name,) = _text_fields(payload, {"name": str})
    return {"len": len(host.files.read(name))}


def file_hash(host: Base, payload: dict[Any, Any]) -> dict[Any, Any]:
    """SHA-256 of a file."""
    name, kind = _text_fields(payload, {"name": str}, {"type": str})
    if kind not in (None, "sha256"):
        raise Refused("unsupported", f"no checksum {kind[:20]!r} here, only sha256")
    raw = host.files.read(name)
    return {"type": "sha256", "len": len(raw), "output": hashlib.sha256(raw).digest()}


# --- ours ----------------------------------------------------------------------------------------------------


def info(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Who this terminal is and what is in force."""
    cbor.fields(payload, "info", {})
    journal, settings = host.journal, host.settings
    values = (
        host.serial, host.model, host.software, host.static.public, host.signing.public, bool(host.authority()),
        journal.enterprise_id, journal.terminal, journal.sam_serial, settings.version, settings.etag,
        host.lists.version, host.site,
    )  # fmt: skip
    return dict(enumerate(values))


def config_get(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Version and ETag in force."""
    cbor.fields(payload, "configuration", {})
    return {0: host.settings.version, 1: host.settings.etag}


def _planned(host: Host, payload: dict[Any, Any]) -> tuple[bytes, SignedFile]:
    """The uploaded configuration that a plan or apply means, checked."""
    etag, digest = cbor.fields(payload, "configuration", {0: bytes, 1: bytes})
    raw = host.files.read("config")
    if hashlib.sha256(raw).digest() != digest:
        raise Refused("conflict", "another configuration was uploaded meanwhile: upload yours again")
    if etag != host.settings.etag and raw != host.settings.raw:
        raise Refused("conflict", "the configuration was changed meanwhile: look at the difference again")
    authority = _owner(host)
    try:
        file = host.settings.check(raw, authority)
    except ConfigError as e:
        raise Refused("config", str(e)) from e
    enterprise_id = config.parse(file.body.decode()).enterprise_id
    if enterprise_id != host.journal.enterprise_id:
        owner = host.journal.enterprise_id
        raise Refused("foreign", f"a configuration of enterprise {enterprise_id}; this terminal's SAM is of {owner}")
    return raw, file


def config_plan(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """What applying would change; nothing changes."""
    _, file = _planned(host, payload)
    return {0: file.version, 1: host.settings.changes(file)}


def config_apply(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Put the uploaded configuration in force."""
    raw, file = _planned(host, payload)
    if raw != host.settings.raw:  # a repeat changes nothing, and confirms no clock
        host.settings.apply(raw, file)
        host.journal.note("config", f"version {file.version}")
        host.confirm_clock(file.created_ms)
    return {0: host.settings.version, 1: host.settings.etag}


def sam_info(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """The PSAM: serial, terminal number, its keys' check values."""
    cbor.fields(payload, "SAM", {})
    if host.sam is None:
        raise Refused("sam", "this terminal has no SAM to ask")
    serial, terminal, values = host.sam()
    return {0: serial, 1: terminal, 2: dict(values)}


def journal_read(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Entries from a sequence on, as many as fit, with the chain's hash before and after them."""
    first, count, size = cbor.fields(payload, "journal", {0: int, 1: int}, {2: int})
    room = min(max(size or CHUNK, MIN_CHUNK), CHUNK)
    try:
        file = host.journal.collect(first, min(max(count, 1), 64))
    except NotFound as e:
        raise Refused("not_found", str(e)) from e
    taken: list[bytes] = []
    for entry in file.entries:
        raw = entry.encode()
        if taken and sum(map(len, taken)) + 3 * len(taken) + len(raw) > room:
            break
        taken.append(raw)
    after = file.entries[len(taken) - 1].hash if taken else file.previous
    return {0: file.previous, 1: taken, 2: after, 3: host.journal.last_seq}


def journal_ack(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """All up to a sequence is safe elsewhere."""
    (seq,) = cbor.fields(payload, "journal", {0: int})
    try:
        host.journal.ack(seq)
    except Conflict as e:
        raise Refused("conflict", str(e)) from e
    if host.keep_ms is not None:
        host.journal.prune(host.keep_ms)
    return {0: host.journal.acked_seq}


def journal_head(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """The chain's head, signed: ``"OCJH1" | length 1 | serial | sequence 8 | hash 32``."""
    cbor.fields(payload, "journal", {})
    journal = host.journal
    seq, digest = journal.last_seq, journal.last_hash
    signature = host.signing.sign(head_message(host.serial, seq, digest))
    return {0: seq, 1: digest, 2: signature, 3: journal.acked_seq, 4: journal.first_seq}


def head_message(serial: str, seq: int, digest: bytes) -> bytes:
    """What a terminal signs of its journal's head."""
    return HEAD_LABEL + bytes([len(serial)]) + serial.encode("ascii") + seq.to_bytes(8, "big") + digest


def list_status(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Version and age of the list in force."""
    cbor.fields(payload, "list", {})
    return {0: host.lists.version, 1: host.lists.created_ms or 0}


def list_take(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Put the uploaded list file or certificate in force."""
    raw, before_ms = _uploaded(host, "list", payload), host.lists.created_ms or 0
    version, created_ms = host.lists.take(raw), host.lists.created_ms or 0
    if created_ms > before_ms:
        host.confirm_clock(created_ms)
    return {0: version}


def _uploaded(host: Host, name: str, payload: dict[Any, Any]) -> bytes:
    """The uploaded file that a message means by its SHA-256."""
    (digest,) = cbor.fields(payload, name, {0: bytes})
    raw = host.files.read(name)
    if hashlib.sha256(raw).digest() != digest:
        raise Refused("conflict", f"another {name} was uploaded meanwhile: upload yours again")
    return raw


def _owner(host: Host) -> bytes:
    """The authority's key."""
    if not (authority := host.authority()):
        raise Refused("authority", "this terminal has no authority yet: give it one first")
    return authority


def _firmware(host: Host) -> Firmware:
    if host.firmware is None:
        raise Refused("unsupported", "this terminal's software is not changed over the line")
    return host.firmware


def firmware_get(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Version in force, and the one kept before it; 0 for none."""
    cbor.fields(payload, "firmware", {})
    return {0: _firmware(host).current, 1: _firmware(host).former}


def firmware_take(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Put the uploaded firmware in force; the terminal starts anew with it."""
    firmware = _firmware(host)
    firmware.take(_uploaded(host, "firmware", payload), _owner(host))
    return _switched(host, firmware)


def firmware_back(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Go back to the former firmware."""
    cbor.fields(payload, "firmware", {})
    firmware = _firmware(host)
    firmware.roll_back(_owner(host))
    return _switched(host, firmware)


def _switched(host: Host, firmware: Firmware) -> dict[Any, Any]:
    host.journal.note("firmware", f"version {firmware.current}, before {firmware.former}")
    host.reset()
    return {0: firmware.current, 1: firmware.former}


def keys_load(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Put the uploaded keys in force, with two operators; nothing gives them out again."""
    if host.reader_keys is None:
        raise Refused("unsupported", "this terminal takes no keys over the line")
    raw, authority = _uploaded(host, "keys", payload), _owner(host)
    second = host.second("keys")
    host.files.forget("keys")
    count = host.reader_keys.take(raw, authority)
    host.journal.note("keys", f"version {host.reader_keys.version}, {count} readers, by {second.name} too")
    host.reset()
    return {0: host.reader_keys.version, 1: count}


def _test(name: str) -> Callable[[Host, dict[Any, Any]], dict[Any, Any]]:
    def act(host: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
        cbor.fields(payload, "test", {})
        if name not in host.tests:
            raise Refused("unsupported", f"this terminal has no {name} test")
        try:
            return {0: True, 1: host.tests[name]()}
        except OneCardError as e:
            return {0: False, 1: str(e)}

    return act


def line_test(_: Host, payload: dict[Any, Any]) -> dict[Any, Any]:
    """Send so many bytes back, the given ones again and again."""
    data, size = cbor.fields(payload, "line test", {0: bytes, 1: int})
    if not 0 <= size <= MAX_LINE_TEST or not data:
        raise FormatError(f"a line test has 1 to {MAX_LINE_TEST} bytes")
    return {0: (data * (size // len(data) + 1))[:size]}


class Service(NamedTuple):
    """A command: the token's verb that it needs ("" for any token), and what it does."""

    verb: str
    act: Callable[[Host, dict[Any, Any]], dict[Any, Any]]


BENCH: dict[Command, Callable[[Base, dict[Any, Any]], dict[Any, Any]]] = {
    smp.ECHO: echo,
    smp.PARAMS: params,
    smp.OS_INFO: os_info,
    smp.DATETIME_GET: clock_get,
    smp.UPLOAD: upload,
    smp.DOWNLOAD: download,
    smp.FILE_STATUS: file_status,
    smp.FILE_HASH: file_hash,
}
"""What a terminal started with ``--bench`` does."""

SERVICES: dict[Command, Service] = {
    smp.ECHO: Service("", echo),
    smp.PARAMS: Service("", params),
    smp.OS_INFO: Service("", os_info),
    smp.DATETIME_GET: Service("", clock_get),
    smp.DATETIME_SET: Service("clock", clock_set),
    smp.RESET: Service("provision", reset),
    smp.UPLOAD: Service("push", upload),
    smp.DOWNLOAD: Service("push", download),
    smp.FILE_STATUS: Service("push", file_status),
    smp.FILE_HASH: Service("push", file_hash),
    smp.INFO: Service("", info),
    smp.CONFIG_GET: Service("", config_get),
    smp.CONFIG_PLAN: Service("param", config_plan),
    smp.CONFIG_APPLY: Service("param", config_apply),
    smp.FIRMWARE_GET: Service("", firmware_get),
    smp.FIRMWARE_TAKE: Service("push", firmware_take),
    smp.FIRMWARE_BACK: Service("push", firmware_back),
    smp.KEYS_LOAD: Service("keys", keys_load),
    smp.SAM_INFO: Service("", sam_info),
    smp.JOURNAL_READ: Service("collect", journal_read),
    smp.JOURNAL_ACK: Service("collect", journal_ack),
    smp.JOURNAL_HEAD: Service("", journal_head),
    smp.LIST_STATUS: Service("", list_status),
    smp.LIST_TAKE: Service("push", list_take),
    smp.CARD_TEST: Service("diagnose", _test("card")),
    smp.SCREEN_TEST: Service("diagnose", _test("screen")),
    smp.LINE_TEST: Service("diagnose", line_test),
}
OUTSIDE = frozenset({smp.ECHO, smp.PARAMS, smp.INFO})
"""Answered without a session (besides HELLO and handshakes)."""
