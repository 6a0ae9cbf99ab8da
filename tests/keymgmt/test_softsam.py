"""The software SAM: vectors, its rules, and the same answers as a simulated PSAM that was given the same keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import cbor2
import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import FormatError, MacMismatch, NotFound, Refused
from cardlib.profile import Purpose, TransactionType, issuer_id
from cardlib.sam import CardSam, LoadInit, PurchaseInit, Sam, SamInfo, load_mac1_input, load_seed
from keymgmt.keys import KeyRef
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.softsam import FileMemory, SamMemory, SoftSam, VolatileMemory
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore
from simulator.sam import SamCard
from tests.keymgmt.rig import CHEAP, ENTERPRISE, EXPIRY, SAM_SERIAL, SERIAL, START, TERMINAL, TRANSPORT_KEY, Rig
from tests.vectors import algorithm, by_category, pboc, raw

WORLD = raw(pboc()["world"])
VECTOR_ENTERPRISE = int.from_bytes(WORLD["issuer"][4:], "big")
FACTOR = WORLD["card_factor"]
NAMES = {Purpose.PURCHASE: "DPK", Purpose.LOAD: "DLK", Purpose.UNLOAD: "DUK", Purpose.TAC: "DTK"}
WHEN = bytes.fromhex("20250301120000")
EP, ED, BOTH_EP = TransactionType.PURCHASE_EP, TransactionType.PURCHASE_ED, TransactionType.COMPOSITE
PSAM_LEVELS = [v for v in by_category("psam") if len(v["inputs"]["factors_in_apdu_order"]) < 3]


def vector_sam(folder: Path, kind: Algorithm, next_seq: int = 1) -> SoftSam:
    """A SAM under the root keys of the vectors' world, version 1."""
    store = FileStore.create_file(folder / "keys", b"p", CHEAP)
    for purpose, name in NAMES.items():
        value = bytes.fromhex(pboc()["world"]["master_keys"][name])
        store.import_key(KeyRef(purpose, 1), kind, value, make_key(value, kind).kcv, "test")
    memory = VolatileMemory()
    memory.save(cbor2.dumps([next_seq, []]))
    return SoftSam(store, VECTOR_ENTERPRISE, WORLD["terminal"], SAM_SERIAL, memory)


@pytest.mark.parametrize("vector", PSAM_LEVELS, ids=lambda v: str(v["id"]))
def test_psam_vectors(tmp_path: Path, vector: dict[str, Any]) -> None:
    """8070 and 8072 of the vectors, from an enterprise's key (one level) or the root (two)."""
    inputs, command = raw(vector["inputs"]), bytes.fromhex(vector["output"]["capdu_8070"])
    two_levels = len(vector["inputs"]["factors_in_apdu_order"]) == 2
    ref = KeyRef(Purpose.PURCHASE, 1, None if two_levels else VECTOR_ENTERPRISE)
    store = FileStore.create_file(tmp_path / "keys", b"p", CHEAP)
    master = inputs["dpk_master"]
    store.import_key(ref, Algorithm.TDES, master, make_key(master).kcv, "test")
    memory = VolatileMemory()
    memory.save(cbor2.dumps([int.from_bytes(inputs["terminal_seq"], "big"), []]))
    sam = SoftSam(store, VECTOR_ENTERPRISE, inputs["terminal_no_file16"], SAM_SERIAL, memory)
    data = command[5:]
    init = PurchaseInit(0, int.from_bytes(data[4:6], "big"), 0, data[18], data[19], data[:4])
    kind, amount = TransactionType(data[10]), int.from_bytes(data[6:10], "big")
    seq, mac1 = sam.purchase_mac1(init, amount, kind, data[11:18], data[20:28])
    assert seq.to_bytes(4, "big") + mac1 == bytes.fromhex(vector["output"]["rdata_8070"])
    sam.verify_mac2(bytes.fromhex(vector["output"]["capdu_8072"])[5:])


@pytest.mark.parametrize(
    "vector",
    [v for v in by_category("purchase", "withdraw", "capp") if "psam_8070_rdata" in v["output"]],
    ids=lambda v: str(v["id"]),
)
def test_purchase_vectors(tmp_path: Path, vector: dict[str, Any]) -> None:
    """MAC1, MAC2 and TAC of each purchase vector whose PSAM pair is known, 3DES and SM4."""
    v, out = raw(vector["inputs"]), raw(vector["output"])
    seq = int.from_bytes(v["terminal_seq"], "big")
    sam = vector_sam(tmp_path, Algorithm(algorithm(vector)), seq)
    init = PurchaseInit.decode(out["init_rdata"])
    kind, amount = TransactionType(v["type"][0]), int.from_bytes(v["amount"], "big")
    assert sam.purchase_mac1(init, amount, kind, v["date"] + v["time"], FACTOR) == (seq, out["mac1"])
    assert sam.open_seq == seq
    sam.verify_mac2(out["mac2"])
    tac_input = raw(vector["intermediate"])["tac_input"]
    sam.verify_tac(FACTOR, init.key_version, init.algorithm, tac_input, out["tac"])
    with pytest.raises(MacMismatch):
        sam.verify_tac(FACTOR, init.key_version, init.algorithm, tac_input[:-1] + b"\0", out["tac"])
    with pytest.raises(FormatError):
        sam.verify_tac(FACTOR, init.key_version, 4 - init.algorithm, tac_input, out["tac"])


