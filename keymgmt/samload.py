"""Making a terminal's SAM: our control key, who it is, and the keys its terminal needs (keys.md SAM, card.md §7).

Two steps, like a card: the platform *washes* it (vendor's key out, serial and own keys in), then the enterprise
*loads* it from its mother card or key store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum, unique

from cardlib.errors import CheckFailed, ConfigError, Conflict, CryptoError, FormatError, NotFound
from cardlib.iso7816 import (
    MF,
    block_card,
    internal_authenticate,
    read_binary,
    select,
    update_binary,
    write_key_sealed,
)
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
from cardlib.sam import APPLICATION, IDENTITY, SAM_DF, TERMINAL_NUMBER, CardSam, SamKey
from cardlib.transport import Transport
from keymgmt.delivery import LOAD, SAM_PIN, KeySource, StoreKeys, key_payload, require_enterprise, sealed_by
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.softsam import protector
from keymgmt.steps import Payload, StepJournal, authenticates, initial_holds, put_key
from keymgmt.store import KeyStore

CARD_TYPE = 0x01


@unique
class SamKind(StrEnum):
    """What a SAM's terminal does, which says what keys it may hold (profile.md, held by)."""

    ACCESS = "access"
    ATTENDANCE = "attendance"
    POS = "pos"
    RECHARGE = "recharge"
    ISSUING = "issuing"


