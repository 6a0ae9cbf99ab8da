"""The mother card's own commands: what opens it, what it gives out and under which key, and what never (keys.md)."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.crypto import Key, make_key
from cardlib.errors import CardRemoved, FormatError
from cardlib.profile import CardKind, Purpose, make_serial
from simulator import image, snapshot
from simulator.mothercard import MAX_KEYS, MotherCard
from simulator.sam import SamCard
from tests.simulator.desk import (
    SERIAL,
    TRANSPORT_KEY,
    Desk,
    at_home,
    protect,
    zeros,
)

PLATFORM = make_key(TRANSPORT_KEY)
PROOF = make_key(bytes.fromhex("B0B1B2B3B4B5B6B7B8B9BABBBCBDBEBF"))
PIN = "270182"
SAM = make_serial(CardKind.SAM, 1, 9)
VALUES = {purpose: bytes(range(purpose * 16, purpose * 16 + 16)) for purpose in range(1, 15)}
PLACES = {  # purpose: type, kid, header, SAM usage (profile.md, card.md §7.5)
    Purpose.CONTROL: "3900F0F008FF21", Purpose.TERMINAL: "3901F0F001FF2A", Purpose.RECHARGE: "3902F0F002FF2B",
    Purpose.CARD: "3001F0F0010027", Purpose.MAINTENANCE: "3600F0F0FFFF25",
    Purpose.PIN_UNBLOCK: "3700F0F0FFFF23", Purpose.PIN: "3A00F0EF033300", Purpose.PURCHASE: "3E01F1F0010022",
    Purpose.LOAD: "3F0132F0010000", Purpose.REFUND: "3F03F1F001002C", Purpose.UNLOAD: "3D01F0F0010000",
    Purpose.TAC: "3400F0F0010000", Purpose.SLOT: "00000000000000", Purpose.SAM_CONTROL: "00000000000000",
}  # fmt: skip


def record(purpose: int, version: int = 1) -> bytes:
    value = b"" if purpose == Purpose.PIN else VALUES[purpose]
    return bytes((purpose, version, 0)) + bytes.fromhex(PLACES[Purpose(purpose)]) + value


class MotherDesk(Desk):
    """A mother card with every key of version 1 and nine deliveries each; the platform is logged in."""

    def __init__(self) -> None:
        super().__init__(MotherCard.vendor_fresh(TRANSPORT_KEY, zeros))
        self.authenticate(0, PLATFORM)
        self.write_key(1, 0, bytes.fromhex("3AF0EF0133" + PIN), PLATFORM)
        self.write_key(1, 1, bytes.fromhex("39F1F002FF") + bytes.fromhex("B0B1B2B3B4B5B6B7B8B9BABBBCBDBEBF"), PLATFORM)
        for purpose in PLACES:
            self.hold(record(purpose))
            self.limit(purpose, 9)

    @property
    def mother(self) -> MotherCard:
        assert isinstance(self.chip, MotherCard)
        return self.chip

    def hold(self, raw: bytes, sw: int = 0x9000) -> None:
        self.secured("84D40000", raw, PLATFORM, sw, encrypt=True)

    def limit(self, purpose: int, count: int, sw: int = 0x9000) -> None:
        self.secured(f"84DA{purpose:02X}00", count.to_bytes(2, "big"), PLATFORM, sw)

    def open(self) -> MotherDesk:
        self("00A40000023F00")
        self("0020000003" + PIN)
        self.authenticate(1, PROOF)
        return self

    @classmethod
    @cache
    def at_work(cls) -> MotherDesk:
        """One opened card for many questions, with deliveries enough."""
        desk = cls().open()
        desk.mother.deliveries.value = dict.fromkeys(PLACES, 0xFFFF)
        return desk

    def left(self, purpose: int) -> int:
        return self.mother.deliveries.value[purpose]


def opened() -> MotherDesk:
    return MotherDesk().open()


def deliver(
    purpose: int, place: str, control: int = 0, form: int = 1, *, version: int = 1, under: int = 1, rfu: str = "000000",
    serial: bytes = SERIAL, pin: str = "", challenge: str = "A1A2A3A4",
) -> bytes:  # fmt: skip
    """DELIVER KEY with ``place`` = P1 and kid."""
    data = bytes.fromhex(place) + bytes((control, under, form)) + bytes.fromhex(rfu) + serial
    data += bytes.fromhex(pin + challenge)
    return bytes((0x80, 0xE8, purpose, version, len(data))) + data


def under(control: int, serial: bytes) -> Key:
    return (SLOT_KEY, CONTROL_KEY, SAM_KEY)[control].diversify(serial)


SLOT_KEY, CONTROL_KEY, SAM_KEY = (make_key(VALUES[p]) for p in (Purpose.SLOT, Purpose.CONTROL, Purpose.SAM_CONTROL))


def payload(control: int, serial: bytes, place: str, raw: bytes, challenge: str = "A1A2A3A4") -> bytes:
    """E || MAC as card.md §6.4 has it: behind the header of the WRITE KEY it is for."""
    return protect("84D4" + place, raw, under(control, serial), bytes.fromhex(challenge), encrypt=True)[5:]


# What opens it


def test_only_pin_then_authentication_card() -> None:
    """LIST before state 2, DELIVER too: 6982 in state 0, after the PIN alone, and for the platform itself."""
    desk = MotherDesk()
    asked = ("80EA000000", deliver(4, "0101"), "80EC000110" + "00" * 16)
    for prepare in (lambda: None, lambda: desk("00A40000023F00"), lambda: desk("0020000003" + PIN)):
        prepare()
        for command in asked:
            desk(command, 0x6982)
    desk.authenticate(1, PROOF)
    for command in asked:
        desk(command)
    desk.authenticate(0, PLATFORM)
    for command in asked:
        desk(command, 0x6982)
    desk.card.reset()
    for command in asked:
        desk(command, 0x6982)


def test_no_authentication_before_the_pin() -> None:
    """39/01 has use right F1: the right answer without the PIN is 6982, and costs nothing."""
    desk = MotherDesk()
    desk("00A40000023F00")
    desk.authenticate(1, PROOF, 0x6982)
    desk("0020000003" + PIN)
    desk.authenticate(1, PLATFORM, 0x63CF)
    desk.authenticate(1, PROOF)


def test_list() -> None:
    """LIST KEYS: purpose, version, algorithm, check value, deliveries left; no value anywhere."""
    desk = opened()
    lines = b"".join(
        bytes((p, 1, 0)) + (bytes(3) if p == Purpose.PIN else make_key(VALUES[p]).kcv) + b"\0\x09"
        for p in sorted(PLACES)
    )
    assert desk("80EA000000") == lines
    assert desk("80EA010000") == b""
    desk("80EA000100", 0x6A86)
    desk(b"\x80\xea\0\0\1\0", 0x6700)


# What it gives out


@pytest.mark.parametrize("control", [0, 1])
@pytest.mark.parametrize("purpose", [p for p in PLACES if p not in (Purpose.PIN, Purpose.SLOT, Purpose.SAM_CONTROL)])
def test_deliver_to_a_card(purpose: Purpose, control: int) -> None:
    """Form 01: the card's key, diversified by its serial, under that card's slot or control key, added or replaced."""
    desk = opened()
    spec = bytes.fromhex(PLACES[purpose])
    kid, header = f"{spec[1]:02X}", spec[:1] + spec[2:6]
    x = SERIAL + bytes(b ^ 0xFF for b in SERIAL)
    value = make_key(VALUES[purpose]).encrypt(x)
    for p1 in ("01", f"{spec[0]:02X}", f"{spec[0] | 0xC0:02X}"):
        for challenge in ("A1A2A3A4", "A1A2A3A4A5A6A7A8"):
            answer = desk(deliver(purpose, p1 + kid, control, challenge=challenge))
            assert answer == payload(control, SERIAL, p1 + kid, header + value, challenge)
    assert desk.left(purpose) == 3


def test_deliver_to_a_sam() -> None:
    """Form 00: the enterprise's key itself, with its usage, under the SAM's control key; a SAM takes it."""
    desk = opened()
    sam = Desk(SamCard.vendor_fresh(TRANSPORT_KEY, zeros))
    sam.authenticate(0, make_key(TRANSPORT_KEY))
    sam.write_key(0x39, 0, bytes.fromhex("39F0F008FF") + SAM_KEY.encrypt(SAM + bytes(b ^ 0xFF for b in SAM)), PLATFORM)
    held = [p for p in PLACES if PLACES[p][-2:] != "00"]
    for purpose in held:
        raw = bytes.fromhex(PLACES[purpose][-2:] + "0100") + VALUES[purpose]
        wanted = deliver(purpose, "0000", 2, 0, serial=SAM, challenge=sam.challenge().hex())
        answer = desk(wanted)
        assert answer == payload(2, SAM, "0000", raw, "00000000")
        sam(b"\x84\xd4\0\0" + bytes((len(answer),)) + answer)
    listed = {(p, 1, 0, *make_key(VALUES[p]).kcv) for p in held}
    raw = sam("80EA000000")
    assert {tuple(raw[i : i + 6]) for i in range(0, len(raw), 6)} == listed


def test_deliver_a_pin() -> None:
    """Form 02: a card's PIN under its slot or control key, a SAM's under its control key with rights of its own."""
    desk = opened()
    pin = "123456FFFFFFFFFF"
    desk.mother.deliveries.value = {7: 12}
    for control, header in ((0, "3AF0EF0333"), (1, "3AF0EF0333"), (2, "3AF0080333")):
        for p1 in ("01", "3A"):
            for challenge in ("A1A2A3A4", "A1A2A3A4A5A6A7A8"):
                answer = desk(deliver(7, p1 + "00", control, 2, pin=pin, challenge=challenge))
                assert answer == payload(control, SERIAL, p1 + "00", bytes.fromhex(header + pin), challenge)
    desk.mother.deliveries.value = {7: 9}
    for bad in ("FF" * 8, "12" + "FF" * 7):
        desk(deliver(7, "0100", 0, 2, pin=bad), 0x6A80)
    assert desk.left(7) == 9


def test_cryptogram_for_the_target() -> None:
    """80EC: what EXTERNAL AUTHENTICATE 39/00 wants, of the slot, control or SAM control key."""
    desk = opened()
    for control in range(3):
        for challenge in ("0102030405060708", "A1A2A3A400000000"):
            answer = desk(f"80EC{control:02X}0110" + SERIAL.hex() + challenge + "08")
            assert answer == under(control, SERIAL).cryptogram(bytes.fromhex(challenge))
    desk("80EC030110" + "00" * 16, 0x6A80)
    desk("80EC000210" + "00" * 16, 0x9403)
    desk("80EC00010F" + "00" * 15, 0x6700)
    desk("80EC000110" + "00" * 16 + "04", 0x6C08)


# What it never does

REFUSED: list[tuple[int, bytes]] = [
    (0x6700, deliver(4, "0101", challenge="A1A2A3")),
    (0x6700, deliver(4, "0101", challenge="A1A2A3A4A5A6A7A8A9AAABAC")),
    (0x6700, deliver(4, "0101", challenge="")),
    (0x6700, deliver(7, "0100", form=2)),
    (0x6700, deliver(7, "0100", form=2, challenge="A1A2A3A4A5A6A7A8")),
    (0x6A80, deliver(4, "0101", rfu="000001")),
    (0x6A80, deliver(4, "0101", rfu="800000")),
    (0x6A80, deliver(4, "0101", form=3)),
    (0x6A80, deliver(4, "0101", control=3)),
    (0x6A88, deliver(0, "0101")),
    (0x6A88, deliver(0x0F, "3900")),
    (0x6A88, deliver(0x11, "3901")),
    (0x9403, deliver(4, "0101", version=2)),
    (0x9403, deliver(4, "0101", under=2)),
    (0x6985, deliver(4, "0101", form=0)),  # not diversified, to a card
    (0x6985, deliver(4, "0000", form=0)),
    (0x6985, deliver(4, "0101", control=1, form=0)),
    (0x6985, deliver(4, "0000", control=2)),  # diversified, to a SAM
    (0x6985, deliver(4, "0101", control=2)),
    (0x6985, deliver(4, "0100", control=2, form=0)),
    (0x6985, deliver(4, "3001", control=2, form=0)),
    (0x6985, deliver(4, "0001", control=2, form=0)),
    (0x6985, deliver(4, "0101", form=2, pin="12345678FFFFFFFF")),  # a PIN in a key's place
    (0x6985, deliver(7, "0100", form=1)),  # a key in a PIN's place
    (0x6985, deliver(7, "0000", control=2, form=0)),
    (0x6985, deliver(7, "0101", form=2, pin="12345678FFFFFFFF")),
    (0x6985, deliver(9, "0000", control=2, form=0)),  # load, unload and TAC keys are in no SAM
    (0x6985, deliver(11, "0000", control=2, form=0)),
    (0x6985, deliver(12, "0000", control=2, form=0)),
    (0x6985, deliver(13, "0100")),  # only written under
    (0x6985, deliver(13, "3900")),
    (0x6985, deliver(13, "0000", control=2, form=0)),
    (0x6985, deliver(14, "0000", control=2, form=0)),
    (0x6985, deliver(9, "3001")),  # a load key as type 30 is an oracle for its session keys
    (0x6985, deliver(9, "F001")),
    (0x6985, deliver(4, "7001")),  # one protection bit alone: not enciphered and MACed
    (0x6985, deliver(4, "B001")),
]


@pytest.mark.parametrize(("sw", "command"), REFUSED, ids=lambda v: v.hex() if isinstance(v, bytes) else f"{v:04X}")
def test_refused(sw: int, command: bytes) -> None:
    """Each wish that is not fixed for the purpose is refused; nothing is counted or changed."""
    desk = opened()
    before = desk.card.snapshot()
    desk(command, sw)
    assert desk.card.snapshot() == before


def test_deliver_key_with_another_type_or_kid() -> None:
    """Of all types and eight kids a load key goes to its own alone: added or replaced, enciphered and MACed."""
    desk = opened()
    taken = []
    for p1 in range(256):
        for kid in range(8):
            command = deliver(9, f"{p1:02X}{kid:02X}")
            answer = desk.card.transceive(command)
            if answer[-2:] == b"\x90\0":
                taken.append((p1, kid))
            else:
                assert answer == b"\x69\x85"
    assert taken == [(0x01, 1), (0x3F, 1), (0xFF, 1)]


def test_diversification_factor_as_challenge() -> None:
    """Enciphering X and ~X with a card's key gives the key of nothing; no command enciphers with a master key."""
    desk = opened()
    x, y = SERIAL, bytes(b ^ 0xFF for b in SERIAL)
    secrets = {make_key(value).encrypt(x + y) for p, value in VALUES.items() if p != Purpose.PIN}
    for control in range(3):
        halves = [desk(f"80EC{control:02X}0110" + SERIAL.hex() + half.hex()) for half in (x, y)]
        assert b"".join(halves) not in secrets
    for command in (
        "801A270108" + SERIAL.hex(), "801A070100", "80FA000008" + x.hex(), "80FA050010" + (x + y).hex(),
        "807000001C" + "00" * 28, "80D8" + "0000",
    ):  # fmt: skip
        desk(command, 0x6D00)
    for kid in range(4):
        for p1 in range(3):
            desk(f"0088{p1:02X}{kid:02X}10" + (x + y).hex(), 0x6A88)


