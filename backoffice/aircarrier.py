"""Ways to phones: a short message centre (SMPP), at a pace (ota.md §7)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from backoffice.chips import phone_number
from backoffice.esme import Esme, Port
from cardlib.errors import FormatError, TransportError
from cardlib.wire import sms
from cardlib.wire.scp80 import COMMAND_UDH
from cardlib.wire.smpp import Address, Bind, Message

ANSWER_S = 60.0
"""How long a phone may take to answer."""
STEP_S = 0.02
BINARY = 0x04
UDHI = 0x40


class Pace:
    """A rate limit: ``pace(n)`` returns when n more messages may leave."""

    def __init__(self, per_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._per_s, self._clock, self._sleep = per_s, clock, sleep
        self._free_s = clock()

    def __call__(self, messages: int) -> None:
        now = self._clock()
        if self._free_s > now:
            self._sleep(self._free_s - now)
        self._free_s = max(self._free_s, now) + messages / self._per_s


class SmppCarrier:
    """Sends by a message centre and waits for what the phone answers; also keeps what phones ask by themselves."""

    def __init__(
        self,
        connect: Callable[[], Port],
        bind: Bind,
        sender: str,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        answer_s: float = ANSWER_S,
        data_coding: int = BINARY,
    ) -> None:
        self._esme = Esme(connect, bind, self, clock)
        self._sender, self._clock, self._sleep, self._answer_s = Address(sender), clock, sleep, answer_s
        self._coding = data_coding
        self._answers: defaultdict[str, deque[bytes]] = defaultdict(deque)
        self._refused: dict[str, int] = {}
        self._taken: set[str] = set()
        self._count = 0
        self.requests: deque[tuple[str, bytes]] = deque()
        """Number and user data of what a SIM sent by itself (ota.md, From the SIM menu)."""

    def carry(self, number: str, user_data: list[bytes]) -> Iterator[bytes]:
        """See ``backoffice.ota_server.Carrier``. Raises TransportError when the centre does not take a message."""
        self._count += 1
        keys = [f"{self._count}/{at}" for at in range(len(user_data))]
        for key, one in zip(keys, user_data, strict=True):
            message = Message(self._sender, Address(number), one, UDHI, sms.PID_DOWNLOAD, self._coding)
            self._esme.submit(key, message)
        until_s = self._clock() + self._answer_s
        while self._clock() < until_s:
            self.poll()
            for key in keys:
                if (status := self._refused.pop(key, 0)) != 0:
                    raise TransportError(f"the message centre does not take a message: status {status:02X}")
            answers = self._answers[number]
            while answers:
                yield answers.popleft()
            self._sleep(STEP_S)
        if not self._taken.issuperset(keys):
            raise TransportError(f"no message could be sent: {self._esme.trouble or 'the message centre is silent'}")

    def text(self, number: str, text: str) -> None:
        """Send a text for the holder, best effort."""
        self._count += 1
        for at, part in enumerate(sms.encode_text(text, self._count & 0xFF)):
            header = UDHI if part.has_header else 0
            message = Message(self._sender, Address(number), sms.to_centre(part), header, 0, part.dcs)
            self._esme.submit(f"{self._count}/{at}", message)

    def poll(self) -> None:
        """Do what is due on the line."""
        self._esme.poll()

    def close(self) -> None:
        """Take leave of the centre."""
        self._esme.close()

    # As the owner of the messages: see backoffice.esme.Owner

    def accepted(self, key: str, message_id: str) -> None:  # noqa: ARG002  # PoRs are not matched by it (ota.md §7)
        """The centre has it."""
        self._taken.add(key)

    def rejected(self, key: str, status: int) -> None:
        """The centre will not take it."""
        self._refused[key] = status

    def lost(self, key: str) -> None:
        """It may be there or not: the phone's answer tells, or its silence."""

    def delivered(self, message: Message) -> None:
        """Sort what came: a request of the menu, or an answer."""
        try:
            number = phone_number(message.source.digits)
        except FormatError:
            return  # no subscriber of ours
        if message.text.startswith(COMMAND_UDH):
            self.requests.append((number, message.text))
        else:
            self._answers[number].append(message.text)
