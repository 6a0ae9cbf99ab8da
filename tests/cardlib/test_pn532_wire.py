"""Frames of PN532 readers and of modules that tell tags' numbers, against captured ones and garbage."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import FormatError
from cardlib.wire import pn532, uid
from cardlib.wire.pn532 import ACK, NACK, SYNTAX_ERROR, Deframer, Frame, Kind, Target, atr_of, encode, targets

CAPTURED = [
    # frames of the chip's manual and of published logs of real chips: GetFirmwareVersion, SAMConfiguration,
    # SetSerialBaudRate's answer, InListPassiveTarget without, then with a tag (two of them)
    ("D402", "0000FF02FED4022A00"),
    ("D50332010607", "0000FF06FAD50332010607E800"),
    ("D414010000", "0000FF05FBD4140100001700"),
    ("D515", "0000FF02FED5151600"),
    ("D511", "0000FF02FED5111A00"),
    ("D44A0100", "0000FF04FCD44A0100E100"),
    ("D54B01010044000704A035B2BC2B80", "0000FF0FF1D54B01010044000704A035B2BC2B80A100"),
    ("D54B01010044000704416D412B0289", "0000FF0FF1D54B01010044000704416D412B0289EA00"),
]
EV1 = bytes.fromhex("0103442007042532AA023380067577810280")
"""A DESFire card as a PN532 lists it; PC/SC readers make up 3B 81 80 01 80 80 for it."""


@pytest.mark.parametrize(("body", "frame"), CAPTURED)
def test_captured_frames(body: str, frame: str) -> None:
    """Frames of real chips are made, and read byte by byte, as they are."""
    assert encode(bytes.fromhex(body)).hex().upper() == frame
    cut = Deframer()
    found = [one for byte in bytes.fromhex(frame) for one in cut.feed(bytes((byte,)))]
    assert found == [Frame(Kind.DATA, bytes.fromhex(body))]


def test_frames_without_data() -> None:
    """ACK, NACK and the error frame are told from data, also when they follow each other."""
    stream = ACK + encode(b"\xd5\x03") + NACK + SYNTAX_ERROR + ACK
    kinds = [frame.kind for frame in Deframer().feed(stream)]
    assert kinds == [Kind.ACK, Kind.DATA, Kind.NACK, Kind.SYNTAX_ERROR, Kind.ACK]


@pytest.mark.parametrize("size", [1, 2, 254, 255, 256, 265])
def test_sizes(size: int) -> None:
    """A body of 255 bytes and more takes the extended frame; what has no room is refused."""
    body = Random(size).randbytes(size)
    frame = encode(body)
    assert (frame[3:5] == b"\xff\xff") == (size >= 255)
    assert list(Deframer().feed(frame)) == [Frame(Kind.DATA, body)]
    with pytest.raises(FormatError):
        encode(bytes(266))
    with pytest.raises(FormatError):
        encode(b"")


@given(st.binary(min_size=2, max_size=265), st.data())
def test_one_wrong_bit_never_gives_another_body(body: bytes, data: st.DataObject) -> None:
    """A frame with a wrong bit gives no data, and does not hide the frame after it for long."""
    raw = bytearray(encode(body))
    raw[data.draw(st.integers(0, len(raw) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    cut = Deframer()
    found = [*cut.feed(bytes(raw)), *cut.feed(encode(b"\xd5\x03"))]
    assert not [one for one in found if one.kind is Kind.DATA and one.body not in (body, b"\xd5\x03")]


@given(st.lists(st.binary(max_size=40), max_size=8), st.randoms(use_true_random=False))
def test_frames_between_garbage(garbage: list[bytes], dice: Random) -> None:
    """Frames between garbage without a start code are all found, however the reads are split."""
    bodies = [b"\xd5" + dice.randbytes(dice.randrange(1, 60)) for _ in garbage]
    stray = [one.replace(b"\x00", b"\x01") for one in garbage]
    stream = b"".join(one + encode(body) for one, body in zip(stray, bodies, strict=True))
    cut = Deframer()
    found: list[Frame] = []
    while stream:
        size = dice.randrange(1, 30)
        found += cut.feed(stream[:size])
        stream = stream[size:]
    assert [one.body for one in found] == bodies


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_a_deframer_survives_anything(pieces: list[bytes]) -> None:
    """Garbage raises nothing, and what waits stays small."""
    cut = Deframer()
    for piece in pieces:
        for frame in cut.feed(piece):
            assert len(frame.body) <= pn532.MAX_BODY
        assert len(cut._pending) <= pn532.MAX_BODY + 8


def test_a_listed_card() -> None:
    """UID, ATS and the answer to reset of a listed card; a plain tag speaks no APDUs."""
    (card,) = targets(b"\x01" + EV1)
    assert card == Target(1, b"\x03\x44", 0x20, bytes.fromhex("042532AA023380"), bytes.fromhex("067577810280"))
    assert card.encode() == EV1
    assert card.speaks_apdus
    assert atr_of(card.ats) == bytes.fromhex("3B8180018080")
    (tag,) = targets(bytes.fromhex("01010044000704A035B2BC2B80"))
    assert (tag.uid.hex(), tag.speaks_apdus) == ("04a035b2bc2b80", False)
    assert targets(b"\0") == []


@pytest.mark.parametrize(("ats", "atr"), [("01", "3B80800101"), ("0200", "3B80800101"), ("0378AA", None), ("05", None)])
def test_strange_answers_to_select(ats: str, atr: str | None) -> None:
    """An empty one gives the shortest answer to reset; one that is cut off is refused."""
    if atr is not None:
        assert atr_of(bytes.fromhex(ats)).hex().upper() == atr
        return
    with pytest.raises(FormatError):
        atr_of(bytes.fromhex(ats))


@given(st.binary(max_size=60))
def test_lists_and_selects_of_garbage(raw: bytes) -> None:
    """Garbage is read or refused, nothing else; what was read is coded as it was."""
    try:
        found = targets(raw)
    except FormatError:
        return
    assert raw[1:].startswith(b"".join(one.encode() for one in found))
    for one in found:
        try:
            assert atr_of(one.ats)[:1] == b"\x3b"
        except FormatError:
            continue


def test_a_captured_tag() -> None:
    """A tag printed 0006547886, as a module was seen to say it."""
    frame = bytes.fromhex("02303130303633453941453235 03")
    assert uid.decode(frame) == bytes.fromhex("010063E9AE")
    assert int.from_bytes(uid.decode(frame)[1:], "big") == 6_547_886
    assert uid.encode(bytes.fromhex("010063E9AE")) == frame


@pytest.mark.parametrize("wrong", ["0130303030303030303030303003", "02303030303030303030303103", "", "02" * 14])
def test_wrong_tags(wrong: str) -> None:
    """Another frame, length, digit or check is refused."""
    with pytest.raises(FormatError):
        uid.decode(bytes.fromhex(wrong))
    with pytest.raises(FormatError):
        uid.encode(bytes(4))


@given(st.binary(min_size=5, max_size=5), st.integers(1, 12), st.integers(0, 7))
def test_a_wrong_bit_gives_no_other_tag(number: bytes, at: int, bit: int) -> None:
    """One wrong bit never gives another number; the case of a letter is none."""
    raw = bytearray(uid.encode(number))
    raw[at] ^= 1 << bit
    assert set(uid.Deframer().feed(bytes(raw))) <= {number}


@given(st.lists(st.one_of(st.binary(max_size=20), st.just(uid.encode(b"12345"))), max_size=20))
def test_tags_between_garbage(pieces: list[bytes]) -> None:
    """Garbage raises nothing, what waits stays small, and a number said twice after it is heard."""
    cut = uid.Deframer()
    for piece in pieces:
        list(cut.feed(piece))
        assert len(cut._pending) < uid.FRAME_BYTES
    assert b"abcde" in [*cut.feed(uid.encode(b"abcde") * 2)]
