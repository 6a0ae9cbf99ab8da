"""The small decisions of card.md §12, one test each, and the pitfalls of §10."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest

from cardlib.crypto import make_key
from simulator import image
from simulator.card import Card, Quirks, ScriptedRandom
from simulator.files import PurseFile
from tests.simulator.desk import (
    CONTROL,
    LINE,
    PIN,
    TERMINAL,
    TRANSPORT_KEY,
    WHEN,
    Desk,
    application,
    at_home,
    card_key,
    description,
    fresh,
    oc1,
    protect,
    sandbox,
    zeros,
)

MF_KEY = make_key(CONTROL)
MF_LINE = make_key(LINE)
ADF = "80E03F0115" + "380800080895FFFF" + "F04F4E454341524401000003E9"
KEY_FILE = "80E00000073F020095F0FFFF"


def other_card(aid_key: str = "maintenance") -> Desk:
    """An application whose 36 key is counted, so that wrong MACs cost something."""
    value = card_key(aid_key)._value.hex()
    keys = {"3A/00": {"pin": PIN}, "36/00": {"value": value, "header": "F0F0FF33"}}
    return at_home(application=[application(keys=keys)])


# Blank, vendor-fresh, washed -----------------------------------------------------------------------------------------


def test_blank_card_takes_only_its_mf() -> None:
    """Without MF everything but CREATE FILE of 3F00 is refused; then rights wait until the MF is left."""
    desk = Desk(Card.blank(zeros))
    for command in ("00A4000000", "0084000004", "80E0001507280010F0F0FFFF", "805C000204"):
        desk(command, 0x6A81)
    desk("80E03F000D38FFFFEFEF01FFFFFFFFFFFFFF")
    desk("80E00000073F0100 01EFFFFF".replace(" ", ""))
    desk("80D401001539F0F00833" + TRANSPORT_KEY.hex())
    desk("80E0001507280010F0EFFFFF")
    desk("00D6950001AA")
    desk.card.reset()
    desk("00D6950001BB", 0x6982)
    desk("80E0001607280010F0F0FFFF", 0x6982)
    assert desk("00B0950001") == b"\xaa"
    desk("80E03F000D38FFFF0F001F01FFFFFFFFFFFF", 0x6982)


def test_vendor_fresh_card() -> None:
    """Its MF asks for state 8, which the transport key gives; three tries."""
    desk = Desk(Card.vendor_fresh(TRANSPORT_KEY, zeros))
    desk("80E0000507280010F0F0FFFF", 0x6982)
    for sw in (0x63C2, 0x63C1):
        desk.authenticate(0, MF_KEY, sw)
    desk.authenticate(0, make_key(TRANSPORT_KEY))
    desk("80E0000507280010F0F0FFFF")
    desk.authenticate(0, MF_KEY, 0x63C2)


def test_clear_keys_until_washed() -> None:
    """80D4 works while wash version is 00 and answers 6982 everywhere once it is 1; 84D4 works in both."""
    desk = fresh()
    desk("80E0000507280010F008FFFF")
    desk("80D401001536F0F0FFFF" + LINE.hex())
    desk("00D6850A02" + "0000")
    desk.write_key(0x39, 0, bytes.fromhex("39F00808FF") + CONTROL, make_key(TRANSPORT_KEY))
    desk("00D685090101")
    desk("80D401021536F0F0FFFF" + LINE.hex(), 0x6982)
    desk("80D436001536F0F0FFFF" + LINE.hex(), 0x6982)
    desk("80D430091536F0F0FFFF" + LINE.hex(), 0x6982)
    desk.write_key(1, 2, bytes.fromhex("36F0F0FFFF") + LINE, MF_KEY)


def test_first_key_of_a_slot_is_under_the_parents() -> None:
    """In an empty key file of a washed card only 39/00 may be added, under the MF's 39/00."""
    desk = oc1(application=[])
    desk.authenticate(0, MF_KEY)
    desk(ADF)
    desk.select()
    desk(KEY_FILE)
    slot = bytes(range(16))
    desk.write_key(1, 0, bytes.fromhex("3EF0F00100") + slot, MF_KEY, 0x6982)
    desk.write_key(1, 1, bytes.fromhex("39F0F008FF") + slot, MF_KEY, 0x6982)
    desk.write_key(1, 0, bytes.fromhex("39F0F008FF") + slot, MF_LINE, 0x9302)
    desk.write_key(1, 0, bytes.fromhex("39F0F008FF") + slot, MF_KEY)
    desk.write_key(1, 1, bytes.fromhex("3EF0F00100") + slot, MF_KEY, 0x9302)
    desk.write_key(1, 1, bytes.fromhex("3EF0F00100") + slot, make_key(slot))


def test_rights_of_a_new_directory_wait_until_it_is_left() -> None:
    """A new DF takes files without its rights, also after SELECT; leaving it ends that."""
    desk = fresh()
    desk("80E03F0110" + "380200EFEF00FFFF" + b"NEWDIR12".hex())
    desk(b"\x00\xa4\x04\x00\x08NEWDIR12")
    desk("80E0001507280010EFEFFFFF")
    assert desk("00B0950001") == b"\0"
    desk("00A40000023F00")
    desk(b"\x00\xa4\x04\x00\x08NEWDIR12")
    desk("00B0950001", 0x6982)


# Algorithms, challenges, PIN ------------------------------------------------------------------------------------------


def test_keys_without_algorithm_byte_have_their_directorys() -> None:
    """39 in a DF created with FF04 is SM4, though its record names no algorithm; 8-byte keys don't fit there."""
    keys = {"39/00": {"value": CONTROL.hex(), "header": "F0F00133"}}
    desk = sandbox(keys, algorithm="sm4")
    desk.authenticate(0, make_key(CONTROL, 4))
    desk("80D401020D36F0F0FFFF" + "11" * 8, 0x6A80)
    desk("80D401020D30F0F00100" + "11" * 8)


