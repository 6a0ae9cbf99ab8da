"""Settlement names what is wrong, posts what is right, and does so once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backoffice import journals, ledger, reconcile, registry, settlement
from backoffice.database import Database
from backoffice.ledger import card_account, takings_account
from backoffice.registry import TerminalKind
from backoffice.sequences import Position
from backoffice.settlement import Settled, Verdict, day_of
from cardlib.errors import FormatError, NotFound, Refused
from cardlib.profile import Purse, TransactionType
from cardlib.records import Event, Outcome
from tests.backoffice.kit import ADMIN, ENTERPRISE, SECOND, T0, Kit, Purses, Till, card_serial, sam_serial

DAY = day_of(T0)
HOUR = 3_600_000


@pytest.fixture
def kit(db: Database, tmp_path: Path) -> Iterator[Kit]:
    """An enterprise without cards or tills yet."""
    made = Kit(db, tmp_path)
    with made.store:
        yield made


def collect(kit: Kit, *tills: Till) -> None:
    for till in tills:
        journals.collect(kit.db, ENTERPRISE, till.file())


def settle(kit: Kit) -> Settled:
    return settlement.settle(kit.db, ENTERPRISE, kit.host)


def balances(kit: Kit) -> dict[str, int]:
    with kit.db.read() as tx:
        ledger.verify(tx, ENTERPRISE)
        return ledger.balances(tx, ENTERPRISE)


def main(card: Purses) -> str:
    return card_account(card.serial, Purse.MAIN)


def named(kit: Kit) -> dict[str, str]:
    with kit.db.read() as tx:
        return {finding.record_id: finding.verdict for finding in settlement.findings(tx, ENTERPRISE)}


def test_a_good_day_is_posted_and_named_nothing(kit: Kit) -> None:
    """Loads, payments of both purses and an undo end in the right accounts; nothing is found or missing."""
    pos, recharge = kit.till(1), kit.till(2, TerminalKind.RECHARGE)
    card = kit.card(1)
    recharge.note("shift_open", "4 anna")
    card.load(recharge, 5000)
    card.load(recharge, 700, purse=Purse.SUBSIDY)
    card.pay(pos, 1200)
    card.pay(pos, 300, purse=Purse.SUBSIDY)
    paid = card.pay(pos, 99)
    card.do(pos, TransactionType.LOAD_EP, 99, undo_of=paid.origin)
    collect(kit, pos, recharge)
    assert settle(kit).verdicts == {Verdict.POSTED: 6}
    assert balances(kit) == {
        main(card): 3800,
        card_account(card.serial, Purse.SUBSIDY): 400,
        ledger.cash_account(recharge.terminal, "4"): -5700,
        takings_account(pos.terminal, DAY): 1500,
    }
    assert named(kit) == {}
    with kit.db.read() as tx:
        assert reconcile.gaps(tx, ENTERPRISE) == []
        assert reconcile.reconcile(tx, ENTERPRISE) == []
        assert reconcile.position(tx, ENTERPRISE, card.serial, Purse.MAIN) == Position(3800, 2, 2)


def test_again_changes_nothing(kit: Kit) -> None:
    """The same journals collected and settled again, whole or in part, leave every table as it was."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 5000)
    for n in range(5):
        card.pay(pos, 10 + n)
    card.torn(pos, 7)
    collect(kit, pos, recharge)
    settle(kit)
    before = kit.dump()
    again = journals.collect(kit.db, ENTERPRISE, pos.file())
    assert (again.records, again.closings, again.duplicates) == (0, 0, len(pos.entries))
    journals.collect(kit.db, ENTERPRISE, pos.file(3, 6))
    assert settle(kit) == Settled({}, 0)
    assert kit.dump() == before


