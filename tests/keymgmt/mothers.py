"""A mother card and its authentication card, made from a rig's store, and what is made with them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

from cardlib.iso7816 import pin_bytes
from cardlib.profile import CardKind, make_serial
from cardlib.sam import IssuingSam
from cardlib.transport import Transport
from keymgmt.delivery import KeySource
from keymgmt.mothercard import AuthenticationPlan, MotherCard, MotherPlan, Pins, make_authentication, make_mother
from keymgmt.personalise import Station
from keymgmt.samload import SamKind, SamPlan, SamWash, load_sam, wash_sam
from keymgmt.steps import MemorySteps
from simulator.card import Card
from simulator.mothercard import MotherCard as Mother
from simulator.sam import SamCard
from tests.keymgmt.rig import ENTERPRISE, EXPIRY, SAM_SERIAL, START, TERMINAL, TRANSPORT_KEY, Moves, Rig

MOTHER = make_serial(CardKind.MOTHER, 1, 1)
AUTHENTICATION = make_serial(CardKind.AUTHENTICATION, 1, 1)
PINS = Pins(pin_bytes("271828"), pin_bytes("314159"))
SAM_PIN = bytes.fromhex("246810")


def mother_plan(rig: Rig, **changes: object) -> MotherPlan:
    plan = MotherPlan(replace(rig.wash_plan, job="mother", serial=MOTHER), ENTERPRISE, PINS.mother)
    return replace(plan, **changes)  # type: ignore[arg-type]  # named fields


def authentication_plan(rig: Rig, **changes: object) -> AuthenticationPlan:
    wash = replace(rig.wash_plan, job="authentication", serial=AUTHENTICATION)
    return replace(AuthenticationPlan(wash, MOTHER, PINS.authentication), **changes)  # type: ignore[arg-type]  # as above


def fresh_mother(rig: Rig) -> Mother:
    return Mother.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)


def made_mother(rig: Rig, **changes: object) -> Mother:
    card = fresh_mother(rig)
    make_mother(card, mother_plan(rig, **changes), rig.store, MemorySteps())
    card.reset()
    return card


def made_authentication(rig: Rig, **changes: object) -> Card:
    card = rig.card()
    make_authentication(card, authentication_plan(rig, **changes), rig.store, MemorySteps())
    card.reset()
    return card


def source(rig: Rig) -> MotherCard:
    """An opened pair."""
    return MotherCard(made_mother(rig), made_authentication(rig), PINS)


def blank_sam(rig: Rig, seed: int = 11) -> SamCard:
    """A SAM that the platform washed, which waits for its keys."""
    sam = SamCard.vendor_fresh(TRANSPORT_KEY, Random(seed).randbytes)
    wash_sam(sam, SamWash("sam wash", SAM_SERIAL, ENTERPRISE, rig.initial), rig.store, MemorySteps())
    sam.reset()
    return sam


def sam_plan(kind: SamKind) -> SamPlan:
    return SamPlan("sam", SAM_SERIAL, TERMINAL, ENTERPRISE, kind, (1,), START, EXPIRY, pin=SAM_PIN)


def issuing_sam(rig: Rig, keys: KeySource) -> SamCard:
    """An issuing station's SAM, loaded by ``keys``."""
    sam = blank_sam(rig)
    load_sam(sam, sam_plan(SamKind.ISSUING), keys, MemorySteps())
    sam.reset()
    return sam


def station(sam: Transport, keys: KeySource, seed: int = 3) -> Station:
    """A station without key store: a SAM, and where keys come from."""
    ticks, random = count(1_735_700_000_000, 1000), Random(seed)
    return Station(
        IssuingSam(sam, lambda: SAM_PIN), keys, MemorySteps(), Moves(), lambda: next(ticks), random.randbytes
    )
