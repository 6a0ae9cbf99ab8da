"""Looks for keys, PINs and passwords in everything that a test lets out, in every form they could have there.

Watched without asking: each key that the suite makes (cardlib.crypto), each passphrase that opens a store, the keys of
the vectors' world. A test adds its own PINs and passwords with ``register``. Looked through: captured output and log,
what ``capsys`` and click's runner hand over, output of child processes, failure texts, and trace, log and CSV files.
"""

from __future__ import annotations

import ast
import base64
import binascii
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from cardlib.crypto import aes, keys, noise, packets, sealing, signing

VECTORS = Path(__file__).parent / "vectors" / "pboc.json"
SUFFIXES = frozenset({".csv", ".jsonl", ".log", ".trace"})
"""Files that people and support get to see."""
MIN_BYTES, MIN_TEXT = 8, 4
MIN_DISTINCT = 5
"""Keys with fewer distinct bytes (all zero, say) are nobody's secret, and are everywhere."""

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}(?:[ :,-](?=[0-9A-Fa-f]{2}))?){8,}")
_HEX_ODD = re.compile(r"(?<=[0-9A-Fa-f])[0-9A-Fa-f]{16,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{11,}={0,2}")
_DECIMAL = re.compile(r"\d{1,3}(?:, ?\d{1,3}){7,}")
_REPR = re.compile(r"b'(?:[^'\\]|\\.)*'|b\"(?:[^\"\\]|\\.)*\"")


class Watch:
    """The secrets known so far, and what the test under way has let out past the usual capture."""

    def __init__(self) -> None:
        self._lasting: dict[bytes | str, str] = {}
        self._passing: dict[bytes | str, str] = {}
        self._seen: list[tuple[str, str]] = []

    def register(self, value: bytes | str, name: str, *, passing: bool = False) -> None:
        """Watch for a secret: bytes of 8 and more, text of 4 and more, from now on or only for the test under way."""
        if isinstance(value, bytes):
            assert len(value) >= MIN_BYTES, f"{name}: too short to be told from other bytes"
            if len(set(value)) < MIN_DISTINCT:
                return
        else:
            assert len(value) >= MIN_TEXT, f"{name}: too short to be told from other text"
        (self._passing if passing else self._lasting)[value] = name

    def saw(self, where: str, text: str | bytes | None) -> None:
        """Keep a piece of output for the search at the end of the test."""
        if text:
            self._seen.append((where, text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")))

    def found(self) -> list[str]:
        """Search what was seen since the last call; name the secrets and where they are, never their values."""
        seen, self._seen = self._seen, []
        return sorted({f"{name} in {where}" for where, text in seen for name in self.search(text)})

    def forget_passing(self) -> None:
        """Forget the secrets of the test that is over."""
        self._passing.clear()

    def search(self, text: str) -> set[str]:
        """Names of the secrets that a text holds: as text, hex, base64, decimal list, Python literal or raw bytes."""
        secrets = self._lasting | self._passing
        words = {s for s in secrets if isinstance(s, str) and s in text}
        hits = {
            secrets[word] for word in words if re.search(rf"(?<![0-9A-Za-z]){re.escape(word)}(?![0-9A-Za-z])", text)
        }
        sizes = {len(s) for s in secrets if isinstance(s, bytes)}
        for blob in _blobs(text):
            for size in sizes:
                for start in range(len(blob) - size + 1):
                    name = secrets.get(blob[start : start + size])
                    if name:
                        hits.add(name)
        return hits


def _blobs(text: str) -> Iterator[bytes]:
    """All byte strings that a text could stand for."""
    yield text.encode("utf-8", "surrogateescape")
    for match in _HEX.findall(text):
        yield bytes.fromhex(re.sub("[ :,-]", "", match))
    for match in _HEX_ODD.findall(text):
        yield bytes.fromhex(match[: len(match) & ~1])
    for match in _DECIMAL.findall(text):
        yield bytes(int(number) & 0xFF for number in match.split(","))
    for match in _REPR.findall(text):
        try:
            yield ast.literal_eval(match)
        except (SyntaxError, ValueError):
            continue
    for match in _BASE64.findall(text):
        token = match.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            yield base64.b64decode(token + "=" * (-len(token) % 4))
        except binascii.Error:
            continue


WATCH = Watch()


def register(value: bytes | str, name: str = "a secret of this test") -> None:
    """Watch for a PIN, password or key of the test world in all output of the suite."""
    WATCH.register(value, name)


def register_vectors() -> None:
    """Watch for every key of the vectors' world."""
    world = json.loads(VECTORS.read_text(encoding="utf-8"))["world"]
    for group, values in world.items():
        if "keys" in group:
            for name, value in values.items():
                register(bytes.fromhex(value), f"{group} {name}")


def patch_sources() -> None:
    """Watch each key as it is made, and each way by which output gets past the usual capture."""

    def on_key(_: Any, value: bytes) -> None:
        WATCH.register(value, "a key made here", passing=True)

    def on_passphrase(passphrase: bytes | str, *_: Any) -> None:
        text = passphrase if isinstance(passphrase, str) else passphrase.decode("utf-8", "replace")
        if len(text) >= 2 * MIN_TEXT:
            WATCH.register(text, "a passphrase", passing=True)

    _before(keys.Key, "__init__", on_key)
    _before(aes.AesKey, "__init__", on_key)
    _before(packets.PacketKey, "__init__", on_key)
    _before(signing.SigningKey, "__init__", on_key)
    _before(noise.StaticKey, "__init__", on_key)
    _before(sealing, "argon2id", on_passphrase)
    _after(click.testing.CliRunner, "invoke", lambda result: WATCH.saw("a command's output", result.output))
    _after(pytest.CaptureFixture, "readouterr", lambda captured: _saw_all("captured output", captured))
    _after(subprocess.Popen, "communicate", lambda streams: _saw_all("a child's output", streams))


def _saw_all(where: str, texts: Any) -> None:
    for text in texts:
        WATCH.saw(where, text)


def _before(owner: Any, name: str, look: Callable[..., None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        look(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)
    for module in list(sys.modules.values()):
        if vars(module).get(name) is original:  # who imported the function itself before
            setattr(module, name, wrapper)


def _after(owner: Any, name: str, look: Callable[[Any], None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        look(result)
        return result

    setattr(owner, name, wrapper)
