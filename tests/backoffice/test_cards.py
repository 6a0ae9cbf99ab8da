"""The life of cards on simulated chips: guarded, told, resumable, and money conserved whatever is torn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from backoffice import cards, chips, jobs, ledger, outbox, wallet
from backoffice.cards import NEXT, State
from backoffice.enterprises import Setting
from backoffice.operators import Operator, Role
from cardlib.crypto import make_key
from cardlib.errors import CardRemoved, Conflict, CryptoError, FormatError, NotFound, OneCardError, Refused
from cardlib.iso7816 import read_binary
from cardlib.profile import CardKind, Holder, Purse, load_profile, make_serial
from cardlib.purse import identify, open_application
from keymgmt.handle import KeyHandle
from keymgmt.slot import SlotPlan, open_slot
from keymgmt.steps import MemorySteps, read_identity
from keymgmt.wash import WashPlan, wash
from simulator.card import Card
from tests.backoffice.desk import OPERATOR, Counter, World, serial_of
from tests.backoffice.kit import ADMIN, ENTERPRISE


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh enterprise."""
    made = World(tmp_path)
    yield made
    made.close()


def set_(world: World, which: Setting, value: object) -> None:
    with world.db.write() as tx:
        tx.execute(
            "INSERT INTO setting VALUES (?, ?, ?, 0) ON CONFLICT (enterprise_id, name)"
            " DO UPDATE SET value = excluded.value",
            (ENTERPRISE, which.name.lower(), str(value)),
        )


def test_issue(world: World) -> None:
    """A vendor-fresh card becomes the member's: washed, personalised, active, number bound, contents right."""
    card, serial = world.issued()
    assert serial_of(card) == serial
    assert world.state(serial) == ("active", "in use")
    open_application(card, world.office.host(), ENTERPRISE, world.random_bytes)
    holder = Holder.decode(read_binary(card, load_profile().file("holder").fid))
    assert (holder.name, holder.member_number) == ("成员 1", "M001")
    world.agrees()
    assert world.books() == {}
    with world.db.read() as tx:
        assert [row["state_to"] for row in cards.history(tx, ENTERPRISE, serial)] == ["issued", "active"]


def test_request_id_gives_the_first_outcome(world: World) -> None:
    """A repeated request id issues nothing, charges nothing, and answers as the first time."""
    number, card = world.member(1), world.blank()
    first = cards.issue(world.office, ADMIN, number, world.new(card), request_id="r1")
    assert cards.issue(world.office, ADMIN, number, world.new(), request_id="r1") == first
    serial = bytes.fromhex(first["card"])
    card.reset()
    paid = wallet.recharge(world.office, ADMIN, card, serial, 5000, request_id="r2")
    for _ in range(2):
        card.reset()
        assert wallet.recharge(world.office, ADMIN, card, serial, 5000, request_id="r2") == paid
    assert world.on_card(card)[Purse.MAIN] == 5000
    card.reset()
    with pytest.raises(Conflict):
        wallet.recharge(world.office, ADMIN, card, serial, 6000, request_id="r2")


def test_second_card_and_transfer_are_refused(world: World) -> None:
    """One member one card, one number one card; another person's number is refused as a transfer (D2)."""
    _, serial = world.issued(1)
    with pytest.raises(Refused) as refused:
        cards.issue(world.office, ADMIN, "M001", world.new())
    assert refused.value.reason == "has_card"
    with world.db.write() as tx:
        tx.execute("UPDATE member SET phone_number = NULL WHERE member_number = 'M001'")
        tx.execute(
            "INSERT INTO member (enterprise_id, member_number, name, phone_number, state, created_ms, changed_ms)"
            " VALUES (?, 'M999', 'Somebody', '13800000001', 'active', 0, 0)",
            (ENTERPRISE,),
        )
    with pytest.raises(Refused, match="can't be transferred") as refused:
        cards.issue(world.office, ADMIN, "M999", world.new())
    assert refused.value.reason == "transfer"
    with pytest.raises(NotFound):
        cards.issue(world.office, ADMIN, "nobody", world.new())
    assert world.state(serial) == ("active", "in use")


