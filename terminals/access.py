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

from cardlib.errors import OneCardError, Refused, TransportError
from cardlib.iso7816 import read_binary, read_record, update_record
from cardlib.profile import AccessRights, LastPassage, load_profile
from cardlib.purse import CardSession
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
            rights, before = read_rights(tap.card, tap.session), self._last_passage(tap)
            ask = None if pin is None else lambda: self._ask_pin(tap, pin)
            return self._pass(place, direction, tap.session.factor, rights, before, ask, tap)

    def present_verified(
        self, serial: bytes, rights: AccessRights, door: int, direction: Direction, head: str
    ) -> Passage:
        """Decide for a card that a reader head with a SAM of its own has verified (osdp.md); the journal says so.

        Nothing is written to the card, so anti-passback knows of this terminal's passages only, and no PIN can be
        asked for. Raises as ``present`` does.
        """
        self.journal.note("verified_by_head", f"{head} card {serial.hex().upper()}")
        return self._pass(self._doors[door], direction, serial, rights, LastPassage.of(), None, None)

    def _pass(
        self, place: _Door, direction: Direction, serial: bytes, rights: AccessRights, before: LastPassage,
        ask: Callable[[], Pin] | None, tap: Tap | None,
    ) -> Passage:  # fmt: skip
        """From what is known of a card to the lock; ``tap`` None when the card itself is not here."""
        try:
            passage = self._decide(place, direction, serial, rights, before, ask)
        except Refused as e:
            self._report(serial, place, direction, False, e.reason)
            self.screen.show(Notice(Say.REFUSED, reason=BY_CODE.get(e.reason)))
            raise
        if passage.waits:
            place.partner = Partner(serial, bool(rights.flags & CardFlag.ESCORTED), self.now_ms())
            self.screen.show(Notice(Say.PRESENT_SECOND))
            return passage
        self._grant(serial, place, direction, passage, before, tap)
        return passage

    def _decide(
        self, place: _Door, direction: Direction, serial: bytes, rights: AccessRights, before: LastPassage,
        ask: Callable[[], Pin] | None,
    ) -> Passage:  # fmt: skip
        now_ms, rules = self.now_ms(), place.rules
        standing, created_ms = self.journal.standing(), self.lists.created_ms
        facts = PassFacts(
            serial, direction, int.from_bytes(rights.groups, "big"), rights.schedule,
            CardFlag(rights.flags & 7), rights.valid_from, rights.valid_until, self.lists.lookup(serial),
            created_ms, max(standing.clock_floor_ms, created_ms or 0), last_seen=self._last_seen(serial, before),
            open_doors=frozenset(number for number, one in self._doors.items() if one.lock.is_open),
            first_seen=place.first_day == local_time(now_ms, rules.utc_offset_min).date(), partner=place.partner,
        )  # fmt: skip
        passage = may_pass(facts, rules, now_ms)
        if passage.reason is Reason.PIN_REQUIRED and ask is not None:
            passage = may_pass(replace(facts, pin=ask()), rules, now_ms)
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

    def _last_seen(self, serial: bytes, record: LastPassage) -> LastSeen | None:
        """Where the card was last: its own record, unless this terminal knows of something later."""
        on_card = LastSeen(record.zone, datetime.combine(record.day, record.at)) if record.day else None
        here = self._seen.get(serial)
        if on_card is None or here is None:
            return on_card or here
        return max(on_card, here, key=lambda seen: seen.when)

    def _grant(
        self, serial: bytes, place: _Door, direction: Direction, passage: Passage, before: LastPassage, tap: Tap | None
    ) -> None:
        """Card, journal, lock, in this order: a door never opens for what is written nowhere."""
        now_ms = self.now_ms()
        when = local_time(now_ms, place.rules.utc_offset_min).replace(microsecond=0)
        zone = place.rules.target(direction)
        record = LastPassage.of(zone, when.date(), when.time(), direction.value)
        if tap is not None:
            self._write_passage(tap, record, before)
        reason = Reason.ANTI_PASSBACK.code if passage.violation else ""
        self._report(serial, place, direction, True, reason)
        if passage.duress:
            self.journal.note("duress", f"door {place.rules.door} card {serial.hex().upper()}")
        try:
            place.lock.release(place.rules.release_ms)
        except OneCardError:  # nobody went through: what the card says of it does not count
            self._torn[serial] = record.encode(), before
            self.journal.note("lock_failed", f"door {place.rules.door}")
            raise
        if len(self._seen) >= MAX_REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen.pop(serial, None)
        self._seen[serial] = LastSeen(zone, when)
        place.partner = None
        place.first_day = when.date()
        place.state = place.state.released(now_ms, place.rules.release_ms)
        self.screen.show(Notice(Say.PASS))

    def _write_passage(self, tap: Tap, record: LastPassage, before: LastPassage) -> None:
        raw, fid = record.encode(), load_profile().file("composite").fid
        try:
            update_record(tap.card, fid, PASSAGE_RECORD, raw, by_tag=True)
        except TransportError:
            self._torn[tap.session.factor] = raw, before
            raise
        self._torn.pop(tap.session.factor, None)

    def _report(self, serial: bytes, place: _Door, direction: Direction, granted: bool, reason: str) -> None:
        now_ms, rules = self.now_ms(), place.rules
        self.journal.report(
            PassageReport(
                self.config.enterprise_id, self.journal.terminal, serial,
                local_when(now_ms, rules.utc_offset_min), now_ms, rules.target(direction), rules.door,
                direction.value, granted, reason, self.lists.version,
            )
        )  # fmt: skip

    @property
    def in_emergency(self) -> bool:
        """Whether all doors stand open because somebody said so."""
        return self._emergency

    # --- the doors themselves --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at every door: note what it did, lock or unlock it by the hours. Call it some times a second."""
        now_ms = self.now_ms()
        for number, place in self._doors.items():
            self.look(number, place.lock.is_open)
            today = local_time(now_ms, place.rules.utc_offset_min).date()
            free = stands_free(place.rules, now_ms, first_seen=place.first_day == today, emergency=self._emergency)
            if free is not place.free:
                place.free = free
                place.lock.stand_free(free)

    def look(self, door: int, contact_open: bool) -> None:
        """Take in what a door's contact said; each change counts, also those between two calls of ``tick``."""
        place = self._doors[door]
        place.state, events = watch(place.state, contact_open, place.rules, self.now_ms())
        for event in events:
            self.journal.note(event.value, f"door {door}")

    def emergency(self, on: bool, operator: str) -> None:
        """Open all doors until it is called off. Raises Refused(no_operator)."""
        if not operator:
            raise Reason.NO_OPERATOR.refusal()
        self._emergency = on
        self.journal.note("emergency", f"{'on' if on else 'off'} by {operator}")
        self.tick()


def read_rights(card: Transport, session: CardSession) -> AccessRights:
    """An authenticated card's rights (0019), valid only while its application is. Raises as any reading does."""
    info, rights = session.public_info, AccessRights.decode(read_binary(card, load_profile().file("access").fid))
    return replace(
        rights, valid_from=max(_days(info.start, rights.valid_from), default=None),
        valid_until=min(_days(info.expiry, rights.valid_until), default=None),
    )  # fmt: skip


def _days(*days: date | None) -> list[date]:
    return [day for day in days if day is not None]
