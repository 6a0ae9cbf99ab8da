"""Who may pass a door, and when a door raises an alarm: pure decisions (terminals.md, Access).

As in ``policy``, each rule names the Reason it finds or None, and a decision asks them in order. Zones are numbers;
a door leads from one to another, and the direction of a passage says which way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import Enum, IntFlag, unique

from cardlib.errors import ConfigError
from terminals.policy import CLOCK_SLACK_MS, DAY_MS, NEVER_SET_MS, local_time
from terminals.reasons import Reason

ALWAYS = 0
"""Schedule number of a card that may come at any time."""
DAY_MIN = 1440
HOLIDAY = 7
"""Index of a week's eighth day: holidays have hours of their own."""


@unique
class Direction(Enum):
    """Which way through the door; the value is what records say."""

    IN = 0
    OUT = 1


@unique
class AntiPassback(Enum):
    """What happens to who seems to be inside already (or outside, going out)."""

    OFF = "off"
    SOFT = "soft"  # passes, and the event says so
    HARD = "hard"
    TIMED = "timed"  # refused for some minutes only


class CardFlag(IntFlag):
    """Flags of 0019 (profile.md): subject to anti-passback, comes only escorted, may be the first of a day."""

    ANTI_PASSBACK = 1
    ESCORTED = 2
    FIRST = 4


Hours = tuple[tuple[int, int], ...]
"""Open hours of one day as minutes from midnight, ``end`` not included."""


@dataclass(frozen=True, slots=True)
class Week:
    """Hours of Monday to Sunday, and of holidays. Raises ConfigError for hours that no day has."""

    days: tuple[Hours, ...]

    def __post_init__(self) -> None:
        if len(self.days) != HOLIDAY + 1:
            raise ConfigError("a week has hours for seven days and for holidays")
        for hours in self.days:
            if any(not 0 <= begin < end <= DAY_MIN for begin, end in hours):
                raise ConfigError(f"hours are minutes from 0 to {DAY_MIN}, each beginning before its end")

    @classmethod
    def daily(cls, *hours: tuple[int, int]) -> Week:
        """The same hours every day, holidays too."""
        return cls((hours,) * (HOLIDAY + 1))

    def open_at(self, when: datetime, holidays: frozenset[date]) -> bool:
        """Whether a local time is within the hours."""
        day = HOLIDAY if when.date() in holidays else when.weekday()
        at = when.hour * 60 + when.minute
        return any(begin <= at < end for begin, end in self.days[day])


@dataclass(frozen=True, slots=True)
class DoorRules:
    """What the enterprise set for one door; ``groups`` is a bitmap of 64, bit n for group n.

    ``pin_hours``: when a PIN is asked for. ``passage_hours``: the door stands unlocked. ``interlock``: doors that must
    be closed. ``list_reduced_ms``: how old the blacklist may be.
    """

    door: int
    zone_inside: int
    zone_outside: int = 0
    groups: int = 2**64 - 1
    schedules: Mapping[int, Week] = field(default_factory=dict)
    holidays: frozenset[date] = frozenset()
    pin_hours: Week | None = None
    passage_hours: Week | None = None
    anti_passback: AntiPassback = AntiPassback.OFF
    anti_passback_ms: int = 600_000
    first_card: bool = False
    two_cards: bool = False
    partner_within_ms: int = 15_000
    interlock: frozenset[int] = frozenset()
    release_ms: int = 5_000
    held_ms: int = 30_000
    list_reduced_ms: int = 3 * DAY_MS
    utc_offset_min: int = 480

    def target(self, direction: Direction) -> int:
        """The zone that a passage leads to."""
        return self.zone_inside if direction is Direction.IN else self.zone_outside


@dataclass(frozen=True, slots=True)
class OsdpLine:
    """The serial line on which doors hang (osdp.md). ``heads``: readers that verify cards by a SAM of their own."""

    port: str
    baud: int = 9_600
    heads: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Hardware:
    """A door's devices by their OSDP addresses, and which output and input of ``door_device`` are lock and contact."""

    reader_in: int | None = None
    reader_out: int | None = None
    door_device: int | None = None
    lock_output: int = 0
    contact_input: int = 0

    @property
    def readers(self) -> dict[int, Direction]:
        """Its readers, and the way of who shows a card there."""
        both = {Direction.IN: self.reader_in, Direction.OUT: self.reader_out}
        return {address: way for way, address in both.items() if address is not None}

    @property
    def device(self) -> int:
        """Which device has lock and contact: the reader where none is named."""
        return next(iter(self.readers)) if self.door_device is None else self.door_device


