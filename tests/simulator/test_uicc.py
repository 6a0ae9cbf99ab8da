"""The phone face: files, PINs, channels and authentication as standard tools meet them (uicc.md)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.errors import CardRemoved, ConfigError
from cardlib.profile import CardKind, make_serial
from cardlib.tlv import Tlv, find
from simulator import image
from simulator.sim import Sim
from simulator.uicc.face import Uicc
from simulator.uicc.files import Kind
from simulator.uicc.memory import Memory, default, describe
from simulator.uicc.milenage import Milenage, gsm
from simulator.vendor import Vendor
from tests.simulator.uicc_desk import USIM_AID, Phone, fixed

WRONG, RIGHT, PUK = "39393939FFFFFFFF", "31323334FFFFFFFF", b"12345678".hex()
FILES = {
    "": "2F00 2F05 2F06 2FE2 2F08",
    "7F20": "6F05 6F07 6F20 6F30 6F31 6F38 6F3E 6F3F 6F46 6F60 6F61 6F62 6F74 6F78 6F7B 6F7E 6FAD 6FAE",
    "7F10": "6F3A 6F3C 6F40 6F42 6F43",
    "7FFF": "6F05 6F06 6F07 6F08 6F09 6F31 6F38 6F3C 6F3E 6F3F 6F40 6F42 6F43 6F46 6F56 6F5B 6F5C 6F60 6F61 6F62 6F73 "
    "6F78 6F7B 6F7E 6FAD 6FB7 6FC4 6FD9",
}  # fmt: skip


@pytest.fixture
def phone() -> Phone:
    return Phone()


def with_pin() -> Phone:
    """A SIM whose PIN1 is asked for."""
    face = Uicc(random_bytes=fixed)
    face.memory.pins[1].value = face.memory.pins[1].value._replace(enabled=True)
    return Phone(face)


# Reset and T=0 ----------------------------------------------------------------------------------------------------


def test_atr(phone: Phone) -> None:
    """The ATR offers T=0, its check byte is right, its historical bytes are whole TLVs."""
    atr = phone.face.atr
    assert atr[:1] == b"\x3b"
    assert atr[1] & 15 == 15
    assert len(atr) == 6 + 15 + 1
    assert (atr[3] & 15, atr[4] & 15) == (0, 15)
    check = 0
    for byte in atr[1:]:
        check ^= byte
    assert check == 0
    history = atr[6:-1]
    assert history[0] == 0x80
    rest = history[1:]
    while rest:
        assert len(rest) > rest[0] & 15
        rest = rest[1 + (rest[0] & 15) :]


def test_t0(phone: Phone) -> None:
    """Case 4 is announced and fetched, in parts too; a wrong Le is told; P3 00 means any; case 1 may have P3 00."""
    assert phone.raw("00A40004022FE2") == "6119"
    assert phone.raw("00C0000020") == "6C19"
    assert phone.raw("00C0000005") == "62178202416114"
    assert phone.raw("00C0000014")[-4:] == "9000"
    assert phone.raw("00C0000001") == "6985"
    assert phone.raw("00B000000B") == "6C0A"
    assert phone.raw("00B0000000") == phone.raw("00B000000A") == "985898100000000000F19000"
    assert phone.raw("00B00000") == "985898100000000000F19000"
    assert phone.raw("80F2000C") == phone.raw("80F2000C00") == "9000"
    assert phone.raw("A0A40000023F00") == "9F16"
    assert phone.raw("00A40004022F") == phone.raw("00A400040200") == "6700"
    assert phone.raw("00B0000001AA") == "6700"
    phone.raw("00A40004023F00")
    phone("80F2000C")
    assert phone.raw("00C0000010") == "6985"


def test_classes(phone: Phone) -> None:
    """Unknown class, unknown instruction, instruction of the other class, secured messages, closed channel."""
    for command, answer in {
        "50A40000023F00": "6E00", "10A40000023F00": "6E00", "F0A40000023F00": "6E00", "00FE0000": "6D00",
        "80A40000023F00": "6E00", "00F2000000": "6E00", "A0700000": "6D00", "04A40000023F00": "6882",
        "03A40000023F00": "6881", "4FA40000023F00": "6881", "00A4": "6700",
    }.items():  # fmt: skip
        assert phone.raw(command) == answer, command


def test_reset_forgets_what_is_volatile(phone: Phone) -> None:
    """Files survive power; selected file, PIN state, pending data and channels do not."""
    phone.verify_adm()
    assert phone("0070000001") == b"\1"
    phone("00A40004027F20")
    phone("00A40004026F7B")
    phone("00D600000362F220")
    phone.raw("00A40004023F00")
    for _ in range(2):
        phone.face.power_off()
        with pytest.raises(CardRemoved):
            phone("80F2000C")
        phone.face.reset()
    assert phone.raw("00C0000010") == "6985"
    assert phone.raw("00B0000000") == "6986"
    assert phone.raw("01A40004023F00") == "6881"
    phone("00A40004022F08")
    phone("00D600000111", 0x6982)
    phone("00A40804047F206F7B")
    assert phone("00B0000003").hex() == "62f220"


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", FILES)
def test_every_file_is_there(phone: Phone, directory: str) -> None:
    """Each file of uicc.md is found in its directory, tells its size in both classes, and can be read as a whole."""
    for fid in FILES[directory].split():
        phone.usim()
        path = directory + fid
        answer = find(phone(f"00A40804{len(path) // 2:02X}{path}"), 0x62)
        parts = {one.tag: one.value for one in Tlv.parse_list(answer)}
        assert list(parts) == [0x82, 0x83, 0x8A, 0x8B, 0x80, 0x88]
        assert parts[0x83].hex().upper() == fid
        size = int.from_bytes(parts[0x80], "big")
        if parts[0x82][0] == Kind.BINARY:
            assert len(phone("00B0000000")) == size
            expected = bytes(2) + parts[0x80]
        else:
            length, count = parts[0x82][3], parts[0x82][4]
            assert size == length * count
            for number in range(1, count + 1):
                assert len(phone(f"00B2{number:02X}04{length:02X}")) == length
            expected = bytes(2) + parts[0x80]
            phone(f"00B2{count + 1:02X}04{length:02X}", 0x6A83)
        phone("A0A40000023F00")
        if directory not in ("", "7FFF"):
            phone(f"A0A4000002{directory}")
        if directory != "7FFF":
            old = phone(f"A0A4000002{fid}")
            assert old[:4] == expected
            assert old[4:7].hex().upper() == fid + "04"
            assert len(old) == (14 if parts[0x82][0] == Kind.BINARY else 15)


def test_default_image(phone: Phone) -> None:
    """The numbers of uicc.md "Default image" and the services that handsets look for (ota.md §6)."""
    phone("00A40004022FE2")
    assert phone("00B000000A").hex() == "985898100000000000f1"
    phone("00A40004022F00")
    record = phone("00B2010426")
    assert find(record.rstrip(b"\xff"), 0x61, 0x4F).hex().upper() == USIM_AID
    phone.usim()
    assert phone("00B0870009").hex() == "080910101032547698"
    table = phone("00B0840000")
    assert all(table[(n - 1) // 8] >> (n - 1) % 8 & 1 for n in (10, 12, 28))
    phone("00A40804047F206F38")
    table = phone("00B0000000")
    assert all(table[(n - 1) // 4] >> (n - 1) % 4 * 2 & 3 == 3 for n in (4, 26, 27, 29))
    key_set = default().ota_key_sets[1]
    assert key_set.kic.hex() == "300102030405060708090a0b0c0d0e0f"
    assert key_set.kid.hex() == "301102030405060708090a0b0c0d0e0f"
    assert default().msl == {0: 6, 0xB00000: 6, 0xB00010: 6, 0xB00011: 6, 0xBFFF4F: 0x16}


def test_fcp_of_directories(phone: Phone) -> None:
    """MF, DF and ADF: descriptor, identifier, name, life cycle, rule, PIN status, all below 128 bytes."""
    for command, fid, name in (
        ("00A40004023F00", "3f00", ""), ("00A40004027F20", "7f20", ""), ("00A4040407A0000000871002", "7fff", USIM_AID),
    ):  # fmt: skip
        parts = {one.tag: one.value for one in Tlv.parse_list(find(phone(command), 0x62))}
        assert parts[0x82].hex() == "7821"
        assert parts[0x83].hex() == fid
        assert parts[0x8A] == b"\5"
        assert parts.get(0x84, b"").hex().upper() == name
        assert parts[0x8B].hex() == "2f060a"
        assert parts[0xC6].hex() == "90014083010183010a"
    phone("00A40804022F06")
    phone("00B20A041E")


def test_select(phone: Phone) -> None:
    """By identifier from wherever it may be seen, by parent, by path from MF and from here, by name or part of it."""
    phone("00A40004026F07", 0x6A82)
    phone("00A4000C027F20")
    phone("00A4000C026F07")
    phone("00A4000C027F10")
    phone("00A4000C027F20")
    assert phone("00A40304")[:2] == b"\x62\x23"
    phone("00A4080C047F206F07")
    phone("00A4080C063F007F206F07")
    phone("00A4090C026F07")
    phone("00A4090C026F99", 0x6A82)
    phone("00A4080C047FFF6F07", 0x6A82)
    phone("00A4040C05A000000087")
    phone("00A4080C047FFF6F07")
    phone("00A4000C023F00")
    phone("00A4000C027FFF")
    phone("00A4040C04A0000000", 0x6A82)
    phone("00A4040C07A0000000871004", 0x6A82)
    assert phone("80F2000100")[2:].hex().upper() == USIM_AID
    phone("00A4020C023F00", 0x6A86)
    phone("00A4000C013F", 0x6700)
    phone("A0A40000026F99", 0x9404)


def test_reading_refused(phone: Phone) -> None:
    """No file, wrong kind, beyond the end, by an unknown short identifier."""
    phone("00B0000000", 0x6986)
    phone("A0B0000001", 0x9400)
    phone("00A40004022F00")
    phone("00B0000000", 0x6981)
    phone("A0B0000001", 0x9408)
    phone("00B2010410", 0x6C26)
    phone("00B2000404", 0x6C26)
    phone("00B2000400", 0x6A83)
    phone("00B2010100", 0x6A86)
    phone("00A40004022FE2")
    phone("00B0000A01", 0x6B00)
    phone("00B2010400", 0x6981)
    phone("A0B0000A01", 0x9402)
    phone("00B0950001", 0x6A82)
    phone("00A40004023F00")
    assert phone("00B0850100").hex() == "68656e"


def test_rights(phone: Phone) -> None:
    """What only the administrator may write is refused without ADM, the ICCID for good."""
    phone("00A40004022F08")
    phone("00D600000111", 0x6982)
    phone("A0D600000111", 0x9804)
    phone.verify_adm()
    phone("00D600000111")
    phone("00D60004021111", 0x6700)
    phone("00D600050111", 0x6B00)
    assert phone("00B0000005").hex() == "11ff02ffff"
    phone("00A40004022FE2")
    phone("00D600000111", 0x6982)


def test_records(phone: Phone) -> None:
    """Absolute, next, previous, current; SEARCH RECORD both ways; SEEK of class A0."""
    phone("00A4080C047F106F3A")
    names = [f"{n:02X}".ljust(56, "A") for n in range(1, 11)]
    for number, record in enumerate(names, 1):
        phone(f"00DC{number:02X}041C{record}")
    assert phone("00B200021C").hex().upper() == names[0]
    assert phone("00B200021C").hex().upper() == names[1]
    assert phone("00B200041C").hex().upper() == names[1]
    assert phone("00B200031C").hex().upper() == names[0]
    phone("00B200031C", 0x6A83)
    assert phone("00A201040103").hex() == "03"
    assert phone("00A2000401AA")[:2].hex() == "0304"
    assert phone("00A20A0501AA")[:2].hex() == "0a09"
    phone("00A2010401BB", 0x6282)
    phone("00A2010601AA", 0x6A86)
    phone("00DC01041B" + "00" * 27, 0x6700)
    assert phone("A0A2001001" + "05").hex() == "05"
    phone("A0A2000001" + "EE", 0x9404)
    phone("A0A2000201" + "06")
    assert phone("A0B200041C").hex().upper() == names[5]


def test_cyclic_file() -> None:
    """A cyclic file takes records in front, by PREVIOUS only, and goes round."""
    row = {"record": [4, 3], "cyclic": True, "access": "always/always", "each": "00"}
    sim = Sim()
    sim.equip(Memory(describe({"GSM": {"6F39": row}})))
    phone = Phone(sim.phone)
    assert phone("00A40804047F206F39")[:9].hex() == "6219" + "82054621000403"
    phone("00DC010404" + "11" * 4, 0x6A86)
    for value in ("11", "22", "33", "44"):
        phone("00DC000304" + value * 4)
    assert [phone(f"00B2{n:02X}0404").hex() for n in (1, 2, 3)] == ["44" * 4, "33" * 4, "22" * 4]
    assert phone("A0A40000027F20")
    assert phone("A0A40000026F39")[13:].hex() == "0304"


def test_same_file_under_two_paths(phone: Phone) -> None:
    """IMSI, short messages and the 2G key are one file for old and new tools."""
    phone("00A40804047F206F20")
    phone("00D6000001AA")
    phone.usim()
    phone("00A4080C067FFF5F3B4F20")
    assert phone("00B0000009").hex() == "aa" + "ff" * 7 + "07"
    phone.verify_adm()
    phone.usim()
    phone("00D6870009" + "08" + "11" * 8)
    phone("A0A40000027F20")
    phone("A0A40000026F07")
    assert phone("A0B0000009").hex() == "08" + "11" * 8


# PINs -------------------------------------------------------------------------------------------------------------


def test_pin_counters(phone: Phone) -> None:
    """Tries are told and counted, a right PIN fills them up, three wrong ones block, the PUK unblocks, ten block it."""
    phone("0020000100", 0x63C3)
    phone("0020000108" + WRONG, 0x63C2)
    phone("0020000108" + RIGHT)
    phone("00200001", 0x63C3)
    for left in (2, 1, 0):
        phone("0020000108" + WRONG, 0x63C0 | left)
    phone("0020000108" + RIGHT, 0x6983)
    phone("0020000100", 0x6983)
    phone("A020000108" + RIGHT, 0x9840)
    phone("0024000110" + RIGHT + RIGHT, 0x6983)
    phone("002C000100", 0x63CA)
    new = "35363738FFFFFFFF"
    phone("002C000110" + WRONG + new, 0x63C9)
    phone("002C000110" + PUK + new)
    phone("0020000108" + new)
    phone("002C000100", 0x63CA)
    for left in range(9, -1, -1):
        phone("002C000110" + WRONG + new, 0x63C0 | left)
    phone("002C000110" + PUK + new, 0x6983)
    phone("0020000108" + new)


def test_pin_commands_refused(phone: Phone) -> None:
    """Unknown references, wrong lengths, a new PIN that is none, an administrator's code that can't be off."""
    phone("0020000208" + RIGHT, 0x6A88)
    phone("A020000208" + RIGHT, 0x9802)
    phone("0020010108" + RIGHT, 0x6A86)
    phone("0020000104" + "31323334", 0x6700)
    phone("0024000110" + RIGHT + "313233FFFFFFFFFF", 0x6A80)
    phone("0024000110" + RIGHT + "3132333FFFFFFFFF", 0x6A80)
    phone("0026000A08" + PUK, 0x6985)
    phone("002C000A00", 0x6A88)
    phone("0020000100", 0x63C3)


def test_old_class_pins(phone: Phone) -> None:
    """GSM tools: CHV1, its words, UNBLOCK with P2 00."""
    phone("A020000108" + WRONG, 0x9804)
    assert phone("A0A40000023F00")[18] == 0x82
    phone("A024000110" + RIGHT + WRONG)
    phone("A020000108" + WRONG)
    phone("A02C000010" + PUK + RIGHT)
    phone("A020000108" + RIGHT)
    phone("A026000108" + RIGHT)
    assert phone("A0A40000023F00")[13] & 0x80
    phone("A028000108" + RIGHT)
    assert not phone("A0A40000023F00")[13] & 0x80


def test_enabled_pin_guards_files() -> None:
    """With PIN1 enabled files of the holder need it, on all channels; DISABLE takes the need away."""
    phone = with_pin()
    phone.usim()
    phone("00B0870009", 0x6982)
    phone("0088008111" + "10" + "00" * 16, 0x6982)
    assert phone("0070000001") == b"\1"
    phone("0120000108" + RIGHT)
    phone("00B0870009")
    phone.face.reset()
    phone.usim()
    phone("00B0870009", 0x6982)
    phone("0020000108" + WRONG, 0x63C2)
    phone("0026000108" + RIGHT)
    phone.face.reset()
    phone.usim()
    phone("00B0870009")
    assert find(phone("80F2000000"), 0x62, 0xC6).hex().startswith("900140")
    phone("0028000108" + RIGHT)
    assert find(phone("80F2000000"), 0x62, 0xC6).hex().startswith("9001c0")


# Channels ---------------------------------------------------------------------------------------------------------


def test_channels(phone: Phone) -> None:
    """Each channel has its own selection; the basic one can't be closed; there are four."""
    phone.usim()
    assert [phone("0070000001") for _ in range(3)] == [b"\1", b"\2", b"\3"]
    phone("0070000001", 0x6A81)
    assert phone("81F2000000")[:2] == b"\x62\x23"
    phone("01A4040C05A000000087")
    phone("01A4000C026F07")
    phone("02A4000C022FE2")
    assert phone("01B0000009")[:1] == b"\x08"
    assert phone("02B000000A")[:1] == b"\x98"
    phone("00B0000001", 0x6986)
    phone("0170800200")
    phone("02B000000A", 0x6881)
    phone("0070800200", 0x6881)
    phone("0070800000", 0x6A86)
    phone("00700002")
    phone("0170800000")
    phone("01B0000001", 0x6881)


