"""Challenges, authentication, PINs and blocking (card.md §3, §3.1, §3.2)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.crypto import Algorithm
from simulator.files import BLOCKED, DEAD, UNBLOCKED, KeyRecord
from simulator.handlers import OK, Counted, Refusal, expect_length, expect_p1p2, sm

if TYPE_CHECKING:
    from simulator.card import Card

PIN_MIN, PIN_MAX, PIN_FIELD = 2, 6, 8
ALGORITHMS = (Algorithm.TDES, Algorithm.DES, Algorithm.SM4)


def get_challenge(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """GET CHALLENGE of 4 or 8 bytes, with SM4 also 16; valid for the next command only."""
    expect_p1p2(p1, p2)
    expect_length(data, 0)
    if le not in (4, 8) and not (le == 16 and card.df.algorithm == Algorithm.SM4):
        raise Refusal(SW.LENGTH)
    assert le is not None
    card.challenge = card.random_bytes(le)
    return card.challenge + OK


def _failed(card: Card, record: KeyRecord) -> Refusal:
    return Counted(0x63C0 | sm.count_failure(card, record))


def external_authenticate(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """EXTERNAL AUTHENTICATE with key 39/P2: sets the security state to the key's next state."""
    if p1:
        raise Refusal(SW.P1P2)
    expect_length(data, 8)
    record = sm.usable(card, card.find_key(0x39, p2))
    key = record.key()
    challenge = sm.challenge_for(card, key)
    if not compare_digest(key.cryptogram(challenge), data):
        raise _failed(card, record)
    sm.count_success(card, record)
    card.reach(record.header.value[3] & 15)
    return OK


