"""The issuing SAM: the same answers as the key store's, a card personalised with it alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.crypto.keys import pad80
from cardlib.errors import MacMismatch, Refused, StatusError
from cardlib.profile import Purpose, TransactionType
from cardlib.sam import Host, IssuingSam, LoadInit, PurchaseInit, purchase_seed
from keymgmt.personalise import personalise, prove, prove_at_host
from keymgmt.samload import HOLDS, SamKind, SamPlan, make_sam
from keymgmt.slot import open_slot
from keymgmt.softsam import SoftSam
from keymgmt.steps import MemorySteps
from keymgmt.wash import wash
from simulator.sam import SamCard
from tests.keymgmt.rig import ENTERPRISE, EXPIRY, SAM_SERIAL, SERIAL, START, TERMINAL, TRANSPORT_KEY, Rig
from tests.vectors import algorithm, by_category, raw

WHEN = bytes.fromhex("20250301093045")
PIN = bytes.fromhex("246810")
ALGORITHMS = pytest.mark.parametrize("kind", [Algorithm.TDES, Algorithm.SM4], ids=lambda a: a.name)
SIZES = (0, 1, 6, 7, 8, 14, 15, 16, 30, 39, 100)


def issuing(rig: Rig) -> tuple[IssuingSam, SamCard]:
    """An issuing SAM with both key sets, opened."""
    card = SamCard.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)
    plan = SamPlan("sam", SAM_SERIAL, TERMINAL, ENTERPRISE, SamKind.ISSUING, (1, 2), START, EXPIRY, pin=PIN)
    make_sam(card, plan, rig.initial, rig.store, MemorySteps())
    card.reset()
    return IssuingSam(card, lambda: PIN), card


@ALGORITHMS
def test_same_answers_as_the_store(tmp_path: Path, kind: Algorithm) -> None:
    """Card answer, cryptograms of terminal and control key, MAC1, protected commands: byte for byte, both key sets."""
    rig, dice = Rig(tmp_path, kind), Random(4)
    hard, soft = issuing(rig)[0], SoftSam(rig.store, ENTERPRISE, TERMINAL, SAM_SERIAL)
    assert hard.info() == soft.info()
    for version in (1, 2):
        factor, challenge = dice.randbytes(8), dice.randbytes(8)
        assert hard.card_answer(factor, version, challenge) == soft.card_answer(factor, version, challenge)
        for purpose in (Purpose.TERMINAL, Purpose.CONTROL):
            for size in (4, 8):
                args = (purpose, factor, version, challenge[:size])
                assert hard.authenticate(*args) == soft.authenticate(*args)
        init = PurchaseInit(900, 7, 0, version, kind, dice.randbytes(4))
        given = (init, 5, TransactionType.PURCHASE_EP, WHEN, factor)
        assert hard.purchase_mac1(*given) == soft.purchase_mac1(*given)
        assert hard.open_seq == soft.open_seq
        session = rig.expected(Purpose.PURCHASE, version, factor).session(purchase_seed(init, hard.open_seq or 0))
        mac2 = session.mac((5).to_bytes(4, "big"))
        hard.verify_mac2(mac2)
        soft.verify_mac2(mac2)
        hard.purchase_mac1(*given)
        soft.purchase_mac1(*given)
        with pytest.raises(MacMismatch):
            hard.verify_mac2(bytes(4))
        for purpose in (Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK):
            for size in SIZES:
                for encrypt in (False, True):
                    header, data, rand = bytes.fromhex("04D69500"), dice.randbytes(size), dice.randbytes(4)
                    wanted = soft.protect(purpose, factor, version, header, data, rand, encrypt)
                    assert hard.protect(purpose, factor, version, header, data, rand, encrypt) == wanted
    assert not hard.failed


@ALGORITHMS
def test_protect_is_the_formula(tmp_path: Path, kind: Algorithm) -> None:
    """E is ECB over LD || data padded when not aligned, MAC over header, Lc' and E with the challenge as IV."""
    rig, rand = Rig(tmp_path, kind), bytes.fromhex("A1B2C3D4")
    hard, _ = issuing(rig)
    for purpose, header in ((Purpose.MAINTENANCE, "04D69500"), (Purpose.PIN_UNBLOCK, "84240000")):
        key, head = rig.expected(purpose), bytes.fromhex(header)
        for size in SIZES:
            data = bytes(range(size))
            clear = bytes([size]) + data
            sealed = key.encrypt(clear if len(clear) % key.block == 0 else pad80(clear, key.block))
            for encrypt, body in ((False, data), (True, sealed)):
                signed = pad80(head + bytes([len(body) + 4]) + body, key.block)
                mac = key.mac_padded(signed, rand.ljust(key.block, b"\0"))[:4]
                assert hard.protect(purpose, SERIAL, 1, head, data, rand, encrypt) == body + mac


