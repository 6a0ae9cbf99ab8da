"""Power cut at every step of representative commands: afterwards the state is the old or the new one, never between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cardlib.crypto import make_key
from cardlib.errors import CardRemoved
from simulator import image
from simulator.card import Card
from tests.simulator.desk import CONTROL, LINE, PIN, TRANSPORT_KEY, WHEN, Desk, at_home, card_key, fresh, oc1
from tests.simulator.test_sam import SamDesk, sam_desk

Prepare = Callable[[], tuple[Desk, bytes]]


def update() -> tuple[Desk, bytes]:
    desk = at_home()
    return desk, desk.wrap("04D69600", b"name", card_key("maintenance"))


def write_key() -> tuple[Desk, bytes]:
    desk = at_home()
    record = bytes.fromhex("39F0F008FF") + bytes(range(16))
    return desk, desk.wrap("84D43900", record, card_key("control"), encrypt=True)


def load() -> tuple[Desk, bytes]:
    desk = at_home()
    desk.authenticate(2, card_key("recharge"))
    return desk, desk.load_command(2, 700, card_key("load"))


def purchase() -> tuple[Desk, bytes]:
    desk = at_home()
    return desk, desk.debit_command(1, 2, 300, card_key("purchase"))


def composite() -> tuple[Desk, bytes]:
    desk = at_home()
    records = ("80DC01B811010F00" + "11" * 14, "80DC02B80D020B00" + "22" * 10)
    return desk, desk.debit_command(3, 2, 300, card_key("purchase"), records)


def refund() -> tuple[Desk, bytes]:
    desk = at_home()
    desk.debit(1, 2, 300, card_key("purchase"))
    return desk, desk.load_command(2, 300, card_key("refund"), 3)


def unload() -> tuple[Desk, bytes]:
    desk = at_home()
    r = desk.initialize(5, 1, 50)
    session = card_key("unload").session(r[8:12] + r[4:6] + b"\x80\x00")
    order = bytes.fromhex("0000003203310000000101")
    assert r[12:] == session.mac(r[:4] + order)
    return desk, b"\x80\x54\x03\x00\x0b" + WHEN + session.mac(order + WHEN)


def create() -> tuple[Desk, bytes]:
    return fresh(), bytes.fromhex("80E03F0115380800080895FFFFF04F4E454341524401000003E9")


def create_key_file() -> tuple[Desk, bytes]:
    desk = fresh()
    desk(create()[1])
    desk.select()
    return desk, bytes.fromhex("80E00000073F020095F0FFFF")


def delete() -> tuple[Desk, bytes]:
    desk = oc1()
    return desk, desk.wrap("84E40000", b"\x3f\x01", make_key(LINE))


def erase() -> tuple[Desk, bytes]:
    desk = oc1()
    desk.authenticate(0, make_key(CONTROL))
    desk.select()
    return desk, bytes.fromhex("800E000000")


def wrong_pin() -> tuple[Desk, bytes]:
    return at_home(), bytes.fromhex("00200000029999")


def unblock_pin() -> tuple[Desk, bytes]:
    desk = at_home()
    desk("00200000029999", 0x63C2)
    return desk, desk.wrap("84240000", bytes.fromhex(PIN), card_key("pin_unblock"), encrypt=True)


def block() -> tuple[Desk, bytes]:
    desk = at_home()
    return desk, desk.wrap("841E0001", b"", card_key("maintenance"))


def first_file() -> tuple[Desk, bytes]:
    return Desk(Card.blank()), bytes.fromhex("80E03F000D38FFFF0F0001FFFFFFFFFFFFFF")


def sam_number() -> tuple[Desk, bytes]:
    desk = sam_desk()
    return desk, desk.ask_mac1(5)


def sam_confirm() -> tuple[Desk, bytes]:
    desk = sam_desk()
    _, mac2 = desk.purchase(5, confirm=False)
    return desk, b"\x80\x72\0\0\4" + mac2


def sam_key() -> tuple[Desk, bytes]:
    desk = SamDesk.vendor_fresh()
    record = bytes.fromhex("22070011223344556677888899AABBCCDDEEFF")
    return desk, desk.wrap("84D40000", record, make_key(TRANSPORT_KEY), encrypt=True)


COMMANDS: list[Prepare] = [
    update, write_key, load, purchase, composite, refund, unload, create, create_key_file, delete, erase, wrong_pin,
    unblock_pin, block, first_file, sam_number, sam_confirm, sam_key,
]  # fmt: skip


@pytest.mark.parametrize("prepare", COMMANDS)
def test_all_or_nothing(prepare: Prepare) -> None:
    """At each step the image after power-on equals the one before or the one of an undisturbed run; both occur."""
    desk, command = prepare()
    before = desk.card.snapshot()
    desk.card.transceive(command)
    after = desk.card.snapshot()
    assert before != after
    states = []
    for step in range(1, 200):
        desk, command = prepare()
        desk.card.power.cut_at(step)
        try:
            desk.card.transceive(command)
        except CardRemoved:
            with pytest.raises(CardRemoved):
                desk.card.transceive(command)
            desk.card.reset()
            states.append(desk.card.snapshot())
        else:
            break
    else:
        pytest.fail("the command never ends")
    changed = [state == after for state in states]
    assert all(state in (before, after) for state in states)
    assert changed == sorted(changed)
    assert changed[-1]
    assert not changed[0]


def test_volatile_state_goes_with_power() -> None:
    """After a cut: MF current, no security state, no challenge, no session."""
    desk, command = purchase()
    desk.card.power.cut_at(1)
    with pytest.raises(CardRemoved):
        desk.card.transceive(command)
    desk.card.reset()
    assert (desk.card.df, desk.card.df_state, desk.card.mf_state) == (desk.card.mf, 0, 0)
    desk.select()
    desk(command, 0x6901)


def test_proof_tells_a_torn_purchase() -> None:
    """After each cut GET TRANSACTION PROVE, balance and log agree on whether the purchase happened."""
    for step in range(1, 40):
        desk, command = purchase()
        desk.card.power.cut_at(step)
        try:
            desk.card.transceive(command)
        except CardRemoved:
            desk.card.reset()
        else:
            return
        desk.select()
        done = desk.card.transceive(bytes.fromhex("805A000602000108"))[-2:] == b"\x90\x00"
        assert desk.balance(2) == (9_700 if done else 10_000)
        desk.authenticate(1, card_key("terminal"))
        assert desk.initialize(1, 2, 0)[4:6] == bytes((0, done))
        desk("00B201C400", 0x9000 if done else 0x6A83)


def test_cut_while_powering_on() -> None:
    """Completing a transaction at power-on may be cut too; it is completed at the next."""
    desk, command = composite()
    desk.card.power.cut_at(15)
    with pytest.raises(CardRemoved):
        desk.card.transceive(command)
    for _ in range(3):
        desk.card.power.cut_at(3)
        with pytest.raises(CardRemoved):
            desk.card.reset()
    desk.card.power.cut_at(0)
    desk.card.reset()
    desk.select()
    assert desk.balance(2) == 9_700


def test_snapshot_of_a_torn_card_is_its_next_state() -> None:
    """An image taken between cut and power-on holds the completed transaction."""
    desk, command = purchase()
    desk.card.power.cut_at(15)
    with pytest.raises(CardRemoved):
        desk.card.transceive(command)
    other = Desk(image.restore(desk.card.snapshot()))
    other.select()
    assert other.balance(2) == 9_700


def test_other_face_completes_what_the_first_began() -> None:
    """A face without power leaves a marked log; the other face's next command comes after its completion."""
    desk, command = purchase()
    phone = Desk(Card(desk.card.nvm))
    phone.select()
    desk.card.power.cut_at(12)
    with pytest.raises(CardRemoved):
        desk.card.transceive(command)
    assert phone.balance(2) == 9_700
