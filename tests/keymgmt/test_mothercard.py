"""Mother card and authentication card: made, used as the only source of keys, cut at every step, misused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from cardlib.apdu import Command
from cardlib.crypto import Algorithm, make_key
from cardlib.errors import (
    CardRemoved,
    CheckFailed,
    ConfigError,
    Conflict,
    CryptoError,
    FormatError,
    NotFound,
    OneCardError,
    Refused,
    StatusError,
)
from cardlib.iso7816 import MF, change_pin, select, verify_pin
from cardlib.profile import CardKind, Purpose, load_profile, make_serial
from cardlib.transport import Decorator, Tearing, Transport, send
from keymgmt.delivery import Delivery, KeyLine, KeySource
from keymgmt.keys import KeyRef
from keymgmt.mothercard import (
    DELIVERED,
    DELIVERIES,
    HELD,
    MotherCard,
    Pins,
    make_authentication,
    make_mother,
    set_limit,
)
from keymgmt.personalise import HOST_ONLY, personalise, prove, prove_at_host
from keymgmt.samload import HOLDS, SamKind, load_sam
from keymgmt.steps import MemorySteps
from keymgmt.wash import wash
from simulator import image
from simulator.card import Card
from simulator.mothercard import MotherCard as Mother
from simulator.sam import SamCard
from tests.keymgmt.mothers import (
    MOTHER,
    PINS,
    authentication_plan,
    blank_sam,
    fresh_mother,
    issuing_sam,
    made_authentication,
    made_mother,
    mother_plan,
    sam_plan,
    source,
    station,
)
from tests.keymgmt.rig import ENTERPRISE, SERIAL, Moves, Rig, count_steps, cut, held, master, same
from tests.keymgmt.test_issue import assert_complete, with_slot
from tests.secretwatch import register

BOTH = pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
OTHER = ENTERPRISE + 1
WRONG_PIN = b"\x00\x00\x00"
for _pin, _name in ((PINS.mother, "mother PIN"), (PINS.authentication, "authentication PIN")):
    register(_pin.hex(), _name)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def expected_lines(rig: Rig, left: int = DELIVERIES) -> set[KeyLine]:
    """What the store says, with the deliveries of keys that are delivered."""
    store = {line.purpose: line for line in rig.source.lines() if line.version == 1}
    pin = KeyLine(Purpose.PIN, 1, Algorithm.TDES, bytes(3), left)
    return {store[p]._replace(left=left if p in DELIVERED else 0) for p in HELD if p is not Purpose.PIN} | {pin}


def assert_mother(rig: Rig, card: Mother, left: int = DELIVERIES) -> None:
    """All keys as in the store, each with its place; only what the design says in the MF."""
    assert same(held(card, 0x39, 0), rig.expected(Purpose.CARD_CONTROL, serial=MOTHER))
    assert same(held(card, 0x36, 0), rig.expected(Purpose.CARD_MAINTENANCE, serial=MOTHER))
    assert same(held(card, 0x39, 1), rig.expected(Purpose.MOTHER_AUTH, serial=MOTHER))
    assert sorted(card.mf.keys.value) == [0x3600, 0x3900, 0x3901, 0x3A00]
    headers = {kid: record.header.value.hex().upper() for kid, record in card.mf.keys.value.items()}
    assert (headers[0x3A00], headers[0x3901]) == ("3AF0EF0133", "39F1F002FF")
    card.reset()
    opened = MotherCard(card, made_authentication(rig), PINS)
    assert opened.enterprise_id == ENTERPRISE
    assert set(opened.lines()) == expected_lines(rig, left)


# Making


@BOTH
def test_make(tmp_path: Path, algorithm: Algorithm) -> None:
    """Vendor-fresh chips become a pair that opens and lists the store's keys; making them again changes nothing."""
    rig = Rig(tmp_path, algorithm)
    mother, authentication = fresh_mother(rig), rig.card()
    images: list[tuple[bytes, bytes]] = []
    for _ in range(2):
        listed = make_mother(mother, mother_plan(rig), rig.store, rig.steps)
        make_authentication(authentication, authentication_plan(rig), rig.store, rig.steps)
        assert set(listed) == expected_lines(rig)
        assert_mother(rig, mother)
        images.append((mother.snapshot(), authentication.snapshot()))
    assert images[0] == images[1]
    record = authentication.mf.key(0x30, 1)
    assert record is not None
    assert record.header.value == bytes.fromhex("30F1F00100")


