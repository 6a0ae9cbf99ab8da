"""The POS and the recharge terminal: purses, limits, PIN, sales, shifts, undo, screens."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from cardlib import iso7816 as iso
from cardlib.errors import CardRemoved, Conflict, OutcomeUnknown, Refused
from cardlib.profile import DayCounters, PublicInfo, Purpose, Purse, TransactionType, issuer_id
from cardlib.sam import CardSam, SamPool
from cardlib.transport import Decorator, Tearing, Transport
from simulator.card import Card
from terminals.journal import JobState
from terminals.policy import DAY_MS, PurseOrder
from terminals.reasons import Reason
from terminals.screen import ConsoleScreen, Notice, Say
from tests.cardlib.world import PIN as PIN_BYTES
from tests.cardlib.world import request
from tests.terminals.shop import NOW, Shop, card_serial, refused, with_rules

TODAY = date(2026, 9, 21)


def again(card: Card) -> Card:
    """The card taken away and presented again."""
    card.reset()
    return card


@pytest.mark.parametrize(
    ("order", "amount", "left"),
    [
        (PurseOrder.SUBSIDY_FIRST, 500, (100, 5_000)),
        (PurseOrder.SUBSIDY_FIRST, 1_000, (0, 4_600)),
        (PurseOrder.MAIN_FIRST, 1_000, (600, 4_000)),
        (PurseOrder.MAIN_FIRST, 5_200, (400, 0)),
        (PurseOrder.SUBSIDY_ONLY, 600, (0, 5_000)),
        (PurseOrder.MAIN_ONLY, 5_000, (600, 0)),
    ],
)
@pytest.mark.parametrize("algorithm", [0, 4], ids=["3DES", "SM4"])
def test_purses_are_emptied_in_order(
    tmp_path: Path, order: PurseOrder, amount: int, left: tuple[int, int], algorithm: int
) -> None:
    """A payment takes from the purses as the enterprise set; card, counters and journal agree, each proof is right."""
    shop = Shop(tmp_path, with_rules(purse_order=order), algorithm=algorithm)
    card = shop.new_card(1, 600, 5_000)
    receipt = shop.pos.pay(card, amount)
    assert (receipt.amount_fen, receipt.job.state) == (amount, JobState.DONE)
    assert all(move.mac2_verified and move.tac for move in receipt.moves)
    state = shop.agree(card, 600, 5_000)
    assert state.balances_fen == left
    assert state.counters == DayCounters.of(TODAY, 0, 1, amount, amount)


def test_main_purse_pays_in_composite(tmp_path: Path) -> None:
    """The main purse's counters are written with the money, so that no job is on disk before the intent."""
    shop = Shop(tmp_path)
    receipt = shop.pos.pay(shop.new_card(1, 0, 1_000), 400)
    assert receipt.moves[0].kind is TransactionType.COMPOSITE
    assert receipt.balance_fen == 600


def test_counters_limit_across_terminals(tmp_path: Path) -> None:
    """Counters live on the card: a second terminal with its own journal knows what was spent at the first."""
    (tmp_path / "b").mkdir()
    rules = with_rules(day_limit_fen=1_000, day_count=3)
    one, two = Shop(tmp_path, rules), Shop(tmp_path / "b", rules)
    card = one.new_card(1, 300, 5_000)
    one.pos.pay(card, 700)
    assert refused(lambda: two.pos.pay(again(card), 301)) == "day_limit"
    two.pos.pay(again(card), 100)
    one.pos.pay(again(card), 100)
    assert refused(lambda: two.pos.pay(again(card), 1)) == "count_limit"
    two.now_ms = NOW + DAY_MS
    assert two.pos.pay(again(card), 1_000).amount_fen == 1_000
    assert one.look(card).counters == DayCounters.of(date(2026, 9, 22), 0, 1, 1_000, 1_000)


