"""Rotation at the desk: cards renewed on the way, torn anywhere; states, counts, and what keeps a version alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backoffice import audit, cards, registry, rotation, wallet
from backoffice.database import Tx
from cardlib.errors import Conflict, NotFound, OneCardError, Refused, TransportError
from cardlib.profile import Purpose, Purse
from cardlib.purse import CHANGING, identify
from cardlib.sam import SamKey
from keymgmt.keys import KeyRef, KeyState
from keymgmt.rotate import active_version, versions
from simulator.card import Card
from tests.backoffice.desk import Counter, World
from tests.backoffice.kit import ADMIN, ENTERPRISE

MONEY = 30_00


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def to_version_2(world: World) -> None:
    """Version 2 is made and active."""
    list(rotation.make_roots(world.store, 2, "root"))
    rotation.begin(world.store, ENTERPRISE, "anna")
    change(world, rotation.activate, 2, without_sams=True)


def change(world: World, act: Callable[..., object], *args: object, **options: object) -> None:
    with world.db.write() as tx:
        act(tx, world.store, ENTERPRISE, *args, "anna", **options)


def used(world: World) -> dict[int, tuple[int, int]]:
    """Cards and torn cards by version."""
    with world.db.read() as tx:
        return {one.version: (one.cards, one.torn) for one in rotation.usage(tx, world.store, ENTERPRISE)}


def version_on(card: Card) -> int:
    card.reset()
    version = identify(card, ENTERPRISE).version
    card.reset()
    return version


def recharged(world: World, card: Card, serial: bytes, fen: int) -> None:
    wallet.recharge(world.office, ADMIN, card, serial, fen)


def test_each_flow_renews_first(world: World) -> None:
    """Recharge, subsidy, refund, undo, reissue and cancel bring the card to the active version, then go on."""
    card, serial = world.issued(1)
    old, old_serial = world.issued(2)
    recharged(world, card, serial, MONEY)
    till = Counter(world, 1)
    paid = till.pay(card, 5_00)
    till.collect()
    to_version_2(world)
    assert (version_on(card), used(world)) == (1, {1: (2, 0), 2: (0, 0)})
    wallet.undo(world.office, ADMIN, card, paid.origin.hex())
    assert (version_on(card), used(world)) == (2, {1: (1, 0), 2: (1, 0)})
    till.pay(card, 1_00)
    wallet.refund(world.office, ADMIN, reset(card), serial, 2_00)
    fresh = world.new()
    cards.reissue(world.office, ADMIN, old_serial, fresh, old_card=reset(old))
    assert isinstance(fresh.card, Card)
    assert (version_on(fresh.card), used(world)) == (2, {1: (0, 0), 2: (2, 0)})
    till.close_books()
    world.agrees()
    assert world.purse(serial) == world.on_card(card)[Purse.MAIN] == MONEY - 1_00 - 2_00


def reset(card: Card) -> Card:
    card.reset()
    return card


def test_torn_at_the_desk_everywhere(world: World) -> None:
    """A recharge that renews first, torn at any step: the next one finishes both, money once, counts right."""
    to_version_2(world)
    back = {1: 2, 2: 1}
    card, serial = world.issued(1)
    loaded = 0
    for step in range(1, 400, 7):
        goal = back[version_on(card)]
        if goal == 1:
            change(world, rotation.roll_back)
        else:
            change(world, rotation.activate, 2)
        loaded += 1_00
        card.power.cut_at(step)
        try:
            recharged(world, card, serial, 1_00)
            ended = True
        except OneCardError:
            ended = False
        card.power.cut_at(0)
        version = version_on(card)
        counted = used(world)
        assert sum(held for held, _ in counted.values()) == 1
        if version == CHANGING:
            assert (counted[back[goal]], counted[goal]) == ((1, 0), (0, 1))
        else:
            assert sum(counted[version]) == 1
        if not ended:
            recharged(world, card, serial, 1_00)
        assert (version_on(card), used(world)[goal]) == (goal, (1, 0))
        assert world.purse(serial) == world.on_card(card)[Purse.MAIN] == loaded
        if ended:
            break
    else:
        pytest.fail("it never ran through")
    world.agrees()


def test_a_refused_recharge_leaves_no_job(world: World) -> None:
    """Keys are renewed even when the recharge is refused then, and another amount can be tried at once."""
    card, serial = world.issued(1)
    to_version_2(world)
    with pytest.raises(Refused, match=r"balance|funds"):
        wallet.refund(world.office, ADMIN, card, serial, 99_00)
    assert version_on(card) == 2
    recharged(world, card, serial, 1_00)
    wallet.refund(world.office, ADMIN, reset(card), serial, 50)
    assert world.purse(serial) == 50


def test_new_cards_and_torn_issues(world: World) -> None:
    """New cards get the active version; an issue torn before the change keeps the version it began with."""
    torn_card = world.blank()
    member = world.member(1)
    torn_card.power.cut_at(230)
    with pytest.raises(OneCardError):
        cards.issue(world.office, ADMIN, member, world.new(torn_card))
    torn_card.power.cut_at(0)
    to_version_2(world)
    cards.issue(world.office, ADMIN, member, world.new(reset(torn_card)))
    assert version_on(torn_card) == 1
    card, _ = world.issued(2)
    assert version_on(card) == 2
    assert used(world) == {1: (1, 0), 2: (1, 0)}


def test_the_command_of_its_own(world: World) -> None:
    """A card is updated on its own, once per request id; done again nothing changes; a stranger's card is not."""
    card, serial = world.issued(1)
    to_version_2(world)
    outcome = cards.update_keys(world.office, ADMIN, card, serial, request_id="r1")
    assert (outcome["version_before"], outcome["version"]) == (1, 2)
    assert cards.update_keys(world.office, ADMIN, reset(card), serial, request_id="r1") == outcome
    assert cards.update_keys(world.office, ADMIN, reset(card), serial)["version_before"] == 2
    with world.db.read() as tx:
        events = [row["details"] for row in tx.all("SELECT details FROM audit_event WHERE event = 'card.rekeyed'")]
    assert len(events) == 1
    with pytest.raises(NotFound):
        cards.update_keys(world.office, ADMIN, card, bytes(8))


