"""A simulated mother card on the card's operating system (keys.md, Mother key card and authentication card).

A mother card is a card whose MF holds, beside 39/00 and 36/00, the administrator's PIN 3A/00 (next state 1) and 39/01
(use right F1, next state 2), which its authentication card proves. Master keys of its enterprise are apart, by purpose
and version; they leave only as payloads of WRITE KEY. An authentication card is an ordinary :class:`Card`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from cardlib.apdu import SW
from cardlib.crypto import Key, make_key
from cardlib.errors import FormatError
from cardlib.profile import Purpose
from simulator.card import HANDLERS, Card
from simulator.handlers import (
    OK,
    Handler,
    Refusal,
    expect_le,
    expect_length,
    expect_p1p2,
    keys,
    security,
    sm,
    structure,
)
from simulator.nvm import Cell
from simulator.snapshot import as_bytes, as_int, as_list

LOADING_STATE = 8
"""MF state in which the platform loads keys and sets limits: after EXTERNAL AUTHENTICATE 39/00."""
OPEN_STATE = 2
"""MF state in which keys are delivered: after the PIN and EXTERNAL AUTHENTICATE 39/01, and no other."""
MAX_KEYS = 96
PAGE_KEYS = 32
"""Lines of LIST KEYS that fit a short answer."""
HEAD_BYTES, KEY_BYTES = 10, 16
HELD = range(Purpose.CONTROL, Purpose.SAM_CONTROL + 1)
CONTROLS = (Purpose.SLOT, Purpose.CONTROL, Purpose.SAM_CONTROL)
"""Control byte of DELIVER KEY → whose key the payload is enciphered under."""
PLAIN, DIVERSIFIED, PIN = 0x00, 0x01, 0x02
"""Form byte of DELIVER KEY."""
TO_SAM = 0x02
LOAD = b"\x00\x00"
"""P1 and kid of the command that loads a key for cards into a SAM (card.md §7.7)."""
SAM_PIN_HEADER = bytes.fromhex("3AF0080333")
"""A SAM's PIN: changed in MF state 8 only, three tries."""
PIN_TYPE, PIN_FIELD, PIN_MIN = 0x3A, 8, 2
WRITE_KEY = b"\x84\xd4"


class MotherKey:
    """A master key and what it becomes where it is written: type, kid, rights, and its usage in a SAM.

    Type 00: only written under (slot and SAM control key). Purpose PIN has no value: it is leave to write PINs.
    """

    __slots__ = ("algorithm", "header", "key", "kid", "purpose", "record", "sam_usage", "version")

    def __init__(self, record: bytes) -> None:
        """From ``purpose ver alg type kid header4 usage value`` (6A80 when it is not that)."""
        if len(record) not in (HEAD_BYTES, HEAD_BYTES + KEY_BYTES):
            raise Refusal(SW.DATA)
        self.purpose, self.version, self.algorithm, key_type, self.kid = record[:5]
        is_pin = self.purpose == Purpose.PIN
        fits = is_pin == (key_type == PIN_TYPE) == (len(record) == HEAD_BYTES) and not key_type & 0xC0
        if not fits or self.purpose not in HELD or not self.version or self.algorithm not in security.ALGORITHMS:
            raise Refusal(SW.DATA)
        self.record = record
        self.header = record[3:4] + record[5:9]
        self.sam_usage = record[9]
        self.key: Key | None = make_key(record[HEAD_BYTES:], self.algorithm) if len(record) > HEAD_BYTES else None

    def __repr__(self) -> str:
        return f"<MotherKey {self.purpose:02X} version {self.version}>"

    @property
    def master(self) -> Key:
        """The key's value (6985 when there is none)."""
        if self.key is None:
            raise Refusal(SW.CONDITIONS)
        return self.key

    @property
    def kcv(self) -> bytes:
        """Check value, zeros where there is no value."""
        return bytes(3) if self.key is None else self.key.kcv