def test_undo_frees_the_limits(tmp_path: Path) -> None:
    """What was undone no longer counts against the day."""
    shop = Shop(tmp_path, with_rules(day_limit_fen=1_000, day_count=1))
    card = shop.new_card(1, 300, 5_000)
    shop.pos.pay(card, 1_000)
    shop.pos.undo_last(again(card))
    assert shop.look(card).counters.times == 0
    assert shop.pos.pay(again(card), 1_000).amount_fen == 1_000


def pay_100(shop: Shop, card: Card) -> object:
    return shop.pos.pay(card, 100)


def undo_online(shop: Shop, card: Card) -> object:
    return shop.pos.undo_last(card, online=True)


def nothing(shop: Shop, card: Card) -> None:
    pass


Change = Callable[[Shop, Card], object]
REFUSALS: list[tuple[str, Change, Change]] = [
    ("amount_invalid", nothing, lambda s, c: s.pos.pay(c, 0)),
    ("amount_invalid", nothing, lambda s, c: s.pos.pay(c, -5)),
    ("amount_invalid", nothing, lambda s, c: s.pos.pay(c, 2**31)),
    ("balance", nothing, lambda s, c: s.pos.pay(c, 5_601)),
    ("payment_limit", lambda s, _: s.set_rules(with_rules(payment_limit_fen=99)), pay_100),
    ("lost", lambda s, c: s.lists.listed.update({card_serial(c): Reason.LOST}), pay_100),
    ("list_too_old", lambda s, _: setattr(s.lists, "created_ms", None), pay_100),
    ("clock_doubtful", lambda s, _: setattr(s, "now_ms", NOW - DAY_MS), pay_100),
    ("clock_doubtful", lambda s, _: setattr(s, "now_ms", 0), pay_100),
    ("expired", lambda s, _: later(s, 3000 * DAY_MS), pay_100),
    ("shift_closed", lambda s, _: s.terminal.close_shift(), pay_100),
    ("storage_full", lambda s, _: setattr(s, "free_bytes", 0), pay_100),
    ("collection_overdue", lambda s, _: overdue(s), pay_100),
    ("pin_required", lambda s, _: s.set_rules(with_rules(pin_above_fen=50)), pay_100),
    ("nothing_to_undo", nothing, lambda s, c: s.pos.undo_last(c)),
    (
        "host_unreachable",
        lambda s, _: setattr(s.terminal, "office", None),
        lambda s, c: s.pos.undo_last(c, online=True),
    ),
]


def later(shop: Shop, ms: int) -> None:
    shop.now_ms += ms
    shop.lists.created_ms = shop.now_ms


def overdue(shop: Shop) -> None:
    shop.set_rules(with_rules(collect_within_ms=1_000))
    shop.now_ms += 1_001


