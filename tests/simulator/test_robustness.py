"""Whatever comes in: a status word goes out, no exception, and an error changes nothing but error counters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.errors import FormatError
from simulator import image, snapshot
from simulator.card import Card
from simulator.files import Df
from simulator.mothercard import MotherCard
from simulator.sam import SamCard
from tests.simulator.desk import TRANSPORT_KEY, Desk, at_home, card_key, zeros
from tests.simulator.test_mothercard import MotherDesk
from tests.simulator.test_sam import sam_desk

INSTRUCTIONS = sorted(
    {code & 0xFF for kind in (SamCard, MotherCard) for code in kind.handlers} | {0x00, 0xFF, 0x2C, 0xCA, 0x70}
)
SETTINGS = settings(max_examples=150, deadline=None)
CARD_IMAGE = at_home().card.snapshot()
SAM_IMAGE = sam_desk().card.snapshot()
FRESH_IMAGE = Card.vendor_fresh(TRANSPORT_KEY).snapshot()
BLANK_IMAGE = Card.blank().snapshot()
MOTHER_IMAGE = MotherDesk().card.snapshot()
IMAGES = (CARD_IMAGE, SAM_IMAGE, MOTHER_IMAGE, FRESH_IMAGE, BLANK_IMAGE)


@st.composite
def commands(draw: st.DrawFn) -> bytes:
    """Mostly well-formed commands with instructions the card knows, P1 and P2 near what they mean."""
    cla = draw(st.sampled_from((0x00, 0x04, 0x80, 0x84, 0xA0)))
    ins = draw(st.sampled_from(INSTRUCTIONS))
    near = st.sampled_from((0, 1, 2, 3, 4, 5, 6, 9, 0x39, 0x3A, 0x3F, 0x95, 0x97, 0xB8, 0xBC, 0xC4))
    p1, p2 = draw(st.one_of(near, st.integers(0, 255))), draw(st.one_of(near, st.integers(0, 255)))
    sizes = st.sampled_from((0, 2, 4, 6, 7, 8, 11, 14, 15, 16, 20, 21, 24, 25, 28, 32, 36))
    size = draw(sizes)
    data = draw(st.binary(min_size=size, max_size=size))
    tail = draw(st.sampled_from((b"", b"\0", b"\4", b"\x08", b"\x10")))
    body = bytes((len(data),)) + data if data else b""
    command = bytes((cla, ins, p1, p2)) + body + tail
    return command if draw(st.integers(0, 9)) else draw(st.binary(max_size=len(command) + 3))


def selected(raw: bytes, t0: bool) -> Card:
    card = image.restore(raw, zeros, t0=t0)
    for name in ("00A40000023F01", "00A40000021001"):
        card.transceive(bytes.fromhex(name))
    if not card.no_mf:
        card.reach(2 if isinstance(card, MotherCard) else 9)
    return card


def without_counters(raw: bytes) -> dict[str, Any]:
    """An image's content but for error counters, failure counts, and the blocks that they lead to."""
    body = snapshot.unseal(raw)

    def strip(df: dict[str, Any]) -> None:
        df["failures"] = df["blocked"] = None
        df["keys"] = [[kid, header[:4], value] for kid, header, value in df["keys"]]
        for node in df["files"]:
            if isinstance(node, dict):
                strip(node)

    if body["mf"] is not None:
        strip(body["mf"])
    return body


@SETTINGS
@given(st.sampled_from(IMAGES), st.lists(commands(), min_size=1, max_size=12), st.booleans())
def test_any_command_gets_a_status_word(raw: bytes, sent: list[bytes], t0: bool) -> None:
    """Any bytes: an answer of 2 to 258 bytes; after an error the image is as before but for error counters."""
    card = selected(raw, t0)
    for command in sent:
        before = card.snapshot()
        answer = card.transceive(command)
        assert 2 <= len(answer) <= 258
        assert 0x61 <= answer[-2] <= 0x9F
        if answer[-2] not in (0x90, 0x61, 0x6C):
            after = card.snapshot()
            assert after == before or without_counters(after) == without_counters(before)


@SETTINGS
@given(st.binary(max_size=300))
def test_raw_bytes_to_a_card(command: bytes) -> None:
    """Bytes of no form at all: a status word; too short or inconsistent ones 6700."""
    card = image.restore(CARD_IMAGE, zeros)
    answer = card.transceive(command)
    size = len(command)
    fits = size in (4, 5) or (size > 5 and command[4] and size - 5 - command[4] in (0, 1))
    assert (answer == b"\x67\0") or fits


