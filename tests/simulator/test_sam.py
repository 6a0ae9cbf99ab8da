"""The SAM: usages, versions, counter, PIN, key loading, refund (card.md §7, keys.md)."""

from __future__ import annotations

from typing import Any

import pytest

from cardlib.crypto import make_key
from cardlib.errors import FormatError
from simulator import image, snapshot
from simulator.sam import SamCard
from tests.simulator.desk import MASTERS, SAM_SERIAL, SERIAL, TERMINAL, TRANSPORT_KEY, WHEN, Desk, card_key, zeros

CONTROL = "5A" * 16
OTHER = bytes.fromhex("0202020202020202")
PURCHASE = make_key(MASTERS["purchase"])
REFUND = make_key(MASTERS["refund"])


def sam_description(*keys: dict[str, Any], **more: object) -> dict[str, Any]:
    purposes = ("purchase", "terminal", "recharge", "card", "refund", "load", "tac", "maintenance")
    return {
        "kind": "sam", "serial": SAM_SERIAL.hex(), "enterprise_id": 1001, "terminal": TERMINAL.hex(),
        "control_key": CONTROL, "own_key": "77" * 16,
        "sam_key": list(keys) or [{"purpose": p, "value": MASTERS[p]} for p in purposes], **more,
    }  # fmt: skip


class SamDesk(Desk):
    """A SAM with DF 1001 selected."""

    @classmethod
    def vendor_fresh(cls) -> SamDesk:
        desk = cls(SamCard.vendor_fresh(TRANSPORT_KEY, zeros))
        desk.authenticate(0, make_key(TRANSPORT_KEY))
        desk("00A40000021001")
        return desk

    def ask_mac1(self, amount: int, factor: bytes = SERIAL, type_: int = 6, version: int = 1) -> bytes:
        init = b"RAND" + b"\0\4" + amount.to_bytes(4, "big") + bytes((type_,)) + WHEN + bytes((version, 0))
        return b"\x80\x70\0\0\x1c" + init + factor + b"\x08"

    def purchase(self, amount: int, type_: int = 6, factor: bytes = SERIAL, confirm: bool = True) -> tuple[int, bytes]:
        """8070 and 8072; returns the terminal number and MAC2."""
        answer = self(self.ask_mac1(amount, factor, type_))
        session = PURCHASE.diversify(factor).session(b"RAND\0\4" + answer[2:4])
        data = amount.to_bytes(4, "big")
        assert answer[4:] == session.mac(data + bytes((type_,)) + TERMINAL + WHEN)
        if confirm:
            self(b"\x80\x72\0\0\4" + session.mac(data))
        return int.from_bytes(answer[:4], "big"), session.mac(data)

    def refund(
        self, amount: int, type_: int = 2, factor: bytes = SERIAL, seq: int = 9, sw: int = 0x9000, wrong: int = 0
    ) -> None:
        head = b"\0\0\x20\0" + seq.to_bytes(2, "big")
        session = REFUND.diversify(factor).session(b"RND4" + head[4:] + b"\x80\0")
        order = amount.to_bytes(4, "big") + bytes((type_,))
        mac1 = session.mac(head[:4] + order + TERMINAL)
        mac1 = bytes((mac1[0] ^ wrong,)) + mac1[1:]
        data = head + b"\1\0RND4" + mac1 + order + WHEN + factor
        answer = self(b"\x80\x74\0\0\x24" + data + b"\4", sw)
        assert not answer or answer == session.mac(order + TERMINAL + WHEN)


def sam_desk(*keys: dict[str, Any], **more: object) -> SamDesk:
    desk = SamDesk(image.build(sam_description(*keys, **more), zeros))
    desk("00A40000021001")
    return desk


def test_numbers_grow_and_are_never_given_twice() -> None:
    """The first is 1; each 8070 uses one up, confirmed or not, and a reset does not give it back."""
    desk = sam_desk()
    numbers = [desk.purchase(5)[0], desk.purchase(5, confirm=False)[0]]
    desk.card.reset()
    desk("00A40000021001")
    numbers.append(desk.purchase(5)[0])
    assert numbers == [1, 2, 3]
    assert desk("00B0980000") == b"\0\0\0\4"


def test_last_number() -> None:
    """FFFFFFFE is still given, then 9402."""
    desk = sam_desk(counter=0xFFFFFFFE)
    assert desk.purchase(5)[0] == 0xFFFFFFFE
    desk(desk.ask_mac1(5), 0x9402)