@pytest.mark.parametrize(("reason", "change", "act"), REFUSALS)
def test_refused_with_a_reason_and_nothing_charged(tmp_path: Path, reason: str, change: Change, act: Change) -> None:
    """A rule that objects leaves card and journal as they were."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 600, 5_000)
    before = shop.look(card)
    change(shop, card)
    assert refused(lambda: act(shop, card)) == reason
    assert shop.look(card) == before
    assert shop.moves() == []
    assert shop.open_moves() == []
    assert shop.journal.open_jobs() == []


def rewrite(shop: Shop, card: Card, **changes: object) -> None:
    """Write other public information on a card, with its own maintenance key."""
    serial = card_serial(card)
    iso.select(card, 0x3F01)
    info = PublicInfo(issuer_id(7), 3, 1, bytes(2) + serial, date(2024, 1, 1), date(2034, 1, 1))
    protect = iso.SecureMessaging(shop.card_key(Purpose.MAINTENANCE, 1, serial))
    new = replace(info, **changes)  # type: ignore[arg-type]
    iso.update_binary(card, 0x0015, new.encode(), protect=protect)
    card.reset()


def block(shop: Shop, card: Card) -> None:
    key = shop.card_key(Purpose.MAINTENANCE, 1, card_serial(card))
    iso.select(card, 0x3F01)
    iso.block_application(card, iso.SecureMessaging(key))
    card.reset()


def other_aid(card: Card) -> Transport:
    """The card of a neighbour: its application answers to another name only."""

    class Foreign(Decorator):
        def transceive(self, command: bytes) -> bytes:
            if command[:4] == b"\x00\xa4\x04\x00":
                return b"\x6a\x82"
            return self.inner.transceive(command)

    return Foreign(card)


def dead(card: Card) -> Transport:
    class Dead(Decorator):
        def transceive(self, command: bytes) -> bytes:
            return b"\x6a\x81"

    return Dead(card)


CARDS: list[tuple[str, Callable[[Shop, Card], Transport | None]]] = [
    ("not_yet_valid", lambda s, c: rewrite(s, c, start=date(2026, 9, 22))),
    ("expired", lambda s, c: rewrite(s, c, expiry=date(2026, 9, 20))),
    ("foreign_enterprise", lambda s, c: rewrite(s, c, issuer=issuer_id(8))),
    ("illegal_card", lambda s, c: rewrite(s, c, application_serial=bytes(2) + bytes.fromhex("02010000000009AF"))),
    ("key_version", lambda s, c: rewrite(s, c, key_set=9)),
    ("application_blocked", block),
    ("no_application", lambda _, c: other_aid(c)),
    ("card_blocked", lambda _, c: dead(c)),
]


@pytest.mark.parametrize(("reason", "change"), CARDS)
def test_cards_that_are_not_accepted(
    tmp_path: Path, reason: str, change: Callable[[Shop, Card], Transport | None]
) -> None:
    """Each kind of unfit card is refused with its own reason by payment, undo and recharge; nothing is begun."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    shown = change(shop, card) or card
    for act in (lambda: shop.pos.pay(shown, 100), lambda: shop.pos.undo_last(shown)):
        assert refused(act) == reason
        again(card)
    assert shop.journal.last_seq == 1
    (tmp_path / "r").mkdir()
    recharge = Shop(tmp_path / "r", recharge=True)
    assert refused(lambda: recharge.recharger.recharge(shown, 100)) == reason


@pytest.mark.parametrize(("digits", "ends"), [("123456", "paid"), ("111111", "pin_wrong"), (None, "pin_required")])
def test_pin_above_a_limit(tmp_path: Path, digits: str | None, ends: str) -> None:
    """Above the limit the holder's PIN is asked for; afterwards the terminal authenticates again and pays."""
    assert bytes.fromhex("123456") == PIN_BYTES
    shop = Shop(tmp_path, with_rules(pin_above_fen=500))
    card = shop.new_card(1, 300, 5_000)
    if ends == "paid":
        assert shop.pos.pay(card, 501, pin=lambda: digits).amount_fen == 501
        shop.agree(card, 300, 5_000)
    else:
        assert refused(lambda: shop.pos.pay(card, 501, pin=lambda: digits)) == ends
        assert shop.look(card).balances_fen == (300, 5_000)
    assert shop.pos.pay(again(card), 500, pin=lambda: pytest.fail("asked below the limit")).amount_fen == 500


def test_pin_is_locked_after_three(tmp_path: Path) -> None:
    """The third wrong PIN locks it; small payments go on."""
    shop = Shop(tmp_path, with_rules(pin_above_fen=500))
    card = shop.new_card(1, 0, 5_000)
    found = [refused(lambda: shop.pos.pay(again(card), 501, pin=lambda: "000000")) for _ in range(4)]
    assert found == ["pin_wrong", "pin_wrong", "pin_locked", "pin_locked"]
    assert shop.pos.pay(again(card), 500).amount_fen == 500


def test_repeat_tap_window(tmp_path: Path) -> None:
    """The same card again at once is a slip; another card, or after the window, or after an undo, is not."""
    shop = Shop(tmp_path, with_rules(repeat_window_ms=5_000))
    card, other = shop.new_card(1, 0, 5_000), shop.new_card(2, 0, 5_000)
    shop.pos.pay(card, 100)
    assert refused(lambda: shop.pos.pay(again(card), 100)) == "repeat_tap"
    shop.pos.undo_last(again(card))
    shop.pos.pay(again(card), 100)
    shop.pos.pay(other, 100)
    shop.now_ms += 5_000
    shop.pos.pay(again(card), 100)


