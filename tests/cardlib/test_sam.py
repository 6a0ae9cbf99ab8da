"""SAMs: the exact APDUs of card.md §7 and keys.md, the simulated PSAM, and the pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from cardlib.crypto.keys import make_key
from cardlib.errors import CardRemoved, FormatError, LineTimeout, MacMismatch, Refused, StatusError
from cardlib.profile import PsamApplication, PsamIdentity, Purpose, TransactionType, issuer_id
from cardlib.sam import (
    CardSam,
    LoadInit,
    PurchaseInit,
    SamInfo,
    SamPool,
    load_mac1_input,
    load_mac2_input,
    load_seed,
    purchase_mac1_input,
    purchase_seed,
)
from cardlib.transport import Replay, Transport
from simulator.sam import SamCard
from tests.cardlib.world import (
    CARD_SERIAL,
    ENTERPRISE,
    PIN,
    SAM_SERIAL,
    TERMINAL,
    WHEN,
    KeyHost,
    make_sam,
    masters,
)
from tests.vectors import algorithm, by_category, raw

OK = b"\x90\x00"
OPENING = (
    (bytes.fromhex("00A40000023F0000"), OK),
    (bytes.fromhex("00B0950000"), PsamIdentity(bytes(2) + SAM_SERIAL, 1, 0).encode() + OK),
    (bytes.fromhex("00B0960000"), TERMINAL + OK),
    (bytes.fromhex("00A4000002100100"), OK),
    (bytes.fromhex("00B0970000"), PsamApplication(1, issuer_id(ENTERPRISE), bytes(8), None, None).encode() + OK),
    (bytes.fromhex("0020000003123456"), OK),
    (bytes.fromhex("80EA000000"), bytes.fromhex("0401000000000402040000000201000000000202040000009000")),
)


def opened(*pairs: tuple[str | bytes, str | bytes]) -> CardSam:
    """A SAM that was opened and now expects exactly these commands. Keys 04 and 02: version 1 3DES, 2 SM4."""
    return CardSam(Replay([*OPENING, *((_raw(c), _raw(a)) for c, a in pairs)]), lambda: PIN)


def _raw(value: str | bytes) -> bytes:
    return bytes.fromhex(value) if isinstance(value, str) else value


def _purchase(vector: dict[str, Any]) -> tuple[PurchaseInit, int, TransactionType, bytes]:
    v = raw(vector["inputs"])
    balance, seq = v.get("old_balance", bytes(4)), v["offline_seq_before"]
    version, alg = v.get("key_version", b"\1"), v.get("alg_id", bytes([algorithm(vector)]))
    init = PurchaseInit.decode(balance + seq + bytes(3) + version + alg + v["rand"])
    return init, int.from_bytes(v["amount"], "big"), TransactionType(v["type"][0]), v["date"] + v["time"]


def test_opening_asks_who_the_sam_is() -> None:
    """Serial, terminal number and enterprise come from 0015, 0016 and 0017; the PIN is verified, keys are listed."""
    sam = opened()
    assert sam.info() == SamInfo(SAM_SERIAL, TERMINAL, ENTERPRISE)
    sam.transport.close()


def test_a_sam_of_nobody_is_refused() -> None:
    """A terminal number of another size or a foreign issuer is FormatError, not a strange SAM."""
    for at, answer in ((2, TERMINAL[:5] + OK), (4, PsamApplication(1, bytes(8), bytes(8), None, None).encode() + OK)):
        script = list(OPENING)
        script[at] = (script[at][0], answer)
        with pytest.raises(FormatError):
            CardSam(Replay(script), lambda: PIN)


@pytest.mark.parametrize(
    "vector",
    [v for v in by_category("purchase", "withdraw") if "psam_8070_capdu" in v["output"]],
    ids=lambda v: v["id"],
)
def test_8070_and_8072_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """MAC1 and MAC2 commands of the vectors, byte for byte (they have two factors, serial first)."""
    init, amount_fen, kind, when = _purchase(vector)
    v, out = raw(vector["inputs"]), raw(vector["output"])
    sam = opened((out["psam_8070_capdu"], out["psam_8070_rdata"] + OK), (out["psam_8072_capdu"], OK))
    seq, mac1 = sam.purchase_mac1(init, amount_fen, kind, when, v["card_factor"] + v["issuer_factor"])
    assert seq.to_bytes(4, "big") + mac1 == out["psam_8070_rdata"]
    assert sam.open_seq == seq
    sam.verify_mac2(out["mac2"])
    sam.transport.close()


@pytest.mark.parametrize("vector", by_category("psam"), ids=lambda v: v["id"])
def test_8070_of_one_to_three_levels(vector: dict[str, Any]) -> None:
    """One factor, as enterprise keys in a SAM have, up to three."""
    factors = b"".join(bytes.fromhex(f) for f in vector["inputs"]["factors_in_apdu_order"])
    init = PurchaseInit(0, 4, 0, 1, 0, bytes.fromhex("11223344"))
    out = raw(vector["output"])
    sam = opened((out["capdu_8070"], out["rdata_8070"] + OK), (out["capdu_8072"], OK))
    assert sam.purchase_mac1(init, 0x4E2, TransactionType.PURCHASE_EP, WHEN, factors)[1] == out["rdata_8070"][4:]
    sam.verify_mac2(out["capdu_8072"][5:])
    sam.transport.close()


def test_card_authentication_derives_then_enciphers() -> None:
    """801A with usage 27, 2A, 2B and 80FA (card.md §7.5); an SM4 challenge is extended and its halves are XORed."""
    serial, rand = CARD_SERIAL.hex(), "0102030405060708"
    sam = opened(
        (f"801A270108{serial}", OK),
        (f"80FA000008{rand}08", "11223344556677889000"),
        (f"801A2A0108{serial}", OK),
        (f"80FA000008{rand}08", "11223344556677889000"),
        (f"801A2B0108{serial}", OK),
        (f"80FA00000801020304{'00' * 4}08", "11223344556677889000"),
        (f"801A270208{serial}", OK),
        (f"80FA000010{rand}{'00' * 8}10", "11223344556677880102030405060708" + "9000"),
        (f"801A2A0208{serial}", OK),
        (f"80FA000010{rand}{'00' * 8}10", "11223344556677880102030405060708" + "9000"),
    )
    challenge, plain = bytes.fromhex(rand), bytes.fromhex("1122334455667788")
    assert sam.card_answer(CARD_SERIAL, 1, challenge) == plain
    assert sam.authenticate(Purpose.TERMINAL, CARD_SERIAL, 1, challenge) == plain
    assert sam.authenticate(Purpose.RECHARGE, CARD_SERIAL, 1, challenge[:4]) == plain
    assert sam.card_answer(CARD_SERIAL, 2, challenge) == plain + challenge
    assert sam.authenticate(Purpose.TERMINAL, CARD_SERIAL, 2, challenge).hex() == "1020304050607080"
    sam.transport.close()
    with pytest.raises(Refused):
        opened().authenticate(Purpose.CONTROL, CARD_SERIAL, 1, challenge)


def test_refund_sends_what_the_card_said_and_the_load() -> None:
    """8074 carries the card's INITIALIZE answer as it is, then amount, type, time and factor (keys.md)."""
    init = LoadInit(8750, 3, 1, 0, b"RAND", b"MAC1")
    data = init.encode() + bytes.fromhex("000004E2 02") + WHEN + CARD_SERIAL
    assert len(data) == 0x24
    sam = opened((b"\x80\x74\0\0\x24" + data + b"\4", b"MAC2" + OK))
    assert sam.refund_mac2(init, 0x4E2, TransactionType.LOAD_EP, WHEN, CARD_SERIAL) == b"MAC2"
    sam.transport.close()


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [("9302", MacMismatch, False), ("6901", Refused, True), ("6985", Refused, False), ("6581", StatusError, True)],
)
def test_what_8072_answers_becomes_the_right_error(status: str, error: type[Exception], failed: bool) -> None:
    """A wrong MAC2, a lost session and a sick SAM are three things; only the last ones open the SAM anew."""
    sam = opened(("807200000401020304", status))
    with pytest.raises(error):
        sam.verify_mac2(b"\1\2\3\4")
    assert sam.failed is failed
    assert sam.open_seq is None


