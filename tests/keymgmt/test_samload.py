"""Making SAMs: each kind holds its keys and no other, torn at every step, with wrong keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cardlib.apdu import Command
from cardlib.crypto import Algorithm, make_key
from cardlib.errors import CheckFailed, ConfigError, Conflict, CryptoError, FormatError, NotFound, Refused, StatusError
from cardlib.profile import CardKind, Purpose, make_serial
from cardlib.sam import CardSam
from cardlib.transport import send
from keymgmt.delivery import Delivery, StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.samload import (
    HOLDS,
    SamKind,
    SamPlan,
    SamReport,
    SamWash,
    load_keys,
    load_sam,
    lock_sam,
    look,
    make_sam,
    sam_serial,
    wash_sam,
)
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore
from simulator.card import Card
from simulator.sam import MAX_KEYS, SamCard, SamKey
from tests.keymgmt.rig import (
    CHEAP,
    ENTERPRISE,
    EXPIRY,
    SAM_SERIAL,
    SERIAL,
    START,
    TERMINAL,
    TRANSPORT_KEY,
    Rig,
    count_steps,
    cut,
    held,
    same,
)

PIN = bytes.fromhex("246810")


def plan_of(rig: Rig, kind: SamKind = SamKind.POS) -> SamPlan:
    return SamPlan("sam", SAM_SERIAL, TERMINAL, ENTERPRISE, kind, (1,), START, EXPIRY, pin=PIN)


def fresh(rig: Rig) -> SamCard:
    return SamCard.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)


def assert_made(rig: Rig, sam: SamCard, plan: SamPlan) -> None:
    """Our control key, an own key that is not it, and exactly the keys of its kind, each for one level."""
    assert same(held(sam, 0x39, 0), rig.expected(Purpose.SAM_CONTROL, serial=SAM_SERIAL))
    own = held(sam, 0x30, 0, algorithm=rig.algorithm)
    assert own.kcv not in (held(sam, 0x39, 0).kcv, rig.expected(Purpose.CARD, serial=SAM_SERIAL).kcv)
    sam.reset()
    listed = CardSam(sam, lambda: PIN).keys()
    wanted = {(purpose, version) for purpose in HOLDS[plan.kind] for version in plan.versions}
    assert {(key.purpose, key.version) for key in listed} == wanted
    assert len(listed) == len(wanted)
    assert all(usage >> 5 == 1 for usage, _ in sam.sam_keys.value)


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
@pytest.mark.parametrize("kind", SamKind)
def test_make(tmp_path: Path, kind: SamKind, algorithm: Algorithm) -> None:
    """A vendor-fresh SAM becomes one of its kind; making it again changes nothing."""
    rig = Rig(tmp_path, algorithm)
    sam, plan = fresh(rig), plan_of(rig, kind)
    for _ in range(2):
        keys = make_sam(sam, plan, rig.initial, rig.store, rig.steps)
        assert len(keys) == len(HOLDS[kind])
        assert_made(rig, sam, plan)
        sam.reset()


def test_no_terminal_holds_the_hosts_keys() -> None:
    """Load, unload and TAC keys are in no SAM, what changes cards in the issuing SAM only; only a till refunds."""
    host = {Purpose.LOAD, Purpose.UNLOAD, Purpose.TAC}
    issuing = {Purpose.MAINTENANCE, Purpose.CONTROL, Purpose.PIN_UNBLOCK}
    for kind, purposes in HOLDS.items():
        assert not host & set(purposes)
        assert (issuing <= set(purposes)) == bool(issuing & set(purposes)) == (kind is SamKind.ISSUING)
        assert (Purpose.PURCHASE in purposes) == (kind in (SamKind.POS, SamKind.ISSUING))
        assert (Purpose.REFUND in purposes) == (kind is SamKind.POS)
        assert (Purpose.RECHARGE in purposes) == (kind is SamKind.RECHARGE)


def test_pin_guards_the_sam(tmp_path: Path) -> None:
    """Without its terminal's PIN the SAM computes nothing."""
    rig = Rig(tmp_path)
    sam = fresh(rig)
    make_sam(sam, plan_of(rig), rig.initial, rig.store, rig.steps)
    sam.reset()
    opened = CardSam(sam)
    with pytest.raises(StatusError):
        opened.card_answer(SERIAL, 1, bytes(8))


