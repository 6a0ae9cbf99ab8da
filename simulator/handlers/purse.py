"""Electronic deposit and purse (card.md §4)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, NamedTuple

from cardlib.apdu import SW
from cardlib.crypto import Algorithm, Key
from simulator.files import CYCLIC, VARIABLE, KeyRecord, PurseFile, PurseState, RecordFile
from simulator.handlers import OK, Refusal, expect_le, expect_length, expect_p1p2
from simulator.handlers.files import check_record, find_record, record_file
from simulator.handlers.security import ALGORITHMS
from simulator.nvm import Cell

if TYPE_CHECKING:
    from simulator.card import Card

ED, EP = 1, 2
COUNTER_MAX, AMOUNT_MAX = 0xFFFF, 0xFFFFFFFF
REFUND_KID = 3
LOG_LENGTH = 23
LOAD_ED, LOAD_EP, UNLOAD, WITHDRAW, PURCHASE_ED, PURCHASE_EP, OVERDRAFT, COMPOSITE = 1, 2, 3, 4, 5, 6, 7, 9
NO_MAC = bytes(4)


class Kind(NamedTuple):
    """One kind of transaction: what INITIALIZE takes and which second command ends it (P1)."""

    type: int
    purse: int
    key_type: int
    answer_size: int
    online: bool


KINDS = {
    0x0001: Kind(LOAD_ED, ED, 0x3F, 16, True),
    0x0002: Kind(LOAD_EP, EP, 0x3F, 16, True),
    0x0101: Kind(PURCHASE_ED, ED, 0x3E, 15, False),
    0x0102: Kind(PURCHASE_EP, EP, 0x3E, 15, False),
    0x0201: Kind(WITHDRAW, ED, 0x3E, 15, False),
    0x0302: Kind(COMPOSITE, EP, 0x3E, 15, False),
    0x0401: Kind(OVERDRAFT, ED, 0x3C, 19, True),
    0x0501: Kind(UNLOAD, ED, 0x3D, 16, True),
}
LOADS = (LOAD_ED, LOAD_EP)
PURCHASES = (PURCHASE_ED, PURCHASE_EP, COMPOSITE)
DEBITS = (WITHDRAW, *PURCHASES)

PROOF_OF = {
    LOAD_ED: (ED, True), LOAD_EP: (EP, True), UNLOAD: (ED, True), OVERDRAFT: (ED, True),
    WITHDRAW: (ED, False), PURCHASE_ED: (ED, False), PURCHASE_EP: (EP, False), COMPOSITE: (EP, False),
}  # fmt: skip
"""Which of the four kept pairs a type's proof is in: purse and whether online."""


class Session:
    """What INITIALIZE leaves for the second command; volatile."""

    __slots__ = ("amount", "cache", "key", "kind", "log", "online_seq", "purse", "rand", "refund", "tac", "terminal")

    def __init__(self, kind: Kind, purse: PurseFile, log: RecordFile, key: Key, amount: int, terminal: bytes) -> None:
        self.kind, self.purse, self.log = kind, purse, log
        self.online_seq = purse.state.value.online_seq
        self.key = key  # the transaction key; the session key once an online INITIALIZE made it
        self.amount, self.terminal = amount, terminal
        self.rand = b""
        self.tac: Key | None = None
        self.refund = False
        self.cache: dict[tuple[RecordFile, int], bytes] = {}


def _purse_file(card: Card, fid: int) -> PurseFile:
    purse = card.df.files.value.get(fid)
    if not isinstance(purse, PurseFile):
        raise Refusal(SW.FILE_NOT_FOUND)
    return purse


