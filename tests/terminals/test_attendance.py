"""The attendance terminal on simulated cards: each punch once, in the journal and on the card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from cardlib.errors import ConfigError, Refused, TransportError
from cardlib.iso7816 import read_record
from cardlib.profile import Punch, load_profile
from cardlib.purse import open_application
from cardlib.records import PunchDirection, PunchReport
from cardlib.sam import CardSam
from keymgmt.samload import SamKind
from simulator.card import Card
from simulator.rig import Enterprise
from terminals.attendance import Attendance, Mode, PunchFacts, PunchRules, Verdict, judge
from terminals.config import Kind, TerminalConfig
from terminals.doors import Week
from terminals.journal import Journal
from terminals.policy import CLOCK_SLACK_MS, Rules, local_time
from terminals.reasons import Reason
from terminals.screen import MemoryScreen, Say
from tests.terminals.shop import FixedLists, OneSam

TERMINAL = bytes.fromhex("330000000001")
NOW = 1_790_000_000_000
LOCAL = local_time(NOW, 480)
FACTS = PunchFacts(list_created_ms=NOW)
MORNING, EVENING = Week.daily((0, 720)), Week.daily((720, 1440))
PAIR = PunchRules(Mode.PAIR)


@pytest.mark.parametrize(
    ("reason", "facts"),
    [
        (Reason.CLOCK_DOUBTFUL, replace(FACTS, clock_floor_ms=NOW + CLOCK_SLACK_MS + 1)),
        (Reason.LIST_TOO_OLD, replace(FACTS, list_created_ms=None)),
        (Reason.LIST_TOO_OLD, replace(FACTS, list_created_ms=NOW - 3 * 86_400_000 - 1)),
        (Reason.LOST, replace(FACTS, listed=Reason.LOST)),
        (Reason.NOT_YET_VALID, replace(FACTS, valid_from=date(2026, 9, 22))),
        (Reason.EXPIRED, replace(FACTS, valid_until=date(2026, 9, 20))),
    ],
)
def test_each_reason_is_given_for_its_cause(reason: Reason, facts: PunchFacts) -> None:
    """What is wrong with terminal or card is the reason why nothing is punched."""
    assert judge(facts, PunchRules(), NOW) == Verdict(reason=reason)


@pytest.mark.parametrize(
    ("rules", "last", "pressed", "direction"),
    [
        (PunchRules(), None, None, PunchDirection.IN),
        (PunchRules(), None, PunchDirection.BREAK_OUT, PunchDirection.BREAK_OUT),
        (PunchRules(Mode.HOURS, MORNING), None, None, PunchDirection.OUT),
        (PunchRules(Mode.HOURS, EVENING), None, None, PunchDirection.IN),
        (PunchRules(Mode.HOURS, EVENING), None, PunchDirection.OUT, PunchDirection.OUT),
        (PAIR, None, None, PunchDirection.IN),
        (PAIR, (LOCAL - timedelta(hours=4), PunchDirection.IN), None, PunchDirection.OUT),
        (PAIR, (LOCAL - timedelta(hours=4), PunchDirection.OUT), None, PunchDirection.IN),
        (PAIR, (LOCAL - timedelta(hours=17), PunchDirection.IN), None, PunchDirection.IN),
        (PAIR, (LOCAL + timedelta(hours=1), PunchDirection.IN), None, PunchDirection.IN),
    ],
)
def test_direction(
    rules: PunchRules,
    last: tuple[datetime, PunchDirection] | None,
    pressed: PunchDirection | None,
    direction: PunchDirection,
) -> None:
    """By key, by hours or in pairs; a pressed key is always believed."""
    assert judge(replace(FACTS, last=last, pressed=pressed), rules, NOW) == Verdict(direction)


def test_repeats() -> None:
    """The same punch within a minute is one; another direction is another, except where directions take turns."""
    just = (LOCAL - timedelta(seconds=59), PunchDirection.IN)
    assert judge(replace(FACTS, last=just), PunchRules(), NOW).repeated
    assert not judge(replace(FACTS, last=just, pressed=PunchDirection.OUT), PunchRules(), NOW).repeated
    assert judge(replace(FACTS, last=just), PAIR, NOW).repeated
    assert not judge(
        replace(FACTS, last=(LOCAL - timedelta(seconds=60), PunchDirection.IN)), PunchRules(), NOW
    ).repeated


def test_impossible_rules() -> None:
    """Rules that contradict themselves are refused where they enter."""
    for bad in ({"mode": Mode.HOURS}, {"coming": MORNING}, {"repeat_ms": -1}, {"pair_within_ms": 0}):
        with pytest.raises(ConfigError):
            PunchRules(**bad)


class Gate:
    """One attendance terminal with its SAM; a restart is a new process on the same journal."""

    def __init__(self, enterprise: Enterprise, folder: Path) -> None:
        self.enterprise, self.folder = enterprise, folder
        self.now_ms = enterprise.clock_ms
        self.sam = enterprise.new_sam(SamKind.ATTENDANCE, TERMINAL)
        self.lists = FixedLists(created_ms=self.now_ms)
        self.free_bytes = 1 << 30
        self.start()

    def start(self) -> None:
        self.sam.reset()
        opened = CardSam(self.sam)
        info, clock = opened.info(), lambda: self.now_ms
        self.journal = Journal(
            self.folder / "gate.db", info.enterprise_id, info.terminal, info.serial, clock,
            free_bytes=lambda: self.free_bytes,
        )  # fmt: skip
        number = info.enterprise_id
        config = TerminalConfig(1, Kind.POS, number, Path(), Path(), bytes(32), rules=Rules(number))
        self.screen = MemoryScreen()
        self.terminal = Attendance(
            config, self.journal, self.lists, OneSam(opened), clock, self.enterprise.random_bytes, self.screen
        )
        self.terminal.set_punch_rules(PunchRules())

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def punch(self, card: Card, pressed: PunchDirection | None = None) -> Verdict:
        card.reset()
        return self.terminal.punch(card, pressed)

    def reports(self) -> list[PunchReport]:
        self.journal.verify()
        return [e.record for e in self.journal.collect(1).entries if isinstance(e.record, PunchReport)]

    def on_card(self, card: Card) -> list[Punch]:
        card.reset()
        open_application(card, self.enterprise.host, self.enterprise.enterprise_id, self.enterprise.random_bytes)
        fid = load_profile().file("punches").fid
        count = len(card.mf.files.value[0x3F01].ef(fid).records.value)  # type: ignore[union-attr]
        return [Punch.decode(read_record(card, fid, number)) for number in range(1, count + 1)]


@pytest.fixture
def gate(enterprise: Enterprise, tmp_path: Path) -> Iterator[Gate]:
    made = Gate(enterprise, tmp_path)
    yield made
    made.journal.close()


def test_a_day(gate: Gate, card: Card) -> None:
    """Coming and going stand in the journal and on the card, with the terminal's time and number."""
    gate.punch(card)
    gate.now_ms += 8 * 3_600_000
    gate.punch(card, PunchDirection.OUT)
    reports, punches = gate.reports(), gate.on_card(card)
    assert [(r.direction, r.sequence, r.verified) for r in reports] == [(0, 1, True), (1, 2, True)]
    assert [(p.kind, p.sequence, p.terminal) for p in punches] == [(1, 2, TERMINAL), (0, 1, TERMINAL)]
    assert reports[0].utc_ms + 8 * 3_600_000 == reports[1].utc_ms
    assert gate.screen.notices[-1].say is Say.PUNCHED


