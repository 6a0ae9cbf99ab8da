"""A time clock at the console: a line presses the direction's key for the next card."""

from __future__ import annotations

from typing import Any

from cardlib.apdu import Command
from cardlib.errors import ConfigError
from cardlib.records import PunchDirection
from cardlib.transport import Transport, exchange
from terminals.attendance import Attendance, Verdict

GET_UID = Command(0xFF, 0xCA, 0, 0, le=0)


class AttendancePost:
    """Punches; a line presses the direction's key for the next card."""

    usage = ", ".join(one.name.lower() for one in PunchDirection)

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._pressed: PunchDirection | None = None
        attendance.set_punch_rules(attendance.config.punches)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        verdict = self._punch(card)
        self._pressed = None
        direction = verdict.direction.name.lower() if verdict.direction is not None else ""
        return {"event": "punch", "direction": direction, "repeated": verdict.repeated}

    def _punch(self, card: Transport) -> Verdict:
        return self._attendance.punch(card, self._pressed)

    def order(self, words: list[str]) -> bool:
        """A direction's key."""
        self._pressed = PunchDirection.__members__.get(words[0].upper()) if len(words) == 1 else None
        return self._pressed is not None

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""


class TagPost(AttendancePost):
    """Punches of tags that tell a number and prove nothing. Raises ConfigError unless the terminal's file allows it."""

    def __init__(self, attendance: Attendance) -> None:
        if not attendance.config.punches.uid_reader:
            raise ConfigError(
                "tags prove nothing, anybody can copy one: to let them punch here, as of an unverified source, write "
                "uid_reader = true in [punches]"
            )
        super().__init__(attendance)

    def _punch(self, card: Transport) -> Verdict:
        return self._attendance.punch_tag(exchange(card, GET_UID), self._pressed)