def test_cut_everywhere(tmp_path: Path) -> None:
    """Cut at any step, a SAM is finished at the next try."""
    rig = Rig(tmp_path)
    plan = plan_of(rig)

    def act(sam: SamCard) -> None:
        make_sam(sam, plan, rig.initial, rig.store, rig.steps)

    total = count_steps(sam := fresh(rig), lambda: act(sam))
    for at in range(1, total + 1):
        rig.steps._jobs.clear()
        sam = fresh(rig)
        assert cut(sam, at, lambda: act(sam))  # noqa: B023
        if at % 2 and rig.steps.steps("sam"):
            rig.steps.forget_last("sam")
        act(sam)
        assert_made(rig, sam, plan)


def wash_of(rig: Rig) -> SamWash:
    return SamWash("wash", SAM_SERIAL, ENTERPRISE, rig.initial)


def washed(rig: Rig) -> SamCard:
    sam = fresh(rig)
    wash_sam(sam, wash_of(rig), rig.store, rig.steps)
    sam.reset()
    return sam


def made(rig: Rig, kind: SamKind = SamKind.POS) -> SamCard:
    sam = washed(rig)
    load_sam(sam, plan_of(rig, kind), rig.source, rig.steps)
    sam.reset()
    return sam


def stranger(rig: Rig, folder: Path) -> FileStore:
    """The keys of another platform."""
    store = FileStore.create_file(folder / "other", b"passphrase", CHEAP, random_bytes=rig.random.randbytes)
    for purpose in Purpose:
        if purpose is not Purpose.PIN:
            store.create(KeyRef(purpose, 1), rig.algorithm_of(purpose), "test")
    return store


def tries(sam: SamCard) -> int:
    """Tries left of the control key."""
    control = sam.mf.key(0x39, 0)
    assert control is not None
    return control.header.value[4] & 0x0F


def everywhere(rig: Rig, begin: Callable[[], SamCard], act: Callable[[SamCard], object], job: str) -> Iterator[SamCard]:
    """SAMs on which an act was cut at each step it has, with the journal whole and without its last entry."""
    total = count_steps(sam := begin(), lambda: act(sam))
    assert total > 5
    for at in range(1, total + 1):
        for lost in (0, 1):
            rig.steps._jobs.clear()
            sam = begin()
            before = len(rig.steps.steps(job))
            assert cut(sam, at, lambda: act(sam))  # noqa: B023  # called here
            if lost and len(rig.steps.steps(job)) > before:
                rig.steps.forget_last(job)
            yield sam


def test_washing_cut_everywhere(tmp_path: Path) -> None:
    """Cut at any step, washing is finished at the next try, without any journal too; then the SAM is loaded."""
    rig = Rig(tmp_path)

    def act(sam: SamCard) -> None:
        wash_sam(sam, wash_of(rig), rig.store, rig.steps)

    for number, sam in enumerate(everywhere(rig, lambda: fresh(rig), act, "wash")):
        if number % 3 == 0:
            rig.steps._jobs.clear()
        serial, begun = sam_serial(sam), look(sam).washed
        assert serial in (None, SAM_SERIAL)
        if not begun:  # loading it now is refused, and costs no try of a key that may be the vendor's
            left = tries(sam)
            with pytest.raises(Conflict, match="wash"):
                load_sam(sam, plan_of(rig), rig.source, rig.steps)
            assert tries(sam) == left
        act(sam)
        assert look(sam).washed
        assert not sam.sam_keys.value
        load_sam(sam, plan_of(rig), rig.source, rig.steps)
        assert_made(rig, sam, plan_of(rig))


def test_washing_goes_on_with_another_own_version(tmp_path: Path) -> None:
    """Torn behind the control key, resumed when a newer key is there for its own: the SAM gets that one."""
    rig, ours = Rig(tmp_path), []
    for sam in everywhere(rig, lambda: fresh(rig), lambda sam: wash_sam(sam, wash_of(rig), rig.store, rig.steps), ""):
        control = rig.expected(Purpose.SAM_CONTROL, serial=SAM_SERIAL)
        if same(held(sam, 0x39, 0), control) and not look(sam).washed:
            ours.append(sam)
            wash_sam(sam, replace(wash_of(rig), own_version=2), rig.store, rig.steps)
            assert same(held(sam, 0x30, 0), rig.expected(Purpose.CONTROL, 2, SAM_SERIAL))
    assert ours


