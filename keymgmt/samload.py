"""Making a terminal's SAM: our control key, who it is, and the keys its terminal needs (keys.md SAM, card.md §7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum, unique

from cardlib.errors import CheckFailed, ConfigError, CryptoError, FormatError
from cardlib.iso7816 import MF, internal_authenticate, read_binary, select, update_binary, write_key_sealed
from cardlib.profile import (
    CardKind,
    PsamApplication,
    PsamIdentity,
    Purpose,
    card_serial_of,
    check_serial,
    issuer_id,
    load_profile,
)
from cardlib.sam import APPLICATION, IDENTITY, LEVEL, SAM_DF, TERMINAL_NUMBER, CardSam, SamKey
from cardlib.transport import Transport
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.softsam import key_payload, protected
from keymgmt.steps import Payload, StepJournal, authenticates, initial_holds, put_key
from keymgmt.store import KeyStore

CARD_TYPE = 0x01
LOAD = 0x00
PIN_HEADER = bytes.fromhex("3AF0080333")
"""The terminal's PIN: changed only after our control key was proven (MF state 8), three tries."""


@unique
class SamKind(StrEnum):
    """What a SAM's terminal does, which says what keys it may hold (profile.md, held by)."""

    ACCESS = "access"
    POS = "pos"
    RECHARGE = "recharge"


EVERY_TERMINAL = (Purpose.CARD, Purpose.TERMINAL)
HOLDS = {
    SamKind.ACCESS: EVERY_TERMINAL,
    SamKind.POS: (*EVERY_TERMINAL, Purpose.PURCHASE, Purpose.REFUND),
    SamKind.RECHARGE: (*EVERY_TERMINAL, Purpose.RECHARGE),
}
USAGE = {
    Purpose.PURCHASE: LEVEL | 0x02,
    Purpose.CARD: LEVEL | 0x07,
    Purpose.TERMINAL: LEVEL | 0x0A,
    Purpose.RECHARGE: LEVEL | 0x0B,
    Purpose.REFUND: LEVEL | 0x0C,
}
"""Usage byte: one level of diversification, by card serial (card.md §7.5)."""