def test_an_image_gives_the_same_mother_card(rig: Rig, tmp_path: Path) -> None:
    """A mother card and its counters survive a file."""
    mother = made_mother(rig)
    image.save(mother, tmp_path / "mother.img")
    again = image.load(tmp_path / "mother.img", rig.random.randbytes)
    assert isinstance(again, Mother)
    assert again.snapshot() == mother.snapshot()
    assert_mother(rig, again)


def test_two_versions(rig: Rig) -> None:
    """A second version is added to a card at work; each version has its own kid where the profile has two."""
    mother = made_mother(rig)
    make_mother(mother, mother_plan(rig, versions=(2,), limits={}), rig.store, rig.steps)
    mother.reset()
    opened = MotherCard(mother, made_authentication(rig), PINS)
    assert {line.version for line in opened.lines()} == {1, 2}
    assert len(opened.lines()) == 2 * len(HELD)
    challenge = bytes(4)
    for version, header in ((1, "84D43E01"), (2, "84D43E02")):
        wanted = Delivery(Purpose.PURCHASE, version, bytes.fromhex(header), Purpose.CONTROL, version, SERIAL, challenge)
        assert opened.deliver(wanted) == rig.source.deliver(wanted)


def test_more_keys_than_one_answer_holds(rig: Rig) -> None:
    """LIST KEYS of three versions comes in two answers."""
    for purpose in set(HELD) - {Purpose.PIN}:
        for version in range(3, 6):
            kind, value = rig.algorithm_of(purpose), master(purpose, version)
            rig.store.import_key(KeyRef(purpose, version), kind, value, make_key(value, kind).kcv, "test")
    mother = made_mother(rig, versions=(1, 2, 3, 4, 5))
    lines = MotherCard(mother, made_authentication(rig), PINS).lines()
    assert len(lines) == len(set(lines)) == 5 * len(HELD)


def test_what_can_be_no_mother_card(rig: Rig) -> None:
    """Impossible plans are refused before a card is touched; a plan shows no PIN and no key."""
    mother, authentication = fresh_mother(rig), rig.card()
    before = mother.snapshot(), authentication.snapshot()
    for change in (
        {"wash": rig.wash_plan}, {"enterprise_id": 0}, {"pin": b"1"}, {"pin": bytes(7)}, {"versions": ()},
        {"versions": (256,)}, {"limits": {Purpose.SLOT: 1}}, {"limits": {Purpose.CARD: 65536}}, {"versions": (9,)},
    ):  # fmt: skip
        with pytest.raises((FormatError, ConfigError, NotFound)):
            make_mother(mother, mother_plan(rig, **change), rig.store, rig.steps)
    for change in ({"wash": rig.wash_plan}, {"mother_serial": SERIAL}, {"pin": b"1"}):
        with pytest.raises(FormatError):
            make_authentication(authentication, authentication_plan(rig, **change), rig.store, rig.steps)
    assert (mother.snapshot(), authentication.snapshot()) == before
    text = "".join((repr(mother_plan(rig)), repr(authentication_plan(rig)), repr(PINS)))
    text += "\n".join(mother_plan(rig).lines() + authentication_plan(rig).lines())
    assert not {PINS.mother.hex(), PINS.authentication.hex(), repr(PINS.mother), repr(PINS.authentication)} & {text}
    assert PINS.mother.hex() not in text
    assert "PIN" in text


