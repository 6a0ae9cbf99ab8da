"""A simulated PSAM on the card's operating system (card.md §7, keys.md).

The MF holds 39/00 (control key), optionally 30/00 (the SAM's own) and 3A/00 (the terminal's PIN), and files 0015
and 0016; DF 1001 holds 0017 and the counter 0018. Keys for cards are apart, by usage byte and version.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from hmac import compare_digest
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

from cardlib.apdu import SW
from cardlib.crypto import Algorithm, Key, make_key
from cardlib.errors import FormatError
from cardlib.profile import Purpose
from simulator.card import HANDLERS, Card
from simulator.files import BinaryFile, Df, KeyRecord
from simulator.handlers import OK, Handler, Refusal, expect_le, expect_length, expect_p1p2, keys, purse, security, sm
from simulator.handlers.structure import make_ef
from simulator.nvm import MEMORY_BYTES, Cell
from simulator.snapshot import as_bytes, as_int, as_list

SAM_DF = 0x1001
SAM_DF_NAME = b"ONECARD.PSAM"
COUNTER_FID, TERMINAL_FID = 0x0018, 0x0016
MF_FILES = {0x0015: "28000EF008FFFF", 0x0016: "280006F008FFFF"}
DF_FILES = {0x0017: "280019F008FFFF", 0x0018: "280004F0EFFFFF"}
FIRST_NUMBER = 1
LAST_NUMBER = 0xFFFFFFFF
LOADING_STATE = 8
"""MF state in which keys are loaded: after EXTERNAL AUTHENTICATE with the control key."""
MAX_KEYS = 40
MAX_CHAIN_BYTES = 4096

TYPE_PURCHASE, TYPE_PIN_RELOAD, TYPE_LOAD, TYPE_REFUND = 0x02, 0x04, 0x09, 0x0C
TYPES = range(0x01, 0x0D)
NEVER_DERIVED = frozenset((0x00, TYPE_PURCHASE, TYPE_LOAD, TYPE_REFUND))
MAY_ENCIPHER = frozenset((0x01, 0x03, 0x05, 0x07, 0x08, 0x0A, 0x0B))
MAY_MAC = frozenset((0x01, 0x03, TYPE_PIN_RELOAD, 0x05, 0x06, 0x08))
REFUND_USAGE = 1 << 5 | TYPE_REFUND

PURPOSE_OF = MappingProxyType({
    0x01: Purpose.CONTROL, 0x02: Purpose.PURCHASE, 0x03: Purpose.PIN_UNBLOCK, 0x04: Purpose.TAC,
    0x05: Purpose.MAINTENANCE, 0x07: Purpose.CARD, 0x09: Purpose.LOAD, 0x0A: Purpose.TERMINAL,
    0x0B: Purpose.RECHARGE, 0x0C: Purpose.REFUND,
})  # fmt: skip
"""What LIST KEYS says for a key type; 00 for types that no purpose of profile.md has."""

UNDONE_BY = MappingProxyType({
    purse.LOAD_ED: (purse.PURCHASE_ED,),
    purse.LOAD_EP: (purse.PURCHASE_EP, purse.COMPOSITE),
})  # fmt: skip
"""Load type → purchase types that it undoes (keys.md, REFUND)."""

ENCIPHER, ENCIPHER_MORE, MAC_LAST, MAC_MORE, MAC_SINGLE, MAC_FIRST = 0x00, 0x02, 0x01, 0x03, 0x05, 0x07


class SamKey:
    """A key for cards: usage byte ``level << 5 | type``, version, algorithm."""

    __slots__ = ("algorithm", "key", "usage", "value", "version")

    def __init__(self, usage: int, version: int, algorithm: int, value: bytes) -> None:
        self.usage, self.version, self.algorithm = usage, version, algorithm
        self.value = value
        self.key = make_key(value, algorithm)

    @classmethod
    def parse(cls, record: bytes) -> SamKey:
        """From ``usage ver alg key`` (6A80 when it is not that)."""
        if len(record) not in (11, 19):
            raise Refusal(SW.DATA)
        usage, version, algorithm = record[:3]
        sm4_fits = algorithm != Algorithm.SM4 or len(record) == 19
        if usage & 0x1F not in TYPES or algorithm not in security.ALGORITHMS or not sm4_fits:
            raise Refusal(SW.DATA)
        return cls(usage, version, algorithm, record[3:])

    @property
    def record(self) -> bytes:
        """``usage ver alg key``."""
        return bytes((self.usage, self.version, self.algorithm)) + self.value

    def __repr__(self) -> str:
        return f"<SamKey {self.usage:02X} version {self.version}>"


class Confirmed(NamedTuple):
    """A purchase whose MAC2 was right: card, type, amount, and the online sequence its refund is bound to."""

    factor: bytes
    type: int
    amount_fen: int
    refund_seq: int | None = None


def _confirmed(factor: object, type_: object, amount_fen: object, refund_seq: object) -> Confirmed:
    seq = None if refund_seq is None else as_int(refund_seq, 0xFFFF)
    return Confirmed(as_bytes(factor, 8), as_int(type_, 9), as_int(amount_fen, 0xFFFFFFFF), seq)


class Purchase(NamedTuple):
    """An open purchase between 8070 and 8072."""

    key: Key
    amount: bytes
    factor: bytes
    type: int


def derive(key: Key, factors: bytes) -> Key:
    """Apply factors as they stand on the wire: the card's serial first, so the last one is level 1 (card.md §7.2)."""
    for start in range(len(factors) - 8, -1, -8):
        key = key.diversify(factors[start : start + 8])
    return key