@dataclass(frozen=True, slots=True)
class SamPlan:
    """One SAM to make. ``versions`` are the key sets it serves; ``pin`` (2 to 6 bytes) is its terminal's, or None."""

    job: str
    serial: bytes
    terminal: bytes
    enterprise_id: int
    kind: SamKind
    versions: tuple[int, ...]
    initial: KeyHandle
    start: date
    expiry: date
    control_version: int = 1
    pin: bytes | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raises FormatError when serial, terminal number or PIN can't be a SAM's, ConfigError without versions."""
        if check_serial(self.serial) is not CardKind.SAM:
            raise FormatError(f"{self.serial.hex().upper()} is no SAM's serial")
        if len(self.terminal) != 6 or (self.pin is not None and not 2 <= len(self.pin) <= 6):
            raise FormatError("a terminal number has 6 bytes, a PIN 2 to 6")
        if not self.versions:
            raise ConfigError("a SAM needs keys of at least one version")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        keys = ", ".join(purpose.name.lower() for purpose in HOLDS[self.kind])
        versions = ", ".join(map(str, self.versions))
        return [
            f"SAM {self.serial.hex().upper()} for terminal {self.terminal.hex().upper()}, a {self.kind} terminal",
            f"prove the initial key with check value {self.initial.kcv.hex().upper()}, once",
            "write who it is" + (", its terminal's PIN" if self.pin else ", without PIN: for tests only"),
            f"replace the control key by version {self.control_version} of enterprise {self.enterprise_id}",
            f"load {keys}; versions {versions}; compare their check values",
        ]


def make_sam(sam: Transport, plan: SamPlan, store: KeyStore, journal: StepJournal) -> list[SamKey]:
    """Make a SAM from a vendor-fresh one, or finish one that was interrupted; returns what it lists.

    Raises CryptoError when the initial key is wrong (tried once), CheckFailed when a key's check value differs.
    """
    plan.check()
    control = store.handle(KeyRef(Purpose.SAM_CONTROL, plan.control_version, plan.enterprise_id), plan.serial)
    if control.algorithm != plan.initial.algorithm:
        raise ConfigError(
            f"the SAM works with {plan.initial.algorithm.name}, its control key is {control.algorithm.name}"
        )
    select(sam, MF)
    begun = card_serial_of(PsamIdentity.decode(read_binary(sam, IDENTITY)).serial) == plan.serial
    job, ours = (f"card {plan.serial.hex()}", control.cryptogram) if begun else (plan.job, None)
    if initial_holds(sam, job, plan.initial, ours, journal):
        _write_who(sam, plan)
        journal.done(plan.job, "who it is")
        _write_own_keys(sam, plan, control, store)
        journal.done(plan.job, "control key")
    select(sam, MF)
    _login(sam, plan.serial, control)
    if plan.pin:  # before the keys, and anew when an interrupted run left another
        put_key(sam, PIN_HEADER[0], 0, _sealed(control, PIN_HEADER + plan.pin.ljust(8, b"\xff")))
    _load(sam, plan.enterprise_id, HOLDS[plan.kind], plan.versions, store, control)
    issuer = issuer_id(plan.enterprise_id)
    select(sam, SAM_DF)  # the MF's state outlives this: the host stays authenticated
    update_binary(sam, APPLICATION, PsamApplication(1, issuer, issuer, plan.start, plan.expiry).encode())
    journal.done(plan.job, "keys")
    return _prove(sam, plan, store, journal)


def load_keys(
    sam: Transport,
    serial: bytes,
    enterprise_id: int,
    purposes: Iterable[Purpose],
    versions: Iterable[int],
    store: KeyStore,
    control_version: int = 1,
) -> None:
    """Put enterprise keys into a SAM whose control key is ours, the host proving itself first (card.md §7.7).

    Raises CryptoError when the SAM does not know our control key, KeyError for a purpose that no SAM holds.
    """
    control = store.handle(KeyRef(Purpose.SAM_CONTROL, control_version, enterprise_id), serial)
    select(sam, MF)
    _login(sam, serial, control)
    _load(sam, enterprise_id, purposes, versions, store, control)


def _login(sam: Transport, serial: bytes, control: KeyHandle) -> None:
    if not authenticates(sam, 0, control.cryptogram):
        raise CryptoError(f"SAM {serial.hex().upper()} does not accept our control key: look up who made it")


def _load(
    sam: Transport,
    enterprise_id: int,
    purposes: Iterable[Purpose],
    versions: Iterable[int],
    store: KeyStore,
    control: KeyHandle,
) -> None:
    versions = tuple(versions)
    for purpose in purposes:
        for version in versions:
            key = store.handle(KeyRef(purpose, version, enterprise_id))
            record_header = bytes([USAGE[purpose], version, key.algorithm])
            write_key_sealed(sam, LOAD, 0, _payload(control, key, record_header))


def _payload(under: KeyHandle, key: KeyHandle, record_header: bytes) -> Payload:
    return lambda header, challenge: key_payload(under, key, record_header, header, challenge)


def _write_who(sam: Transport, plan: SamPlan) -> None:
    """Serial first: from then on a resumed job tries our control key too."""
    update_binary(sam, IDENTITY, PsamIdentity(b"\0\0" + plan.serial, 1, CARD_TYPE).encode())
    update_binary(sam, TERMINAL_NUMBER, plan.terminal)


def _own_key(plan: SamPlan, store: KeyStore) -> KeyHandle:
    """Key 30/00, by which a SAM proves itself: from the control master, which no terminal's SAM holds."""
    return store.handle(KeyRef(Purpose.CONTROL, plan.versions[-1], plan.enterprise_id), plan.serial)


def _write_own_keys(sam: Transport, plan: SamPlan, control: KeyHandle, store: KeyStore) -> None:
    """30/00, then the control key; both under the vendor's key."""
    profile, own = load_profile(), _own_key(plan, store)
    spec = profile.key(Purpose.CARD)
    put_key(sam, spec.key_type, 0, _payload(plan.initial, own, spec.header(plan.versions[-1], own.algorithm)))
    spec = profile.key(Purpose.CONTROL)
    write_key_sealed(sam, spec.key_type, 0, _payload(plan.initial, control, spec.header(1, control.algorithm)))


def _sealed(under: KeyHandle, record: bytes) -> Payload:
    return lambda header, challenge: protected(under, header, record, challenge, encrypt=True)


def _prove(sam: Transport, plan: SamPlan, store: KeyStore, journal: StepJournal) -> list[SamKey]:
    """Open the SAM as its terminal will, and compare what it says and lists with what it was given."""
    select(sam, MF)
    if internal_authenticate(sam, 0, plan.serial) != _own_key(plan, store).answer(plan.serial):
        raise CheckFailed("the SAM's own key is not the one we wrote")
    pin = plan.pin
    opened = CardSam(sam, None if pin is None else lambda: pin)
    if opened.info() != (plan.serial, plan.terminal, plan.enterprise_id):
        raise CheckFailed("the SAM names another serial, terminal or enterprise than was written")
    listed = opened.keys()
    for purpose in HOLDS[plan.kind]:
        for version in plan.versions:
            key = store.handle(KeyRef(purpose, version, plan.enterprise_id))
            if SamKey(purpose, version, key.algorithm, key.kcv) not in listed:
                raise CheckFailed(f"the SAM does not hold the {purpose.name.lower()} key, version {version}, as loaded")
    journal.done(plan.job, "complete")
    return listed