def test_refused(gate: Gate, card: Card) -> None:
    """A listed card and a full disk punch nothing anywhere."""
    gate.punch(card)
    gate.now_ms += 3_600_000
    gate.lists.listed[gate.reports()[0].card_serial] = Reason.LOST
    with pytest.raises(Refused):
        gate.punch(card)
    gate.lists.listed.clear()
    gate.free_bytes = 0
    with pytest.raises(Refused) as refused:
        gate.punch(card)
    assert refused.value.reason == "storage_full"
    gate.free_bytes = 1 << 30
    assert len(gate.reports()) == len(gate.on_card(card)) == 1


def test_torn_everywhere(gate: Gate, card: Card) -> None:
    """Pulled away at any step and shown again, a card is punched once, in the journal and in its own log."""
    for step in range(1, 100):
        before = len(gate.reports())
        gate.now_ms += 3_600_000
        card.reset()
        card.power.cut_at(step)
        try:
            gate.terminal.punch(card)
        except TransportError:
            card.power.cut_at(0)
            gate.now_ms += 2_000
            gate.punch(card)
        else:
            card.power.cut_at(0)
            assert step > 8
            break
        assert len(gate.reports()) == before + 1
        assert gate.on_card(card)[0].sequence == gate.reports()[-1].sequence
    else:
        pytest.fail("a punch has more steps than were cut")


def test_terminal_dies_between(gate: Gate, card: Card) -> None:
    """A terminal that loses power after the journal was written has the punch; the office drops a repeat."""
    gate.punch(card)
    gate.now_ms += 3_600_000
    for step in range(8, 40):
        card.reset()
        card.power.cut_at(step)
        try:
            gate.terminal.punch(card)
        except TransportError:
            gate.restart()
        card.power.cut_at(0)
        if len(gate.reports()) == 2:
            break
    assert [r.sequence for r in gate.reports()] == [1, 2]
    gate.journal.verify()


def test_tags(gate: Gate) -> None:
    """A tag is punched once a minute, marked as unverified; a doubtful clock and a full disk punch none."""
    tag, other = bytes.fromhex("010063E9AE"), bytes(5)
    gate.terminal.set_punch_rules(PunchRules(Mode.PAIR, uid_reader=True))
    made = [gate.terminal.punch_tag(one) for one in (tag, other, tag)]
    assert [one.repeated for one in made] == [False, False, True]
    gate.now_ms += 8 * 3_600_000
    assert gate.terminal.punch_tag(tag).direction is PunchDirection.OUT
    gate.restart()
    assert [(one.card_serial[3:], one.direction, one.verified) for one in gate.reports()] == [
        (tag, 0, False), (other, 0, False), (tag, 1, False),
    ]  # fmt: skip
    gate.free_bytes = 0
    with pytest.raises(Refused) as refused:
        gate.terminal.punch_tag(tag)
    assert refused.value.reason == "storage_full"
    gate.free_bytes, gate.now_ms = 1 << 30, gate.now_ms - 9 * 3_600_000
    with pytest.raises(Refused) as refused:
        gate.terminal.punch_tag(tag)
    assert refused.value.reason == "clock_doubtful"
    assert gate.screen.notices[-1].reason is Reason.CLOCK_DOUBTFUL
    assert len(gate.reports()) == 3
