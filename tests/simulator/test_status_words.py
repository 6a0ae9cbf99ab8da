"""Every status word of card.md §2 that a command can earn, provoked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cardlib.apdu import SW
from cardlib.crypto import make_key
from simulator import image
from simulator.card import Card
from simulator.files import RecordFile
from tests.simulator.desk import LINE, TRANSPORT_KEY, Desk, application, at_home, card_key, fresh, oc1, sandbox, zeros
from tests.simulator.test_decisions import LOG, PURSE_KEYS, knock, other_card

LINE_KEY = {"36/00": {"value": LINE.hex(), "header": "F0F0FF33"}}


def purse(**state: int) -> Desk:
    name = "0001" if "overdraft_fen" in state else "0002"
    return knock(sandbox(PURSE_KEYS, (name, "2F0208F003FF18", state), LOG))


def blocked() -> Desk:
    return Desk(oc1(application=[application(blocked="permanent")]).card)


def t0() -> Desk:
    return Desk(image.restore(oc1().card.snapshot(), zeros, t0=True))


def after(desk: Desk, *commands: str) -> Desk:
    for command in commands:
        desk.chip.transceive(bytes.fromhex(command))
    return desk


WRONG_39 = "0082000008" + "00" * 8
CASES: list[tuple[int, Callable[[], Desk], str]] = [
    (0x9000, oc1, "00A4000000"),
    (0x6117, t0, "00A40000023F00"),
    (0x63C2, lambda: after(Desk(Card.vendor_fresh(TRANSPORT_KEY)), "0084000008"), WRONG_39),
    (SW.LENGTH, at_home, "00D6950005AA"),
    (SW.LENGTH, at_home, "00B0"),
    (SW.CLASS_MISMATCH, at_home, "00D6950001AA"),
    (SW.CLASS_MISMATCH, at_home, "801E000004" + "00" * 4),
    (SW.INVALID_STATE, at_home, "805200000B" + "00" * 11),
    (SW.FILE_TYPE, at_home, "00B0970000"),
    (SW.FILE_TYPE, at_home, "00B201AC00"),
    (SW.FILE_TYPE, at_home, "00B0810000"),
    (SW.SECURITY, oc1, "80E0001507280010F0F0FFFF"),
    (SW.KEY_LOCKED, lambda: after(at_home(), *3 * ["00200000029999"]), "0020000003123456"),
    (SW.NO_CHALLENGE, at_home, WRONG_39.replace("0082000008", "0082000108")),
    (SW.CONDITIONS, at_home, "00C0000000"),
    (SW.SM_MISSING, lambda: after(at_home(), "0084000004"), "04D6950003AABBCC"),
    (SW.SM_WRONG, lambda: after(at_home(), "0084000004"), "04D6950005AA00000000"),
    (SW.DATA, fresh, "80E0001507290010F0F0FFFF"),
    (SW.NOT_SUPPORTED, lambda: Desk(Card.blank()), "00A4000000"),
    (SW.FILE_NOT_FOUND, at_home, "00B0880000"),
    (SW.RECORD_NOT_FOUND, at_home, "00B209BC00"),
    (SW.NO_SPACE, fresh, "80E000150728FFFFF0F0FFFF"),
    (SW.NO_SPACE, lambda: sandbox({}, ("0015", "280004F0F0FFFF", None)), "00D69500050102030405"),
    (SW.P1P2, lambda: after(fresh(), "80E0001507280010F0F0FFFF"), "80E0001507280010F0F0FFFF"),
    (SW.P1P2, at_home, "0084010004"),
    (SW.KEY_NOT_FOUND, at_home, "0082000908" + "00" * 8),
    (SW.OFFSET, at_home, "00B0951E00"),
    (0x6C04, at_home, "805C000202"),
    (0x6C08, at_home, "805A00060200 0104".replace(" ", "")),
    (SW.INS, at_home, "00FF000000"),
    (SW.CLA, at_home, "A0A40000023F00"),
    (SW.CLA, at_home, "80B0950000"),
    (SW.CLA, at_home, "84DC01B800"),
    (SW.MAC_WRONG, lambda: after(at_home(), "80500102" + "0B0100000001310000000101"), "805401000F" + "00" * 15),
    (SW.FUNDS, at_home, "80500102" + "0B0100002711310000000101"),
    (SW.COUNTER_FULL, lambda: purse(offline_seq=0xFFFF), "80500102" + "0B0100000000310000000101"),
    (SW.COUNTER_FULL, lambda: purse(online_seq=0xFFFF), "80500002" + "0B0100000000310000000101"),
    (SW.CONDITIONS, lambda: purse(balance_fen=0xFFFFFFFF), "80500002" + "0B0100000001310000000101"),
    (SW.KEY_INDEX, at_home, "80500102" + "0B0700000001310000000101"),
    (SW.NO_PROOF, at_home, "805A000602000108"),
]


@pytest.mark.parametrize(("sw", "start", "command"), CASES, ids=[f"{c[0]:04X}-{c[2][:8]}" for c in CASES])
def test_status_word(sw: int, start: Callable[[], Desk], command: str) -> None:
    """The command earns exactly this status word."""
    start()(command, sw)


def test_permanently_blocked() -> None:
    """9303: unblocking an application that is dead."""
    desk = blocked()
    desk.select(sw=0x6A81)
    desk.secured("84180000", b"", card_key("maintenance"), 0x9303)


def test_all_that_a_command_can_earn_are_provoked() -> None:
    """What is missing here is memory failure, checksums and internal errors, which this memory does not have."""
    never = {SW.CORRUPT, SW.INVALIDATED, SW.UNKNOWN_STATE, SW.MEMORY, SW.UNKNOWN}
    assert {SW(c[0]) for c in CASES if c[0] in set(SW)} | {SW.PERMANENTLY_BLOCKED} == set(SW) - never


def test_order_of_refusals() -> None:
    """Length before state, state before key, key before MAC."""
    desk = at_home()
    desk("8052000003000000", 0x6700)
    desk("80500102" + "0A01000000013100000001", 0x6700)
    desk("80500002" + "0B0100000001310000000101", 0x6982)
    desk("80500102" + "0B07FFFFFFFF310000000101", 0x9403)
    desk("8418000004" + "00" * 4, 0x6985)
    desk("8424050004" + "00" * 4, 0x6A88)
    desk("84240003" + "0C" + "00" * 12, 0x6A86)


def test_memory_accounting() -> None:
    """EF 11 + body, record files n·(len+1)+8, purse 22, key its length + 8, key file 11 + size (card.md §6.3)."""
    desk = fresh()
    desk("80E03F0110" + "380100080800FFFF" + b"NEWDIR12".hex())
    desk("00A40000023F01")
    df = desk.card.df
    for command, cost in (
        ("80E00000073F003000F0FFFF", 11 + 48), ("80E0001507280010F0F0FFFF", 11 + 16), ("80E00016072A0305F0F0FFFF", 26),
        ("80E00017072C0010F0F0FFFF", 27), ("80E00001072F0208F000FF18", 22),
    ):  # fmt: skip
        free = df.free_bytes
        desk(command)
        assert free - df.free_bytes == cost
    desk("80E000190728 0061 F0F0FFFF".replace(" ", ""), 0x6A84)
    desk(f"80E000190728{df.free_bytes - 11:04X}F0F0FFFF")
    assert df.free_bytes == 0
    for kid, sw in ((0, 0x9000), (1, 0x9000), (2, 0x6A84)):
        desk(f"80D401{kid:02X}1539F0F001FF" + "11" * 16, sw)


def test_creation_data_are_checked() -> None:
    """Wrong kinds, sizes and levels are 6A80 or 6700; a second key file 6A86, one after other files 6A80."""
    desk = fresh()
    for data, sw in (
        ("280000F0F0FFFF", 0x6A80), ("2A0105F0F0FFFF", 0x6A80), ("2E0200F0F0FFFF", 0x6A80), ("2C0000F0F0FFFF", 0x6A80),
        ("2F0209F000FF18", 0x6A80), ("AF0208F000FF18", 0x6A80), ("280010F0F0FFFFFF", 0x6700), ("280010F0F0FF", 0x6700),
        ("380008080800FFFF4142434445", 0x6A80), ("380100080800FFFF41424344", 0x6700), ("3F010001F0FFFF", 0x6A86),
        ("2F0208F000FF18", 0x6A80),
    ):  # fmt: skip
        desk(f"80E00009{len(data) // 2:02X}{data}", sw)
    desk("80E03F010D" + "380200080800FFFF" + "4142434445")
    desk("80E03F020D" + "380200080800FFFF" + "4142434445", 0x6A86)
    desk("00A40000023F01")
    desk("80E0001507280010F0F0FFFF")
    desk("80E00000073F010001F0FFFF", 0x6A80)
    desk("80E03F000D" + "380100080800FFFF" + "4142434446", 0x6A86)
    desk("80E012340D" + "380100080800FFFF" + "4142434446")
    desk("00A4000002" + "1234")
    desk("80E012350D" + "380020080800FFFF" + "4142434447", 0x6A80)


def test_records() -> None:
    """Fixed records have their length, variable ones tag and length; full files 6A84; replacement keeps the length."""
    desk = sandbox({}, ("0016", "2A0203F0F0FFFF", None), ("0017", "2C0008F0F0FFFF", None))
    desk("00E200B003010203")
    desk("00E200B402" + "0102", 0x6700)
    desk("00E200B403040506")
    desk("00E200B403070809", 0x6A84)
    desk("00DC02B403AABBCC")
    desk("00DC02B402AABB", 0x6700)
    desk("00DC02B003AABBCC", 0x6A86)
    assert desk("00B202B400") == b"\xaa\xbb\xcc"
    desk("00E200B8030102FF", 0x6A80)
    desk("00E200B80401020000")
    desk("00E200B80402020000")
    desk("00E200B803010100", 0x6A84)
    desk("00E201B803010100", 0x6A86)
    desk("00DC01B80401021111")
    desk("00DC02B90402022222")
    desk("00DC01B804020211 11".replace(" ", ""), 0x6A80)
    desk("00DC01B803010111", 0x6700)
    desk("00DC01BA0401023333", 0x6A83)
    desk("00DC01BB0401024444")
    desk("00DC01BB0401024444", 0x6A83)
    assert desk("00B201BC00") == b"\1\2\x44\x44"
    assert desk("00B202B800") == b"\2\2\x22\x22"


def test_pin_maintenance_refusals() -> None:
    """RELOAD: 9302, 6983 when 38 is locked, 9403 without PIN; CHANGE: separator and lengths; UNBLOCK: 6987, 6983."""
    keys = {
        "3A/00": {"pin": "1234"}, "38/00": {"value": LINE.hex(), "header": "F0F0FF22"},
        "37/00": {"value": LINE.hex(), "header": "F0F0FF22"},
    }  # fmt: skip
    desk = sandbox(keys)
    desk("805E010005" + "12345678AA", 0x6A80)
    desk("805E010004" + "1234FF56", 0x6700)
    desk("805E010006" + "1234FFFFFFFF", 0x6A80)
    desk("805E020006" + "000000000000", 0x6A86)
    desk("805E000306" + "1234" + "00" * 4, 0x9403)
    for sw in (0x9302, 0x9302, 0x6983):
        desk("805E000006" + "1234" + "00" * 4, sw)
    desk("8024000004" + "00" * 4, 0x6900)
    desk("8424000003" + "00" * 3, 0x6987)
    desk("8424000005" + "00" * 5, 0x6700)
    for sw in (0x6988, 0x6988, 0x6983):
        desk.secured("84240000", b"\x43\x21", make_key(bytes(16)), sw, encrypt=True)
    desk("0020000002" + "1234")


def test_wrong_lines_do_not_outlive_a_right_one() -> None:
    """Two wrong MACs, a right one, two wrong ones: the application still lives."""
    desk = other_card()
    for _ in range(2):
        for _ in range(2):
            desk.secured("04D69500", b"x", card_key("load"), 0x6988)
        desk.secured("04D69500", b"x", card_key("maintenance"))


def test_sealed_writes_are_checked_after_the_mac() -> None:
    """A right MAC over what is no LD||data: 6A80; a clear length of nothing 6700."""
    desk = sandbox(LINE_KEY, ("0015", "E80010F0F0FFFF", None))
    key = make_key(LINE)
    desk.secured("04D69500", key.encrypt(b"\x09" + bytes(7)), key, 0x6A80)
    desk.secured("04D69500", b"", key, 0x6700, encrypt=True)
    desk.secured("04D69500", b"1234567", key, 0x6A80)


def keys(*names: str, use: str = "F0", change: str = "F0") -> dict[str, dict[str, str]]:
    return {name: {"value": LINE.hex(), "header": f"{use}{change}0133"} for name in names}


def new_df(size: str) -> Desk:
    return after(fresh(), f"80E03F011038{size}080800FFFF4E45574449523132", "00A40000023F01")


REFUSALS: list[tuple[int, Callable[[], Desk], str]] = [
    (0x6A86, at_home, "00B0F50000"),
    (0x6700, at_home, "00B0950001AA"),
    (0x6A86, at_home, "00B201BA00"),
    (0x6900, lambda: sandbox(LINE_KEY, ("0015", "A80004F0F0FFFF", None)), "00D6950401AA"),
    (0x6B00, lambda: sandbox({}, ("0015", "280004F0F0FFFF", None)), "00D6950401AA"),
    (0x6700, lambda: sandbox({}, ("0015", "280004F0F0FFFF", None)), "00D6950000"),
    (0x6982, lambda: sandbox({}, ("0015", "280004F0EFFFFF", None)), "00D6950001AA"),
    (0x6982, lambda: sandbox({}, ("0017", "2E0204F0EFFFFF", None)), "00E200B80400000000"),
    (0x9000, lambda: sandbox({}, ("0017", "2E0204F0F0FFFF", None)), "00E200B80400000000"),
    (0x6982, lambda: sandbox(keys("39/00", change="EF")), "80D439001539F0F00133" + "11" * 16),
    (0x6982, lambda: sandbox({}, key_file="3F0200 00EFFFFF".replace(" ", "")), "80D401001539F0F00133" + "11" * 16),
    (0x6983, lambda: sandbox({"39/00": {"value": LINE.hex(), "header": "F0F00130"}}), "84D439000C" + "00" * 12),
    (0x6987, lambda: sandbox(keys("39/00")), "84D4390000"),
    (0x6700, lambda: sandbox(keys("39/00")), "84D439000500000000 00".replace(" ", "")),
    (0x6A84, lambda: sandbox({}, key_file="3F001000F0FFFF"), "80D401001539F0F00133" + "11" * 16),
    (0x6A86, at_home, "8054020000"),
    (0x6A86, at_home, "805A010602000108"),
    (0x6A86, at_home, "805C010204"),
    (0x6A86, at_home, "8052010000"),
    (0x6700, at_home, "805A00060100"),
    (0x6A86, at_home, "0082010108" + "00" * 8),
    (0x6A86, at_home, "0088030008" + "00" * 8),
    (0x6700, at_home, "0088000100"),
    (0x6982, lambda: sandbox(keys("30/00", use="F1")), "0088000008" + "00" * 8),
    (0x6982, lambda: sandbox(keys("39/00", use="F1")), "0082000008" + "00" * 8),
    (0x6982, lambda: sandbox({"3A/00": {"pin": "1234", "header": "F1EF0133"}}), "00200000021234"),
    (0x6A86, at_home, "00200100021234"),
    (0x6700, at_home, "002000000112"),
    (0x6A88, at_home, "00200009021234"),
    (0x6A88, lambda: sandbox({"3A/00": {"pin": "1234"}}), "805E000006" + "1234" + "00" * 4),
    (0x6A88, lambda: sandbox({"3A/00": {"pin": "1234"}}), "842400000C" + "00" * 12),
    (0x6987, at_home, "841E000000"),
    (0x6700, at_home, "841E000005" + "00" * 5),
    (0x6A86, at_home, "841E000204" + "00" * 4),
    (0x6A86, at_home, "8418000104" + "00" * 4),
    (0x6900, at_home, "8018000004" + "00" * 4),
    (0x6985, oc1, "841E000004" + "00" * 4),
    (0x6900, oc1, "80E4000006" + "00" * 6),
    (0x6987, oc1, "84E4000002" + "3F01"),
    (0x6700, oc1, "84E4000007" + "00" * 7),
    (0x6A86, oc1, "84E4010006" + "00" * 6),
    (0x6900, oc1, "8016000004" + "00" * 4),
    (0x6A86, oc1, "8416010004" + "00" * 4),
    (0x6A86, at_home, "800E010000"),
    (0x6700, at_home, "800E000001AA"),
    (0x6700, at_home, "00840000 01AA04".replace(" ", "")),
    (0x6A80, lambda: new_df("0200"), "80E00000073F001020F0FFFF"),
    (0x6A84, lambda: new_df("0020"), "80E00000073F020000F0FFFF"),
]


@pytest.mark.parametrize(("sw", "start", "command"), REFUSALS, ids=[f"{c[0]:04X}-{c[2][:10]}" for c in REFUSALS])
def test_refusal(sw: int, start: Callable[[], Desk], command: str) -> None:
    """The command earns exactly this status word, and the card's image stays as it is."""
    desk = start()
    before = desk.card.snapshot()
    desk(command, sw)
    assert sw == 0x9000 or desk.card.snapshot() == before


