"""Rotation of one card: cut at every step, rolled back, torn over and over; whole in the end, with its money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import (
    CheckFailed,
    Conflict,
    CryptoError,
    FormatError,
    NotFound,
    Refused,
    StatusError,
)
from cardlib.iso7816 import block_application, verify_pin
from cardlib.profile import CardKind, Purpose, Purse, load_profile, make_serial
from cardlib.purse import CHANGING, MoneyRequest, Receipt, balance, debit, identify, load, open_application
from cardlib.records import local_when, tac_input
from keymgmt.keys import KeyRef, KeyState
from keymgmt.mothercard import MotherCard
from keymgmt.personalise import application_keys, personalise, protector
from keymgmt.rotate import RekeyPlan, active_version, rekey, rotated, versions
from keymgmt.slot import open_slot
from keymgmt.softsam import SoftSam
from keymgmt.wash import wash
from simulator.card import Card
from simulator.files import PurseFile
from tests.keymgmt.mothers import PINS, made_authentication, made_mother
from tests.keymgmt.rig import ENTERPRISE, PIN, SAM_SERIAL, SERIAL, Rig, count_steps, cut, held, master, same

SLOT = 0x3F01
THIRD = 5
"""Its known keys differ from those of 1 and 2 in more than parity."""
MONEY = {Purse.MAIN: 30_00, Purse.SUBSIDY: 5_00}


def request(rig: Rig, purse: Purse, fen: int) -> MoneyRequest:
    now = rig.station.now_ms()
    return MoneyRequest(purse, fen, local_when(now), now)


def prepared(rig: Rig, key_set: int = 1) -> Card:
    """A personalised card with money in both purses."""
    card = rig.card()
    wash(card, rig.wash_plan, rig.store, rig.steps)
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    personalise(card, replace(rig.personal_plan, key_set=key_set), rig.station)
    session = open_application(card, rig.host, ENTERPRISE, rig.random.randbytes, Purpose.RECHARGE)
    for purse, fen in MONEY.items():
        load(card, rig.host, rig.moves, session, request(rig, purse, fen))
    card.reset()
    rig.steps._jobs.clear()
    return card


def plan(key_set: int, *known: int) -> RekeyPlan:
    return RekeyPlan("rekey", SERIAL, ENTERPRISE, key_set, known)


def renew(rig: Rig, card: Card, key_set: int, *known: int) -> None:
    rekey(card, plan(key_set, *known), rig.station, rig.moves.open)


def records_of(card: Card) -> dict[int, bytes]:
    """Every key record of the application by its place (type, kid)."""
    df = card.mf.files.value[SLOT]
    return {index: record.value.value for index, record in df.keys.value.items()}  # type: ignore[union-attr]


def assert_whole(rig: Rig, card: Card, key_set: int) -> None:
    """Every key of the set is the enterprise's for this card, no other is left, money and PIN are there.

    Only purchase and load key of another parity stay where they were (profile.md).
    """
    card.reset()
    for spec in rotated():
        got = held(card, spec.key_type, spec.kid(key_set), SLOT, rig.algorithm)
        assert same(got, rig.expected(spec.purpose, key_set)), spec.name
    spare = [spec.key_type << 8 | kid for spec in rotated() for kid in spec.kids if kid != spec.kid(key_set)]
    for other in {1, 2, THIRD} - {key_set}:
        gone = {rig.expected(spec.purpose, other)._value for spec in rotated()}
        left = [f"{place:04X}" for place, value in records_of(card).items() if value in gone and place not in spare]
        assert left == [], f"keys of version {other} are left on the card"
    session = open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
    assert session.version == key_set
    assert {purse: balance(card, purse) for purse in Purse} == MONEY
    assert not rig.moves.open
    verify_pin(card, PIN)


def at_a_till(rig: Rig, card: Card) -> tuple[int, Receipt | None]:
    """What a till makes of a card as it is: its key set, and a payment of nothing whose proof the host checks."""
    card.reset()
    version = identify(card, ENTERPRISE).version
    card.reset()
    till = SoftSam(rig.store, ENTERPRISE, b"TILL01", SAM_SERIAL)
    if version == CHANGING:
        with pytest.raises(Refused, match="recharged"):
            open_application(card, till, ENTERPRISE, rig.random.randbytes)
        return version, None
    session = open_application(card, till, ENTERPRISE, rig.random.randbytes)
    receipt = debit(card, till, rig.moves, session, request(rig, Purse.MAIN, 0))
    move = receipt.move
    rig.host.verify_tac(SERIAL, move.key_version, move.algorithm, tac_input(move), move.tac)
    assert move.key_version == version
    return version, receipt


@pytest.mark.parametrize(
    ("algorithm", "old", "new", "stride"),
    [(Algorithm.TDES, 1, 2, 1), (Algorithm.TDES, 2, 1, 3), (Algorithm.SM4, 1, 2, 3)],
)
def test_cut_everywhere(tmp_path: Path, algorithm: Algorithm, old: int, new: int, stride: int) -> None:
    """Cut at each step, a till pays by the old set, by the new one, or says where to go; the next tap finishes it."""
    rig = Rig(tmp_path, algorithm)
    total = count_steps(card := prepared(rig, old), lambda: renew(rig, card, new))
    assert_whole(rig, card, new)
    seen = set()
    for at in (*range(1, total, stride), total):
        card = prepared(rig, old)
        assert cut(card, at, lambda: renew(rig, card, new)), f"step {at} of {total}"  # noqa: B023
        version, receipt = at_a_till(rig, card)
        assert version in (old, CHANGING, new)
        assert (receipt is None) == (version == CHANGING)
        seen.add(version)
        if at % 4 < 2 and rig.steps.steps("rekey"):
            rig.steps.forget_last("rekey")
        card.reset()
        renew(rig, card, new, *([old] if at % 3 else []))
        assert_whole(rig, card, new)
    assert seen == {old, CHANGING, new}


@pytest.mark.parametrize(("algorithm", "stride"), [(Algorithm.TDES, 2), (Algorithm.SM4, 5)])
def test_rolled_back_from_everywhere(tmp_path: Path, algorithm: Algorithm, stride: int) -> None:
    """Cut at each step on its way to the new set, and again on its way back, a card ends with the old set, whole."""
    rig, dice = Rig(tmp_path, algorithm), Random(7)
    total = count_steps(card := prepared(rig), lambda: renew(rig, card, 2))
    for at in range(1, total + 1, stride):
        card = prepared(rig)
        cut(card, at, lambda: renew(rig, card, 2))  # noqa: B023
        cut(card, dice.randrange(1, total), lambda: renew(rig, card, 1, 2))  # noqa: B023
        renew(rig, card, 1)
        assert_whole(rig, card, 1)


@pytest.mark.parametrize("seed", range(3))
def test_torn_over_and_over(tmp_path: Path, seed: int) -> None:
    """Torn again and again between three versions, whichever way it is sent, a card is finished by the last one."""
    rig, dice = Rig(tmp_path, seed=seed), Random(seed)
    third(rig)
    card = prepared(rig)
    for _ in range(40):
        goal = dice.choice([1, 2, THIRD])
        cut(card, dice.randrange(1, 130), lambda: renew(rig, card, goal))  # noqa: B023
    renew(rig, card, THIRD)
    assert_whole(rig, card, THIRD)


def third(rig: Rig) -> None:
    for purpose in Purpose:
        value, kind = master(purpose, THIRD), rig.algorithm_of(purpose)
        rig.store.import_key(KeyRef(purpose, THIRD), kind, value, make_key(value, kind).kcv, "test")


def test_odd_to_odd(tmp_path: Path) -> None:
    """From one odd version to another every key is replaced in its own place, and no second one is added."""
    rig = Rig(tmp_path)
    third(rig)
    card = prepared(rig)
    before = sorted(records_of(card))
    renew(rig, card, THIRD)
    assert_whole(rig, card, THIRD)
    assert sorted(records_of(card)) == before


def test_done_again(tmp_path: Path) -> None:
    """A card that has the set already is proven to be ours, and nothing on it changes."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    renew(rig, card, 2)
    before = records_of(card)
    moves = len(rig.moves.intents)
    card.reset()
    renew(rig, card, 2)
    unchanged = records_of(card) == before
    assert unchanged
    assert len(rig.moves.intents) == moves