class SamCard(Card):
    """A PSAM. Use :meth:`Card.blank`, :meth:`vendor_fresh` or an image."""

    KIND = "sam"
    handlers: ClassVar[Mapping[int, Handler]]  # set below: they need the class

    @classmethod
    def vendor_fresh(
        cls,
        transport_key: bytes,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        algorithm: Algorithm = Algorithm.TDES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Self:
        """A SAM as its vendor delivers it: as a card, with the files of card.md §7.1, empty; counter 1."""
        sam = super().vendor_fresh(transport_key, random_bytes, algorithm=algorithm, memory_bytes=memory_bytes)
        mf = sam.mf
        created = bytes.fromhex("380400080800") + mf.created[6:8] + SAM_DF_NAME
        df = Df(SAM_DF, created, mf, 0x0400, SAM_DF_NAME)
        df.files.value = {fid: make_ef(fid, bytes.fromhex(data)) for fid, data in DF_FILES.items()}
        mf.files.value = {fid: make_ef(fid, bytes.fromhex(data)) for fid, data in MF_FILES.items()} | {SAM_DF: df}
        sam.counter.value = FIRST_NUMBER.to_bytes(4, "big")
        return sam

    @property
    def sam_keys(self) -> Cell[dict[tuple[int, int], SamKey]]:
        """Keys for cards by (usage, version)."""
        return self.nvm.root("sam_keys", {})

    @property
    def confirmed(self) -> Cell[tuple[Confirmed, ...]]:
        """The last two confirmed purchases, newest first."""
        return self.nvm.root("confirmed", ())

    @property
    def counter(self) -> Cell[bytes]:
        """The terminal transaction counter: content of 1001/0018 (6A82 when there is none)."""
        df = self.mf.files.value.get(SAM_DF)
        return self._content(df, COUNTER_FID, 4)

    @property
    def terminal(self) -> bytes:
        """The terminal number: content of MF/0016 (6A82 when there is none)."""
        return self._content(self.mf, TERMINAL_FID, 6).value

    @staticmethod
    def _content(df: object, fid: int, size: int) -> Cell[bytes]:
        ef = df.files.value.get(fid) if isinstance(df, Df) else None
        if not isinstance(ef, BinaryFile) or len(ef.data.value) != size:
            raise Refusal(SW.FILE_NOT_FOUND)
        return ef.data

    def _forget(self) -> None:
        super()._forget()
        self.pin_verified = False
        self.purchase: Purchase | None = None
        self.derived: tuple[int, Key] | None = None
        self.chain: bytes | None = None

    def _extra(self) -> dict[str, Any]:
        return {
            "sam_keys": [key.record for key in self.sam_keys.value.values()],
            "confirmed": [list(purchase) for purchase in self.confirmed.value],
        }

    def _restore_extra(self, extra: dict[str, Any]) -> None:
        held = [SamKey.parse(record) for record in as_list(extra["sam_keys"], bytes)]
        if len(held) > MAX_KEYS:
            raise FormatError(f"{len(held)} keys in a SAM: at most {MAX_KEYS}")
        self.sam_keys.value = {(key.usage, key.version): key for key in held}
        self.confirmed.value = tuple(_confirmed(*line) for line in as_list(extra["confirmed"], list))[:2]

    def enter(self, df: Df) -> None:
        """SELECT drops the derived key, not an open purchase (card.md §7.3, §7.5)."""
        super().enter(df)
        self.derived = self.chain = None

    def find_key(self, key_type: int, kid: int) -> KeyRecord | None:
        """A SAM's own keys are the MF's, whatever directory is current."""
        return self.df.key(key_type, kid) or self.mf.key(key_type, kid)

    def reach(self, state: int) -> None:
        """Keys of the MF serve the whole SAM, so its state is reached with the directory's."""
        self.df_state = self.mf_state = state

    def expect_ready(self) -> None:
        """Refuse unless DF 1001 is current (6985) and the terminal's PIN, if any, was verified (6982)."""
        if self.df.fid != SAM_DF:
            raise Refusal(SW.CONDITIONS)
        if not self.pin_verified and self.mf.key(0x3A, 0) is not None:
            raise Refusal(SW.SECURITY)

    def key_for(self, usage: int, version: int) -> SamKey:
        """The key stored with exactly this usage byte (6A88) and version (9403) (card.md §7.2, §7.5)."""
        held = self.sam_keys.value
        found = held.get((usage, version))
        if found is not None:
            return found
        same_type = [key for key in held.values() if key.usage & 0x1F == usage & 0x1F]
        other_level = any(key.version == version for key in same_type)
        raise Refusal(SW.KEY_INDEX if same_type and not other_level else SW.KEY_NOT_FOUND)


def _sam(card: Card) -> SamCard:
    assert isinstance(card, SamCard)
    return card


def _same_family(key: SamKey, algorithm: int) -> None:
    """Refuse an algorithm that the key is not of (6A88); ids 00 and 01 go by key length (card.md §1.7)."""
    if algorithm not in security.ALGORITHMS or (algorithm == Algorithm.SM4) != (key.algorithm == Algorithm.SM4):
        raise Refusal(SW.KEY_NOT_FOUND)


def init_for_purchase(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """8070: the next terminal number and MAC1; the number is used up before the answer leaves (card.md §7.2, §7.4)."""
    sam = _sam(card)
    expect_p1p2(p1, p2)
    expect_length(data, 28, 36, 44)
    expect_le(le, 8)
    sam.expect_ready()
    rand, seq, amount, type_ = data[:4], data[4:6], data[6:10], data[10]
    when, version, algorithm, factors = data[11:18], data[18], data[19], data[20:]
    if type_ not in purse.DEBITS:
        raise Refusal(SW.CONDITIONS)
    key = sam.key_for(len(factors) // 8 << 5 | TYPE_PURCHASE, version)
    _same_family(key, algorithm)
    counter = sam.counter
    number = counter.value
    if number == LAST_NUMBER.to_bytes(4, "big"):
        raise Refusal(SW.COUNTER_FULL)
    session = derive(key.key, factors).session(rand + seq + number[2:])
    mac1 = session.mac(amount + bytes((type_,)) + sam.terminal + when)
    sam.nvm.write(counter, (int.from_bytes(number, "big") + 1).to_bytes(4, "big"))
    sam.purchase = Purchase(session, amount, factors[:8], type_)
    return number + mac1 + OK


def credit_for_purchase(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """8072: check MAC2 of the open purchase, once (card.md §7.3); a right one may be refunded."""
    sam = _sam(card)
    expect_p1p2(p1, p2)
    expect_length(data, 4)
    sam.expect_ready()
    purchase, sam.purchase = sam.purchase, None
    if purchase is None:
        raise Refusal(SW.INVALID_STATE)
    if not compare_digest(purchase.key.mac(purchase.amount), data):
        raise Refusal(SW.MAC_WRONG)
    done = Confirmed(purchase.factor, purchase.type, int.from_bytes(purchase.amount, "big"))
    sam.nvm.write(sam.confirmed, (done, *sam.confirmed.value)[:2])
    return OK


def refund(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """8074 REFUND: MAC2 of a load that undoes the last confirmed purchase (keys.md)."""
    sam = _sam(card)
    expect_p1p2(p1, p2)
    expect_length(data, 36)
    expect_le(le, 4)
    sam.expect_ready()
    balance, seq, rand, mac1 = data[:4], data[4:6], data[8:12], data[12:16]
    amount, type_, when, factor = data[16:20], data[20], data[21:28], data[28:]
    if type_ not in UNDONE_BY:
        raise Refusal(SW.CONDITIONS)
    key = sam.key_for(REFUND_USAGE, data[6])
    _same_family(key, data[7])
    session = key.key.diversify(factor).session(rand + seq + b"\x80\x00")
    order = amount + data[20:21] + sam.terminal
    if not compare_digest(session.mac(balance + order), mac1):
        raise Refusal(SW.MAC_WRONG)
    _bind(sam, factor, type_, int.from_bytes(amount, "big"), int.from_bytes(seq, "big"))
    return session.mac(order + when) + OK


def _bind(sam: SamCard, factor: bytes, load_type: int, amount_fen: int, seq: int) -> None:
    """Find the purchase to undo and bind the card's online sequence to it; a repeat needs the same one (6985)."""
    done = sam.confirmed.value
    for index, purchase in enumerate(_legs(done)):
        if (purchase.factor, purchase.amount_fen) != (factor, amount_fen) or purchase.type not in UNDONE_BY[load_type]:
            continue
        if purchase.refund_seq not in (None, seq):
            break
        if purchase.refund_seq is None:
            bound = purchase._replace(refund_seq=seq)
            sam.nvm.write(sam.confirmed, (*done[:index], bound, *done[index + 1 :]))
        return
    raise Refusal(SW.CONDITIONS)


def _legs(done: tuple[Confirmed, ...]) -> tuple[Confirmed, ...]:
    """The last purchase; with the one before when both are legs, from two purses, of one card's payment."""
    if len(done) == 2 and done[0].factor == done[1].factor:
        purses = [purse.PROOF_OF[purchase.type][0] for purchase in done]
        if purses[0] != purses[1]:
            return done
    return done[:1]


def init_for_descrypt(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """801A: derive a temporary key; P1 is the whole usage byte, P2 the version (card.md §7.5)."""
    sam = _sam(card)
    sam.derived = sam.chain = None
    if len(data) % 8:
        raise Refusal(SW.LENGTH)
    sam.expect_ready()
    if p1 & 0x1F in NEVER_DERIVED:
        raise Refusal(SW.CONDITIONS)
    if len(data) != 8 * (p1 >> 5):
        raise Refusal(SW.DATA)
    key = derive(sam.key_for(p1, p2).key, data)
    sam.derived = (p1 & 0x1F, key.folded() if p1 & 0x1F == TYPE_PIN_RELOAD else key)
    return OK


def des_crypt(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """80FA: encipher or MAC under the derived key; the caller pads (card.md §7.6)."""
    sam = _sam(card)
    chain, sam.chain = sam.chain, None
    if p2 or p1 not in (ENCIPHER, ENCIPHER_MORE, MAC_LAST, MAC_MORE, MAC_SINGLE, MAC_FIRST):
        raise Refusal(SW.P1P2)
    if sam.derived is None:
        raise Refusal(SW.INVALID_STATE)
    key_type, key = sam.derived
    if key_type not in (MAY_MAC if p1 & 1 else MAY_ENCIPHER):
        raise Refusal(SW.CONDITIONS)
    with_iv = p1 in (MAC_SINGLE, MAC_FIRST)
    if len(data) % key.block or len(data) < key.block * (2 if with_iv else 1):
        raise Refusal(SW.LENGTH)
    if not p1 & 1:
        expect_le(le, len(data))
        return key.encrypt(data) + OK
    # IV and blocks are kept as they come: algorithm 3 treats the last block apart (card.md §1.3).
    whole = data if with_iv else (chain if chain is not None else bytes(key.block)) + data
    if len(whole) > MAX_CHAIN_BYTES:
        raise Refusal(SW.LENGTH)
    if p1 & 2:
        sam.chain = whole
        return OK
    return key.mac_padded(whole[key.block :], whole[: key.block])[:4] + OK


def load_key(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """84D4 0000: a key for cards, ``usage ver alg key`` under the control key (card.md §7.7); else WRITE KEY."""
    if p1:
        return keys.write_key(card, cla, p1, p2, data, le)
    sam = _sam(card)
    expect_p1p2(p1, p2)
    if sam.mf_state < LOADING_STATE:
        raise Refusal(SW.SECURITY)
    control = sm.usable(sam, sam.mf.key(0x39, 0))
    record = sm.open_record(sam, data, control)
    held = sam.sam_keys.value
    loaded = SamKey.parse(record)
    if (loaded.usage, loaded.version) not in held and len(held) >= MAX_KEYS:
        raise Refusal(SW.NO_SPACE)
    sam.nvm.write(sam.sam_keys, {**held, (loaded.usage, loaded.version): loaded})
    return OK


def list_keys(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:  # noqa: ARG001
    """80EA: purpose 1, version 1, algorithm 1, check value 3 of each key for cards (keys.md)."""
    expect_p1p2(p1, p2)
    expect_length(data, 0)
    held = _sam(card).sam_keys.value.values()
    lines = (bytes((PURPOSE_OF.get(k.usage & 0x1F, 0), k.version, k.algorithm)) + k.key.kcv for k in held)
    return b"".join(lines) + OK


def verify_pin(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """VERIFY of the terminal's PIN: once after power-on, SELECT does not undo it (keys.md)."""
    answer = security.verify_pin(card, cla, p1, p2, data, le)
    _sam(card).pin_verified |= p2 == 0
    return answer


SamCard.handlers = MappingProxyType({
    **HANDLERS,
    0x0020: verify_pin,
    0x84D4: load_key,
    0x8070: init_for_purchase,
    0x8072: credit_for_purchase,
    0x8074: refund,
    0x801A: init_for_descrypt,
    0x80FA: des_crypt,
    0x80EA: list_keys,
})  # fmt: skip