class MotherCard(Card):
    """A mother card. Use :meth:`Card.blank`, :meth:`vendor_fresh` or an image."""

    KIND = "mother"
    handlers: ClassVar[Mapping[int, Handler]]  # set below: they need the class

    @property
    def mother_keys(self) -> Cell[dict[tuple[int, int], MotherKey]]:
        """Master keys by (purpose, version)."""
        return self.nvm.root("mother_keys", {})

    @property
    def deliveries(self) -> Cell[dict[int, int]]:
        """Deliveries left by purpose; none where the platform set none."""
        return self.nvm.root("deliveries", {})

    def _extra(self) -> dict[str, Any]:
        return {
            "mother_keys": [key.record for key in self.mother_keys.value.values()],
            "deliveries": [list(line) for line in self.deliveries.value.items()],
        }

    def _restore_extra(self, extra: dict[str, Any]) -> None:
        held = [MotherKey(as_bytes(record)) for record in as_list(extra["mother_keys"], bytes)]
        if len(held) > MAX_KEYS:
            raise FormatError(f"{len(held)} keys in a mother card: at most {MAX_KEYS}")
        self.mother_keys.value = {(key.purpose, key.version): key for key in held}
        left = [(as_int(purpose, 0xFF), as_int(count, 0xFFFF)) for purpose, count in extra["deliveries"]]
        self.deliveries.value = dict(left)

    def expect_open(self) -> None:
        """Refuse unless both the PIN and the authentication card were there (6982)."""
        if self.mf_state != OPEN_STATE:
            raise Refusal(SW.SECURITY)

    def expect_platform(self) -> None:
        """Refuse unless the platform proved itself (6982) and the MF is current (6985)."""
        if self.mf_state != LOADING_STATE:
            raise Refusal(SW.SECURITY)
        if self.df is not self.mf:
            raise Refusal(SW.CONDITIONS)

    def held(self, purpose: int, version: int) -> MotherKey:
        """A key of this purpose (6A88) and version (9403)."""
        found = self.mother_keys.value
        key = found.get((purpose, version))
        if key is None:
            known = any(held == purpose for held, _ in found)
            raise Refusal(SW.KEY_INDEX if known else SW.KEY_NOT_FOUND)
        return key

    def control(self, control: int, version: int, serial: bytes) -> Key:
        """The slot, control or SAM control key of one target; 6A80 for another control byte."""
        if control >= len(CONTROLS):
            raise Refusal(SW.DATA)
        return self.held(CONTROLS[control], version).master.diversify(serial)


def _mother(card: Card) -> MotherCard:
    assert isinstance(card, MotherCard)
    return card