def test_a_torn_payment_is_closed_first(tmp_path: Path) -> None:
    """What a till left open is found out under the old TAC key, cut wherever it was, and its proof stays right."""
    rig = Rig(tmp_path)
    closed = 0
    for at in range(1, 60):
        card = prepared(rig)

        def pay(card: Card = card) -> None:
            session = open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
            debit(card, rig.host, rig.moves, session, request(rig, Purse.MAIN, 1_00))

        if not cut(card, at, pay):
            break
        torn = rig.moves.open
        renew(rig, card, 2)
        assert not rig.moves.open
        for ref, move in torn:
            closed += 1
            end = rig.moves.ends[ref]
            if end is not None:
                rig.host.verify_tac(SERIAL, end.key_version, end.algorithm, tac_input(move), end.tac)
        card.reset()
        paid = any(rig.moves.ends[ref] for ref, _ in torn)
        assert balance_of(rig, card) == MONEY[Purse.MAIN] - (1_00 if paid else 0)
    assert closed > 1


def balance_of(rig: Rig, card: Card) -> int:
    card.reset()
    open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
    return balance(card, Purse.MAIN)


def test_a_till_without_the_version(tmp_path: Path) -> None:
    """A card of a version that no key is left of is refused by name, not tried."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    renew(rig, card, 2)
    for purpose in Purpose:
        rig.store.set_state(KeyRef(purpose, 2), KeyState.DESTROYED, "test")
    card.reset()
    with pytest.raises(Conflict, match="destroyed"):
        open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)


def test_refused_before_anything_changes(tmp_path: Path) -> None:
    """A missing version, another card, a blocked application, an unheard-of set: said before the card is touched."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    before = records_of(card)
    other = make_serial(CardKind.CPU_CARD, 1, 8)
    with pytest.raises(NotFound, match="version 9"):
        renew(rig, card, 9)
    with pytest.raises(Conflict, match="present card"):
        rekey(card, replace(plan(2), serial=other), rig.station)
    with pytest.raises(FormatError):
        renew(rig, card, 0)
    new = [line for line in rig.source.lines() if line.version == 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.source, "lines", lambda: new)
        with pytest.raises(NotFound, match="holds key set 1"):
            renew(rig, card, 2)
    with pytest.raises(Conflict, match="enterprise 1001, not 7"):
        rekey(card, replace(plan(2), enterprise_id=7), rig.station)
    session = open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
    block_application(card, protector(rig.host, SERIAL, session.version, Purpose.MAINTENANCE))
    with pytest.raises(Conflict, match="blocked"):
        renew(rig, card, 2)
    unchanged = records_of(card) == before
    assert unchanged
    assert identify(card, ENTERPRISE).version == 1