def test_channel_opened_from_another_one_inherits(phone: Phone) -> None:
    """TS 102 221 11.1.17: opened from the basic channel the MF is selected, from another one what is selected there."""
    phone("0070000001")
    phone("01A4040C05A000000087")
    assert phone("0170000001") == b"\2"
    assert find(phone("82F2000000"), 0x62, 0x83).hex() == "7fff"


# Authentication ---------------------------------------------------------------------------------------------------

SETS = json.loads((Path(__file__).parents[1] / "vectors" / "milenage.json").read_text())["sets"]


@pytest.mark.parametrize("row", SETS, ids=lambda row: row["id"])
def test_milenage(row: dict[str, str]) -> None:
    """The published test sets, all functions."""
    one = {name: bytes.fromhex(value) for name, value in row.items() if name != "id"}
    algorithm = Milenage(one["k"], one["opc"])
    assert algorithm.macs(one["rand"], one["sqn"], one["amf"]) == (one["f1"], one["f1_star"])
    assert algorithm.answers(one["rand"]) == tuple(one[name] for name in ("f2", "f3", "f4", "f5", "f5_star"))


def autn(sqn: int, rand: bytes) -> str:
    algorithm = Milenage(default().k, default().opc)
    number, amf = sqn.to_bytes(6, "big"), b"\x80\0"
    hidden = int.from_bytes(number, "big") ^ int.from_bytes(algorithm.answers(rand).ak, "big")
    return (hidden.to_bytes(6, "big") + amf + algorithm.macs(rand, number, amf)[0]).hex()