def test_planted_wrongs_are_named_and_nothing_else(kit: Kit) -> None:
    """A forged TAC, an unknown card, terminal and SAM, a lost SAM, a lost card, a repeat and a conflict: each named."""
    pos, recharge, stray = kit.till(1), kit.till(2, TerminalKind.RECHARGE), Till(7)
    thief = kit.till(3)
    swapped = kit.till(4)
    good, lost, unknown = kit.card(1), kit.card(2), Purses(kit.store, card_serial(99))
    for card in (good, lost, unknown):
        card.load(recharge, 1000)
    good.pay(pos, 100)
    forged = good.intent(pos, TransactionType.COMPOSITE, 55, T0)
    ref = pos.append(Event.INTENT, None, forged)
    pos.append(Event.COMMITTED, ref, replace(forged, tac=b"fake", mac2_verified=True, outcome=Outcome.COMMITTED))
    foreign = unknown.pay(pos, 50)
    at_stray = good.pay(stray, 20)
    swapped.sam = sam_serial(77)
    at_swapped = good.pay(swapped, 21)
    before = good.pay(thief, 5, T0 + 999)
    at_thief = good.pay(thief, 30, T0 + 1000)
    kit.turn(lost.serial, "active", "lost", T0 + 5000)
    lost.pay(pos, 40, T0 + 4999)
    late = lost.pay(pos, 60, T0 + 5000)
    good.pay(pos, 1, T0 + HOUR)
    with kit.db.write() as tx:
        registry.lose_sam(tx, ADMIN, ENTERPRISE, thief.sam, T0 + 1000)
    collect(kit, pos, recharge, stray, swapped, thief)
    twice = Till(1)
    twice.append(Event.INTENT, None, replace(before, terminal=pos.terminal, terminal_seq=1, sam_serial=pos.sam))
    conflict = journals.collect(kit.db, ENTERPRISE, twice.file())
    settle(kit)
    loads = [r for r in named(kit) if r.startswith("4c")]
    assert {r: v for r, v in named(kit).items() if r not in loads and v != "conflict"} == {
        forged.origin.hex(): "forged",
        foreign.origin.hex(): "unknown_card",
        at_stray.origin.hex(): "unknown_terminal",
        at_swapped.origin.hex(): "unknown_sam",
        at_thief.origin.hex(): "sam_lost",
        late.origin.hex(): "card_state",
    }
    assert len(loads) == 1
    assert unknown.serial.hex() in loads[0]
    assert len(conflict.conflicts) == 2
    assert list(named(kit).values()).count("conflict") == 2
    found = balances(kit)
    assert found[main(good)] == 1000 - 100 - 5 - 1
    assert found[main(lost)] == 960
    assert main(unknown) not in found
    with kit.db.read() as tx:
        differences = reconcile.reconcile(tx, ENTERPRISE)
        assert reconcile.gaps(tx, ENTERPRISE) == []
    assert [(d.card_serial, d.difference_fen, d.unexplained_fen) for d in differences] == sorted(
        [(good.serial, -71, 0), (lost.serial, -60, 0), (unknown.serial, 950, 0)]
    )
    before_again = kit.dump()
    settle(kit)
    assert kit.dump() == before_again


def test_unknown_terminal_is_settled_once_it_is_registered(kit: Kit) -> None:
    """What was refused because a till was not registered is posted after it is, and once."""
    recharge, card = kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    pos = Till(1)
    card.pay(pos, 100)
    collect(kit, pos, recharge)
    settle(kit)
    assert balances(kit)[main(card)] == 1000
    kit.till(1)
    assert settle(kit).verdicts == {Verdict.POSTED: 1}
    assert balances(kit)[main(card)] == 900
    assert named(kit) == {}