def test_loading_cut_everywhere(tmp_path: Path) -> None:
    """Cut at any step, loading is finished at the next try; keys that are there are not delivered again."""
    rig = Rig(tmp_path)

    def act(sam: SamCard) -> None:
        load_sam(sam, plan_of(rig), rig.source, rig.steps)

    for sam in everywhere(rig, lambda: washed(rig), act, "sam"):
        there = len(sam.sam_keys.value)
        delivered = Counting(rig.source)
        load_sam(sam, plan_of(rig), delivered, rig.steps)
        assert delivered.keys == len(HOLDS[SamKind.POS]) - there
        assert_made(rig, sam, plan_of(rig))


class Counting:
    """A source that counts what it delivers."""

    def __init__(self, source: StoreKeys) -> None:
        self.source = source
        self.enterprise_id, self.lines, self.cryptogram = source.enterprise_id, source.lines, source.cryptogram
        self.keys = 0

    def deliver(self, wanted: Delivery) -> bytes:
        self.keys += wanted.purpose is not Purpose.PIN
        return self.source.deliver(wanted)


def test_adding_cut_everywhere(tmp_path: Path) -> None:
    """Cut at any step, adding a version is finished at the next try, and the old version serves all the time."""
    rig = Rig(tmp_path)
    purposes = HOLDS[SamKind.POS]
    for sam in everywhere(
        rig, lambda: made(rig), lambda sam: load_keys(sam, SAM_SERIAL, purposes, (2,), rig.source), ""
    ):
        CardSam(sam, lambda: PIN).card_answer(SERIAL, 1, bytes(8))
        sam.reset()
        assert len(load_keys(sam, SAM_SERIAL, purposes, (1, 2), rig.source)) == 2 * len(purposes)
        assert_made(rig, sam, replace(plan_of(rig), versions=(1, 2)))


def test_whose_sam_it_is(tmp_path: Path) -> None:
    """A SAM of another enterprise, washed by another root, unwashed, another one than named, no SAM at all."""
    rig = Rig(tmp_path)
    plan, other = plan_of(rig), stranger(rig, tmp_path)
    foreign = fresh(rig)
    wash_sam(foreign, wash_of(rig), other, MemorySteps())
    elsewhere = fresh(rig)
    wash_sam(elsewhere, replace(wash_of(rig), enterprise_id=ENTERPRISE + 1), rig.store, MemorySteps())
    wrong = make_serial(CardKind.SAM, 1, 99)
    for sam, asked, error, match in (
        (foreign, plan, CryptoError, "control key"),
        (elsewhere, plan, CryptoError, "control key"),
        (fresh(rig), plan, Conflict, "not washed"),
        (made(rig), replace(plan, serial=wrong), Conflict, "insert SAM"),
        (Card.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes), plan, Conflict, "no SAM"),
    ):
        sam.reset()
        before = sam.snapshot()
        for _ in range(5):
            with pytest.raises(error, match=match):
                load_sam(sam, asked, rig.source, rig.steps)
            with pytest.raises(error, match=match):
                load_keys(sam, asked.serial, HOLDS[plan.kind], (1,), rig.source)
        sam.reset()
        assert sam.snapshot() == before
    with pytest.raises(CryptoError, match="another root"):
        wash_sam(foreign, wash_of(rig), rig.store, rig.steps)
    with pytest.raises(Conflict, match="already"):
        wash_sam(made(rig), replace(wash_of(rig), serial=wrong), rig.store, rig.steps)


def test_nothing_is_begun_that_cant_be_finished(tmp_path: Path) -> None:
    """A version that is missing, a key that no SAM holds, another kind's SAM, another terminal's, a PIN in the way."""
    rig = Rig(tmp_path)
    sam, plan = made(rig), plan_of(rig)
    before = sam.snapshot()
    for bad, error in (
        (replace(plan, versions=(1, 3)), NotFound),
        (replace(plan, kind=SamKind.ACCESS), Conflict),
        (replace(plan, terminal=bytes(5) + b"\x09"), Conflict),
        (replace(plan, pin=None), Conflict),
    ):
        with pytest.raises(error):
            load_sam(sam, bad, rig.source, rig.steps)
    with pytest.raises(NotFound, match="version 3"):
        load_keys(sam, SAM_SERIAL, HOLDS[plan.kind], (2, 3), rig.source)
    for purpose in (Purpose.LOAD, Purpose.UNLOAD, Purpose.TAC):
        with pytest.raises(Refused, match="no SAM holds"):
            load_keys(sam, SAM_SERIAL, [purpose], (1,), rig.source)
    sam.reset()
    assert sam.snapshot() == before


