"""The link's codecs: COBS, frames, the stream cutter, HELLO, CBOR, SMP, tokens and signed files."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.crypto.signing import SigningKey
from cardlib.errors import FormatError, MacMismatch
from cardlib.wire import cbor, link, smp
from cardlib.wire.authority import MAX_TOKEN_MS, SignedFile, Token
from cardlib.wire.link import Deframer, Frame, HelloAnswer, HelloRequest, Kind

AUTHORITY = SigningKey(bytes(range(7, 39)))
TOKEN = Token(bytes(range(32)), bytes(32), "An", ("east",), ("clock", "push"), 1_000, 9_000, b"t1")
FILE = SignedFile("config", "T-1", 3, 77, b"version = 3", (b"t0",))
HELLO = HelloAnswer(b"nonce..8", "POS-0001", "OC-POS", 1100, (115_200, 9_600), True, bytes(16))
frames = st.builds(
    Frame,
    address=st.integers(0, 127),
    kind=st.just(Kind.DATA),
    seq=st.integers(1, 255),
    body=st.binary(max_size=1100),
    from_slave=st.booleans(),
    more=st.booleans(),
    encrypted=st.booleans(),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-9, 999) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=8,
)
PUBLISHED_COBS = [  # the examples of Wikipedia's article "Consistent Overhead Byte Stuffing"
    ("00", "0101"), ("0000", "010101"), ("001100", "01021101"), ("11220033", "0311220233"), ("11223344", "0511223344"),
    ("11000000", "0211010101"),
    (bytes(range(1, 255)).hex(), "ff" + bytes(range(1, 255)).hex()),
    (bytes(range(255)).hex(), "01ff" + bytes(range(1, 255)).hex()),
    (bytes(range(1, 256)).hex(), "ff" + bytes(range(1, 255)).hex() + "02ff"),
    ((bytes(range(2, 256)) + b"\0").hex(), "ff" + bytes(range(2, 256)).hex() + "0101"),
    ((bytes(range(3, 256)) + b"\0\1").hex(), "fe" + bytes(range(3, 256)).hex() + "0201"),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "coded"), PUBLISHED_COBS)
def test_cobs_examples(plain: str, coded: str) -> None:
    """The published examples hold in both directions."""
    assert link.cobs(bytes.fromhex(plain)).hex() == coded
    assert link.uncobs(bytes.fromhex(coded)).hex() == plain


@given(st.binary(max_size=600) | st.integers(0, 1200).map(lambda n: b"\x07" * n))
def test_cobs_is_invertible_and_free_of_zero(data: bytes) -> None:
    """Any bytes survive, no 00 is left, and the cost is one byte per 254 and one."""
    coded = link.cobs(data)
    assert 0 not in coded
    assert link.uncobs(coded) == data
    assert len(coded) <= len(data) + len(data) // 254 + 1


def test_frame_bytes() -> None:
    """A frame is COBS(addr, ctl, seq, body, big-endian zlib CRC-32) and 00; the bits are where link.md has them."""
    raw = bytes([0x85, 0b1100, 7]) + b"hi"
    frame = Frame(5, Kind.DATA, 7, b"hi", from_slave=True, more=True, encrypted=True)
    assert frame.encode() == link.cobs(raw + zlib.crc32(raw).to_bytes(4, "big")) + b"\0"
    assert [kind.value for kind in (Kind.DATA, Kind.ACK, Kind.BUSY, Kind.HELLO)] == [0, 1, 2, 3]
    assert link.next_seq(254) == 255
    assert link.next_seq(255) == 1


@given(frames)
def test_frames_survive(frame: Frame) -> None:
    """What was encoded is decoded."""
    assert Frame.decode(frame.encode()[:-1]) == frame


@given(frames, st.data())
def test_one_flipped_bit_is_caught(frame: Frame, data: st.DataObject) -> None:
    """A frame with one bit changed is refused (or falls apart at the new 00)."""
    coded = bytearray(frame.encode()[:-1])
    coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FormatError):
        Frame.decode(bytes(coded))


def raw_frame(head: bytes, body: bytes = b"") -> bytes:
    raw = head + body
    return link.cobs(raw + zlib.crc32(raw).to_bytes(4, "big"))


@pytest.mark.parametrize(
    "coded",
    [
        b"", b"\x05abc", b"\x03a\0b", link.cobs(b"\1\0\1\0\0\0"), raw_frame(b"\1\0\0"), raw_frame(b"\1\x10\1"),
        raw_frame(b"\1\x01\1", b"x"), raw_frame(b"\1\x02\1", b"x"), raw_frame(b"\1\x05\1"), raw_frame(b"\1\x0b\0"),
        raw_frame(b"\1\0\1", bytes(1101)), bytes([1]) * 5000,
    ],
)  # fmt: skip
def test_corrupt_frames_are_refused(coded: bytes) -> None:
    """Cut blocks, wrong CRC, control bits that do not exist, sequence 0, bodies of a wrong size."""
    with pytest.raises(FormatError):
        Frame.decode(coded)


@given(st.lists(frames, max_size=4), st.data())
def test_deframer_whatever_the_pieces(sent: list[Frame], data: st.DataObject) -> None:
    """However a stream is cut into pieces, the same frames come out, also behind garbage that ends with 00."""
    stream = b"".join(data.draw(st.binary(max_size=40)) + b"\0" + one.encode() for one in sent)
    deframer = Deframer(0.02, text=data.draw(st.booleans()))
    got: list[Frame | bytes] = []
    while stream:
        size = data.draw(st.integers(1, 400))
        got += deframer.feed(stream[:size], 0.0)
        stream = stream[size:]
    assert [one for one in got if isinstance(one, Frame) and one in sent] == sent


def test_gap_empties_the_buffer() -> None:
    """A silence within a frame drops its beginning only: the next frame is whole."""
    deframer = Deframer(0.02)
    frame = Frame(1, Kind.DATA, 1, b"body")
    assert list(deframer.feed(frame.encode()[:5], 0.0)) == []
    assert list(deframer.feed(frame.encode(), 0.03)) == [frame]
    assert deframer.bad == 1
    assert list(deframer.feed(frame.encode()[:5], 1.0)) == []
    assert list(deframer.feed(frame.encode()[5:], 1.019)) == [frame]


def test_deframer_keeps_no_flood() -> None:
    """Endless bytes without a delimiter take no memory, and the frame after them is found."""
    deframer = Deframer(0.02, text=True)
    for _ in range(100):
        assert list(deframer.feed(b"\x06\x0a" * 5000, 0.0)) == []
        assert len(deframer._pending) < 10_000 + 1200
    frame = Frame(1, Kind.ACK, 1)
    assert list(deframer.feed(b"\0" + frame.encode(), 0.0)) == [frame]


@given(st.binary(max_size=3000))
def test_deframer_swallows_garbage(data: bytes) -> None:
    """Random bytes raise nothing, with and without text framing."""
    for text in (False, True):
        assert all(isinstance(one, Frame | bytes) for one in Deframer(0.02, text=text).feed(data, 0.0))


def test_fragments() -> None:
    """A message longer than a body is cut into frames with following numbers; only the last says it is the last."""
    message = random.Random(1).randbytes(2500)
    parts = link.fragments(9, 254, message, from_slave=False, encrypted=True)
    assert [(part.seq, part.more, part.encrypted) for part in parts] == [
        (254, True, True),
        (255, True, True),
        (1, False, True),
    ]
    assert b"".join(part.body for part in parts) == message
    assert [part.body for part in link.fragments(9, 1, b"", from_slave=False, encrypted=False)] == [b""]


def test_hello() -> None:
    """HELLO bodies have the keys of link.md; an answer fits the 120 bytes of its slot."""
    assert cbor2.loads(HelloRequest(b"12345678", 16).encode()) == {0: 1, 1: b"12345678", 2: 16}
    assert HelloRequest.decode(HelloRequest(b"12345678", 16).encode()) == HelloRequest(b"12345678", 16)
    assert HelloAnswer.decode(HELLO.encode()) == HELLO
    wanted = {0: 1, 1: b"nonce..8", 2: "POS-0001", 3: "OC-POS", 4: 1100, 5: [115_200, 9_600], 6: 1, 7: bytes(16)}
    assert cbor2.loads(HELLO.encode()) == wanted
    long = HelloAnswer(bytes(8), "S" * 24, "M" * 16, 1100, (115_200, 57_600, 9_600, 19_200), True, bytes(16))
    assert len(Frame(126, Kind.HELLO, 0, long.encode(), from_slave=True).encode()) <= link.SLOT_BYTES
    assert link.slot_of("T1", b"12345678", 16) == zlib.crc32(b"T112345678") % 16
    assert link.slot_seconds(9600) == pytest.approx(0.145)
    assert link.prologue(5, "T1") == b"OCL1\x01\x05\x02T1"


def test_label() -> None:
    """A fingerprint is 26 Base32 characters on the label, read back with hyphens and in small letters."""
    text = link.label_text(bytes(range(16)))
    assert len(text) == 26
    assert link.parse_label(text.lower()[:13] + " - " + text[13:]) == bytes(range(16))
    for wrong in (text[:-1], text + "A", "1" * 26, "", text[:-1] + "B"):
        with pytest.raises(FormatError):
            link.parse_label(wrong)


@given(values)
def test_cbor_is_invertible(value: object) -> None:
    """Every value of our types comes back, in one encoding."""
    raw = cbor.encode(value)
    assert cbor.decode(raw) == value
    assert cbor.encode(cbor.decode(raw)) == raw


@pytest.mark.parametrize(
    "raw",
    [
        "a201000100", "a202000100", "1800", "5f4101ff", "bf0100ff", "0000", "", "f90000", "c000", "f7", "a1f500",
        "a18000", "81" * 40 + "00", "9bffffffffffffffff", "5bffffffffffffffff00", "c249010000000000000000", "1c",
        "a2616100000001", "d8235f", "d81c80", "ff", "a2206100" + "0000",
    ],
)  # fmt: skip
def test_other_cbor_is_refused(raw: str) -> None:
    """Duplicate keys, wrong order, long forms, indefinite lengths, tags, floats, strays, depth, absurd lengths."""
    with pytest.raises(FormatError):
        cbor.decode(bytes.fromhex(raw))


def test_cbor_order_is_that_of_the_newer_rule() -> None:
    """Keys stand in the order of their encoded bytes (RFC 8949 §4.2.1), not shortest first (RFC 7049)."""
    assert cbor.encode({-1: 0, 100: 1, "a": 2}).hex() == "a318640120006161" + "02"
    assert cbor2.dumps({-1: 0, 100: 1}, canonical=True) != cbor.encode({-1: 0, 100: 1})
    with pytest.raises(FormatError):
        cbor.decode(cbor2.dumps({-1: 0, 100: 1}, canonical=True))


@given(st.binary(max_size=200))
def test_parsers_raise_only_format_errors(raw: bytes) -> None:
    """Whatever comes, each parser gives a value or a FormatError (a MacMismatch where a signature is checked)."""
    parsers: list[Callable[[bytes], object]] = [
        Frame.decode, HelloRequest.decode, HelloAnswer.decode, smp.Message.decode, cbor.decode,
        smp.LineReader().take, lambda one: Token.decode(one, None), lambda one: Token.decode(one, AUTHORITY.public),
        lambda one: SignedFile.decode(one, AUTHORITY.public),
    ]  # fmt: skip
    for parse in parsers:
        try:
            parse(raw)
        except (FormatError, MacMismatch):
            continue


@given(st.data(), st.sampled_from([HELLO.encode(), smp.Message.request(smp.ECHO, 1, {"d": "x"}).encode()]))
def test_changed_bodies_raise_only_format_errors(data: st.DataObject, good: bytes) -> None:
    """A good body with some bytes changed is parsed or refused, never worse."""
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for parse in (HelloAnswer.decode, smp.Message.decode):
        try:
            parse(bytes(raw))
        except FormatError:
            continue


def test_smp_header() -> None:
    """The header has MCUmgr's eight bytes; the answer has the request's numbers."""
    request = smp.Message.request(smp.ECHO, 0x42, {"d": "hi"})
    assert request.encode().hex() == "0a000006" + "0000" + "4200" + "a16164626869"
    answer = request.answer({"r": "hi"})
    assert answer.encode()[:1] == b"\x0b"
    assert smp.Message.decode(answer.encode()) == answer
    assert smp.Message.decode(request.encode()).key == smp.ECHO


@pytest.mark.parametrize("change", [(0, 0x2A), (0, 0x0F), (1, 1), (2, 1), (3, 7), (8, 0x80)])
def test_smp_headers_out_of_range(change: tuple[int, int]) -> None:
    """Reserved bits, unknown operations, a wrong length and a payload that is no map are refused."""
    raw = bytearray(smp.Message.request(smp.ECHO, 1, {"d": "hi"}).encode())
    raw[change[0]] = change[1]
    with pytest.raises(FormatError):
        smp.Message.decode(bytes(raw))


def test_our_groups_have_number_keys() -> None:
    """A text key, a negative one or one above 23 in a group of ours is refused."""
    for payload in ({"a": 1}, {-1: 1}, {24: 1}):
        with pytest.raises(FormatError):
            smp.Message.decode(smp.Message.request(smp.INFO, 1, payload).encode())


@given(st.binary(max_size=1500))
def test_text_framing(message: bytes) -> None:
    """Lines of at most 127 bytes bring a message back, alone and through the stream cutter."""
    coded = smp.encode_lines(message)
    lines = coded.splitlines(keepends=True)
    assert max(map(len, lines)) <= 127
    reader, deframer = smp.LineReader(), Deframer(0.5, text=True)
    got = [reader.take(line) for line in deframer.feed(coded, 0.0) if isinstance(line, bytes)]
    assert got[-1] == message
    assert not any(got[:-1])


def test_text_framing_refuses() -> None:
    """A continuation of nothing, a wrong CRC, bytes too many and no Base64 are refused; the next packet is whole."""
    good = smp.encode_lines(b"message")[:-1]
    reader = smp.LineReader()
    for wrong in (b"\x04\x14AAAA", good[:-4] + b"AAA=", good + b"====", b"\x06\x09****", b"\x06\x09AAAA"):
        with pytest.raises(FormatError):
            reader.take(wrong)
        assert reader.take(good) == b"message"


def test_tokens() -> None:
    """A token comes back; another authority's, a changed one or one too long is refused."""
    raw = TOKEN.encode(AUTHORITY)
    assert Token.decode(raw, AUTHORITY.public) == TOKEN
    assert list(cbor2.loads(raw[:-64])) == list(range(1, 9))
    with pytest.raises(MacMismatch):
        Token.decode(raw, SigningKey(bytes(range(8, 40))).public)
    with pytest.raises(MacMismatch):
        Token.decode(raw[:40] + b"\xff" + raw[41:], AUTHORITY.public)
    for end_ms in (1_000, 1_001 + MAX_TOKEN_MS):
        with pytest.raises(FormatError):
            Token(bytes(32), bytes(32), "An", (), (), 1_000, end_ms, b"t").encode(AUTHORITY)


def test_signed_files() -> None:
    """A signed file comes back; a changed one is refused."""
    raw = FILE.encode(AUTHORITY)
    assert SignedFile.decode(raw, AUTHORITY.public) == FILE
    for at in range(len(raw)):
        with pytest.raises((MacMismatch, FormatError)):
            SignedFile.decode(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :], AUTHORITY.public)