def test_pair_of_another_algorithm(tmp_path: Path) -> None:
    """Where the key of the pair has another algorithm than the card, both are refused before a card is touched."""
    rig = Rig(tmp_path)
    value = bytes(range(16))
    key = make_key(value, Algorithm.SM4)
    rig.store.import_key(KeyRef(Purpose.MOTHER_AUTH, 3), Algorithm.SM4, value, key.kcv, "test")
    tdes = make_key(value)
    for purpose in (Purpose.CARD_CONTROL, Purpose.CARD_MAINTENANCE):
        rig.store.import_key(KeyRef(purpose, 3), Algorithm.TDES, value, tdes.kcv, "test")
    plan = mother_plan(rig)
    with pytest.raises(ConfigError, match="differ"):
        make_mother(fresh_mother(rig), replace(plan, wash=replace(plan.wash, key_version=3)), rig.store, rig.steps)


def test_another_enterprises_mother_card_is_not_filled(rig: Rig) -> None:
    """A mother card never gets keys of two enterprises."""
    mother = made_mother(rig)
    before = mother.snapshot()
    with pytest.raises(Conflict, match="another enterprise"):
        make_mother(mother, mother_plan(rig, enterprise_id=OTHER), rig.store, rig.steps)
    assert mother.snapshot() == before


