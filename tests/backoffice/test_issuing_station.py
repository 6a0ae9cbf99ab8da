"""A station without a key store: keys from another source, everything else by its issuing SAM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import cast

import pytest

from backoffice import cards, chips, registry, wallet
from backoffice.registry import TerminalKind
from backoffice.station import IssuingStation, Office
from cardlib.crypto import make_key
from cardlib.errors import Refused, StatusError
from cardlib.profile import CardKind, Purse, make_serial
from cardlib.sam import IssuingSam
from keymgmt.delivery import StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.slot import SlotPlan
from keymgmt.steps import MemorySteps
from keymgmt.store import KeyStore
from keymgmt.wash import WashPlan, wash
from simulator.card import Card
from simulator.sam import SamCard
from tests.backoffice.desk import OPERATOR, TRANSPORT_KEY, World, torn
from tests.backoffice.kit import ADMIN, ENTERPRISE

TERMINAL = bytes.fromhex("310000000777")
SERIAL = make_serial(CardKind.SAM, 1, 777)
PIN = bytes.fromhex("246810")


class Locked:
    """A key store that nobody may open here."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the key store was asked: {name}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def issuing_sam(world: World) -> IssuingSam:
    sam = SamCard.vendor_fresh(TRANSPORT_KEY, world.random_bytes)
    plan = SamPlan(
        "sam", SERIAL, TERMINAL, ENTERPRISE, SamKind.ISSUING, (1,), date(2025, 1, 1), date(2035, 1, 1), pin=PIN
    )
    make_sam(sam, plan, KeyHandle(make_key(TRANSPORT_KEY), "vendor"), world.store, MemorySteps())
    sam.reset()
    return IssuingSam(sam, lambda: PIN)


def station(world: World) -> Office:
    """As a process of its own: platform and enterprise are two, and the key store is elsewhere."""
    issuing = IssuingStation(StoreKeys(world.store, ENTERPRISE), issuing_sam(world), 1)
    locked = cast("KeyStore", Locked())
    return replace(world.office, store=locked, issuing=issuing, platform_operator=None, initial=None)


def register(world: World) -> None:
    with world.db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, TERMINAL, TerminalKind.ISSUING, "issuing desk")
        registry.fit_sam(tx, ADMIN, ENTERPRISE, TERMINAL, SERIAL)


def prepared(world: World, number: int = 77) -> Card:
    """A card that the platform washed and opened a slot on: nobody's yet."""
    card = world.blank()
    assert world.office.initial is not None
    serial = make_serial(CardKind.CPU_CARD, 1, number)
    wash(card, WashPlan("w", serial, 1, date(2026, 9, 1), 1, world.office.initial), world.store, MemorySteps())
    with world.platform.write() as tx:
        chips.register(tx, OPERATOR, serial, wash_version=1)
    plan = SlotPlan("s", serial, ENTERPRISE, "ONECARD")
    for _ in range(2):
        card.reset()
        assert cards.prepare_slot(world.platform, OPERATOR, card, plan, world.store, MemorySteps()) == 1
    card.reset()
    return card


def test_issue_without_key_store(world: World) -> None:
    """A card is issued with the store never asked; settlement checks its payment of zero, and money moves as usual."""
    register(world)
    card = prepared(world)
    outcome = cards.issue(station(world), ADMIN, world.member(1), world.new(card))
    serial = bytes.fromhex(outcome["card"])
    assert world.state(serial) == ("active", "in use")
    world.settle()
    with world.db.read() as tx:
        records = tx.all("SELECT verdict, genuine, sam_serial, terminal FROM transaction_record")
    assert [tuple(row) for row in records] == [("posted", 1, SERIAL, TERMINAL)]
    world.agrees()
    card.reset()
    wallet.recharge(world.office, ADMIN, card, serial, 5000)
    assert world.on_card(card)[Purse.MAIN] == 5000
    world.settle()
    world.agrees()


def test_torn_everywhere(world: World) -> None:
    """Cut at any step of card or SAM, the same call issues the card; nothing is left open."""
    register(world)
    desk = station(world)
    number = 100
    for step in range(1, 400, 7):
        card, number = prepared(world, number), number + 1
        member = world.member(number)

        def act(card: Card = card, member: str = member) -> object:
            return cards.issue(desk, ADMIN, member, world.new(card), request_id=member)

        if not torn(act, [card], step, card):
            break
    else:
        pytest.fail("issuing has more steps than were cut")
    assert number > 110
    world.settle()
    world.agrees()


def test_sam_must_be_registered(world: World) -> None:
    """An issuing SAM that no terminal of the enterprise has issues nothing that counts."""
    card = prepared(world)
    with pytest.raises(Refused) as refused:
        cards.issue(station(world), ADMIN, world.member(1), world.new(card))
    assert refused.value.reason == "sam"
    with world.db.read() as tx:
        assert not tx.all("SELECT * FROM transaction_record")


def test_money_needs_the_host(world: World) -> None:
    """A station with a mother card can't recharge: load keys are with the enterprise's host."""
    register(world)
    card = prepared(world)
    desk = station(world)
    serial = bytes.fromhex(cards.issue(desk, ADMIN, world.member(1), world.new(card))["card"])
    card.reset()
    with pytest.raises((Refused, StatusError)):
        wallet.recharge(desk, ADMIN, card, serial, 5000)
    assert world.on_card(card)[Purse.MAIN] == 0
