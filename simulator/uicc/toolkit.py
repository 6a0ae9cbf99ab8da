"""The toolkit of the phone face: profile, FETCH, TERMINAL RESPONSE, ENVELOPE, and what the card asks (ota.md §6).

What the card wants from the phone is a dialogue: a generator that yields proactive commands and gets back what the
phone answered. One runs at a time, the others wait.
"""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from cardlib.apdu import SW
from cardlib.errors import FormatError
from cardlib.tlv import Tlv
from cardlib.wire.sms import decode_text as unpacked
from simulator.handlers import Refusal

if TYPE_CHECKING:
    from simulator.uicc.face import Channel, Uicc

BUSY = 0x9300
REFUSED, REFUSED_GSM, GSM_CLASS = 0x6200, 0x9E00, 0xA0
"""A packet without PoR that was refused, in both classes (ota.md §3)."""
PENDING = 0x91
NUMBER = 1
"""Of every command: there is one at a time."""
CARD, PHONE, DISPLAY, NETWORK, KEYPAD = 0x81, 0x82, 0x02, 0x83, 0x01
REFRESH, SEND_SHORT_MESSAGE, DISPLAY_TEXT, GET_INPUT, SELECT_ITEM, SET_UP_MENU = 0x01, 0x13, 0x21, 0x23, 0x24, 0x25
SUPPORT = {REFRESH: 23, SEND_SHORT_MESSAGE: 25, DISPLAY_TEXT: 16, GET_INPUT: 18, SELECT_ITEM: 24, SET_UP_MENU: 29}
"""Bit of TERMINAL PROFILE, counted from bit 1 of byte 1, which is 0 (TS 102 223 5.2)."""

USERS = (DISPLAY_TEXT, GET_INPUT, SELECT_ITEM)
"""Commands to the user, which a phone that can't do them is not given: the dialogue hears so at once."""

DOWNLOAD, MENU_SELECTION = 0xD1, 0xD3
KNOWN_ENVELOPES = range(0xD1, 0xE5)
T_COMMAND, T_DEVICES, T_RESULT, T_ALPHA, T_ADDRESS, T_TPDU, T_TEXT = 0x81, 0x82, 0x83, 0x85, 0x86, 0x8B, 0x8D
T_ITEM, T_ITEM_ID, T_LENGTHS, T_FILES, T_HELP = 0x8F, 0x90, 0x91, 0x92, 0x95
COMPREHENSION = 0x80
NEEDS_USER, HIGH_PRIORITY, HIDDEN, HAS_HELP = 0x80, 0x01, 0x04, 0x80
EIGHT_BIT, UCS2 = 0x04, 0x08
OK_RESULTS = range(0x10)
ENDED, BACK, HELP, BEYOND = 0x10, 0x11, 0x13, 0x30
TEMPORARY_RESULTS = (0x20, 0x21)
TRIES = 3
PLAIN = frozenset(b" !\"#%&'()*+,-./0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\n")
"""Where ASCII and the default alphabet agree."""


class Command(NamedTuple):
    """A proactive command: type, qualifier, device it goes to, further objects."""

    kind: int
    qualifier: int
    device: int
    objects: bytes

    def encode(self) -> bytes:
        """As FETCH brings it."""
        head = Tlv(T_COMMAND, bytes((NUMBER, self.kind, self.qualifier))) + Tlv(T_DEVICES, bytes((CARD, self.device)))
        return Tlv(0xD0, head + self.objects)


class Answer(NamedTuple):
    """What the phone did: general result, chosen item, text."""

    result: int
    item: int = 0
    text: str = ""

    @property
    def good(self) -> bool:
        """Whether it was done."""
        return self.result in OK_RESULTS


Dialogue: TypeAlias = Generator[Command, Answer, None]


class Remote(Protocol):
    """The card's end of secured packets (simulator/uicc/packets.py)."""

    def download(self, tpdu: bytes, centre: bytes) -> tuple[bytes, int]:
        """Take an SMS-DELIVER from a service centre (may be empty); answer data and a status word."""

    def request(self, slot: int, body: bytes) -> list[bytes]:
        """SMS-SUBMITs to the service number that carry ``body`` secured under the key set of a slot (menu)."""

    def reset(self) -> None:
        """The card was reset."""


