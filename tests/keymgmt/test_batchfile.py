"""The vendor's batch file: read as it was written, and refused as a whole when anything about it is wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.sealing import aes_check_value
from cardlib.errors import BadKcv, FormatError, MacMismatch, OneCardError
from cardlib.profile import CardKind
from keymgmt import batchfile
from keymgmt.batchfile import read_batch
from simulator.vendor import Vendor
from tests.secretwatch import register

BATCH_KEY = bytes.fromhex("B0B1B2B3B4B5B6B7B8B9BABBBCBDBEBF" * 2)
OTHER_KEY = bytes.fromhex("C0C1C2C3C4C5C6C7C8C9CACBCCCDCECF" * 2)
ATR = bytes.fromhex("3B8780014F4E454341524453")
for _key in (BATCH_KEY, OTHER_KEY):
    register(_key, "a batch key")


def vendor(**changes: object) -> Vendor:
    made = Vendor("Example Chips", "EX-2026-07", BATCH_KEY, Random(3).randbytes)
    return replace(made, **changes)  # type: ignore[arg-type]  # any field


CARDS, FILE = vendor().deliver(3)
TEXT = FILE.decode()
BODY = TEXT[: TEXT.index("tag: ")]


def resealed(body: str) -> bytes:
    """A body that was changed by someone who has the batch key."""
    return vendor().tagged(body)


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
@pytest.mark.parametrize("kind", [CardKind.CPU_CARD, CardKind.RFID_SIM, CardKind.SAM], ids=lambda k: k.name)
@pytest.mark.parametrize("one_key", [False, True])
def test_read_what_a_vendor_writes(kind: CardKind, algorithm: Algorithm, one_key: bool) -> None:
    """Each chip gets the key that opens it, from its row or from the one key of the batch."""
    cards, data = vendor(kind=kind, algorithm=algorithm).deliver(4, one_key=one_key)
    head, rows = read_batch(data, BATCH_KEY)
    assert (head.vendor, head.batch, head.kind, head.algorithm) == ("Example Chips", "EX-2026-07", kind, algorithm)
    assert [row.chip for row in rows] == [card.chip.hex().upper() for card in cards]
    for card, row in zip(cards, rows, strict=True):
        record = card.mf.key(0x39, 0)
        assert record is not None
        assert row.atrs == (card.atr,)
        assert head.transport_key(row, BATCH_KEY).kcv == make_key(record.value.value, algorithm).kcv
    assert bool(head.wrapped) == one_key == (not rows[0].wrapped)


def test_wrapping_by_its_description() -> None:
    """A row opens with nothing but AES-GCM and the words of the module's description."""
    chip, atr, wrapped = TEXT.splitlines()[9].split(",")
    sealed = bytes.fromhex(wrapped)
    bound = f"onecard batch 1\nExample Chips\nEX-2026-07\ncpu-card\n3des\n{chip}\n{atr}"
    value = AESGCM(BATCH_KEY).decrypt(sealed[:12], sealed[12:], bound.encode())
    record = CARDS[0].mf.key(0x39, 0)
    assert record is not None
    assert make_key(value).kcv == make_key(record.value.value).kcv


