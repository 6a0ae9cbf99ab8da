"""The card profile: identity, files, keys and records of the one-card application (profile.md).

What is on a card is data (``profiles/oc1.toml``); this module reads it and gives the record layouts.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date, time
from enum import IntEnum, unique
from functools import cache
from importlib import resources
from typing import Annotated, Any

from cardlib.errors import ConfigError, FormatError, NotFound
from cardlib.fields import BcdDate, BcdTime, Raw, Record, Text, U

AID_PREFIX = b"\xf0ONECARD\x01"
ISSUER_PREFIX = b"ONEC"
MAX_ENTERPRISE_ID = 0xFFFFFFFF


@unique
class CardKind(IntEnum):
    """First byte of a card serial."""

    RFID_SIM = 1
    CPU_CARD = 2
    SAM = 3
    MOTHER = 4
    AUTHENTICATION = 5


@unique
class Purse(IntEnum):
    """The two purses, by their file identifier and P2."""

    SUBSIDY = 1
    MAIN = 2


@unique
class TransactionType(IntEnum):
    """Transaction types of card.md §4.1 that OC-1 has."""

    LOAD_ED = 1
    LOAD_EP = 2
    UNLOAD = 3
    WITHDRAW = 4
    PURCHASE_ED = 5
    PURCHASE_EP = 6
    OVERDRAFT = 7
    CREDIT = 8
    COMPOSITE = 9

    @property
    def purse(self) -> Purse:
        """Purse that a transaction of this type touches."""
        return Purse.MAIN if self in (self.LOAD_EP, self.PURCHASE_EP, self.COMPOSITE) else Purse.SUBSIDY

    @property
    def online(self) -> bool:
        """Whether it counts the online sequence (loads, unload, overdraft) rather than the offline one."""
        return self in (self.LOAD_ED, self.LOAD_EP, self.UNLOAD, self.OVERDRAFT)


@unique
class Purpose(IntEnum):
    """What a key is for: purpose codes of profile.md; then the MF's keys, and what ties two cards of a pair.

    Keysets over the air: OTA_* are the platform's (KVN 1), SLOT_* those of a slot (keys.md, Hierarchy).
    """

    CONTROL = 0x01
    TERMINAL = 0x02
    RECHARGE = 0x03
    CARD = 0x04
    MAINTENANCE = 0x05
    PIN_UNBLOCK = 0x06
    PIN = 0x07
    PURCHASE = 0x08
    LOAD = 0x09
    REFUND = 0x0A
    UNLOAD = 0x0B
    TAC = 0x0C
    SLOT = 0x0D
    SAM_CONTROL = 0x0E
    CARD_CONTROL = 0x0F
    CARD_MAINTENANCE = 0x10
    MOTHER_AUTH = 0x11
    OTA_KIC = 0x12
    OTA_KID = 0x13
    OTA_KIK = 0x14
    SLOT_KIC = 0x15
    SLOT_KID = 0x16
    SLOT_KIK = 0x17


def crc8(data: bytes) -> int:
    """CRC-8, polynomial 07, start 00."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def make_serial(kind: CardKind, platform: int, sequence: int) -> bytes:
    """Card serial of 8 bytes with its check byte. Raises FormatError when a number does not fit."""
    body = U(1).encode(kind) + U(1).encode(platform) + U(5).encode(sequence)
    return body + bytes([crc8(body)])


def check_serial(serial: bytes) -> CardKind:
    """Return the kind a serial names. Raises FormatError when it is no serial, a mistyped one above all."""
    if len(serial) != 8 or crc8(serial[:7]) != serial[7] or serial[0] not in CardKind._value2member_map_:
        raise FormatError(f"{serial.hex().upper()} is no card serial: check the digits")
    return CardKind(serial[0])


def issuer_id(enterprise_id: int) -> bytes:
    """Issuer identifier of 8 bytes. Raises FormatError outside 1 to 4 294 967 295."""
    if not 1 <= enterprise_id <= MAX_ENTERPRISE_ID:
        raise FormatError(f"enterprise {enterprise_id} is not in 1 to {MAX_ENTERPRISE_ID}")
    return ISSUER_PREFIX + enterprise_id.to_bytes(4, "big")


def aid(enterprise_id: int) -> bytes:
    """Application name of 13 bytes. Raises FormatError outside 1 to 4 294 967 295."""
    return AID_PREFIX + issuer_id(enterprise_id)[4:]


def enterprise_of_aid(name: bytes) -> int:
    """Enterprise of an application name. Raises FormatError when it is no one-card application."""
    if len(name) != 13 or not name.startswith(AID_PREFIX) or not any(name[9:]):
        raise FormatError(f"{name.hex().upper()} is no one-card application")
    return int.from_bytes(name[9:], "big")