def test_used_and_foreign_cards_are_refused(world: World) -> None:
    """A member's card is not issued to another; a card of an unknown platform is not touched."""
    card, _ = world.issued(1)
    with pytest.raises(Refused) as refused:
        cards.issue(world.office, ADMIN, world.member(2), world.new(card))
    assert refused.value.reason == "card_used"
    assert cards.issue(world.office, ADMIN, "M002", world.new())["state"] == "active"


@pytest.mark.parametrize("state", list(State))
def test_every_transition_is_guarded(world: World, state: State) -> None:
    """From each state only the listed ones follow; any other names the state and what is possible."""
    _, serial = world.issued()
    for new in State:
        with world.db.write() as tx:
            tx.execute("UPDATE card_application SET state = ?", (state.value,))
        if new is state:
            with world.db.write() as tx:
                assert not cards.transition(tx, ENTERPRISE, serial, new, "anna", "test")
        elif new in NEXT[state]:
            with world.db.write() as tx:
                assert cards.transition(tx, ENTERPRISE, serial, new, "anna", "test")
        else:
            with pytest.raises(Conflict, match=f"is {state}: it can become"), world.db.write() as tx:
                cards.transition(tx, ENTERPRISE, serial, new, "anna", "test")


def test_lose_and_unlock(world: World) -> None:
    """Lost: listed, told, no recharge; twice is once. Unlocked: active, off the list. Unlock needs a loss."""
    card, serial = world.issued()
    with world.db.write() as tx:
        outbox.subscribe(tx, ENTERPRISE, "canteen")
    for _ in range(2):
        assert cards.lose(world.office, ADMIN, serial, "left on a bus")["state"] == "lost"
    assert world.state(serial) == ("lost", "lost")
    assert world.listed() == {serial.hex()}
    with pytest.raises(Refused) as refused:
        wallet.recharge(world.office, ADMIN, card, serial, 100)
    assert refused.value.reason == "card_state"
    assert cards.unlock(world.office, ADMIN, serial, "found")["state"] == "active"
    assert world.state(serial) == ("active", "in use")
    assert world.listed() == set()
    with pytest.raises(Conflict, match="nothing to unlock"):
        cards.unlock(world.office, ADMIN, serial, "again")
    with world.db.read() as tx:
        topics = [event.topic for event in outbox.pending(tx, ENTERPRISE, "canteen")]
    assert topics == ["card.lost", "card.active"]


def test_posted_card_sleeps_until_received(world: World) -> None:
    """A posted card is listed and can't be charged until its receipt is confirmed; lost and found it sleeps on."""
    card = world.blank()
    outcome = cards.issue(world.office, ADMIN, world.member(1), world.new(card, posted=True))
    serial = bytes.fromhex(outcome["card"])
    assert (outcome["state"], world.listed()) == ("posted", {serial.hex()})
    card.reset()
    with pytest.raises(Refused):
        wallet.recharge(world.office, ADMIN, card, serial, 100)
    cards.lose(world.office, ADMIN, serial, "not come")
    assert cards.unlock(world.office, ADMIN, serial, "came")["state"] == "posted"
    assert world.listed() == {serial.hex()}
    for _ in range(2):
        assert cards.confirm_receipt(world.office, ADMIN, serial)["state"] == "active"
    assert world.listed() == set()
    card.reset()
    assert wallet.recharge(world.office, ADMIN, card, serial, 100)["balance_fen"] == 100


