"""A card, a SAM and a host for tests of the client side, made by the commands that issuers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from random import Random

from cardlib import iso7816 as iso
from cardlib.crypto.keys import Key, make_key
from cardlib.errors import Refused
from cardlib.profile import (
    CardKind,
    DayCounters,
    LastPassage,
    PsamApplication,
    PsamIdentity,
    PublicInfo,
    Purpose,
    Purse,
    SubsidyMark,
    TransactionType,
    aid,
    issuer_id,
    load_profile,
    make_serial,
)
from cardlib.purse import CardSession, MoneyRequest, load, open_application
from cardlib.records import Event, JournalEntry, Outcome, Transaction, genesis
from cardlib.sam import (
    LOADED_USAGE,
    CardSam,
    LoadInit,
    PurchaseInit,
    SamInfo,
    load_mac1_input,
    load_mac2_input,
    load_seed,
    purchase_mac1_input,
    purchase_seed,
)
from cardlib.transport import Transport
from simulator.card import Card
from simulator.sam import SamCard

ENTERPRISE = 7
TERMINAL = bytes.fromhex("310000000101")
SAM_SERIAL = make_serial(CardKind.SAM, 1, 1)
CARD_SERIAL = make_serial(CardKind.CPU_CARD, 1, 1)
TRANSPORT = bytes(range(16))
PIN = bytes.fromhex("123456")
WHEN = bytes.fromhex("20240815093045")
UTC_MS = 1_723_685_445_000
SAM_USAGE = {
    purpose: LOADED_USAGE[purpose]
    for purpose in (Purpose.CARD, Purpose.TERMINAL, Purpose.RECHARGE, Purpose.PURCHASE, Purpose.REFUND)
}
KeySource = Callable[[Purpose, int, bytes], Key]


def request(purse: Purse, amount_fen: int, second: int = 0) -> MoneyRequest:
    """A request some seconds after the morning's first."""
    return MoneyRequest(purse, amount_fen, bytes.fromhex(f"20240815{93045 + second:06d}"), UTC_MS + 1000 * second)


def masters(version: int = 1, algorithm: int = 0) -> dict[Purpose, Key]:
    """Enterprise master keys of a version, all different."""
    return {p: make_key(bytes([p, version]) * 8, algorithm) for p in Purpose}