def test_gap_is_named_with_its_amount_and_closed_by_the_missing_journal(kit: Kit) -> None:
    """A journal not collected shows as missing counters with the amount between; it closes when the journal comes."""
    near, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    card.pay(near, 100, T0 + 1)
    card.pay(far, 30, T0 + 2)
    card.pay(far, 40, T0 + 3)
    card.pay(near, 5, T0 + 4)
    collect(kit, near, recharge)
    settle(kit)
    with kit.db.read() as tx:
        (gap,) = reconcile.gaps(tx, ENTERPRISE)
        (difference,) = reconcile.reconcile(tx, ENTERPRISE)
        assert [b.terminal for b in reconcile.behind(tx, ENTERPRISE, T0)] == [far.terminal]
    assert gap == (card.serial, Purse.MAIN, Position(900, 1, 1), "1-2", "", -70)
    assert (difference.books_fen, difference.card_fen, difference.unexplained_fen) == (895, 825, 0)
    collect(kit, far)
    settle(kit)
    with kit.db.read() as tx:
        assert reconcile.gaps(tx, ENTERPRISE) == []
        assert reconcile.reconcile(tx, ENTERPRISE) == []
    assert balances(kit)[main(card)] == 825


def test_missing_load_is_an_alarm(kit: Kit) -> None:
    """A load that nobody reported shows as a missing online counter with the money that came from nowhere."""
    pos, hidden, recharge, card = kit.till(1), Till(8), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000, T0 + 1)
    card.load(hidden, 500, T0 + 2)
    card.pay(pos, 100, T0 + 3)
    card.load(recharge, 10, T0 + 4)
    collect(kit, pos, recharge)
    settle(kit)
    with kit.db.read() as tx:
        (gap,) = reconcile.gaps(tx, ENTERPRISE)
    assert (gap.missing_offline, gap.missing_online, gap.outstanding_fen) == ("", "1", 500)


def test_balance_that_does_not_follow_is_unexplained(kit: Kit) -> None:
    """A record whose balance lies, with no counter missing, is listed as a difference without a cause."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    move = replace(card.intent(pos, TransactionType.COMPOSITE, 10, T0), balance_before_fen=990)
    card.balance[Purse.MAIN] = 990
    ref = pos.append(Event.INTENT, None, move)
    pos.append(Event.COMMITTED, ref, card.perform(move))
    collect(kit, pos, recharge)
    settle(kit)
    with kit.db.read() as tx:
        (difference,) = reconcile.reconcile(tx, ENTERPRISE)
    assert (difference.difference_fen, difference.unexplained_fen, difference.causes) == (-10, -10, ())


@pytest.mark.parametrize("done", [True, False])
def test_doubt_is_closed_by_the_card_itself(kit: Kit, done: bool) -> None:
    """An unknown outcome stands in the in-doubt account until the card's next payment tells how it ended."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    card.torn(pos, 70, T0 + 1, done=done)
    collect(kit, pos, recharge)
    settle(kit)
    assert balances(kit)[ledger.IN_DOUBT] == 70
    assert balances(kit)[main(card)] == 930
    card.pay(pos, 5, T0 + 2)
    collect(kit, pos)
    settle(kit)
    after = balances(kit)
    assert after[ledger.IN_DOUBT] == 0
    assert after[main(card)] == (925 if done else 995)
    assert after[takings_account(pos.terminal, DAY)] == (75 if done else 5)


@pytest.mark.parametrize("done", [True, False])
def test_doubt_is_closed_by_the_terminal(kit: Kit, done: bool) -> None:
    """The closing entry of a later file ends the doubt in the same way."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    ref, move = card.torn(pos, 70, T0 + 1, done=done)
    collect(kit, pos, recharge)
    settle(kit)
    if done:
        pos.append(Event.COMMITTED, ref, move)
    else:
        pos.append(Event.NOT_DONE, ref, None, "the card's counter did not move")
    assert journals.collect(kit.db, ENTERPRISE, pos.file(ref + 1)).closings == 1
    settle(kit)
    assert balances(kit)[ledger.IN_DOUBT] == 0
    assert balances(kit)[main(card)] == (930 if done else 1000)


def test_inference_is_taken_back_when_another_move_proves_it_wrong(kit: Kit) -> None:
    """A torn payment taken for done, because another till's equal payment stood unseen, is reversed when that comes."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    card.torn(pos, 70, T0 + 1, done=False)
    card.pay(far, 70, T0 + 2)
    card.pay(pos, 5, T0 + 3)
    collect(kit, pos, recharge)
    settle(kit)
    assert balances(kit)[takings_account(pos.terminal, DAY)] == 75
    collect(kit, far)
    settle(kit)
    after = balances(kit)
    assert (after[main(card)], after[takings_account(far.terminal, DAY)]) == (925, 70)
    assert after[takings_account(pos.terminal, DAY)] == 5


