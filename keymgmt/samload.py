"""Making a terminal's SAM: our control key, who it is, and the keys its terminal needs (keys.md SAM, card.md §7).

Two steps, like a card: the platform *washes* it (vendor's key out, serial and own keys in), then the enterprise
*loads* it from its mother card or key store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum, unique

from cardlib.apdu import SW
from cardlib.errors import (
    CheckFailed,
    ConfigError,
    Conflict,
    CryptoError,
    FormatError,
    NotFound,
    Refused,
    StatusError,
)
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
from cardlib.sam import (
    APPLICATION,
    IDENTITY,
    LOADED_USAGE,
    SAM_DF,
    TERMINAL_NUMBER,
    CardSam,
    SamKey,
    list_keys,
    wants_pin,
)
from cardlib.transport import Transport
from keymgmt.delivery import LOAD, SAM_PIN, KeyLine, KeySource, StoreKeys, key_payload, require_enterprise, sealed_by
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef, KeyState
from keymgmt.softsam import protector
from keymgmt.steps import Payload, StepJournal, authenticates, initial_holds, put_key
from keymgmt.store import KeyStore

CARD_TYPE = 0x01
BEGUN, WASHED = 0, 1
"""Version byte of MF/0015, as the wash version of a card's 0005 (keys.md, Washing): 0 until its keys are proven."""


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


@dataclass(frozen=True, slots=True)
class SamReport:
    """What a SAM says of itself to whoever asks. ``pin``: it wants its terminal's PIN before it computes."""

    serial: bytes | None
    washed: bool
    terminal: bytes | None
    enterprise_id: int | None
    keys: tuple[SamKey, ...]
    pin: bool

    @property
    def kinds(self) -> list[SamKind]:
        """The kinds of terminal whose SAM holds just these keys."""
        purposes = {key.purpose for key in self.keys}
        return [kind for kind, held in HOLDS.items() if purposes == set(held)]


def look(sam: Transport) -> SamReport:
    """Ask a SAM who it is and what it holds; changes nothing, needs no key and no PIN.

    Raises Refused ``sam_blocked`` when it was blocked, Conflict when the card is no SAM.
    """
    serial, washed = _identity(sam)
    terminal = read_binary(sam, TERMINAL_NUMBER)
    select(sam, SAM_DF)
    issuer = PsamApplication.decode(read_binary(sam, APPLICATION)).issuer
    enterprise_id = int.from_bytes(issuer[4:], "big")
    return SamReport(
        serial, washed, terminal if any(terminal) else None,
        enterprise_id if enterprise_id and issuer == issuer_id(enterprise_id) else None,
        tuple(list_keys(sam)), wants_pin(sam),
    )  # fmt: skip


def sam_serial(sam: Transport) -> bytes | None:
    """Serial of a SAM from its MF, None before its washing began; leaves the MF selected.

    Raises Refused ``sam_blocked`` when it was blocked, Conflict when the card is no SAM.
    """
    return _identity(sam)[0]


def _identity(sam: Transport) -> tuple[bytes | None, bool]:
    """Serial, and whether its washing is finished."""
    try:
        select(sam, MF)
        identity = PsamIdentity.decode(read_binary(sam, IDENTITY))
    except StatusError as e:
        if e.sw == SW.NOT_SUPPORTED:
            raise Refused("sam_blocked", "this SAM is blocked for good and does not say who it is: take it away") from e
        if e.sw == SW.FILE_NOT_FOUND:
            raise Conflict("the card in the reader is no SAM: insert one") from e
        raise
    serial = card_serial_of(identity.serial)
    return (serial, identity.version >= WASHED) if any(serial) else (None, False)