def test_permissions(world: World) -> None:
    """An auditor changes nothing, with the reason."""
    auditor = Operator(ENTERPRISE, "eve", Role.AUDITOR)
    card, serial = world.issued()
    flows: list[Callable[[], object]] = [
        lambda: cards.issue(world.office, auditor, "M001", world.new()),
        lambda: cards.lose(world.office, auditor, serial, "x"),
        lambda: cards.unlock(world.office, auditor, serial, "x"),
        lambda: cards.confirm_receipt(world.office, auditor, serial),
        lambda: cards.reissue(world.office, auditor, serial, world.new()),
        lambda: cards.cancel(world.office, auditor, serial, "x"),
        lambda: wallet.recharge(world.office, auditor, card, serial, 1),
        lambda: wallet.subsidise(world.office, auditor, card, serial, 1),
        lambda: wallet.refund(world.office, auditor, card, serial, 1),
        lambda: wallet.undo(world.office, auditor, card, "x"),
        lambda: wallet.expire(world.office, auditor, card, serial),
    ]
    for flow in flows:
        with pytest.raises(Refused) as refused:
            flow()
        assert refused.value.reason == "permission"


def test_reissue_with_the_old_card_present(world: World) -> None:
    """Money of both purses and access rights go to the new card; the old one is empty, wiped, blocked, listed."""
    old, old_serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, old_serial, 5000)
    old.reset()
    wallet.subsidise(world.office, ADMIN, old, old_serial, 700)
    till = Counter(world, 1)
    till.pay(old, 1200)
    till.collect()
    old.reset()
    new = world.blank()
    outcome = cards.reissue(world.office, ADMIN, old_serial, world.new(new), old_card=old)
    serial = bytes.fromhex(outcome["card"])
    assert outcome["carried_fen"] == {"main": 3800, "subsidy": 700}
    assert world.on_card(new) == {Purse.MAIN: 3800, Purse.SUBSIDY: 700}
    assert (world.purse(serial), world.purse(old_serial), world.books().get(ledger.TRANSFERS)) == (3800, 0, None)
    assert world.state(old_serial) == ("replaced", "replaced")
    assert world.state(serial) == ("active", "in use")
    assert world.listed() == {old_serial.hex()}
    old.reset()
    assert identify(old, ENTERPRISE).blocked
    world.agrees()
    with pytest.raises(Conflict):
        cards.unlock(world.office, ADMIN, old_serial, "found")
    with pytest.raises(Conflict):
        cards.reissue(world.office, ADMIN, old_serial, world.new())


def test_reissue_of_an_active_card_needs_the_card(world: World) -> None:
    """Without the old card only a lost one is reissued."""
    _, serial = world.issued()
    with pytest.raises(Refused) as refused:
        cards.reissue(world.office, ADMIN, serial, world.new())
    assert refused.value.reason == "not_lost"


def test_reissue_from_the_books_waits_for_journals(world: World) -> None:
    """A lost card's money follows when every till's journal up to the loss is in, not before, and once."""
    old, old_serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, old_serial, 5000)
    till = Counter(world, 1)
    till.pay(old, 1000)
    cards.lose(world.office, ADMIN, old_serial, "gone")
    new = world.blank()
    first = cards.reissue(world.office, ADMIN, old_serial, world.new(new), request_id="r")
    assert first["state"] == "waiting"
    assert world.on_card(new)[Purse.MAIN] == 0
    new.reset()
    assert cards.reissue(world.office, ADMIN, old_serial, world.new(new), request_id="r")["state"] == "waiting"
    till.close_books()
    new.reset()
    outcome = cards.reissue(world.office, ADMIN, old_serial, world.new(new), request_id="r")
    assert outcome["carried_fen"] == {"main": 4000}
    for _ in range(2):
        assert cards.reissue(world.office, ADMIN, old_serial, world.new(), request_id="r") == outcome
    assert world.on_card(new)[Purse.MAIN] == 4000
    assert world.purse(old_serial) == 0
    assert sum(world.books().values()) == 0