def test_torn_on_the_way_is_not_destroyed(world: World) -> None:
    """A card torn on its way to a version keeps that version alive after a rollback, until it is finished."""
    card, serial = world.issued(1)
    to_version_2(world)
    step = 20
    while version_on(card) != CHANGING:
        step += 1
        card.power.cut_at(step)
        with suppress(TransportError):
            cards.update_keys(world.office, ADMIN, card, serial)
        card.power.cut_at(0)
    change(world, rotation.roll_back)
    assert used(world) == {1: (1, 0), 2: (0, 1)}
    with pytest.raises(Refused, match="1 cards were interrupted on their way to it"):
        change(world, rotation.destroy, 2)
    cards.update_keys(world.office, ADMIN, card, serial)
    assert (version_on(card), used(world)) == (1, {1: (1, 0), 2: (0, 0)})
    change(world, rotation.destroy, 2)
    assert versions(world.store, ENTERPRISE) == {1: KeyState.ACTIVE, 2: KeyState.DESTROYED}
    assert rotation.following(world.store, ENTERPRISE) == 3


def sam_holds(tx: Tx, serial: bytes, *held: int) -> None:
    keys = [SamKey(p, v, 0, bytes(3)) for v in held for p in (Purpose.CARD, Purpose.TERMINAL)]
    registry.note_sam_keys(tx, ENTERPRISE, serial, keys)


def test_what_keeps_a_version_alive(world: World) -> None:
    """Cards, SAMs, open records and journals not collected: each is named with its number and the first, in turn."""
    card, serial = world.issued(1)
    recharged(world, card, serial, MONEY)
    till = Counter(world, 1)
    with world.db.write() as tx:
        sam_holds(tx, till.till.sam, 1)
    list(rotation.make_roots(world.store, 2, "root"))
    rotation.begin(world.store, ENTERPRISE, "anna")
    with pytest.raises(Refused, match=f"1 SAMs lack version 2 .first {till.till.sam.hex().upper()}"):
        change(world, rotation.activate, 2)
    with world.db.write() as tx:
        sam_holds(tx, till.till.sam, 1, 2)
    change(world, rotation.activate, 2)
    till.pay(card, 1_00)
    with pytest.raises(Conflict, match="active, not retiring"):
        change(world, rotation.destroy, 1)
    with pytest.raises(Conflict, match="new cards get"):
        change(world, rotation.retire, 2)
    change(world, rotation.retire, 1)
    expect = [f"1 cards hold it .first {serial.hex().upper()}", "1 SAMs hold it"]
    for words in expect:
        with pytest.raises(Refused, match=words):
            change(world, rotation.destroy, 1)
    cards.update_keys(world.office, ADMIN, reset(card), serial)
    with world.db.write() as tx:
        sam_holds(tx, till.till.sam, 2)
    with pytest.raises(Refused, match="have not brought their journals"):
        change(world, rotation.destroy, 1)
    till.close_books()
    change(world, rotation.destroy, 1)
    with pytest.raises(Conflict, match="destroyed"):
        world.store.handle(KeyRef(Purpose.TAC, 1, ENTERPRISE))
    with pytest.raises(Conflict, match="no version before 2"):
        change(world, rotation.roll_back)
    till.pay(reset(card), 1_00)
    till.close_books()
    world.agrees()


def test_begin_asks_for_roots(world: World) -> None:
    """Without the platform's roots of the next version nothing begins; begun, it goes on to the same version."""
    with pytest.raises(NotFound, match="version 2"):
        rotation.begin(world.store, ENTERPRISE, "anna")
    assert versions(world.store, ENTERPRISE) == {1: KeyState.ACTIVE}
    list(rotation.make_roots(world.store, 2, "root"))
    assert [rotation.begin(world.store, ENTERPRISE, "anna") for _ in range(2)] == [2, 2]
    assert active_version(world.store, ENTERPRISE) == 1
    with world.db.read() as tx:
        assert "activate version 2" in rotation.next_step(tx, world.store, ENTERPRISE)
    with pytest.raises(NotFound, match="it has 1, 2"):
        change(world, rotation.retire, 7)
    with world.db.write() as tx:
        rotation.destroy(tx, world.store, ENTERPRISE, 2, "anna")
        assert "begins the next rotation" in rotation.next_step(tx, world.store, ENTERPRISE)
        assert audit.verify(tx, ENTERPRISE).unsealed
