"""Mother cards: one enterprise's master keys on a card that delivers them and never shows them (keys.md).

The platform makes a mother card and the authentication card that opens it; the enterprise's host uses the two as the
:class:`keymgmt.delivery.KeySource` of its cards and SAMs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cardlib.apdu import SW, Command
from cardlib.crypto import Algorithm
from cardlib.crypto.keys import xor
from cardlib.errors import CheckFailed, ConfigError, Conflict, CryptoError, FormatError, NotFound, Refused, StatusError
from cardlib.iso7816 import (
    MF,
    external_authenticate,
    get_challenge,
    internal_authenticate,
    protected,
    read_binary,
    select,
    tries_left,
    update_binary,
    verify_pin,
    write_key_sealed,
)
from cardlib.profile import CardKind, FileSpec, Purpose, check_serial, issuer_id, load_profile
from cardlib.sam import LOADED_USAGE
from cardlib.transport import Transport, exchange
from keymgmt.delivery import CONTROLS, LOAD, Delivery, KeyLine, key_payload
from keymgmt.delivery import protected as sealed
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.softsam import protector
from keymgmt.steps import ADD, StepJournal, create_missing, put_key, read_identity
from keymgmt.store import KeyStore
from keymgmt.wash import WashPlan, platform_login, wash

ISSUER = FileSpec(0x0015, "issuer", bytes.fromhex("A80008F0F0FFFF"))
"""Whose mother card it is: read freely, written under 36/00."""
PIN_TYPE, PIN_HEADER = 0x3A, bytes.fromhex("3AF0EF0133")
"""The administrator's PIN, of either card: state 1, three tries, changed by CHANGE PIN only."""
PROVE_TYPE, PROVE_KID, PROVE_HEADER = 0x39, 1, bytes.fromhex("39F1F002FF")
"""What the authentication card proves: only after the PIN, and then state 2."""
ANSWER_TYPE, ANSWER_RIGHTS = 0x30, bytes.fromhex("30F1F0")
"""The same key in the authentication card: used only after its own PIN."""
WRITTEN_UNDER = (Purpose.SLOT, Purpose.SAM_CONTROL)
"""Keys that a mother card holds and never delivers."""
HELD = (*(spec.purpose for spec in load_profile().keys if spec.level == "adf"), Purpose.SAM_CONTROL)
DELIVERED = tuple(purpose for purpose in HELD if purpose not in WRITTEN_UNDER)
DELIVERIES = 1000
"""Deliveries of each purpose unless the plan says otherwise."""
NOT_DIVERSIFIED, DIVERSIFIED, WITH_PIN = 0x00, 0x01, 0x02
"""Form byte of DELIVER KEY."""
LINE_BYTES, PAGE_BYTES = 8, 256


@dataclass(frozen=True, slots=True)
class MotherPlan:
    """What a mother card will hold: ``versions`` of every key of the enterprise, ``limits`` by purpose.

    Its serial and the platform's key version are those of ``wash``. ``pin`` is 2 to 6 bytes.
    """

    wash: WashPlan
    enterprise_id: int
    pin: bytes = field(repr=False)
    versions: tuple[int, ...] = (1,)
    limits: Mapping[Purpose, int] = field(
        default_factory=lambda: MappingProxyType(dict.fromkeys(DELIVERED, DELIVERIES))
    )

    def check(self) -> None:
        """Raises FormatError, ConfigError when this can't be a mother card."""
        _check(self.wash, CardKind.MOTHER, self.pin)
        issuer_id(self.enterprise_id)
        if not self.versions or not all(1 <= version <= 255 for version in self.versions):
            raise ConfigError("a mother card needs keys of at least one version, 1 to 255")
        for purpose, count in self.limits.items():
            check_limit(purpose, count)

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        limits = ", ".join(f"{purpose.name.lower()} {count}" for purpose, count in self.limits.items())
        return [
            *self.wash.lines(),
            f"write the administrator's PIN, the key of its authentication card, its enterprise {self.enterprise_id}",
            f"load {', '.join(purpose.name.lower() for purpose in HELD)}; versions {_numbers(self.versions)}",
            f"set deliveries left: {limits}",
            "open it with PIN and key, compare the check values of all keys with the key store",
        ]