class Toolkit:
    """The proactive side of one face. ``menu`` off: nothing is ever asked unasked. ``chinese``: its menu."""

    def __init__(self, face: Uicc) -> None:
        self.face = face
        self.menu = True
        self.remote: Remote | None = None
        self.reset()

    def reset(self) -> None:
        """Forget profile, dialogues and whatever waits."""
        self.profile = b""
        self._waiting: deque[tuple[Dialogue, bool]] = deque()
        self._dialogue: Dialogue | None = None
        self._from_envelope = False
        self._command: Command | None = None
        self._fetched = False
        self._tries = 0
        self.chinese: bool | None = None

    # What the card wants ----------------------------------------------------------------------------------------

    def supports(self, kind: int) -> bool:
        """Whether the phone said that it can do this type of command."""
        bit = SUPPORT[kind]
        return len(self.profile) > bit // 8 and self.profile[bit // 8] >> bit % 8 & 1 == 1

    def start(self, dialogue: Dialogue, *, from_envelope: bool = False) -> None:
        """Run a dialogue when its turn comes."""
        self._waiting.append((dialogue, from_envelope))
        if self._command is None:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            self._dialogue, self._from_envelope = self._waiting.popleft()
            if self._advance(None):
                return

    def _advance(self, answer: Answer | None) -> bool:
        """Give the running dialogue an answer (None begins it). Whether it has another command."""
        assert self._dialogue is not None
        self._command, self._fetched, self._tries = None, False, 0
        try:
            command = next(self._dialogue) if answer is None else self._dialogue.send(answer)
            while command.kind in USERS and self.profile and not self.supports(command.kind):
                command = self._dialogue.send(Answer(BEYOND))
        except StopIteration:
            return False
        self._command = command
        return True

    @property
    def busy(self) -> bool:
        """Whether the consequences of an ENVELOPE are still under way."""
        running = self._command is not None and self._from_envelope
        return running or any(from_envelope for _, from_envelope in self._waiting)

    def announce(self, answer: bytes) -> bytes:
        """Tell that a command waits: 91xx instead of 9000."""
        if self._command is None or self._fetched or answer[-2:] != b"\x90\x00":
            return answer
        return answer[:-2] + bytes((PENDING, len(self._command.encode()) & 0xFF))

    # Commands of the phone --------------------------------------------------------------------------------------

    def begin(self, profile: bytes) -> None:
        """TERMINAL PROFILE came: set up the menu if the phone can."""
        from simulator.uicc.menu import set_up  # noqa: PLC0415  # the menu knows the toolkit

        self.reset()
        self.profile = profile
        if self.menu and self.supports(SET_UP_MENU):
            self.start(set_up(self.face))

    def fetched(self, wanted: int) -> bytes:
        """The command that waits. Raises Refusal."""
        if self._command is None:
            raise Refusal(SW.CONDITIONS)
        encoded = self._command.encode()
        if wanted not in (0, len(encoded)):
            raise Refusal(0x6C00 | len(encoded) & 0xFF)
        self._fetched = True
        return encoded

    def respond(self, data: bytes) -> None:
        """TERMINAL RESPONSE: objects in any order, comprehension bits either way. Raises Refusal."""
        command = self._command
        if command is None or not self._fetched:
            raise Refusal(SW.CONDITIONS)
        objects = parse(data)
        result = objects.get(T_RESULT, b"")
        details = objects.get(T_COMMAND, b"")
        if len(details) != 3 or details[:2] != bytes((NUMBER, command.kind)) or not result:
            raise Refusal(SW.DATA)
        if result[0] in TEMPORARY_RESULTS and self._tries < TRIES:
            self._fetched, self._tries = False, self._tries + 1
            return
        item = objects.get(T_ITEM_ID, b"\0")
        if not self._advance(Answer(result[0], item[0] if item else 0, decode_text(objects.get(T_TEXT, b"")))):
            self._next()

    def enveloped(self, data: bytes) -> tuple[bytes, int]:
        """ENVELOPE: answer data and status word. Raises Refusal."""
        from simulator.uicc.menu import selected  # noqa: PLC0415  # the menu knows the toolkit

        try:
            outer, rest = Tlv.parse(data)
        except FormatError:
            raise Refusal(SW.DATA) from None
        if rest or outer.tag not in KNOWN_ENVELOPES:
            raise Refusal(SW.DATA)
        if outer.tag not in (DOWNLOAD, MENU_SELECTION):
            return b"", SW.OK
        if self.busy:
            return b"", BUSY
        objects = parse(outer.value)
        if outer.tag == DOWNLOAD:
            if T_TPDU not in objects:
                raise Refusal(SW.DATA)
            if self.remote is None:
                return b"", SW.OK
            return self.remote.download(objects[T_TPDU], objects.get(T_ADDRESS, b""))
        item = objects.get(T_ITEM_ID, b"")
        if len(item) != 1:
            raise Refusal(SW.DATA)
        self.start(selected(self.face, item[0], wants_help=T_HELP in objects), from_envelope=True)
        return b"", SW.OK