def test_transaction_key_decides_the_tac_algorithm() -> None:
    """An SM4 purchase key makes an SM4 TAC from the 34 key, whatever id that has; 8 bytes are too short (6985)."""
    tac = "43685E1FC8ABEA4C89E958BA6D4A293E"
    purse = ("0002", "2F0208F000FF18", {"balance_fen": 9})
    for size in (16, 8):
        keys = {
            "3E/01": {"value": CONTROL.hex(), "header": "F0F00104"},
            "34/00": {"value": tac[: 2 * size], "header": "F0F00100"},
        }
        desk = sandbox(keys, ("0018", "2E0A17F1EFFFFF", None), purse)
        if size == 16:
            answer = desk.debit(1, 2, 5, make_key(CONTROL, 4))
            data = bytes.fromhex("00000005 06") + TERMINAL + bytes.fromhex("00000008") + WHEN
            assert answer[:4] == make_key(bytes.fromhex(tac), 4).tac(data)
        else:
            desk.initialize(1, 2, 5, sw=0x6985)


@pytest.mark.parametrize("between", ["00B0950000", "00FF000000", "0102", "00", "00A40000025555", "80FF00000411223344"])
def test_any_command_uses_up_the_challenge(between: str) -> None:
    """Refused, unknown and malformed commands consume it too."""
    desk = at_home()
    key = card_key("terminal")
    cryptogram = key.cryptogram(desk.challenge(8))
    desk.card.transceive(bytes.fromhex(between))
    desk("0082000108" + cryptogram.hex(), 0x6984)
    desk.authenticate(1, key)


def test_get_response_keeps_the_challenge() -> None:
    """GET RESPONSE is the one command that does not."""
    desk = at_home()
    cryptogram = card_key("terminal").cryptogram(desk.challenge(8))
    desk("00C0000000", 0x6985)
    desk("0082000108" + cryptogram.hex())


def test_missing_challenge_costs_no_try() -> None:
    """EXTERNAL AUTHENTICATE without challenge is 6984 and leaves the counter."""
    desk = Desk(Card.vendor_fresh(TRANSPORT_KEY, zeros))
    for _ in range(4):
        desk("0082000008" + "00" * 8, 0x6984)
    desk.authenticate(0, make_key(TRANSPORT_KEY))


def test_failure_leaves_the_state() -> None:
    """A wrong cryptogram or PIN does not take away what was reached."""
    desk = at_home()
    desk.authenticate(2, card_key("terminal"), 0x63CF)
    desk("00200000029999", 0x63C2)
    assert desk.card.df_state == 1


def test_pin_tries() -> None:
    """63C2, 63C1, 63C0, then 6983 even for the right PIN; UNBLOCK gives tries and a new PIN."""
    desk = at_home()
    for sw in (0x63C2, 0x63C1, 0x63C0, 0x6983):
        desk("00200000029999", sw)
    desk("0020000003" + PIN, 0x6983)
    desk.secured("84240000", bytes.fromhex("4321"), card_key("pin_unblock"), encrypt=True)
    desk("00200000029999", 0x63C2)
    desk("00200000024321")
    assert desk.card.df_state == 3


def test_change_and_reload_reset_the_tries() -> None:
    """CHANGE with the right old PIN and RELOAD both do; new PINs are FF padded to 8 bytes."""
    keys = {"3A/00": {"pin": PIN}, "38/00": {"value": LINE.hex(), "header": "F0F0FF33"}}
    desk = sandbox(keys)
    desk("00200000029999", 0x63C2)
    desk("805E010007" + PIN + "FF654321")
    desk("00200000029999", 0x63C2)
    desk("00200000029999", 0x63C1)
    mac = make_key(LINE).folded().mac(bytes.fromhex("1234"))
    desk("805E000006" + "1234" + mac.hex())
    desk("00200000029999", 0x63C2)
    desk("00200000041234FFFF")
    record = desk.card.df.key(0x3A, 0)
    assert record is not None
    assert record.value.value == bytes.fromhex("1234FFFFFFFFFFFF")


def test_pin_bytes_are_not_checked_to_be_bcd() -> None:
    """ABCDEF is a PIN."""
    desk = sandbox({"3A/00": {"pin": "ABCDEF"}})
    desk("0020000003ABCDEF")


# Blocking ------------------------------------------------------------------------------------------------------------


def test_blocked_application() -> None:
    """SELECT answers FCI and 6A81 and makes it current; only challenge, unblock and proof are answered."""
    desk = at_home()
    desk.debit(1, 2, 1, card_key("purchase"))
    fci = desk.select()
    desk.secured("841E0000", b"", card_key("maintenance"))
    assert desk.select(sw=0x6A81) == fci
    for command in ("00B0950000", "805C000204", "80500102" + "0B0100000001310000000101", "00A40000020015"):
        desk(command, 0x6A81)
    desk("805A000602000108")
    desk.card.reset()
    desk("00A40000023F00")
    desk("00B0850000")
    desk.select(sw=0x6A81)
    desk.secured("84180000", b"", card_key("maintenance"))
    desk("00B0950000")


def test_permanently_blocked_application() -> None:
    """UNBLOCK answers 9303, the proof 6A81; the MF is untouched."""
    desk = at_home()
    desk.secured("841E0001", b"", card_key("maintenance"))
    desk.secured("84180000", b"", card_key("maintenance"), 0x9303)
    desk("805A000602000108", 0x6A81)
    desk("00A40000023F00")
    desk("00B0850000")