def test_authenticate(phone: Phone) -> None:
    """3G: proof, then out of step for the same number again; a wrong MAC; 2G in both classes agrees with it."""
    rand = bytes.fromhex("23553cbe9637a89d218ae64dae47bf35")
    phone("0088008122" + "10" + rand.hex() + "10" + autn(5, rand), 0x6985)
    phone.usim()
    answer = phone("0088008122" + "10" + rand.hex() + "10" + autn(5, rand))
    assert answer[:10].hex() == "db08" + SETS[0]["f2"]
    assert answer[10:44].hex() == "10" + SETS[0]["f3"] + "10" + SETS[0]["f4"]
    assert len(answer) == 53
    for number in (5, 4):
        assert phone("0088008122" + "10" + rand.hex() + "10" + autn(number, rand))[:2].hex() == "dc0e"
    again = phone("0088008122" + "10" + rand.hex() + "10" + autn(5, rand))
    algorithm = Milenage(default().k, default().opc)
    hidden = int.from_bytes(again[2:8], "big") ^ int.from_bytes(algorithm.answers(rand).ak_star, "big")
    assert hidden == 5
    assert again[8:] == algorithm.macs(rand, (5).to_bytes(6, "big"), bytes(2))[1]
    wrong = autn(6, rand)[:-2] + "00"
    phone("0088008122" + "10" + rand.hex() + "10" + wrong, 0x9862)
    sres, kc = gsm(algorithm.answers(rand))
    assert phone("0088008011" + "10" + rand.hex()) == b"\4" + sres + b"\x08" + kc
    phone("A0A40000027F20")
    assert phone("A088000010" + rand.hex()) == sres + kc
    phone("A0A40000023F00")
    phone("A088000010" + rand.hex(), 0x9404)