def test_8072_once_per_8070() -> None:
    """Without, twice, after a wrong one or after reset 6901; a wrong MAC2 9302 never blocks the SAM."""
    desk = sam_desk()
    confirm = b"\x80\x72\0\0\4"
    desk(confirm + bytes(4), 0x6901)
    for _ in range(20):
        _, mac2 = desk.purchase(5, confirm=False)
        desk(confirm + bytes(4), 0x9302)
        desk(confirm + mac2, 0x6901)
    _, mac2 = desk.purchase(5, confirm=False)
    desk("00B0980000")
    desk("8072000003000000", 0x6700)
    desk(confirm + mac2)
    desk(confirm + mac2, 0x6901)
    _, mac2 = desk.purchase(5, confirm=False)
    desk.card.reset()
    desk("00A40000021001")
    desk(confirm + mac2, 0x6901)


def test_8070_refusals() -> None:
    """Types other than 04 05 06 09 6985; unknown version 9403; wrong level or algorithm 6A88; odd lengths 6700."""
    desk = sam_desk()
    for type_, sw in ((4, 0x9000), (5, 0x9000), (9, 0x9000), (2, 0x6985), (1, 0x6985), (8, 0x6985)):
        desk(desk.ask_mac1(5, type_=type_), sw)
    desk(desk.ask_mac1(5, version=2), 0x9403)
    desk(b"\x80\x70\0\0\x24" + desk.ask_mac1(5)[5:-1] + OTHER, 0x6A88)
    sm4 = bytearray(desk.ask_mac1(5))
    sm4[24] = 4
    desk(bytes(sm4), 0x6A88)
    desk("8070000014" + "00" * 20, 0x6700)
    sam_desk({"purpose": "card", "value": CONTROL})(desk.ask_mac1(5), 0x6A88)
    numbers = desk("00B0980000")
    assert numbers == b"\0\0\0\4"


def test_801a_takes_the_whole_usage_byte() -> None:
    """Another level is 6A88, another version 9403, wrong factor count 6A80; types 0, 2, 9 and 0C are refused."""
    desk = sam_desk()
    serial = SERIAL.hex()
    desk("801A270108" + serial)
    desk("801A070100", 0x6A88)
    desk("801A270208" + serial, 0x9403)
    desk("801A280108" + serial, 0x6A88)
    desk("801A270110" + serial * 2, 0x6A80)
    desk("801A270107" + serial[2:], 0x6700)
    for type_ in (0, 2, 9, 0xC):
        desk(f"801A{0x20 | type_:02X}0108{serial}", 0x6985)


def test_what_a_derived_key_may_do() -> None:
    """7, 0A and 0B only encipher, 4 only MACs, 5 does both; without 801A, after SELECT or a failed one 6901."""
    desk = sam_desk()
    serial, encipher, mac = SERIAL.hex(), "80FA000008" + "11" * 8, "80FA010008" + "11" * 8
    desk(encipher, 0x6901)
    for usage, may_encipher, may_mac in ((0x27, 1, 0), (0x2A, 1, 0), (0x2B, 1, 0), (0x24, 0, 1), (0x25, 1, 1)):
        desk(f"801A{usage:02X}0108{serial}")
        desk(encipher, 0x9000 if may_encipher else 0x6985)
        desk(mac, 0x9000 if may_mac else 0x6985)
    desk("00A40000023F00")
    desk("00A40000021001")
    desk(encipher, 0x6901)
    desk("801A270108" + serial)
    desk("801A270208" + serial, 0x9403)
    desk(encipher, 0x6901)


def test_sam_computes_what_cards_answer() -> None:
    """801A type 7 and 80FA give the card's INTERNAL AUTHENTICATE, type 0A its EXTERNAL cryptogram."""
    desk = sam_desk()
    for usage, purpose in (("27", "card"), ("2A", "terminal"), ("2B", "recharge")):
        desk(f"801A{usage}0108{SERIAL.hex()}")
        assert desk("80FA000008" + "A1" * 8) == card_key(purpose).encrypt(b"\xa1" * 8)


def test_chained_macs() -> None:
    """07, 03, 01 over parts equal one 05 over the whole; 01 alone has IV 0; an error or 801A ends a chain."""
    desk = sam_desk()
    derive = f"801A250108{SERIAL.hex()}"
    key, iv = card_key("maintenance"), bytes.fromhex("A1B2C3D400000000")
    blocks = bytes(range(40))
    desk(derive)
    whole = desk(b"\x80\xfa\5\0\x30" + iv + blocks)
    assert whole == key.mac_padded(blocks, iv)[:4]
    assert desk(b"\x80\xfa\7\0\x10" + iv + blocks[:8]) == b""
    assert desk(b"\x80\xfa\3\0\x10" + blocks[8:24]) == b""
    assert desk(b"\x80\xfa\1\0\x10" + blocks[24:]) == whole
    zero_iv = key.mac_padded(blocks, bytes(8))[:4]
    assert desk(b"\x80\xfa\1\0\x28" + blocks) == zero_iv
    desk(b"\x80\xfa\7\0\x10" + iv + blocks[:8])
    desk(b"\x80\xfa\3\0\x07" + blocks[:7], 0x6700)
    assert desk(b"\x80\xfa\1\0\x28" + blocks) == zero_iv
    desk(b"\x80\xfa\7\0\x10" + iv + blocks[:8])
    desk(derive)
    assert desk(b"\x80\xfa\1\0\x28" + blocks) == zero_iv
    assert desk(b"\x80\xfa\2\0\x08" + blocks[:8]) == key.encrypt(blocks[:8])
    desk(b"\x80\xfa\4\0\x08" + blocks[:8], 0x6A86)
    desk(b"\x80\xfa\5\0\x08" + iv, 0x6700)


