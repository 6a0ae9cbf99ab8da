"""The door terminal: authenticate, decide, write the passage to the card and the journal, then release the lock.

A card pulled away before its record was written opens nothing. One pulled away while it was written may hold a
passage that never happened: the terminal remembers what it was writing, so that anti-passback does not lock its
holder out (terminals.md, Access).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Protocol

from cardlib.errors import Refused, TransportError
from cardlib.iso7816 import read_binary, read_record, update_record
from cardlib.profile import AccessRights, LastPassage, load_profile
from cardlib.records import PassageReport, local_when
from cardlib.transport import Transport
from terminals.doors import (
    CardFlag,
    Direction,
    DoorRules,
    DoorState,
    LastSeen,
    Partner,
    Passage,
    PassFacts,
    Pin,
    may_pass,
    stands_free,
    watch,
)
from terminals.policy import local_time
from terminals.reasons import BY_CODE, Reason
from terminals.runtime import Tap, Terminal
from terminals.screen import Notice, Say

PASSAGE_RECORD = 2
"""Composite record of the last passage in 0017 (profile.md)."""
MAX_REMEMBERED = 100_000


class Lock(Protocol):
    """A door's hardware: OSDP, a relay, or simulated."""

    @property
    def is_open(self) -> bool:
        """The door's contact."""

    def release(self, duration_ms: int) -> None:
        """Unlock for a while, or until the door was opened and closed."""

    def stand_free(self, free: bool) -> None:
        """Unlock until told otherwise, or back to locked."""


@dataclass(slots=True)
class _Door:
    rules: DoorRules
    lock: Lock
    state: DoorState
    first_day: date | None = None
    partner: Partner | None = None
    free: bool = False