def test_check_value_of_an_aes_key() -> None:
    """AES-CMAC of one whole block of zeros is the encryption of K1, which NIST SP 800-38B, D.3, prints for its key."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    k1 = bytes.fromhex("cad1ed03299eedac2e9a99808621502f")
    assert aes_check_value(key) == Cipher(AES(key), ECB()).encryptor().update(k1)[:3]


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", FormatError, "empty"),
        (b"\n \n", FormatError, "empty"),
        (b"\xff\xfe\x00", FormatError, "not UTF-8"),
        (b"chip,key\n01,02\n", FormatError, "no batch file"),
        (FILE[:-1], FormatError, "truncated"),
        (FILE[:-30], FormatError, "truncated"),
        (BODY.encode(), FormatError, "truncated"),
        (FILE.replace(b"\n", b"\r\n"), FormatError, "line ends"),
        (FILE.replace(b"onecard batch 1", b"onecard batch 2"), FormatError, "version"),
        (resealed(BODY.replace("onecard batch 1", "onecard cards 1")), FormatError, "no batch file"),
        (resealed(BODY.replace("kind: cpu-card", "kind: watch")), FormatError, "kind is 'watch'"),
        (resealed(BODY.replace("algorithm: 3des", "algorithm: des")), FormatError, "algorithm is 'des'"),
        (resealed(BODY.replace("wrapping: aes-256-gcm", "wrapping: none")), FormatError, "wrapping is 'none'"),
        (resealed(BODY.replace("batch: EX", "batch: ../EX")), FormatError, "batch is malformed"),
        (resealed(BODY.replace("vendor: ", "seller: ")), FormatError, "'vendor: …' is missing"),
        (resealed(BODY.replace("chips: 3", "chips: 4")), FormatError, "says 4 chips and lists 3"),
        (resealed(BODY.replace("chips: 3", "chips: 999999")), FormatError, "at most 200000"),
        (resealed(BODY.replace("chip,atr,key", "chip,key")), FormatError, "before the chips"),
        (resealed(BODY + "\n"), FormatError, "row 4 is malformed"),
        (resealed(BODY.replace("chips: 3", "chips: 4") + BODY.splitlines()[9] + "\n"), FormatError, "twice"),
        (FILE.replace(b"cpu-card", b"rfid-sim"), MacMismatch, "file was changed"),
        (FILE.replace(BODY.splitlines(True)[10].encode(), b""), MacMismatch, "file was changed"),
        (resealed(BODY.replace("kind: cpu-card", "kind: sam")), MacMismatch, "transport key of chip"),
        (resealed(BODY.replace("Example", "Another")), MacMismatch, "transport key of chip"),
    ],
)
def test_bad_files(data: bytes, error: type[OneCardError], words: str) -> None:
    """Each kind of damage has its own words, with the right batch key."""
    with pytest.raises(error, match=re.escape(words)):
        read_batch(data, BATCH_KEY)


def test_swapped_rows() -> None:
    """A wrapped key moved to another chip, or a row whose ATR was changed, is refused even under a right tag."""
    one, two = (line.split(",") for line in BODY.splitlines()[9:11])
    for edited in (
        BODY.replace(one[2], "@").replace(two[2], one[2]).replace("@", two[2]),
        BODY.replace(one[1], one[1] + " 3B00", 1),
    ):
        with pytest.raises(MacMismatch, match="transport key of chip"):
            read_batch(resealed(edited), BATCH_KEY)


def test_wrong_batch_key() -> None:
    """Another key is told by its check value, one of another size by its size; no key is in the words."""
    with pytest.raises(BadKcv, match=f"{aes_check_value(OTHER_KEY).hex().upper()}.*Example Chips"):
        read_batch(FILE, OTHER_KEY)
    with pytest.raises(FormatError, match="32 bytes"):
        read_batch(FILE, BATCH_KEY[:16])


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is too large is refused before it is parsed."""
    monkeypatch.setattr(batchfile, "MAX_BYTES", len(FILE) - 1)
    with pytest.raises(FormatError, match="at most"):
        read_batch(FILE, BATCH_KEY)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(FILE) * 8 - 1))
def test_one_flipped_bit_is_caught(bit: int) -> None:
    """Any single bit changed, anywhere, refuses the whole file."""
    data = bytearray(FILE)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises((FormatError, MacMismatch, BadKcv)):
        read_batch(bytes(data), BATCH_KEY)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: resealed(BODY[:40] + t))))
def test_only_its_own_errors(data: bytes) -> None:
    """Whatever comes in is read or refused; no other error leaves the parser."""
    with pytest.raises((FormatError, MacMismatch, BadKcv)):
        read_batch(data, BATCH_KEY)