class KeyHost:
    """``cardlib.sam.Host`` over keys in memory: what a host computes, written from card.md and nothing else."""

    def __init__(self, card_key: KeySource, info: SamInfo | None = None) -> None:
        self._card_key = card_key
        self._info = info or SamInfo(SAM_SERIAL, TERMINAL, ENTERPRISE)
        self._seq = 1
        self._open: tuple[int, Key, int] | None = None

    @property
    def open_seq(self) -> int | None:
        return self._open[0] if self._open else None

    def info(self) -> SamInfo:
        return self._info

    def card_answer(self, factor: bytes, version: int, challenge: bytes) -> bytes:
        key = self._card_key(Purpose.CARD, version, factor)
        return key.encrypt(challenge.ljust(key.block, b"\0"))

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        return self._card_key(purpose, version, factor).cryptogram(challenge)

    def purchase_mac1(
        self, init: PurchaseInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes
    ) -> tuple[int, bytes]:
        seq, self._seq = self._seq, self._seq + 1
        session = self._card_key(Purpose.PURCHASE, init.key_version, factor).session(purchase_seed(init, seq))
        self._open = (seq, session, amount_fen)
        return seq, session.mac(purchase_mac1_input(amount_fen, kind, self._info.terminal, when))

    def verify_mac2(self, mac2: bytes) -> None:
        done, self._open = self._open, None
        if not done:
            raise Refused("no_session", "nothing is open")
        done[1].verify(done[2].to_bytes(4, "big"), mac2, "MAC2")

    def refund_mac2(self, init: LoadInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes) -> bytes:
        return self._mac2(Purpose.REFUND, init, amount_fen, kind, self._info.terminal, when, factor)

    def load_mac2(
        self, init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes, when: bytes, factor: bytes
    ) -> bytes:
        return self._mac2(Purpose.LOAD, init, amount_fen, kind, terminal, when, factor)

    def unload_mac2(self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes) -> bytes:
        return self._mac2(Purpose.UNLOAD, init, amount_fen, TransactionType.UNLOAD, terminal, when, factor)

    def verify_mac3(
        self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes, mac3: bytes
    ) -> None:
        head = (init.balance_fen - amount_fen).to_bytes(4, "big") + init.seq.to_bytes(2, "big")
        data = head + load_mac2_input(amount_fen, TransactionType.UNLOAD, terminal, when)
        key = self._card_key(Purpose.UNLOAD, init.key_version, factor)
        key.session(load_seed(init)).verify(data, mac3, "MAC3")

    def verify_tac(self, factor: bytes, version: int, algorithm: int, data: bytes, tac: bytes) -> None:
        self._card_key(Purpose.TAC, version, factor).folded().verify(data, tac, "TAC")

    def protect(
        self,
        purpose: Purpose,
        factor: bytes,
        version: int,
        header: bytes,
        data: bytes,
        challenge: bytes,
        encrypt: bool = False,
    ) -> bytes:
        key = self._card_key(purpose, version, factor)
        return iso.SecureMessaging(key, encrypt)(header, data, challenge)

    def holds(self, purpose: Purpose) -> bool:
        return True

    def _mac2(
        self,
        purpose: Purpose,
        init: LoadInit,
        amount_fen: int,
        kind: TransactionType,
        terminal: bytes,
        when: bytes,
        factor: bytes,
    ) -> bytes:
        session = self._card_key(purpose, init.key_version, factor).session(load_seed(init))
        session.verify(load_mac1_input(init, amount_fen, kind, terminal), init.mac1, "MAC1")
        return session.mac(load_mac2_input(amount_fen, kind, terminal, when))


