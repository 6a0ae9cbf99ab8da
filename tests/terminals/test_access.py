"""The door terminal on simulated cards, SAM and doors: opens for whom it may, and only for what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from cardlib.errors import CardRemoved, DatabaseError, Refused
from cardlib.iso7816 import update_binary
from cardlib.profile import AccessRights, Purpose, load_profile
from cardlib.purse import open_application
from cardlib.records import Note, PassageReport
from cardlib.sam import CardSam
from keymgmt.personalise import protector
from keymgmt.samload import SamKind
from simulator.card import Card
from simulator.door import SimulatedDoor
from simulator.rig import PIN, Enterprise
from simulator.sam import SamCard
from terminals.access import Access
from terminals.config import Kind, TerminalConfig
from terminals.doors import AntiPassback, CardFlag, Direction, DoorRules, Passage, Week
from terminals.journal import Journal
from terminals.policy import Rules
from terminals.reasons import Reason
from terminals.screen import MemoryScreen, Say
from tests.terminals.shop import FixedLists, OneSam

TERMINAL = bytes.fromhex("320000000001")
RULES = DoorRules(1, zone_inside=10, zone_outside=1, groups=0b110)
NIGHT = Week.daily((0, 1440))


class Site:
    """An entrance: one terminal, two doors; a restart is a new process on the same files."""

    def __init__(self, enterprise: Enterprise, folder: Path, rules: DoorRules = RULES) -> None:
        self.enterprise, self.folder, self.rules = enterprise, folder, rules
        self.now_ms = enterprise.clock_ms
        self.sam: SamCard = enterprise.new_sam(SamKind.ACCESS, TERMINAL)
        self.lists = FixedLists(created_ms=self.now_ms)
        self.doors = {1: SimulatedDoor(lambda: self.now_ms), 2: SimulatedDoor(lambda: self.now_ms)}
        self.free_bytes = 1 << 30
        self.start()

    def start(self) -> None:
        self.sam.reset()
        opened = CardSam(self.sam)
        info = opened.info()
        self.journal = Journal(
            self.folder / "door.db", info.enterprise_id, info.terminal, info.serial, lambda: self.now_ms,
            free_bytes=lambda: self.free_bytes,
        )  # fmt: skip
        config = TerminalConfig(
            1, Kind.POS, info.enterprise_id, Path(), Path(), bytes(32), rules=Rules(info.enterprise_id)
        )
        self.screen = MemoryScreen()
        self.terminal = Access(
            config, self.journal, self.lists, OneSam(opened), lambda: self.now_ms, self.enterprise.random_bytes,
            self.screen,
        )  # fmt: skip
        self.set_rules(self.rules)

    def set_rules(self, rules: DoorRules) -> None:
        self.rules = rules
        self.terminal.fit_doors({1: (rules, self.doors[1]), 2: (replace(rules, door=2), self.doors[2])})

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def card(self, groups: int = 0b010, flags: CardFlag = CardFlag.ANTI_PASSBACK, schedule: int = 0) -> Card:
        enterprise, card = self.enterprise, self.enterprise.new_card()
        session = open_application(card, enterprise.host, enterprise.enterprise_id, enterprise.random_bytes)
        rights = AccessRights(None, date(2099, 1, 1), groups.to_bytes(8, "big"), schedule, flags)
        protect = protector(enterprise.host, session.factor, session.version, Purpose.MAINTENANCE)
        update_binary(card, load_profile().file("access").fid, rights.encode(), protect=protect)
        card.reset()
        return card

    def show(self, card: Card, direction: Direction = Direction.IN, door: int = 1, pin: str | None = None) -> Passage:
        card.reset()
        return self.terminal.present(card, door, direction, (lambda: pin) if pin else None)

    def refused(self, card: Card, reason: Reason, direction: Direction = Direction.IN, pin: str | None = None) -> None:
        with pytest.raises(Refused) as refused:
            self.show(card, direction, pin=pin)
        assert refused.value.reason == reason.code
        assert self.shut(1)
        assert self.screen.notices[-1].reason is reason

    def shut(self, door: int) -> bool:
        return self.doors[door].locked

    def walk_in(self, door: int = 1) -> None:
        assert self.doors[door].push()
        self.terminal.tick()
        self.doors[door].fall_shut()
        self.terminal.tick()

    def reports(self) -> list[PassageReport]:
        self.journal.verify()
        return [e.record for e in self.journal.collect(1).entries if isinstance(e.record, PassageReport)]

    def notes(self) -> list[str]:
        return [e.record.code for e in self.journal.collect(1).entries if isinstance(e.record, Note)]


@pytest.fixture
def site(enterprise: Enterprise, tmp_path: Path) -> Iterator[Site]:
    made = Site(enterprise, tmp_path)
    yield made
    made.journal.close()


def test_who_may_pass_passes(site: Site) -> None:
    """A right card opens the door for some seconds; the journal and the card say so; then it is locked again."""
    card = site.card()
    assert site.show(card).granted
    assert not site.shut(1)
    assert site.shut(2)
    site.walk_in()
    assert site.shut(1)
    [report] = site.reports()
    assert (report.granted, report.zone, report.door, report.direction) == (True, 10, 1, 0)
    assert site.notes() == ["door_opened", "door_closed"]
    assert site.screen.notices[-1].say is Say.PASS
    site.show(card, Direction.OUT)
    assert site.reports()[-1].zone == 1
    site.now_ms += RULES.release_ms + 1
    assert site.shut(1)


@pytest.mark.parametrize(
    ("reason", "groups", "schedule"),
    [(Reason.NOT_THIS_DOOR, 0b001, 0), (Reason.OUTSIDE_SCHEDULE, 0b010, 7)],
)
def test_refusals_are_journaled(site: Site, reason: Reason, groups: int, schedule: int) -> None:
    """Who may not pass is refused with the reason, on the screen and in the journal."""
    site.refused(site.card(groups, schedule=schedule), reason)
    [report] = site.reports()
    assert (report.granted, report.reason) == (False, reason.code)


def test_lists_clock_and_storage(site: Site) -> None:
    """A listed card, an old list, a doubtful clock and a full disk keep the door shut."""
    card = site.card()
    site.show(card)
    site.walk_in()
    site.lists.listed[site.reports()[0].card_serial] = Reason.LOST
    site.refused(card, Reason.LOST)
    site.lists.listed.clear()
    site.lists.created_ms = None
    site.refused(card, Reason.LIST_TOO_OLD)
    site.lists.created_ms = site.now_ms + 86_400_000
    site.refused(card, Reason.CLOCK_DOUBTFUL)
    site.lists.created_ms = site.now_ms
    site.free_bytes = 0
    with pytest.raises((Refused, DatabaseError)):
        site.show(card)
    assert site.shut(1)
    site.free_bytes = 1 << 30
    assert site.show(card).granted


def test_strangers(site: Site, tmp_path: Path) -> None:
    """A card of another enterprise, and one that can't prove itself, open nothing."""
    other = site.enterprise.neighbour(tmp_path, 2002)
    with pytest.raises(Refused) as refused:
        site.show(other.new_card())
    assert refused.value.reason == "no_application"
    assert site.shut(1)