def deliver_key(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """80E8 DELIVER KEY: ``E || MAC`` of WRITE KEY for one target, counted before it leaves (keys.md).

    6A80: control, form or RFU that do not exist. 6A88, 9403: no such purpose, version. 6985: not that way (form, type,
    kid), or no delivery left; LIST KEYS tells which.
    """
    mother = _mother(card)
    mother.expect_open()
    expect_length(data, 0x14, 0x18, 0x1C, 0x20)
    place, control, control_version, form, serial = data[:2], data[2], data[3], data[4], data[8:16]
    if form > PIN or any(data[5:8]):
        raise Refusal(SW.DATA)
    at = 16 + (PIN_FIELD if form == PIN else 0)
    pin, challenge = data[16:at], data[at:]
    expect_length(challenge, 4, 8)
    under = mother.control(control, control_version, serial)
    body = _sealed(mother.held(p1, p2), under, place, form, control == TO_SAM, serial, pin)
    left = mother.deliveries.value
    if not left.get(p1):
        raise Refusal(SW.CONDITIONS)
    mac = under.mac(WRITE_KEY + place + bytes((len(body) + 4,)) + body, challenge)
    mother.nvm.write(mother.deliveries, {**left, p1: left[p1] - 1})
    return body + mac + OK


def _sealed(key: MotherKey, under: Key, place: bytes, form: int, to_sam: bool, serial: bytes, pin: bytes) -> bytes:
    """The record under ``under``: what this key becomes and no other, whatever the caller would like (6985)."""
    header = SAM_PIN_HEADER if form == PIN and to_sam else key.header
    if form == PLAIN:
        allowed = to_sam and key.sam_usage and place == LOAD
        header = bytes((key.sam_usage, key.version, key.algorithm))
    else:
        kid = 0 if form == PIN and to_sam else key.kid
        # P1 is ADD, or the type to replace, alone or with the bits for "enciphered and MACed" (card.md §6.4).
        at_home = place[1] == kid and place[0] in (keys.ADD, header[0], header[0] | 0xC0)
        allowed = header[0] and at_home and (form == PIN) == (key.purpose == Purpose.PIN)
        allowed = allowed and (form == PIN or not to_sam)
    if not allowed:
        raise Refusal(SW.CONDITIONS)
    if form != PIN:
        return under.seal_key(header, key.master.diversify(serial) if form == DIVERSIFIED else key.master)
    if len(pin.rstrip(b"\xff")) < PIN_MIN:
        raise Refusal(SW.DATA)
    return under.seal(header + pin)


def cryptogram(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """80EC: 8 bytes for EXTERNAL AUTHENTICATE 39/00 at one target, which keys.md leaves open.

    P1 is the control byte of DELIVER KEY, P2 its version, data the target's serial and challenge. What comes out is no
    key: nothing is diversified from the key of one card.
    """
    mother = _mother(card)
    mother.expect_open()
    expect_length(data, 16)
    expect_le(le, 8)
    return mother.control(p1, p2, data[:8]).cryptogram(data[8:]) + OK


def list_keys(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """80EA: purpose 1, version 1, algorithm 1, check value 3, deliveries left 2 of each key (keys.md).

    P1 is the page of 32 keys; there is nothing on a page behind the last.
    """
    mother = _mother(card)
    mother.expect_open()
    expect_p1p2(0, p2)
    expect_length(data, 0)
    held = sorted(mother.mother_keys.value.items())[p1 * PAGE_KEYS : (p1 + 1) * PAGE_KEYS]
    left = mother.deliveries.value
    lines = (bytes((*at, k.algorithm)) + k.kcv + left.get(k.purpose, 0).to_bytes(2, "big") for at, k in held)
    return b"".join(lines) + OK


def load_key(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """84D4 0000: a master key of the enterprise, enciphered under 39/00 by the platform; else WRITE KEY."""
    if p1:
        return keys.write_key(card, cla, p1, p2, data, le)
    mother = _mother(card)
    expect_p1p2(p1, p2)
    mother.expect_platform()
    control = sm.usable(mother, mother.mf.key(0x39, 0))
    record = sm.open_record(mother, data, control)
    loaded = MotherKey(record)
    held, at = mother.mother_keys.value, (loaded.purpose, loaded.version)
    if at not in held and len(held) >= MAX_KEYS:
        raise Refusal(SW.NO_SPACE)
    mother.nvm.write(mother.mother_keys, {**held, at: loaded})
    return OK


def set_limit(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """84DA: deliveries left of purpose P1, ``count2 MAC4`` under 39/00 by the platform."""
    mother = _mother(card)
    expect_p1p2(0, p2)
    mother.expect_platform()
    if len(data) < 4:
        raise Refusal(SW.SM_MISSING)
    expect_length(data, 6)
    if p1 not in HELD:
        raise Refusal(SW.KEY_NOT_FOUND)
    control = sm.usable(mother, mother.mf.key(0x39, 0))
    count = sm.unwrap(mother, data, control, SW.SM_WRONG)
    mother.nvm.write(mother.deliveries, {**mother.deliveries.value, p1: int.from_bytes(count, "big")})
    return OK


def erase_df(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """ERASE DF; with the MF the master keys go too, else who erased it could open the card with keys of his own."""
    mother = _mother(card)
    answer = structure.erase_df(card, cla, p1, p2, data, le)
    if mother.df is mother.mf:
        mother.nvm.write(mother.mother_keys, {})
        mother.nvm.write(mother.deliveries, {})
    return answer


MotherCard.handlers = MappingProxyType({
    **HANDLERS,
    0x800E: erase_df,
    0x84D4: load_key,
    0x84DA: set_limit,
    0x80E8: deliver_key,
    0x80EA: list_keys,
    0x80EC: cryptogram,
})  # fmt: skip