def test_an_interrupted_making_keeps_its_pin(rig: Rig) -> None:
    """Made again with another PIN, a card says so after one try; with its own it is finished."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    for _ in range(2):
        with pytest.raises(Refused, match="2 tries left") as wrong:
            make_mother(mother, mother_plan(rig, pin=WRONG_PIN), rig.store, rig.steps)
        assert wrong.value.reason == "pin_wrong"
        with pytest.raises(Refused, match="2 tries left"):
            make_authentication(authentication, authentication_plan(rig, pin=WRONG_PIN), rig.store, rig.steps)
        make_mother(mother, mother_plan(rig), rig.store, rig.steps)
        make_authentication(authentication, authentication_plan(rig), rig.store, rig.steps)


def test_a_changed_key_in_a_mother_card_is_found(rig: Rig) -> None:
    """Making ends with a comparison of all check values and limits: another key or count is named."""
    mother = made_mother(rig)
    held_keys = mother.mother_keys.value
    terminal, slot = (held_keys[purpose, 1] for purpose in (Purpose.TERMINAL, Purpose.SLOT))
    plan = mother_plan(rig, limits={})

    class Forgetful(Decorator):
        """Loads no key."""

        def transceive(self, command: bytes) -> bytes:
            lost = command[:4] == bytes.fromhex("84D40000")
            return b"\x90\0" if lost else self.inner.transceive(command)

    for old in (terminal, slot):
        other = type(old)(old.record[:-16] + bytes(range(16)))
        mother.mother_keys.value = {**held_keys, (old.purpose, 1): other}
        with pytest.raises(CheckFailed, match=Purpose(old.purpose).name.lower()):
            make_mother(Forgetful(mother), plan, rig.store, rig.steps)
    mother.mother_keys.value = {}
    with pytest.raises(CheckFailed):
        make_mother(Forgetful(mother), plan, rig.store, rig.steps)


# The only source of keys


@BOTH
@pytest.mark.parametrize("kind", SamKind)
def test_the_same_sam_as_a_store_makes(tmp_path: Path, kind: SamKind, algorithm: Algorithm) -> None:
    """A SAM of each kind, loaded by a mother card, is byte for byte that of the key store."""
    rig = Rig(tmp_path, algorithm)
    images = []
    for keys in (source(rig), rig.source):
        sam = blank_sam(rig)
        listed = load_sam(sam, sam_plan(kind), keys, MemorySteps())
        assert {key.purpose for key in listed} == set(HOLDS[kind])
        images.append(sam.snapshot())
    assert images[0] == images[1]


@BOTH
def test_the_same_card_as_a_store_makes(tmp_path: Path, algorithm: Algorithm) -> None:
    """A card that is personalised with mother card and issuing SAM alone is byte for byte that of the key store."""
    rig = Rig(tmp_path, algorithm)
    images = []
    for keys in (source(rig), rig.source):
        rig.random.seed(9)
        sam, card = issuing_sam(rig, keys), with_slot(rig)
        desk = station(sam, keys)
        personalise(card, rig.personal_plan, desk)
        images.append(card.snapshot())
        assert prove(card, rig.personal_plan, desk) == HOST_ONLY
        prove_at_host(card, SERIAL, ENTERPRISE, rig.station)
        assert_complete(rig, card)
    assert images[0] == images[1]


def test_deliveries_are_counted(rig: Rig) -> None:
    """Each key delivered takes one off its purpose, and nothing else does."""
    keys = source(rig)
    before = {line.purpose: line.left for line in keys.lines()}
    personalise(with_slot(rig), rig.personal_plan, replace(rig.station, keys=keys))
    after = {line.purpose: line.left for line in keys.lines()}
    assert {purpose for purpose in before if before[purpose] - after[purpose] == 1} == set(DELIVERED)
    assert all(before[purpose] - after[purpose] in (0, 1) for purpose in before)


def test_keys_go_under_the_control_key_too(rig: Rig) -> None:
    """A second washing: the next key set is written under the control key of the first (keys.md)."""
    mother = made_mother(rig, versions=(1, 2))
    keys = MotherCard(mother, made_authentication(rig), PINS)
    for purpose, header in ((Purpose.LOAD, "84D43F02"), (Purpose.CONTROL, "84D43900"), (Purpose.TAC, "84D40100")):
        wanted = Delivery(purpose, 2, bytes.fromhex(header), Purpose.CONTROL, 1, SERIAL, bytes(8))
        assert keys.deliver(wanted) == rig.source.deliver(wanted)


# Cut


def assert_usable(rig: Rig, card: Card) -> None:
    rig.moves.ends.clear()
    rig.moves.intents.clear()
    assert_complete(rig, card)


@pytest.mark.parametrize("what", ["card", "mother", "authentication", "sam"])
def test_personalising_cut_at_every_step_of(what: str, rig: Rig) -> None:
    """Whichever chip loses power, and when: the card ends complete, the others at work, at most two deliveries lost."""
    images = {
        "mother": made_mother(rig).snapshot(),
        "authentication": made_authentication(rig).snapshot(),
        "sam": issuing_sam(rig, rig.source).snapshot(),
        "card": with_slot(rig).snapshot(),
    }
    kinds: dict[str, type[Card]] = {"mother": Mother, "sam": SamCard}

    def world() -> tuple[dict[str, Card], Callable[[], None]]:
        chips = {name: kinds.get(name, Card).restore(raw, rig.random.randbytes) for name, raw in images.items()}
        steps, moves = MemorySteps(), Moves()

        def act() -> None:
            keys = MotherCard(chips["mother"], chips["authentication"], PINS)
            desk = replace(station(chips["sam"], keys), steps=steps, journal=moves)
            personalise(chips["card"], rig.personal_plan, desk, moves.open)
            assert not moves.open

        return chips, act

    chips, act = world()
    total = count_steps(chips[what], act)
    assert total > 3
    for at in range(1, total + 1):
        chips, act = world()

        def torn() -> None:
            try:
                act()  # noqa: B023
            except CheckFailed as e:  # a SAM lost between a payment's two proofs: present the card again
                raise CardRemoved(str(e)) from e

        assert cut(chips[what], at, torn), f"step {at} of {total}"
        act()
        assert_usable(rig, chips["card"])
        left = MotherCard(chips["mother"], chips["authentication"], PINS).lines()
        assert all(DELIVERIES - line.left <= 3 for line in left if line.purpose in DELIVERED)
        chips["authentication"].reset()


@pytest.mark.parametrize("what", ["sam", "mother", "authentication"])
def test_sam_loading_cut_at_every_step_of(what: str, rig: Rig) -> None:
    """Whichever chip loses power, and when: the SAM ends with its keys and no wrong one."""
    made, opener, blank = made_mother(rig).snapshot(), made_authentication(rig).snapshot(), blank_sam(rig).snapshot()
    plan = sam_plan(SamKind.ISSUING)

    def world() -> tuple[dict[str, Card], Callable[[], object]]:
        chips: dict[str, Card] = {
            "mother": Mother.restore(made, rig.random.randbytes),
            "authentication": Card.restore(opener, rig.random.randbytes),
            "sam": SamCard.restore(blank, rig.random.randbytes),
        }
        steps = MemorySteps()

        def act() -> object:
            keys = MotherCard(chips["mother"], chips["authentication"], PINS)
            return load_sam(chips["sam"], plan, keys, steps)

        return chips, act

    chips, act = world()
    total = count_steps(chips[what], act)
    finished = chips["sam"].snapshot()
    for at in range(1, total + 1):
        chips, act = world()
        assert cut(chips[what], at, act), f"step {at} of {total}"
        act()
        assert chips["sam"].snapshot() == finished


def test_making_cut_at_every_step(rig: Rig) -> None:
    """A mother card torn at any step of its making is finished at the next try, also when the journal lost an entry."""
    steps = MemorySteps()

    def act(card: Mother) -> None:
        make_mother(card, mother_plan(rig), rig.store, steps)

    total = count_steps(card := fresh_mother(rig), lambda: act(card))
    for at in range(1, total + 1):
        steps = MemorySteps()
        card = fresh_mother(rig)
        assert cut(card, at, lambda: act(card)), f"step {at} of {total}"  # noqa: B023
        if at % 2 and steps.steps("mother"):
            steps.forget_last("mother")
        act(card)
        assert_mother(rig, card)


def test_making_the_authentication_card_cut_at_every_step(rig: Rig) -> None:
    """An authentication card torn at any step of its making opens its mother card after the next try."""
    mother = made_mother(rig)
    total = count_steps(
        card := rig.card(), lambda: make_authentication(card, authentication_plan(rig), rig.store, MemorySteps())
    )
    for at in range(1, total + 1):
        steps, card = MemorySteps(), rig.card()

        def act() -> None:
            make_authentication(card, authentication_plan(rig), rig.store, steps)  # noqa: B023

        assert cut(card, at, act), f"step {at} of {total}"
        act()
        mother.reset()
        assert MotherCard(mother, card, PINS).lines()


def test_limit_cut_at_every_step(rig: Rig) -> None:
    """A limit is the old or the new one, and the other keys' stay."""
    mother = made_mother(rig)
    raw = mother.snapshot()
    total = count_steps(mother, lambda: set_limit(mother, Purpose.CARD, 7, rig.store))
    seen = set()
    for at in range(1, total + 1):
        card = Mother.restore(raw, rig.random.randbytes)
        assert cut(card, at, lambda: set_limit(card, Purpose.CARD, 7, rig.store))  # noqa: B023
        left = dict(card.deliveries.value)
        seen.add(left.pop(Purpose.CARD))
        assert set(left.values()) == {DELIVERIES}
    assert seen == {7, DELIVERIES}