def test_reissue_from_the_books_when_the_waiting_time_is_over(world: World) -> None:
    """A till that never reports delays a reissue no longer than the setting says."""
    old, old_serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, old_serial, 5000)
    Counter(world, 1).pay(old, 1000)
    cards.lose(world.office, ADMIN, old_serial, "gone")
    new = world.blank()
    assert cards.reissue(world.office, ADMIN, old_serial, world.new(new))["state"] == "waiting"
    world.now += 4 * 86_400_000
    new.reset()
    assert cards.reissue(world.office, ADMIN, old_serial, world.new(new))["carried_fen"] == {"main": 5000}


def test_lost_card_found_while_its_reissue_waits(world: World) -> None:
    """When the old card turns up before its money was moved, the chip itself is emptied instead of the books."""
    old, old_serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, old_serial, 5000)
    till = Counter(world, 1)
    till.pay(old, 1000)
    cards.lose(world.office, ADMIN, old_serial, "gone")
    new = world.blank()
    assert cards.reissue(world.office, ADMIN, old_serial, world.new(new))["state"] == "waiting"
    old.reset()
    new.reset()
    outcome = cards.reissue(world.office, ADMIN, old_serial, world.new(new), old_card=old)
    assert outcome["carried_fen"] == {"main": 4000}
    till.collect()
    world.agrees()


@pytest.mark.parametrize(("rule", "account"), [("refund", ledger.REFUNDS), ("forfeit", ledger.EXPIRED)])
def test_cancel_settles_by_rule_and_frees_the_number(world: World, rule: str, account: str) -> None:
    """A card cancelled in hand is emptied into the account of the rule, wiped, listed; the number is free again."""
    set_(world, Setting.CANCEL_BALANCE, rule)
    card, serial = world.issued()
    wallet.recharge(world.office, ADMIN, card, serial, 5000)
    card.reset()
    outcome = cards.cancel(world.office, ADMIN, serial, "leaves", card=card, request_id="c")
    assert (outcome["state"], outcome["settled_fen"]) == ("cancelled", {"main": 5000})
    assert world.books() == {account: 5000, ledger.BANK: -5000}
    assert world.state(serial) == ("cancelled", "cancelled")
    assert world.listed() == {serial.hex()}
    assert cards.cancel(world.office, ADMIN, serial, "leaves", request_id="c") == outcome
    with pytest.raises(Conflict):
        cards.cancel(world.office, ADMIN, serial, "again")
    again = cards.issue(world.office, ADMIN, "M001", world.new())
    assert again["card"] != outcome["card"]
    world.agrees()


def test_cancel_without_the_card(world: World) -> None:
    """A card that is not here is listed at once, and its balance settled once the journals are in."""
    card, serial = world.issued()
    wallet.recharge(world.office, ADMIN, card, serial, 5000)
    till = Counter(world, 1)
    till.pay(card, 10)
    assert cards.cancel(world.office, ADMIN, serial, "leaves")["state"] == "waiting"
    assert (world.listed(), world.state(serial)[0]) == ({serial.hex()}, "lost")
    till.close_books()
    assert cards.cancel(world.office, ADMIN, serial, "leaves")["settled_fen"] == {"main": 4990}
    assert world.books()[ledger.REFUNDS] == 4990
    assert world.state(serial)[0] == "cancelled"


def test_a_foreign_card_is_refused_by_every_flow(world: World, tmp_path: Path) -> None:
    """A card of another platform, and another member's card, are refused with nothing changed."""
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", seed=4)
    foreign, _ = other.issued()
    _, serial = world.issued(1)
    stranger, _ = world.issued(2)
    before = world.books()
    flows: list[Callable[[Card], object]] = [
        lambda chip: wallet.recharge(world.office, ADMIN, chip, serial, 100),
        lambda chip: wallet.subsidise(world.office, ADMIN, chip, serial, 100),
        lambda chip: cards.reissue(world.office, ADMIN, serial, world.new(), old_card=chip),
        lambda chip: cards.cancel(world.office, ADMIN, serial, "x", card=chip),
    ]
    for chip in (foreign, stranger, Card.blank()):
        for flow in flows:
            chip.reset()
            with pytest.raises(OneCardError):
                flow(chip)
    other.close()
    assert world.books() == before
    assert world.state(serial) == ("active", "in use")


