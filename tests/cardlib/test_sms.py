"""Short messages: texts, addresses, segments of several senders in any order, lengths that do not fit."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import FormatError
from cardlib.wire import sms

NUMBER = sms.Address.of("+8613800138000")
GSM = st.text(alphabet="".join(sms._CODES), max_size=400)


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("hello", "E8329BFD06"),  # the example that every description of the packing has
        ("hellohello", "E8329BFD4697D9EC37"),
    ],
)
def test_packing(text: str, packed: str) -> None:
    """Seven-bit texts are packed as in published examples."""
    assert sms.encode_text(text)[0].user_data.hex().upper() == packed


@given(text=GSM | st.text(max_size=300))
def test_texts_round_trip(text: str) -> None:
    """Any text comes out as it went in, in one message or several, none of which is too long."""
    parts = sms.encode_text(text, 7)
    read = [sms.decode_text(p.dcs, p.length, p.user_data, has_header=p.has_header) for p in parts]
    assert "".join(words for _, words in read) == text
    assert all(len(p.user_data) <= sms.MAX_USER_DATA for p in parts)
    if len(parts) > 1:
        assert [concat for concat, _ in read] == [sms.Concat(7, len(parts), n) for n in range(1, len(parts) + 1)]
    for part in parts:
        first = sms.UDHI if part.has_header else 0
        deliver = sms.Deliver(NUMBER, part.user_data, 0, part.dcs, bytes(7), first, part.length)
        assert sms.Deliver.decode(deliver.encode()) == deliver
        submit = sms.Submit(NUMBER, part.user_data, 9, 0, part.dcs, first | 1, part.length)
        assert sms.Submit.decode(submit.encode()) == submit


@pytest.mark.parametrize(
    ("text", "parts", "dcs"),
    [
        ("a" * 160, 1, 0), ("a" * 161, 2, 0), ("a" * 306, 2, 0), ("a" * 307, 3, 0), ("€" * 80, 1, 0), ("€" * 81, 2, 0),
        ("a" * 152 + "€" + "a" * 20, 2, 0), ("中" * 70, 1, 8), ("中" * 71, 2, 8), ("中" * 134, 2, 8),
        ("中" * 135, 3, 8), ("😀" * 35, 1, 8), ("😀" * 36, 2, 8), ("", 1, 0),
    ],
)  # fmt: skip
def test_text_limits(text: str, parts: int, dcs: int) -> None:
    """160 septets or 70 characters fit one message, 153 or 67 a part; nothing that belongs together is parted."""
    made = sms.encode_text(text)
    assert (len(made), made[0].dcs) == (parts, dcs)
    for part in made:
        sms.decode_text(part.dcs, part.length, part.user_data, has_header=part.has_header)[1].encode()


def test_texts_that_can_not_be_sent() -> None:
    """Half a character, and more than 255 messages, are refused."""
    for text in ("\ud800", "a" * 153 * 255 + "a", "中" * 67 * 255 + "中"):
        with pytest.raises(FormatError):
            sms.encode_text(text)
    assert len(sms.encode_text("a" * 153 * 255)) == 255


@given(number=st.from_regex(r"\+?[0-9]{1,20}", fullmatch=True))
def test_numbers_round_trip(number: str) -> None:
    """A telephone number keeps its plus, its digits and their count in both codings."""
    address = sms.Address.of(number)
    assert address.number == number
    assert sms.Address.decode(address.encode() + b"rest") == (address, b"rest")
    assert sms.Address.decode_whole(address.encode_whole()) == address


def test_a_name_as_sender() -> None:
    """A sender may be a name of the GSM alphabet; one that does not fit is refused."""
    name = sms.Address(0xD0, "OneCard")
    assert sms.Address.decode(name.encode()) == (name, b"")
    for text in ("Twelve chars", "一卡通"):
        with pytest.raises(FormatError):
            sms.Address(0xD0, text).encode()
    for number in ("", "+", "12a", "1" * 21, "１２"):
        with pytest.raises(FormatError):
            sms.Address.of(number)


@given(data=st.binary(min_size=1, max_size=2000), wide=st.booleans(), seed=st.integers(0, 1 << 16))
def test_segments_in_any_order(data: bytes, wide: bool, seed: int) -> None:
    """Segments of two senders with one reference, mixed, repeated and shuffled, come out whole and apart."""
    shuffled = random.Random(seed)
    mine = sms.split(data, sms.IEI_COMMAND, 5, wide=wide)
    yours = sms.split(data[::-1] + b"x", sms.IEI_COMMAND, 5, wide=wide)
    line = [("me", s) for s in mine] + [("you", s) for s in yours]
    shuffled.shuffle(line)
    store, whole = sms.Segments(), dict[str, bytes]()
    for sender, segment in line:
        for _ in range(1 if len(mine) == 1 or sender in whole else shuffled.randint(1, 2)):
            joined = store.add(sender, segment)
            if joined:
                whole[sender] = joined.payload
    assert whole == {"me": data, "you": data[::-1] + b"x"}


def test_segment_sizes() -> None:
    """One message takes 137 octets; the first of several 132 (16-bit reference: 131), the others 134 (133)."""
    assert [len(s) for s in sms.split(bytes(137), 0x70, 1)] == [140]
    assert [s[:8].hex() for s in sms.split(bytes(138), 0x70, 1)] == ["0700030102017000", "0500030102020000"]
    assert [len(s) for s in sms.split(bytes(132 + 134), 0x70, 1)] == [140, 140]
    assert len(sms.split(bytes(132 + 134 + 1), 0x70, 1)) == 3
    assert [len(s) for s in sms.split(bytes(131 + 133), 0x71, 0x1234, wide=True)] == [140, 140]
    assert len(sms.split(bytes(131 + 133 + 1), 0x71, 0x1234, wide=True)) == 3
    assert sms.split(bytes(200), 0x71, 0x1234, wide=True)[0][:9].hex() == "080804123402017100"
    assert len(sms.split(bytes(132 + 254 * 134), 0x70, 1)) == 255
    for reference, size in ((256, 300), (1, 133 + 254 * 134)):
        with pytest.raises(FormatError):
            sms.split(bytes(size), 0x70, reference)


def test_the_store_is_bounded() -> None:
    """A flood of first segments costs the oldest incomplete message, never more memory; too long ones are refused."""
    store = sms.Segments(most=8, messages=4)
    for reference in range(40):
        assert store.add("flood", sms.split(bytes(200), 0x70, reference)[0]) is None
        assert len(store) <= 4
    with pytest.raises(FormatError):
        store.add("long", sms.split(bytes(134 * 9), 0x70, 1)[0])


def test_a_reused_reference_begins_anew() -> None:
    """A segment that contradicts the one kept belongs to a new message: the old remains are not mixed in."""
    old, new = sms.split(b"o" * 200, 0x70, 1), sms.split(b"n" * 200, 0x70, 1)
    store = sms.Segments()
    assert store.add("a", old[0]) is None
    assert store.add("a", new[0]) is None
    joined = store.add("a", new[1])
    assert joined is not None
    assert joined.payload == b"n" * 200


@pytest.mark.parametrize(
    "segment",
    ["", "05", "0500030102", "050003010200", "050003010203", "050003010100", "0400020101", "0608040001020300"],
)
def test_broken_headers(segment: str) -> None:
    """A header longer than its message, or a part 0, 3 of 2 or 1 of 0, is refused."""
    with pytest.raises(FormatError):
        sms.Segments().add("a", bytes.fromhex(segment))


def test_comprehension_bits_and_both_first_octets() -> None:
    """ENVELOPE is read with tags of either comprehension bit; SMS-DELIVER with 40 and with 44."""
    for first in (0x40, 0x44):
        deliver = sms.Deliver(NUMBER, b"\x02\x70\x00data", first=first).encode()
        assert sms.Deliver.decode(deliver).first == first
        for tags in ("82 86 8B", "02 06 0B", "02 86 0B"):
            device, address, tpdu = bytes.fromhex(tags)
            inner = bytes((device, 2, 0x83, 0x81, address, 3, 0x91, 0x21, 0x43, tpdu, len(deliver))) + deliver
            found = sms.parse_envelope(bytes((0xD1, len(inner))) + inner)
            assert found == (sms.Address(0x91, "1234"), deliver)


@pytest.mark.parametrize("field", ["address", "user data", "short", "long"])
def test_lengths_that_do_not_fit(field: str) -> None:
    """Every wrong length of an SMS-DELIVER is refused."""
    good = sms.Deliver(NUMBER, b"\x02\x70\x00data").encode()
    for delta in range(1, 256):
        wrong = bytearray(good)
        if field == "address":
            wrong[1] = (wrong[1] + delta) % 256
            if (wrong[1] + 1) // 2 == (good[1] + 1) // 2:
                continue
        elif field == "user data":
            wrong[-8] = (wrong[-8] + delta) % 256
        elif field == "short":
            wrong = wrong[: max(0, len(wrong) - delta)]
        else:
            wrong += bytes(delta)
        try:
            decoded = sms.Deliver.decode(bytes(wrong))
        except FormatError:
            continue
        assert decoded.user_data != b"\x02\x70\x00data"