# Opening


def test_state_lost_on_the_way(rig: Rig) -> None:
    """After a reset of either card it opens the pair once more; what stays closed is an error, not a loop."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    keys = MotherCard(mother, authentication, PINS)
    for chip in (mother, authentication):
        chip.reset()
        assert keys.cryptogram(Purpose.SLOT, 1, SERIAL, bytes(8)) == rig.source.cryptogram(
            Purpose.SLOT, 1, SERIAL, bytes(8)
        )
    opened: list[bytes] = []

    class Stubborn(Decorator):
        """Always says that it is not open."""

        def transceive(self, command: bytes) -> bytes:
            opened.append(command[:2])
            return b"\x69\x82" if command[:2] == b"\x80\xec" else self.inner.transceive(command)

    keys = MotherCard(Stubborn(mother), authentication, PINS)
    opened.clear()
    with pytest.raises(StatusError):
        keys.cryptogram(Purpose.SLOT, 1, SERIAL, bytes(8))
    assert opened.count(b"\x00\x20") == 1


def test_a_card_taken_away(rig: Rig) -> None:
    """A mother card that is pulled away is CardRemoved; another one put in its place is refused."""
    mother, authentication = made_mother(rig), made_authentication(rig)

    class Reader:
        """A place that cards come to and go from."""

        atr = b""
        card: Transport = mother

        def transceive(self, command: bytes) -> bytes:
            return self.card.transceive(command)

        def close(self) -> None:
            """Nothing to let go."""

    reader = Reader()
    keys = MotherCard(reader, authentication, PINS)
    reader.card = Tearing(mother, 1, before=True)
    with pytest.raises(CardRemoved):
        keys.lines()
    second = make_serial(CardKind.MOTHER, 1, 2)
    reader.card = made_mother(rig, wash=replace(mother_plan(rig).wash, serial=second, job="second"))
    with pytest.raises(Conflict, match=MOTHER.hex().upper()):
        keys.lines()


def test_wrong_things_in_the_readers(rig: Rig) -> None:
    """Cards mixed up, fresh, half made, of no enterprise: each is named, and no PIN is presented to it."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    slot = with_slot(rig)
    half = rig.card()
    washed_only = fresh_mother(rig)
    plan = mother_plan(rig)
    for card, wash_plan in ((half, authentication_plan(rig).wash), (washed_only, plan.wash)):
        wash(card, wash_plan, rig.store, MemorySteps())
    for first, second, text in (
        (authentication, mother, "no mother card"),
        (mother, mother, "no authentication card"),
        (rig.card(), authentication, "no mother card"),
        (slot, authentication, "no mother card"),
        (blank_sam(rig), authentication, "no mother card"),
        (mother, slot, "no authentication card"),
        (mother, rig.card(), "no authentication card"),
        (washed_only, authentication, "not made to its end"),
    ):
        first.reset()
        second.reset()
        with pytest.raises(Conflict, match=text):
            MotherCard(first, second, PINS)
    with pytest.raises(OneCardError):
        MotherCard(mother, half, PINS)
    mother.reset()
    MotherCard(mother, authentication, PINS)