def test_unblock_failures_are_counted_apart() -> None:
    """Three wrong MACs in a row block for good (9303), leaving the key's own counter; with counter FF never."""
    for desk, third in ((other_card(), 0x9303), (at_home(), 0x6988)):
        desk.secured("841E0000", b"", card_key("maintenance"))
        for sw in (0x6988, 0x6988, third):
            desk.secured("84180000", b"", card_key("load"), sw)
        record = desk.card.df.key(0x36, 0)
        assert record is not None
        assert record.header.value[4] in (0x33, 0xFF)
        desk.secured("84180000", b"", card_key("maintenance"), 0x9303 if third == 0x9303 else 0x9000)


def test_a_right_unblock_forgets_failures() -> None:
    """Only failures in a row count."""
    desk = other_card()
    for _ in range(2):
        desk.secured("841E0000", b"", card_key("maintenance"))
        for _ in range(2):
            desk.secured("84180000", b"", card_key("load"), 0x6988)
        desk.secured("84180000", b"", card_key("maintenance"))


def test_three_wrong_writes_of_0015_block_the_application() -> None:
    """With a counted 36 key the third wrong MAC on 0015 or 0016 answers 9303 and blocks for good."""
    desk = other_card()
    desk.secured("04D69500", b"x", card_key("load"), 0x6988)
    desk.secured("04D69600", b"x", card_key("load"), 0x6988)
    desk.secured("04D69500", b"x", card_key("load"), 0x9303)
    desk.select(sw=0x6A81)


def test_wrong_macs_elsewhere_lock_the_key() -> None:
    """On other files they only count on the key: 6983 after three, the application lives; a right MAC resets."""
    desk = other_card()
    for _ in range(2):
        desk.secured("04D69900", b"x", card_key("load"), 0x6988)
    desk.secured("04D69900", b"x", card_key("maintenance"))
    for _ in range(3):
        desk.secured("04D69900", b"x", card_key("load"), 0x6988)
    desk.secured("04D69900", b"x", card_key("maintenance"), 0x6983)
    desk.select()


def test_card_block() -> None:
    """Only with the MF current, under its 36/00; then nothing is answered any more."""
    desk = at_home()
    desk.secured("84160000", b"", card_key("maintenance"), 0x6985)
    desk("00A40000023F00")
    desk.secured("84160000", b"", card_key("maintenance"), 0x6988)
    desk.secured("84160000", b"", MF_LINE)
    for command in ("00A40000023F00", "0084000004", "00B0850000", "80E00000073F020095F0FFFF"):
        desk(command, 0x6A81)
    desk.card.reset()
    desk("0084000004", 0x6A81)


def test_delete_df() -> None:
    """The DF, its space and its DIR record go in one step; only with the MF current and its 36/00."""
    two = [application(), application(enterprise_id=1002, slot=2)]
    desk = oc1(application=two)
    free = desk.card.mf.free_bytes
    desk.select()
    desk.secured("84E40000", b"\x3f\x01", card_key("maintenance"), 0x6985)
    desk("00A40000023F00")
    desk.secured("84E40000", b"\x3f\x05", MF_LINE, 0x6A82)
    desk.secured("84E40000", b"\x3f\x01", MF_LINE)
    desk.select(sw=0x6A82)
    assert desk.card.mf.free_bytes == free + 0x0800
    assert desk("00B2010C00")[4:17].hex().upper().endswith("000003EA")
    desk("00B2020C00", 0x6A83)
    desk.authenticate(0, MF_KEY)
    desk(ADF)


# Reading and files ----------------------------------------------------------------------------------------------------


def guarded(opt: str, create: str = "E80010F0F0FF") -> Desk:
    content = bytes(range(16)).hex()
    return sandbox({"36/00": {"value": LINE.hex(), "header": "F0F0FFFF"}}, ("0015", create + opt, content))


def test_reading_needs_secure_messaging_by_type_and_opt_byte() -> None:
    """Protected type and b8 of opt 0: 6900 without; b8 1: 6900 with. Le counts the data only."""
    desk = guarded("7F", "A80010F0F0FF")
    desk("00B0950000", 0x6900)
    answer = desk(desk.wrap("04B09500", b"", MF_LINE, le=5))
    assert answer[:5] == bytes(range(5))
    assert len(answer) == 9
    desk = guarded("FF", "A80010F0F0FF")
    desk(desk.wrap("04B09500", b"", MF_LINE, le=5), 0x6900)
    assert len(desk("00B0950000")) == 16


def test_protected_reading_comes_on_top_of_the_right() -> None:
    """A right MAC does not replace the security state."""
    desk = guarded("7F", "A80010F1F0FF")
    desk(desk.wrap("04B09500", b"", MF_LINE, le=0), 0x6982)


def test_encrypted_read() -> None:
    """The command carries the enciphered length, the answer enciphered data and their MAC with the same IV."""
    desk = guarded("7F")
    for wanted, expected in ((16, 16), (4, 4), (0, 16), (40, 16)):
        challenge = desk.challenge()
        block = MF_LINE.encrypt(bytes((wanted,)) + b"\x80" + bytes(6))
        answer = desk(protect("04B09500", block, MF_LINE, challenge, le=0))
        assert answer[-4:] == MF_LINE.mac(answer[:-4], challenge)
        assert MF_LINE.unseal(answer[:-4]) == bytes(range(expected))
    desk(desk.wrap("04B09500", b"", MF_LINE, le=0), 0x6700)
    desk(desk.wrap("04B09500", MF_LINE.encrypt(bytes(8)), MF_LINE, le=0), 0x6A80)
    desk(desk.wrap("04B09508", MF_LINE.encrypt(b"\0\x80" + bytes(6)), MF_LINE, le=0))