def test_full_sam(tmp_path: Path) -> None:
    """A SAM without room says so; what it held stays in use."""
    rig = Rig(tmp_path)
    sam = made(rig)
    filler = make_key(bytes(range(16)))
    sam.sam_keys.value = sam.sam_keys.value | {
        (0x27, n): SamKey(0x27, n, 0, filler._value) for n in range(3, MAX_KEYS - 1)
    }
    with pytest.raises(Refused, match="replace it") as refused:
        load_keys(sam, SAM_SERIAL, HOLDS[SamKind.POS], (2,), rig.source)
    assert refused.value.reason == "sam_full"
    sam.reset()
    assert CardSam(sam, lambda: PIN).card_answer(SERIAL, 1, bytes(8))


def test_a_key_that_arrived_wrong_is_found(tmp_path: Path) -> None:
    """The check value that the SAM lists is compared with the source's."""
    rig = Rig(tmp_path)
    lying = Counting(rig.source)
    lying.lines = lambda: [line._replace(kcv=b"\0\0\0") for line in rig.source.lines()]
    with pytest.raises(CheckFailed, match="as loaded"):
        load_sam(washed(rig), plan_of(rig), lying, rig.steps)


def test_lock(tmp_path: Path) -> None:
    """Cut at any moment, a SAM is locked at the next try, and not another one in its place; then it says nothing."""
    rig = Rig(tmp_path)

    def act(sam: SamCard) -> None:
        lock_sam(sam, SAM_SERIAL, rig.store, rig.steps)

    with pytest.raises(Conflict):
        act(fresh(rig))
    assert not rig.steps.steps(f"lock {SAM_SERIAL.hex()}")
    total = count_steps(sam := made(rig), lambda: act(sam))
    for at in range(1, total + 1):
        rig.steps._jobs.clear()
        sam = made(rig)
        assert cut(sam, at, lambda: act(sam))  # noqa: B023  # called here
        act(sam)
        sam.reset()
        with pytest.raises(Refused) as refused:
            look(sam)
        assert refused.value.reason == "sam_blocked"
        assert send(sam, Command(0, 0x84, 0, 0, le=8)).sw == 0x6A81
        act(sam)
    rig.steps._jobs.clear()
    with pytest.raises(Refused):  # a blocked SAM that nobody here began to lock may be any
        act(sam)


def test_lock_needs_our_line_key(tmp_path: Path) -> None:
    """Another platform's SAM, and one without line protection key, are not locked by us; a newer key is found."""
    rig = Rig(tmp_path)
    foreign = fresh(rig)
    wash_sam(foreign, wash_of(rig), other := stranger(rig, tmp_path), MemorySteps())
    with pytest.raises(CryptoError, match="another platform"):
        lock_sam(foreign, SAM_SERIAL, rig.store, rig.steps)
    lock_sam(foreign, SAM_SERIAL, other, rig.steps)
    sam = made(rig)
    del sam.mf.keys.value[0x3600]
    with pytest.raises(Refused, match="no line protection"):
        lock_sam(sam, SAM_SERIAL, rig.store, rig.steps)
    old = fresh(rig)
    wash_sam(old, replace(wash_of(rig), platform_version=1), rig.store, MemorySteps())
    lock_sam(old, SAM_SERIAL, rig.store, rig.steps)


