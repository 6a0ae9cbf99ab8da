"""Doors at the console: cards come at one of them, lines say what the doors' contacts would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cardlib.transport import Transport
from terminals.access import Access
from terminals.doors import Direction

LOCKED, RELEASED, FREE = ("已锁", "locked"), ("已开锁", "unlocked"), ("常开", "stands unlocked")
DOOR = ("门", "door")


class ConsoleLock:
    """A door's hardware on the console: it says what the lock does, lines say what the door's contact does."""

    def __init__(self, number: int, now_ms: Callable[[], int], tell: Callable[[str], None], language: str) -> None:
        self.is_open = False
        self._number = number
        self._now_ms = now_ms
        self._tell = tell
        self._at = 0 if language == "zh" else 1
        self._free = False
        self._until_ms = 0
        self._shown: tuple[str, str] | None = None

    @property
    def stands_free(self) -> bool:
        """Whether it is unlocked until told otherwise."""
        return self._free

    def release(self, duration_ms: int) -> None:
        """See ``terminals.access.Lock``."""
        self._until_ms = self._now_ms() + duration_ms
        self.look()

    def stand_free(self, free: bool) -> None:
        """See ``terminals.access.Lock``."""
        self._free, self._until_ms = free, 0
        self.look()

    def move(self, is_open: bool) -> None:
        """The door is opened or shut; once shut it is locked."""
        self.is_open = is_open
        if not is_open:
            self._until_ms = 0

    def look(self) -> None:
        """Say when the lock has changed."""
        now = FREE if self._free else RELEASED if self._now_ms() < self._until_ms else LOCKED
        if now is not self._shown:
            self._shown = now
            self._tell(f"{DOOR[self._at]} {self._number}: {now[self._at]}")


class AccessPost:
    """Doors: cards come at the first one, from outside, until a line names another."""

    usage = "door NUMBER [in|out], open NUMBER, shut NUMBER, emergency on|off"

    def __init__(
        self, access: Access, tell: Callable[[str], None], language: str, pin: Callable[[], str | None], operator: str
    ) -> None:
        self._access = access
        self._pin = pin
        self._operator = operator
        doors = access.config.doors
        self._locks = {number: ConsoleLock(number, access.now_ms, tell, language) for number in doors}
        self._door, self._direction = min(doors), Direction.IN
        access.fit_doors({number: (rules, self._locks[number]) for number, rules in doors.items()})

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        passage = self._access.present(card, self._door, self._direction, self._pin)
        return {
            "event": "passage",
            "door": self._door,
            "direction": self._direction.name.lower(),
            "granted": passage.granted,
            "waits": passage.waits,
        }

    def order(self, words: list[str]) -> bool:
        """Another reader, a door's contact, the emergency."""
        match words:
            case ["door" | "open" | "shut", number, *rest] if number.isdecimal() and int(number) in self._locks:
                if words[0] != "door":
                    self._locks[int(number)].move(words[0] == "open")
                    return not rest
                if rest not in ([], ["in"], ["out"]):
                    return False
                self._door, self._direction = int(number), Direction[(rest or ["in"])[0].upper()]
                return True
            case ["emergency", "on" | "off" as way]:
                self._access.emergency(way == "on", self._operator)
                return True
        return False

    def turn(self) -> None:
        """See :class:`Post`."""
        try:
            self._access.tick()
        finally:
            for lock in self._locks.values():
                lock.look()

    def stop(self) -> None:
        """All doors locked."""
        for lock in self._locks.values():
            lock.stand_free(False)