EVERY_TERMINAL = (Purpose.CARD, Purpose.TERMINAL)
HOLDS = {
    SamKind.ACCESS: EVERY_TERMINAL,
    SamKind.ATTENDANCE: EVERY_TERMINAL,
    SamKind.POS: (*EVERY_TERMINAL, Purpose.PURCHASE, Purpose.REFUND),
    SamKind.RECHARGE: (*EVERY_TERMINAL, Purpose.RECHARGE),
    SamKind.ISSUING: (
        *EVERY_TERMINAL, Purpose.CONTROL, Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK, Purpose.PURCHASE,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamWash:
    """A vendor-fresh SAM to become one of an enterprise. ``own_version`` is that of its own key 30/00."""

    job: str
    serial: bytes
    enterprise_id: int
    initial: KeyHandle
    control_version: int = 1
    own_version: int = 1
    platform_version: int = 1

    def check(self) -> None:
        """Raises FormatError when the serial is no SAM's."""
        if check_serial(self.serial) is not CardKind.SAM:
            raise FormatError(f"{self.serial.hex().upper()} is no SAM's serial")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        return [
            f"SAM {self.serial.hex().upper()} for enterprise {self.enterprise_id}",
            f"prove the initial key with check value {self.initial.kcv.hex().upper()}, once",
            "write its serial, the key by which it proves itself, the platform's line protection key",
            f"replace the control key by version {self.control_version}; from here the initial key is of no use",
            "prove the new keys",
        ]


@dataclass(frozen=True, slots=True)
class SamPlan:
    """What one washed SAM will be. ``versions`` are the key sets it serves; ``pin`` (2 to 6 bytes) its terminal's."""

    job: str
    serial: bytes
    terminal: bytes
    enterprise_id: int
    kind: SamKind
    versions: tuple[int, ...]
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
            f"prove control key version {self.control_version} of enterprise {self.enterprise_id}",
            "write its terminal number" + (", its terminal's PIN" if self.pin else "; without PIN: for tests only"),
            f"load {keys}; versions {versions}; compare their check values",
        ]


def make_sam(sam: Transport, plan: SamPlan, initial: KeyHandle, store: KeyStore, journal: StepJournal) -> list[SamKey]:
    """Wash and load in one go, where platform and enterprise are one organisation; returns what the SAM lists."""
    plan.check()
    wash = SamWash(plan.job, plan.serial, plan.enterprise_id, initial, plan.control_version, plan.versions[-1])
    wash_sam(sam, wash, store, journal)
    return load_sam(sam, plan, StoreKeys(store, plan.enterprise_id), journal)


def wash_sam(sam: Transport, wash: SamWash, store: KeyStore, journal: StepJournal) -> None:
    """Replace the vendor's key of a SAM, or finish a washing that was interrupted; a washed one is proven again.

    Raises CryptoError when the initial key is wrong: it was tried once and this job never tries it again.
    Conflict when the SAM has another serial already.
    """
    wash.check()
    control = store.handle(KeyRef(Purpose.SAM_CONTROL, wash.control_version, wash.enterprise_id), wash.serial)
    if control.algorithm != wash.initial.algorithm:
        raise ConfigError(
            f"the SAM works with {wash.initial.algorithm.name}, its control key is {control.algorithm.name}"
        )
    found = sam_serial(sam)
    if found not in (None, wash.serial):
        assert found is not None
        raise Conflict(f"the SAM has serial {found.hex().upper()} already: continue with that one")
    begun = found is not None
    job, ours = (f"card {wash.serial.hex()}", control.cryptogram) if begun else (wash.job, None)
    if initial_holds(sam, job, wash.initial, ours, journal):
        # Serial first: from then on a resumed job tries our control key too.
        update_binary(sam, IDENTITY, PsamIdentity(b"\0\0" + wash.serial, 1, CARD_TYPE).encode())
        journal.done(wash.job, "serial")
        _write_own_keys(sam, wash, control, store)
        journal.done(wash.job, "control key")
    select(sam, MF)
    if not authenticates(sam, 0, control.cryptogram):
        raise CryptoError("the SAM does not accept our control key: it was washed with another root or version")
    if internal_authenticate(sam, 0, wash.serial) != _own_key(wash, store).answer(wash.serial):
        raise CheckFailed("the SAM's own key is not the one we wrote")
    journal.done(wash.job, "washed")


def sam_serial(sam: Transport) -> bytes | None:
    """Serial of a SAM from its MF, None before its washing began; leaves the MF selected."""
    select(sam, MF)
    serial = card_serial_of(PsamIdentity.decode(read_binary(sam, IDENTITY)).serial)
    return serial if any(serial) else None


def load_sam(sam: Transport, plan: SamPlan, keys: KeySource, journal: StepJournal) -> list[SamKey]:
    """Make a washed SAM its terminal's, or finish one that was interrupted; returns what it lists.

    ``keys`` is a mother card or key store. Raises CryptoError when the SAM does not know our control key,
    NotFound when a key to be loaded is missing, CheckFailed when a key's check value differs.
    """
    plan.check()
    require_enterprise(keys, plan.enterprise_id)
    known = {(line.purpose, line.version): line for line in keys.lines()}
    for purpose in HOLDS[plan.kind]:
        for version in plan.versions:
            if (purpose, version) not in known:
                raise NotFound(f"there is no {purpose.name.lower()} key of version {version} to load")
    _login(sam, plan.serial, keys, plan.control_version)
    update_binary(sam, TERMINAL_NUMBER, plan.terminal)
    under = (Purpose.SAM_CONTROL, plan.control_version)
    if plan.pin:  # before the keys, and anew when an interrupted run left another
        put_key(sam, SAM_PIN.key_type, 0, sealed_by(keys, Purpose.PIN, 1, under, plan.serial, plan.pin))
    journal.done(plan.job, "who it is")
    _load(sam, plan.serial, HOLDS[plan.kind], plan.versions, keys, plan.control_version)
    issuer = issuer_id(plan.enterprise_id)
    select(sam, SAM_DF)  # the MF's state outlives this: the host stays authenticated
    update_binary(sam, APPLICATION, PsamApplication(1, issuer, issuer, plan.start, plan.expiry).encode())
    journal.done(plan.job, "keys")
    listed = _opened(sam, plan).keys()
    for purpose in HOLDS[plan.kind]:
        for version in plan.versions:
            line = known[purpose, version]
            if SamKey(purpose, version, line.algorithm, line.kcv) not in listed:
                raise CheckFailed(f"the SAM does not hold the {purpose.name.lower()} key, version {version}, as loaded")
    journal.done(plan.job, "complete")
    return listed


def load_keys(
    sam: Transport,
    serial: bytes,
    purposes: Iterable[Purpose],
    versions: Iterable[int],
    keys: KeySource,
    control_version: int = 1,
) -> None:
    """Put enterprise keys into a SAM whose control key is ours, the host proving itself first (card.md §7.7).

    Raises CryptoError when the SAM does not know our control key, Refused for a purpose that no SAM holds.
    """
    _login(sam, serial, keys, control_version)
    _load(sam, serial, purposes, versions, keys, control_version)


def lock_sam(sam: Transport, serial: bytes, store: KeyStore, platform_version: int = 1) -> None:
    """Block a SAM for good, by the platform's line protection key. Raises Conflict when another SAM is there."""
    found = sam_serial(sam)
    if found != serial:
        raise Conflict(f"this is SAM {found.hex().upper() if found else '(unwashed)'}: insert {serial.hex().upper()}")
    block_card(sam, protector(store.handle(KeyRef(Purpose.CARD_MAINTENANCE, platform_version), serial)))


def _login(sam: Transport, serial: bytes, keys: KeySource, control_version: int) -> None:
    found = sam_serial(sam)
    if found is None:
        raise Conflict("this SAM is not washed yet: the platform washes it first")
    if found != serial:
        raise Conflict(f"this is SAM {found.hex().upper()}: insert SAM {serial.hex().upper()}")
    if not authenticates(
        sam, 0, lambda challenge: keys.cryptogram(Purpose.SAM_CONTROL, control_version, serial, challenge)
    ):
        raise CryptoError(f"SAM {serial.hex().upper()} does not accept our control key: look up who made it")


def _load(
    sam: Transport,
    serial: bytes,
    purposes: Iterable[Purpose],
    versions: Iterable[int],
    keys: KeySource,
    control_version: int,
) -> None:
    versions = tuple(versions)
    for purpose in purposes:
        for version in versions:
            payload = sealed_by(keys, purpose, version, (Purpose.SAM_CONTROL, control_version), serial)
            write_key_sealed(sam, LOAD, 0, payload)


def _own_key(wash: SamWash, store: KeyStore) -> KeyHandle:
    """Key 30/00, by which a SAM proves itself: from the control master, which no terminal's SAM holds."""
    return store.handle(KeyRef(Purpose.CONTROL, wash.own_version, wash.enterprise_id), wash.serial)


def _write_own_keys(sam: Transport, wash: SamWash, control: KeyHandle, store: KeyStore) -> None:
    """30/00 and 36/00, then the control key; all under the vendor's key."""
    profile, own = load_profile(), _own_key(wash, store)
    spec = profile.key(Purpose.CARD)
    put_key(sam, spec.key_type, 0, _payload(wash.initial, own, spec.header(wash.own_version, own.algorithm)))
    line = store.handle(KeyRef(Purpose.CARD_MAINTENANCE, wash.platform_version), wash.serial)
    spec = profile.key(Purpose.CARD_MAINTENANCE)
    if line.algorithm == control.algorithm:  # its record has no algorithm byte: it is that of the SAM (card.md §12)
        put_key(sam, spec.key_type, 0, _payload(wash.initial, line, spec.header(1, line.algorithm)))
    spec = profile.key(Purpose.CONTROL)
    write_key_sealed(sam, spec.key_type, 0, _payload(wash.initial, control, spec.header(1, control.algorithm)))


def _payload(under: KeyHandle, key: KeyHandle, record_header: bytes) -> Payload:
    return lambda header, challenge: key_payload(under, key, record_header, header, challenge)


def _opened(sam: Transport, plan: SamPlan) -> CardSam:
    """The SAM as its terminal will open it. Raises CheckFailed when it names another serial, terminal, enterprise."""
    pin = plan.pin
    opened = CardSam(sam, None if pin is None else lambda: pin)
    if opened.info() != (plan.serial, plan.terminal, plan.enterprise_id):
        raise CheckFailed("the SAM names another serial, terminal or enterprise than was written")
    return opened