def test_encrypted_record_read() -> None:
    """Records of a protected file are read enciphered too."""
    keys = {"36/01": {"value": LINE.hex(), "header": "F0F0FFFF"}}
    desk = sandbox(keys, ("0017", "EA0208F0F0FF7B", ["0102030405060708", "1112131415161718"]))
    block = MF_LINE.encrypt(b"\0\x80" + bytes(6))
    challenge = desk.challenge()
    answer = desk(protect("04B202BC", block, MF_LINE, challenge, le=0))
    assert MF_LINE.unseal(answer[:-4]).hex() == "1112131415161718"


def test_opt_byte_selects_the_36_key() -> None:
    """b4b3 for reading, b2b1 for writing: 11 → 00, 10 → 01, 01 → 02, 00 → 03."""
    values = {f"36/0{i}": {"value": f"{i + 1}{i + 1}" * 16, "header": "F0F0FFFF"} for i in range(4)}
    for bits, kid in ((3, 0), (2, 1), (1, 2), (0, 3)):
        desk = sandbox(values, ("0015", f"A80010F0F0FF{0x70 | bits << 2 | (3 - bits):02X}", None))
        reader, writer = (make_key(bytes.fromhex(f"{i + 1}{i + 1}" * 16)) for i in (kid, 3 - kid))
        desk(desk.wrap("04B09500", b"", reader, le=0))
        desk.secured("04D69500", b"x", writer)
        desk.secured("04D69500", b"x", make_key(bytes(16)), 0x6988)


def test_sfi_current_file_and_short_answers() -> None:
    """SFI = low five bits of the FID, 0 the current file; too long an Le gives what is there."""
    desk = sandbox({}, ("0115", "280010F0F0FFFF", "AA" * 16), ("0017", "2C0040F0F0FFFF", ["0A0101", "0B0102"]))
    assert len(desk("00B09500FF")) == 16
    assert len(desk("00B0950803")) == 3
    desk("00B0951000", 0x6B00)
    desk("00A40000020017")
    assert desk("00B2010400") == b"\x0a\x01\x01"
    assert desk("00B20B0000") == b"\x0b\x01\x02"
    desk("00B2030400", 0x6A83)
    desk("00DC030403" + "0A0103", 0x6A83)
    desk("00B2010402", 0x6C03)


def test_fresh_files() -> None:
    """A binary file holds 00s, record files are empty."""
    desk = sandbox({}, ("0015", "280004F0F0FFFF", None), ("0017", "2E0204F0F0FFFF", None))
    assert desk("00B0950000") == bytes(4)
    desk("00B201BC00", 0x6A83)
    for i in range(3):
        desk(f"00DC00BB04{i:08X}")
    assert desk("00B201BC00") == b"\0\0\0\2"
    assert desk("00B202BC00") == b"\0\0\0\1"
    desk("00B203BC00", 0x6A83)
    desk("00DC01BC0400000009", 0x6A86)


def test_create_makes_only_the_mf_current() -> None:
    """After CREATE of a DF or EF the current directory and file stay."""
    desk = fresh()
    desk("80E0001507280010F0F0FFFF")
    desk("00B0000000", 0x6A82)
    desk("80E03F0110" + "380200080800FFFF" + b"NEWDIR12".hex())
    assert desk.card.df is desk.card.mf


def test_fci() -> None:
    """MF: 88 with the DIR's SFI; application: 9F0C with 0015, left out when there is none; never 9F08."""
    desk = oc1()
    assert desk("00A40000023F00").hex().upper() == "6F15840E315041592E5359532E4444463031A503880101"
    public = desk.select()
    assert public.hex().upper().startswith("6F32840DF04F4E454341524401000003E9A5219F0C1E")
    assert public[-30:] == desk("00B0950000")
    desk = fresh()
    desk(ADF)
    assert desk.select().hex().upper() == "6F11840DF04F4E454341524401000003E9A500"


def test_select_ef_keeps_the_state_and_drops_the_session() -> None:
    """SELECT of an EF answers no data."""
    desk = at_home()
    command = desk.debit_command(1, 2, 1, card_key("purchase"))
    assert desk("00A40000020015") == b""
    assert desk.card.df_state == 1
    desk(command, 0x6901)


def test_select_addresses() -> None:
    """By identifier only children, by name MF, current, sibling and child; without data the MF."""
    two = [application(), application(enterprise_id=1002)]
    desk = oc1(application=two)
    desk.select(1002)
    desk("00A40000023F01", 0x6A82)
    desk.select(1001)
    desk.select(1001)
    desk(b"\x00\xa4\x04\x00\x0e1PAY.SYS.DDF01")
    desk("00A40000023F02")
    assert desk("00A4000000")[2:4] == b"\x84\x0e"
    desk(b"\x00\xa4\x04\x00\x05NOBOD", 0x6A82)
    desk("00A4040000", 0x6700)
    desk("00A40000013F", 0x6700)
    desk("00A40200023F00", 0x6A86)


# Purse ---------------------------------------------------------------------------------------------------------------

PURSES = [("0001", "2F0208F003FF18", {"balance_fen": 9}), ("0002", "2F0208F003FF18", {"balance_fen": 9})]
LOG = ("0018", "2E0A17F1EFFFFF", None)
PURSE_KEYS: dict[str, Any] = {
    "3E/01": {"value": "3E" * 16, "header": "F0F00100"},
    "3F/01": {"value": "3F" * 16, "header": "F0F00100"},
    "3F/03": {"value": "5F" * 16, "header": "F0F00100"},
    "3C/01": {"value": "3C" * 16, "header": "F0F00100"},
    "34/03": {"value": "34" * 16, "header": "F0F00100"},
    "39/01": {"value": "39" * 16, "header": "F0F001FF"},
}


def knock(desk: Desk) -> Desk:
    desk.authenticate(1, make_key(b"\x39" * 16))
    return desk


