"""A test desk: sends commands to a simulated card and computes what a terminal or host would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.profile import CardKind, aid, make_serial
from simulator import image
from simulator.card import Card, ScriptedRandom
from simulator.hostile import Chip
from simulator.sam import SamCard

TERMINAL = bytes.fromhex("310000000101")
WHEN = bytes.fromhex("20240815093045")
ENTERPRISE = 1001
SERIAL = make_serial(CardKind.CPU_CARD, 1, 7)
SAM_SERIAL = make_serial(CardKind.SAM, 1, 1)
PURPOSES = (
    "control", "terminal", "recharge", "card", "maintenance", "pin_unblock",
    "purchase", "load", "refund", "unload", "tac",
)  # fmt: skip
MASTERS = {name: bytes(range(i * 16 + 1, i * 16 + 17)) for i, name in enumerate(PURPOSES)}
CONTROL = bytes.fromhex("C0C1C2C3C4C5C6C7C8C9CACBCCCDCECF")
LINE = bytes.fromhex("D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF")
TRANSPORT_KEY = bytes.fromhex("A0A1A2A3A4A5A6A7A8A9AAABACADAEAF")
PIN = "123456"


@cache
def vectors() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "vectors" / "pboc.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def zeros(size: int) -> bytes:
    return bytes(size)


class Desk:
    """One card and what is sent to it. Commands are hex texts or bytes; the status word is checked."""

    def __init__(self, card: Chip) -> None:
        self.chip = card

    @property
    def card(self) -> Card:
        assert isinstance(self.chip, Card)
        return self.chip

    @property
    def sam(self) -> SamCard:
        assert isinstance(self.chip, SamCard)
        return self.chip

    def __call__(self, command: str | bytes, sw: int = 0x9000) -> bytes:
        raw = bytes.fromhex(command) if isinstance(command, str) else command
        answer = self.chip.transceive(raw)
        assert answer[-2:].hex().upper() == f"{sw:04X}", f"{raw[:4].hex().upper()} -> {answer[-2:].hex().upper()}"
        return answer[:-2]

    def select(self, name: bytes | int = ENTERPRISE, sw: int = 0x9000) -> bytes:
        chosen = aid(name) if isinstance(name, int) else name
        return self(b"\x00\xa4\x04\x00" + bytes((len(chosen),)) + chosen, sw)

    def challenge(self, size: int = 4) -> bytes:
        return self(bytes((0, 0x84, 0, 0, size)))

    def authenticate(self, kid: int, key: Key, sw: int = 0x9000) -> None:
        cryptogram = key.cryptogram(self.challenge(8))
        self(bytes((0, 0x82, 0, kid, 8)) + cryptogram, sw)

    def wrap(self, header: str, data: bytes, key: Key, encrypt: bool = False, le: int | None = None) -> bytes:
        """A command under secure messaging with a fresh challenge of 4 bytes."""
        return protect(header, data, key, self.challenge(), encrypt, le)

    def secured(self, header: str, data: bytes, key: Key, sw: int = 0x9000, encrypt: bool = False) -> bytes:
        return self(self.wrap(header, data, key, encrypt), sw)

    def write_key(self, p1: int, kid: int, record: bytes, under: Key, sw: int = 0x9000) -> None:
        self.secured(f"84D4{p1:02X}{kid:02X}", record, under, sw, encrypt=True)

    def initialize(self, p1: int, p2: int, amount: int, kid: int = 1, sw: int = 0x9000) -> bytes:
        body = bytes((kid,)) + (b"" if p1 == 4 else amount.to_bytes(4, "big")) + TERMINAL
        return self(bytes((0x80, 0x50, p1, p2, len(body))) + body, sw)

    def load(self, purse: int, amount: int, key: Key, kid: int = 1, sw: int = 0x9000) -> bytes:
        """Load; returns the TAC."""
        return self(self.load_command(purse, amount, key, kid), sw)

    def load_command(self, purse: int, amount: int, key: Key, kid: int = 1) -> bytes:
        r = self.initialize(0, purse, amount, kid)
        session = key.session(r[8:12] + r[4:6] + b"\x80\x00")
        tail = amount.to_bytes(4, "big") + bytes((purse,)) + TERMINAL
        assert r[12:] == session.mac(r[:4] + tail)
        return b"\x80\x52\x00\x00\x0b" + WHEN + session.mac(tail + WHEN)

    def debit_command(self, p1: int, purse: int, amount: int, key: Key, records: tuple[str, ...] = ()) -> bytes:
        """The 8054 that ends a purchase (P1 1), withdrawal (2) or composite purchase (3)."""
        r = self.initialize(p1, purse, amount)
        for record in records:
            self(record)
        type_ = {(1, 1): 5, (1, 2): 6, (2, 1): 4, (3, 2): 9}[p1, purse]
        session = key.session(r[11:15] + r[4:6] + b"\0\x08")
        mac1 = session.mac(amount.to_bytes(4, "big") + bytes((type_,)) + TERMINAL + WHEN)
        return b"\x80\x54\x01\x00\x0f\0\0\0\x08" + WHEN + mac1

    def debit(self, p1: int, purse: int, amount: int, key: Key, records: tuple[str, ...] = ()) -> bytes:
        return self(self.debit_command(p1, purse, amount, key, records))

    def balance(self, purse: int) -> int:
        return int.from_bytes(self(bytes((0x80, 0x5C, 0, purse, 4))), "big")


def protect(
    header: str, data: bytes, key: Key, challenge: bytes, encrypt: bool = False, le: int | None = None
) -> bytes:
    body = key.seal(data) if encrypt else data
    head = bytes.fromhex(header) + bytes((len(body) + 4,)) + body
    return head + key.mac(head, challenge) + (b"" if le is None else bytes((le,)))


def card_key(purpose: str, algorithm: int = Algorithm.TDES) -> Key:
    """The card's key of a purpose in the desk's application."""
    return make_key(MASTERS[purpose], algorithm).diversify(SERIAL)


def application(**more: object) -> dict[str, Any]:
    """A description of the desk's application; ``more`` replaces or adds entries."""
    return {
        "enterprise_id": ENTERPRISE,
        "masters": MASTERS,
        "keys": {"3A/00": {"pin": PIN}},
        "files": {
            "0002": {"balance_fen": 10_000},
            "0001": {"balance_fen": 5_000},
            "0017": ["010F00" + "00" * 14, "020B00" + "00" * 10, "030900" + "00" * 8],
        },
        **more,
    }