def test_no_answer_holds_a_value() -> None:
    """Whatever the opened card says, no master and no card's key is in it."""
    desk = opened()
    secrets = {
        *VALUES.values(),
        *(make_key(v).encrypt(SERIAL + bytes(b ^ 0xFF for b in SERIAL)) for v in VALUES.values()),
    }
    said = b"".join(
        desk.card.transceive(command)
        for ins in range(256)
        for command in (
            bytes((0x80, ins, 4, 1)),
            bytes((0x84, ins, 4, 1)),
            bytes((0x00, ins, 0, 1)),
            deliver(4, "0101"),
        )
    )
    assert not any(secret in said or secret[:8] in said for secret in secrets)


# Deliveries


def test_deliveries_at_zero() -> None:
    """At 0: 6985, also for another version; other purposes go on, and without a limit nothing goes out."""
    desk = MotherDesk()
    desk.hold(record(Purpose.CARD, 2))
    desk.limit(4, 2)
    desk.open()
    for version, sw in ((1, 0x9000), (2, 0x9000), (1, 0x6985), (2, 0x6985)):
        desk(deliver(4, "0101", version=version), sw)
    desk(deliver(2, "0101"))
    raw = desk("80EA000000")
    assert {raw[i : i + 2].hex(): raw[i + 6 : i + 8].hex() for i in range(0, len(raw), 8)}["0402"] == "0000"
    desk.mother.deliveries.value = {}
    desk(deliver(2, "0101"), 0x6985)