def test_purse_names_its_tac_key() -> None:
    """Byte 5 of the purse file is the kid of the 34 key; missing key, purse or log are refused at INITIALIZE."""
    desk = sandbox(PURSE_KEYS, *PURSES, LOG)
    desk.initialize(1, 2, 1)
    without_tac = {name: key for name, key in PURSE_KEYS.items() if name != "34/03"}
    sandbox(without_tac, *PURSES, LOG).initialize(1, 2, 1, sw=0x6A88)
    sandbox(PURSE_KEYS, *PURSES).initialize(1, 2, 1, sw=0x6A82)
    sandbox(PURSE_KEYS, LOG).initialize(1, 2, 1, sw=0x6A82)


def test_eight_byte_tac_key_is_used_as_it_is() -> None:
    """No folding for 8 bytes."""
    keys = {**PURSE_KEYS, "34/03": {"value": "0123456789ABCDEF", "header": "F0F00100"}}
    desk = sandbox(keys, *PURSES, LOG)
    tac = desk.debit(1, 2, 1, make_key(b"\x3e" * 16))[:4]
    data = bytes.fromhex("0000000106") + TERMINAL + b"\0\0\0\x08" + WHEN
    assert tac == make_key(bytes.fromhex("0123456789ABCDEF")).mac(data)


def overdraft(desk: Desk, limit: int, sw: int = 0x9000) -> bytes:
    answer = desk.initialize(4, 1, 0)
    session = make_key(b"\x3c" * 16).session(answer[11:15] + answer[4:6] + b"\x80\x00")
    assert answer[15:] == session.mac(answer[:4] + answer[6:9] + b"\x07" + TERMINAL)
    order = limit.to_bytes(3, "big") + b"\x07" + TERMINAL + WHEN
    return desk(b"\x80\x58\0\0\x0e" + order[:3] + WHEN + session.mac(order), sw)


def test_overdraft_in_the_log_is_the_limit_after() -> None:
    """An overdraft update logs amount 0 and the new limit; later ED records carry it; EP's stay 000000."""
    desk = knock(sandbox(PURSE_KEYS, *PURSES, LOG))
    overdraft(desk, 100)
    assert desk("00B201C400").hex().upper()[:20] == "00010000640000000007"
    desk.debit(1, 1, 105, make_key(b"\x3e" * 16))
    assert desk("00B201C400").hex().upper()[:20] == "00010000640000006905"
    desk.debit(1, 2, 1, make_key(b"\x3e" * 16))
    assert desk("00B201C400")[2:5] == bytes(3)
    overdraft(desk, 95, 0x9401)
    overdraft(desk, 97)
    assert desk.balance(1) == 1


def test_composite_and_plain_purchases_share_a_pair() -> None:
    """06 and 09 replace each other's proof, so do 04 and 05; online and offline pairs live side by side."""
    desk = at_home()
    key = card_key("purchase")
    desk.debit(1, 2, 1, key)
    desk("805A000602000108")
    desk.debit(3, 2, 1, key)
    desk("805A000602000108", 0x9406)
    desk("805A000902000208")
    desk.debit(1, 1, 1, key)
    desk.debit(2, 1, 1, key)
    desk("805A000502000108", 0x9406)
    desk.authenticate(2, card_key("recharge"))
    desk.load(2, 1, card_key("load"))
    for gtp in ("805A000402000208", "805A000902000208", "805A000202000108"):
        desk.card.reset()
        desk.select()
        assert len(desk(gtp)) == 8
    desk("805A000302000108", 0x9406)


def test_unknown_initialize_and_wrong_second_command() -> None:
    """Unknown P1P2 6A86; second command of another kind 6901, and the session is gone."""
    desk = at_home()
    for p1p2 in ("0003", "0202", "0301", "0502", "0601", "0103"):
        desk(f"8050{p1p2}0B0100000001310000000101", 0x6A86)
    command = desk.debit_command(1, 2, 1, card_key("purchase"))
    desk.initialize(1, 2, 1)
    desk(b"\x80\x52\x00\x00\x0b" + bytes(11), 0x6901)
    desk(command, 0x6901)


def test_error_in_the_cache_ends_the_session() -> None:
    """After a wrong UPDATE CAPP CACHE the debit is 6901; outside a composite session the cache is 6901."""
    desk = at_home()
    record = "80DC01B811" + "010F00" + "11" * 14
    desk(record, 0x6901)
    for bad, sw in (("80DC01B80401020304", 0x6700), ("80DC09B80401020304", 0x6A83), ("80DC01B90401020304", 0x6A86)):
        desk.initialize(3, 2, 1)
        desk(bad, sw)
        desk(record, 0x6901)


def test_last_of_two_writes_to_one_record_wins() -> None:
    """Two updates of one record in a session: the second is what the debit commits."""
    desk = at_home()
    records = ("80DC01B811010F00" + "11" * 14, "80DC01BC11010F00" + "22" * 14, "80DC03BC0B030900" + "33" * 8)
    desk.debit(3, 2, 1, card_key("purchase"), records)
    assert desk("00B201BC00")[3:] == b"\x22" * 14
    assert desk("00B203BC00")[3:] == b"\x33" * 8
    assert desk("00B202BC00")[3:] == bytes(10)


def test_refund_key_loads_only_the_last_purchase() -> None:
    """Load with kid 03: amount and terminal of this purse's last purchase, once."""
    desk = knock(sandbox(PURSE_KEYS, *PURSES, LOG))
    debit, refund = make_key(b"\x3e" * 16), make_key(b"\x5f" * 16)
    desk.initialize(0, 2, 4, 3, sw=0x6985)
    desk.debit(1, 2, 4, debit)
    desk.debit(1, 1, 5, debit)
    desk.initialize(0, 2, 5, 3, sw=0x6985)
    desk("80500002 0B 03 00000004 990000000101".replace(" ", ""), 0x6985)
    desk.load(2, 4, refund, 3)
    desk.initialize(0, 2, 4, 3, sw=0x6985)
    desk.load(1, 5, refund, 3)
    assert (desk.balance(1), desk.balance(2)) == (9, 9)