def test_look(tmp_path: Path) -> None:
    """A SAM says who it is, whose, for which kind of terminal, and whether it wants a PIN; asking costs nothing."""
    rig = Rig(tmp_path)
    assert look(fresh(rig)) == SamReport(None, False, None, None, (), False)
    assert look(washed(rig)) == SamReport(SAM_SERIAL, True, None, None, (), False)
    for kind in SamKind:
        sam = made(rig, kind)
        before = sam.snapshot()
        said = look(sam)
        whose = (said.serial, said.washed, said.terminal, said.enterprise_id)
        assert whose == (SAM_SERIAL, True, TERMINAL, ENTERPRISE)
        assert kind in said.kinds
        assert said.pin
        CardSam(sam, lambda: PIN)
        assert sam.snapshot() == before
    no_pin = washed(rig)
    load_sam(no_pin, replace(plan_of(rig), pin=None), rig.source, rig.steps)
    no_pin.reset()
    assert not look(no_pin).pin


ENCIPHERS = {
    Purpose.CONTROL,
    Purpose.PIN_UNBLOCK,
    Purpose.MAINTENANCE,
    Purpose.CARD,
    Purpose.TERMINAL,
    Purpose.RECHARGE,
}
MACS = {Purpose.CONTROL, Purpose.PIN_UNBLOCK, Purpose.MAINTENANCE}
"""What 80FA may do with a key (card.md §7.5, §7.6); purchase and refund keys serve 8070 and REFUND alone."""
USAGE = {
    Purpose.CONTROL: 0x21, Purpose.PURCHASE: 0x22, Purpose.PIN_UNBLOCK: 0x23, Purpose.MAINTENANCE: 0x25,
    Purpose.CARD: 0x27, Purpose.TERMINAL: 0x2A, Purpose.RECHARGE: 0x2B, Purpose.REFUND: 0x2C,
}  # fmt: skip


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
@pytest.mark.parametrize("kind", SamKind)
def test_no_use_outside_its_usage(tmp_path: Path, kind: SamKind, algorithm: Algorithm) -> None:
    """Each key of each kind of SAM does its work, and any other is 6985; a key that it has not is none (6A88)."""
    rig = Rig(tmp_path, algorithm)
    sam = made(rig, kind)
    CardSam(sam, lambda: PIN)
    data = bytes(16)
    for purpose, usage in USAGE.items():
        derive = Command(0x80, 0x1A, usage, 1, SERIAL)
        if purpose in (Purpose.PURCHASE, Purpose.REFUND):
            assert send(sam, derive).sw == 0x6985
            continue
        if purpose not in HOLDS[kind]:
            assert send(sam, derive).sw == 0x6A88
            continue
        for p1, allowed in ((0, ENCIPHERS), (2, ENCIPHERS), (1, MACS), (3, MACS), (5, MACS), (7, MACS)):
            assert send(sam, derive).sw == 0x9000
            body = data if p1 < 4 else bytes(16) + data
            answer = send(sam, Command(0x80, 0xFA, p1, 0, body, 16 if not p1 & 1 else None))
            assert answer.sw == (0x9000 if purpose in allowed else 0x6985), f"{purpose.name} {p1:02X}"
    serial = bytes.fromhex("52414E44 0004 000004E2 06 20250301093045 01") + bytes([algorithm]) + SERIAL
    paid = send(sam, Command(0x80, 0x70, 0, 0, serial, 8)).sw
    assert paid == (0x9000 if Purpose.PURCHASE in HOLDS[kind] else 0x6A88)
    back = bytes(4) + b"\0\4\1" + bytes([algorithm]) + bytes(8) + bytes.fromhex("000004E2 02 20250301093045") + SERIAL
    refunded = send(sam, Command(0x80, 0x74, 0, 0, back, 4)).sw
    assert refunded == (0x9302 if Purpose.REFUND in HOLDS[kind] else 0x6A88)  # its MAC1 is checked first


@pytest.mark.parametrize("kind", SamKind)
def test_without_its_pin_it_does_nothing(tmp_path: Path, kind: SamKind) -> None:
    """Pulled out of its terminal a SAM computes nothing for cards, whatever it holds, and three wrong PINs end it."""
    rig = Rig(tmp_path)
    sam = made(rig, kind)
    sam.reset()
    send(sam, Command(0, 0xA4, 0, 0, bytes.fromhex("1001"), 0))
    for command in (
        *(Command(0x80, 0x1A, usage, 1, SERIAL) for usage in USAGE.values()),
        Command(0x80, 0x70, 0, 0, bytes(28), 8),
        Command(0x80, 0x72, 0, 0, bytes(4)),
        Command(0x80, 0x74, 0, 0, bytes(36), 4),
    ):
        assert send(sam, command).sw == 0x6982
    for sw in (0x63C2, 0x63C1, 0x63C0):
        assert send(sam, Command(0, 0x20, 0, 0, b"\x99\x99")).sw == sw
    with pytest.raises(StatusError, match="6983"):
        CardSam(sam, lambda: PIN)