def test_terminals_pin() -> None:
    """After power-on nothing is computed before VERIFY; SELECT does not undo it, power does; three tries."""
    desk = sam_desk(pin="2468")
    guarded = (desk.ask_mac1(5), bytes.fromhex("801A270108") + SERIAL, b"\x80\x74\0\0\x24" + bytes(36))
    for command in guarded:
        desk(command, 0x6982)
    desk("00200000029999", 0x63C2)
    desk("00200000022468")
    desk("00A40000023F00")
    desk("00A40000021001")
    desk.purchase(5)
    desk("801A270108" + SERIAL.hex())
    desk.card.reset()
    desk("00200000022468")
    desk("00A40000021001")
    desk.purchase(5)
    desk.card.reset()
    desk("00A40000021001")
    desk(desk.ask_mac1(5), 0x6982)
    for sw in (0x63C2, 0x63C1, 0x63C0, 0x6983):
        desk("00200000021111", sw)


def test_only_in_its_directory() -> None:
    """With the MF current purchases and derivations are 6985."""
    desk = sam_desk()
    desk("00A40000023F00")
    desk(desk.ask_mac1(5), 0x6985)
    desk("801A270108" + SERIAL.hex(), 0x6985)


def test_internal_authenticate_with_a_key_of_its_own() -> None:
    """30/00 of the MF answers also with DF 1001 current; the control key never does."""
    desk = sam_desk()
    assert desk("0088000008" + "11" * 8) == make_key(b"\x77" * 16).encrypt(b"\x11" * 8)
    desk("0088010008" + "11" * 8, 0x6A88)


def test_key_loading() -> None:
    """Needs the host's proof (6982), then E||MAC under the control key; wrong MAC 9302; the new key serves at once."""
    desk = SamDesk.vendor_fresh()
    control = make_key(TRANSPORT_KEY)
    record = bytes.fromhex("270300") + MASTERS["card"]
    desk.secured("84D40000", record, control, encrypt=True)
    desk.secured("84D40000", record, make_key(bytes(16)), 0x9302, encrypt=True)
    desk("801A270308" + SERIAL.hex())
    for bad in ("000300" + "11" * 16, "2D0300" + "11" * 16, "270302" + "11" * 16, "270304" + "11" * 8, "2703"):
        desk.secured("84D40000", bytes.fromhex(bad), control, 0x6A80, encrypt=True)
    desk("84D400001C" + "00" * 28, 0x6984)
    desk("84D4000000", 0x6987)
    desk("84D400000500000000 00".replace(" ", ""), 0x6700)
    desk("84D40001 1C".replace(" ", "") + "00" * 28, 0x6A86)
    desk.card.reset()
    desk.secured("84D40000", record, control, 0x6982, encrypt=True)


def test_public_key_loading_example() -> None:
    """A key load printed by others is taken: type 2, level 1, version 0 (E-wallet and PSAM article)."""
    key = bytes.fromhex("00112233445566778899AABBCCDDEEFF")
    desk = SamDesk(SamCard.vendor_fresh(key))
    desk.authenticate(0, make_key(key))
    desk.card.random_bytes = lambda _: bytes.fromhex("5D72B3FD")
    desk.challenge()
    desk("84D400001CDCC0BB5793ABFCA2CA8C1624822F6E01A86A0B5CBED191DD8A9D4ADB")
    assert desk("80EA000000")[:3] == b"\x08\0\0"


def test_list_keys() -> None:
    """Purpose, version, algorithm and check value of each; 00 for a type without purpose."""
    desk = sam_desk(
        {"purpose": "purchase", "value": CONTROL, "version": 3}, {"usage": "28", "value": MASTERS["card"]},
        {"purpose": "card", "value": MASTERS["card"], "algorithm": "sm4"},
    )  # fmt: skip
    lines = [
        b"\x08\x03\0" + make_key(bytes.fromhex(CONTROL)).kcv,
        b"\0\x01\0" + make_key(MASTERS["card"]).kcv,
        b"\x04\x01\x04" + make_key(MASTERS["card"], 4).kcv,
    ]
    assert desk("80EA000000") == b"".join(lines)