@pytest.mark.parametrize("vector", by_category("load", "unload"), ids=lambda v: str(v["id"]))
def test_load_vectors(tmp_path: Path, vector: dict[str, Any]) -> None:
    """MAC1 is checked, MAC2, TAC and MAC3 are those of the vectors; a wrong MAC1 gets no MAC2."""
    v, out = raw(vector["inputs"]), raw(vector["output"])
    sam, init = vector_sam(tmp_path, Algorithm(algorithm(vector))), LoadInit.decode(out["init_rdata"])
    kind, amount, when = TransactionType(v["type"][0]), int.from_bytes(v["amount"], "big"), v["date"] + v["time"]
    init = replace(init, key_version=init.key_version or 1)  # SM4-UNLOAD-1 has version 00, which no store holds
    bad = replace(init, mac1=bytes(4))
    if kind is TransactionType.UNLOAD:
        assert sam.unload_mac2(init, amount, v["terminal"], when, FACTOR) == out["mac2"]
        sam.verify_mac3(init, amount, v["terminal"], when, FACTOR, out["mac3"])
        with pytest.raises(MacMismatch):
            sam.verify_mac3(init, amount, v["terminal"], when, FACTOR, out["mac2"])
        with pytest.raises(FormatError):
            sam.verify_mac3(init, init.balance_fen + 1, v["terminal"], when, FACTOR, out["mac3"])
        with pytest.raises(MacMismatch):
            sam.unload_mac2(bad, amount, v["terminal"], when, FACTOR)
        return
    assert sam.load_mac2(init, amount, kind, v["terminal"], when, FACTOR) == out["mac2"]
    tac_input = raw(vector["intermediate"])["tac_input"]
    sam.verify_tac(FACTOR, init.key_version, init.algorithm, tac_input, out["tac"])
    with pytest.raises(MacMismatch):
        sam.load_mac2(bad, amount, kind, v["terminal"], when, FACTOR)


def pay(sam: Sam, rig: Rig, kind: TransactionType, amount_fen: int, serial: bytes = SERIAL, seq: int = 1) -> int:
    """A purchase up to MAC2 as a card would answer it; returns the terminal sequence."""
    init = PurchaseInit(10_000, seq, 0, 1, rig.algorithm, b"rand")
    terminal_seq, _ = sam.purchase_mac1(init, amount_fen, kind, WHEN, serial)
    seed = init.rand4 + seq.to_bytes(2, "big") + (terminal_seq & 0xFFFF).to_bytes(2, "big")
    session = rig.expected(Purpose.PURCHASE, serial=serial).session(seed)
    sam.verify_mac2(session.mac(amount_fen.to_bytes(4, "big")))
    return terminal_seq


def load_init(rig: Rig, kind: TransactionType, amount_fen: int, serial: bytes = SERIAL, seq: int = 5) -> LoadInit:
    """What a card answers to INITIALIZE FOR LOAD with its refund key."""
    init = LoadInit(100, seq, 1, rig.algorithm, b"RAND", b"")
    session = rig.expected(Purpose.REFUND, serial=serial).session(load_seed(init))
    return replace(init, mac1=session.mac(load_mac1_input(init, amount_fen, kind, TERMINAL)))


def refund(
    sam: Sam, rig: Rig, kind: TransactionType, amount_fen: int, serial: bytes = SERIAL, seq: int = 5
) -> bytes:  # fmt: skip
    init = load_init(rig, kind, amount_fen, serial, seq)
    return sam.refund_mac2(init, amount_fen, kind, WHEN, serial)


LOAD_EP, LOAD_ED = TransactionType.LOAD_EP, TransactionType.LOAD_ED
OTHER = bytes(7) + b"\1"