def _expect(sam: Transport, serial: bytes) -> None:
    """Make sure that the washed SAM a job is for is in the reader; leaves the MF selected. Raises Conflict."""
    found, washed = _identity(sam)
    if found is None:
        raise Conflict("this SAM is not washed yet: the platform washes it first")
    if found != serial:
        raise Conflict(f"this is SAM {found.hex().upper()}: insert SAM {serial.hex().upper()}")
    if not washed:  # its control key may be the vendor's still, which counts wrong tries
        raise Conflict(f"the washing of SAM {serial.hex().upper()} was interrupted: wash it again first")


def make_sam(sam: Transport, plan: SamPlan, initial: KeyHandle, store: KeyStore, journal: StepJournal) -> list[SamKey]:
    """Wash and load in one go, where platform and enterprise are one organisation; returns what the SAM lists."""
    plan.check()
    keys = StoreKeys(store, plan.enterprise_id)
    wash = SamWash(plan.job, plan.serial, plan.enterprise_id, initial, plan.control_version, own_version(keys))
    wash_sam(sam, wash, store, journal)
    return load_sam(sam, plan, keys, journal)


def own_version(keys: KeySource) -> int:
    """The version that a SAM's own key 30/00 is made from: the newest control key there is."""
    return max((line.version for line in keys.lines() if line.purpose is Purpose.CONTROL), default=1)


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
    found, washed = _identity(sam)
    if found is not None and found != wash.serial:
        raise Conflict(f"the SAM has serial {found.hex().upper()} already: continue with that one")
    job, ours = (f"card {wash.serial.hex()}", control.cryptogram) if found else (wash.job, None)
    if not washed:
        vendors = initial_holds(sam, job, wash.initial, ours, journal)
        if vendors:  # serial first: from then on a resumed job tries our control key too
            update_binary(sam, IDENTITY, _named(wash.serial, BEGUN))
            journal.done(wash.job, "serial")
        _write_own_keys(sam, wash, wash.initial if vendors else control, store)
        if vendors:
            spec = load_profile().key(Purpose.CONTROL)
            record_header = spec.header(1, control.algorithm)
            write_key_sealed(sam, spec.key_type, 0, _payload(wash.initial, control, record_header))
            journal.done(wash.job, "control key")
    select(sam, MF)
    if not authenticates(sam, 0, control.cryptogram):
        raise CryptoError("the SAM does not accept our control key: it was washed with another root or version")
    if internal_authenticate(sam, 0, wash.serial) != _own_key(wash, store).answer(wash.serial):
        raise CheckFailed("the SAM's own key is not the one we wrote")
    if not washed:
        update_binary(sam, IDENTITY, _named(wash.serial, WASHED))
    journal.done(wash.job, "washed")


def _named(serial: bytes, version: int) -> bytes:
    return PsamIdentity(b"\0\0" + serial, version, CARD_TYPE).encode()


def load_sam(sam: Transport, plan: SamPlan, keys: KeySource, journal: StepJournal) -> list[SamKey]:
    """Make a washed SAM its terminal's, or finish one that was interrupted; returns what it lists.

    ``keys`` is a mother card or key store. Before the SAM is touched: NotFound when a key to be loaded is missing,
    Conflict when the SAM is another terminal's, of another kind, or has a PIN that the plan lacks. CryptoError when
    it does not know our control key, CheckFailed when a key's check value differs, Refused ``sam_full``.
    """
    plan.check()
    require_enterprise(keys, plan.enterprise_id)
    wanted = _wanted(HOLDS[plan.kind], plan.versions, keys)
    _expect(sam, plan.serial)
    _expect_fitting(look(sam), plan)
    _login(sam, plan.serial, keys, plan.control_version)
    update_binary(sam, TERMINAL_NUMBER, plan.terminal)
    under = (Purpose.SAM_CONTROL, plan.control_version)
    if plan.pin:  # before the keys, and anew when an interrupted run left another
        put_key(sam, SAM_PIN.key_type, 0, sealed_by(keys, Purpose.PIN, 1, under, plan.serial, plan.pin))
    journal.done(plan.job, "who it is")
    _load(sam, plan.serial, wanted, keys, plan.control_version)
    issuer = issuer_id(plan.enterprise_id)
    update_binary(sam, APPLICATION, PsamApplication(1, issuer, issuer, plan.start, plan.expiry).encode())
    journal.done(plan.job, "keys")
    listed = _opened(sam, plan).keys()
    journal.done(plan.job, "complete")
    return listed