def test_key_table_has_an_end() -> None:
    """A forty-first key is 6A84, replacing one of the forty works."""
    keys = [{"usage": "27", "version": n, "value": CONTROL} for n in range(1, 41)]
    desk = sam_desk(*keys)
    desk("00A4000000")
    control = make_key(bytes.fromhex(CONTROL))
    desk.authenticate(0, control)
    desk.secured("84D40000", b"\x27\x29\0" + MASTERS["card"], control, 0x6A84, encrypt=True)
    desk.secured("84D40000", b"\x27\x28\0" + MASTERS["card"], control, encrypt=True)


def test_refund_of_the_last_confirmed_purchase() -> None:
    """Same card, amount and kind of purse; MAC1 is checked first; nothing before a confirmation."""
    desk = sam_desk()
    desk.refund(5, sw=0x6985)
    desk.purchase(5, confirm=False)
    desk.refund(5, sw=0x6985)
    desk.purchase(5)
    desk.refund(5, sw=0x9302, wrong=1)
    desk.refund(6, sw=0x6985)
    desk.refund(5, type_=1, sw=0x6985)
    desk.refund(5, factor=OTHER, sw=0x6985)
    desk.refund(5, type_=3, sw=0x6985)
    desk.refund(5)
    desk.purchase(7, type_=9)
    desk.refund(5, sw=0x6985)
    desk.refund(7)
    desk.purchase(8, type_=5)
    desk.refund(8, type_=2, sw=0x6985)
    desk.refund(8, type_=1)


def test_refund_is_bound_to_the_cards_counter() -> None:
    """A repeat needs the same online sequence, also after power-off; another purchase starts anew."""
    desk = sam_desk()
    desk.purchase(5)
    desk.refund(5, seq=9)
    desk.refund(5, seq=9)
    desk.card.reset()
    desk("00A40000021001")
    desk.refund(5, seq=9)
    desk.refund(5, seq=10, sw=0x6985)
    desk.purchase(5)
    desk.refund(5, seq=10)


def test_a_sams_image_holds_everything() -> None:
    """Keys, counter, confirmed purchases and bound refunds come back; too many keys are refused."""
    desk = sam_desk()
    desk.purchase(3, type_=5)
    desk.purchase(5)
    desk.refund(5, seq=9)
    again = SamDesk(image.restore(desk.card.snapshot(), zeros))
    assert again.card.snapshot() == desk.card.snapshot()
    again("00A40000021001")
    again.refund(5, seq=10, sw=0x6985)
    again.refund(5, seq=9)
    again.refund(3, type_=1, seq=2)
    assert again.purchase(1)[0] == 3
    body = snapshot.unseal(desk.card.snapshot())
    body["extra"]["sam_keys"] = [bytes((0x27, n, 0)) + bytes(16) for n in range(41)]
    with pytest.raises(FormatError, match="41 keys"):
        image.restore(snapshot.seal(body))


def test_refund_of_both_legs() -> None:
    """A payment from both purses of one card: both can be undone; of two cards or two from one purse only the last."""
    desk = sam_desk()
    desk.purchase(3, type_=5)
    desk.purchase(5, type_=6)
    desk.refund(5, type_=2, seq=4)
    desk.refund(3, type_=1, seq=7)
    desk.refund(3, type_=1, seq=8, sw=0x6985)
    desk.purchase(3, type_=5, factor=OTHER)
    desk.purchase(5, type_=6)
    desk.refund(3, type_=1, factor=OTHER, sw=0x6985)
    desk.purchase(4, type_=6)
    desk.refund(5, type_=2, sw=0x6985)
    desk.refund(4, type_=2)


@pytest.mark.parametrize("algorithm", ["3des", "sm4"])
def test_both_algorithms(algorithm: str) -> None:
    """A SAM of either algorithm derives and enciphers with it."""
    desk = sam_desk(algorithm=algorithm)
    alg = 4 if algorithm == "sm4" else 0
    key = make_key(MASTERS["card"], alg).diversify(SERIAL)
    desk("801A270108" + SERIAL.hex())
    block = bytes(key.block)
    assert desk(b"\x80\xfa\0\0" + bytes((len(block),)) + block) == key.encrypt(block)


def test_wrong_second_sam_command_keeps_state() -> None:
    """A card's commands work on a SAM, a SAM's not on a card (6D00)."""
    desk = sam_desk()
    assert len(desk("00B0970000")) == 25
    card = Desk(image.build({"serial": SERIAL.hex()}, zeros))
    for command in ("8070000000", "8072000000", "801A000000", "80FA000000", "80EA000000", "8074000000"):
        card(command, 0x6D00)
