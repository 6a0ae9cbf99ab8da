"""What every command shares: global options, output, progress, questions, secrets, readers.

Data goes to stdout, everything else to stderr. The session is the click context's ``obj``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from cardlib.errors import ConfigError, Conflict, FormatError, Refused
from cardlib.money import parse_yuan
from cardlib.readers import Reader
from cardlib.transport import GetResponse, Recorder, Transport


class Closable(Protocol):
    """What a session closes at its end."""

    def close(self) -> None:
        """Let it go."""


class Watcher(Reader, Closable, Protocol):
    """A reader that says by itself when a card comes, and can be let go."""


T = TypeVar("T")
C = TypeVar("C", bound=Closable)
Opener = Callable[[str], Transport]
"""Opens the part of a reader's name behind its scheme."""
READERS = "onecard.readers"
"""Entry points of others' readers: a scheme names a module with ``connect`` and perhaps ``watch`` (test-rigs.md)."""


def _no_phones(path: Path) -> Any:  # noqa: ANN401  # never comes back
    raise ConfigError(f"{path}: there are no simulated phones here")


@dataclass
class Session:
    """One invocation: the global options and the ways to the outside."""

    openers: Mapping[str, Opener] = field(default_factory=dict)
    db: Path = Path("onecard-data")
    enterprise: int | None = None
    reader: str = "pcsc:"
    operator: str = "admin"
    json: bool = False
    quiet: bool = False
    yes: bool = False
    no_input: bool = False
    dry_run: bool = False
    request_id: str = ""
    trace_file: Path | None = None
    log_level: str = "warning"
    watchers: Mapping[str, Callable[[str], Watcher]] = field(default_factory=dict)
    phones: Callable[[Path], Any] = _no_phones
    """Simulated phones as a way for short messages (``simulator.post``)."""
    _open: list[Closable] = field(default_factory=list)

    def emit(self, data: Any, text: str | Iterable[str] | None = None) -> None:  # noqa: ANN401  # any JSON value
        """Print data: JSON under ``--json``, else the text (or the data's own lines)."""
        if self.json:
            click.echo(json.dumps(data, ensure_ascii=False, default=_jsonable))
        elif text is None:
            for line in _lines(data):
                click.echo(line)
        else:
            for line in [text] if isinstance(text, str) else text:
                click.echo(line)

    def note(self, message: str) -> None:
        """Tell the person something that is not data."""
        if not self.quiet:
            click.echo(message, err=True)

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """Pass items through, showing count, rate and time left on a terminal, or a line now and then."""
        began = shown = time.monotonic()
        live = sys.stderr.isatty()
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if self.quiet or (done < total and now - shown < (0.2 if live else 5)):
                continue
            shown = now
            rate = done / max(now - began, 0.001)
            line = f"{label}: {done}/{total}, {rate:.0f}/s, {(total - done) / rate:.0f} s left"
            click.echo(f"\r{line}\033[K" if live else line, err=True, nl=not live or done == total)

    def confirm(self, word: str, consequence: str, given: str | None = None) -> None:
        """Irreversible acts need a typed word, or ``--confirm WORD``. Raises Refused, so that the exit is not 0."""
        if given is None and not self.no_input and sys.stdin.isatty():
            given = click.prompt(f"{consequence}\nType {word} to go on", err=True, default="", show_default=False)
        if given != word:
            raise Refused("not_confirmed", f"{consequence} Nothing was done: confirm with --confirm {word}")

    def refuse_dry_run(self, why: str) -> None:
        """Where trying out is not possible, ``--dry-run`` must not be taken for it. Raises ConfigError."""
        if self.dry_run:
            raise ConfigError(f"{why}: leave --dry-run out")

    def secret(self, name: str, file: Path | None = None, *, new: bool = False) -> str:
        """Get a secret: from ``file``, ``ONECARD_<NAME>_FILE``, or a prompt; ``-`` as file is stdin.

        Raises ConfigError that says how to give it when there is no one to ask.
        """
        variable = f"ONECARD_{name.upper().replace(' ', '_')}_FILE"
        path = str(file) if file else os.environ.get(variable, "")
        if path:
            text = sys.stdin.readline() if path == "-" else _read_secret(Path(path)).split("\n", 1)[0]
        elif self.no_input or not sys.stdin.isatty():
            raise ConfigError(f"{name} needed: put it in a file named by {variable} (nobody to ask here)")
        else:
            text = click.prompt(name.capitalize(), hide_input=True, confirmation_prompt=new, err=True)
        text = text.rstrip("\r\n")
        if not text:
            raise ConfigError(f"the {name} is empty")
        return text

    def secret_lines(self, name: str, file: Path | None = None) -> list[str]:
        """All lines of ``file``, else of ``ONECARD_<NAME>_FILE``; says when others may read it. Raises ConfigError."""
        variable = f"ONECARD_{name.upper().replace(' ', '_')}_FILE"
        if not (path := str(file or os.environ.get(variable, ""))):
            raise ConfigError(f"{name} needed: put them in a file named by {variable}")
        lines = _read_secret(Path(path)).splitlines()
        if Path(path).stat().st_mode & 0o077:
            self.note(f"{path} may be read by others: chmod 600 {path}")
        return lines

    def need_enterprise(self) -> int:
        """The enterprise this command works on. Raises ConfigError when none was named."""
        if self.enterprise is None:
            raise ConfigError("which enterprise? Give --enterprise NUMBER or set ONECARD_ENTERPRISE")
        return self.enterprise

    def connect(self, name: str | None = None) -> Transport:
        """Open a reader by its name (``sim:``, ``pcsc:``, ...), traced when asked; who asked closes it."""
        name = name or self.reader
        scheme, _, rest = name.partition(":")
        opener = self.openers.get(scheme)
        if opener is not None:
            return self.traced(opener(rest))
        plugged = _plugged_in(scheme)
        if plugged is None:
            known = [*self.openers, *sorted(entry.name for entry in _plug_ins())]
            raise ConfigError(f"reader {name}: start with one of {', '.join(f'{one}:' for one in known)}")
        return self.traced(GetResponse(plugged.connect(rest)))

    def watch(self, name: str | None = None) -> Watcher | None:
        """The reader itself when it says by itself that a card has come, else None; closed at the end."""
        scheme, _, rest = (name or self.reader).partition(":")
        watcher = self.watchers.get(scheme)
        if watcher is None and scheme not in self.openers:
            watcher = getattr(_plugged_in(scheme), "watch", None)
        return None if watcher is None else self.keep(watcher(rest))

    def traced(self, card: Transport) -> Transport:
        """The card, its commands written down when that was asked for."""
        if self.trace_file is None:
            return card
        from cardlib.trace import TraceWriter  # noqa: PLC0415  # only when asked for

        return Recorder(card, TraceWriter(self.trace_file))

    def open_card(self, name: str | None = None) -> Transport:
        """Open a reader as :meth:`connect` does; closed at the end."""
        return self.keep(self.connect(name))

    def keep(self, thing: C) -> C:
        """Close this when the command ends, however it ends; what came last first."""
        self._open.append(thing)
        return thing

    def close(self) -> None:
        """Close all that was opened."""
        while self._open:
            self._open.pop().close()


