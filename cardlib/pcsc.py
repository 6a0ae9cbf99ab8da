"""Real card readers through PC/SC. The only module that imports pyscard, and only when a reader is asked for.

Errors are told apart by PC/SC's codes, never by message texts, which differ between systems.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cardlib.errors import CardRemoved, ConfigError, Conflict, LineTimeout, OneCardError, ReaderLost, TransportError
from cardlib.readers import Presence

_PRESENT_AGAIN = "present the card again"
_ERRORS: dict[int, tuple[type[OneCardError], str]] = {
    0x80100067: (CardRemoved, f"the card has no power: {_PRESENT_AGAIN}"),
    0x80100068: (CardRemoved, f"another program reset the card: {_PRESENT_AGAIN}"),
    0x80100069: (CardRemoved, f"the card was pulled away: {_PRESENT_AGAIN}"),
    0x80100066: (CardRemoved, f"the card does not answer: {_PRESENT_AGAIN}"),
    0x8010000C: (CardRemoved, "no card on the reader"),
    0x80100016: (CardRemoved, f"the exchange broke off: {_PRESENT_AGAIN}"),
    0x8010002F: (CardRemoved, f"the answer was lost: {_PRESENT_AGAIN}"),
    0x8010000A: (LineTimeout, "no answer in time"),
    0x80100003: (ReaderLost, "the PC/SC service was restarted: connect again"),
    0x80100009: (ReaderLost, "no reader of this name"),
    0x80100017: (ReaderLost, "the reader was unplugged"),
    0x8010001D: (ReaderLost, "the PC/SC service does not run: install pcscd and start it"),
    0x8010001E: (ReaderLost, "the PC/SC service stopped: start pcscd"),
    0x8010002E: (ReaderLost, "no reader is plugged in"),
    0x80100013: (ReaderLost, "the connection to the PC/SC service broke"),
    0x8010000B: (Conflict, "another program is using the card: end it first"),
    0x8010000F: (TransportError, "the card speaks neither T=0 nor T=1"),
    0x80100065: (TransportError, "the card's answer to reset is not understood"),
}
"""PC/SC result code -> our error and what to do (PC/SC part 5, appendix; the same numbers on all systems)."""
_TIMEOUT = 0x8010000A
_NO_READERS = 0x8010002E
_STATE_UNKNOWN, _STATE_UNAVAILABLE, _STATE_PRESENT = 0x0004, 0x0008, 0x0020


@cache
def _scard() -> Any:  # noqa: ANN401  # a module without types
    try:
        from smartcard import scard  # noqa: PLC0415  # optional: everything but real readers works without it
    except ImportError as e:
        raise ConfigError(
            "readers need pyscard, which is not installed: "
            "install gcc, swig and libpcsclite-dev, then run script/setup again"
        ) from e
    return scard


def _check(code: int, what: str) -> None:
    """Raise the error that a PC/SC result code stands for."""
    if code:
        kind, text = _ERRORS.get(code & 0xFFFFFFFF, (TransportError, "PC/SC error"))
        raise kind(f"{what}: {text} ({code & 0xFFFFFFFF:08X})")


def _establish() -> Any:  # noqa: ANN401  # an opaque handle
    code, context = _scard().SCardEstablishContext(_scard().SCARD_SCOPE_SYSTEM)
    _check(code, "PC/SC")
    return context


def list_readers() -> list[str]:
    """Names of the readers that PC/SC knows; empty when none is plugged in. Raises ReaderLost without pcscd."""
    context = _establish()
    try:
        code, names = _scard().SCardListReaders(context, [])
        if code & 0xFFFFFFFF == _NO_READERS:
            return []
        _check(code, "PC/SC")
        return list(names)
    finally:
        _scard().SCardReleaseContext(context)


def find_reader(name_part: str = "") -> str:
    """Return the one reader with this name, or with this in its name. Raises ReaderLost, ConfigError if several."""
    names = list_readers()
    if name_part in names:
        return name_part
    found = [name for name in names if name_part.casefold() in name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"reader {name_part!r} can be any of {', '.join(found)}: give more of its name")
    raise ReaderLost(f"no reader {name_part!r}; plugged in: {', '.join(names) or 'none'}")


def cut_atr(raw: bytes) -> bytes:
    """Cut an answer to reset to its own length (ISO 7816-3 §8.2); pcscd may pad it while a card is powered up."""
    if len(raw) < 2:
        return raw
    end, follows, historical, checked = 2, raw[1] >> 4, raw[1] & 0x0F, False
    while follows:
        end += follows.bit_count()
        if not follows & 0x8 or end > len(raw):
            break
        follows, protocol = raw[end - 1] >> 4, raw[end - 1] & 0x0F
        checked = checked or protocol != 0
    return raw[: end + historical + checked]


def connect(name_part: str = "") -> PcscCard:
    """Power up the card on a reader, named whole or in part. Raises CardRemoved, ReaderLost, Conflict, ConfigError."""
    return PcscCard(find_reader(name_part))


class PcscCard:
    """A card on a reader, held exclusively: nobody can slip a command between two of ours."""

    def __init__(self, reader: str) -> None:
        self.reader = reader
        scard = _scard()
        self._context = _establish()
        try:
            code, self._card, self._protocol = scard.SCardConnect(
                self._context, reader, scard.SCARD_SHARE_EXCLUSIVE, scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
            )
            _check(code, f"reader {reader}")
            code, _, _, _, atr = scard.SCardStatus(self._card)
            _check(code, f"reader {reader}")
        except OneCardError:
            scard.SCardReleaseContext(self._context)
            raise
        self.atr = cut_atr(bytes(atr))
        self._pci = scard.SCARD_PCI_T0 if self._protocol == scard.SCARD_PROTOCOL_T0 else scard.SCARD_PCI_T1
        self._transmit = scard.SCardTransmit

    def transceive(self, command: bytes) -> bytes:
        """Send one command APDU. Raises CardRemoved, ReaderLost, LineTimeout, TransportError."""
        code, answer = self._transmit(self._card, self._pci, list(command))
        if code:
            _check(code, f"reader {self.reader}")
        if len(answer) < 2:  # what vsmartcard's driver makes of a card that leaves with the command
            raise CardRemoved(f"reader {self.reader}: the answer was lost: {_PRESENT_AGAIN}")
        return bytes(answer)

    def close(self) -> None:
        """Reset the card, so that nobody inherits its security state, and let it go."""
        if self._context is not None:
            _scard().SCardDisconnect(self._card, _scard().SCARD_RESET_CARD)
            _scard().SCardReleaseContext(self._context)
            self._context = None


class PcscReader:
    """A reader whose cards come and go; for one thread at a time (see cardlib.readers)."""

    def __init__(self, name_part: str = "") -> None:
        self.name = name_part
        self._context: Any = None

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """Return when a card comes or goes, or after the timeout. Raises ReaderLost; then look again later."""
        try:
            if self._context is None:
                self.name = find_reader(self.name)
                self._context = _establish()
            code, states = _scard().SCardGetStatusChange(self._context, timeout_ms, [(self.name, known.token)])
            if code & 0xFFFFFFFF == _TIMEOUT:
                return known
            _check(code, f"reader {self.name}")
            state = states[0][1]
            if state & (_STATE_UNKNOWN | _STATE_UNAVAILABLE):
                raise ReaderLost(f"reader {self.name}: the reader was unplugged")
        except OneCardError:
            self.close()
            raise
        return Presence(present=bool(state & _STATE_PRESENT), changes=state >> 16, token=state)

    def connect(self) -> PcscCard:
        """Power the card up. Raises CardRemoved, ReaderLost, Conflict."""
        return PcscCard(self.name)

    def close(self) -> None:
        """Let the PC/SC service go; ``wait`` comes back to it."""
        if self._context is not None:
            _scard().SCardReleaseContext(self._context)
            self._context = None


watch = PcscReader
