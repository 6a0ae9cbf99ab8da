"""A platform and an enterprise with known root keys, a simulated card, and cuts of its power."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from itertools import count
from pathlib import Path
from random import Random

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import OutcomeUnknown, TransportError
from cardlib.iso7816 import pin_bytes
from cardlib.profile import AccessRights, CardKind, Holder, Purpose, issuer_id, make_serial
from cardlib.records import Transaction
from keymgmt.delivery import StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.keys import PLATFORM_PURPOSES, KeyRef
from keymgmt.personalise import PersonalPlan, Station
from keymgmt.slot import SlotPlan
from keymgmt.softsam import SoftSam
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore, SharedStore
from keymgmt.wash import WashPlan
from simulator.card import Card

CHEAP = Argon2Params(memory_kib=64, iterations=1, lanes=1)
TRANSPORT_KEY = bytes.fromhex("404142434445464748494A4B4C4D4E4F")
SERIAL = make_serial(CardKind.CPU_CARD, 1, 7)
SAM_SERIAL = make_serial(CardKind.SAM, 1, 1)
ENTERPRISE = 1001
TERMINAL = bytes.fromhex("310000000101")
START, EXPIRY = date(2025, 3, 1), date(2030, 2, 28)
PIN = pin_bytes("123456")
Algorithms = dict[Purpose, Algorithm]


class Moves:
    """A money journal in memory."""

    def __init__(self) -> None:
        self.intents: dict[int, Transaction] = {}
        self.ends: dict[int, Transaction | None] = {}

    def intent(self, move: Transaction) -> int:
        self.intents[len(self.intents) + 1] = move
        return len(self.intents)

    def committed(self, ref: int, move: Transaction) -> None:
        assert ref not in self.ends, "an intent is closed once"
        self.ends[ref] = move

    def not_done(self, ref: int, reason: str) -> None:
        assert ref not in self.ends, f"an intent is closed once: {reason}"
        self.ends[ref] = None

    @property
    def open(self) -> list[tuple[int, Transaction]]:
        return [(ref, move) for ref, move in self.intents.items() if ref not in self.ends]


def master(purpose: Purpose, version: int = 1) -> bytes:
    """The known root key of a purpose; no two are alike but for parity bits, which 3DES ignores."""
    return bytes([2 * purpose, 2 * version]) * 4 + bytes([2 * version, 2 * purpose]) * 4


class Rig:
    """Keys, a station and plans. Applications work with ``algorithm``, the MF with 3DES."""

    def __init__(
        self, folder: Path, algorithm: Algorithm = Algorithm.TDES, seed: int = 5, store: SharedStore | None = None
    ) -> None:
        self.algorithm = algorithm
        self.random = Random(seed)
        self.store = store or FileStore.create_file(
            folder / "keys", b"passphrase", CHEAP, random_bytes=self.random.randbytes
        )
        for purpose in Purpose:
            for version in (1, 2):
                kind = self.algorithm_of(purpose)
                value = master(purpose, version)
                self.store.import_key(KeyRef(purpose, version), kind, value, make_key(value, kind).kcv, "test")
        ticks = count(1_735_700_000_000, 1000)
        self.steps = MemorySteps()
        self.moves = Moves()
        self.host = SoftSam(self.store, ENTERPRISE, TERMINAL, SAM_SERIAL)
        self.source = StoreKeys(self.store, ENTERPRISE)
        self.station = Station(
            self.host, self.source, self.steps, self.moves, lambda: next(ticks), self.random.randbytes
        )
        self.initial = KeyHandle(make_key(TRANSPORT_KEY), "transport key")
        self.wash_plan = WashPlan("wash", SERIAL, 1, START, 1, self.initial)
        self.slot_plan = SlotPlan("slot", SERIAL, ENTERPRISE, "食堂", algorithm)
        self.personal_plan = PersonalPlan(
            "issue", SERIAL, ENTERPRISE, 1, Holder(1, 1, "王小明", "0001"), AccessRights(START, EXPIRY, b"\x81" * 8),
            START, EXPIRY, PIN, algorithm,
        )  # fmt: skip

    def algorithm_of(self, purpose: Purpose) -> Algorithm:
        platform = purpose in (*PLATFORM_PURPOSES, Purpose.SAM_CONTROL)
        return Algorithm.TDES if platform else self.algorithm

    def card(self) -> Card:
        """A vendor-fresh card."""
        return Card.vendor_fresh(TRANSPORT_KEY, self.random.randbytes)

    def expected(self, purpose: Purpose, version: int = 1, serial: bytes = SERIAL) -> Key:
        """A card's key from the known root, without key store."""
        key = make_key(master(purpose, version), self.algorithm_of(purpose))
        if purpose not in PLATFORM_PURPOSES:
            key = key.diversify(issuer_id(ENTERPRISE))
        return key.diversify(serial)


def held(card: Card, key_type: int, kid: int, fid: int | None = None, algorithm: Algorithm = Algorithm.TDES) -> Key:
    """A key as it lies in the card's memory."""
    df = card.mf if fid is None else card.mf.files.value[fid]
    record = df.key(key_type, kid)  # type: ignore[union-attr]
    assert record is not None
    return make_key(record.value.value, algorithm)


def same(one: Key, other: Key) -> bool:
    return one.mac(b"same key?") == other.mac(b"same key?")


def count_steps(card: Card, act: Callable[[], object]) -> int:
    """Steps at which power could have gone during an act that was not cut."""
    card.power.cut_at(1 << 30)
    act()
    return card.power.steps


def cut(card: Card, at: int, act: Callable[[], object]) -> bool:
    """Run an act with power going at a step; False when the act ended before it. The card is powered again."""
    card.power.cut_at(at)
    try:
        act()
    except (TransportError, OutcomeUnknown):
        assert not card.power.on
        return True
    finally:
        card.power.cut_at(0)
        card.reset()
    return False
