"""A time clock at the console: a line presses the direction's key for the next card."""

from __future__ import annotations

from typing import Any

from cardlib.records import PunchDirection
from cardlib.transport import Transport
from terminals.attendance import Attendance


class AttendancePost:
    """Punches; a line presses the direction's key for the next card."""

    usage = ", ".join(one.name.lower() for one in PunchDirection)
    busy = False

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._pressed: PunchDirection | None = None
        attendance.set_punch_rules(attendance.config.punches)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        verdict = self._attendance.punch(card, self._pressed)
        self._pressed = None
        direction = verdict.direction.name.lower() if verdict.direction is not None else ""
        return {"event": "punch", "direction": direction, "repeated": verdict.repeated}

    def order(self, words: list[str]) -> bool:
        """A direction's key."""
        self._pressed = PunchDirection.__members__.get(words[0].upper()) if len(words) == 1 else None
        return self._pressed is not None

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""
