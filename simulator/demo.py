"""``onecard demo``: a company of 50 people for one day on the simulator, told in a few screens, and proven."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cardlib.errors import CheckFailed, Refused
from cardlib.money import yuan
from console import LeafCommand, Session, pass_session
from simulator.story import Story
from simulator.world import MORNING_MS, Company, Till

MINUTE_MS = 60_000
PRICE_FEN = 15_00
TORN, UNDONE, LOST, REISSUED = 6, 11, 16, 21
"""Whose lunch is torn, who is charged wrongly, who loses a card and finds it, whose card breaks: places in the list."""


def _at(company: Company, minutes: int) -> None:
    """Move the clock on to so many minutes after eight in the morning."""
    company.clock_ms = max(company.clock_ms, MORNING_MS + minutes * MINUTE_MS)


def _morning(story: Story, company: Company, progress: Callable[[Any, int, str], Iterator[Any]]) -> list[str]:
    story.chapter("Morning: keys, members, cards")
    roots = company.system.keys.list()
    story.fact("keys", len(roots), f"{len(roots)} root keys made in an encrypted store; every use of one is audited")
    report = company.enrol()
    story.fact("members", report.added, f"{report.added} members imported from the sample spreadsheet")
    staff = company.staff()
    began = time.perf_counter()
    issued = list(progress(company.issue_all(), len(staff), "cards"))
    failed = [one for one in issued if one.error]
    if failed:
        raise CheckFailed(f"{len(failed)} cards could not be issued: {failed[0].error}")
    rate = len(issued) / (time.perf_counter() - began)
    story.fact("cards", len(issued), f"{len(issued)} cards washed, personalised, every key proven ({rate:.0f}/s)")
    return staff


def _money(story: Story, company: Company, staff: list[str]) -> None:
    story.chapter("Ten o'clock: money")
    for number, member in enumerate(staff):
        company.recharge(member, 100_00)
        if number % 2 == 0:
            company.subsidise(member, 10_00)
    loaded = 100_00 * len(staff) + 10_00 * len(staff[::2])
    story.fact("loaded_fen", loaded, f"{len(staff)} cards recharged with 100.00, {len(staff[::2])} subsidies of 10.00")


def _lunch(story: Story, company: Company, staff: list[str], tills: list[Till]) -> None:
    story.chapter("Noon: the canteen, two tills, no line to the office")
    paid = 0
    for number, member in enumerate(staff):
        company.clock_ms += 20_000
        till = tills[number % len(tills)]
        # Step 40 lies in the middle of the command that takes the money off the card.
        receipt, taps = company.pay(till, member, PRICE_FEN, f"lunch-{number}", 40 if number == TORN else 0)
        paid += receipt.amount_fen
        if number == TORN:
            story.fact(
                "torn_taps",
                taps,
                f"member {member}: card pulled away in the middle of the payment; presented "
                f"again, charged once ({yuan(receipt.amount_fen)} in {taps} taps)",
            )
        if number == UNDONE:
            back = till.pos.undo_last(company.card(member)).amount_fen
            paid -= back
            story.fact("undone_fen", back, f"member {member}: the cashier keyed wrong, {yuan(back)} given back offline")
    story.fact("taken_fen", paid, f"{len(staff)} lunches at {yuan(PRICE_FEN)}; {yuan(paid)} taken, subsidy purse first")


def _loss(story: Story, company: Company, staff: list[str], tills: list[Till]) -> None:
    story.chapter("Afternoon: a card is lost, found, another one replaced")
    member, till = staff[LOST], tills[0]
    company.lose(member)
    company.send_list(till)
    try:
        company.pay(till, member, 1_00, "finder")
    except Refused as refused:
        words = f"member {member}: card reported lost; the till, offline, refuses it: {refused}"
        story.fact("refused", refused.reason, words)
    else:
        raise CheckFailed("a lost card was served")
    company.unlock(member)
    company.send_list(till)
    receipt, _ = company.pay(till, member, 1_00, "owner")
    story.fact("unlocked_fen", receipt.amount_fen, f"found again and unlocked: it pays {yuan(receipt.amount_fen)}")
    member = staff[REISSUED]
    outcome = company.reissue(member, old_present=True)
    carried = sum(outcome["carried_fen"].values())
    words = f"member {member}: old card read, emptied, blocked; the new one holds its {yuan(carried)}"
    story.fact("carried_fen", carried, words)


def _evening(story: Story, company: Company) -> None:
    story.chapter("Evening: settlement, and the proof")
    _at(company, 600)
    records = company.collect()
    done = company.settle()
    verdicts = ", ".join(f"{count} {verdict.value}" for verdict, count in sorted(done.verdicts.items()))
    story.fact("collected", records, f"journals collected; this run settled: {verdicts or 'nothing new'}")
    proof = company.prove()
    story.facts["proof"] = proof._asdict()
    story.tell(f"  money in        {yuan(proof.loaded_fen):>12}")
    story.tell(f"  on the cards    {yuan(proof.on_cards_fen):>12}   (read from the chips, equal to the books)")
    story.tell(f"  taken by tills  {yuan(proof.taken_fen):>12}")
    story.tell(f"  records         {proof.records:>12}   all settled")
    story.tell(f"  audit events    {proof.audit_events:>12}   chain intact")
    if proof.faults:
        raise CheckFailed("the day does not add up: " + "; ".join(proof.faults))
    story.tell("  Money conserved, every record settled, audit chain intact.")


def _day(story: Story, folder: Path, seed: int, progress: Callable[[Any, int, str], Iterator[Any]]) -> None:
    company = Company(folder, seed)
    try:
        staff = _morning(story, company, progress)
        _at(company, 120)
        _money(story, company, staff)
        _at(company, 240)
        tills = [company.open_till(1), company.open_till(2)]
        _lunch(story, company, staff, tills)
        _at(company, 420)
        _loss(story, company, staff, tills)
        _evening(story, company)
    finally:
        company.close()


@click.command("demo", cls=LeafCommand)
@click.option("--seed", default=1, show_default=True, help="Everything random comes from it.")
@click.option("--terminals", is_flag=True, help="A morning at five terminals, each a process on a line of its own.")
@click.option("--over-the-air", is_flag=True, help="A SIM that only short messages touch, from the factory to its end.")
@pass_session
def command(session: Session, seed: int, *, terminals: bool, over_the_air: bool) -> None:
    """A company of 50 people for one day on the simulator: cards, lunch, loss, settlement, and a proof.

    With --terminals: one terminal of each kind is brought into service over its line, works, is collected, settled.
    Needs no hardware and leaves nothing behind. Exit code 8 when it does not add up.
    """
    story = Story((lambda _: None) if session.json else click.echo)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onecard-demo-") as name:
        folder = Path(name)
        if terminals:
            from simulator.morning import Morning  # noqa: PLC0415  # the day alone needs no processes

            Morning(folder, story, seed).tell()
        elif over_the_air:
            from simulator.airday import tell  # noqa: PLC0415  # only for this story

            tell(folder, story, seed)
        else:
            _day(story, folder, seed, session.progress)
    story.facts["seconds"] = round(time.perf_counter() - began, 1)
    if session.json:
        session.emit(story.facts)
    else:
        what = "One morning" if terminals else "One SIM" if over_the_air else "One day"
        click.echo(f"\n{what} in {story.facts['seconds']} s.")