def test_batch_goes_on_and_resumes(world: World) -> None:
    """A batch reports each card, skips what is done when run again, and one bad card stops nobody else."""
    numbers = [world.member(n) for n in range(1, 4)]
    made: dict[str, Card] = {}

    def next_card(number: str) -> cards.NewCard:
        if number == "M002" and number not in made:
            made[number] = Card.blank()
        else:
            made[number] = world.blank()
        return world.new(made[number])

    first = list(cards.issue_batch(world.office, ADMIN, numbers, next_card, batch_id="b1"))
    assert [one.error is None for one in first] == [True, False, True]
    kept = made["M001"]
    second = list(cards.issue_batch(world.office, ADMIN, numbers, next_card, batch_id="b1"))
    assert [one.error for one in second] == [None, None, None]
    assert made["M001"] is kept
    assert second[0].outcome == first[0].outcome


def test_an_issue_that_can_not_be_finished_is_given_up(world: World) -> None:
    """A card that dies midway: the job is abandoned, member and number get another card."""
    number, card = world.member(1), world.blank()
    card.power.cut_at(300)
    with pytest.raises(CardRemoved):
        cards.issue(world.office, ADMIN, number, world.new(card))
    with pytest.raises(Conflict, match=r"wash it first|present card"):
        cards.issue(world.office, ADMIN, number, world.new())
    with world.db.read() as tx:
        (job,) = jobs.running(tx, ENTERPRISE, "issue")
    cards.abandon(world.office, ADMIN, job.job_id)
    assert cards.issue(world.office, ADMIN, number, world.new())["state"] == "active"


def test_chips_swapped_while_washing_share_no_serial(world: World) -> None:
    """Whenever a chip is torn while it is washed, another chip in its place gets a serial of its own (B1)."""
    step = 1
    first = world.blank()
    while True:
        number, first, second = world.member(step), world.blank(), world.blank()
        first.power.cut_at(step)
        try:
            cards.issue(world.office, ADMIN, number, world.new(first))
            break
        except CardRemoved:
            pass
        first.reset()
        identity = read_identity(first)
        try:
            issued = cards.issue(world.office, ADMIN, number, world.new(second))["card"]
        except Conflict:
            assert identity is not None  # the first was washed: it alone goes on
            first.reset()
            issued = cards.issue(world.office, ADMIN, number, world.new(first))["card"]
            assert identity.serial.hex().upper() == issued
        else:
            assert identity is None or identity.serial.hex().upper() != issued
        step += 9
    assert step > 100


@pytest.mark.parametrize("amount", [0, -1, 1 << 31])
def test_amounts_of_nothing_and_too_much_are_refused(world: World, amount: int) -> None:
    """Zero, negative and absurd amounts move nothing."""
    card, serial = world.issued()
    for act in (wallet.recharge, wallet.subsidise, wallet.refund):
        card.reset()
        with pytest.raises((FormatError, Refused)):
            act(world.office, ADMIN, card, serial, amount)
    assert world.books() == {}


def test_limits(world: World) -> None:
    """One recharge and one purse have their limits, with the reason."""
    card, serial = world.issued()
    set_(world, Setting.RECHARGE_LIMIT_FEN, 1000)
    set_(world, Setting.PURSE_LIMIT_FEN, 1500)
    with pytest.raises(Refused, match="at most"):
        wallet.recharge(world.office, ADMIN, card, serial, 1001)
    card.reset()
    wallet.recharge(world.office, ADMIN, card, serial, 1000)
    card.reset()
    with pytest.raises(Refused) as refused:
        wallet.recharge(world.office, ADMIN, card, serial, 501)
    assert refused.value.reason == "purse_limit"
    card.reset()
    with pytest.raises(Refused) as refused:
        wallet.refund(world.office, ADMIN, card, serial, 1001)
    assert refused.value.reason == "balance"