@dataclass(frozen=True, slots=True)
class AuthenticationPlan:
    """The authentication card of one mother card, which it names by its serial. ``pin`` is 2 to 6 bytes."""

    wash: WashPlan
    mother_serial: bytes
    pin: bytes = field(repr=False)

    def check(self) -> None:
        """Raises FormatError when serials or PIN can't be right."""
        _check(self.wash, CardKind.AUTHENTICATION, self.pin)
        if check_serial(self.mother_serial) is not CardKind.MOTHER:
            raise FormatError(f"{self.mother_serial.hex().upper()} is no mother card's serial")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        name = self.mother_serial.hex().upper() if any(self.mother_serial) else "(its new serial)"
        return [*self.wash.lines(), f"write its own PIN and the key that opens mother card {name}; prove both"]


def check_limit(purpose: Purpose, count: int) -> None:
    """Raises ConfigError for a purpose that is never delivered, or a count outside 0 to 65535."""
    if purpose not in DELIVERED or not 0 <= count <= 0xFFFF:
        raise ConfigError(
            f"deliveries of {purpose.name.lower()}: {count} is no limit (0 to 65535, delivered keys only)"
        )


def _check(wash_plan: WashPlan, kind: CardKind, pin: bytes) -> None:
    wash_plan.check()
    if check_serial(wash_plan.serial) is not kind:
        raise FormatError(f"{wash_plan.serial.hex().upper()} is no {kind.name.lower()} card's serial")
    if not 2 <= len(pin) <= 6:
        raise FormatError("a PIN has 2 to 6 bytes")


def _numbers(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions))


# Making (the platform)


def make_mother(card: Transport, plan: MotherPlan, store: KeyStore, journal: StepJournal) -> list[KeyLine]:
    """Make a mother card, or finish one that was interrupted; a finished one is proven again, its limits set anew.

    Returns what it lists. Raises what ``wash`` raises; NotFound for a key that the store has not, before the card is
    touched; Conflict for another enterprise's mother card; Refused ``pin_wrong`` when an interrupted run wrote another
    PIN; CheckFailed when a check value differs.
    """
    plan.check()
    serial, job = plan.wash.serial, plan.wash.job
    control, proof = _platform_keys(store, plan.wash, serial)
    keys = {(purpose, version): _master(store, plan, purpose, version) for version in plan.versions for purpose in HELD}
    wash(card, plan.wash, store, journal)
    protect = platform_login(card, store, serial, plan.wash.key_version)
    found = _issuer(card)
    if found not in (None, issuer_id(plan.enterprise_id)):
        raise Conflict(f"mother card {serial.hex().upper()} is another enterprise's: take a fresh card")
    create_missing(card, ISSUER)
    update_binary(card, ISSUER.fid, issuer_id(plan.enterprise_id), protect=protect)
    _write_pin(card, control, plan.pin)
    put_key(card, PROVE_TYPE, PROVE_KID, lambda head, rand: key_payload(control, proof, PROVE_HEADER, head, rand))
    journal.done(job, "PIN and key of its authentication card")
    for (purpose, version), key in keys.items():
        _load(card, control, purpose, version, key)
    journal.done(job, "enterprise keys")
    for purpose, count in plan.limits.items():
        _set_limit(card, control, purpose, count)
    journal.done(job, "limits")
    listed = _prove_mother(card, plan, proof, keys)
    journal.done(job, "complete")
    return listed


def make_authentication(card: Transport, plan: AuthenticationPlan, store: KeyStore, journal: StepJournal) -> None:
    """Make the authentication card of a mother card, or finish one; a finished one is proven again.

    Raises what ``wash`` raises, Refused ``pin_wrong`` when an interrupted run wrote another PIN, CheckFailed.
    """
    plan.check()
    control, proof = _platform_keys(store, plan.wash, plan.mother_serial)
    wash(card, plan.wash, store, journal)
    platform_login(card, store, plan.wash.serial, plan.wash.key_version)
    _write_pin(card, control, plan.pin)
    header = ANSWER_RIGHTS + bytes([plan.wash.key_version, proof.algorithm])
    put_key(card, ANSWER_TYPE, PROVE_KID, lambda head, rand: key_payload(control, proof, header, head, rand))
    select(card, MF)
    _verify(card, plan.pin, "authentication card")
    if _answer(card, plan.mother_serial) != proof.cryptogram(plan.mother_serial):
        raise CheckFailed("the authentication card does not answer with the key we wrote")
    journal.done(plan.wash.job, "complete")


