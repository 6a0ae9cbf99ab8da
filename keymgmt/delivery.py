"""Payloads of WRITE KEY by reference: a key store and a mother card give the same ones (keys.md, DELIVER KEY)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, FormatError, Refused
from cardlib.iso7816 import MAC_SIZE
from cardlib.profile import KeySpec, Purpose, load_profile
from cardlib.sam import LOADED_USAGE
from keymgmt.handle import KeyHandle, UseLog
from keymgmt.keys import AIR_PURPOSES, PLATFORM_PURPOSES, KeyRef, KeyState
from keymgmt.steps import ADD, Payload
from keymgmt.store import KeyStore

LOAD = 0x00
"""P1 of WRITE KEY that loads a key for cards into a SAM (card.md §7.7)."""
UNLIMITED = 0xFFFF
"""Deliveries left of a key whose source does not count them."""
SAM_PIN = KeySpec("sam pin", Purpose.PIN, 0x3A, (0,), "mf", "F0080333")
"""The terminal's PIN: changed only after the control key was proven (MF state 8), three tries."""
CONTROLS = (Purpose.SLOT, Purpose.CONTROL, Purpose.SAM_CONTROL)
"""Keys that others are written under: the control byte of DELIVER KEY."""

UNDELIVERED = PLATFORM_PURPOSES | AIR_PURPOSES | {Purpose.SLOT, Purpose.SAM_CONTROL}
"""The platform's keys, and those that an enterprise only writes under."""


class KeyLine(NamedTuple):
    """One line of LIST KEYS of a mother card (keys.md)."""

    purpose: Purpose
    version: int
    algorithm: Algorithm
    kcv: bytes
    left: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One payload to be made: ``purpose`` and ``version`` of the key, the command it is for, the key it goes under.

    ``header`` is 84 D4 P1 kid, ``serial`` (8) and ``challenge`` (4 or 8) are the target's, ``pin`` (2 to 8 bytes)
    is what purpose PIN writes.
    """

    purpose: Purpose
    version: int
    header: bytes
    under: Purpose
    under_version: int
    serial: bytes
    challenge: bytes
    pin: bytes = field(default=b"", repr=False)

    def check(self) -> None:
        """Raises FormatError when no target could want this, Refused ``key_usage`` for keys that are not delivered."""
        if len(self.header) != 4 or len(self.serial) != 8 or len(self.challenge) not in (4, 8):
            raise FormatError("a delivery has a header of 4 bytes, a serial of 8, a challenge of 4 or 8")
        if self.under not in CONTROLS or self.purpose in UNDELIVERED:
            raise Refused("key_usage", f"no {self.purpose.name.lower()} key goes under the {self.under.name.lower()}")
        if (self.purpose is Purpose.PIN) != (2 <= len(self.pin) <= 8):
            raise FormatError("a PIN of 2 to 8 bytes goes with purpose pin, and with no other")


class KeySource(Protocol):
    """What fills the key files of one enterprise's cards and SAMs: its mother card, or a key store."""

    @property
    def enterprise_id(self) -> int:
        """Whose keys these are."""

    def lines(self) -> Sequence[KeyLine]:
        """The keys that can be delivered or written under, by purpose and version."""

    def cryptogram(self, control: Purpose, version: int, serial: bytes, challenge: bytes) -> bytes:
        """8 bytes for EXTERNAL AUTHENTICATE with the slot, control or SAM control key of one card or SAM.

        Raises Refused ``key_usage`` for other keys, NotFound for a version that is not there.
        """

    def deliver(self, wanted: Delivery) -> bytes:
        """E || MAC of WRITE KEY (card.md §6.4, §7.7).

        Raises Refused ``key_usage`` for a type or kid that is not this key's, ``out_of_deliveries``; NotFound.
        """