def test_sequence_is_never_given_twice(tmp_path: Path) -> None:
    """The next number is safe before this one leaves, whatever happens afterwards."""
    rig, memory = Rig(tmp_path), FileMemory(tmp_path / "sam")
    sam = SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL, memory)
    init = PurchaseInit(100, 1, 0, 1, 0, b"rand")
    first, _ = sam.purchase_mac1(init, 1, EP, WHEN, SERIAL)
    again, _ = SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL, memory).purchase_mac1(init, 1, EP, WHEN, SERIAL)
    assert (first, again) == (1, 2)


def test_failing_memory_gives_no_number(tmp_path: Path) -> None:
    """When the counter can't be stored, no MAC1 is given."""

    class Full(VolatileMemory):
        def save(self, state: bytes) -> None:
            raise OSError("disk full")

    rig = Rig(tmp_path)
    sam = SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL, Full())
    with pytest.raises(OSError, match="disk full"):
        sam.purchase_mac1(PurchaseInit(100, 1, 0, 1, 0, b"rand"), 1, EP, WHEN, SERIAL)
    assert sam.open_seq is None


def test_counter_at_its_end(tmp_path: Path) -> None:
    """The last number is refused by name, not wrapped."""
    sam = vector_sam(tmp_path, Algorithm.TDES, 0x1_0000_0000)
    with pytest.raises(Refused) as refused:
        sam.purchase_mac1(PurchaseInit(100, 1, 0, 1, 0, b"rand"), 1, EP, WHEN, FACTOR)
    assert refused.value.reason == "counter_full"


def test_damaged_memory_is_refused(tmp_path: Path) -> None:
    """A SAM whose memory is damaged does not begin to count from 1."""
    rig = Rig(tmp_path)
    for state in (b"\xff", cbor2.dumps([1]), cbor2.dumps([1, [[1]]]), cbor2.dumps([-1, []]), cbor2.dumps(["x", []])):
        memory = VolatileMemory()
        memory.save(state)
        with pytest.raises(FormatError):
            SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL, memory)


def test_mac2_is_verified_once(tmp_path: Path) -> None:
    """A second MAC2, or one without purchase, finds no session; a wrong one closes it."""
    rig = Rig(tmp_path)
    for prepare in (lambda: None, lambda: pay(rig.host, rig, EP, 5)):
        prepare()
        with pytest.raises(Refused) as refused:
            rig.host.verify_mac2(bytes(4))
        assert refused.value.reason == "no_session"
    rig.host.purchase_mac1(PurchaseInit(100, 1, 0, 1, 0, b"rand"), 1, EP, WHEN, SERIAL)
    with pytest.raises(MacMismatch):
        rig.host.verify_mac2(bytes(4))
    assert rig.host.open_seq is None


def no_undo(act: Any, *args: Any) -> None:
    with pytest.raises(Refused) as refused:
        act(*args)
    assert refused.value.reason == "no_undo"


def test_refund_only_of_the_last_purchase(tmp_path: Path) -> None:
    """Same card, same amount, matching purse, the last confirmed payment: anything else gets no MAC2."""
    rig = Rig(tmp_path)
    sam = rig.host
    no_undo(refund, sam, rig, LOAD_EP, 500)
    pay(sam, rig, EP, 500)
    for args in ((LOAD_EP, 501), (LOAD_ED, 500), (LOAD_EP, 500, OTHER)):
        no_undo(refund, sam, rig, *args)
    assert refund(sam, rig, LOAD_EP, 500)
    pay(sam, rig, EP, 700, OTHER)
    no_undo(refund, sam, rig, LOAD_EP, 500)
    with pytest.raises(MacMismatch):
        sam.refund_mac2(replace(load_init(rig, LOAD_EP, 700, OTHER), mac1=bytes(4)), 700, LOAD_EP, WHEN, OTHER)


def test_refund_binds_the_online_sequence(tmp_path: Path) -> None:
    """A torn undo may be repeated with the same sequence, never with the next: that would be a second one."""
    rig = Rig(tmp_path)
    pay(rig.host, rig, BOTH_EP, 500)
    first = refund(rig.host, rig, LOAD_EP, 500, seq=5)
    assert refund(rig.host, rig, LOAD_EP, 500, seq=5) == first
    no_undo(refund, rig.host, rig, LOAD_EP, 500, SERIAL, 6)


def test_refund_of_both_legs(tmp_path: Path) -> None:
    """A payment split over both purses of one card is undone leg by leg; two of one purse are not two legs."""
    rig = Rig(tmp_path)
    pay(rig.host, rig, ED, 200)
    pay(rig.host, rig, EP, 300)
    assert refund(rig.host, rig, LOAD_EP, 300)
    assert refund(rig.host, rig, LOAD_ED, 200)
    no_undo(refund, rig.host, rig, LOAD_ED, 200, SERIAL, 6)
    pay(rig.host, rig, EP, 400)
    pay(rig.host, rig, EP, 300)
    no_undo(refund, rig.host, rig, LOAD_EP, 400)