def test_lost_sam_and_strange_answers_mark_it_failed() -> None:
    """A pulled SAM, and one whose answer has another length, are opened anew by the pool."""
    for answer, error in ((b"", CardRemoved), (OK, FormatError)):
        sam = opened((f"801A270108{CARD_SERIAL.hex()}", OK), (b"\x80\xfa\0\0\x08" + bytes(8) + b"\x08", answer))
        with pytest.raises(error):
            sam.card_answer(CARD_SERIAL, 1, bytes(8))
        assert sam.failed


def test_formulas_are_those_of_the_vectors() -> None:
    """Session seeds and MAC inputs shared by host and terminal enter exactly the vectors' bytes."""
    for vector in by_category("purchase", "withdraw", "capp"):
        init, amount_fen, kind, when = _purchase(vector)
        v, middle = raw(vector["inputs"]), raw(vector["intermediate"])
        if "mac1_input" in middle:
            assert purchase_mac1_input(amount_fen, kind, v["terminal"], when) == middle["mac1_input"]
        if "session_input" in middle:
            assert purchase_seed(init, int.from_bytes(v["terminal_seq"], "big")) == middle["session_input"]
    for vector in by_category("load", "unload"):
        out, middle = raw(vector["output"]), raw(vector["intermediate"])
        v = raw(vector["inputs"])
        load = LoadInit.decode(out["init_rdata"])
        amount, kind = int.from_bytes(v["amount"], "big"), TransactionType(v["type"][0])
        assert load_mac1_input(load, amount, kind, v["terminal"]) == middle["mac1_input"]
        assert load_mac2_input(amount, kind, v["terminal"], v["date"] + v["time"]) == middle["mac2_input"]
        key = make_key(v.get("dlk") or v["duk"], algorithm(vector))
        session = key.session(load_seed(load))
        assert session._value == out["session_key"]
        assert session.mac(middle["mac1_input"]) == load.mac1 == out["mac1"]