def test_a_sale_is_charged_once(tmp_path: Path) -> None:
    """The same sale number gives the same receipt without a card; another amount under it is a conflict."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    first = shop.pos.pay(card, 100, "R1")
    assert shop.pos.pay(card, 100, "R1") == first
    with pytest.raises(Conflict):
        shop.pos.pay(card, 101, "R1")
    with pytest.raises(Conflict):
        shop.pos.pay(card, 101, "R" * 65)
    shop.pos.pay(again(card), 100, "R2")
    shop.pos.pay(again(card), 100)
    shop.pos.pay(again(card), 100)
    assert shop.look(card).balances_fen == (0, 4_600)


def test_the_rest_that_can_not_be_taken(tmp_path: Path) -> None:
    """When the second purse was spent elsewhere meanwhile, what was taken is told, is not taken again, and undone."""
    (tmp_path / "b").mkdir()
    shop, elsewhere = Shop(tmp_path), Shop(tmp_path / "b", with_rules(purse_order=PurseOrder.MAIN_ONLY))
    card = shop.new_card(1, 300, 500)

    class AfterFirst(Decorator):
        def transceive(self, command: bytes) -> bytes:
            if command[:4] == b"\x80\x50\x03\x02":
                raise CardRemoved("pulled away between the purses")
            return self.inner.transceive(command)

    with pytest.raises(OutcomeUnknown, match="300 of 700"):
        shop.pos.pay(AfterFirst(card), 700, "R1")
    elsewhere.pos.pay(again(card), 200)
    with pytest.raises(Refused, match="300 of 700") as caught:
        shop.pos.pay(again(card), 700, "R1")
    assert caught.value.reason == "balance"
    partly = shop.pos.pay(again(card), 700, "R1")
    assert (partly.job.state, partly.amount_fen) == (JobState.PARTIAL, 300)
    assert shop.look(card).balances_fen == (0, 300)
    receipt = shop.pos.serve(Taps(lambda: again(card)), lambda c: shop.pos.pay(c, 700, "R1"))
    assert (receipt, shop.screen.notices[-1].say) == (partly, Say.PARTLY)
    assert shop.pos.undo_last(again(card)).amount_fen == 300
    assert shop.look(card).balances_fen == (300, 300)


def test_a_listed_card_gets_no_rest(tmp_path: Path) -> None:
    """Between the two purses of a torn payment the card was reported lost: the rest is not taken."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 300, 500)
    with pytest.raises(OutcomeUnknown):
        shop.pos.pay(cut_at_debit(card), 700, "R1")
    shop.lists.listed[card_serial(card)] = Reason.LOST
    assert refused(lambda: shop.pos.pay(again(card), 700, "R1")) == "lost"
    assert shop.look(card).balances_fen == (0, 500)
    assert shop.open_moves() == []


def test_a_blocked_card_still_proves_its_payment(tmp_path: Path) -> None:
    """A card blocked right after a torn payment is refused, and the payment is closed by its proof in the SAM."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 500)
    with pytest.raises(OutcomeUnknown):
        shop.pos.pay(cut_at_debit(card), 200, "R1")
    block(shop, card)
    assert refused(lambda: shop.pos.pay(card, 200, "R1")) == "application_blocked"
    assert shop.pos.pay(again(card), 200, "R1").moves[0].mac2_verified


def test_collected_and_pruned(tmp_path: Path) -> None:
    """Entries that the back office has are forgotten once they are old; the till goes on."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 500)
    shop.pos.pay(card, 100)
    last = shop.journal.last_seq
    assert shop.terminal.collected(last) == 0
    later(shop, 91 * DAY_MS)
    assert shop.terminal.collected(last) == last
    shop.pos.pay(again(card), 100)
    shop.journal.verify()
    with pytest.raises(Conflict):
        shop.terminal.collected(shop.journal.last_seq + 1)