# WRITE KEY, INTERNAL AUTHENTICATE, random -----------------------------------------------------------------------------


def test_write_key_refusals() -> None:
    """Adding what exists 6A86; 39/00 missing in a DF with keys 6A88; unknown key to update 6A88; no key file 6A82."""
    desk = sandbox({"36/00": {"value": LINE.hex(), "header": "F0F0FFFF"}})
    desk("80D401001536F0F0FFFF" + LINE.hex(), 0x6A86)
    desk.write_key(1, 1, bytes.fromhex("36F0F0FFFF") + LINE, MF_LINE, 0x6A88)
    desk("80D439001539F0F0FFFF" + LINE.hex(), 0x6A88)
    desk("80D401031536F0F0FFFF" + LINE.hex())
    desk("80D401041536F0F0FFFF" + LINE.hex(), 0x9403)
    desk("80D401001537F0F0FFFF" + LINE.hex())
    desk("80D401011537F0F0FFFF" + LINE.hex(), 0x6A86)
    desk("80D40100153BF0F0FFFF" + LINE.hex(), 0x6A80)
    desk("80D401001430F0F00100" + LINE.hex()[2:], 0x6700)
    bare = fresh()
    bare("80E03F0110" + "380200080800FFFF" + b"NEWDIR12".hex())
    bare("00A40000023F01")
    bare("80D401001536F0F0FFFF" + LINE.hex(), 0x6A82)


def test_update_of_a_protected_key_needs_class_84() -> None:
    """Stored type F9: clear update 6900; P1 matches modulo the top bits; the data's type replaces it."""
    desk = sandbox({"F9/00": {"value": CONTROL.hex(), "header": "F0F00833"}})
    desk("80D439001539F0F00833" + LINE.hex(), 0x6900)
    desk.write_key(0x39, 0, bytes.fromhex("39F0F00833") + LINE, MF_KEY)
    desk("80D4F90015F9F0F00833" + CONTROL.hex())
    desk("80D439000D39F0F00833" + "11" * 8, 0x6900)
    desk.write_key(0x39, 0, bytes.fromhex("39F0F00833") + bytes(8), MF_KEY, 0x6A80)
    desk.write_key(0x39, 0, bytes.fromhex("36F0F00833") + LINE, MF_KEY, 0x6A80)


def test_internal_authenticate_padding() -> None:
    """Enciphering pads only when not aligned, deciphering never, MAC always; SM4 zero-extends 8 bytes."""
    keys = {f"3{i}/00": {"value": LINE.hex(), "header": "F0F00100"} for i in range(3)}
    keys["30/01"] = {"value": LINE.hex(), "header": "F0F00104"}
    desk = sandbox(keys)
    assert desk("0088000003010203") == MF_LINE.encrypt(b"\1\2\3\x80" + bytes(4))
    assert desk("0088000008" + "11" * 8) == MF_LINE.encrypt(b"\x11" * 8)
    desk("0088010003010203", 0x6700)
    assert desk("0088020008" + "11" * 8) == MF_LINE.mac(b"\x11" * 8)
    sm4 = make_key(LINE, 4)
    assert desk("0088000108" + "11" * 8) == sm4.encrypt(b"\x11" * 8 + bytes(8))
    assert desk("0088000109" + "11" * 9) == sm4.encrypt(b"\x11" * 9 + b"\x80" + bytes(6))


def test_what_draws_random_numbers() -> None:
    """GET CHALLENGE draws Le bytes, an accepted INITIALIZE 4, a refused one none; then the generator continues."""
    desk = at_home()
    desk.card.random_bytes = ScriptedRandom(bytes(range(1, 15)), lambda size: b"\xee" * size)
    assert desk.challenge(4) == b"\1\2\3\4"
    desk.initialize(1, 2, 99_999_999, sw=0x9401)
    desk("0084000003", 0x6700)
    assert desk.initialize(1, 2, 1)[-4:] == b"\5\6\7\x08"
    assert desk.challenge(8) == b"\x09\x0a\x0b\x0c\x0d\x0e\xee\xee"


def test_ids_02_and_03_are_stored_but_not_used() -> None:
    """WRITE KEY takes them, INITIALIZE and INTERNAL AUTHENTICATE answer 6985 (card.md §1.7)."""
    desk = knock(sandbox(PURSE_KEYS, *PURSES, LOG))
    desk("80D40105153FF0F00102" + LINE.hex())
    desk("80D401051530F0F00103" + LINE.hex())
    desk.initialize(0, 2, 1, 5, sw=0x6985)
    desk("0088000508" + "00" * 8, 0x6985)


# Pitfalls (card.md §10) -----------------------------------------------------------------------------------------------


def test_mac_pads_when_aligned_but_encryption_does_not() -> None:
    """10.1: 7 bytes make one enciphered block with LD; an aligned MAC input still gets a block of padding."""
    key = MF_LINE
    assert len(key.seal(bytes(7))) == 8
    desk = sandbox({"36/00": {"value": LINE.hex(), "header": "F0F0FFFF"}}, ("0015", "E80010F0F0FFFF", None))
    head = bytes.fromhex("04D695000C") + key.seal(b"1234567")
    assert len(head) % 8 == 5
    desk.secured("04D69500", b"1234567", key, encrypt=True)
    aligned = bytes.fromhex("04D6950007") + b"abc"
    plain = sandbox({"36/00": {"value": LINE.hex(), "header": "F0F0FFFF"}}, ("0015", "A80010F0F0FFFF", None))
    challenge = plain.challenge()
    padded_once = aligned + b"\x80" + bytes(7)
    plain(aligned + key.mac_padded(padded_once, challenge + bytes(4))[:4])