class StoreKeys:
    """A key store as the source of one enterprise's keys; the key written is in memory for that payload only."""

    def __init__(self, store: KeyStore, enterprise_id: int) -> None:
        self.store = store
        self.enterprise_id = enterprise_id

    def __repr__(self) -> str:
        return f"<StoreKeys of enterprise {self.enterprise_id}>"

    def lines(self) -> list[KeyLine]:
        """See :class:`KeySource`: what the enterprise has of its own, and what follows from the platform's roots."""
        found: dict[tuple[Purpose, int], KeyLine] = {}
        infos = self.store.list()
        gone = {info.ref for info in infos if info.state is KeyState.DESTROYED}
        for info in infos:
            ref = info.ref._replace(enterprise_id=self.enterprise_id)
            ours = info.ref.enterprise_id in (None, self.enterprise_id)
            if ours and ref.purpose not in PLATFORM_PURPOSES | AIR_PURPOSES and not gone & {info.ref, ref}:
                key = self.store.handle(ref)
                found[ref.purpose, ref.version] = KeyLine(ref.purpose, ref.version, key.algorithm, key.kcv, UNLIMITED)
        return [found[key] for key in sorted(found)]

    def cryptogram(self, control: Purpose, version: int, serial: bytes, challenge: bytes) -> bytes:
        """See :class:`KeySource`."""
        if control not in CONTROLS:
            raise Refused("key_usage", f"nobody loads keys under the {control.name.lower()} key")
        return self._key(control, version, serial).cryptogram(challenge)

    def deliver(self, wanted: Delivery) -> bytes:
        """See :class:`KeySource`."""
        wanted.check()
        under = self._key(wanted.under, wanted.under_version, wanted.serial)
        if wanted.purpose is Purpose.PIN:
            spec = SAM_PIN if wanted.under is Purpose.SAM_CONTROL else load_profile().key(Purpose.PIN)
            expect_place(wanted, spec.key_type, spec.kid(wanted.version))
            record = spec.header(wanted.version, under.algorithm) + wanted.pin.ljust(8, b"\xff")
            return protected(under, wanted.header, record, wanted.challenge, encrypt=True)
        if wanted.under is Purpose.SAM_CONTROL:
            return self._for_sam(wanted, under)
        spec = load_profile().key(wanted.purpose)
        expect_place(wanted, spec.key_type, spec.kid(wanted.version))
        key = self._key(wanted.purpose, wanted.version, wanted.serial)
        record_header = spec.header(wanted.version, key.algorithm)
        return key_payload(under, key, record_header, wanted.header, wanted.challenge)

    def _for_sam(self, wanted: Delivery, under: KeyHandle) -> bytes:
        """The enterprise's key itself, not diversified: only into a SAM (keys.md, form 00)."""
        if wanted.purpose not in LOADED_USAGE:
            raise Refused("key_usage", f"no SAM holds a {wanted.purpose.name.lower()} key")
        expect_place(wanted, LOAD, 0)
        key = self._key(wanted.purpose, wanted.version)
        record_header = bytes([LOADED_USAGE[wanted.purpose], wanted.version, key.algorithm])
        return key_payload(under, key, record_header, wanted.header, wanted.challenge)

    def _key(self, purpose: Purpose, version: int, *factors: bytes) -> KeyHandle:
        return self.store.handle(KeyRef(purpose, version, self.enterprise_id), *factors)


class AuditedKeys:
    """A mother card's keys with each use told, as a key store tells them itself (keys.md, Key store)."""

    def __init__(self, keys: KeySource, uses: UseLog) -> None:
        self._keys, self._uses = keys, uses

    def __repr__(self) -> str:
        return f"<AuditedKeys {self._keys!r}>"

    @property
    def enterprise_id(self) -> int:
        """See :class:`KeySource`."""
        return self._keys.enterprise_id

    def lines(self) -> Sequence[KeyLine]:
        """See :class:`KeySource`."""
        return self._keys.lines()

    def cryptogram(self, control: Purpose, version: int, serial: bytes, challenge: bytes) -> bytes:
        """See :class:`KeySource`."""
        self._uses.count(KeyRef(control, version, self.enterprise_id))
        return self._keys.cryptogram(control, version, serial, challenge)

    def deliver(self, wanted: Delivery) -> bytes:
        """See :class:`KeySource`."""
        self._uses.count(KeyRef(wanted.under, wanted.under_version, self.enterprise_id))
        if wanted.purpose is not Purpose.PIN:
            self._uses.count(KeyRef(wanted.purpose, wanted.version, self.enterprise_id))
        return self._keys.deliver(wanted)


def expect_place(wanted: Delivery, key_type: int, kid: int) -> None:
    """Raise Refused ``key_usage`` unless the command adds or replaces a key of just this type and identifier.

    A load key delivered as type 30 would be an oracle for its own session keys (keys.md, DELIVER KEY).
    """
    p1, p2 = wanted.header[2:]
    places = (key_type,) if key_type == LOAD else (ADD, key_type)
    if p1 not in places or p2 != kid:
        name = wanted.purpose.name.lower()
        raise Refused("key_usage", f"a {name} key is type {key_type:02X}, kid {kid:02X}: not {p1:02X}/{p2:02X}")


def require_enterprise(keys: KeySource, enterprise_id: int) -> None:
    """Raise Conflict when these are another enterprise's keys, before a card or SAM is touched."""
    if keys.enterprise_id != enterprise_id:
        raise Conflict(
            f"these are keys of enterprise {keys.enterprise_id}, the card or SAM is enterprise {enterprise_id}'s:"
            " take its own mother card"
        )


def sealed_by(
    keys: KeySource,
    purpose: Purpose,
    version: int,
    under: tuple[Purpose, int],
    serial: bytes,
    pin: bytes = b"",
) -> Payload:
    """The payload of a key for ``iso7816.write_key_sealed``, from any source; ``under`` is purpose and version."""
    return lambda header, challenge: keys.deliver(Delivery(purpose, version, header, *under, serial, challenge, pin))


def protected(key: KeyHandle, header: bytes, data: bytes, challenge: bytes, *, encrypt: bool = False) -> bytes:
    """Data, or ciphertext, and the secure-messaging MAC over it (card.md §1.6)."""
    body = key.seal(data) if encrypt else data
    return body + key.mac(header + bytes([len(body) + MAC_SIZE]) + body, challenge)


def key_payload(under: KeyHandle, child: KeyHandle, record_header: bytes, header: bytes, challenge: bytes) -> bytes:
    """E || MAC of WRITE KEY: the child's record enciphered and MACed (card.md §6.4)."""
    body = under.wrap(child, record_header)
    return body + under.mac(header + bytes([len(body) + MAC_SIZE]) + body, challenge)