def card_serial_of(application_serial: bytes) -> bytes:
    """The card's diversification factor: right-most 8 of the 10 bytes in 0015 (card.md §1.4)."""
    return application_serial[2:]


@dataclass(frozen=True, slots=True)
class CardIdentity(Record):
    """MF file 0005."""

    serial: Annotated[bytes, Raw(8)]
    kind: Annotated[int, U(1)]
    wash_version: Annotated[int, U(1)]
    wash_date: Annotated[date | None, BcdDate()]
    rfu: Annotated[bytes, Raw(2)] = bytes(2)


@dataclass(frozen=True, slots=True)
class PublicInfo(Record):
    """ADF file 0015; ``key_set`` is the version byte (card.md §5, profile.md)."""

    issuer: Annotated[bytes, Raw(8)]
    app_type: Annotated[int, U(1)]
    key_set: Annotated[int, U(1)]
    application_serial: Annotated[bytes, Raw(10)]
    start: Annotated[date | None, BcdDate()]
    expiry: Annotated[date | None, BcdDate()]
    fci: Annotated[bytes, Raw(2)] = bytes(2)

    @property
    def card_serial(self) -> bytes:
        """Serial of the card, 8 bytes."""
        return card_serial_of(self.application_serial)


@dataclass(frozen=True, slots=True)
class Holder(Record):
    """ADF file 0016."""

    card_type: Annotated[int, U(1)]
    staff: Annotated[int, U(1)]
    name: Annotated[str, Text(20)]
    member_number: Annotated[str, Text(16)]
    number_type: Annotated[int, U(1)] = 0


@dataclass(frozen=True, slots=True)
class AccessRights(Record):
    """ADF file 0019."""

    valid_from: Annotated[date | None, BcdDate()]
    valid_until: Annotated[date | None, BcdDate()]
    groups: Annotated[bytes, Raw(8)] = bytes(8)
    schedule: Annotated[int, U(1)] = 0
    flags: Annotated[int, U(1)] = 0
    rfu: Annotated[bytes, Raw(6)] = bytes(6)


@dataclass(frozen=True, slots=True)
class DayCounters(Record):
    """Composite record 01 of 0017: what the card paid today."""

    record_id: Annotated[int, U(1)]
    length: Annotated[int, U(1)]
    flag: Annotated[int, U(1)]
    day: Annotated[date | None, BcdDate()]
    meal: Annotated[int, U(1)]
    times: Annotated[int, U(1)]
    spent_fen: Annotated[int, U(4)]
    day_spent_fen: Annotated[int, U(4)]

    @classmethod
    def of(
        cls, day: date | None, meal: int = 0, times: int = 0, spent_fen: int = 0, day_spent_fen: int = 0
    ) -> DayCounters:
        """Counters with their fixed head (identifier 01, length 0F, unlocked)."""
        return cls(1, 0x0F, 0, day, meal, times, spent_fen, day_spent_fen)


@dataclass(frozen=True, slots=True)
class LastPassage(Record):
    """Composite record 02 of 0017."""

    record_id: Annotated[int, U(1)]
    length: Annotated[int, U(1)]
    flag: Annotated[int, U(1)]
    zone: Annotated[int, U(2)]
    day: Annotated[date | None, BcdDate()]
    at: Annotated[time, BcdTime()]
    direction: Annotated[int, U(1)]

    @classmethod
    def of(cls, zone: int = 0, day: date | None = None, at: time = time(), direction: int = 0) -> LastPassage:
        """Passage with its fixed head (identifier 02, length 0B)."""
        return cls(2, 0x0B, 0, zone, day, at, direction)


@dataclass(frozen=True, slots=True)
class SubsidyMark(Record):
    """Composite record 03 of 0017."""

    record_id: Annotated[int, U(1)]
    length: Annotated[int, U(1)]
    flag: Annotated[int, U(1)]
    period: Annotated[int, U(4)]
    last_claim: Annotated[date | None, BcdDate()]

    @classmethod
    def of(cls, period: int = 0, last_claim: date | None = None) -> SubsidyMark:
        """Mark with its fixed head (identifier 03, length 09)."""
        return cls(3, 9, 0, period, last_claim)


@dataclass(frozen=True, slots=True)
class LogRecord(Record):
    """One record of 0018 (card.md §4.9); ``seq`` is the counter after the transaction."""

    seq: Annotated[int, U(2)]
    overdraft_fen: Annotated[int, U(3)]
    amount_fen: Annotated[int, U(4)]
    kind: Annotated[int, U(1)]
    terminal: Annotated[bytes, Raw(6)]
    when: Annotated[bytes, Raw(7)]


