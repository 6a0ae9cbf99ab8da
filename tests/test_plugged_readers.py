"""Readers of other makers, as installed packages offer them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cli
from cardlib.errors import ConfigError
from console import Session

MODULE = """
class Card:
    atr = b"\\x3b\\x00"
    def __init__(self, rest): self.rest = rest
    def transceive(self, command):
        return b"\\x61\\x02" if command[1] != 0xC0 else self.rest.encode() + b"\\x90\\x00"
    def close(self): pass

def connect(rest): return Card(rest)

class watch:
    def __init__(self, rest): self.name = "ours:" + rest
    def wait(self, known, timeout_ms): return known
    def connect(self): return Card("w")
    def close(self): pass
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a reader that works, one that breaks when imported, one that is no reader."""
    about = tmp_path / "other-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    lines = ["ours = other_reader", "broken = other_broken", "hollow = json", "sim = other_broken"]
    (about / "entry_points.txt").write_text("[onecard.readers]\n" + "\n".join(lines) + "\n")
    (tmp_path / "other_reader.py").write_text(MODULE)
    (tmp_path / "other_broken.py").write_text("raise RuntimeError('out of order')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_plugged_reader_serves(installed: Path) -> None:
    """Its scheme opens a card, with waiting answers fetched and a trace when asked for, and watches its reader."""
    session = Session(trace_file=installed / "trace")
    card = session.open_card("ours:ab")
    assert card.transceive(b"\x00\xb0\x00\x00\x00") == b"ab\x90\x00"
    assert (installed / "trace").exists()
    reader = session.watch("ours:x")
    assert reader is not None
    assert reader.name == "ours:x"
    session.close()


def test_ours_come_first(installed: Path) -> None:
    """A plug-in can't take the place of a reader that is ours."""
    session = Session(openers={"sim": lambda rest: (_ for _ in ()).throw(LookupError(rest))})
    with pytest.raises(LookupError):
        session.connect("sim:x")
    assert session.watch("sim:x") is None


@pytest.mark.parametrize(("name", "words"), [("broken:1", "out of order"), ("hollow:1", "connect")])
def test_a_broken_one_is_named(installed: Path, name: str, words: str) -> None:
    """A plug-in that can't be used is named with its cause, and only when it is asked for."""
    with pytest.raises(ConfigError, match=words) as raised:
        Session().connect(name)
    assert "update or remove it" in str(raised.value)
    assert "other_broken" not in sys.modules
    assert cli.run(["--help"], Session()) == 0
    with pytest.raises(ConfigError, match="ours:"):
        Session().connect("nobody:1")
