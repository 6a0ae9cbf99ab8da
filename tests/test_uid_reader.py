"""Modules that tell tags' numbers: one presentation while a tag lies there, and nothing but its number."""

from __future__ import annotations

import pytest

from cardlib.errors import CardRemoved, ConfigError, ReaderLost
from cardlib.readers import NOTHING_KNOWN
from cardlib.uid import HOLD_S, UidReader
from simulator.uid import REPEAT_S, SimulatedUidModule

TAG, OTHER = b"\x01\x00\x63\xe9\xae", b"other"


class Line:
    """A module's line in simulated time."""

    def __init__(self, damage: float = 0.0, seed: int = 0) -> None:
        self.now_s, self.lost = 100.0, False
        self.module = SimulatedUidModule(lambda: self.now_s, damage, seed)

    def write(self, data: bytes) -> None:
        raise AssertionError(data)

    def read(self) -> bytes:
        if self.lost:
            raise ReaderLost("the adapter is gone")
        self.now_s += 0.005
        return b"".join(said for _, said in self.module.turn(b""))

    def close(self) -> None:
        self.module.tag = None

    def reader(self) -> UidReader:
        return UidReader("COM1", lambda *_: self, lambda: self.now_s)


@pytest.mark.parametrize(("damage", "seed"), [(0.0, 0), *((0.3, seed) for seed in range(5))])
def test_one_presentation(damage: float, seed: int) -> None:
    """A tag that lies there for ten seconds is presented once, also where bytes are damaged; gone is gone."""
    line = Line(damage, seed)
    reader = line.reader()
    empty = reader.wait(NOTHING_KNOWN, 0)
    assert not empty.present
    line.module.tag = TAG
    lying = reader.wait(empty, 2_000)
    assert lying.present
    assert reader.wait(lying, 10_000) == lying
    assert reader.connect().transceive(b"\xff\xca\0\0\0") == TAG + b"\x90\0"
    line.module.tag = None
    began_s = line.now_s
    gone = reader.wait(lying, 2_000)
    assert not gone.present
    assert line.now_s - began_s < HOLD_S + REPEAT_S
    with pytest.raises(CardRemoved):
        reader.connect()
    line.module.tag = TAG
    assert reader.wait(gone, 2_000).changes not in (gone.changes, lying.changes)


def test_another_tag_is_another() -> None:
    """A tag put in the place of another at once is a presentation of its own."""
    line = Line()
    reader = line.reader()
    line.module.tag = TAG
    first = reader.wait(NOTHING_KNOWN._replace(changes=0), 1_000)
    line.module.tag = OTHER
    second = reader.wait(first, 1_000)
    assert (second.present, second.changes) == (True, first.changes + 1)
    assert reader.connect().transceive(b"\xff\xca\0\0\0") == OTHER + b"\x90\0"


def test_a_tag_refuses_everything_else() -> None:
    """No command of a card's does anything with a tag."""
    line = Line()
    reader = line.reader()
    line.module.tag = TAG
    reader.wait(NOTHING_KNOWN._replace(changes=0), 1_000)
    tag = reader.connect()
    assert {tag.transceive(bytes((cla, ins, 0, 0))) for cla in range(255) for ins in range(0, 256, 5)} == {b"\x6e\0"}


def test_a_module_that_is_lost_and_comes_back() -> None:
    """An unplugged module is a lost reader; plugged in again its tag is a new presentation."""
    line = Line()
    reader = line.reader()
    line.module.tag = TAG
    assert reader.wait(NOTHING_KNOWN._replace(changes=0), 1_000).present
    line.lost = True
    with pytest.raises(ReaderLost):
        reader.wait(NOTHING_KNOWN, 100)
    line.lost, line.module.tag = False, TAG
    assert reader.wait(reader.wait(NOTHING_KNOWN, 0), 1_000).present
    with pytest.raises(ConfigError, match="uid:PORT"):
        UidReader("")