def test_no_key_without_the_hosts_proof(tmp_path: Path) -> None:
    """A right payload is refused (6982) before the host's proof, after the PIN and after a reset."""
    rig = Rig(tmp_path)
    sam = made(rig)
    before = sam.snapshot()

    def load() -> int:
        challenge = send(sam, Command(0, 0x84, 0, 0, le=4)).data
        header = bytes.fromhex("84D40000")
        wanted = Delivery(Purpose.CARD, 2, header, Purpose.SAM_CONTROL, 1, SAM_SERIAL, challenge)
        return send(sam, Command(0x84, 0xD4, 0, 0, rig.source.deliver(wanted))).sw

    sam.reset()
    assert load() == 0x6982
    CardSam(sam, lambda: PIN)
    assert load() == 0x6982
    sam.reset()
    assert sam.snapshot() == before
    load_keys(sam, SAM_SERIAL, [Purpose.CARD], (2,), rig.source)
    assert load() == 0x9000
    sam.reset()
    assert load() == 0x6982


def test_another_pin_after_a_tear(tmp_path: Path) -> None:
    """A SAM made again with another PIN has that PIN."""
    rig = Rig(tmp_path)
    sam = fresh(rig)
    make_sam(sam, replace(plan_of(rig), pin=b"\x11\x11"), rig.initial, rig.store, rig.steps)
    sam.reset()
    make_sam(sam, plan_of(rig), rig.initial, rig.store, rig.steps)
    assert_made(rig, sam, plan_of(rig))


def test_wrong_initial_key(tmp_path: Path) -> None:
    """A wrong vendor's key is tried once and named."""
    rig = Rig(tmp_path)
    sam = fresh(rig)
    wrong = KeyHandle(make_key(bytes(16)), "wrong")
    for _ in range(2):
        with pytest.raises(CryptoError, match="tried once"):
            make_sam(sam, plan_of(rig), wrong, rig.store, rig.steps)
    send(sam, Command(0, 0x84, 0, 0, le=8))
    assert send(sam, Command(0, 0x82, 0, 0, bytes(8))).sw == 0x63C1
    make_sam(sam, plan_of(rig), rig.initial, rig.store, rig.steps)
    assert_made(rig, sam, plan_of(rig))


def test_next_version_is_added(tmp_path: Path) -> None:
    """Rotation puts the next version beside the old one, and a SAM of another enterprise takes nothing."""
    rig = Rig(tmp_path)
    sam, plan = fresh(rig), plan_of(rig)
    make_sam(sam, plan, rig.initial, rig.store, rig.steps)
    load_keys(sam, SAM_SERIAL, HOLDS[plan.kind], (2,), rig.source)
    assert_made(rig, sam, replace(plan, versions=(1, 2)))
    with pytest.raises(CryptoError, match="control key"):
        load_keys(sam, SAM_SERIAL, HOLDS[plan.kind], (1,), StoreKeys(rig.store, ENTERPRISE + 1))


def test_impossible_plans(tmp_path: Path) -> None:
    """Plans that no SAM can hold are refused before it is touched; a plan shows no PIN and no key."""
    rig = Rig(tmp_path)
    sam, plan = fresh(rig), plan_of(rig)
    for bad in (replace(plan, serial=SERIAL), replace(plan, terminal=b""), replace(plan, pin=b"1"),
                replace(plan, versions=())):  # fmt: skip
        with pytest.raises((FormatError, ConfigError)):
            make_sam(sam, bad, rig.initial, rig.store, rig.steps)
    sm4 = KeyHandle(make_key(TRANSPORT_KEY, Algorithm.SM4), "SM4 transport key")
    with pytest.raises(ConfigError):
        make_sam(sam, plan, sm4, rig.store, rig.steps)
    assert not rig.steps.steps("sam")
    text = repr(plan) + "\n".join(plan.lines())
    assert PIN.hex() not in text
    assert TRANSPORT_KEY.hex().upper() not in text.upper()