def set_limit(card: Transport, purpose: Purpose, count: int, store: KeyStore, key_version: int = 1) -> bytes:
    """Set the deliveries left of a purpose, by the platform; returns the mother card's serial.

    Raises Conflict when no mother card is there, ConfigError for an impossible limit, CryptoError for another
    platform's card.
    """
    check_limit(purpose, count)
    serial = card_of_kind(card, CardKind.MOTHER)
    platform_login(card, store, serial, key_version)
    _set_limit(card, store.handle(KeyRef(Purpose.CARD_CONTROL, key_version), serial), purpose, count)
    return serial


def _platform_keys(store: KeyStore, plan: WashPlan, mother_serial: bytes) -> tuple[KeyHandle, KeyHandle]:
    """Control key of the card, and the key that ties the pair. Raises ConfigError when a card can't hold both."""
    control = store.handle(KeyRef(Purpose.CARD_CONTROL, plan.key_version), plan.serial)
    proof = store.handle(KeyRef(Purpose.MOTHER_AUTH, plan.key_version), mother_serial)
    if control.algorithm != proof.algorithm:
        raise ConfigError(
            f"card control and mother authentication key differ: {control.algorithm.name}, {proof.algorithm.name}"
        )
    return control, proof


def _master(store: KeyStore, plan: MotherPlan, purpose: Purpose, version: int) -> KeyHandle | None:
    """An enterprise master key; none for PINs, which are written and not derived."""
    return None if purpose is Purpose.PIN else store.handle(KeyRef(purpose, version, plan.enterprise_id))


def _write_pin(card: Transport, control: KeyHandle, pin: bytes) -> None:
    """Add the PIN; one that an interrupted run left can't be replaced, and is tried when the card is proven."""
    record = PIN_HEADER + pin.ljust(8, b"\xff")
    try:
        write_key_sealed(card, ADD, 0, lambda head, rand: sealed(control, head, record, rand, encrypt=True))
    except StatusError as e:
        if e.sw != SW.P1P2:
            raise


def _load(card: Transport, control: KeyHandle, purpose: Purpose, version: int, key: KeyHandle | None) -> None:
    """``84D4 0000``: what the key is, what it becomes where it is delivered, its value."""
    algorithm = Algorithm.TDES if key is None else key.algorithm
    place = bytes(6)
    if purpose not in WRITTEN_UNDER:
        spec = load_profile().key(purpose)
        place = bytes([spec.key_type, spec.kid(version)]) + spec.header(version, algorithm)[1:]
    header = bytes([purpose, version, algorithm]) + place + bytes([LOADED_USAGE.get(purpose, 0)])

    def payload(head: bytes, rand: bytes) -> bytes:
        if key is None:
            return sealed(control, head, header, rand, encrypt=True)
        return key_payload(control, key, header, head, rand)

    write_key_sealed(card, LOAD, 0, payload)


def _set_limit(card: Transport, control: KeyHandle, purpose: Purpose, count: int) -> None:
    protected(card, Command(0x80, 0xDA, purpose, 0x00, count.to_bytes(2, "big")), protector(control))


def _prove_mother(
    card: Transport, plan: MotherPlan, proof: KeyHandle, keys: Mapping[tuple[Purpose, int], KeyHandle | None]
) -> list[KeyLine]:
    """Open it as its authentication card would, compare all it lists, and use each key that others go under."""
    select(card, MF)
    _verify(card, plan.pin, "mother card")
    external_authenticate(card, PROVE_KID, proof.cryptogram(get_challenge(card)))
    listed = {(line.purpose, line.version): line for line in _lines(lambda command: exchange(card, command))}
    for (purpose, version), key in keys.items():
        line = listed.get((purpose, version))
        if line is None or line.kcv != (key.kcv if key else bytes(3)):
            raise CheckFailed(f"the mother card does not hold the {purpose.name.lower()} key, version {version}")
        if line.left != plan.limits.get(purpose, line.left):
            raise CheckFailed(f"the mother card's deliveries of {purpose.name.lower()} keys are not as set")
        if key and purpose in CONTROLS:
            got = exchange(card, _cryptogram(purpose, version, plan.wash.serial, plan.wash.serial))
            if got != key.derive(plan.wash.serial).cryptogram(plan.wash.serial):
                raise CheckFailed(f"the mother card's {purpose.name.lower()} key, version {version}, is not ours")
    return list(listed.values())