def test_refund_expiry_and_undo(world: World) -> None:
    """Refund and expiry take money off into their accounts; an online undo gives a payment back once."""
    card, serial = world.issued()
    wallet.recharge(world.office, ADMIN, card, serial, 5000)
    till = Counter(world, 1)
    paid = till.pay(card, 300)
    till.collect()
    card.reset()
    record = paid.origin.hex()
    assert wallet.undo(world.office, ADMIN, card, record)["balance_fen"] == 5000
    card.reset()
    with pytest.raises(Refused) as refused:
        wallet.undo(world.office, ADMIN, card, record)
    assert refused.value.reason == "undo"
    with pytest.raises(NotFound):
        wallet.undo(world.office, ADMIN, card, "00")
    card.reset()
    assert wallet.refund(world.office, ADMIN, card, serial, 1000)["balance_fen"] == 4000
    card.reset()
    with pytest.raises(Refused):
        wallet.expire(world.office, ADMIN, card, serial)
    set_(world, Setting.BALANCE_EXPIRES, "2026-01-01")
    card.reset()
    assert wallet.expire(world.office, ADMIN, card, serial) | {"job": ""} == {
        "job": "", "amount_fen": 4000, "balance_fen": 0,
    }  # fmt: skip
    assert world.books() == {ledger.BANK: -5000, ledger.REFUNDS: 1000, ledger.EXPIRED: 4000}
    world.agrees()


def test_enterprise_without_the_platform_needs_an_open_slot(world: World) -> None:
    """An enterprise that neither washes nor opens slots issues only on cards that the platform prepared."""
    apart = replace(world.office, platform_operator=None, initial=None)
    with pytest.raises(Refused) as refused:
        cards.issue(apart, ADMIN, world.member(1), world.new())
    assert refused.value.reason == "wash"
    prepared = world.blank()
    assert world.office.initial is not None
    plan = WashPlan("w", make_serial(CardKind.CPU_CARD, 1, 77), 1, date(2026, 9, 1), 1, world.office.initial)
    wash(prepared, plan, world.store, MemorySteps())
    with world.platform.write() as tx:
        chips.register(tx, OPERATOR, plan.serial, wash_version=1)
    prepared.reset()
    with pytest.raises(Refused) as refused:
        cards.issue(apart, ADMIN, "M001", world.new(prepared))
    assert refused.value.reason == "slot"
    with world.platform.write() as tx:
        chips.reserve_slot(tx, OPERATOR, plan.serial, ENTERPRISE)
    prepared.reset()
    open_slot(prepared, SlotPlan("s", plan.serial, ENTERPRISE, "ONECARD"), world.store, MemorySteps())
    with world.platform.write() as tx:
        chips.slot_opened(tx, OPERATOR, plan.serial, ENTERPRISE)
    prepared.reset()
    assert cards.issue(apart, ADMIN, "M001", world.new(prepared))["card"] == plan.serial.hex().upper()


def test_a_wrong_key_costs_a_chip_one_try_whoever_asks(world: World) -> None:
    """Issued to one member after another with a wrong vendor's key, a card is tried once; then the right key works."""
    card = world.blank()
    wrong = replace(world.office, initial=KeyHandle(make_key(bytes(range(16))), "wrong"))
    for number in range(1, 5):
        with pytest.raises(CryptoError, match="tried"):
            cards.issue(wrong, ADMIN, world.member(number), world.new(card))
        card.reset()
    assert cards.issue(world.office, ADMIN, "M001", world.new(card))["state"] == "active"