def test_what_is_not_there(rig: Rig) -> None:
    """Unknown versions, purposes that are not delivered, keys nobody writes under: named as the key store does."""
    keys = source(rig)
    with pytest.raises(NotFound, match="card key of version 2"):
        keys.deliver(Delivery(Purpose.CARD, 2, bytes.fromhex("84D40101"), Purpose.SLOT, 1, SERIAL, bytes(4)))
    with pytest.raises(NotFound, match="slot key of version 3"):
        keys.deliver(Delivery(Purpose.CARD, 1, bytes.fromhex("84D40101"), Purpose.SLOT, 3, SERIAL, bytes(4)))
    with pytest.raises(NotFound, match="sam_control key of version 9"):
        keys.cryptogram(Purpose.SAM_CONTROL, 9, SERIAL, bytes(8))
    for one in (keys, rig.source):
        with pytest.raises(Refused, match="slot") as refused:
            one.deliver(Delivery(Purpose.SLOT, 1, bytes.fromhex("84D40100"), Purpose.SLOT, 1, SERIAL, bytes(4)))
        assert refused.value.reason == "key_usage"
        with pytest.raises(Refused):
            one.cryptogram(Purpose.CARD, 1, SERIAL, bytes(8))
        for purpose in (Purpose.LOAD, Purpose.UNLOAD, Purpose.TAC):  # in no SAM (profile.md)
            wanted = Delivery(purpose, 1, bytes.fromhex("84D40000"), Purpose.SAM_CONTROL, 1, SERIAL, bytes(4))
            with pytest.raises(Refused) as refused:
                one.deliver(wanted)
            assert refused.value.reason == "key_usage"


# Attacks, each named


def test_without_authentication_card(rig: Rig) -> None:
    """With the PIN alone nothing is listed or delivered, and no 39/01 without the PIN."""
    mother = made_mother(rig)
    select(mother, MF)
    proof = rig.expected(Purpose.MOTHER_AUTH, serial=MOTHER)
    challenge = send(mother, Command(0, 0x84, 0, 0, le=8)).data
    assert send(mother, Command(0, 0x82, 0, 1, proof.cryptogram(challenge))).sw == 0x6982
    verify_pin(mother, PINS.mother)
    for command in (
        Command(0x80, 0xEA, 0, 0, le=0),
        Command(0x80, 0xE8, 4, 1, bytes(20)),
        Command(0x80, 0xEC, 0, 1, bytes(16)),
    ):
        assert send(mother, command).sw == 0x6982