class Access(Terminal):
    """One terminal with its doors. ``present`` serves one card, ``tick`` looks at the doors themselves."""

    def fit_doors(self, doors: Mapping[int, tuple[DoorRules, Lock]]) -> None:
        """Say which doors there are, by number; all are locked, whatever was before (a power cut's safe state)."""
        self._doors = {number: _Door(rules, lock, DoorState()) for number, (rules, lock) in doors.items()}
        self._seen: dict[bytes, LastSeen] = {}
        self._torn: dict[bytes, tuple[bytes, LastPassage]] = {}
        self._emergency = False
        for door in self._doors.values():
            door.lock.stand_free(False)

    def present(
        self, card: Transport, door: int = 1, direction: Direction = Direction.IN,
        pin: Callable[[], str | None] | None = None,
    ) -> Passage:  # fmt: skip
        """Let a card pass, or say that a second one has to follow. ``pin`` asks for digits where the hours want it.

        Raises Refused with the reason, TransportError when the card is gone: the door stays shut.
        """
        place = self._doors[door]
        with self.tap(card) as tap:
            rights = AccessRights.decode(read_binary(tap.card, load_profile().file("access").fid))
            before = self._last_passage(tap)
            try:
                passage = self._decide(tap, place, direction, pin, rights, before)
            except Refused as e:
                self._report(tap, place, direction, False, e.reason)
                self.screen.show(Notice(Say.REFUSED, reason=BY_CODE.get(e.reason)))
                raise
            if passage.waits:
                escorted = bool(rights.flags & CardFlag.ESCORTED)
                place.partner = Partner(tap.session.factor, escorted, self.now_ms())
                self.screen.show(Notice(Say.PRESENT_SECOND))
                return passage
            self._grant(tap, place, direction, passage, before)
        return passage

    def _decide(
        self, tap: Tap, place: _Door, direction: Direction, pin: Callable[[], str | None] | None,
        rights: AccessRights, before: LastPassage,
    ) -> Passage:  # fmt: skip
        now_ms, rules = self.now_ms(), place.rules
        info, standing, created_ms = tap.session.public_info, self.journal.standing(), self.lists.created_ms
        facts = PassFacts(
            tap.session.factor, direction, int.from_bytes(rights.groups, "big"), rights.schedule,
            CardFlag(rights.flags & 7), max(_days(info.start, rights.valid_from), default=None),
            min(_days(info.expiry, rights.valid_until), default=None), self.lists.lookup(tap.session.factor),
            created_ms, max(standing.clock_floor_ms, created_ms or 0), last_seen=self._last_seen(tap, before),
            open_doors=frozenset(number for number, one in self._doors.items() if one.lock.is_open),
            first_seen=place.first_day == local_time(now_ms, rules.utc_offset_min).date(), partner=place.partner,
        )  # fmt: skip
        passage = may_pass(facts, rules, now_ms)
        if passage.reason is Reason.PIN_REQUIRED and pin is not None:
            passage = may_pass(replace(facts, pin=self._ask_pin(tap, pin)), rules, now_ms)
        if passage.reason is not None:
            raise passage.reason.refusal()
        return passage

    def _ask_pin(self, tap: Tap, ask: Callable[[], str | None]) -> Pin:
        """The holder's PIN; one whose last digit is one too high is his under duress (terminals.md, Access)."""
        digits = ask()
        if digits is None:
            raise Reason.PIN_REQUIRED.refusal()
        try:
            self.verify_pin(tap, digits)
        except Refused as e:
            if e.reason != Reason.PIN_WRONG.code:
                raise
            meant = digits[:-1] + str((int(digits[-1]) - 1) % 10)
            self.verify_pin(tap, meant)
            return Pin.DURESS
        return Pin.VERIFIED

    def _last_passage(self, tap: Tap) -> LastPassage:
        """The card's record; one written as the card was pulled away does not count, nobody went through."""
        raw = read_record(tap.card, load_profile().file("composite").fid, PASSAGE_RECORD, by_tag=True)
        torn, before = self._torn.get(tap.session.factor, (b"", None))
        return before if before is not None and raw == torn else LastPassage.decode(raw)

    def _last_seen(self, tap: Tap, record: LastPassage) -> LastSeen | None:
        """Where the card was last: its own record, unless this terminal knows of something later."""
        on_card = LastSeen(record.zone, datetime.combine(record.day, record.at)) if record.day else None
        here = self._seen.get(tap.session.factor)
        if on_card is None or here is None:
            return on_card or here
        return max(on_card, here, key=lambda seen: seen.when)

    def _grant(self, tap: Tap, place: _Door, direction: Direction, passage: Passage, before: LastPassage) -> None:
        """Card, journal, lock, in this order: a door never opens for what is written nowhere."""
        serial, now_ms = tap.session.factor, self.now_ms()
        when = local_time(now_ms, place.rules.utc_offset_min).replace(microsecond=0)
        zone = place.rules.target(direction)
        self._write_passage(tap, LastPassage.of(zone, when.date(), when.time(), direction.value), before)
        reason = Reason.ANTI_PASSBACK.code if passage.violation else ""
        self._report(tap, place, direction, True, reason)
        if passage.duress:
            self.journal.note("duress", f"door {place.rules.door} card {serial.hex().upper()}")
        if len(self._seen) >= MAX_REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen.pop(serial, None)
        self._seen[serial] = LastSeen(zone, when)
        place.partner = None
        place.first_day = when.date()
        place.state = place.state.released(now_ms, place.rules.release_ms)
        place.lock.release(place.rules.release_ms)
        self.screen.show(Notice(Say.PASS))

    def _write_passage(self, tap: Tap, record: LastPassage, before: LastPassage) -> None:
        raw, fid = record.encode(), load_profile().file("composite").fid
        try:
            update_record(tap.card, fid, PASSAGE_RECORD, raw, by_tag=True)
        except TransportError:
            self._torn[tap.session.factor] = raw, before
            raise
        self._torn.pop(tap.session.factor, None)

    def _report(self, tap: Tap, place: _Door, direction: Direction, granted: bool, reason: str) -> None:
        now_ms, rules = self.now_ms(), place.rules
        self.journal.report(
            PassageReport(
                self.config.enterprise_id, self.journal.terminal, tap.session.factor,
                local_when(now_ms, rules.utc_offset_min), now_ms, rules.target(direction), rules.door,
                direction.value, granted, reason, self.lists.version,
            )
        )  # fmt: skip

    # --- the doors themselves --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at every door: note what it did, lock or unlock it by the hours. Call it some times a second."""
        now_ms = self.now_ms()
        for number, place in self._doors.items():
            place.state, events = watch(place.state, place.lock.is_open, place.rules, now_ms)
            for event in events:
                self.journal.note(event.value, f"door {number}")
            today = local_time(now_ms, place.rules.utc_offset_min).date()
            free = stands_free(place.rules, now_ms, first_seen=place.first_day == today, emergency=self._emergency)
            if free is not place.free:
                place.free = free
                place.lock.stand_free(free)

    def emergency(self, on: bool, operator: str) -> None:
        """Open all doors until it is called off. Raises Refused(no_operator)."""
        if not operator:
            raise Reason.NO_OPERATOR.refusal()
        self._emergency = on
        self.journal.note("emergency", f"{'on' if on else 'off'} by {operator}")
        self.tick()


def _days(*days: date | None) -> list[date]:
    return [day for day in days if day is not None]