# --- undo --------------------------------------------------------------------------------------------------------


def test_undo_is_of_the_last_payment_only(tmp_path: Path) -> None:
    """Another card, the payment before the last, twice, too late, and another shift are refused."""
    shop = Shop(tmp_path)
    card, other = shop.new_card(1, 300, 5_000), shop.new_card(2, 0, 5_000)
    shop.pos.pay(card, 100)
    assert refused(lambda: shop.pos.undo_last(other)) == "undo_other_card"
    shop.pos.pay(again(card), 700)
    assert shop.pos.undo_last(again(card)).amount_fen == 700
    assert refused(lambda: shop.pos.undo_last(again(card))) == "nothing_to_undo"
    shop.pos.pay(again(card), 50)
    shop.now_ms += shop.rules.undo_window_ms + 1
    assert refused(lambda: shop.pos.undo_last(again(card))) == "undo_too_late"
    shop.pos.pay(again(card), 50)
    shop.terminal.close_shift()
    shop.terminal.open_shift("li")
    assert refused(lambda: shop.pos.undo_last(again(card))) == "undo_other_shift"
    shop.agree(card, 300, 5_000)


def test_undo_offline_needs_a_proven_payment_and_a_fresh_list(tmp_path: Path) -> None:
    """A payment whose MAC2 was not checked, and any while the list is between A and B, can only be undone online."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    shop.pos.pay(card, 100)
    shop.lists.created_ms = NOW - 2 * DAY_MS
    assert refused(lambda: shop.pos.undo_last(again(card))) == "list_too_old"
    shop.lists.created_ms = NOW
    with pytest.raises(OutcomeUnknown):
        shop.pos.pay(cut_at_debit(again(card)), 200, "R1")
    shop.restart()
    assert shop.pos.pay(again(card), 200, "R1").recovered
    assert refused(lambda: shop.pos.undo_last(again(card))) == "undo_unproven"
    assert shop.pos.undo_last(again(card), online=True).amount_fen == 200
    assert [move.terminal_seq for move in shop.office.undone] == [shop.moves()[1].terminal_seq]
    shop.agree(card, 0, 5_000)


class _AtDebit(Decorator):
    def transceive(self, command: bytes) -> bytes:
        answer = self.inner.transceive(command)
        if command[:2] == b"\x80\x54":
            raise CardRemoved("pulled away")
        return answer


def cut_at_debit(card: Transport) -> Transport:
    """Lose the answer to the command that moves the money."""
    return _AtDebit(card)


def test_recovered_at_once_is_proven(tmp_path: Path) -> None:
    """While the SAM still has the purchase open, a recovered payment is verified and can be undone offline."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    with pytest.raises(OutcomeUnknown):
        shop.pos.pay(cut_at_debit(card), 200, "R1")
    receipt = shop.pos.pay(again(card), 200, "R1")
    assert receipt.recovered
    assert receipt.moves[0].mac2_verified
    assert shop.pos.undo_last(again(card)).amount_fen == 200


@pytest.mark.parametrize(
    ("refuse", "away", "reason"), [("no_such_payment", False, "host_refused"), ("", True, "host_unreachable")]
)
def test_undo_online_is_the_office_s_decision(tmp_path: Path, refuse: str, away: bool, reason: str) -> None:
    """What the books do not know, or a line that is cut, leaves the payment as it was."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    shop.pos.pay(card, 200)
    shop.office.refuse, shop.office.away = refuse, away
    assert refused(lambda: shop.pos.undo_last(again(card), online=True)) == reason
    assert shop.look(card).balances_fen == (0, 4_800)
    assert shop.journal.open_jobs() == []
    shop.office.refuse, shop.office.away = "", False
    assert shop.pos.undo_last(again(card), online=True).amount_fen == 200


def test_undo_names_its_purchase(tmp_path: Path) -> None:
    """The journal pairs each load of an undo with the purchase it gives back, for settlement."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 300, 5_000)
    paid = shop.pos.pay(card, 700).moves
    given = shop.pos.undo_last(again(card)).moves
    assert [move.undo_of for move in given] == [move.origin for move in reversed(paid)]
    assert [move.purse for move in given] == [Purse.MAIN, Purse.SUBSIDY]


