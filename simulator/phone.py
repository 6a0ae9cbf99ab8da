r"""A simulated phone around a SIM: its menu, keys that a person presses, short messages in and out (ota.md §6).

phone = Phone(sim.phone)
phone.power_on()
assert phone.choose("余额") == "食堂\n主钱包 12.00\n补贴钱包 0.00"
phone.choose("删除应用", "食堂", "123456")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from cardlib.errors import ConfigError, FormatError, StatusError
from cardlib.tlv import Tlv
from simulator.reader import Chip
from simulator.uicc.toolkit import (
    COMPREHENSION,
    DISPLAY_TEXT,
    DOWNLOAD,
    EIGHT_BIT,
    GET_INPUT,
    HAS_HELP,
    HIDDEN,
    MENU_SELECTION,
    REFRESH,
    SELECT_ITEM,
    SEND_SHORT_MESSAGE,
    SET_UP_MENU,
    T_ADDRESS,
    T_ALPHA,
    T_COMMAND,
    T_DEVICES,
    T_FILES,
    T_HELP,
    T_ITEM,
    T_ITEM_ID,
    T_LENGTHS,
    T_RESULT,
    T_TEXT,
    T_TPDU,
    UCS2,
    decode_text,
)

PROFILE = bytes.fromhex("FFFFFFFF7F0D00DFFF")
"""Everything the toolkit asks for, and more: TERMINAL PROFILE of a usual phone."""
LANGUAGES = {"zh": "7A68", "en": "656E"}
ALPHABET = 0x01
NEEDED = {
    SET_UP_MENU: {T_ALPHA, T_ITEM}, DISPLAY_TEXT: {T_TEXT}, SELECT_ITEM: {T_ITEM}, GET_INPUT: {T_TEXT, T_LENGTHS},
    SEND_SHORT_MESSAGE: {T_TPDU},
}  # fmt: skip
"""Objects without which a command means nothing."""
LANGUAGE_FILES = ("00A4040C07A0000000871002", "00A4000C026F05"), ("00A4080C022F05",)
"""Commands that select the USIM's languages, and those of the card."""
DONE, ENDED_BY_USER, BACK, NO_RESPONSE, HELP = 0x00, 0x10, 0x11, 0x12, 0x13
TYPE_UNKNOWN, SMS_FAILED, MISSING = 0x31, 0x35, 0x36


class Screen(NamedTuple):
    """What is shown: a text, a list to choose from, or a field to type into.

    ``hidden``: what is typed is not shown; ``digits``: nothing else is taken; ``has_help``: there is help on it.
    """

    kind: int
    text: str
    items: Mapping[int, str] = MappingProxyType({})
    hidden: bool = False
    lengths: tuple[int, int] = (0, 0)
    digits: bool = False
    has_help: bool = False