def initialize(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """INITIALIZE of any transaction: checks everything that can be checked now, changes nothing persistent."""
    kind = KINDS.get(p1 << 8 | p2)
    if kind is None:
        raise Refusal(SW.P1P2)
    if len(data) != (7 if kind.type == OVERDRAFT else 11):
        raise Refusal(SW.LENGTH)
    expect_le(le, kind.answer_size)
    purse = _purse_file(card, kind.purse)
    log = card.df.ef(purse.log_sfi)
    if not isinstance(log, RecordFile) or log.kind != CYCLIC or log.length != LOG_LENGTH:
        raise Refusal(SW.FILE_NOT_FOUND)
    record = card.df.key(kind.key_type, data[0])
    if record is None:
        raise Refusal(SW.KEY_INDEX)
    _check_rights(card, kind, purse, record)
    amount = 0 if kind.type == OVERDRAFT else int.from_bytes(data[1:5], "big")
    tac = _tac_key(card, kind, purse, record)
    session = Session(kind, purse, log, record.key(), amount, data[-6:])
    session.tac = tac
    session.refund = kind.type in LOADS and data[0] == REFUND_KID
    _check_conditions(session)
    session.rand = card.random_bytes(4)
    card.session = session
    header = record.header.value
    return (_initialize_online if kind.online else _initialize_offline)(session, header[3:5])


def _check_rights(card: Card, kind: Kind, purse: PurseFile, record: KeyRecord) -> None:
    """The purse file's use right decides offline, the key's online; a load needs some authentication in any case."""
    if not card.allowed(record.header.value[1] if kind.online else purse.read):
        raise Refusal(SW.SECURITY)
    if kind.type in LOADS and card.df_state == 0:
        raise Refusal(SW.SECURITY)


def _tac_key(card: Card, kind: Kind, purse: PurseFile, record: KeyRecord) -> Key | None:
    """The TAC key under the transaction key's algorithm (card.md §12); unload has no TAC."""
    algorithm = record.algorithm
    if algorithm not in ALGORITHMS:
        raise Refusal(SW.CONDITIONS)  # ids 02 and 03 (card.md §1.7)
    if kind.type == UNLOAD:
        return None
    tac = card.df.key(0x34, purse.tac_kid)
    if tac is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    if algorithm == Algorithm.SM4 and len(tac.value.value) != 16:
        raise Refusal(SW.CONDITIONS)
    return tac.key(algorithm)


def _check_conditions(session: Session) -> None:
    state, kind, amount = session.purse.state.value, session.kind, session.amount
    if (state.online_seq if kind.online else state.offline_seq) == COUNTER_MAX:
        raise Refusal(SW.COUNTER_FULL)
    if kind.type in LOADS:
        if session.refund and session.purse.refundable.value != amount.to_bytes(4, "big") + session.terminal:
            raise Refusal(SW.CONDITIONS)
        if state.balance_fen + amount > AMOUNT_MAX:
            raise Refusal(SW.CONDITIONS)
    elif amount > state.balance_fen:
        raise Refusal(SW.FUNDS)


def _initialize_offline(session: Session, version_algorithm: bytes) -> bytes:
    state = session.purse.state.value
    balance = state.balance_fen.to_bytes(4, "big")
    overdraft = state.overdraft_fen.to_bytes(3, "big")
    return balance + state.offline_seq.to_bytes(2, "big") + overdraft + version_algorithm + session.rand + OK


def _initialize_online(session: Session, version_algorithm: bytes) -> bytes:
    """Load, unload and overdraft: the session key is complete, so MAC1 proves the card (card.md §4.2, §4.6)."""
    state, kind = session.purse.state.value, session.kind
    balance, seq = state.balance_fen.to_bytes(4, "big"), state.online_seq.to_bytes(2, "big")
    session.key = session.key.session(session.rand + seq + b"\x80\x00")
    tail = bytes((kind.type,)) + session.terminal
    if kind.type == OVERDRAFT:
        limit = state.overdraft_fen.to_bytes(3, "big")
        mac1 = session.key.mac(balance + limit + tail)
    else:
        limit = b""
        mac1 = session.key.mac(balance + session.amount.to_bytes(4, "big") + tail)
    return balance + seq + limit + version_algorithm + session.rand + mac1 + OK


def _continue(card: Card, types: tuple[int, ...]) -> Session:
    """The session that the command before left, when it is of a fitting kind (6901)."""
    session = card.used_session
    if session is None or session.kind.type not in types:
        raise Refusal(SW.INVALID_STATE)
    # The other face, or a sender over the air, may have moved money since INITIALIZE (profile.md, RFID-SIM).
    if session.kind.online and session.purse.state.value.online_seq != session.online_seq:
        raise Refusal(SW.INVALID_STATE)
    _check_conditions(session)
    return session


def _check_mac(key: Key, data: bytes, mac: bytes) -> None:
    if not compare_digest(key.mac(data), mac):
        raise Refusal(SW.MAC_WRONG)


def credit_for_load(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """CREDIT FOR LOAD: ``date4 time3 MAC2`` → TAC (card.md §4.2)."""
    expect_p1p2(p1, p2)
    expect_length(data, 11)
    expect_le(le, 4)
    s = _continue(card, LOADS)
    state, when = s.purse.state.value, data[:7]
    order = s.amount.to_bytes(4, "big") + bytes((s.kind.type,)) + s.terminal + when
    _check_mac(s.key, order, data[7:])
    new = state._replace(balance_fen=state.balance_fen + s.amount, online_seq=state.online_seq + 1)
    assert s.tac is not None
    tac = s.tac.tac(new.balance_fen.to_bytes(4, "big") + state.online_seq.to_bytes(2, "big") + order)
    if s.refund:
        card.nvm.write(s.purse.refundable, b"")
    _commit(card, s, new, when, NO_MAC + tac)
    return tac + OK


def debit(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """8054: DEBIT FOR PURCHASE, WITHDRAW or CAPP (P1 01), DEBIT FOR UNLOAD (P1 03)."""
    if p2 or p1 not in (1, 3):
        raise Refusal(SW.P1P2)
    if p1 == 3:
        return _debit_for_unload(card, data, le)
    expect_length(data, 15)
    expect_le(le, 8)
    s = _continue(card, DEBITS)
    state, terminal_seq, when = s.purse.state.value, data[:4], data[4:11]
    amount, kind_byte = s.amount.to_bytes(4, "big"), bytes((s.kind.type,))
    # Only the right half of the terminal's number enters the session key; the TAC has all of it (card.md §10.6).
    key = s.key.session(s.rand + state.offline_seq.to_bytes(2, "big") + terminal_seq[2:])
    _check_mac(key, amount + kind_byte + s.terminal + when, data[11:])
    mac2 = key.mac(amount)
    assert s.tac is not None
    tac = s.tac.tac(amount + kind_byte + s.terminal + terminal_seq + when)
    new = state._replace(balance_fen=state.balance_fen - s.amount, offline_seq=state.offline_seq + 1)
    if s.kind.type in PURCHASES:
        card.nvm.write(s.purse.refundable, amount + s.terminal)
    _write_cache(card, s)
    _commit(card, s, new, when, mac2 + tac)
    return tac + mac2 + OK


def _write_cache(card: Card, session: Session) -> None:
    changed: dict[RecordFile, list[bytes]] = {}
    for (ef, index), record in session.cache.items():
        changed.setdefault(ef, list(ef.records.value))[index] = record
    for ef, records in changed.items():
        card.nvm.write(ef.records, tuple(records))


def _debit_for_unload(card: Card, data: bytes, le: int | None) -> bytes:
    """``date4 time3 MAC2`` → MAC3, which is under the session key, not the TAC key (card.md §4.5)."""
    expect_length(data, 11)
    expect_le(le, 4)
    s = _continue(card, (UNLOAD,))
    state, when = s.purse.state.value, data[:7]
    order = s.amount.to_bytes(4, "big") + bytes((UNLOAD,)) + s.terminal + when
    _check_mac(s.key, order, data[7:])
    new = state._replace(balance_fen=state.balance_fen - s.amount, online_seq=state.online_seq + 1)
    mac3 = s.key.mac(new.balance_fen.to_bytes(4, "big") + state.online_seq.to_bytes(2, "big") + order)
    _commit(card, s, new, when, mac3 + NO_MAC)
    return mac3 + OK


def update_overdraft(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """UPDATE OVERDRAW LIMIT: ``newlim3 date4 time3 MAC2`` → TAC (card.md §4.6)."""
    expect_p1p2(p1, p2)
    expect_length(data, 14)
    expect_le(le, 4)
    s = _continue(card, (OVERDRAFT,))
    state, limit, when = s.purse.state.value, data[:3], data[3:10]
    order = limit + bytes((OVERDRAFT,)) + s.terminal + when
    _check_mac(s.key, order, data[10:])
    overdraft = int.from_bytes(limit, "big")
    balance = state.balance_fen - state.overdraft_fen + overdraft
    if balance < 0:
        raise Refusal(SW.FUNDS)
    if balance > AMOUNT_MAX:
        raise Refusal(SW.CONDITIONS)
    new = PurseState(balance, overdraft, state.online_seq + 1, state.offline_seq)
    assert s.tac is not None
    tac = s.tac.tac(balance.to_bytes(4, "big") + state.online_seq.to_bytes(2, "big") + order)
    _commit(card, s, new, when, NO_MAC + tac)
    return tac + OK


def _commit(card: Card, session: Session, new: PurseState, when: bytes, proof: bytes) -> None:
    """Purse, kept proof and log record change together; the counter in the proof is the one after (card.md §4.8)."""
    purse, kind = session.purse, session.kind
    old = purse.state.value
    after = new.online_seq if kind.online else new.offline_seq
    kind_byte = bytes((kind.type,))
    card.nvm.write(purse.state, new)
    cell = purse.online_proof if kind.online else purse.offline_proof
    card.nvm.write(cell, kind_byte + after.to_bytes(2, "big") + proof)
    logged = after
    if card.quirks.log_seq_rule == "before":
        logged = old.online_seq if kind.online else old.offline_seq
    overdraft = new.overdraft_fen.to_bytes(3, "big")
    amount = session.amount.to_bytes(4, "big")
    record = logged.to_bytes(2, "big") + overdraft + amount + kind_byte + session.terminal + when
    log = session.log
    card.nvm.write(log.records, (record, *log.records.value)[: log.count])


def update_cache(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """UPDATE CAPP CACHE: keep a record for the debit to come; without secure messaging (card.md §12)."""
    session = _continue(card, (COMPOSITE,))
    mode = p2 & 7
    if mode not in (0, 4):
        raise Refusal(SW.P1P2)
    ef = record_file(card, p2)
    if ef.kind == CYCLIC:
        raise Refusal(SW.FILE_TYPE)
    if not card.allowed(ef.write):
        raise Refusal(SW.SECURITY)
    index = find_record(card, ef, p1, mode)
    if len(data) != len(ef.records.value[index]):
        raise Refusal(SW.LENGTH)
    check_record(ef, data)
    if ef.kind == VARIABLE and mode == 0 and data[0] != p1:
        raise Refusal(SW.DATA)
    session.cache[ef, index] = data
    card.session = session
    return OK


def get_balance(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """GET BALANCE of ED (P2 01) or EP (02), under the purse file's use right."""
    if p1 or p2 not in (ED, EP):
        raise Refusal(SW.P1P2)
    expect_length(data, 0)
    expect_le(le, 4)
    purse = _purse_file(card, p2)
    if not card.allowed(purse.read):
        raise Refusal(SW.SECURITY)
    return purse.state.value.balance_fen.to_bytes(4, "big") + OK


def get_transaction_prove(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """GET TRANSACTION PROVE: the kept ``MAC4 TAC4`` of (type, counter after), else 9406."""
    if p1:
        raise Refusal(SW.P1P2)
    expect_length(data, 2)
    expect_le(le, 8)
    fid, online = PROOF_OF.get(p2, (0, False))
    purse = card.df.files.value.get(fid)
    if isinstance(purse, PurseFile):
        cell: Cell[bytes] = purse.online_proof if online else purse.offline_proof
        if cell.value[:3] == bytes((p2,)) + data:
            return cell.value[3:] + OK
    raise Refusal(SW.NO_PROOF)