# What both sides ask


def card_of_kind(card: Transport, kind: CardKind, *, finished: bool = True) -> bytes:
    """Serial of the card, when it is of this kind, and washed or ``finished`` false; leaves the MF selected.

    Raises Conflict.
    """
    name = kind.name.lower()
    identity = read_identity(card)
    if identity is None or identity.serial[0] != kind:
        raise Conflict(f"no {name} card there: put the {name} card into its reader")
    if finished and not identity.wash_version:
        raise Conflict(f"{name} card {identity.serial.hex().upper()} was not made to its end: make it again")
    return identity.serial


def _issuer(card: Transport) -> bytes | None:
    """Issuer identifier that the card bears, None before it has one."""
    try:
        found = read_binary(card, ISSUER.fid)
    except StatusError as e:
        if e.sw == SW.FILE_NOT_FOUND:
            return None
        raise
    return found if any(found) else None


def _verify(card: Transport, pin: bytes, name: str) -> None:
    """Present a PIN, once. Raises Refused ``pin_wrong`` with the tries left, ``pin_blocked``."""
    try:
        verify_pin(card, pin)
    except StatusError as e:
        left = tries_left(e)
        if left is None:
            raise
        if left:
            raise Refused("pin_wrong", f"the {name}'s PIN is wrong: {left} tries left, it was tried once") from e
        raise Refused("pin_blocked", f"the {name}'s PIN is blocked: the platform makes a new {name}") from e


def _answer(card: Transport, challenge: bytes) -> bytes:
    """What the authentication card says to 8 bytes, as a cryptogram: SM4 halves are XORed (card.md §8)."""
    answer = internal_authenticate(card, PROVE_KID, challenge)
    return answer if len(answer) == 8 else xor(answer[:8], answer[8:16])


def _lines(ask: Callable[[Command], bytes]) -> list[KeyLine]:
    """LIST KEYS, page after page. Raises FormatError."""
    raw, page = b"", 0
    while True:
        answer = ask(Command(0x80, 0xEA, page, 0x00, le=0))
        raw, page = raw + answer, page + 1
        if len(answer) < PAGE_BYTES:
            break
    if len(raw) % LINE_BYTES:
        raise FormatError(f"the mother card lists its keys in {len(raw)} bytes, no multiple of {LINE_BYTES}")
    try:
        return [_line(raw[at : at + LINE_BYTES]) for at in range(0, len(raw), LINE_BYTES)]
    except ValueError as e:
        raise FormatError("the mother card lists a purpose or algorithm that there is not") from e


def _line(raw: bytes) -> KeyLine:
    return KeyLine(Purpose(raw[0]), raw[1], Algorithm(raw[2]), raw[3:6], int.from_bytes(raw[6:], "big"))


def _cryptogram(control: Purpose, version: int, serial: bytes, challenge: bytes) -> Command:
    # A challenge of 4 bytes is enciphered with zeros behind (card.md §3, EXTERNAL AUTH).
    return Command(0x80, 0xEC, CONTROLS.index(control), version, serial + challenge.ljust(8, b"\0"), 8)


# Using (the enterprise)


@dataclass(frozen=True, slots=True)
class Pins:
    """PINs of the two cards, 2 to 6 bytes each."""

    mother: bytes = field(repr=False)
    authentication: bytes = field(repr=False)