def test_terminal_capability(phone: Phone) -> None:
    """TERMINAL CAPABILITY is taken; what is none is refused."""
    phone("80AA000005A903830180")
    phone("80AA000003830180", 0x6A80)


# Robustness -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12))
def test_garbage(commands: list[bytes]) -> None:
    """Whatever comes, each answer is a status word with or without data, and the SIM still works."""
    phone = Phone()
    for command in commands:
        assert 2 <= len(phone.face.transceive(command)) <= 258
    phone.face.reset()
    phone("00A40004022FE2")
    assert phone("00B000000A").hex() == "985898100000000000f1"


CODES = [
    "A4",
    "F2",
    "B0",
    "D6",
    "B2",
    "DC",
    "A2",
    "20",
    "24",
    "26",
    "28",
    "2C",
    "C0",
    "70",
    "AA",
    "88",
    "CA",
    "10",
    "12",
    "14",
    "C2",
    "50",
    "82",
    "D8",
    "E6",
    "E8",
    "E4",
    "E2",
    "F0",
]
ROW = st.tuples(
    st.sampled_from(["00", "01", "80", "84", "A0"]), st.sampled_from(CODES), st.binary(min_size=3, max_size=3),
    st.binary(max_size=20),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=15))
def test_garbage_behind_known_instructions(rows: list[tuple[str, str, bytes, bytes]]) -> None:
    """The same with instructions that exist."""
    phone = Phone()
    phone("00A40400")
    for cla, ins, tail, data in rows:
        command = bytes.fromhex(cla + ins) + tail[:2] + bytes((len(data),)) + data
        assert 2 <= len(phone.face.transceive(command)) <= 258