@unique
class Pin(Enum):
    """What became of the PIN."""

    NONE = "none"
    VERIFIED = "verified"
    DURESS = "duress"


@dataclass(frozen=True, slots=True)
class LastSeen:
    """Where a card went last, by its own record or this terminal's memory: zone and local time."""

    zone: int
    when: datetime


@dataclass(frozen=True, slots=True)
class Partner:
    """The card that was here just before and waits for a second one."""

    card_serial: bytes
    escorted: bool
    utc_ms: int


@dataclass(frozen=True, slots=True)
class PassFacts:
    """All that a decision at a door depends on, read before it is asked for.

    ``listed`` is the blacklist's reason, ``clock_floor_ms`` the newest of journal record and signed file;
    ``open_doors`` those of this terminal that stand open; ``first_seen`` whether a first card came today.
    """

    card_serial: bytes
    direction: Direction
    groups: int
    schedule: int
    flags: CardFlag
    valid_from: date | None = None
    valid_until: date | None = None
    listed: Reason | None = None
    list_created_ms: int | None = None
    clock_floor_ms: int = 0
    storage_full: bool = False
    last_seen: LastSeen | None = None
    open_doors: frozenset[int] = frozenset()
    first_seen: bool = False
    partner: Partner | None = None
    pin: Pin = Pin.NONE


@dataclass(frozen=True, slots=True)
class Passage:
    """Yes, or no with the reason. ``waits``: right so far, a second card has to follow. ``violation``: soft."""

    reason: Reason | None = None
    waits: bool = False
    violation: bool = False
    duress: bool = False

    @property
    def granted(self) -> bool:
        """Whether the door opens now."""
        return self.reason is None and not self.waits


Rule = Callable[[PassFacts, DoorRules, int], Reason | None]


def _storage(facts: PassFacts, _: DoorRules, __: int) -> Reason | None:
    return Reason.STORAGE_FULL if facts.storage_full else None


def _clock(facts: PassFacts, _: DoorRules, now_ms: int) -> Reason | None:
    doubtful = now_ms < NEVER_SET_MS or now_ms < facts.clock_floor_ms - CLOCK_SLACK_MS
    return Reason.CLOCK_DOUBTFUL if doubtful else None


def _list(facts: PassFacts, rules: DoorRules, now_ms: int) -> Reason | None:
    old = facts.list_created_ms is None or now_ms - facts.list_created_ms > rules.list_reduced_ms
    return Reason.LIST_TOO_OLD if old else None


def _listed(facts: PassFacts, _: DoorRules, __: int) -> Reason | None:
    return facts.listed


def _valid(facts: PassFacts, rules: DoorRules, now_ms: int) -> Reason | None:
    today = local_time(now_ms, rules.utc_offset_min).date()
    if facts.valid_from is not None and today < facts.valid_from:
        return Reason.NOT_YET_VALID
    return Reason.EXPIRED if facts.valid_until is not None and today > facts.valid_until else None


def _group(facts: PassFacts, rules: DoorRules, _: int) -> Reason | None:
    return None if facts.groups & rules.groups else Reason.NOT_THIS_DOOR


def _schedule(facts: PassFacts, rules: DoorRules, now_ms: int) -> Reason | None:
    if facts.schedule == ALWAYS:
        return None
    week = rules.schedules.get(facts.schedule)  # one that this terminal does not know opens nothing
    when = local_time(now_ms, rules.utc_offset_min)
    return None if week is not None and week.open_at(when, rules.holidays) else Reason.OUTSIDE_SCHEDULE


def _interlock(facts: PassFacts, rules: DoorRules, _: int) -> Reason | None:
    return Reason.INTERLOCK if rules.interlock & facts.open_doors else None


def _first(facts: PassFacts, rules: DoorRules, _: int) -> Reason | None:
    waiting = rules.first_card and not facts.first_seen and CardFlag.FIRST not in facts.flags
    return Reason.FIRST_CARD if waiting and facts.direction is Direction.IN else None