def test_cut_while_delivering() -> None:
    """Power cut at any step: no answer leaves uncounted, and one that left is counted once."""
    command, seen = deliver(4, "0101"), set()
    at = 0
    while True:
        at += 1
        desk = opened()
        desk.card.power.cut_at(at)
        try:
            desk.card.transceive(command)
        except CardRemoved:
            desk.card.reset()
            seen.add(desk.left(4))
            continue
        assert desk.left(4) == 8
        break
    assert seen == {8, 9}
    assert at > 5


def test_replayed_delivery() -> None:
    """The same payload is of no use under another challenge of the card."""
    card = at_home()
    desk = opened()
    record_ = desk(deliver(2, "3901", 1, challenge="01020304"))
    before = card.card.snapshot()
    card.challenge()
    card(b"\x84\xd4\x39\x01" + bytes((len(record_),)) + record_, 0x9302)
    assert card.card.snapshot() == before


# Loading


def test_only_the_platform_loads() -> None:
    """Keys and limits: MF state 8 and MF current, a right MAC; an opened card takes neither."""
    desk = opened()

    def load(sw: int) -> None:
        desk.hold(record(4, 2), sw)

    def limit(sw: int) -> None:
        desk.limit(4, 99, sw)

    loading = (load, limit)
    for act in loading:
        act(0x6982)
    desk.authenticate(0, PLATFORM)
    before = desk.card.snapshot()
    desk("80E03F01153808000808" + "95FFFF" + "F04F4E454341524401000003E9")
    desk("00A40000023F01")
    for act in loading:
        act(0x6985)
    desk("00A40000023F00")
    desk.authenticate(0, PLATFORM)
    wrong = make_key(bytes(range(16)))
    desk.secured("84D40000", record(4, 2), wrong, 0x9302, encrypt=True)
    desk.secured("84DA0400", b"\0\x63", wrong, 0x6988)
    desk("84DA040006" + "00" * 6, 0x6984)
    desk("84DA040003" + "00" * 3, 0x6987)
    desk("84DA040007" + "00" * 7, 0x6700)
    desk("84DA040106" + "00" * 6, 0x6A86)
    desk.limit(0x0F, 1, 0x6A88)
    assert snapshot.unseal(before)["extra"] == snapshot.unseal(desk.card.snapshot())["extra"]
    for act in loading:
        act(0x9000)
    assert desk.left(4) == 99


