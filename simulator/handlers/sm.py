"""Secure messaging and error counters (card.md §1.6, §6.4)."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.crypto import Key
from cardlib.errors import FormatError
from simulator.files import DEAD, NOT_COUNTED, BinaryFile, Ef, KeyRecord
from simulator.handlers import Counted, Refusal
from simulator.nvm import Cell

if TYPE_CHECKING:
    from simulator.card import Card

THREE_FAILURES = 3


def count_failure(card: Card, record: KeyRecord) -> int:
    """Take one try off; returns the tries left, 15 when they are not counted."""
    header = record.header.value
    if header[4] == NOT_COUNTED:
        return 15
    left = (header[4] & 15) - 1
    card.nvm.write(record.header, header[:4] + bytes((header[4] & 0xF0 | left,)))
    return left


def count_success(card: Card, record: KeyRecord) -> None:
    """Give all tries back."""
    header = record.header.value
    counter = header[4]
    if counter != NOT_COUNTED and counter >> 4 != counter & 15:
        card.nvm.write(record.header, header[:4] + bytes((counter >> 4 | counter & 0xF0,)))


def usable(card: Card, record: KeyRecord | None) -> KeyRecord:
    """The record, when it exists (6A88), may be used (6982) and is not locked (6983)."""
    if record is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    if not card.allowed(record.header.value[1]):
        raise Refusal(SW.SECURITY)
    if record.locked:
        raise Refusal(SW.KEY_LOCKED)
    return record


def challenge_for(card: Card, key: Key) -> bytes:
    """The challenge given out by the command just before (6984 without one that fits the cipher)."""
    challenge = card.used_challenge
    if not 0 < len(challenge) <= key.block:
        raise Refusal(SW.NO_CHALLENGE)
    return challenge


def genuine(card: Card, data: bytes, record: KeyRecord) -> bool:
    """Whether the last four bytes of ``data`` are the command's MAC (6984 without a challenge)."""
    key = record.key()
    challenge = challenge_for(card, key)
    # The command as sent up to the MAC: CLA INS P1 P2 Lc' data, Lc' counts the MAC (card.md §1.6).
    return compare_digest(key.mac(card.apdu[: 1 + len(data)], challenge), data[-4:])


def unwrap(card: Card, data: bytes, record: KeyRecord, wrong: int, failures: Cell[int] | None = None) -> bytes:
    """Check the MAC at the end of ``data`` and return what stands before it.

    ``failures`` counts towards the three-failure block of the application; without error counter there is none.
    """
    if len(data) < 4:
        raise Refusal(SW.SM_MISSING)
    if genuine(card, data, record):
        count_success(card, record)
        if failures is not None and failures.value:
            card.nvm.write(failures, 0)
        return data[:-4]
    count_failure(card, record)
    block_after_three(card, record, failures)
    raise Counted(wrong)


def block_after_three(card: Card, record: KeyRecord, failures: Cell[int] | None) -> None:
    """Count a failure of the application; the third in a row blocks it for good (9303)."""
    if failures is None or not record.counted:
        return
    count = failures.value + 1
    card.nvm.write(failures, count)
    if count >= THREE_FAILURES:
        card.nvm.write(card.df.blocked, DEAD)
        raise Counted(SW.PERMANENTLY_BLOCKED)


def file_key(card: Card, ef: Ef, reading: bool) -> KeyRecord:
    """The 36 key that the file's opt byte names: b4b3 for reading, b2b1 for writing, 11 meaning 00."""
    kid = 3 - ((ef.opt >> 2 if reading else ef.opt) & 3)
    return usable(card, card.find_key(0x36, kid))


def _failures(card: Card, ef: Ef) -> Cell[int] | None:
    watched = isinstance(ef, BinaryFile) and ef.fid in (0x0015, 0x0016) and card.df.parent is not None
    return card.df.write_failures if watched else None


def open_write(card: Card, ef: Ef, data: bytes) -> bytes:
    """Clear data of a write to ``ef``: MAC and decryption as its type says."""
    if not ef.protected:
        return data
    record = file_key(card, ef, reading=False)
    body = unwrap(card, data, record, SW.SM_WRONG, _failures(card, ef))
    if not ef.encrypted:
        return body
    return unseal(record.key(), body)


def unseal(key: Key, sealed: bytes) -> bytes:
    """Decipher ``LD||data`` (6A80 when it is not that)."""
    try:
        return key.unseal(sealed)
    except FormatError:
        raise Refusal(SW.DATA) from None


def open_record(card: Card, data: bytes, control: KeyRecord) -> bytes:
    """The clear record of an enciphered key load, ``E || MAC`` under a control key (card.md §6.4, §7.7)."""
    key = control.key()
    if len(data) < 4:
        raise Refusal(SW.SM_MISSING)
    if len(data) < 4 + key.block or (len(data) - 4) % key.block:
        raise Refusal(SW.LENGTH)
    return unseal(key, unwrap(card, data, control, SW.MAC_WRONG))


def open_read(card: Card, ef: Ef, data: bytes, le: int | None) -> tuple[int | None, KeyRecord]:
    """Check a protected read; returns the wanted number of bytes and the key for the answer.

    An encrypted file takes the length from an enciphered block ``Le 80 00..`` in the data field.
    """
    record = file_key(card, ef, reading=True)
    body = unwrap(card, data, record, SW.SM_WRONG, _failures(card, ef))
    key = record.key()
    if len(body) != (key.block if ef.encrypted else 0):
        raise Refusal(SW.LENGTH)
    if body:
        clear = key.decrypt(body)
        if clear[1:] != b"\x80" + bytes(key.block - 2):
            raise Refusal(SW.DATA)
        le = clear[0]
    return le, record


def close_read(card: Card, ef: Ef, record: KeyRecord, data: bytes) -> bytes:
    """The answer's data, enciphered when the file says so, and their MAC with the IV of the command."""
    key = record.key()
    body = key.seal(data) if ef.encrypted else data
    return body + key.mac(body, card.used_challenge)


def longest_answer(record: KeyRecord, ef: Ef) -> int:
    """Data bytes that fit a protected answer of at most 256 bytes."""
    if not ef.encrypted:
        return 252
    block = record.key().block
    return 252 // block * block - 1