@SETTINGS
@given(st.sampled_from(IMAGES), st.data())
def test_damaged_images(raw: bytes, data: st.DataObject) -> None:
    """A flipped byte, a cut or an added tail is found by the digest."""
    at = data.draw(st.integers(0, len(raw) - 1))
    flipped = raw[:at] + bytes((raw[at] ^ data.draw(st.integers(1, 255)),)) + raw[at + 1 :]
    for damaged in (flipped, raw[:at], raw + b"\0"):
        with pytest.raises(FormatError):
            image.restore(damaged)


def values(body: object) -> list[tuple[Any, Any]]:
    """Each place in nested maps and lists, as (container, key)."""
    places: list[tuple[Any, Any]] = []
    if isinstance(body, dict):
        places += [(body, key) for key in body]
    elif isinstance(body, list):
        places += [(body, i) for i in range(len(body))]
    for container, key in list(places):
        places += values(container[key])
    return places


@SETTINGS
@given(
    st.sampled_from((CARD_IMAGE, SAM_IMAGE, MOTHER_IMAGE)),
    st.data(),
    st.one_of(st.none(), st.integers(-5, 1 << 40), st.binary(max_size=40), st.lists(st.integers(0, 300), max_size=3)),
)
def test_images_of_wrong_content(raw: bytes, data: st.DataObject, junk: object) -> None:
    """A wrong value anywhere under a right digest: FormatError, or a card that still answers."""
    body = snapshot.unseal(raw)
    places = values(body)
    container, key = places[data.draw(st.integers(0, len(places) - 1))]
    container[key] = junk
    try:
        card = image.restore(snapshot.seal(body), zeros)
    except FormatError:
        return
    for command in ("00A40000023F00", "00A40000023F01", "00B0950000", "0084000008", "805C000204", "80EA000000"):
        assert len(card.transceive(bytes.fromhex(command))) >= 2
    card.snapshot()


@SETTINGS
@given(st.lists(commands(), max_size=15))
def test_images_round_trip_after_any_commands(sent: list[bytes]) -> None:
    """Whatever was done to a card, its image gives the same card."""
    card = selected(FRESH_IMAGE, t0=False)
    card.transceive(bytes.fromhex("80E03F0115380800080895FFFFF04F4E454341524401000003E9"))
    for command in sent:
        card.transceive(command)
    raw = card.snapshot()
    assert image.restore(raw).snapshot() == raw


def test_t0() -> None:
    """T=0: data wait for GET RESPONSE, in parts too; 6Cxx names the right Le; another command drops what waits."""
    direct = Desk(image.restore(CARD_IMAGE, zeros))
    desk = Desk(image.restore(CARD_IMAGE, zeros, t0=True))
    select = "00A404000DF04F4E454341524401000003E9"
    desk(select, 0x6134)
    head = desk("00C0000010", 0x6124)
    desk("00C0000030", 0x6C24)
    assert head + desk("00C0000024") == direct(select)
    desk("00C0000000", 0x6985)
    desk("00B0950040", 0x6C1E)
    assert desk("00B095001E") == direct("00B0950000")
    desk("805C000205", 0x6C04)
    assert desk("805C000204") == direct("805C000204")
    desk(select, 0x6134)
    desk("0084000008")
    desk("00C0000000", 0x6985)
    assert (desk.card.atr[:2], direct.card.atr[:2]) == (b"\x3b\x67", b"\x3b\x87")


def test_purchase_over_t0() -> None:
    """Challenge and purse session survive GET RESPONSE, not an unknown command of the same number."""
    desk = Desk(selected(CARD_IMAGE, t0=True))
    for between, sw in ((b"", 0x6108), (b"\x80\xc0\0\0\x0f", 0x6901)):
        desk("805001020B0100000001310000000101", 0x610F)
        init = desk("00C000000F")
        if between:
            desk(between, 0x6E00)
        session = card_key("purchase").session(init[11:15] + init[4:6] + b"\0\1")
        mac1 = session.mac(bytes.fromhex("0000000106310000000101") + bytes(7))
        desk(b"\x80\x54\x01\0\x0f\0\0\0\1" + bytes(7) + mac1, sw)


def test_directories_say_their_name_only() -> None:
    """The repr of what holds keys shows no key."""
    card = image.restore(CARD_IMAGE)
    df = card.mf.files.value[0x3F01]
    assert isinstance(df, Df)
    texts = [repr(df)] + [repr(record) for record in df.keys.value.values()]
    assert all(record.value.value.hex() not in "".join(texts) for record in df.keys.value.values())
    assert texts[:2] == ["<Df 3F01>", "<KeyRecord 39/00>"]