def test_wrong_inference_of_another_amount_is_followed_anew(kit: Kit) -> None:
    """Two unseen payments that add up to a torn one made it look done: once they come, all that followed is right."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 230)
    card.torn(pos, 40, T0 + 1, done=False)
    card.pay(far, 13, T0 + 2)
    card.pay(far, 27, T0 + 3)
    card.load(recharge, 27, T0 + 4)
    card.pay(pos, 1, T0 + 5)
    collect(kit, recharge, pos)
    settle(kit)
    assert balances(kit)[takings_account(pos.terminal, DAY)] == 41
    collect(kit, far)
    settle(kit)
    after = balances(kit)
    assert (after[main(card)], after[takings_account(pos.terminal, DAY)]) == (216, 1)
    assert named(kit) == {}
    with kit.db.read() as tx:
        assert (reconcile.gaps(tx, ENTERPRISE), reconcile.reconcile(tx, ENTERPRISE)) == ([], [])
        assert reconcile.position(tx, ENTERPRISE, card.serial, Purse.MAIN) == Position(216, 3, 2)


def test_denied_inference_is_a_gap_until_its_number_is_explained(kit: Kit) -> None:
    """A payment taken for done that its card denies leaves its number missing, by name, with the amount."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    ref, _ = card.torn(pos, 70, T0 + 1, done=False)
    card.pay(far, 70, T0 + 2)
    card.pay(pos, 5, T0 + 3)
    collect(kit, pos, recharge)
    settle(kit)
    pos.append(Event.NOT_DONE, ref, None, "another till's proof stood there")
    collect(kit, pos)
    settle(kit)
    with kit.db.read() as tx:
        (gap,) = reconcile.gaps(tx, ENTERPRISE)
    assert gap == (card.serial, Purse.MAIN, Position(1000, 0, 1), "0", "", -70)
    collect(kit, far)
    settle(kit)
    assert (balances(kit)[main(card)], named(kit)) == (925, {})
    with kit.db.read() as tx:
        assert reconcile.gaps(tx, ENTERPRISE) == []


def test_of_two_unknown_payments_under_one_number_the_balance_tells_which(kit: Kit) -> None:
    """Both stand in doubt until the card's next payment; a rival is not given back because another was told first."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    card.torn(pos, 70, T0 + 1, done=False)
    card.torn(far, 30, T0 + 2, done=True)
    collect(kit, pos, far, recharge)
    settle(kit)
    assert balances(kit)[ledger.IN_DOUBT] == 100
    card.pay(pos, 5, T0 + 3)
    collect(kit, pos)
    settle(kit)
    after = balances(kit)
    assert (after[main(card)], after[ledger.IN_DOUBT]) == (965, 0)
    assert (after[takings_account(far.terminal, DAY)], after[takings_account(pos.terminal, DAY)]) == (30, 5)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("booked", ["no", "doubt", "yes", "back"])
def test_any_state_leads_to_any(kit: Kit, booked: str, outcome: Outcome) -> None:
    """Whatever a record's amount was booked as, any verdict moves it from there; nothing stops the run."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    paid = card.pay(pos, 70, T0 + 1)
    collect(kit, pos, recharge)
    with kit.db.write() as tx:
        sql = "UPDATE transaction_record SET booked = ?, outcome = ? WHERE record_id = ?"
        tx.execute(sql, (booked, outcome, paid.origin.hex()))
    settle(kit)
    assert sum(balances(kit).values()) == 0
    with kit.db.read() as tx:
        verdict, now = tx.all(
            "SELECT verdict, booked FROM transaction_record WHERE record_id = ?", (paid.origin.hex(),)
        )[0]
    assert now == {"posted": "yes", "in_doubt": "doubt"}.get(verdict, "no" if booked == "no" else "back")