def test_anti_passback_over_a_restart(site: Site) -> None:
    """Who is inside can't come in again by the card's own record, also after the terminal lost power."""
    site.set_rules(replace(RULES, anti_passback=AntiPassback.HARD))
    card = site.card()
    site.show(card)
    site.walk_in()
    site.refused(card, Reason.ANTI_PASSBACK)
    site.restart()
    site.refused(card, Reason.ANTI_PASSBACK)
    site.show(card, Direction.OUT)
    site.walk_in()
    assert site.show(card).granted
    site.set_rules(replace(RULES, anti_passback=AntiPassback.SOFT))
    assert site.show(card).violation
    assert site.reports()[-1].reason == "anti_passback"
    assert site.reports()[-1].granted


def test_first_card_and_two_cards(site: Site) -> None:
    """The first card of a day opens for the others; two cards open together; a visitor needs company."""
    site.set_rules(replace(RULES, first_card=True))
    staff, boss = site.card(), site.card(flags=CardFlag.FIRST)
    site.refused(staff, Reason.FIRST_CARD)
    site.show(boss)
    site.walk_in()
    assert site.show(staff).granted
    site.walk_in()
    site.set_rules(replace(RULES, two_cards=True))
    assert site.show(boss).waits
    assert site.shut(1)
    assert site.show(boss).waits
    assert site.show(staff).granted
    site.walk_in()
    site.set_rules(RULES)
    visitor = site.card(flags=CardFlag.ESCORTED)
    assert site.show(visitor).waits
    assert site.show(boss).granted


