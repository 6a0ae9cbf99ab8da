"""What is known about a key: its reference, its state, its attributes. Never its value (keys.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import NamedTuple

from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, FormatError
from cardlib.profile import MAX_ENTERPRISE_ID, Purpose


@unique
class KeyState(StrEnum):
    """Life of a key version (keys.md): pending → active → retiring → destroyed."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRING = "retiring"
    DESTROYED = "destroyed"


# A version that never went into use may be destroyed at once; a retirement may be called off.
TRANSITIONS = {
    KeyState.PENDING: (KeyState.ACTIVE, KeyState.DESTROYED),
    KeyState.ACTIVE: (KeyState.RETIRING,),
    KeyState.RETIRING: (KeyState.ACTIVE, KeyState.DESTROYED),
    KeyState.DESTROYED: (),
}

AIR_PURPOSES = frozenset(p for p in Purpose if p >= Purpose.OTA_KIC)
"""Keysets over the air: values of 16 bytes that secured packets use, in no card's key file."""
PLATFORM_PURPOSES = frozenset(
    {Purpose.CARD_CONTROL, Purpose.CARD_MAINTENANCE, Purpose.MOTHER_AUTH}
    | {Purpose.OTA_KIC, Purpose.OTA_KID, Purpose.OTA_KIK}
)
"""Keys of the MF, of mother cards, and keyset 1 over the air: diversified from the root by serial alone."""


class KeyRef(NamedTuple):
    """Names one master key: a root key of the platform, or with ``enterprise_id`` an enterprise master key."""

    purpose: Purpose
    version: int
    enterprise_id: int | None = None

    def check(self) -> None:
        """Raises FormatError when no such key can be: version 1 to 255, enterprise within its range."""
        if not 1 <= self.version <= 255:
            raise FormatError(f"key version {self.version} is not in 1 to 255")
        if self.enterprise_id is not None and not 1 <= self.enterprise_id <= MAX_ENTERPRISE_ID:
            raise FormatError(f"enterprise {self.enterprise_id} is not in 1 to {MAX_ENTERPRISE_ID}")
        if self.enterprise_id is not None and self.purpose in PLATFORM_PURPOSES:
            raise FormatError(f"{self.purpose.name.lower()} is a key of the platform: it has no enterprise")

    @property
    def root(self) -> KeyRef:
        """The platform's root key that this one descends from."""
        return self._replace(enterprise_id=None)

    @property
    def levels(self) -> int:
        """Diversifications down to the key of one card or SAM: issuer identifier, then serial."""
        return 1 if self.enterprise_id is not None or self.purpose in PLATFORM_PURPOSES else 2

    def __str__(self) -> str:
        owner = "root" if self.enterprise_id is None else f"enterprise {self.enterprise_id}"
        return f"{self.purpose.name.lower()} version {self.version} of {owner}"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """Attributes of a key: check value of 3 bytes, who made it, when (UTC ms)."""

    ref: KeyRef
    algorithm: Algorithm
    kcv: bytes
    state: KeyState
    made_by: str
    made_at_ms: int


def check_transition(ref: KeyRef, old: KeyState, new: KeyState) -> None:
    """Raises Conflict that says which states can follow."""
    if new not in TRANSITIONS[old]:
        possible = " or ".join(TRANSITIONS[old]) or "nothing any more"
        raise Conflict(f"key {ref} is {old}: it can become {possible}, not {new}")