def _expect_fitting(found: SamReport, plan: SamPlan) -> None:
    """Raise Conflict when this SAM is something else already that it can't be changed from."""
    if found.keys and found.terminal != plan.terminal:
        number = found.terminal.hex().upper() if found.terminal else "unknown"
        raise Conflict(f"this SAM is that of terminal {number} and never serves another one: take a fresh SAM")
    foreign = {key.purpose for key in found.keys} - set(HOLDS[plan.kind])
    if foreign:
        names = ", ".join(sorted(Purpose(purpose).name.lower() for purpose in foreign))
        raise Conflict(f"this SAM holds {names} keys, which no {plan.kind} terminal may have: take a fresh SAM")
    if found.pin and not plan.pin:
        raise Conflict("this SAM has its terminal's PIN already: it is not made without PIN any more")


def load_keys(
    sam: Transport,
    serial: bytes,
    purposes: Iterable[Purpose],
    versions: Iterable[int],
    keys: KeySource,
    control_version: int = 1,
) -> list[SamKey]:
    """Add enterprise keys to a SAM, the host proving itself first (card.md §7.7); returns all that the SAM lists.

    Before the SAM is touched: NotFound when a key is missing, Refused for a purpose that no SAM holds, Conflict when
    another SAM is there. CryptoError when it does not know our control key, CheckFailed, Refused ``sam_full``.
    """
    wanted = _wanted(purposes, versions, keys)
    _expect(sam, serial)
    _login(sam, serial, keys, control_version)
    return _load(sam, serial, wanted, keys, control_version)


def complete_versions(kind: SamKind, keys: KeySource) -> tuple[int, ...]:
    """The versions of which a source has every key of a kind: what a new SAM is given."""
    have = {(line.purpose, line.version) for line in keys.lines()}
    return tuple(n for n in range(1, 256) if all((purpose, n) in have for purpose in HOLDS[kind]))


def lock_sam(sam: Transport, serial: bytes, store: KeyStore, journal: StepJournal) -> None:
    """Block a SAM for good, by the platform's line protection key, or find that an interrupted run did.

    Raises Conflict when another SAM is there, Refused ``sam_blocked`` when a blocked one is that we did not begin
    to lock, ``no_line_key`` and CryptoError when it can't be locked by us.
    """
    job = f"lock {serial.hex()}"
    try:
        found = sam_serial(sam)
    except Refused:
        if "begun" not in journal.steps(job):
            raise
        journal.done(job, "blocked")
        return
    if found != serial:
        name = found.hex().upper() if found else "without serial"
        raise Conflict(f"this is SAM {name}: insert SAM {serial.hex().upper()}")
    journal.done(job, "begun")
    if not any(_blocked_by(sam, store.handle(ref, serial)) for ref in _line_keys(store)):
        raise CryptoError(f"SAM {serial.hex().upper()} does not know our line protection key: another platform's")
    journal.done(job, "blocked")


def _line_keys(store: KeyStore) -> list[KeyRef]:
    """The platform's line protection keys, the newest first: in the SAM they are not counted."""
    infos = (info for info in store.list() if info.state is not KeyState.DESTROYED)
    return sorted((i.ref for i in infos if i.ref.purpose is Purpose.CARD_MAINTENANCE), reverse=True)


def _blocked_by(sam: Transport, line: KeyHandle) -> bool:
    try:
        block_card(sam, protector(line))
    except StatusError as e:
        if e.sw == SW.KEY_NOT_FOUND:
            raise Refused("no_line_key", "this SAM has no line protection key: destroy it, or report it lost") from e
        if e.sw == SW.SM_WRONG:
            return False
        raise
    return True