def test_torn_at_every_write() -> None:
    """A PIN counter, a PIN change and a file hold the old or the new value when power goes at any step."""
    for command in (
        "0020000108" + WRONG,
        "0024000110" + RIGHT + WRONG,
        "00D60000084142434445464748",
        "002C000110" + PUK + WRONG,
    ):
        seen = set()
        for step in itertools.count(1):
            phone = Phone()
            phone("00A4080C047F206F7B")
            memory = phone.face.memory
            index = phone.face.tree.directories["GSM"].children[0x6F7B].index

            def now() -> tuple[object, ...]:
                return memory.pins[1].value, memory.files[index].value  # noqa: B023  # called in this round only

            before = now()
            phone.face.power.cut_at(step)
            try:
                phone.face.transceive(bytes.fromhex(command))
            except CardRemoved:
                phone.face.reset()
                seen.add(now() == before)
                phone("00A40004023F00")
            else:
                break
        assert seen == {True, False}, command


# Images -----------------------------------------------------------------------------------------------------------


def test_image_keeps_both_faces() -> None:
    """A SIM is restored as it was: files, PIN counters, what the description said, the contactless face."""
    serial = make_serial(CardKind.RFID_SIM, 1, 7).hex()
    sim = image.parse(f"""
kind = "sim"
serial = "{serial}"
[phone]
imsi = "460001234567890"
[phone.pin.01]
value = "4321"
enabled = true
""")
    assert isinstance(sim, Sim)
    Phone(sim.phone)("0020000108" + RIGHT, 0x63C2)
    again = image.restore(sim.snapshot())
    assert isinstance(again, Sim)
    phone = Phone(again.phone)
    phone("0020000100", 0x63C2)
    phone("0020000108" + b"4321".hex() + "FFFFFFFF")
    phone.usim()
    assert phone("00B0870009").hex() == "084906002143658709"
    assert again.transceive(bytes.fromhex("00B0850010"))[-2:] == b"\x90\0"


