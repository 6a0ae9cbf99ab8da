"""The way to a card: bytes in, bytes out. Everything else is a decorator around that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from cardlib.apdu import SW, Command, Response, meaning
from cardlib.errors import CardRemoved, Conflict, StatusError

MAX_CHAINED = 64
"""Most GET RESPONSE rounds for one command; a card that promises more is broken."""


class Transport(Protocol):
    """A card, a SAM, or anything that answers APDUs."""

    @property
    def atr(self) -> bytes:
        """Answer to reset."""

    def transceive(self, command: bytes) -> bytes:
        """Send one command APDU, return data and status word. Raises TransportError."""

    def close(self) -> None:
        """Let the card go; calling it twice is allowed."""


def send(card: Transport, command: Command) -> Response:
    """Send a command and return whatever the card says."""
    return Response.decode(card.transceive(command.encode()))


def exchange(card: Transport, command: Command, *also: int) -> bytes:
    """Send a command and return its data. Raises StatusError unless the status is 9000 or one of ``also``."""
    response = send(card, command)
    if response.sw != SW.OK and response.sw not in also:
        raise StatusError(response.sw, command.header, meaning(response.sw))
    return response.data


class Decorator:
    """A transport around another one; subclasses override what they change."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    @property
    def atr(self) -> bytes:
        """Answer to reset of the card inside."""
        return self.inner.atr

    def transceive(self, command: bytes) -> bytes:
        """Pass the command on."""
        return self.inner.transceive(command)

    def close(self) -> None:
        """Close the transport inside."""
        self.inner.close()


class GetResponse(Decorator):
    """Hide T=0: fetch waiting data after 61xx, repeat with the right Le after 6Cxx (ISO 7816-3, 7816-4)."""

    def transceive(self, command: bytes) -> bytes:
        """Return the whole answer as a T=1 or contactless card would give it. Raises StatusError on endless 61xx."""
        answer = self.inner.transceive(command)
        if len(answer) == 2 and answer[0] == 0x6C:
            parsed = Command.decode(command)
            answer = self.inner.transceive(parsed._replace(le=answer[1] or 256).encode())
        data = b""
        for _ in range(MAX_CHAINED):
            if len(answer) < 2 or answer[-2] != 0x61:
                return data + answer
            data += answer[:-2]
            answer = self.inner.transceive(bytes([command[0] & 0x03, 0xC0, 0, 0, answer[-1]]))
        raise StatusError(int.from_bytes(answer[-2:], "big"), command, "the card never stops promising data")


class Recorder(Decorator):
    """Show each exchange to ``sink(command, answer)``; ``answer`` is empty when the card was lost."""

    def __init__(self, inner: Transport, sink: Callable[[bytes, bytes], None]) -> None:
        super().__init__(inner)
        self.sink = sink

    def transceive(self, command: bytes) -> bytes:
        """Pass on, then report, also when it fails."""
        answer = b""
        try:
            answer = self.inner.transceive(command)
        finally:
            self.sink(command, answer)
        return answer


class Replay:
    """Play a recording back strictly: another command, or one too many, is a Conflict that says which."""

    def __init__(self, exchanges: Iterable[tuple[bytes, bytes]], atr: bytes = b"") -> None:
        self._left = list(exchanges)[::-1]
        self._atr = atr

    @property
    def atr(self) -> bytes:
        """Answer to reset as recorded."""
        return self._atr

    def transceive(self, command: bytes) -> bytes:
        """Answer the next recorded command. An empty recorded answer is a lost card."""
        expected, answer = self._left.pop() if self._left else (b"", b"")
        if command != expected:
            raise Conflict(
                f"replay: command {command[:4].hex().upper()} where the recording has "
                f"{expected[:4].hex().upper() or 'nothing more'}"
            )
        if not answer:
            raise CardRemoved("the recorded card was lost here")
        return answer

    def close(self) -> None:
        """Raises Conflict when recorded commands were not asked for."""
        if self._left:
            raise Conflict(f"replay: {len(self._left)} recorded commands were never sent")


class Tearing(Decorator):
    """Pull the card at the n-th command, before it arrives or before its answer does; then it stays away."""

    def __init__(self, inner: Transport, cut_at: int, *, before: bool) -> None:
        super().__init__(inner)
        self.left = cut_at
        self.before = before

    def transceive(self, command: bytes) -> bytes:
        """Raises CardRemoved at the cut and ever after."""
        self.left -= 1
        if self.left > 0:
            return self.inner.transceive(command)
        if self.left == 0 and not self.before:
            self.inner.transceive(command)
        raise CardRemoved("the card was pulled away: present it again")
