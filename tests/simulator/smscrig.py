"""A client, a message centre and phones in one world: lines without sockets, a clock that jumps, faults by seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from backoffice.esme import Esme
from cardlib.errors import TransportError
from cardlib.wire.smpp import Address, Bind, Message
from simulator.smsc import NO_FAULTS, Centre, Faults
from tests import secretwatch

PASSWORD = "s3cr3tPw"
BIND = Bind("office", PASSWORD)
SERVICE = "10690001"
secretwatch.register(PASSWORD, "the message centre's password")


class Clock:
    """Seconds; moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now_s


class End:
    """One end of a line that brings bytes in pieces of any size."""

    def __init__(self, random: Random) -> None:
        self.random, self.other, self.came, self.is_open = random, self, b"", True
        self.is_whole = False

    @classmethod
    def pair(cls, random: Random) -> tuple[End, End]:
        one, two = cls(random), cls(random)
        one.other, two.other = two, one
        return one, two

    def write(self, data: bytes) -> None:
        if not (self.is_open and self.other.is_open):
            raise TransportError("the line is gone")
        self.other.came += data

    def read(self) -> bytes:
        size = 1 << 20 if self.is_whole else self.random.choice((1, 7, 16, 100, 1000))
        piece, self.came = self.came[:size], self.came[size:]
        if not piece and not self.other.is_open:
            raise TransportError("the far end has hung up")
        return piece

    def close(self) -> None:
        self.is_open = False


class Ends:
    """An owner of messages that notes how each ended, and what came."""

    def __init__(self) -> None:
        self.how: dict[str, str] = {}
        self.told: Counter[str] = Counter()
        self.ids: dict[str, str] = {}
        self.came: list[Message] = []
        self.statuses: list[int] = []

    def _note(self, key: str, how: str) -> None:
        self.how[key] = how
        self.told[key] += 1

    def accepted(self, key: str, message_id: str) -> None:
        self.ids[key] = message_id
        self._note(key, "accepted")

    def rejected(self, key: str, status: int) -> None:
        self.statuses.append(status)
        self._note(key, "rejected")

    def lost(self, key: str) -> None:
        self._note(key, "lost")

    def delivered(self, message: Message) -> None:
        self.came.append(message)


class Handset:
    """A phone with a SIM that answers each packet with its own bytes behind 027100."""

    def __init__(self) -> None:
        self.send: Callable[[bytes], bool] | None = None
        self.inbox: list[str] = []
        self.packets: list[bytes] = []
        self.error: Exception | None = None

    def deliver(self, tpdu: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        self.packets.append(tpdu)
        return b"\x02\x71\x00" + tpdu[-4:]

    def receive(self, text: str) -> None:
        self.inbox.append(text)


class World:
    """Client and centre, connected by a line that can be cut."""

    def __init__(self, seed: int = 0, faults: Faults = NO_FAULTS, bind: Bind = BIND, window: int = 10) -> None:
        self.random, self.clock, self.owner = Random(seed), Clock(), Ends()
        self.centre = Centre({BIND.system_id: PASSWORD}, self.clock, faults, seed)
        self.calls = 0
        self.is_up = True
        self.are_whole = False
        self.end: End | None = None
        self.esme = Esme(self._call, bind, self.owner, self.clock, window)

    def _call(self) -> End:
        self.calls += 1
        if not self.is_up:
            raise TransportError("nobody listens")
        self.end, theirs = End.pair(self.random)
        self.end.is_whole = theirs.is_whole = self.are_whole
        self.centre.attach(theirs)
        return self.end

    def phone(self, number: str = "8613800000001") -> Handset:
        handset = Handset()
        self.centre.register(number, handset)
        return handset

    def run(self, seconds: float = 5.0, step_s: float = 0.05) -> None:
        end = self.clock.now_s + seconds
        while self.clock.now_s < end:
            self.esme.poll()
            self.centre.poll()
            self.clock.now_s += step_s

    def cut(self) -> None:
        if self.end is not None:
            self.end.other.close()
            self.end.close()
            self.end.other.came = b""


def message(text: bytes = b"hello", number: str = "8613800000001", **more: int | str) -> Message:
    return Message(Address(SERVICE), Address(number, 1, 1), text, **more)  # type: ignore[arg-type]


def packet(data: bytes, number: str = "8613800000001") -> Message:
    """As ota.md §7 has it."""
    return message(b"\x02\x70\x00" + data, number, esm_class=0x40, protocol_id=0x7F, data_coding=4)