class MotherCard:
    """An opened mother card: a :class:`keymgmt.delivery.KeySource`. No key is ever in this process.

    Opening presents each PIN once. When a card lost its state on the way, the two are opened once more.
    """

    def __init__(self, mother: Transport, authentication: Transport, pins: Pins) -> None:
        """Raises Conflict when a card is not what it must be, Refused ``pin_wrong``, ``pin_blocked``, CryptoError."""
        self._mother, self._authentication, self._pins = mother, authentication, pins
        self.serial = card_of_kind(mother, CardKind.MOTHER)
        issuer = _issuer(mother)
        if issuer is None:
            raise Conflict(f"mother card {self.serial.hex().upper()} was not made to its end: the platform makes it")
        self.enterprise_id = int.from_bytes(issuer[4:], "big")
        if issuer != issuer_id(self.enterprise_id):
            raise FormatError(f"mother card {self.serial.hex().upper()} belongs to no enterprise")
        self._open()

    def __repr__(self) -> str:
        return f"<MotherCard {self.serial.hex().upper()} of enterprise {self.enterprise_id}>"

    def lines(self) -> Sequence[KeyLine]:
        """See :class:`keymgmt.delivery.KeySource`."""
        return _lines(self._ask)

    def cryptogram(self, control: Purpose, version: int, serial: bytes, challenge: bytes) -> bytes:
        """See :class:`keymgmt.delivery.KeySource`."""
        if control not in CONTROLS:
            raise Refused("key_usage", f"nobody loads keys under the {control.name.lower()} key")
        try:
            answer = self._ask(_cryptogram(control, version, serial, challenge))
        except StatusError as e:
            if e.sw in (SW.KEY_NOT_FOUND, SW.KEY_INDEX):
                raise self._missing((control, version)) from e
            raise
        if len(answer) != 8:
            raise FormatError(f"the mother card answers with a cryptogram of {len(answer)} bytes")
        return answer

    def deliver(self, wanted: Delivery) -> bytes:
        """See :class:`keymgmt.delivery.KeySource`; each delivery is counted, an answer that got lost too."""
        wanted.check()
        form = NOT_DIVERSIFIED if wanted.under is Purpose.SAM_CONTROL else DIVERSIFIED
        if wanted.purpose is Purpose.PIN:
            form = WITH_PIN
        head = wanted.header[2:] + bytes([CONTROLS.index(wanted.under), wanted.under_version, form, 0, 0, 0])
        pin = wanted.pin.ljust(8, b"\xff") if form == WITH_PIN else b""
        data = head + wanted.serial + pin + wanted.challenge
        try:
            return self._ask(Command(0x80, 0xE8, wanted.purpose, wanted.version, data, 0))
        except StatusError as e:
            if e.sw in (SW.KEY_NOT_FOUND, SW.KEY_INDEX):
                raise self._missing((wanted.purpose, wanted.version), (wanted.under, wanted.under_version)) from e
            if e.sw == SW.CONDITIONS:
                raise self._refused(wanted) from e
            raise

    def _ask(self, command: Command) -> bytes:
        try:
            return exchange(self._mother, command)
        except StatusError as e:
            if e.sw != SW.SECURITY:
                raise
        self._open()
        return exchange(self._mother, command)

    def _open(self) -> None:
        """PIN and proof: state 1, then 2 (keys.md). The authentication card comes first: it costs the mother no try."""
        card_of_kind(self._authentication, CardKind.AUTHENTICATION)
        _verify(self._authentication, self._pins.authentication, "authentication card")
        found = card_of_kind(self._mother, CardKind.MOTHER)
        if found != self.serial:
            raise Conflict(f"this is mother card {found.hex().upper()}: put {self.serial.hex().upper()} back")
        _verify(self._mother, self._pins.mother, "mother card")
        challenge = get_challenge(self._mother)
        try:
            answer = _answer(self._authentication, challenge)
        except StatusError as e:
            if e.sw == SW.KEY_NOT_FOUND:
                raise Conflict("the authentication card was not made to its end: the platform makes it") from e
            raise
        try:
            external_authenticate(self._mother, PROVE_KID, answer)
        except StatusError as e:
            if tries_left(e) is None:
                raise
            name = self.serial.hex().upper()
            raise CryptoError(
                f"this authentication card is not that of mother card {name}: insert the right one"
            ) from e

    def _missing(self, *wanted: tuple[Purpose, int]) -> NotFound:
        held = {(line.purpose, line.version) for line in self.lines()}
        purpose, version = next((one for one in wanted if one not in held), wanted[0])
        text = f"mother card {self.serial.hex().upper()} has no {purpose.name.lower()} key of version {version}"
        return NotFound(f"{text}: use another version, or have the platform add it")

    def _refused(self, wanted: Delivery) -> Refused:
        name = wanted.purpose.name.lower()
        if any(line.purpose is wanted.purpose and not line.left for line in self.lines()):
            card = self.serial.hex().upper()
            text = f"mother card {card} may deliver no more {name} keys: the platform sets a new limit"
            return Refused("out_of_deliveries", text)
        p1, kid = wanted.header[2:]
        return Refused("key_usage", f"the mother card does not give out its {name} key as {p1:02X}/{kid:02X}")