def test_an_unconfirmed_purchase_is_not_refunded(tmp_path: Path) -> None:
    """MAC1 alone proves no payment; the one confirmed before stays the last one."""
    rig = Rig(tmp_path)
    pay(rig.host, rig, EP, 500)
    rig.host.purchase_mac1(PurchaseInit(10_000, 2, 0, 1, 0, b"rand"), 900, EP, WHEN, SERIAL)
    no_undo(refund, rig.host, rig, LOAD_EP, 900)
    assert refund(rig.host, rig, LOAD_EP, 500)


def test_refund_survives_power(tmp_path: Path) -> None:
    """The last confirmed payment and its bound undo are remembered over a restart."""
    rig, memory = Rig(tmp_path), FileMemory(tmp_path / "sam")

    def started() -> SoftSam:
        return SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL, memory)

    pay(started(), rig, EP, 500)
    first = refund(started(), rig, LOAD_EP, 500, seq=5)
    assert refund(started(), rig, LOAD_EP, 500, seq=5) == first
    no_undo(refund, started(), rig, LOAD_EP, 500, SERIAL, 6)


def test_usages_are_kept_apart(tmp_path: Path) -> None:
    """No key does another's work, and a missing version is named."""
    rig = Rig(tmp_path)
    for purpose in (Purpose.CARD, Purpose.PURCHASE, Purpose.TAC, Purpose.LOAD):
        with pytest.raises(Refused):
            rig.host.authenticate(purpose, SERIAL, 1, bytes(8))
        with pytest.raises(Refused):
            rig.host.protect(purpose, SERIAL, 1, bytes(4), b"", bytes(4))
    with pytest.raises(Refused):
        rig.host.purchase_mac1(PurchaseInit(1, 1, 0, 1, 0, b"rand"), 1, LOAD_EP, WHEN, SERIAL)
    with pytest.raises(NotFound):
        rig.host.card_answer(SERIAL, 9, bytes(8))


@pytest.mark.parametrize("kind", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
def test_same_answers_as_a_psam(tmp_path: Path, kind: Algorithm) -> None:
    """A PSAM that was made with the same keys gives the same answers, numbers, proofs and refunds."""
    rig = Rig(tmp_path, kind)
    card = SamCard.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)
    plan = SamPlan("sam", SAM_SERIAL, TERMINAL, ENTERPRISE, SamKind.POS, (1, 2), START, EXPIRY)
    make_sam(card, plan, rig.initial, rig.store, MemorySteps())
    hard, soft = CardSam(card), SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL)
    assert hard.info() == soft.info() == SamInfo(SAM_SERIAL, TERMINAL, ENTERPRISE)
    dice = Random(3)
    for version in (1, 2):
        factor, challenge = dice.randbytes(8), dice.randbytes(8)
        assert hard.card_answer(factor, version, challenge) == soft.card_answer(factor, version, challenge)
        args = (Purpose.TERMINAL, factor, version, challenge)
        assert hard.authenticate(*args) == soft.authenticate(*args)
        init = PurchaseInit(900, 7, 0, version, kind, dice.randbytes(4))
        assert hard.purchase_mac1(init, 5, ED, WHEN, factor) == soft.purchase_mac1(init, 5, ED, WHEN, factor)
    assert pay(hard, rig, ED, 20) == pay(soft, rig, ED, 20)
    assert pay(hard, rig, EP, 30) == pay(soft, rig, EP, 30)
    assert refund(hard, rig, LOAD_ED, 20) == refund(soft, rig, LOAD_ED, 20)
    assert refund(hard, rig, LOAD_EP, 30) == refund(soft, rig, LOAD_EP, 30)


def test_enterprises_are_apart(tmp_path: Path) -> None:
    """Two enterprises of one store: no answer of one is right for the other."""
    rig = Rig(tmp_path)
    other = SoftSam(rig.store, ENTERPRISE + 1, TERMINAL, SAM_SERIAL)
    assert issuer_id(ENTERPRISE) != issuer_id(ENTERPRISE + 1)
    for version in (1, 2):
        ours = rig.host.card_answer(SERIAL, version, bytes(8))
        assert ours != other.card_answer(SERIAL, version, bytes(8))


def test_memory_protocol(tmp_path: Path) -> None:
    """Both memories give back what was saved, and nothing at first."""
    memories: list[SamMemory] = [VolatileMemory(), FileMemory(tmp_path / "memory")]
    for memory in memories:
        assert memory.load() == b""
        memory.save(b"one")
        memory.save(b"two")
        assert memory.load() == b"two"