# The simulated PSAM


@pytest.mark.parametrize("algorithm_id", [0, 4])
def test_the_simulated_sam_computes_what_the_keys_say(algorithm_id: int) -> None:
    """CardSam over the simulated PSAM gives the same bytes as the keys themselves, for every verb."""
    keys = masters(1, algorithm_id)
    sam = CardSam(make_sam(keys, Random(2)), lambda: PIN)
    host = KeyHost(lambda purpose, _, factor: keys[purpose].diversify(factor))
    challenge = bytes(range(8))
    assert sam.info() == host.info()
    assert sam.card_answer(CARD_SERIAL, 1, challenge) == host.card_answer(CARD_SERIAL, 1, challenge)
    for purpose in (Purpose.TERMINAL, Purpose.RECHARGE):
        cryptogram = sam.authenticate(purpose, CARD_SERIAL, 1, challenge)
        assert cryptogram == host.authenticate(purpose, CARD_SERIAL, 1, challenge)
    init = PurchaseInit(10000, 4, 0, 1, algorithm_id, b"RAND")
    given = (init, 1250, TransactionType.PURCHASE_EP, WHEN, CARD_SERIAL)
    assert sam.purchase_mac1(*given) == host.purchase_mac1(*given)
    assert sam.open_seq == host.open_seq == 1
    mac2 = keys[Purpose.PURCHASE].diversify(CARD_SERIAL).session(purchase_seed(init, 1)).mac(bytes.fromhex("000004E2"))
    sam.verify_mac2(mac2)
    session = keys[Purpose.REFUND].diversify(CARD_SERIAL).session(b"RAND\0\3\x80\0")
    load = LoadInit(8750, 3, 1, algorithm_id, b"RAND", bytes(4))
    mac1 = session.mac(load_mac1_input(load, 1250, TransactionType.LOAD_EP, TERMINAL))
    load = LoadInit(8750, 3, 1, algorithm_id, b"RAND", mac1)
    back = (load, 1250, TransactionType.LOAD_EP, WHEN, CARD_SERIAL)
    assert sam.refund_mac2(*back) == host.refund_mac2(*back)
    with pytest.raises(MacMismatch):
        sam.refund_mac2(LoadInit(8750, 3, 1, algorithm_id, b"RAND", bytes(4)), *back[1:])
    assert not sam.failed


def test_the_simulated_sam_without_its_pin_does_nothing() -> None:
    """Keys of a SAM with a terminal PIN can't be used before VERIFY; a wrong PIN is a StatusError with tries."""
    card = make_sam(masters(), Random(2))
    with pytest.raises(StatusError, match="63C2"):
        CardSam(card, lambda: bytes.fromhex("000000"))
    sam = CardSam(card)
    with pytest.raises(StatusError, match="6982"):
        sam.card_answer(CARD_SERIAL, 1, bytes(8))
    assert sam.failed


# The pool


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def __call__(self) -> int:
        return self.ms


class Opener:
    """Opens one simulated SAM and counts; ``broken`` makes it fail."""

    def __init__(self) -> None:
        self.card = make_sam(masters(), Random(3))
        self.opened = 0
        self.broken = False

    def __call__(self) -> CardSam:
        self.opened += 1
        if self.broken:
            raise CardRemoved("no SAM in the socket")
        self.card.reset()
        return CardSam(self.card, lambda: PIN)