def test_with_another_mothers_authentication_card(rig: Rig) -> None:
    """An authentication card opens its own mother card and no other; the mother card is none the worse."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    other = made_authentication(rig, mother_serial=make_serial(CardKind.MOTHER, 1, 2))
    for _ in range(5):
        with pytest.raises(CryptoError, match="not that of mother card"):
            MotherCard(mother, other, PINS)
    assert MotherCard(mother, authentication, PINS).lines()


def test_pin_run_down(rig: Rig) -> None:
    """Three wrong PINs block a card for good; each wrong one is tried once, and the tries left are told."""
    for which in ("mother", "authentication"):
        mother, authentication = made_mother(rig), made_authentication(rig)
        bad = replace(PINS, **{which: WRONG_PIN})
        for left in (2, 1, 0):
            with pytest.raises(Refused) as refused:
                MotherCard(mother, authentication, bad)
            assert refused.value.reason == ("pin_wrong" if left else "pin_blocked")
            assert (f"{left} tries left" if left else "blocked") in str(refused.value)
        with pytest.raises(Refused) as refused:
            MotherCard(mother, authentication, PINS)
        assert refused.value.reason == "pin_blocked"


def test_a_changed_pin_is_the_administrators(rig: Rig) -> None:
    """CHANGE PIN works as on any card, and the platform can't write another one."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    select(mother, MF)
    change_pin(mother, PINS.mother, b"\x99\x88")
    with pytest.raises(Refused, match="2 tries left"):
        MotherCard(mother, authentication, PINS)
    assert MotherCard(mother, authentication, Pins(b"\x99\x88", PINS.authentication)).lines()


def test_enterprise_as_mother_card_on_bs_slot(rig: Rig) -> None:
    """Another enterprise's mother card is refused before the card is touched, and its payloads by the card itself."""
    mother = made_mother(rig, enterprise_id=OTHER)
    keys = MotherCard(mother, made_authentication(rig), PINS)
    card, sam = with_slot(rig), blank_sam(rig)
    before = card.snapshot(), sam.snapshot(), mother.snapshot()
    with pytest.raises(Conflict, match="its own mother card"):
        personalise(card, rig.personal_plan, replace(rig.station, keys=keys))
    with pytest.raises(Conflict, match="its own mother card"):
        load_sam(sam, sam_plan(SamKind.POS), keys, rig.steps)

    class Lying:
        """Claims to be the right enterprise's."""

        enterprise_id = ENTERPRISE
        lines, cryptogram, deliver = keys.lines, keys.cryptogram, keys.deliver

    with pytest.raises(CryptoError, match="neither our slot key"):
        personalise(card, rig.personal_plan, replace(rig.station, keys=Lying()))
    with pytest.raises(CryptoError, match="control key"):
        load_sam(sam, sam_plan(SamKind.POS), Lying(), rig.steps)
    assert (card.snapshot(), sam.snapshot(), mother.snapshot()) == before
    select_application(card)
    challenge = send(card, Command(0, 0x84, 0, 0, le=4)).data
    payload = keys.deliver(Delivery(Purpose.TERMINAL, 1, bytes.fromhex("84D40101"), Purpose.SLOT, 1, SERIAL, challenge))
    assert send(card, Command(0x84, 0xD4, 1, 1, payload)).sw == 0x9302
    assert card.snapshot() == before[0]


def select_application(card: Card) -> None:
    """Make the application current and open its slot, as its enterprise would."""
    select(card, MF)
    select(card, 0x3F01)
    challenge = send(card, Command(0, 0x84, 0, 0, le=8)).data
    assert send(card, Command(0, 0x82, 0, 0, _opens_slot(challenge))).sw == 0x9000


def _opens_slot(challenge: bytes) -> bytes:
    key = make_key(master(Purpose.SLOT)).diversify(b"ONEC" + ENTERPRISE.to_bytes(4, "big")).diversify(SERIAL)
    return key.cryptogram(challenge)


def taken(keys: KeySource, wanted: Delivery) -> bytes:
    """The payload, or nothing where the source refuses this use of the key."""
    try:
        return keys.deliver(wanted)
    except Refused as e:
        return b"" if e.reason == "key_usage" else e.reason.encode()