def test_given_back_and_taken_again(kit: Kit) -> None:
    """A payment given back since another seemed to have used its number is posted once its card proves it."""
    near, far, pos, recharge = kit.till(1), kit.till(5), kit.till(6), kit.till(2, TerminalKind.RECHARGE)
    card = kit.card(1)
    card.load(recharge, 1000)
    card.torn(near, 70, T0 + 1, done=False)
    ref, move = card.torn(far, 70, T0 + 2, done=True)
    card.pay(pos, 5, T0 + 3)
    collect(kit, near, far, recharge)
    settle(kit)
    collect(kit, pos)
    settle(kit)
    assert (balances(kit)[takings_account(near.terminal, DAY)], balances(kit)[ledger.IN_DOUBT]) == (70, 0)
    far.append(Event.COMMITTED, ref, move)
    collect(kit, far)
    settle(kit)
    after = balances(kit)
    assert (after[takings_account(near.terminal, DAY)], after[takings_account(far.terminal, DAY)]) == (0, 70)
    assert (after[main(card)], named(kit)) == (925, {})


def test_two_undos_of_a_closed_payment_in_one_run(kit: Kit) -> None:
    """The second is told from the first even where the payment was settled long before."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    paid = card.pay(pos, 30, T0 + 1)
    collect(kit, pos, recharge)
    settle(kit)
    for n in (2, 3):
        card.do(pos, TransactionType.LOAD_EP, 30, T0 + n, undo_of=paid.origin)
    collect(kit, pos)
    settle(kit)
    assert (balances(kit)[ledger.DIFFERENCES], balances(kit)[takings_account(pos.terminal, DAY)]) == (-30, 0)


def test_undo_of_nothing_goes_to_differences(kit: Kit) -> None:
    """A second undo of one payment is the card's money all the same: booked as a difference, by name."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    paid = card.pay(pos, 30, T0 + 1)
    for n in (2, 3):
        card.do(pos, TransactionType.LOAD_EP, 30, T0 + n, undo_of=paid.origin)
    collect(kit, pos, recharge)
    settle(kit)
    after = balances(kit)
    assert (after[ledger.DIFFERENCES], after[takings_account(pos.terminal, DAY)], after[main(card)]) == (-30, 0, 1030)
    assert list(named(kit).values()) == ["posted"]