def parse(data: bytes) -> dict[int, bytes]:
    """Comprehension objects by tag with the bit set; of several with one tag the first. Raises Refusal."""
    try:
        return {one.tag | COMPREHENSION: one.value for one in reversed(Tlv.parse_list(data))}
    except FormatError:
        raise Refusal(SW.DATA) from None


# Commands to the phone --------------------------------------------------------------------------------------------


def alpha(text: str) -> bytes:
    """A title or item: 8-bit default alphabet, or 80 and UCS2 (TS 102 221 Annex A)."""
    raw = text.encode("utf-8")
    return raw if PLAIN.issuperset(raw) else b"\x80" + text.encode("utf-16-be")


def coded(text: str) -> bytes:
    """A text string: coding scheme and text."""
    raw = text.encode("utf-8")
    return bytes((EIGHT_BIT,)) + raw if PLAIN.issuperset(raw) else bytes((UCS2,)) + text.encode("utf-16-be")


def decode_text(coded: bytes) -> str:
    """A text string from the phone; what can't be decoded becomes a replacement character."""
    if not coded:
        return ""
    kind, raw = coded[0] & 0x0C, coded[1:]
    if kind == UCS2:
        return raw.decode("utf-16-be", "replace")
    if kind == EIGHT_BIT:
        return raw.decode("latin-1")
    text = unpacked(0, len(raw) * 8 // 7, raw, has_header=False)[1]
    # Seven characters leave room for an eighth, which is no character (TS 23.038 6.1.2.2).
    return text[:-1] if text.endswith(("@", "\r")) and len(raw) % 7 == 0 else text


def items(title: str, names: dict[int, str]) -> bytes:
    """Title and items of a menu; no items: one empty item, which removes it."""
    rows = [Tlv(T_ITEM, bytes((number,)) + alpha(name)) for number, name in names.items()] or [Tlv(T_ITEM)]
    return Tlv(T_ALPHA, alpha(title)) + b"".join(rows)


def menu(title: str, names: dict[int, str]) -> Command:
    """SET UP MENU, with help on each entry."""
    return Command(SET_UP_MENU, HAS_HELP, PHONE, items(title, names))


def choose(title: str, names: dict[int, str]) -> Command:
    """SELECT ITEM, with help."""
    return Command(SELECT_ITEM, HAS_HELP, PHONE, items(title, names))


def show(text: str) -> Command:
    """DISPLAY TEXT, until the user has read it."""
    return Command(DISPLAY_TEXT, NEEDS_USER | HIGH_PRIORITY, DISPLAY, Tlv(T_TEXT, coded(text)))


def ask_digits(prompt: str, lowest: int, highest: int) -> Command:
    """GET INPUT of digits that are not shown, with help."""
    lengths = Tlv(T_LENGTHS, bytes((lowest, highest)))
    return Command(GET_INPUT, HIDDEN | HAS_HELP, PHONE, Tlv(T_TEXT, coded(prompt)) + lengths)


def send(tpdu: bytes, centre: bytes = b"") -> Command:
    """SEND SHORT MESSAGE: an SMS-SUBMIT, by a service centre or the phone's own."""
    return Command(SEND_SHORT_MESSAGE, 0, NETWORK, (Tlv(T_ADDRESS, centre) if centre else b"") + Tlv(T_TPDU, tpdu))


def refresh(paths: list[bytes]) -> Command:
    """REFRESH of these files (paths from 3F00 on)."""
    return Command(REFRESH, 1, PHONE, Tlv(T_FILES, bytes((len(paths),)) + b"".join(paths)))


def once(command: Command) -> Dialogue:
    """A dialogue of one command whose answer doesn't matter."""
    yield command


# Handlers ---------------------------------------------------------------------------------------------------------


def terminal_profile(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """TERMINAL PROFILE."""
    if not data:
        raise Refusal(SW.LENGTH)
    face.toolkit.begin(data)
    return b""


def fetch(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """FETCH."""
    return face.toolkit.fetched(le)


def terminal_response(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """TERMINAL RESPONSE."""
    face.toolkit.respond(data)
    return b""


def envelope(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """ENVELOPE."""
    answer, channel.sw = face.toolkit.enveloped(data)
    if channel.sw == REFUSED and face.command[0] == GSM_CLASS:
        channel.sw = REFUSED_GSM
    return answer
