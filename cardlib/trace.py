"""Traces: APDUs in a file that people read and programs play back, with secrets masked by command-aware rules.

A trace is JSON lines: ``{"trace": 1}``, then per exchange ``{"ms": time, "command": hex, "answer": hex}`` where
``**`` stands for a masked byte and an empty answer for a card that was lost. Only commands known to carry no
secret are shown; whatever is not in the tables below is masked, both ways.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cardlib.apdu import Command
from cardlib.errors import CardRemoved, ConfigError, Conflict, FormatError

ISO_SHOWN = frozenset((0x84, 0xA4, 0xB0, 0xB2, 0xD0, 0xD6, 0xDC, 0xE2, 0xF2))
"""Classes 0x: SELECT, reading and writing, GET CHALLENGE, STATUS."""
OWN_SHOWN = frozenset(
    (0x0E, 0x16, 0x18, 0x1A, 0x1E, 0x50, 0x52, 0x54, 0x58, 0x5A, 0x5C, 0x70, 0x72, 0x74, 0xCA, 0xDC, 0xE0, 0xE4, 0xEA)
)
"""Classes 8x: purse, SAM, blocking, files (card.md §3.2, §4, §6, §7; keys.md). MACs prove, they open nothing."""
GET_RESPONSE = 0xC0
HOLDER_SFI = 0x16
"""Who holds the card is nobody's business in a fault report."""
BINARY = (0xB0, 0xD0, 0xD6)
MASKED = "**"
_LINE = re.compile(r"(?:[0-9A-F]{2}|\*\*)*")


def _is_shown(command: Command) -> bool:
    cla, ins, p1, p2 = command[:4]
    if cla & 0x80:
        return ins in OWN_SHOWN and (ins, p1, p2) != (0xE0, 0x3F, 0x00)  # the MF is created with a transport code
    return ins in ISO_SHOWN and not (ins in BINARY and p1 == 0x80 | HOLDER_SFI)


def _data_span(command: bytes) -> tuple[int, int]:
    """Where the data field lies; everything behind the header when the lengths do not add up."""
    try:
        parsed = Command.decode(command)
    except FormatError:
        return min(4, len(command)), len(command)
    start = 5 if len(command) < 5 or command[4] or len(command) == 5 else 7
    return start, start + len(parsed.data)


def mask(command: bytes, response: bytes) -> tuple[str, str]:
    """Command and response in hexadecimal, secrets as ``**``; header, lengths and status word stay.

    GET RESPONSE is masked because its answer belongs to the command before: :class:`TraceWriter` knows that one.
    """
    try:
        shown = _is_shown(Command.decode(command))
    except FormatError:
        shown = False
    if shown:
        return command.hex().upper(), response.hex().upper()
    start, end = _data_span(command)
    hidden = command[:start].hex().upper() + MASKED * (end - start) + command[end:].hex().upper()
    return hidden, MASKED * (len(response) - 2) + response[-2:].hex().upper()


def wall_clock_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


class TraceWriter:
    """A sink for ``cardlib.transport.Recorder`` that appends masked exchanges to a file only its owner can read."""

    def __init__(self, path: Path, now_ms: Callable[[], int] = wall_clock_ms) -> None:
        """Raises ConfigError when the file can't be written."""
        self._path = path
        self._now_ms = now_ms
        self._before = b""
        self._write({"trace": 1})

    def __call__(self, command: bytes, answer: bytes) -> None:
        """Append one exchange; ``answer`` is empty when the card was lost."""
        masked, shown = mask(command, answer)
        if len(command) == 5 and command[1] == GET_RESPONSE:
            masked, shown = command.hex().upper(), mask(self._before, answer)[1]
        else:
            self._before = command
        self._write({"ms": self._now_ms(), "command": masked, "answer": shown})

    def _write(self, line: dict[str, int | str]) -> None:
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as e:
            raise ConfigError(f"trace file {self._path}: {e.strerror}") from e


class Exchange(NamedTuple):
    """One exchange of a trace, in hexadecimal with ``**`` for masked bytes."""

    command: str
    answer: str


def parse_trace(text: str) -> list[Exchange]:
    """Read a trace; several written one after the other are joined. Raises FormatError naming the line."""
    found: list[Exchange] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise FormatError(f"trace line {number} is no JSON") from e
        if row == {"trace": 1}:
            continue
        if not isinstance(row, dict) or number == 1:
            raise FormatError(f"trace line {number} is no exchange, or the file does not begin as a trace")
        found.append(Exchange(_hex(row, "command", number), _hex(row, "answer", number)))
    return found


def _hex(row: dict[str, object], name: str, number: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not _LINE.fullmatch(value):
        raise FormatError(f"trace line {number}: {name} is missing or not hexadecimal")
    return value


class TraceReplay:
    """Plays a trace back as a card. Masked bytes of a command match any, masked bytes of an answer come as 00."""

    def __init__(self, exchanges: Iterable[Exchange], atr: bytes = b"") -> None:
        self._left = list(exchanges)[::-1]
        self._atr = atr

    @property
    def atr(self) -> bytes:
        """Answer to reset as given."""
        return self._atr

    def transceive(self, command: bytes) -> bytes:
        """Answer the next exchange. Raises Conflict on another command, CardRemoved where the card was lost."""
        expected, answer = self._left.pop() if self._left else Exchange("", "")
        given = command.hex().upper()
        if len(given) != len(expected) or any(e not in ("*", g) for e, g in zip(expected, given, strict=True)):
            raise Conflict(f"replay: command {given[:8]} where the trace has {expected[:8] or 'nothing more'}")
        if not answer:
            raise CardRemoved("the recorded card was lost here")
        return bytes.fromhex(answer.replace("*", "0"))

    def close(self) -> None:
        """Raises Conflict when exchanges of the trace were not asked for."""
        if self._left:
            raise Conflict(f"replay: {len(self._left)} exchanges of the trace were never asked for")