def test_undo_waits_for_its_payment(kit: Kit) -> None:
    """An undo whose payment is not collected yet is named unpaired and posted once the payment is."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    paid = card.pay(pos, 30, T0 + 1)
    card.do(recharge, TransactionType.LOAD_EP, 30, T0 + 2, undo_of=paid.origin)
    collect(kit, recharge)
    settle(kit)
    assert balances(kit)[main(card)] == 1000
    assert list(named(kit).values()) == ["unpaired"]
    collect(kit, pos)
    settle(kit)
    assert balances(kit)[main(card)] == 1000
    assert balances(kit)[takings_account(pos.terminal, DAY)] == 0
    assert named(kit) == {}


def test_a_load_told_by_two_is_one(kit: Kit) -> None:
    """The host's and the terminal's report of one load are one load; the second is a duplicate, by name."""
    recharge, office, card = kit.till(2, TerminalKind.RECHARGE), kit.till(9, TerminalKind.OFFICE), kit.card(1)
    done = card.load(recharge, 1000)
    ref = office.append(Event.INTENT, None, journals.intent_of(replace(done, terminal=office.terminal)))
    assert ref
    again = recharge.append(Event.INTENT, None, journals.intent_of(done), utc_ms=T0 + 9)
    recharge.append(Event.COMMITTED, again, done, utc_ms=T0 + 9)
    collect(kit, recharge)
    settle(kit)
    assert balances(kit)[main(card)] == 1000
    assert list(named(kit).values()) == ["duplicate"]


def test_cloned_card_is_named(kit: Kit) -> None:
    """Two proven payments under one counter of one card are both posted and the second is named."""
    pos, recharge, card = kit.till(1), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    twin = Purses(kit.store, card.serial, dict(card.balance), dict(card.offline), dict(card.online))
    card.pay(pos, 10, T0 + 1)
    clone = twin.pay(pos, 20, T0 + 2)
    collect(kit, pos, recharge)
    settle(kit)
    assert named(kit) == {clone.origin.hex(): "posted"}
    assert balances(kit)[main(card)] == 970


def test_damaged_and_foreign_files_change_nothing(kit: Kit) -> None:
    """Cut, edited and foreign journal files are refused whole."""
    pos, card = kit.till(1), kit.card(1)
    card.pay(pos, 0)
    raw = pos.file()
    before = kit.dump()
    for bad in (raw[:-1], raw[:40], b"", bytes([raw[0] ^ 1]) + raw[1:], raw[:90] + bytes([raw[90] ^ 1]) + raw[91:]):
        with pytest.raises(FormatError):
            journals.collect(kit.db, ENTERPRISE, bad)
    with pytest.raises(Refused):
        journals.collect(kit.db, ENTERPRISE + 1, raw)
    assert kit.dump() == before


def test_day_closes_when_journals_are_complete_or_accepted(kit: Kit, clock: object) -> None:
    """A day waits for every till by name; accepted absences are kept; late records count for the day they come."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    tomorrow = T0 + 24 * HOUR
    card.load(recharge, 1000)
    card.pay(far, 10, T0 + 1)
    card.pay(pos, 20, T0 + 2)
    pos.note("shift_close", "1", tomorrow)
    recharge.note("shift_close", "1", tomorrow)
    with pytest.raises(Refused, match="not over"), kit.db.write() as tx:
        reconcile.close_day(tx, ADMIN, ENTERPRISE, DAY, {})
    clock.forward(24 * HOUR)  # type: ignore[attr-defined]
    collect(kit, pos, recharge)
    with pytest.raises(Refused, match="not settled"), kit.db.write() as tx:
        reconcile.close_day(tx, ADMIN, ENTERPRISE, DAY, {})
    settle(kit)
    with pytest.raises(Refused, match=far.terminal.hex()) as refused, kit.db.write() as tx:
        reconcile.close_day(tx, ADMIN, ENTERPRISE, DAY, {})
    assert refused.value.reason == "incomplete"
    with kit.db.write() as tx:
        assert reconcile.close_day(tx, ADMIN, ENTERPRISE, DAY, {far.terminal: "burnt"})
        assert not reconcile.close_day(tx, ADMIN, ENTERPRISE, DAY, {})
        assert ledger.verify(tx, ENTERPRISE).unsealed == 0
    collect(kit, far)
    settle(kit)
    assert takings_account(far.terminal, DAY) not in balances(kit)
    assert balances(kit)[takings_account(far.terminal, day_of(tomorrow))] == 10


def test_gap_given_up_by_two_operators(kit: Kit) -> None:
    """When a journal is gone for good, two operators let the books follow the card; the rest is a difference."""
    pos, far, recharge, card = kit.till(1), kit.till(5), kit.till(2, TerminalKind.RECHARGE), kit.card(1)
    card.load(recharge, 1000)
    card.pay(far, 10, T0 + 1)
    card.pay(pos, 20, T0 + 2)
    collect(kit, pos, recharge)
    settle(kit)
    with pytest.raises(Refused), kit.db.write() as tx:
        reconcile.accept_gap(tx, ADMIN, ADMIN, ENTERPRISE, card.serial, Purse.MAIN, "burnt")
    with kit.db.write() as tx:
        assert reconcile.accept_gap(tx, ADMIN, SECOND, ENTERPRISE, card.serial, Purse.MAIN, "burnt") == -10
    with pytest.raises(NotFound), kit.db.write() as tx:
        reconcile.accept_gap(tx, ADMIN, SECOND, ENTERPRISE, card.serial, Purse.MAIN, "burnt")
    card.pay(pos, 1, T0 + 3)
    collect(kit, pos)
    settle(kit)
    with kit.db.read() as tx:
        assert reconcile.gaps(tx, ENTERPRISE) == []
    assert balances(kit)[main(card)] == 969
    assert balances(kit)[ledger.DIFFERENCES] == 10