def _anti_passback(facts: PassFacts, rules: DoorRules, now_ms: int) -> Reason | None:
    if rules.anti_passback not in (AntiPassback.HARD, AntiPassback.TIMED) or not _passed_back(facts, rules):
        return None
    assert facts.last_seen is not None
    since_ms = (local_time(now_ms, rules.utc_offset_min) - facts.last_seen.when).total_seconds() * 1000
    if rules.anti_passback is AntiPassback.TIMED and since_ms >= rules.anti_passback_ms:
        return None
    return Reason.ANTI_PASSBACK


def _passed_back(facts: PassFacts, rules: DoorRules) -> bool:
    """Whether the card is, by all that is known, already where this passage leads."""
    known = facts.last_seen is not None and CardFlag.ANTI_PASSBACK in facts.flags
    return known and facts.last_seen is not None and facts.last_seen.zone == rules.target(facts.direction)


def _pin(facts: PassFacts, rules: DoorRules, now_ms: int) -> Reason | None:
    when = local_time(now_ms, rules.utc_offset_min)
    asked = rules.pin_hours is not None and rules.pin_hours.open_at(when, rules.holidays)
    return Reason.PIN_REQUIRED if asked and facts.pin is Pin.NONE else None


CHECKS: tuple[Rule, ...] = (
    _storage, _clock, _list, _listed, _valid, _group, _schedule, _interlock, _first, _anti_passback, _pin,
)  # fmt: skip


def may_pass(facts: PassFacts, rules: DoorRules, now_ms: int) -> Passage:
    """Decide one passage at ``now_ms`` UTC; the first rule that objects gives the reason."""
    for rule in CHECKS:
        if (reason := rule(facts, rules, now_ms)) is not None:
            return Passage(reason)
    escorted = CardFlag.ESCORTED in facts.flags
    partner = facts.partner
    paired = (
        partner is not None
        and partner.card_serial != facts.card_serial
        and 0 <= now_ms - partner.utc_ms <= rules.partner_within_ms
        and not (escorted and partner.escorted)
    )
    # Whoever leaves is let out alone: a door must not keep people in.
    together = facts.direction is Direction.IN and (rules.two_cards or escorted)
    soft = rules.anti_passback is AntiPassback.SOFT and _passed_back(facts, rules)
    return Passage(waits=together and not paired, violation=soft, duress=facts.pin is Pin.DURESS)


# --- the door itself ---------------------------------------------------------------------------------------------


@unique
class DoorEvent(Enum):
    """What a door did by itself; the value is the code of the journal's note."""

    OPENED = "door_opened"
    CLOSED = "door_closed"
    FORCED = "door_forced"
    HELD = "door_held"
    HELD_END = "door_held_end"


@dataclass(frozen=True, slots=True)
class DoorState:
    """A door between two looks at it. ``free_until_ms``: released by a passage until then."""

    open: bool = False
    free_until_ms: int = 0
    opened_ms: int = 0
    forced: bool = False
    held: bool = False

    def released(self, now_ms: int, release_ms: int) -> DoorState:
        """After the lock was released."""
        return replace(self, free_until_ms=max(self.free_until_ms, now_ms + release_ms))


def watch(state: DoorState, contact_open: bool, rules: DoorRules, now_ms: int) -> tuple[DoorState, list[DoorEvent]]:
    """A look at the door's contact: the state after it, and what happened since the last look."""
    free = now_ms <= state.free_until_ms or _passage(rules, now_ms)
    if contact_open and not state.open:
        forced = not free
        events = [DoorEvent.FORCED if forced else DoorEvent.OPENED]
        return DoorState(True, state.free_until_ms, now_ms, forced=forced), events
    if not contact_open and state.open:
        ended = [DoorEvent.HELD_END] if state.held else []
        return DoorState(False, 0), [*ended, DoorEvent.CLOSED]  # closed: the next one needs a card again
    if state.open and not state.held and not _passage(rules, now_ms) and now_ms - state.opened_ms > rules.held_ms:
        return DoorState(True, state.free_until_ms, state.opened_ms, state.forced, held=True), [DoorEvent.HELD]
    return state, []


def _passage(rules: DoorRules, now_ms: int) -> bool:
    week = rules.passage_hours
    return week is not None and week.open_at(local_time(now_ms, rules.utc_offset_min), rules.holidays)


def stands_free(rules: DoorRules, now_ms: int, *, first_seen: bool, emergency: bool = False) -> bool:
    """Whether the lock is released without a card: passage hours (after a first card where one is asked), emergency."""
    return emergency or (_passage(rules, now_ms) and (first_seen or not rules.first_card))