@dataclass(frozen=True, slots=True)
class Punch(Record):
    """One record of 001A."""

    day: Annotated[date | None, BcdDate()]
    at: Annotated[time, BcdTime()]
    terminal: Annotated[bytes, Raw(6)]
    kind: Annotated[int, U(1)]
    sequence: Annotated[int, U(2)]


@dataclass(frozen=True, slots=True)
class PsamIdentity(Record):
    """PSAM MF file 0015 (card.md §7.1)."""

    serial: Annotated[bytes, Raw(10)]
    version: Annotated[int, U(1)]
    key_card_type: Annotated[int, U(1)]
    fci: Annotated[bytes, Raw(2)] = bytes(2)


@dataclass(frozen=True, slots=True)
class PsamApplication(Record):
    """PSAM DF file 0017 (card.md §7.1)."""

    key_index: Annotated[int, U(1)]
    issuer: Annotated[bytes, Raw(8)]
    receiver: Annotated[bytes, Raw(8)]
    start: Annotated[date | None, BcdDate()]
    expiry: Annotated[date | None, BcdDate()]


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file: identifier, name in this project, and CREATE FILE data (card.md §6.3)."""

    fid: int
    name: str
    create: bytes

    @property
    def sfi(self) -> int:
        """Short identifier: low five bits of the FID (card.md §12)."""
        return self.fid & 0x1F


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key of the profile's key table."""

    name: str
    purpose: Purpose
    key_type: int
    kids: tuple[int, ...]
    level: str
    template: str

    def kid(self, version: int) -> int:
        """Odd versions lie under the first kid, even ones under the second where there are two (profile.md)."""
        return self.kids[(version + 1) % len(self.kids)]

    def header(self, version: int, algorithm: int) -> bytes:
        """WRITE KEY record up to the value: type and the bytes of card.md §6.4."""
        body = self.template.replace("vv", f"{version:02X}").replace("aa", f"{algorithm:02X}")
        return bytes([self.key_type]) + bytes.fromhex(body)


@dataclass(frozen=True, slots=True)
class Profile:
    """All of profile.md that is data."""

    name: str
    version: int
    mf_create: bytes
    mf_key_file: FileSpec
    mf_files: tuple[FileSpec, ...]
    adf_create: bytes
    adf_first_fid: int
    slots: int
    adf_key_file: FileSpec
    adf_files: tuple[FileSpec, ...]
    keys: tuple[KeySpec, ...]

    def file(self, name: str) -> FileSpec:
        """File of an application or the MF by its name. Raises NotFound."""
        for spec in (*self.adf_files, *self.mf_files):
            if spec.name == name:
                return spec
        raise NotFound(f"profile {self.name} has no file {name}")

    def key(self, purpose: Purpose) -> KeySpec:
        """Key by its purpose. Raises NotFound."""
        for spec in self.keys:
            if spec.purpose == purpose:
                return spec
        raise NotFound(f"profile {self.name} has no key for {purpose.name.lower()}")


def _file(row: dict[str, str]) -> FileSpec:
    return FileSpec(int(row["fid"], 16), row.get("name", "keys"), bytes.fromhex(row["create"]))


def _key(row: dict[str, Any]) -> KeySpec:
    spec = KeySpec(row["name"], Purpose(row["purpose"]), row["type"], tuple(row["kids"]), row["level"], row["header"])
    spec.header(1, 0)
    if spec.level not in ("mf", "adf") or not spec.kids:
        raise ValueError(f"key {spec.name}: level or kids")
    return spec


def parse_profile(text: str) -> Profile:
    """Read a profile file. Raises ConfigError that says what is wrong."""
    try:
        raw = tomllib.loads(text)
        mf, adf = raw["mf"], raw["adf"]
        return Profile(
            raw["name"],
            raw["version"],
            bytes.fromhex(mf["create"]),
            _file(mf["key_file"]),
            tuple(_file(row) for row in mf["files"]),
            bytes.fromhex(adf["create"]),
            int(adf["first_fid"], 16),
            adf["slots"],
            _file(adf["key_file"]),
            tuple(_file(row) for row in adf["files"]),
            tuple(_key(row) for row in raw["key"]),
        )
    except KeyError as e:
        raise ConfigError(f"card profile: {e} is missing") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"card profile: {e}") from e


@cache
def load_profile(name: str = "oc1") -> Profile:
    """The profile that ships under this name. Raises ConfigError when there is none."""
    path = resources.files("cardlib") / "profiles" / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"there is no card profile {name}")
    return parse_profile(path.read_text(encoding="utf-8"))