STEPS = st.lists(
    st.tuples(st.sampled_from(["pay", "load", "torn", "torn_undone", "undo"]), st.integers(0, 2), st.integers(1, 50)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=30, deadline=None)  # each example makes two files and a key store
@example(  # an intent collected before its NOT_DONE, a rival's inference between
    [
        ("pay", 0, 1),
        ("pay", 0, 1),
        ("pay", 0, 1),
        ("pay", 1, 1),
        ("load", 0, 1),
        ("torn_undone", 1, 1),
        ("undo", 0, 1),
        ("torn_undone", 0, 1),
        ("pay", 1, 1),
        ("pay", 0, 1),
    ],
    1,
)
@example(  # a number that a denied payment seemed to have used
    [("load", 0, 1), ("torn_undone", 1, 1), ("undo", 2, 1), ("torn_undone", 2, 1), ("pay", 1, 1), ("undo", 2, 1),
     ("torn_undone", 2, 1), ("load", 1, 1), ("pay", 2, 1), ("torn", 2, 1), ("pay", 2, 1), ("pay", 2, 1),
     ("torn_undone", 2, 1), ("pay", 1, 1)],
    331,
)  # fmt: skip
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_any_order_of_collection_ends_in_the_cards_balance(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], seed: int
) -> None:
    """Whatever cards did, and in whatever pieces and order journals come, the books end where the cards are."""
    folder = tmp_path_factory.mktemp("s")
    with Database(folder / "e.db", "enterprise", migrate=True, now_ms=lambda: T0) as db:
        kit = Kit(db, folder)
        tills = [kit.till(1), kit.till(2), kit.till(3, TerminalKind.RECHARGE)]
        cards = [kit.card(n) for n in range(2)]
        rng = Random(seed)
        for n, (what, which, amount) in enumerate(steps):
            card, till, at = cards[n % 2], tills[which], T0 + rng.randrange(1000)
            if what == "load" or card.balance[Purse.MAIN] < amount:
                card.load(tills[2], amount * 10, at)
            elif what == "pay":
                card.pay(till, amount, at)
            elif what == "undo":
                card.do(till, TransactionType.LOAD_EP, amount, at, undo_of=card.pay(till, amount, at).origin)
            else:
                ref, move = card.torn(till, amount, at, done=what == "torn")
                event = Event.COMMITTED if what == "torn" else Event.NOT_DONE
                till.append(event, ref, move if what == "torn" else None)
        parts = [(till, seq) for till in tills for seq in range(1, len(till.entries) + 1, 3)]
        rng.shuffle(parts)
        for till, first in parts:
            journals.collect(db, ENTERPRISE, till.file(first, first + 2))
            if rng.random() < 0.3:
                settle(kit)
        for till in tills:
            if till.entries:
                journals.collect(db, ENTERPRISE, till.file())
        settle(kit)
        found = balances(kit)
        assert sum(found.values()) == 0
        for card in cards:
            assert found.get(main(card), 0) == card.balance[Purse.MAIN]
        with db.read() as tx:
            assert (reconcile.gaps(tx, ENTERPRISE), reconcile.reconcile(tx, ENTERPRISE)) == ([], [])
            assert settlement.findings(tx, ENTERPRISE) == []
            assert reconcile.behind(tx, ENTERPRISE, 0) == [
                b for b in reconcile.behind(tx, ENTERPRISE, 0) if b.last_ms is None
            ]
        kit.store.close()