class Phone:
    """Powers a SIM and serves its proactive commands; a person's part is played by :meth:`press` and its friends.

    ``send`` takes each SMS-SUBMIT that the SIM sends and says whether the network took it; without it they wait in
    ``outbox``. ``centre`` is the service centre's address as an ENVELOPE carries it. ``operator`` and ``signal`` (0 to
    4 bars) are what its status line shows; without signal nothing is sent. ``unread`` are places in ``inbox``.
    """

    def __init__(self, sim: Chip, *, profile: bytes = PROFILE, send: Callable[[bytes], bool] | None = None) -> None:
        self.sim = sim
        self.profile = profile
        self.send = send
        self.centre = b""
        self.outbox: list[bytes] = []
        self.inbox: list[str] = []
        self.unread: set[int] = set()
        self.operator, self.signal = "ONECARD", 4
        self.language = "en"
        self.refreshed: list[bytes] = []
        self.menu: dict[int, str] = {}
        self.menu_has_help = False
        self.title = ""
        self.screen: Screen | None = None
        self.shown: list[str] = []

    # The line to the SIM ----------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Reset the SIM and tell what this phone can do; the menu appears."""
        self.sim.power_off()
        self.sim.reset()
        self.menu, self.screen, self.title = {}, None, ""
        self._read_language()
        self._command(bytes((0x80, 0x10, 0, 0, len(self.profile))) + self.profile)

    def speak(self, language: str) -> None:
        """Make ``zh`` or ``en`` the SIM's language (6F05 of the USIM), and power on again. Needs no PIN."""
        self._command(bytes.fromhex(LANGUAGE_FILES[0][0]))
        self._command(bytes.fromhex("00D6820002" + LANGUAGES[language]))
        self.power_on()

    def _read_language(self) -> None:
        """What the phone speaks: the first language of the SIM that it knows, else English."""
        codes = {bytes.fromhex(code): name for name, code in LANGUAGES.items()}
        self.language = "en"
        for selects in LANGUAGE_FILES:
            try:
                for select in selects:
                    self._command(bytes.fromhex(select))
                content = self._command(b"\x00\xb0\0\0\0")
            except StatusError:
                continue  # a SIM need not have one
            for code in (content[at : at + 2] for at in range(0, len(content), 2)):
                if code in codes:
                    self.language = codes[code]
                    return

    def deliver(self, tpdu: bytes) -> bytes:
        """Bring an SMS-DELIVER for the SIM; returns what it puts into the delivery report.

        Raises StatusError: 9300 when the SIM is busy, others when it refuses.
        """
        address = Tlv(T_ADDRESS, self.centre) if self.centre else b""
        body = Tlv(T_DEVICES, b"\x83\x81") + address + Tlv(T_TPDU, tpdu)
        return self._envelope(Tlv(DOWNLOAD, body))

    def receive(self, text: str) -> None:
        """Bring a text for the holder."""
        self.unread.add(len(self.inbox))
        self.inbox.append(text)

    def _envelope(self, data: bytes) -> bytes:
        return self._command(bytes((0x80, 0xC2, 0, 0, len(data))) + data)

    def _command(self, command: bytes) -> bytes:
        """Send a command, fetch its data and serve what the SIM wants then. Raises StatusError."""
        answer = self.sim.transceive(command)
        data = b""
        while answer[-2] == 0x61:
            answer = self.sim.transceive(bytes((command[0], 0xC0, 0, 0, answer[-1])))
            data += answer[:-2]
        data = data or answer[:-2]
        if answer[-2] == 0x91:
            self._serve(answer[-1])
        elif answer[-2:] != b"\x90\x00":
            raise StatusError(int.from_bytes(answer[-2:], "big"), command)
        return data

    def _serve(self, size: int) -> None:
        """FETCH, then do it, or show a screen and wait for the person."""
        answer = self.sim.transceive(bytes((0x80, 0x12, 0, 0, size)))
        outer, _ = Tlv.parse(answer[:-2])
        objects = Tlv.parse_list(outer.value)
        values = {one.tag | COMPREHENSION: one.value for one in reversed(objects)}
        self._details = values[T_COMMAND]
        kind = self._details[1]
        if not values.keys() >= NEEDED.get(kind, set()):
            self.respond(MISSING)
            return
        names = {one.value[0]: read_alpha(one.value[1:]) for one in objects if one.tag | 0x80 == T_ITEM and one.value}
        text = read_alpha(values.get(T_ALPHA, b""))
        has_help = self._details[2] & HAS_HELP != 0
        if kind == SET_UP_MENU:
            self.title, self.menu, self.menu_has_help = text, names, has_help
            self.respond(DONE)
        elif kind == DISPLAY_TEXT:
            text = decode_text(values[T_TEXT])
            self.shown.append(text)
            self.screen = Screen(kind, text)
        elif kind == SELECT_ITEM:
            self.screen = Screen(kind, text, names, has_help=has_help)
        elif kind == GET_INPUT:
            low, high = values[T_LENGTHS]
            self.screen = Screen(
                kind, decode_text(values[T_TEXT]), hidden=self._details[2] & HIDDEN != 0, lengths=(low, high),
                digits=self._details[2] & ALPHABET == 0, has_help=has_help,
            )  # fmt: skip
        elif kind == SEND_SHORT_MESSAGE:
            self._send(values[T_TPDU])
        elif kind == REFRESH:
            self.refreshed.append(values.get(T_FILES, b""))
            self._read_language()
            self.respond(DONE)
        else:
            self.respond(TYPE_UNKNOWN)

    def _send(self, tpdu: bytes) -> None:
        if not self.signal:
            self.respond(SMS_FAILED, extra=b"\x00")
        elif self.send is None:
            self.outbox.append(tpdu)
            self.respond(DONE)
        elif self.send(tpdu):
            self.respond(DONE)
        else:
            self.respond(SMS_FAILED, extra=b"\x00")

    def respond(self, result: int, more: bytes = b"", extra: bytes = b"") -> None:
        """TERMINAL RESPONSE to the command under way; the screen is free again."""
        self.screen = None
        head = Tlv(T_COMMAND, self._details) + Tlv(T_DEVICES, b"\x82\x81") + Tlv(T_RESULT, bytes((result,)) + extra)
        data = head + more
        self._command(bytes((0x80, 0x14, 0, 0, len(data))) + data)

    # The person -------------------------------------------------------------------------------------------------

    def open(self, entry: str | int, *, wants_help: bool = False) -> Screen | None:
        """Choose an entry of the SIM's menu by its text or number, or ask for help on it.

        Raises ConfigError when it is not there, StatusError: 9300 when the SIM is busy.
        """
        devices, item = Tlv(T_DEVICES, b"\x01\x81"), Tlv(T_ITEM_ID, bytes((_number(self.menu, entry),)))
        self._envelope(Tlv(MENU_SELECTION, devices + item + (Tlv(T_HELP) if wants_help else b"")))
        return self.screen

    def press(self, key: str | int = "") -> Screen | None:
        """Answer the screen: an item's text or number, what is typed, or nothing for OK; returns the next screen.

        Raises ConfigError when there is no screen, no such item, or the text has a length that is not taken.
        """
        screen = self.screen
        if screen is None:
            raise ConfigError("the phone shows nothing that could be answered")
        if screen.kind == SELECT_ITEM:
            self.respond(DONE, Tlv(T_ITEM_ID, bytes((_number(screen.items, key),))))
        elif screen.kind == GET_INPUT:
            low, high = screen.lengths
            key = str(key)
            if not low <= len(key) <= high:
                raise ConfigError(f"the phone takes {low} to {high} characters, not {len(key)}")
            code = bytes((EIGHT_BIT,)) + key.encode() if key.isascii() else bytes((UCS2,)) + key.encode("utf-16-be")
            self.respond(DONE, Tlv(T_TEXT, code))
        else:
            self.respond(DONE)
        return self.screen

    def back(self) -> None:
        """Go one screen back."""
        self.respond(BACK)

    def help(self) -> Screen | None:
        """Ask the SIM for help on its question; returns the next screen. Raises ConfigError when it offers none."""
        if self.screen is None or not self.screen.has_help:
            raise ConfigError("there is no help on this")
        self.respond(HELP)
        return self.screen

    def leave(self) -> None:
        """Leave the menu."""
        self.respond(ENDED_BY_USER)

    def choose(self, entry: str, *keys: str) -> str:
        """Choose a menu entry, press these keys, read all texts that follow; returns the texts, joined by lines."""
        self.shown.clear()
        self.open(entry)
        for key in keys:
            self.press(key)
        while self.screen is not None and self.screen.kind == DISPLAY_TEXT:
            self.press()
        return "\n".join(self.shown)


def _number(items: Mapping[int, str], entry: str | int) -> int:
    for number, name in items.items():
        if entry in (number, name):
            return number
    raise ConfigError(f"{str(entry)!r} is not on the screen: {', '.join(items.values()) or 'nothing is'}")


def read_alpha(raw: bytes) -> str:
    """A title or item: 80 and UCS2, else the 8-bit default alphabet (what we send is ASCII). Raises FormatError."""
    if raw[:1] in (b"\x81", b"\x82"):
        raise FormatError("alpha identifiers of forms 81 and 82 are not known to this phone")
    return raw[1:].decode("utf-16-be") if raw[:1] == b"\x80" else raw.decode("latin-1")