def description(**more: object) -> dict[str, Any]:
    return {
        "serial": SERIAL.hex(),
        "keys": {"39/00": CONTROL, "36/00": LINE},
        "application": [application()],
        **more,
    }


def oc1(random_bytes: Callable[[int], bytes] = zeros, **more: object) -> Desk:
    """A washed card with one application, 100.00 in the main purse and 50.00 in the subsidy purse."""
    return Desk(image.build(description(**more), random_bytes))


def at_home(random_bytes: Callable[[int], bytes] = zeros, **more: object) -> Desk:
    """The same card, application selected and terminal authenticated (state 1)."""
    desk = oc1(random_bytes, **more)
    desk.select()
    desk.authenticate(1, card_key("terminal"))
    return desk


def fresh() -> Desk:
    """A vendor-fresh card, authenticated with its transport key (MF state 8)."""
    desk = Desk(Card.vendor_fresh(TRANSPORT_KEY, zeros))
    desk.authenticate(0, make_key(TRANSPORT_KEY))
    return desk


def sandbox(
    keys: Mapping[str, Any], *files: tuple[str, str, object], random: str = "", algorithm: str = "3des", **more: object
) -> Desk:
    """A directory 3F01 with any keys and (fid, create, content) files, current; ``random`` is what the card draws."""
    directory: dict[str, Any] = {
        "fid": "3F01",
        "create": f"380800F0F000FF{'04' if algorithm == 'sm4' else 'FF'}" + b"SANDBOX".hex(),
        "key_file": "3F020000F0FFFF",
        "keys": keys,
        "file": [{"fid": f, "create": c} | ({} if x is None else {"content": x}) for f, c, x in files],
        **more,
    }
    card = image.build({"algorithm": algorithm, "directory": [directory]})
    card.random_bytes = ScriptedRandom(bytes.fromhex(random), zeros)
    desk = Desk(card)
    desk("00A40000023F01", 0x6A81 if "blocked" in more else 0x9000)
    return desk