def test_a_lease_is_exclusive_and_waits() -> None:
    """With two SAMs and eight users nobody ever shares one, and everybody is served."""
    openers = [Opener(), Opener()]
    pool = SamPool(openers)
    in_use: set[int] = set()
    errors: list[str] = []
    lock = threading.Lock()
    served = [0]

    def use() -> None:
        for _ in range(20):
            with pool.lease(20_000) as sam:
                with lock:
                    if id(sam) in in_use:
                        errors.append("shared")
                    in_use.add(id(sam))
                init = PurchaseInit(1, served[0] & 0xFFFF, 0, 1, 0, b"RAND")
                sam.purchase_mac1(init, 1, TransactionType.PURCHASE_EP, WHEN, CARD_SERIAL)
                time.sleep(0.0005)  # others get their turn while this one is in use
                with lock:
                    in_use.discard(id(sam))
                    served[0] += 1

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert served[0] == 160
    assert [o.opened for o in openers] == [1, 1]
    assert sum(int.from_bytes(o.card.counter.value, "big") - 1 for o in openers) == 160


def test_waiting_is_bounded() -> None:
    """When all SAMs stay in use the wait ends with LineTimeout; zero means not at all."""
    pool = SamPool([Opener()])
    with pool.lease():
        for timeout_ms in (0, 30):
            with pytest.raises(LineTimeout, match="in use"), pool.lease(timeout_ms):
                pass


def test_a_waiter_gets_the_sam_when_it_comes_back() -> None:
    """A waiting thread is woken by the return, not by its timeout."""
    pool = SamPool([Opener()])
    got = threading.Event()

    def wait() -> None:
        with pool.lease(20_000):
            got.set()

    with pool.lease():
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.05)
    assert got.wait(10)
    thread.join(10)


def test_after_an_error_of_the_sam_it_is_opened_anew() -> None:
    """A SAM that was pulled is reset before its next lease; an error of the card in the block changes nothing."""
    opener = Opener()
    pool = SamPool([opener])
    with pool.lease() as sam:
        opener.card.power_off()
        with pytest.raises(CardRemoved):
            sam.card_answer(CARD_SERIAL, 1, bytes(8))
    with pool.lease() as sam:
        assert sam.card_answer(CARD_SERIAL, 1, bytes(8))
    assert opener.opened == 2
    with pytest.raises(MacMismatch), pool.lease():
        raise MacMismatch("the card lied")
    with pool.lease():
        assert opener.opened == 2


def test_a_sam_that_does_not_open_stays_aside() -> None:
    """Quarantine: the other SAM serves; with none left the refusal says why; after the time it is tried again."""
    clock, bad, good = Clock(), Opener(), Opener()
    bad.broken = True
    pool = SamPool([bad, good], quarantine_ms=10_000, now_ms=clock)
    for _ in range(3):
        with pool.lease() as sam:
            assert sam.transport is good.card
    assert bad.opened == 1
    alone = SamPool([bad], quarantine_ms=10_000, now_ms=clock)
    for _ in range(2):
        with pytest.raises(Refused, match="no SAM in the socket"), alone.lease():
            pass
    assert bad.opened == 2
    bad.broken = False
    clock.ms += 10_000
    with alone.lease() as sam:
        assert sam.transport is bad.card


def test_an_empty_or_closed_pool_says_so() -> None:
    """No SAM fitted and a pool that was closed refuse; closing takes free SAMs now and leased ones when they return."""
    with pytest.raises(Refused, match="none is fitted"), SamPool([]).lease():
        pass
    opener = Opener()
    pool = SamPool([opener])
    with pool.lease() as sam:
        pool.close()
        assert sam.card_answer(CARD_SERIAL, 1, bytes(8))
    assert not opener.card.power.on
    with pytest.raises(Refused) as caught, pool.lease():
        pass
    assert caught.value.reason == "sam_pool_closed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_opening_gives_the_slot_back(error: type[BaseException]) -> None:
    """Even an interruption while opening leaves no slot taken for ever."""
    opener = Opener()
    first: list[Callable[[], CardSam]] = []

    def interrupted() -> CardSam:
        if not first:
            first.append(opener)
            raise error
        return opener()

    clock = Clock()
    pool = SamPool([interrupted], quarantine_ms=5, now_ms=clock)
    with pytest.raises(error), pool.lease():
        pass
    clock.ms += 5
    with pool.lease() as sam:
        transport: Transport = sam.transport
        assert isinstance(transport, SamCard)