def _plug_ins(scheme: str | None = None) -> Iterable[Any]:
    from importlib.metadata import entry_points  # noqa: PLC0415  # only for readers that are not ours

    return entry_points(group=READERS) if scheme is None else entry_points(group=READERS, name=scheme)


def _plugged_in(scheme: str) -> Any:  # noqa: ANN401  # somebody else's module
    """The module that an installed package offers for a scheme, or None. Raises ConfigError when it is broken."""
    for entry in _plug_ins(scheme):
        try:
            found = entry.load()
            found.connect  # noqa: B018  # it must be there
        except Exception as e:
            cause = f"{type(e).__name__}: {e}"
            raise ConfigError(f"reader {scheme}: plug-in {entry.value} is broken ({cause}): update or remove it") from e
        return found
    return None


def require_new(path: Path) -> None:
    """Raise Conflict when there is a file: nothing is written over."""
    if path.exists():
        raise Conflict(f"{path} exists: give a new name")


def write_new(path: Path, data: bytes) -> None:
    """Write a new file, whole or not at all. Raises Conflict when it exists, ConfigError when it can't be written."""
    require_new(path)
    try:
        with path.open("xb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink()
                raise
    except OSError as e:
        raise ConfigError(f"{path} can't be written: {e.strerror}") from e


def write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner may read. Raises Conflict when it exists, ConfigError."""
    require_new(path)
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise ConfigError(f"{path} can't be written: {e.strerror}") from e


def _read_secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"secret file {path}: {e.__class__.__name__}: can't be read") from e


def plain(data: Any) -> Any:  # noqa: ANN401  # any JSON value
    """The same with nothing but what JSON has: what ``--json`` prints of it, read again."""
    return json.loads(json.dumps(data, default=_jsonable))


def _jsonable(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _lines(data: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(data, dict):
        width = max((len(str(k)) for k in data), default=0)
        for key, value in data.items():
            yield f"{str(key).replace('_', ' '):<{width}}  {show(value)}"
    elif isinstance(data, list):
        yield from table(data)
    else:
        yield show(data)


def show(value: Any) -> str:  # noqa: ANN401
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v) for v in value)
    return str(value)


def table(rows: list[Any]) -> Iterator[str]:
    """Lines of an aligned table from a list of dicts with the same keys."""
    if not rows:
        yield "(none)"
        return
    if not isinstance(rows[0], dict):
        yield from (show(row) for row in rows)
        return
    heads = list(rows[0])
    cells = [[h.replace("_", " ") for h in heads], *([show(row[h]) for h in heads] for row in rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(heads))]
    for row in cells:
        yield "  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True)).rstrip()


def _width(text: str) -> int:
    """Columns on a screen: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Amount(click.ParamType[int]):
    """An amount in yuan with at most two decimals, given to the command as fen."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Refuse zero, negative, too large and anything that is no plain decimal number."""
        if isinstance(value, int):
            return value
        try:
            return parse_yuan(str(value))
        except FormatError as e:
            self.fail(str(e), param, ctx)


class Hex(click.ParamType[bytes]):
    """Bytes written as hexadecimal digits, spaces allowed."""

    name = "hex"

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:  # noqa: ANN401
        """Refuse anything else, and another length when one is fixed."""
        if isinstance(value, bytes):
            return value
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            self.fail("not hexadecimal: write pairs of 0-9 A-F", param, ctx)
        if self.size is not None and len(raw) != self.size:
            self.fail(f"{len(raw)} bytes where {self.size} belong", param, ctx)
        return raw


AMOUNT = Amount()
pass_session = click.make_pass_decorator(Session)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401
    """Put a global option, wherever it stood, into the session; the one behind the verb wins."""
    session = ctx.ensure_object(Session)
    source = ctx.get_parameter_source(param.name or "")
    given = source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")
    later = ctx.parent is None or (source is not None and source.name == "COMMANDLINE")
    if given and later and value is not None:
        setattr(session, param.name or "", value)
        if param.name == "log_level":
            logging.getLogger().setLevel(value.upper())


def _global(*names: str, **attrs: Any) -> click.Option:  # noqa: ANN401
    option = click.Option(names, expose_value=False, callback=_store, **attrs)
    option.envvar = f"ONECARD_{(option.name or '').upper()}"
    return option


def global_options() -> list[click.Option]:
    """The options that every command takes, each with its ``ONECARD_*`` twin."""
    path = click.Path(path_type=Path)
    return [
        _global("--db", type=path, help="Directory of databases and keys. [default: onecard-data]"),
        _global("--enterprise", type=click.IntRange(1, 0xFFFFFFFF), help="Enterprise number."),
        _global("--reader", help="Card reader: sim:IMAGE, pcsc:NAME, pn532:PORT, uid:PORT."),
        _global("--operator", help="Who acts. [default: admin]"),
        _global("--json", is_flag=True, default=None, help="Print data as JSON."),
        _global("--quiet", is_flag=True, default=None, help="Print data and errors only."),
        _global("--yes", is_flag=True, default=None, help="Answer plain questions with yes."),
        _global("--no-input", is_flag=True, default=None, help="Never ask; fail instead."),
        _global("--dry-run", is_flag=True, default=None, help="Show what would be done, change nothing."),
        _global("--request-id", help="Repeating a request id gives the first outcome."),
        _global("--trace-file", type=path, help="Write masked APDUs to this file."),
        _global("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="For the log on stderr."),
    ]


class LeafCommand(click.Command):
    """A verb that also takes the global options behind it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        for option in global_options():
            option.hidden = True
            self.params.append(option)


class Noun(click.Group):
    """A group of verbs on one noun."""

    command_class = LeafCommand


Noun.group_class = Noun
