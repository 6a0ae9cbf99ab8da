"""APDUs, TLVs and records: inverse in both directions, and only FormatError for anything else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, time
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.apdu import SW, Command, Response, meaning
from cardlib.errors import FormatError, NotFound
from cardlib.fields import BcdDate, BcdTime, Raw, Record, Text, U
from cardlib.tlv import Tlv, find

BYTE = st.integers(0, 255)
COMMANDS = st.builds(
    Command, BYTE, BYTE, BYTE, BYTE, st.binary(max_size=300), st.none() | st.integers(1, 256) | st.integers(257, 65535)
)


@given(command=COMMANDS)
def test_command_round_trip(command: Command) -> None:
    """A command survives coding; Le of 256 or 65536 is coded as zero."""
    again = Command.decode(command.encode())
    assert again[:5] == command[:5]
    if command.le is None or command.le % 256:
        assert again.le == command.le
    else:
        assert again.le in (0, command.le)


@given(raw=st.binary(max_size=300))
def test_command_parser(raw: bytes) -> None:
    """Any bytes are a command or a FormatError, and a command codes back to something equal."""
    try:
        command = Command.decode(raw)
    except FormatError:
        return
    assert Command.decode(command.encode()) == command or command.le in (0, 256, 65536)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("00A40000", Command(0, 0xA4, 0, 0)),
        ("00840000" + "08", Command(0, 0x84, 0, 0, b"", 8)),
        ("00A40000023F00", Command(0, 0xA4, 0, 0, b"\x3f\0")),
        ("00A40000023F0000", Command(0, 0xA4, 0, 0, b"\x3f\0", 0)),
        ("00B00000000000", Command(0, 0xB0, 0, 0, b"", 65536)),
        ("00D60000000001AA", Command(0, 0xD6, 0, 0, b"\xaa")),
        ("00D60000000001AA0100", Command(0, 0xD6, 0, 0, b"\xaa", 256)),
    ],
)
def test_seven_cases(raw: str, expected: Command) -> None:
    """Each of the seven coding cases of ISO 7816-4 is understood."""
    assert Command.decode(bytes.fromhex(raw)) == expected


@pytest.mark.parametrize(
    "raw", ["", "00A400", "00A4000003AABB", "00A40000010203FF", "000000000000", "00D60000000000AA"]
)
def test_malformed_commands(raw: str) -> None:
    """Lengths that do not add up are refused."""
    with pytest.raises(FormatError):
        Command.decode(bytes.fromhex(raw))


def test_response_without_status() -> None:
    """A response needs its two status bytes."""
    assert Response.decode(b"\x01\x90\x00") == Response(b"\x01", SW.OK)
    with pytest.raises(FormatError):
        Response.decode(b"\x90")


def test_every_status_word_has_a_meaning() -> None:
    """Each status word of card.md §2 has words for people, and so has 63Cx."""
    assert all(meaning(sw) for sw in SW if sw is not SW.OK)
    assert "2 tries" in meaning(0x63C2)
    assert meaning(0x1234) == ""


TAGS = st.sampled_from([0x4F, 0x50, 0x61, 0x84, 0x9F08, 0x5F50, 0xBF0C, 0x5F8101])


@given(items=st.lists(st.tuples(TAGS, st.binary(max_size=400)), max_size=5))
def test_tlv_round_trip(items: list[tuple[int, bytes]]) -> None:
    """A list of TLVs parses back to the same tags and values."""
    parsed = Tlv.parse_list(b"".join(Tlv(tag, value) for tag, value in items))
    assert [(t.tag, t.value) for t in parsed] == items


@given(raw=st.binary(max_size=60))
def test_tlv_parser(raw: bytes) -> None:
    """Any bytes parse or raise FormatError."""
    try:
        parsed = Tlv.parse_list(raw)
    except FormatError:
        return
    assert b"".join(parsed) == raw


def test_find_walks_the_fci() -> None:
    """The example FCI of card.md §3 gives up its name and directory."""
    fci = bytes.fromhex("6F15840E315041592E5359532E4444463031A503880101")
    assert find(fci, 0x6F, 0x84) == b"1PAY.SYS.DDF01"
    assert find(fci, 0x6F, 0xA5, 0x88) == b"\x01"
    with pytest.raises(NotFound):
        find(fci, 0x6F, 0x50)


@pytest.mark.parametrize("tag", [0x1F, 0x5FFF, 0x1F818181])
def test_impossible_tags(tag: int) -> None:
    """A tag that would not parse again is refused when it is written."""
    with pytest.raises(FormatError):
        Tlv(tag, b"")


@dataclass(frozen=True, slots=True)
class Sample(Record):
    number: Annotated[int, U(3)]
    code: Annotated[bytes, Raw(2)]
    name: Annotated[str, Text(12)]
    day: Annotated[date | None, BcdDate()]
    at: Annotated[time, BcdTime()]


SAMPLES = st.builds(
    Sample,
    st.integers(0, 0xFFFFFF),
    st.binary(min_size=2, max_size=2),
    st.text(max_size=4).filter(lambda t: len(t.encode(errors="replace")) <= 12 and t.isprintable()),
    st.none() | st.dates(),
    st.times().map(lambda t: t.replace(microsecond=0)),
)


@given(sample=SAMPLES)
def test_record_round_trip(sample: Sample) -> None:
    """A record of every kind of field survives coding."""
    assert len(sample.encode()) == Sample.size() == 24
    assert Sample.decode(sample.encode()) == sample


@given(raw=st.binary(max_size=40) | st.binary(min_size=24, max_size=24))
def test_record_parser(raw: bytes) -> None:
    """Any bytes parse or raise FormatError, and what parses codes back."""
    try:
        sample = Sample.decode(raw)
    except FormatError:
        return
    assert sample.encode() == raw


@pytest.mark.parametrize(
    ("field", "sample"),
    [
        ("number", Sample(1 << 24, b"ab", "", None, time())),
        ("code", Sample(0, b"a", "", None, time())),
        ("name", Sample(0, b"ab", "一二三四五", None, time())),
    ],
)
def test_record_names_the_wrong_field(field: str, sample: Sample) -> None:
    """A value that does not fit is refused with the field's name."""
    with pytest.raises(FormatError, match=field):
        sample.encode()