def test_out_of_deliveries(tmp_path: Path) -> None:
    """A source that can't deliver all of a set is refused before the card leaves its old one."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    lines = [line._replace(left=0 if line.purpose is Purpose.TAC else 9) for line in rig.source.lines()]
    rig.source.lines = lambda: lines  # type: ignore[method-assign]
    with pytest.raises(Refused, match="tac"):
        renew(rig, card, 2)
    assert at_a_till(rig, card)[0] == 1


def test_foreign_control_key(tmp_path: Path) -> None:
    """A torn card whose control key nobody here has is named, and nothing is written on it."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    total = count_steps(card, lambda: renew(rig, card, 2))
    card = prepared(rig)
    for at in range(total // 2, total):
        card = prepared(rig)
        cut(card, at, lambda: renew(rig, card, 2))  # noqa: B023
        if identify(card, ENTERPRISE).version == CHANGING:
            break
    record = card.mf.files.value[SLOT].key(0x39, 0)  # type: ignore[union-attr]
    assert record is not None
    record.value.value = bytes(range(16))
    before = records_of(card)
    with pytest.raises(CryptoError, match="version 1, 2"):
        renew(rig, card, 2, 1)
    unchanged = records_of(card) == before
    assert unchanged


def test_a_wrong_key_is_found(tmp_path: Path) -> None:
    """Each key of the set: with one byte of it changed before it is proven, the card is not given out."""
    rig = Rig(tmp_path)
    for spec in rotated():
        card = prepared(rig)
        inner = card.transceive
        place = spec.key_type << 8 | spec.kid(2)

        def spoil(
            command: bytes, card: Card = card, inner: Callable[[bytes], bytes] = inner, place: int = place
        ) -> bytes:
            answer = inner(command)
            if command[:4] == bytes([0x84, 0xD4, 0x39, 0x00]):
                record = card.mf.files.value[SLOT].keys.value[place]  # type: ignore[union-attr]
                record.value.value = bytes([record.value.value[0] ^ 2]) + record.value.value[1:]
            return answer

        card.transceive = spoil  # type: ignore[method-assign]
        with pytest.raises((CheckFailed, CryptoError, StatusError)):
            renew(rig, card, 2)
        card.transceive = inner  # type: ignore[method-assign]
        card.reset()
        assert identify(card, ENTERPRISE).version == CHANGING, spec.name


def test_the_pin_is_left_alone(tmp_path: Path) -> None:
    """A PIN of which tries were used is the same after its unblocking key was proven, all tries given back."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    open_application(card, rig.host, ENTERPRISE, rig.random.randbytes)
    for _ in range(2):
        with pytest.raises(StatusError):
            verify_pin(card, b"\x99\x99")
    card.reset()
    renew(rig, card, 2)
    assert_whole(rig, card, 2)


def test_a_full_counter(tmp_path: Path) -> None:
    """A card with hardly any payments left is not begun: its new keys could not be proven."""
    rig = Rig(tmp_path)
    card = prepared(rig)
    purse = card.mf.files.value[SLOT].files.value[Purse.MAIN]  # type: ignore[union-attr]
    assert isinstance(purse, PurseFile)
    purse.state.value = purse.state.value._replace(offline_seq=0xFFFA)
    with pytest.raises(Refused, match="replace it"):
        renew(rig, card, 2)
    assert identify(card, ENTERPRISE).version == 1


def test_versions_of_an_enterprise(tmp_path: Path) -> None:
    """States follow the roots until the enterprise has entries of its own; a half-done change is not done."""
    rig = Rig(tmp_path)
    store = rig.store
    assert versions(store, ENTERPRISE) == {1: KeyState.PENDING}
    assert active_version(store, ENTERPRISE) == 1
    purposes = [spec.purpose for spec in rotated()]
    for purpose in purposes:
        store.set_state(KeyRef(purpose, 1), KeyState.ACTIVE, "test")
    assert versions(store, ENTERPRISE) == {1: KeyState.ACTIVE}
    for purpose in purposes:
        for version in (1, 2):
            store.create(KeyRef(purpose, version, ENTERPRISE), rig.algorithm_of(purpose), "test")
            if version == 1:
                store.set_state(KeyRef(purpose, version, ENTERPRISE), KeyState.ACTIVE, "test")
    for purpose in purposes:
        assert versions(store, ENTERPRISE) == {1: KeyState.ACTIVE, 2: KeyState.PENDING}
        store.set_state(KeyRef(purpose, 2, ENTERPRISE), KeyState.ACTIVE, "test")
    assert active_version(store, ENTERPRISE) == 2
    assert versions(store, 77) == {1: KeyState.ACTIVE}


def test_the_plan_can_be_read() -> None:
    """A dry run names the card, both sets of words and the order of things."""
    text = "\n".join(plan(2).lines())
    assert SERIAL.hex().upper() in text
    assert all(spec.name in text for spec in application_keys())
    assert load_profile().key(Purpose.CONTROL).name in text


def test_mother_card_is_source_enough(tmp_path: Path) -> None:
    """A card is brought to the next key set by a mother card that holds both, cut in between too."""
    rig = Rig(tmp_path)
    keys = MotherCard(made_mother(rig, versions=(1, 2)), made_authentication(rig), PINS)
    station = replace(rig.station, keys=keys)

    def act(card: Card) -> None:
        rekey(card, plan(2), station, rig.moves.open)

    total = count_steps(card := prepared(rig), lambda: act(card))
    assert_whole(rig, card, 2)
    for at in range(1, total, 9):
        card = prepared(rig)
        cut(card, at, lambda: act(card))  # noqa: B023  # called at once
        act(card)
        assert_whole(rig, card, 2)