def test_transactions_use_single_des_under_16_byte_keys() -> None:
    """10.2: MAC2 is DES CBC under the 8-byte session key, not algorithm 3 under the card's key."""
    desk = at_home()
    answer = desk.debit(1, 2, 300, card_key("purchase"))
    init = bytes(4) + b"\0\0" + b"\0\x08"
    session = make_key(card_key("purchase").encrypt(init))
    assert len(session) == 8
    assert answer[4:] == session.mac_padded(b"\0\0\x01\x2c\x80\0\0\0", bytes(8))[:4]


def test_zero_tac_key_works() -> None:
    """10.3: 34 repeated folds to an all-zero key, valid on real cards."""
    desk = sandbox(PURSE_KEYS, *PURSES, LOG)
    tac = desk.debit(1, 2, 1, make_key(b"\x3e" * 16))[:4]
    data = bytes.fromhex("0000000106") + TERMINAL + b"\0\0\0\x08" + WHEN
    assert tac == make_key(bytes(8)).mac(data)


def test_order_of_tac_and_mac2() -> None:
    """10.4: 8054 answers TAC then MAC2, GET TRANSACTION PROVE MAC2 then TAC."""
    desk = at_home()
    answer = desk.debit(1, 2, 1, card_key("purchase"))
    assert desk("805A000602000108") == answer[4:] + answer[:4]


def test_load_counters() -> None:
    """10.5: the TAC holds the counter before, proof and log the one after (log before, by quirk)."""
    for rule, logged in (("after", 1), ("before", 0)):
        desk = at_home(log_seq_rule=rule)
        desk.authenticate(2, card_key("recharge"))
        tac = desk.load(2, 5, card_key("load"))
        data = (10_005).to_bytes(4, "big") + b"\0\0" + b"\0\0\0\5\2" + TERMINAL + WHEN
        assert tac == card_key("tac").tac(data)
        assert desk("805A000202000108") == bytes(4) + tac
        assert desk("00B201C400")[:2] == bytes((0, logged))
        assert Quirks(rule) == desk.card.quirks  # type: ignore[arg-type]


def test_session_key_takes_the_right_half_of_the_terminal_number() -> None:
    """10.6: another high half changes the TAC and nothing else; 10.7: neither balance nor counter enter the TAC."""
    answers = []
    for high, balance in (("0000", 10_000), ("FFFF", 10_000), ("0000", 777)):
        desk = at_home(application=[application(files={"0002": {"balance_fen": balance, "offline_seq": 4}})])
        command = desk.debit_command(1, 2, 1, card_key("purchase"))
        answers.append(desk(command[:5] + bytes.fromhex(high) + command[7:]))
    assert answers[0][4:] == answers[1][4:]
    assert answers[0][:4] != answers[1][:4]
    assert answers[0] == answers[2]


def test_lc_in_the_mac_counts_the_mac() -> None:
    """10.10: a MAC over Lc without its own four bytes is wrong."""
    desk = at_home()
    key, challenge = card_key("maintenance"), desk.challenge()
    desk(bytes.fromhex("04D6990005") + b"x" + key.mac(bytes.fromhex("04D6990001") + b"x", challenge), 0x6988)


# 10.8 and 10.9 are test_key_length_decides_the_algorithm (vectors) and test_any_command_uses_up_the_challenge.


def test_two_faces_share_one_memory() -> None:
    """A second face sees what the first committed and loses its place when that is deleted (profile.md, RFID-SIM)."""
    desk = at_home()
    phone = Desk(Card(desk.card.nvm, zeros))
    phone.select()
    phone("00B0950000")
    assert phone.card.df_state == 0
    assert desk.card.df_state == 1
    phone("00A4000000")
    phone.authenticate(0, MF_KEY)
    phone.secured("84E40000", b"\x3f\x01", MF_LINE)
    desk("805C000204", 0x6A82)
    assert desk.card.df is desk.card.mf


def test_erase_df() -> None:
    """Erasing empties the current DF under its erase right and frees its space; MF state stays."""
    desk = oc1()
    desk.select()
    desk("800E000000", 0x6982)
    desk("00A4000000")
    desk.authenticate(0, MF_KEY)
    desk.select()
    desk("800E000000")
    desk("00B0950000", 0x6A82)
    assert desk.card.df.free_bytes == 0x0800
    desk(KEY_FILE)
    desk("80E0001507A8001EF0F0FFFF")


def test_purse_rights() -> None:
    """The purse's use right decides debits and balance; a load wants the key's right and some authentication."""
    purses = [("0001", "2F0208F103FF18", {"balance_fen": 9}), ("0002", "2F0208F003FF18", {"balance_fen": 9})]
    desk = sandbox(PURSE_KEYS, *purses, LOG)
    desk("805C000104", 0x6982)
    desk.initialize(1, 1, 1, sw=0x6982)
    assert desk.balance(2) == 9
    desk.initialize(1, 2, 1)
    desk.initialize(0, 2, 1, sw=0x6982)
    knock(desk)
    desk.initialize(0, 2, 1)
    desk.initialize(1, 1, 1)
    home = at_home()
    home.initialize(0, 2, 1, sw=0x6982)
    home("0020000003" + PIN)
    home.initialize(0, 2, 1)