class Steered:
    """A SAM whose next derived key is the vector's, whatever it derived itself."""

    def __init__(self, card: SamCard, key: Key) -> None:
        self.card, self.key, self.atr = card, key, card.atr

    def transceive(self, command: bytes) -> bytes:
        answer = self.card.transceive(command)
        if command[:2] == b"\x80\x1a" and answer == b"\x90\0":
            self.card.derived = (command[2] & 0x1F, self.key)
        return answer

    def close(self) -> None:
        self.card.close()


@pytest.mark.parametrize(
    "vector", [v for v in by_category("secure-messaging") if "capdu" in v["output"]], ids=lambda v: v["id"]
)
def test_secure_messaging_vectors(tmp_path: Path, vector: dict[str, Any]) -> None:
    """The SAM's command data are those of each secure-messaging vector: 3DES, DES and SM4, MAC only and enciphered."""
    alg, v, out = algorithm(vector), raw(vector["inputs"]), raw(vector["output"])
    rig = Rig(tmp_path, Algorithm.SM4 if alg == Algorithm.SM4 else Algorithm.TDES)
    _, card = issuing(rig)
    hard = IssuingSam(Steered(card, make_key(v["key"], alg)), lambda: PIN)
    header, data = v["header"][:4], v.get("data", b"")
    body = hard.protect(Purpose.MAINTENANCE, SERIAL, 1, header, data, v["rand"], "enc" in out)
    assert body == out.get("enc", data) + out.get("mac", out.get("cmd_mac", b""))
    assert out["capdu"].startswith(v["header"] + body)


@ALGORITHMS
def test_a_card_personalised_with_it_alone(tmp_path: Path, kind: Algorithm) -> None:
    """The issuing SAM writes contents, proves what it can, and names the rest, which the host then proves."""
    rig = Rig(tmp_path, kind)
    sam, chip = issuing(rig)
    card = rig.card()
    wash(card, rig.wash_plan, rig.store, rig.steps)
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    station = replace(rig.station, host=sam)
    personalise(card, rig.personal_plan, station)
    assert "complete" in rig.steps.steps("issue")
    left = prove(card, rig.personal_plan, station)
    assert set(left) == {Purpose.RECHARGE, Purpose.LOAD, Purpose.REFUND, Purpose.UNLOAD, Purpose.TAC}
    prove_at_host(card, SERIAL, ENTERPRISE, rig.station)
    assert not rig.moves.open
    assert not sam.failed
    chip.reset()
    assert IssuingSam(chip, lambda: PIN).card_answer(SERIAL, 1, bytes(8)) == sam.card_answer(SERIAL, 1, bytes(8))


def test_what_it_holds_and_refuses(tmp_path: Path) -> None:
    """It holds the keys of profile.md's table and no other; what only the host does is refused, not answered wrong."""
    rig = Rig(tmp_path)
    sam, _ = issuing(rig)
    assert {purpose for purpose in Purpose if sam.holds(purpose)} == set(HOLDS[SamKind.ISSUING])
    assert {purpose for purpose in Purpose if sam.holds(purpose)} == {
        Purpose.CONTROL, Purpose.TERMINAL, Purpose.CARD, Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK, Purpose.PURCHASE,
    }  # fmt: skip
    init, when, factor = LoadInit(900, 7, 1, 0, b"rand", bytes(4)), WHEN, SERIAL
    kind = TransactionType.LOAD_EP
    refused: list[Callable[[], object]] = [
        lambda: sam.load_mac2(init, 5, kind, TERMINAL, when, factor),
        lambda: sam.unload_mac2(init, 5, TERMINAL, when, factor),
        lambda: sam.verify_mac3(init, 5, TERMINAL, when, factor, bytes(4)),
        lambda: sam.verify_tac(factor, 1, 0, bytes(22), bytes(4)),
    ]
    refused += [
        lambda purpose=purpose: sam.authenticate(purpose, factor, 1, bytes(8))  # type: ignore[misc]  # a default binds it
        for purpose in Purpose
        if purpose not in (Purpose.TERMINAL, Purpose.RECHARGE, Purpose.CONTROL)
    ]
    refused += [
        lambda purpose=purpose: sam.protect(purpose, factor, 1, bytes(4), b"", bytes(4))  # type: ignore[misc]  # as above
        for purpose in Purpose
        if purpose not in (Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK)
    ]
    for act in refused:
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.reason == "key_usage"
    with pytest.raises(StatusError, match="6A88"):
        sam.authenticate(Purpose.RECHARGE, factor, 1, bytes(8))
    with pytest.raises(StatusError, match="9403"):
        sam.protect(Purpose.MAINTENANCE, factor, 9, bytes(4), b"", bytes(4))
    with pytest.raises(StatusError, match="6A88"):
        sam.refund_mac2(init, 5, kind, when, factor)
    assert not sam.failed
    host: Host = sam
    assert host.info().terminal == TERMINAL