# --- recharge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purse", Purse)
def test_recharge(tmp_path: Path, purse: Purse) -> None:
    """The host's load reaches the purse asked for, the office was asked first, the same sale loads once."""
    shop = Shop(tmp_path, recharge=True)
    card = shop.new_card(1, 100, 200)
    receipt = shop.recharger.recharge(card, 1_000, "C1", purse)
    assert receipt.moves[0].mac2_verified
    assert shop.recharger.recharge(again(card), 1_000, "C1", purse) == receipt
    assert shop.agree(card, 100, 200).balances_fen == ((1_100, 200) if purse is Purse.SUBSIDY else (100, 1_200))
    assert shop.office.loads == [(card_serial(card), 1_000, "C1")]


@pytest.mark.parametrize(
    ("reason", "act"),
    [
        ("host_unreachable", lambda s: setattr(s.office, "away", True)),
        ("host_unreachable", lambda s: setattr(s.terminal, "office", None)),
        ("host_refused", lambda s: setattr(s.office, "refuse", "unknown_card")),
        ("cancelled", lambda s: s.lists.listed.update({s.serial: Reason.CANCELLED})),
        ("load_limit", lambda s: s.set_rules(with_rules(load_limit_fen=999))),
        ("maximum_balance", lambda s: s.set_rules(with_rules(maximum_balance_fen=1_199))),
        ("shift_closed", lambda s: s.terminal.close_shift()),
        ("storage_full", lambda s: setattr(s, "free_bytes", 0)),
    ],
)
def test_recharge_refused(tmp_path: Path, reason: str, act: Callable[[Shop], object]) -> None:
    """A refused recharge leaves card and journal as they were: the cash goes back."""
    shop = Shop(tmp_path, recharge=True)
    card = shop.new_card(1, 0, 200)
    shop.serial = card_serial(card)  # type: ignore[attr-defined]
    act(shop)
    assert refused(lambda: shop.recharger.recharge(card, 1_000)) == reason
    assert shop.look(card).balances_fen == (0, 200)
    assert (shop.moves(), shop.journal.open_jobs()) == ([], [])


# --- SAM, shifts, tap loop ---------------------------------------------------------------------------------------


def test_sam_faults_have_their_own_word(tmp_path: Path) -> None:
    """A dead SAM, another terminal's, and one that is never free are not the card's fault, and nothing is charged."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    shop.sam_card.power_off()
    assert refused(lambda: shop.pos.pay(card, 100)) == "sam_fault"
    shop.restart()
    real = shop.sam._info
    shop.sam._info = real._replace(terminal=bytes(6))
    assert refused(lambda: shop.pos.pay(again(card), 100)) == "sam_fault"
    shop.sam._info = real
    pool = SamPool([lambda: CardSam(shop.sam_card, lambda: PIN_BYTES)])
    shop.terminal._sams = pool
    assert shop.pos.pay(again(card), 100).amount_fen == 100
    pool.close()
    assert refused(lambda: shop.pos.pay(again(card), 100)) == "sam_fault"
    assert shop.look(card).balances_fen == (0, 4_900)


def test_shift_totals(tmp_path: Path) -> None:
    """X and Z totals are of this shift, per operation and purse; operators must sign on."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 300, 5_000)
    shop.pos.pay(card, 700)
    shop.pos.pay(again(card), 50)
    shop.pos.undo_last(again(card))
    totals = {
        "pay_subsidy_count": 1, "pay_subsidy_fen": 300, "pay_main_count": 2, "pay_main_fen": 450,
        "undo_offline_main_count": 1, "undo_offline_main_fen": 50,
    }  # fmt: skip
    assert shop.terminal.totals() == totals
    assert shop.terminal.close_shift() == totals
    assert refused(shop.terminal.totals) == "shift_closed"
    assert refused(lambda: shop.terminal.open_shift("")) == "no_operator"
    assert shop.terminal.open_shift("li") == 2
    assert shop.terminal.totals() == {}