def test_reference_issuing_script() -> None:
    """The vendor manual's script (card.md §6.5) runs from a blank card to a purchase; DF size 0800 instead of 036F."""
    desk = Desk(Card.blank(zeros))
    desk("80E03F000D38FFFFF0F001FFFFFFFFFFFFFF")
    desk("80E00000073F010001F0FFFF")
    desk("80D401001536F0F0FF33" + "36" * 16)
    desk("80D401001539F0F0AA33" + "39" * 16)
    desk("80E00001072C0100F0F0FFFF")
    desk("00E2000817" + "61154F09A00000000386980701500850424F43" + "20" * 4)
    desk("80E03F011138080 0F0F095FFFFA00000000386980701".replace(" ", ""))
    desk("00A40000023F01")
    desk("80E00000073F018F95F0FFFF")
    for type_, kids, header in (
        ("34", 1, "F0F00100"), ("36", 1, "F0F0FF33"), ("37", 1, "F0F0FF33"), ("38", 1, "F0F0FF33"),
        ("39", 1, "F0F0AA33"), ("3E", 2, "F0F00100"), ("3F", 2, "F0F00100"), ("3D", 2, "F0F00100"),
        ("3C", 2, "F0F00100"),
    ):  # fmt: skip
        for kid in range(kids):
            desk(f"80D401{kid:02X}15{type_}{header}" + type_ * 16)
    desk("80D401000A3AF0EF0133" + "123456FFFF")
    for file in (
        "0015 07 A8001EF0F0FFFF", "0016 07 A80027F0F0FFFF", "0017 07 2C0040F0F0FFFF", "0018 07 2E0A17F1EFFFFF",
        "0001 07 2F0208F100FF18", "0002 07 2F0208F000FF18",
    ):  # fmt: skip
        desk("80E0" + file)
    desk(b"\x00\xa4\x04\x00\x09" + bytes.fromhex("A00000000386980701"))
    desk("0020000003123456")
    desk.load(2, 500, make_key(b"\x3f" * 16))
    desk.debit(1, 2, 120, make_key(b"\x3e" * 16))
    assert desk.balance(2) == 380
    desk("00B2010C00", 0x6981)
    desk("00A40000023F00")
    assert desk("00B2010C00")[:2] == b"\x61\x15"


def test_faces_take_turns() -> None:
    """Two threads on two faces of one chip: each command runs alone, so no money is lost or made."""
    desk = at_home()
    phone = Desk(Card(desk.card.nvm, zeros))
    phone.select()
    phone.authenticate(2, card_key("recharge"))

    def loads() -> None:
        for _ in range(100):
            phone.load(2, 3, card_key("load"))

    thread = Thread(target=loads)
    thread.start()
    for _ in range(100):
        desk.debit(1, 2, 2, card_key("purchase"))
    thread.join()
    assert desk.balance(2) == 10_000 + 300 - 200
    purse = desk.card.df.files.value[2]
    assert isinstance(purse, PurseFile)
    assert (purse.state.value.online_seq, purse.state.value.offline_seq) == (100, 100)


def test_description_of_the_desk_is_reproducible() -> None:
    """Two cards of one description answer alike."""
    images = [image.build(description(), zeros).snapshot() for _ in range(2)]
    assert images[0] == images[1]


def test_purse_state_survives_reset() -> None:
    """Balance, counters and proofs are persistent; the session is not."""
    desk = at_home()
    command = desk.debit_command(1, 2, 1, card_key("purchase"))
    desk.card.reset()
    desk.select()
    desk(command, 0x6901)
    purse = desk.card.df.files.value[2]
    assert isinstance(purse, PurseFile)
    assert purse.state.value.offline_seq == 0


def test_security_states() -> None:
    """SELECT of a DF clears its own state and keeps the MF's; SELECT of the MF and reset clear both (card.md §6.1)."""
    desk = oc1()
    desk.authenticate(0, MF_KEY)
    desk.select()
    desk.authenticate(1, card_key("terminal"))
    assert (desk.card.mf_state, desk.card.df_state) == (8, 1)
    desk.select()
    assert (desk.card.mf_state, desk.card.df_state) == (8, 0)
    desk("00A4000000")
    assert (desk.card.mf_state, desk.card.df_state) == (0, 0)


def test_short_identifier_makes_a_file_current() -> None:
    """After access by SFI, commands without one mean that file."""
    desk = sandbox({}, ("0015", "280004F0F0FFFF", "AABBCCDD"), ("0016", "280001F0F0FFFF", "EE"))
    desk("00A40000020016")
    assert desk("00B0950000").hex() == "aabbccdd"
    assert desk("00B0000200").hex() == "ccdd"


def test_limits_of_amounts() -> None:
    """The whole balance can be spent and the last fen of four bytes loaded, no more."""
    desk = at_home()
    desk.debit(1, 2, 10_000, card_key("purchase"))
    desk.initialize(1, 2, 1, sw=0x9401)
    desk.authenticate(2, card_key("recharge"))
    desk.load(2, 0xFFFFFFFF, card_key("load"))
    desk.load(2, 0, card_key("load"))
    desk.initialize(0, 2, 1, sw=0x6985)


@pytest.mark.parametrize(("algorithm", "most"), [(0, 247), (4, 239)])
def test_longest_encrypted_read(algorithm: int, most: int) -> None:
    """An enciphered answer stays within 256 bytes: 247 data bytes, with SM4 239; a MACed one holds 252."""
    name, key = {0: "3des", 4: "sm4"}[algorithm], make_key(LINE, algorithm)
    keys = {"36/00": {"value": LINE.hex(), "header": "F0F0FFFF"}}
    files = [("0015", "E80200F0F0FF7F", "5A" * 512), ("0016", "A80200F0F0FF7F", None)]
    desk = sandbox(keys, *files, algorithm=name)
    block = key.encrypt(b"\0\x80" + bytes(key.block - 2))
    answer = desk(protect("04B09500", block, key, desk.challenge(), le=0))
    assert len(answer) <= 256
    assert key.unseal(answer[:-4]) == b"\x5a" * most
    assert len(desk(desk.wrap("04B09600", b"", key, le=0))) == 256