@pytest.mark.parametrize(
    "raw",
    [
        b"", record(4)[:-1], record(4) + b"\0", record(4)[:10], b"\x0f" + record(4)[1:], b"\0" + record(4)[1:],
        b"\4\0" + record(4)[2:], b"\4\1\2" + record(4)[3:], record(4)[:3] + b"\xf0" + record(4)[4:],
        record(7) + bytes(16), record(4)[:3] + b"\x3a" + record(4)[4:], b"\7" + record(4)[1:],
    ],
    ids=lambda raw: raw.hex()[:24],
)  # fmt: skip
def test_records_that_are_none(raw: bytes) -> None:
    """Unknown purposes, version 0, protection bits, a PIN with a value or a key without: 6A80, nothing is kept."""
    desk = MotherDesk()
    before = desk.card.snapshot()
    desk.hold(raw, 0x6A80)
    assert desk.card.snapshot() == before


def test_room() -> None:
    """Beyond its room: 6A84; a key that is there is replaced all the same."""
    desk = MotherDesk()
    for version in range(2, MAX_KEYS - len(PLACES) + 2):
        desk.hold(record(4, version))
    desk.hold(record(4, 200), 0x6A84)
    desk.hold(record(4, 1))
    desk.open()
    pages = [desk(f"80EA{page:02X}0000") for page in range(4)]
    assert [len(page) for page in pages] == [256, 256, 256, 0]