class Taps:
    """A card source that presents these, then gives up."""

    def __init__(self, *taps: Callable[[], Transport]) -> None:
        self.taps = list(taps)

    def wait(self) -> Transport | None:
        return self.taps.pop(0)() if self.taps else None


def test_tap_loop_asks_again_until_it_knows(tmp_path: Path) -> None:
    """A torn payment is asked for again, another card is turned away meanwhile, the receipt is shown."""
    shop = Shop(tmp_path)
    card, other = shop.new_card(1, 0, 5_000), shop.new_card(2, 0, 5_000)
    taps = Taps(
        lambda: Tearing(again(card), 2, before=True),
        lambda: cut_at_debit(again(card)),
        lambda: again(other),
        lambda: again(card),
    )
    receipt = shop.pos.serve(taps, lambda c: shop.pos.pay(c, 700, "R1"))
    assert receipt.amount_fen == 700
    assert [(n.say, n.reason) for n in shop.screen.notices] == [
        (Say.PRESENT, None),
        (Say.PRESENT_AGAIN, None),
        (Say.PRESENT_AGAIN, None),
        (Say.REFUSED, Reason.PENDING_OTHER_CARD),
        (Say.PAID, None),
    ]
    assert shop.screen.notices[-1] == Notice(Say.PAID, 700, 4_300)
    assert shop.look(other).balances_fen == (0, 5_000)


def test_tap_loop_given_up(tmp_path: Path) -> None:
    """Giving up raises what is known: nothing happened, the outcome is unknown, or the refusal."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    with pytest.raises(CardRemoved):
        shop.pos.serve(Taps(), lambda c: shop.pos.pay(c, 700, "R1"))
    with pytest.raises(Refused):
        shop.pos.serve(Taps(lambda: again(card)), lambda c: shop.pos.pay(c, 70_000, "R1"))
    torn = Taps(lambda: cut_at_debit(again(card)))
    with pytest.raises(OutcomeUnknown):
        shop.pos.serve(torn, lambda c: shop.pos.pay(c, 700, "R1"))
    assert shop.screen.notices[-1] == Notice(Say.PRESENT_AGAIN)


def test_notices_in_both_languages() -> None:
    """Every notice has a line in Chinese and in English, with reason, amount and balance."""
    out = io.StringIO()
    ConsoleScreen(out).show(Notice(Say.PAID, 1_205, 30))
    ConsoleScreen(out, "en").show(Notice(Say.REFUSED, reason=Reason.LOST))
    assert out.getvalue() == "消费成功 12.05, 余额 0.30\nrefused: card reported lost (lost)\n"
    assert all(Notice(say).text(language) for say in Say for language in ("zh", "en"))


def test_counter_full(tmp_path: Path) -> None:
    """A card at the end of its counter is refused with that reason, and its subsidy counters are put back."""
    shop = Shop(tmp_path)
    for subsidy, main in ((5_000, 0), (0, 5_000)):
        card = shop.new_card(1 + main, subsidy, main)

        class Full(Decorator):
            def transceive(self, command: bytes) -> bytes:
                return b"\x94\x02" if command[:2] == b"\x80\x50" else self.inner.transceive(command)

        assert refused(lambda c=card, f=Full: shop.pos.pay(f(c), 100)) == "counter_full"  # type: ignore[misc]
        assert shop.look(card).counters.day_spent_fen == 0
        assert shop.journal.open_jobs() == []


def test_request_goes_into_the_record(tmp_path: Path) -> None:
    """Sale number, list version, local and UTC time of a payment are what the terminal knew."""
    shop = Shop(tmp_path)
    move = shop.pos.pay(shop.new_card(1, 0, 5_000), 100, "R1").moves[0]
    assert (move.request_id, move.list_version, move.utc_ms) == ("R1", 3, NOW)
    assert move.when == bytes.fromhex("20260921221320")
    assert request(Purse.MAIN, 1).request_id == ""