def test_deliver_key_with_another_type_or_kid(rig: Rig) -> None:
    """Of all types and kids only a key's own are answered, and what is refused is not counted."""
    keys = source(rig)
    for purpose in DELIVERED:
        spec, found = load_profile().key(purpose), []
        types = {spec.key_type, *range(0x30, 0x40), 0x00, 0x01, 0xB0, 0x70}
        pin = PINS.mother if purpose is Purpose.PIN else b""
        for p1, kid in product(types, range(4)):
            header = bytes([0x84, 0xD4, p1, kid])
            wanted = Delivery(purpose, 1, header, Purpose.SLOT, 1, SERIAL, bytes(4), pin)
            payload = taken(keys, wanted)
            assert payload == taken(rig.source, wanted)
            found += [(p1, kid)] if payload else []
        assert sorted(found) == [(1, spec.kid(1)), (spec.key_type, spec.kid(1))]
    assert {line.left for line in keys.lines() if line.purpose in DELIVERED} == {DELIVERIES - 2}


def test_a_load_key_as_type_30(rig: Rig) -> None:
    """A load key is never written as a key that enciphers what anyone gives it."""
    keys = source(rig)
    wanted = Delivery(Purpose.LOAD, 1, bytes.fromhex("84D43001"), Purpose.SLOT, 1, SERIAL, bytes(4))
    with pytest.raises(Refused, match="30/01") as refused:
        keys.deliver(wanted)
    assert refused.value.reason == "key_usage"


def test_replayed_delivery(rig: Rig) -> None:
    """A payload recorded once is refused by the card's next challenge."""
    keys, card = source(rig), with_slot(rig)
    select_application(card)
    challenge = send(card, Command(0, 0x84, 0, 0, le=4)).data
    wanted = Delivery(Purpose.TERMINAL, 1, bytes.fromhex("84D40101"), Purpose.SLOT, 1, SERIAL, challenge)
    command = Command(0x84, 0xD4, 1, 1, keys.deliver(wanted))
    assert send(card, command).sw == 0x9000
    before = card.snapshot()
    replay = command._replace(p1=0x39)
    for again in (command, replay):
        send(card, Command(0, 0x84, 0, 0, le=4))
        assert send(card, again).sw == 0x9302
    assert card.snapshot() == before


def test_deliveries_at_zero(rig: Rig) -> None:
    """At 0 nothing more of that purpose goes out, until the platform sets a limit; other purposes go on."""
    mother, authentication = made_mother(rig, limits=dict.fromkeys(DELIVERED, 1)), made_authentication(rig)
    keys = MotherCard(mother, authentication, PINS)
    card = Delivery(Purpose.CARD, 1, bytes.fromhex("84D40101"), Purpose.SLOT, 1, SERIAL, bytes(4))
    keys.deliver(card)
    for _ in range(2):
        with pytest.raises(Refused, match="new limit") as refused:
            keys.deliver(card)
        assert refused.value.reason == "out_of_deliveries"
    keys.deliver(replace(card, purpose=Purpose.TAC, header=bytes.fromhex("84D40100")))
    assert set_limit(mother, Purpose.CARD, 1, rig.store) == MOTHER
    assert keys.deliver(card) == rig.source.deliver(card)
    with pytest.raises(Refused, match="new limit"):
        keys.deliver(card)
    with pytest.raises(ConfigError):
        set_limit(mother, Purpose.SLOT, 1, rig.store)
    with pytest.raises(Conflict, match="no mother card"):
        set_limit(authentication, Purpose.CARD, 1, rig.store)


def test_out_of_deliveries_in_the_middle_of_a_card(rig: Rig) -> None:
    """A card whose keys ran out halfway is finished once there is a new limit."""
    mother, authentication = made_mother(rig), made_authentication(rig)
    set_limit(mother, Purpose.LOAD, 0, rig.store)
    card = with_slot(rig)
    desk = replace(rig.station, keys=MotherCard(mother, authentication, PINS))
    with pytest.raises(Refused) as refused:
        personalise(card, rig.personal_plan, desk)
    assert refused.value.reason == "out_of_deliveries"
    set_limit(mother, Purpose.LOAD, 2, rig.store)
    personalise(card, rig.personal_plan, desk)
    assert_complete(rig, card)