def _login(sam: Transport, serial: bytes, keys: KeySource, control_version: int) -> None:
    """The host proves itself (keys.md, SAM). Raises CryptoError."""
    select(sam, MF)
    if not authenticates(
        sam, 0, lambda challenge: keys.cryptogram(Purpose.SAM_CONTROL, control_version, serial, challenge)
    ):
        raise CryptoError(f"SAM {serial.hex().upper()} does not accept our control key: look up who made it")


def _wanted(purposes: Iterable[Purpose], versions: Iterable[int], keys: KeySource) -> list[KeyLine]:
    known = {(line.purpose, line.version): line for line in keys.lines()}
    versions = tuple(versions)
    pairs = [(purpose, version) for purpose in purposes for version in versions]
    for purpose, version in pairs:
        if purpose not in LOADED_USAGE:
            raise Refused("key_usage", f"no SAM holds a {purpose.name.lower()} key")
        if (purpose, version) not in known:
            raise NotFound(f"there is no {purpose.name.lower()} key of version {version} to load")
    return [known[pair] for pair in pairs]


def _load(
    sam: Transport, serial: bytes, wanted: Sequence[KeyLine], keys: KeySource, control_version: int
) -> list[SamKey]:
    """Write what is not there yet, and compare what the SAM then lists; leaves DF 1001 selected.

    The MF's state outlives that: the host stays authenticated (card.md §6.1).
    """
    select(sam, SAM_DF)
    there = list_keys(sam)
    for line in wanted:
        if SamKey(line.purpose, line.version, line.algorithm, line.kcv) in there:
            continue
        payload = sealed_by(keys, line.purpose, line.version, (Purpose.SAM_CONTROL, control_version), serial)
        try:
            write_key_sealed(sam, LOAD, 0, payload)
        except StatusError as e:
            if e.sw == SW.NO_SPACE:
                raise Refused("sam_full", f"SAM {serial.hex().upper()} has no room for more keys: replace it") from e
            raise
    listed = list_keys(sam)
    for line in wanted:
        if SamKey(line.purpose, line.version, line.algorithm, line.kcv) not in listed:
            name = line.purpose.name.lower()
            raise CheckFailed(f"the SAM does not hold the {name} key, version {line.version}, as loaded")
    return listed


def _own_key(wash: SamWash, store: KeyStore) -> KeyHandle:
    """Key 30/00, by which a SAM proves itself: from the control master, which no terminal's SAM holds."""
    return store.handle(KeyRef(Purpose.CONTROL, wash.own_version, wash.enterprise_id), wash.serial)


def _write_own_keys(sam: Transport, wash: SamWash, under: KeyHandle, store: KeyStore) -> None:
    """30/00 and 36/00, under the control key in force."""
    profile, own = load_profile(), _own_key(wash, store)
    spec = profile.key(Purpose.CARD)
    put_key(sam, spec.key_type, 0, _payload(under, own, spec.header(wash.own_version, own.algorithm)))
    line = store.handle(KeyRef(Purpose.CARD_MAINTENANCE, wash.platform_version), wash.serial)
    spec = profile.key(Purpose.CARD_MAINTENANCE)
    if line.algorithm == under.algorithm:  # its record has no algorithm byte: it is that of the SAM (card.md §12)
        put_key(sam, spec.key_type, 0, _payload(under, line, spec.header(1, line.algorithm)))


def _payload(under: KeyHandle, key: KeyHandle, record_header: bytes) -> Payload:
    return lambda header, challenge: key_payload(under, key, record_header, header, challenge)


def _opened(sam: Transport, plan: SamPlan) -> CardSam:
    """The SAM as its terminal will open it. Raises CheckFailed when it names another serial, terminal, enterprise."""
    pin = plan.pin
    opened = CardSam(sam, None if pin is None else lambda: pin)
    if opened.info() != (plan.serial, plan.terminal, plan.enterprise_id):
        raise CheckFailed("the SAM names another serial, terminal or enterprise than was written")
    return opened