def test_batch_of_sims() -> None:
    """A vendor's batch of RFID-SIMs are SIMs with numbers of their own, in images too."""
    sims, _ = Vendor("V", "B", bytes(range(32)), Random(1).randbytes, CardKind.RFID_SIM).deliver(2)
    seen = set()
    for sim in sims:
        again = image.restore(sim.snapshot())
        assert isinstance(again, Sim)
        phone = Phone(again.phone)
        phone("00A40004022FE2")
        seen.add(phone("00B000000A"))
        phone.usim()
        seen.add(phone("00B0870009"))
        assert phone("00B0860002") != b"\xff\xff"
        assert again.transceive(bytes.fromhex("00A40000023F00"))[-2:] == b"\x90\0"
    assert len(seen) == 4


@pytest.mark.parametrize(
    "overrides",
    [
        {"imsi": "12AB"}, {"iccid": "1"}, {"pin": {"01": {"value": 5}}}, {"k": "00"}, {"GSM": {"6F07": {"size": 1}}},
        {"USIM": {"6F99": {"size": 1, "access": "x/y"}}}, {"nothing": 1}, {"MF": {"2F77": {"access": "pin/pin"}}},
        {"ota_key_set": [{"version": 1, "algorithm": "rot13", "kic": "00", "kid": "00"}]}, 5,
    ],
)  # fmt: skip
def test_bad_descriptions(overrides: object) -> None:
    """What does not belong into a description is refused with its place."""
    with pytest.raises(ConfigError, match="phone"):
        describe(overrides)
