"""Every reason to refuse, provoked on a simulated card and SAM at a terminal; its words as the page promises them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from cardlib.errors import OneCardError, OutcomeUnknown, Refused
from cardlib.profile import issuer_id
from cardlib.transport import Decorator, Transport
from simulator.card import Card
from simulator.door import SimulatedDoor
from simulator.hostile import StuckCounter
from simulator.rig import Enterprise
from terminals.doors import AntiPassback, Direction, Week
from terminals.journal import JobState
from terminals.policy import DAY_MS
from terminals.prices import Charge, Period, Prices
from terminals.reasons import Reason
from terminals.runtime import Receipt
from tests.cardlib.world import ENTERPRISE
from tests.terminals.shop import NOW, Shop, card_serial, with_rules
from tests.terminals.test_access import RULES, Site
from tests.terminals.test_pos import Taps, block, cut_at_debit, dead, other_aid, overdue, rewrite

PAGE = Path(__file__).parent.parent.parent / "docs" / "terminals.md"
LUNCH = Prices((Period(1, "lunch", 22 * 60, 23 * 60, 100, times=1, limit_fen=500),))
R = Reason


class Till:
    """A POS (and, from the same keys, a recharge terminal) with one card of 3 and 50 yuan."""

    def __init__(self, folder: Path) -> None:
        self.shop = Shop(folder)
        self.card: Card = self.shop.new_card(1, 300, 5_000)

    def rules(self, **changes: object) -> None:
        self.shop.set_rules(with_rules(**changes))

    def lists(self, reason: Reason) -> None:
        self.shop.lists.listed[card_serial(self.card)] = reason

    def show(self, act: Callable[[Transport], Receipt], card: Transport | None = None) -> None:
        """Present a card in the tap loop, whatever becomes of it."""
        self.card.reset()
        with suppress(OneCardError):
            self.shop.terminal.serve(Taps(lambda: card or self.card), act)

    def pay(
        self, charge: int | Charge = 100, sale: str = "", pin: str | None = None, card: Transport | None = None
    ) -> None:
        self.show(lambda one: self.shop.pos.pay(one, charge, sale, lambda: pin), card)

    def undo(self, *, online: bool = False) -> None:
        self.show(lambda one: self.shop.pos.undo_last(one, online=online))

    def recharge(self, fen: int = 1_000, refuse: str = "") -> None:
        (self.shop.folder / "r").mkdir()
        desk = Shop(self.shop.folder / "r", self.shop.rules, recharge=True)
        desk.office.refuse = refuse
        desk.screen = self.shop.screen
        desk.terminal.screen = self.shop.screen
        self.card.reset()
        with suppress(OneCardError):
            desk.terminal.serve(Taps(lambda: self.card), lambda one: desk.recharger.recharge(one, fen))


def full_counter(t: Till) -> None:
    class Full(Decorator):
        def transceive(self, command: bytes) -> bytes:
            return b"\x94\x02" if command[:2] == b"\x80\x50" else self.inner.transceive(command)

    t.pay(card=Full(t.card))


def stuck(t: Till) -> None:
    card = StuckCounter(t.card)
    t.pay(card=card)
    t.pay(card=card)


def pending_other(t: Till) -> None:
    t.rules(serve_others_while_pending=False)
    other = t.shop.new_card(2, 0, 500)
    with suppress(OutcomeUnknown):
        t.shop.pos.pay(cut_at_debit(other), 200, "R1")
    t.pay()


def unproven(t: Till) -> None:
    with suppress(OutcomeUnknown):
        t.shop.pos.pay(cut_at_debit(t.card), 200, "R1")
    t.shop.restart()
    t.pay(200, "R1")
    t.undo()


def other_card(t: Till) -> None:
    t.shop.pos.pay(t.shop.new_card(2, 0, 500), 100)
    t.undo()


def other_shift(t: Till) -> None:
    t.pay()
    t.shop.terminal.close_shift()
    t.shop.terminal.open_shift("li")
    t.undo()


def paid_then(t: Till, change: Callable[[], object], act: Callable[[], None]) -> None:
    t.pay()
    change()
    act()


def asked_online(t: Till, **office: object) -> None:
    t.pay()
    t.shop.office = t.shop.terminal.office = replace(t.shop.office, **office)  # type: ignore[arg-type]  # its own fields
    t.undo(online=True)


def later(t: Till, ms: int) -> None:
    t.shop.now_ms += ms
    t.shop.lists.created_ms = t.shop.now_ms


def wrong_pins(t: Till, times: int) -> None:
    t.rules(pin_above_fen=50)
    for _ in range(times):
        t.pay(pin="000000")


def no_sam(t: Till) -> None:
    t.shop.sam_card.power_off()
    t.pay()


def full_storage(t: Till) -> None:
    t.shop.free_bytes = 0
    t.pay()


def closed_shift(t: Till) -> None:
    t.shop.terminal.close_shift()
    t.pay()


def nobody(t: Till) -> None:
    t.shop.terminal.close_shift()

    def sign_on(card: Transport) -> Receipt:
        raise AssertionError(f"opened by nobody: {card} {t.shop.terminal.open_shift('')}")

    t.show(sign_on)


def old_list(t: Till) -> None:
    t.shop.lists.created_ms = NOW - 3 * DAY_MS - 1
    t.pay()


def after(change: Callable[[Till], None], charge: int = 100) -> Callable[[Till], None]:
    """A payment once something is different."""

    def act(t: Till) -> None:
        change(t)
        t.pay(charge)

    return act


def ruled(charge: int = 100, **changes: object) -> Callable[[Till], None]:
    """A payment under these rules."""
    return after(lambda t: t.rules(**changes), charge)


def loaded(**changes: object) -> Callable[[Till], None]:
    """A recharge under these rules."""

    def act(t: Till) -> None:
        t.rules(**changes)
        t.recharge()

    return act


def marked(**changes: object) -> Callable[[Till], None]:
    """A payment with a card whose public information says something else."""

    def act(t: Till) -> None:
        rewrite(t.shop, t.card, **({"issuer": issuer_id(ENTERPRISE)} | changes))
        t.pay()

    return act


def listed(reason: Reason) -> Callable[[Till], None]:
    """A payment with a listed card."""

    def act(t: Till) -> None:
        t.lists(reason)
        t.pay()

    return act


TILL: dict[Reason, Callable[[Till], None]] = {
    R.NO_APPLICATION: lambda t: t.pay(card=other_aid(t.card)),
    R.FOREIGN_ENTERPRISE: marked(issuer=issuer_id(8)),
    R.ILLEGAL_CARD: marked(application_serial=bytes(2) + bytes.fromhex("02010000000009AF")),
    R.CARD_REFUSED: stuck,
    R.CARD_BLOCKED: lambda t: t.pay(card=dead(t.card)),
    R.APPLICATION_BLOCKED: after(lambda t: block(t.shop, t.card)),
    R.KEYS_CHANGING: marked(key_set=0),
    R.NOT_YET_VALID: marked(start=date(2026, 9, 22)),
    R.EXPIRED: marked(expiry=date(2026, 9, 20)),
    R.LOST: listed(R.LOST),
    R.CANCELLED: listed(R.CANCELLED),
    R.REPLACED: listed(R.REPLACED),
    R.FRAUD: listed(R.FRAUD),
    R.CLOCK_DOUBTFUL: after(lambda t: setattr(t.shop, "now_ms", NOW - DAY_MS)),
    R.LIST_TOO_OLD: old_list,
    R.STORAGE_FULL: full_storage,
    R.COLLECTION_OVERDUE: after(lambda t: overdue(t.shop)),
    R.PENDING_OTHER_CARD: pending_other,
    R.SAM_FAULT: no_sam,
    R.KEY_VERSION: marked(key_set=9),
    R.SHIFT_CLOSED: closed_shift,
    R.NO_OPERATOR: nobody,
    R.HOST_UNREACHABLE: lambda t: paid_then(
        t, lambda: setattr(t.shop.office, "away", True), lambda: t.undo(online=True)
    ),
    R.HOST_REFUSED: lambda t: asked_online(t, refuse="no"),
    R.AMOUNT_INVALID: lambda t: t.pay(0),
    R.PAYMENT_LIMIT: ruled(payment_limit_fen=99),
    R.DAY_LIMIT: ruled(day_limit_fen=99),
    R.COUNT_LIMIT: lambda t: paid_then(t, lambda: t.rules(day_count=1), t.pay),
    R.OUTSIDE_PERIOD: ruled(prices=Prices((Period(1, "breakfast", 360, 480),))),
    R.PERIOD_LIMIT: ruled(501, prices=LUNCH),
    R.NO_SUCH_ITEM: lambda t: t.pay(Charge(items=(("999", 1),))),
    R.NO_PRICE: lambda t: t.pay(Charge(units=1)),
    R.REPEAT_TAP: lambda t: paid_then(t, lambda: t.rules(repeat_window_ms=5_000), t.pay),
    R.BALANCE: lambda t: t.pay(5_301),
    R.MINIMUM_BALANCE: ruled(5_200, minimum_balance_fen=200),
    R.BALANCE_EXPIRED: ruled(balance_expires=date(2026, 9, 20)),
    R.VOID_BALANCE: lambda t: t.recharge(refuse="void_balance"),
    R.MAXIMUM_BALANCE: loaded(maximum_balance_fen=5_500),
    R.LOAD_LIMIT: loaded(load_limit_fen=999),
    R.COUNTER_FULL: full_counter,
    R.PIN_REQUIRED: ruled(pin_above_fen=50),
    R.PIN_WRONG: lambda t: wrong_pins(t, 1),
    R.PIN_LOCKED: lambda t: wrong_pins(t, 3),
    R.NOTHING_TO_UNDO: lambda t: t.undo(),
    R.UNDO_OTHER_CARD: other_card,
    R.UNDO_TOO_LATE: lambda t: paid_then(t, lambda: later(t, 600_001), t.undo),
    R.UNDO_OTHER_SHIFT: other_shift,
    R.UNDO_UNPROVEN: unproven,
}


def twice(site: Site) -> None:
    site.set_rules(replace(RULES, anti_passback=AntiPassback.HARD))
    card = site.card()
    site.show(card, Direction.IN)
    site.walk_in()
    site.show(card, Direction.IN)


def locked_in(site: Site) -> None:
    site.set_rules(replace(RULES, interlock=frozenset({2})))
    site.doors[2].force()
    site.show(site.card())


def too_early(site: Site) -> None:
    site.set_rules(replace(RULES, first_card=True))
    site.show(site.card())


def out_of_hours(site: Site) -> None:
    site.set_rules(replace(RULES, schedules={1: Week.daily((0, 1))}))
    site.show(site.card(schedule=1))


class Gone(SimulatedDoor):
    """A door whose hardware does not answer any more, as ``terminals.posts.osdp`` finds it."""

    def release(self, duration_ms: int) -> None:
        raise R.DOOR_AWAY.refusal(f"no answer for {duration_ms} ms")


def hardware_gone(site: Site) -> None:
    site.doors[1] = Gone(lambda: site.now_ms)
    site.set_rules(RULES)
    card = site.card()

    def present(shown: Transport) -> Receipt:
        raise AssertionError(f"opened: {site.terminal.present(shown)}")

    site.terminal.serve(Taps(lambda: card), present)


DOOR: dict[Reason, Callable[[Site], object]] = {
    R.NOT_THIS_DOOR: lambda s: s.show(s.card(groups=0)),
    R.OUTSIDE_SCHEDULE: out_of_hours,
    R.ANTI_PASSBACK: twice,
    R.INTERLOCK: locked_in,
    R.FIRST_CARD: too_early,
    R.DOOR_AWAY: hardware_gone,
}


def said(reason: Reason) -> tuple[str, str]:
    """What the page says is on the screen, in Chinese and in English."""
    found = re.search(rf"^\| `{reason.code}` \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert found, f"docs/terminals.md does not explain {reason.code}"
    return found[1], found[2]


def check(shop_or_site: Shop | Site, reason: Reason) -> None:
    notice = shop_or_site.screen.notices[-1]
    zh, en = said(reason)
    assert notice.text("zh") == f"拒绝: {zh} ({reason.code})"
    assert notice.text("en") == f"refused: {en} ({reason.code})"


def test_each_reason_has_one_scene() -> None:
    """No reason without a scene that provokes it, and none with two."""
    assert TILL.keys() | DOOR.keys() == set(Reason)
    assert not TILL.keys() & DOOR.keys()


@pytest.mark.parametrize("reason", TILL, ids=lambda reason: reason.code)
def test_a_till_says_why(tmp_path: Path, reason: Reason) -> None:
    """A till or recharge terminal shows the reason in both languages, and no money is left undecided by it."""
    till = Till(tmp_path)
    TILL[reason](till)
    check(till.shop, reason)
    waiting = [job for job in till.shop.journal.open_jobs() if job.state is JobState.OPEN]
    assert len(waiting) == (reason is R.PENDING_OTHER_CARD)


@pytest.mark.parametrize("reason", DOOR, ids=lambda reason: reason.code)
def test_a_door_says_why(enterprise: Enterprise, tmp_path: Path, reason: Reason) -> None:
    """A door shows the reason in both languages and stays shut."""
    site = Site(enterprise, tmp_path)
    try:
        with pytest.raises(Refused):
            DOOR[reason](site)
        check(site, reason)
        assert site.shut(1)
    finally:
        site.journal.close()