def test_cache_refusals() -> None:
    """UPDATE CAPP CACHE into a cyclic file 6981, without the write right 6982, a record of another tag 6A80."""
    desk = at_home()
    for command, sw in (("80DC01D010" + "00" * 16, 0x6981), ("80DC01B811020F00" + "00" * 14, 0x6A80)):
        desk.initialize(3, 2, 1)
        desk(command, sw)
    desk("0020000003123456")
    desk.initialize(3, 2, 1)
    desk("80DC01B811010F00" + "00" * 14, 0x6982)


def test_overdraft_overflow() -> None:
    """A limit that lifts the balance over its four bytes is 6985."""
    desk = purse(balance_fen=0xFFFFFFFF, overdraft_fen=0)
    answer = desk.initialize(4, 1, 0)
    session = make_key(b"\x3c" * 16).session(answer[11:15] + answer[4:6] + b"\x80\x00")
    order = b"\0\0\x01\x07" + bytes.fromhex("310000000101") + bytes(7)
    desk(b"\x80\x58\0\0\x0e" + order[:3] + bytes(7) + session.mac(order), 0x6985)


def test_delete_df_leaves_other_directory_entries() -> None:
    """DIR records of other applications stay, also those that are no BER-TLV of ours."""
    desk = oc1()
    directory = desk.card.mf.files.value[1]
    assert isinstance(directory, RecordFile)
    odd = (b"\x61\x02\x4f\x05", b"\x50\x01A", b"\x61\x00")
    directory.records.value += odd
    desk.secured("84E40000", b"\x3f\x01", make_key(LINE))
    assert directory.records.value == odd