def test_pin_and_duress(site: Site) -> None:
    """A PIN is asked for in its hours; the last digit one too high opens too, and the journal raises the alarm."""
    site.set_rules(replace(RULES, pin_hours=NIGHT))
    card = site.card()
    site.refused(card, Reason.PIN_REQUIRED)
    assert site.show(card, pin=PIN).granted
    site.walk_in()
    duress = PIN[:-1] + str((int(PIN[-1]) + 1) % 10)
    assert site.show(card, pin=duress).duress
    assert site.notes()[-1] == "duress"
    site.walk_in()
    wrong = PIN[:-1] + str((int(PIN[-1]) + 3) % 10)
    site.refused(card, Reason.PIN_WRONG, pin=wrong)
    assert site.show(card, pin=PIN).granted
    site.walk_in()
    for _ in range(2):
        with pytest.raises(Refused):
            site.show(card, pin=wrong)
    site.refused(card, Reason.PIN_LOCKED, pin=PIN)


def test_alarms_and_emergency(site: Site) -> None:
    """A forced door and one held open are noted; in an emergency all doors stand free, and afterwards none."""
    site.doors[1].force()
    site.terminal.tick()
    site.now_ms += RULES.held_ms + 1
    site.terminal.tick()
    site.doors[1].fall_shut()
    site.terminal.tick()
    assert site.notes() == ["door_forced", "door_held", "door_held_end", "door_closed"]
    with pytest.raises(Refused):
        site.terminal.emergency(True, "")
    site.terminal.emergency(True, "zhang")
    assert not site.shut(1)
    assert not site.shut(2)
    site.restart()
    assert site.shut(1)
    site.terminal.emergency(True, "zhang")
    site.terminal.emergency(False, "zhang")
    assert site.shut(2)


def test_interlock(site: Site) -> None:
    """While one door of a lock stands open the other stays shut."""
    site.set_rules(replace(RULES, interlock=frozenset({2})))
    card = site.card()
    site.doors[2].force()
    site.refused(card, Reason.INTERLOCK)
    site.doors[2].fall_shut()
    assert site.show(card).granted


def test_torn_everywhere(site: Site) -> None:
    """A card pulled away at any step opens nothing or all; shown again its holder gets in, anti-passback or not."""
    site.set_rules(replace(RULES, anti_passback=AntiPassback.HARD))
    card = site.card()
    cuts = 0
    for step in range(1, 100):
        before = len([r for r in site.reports() if r.granted])
        card.reset()
        card.power.cut_at(step)
        try:
            site.terminal.present(card)
        except CardRemoved:
            cuts += 1
            assert site.shut(1)
            assert len([r for r in site.reports() if r.granted]) == before
            card.power.cut_at(0)
            assert site.show(card).granted
        card.power.cut_at(0)
        assert not site.shut(1)
        site.walk_in()
        site.show(card, Direction.OUT)
        site.walk_in()
        if cuts < step:
            break
    assert cuts > 8
