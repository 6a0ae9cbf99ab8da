"""Making SAMs: each kind holds its keys and no other, torn at every step, with wrong keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cardlib.apdu import Command
from cardlib.crypto import Algorithm, make_key
from cardlib.errors import ConfigError, CryptoError, FormatError, StatusError
from cardlib.profile import Purpose
from cardlib.sam import CardSam
from cardlib.transport import send
from keymgmt.delivery import StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.samload import HOLDS, SamKind, SamPlan, load_keys, make_sam
from simulator.sam import SamCard
from tests.keymgmt.rig import (
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
