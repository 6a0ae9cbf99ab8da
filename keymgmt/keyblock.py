"""TR-31 (ANSI X9.143) key blocks: a master key goes to another system or HSM and comes back.

The block format is the library ``psec``'s; this module says what a block of ours must say about its key, and takes
nothing less:

- **protection**: version D (AES key derivation), or B (TDES key derivation) for partners whose protection key is TDES.
  Versions A and C (key variants, a MAC of 4 bytes; deprecated by X9.143) are neither written nor taken in.
- **usage**: what an EMV issuer master key for the same work has (``USAGES``), with mode of use X, "derives other keys":
  every master key of ours is only ever diversified.
- **algorithm**: T, a TDES key of two parts. X9.143 has no letter for SM4, and a proprietary one would be understood by
  nobody: an SM4 key travels as components (``ceremony``), not as a block.
- **exportability**: a block that says N forbids whoever takes it in to export the key again. No store here keeps such
  a promise per key, so these are refused.
- **optional blocks**: ``KC`` (X9.143: method 00 and the check value of 3 bytes as hex) and ``10``, from the range that
  X9.143 leaves to users: ``01``, purpose 1, version 1, enterprise 4 (0: a root key), all as hex.

The padding in a block is drawn by ``psec`` from the operating system; it is no secret, and its length hides none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum, unique
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import BadKcv, ConfigError, CryptoError, FormatError, Refused
from cardlib.profile import Purpose
from keymgmt.keys import KeyInfo, KeyRef

if TYPE_CHECKING:
    from psec.tr31 import Header

CRYPTOGRAMS, CONFIDENTIALITY, SECURE_MESSAGING, DYNAMIC_NUMBERS, PERSONALIZATION = "E0", "E1", "E2", "E4", "E5"
USAGES = {
    Purpose.CONTROL: PERSONALIZATION,
    Purpose.TERMINAL: DYNAMIC_NUMBERS,
    Purpose.RECHARGE: DYNAMIC_NUMBERS,
    Purpose.CARD: DYNAMIC_NUMBERS,
    Purpose.MAINTENANCE: SECURE_MESSAGING,
    Purpose.PIN_UNBLOCK: SECURE_MESSAGING,
    Purpose.PURCHASE: CRYPTOGRAMS,
    Purpose.LOAD: CRYPTOGRAMS,
    Purpose.REFUND: CRYPTOGRAMS,
    Purpose.UNLOAD: CRYPTOGRAMS,
    Purpose.TAC: CRYPTOGRAMS,
    Purpose.SLOT: PERSONALIZATION,
    Purpose.SAM_CONTROL: PERSONALIZATION,
    Purpose.CARD_CONTROL: PERSONALIZATION,
    Purpose.CARD_MAINTENANCE: SECURE_MESSAGING,
    Purpose.MOTHER_AUTH: DYNAMIC_NUMBERS,
    Purpose.OTA_KIC: CONFIDENTIALITY,
    Purpose.OTA_KID: SECURE_MESSAGING,
    Purpose.OTA_KIK: PERSONALIZATION,
    Purpose.SLOT_KIC: CONFIDENTIALITY,
    Purpose.SLOT_KID: SECURE_MESSAGING,
    Purpose.SLOT_KIK: PERSONALIZATION,
}
"""Key usage (X9.143 §6.3.2, EMV issuer master keys) of each purpose; what writes keys is "card personalization"."""
DERIVES = "X"
OUR_BLOCK, OUR_FORMAT = "10", "01"
KCV_BLOCK, KCV_LEGACY = "KC", "00"
MAX_BLOCK = 9999
_SHAPE = re.compile(r"[A-D]\d{4}[ -~]{11,9994}")


@unique
class BlockVersion(StrEnum):
    """How a block is protected: by an AES key (D), or by a TDES key (B)."""

    AES = "D"
    TDES = "B"


@unique
class Exportability(StrEnum):
    """What whoever takes the key in may do with it: E under a key of X9.24, S under any, N nothing."""

    YES = "E"
    SENSITIVE = "S"
    NO = "N"


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """What a block says about its key, proven by its MAC; ``ref`` and ``kcv`` where it says so."""

    version: str
    usage: str
    algorithm: str
    mode: str
    exportability: str
    ref: KeyRef | None
    kcv: bytes | None
    value: bytes = field(repr=False)


class Importer(Protocol):
    """A key store that takes in a value: with its check value, or not at all."""

    def import_key(self, ref: KeyRef, algorithm: Algorithm, value: bytes, kcv: bytes, made_by: str) -> KeyInfo:
        """Take in a key as pending. Raises BadKcv, Conflict when it exists."""


def check_kbpk(kbpk: bytes, version: BlockVersion) -> None:
    """Raise ConfigError unless this can protect a block: AES of 16, 24, 32 bytes; TDES of two or three unlike parts."""
    parts = [bytes(byte & 0xFE for byte in kbpk[at : at + 8]) for at in range(0, len(kbpk), 8)]
    if len(kbpk) not in ((16, 24, 32) if version is BlockVersion.AES else (16, 24)):
        sizes = "16, 24 or 32" if version is BlockVersion.AES else "16 or 24"
        raise ConfigError(f"the key block protection key has {len(kbpk)} bytes; {sizes} for version {version}")
    if len(set(kbpk)) == 1 or (version is BlockVersion.TDES and len(set(parts)) < len(parts)):
        raise ConfigError("the key block protection key is no real key: its parts are alike")


def wrap(
    value: bytes,
    info: KeyInfo,
    kbpk: bytes,
    version: BlockVersion = BlockVersion.AES,
    exportability: Exportability = Exportability.YES,
) -> str:
    """A key as a block. Raises ConfigError for a bad ``kbpk``, Refused("algorithm") for what X9.143 has no letter for.

    Only a store calls this, with a value that does not leave it.
    """
    tr31 = _library()
    check_kbpk(kbpk, version)
    if info.algorithm is not Algorithm.TDES or len(value) != 16:
        raise Refused(
            "algorithm",
            f"key {info.ref} is {info.algorithm.name}: X9.143 key blocks know TDES and AES only; move it by components",
        )
    if kbpk == value:
        raise ConfigError(f"key {info.ref} can't be protected by itself: give another key block protection key")
    header = tr31.Header(version, USAGES[info.ref.purpose], "T", DERIVES, "00", exportability)
    header.blocks[KCV_BLOCK] = KCV_LEGACY + info.kcv.hex().upper()
    owner = info.ref.enterprise_id or 0
    header.blocks[OUR_BLOCK] = f"{OUR_FORMAT}{info.ref.purpose:02X}{info.ref.version:02X}{owner:08X}"
    made: str = tr31.wrap(kbpk, header, value)
    return made


def unwrap(text: str, kbpk: bytes) -> KeyBlock:
    """Check and open a block of version D or B, whatever its key is for.

    Raises FormatError for what is no block, Refused for versions A and C, ConfigError for a bad ``kbpk``,
    CryptoError when the protection key is another or any bit was changed.
    """
    tr31 = _library()
    text = text.strip()
    if not _SHAPE.fullmatch(text) or len(text) > MAX_BLOCK:
        raise FormatError("this is no TR-31 key block: it begins with A to D and a length of 4 digits")
    if text[0] not in list(BlockVersion):
        raise Refused(
            "key_block_version", f"key blocks of version {text[0]} are deprecated by X9.143: ask for version D or B"
        )
    check_kbpk(kbpk, BlockVersion(text[0]))
    block = tr31.KeyBlock(kbpk)
    try:
        size = block.header.load(text)
        if re.fullmatch("[0-9A-F]+", text[size:]) is None:  # the library would take a changed letter case for the same
            raise FormatError("the key block is damaged: behind its header are hexadecimal digits in capitals")
        value = block.unwrap(text)
    except tr31.HeaderError:
        raise FormatError("the header of the key block is damaged") from None
    except ValueError:  # the library's texts quote the block
        raise CryptoError(
            "the key block can't be opened: another key block protection key, or it was changed"
        ) from None
    head = block.header
    return KeyBlock(
        head.version_id, head.key_usage, head.algorithm, head.mode_of_use, head.exportability,
        _our_ref(head), _kcv(head), value,
    )  # fmt: skip


def import_block(
    store: Importer, text: str, kbpk: bytes, ref: KeyRef | None, kcv: bytes | None, made_by: str
) -> KeyInfo:
    """Take the key of a block into a store: as ``ref``, or as what the block itself says; checked against ``kcv``.

    Raises what :func:`unwrap` does; Refused("usage", "algorithm", "exportability") for a key of another kind, BadKcv,
    ConfigError when nobody says which key it is, Conflict when there is one.
    """
    block = unwrap(text, kbpk)
    where = check(block, ref)
    if kcv is not None and block.kcv is not None and kcv != block.kcv:
        raise BadKcv(f"the key block says check value {block.kcv.hex().upper()}, expected is {kcv.hex().upper()}")
    key = make_key(block.value)
    return store.import_key(where, Algorithm.TDES, block.value, kcv or block.kcv or key.kcv, made_by)


def check(block: KeyBlock, ref: KeyRef | None) -> KeyRef:
    """Which key this is, once it is one that a store may have. Raises Refused, ConfigError, as said above."""
    if block.ref is not None and ref is not None and block.ref != ref:
        raise Refused("usage", f"the key block holds {block.ref}, not {ref}")
    where = ref or block.ref
    if where is None:
        raise ConfigError("the key block does not say which key it holds: name purpose and version")
    where.check()
    if block.algorithm != "T" or len(block.value) != 16:
        raise Refused(
            "algorithm",
            f"the key block holds a key of algorithm {block.algorithm} with {len(block.value)} bytes:"
            " a master key in a block is TDES (T) of 16",
        )
    if block.usage != USAGES[where.purpose] or block.mode != DERIVES:
        raise Refused(
            "usage",
            f"the key block holds a key of usage {block.usage}, mode {block.mode}:"
            f" {where} needs {USAGES[where.purpose]}, {DERIVES}",
        )
    if block.exportability == Exportability.NO:
        raise Refused(
            "exportability",
            "the key block forbids to export its key again (N), and no store here promises that: ask for E",
        )
    if is_single_des(block.value):
        raise Refused("algorithm", "the key in the block is single DES in disguise: its halves are alike")
    return where


def is_single_des(value: bytes) -> bool:
    """Whether a TDES key's halves are alike but for parity bits: then it is only as strong as one."""
    return bytes(b & 0xFE for b in value[:8]) == bytes(b & 0xFE for b in value[8:16])


def _library() -> ModuleType:
    """The library, given TDES as ``cryptography`` has it now: it asks where newer versions have none, for two parts."""
    from psec import des, tr31  # noqa: PLC0415  # only who exports or imports needs it

    from cardlib.crypto.des import three_part  # noqa: PLC0415  # as above

    vars(des)["_algorithms"] = SimpleNamespace(TripleDES=three_part)
    return tr31


def _our_ref(header: Header) -> KeyRef | None:
    text = header.blocks.get(OUR_BLOCK, "")
    if not re.fullmatch(OUR_FORMAT + "[0-9A-F]{12}", text):
        return None  # somebody else's
    purpose, version, owner = int(text[2:4], 16), int(text[4:6], 16), int(text[6:], 16)
    if purpose not in USAGES:
        return None
    return KeyRef(Purpose(purpose), version, owner or None)


def _kcv(header: Header) -> bytes | None:
    text = header.blocks.get(KCV_BLOCK, "")
    return bytes.fromhex(text[2:8]) if re.fullmatch(KCV_LEGACY + "[0-9A-F]{6,16}", text) else None