class MemoryJournal:
    """A journal in memory on the real chain; checks that each intent is closed at most once."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self._open: dict[int, Transaction] = {}

    def intent(self, move: Transaction) -> int:
        assert move.outcome is Outcome.UNKNOWN
        ref = self._append(Event.INTENT, None, move)
        self._open[ref] = move
        return ref

    def committed(self, ref: int, move: Transaction) -> None:
        assert move.outcome is Outcome.COMMITTED
        self._append(Event.COMMITTED, ref, move)

    def not_done(self, ref: int, reason: str) -> None:
        self._append(Event.NOT_DONE, ref, None, reason)

    def _append(self, event: Event, ref: int | None, move: Transaction | None, reason: str = "") -> int:
        assert ref is None or ref in self._open, f"entry {ref} is closed already"
        self._open.pop(ref or 0, None)
        previous = self.entries[-1].hash if self.entries else genesis(ENTERPRISE, TERMINAL)
        self.entries.append(JournalEntry(len(self.entries) + 1, event, ref, move, reason, UTC_MS, previous))
        return len(self.entries)

    @property
    def pending(self) -> list[tuple[int, Transaction]]:
        """Intents that wait, with their numbers."""
        return list(self._open.items())

    @property
    def moves(self) -> list[Transaction]:
        """Committed moves, in order."""
        return [e.record for e in self.entries if e.event is Event.COMMITTED and isinstance(e.record, Transaction)]


def make_application(card: Transport, keys: KeySource, version: int = 1, algorithm: int = 0) -> None:
    """Create the MF and one application of the profile on a blank card, keys in clear (it is not washed)."""
    profile = load_profile()
    reserved = b"\xff\x04" if algorithm == 4 else b"\xff\xff"
    iso.create_file(card, iso.MF, profile.mf_create[:6] + reserved + profile.mf_create[8:])
    iso.create_file(card, 0, profile.mf_key_file.create)
    for spec in profile.mf_files:
        iso.create_file(card, spec.fid, spec.create)
    iso.create_file(card, 0x3F01, profile.adf_create[:6] + reserved + aid(ENTERPRISE))
    iso.select(card, 0x3F01)
    iso.create_file(card, 0, profile.adf_key_file.create)
    for key in profile.keys:
        if key.level == "adf" and key.purpose not in (Purpose.SLOT, Purpose.PIN):
            value = keys(key.purpose, version, CARD_SERIAL)._value
            iso.write_key(card, 1, key.kid(version), key.header(version, algorithm) + value)
    pin = profile.key(Purpose.PIN)
    iso.write_key(card, 1, 0, pin.header(version, algorithm) + PIN.ljust(8, b"\xff"))
    for spec in profile.adf_files:
        iso.create_file(card, spec.fid, spec.create)
    info = PublicInfo(issuer_id(ENTERPRISE), 3, version, bytes(2) + CARD_SERIAL, date(2024, 1, 1), date(2034, 1, 1))
    iso.update_binary(
        card, 0x0015, info.encode(), protect=iso.SecureMessaging(keys(Purpose.MAINTENANCE, version, CARD_SERIAL))
    )
    for record in (DayCounters.of(None), LastPassage.of(), SubsidyMark.of()):
        iso.append_record(card, 0x0017, record.encode())
    iso.select(card)


def _sealed(protect: iso.Protect, record: bytes, header: bytes, challenge: bytes) -> bytes:
    return protect(header, record, challenge)


def make_sam(keys: dict[Purpose, Key], random: Random, version: int = 1, pin: bytes = PIN) -> SamCard:
    """A POS SAM as the issuing room makes it: numbers, terminal PIN, keys under its control key."""
    sam = SamCard.vendor_fresh(TRANSPORT, random.randbytes)
    control = make_key(TRANSPORT)
    iso.external_authenticate(sam, 0, control.cryptogram(iso.get_challenge(sam)))
    iso.update_binary(sam, 0x0015, PsamIdentity(bytes(2) + SAM_SERIAL, 1, 0).encode())
    iso.update_binary(sam, 0x0016, TERMINAL)
    if pin:
        iso.write_key(sam, 1, 0, bytes.fromhex("3AF0EF0133") + pin.ljust(8, b"\xff"))
    protect = iso.SecureMessaging(control, encrypt=True)
    for purpose, usage in SAM_USAGE.items():
        key = keys[purpose]
        record = bytes([usage, version, key.algorithm]) + key._value
        iso.write_key_sealed(sam, 0, 0, partial(_sealed, protect, record))
    iso.select(sam, 0x1001)
    application = PsamApplication(1, issuer_id(ENTERPRISE), bytes(8), date(2024, 1, 1), date(2034, 1, 1))
    iso.update_binary(sam, 0x0017, application.encode())
    sam.reset()
    return sam


@dataclass
class World:
    """One card, one SAM, one host and one journal that know each other."""

    algorithm: int = 0
    version: int = 1
    journal: MemoryJournal = field(default_factory=MemoryJournal)

    def __post_init__(self) -> None:
        self.random = Random(1)
        self.masters = masters(self.version, self.algorithm)
        self.card = Card.blank(self.random.randbytes)
        make_application(self.card, self.card_key, self.version, self.algorithm)
        self.sam_card = make_sam(self.masters, self.random, self.version)
        self.sam = CardSam(self.sam_card, lambda: PIN)
        self.host = KeyHost(self.card_key)

    def card_key(self, purpose: Purpose, version: int, factor: bytes) -> Key:
        assert version == self.version, f"version {version} does not exist"
        return self.masters[purpose].diversify(factor)

    def tap(self, purpose: Purpose = Purpose.TERMINAL) -> CardSession:
        """Present the card and open its application."""
        self.card.reset()
        sam = self.sam if purpose == Purpose.TERMINAL else self.host
        return open_application(self.card, sam, ENTERPRISE, self.random.randbytes, purpose)

    def fill(self, purse: Purse, amount_fen: int) -> None:
        """Load a purse."""
        load(self.card, self.host, self.journal, self.tap(Purpose.RECHARGE), request(purse, amount_fen))
