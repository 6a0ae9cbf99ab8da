"""The attendance terminal: a punch in the journal and in the card's own log (terminals.md, Attendance).

The journal first: the card has proven itself by then, and what is in the journal is never lost. A card pulled away
before its log was written gets the missing record at its next tap here, and no second punch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum, unique

from cardlib.apdu import SW
from cardlib.errors import ConfigError, NotFound, StatusError, TransportError
from cardlib.iso7816 import append_record, read_record
from cardlib.profile import Punch, load_profile
from cardlib.records import ENTERING, PunchDirection, PunchReport, local_when
from cardlib.transport import Transport
from terminals.doors import Week
from terminals.policy import CLOCK_SLACK_MS, DAY_MS, NEVER_SET_MS, local_time
from terminals.reasons import Reason
from terminals.runtime import Tap, Terminal
from terminals.screen import Notice, Say

LAST_SEQUENCE = 0xFFFF
MAX_OWED = 1000


@unique
class Mode(Enum):
    """How a terminal knows which way somebody goes."""

    KEY = "key"  # its holder presses one; none is coming
    HOURS = "hours"  # coming within some hours, going outside
    PAIR = "pair"  # the other of what the card said last


@dataclass(frozen=True, slots=True)
class PunchRules:
    """What the enterprise set. ``repeat_ms``: a second punch of a card within this time is none.

    ``pair_within_ms``: in mode PAIR, who came longer ago than this comes anew. ``uid_reader``: tags that prove nothing
    may punch too, at a reader of their own. Raises ConfigError.
    """

    mode: Mode = Mode.KEY
    coming: Week | None = None
    repeat_ms: int = 60_000
    pair_within_ms: int = 16 * 3_600_000
    list_reduced_ms: int = 3 * DAY_MS
    uid_reader: bool = False
    utc_offset_min: int = 480

    def __post_init__(self) -> None:
        if (self.mode is Mode.HOURS) != (self.coming is not None):
            raise ConfigError("hours of coming go with mode hours, and with no other")
        if not 0 <= self.repeat_ms <= DAY_MS or not 0 < self.pair_within_ms <= DAY_MS:
            raise ConfigError("a repeat window and a pair's time are at most a day")


@dataclass(frozen=True, slots=True)
class PunchFacts:
    """What a decision depends on. ``last`` is the card's newest punch of any terminal: local time and direction."""

    valid_from: date | None = None
    valid_until: date | None = None
    listed: Reason | None = None
    list_created_ms: int | None = None
    clock_floor_ms: int = 0
    last: tuple[datetime, PunchDirection] | None = None
    pressed: PunchDirection | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which way, or why not. ``repeated``: right, but the same punch was just made."""

    direction: PunchDirection | None = None
    reason: Reason | None = None
    repeated: bool = False


def judge(facts: PunchFacts, rules: PunchRules, now_ms: int) -> Verdict:
    """Decide one punch at ``now_ms`` UTC."""
    now = local_time(now_ms, rules.utc_offset_min)
    if now_ms < NEVER_SET_MS or now_ms < facts.clock_floor_ms - CLOCK_SLACK_MS:
        return Verdict(reason=Reason.CLOCK_DOUBTFUL)
    if facts.list_created_ms is None or now_ms - facts.list_created_ms > rules.list_reduced_ms:
        return Verdict(reason=Reason.LIST_TOO_OLD)
    if facts.listed is not None:
        return Verdict(reason=facts.listed)
    if facts.valid_from is not None and now.date() < facts.valid_from:
        return Verdict(reason=Reason.NOT_YET_VALID)
    if facts.valid_until is not None and now.date() > facts.valid_until:
        return Verdict(reason=Reason.EXPIRED)
    since_ms = (now - facts.last[0]).total_seconds() * 1000 if facts.last else None
    direction = _direction(facts, rules, now, since_ms)
    near = since_ms is not None and 0 <= since_ms < rules.repeat_ms
    # In mode PAIR a second tap would be the way back: within the window it is the first one again.
    same = facts.last is not None and (rules.mode is Mode.PAIR or facts.last[1] is direction)
    return Verdict(direction, repeated=near and same)


def _direction(facts: PunchFacts, rules: PunchRules, now: datetime, since_ms: float | None) -> PunchDirection:
    if rules.mode is Mode.KEY or facts.pressed is not None:
        return facts.pressed or PunchDirection.IN
    if rules.mode is Mode.HOURS:
        assert rules.coming is not None
        return PunchDirection.IN if rules.coming.open_at(now, frozenset()) else PunchDirection.OUT
    inside = facts.last is not None and facts.last[1] in ENTERING
    fresh = since_ms is not None and 0 <= since_ms <= rules.pair_within_ms
    return PunchDirection.OUT if inside and fresh else PunchDirection.IN


class Attendance(Terminal):
    """An attendance terminal: ``punch`` serves one card."""

    def set_punch_rules(self, rules: PunchRules) -> None:
        """What the configuration says; punches of before are remembered by their cards."""
        self._punch_rules = rules
        self._owed = self._left_over()
        self._tags: dict[bytes, tuple[datetime, PunchDirection]] = {}

    def punch(self, card: Transport, pressed: PunchDirection | None = None) -> Verdict:
        """Write a punch to the journal and the card, unless the card was punched just now.

        Raises Refused with the reason; TransportError when the card is gone: shown again it is punched once.
        """
        with self.tap(card) as tap:
            newest = self._newest(tap)
            owed = self._owed.get(tap.session.factor)
            if owed is not None and owed.sequence == _after(newest):  # else it has it, or was punched elsewhere since
                self._log(tap, owed)
                newest = owed
            self._owed.pop(tap.session.factor, None)
            now_ms = self.now_ms()
            verdict = judge(self._facts(tap, newest, pressed), self._punch_rules, now_ms)
            if verdict.reason is not None:
                self.screen.show(Notice(Say.REFUSED, reason=verdict.reason))
                raise verdict.reason.refusal()
            if verdict.direction is not None and not verdict.repeated:
                self._record(tap, newest, verdict.direction, now_ms)
        self.screen.show(Notice(Say.PUNCHED))
        return verdict

    def punch_tag(self, uid: bytes, pressed: PunchDirection | None = None) -> Verdict:
        """Write a punch of a tag to the journal, marked as not verified: its number proves nothing (terminals.md).

        No list names tags, and none remembers its punches: this terminal does, until it is switched off.
        Raises Refused with the reason.
        """
        now_ms, rules = self.now_ms(), self._punch_rules
        floor_ms = max(self.journal.standing().clock_floor_ms, self.lists.created_ms or 0)
        facts = PunchFacts(list_created_ms=now_ms, clock_floor_ms=floor_ms, last=self._tags.get(uid), pressed=pressed)
        verdict = judge(facts, rules, now_ms)
        if verdict.reason is not None:
            self.screen.show(Notice(Say.REFUSED, reason=verdict.reason))
            raise verdict.reason.refusal()
        if verdict.direction is not None and not verdict.repeated:
            number = uid.rjust(8, b"\0")
            self._report(number, verdict.direction, 0, now_ms, verified=False)
            if len(self._tags) >= MAX_OWED:
                self._tags.pop(next(iter(self._tags)))
            self._tags[uid] = local_time(now_ms, rules.utc_offset_min), verdict.direction
        self.screen.show(Notice(Say.PUNCHED))
        return verdict

    def _left_over(self) -> dict[bytes, Punch]:
        """The punch at the journal's end: the power may have gone before its card had it too."""
        try:
            report = self.journal.entry(self.journal.last_seq).record
        except NotFound:  # a new journal, or one whose entries were all pruned
            return {}
        if not isinstance(report, PunchReport) or not report.verified:
            return {}
        when = local_time(report.utc_ms, self._punch_rules.utc_offset_min)
        at = when.time().replace(microsecond=0)
        return {report.card_serial: Punch(when.date(), at, report.terminal, report.direction, report.sequence)}

    def _facts(self, tap: Tap, newest: Punch | None, pressed: PunchDirection | None) -> PunchFacts:
        info, created_ms, serial = tap.session.public_info, self.lists.created_ms, tap.session.factor
        last = None
        if newest is not None and newest.day is not None and newest.kind in PunchDirection._value2member_map_:
            last = datetime.combine(newest.day, newest.at), PunchDirection(newest.kind)
        floor_ms = max(self.journal.standing().clock_floor_ms, created_ms or 0)
        return PunchFacts(info.start, info.expiry, self.lists.lookup(serial), created_ms, floor_ms, last, pressed)

    def _newest(self, tap: Tap) -> Punch | None:
        """The newest punch that the card knows of, made at whichever terminal."""
        try:
            return Punch.decode(read_record(tap.card, load_profile().file("punches").fid, 1))
        except StatusError as e:
            if e.sw == SW.RECORD_NOT_FOUND:
                return None
            raise

    def _record(self, tap: Tap, newest: Punch | None, direction: PunchDirection, now_ms: int) -> None:
        when = local_time(now_ms, self._punch_rules.utc_offset_min)
        sequence = _after(newest)
        self._report(tap.session.factor, direction, sequence, now_ms)
        at = when.time().replace(microsecond=0)
        self._log(tap, Punch(when.date(), at, self.journal.terminal, direction.value, sequence))

    def _report(
        self, serial: bytes, direction: PunchDirection, sequence: int, now_ms: int, *, verified: bool = True
    ) -> None:
        when = local_when(now_ms, self._punch_rules.utc_offset_min)
        self.journal.report(
            PunchReport(
                self.config.enterprise_id, self.journal.terminal, serial, when, now_ms, direction.value, sequence,
                verified, self.lists.version,
            )
        )  # fmt: skip

    def _log(self, tap: Tap, record: Punch) -> None:
        """Into the card's log; what it could not take is owed to it."""
        try:
            append_record(tap.card, load_profile().file("punches").fid, record.encode())
        except TransportError:
            if len(self._owed) >= MAX_OWED:
                self._owed.pop(next(iter(self._owed)))
            self._owed[tap.session.factor] = record
            raise


def _after(newest: Punch | None) -> int:
    """The number of a card's next punch."""
    return (newest.sequence + 1) & LAST_SEQUENCE if newest else 1