def test_erasing_takes_the_keys_along() -> None:
    """After ERASE of the MF a new 39/01 opens nothing: the master keys are gone."""
    desk = MotherDesk()
    desk("800E000000")
    assert not desk.mother.mother_keys.value
    assert not desk.mother.deliveries.value


def test_images() -> None:
    """An image gives the same card; one whose keys can't be is refused; a repr names keys, no value."""
    desk = opened()
    raw = desk.card.snapshot()
    again = image.restore(raw)
    assert isinstance(again, MotherCard)
    assert again.snapshot() == raw
    texts = [repr(key) for key in desk.mother.mother_keys.value.values()]
    assert texts[0] == "<MotherKey 01 version 1>"
    body = snapshot.unseal(raw)
    for extra in (
        {**body["extra"], "mother_keys": [b"\1"]}, {**body["extra"], "deliveries": [[1, 65536]]},
        {**body["extra"], "mother_keys": [record(4, v) for v in range(1, MAX_KEYS + 2)]}, {},
    ):  # fmt: skip
        with pytest.raises(FormatError):
            image.restore(snapshot.seal({**body, "extra": extra}))


@settings(max_examples=300, deadline=None)
@given(
    purpose=st.integers(0, 18), version=st.sampled_from((0, 1, 2)), control=st.integers(0, 3), form=st.integers(0, 3),
    p1=st.sampled_from((0, 1, *range(0x30, 0x40), *range(0xF0, 0x100))), kid=st.integers(0, 4),
    pin=st.sampled_from(("", "123456FFFFFFFFFF")), challenge=st.binary(max_size=12),
)  # fmt: skip
def test_whatever_is_asked(
    purpose: int, version: int, control: int, form: int, p1: int, kid: int, pin: str, challenge: bytes
) -> None:
    """What any well-formed DELIVER KEY gives is, under the target's key, the purpose's own record and no other."""
    desk = MotherDesk.at_work()
    place = f"{p1:02X}{kid:02X}"
    command = deliver(purpose, place, control, form, version=version, pin=pin, challenge=challenge.hex())
    answer = desk.card.transceive(command)
    if answer[-2:] != b"\x90\0":
        assert len(answer) == 2
        return
    opened_ = under(control, SERIAL).unseal(answer[:-6])
    spec = bytes.fromhex(PLACES[Purpose(purpose)])
    if form == 0:
        assert (control, place, opened_) == (2, "0000", spec[-1:] + b"\1\0" + VALUES[purpose])
    else:
        own = bytes.fromhex("3AF0080333") if control == 2 else spec[:1] + spec[2:6]
        assert opened_[:5] == own
        assert (form == 2) == (purpose == Purpose.PIN)
        assert (kid, p1 & 0x3F in (1, spec[0])) == (spec[1], True)
        assert control < 2 or form == 2