def internal_authenticate(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """INTERNAL AUTHENTICATE: P1 00 encipher with 30, 01 decipher with 31, 02 MAC with 32."""
    if p1 > 2:
        raise Refusal(SW.P1P2)
    if not data:
        raise Refusal(SW.LENGTH)
    record = card.find_key(0x30 + p1, p2)
    if record is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    if not card.allowed(record.header.value[1]):
        raise Refusal(SW.SECURITY)
    if record.algorithm not in ALGORITHMS:
        raise Refusal(SW.CONDITIONS)  # ids 02 and 03 are stored, not used (card.md §1.7)
    key = record.key()
    if p1 == 2:
        return key.mac(data) + OK
    if p1 == 1:
        if len(data) % key.block:
            raise Refusal(SW.LENGTH)
        return key.decrypt(data) + OK
    if len(data) % key.block:
        # SM4 takes the usual 8-byte challenge zero-extended; anything else is padded (card.md §12).
        short = key.block == 16 and len(data) == 8
        data = data + bytes(8) if short else data + b"\x80" + bytes(-(len(data) + 1) % key.block)
    return key.encrypt(data) + OK


def _stored_pin(record: KeyRecord) -> bytes:
    return record.value.value.rstrip(b"\xff")


def pin_record(card: Card, kid: int, missing: int) -> KeyRecord:
    """The PIN of that identifier, when it exists."""
    record = card.find_key(0x3A, kid)
    if record is None:
        raise Refusal(missing)
    return record


def _check_pin(card: Card, record: KeyRecord, pin: bytes) -> None:
    if record.locked:
        raise Refusal(SW.KEY_LOCKED)
    if not compare_digest(pin.rstrip(b"\xff"), _stored_pin(record)):
        raise _failed(card, record)
    sm.count_success(card, record)


def _set_pin(card: Card, record: KeyRecord, pin: bytes) -> None:
    if not PIN_MIN <= len(pin.rstrip(b"\xff")) <= PIN_MAX:
        raise Refusal(SW.DATA)
    card.nvm.write(record.value, pin.ljust(PIN_FIELD, b"\xff"))


def verify_pin(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """VERIFY PIN 3A/P2; trailing FFs do not count."""
    if p1:
        raise Refusal(SW.P1P2)
    expect_length(data, *range(PIN_MIN, PIN_MAX + 1))
    record = pin_record(card, p2, SW.KEY_NOT_FOUND)
    if not card.allowed(record.header.value[1]):
        raise Refusal(SW.SECURITY)
    _check_pin(card, record, data)
    card.reach(record.header.value[3] & 15)
    return OK


def change_pin(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """CHANGE PIN (P1 01, ``old||FF||new``) and RELOAD PIN (P1 00, ``new||MAC``)."""
    if p1 == 0:
        return _reload_pin(card, p2, data)
    if p1 != 1:
        raise Refusal(SW.P1P2)
    expect_length(data, *range(2 * PIN_MIN + 1, 2 * PIN_MAX + 2))
    record = pin_record(card, p2, SW.KEY_NOT_FOUND)
    cut = data.find(0xFF, PIN_MIN)
    if not PIN_MIN <= cut <= PIN_MAX or not PIN_MIN <= len(data) - cut - 1 <= PIN_MAX:
        raise Refusal(SW.DATA)
    _check_pin(card, record, data[:cut])
    _set_pin(card, record, data[cut + 1 :])
    return OK


def _reload_pin(card: Card, kid: int, data: bytes) -> bytes:
    """The MAC covers the new PIN alone, under key 38 folded, IV zero (card.md §1.3, §3.1)."""
    expect_length(data, *range(PIN_MIN + 4, PIN_MAX + 5))
    pin = pin_record(card, kid, SW.KEY_INDEX)
    record = sm.usable(card, _only(card, 0x38))
    new, mac = data[:-4], data[-4:]
    if not compare_digest(record.key().folded().mac(new), mac):
        sm.count_failure(card, record)
        raise Counted(SW.MAC_WRONG)
    sm.count_success(card, record)
    _set_pin(card, pin, new)
    sm.count_success(card, pin)
    return OK


def _only(card: Card, key_type: int) -> KeyRecord | None:
    """The key of a type of which a DF has one, whatever its identifier."""
    for index, record in card.df.keys.value.items():
        if index >> 8 == key_type:
            return record
    return None


def unblock_pin(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """PIN UNBLOCK of 3A/P1 under key 37: sets the PIN and gives its tries back."""
    if cla != 0x84:
        raise Refusal(SW.CLASS_MISMATCH)
    if p2 > 1:
        raise Refusal(SW.P1P2)
    pin = pin_record(card, p1, SW.KEY_NOT_FOUND)
    record = sm.usable(card, _only(card, 0x37))
    key = record.key()
    if len(data) >= 4:
        expect_length(data, key.block + 4)
    new = sm.unseal(key, sm.unwrap(card, data, record, SW.SM_WRONG))
    _set_pin(card, pin, new)
    sm.count_success(card, pin)
    return OK


def _block_key(card: Card, cla: int, data: bytes) -> KeyRecord:
    if cla != 0x84:
        raise Refusal(SW.CLASS_MISMATCH)
    if len(data) < 4:
        raise Refusal(SW.SM_MISSING)
    expect_length(data, 4)
    return sm.usable(card, card.find_key(0x36, 0))


def application_block(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """APPLICATION BLOCK: P2 00 temporary, 01 for good. The MF is no application (6985)."""
    record = _block_key(card, cla, data)
    if p1 or p2 > 1:
        raise Refusal(SW.P1P2)
    if card.df is card.mf:
        raise Refusal(SW.CONDITIONS)
    sm.unwrap(card, data, record, SW.SM_WRONG)
    card.nvm.write(card.df.blocked, DEAD if p2 else BLOCKED)
    return OK


def application_unblock(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """APPLICATION UNBLOCK; failures are counted apart from the key's counter (card.md §12)."""
    record = _block_key(card, cla, data)
    expect_p1p2(p1, p2)
    df = card.df
    if df.blocked.value == DEAD:
        raise Refusal(SW.PERMANENTLY_BLOCKED)
    if df.blocked.value == UNBLOCKED:
        raise Refusal(SW.CONDITIONS)
    if not sm.genuine(card, data, record):
        sm.block_after_three(card, record, df.unblock_failures)
        raise Counted(SW.SM_WRONG)
    card.nvm.write(df.unblock_failures, 0)
    card.nvm.write(df.blocked, UNBLOCKED)
    return OK


def card_block(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """CARD BLOCK: with the MF current, under its 36/00, for good."""
    if cla == 0x84 and card.df is not card.mf:
        raise Refusal(SW.CONDITIONS)
    record = _block_key(card, cla, data)
    expect_p1p2(p1, p2)
    sm.unwrap(card, data, record, SW.SM_WRONG)
    card.nvm.write(card.blocked, True)
    return OK
