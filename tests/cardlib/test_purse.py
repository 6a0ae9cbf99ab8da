"""Money on a card: the vectors' exact APDUs, then whole moves between the simulated card, SAM and a host."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from cardlib import iso7816 as iso
from cardlib.apdu import Command
from cardlib.crypto.keys import Key, make_key
from cardlib.errors import CardRemoved, FormatError, MacMismatch, OutcomeUnknown, Refused, StatusError
from cardlib.profile import DayCounters, LogRecord, PublicInfo, Purpose, Purse, TransactionType, aid, issuer_id
from cardlib.purse import (
    CardSession,
    MoneyRequest,
    Receipt,
    balance,
    composite_debit,
    debit,
    identify,
    load,
    open_application,
    prove,
    read_log,
    recover,
    undo_offline,
    unload,
    withdraw,
)
from cardlib.records import Event, Outcome, Transaction, tac_input
from cardlib.sam import CardSam, PurchaseInit, SamInfo
from cardlib.transport import Decorator, Replay, Tearing, Transport
from tests.cardlib.world import (
    CARD_SERIAL,
    ENTERPRISE,
    PIN,
    SAM_SERIAL,
    TERMINAL,
    WHEN,
    KeyHost,
    MemoryJournal,
    World,
    make_sam,
    request,
)
from tests.vectors import algorithm, by_category, raw

OK = b"\x90\x00"
VECTORS = {
    TransactionType.PURCHASE_ED: debit,
    TransactionType.PURCHASE_EP: debit,
    TransactionType.WITHDRAW: withdraw,
}


# The vectors, byte for byte


def _host(vector: dict[str, Any], terminal_seq: int = 1) -> KeyHost:
    """A host whose card keys are the vector's."""
    v = raw(vector["inputs"])
    names = {Purpose.PURCHASE: "dpk", Purpose.LOAD: "dlk", Purpose.UNLOAD: "duk", Purpose.TAC: "dtk"}

    def key(purpose: Purpose, version: int, factor: bytes) -> Key:
        return make_key(v[names[purpose]], algorithm(vector))

    host = KeyHost(key, SamInfo(SAM_SERIAL, v["terminal"], ENTERPRISE))
    host._seq = terminal_seq
    return host


def _session(version: int = 1, purpose: Purpose | None = Purpose.TERMINAL) -> CardSession:
    serial = bytes(2) + CARD_SERIAL
    info = PublicInfo(issuer_id(ENTERPRISE), 3, version, serial, date(2024, 1, 1), date(2034, 1, 1))
    return CardSession(ENTERPRISE, info, purpose)


def _asked(vector: dict[str, Any]) -> tuple[TransactionType, MoneyRequest]:
    v = raw(vector["inputs"])
    kind = TransactionType(v["type"][0])
    return kind, MoneyRequest(kind.purse, int.from_bytes(v["amount"], "big"), v["date"] + v["time"], 1)


@pytest.mark.parametrize(
    "vector",
    [v for v in by_category("purchase", "withdraw", "capp") if "debit_capdu" in v["output"]],
    ids=lambda v: v["id"],
)
def test_payments_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """INITIALIZE, UPDATE CAPP CACHE and DEBIT byte for byte; MAC2 is verified, the TAC and balances journaled."""
    v, out = raw(vector["inputs"]), raw(vector["output"])
    kind, asked = _asked(vector)
    cache = [(out["update_cache_capdu"], OK)] if "update_cache_capdu" in out else []
    script = [(out["init_capdu"], out["init_rdata"] + OK), *cache, (out["debit_capdu"], out["debit_rdata"] + OK)]
    card, journal = Replay(script), MemoryJournal()
    host = _host(vector, int.from_bytes(v["terminal_seq"], "big"))
    if kind == TransactionType.COMPOSITE:
        receipt = composite_debit(card, host, journal, _session(), asked, [v["capp_record"]])
    else:
        receipt = VECTORS[kind](card, host, journal, _session(), asked)
    card.close()
    move = receipt.move
    assert (move.tac, move.mac2_verified, move.kind) == (out["tac"], True, kind)
    assert move.balance_after_fen.to_bytes(4, "big") == out["new_balance"]
    assert tac_input(move) == raw(vector["intermediate"])["tac_input"]
    assert [e.event for e in journal.entries] == [Event.INTENT, Event.COMMITTED]
    proof = prove(Replay([(out["gtp_capdu"], out["gtp_rdata"] + OK)]), kind, move.card_seq + 1)
    assert proof == (out["mac2"], out["tac"])
    record = LogRecord.decode(out["log_record_after_rule"])
    assert (record.seq, record.amount_fen, record.kind) == (move.card_seq + 1, move.amount_fen, kind)
    assert (record.terminal, record.when) == (move.terminal, move.when)


@pytest.mark.parametrize("vector", by_category("load", "unload"), ids=lambda v: v["id"])
def test_loads_and_unloads_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """MAC1 is checked, MAC2 sent and TAC or MAC3 verified as the vector has them."""
    out = raw(vector["output"])
    kind, asked = _asked(vector)
    second = out.get("credit_capdu") or out["debit_capdu"]
    proof = out.get("credit_rdata") or out["debit_rdata"]
    card, journal = Replay([(out["init_capdu"], out["init_rdata"] + OK), (second, proof + OK)]), MemoryJournal()
    act = unload if kind == TransactionType.UNLOAD else load
    receipt = act(card, _host(vector), journal, _session(), asked)
    card.close()
    assert (receipt.move.tac, receipt.move.mac2_verified, receipt.move.terminal_seq) == (proof, True, 0)
    assert receipt.move.balance_after_fen.to_bytes(4, "big") == out["new_balance"]
    if "gtp_capdu" in out:
        answer = prove(Replay([(out["gtp_capdu"], out["gtp_rdata"] + OK)]), kind, receipt.move.card_seq + 1)
        assert answer == (bytes(4), proof)


def test_a_wrong_mac1_stops_a_load_before_anything_is_written() -> None:
    """The card must prove itself before the host gives MAC2; the journal stays empty."""
    vector = by_category("load")[0]
    out = raw(vector["output"])
    spoilt = out["init_rdata"][:-1] + bytes([out["init_rdata"][-1] ^ 1])
    journal = MemoryJournal()
    with pytest.raises(MacMismatch):
        load(Replay([(out["init_capdu"], spoilt + OK)]), _host(vector), journal, _session(), _asked(vector)[1])
    assert not journal.entries


# Opening an application


class Counting(Decorator):
    """Counts what reaches the card, and may change what it answers."""

    def __init__(self, inner: Transport, change: dict[int, bytes] | None = None) -> None:
        super().__init__(inner)
        self.commands: list[bytes] = []
        self.change = change or {}

    def transceive(self, command: bytes) -> bytes:
        self.commands.append(command)
        answer = self.inner.transceive(command)
        return self.change.get(command[1], answer)

    @property
    def instructions(self) -> list[int]:
        return [command[1] for command in self.commands]


@pytest.mark.parametrize("algorithm_id", [0, 4])
@pytest.mark.parametrize("version", [1, 2])
def test_both_sides_authenticate_and_a_payment_works(algorithm_id: int, version: int) -> None:
    """Both algorithms and both key slots: open as terminal, load as recharge authority, pay, undo."""
    world = World(algorithm_id, version)
    world.fill(Purse.MAIN, 5000)
    world.fill(Purse.SUBSIDY, 700)
    session = world.tap()
    paid = debit(world.card, world.sam, world.journal, session, request(Purse.MAIN, 1200, 1))
    assert paid.move.mac2_verified
    assert paid.move.key_version == version
    undo_offline(world.card, world.sam, world.journal, world.tap(), paid.move, request(Purse.MAIN, 0, 2))
    assert (balance(world.card, Purse.MAIN), balance(world.card, Purse.SUBSIDY)) == (5000, 700)


def test_the_card_proves_itself_first() -> None:
    """Order of profile.md: SELECT, 0015 (here in the FCI), INTERNAL, then GET CHALLENGE and EXTERNAL AUTHENTICATE."""
    world = World()
    card = Counting(world.card)
    open_application(card, world.sam, ENTERPRISE, world.random.randbytes)
    assert card.instructions == [0xA4, 0x88, 0x84, 0x82]


def test_without_0015_in_the_fci_it_is_read() -> None:
    """A card whose FCI does not carry 0015 is asked for the file."""
    world = World()
    card = Counting(world.card, {0xA4: bytes.fromhex("6F0F840D") + aid(ENTERPRISE) + OK})
    assert identify(card, ENTERPRISE).factor == CARD_SERIAL
    assert card.instructions == [0xA4, 0xB0]


def test_a_card_that_does_not_prove_itself_gets_no_cryptogram() -> None:
    """A wrong answer to INTERNAL AUTHENTICATE is MacMismatch, and nothing is sent after it."""
    world = World()
    for wrong in (bytes(8) + OK, OK, bytes(16) + OK):
        card = Counting(world.card, {0x88: wrong})
        with pytest.raises(MacMismatch, match="did not prove itself"):
            open_application(card, world.sam, ENTERPRISE, world.random.randbytes)
        assert card.instructions[-1] == 0x88


def test_other_cards_are_refused_with_their_reason() -> None:
    """No application, another issuer in 0015, a blocked card, a blocked application: each has its own code."""
    world = World()
    info = _session().public_info

    def fci(content: bytes, sw: str) -> bytes:
        inner = b"\x9f\x0c" + bytes([len(content)]) + content
        body = b"\x84\x0d" + aid(ENTERPRISE) + b"\xa5" + bytes([len(inner)]) + inner
        return b"\x6f" + bytes([len(body)]) + body + bytes.fromhex(sw)

    select = Command(0x00, 0xA4, 0x04, 0x00, aid(ENTERPRISE), 0).encode()
    cases = {
        "6A82": "no_application",
        "6A81": "card_blocked",
        fci(replace(info, issuer=issuer_id(8)).encode(), "9000").hex(): "foreign_enterprise",
        fci(info.encode(), "6A81").hex(): "application_blocked",
        "6F0F840D" + aid(ENTERPRISE).hex() + "6A81": "application_blocked",
    }
    for answer, reason in cases.items():
        with pytest.raises(Refused) as caught:
            open_application(Replay([(select, bytes.fromhex(answer))]), world.sam, ENTERPRISE, world.random.randbytes)
        assert caught.value.reason == reason
    with pytest.raises(StatusError):
        identify(Replay([(select, b"\x6f\x00")]), ENTERPRISE)
    with pytest.raises(FormatError):
        identify(Replay([(select, fci(info.encode()[:-1], "9000"))]), ENTERPRISE)
    with pytest.raises(Refused) as caught:
        open_application(world.card, world.sam, ENTERPRISE + 1, world.random.randbytes)
    assert caught.value.reason == "no_application"


def test_a_terminal_with_other_keys_is_not_accepted() -> None:
    """A SAM of other keys fails at the card's own proof; a wrong cryptogram at the card (63Cx or the like)."""
    world = World()
    other = {p: make_key(bytes([0xEE, p]) * 8) for p in Purpose}
    stranger = CardSam(make_sam(other, world.random), lambda: PIN)
    with pytest.raises(MacMismatch):
        open_application(world.card, stranger, ENTERPRISE, world.random.randbytes)

    class HalfStranger(KeyHost):
        def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
            return bytes(8)

    with pytest.raises(StatusError):
        open_application(world.card, HalfStranger(world.card_key), ENTERPRISE, world.random.randbytes)


# Moves with the simulated card


@pytest.fixture
def world() -> World:
    world = World()
    world.fill(Purse.MAIN, 10_000)
    world.fill(Purse.SUBSIDY, 2_000)
    return world


def _pay(world: World, purse: Purse, amount_fen: int, second: int = 1) -> Receipt:
    return debit(world.card, world.sam, world.journal, world.tap(), request(purse, amount_fen, second))


def test_every_move_and_its_trace(world: World) -> None:
    """Pay from both purses, withdraw, pay in composite, unload: balances, log, journal and TACs agree."""
    counters = DayCounters.of(date(2024, 8, 15), 2, 1, 300, 300)
    _pay(world, Purse.MAIN, 1250)
    _pay(world, Purse.SUBSIDY, 400, 2)
    withdraw(world.card, world.sam, world.journal, world.tap(), request(Purse.SUBSIDY, 100, 3))
    session = world.tap()
    composite_debit(world.card, world.sam, world.journal, session, request(Purse.MAIN, 300, 4), [counters.encode()])
    unload(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), request(Purse.SUBSIDY, 1500, 5))
    world.tap()
    assert balance(world.card, Purse.MAIN) == 10_000 - 1250 - 300
    assert balance(world.card, Purse.SUBSIDY) == 2_000 - 400 - 100 - 1500
    assert iso.read_record(world.card, 0x0017, 1, by_tag=True) == counters.encode()
    moves = world.journal.moves
    log = read_log(world.card)[::-1]
    assert [(r.seq, r.kind, r.amount_fen, r.when) for r in log] == [
        (m.card_seq + 1, m.kind, m.amount_fen, m.when) for m in moves
    ]
    assert all(m.mac2_verified for m in moves)
    for m in moves:
        if m.kind != TransactionType.UNLOAD:
            world.host.verify_tac(m.card_serial, m.key_version, m.algorithm, tac_input(m), m.tac)
    assert len({m.origin for m in moves}) == len(moves)


def test_what_the_card_refuses_leaves_nothing_behind(world: World) -> None:
    """Too much, a wrong purse, no authority: refused before the journal, balances untouched."""
    session = world.tap()
    entries = len(world.journal.entries)
    with pytest.raises(Refused) as caught:
        debit(world.card, world.sam, world.journal, session, request(Purse.MAIN, 10_001))
    assert caught.value.reason == "balance"
    for act in (withdraw, unload):
        with pytest.raises(Refused):
            act(world.card, world.host, world.journal, session, request(Purse.MAIN, 1))
    with pytest.raises(Refused):
        composite_debit(world.card, world.sam, world.journal, session, request(Purse.SUBSIDY, 1), [])
    with pytest.raises(StatusError, match="6985"):
        load(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), request(Purse.MAIN, 0xFFFFFFFF))
    with pytest.raises(StatusError, match="6982"):
        load(world.card, world.host, world.journal, world.tap(), request(Purse.MAIN, 1))
    with pytest.raises(StatusError, match="6A83"):
        composite_debit(world.card, world.sam, world.journal, world.tap(), request(Purse.MAIN, 1), [b"\x09\x01\x00"])
    assert len(world.journal.entries) == entries
    assert balance(world.card, Purse.MAIN) == 10_000


@pytest.mark.parametrize("balance_fen", [0, 699])
def test_cards_that_lie_about_their_balance_are_refused(balance_fen: int) -> None:
    """A card that accepts more than it says it holds, or a load beyond four bytes, is refused before the journal."""
    journal, session, host = MemoryJournal(), _session(), KeyHost(World().card_key)
    answer = balance_fen.to_bytes(4, "big") + bytes(11) + OK
    with pytest.raises(Refused) as caught:
        debit(Replay([(_init("01", 700, "0F"), answer)]), host, journal, session, request(Purse.MAIN, 700))
    assert caught.value.reason == "balance"
    with pytest.raises(Refused) as caught:
        load(
            Replay([(_init("00", 700, "10"), b"\xff\xff\xff\xff" + bytes(12) + OK)]),
            host,
            journal,
            session,
            request(Purse.MAIN, 700),
        )
    assert caught.value.reason == "maximum_balance"
    unloading = _init("05", 700, "10", "01")
    with pytest.raises(Refused) as caught:
        unload(Replay([(unloading, answer[:15] + b"\0" + OK)]), host, journal, session, request(Purse.SUBSIDY, 700))
    assert caught.value.reason == "balance"
    assert not journal.entries


def _init(p1: str, amount_fen: int, le: str, p2: str = "02") -> bytes:
    return bytes.fromhex(f"8050{p1}{p2}0B01{amount_fen:08X}") + TERMINAL + bytes.fromhex(le)


def test_a_full_counter_is_named() -> None:
    """9402 is a refusal of its own: the card is worn out."""
    card = Replay([(_init("01", 700, "0F"), bytes.fromhex("9402"))])
    with pytest.raises(Refused) as caught:
        debit(card, KeyHost(World().card_key), MemoryJournal(), _session(), request(Purse.MAIN, 700))
    assert caught.value.reason == "counter_full"


def test_the_holders_pin_allows_a_load(world: World) -> None:
    """State 3, by PIN, loads too (profile.md: use right 32)."""
    session = world.tap()
    iso.verify_pin(world.card, PIN)
    load(world.card, world.host, world.journal, session, request(Purse.MAIN, 50, 1))
    assert balance(world.card, Purse.MAIN) == 10_050


def test_a_refused_debit_is_journaled_as_not_done(world: World) -> None:
    """When the card rejects MAC1 (9302) the intent is closed and the money is where it was."""

    class WrongMac1(KeyHost):
        def purchase_mac1(self, *args: Any) -> tuple[int, bytes]:
            return super().purchase_mac1(*args)[0], bytes(4)

    with pytest.raises(StatusError, match="9302"):
        debit(world.card, WrongMac1(world.card_key), world.journal, world.tap(), request(Purse.MAIN, 1))
    assert world.journal.entries[-1].event is Event.NOT_DONE
    assert not world.journal.pending
    world.tap()
    assert balance(world.card, Purse.MAIN) == 10_000


@pytest.mark.parametrize("answer", ["6581", "6400", "6F00", "9000", "0102030405060708", "6281", ""])
def test_an_answer_that_leaves_it_open_is_unknown(world: World, answer: str) -> None:
    """Memory errors, empty success, nonsense, a lost card: OutcomeUnknown with the intent's number, still pending."""
    session = world.tap()
    card = Counting(world.card, {0x54: bytes.fromhex(answer)})
    with pytest.raises(OutcomeUnknown) as caught:
        debit(card, world.sam, world.journal, session, request(Purse.MAIN, 700, 1))
    assert [ref for ref, _ in world.journal.pending] == [caught.value.journal_id]
    ref, move = world.journal.pending[0]
    done = recover(world.card, world.sam, world.journal, world.tap(), ref, move)
    assert (done.outcome, done.mac2_verified) == (Outcome.COMMITTED, True)
    assert balance(world.card, Purse.MAIN) == 9_300


def test_a_wrong_mac2_is_never_a_receipt(world: World) -> None:
    """A hostile card's proof raises MacMismatch; journaled as committed, not verified, for the host to judge."""
    session = world.tap()
    card = Counting(world.card, {0x54: bytes(8) + OK})
    with pytest.raises(MacMismatch):
        debit(card, world.sam, world.journal, session, request(Purse.MAIN, 700, 1))
    entry = world.journal.entries[-1]
    assert entry.event is Event.COMMITTED
    assert isinstance(entry.record, Transaction)
    assert not entry.record.mac2_verified
    with pytest.raises(MacMismatch):
        world.host.verify_tac(CARD_SERIAL, 1, 0, tac_input(entry.record), entry.record.tac)
    with pytest.raises(Refused) as caught:
        undo_offline(world.card, world.sam, world.journal, world.tap(), entry.record, request(Purse.MAIN, 0, 2))
    assert caught.value.reason == "undo_unproven"


def test_a_sam_lost_after_the_debit_leaves_a_receipt_unverified(world: World) -> None:
    """The card has answered: committed; that MAC2 could not be checked is said, not taken for wrong."""
    session = world.tap()

    class Dying(Decorator):
        def transceive(self, command: bytes) -> bytes:
            if command[1] == 0x72:
                raise CardRemoved("SAM pulled")
            return super().transceive(command)

    world.sam.transport = Dying(world.sam_card)
    receipt = debit(world.card, world.sam, world.journal, session, request(Purse.MAIN, 700, 1))
    assert not receipt.move.mac2_verified
    assert world.sam.failed
    assert not world.journal.pending


# Undo


def test_undo_gives_back_exactly_once(world: World) -> None:
    """The load equals the purchase and names it; a second undo is refused by SAM or card."""
    paid = _pay(world, Purse.MAIN, 1250)
    undone = undo_offline(world.card, world.sam, world.journal, world.tap(), paid.move, request(Purse.SUBSIDY, 9, 2))
    assert (undone.move.kind, undone.move.amount_fen) == (TransactionType.LOAD_EP, 1250)
    assert undone.move.undo_of == paid.move.origin
    assert balance(world.card, Purse.MAIN) == 10_000
    with pytest.raises(StatusError):
        undo_offline(world.card, world.sam, world.journal, world.tap(), paid.move, request(Purse.MAIN, 0, 3))
    world.host.verify_tac(CARD_SERIAL, 1, 0, tac_input(undone.move), undone.move.tac)


def test_both_legs_of_a_split_payment_can_be_undone(world: World) -> None:
    """Subsidy first, then main, then both back (profile.md, keys.md REFUND)."""
    session = world.tap()
    legs = [
        debit(world.card, world.sam, world.journal, session, request(Purse.SUBSIDY, 2_000, 1)).move,
        debit(world.card, world.sam, world.journal, session, request(Purse.MAIN, 500, 1)).move,
    ]
    for leg in legs[::-1]:
        undo_offline(world.card, world.sam, world.journal, session, leg, request(leg.purse, 0, 2))
    assert (balance(world.card, Purse.MAIN), balance(world.card, Purse.SUBSIDY)) == (10_000, 2_000)


def test_undo_of_anything_else_is_refused(world: World) -> None:
    """Not the last payment, another card's, a load, an amount that was not paid."""
    first = _pay(world, Purse.MAIN, 100).move
    second = _pay(world, Purse.MAIN, 200, 2).move
    session = world.tap()
    for wrong, reason in (
        (replace(second, card_serial=bytes(8)), "undo_other_card"),
        (replace(second, outcome=Outcome.UNKNOWN), "undo_unproven"),
        (world.journal.moves[0], "undo_unproven"),
    ):
        with pytest.raises(Refused) as caught:
            undo_offline(world.card, world.sam, world.journal, session, wrong, request(Purse.MAIN, 0, 3))
        assert caught.value.reason == reason
    for bad in (first, replace(second, amount_fen=201), replace(second, terminal=bytes(6))):
        with pytest.raises(StatusError, match="6985"):
            undo_offline(world.card, world.sam, world.journal, session, bad, request(Purse.MAIN, 0, 3))
    assert balance(world.card, Purse.MAIN) == 9_700


def test_an_online_undo_is_a_load_that_names_the_purchase(world: World) -> None:
    """The host loads with 3F/01 under recharge authority; the journal says which purchase."""
    paid = _pay(world, Purse.MAIN, 1250).move
    asked = replace(request(Purse.MAIN, 1250, 2), undo_of=paid.origin, request_id="case-17")
    move = load(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), asked).move
    assert (move.undo_of, move.request_id, move.mac2_verified) == (paid.origin, "case-17", True)
    assert balance(world.card, Purse.MAIN) == 10_000


# Recovery: the decision tree of card.md §4.8


def _lose(world: World, purse: Purse = Purse.MAIN, amount_fen: int = 700, *, before: bool) -> tuple[int, Transaction]:
    """A payment whose DEBIT is lost before or after the card ran it."""
    session = world.tap()
    with pytest.raises(OutcomeUnknown):
        debit(
            Tearing(world.card, 2, before=before),
            world.sam,
            world.journal,
            session,
            request(purse, amount_fen, 1),
        )
    return world.journal.pending[-1]


def _elsewhere(world: World, amount_fen: int, times: int = 1, terminal: bytes = bytes(6)) -> None:
    """Payments of the same card at another terminal, whose journal is not ours."""
    other = KeyHost(world.card_key, SamInfo(bytes(8), terminal, ENTERPRISE))
    for _ in range(times):
        debit(world.card, other, MemoryJournal(), world.tap(), request(Purse.MAIN, amount_fen, 1))


def _recover(world: World, sam: CardSam | KeyHost | None = None, purpose: Purpose = Purpose.TERMINAL) -> Transaction:
    ref, move = world.journal.pending[-1]
    return recover(world.card, sam or world.sam, world.journal, world.tap(purpose), ref, move)


def test_proof_kept_and_sam_alive(world: World) -> None:
    """GTP 9000, MAC2 right in the SAM: committed, verified."""
    _lose(world, before=False)
    done = _recover(world)
    assert (done.outcome, done.mac2_verified) == (Outcome.COMMITTED, True)
    world.host.verify_tac(CARD_SERIAL, 1, 0, tac_input(done), done.tac)
    assert not world.journal.pending


def test_proof_kept_and_sam_restarted(world: World) -> None:
    """GTP 9000, the SAM lost its session: committed, not verified, so no undo; the TAC is right."""
    _lose(world, before=False)
    world.sam_card.reset()
    done = _recover(world, CardSam(world.sam_card, lambda: PIN))
    assert (done.outcome, done.mac2_verified) == (Outcome.COMMITTED, False)
    world.host.verify_tac(CARD_SERIAL, 1, 0, tac_input(done), done.tac)


def test_another_sam_with_the_same_number_is_not_asked(world: World) -> None:
    """Two SAMs count alike: only the one that gave MAC1 can judge MAC2; the log confirms."""
    _, move = _lose(world, before=False)
    other = KeyHost(world.card_key, SamInfo(bytes(8), TERMINAL, ENTERPRISE))
    other._seq = move.terminal_seq
    other.purchase_mac1(PurchaseInit(1, 1, 0, 1, 0, b"RAND"), 1, move.kind, WHEN, CARD_SERIAL)
    assert other.open_seq == move.terminal_seq
    done = _recover(world, other)
    assert (done.outcome, done.mac2_verified) == (Outcome.COMMITTED, False)
    world.host.verify_tac(CARD_SERIAL, 1, 0, tac_input(done), done.tac)


def test_counter_not_moved_is_not_done(world: World) -> None:
    """GTP 9406 and the old counter: not done."""
    _lose(world, before=True)
    assert _recover(world).outcome is Outcome.NOT_DONE
    assert not world.journal.pending
    assert balance(world.card, Purse.MAIN) == 10_000


def test_same_proof_number_of_another_terminal_is_not_done(world: World) -> None:
    """Ours was not done and another terminal used the number: its proof must not be taken for ours."""
    for restart in (False, True):
        ref, _ = _lose(world, before=True)
        _elsewhere(world, 700)
        if restart:
            world.sam_card.reset()
            world.sam = CardSam(world.sam_card, lambda: PIN)
        assert _recover(world).outcome is Outcome.NOT_DONE
        assert world.journal.entries[-1].ref == ref


@pytest.mark.parametrize("before", [True, False])
def test_later_payments_elsewhere_leave_the_log_to_tell(world: World, before: bool) -> None:
    """GTP 9406, counter higher: the log record of our number decides."""
    _lose(world, before=before)
    _elsewhere(world, 1, 3)
    done = _recover(world)
    assert done.outcome is (Outcome.NOT_DONE if before else Outcome.COMMITTED)
    assert not done.mac2_verified
    assert not world.journal.pending


@pytest.mark.parametrize("before", [True, False])
def test_when_the_log_has_forgotten_it_stays_unknown(world: World, before: bool) -> None:
    """More than 20 records later nobody can tell: UNKNOWN, pending until settlement."""
    _lose(world, before=before)
    _elsewhere(world, 1, 21)
    assert _recover(world).outcome is Outcome.UNKNOWN
    assert len(world.journal.pending) == 1


def test_purses_and_directions_do_not_hide_each_other(world: World) -> None:
    """Loads and the other purse count apart: they do not disturb the recovery of a payment."""
    _lose(world, before=True)
    world.fill(Purse.MAIN, 5)
    _pay(world, Purse.SUBSIDY, 5, 2)
    ref, move = world.journal.pending[0]
    assert recover(world.card, world.sam, world.journal, world.tap(), ref, move).outcome is Outcome.NOT_DONE


def test_another_card_closes_nothing(world: World) -> None:
    """Recovery with another card is refused; the entry stays."""
    ref, move = _lose(world, before=False)
    with pytest.raises(Refused) as caught:
        recover(world.card, world.sam, world.journal, world.tap(), ref, replace(move, card_serial=bytes(8)))
    assert caught.value.reason == "other_card"
    assert world.journal.pending


@pytest.mark.parametrize("before", [True, False])
def test_a_blocked_application_can_still_prove(world: World, before: bool) -> None:
    """GTP works in a blocked application: done is proven and closed, not done stays open."""
    ref, move = _lose(world, before=before)
    world.tap()
    iso.block_application(world.card, iso.SecureMessaging(world.card_key(Purpose.MAINTENANCE, 1, CARD_SERIAL)))
    world.card.reset()
    session = identify(world.card, ENTERPRISE)
    assert session.blocked
    done = recover(world.card, world.sam, world.journal, session, ref, move)
    assert done.outcome is (Outcome.UNKNOWN if before else Outcome.COMMITTED)
    assert bool(world.journal.pending) is before


@pytest.mark.parametrize("purpose", [Purpose.TERMINAL, Purpose.RECHARGE])
@pytest.mark.parametrize("before", [True, False])
def test_a_torn_undo_is_recovered_by_terminal_and_host(world: World, before: bool, purpose: Purpose) -> None:
    """The counter is asked under the refund key or the load key, whichever we may use; the undo happens once."""
    paid = _pay(world, Purse.MAIN, 1250).move
    session, card = world.tap(), Tearing(world.card, 2, before=before)
    with pytest.raises(OutcomeUnknown):
        undo_offline(card, world.sam, world.journal, session, paid, request(Purse.MAIN, 0, 2))
    done = _recover(world, world.host, purpose)
    assert done.outcome is (Outcome.NOT_DONE if before else Outcome.COMMITTED)
    if before:
        undo_offline(world.card, world.sam, world.journal, world.tap(), paid, request(Purse.MAIN, 0, 3))
    assert balance(world.card, Purse.MAIN) == 10_000


def test_a_torn_undo_after_a_later_payment_asks_the_log(world: World) -> None:
    """The refund key no longer answers once the card paid elsewhere: the log's newest load decides."""
    paid = _pay(world, Purse.MAIN, 1250).move
    session = world.tap()
    with pytest.raises(OutcomeUnknown):
        undo_offline(
            Tearing(world.card, 2, before=True), world.sam, world.journal, session, paid, request(Purse.MAIN, 0, 2)
        )
    _elsewhere(world, 77)
    assert _recover(world).outcome is Outcome.NOT_DONE
    assert balance(world.card, Purse.MAIN) == 10_000 - 1250 - 77


def test_terminal_numbers_come_from_the_sam_unless_the_host_has_one(world: World) -> None:
    """Loads over the air name their own terminal number."""
    asked = replace(request(Purse.MAIN, 5, 1), terminal=bytes.fromhex("AABBCCDDEEFF"))
    move = load(world.card, world.host, world.journal, world.tap(Purpose.RECHARGE), asked).move
    assert move.terminal.hex() == "aabbccddeeff"
    assert move.when != WHEN
    assert _pay(world, Purse.MAIN, 1, 2).move.terminal == TERMINAL


def test_the_own_time_of_a_payment_is_below_a_millisecond() -> None:
    """What the terminal adds to card and SAM, at its best of 40 runs, encoding the journal entries included."""
    vector = next(v for v in by_category("purchase") if "debit_capdu" in v["output"])
    out = raw(vector["output"])
    script = [(out["init_capdu"], out["init_rdata"] + OK), (out["debit_capdu"], out["debit_rdata"] + OK)]
    seq = int.from_bytes(raw(vector["inputs"])["terminal_seq"], "big")
    best_ns = 1 << 62
    for _ in range(40):
        card, host, journal = Replay(script), _host(vector, seq), MemoryJournal()
        start_ns = time.perf_counter_ns()
        debit(card, host, journal, _session(), _asked(vector)[1])
        best_ns = min(best_ns, time.perf_counter_ns() - start_ns)
    assert best_ns < 1_000_000


class _ManInTheMiddle(Decorator):
    """Sits between reader and card: forges the counter that INITIALIZE tells and the newest log record."""

    def __init__(self, inner: Transport, move: Transaction, *, forge_proof: bool = False) -> None:
        super().__init__(inner)
        self.move = move
        self.forge_proof = forge_proof

    def transceive(self, command: bytes) -> bytes:
        """Forge what is not authenticated."""
        answer = self.inner.transceive(command)
        after = (self.move.card_seq + 1).to_bytes(2, "big")
        if command[:2] == b"\x80\x50":
            return answer[:4] + after + answer[6:]
        if command[:2] == b"\x00\xb2" and command[2] == 1:
            m = self.move
            record = LogRecord(m.card_seq + 1, 0, m.amount_fen, m.kind, m.terminal, m.when)
            return record.encode() + b"\x90\x00"
        if command[:2] == b"\x80\x5a" and self.forge_proof:
            return b"\x11" * 8 + b"\x90\x00"
        return answer


@pytest.mark.parametrize("forge_proof", [False, True])
def test_a_man_in_the_middle_does_not_make_a_payment(world: World, forge_proof: bool) -> None:
    """8054 dropped, counter, log and even a proof forged: nothing is taken for paid, the entry stays open."""
    ref, move = _lose(world, before=True)
    session = world.tap()
    middle = _ManInTheMiddle(world.card, move, forge_proof=forge_proof)
    assert recover(middle, world.sam, world.journal, session, ref, move).outcome is Outcome.UNKNOWN
    assert world.journal.pending
    assert balance(world.card, Purse.MAIN) == 10_000


def test_a_blocked_card_proves_only_what_the_sam_can_check(world: World) -> None:
    """A blocked session whose MAC2 no SAM can verify any more stays open: the host decides."""
    ref, move = _lose(world, before=False)
    world.tap()
    iso.block_application(world.card, iso.SecureMessaging(world.card_key(Purpose.MAINTENANCE, 1, CARD_SERIAL)))
    world.card.reset()
    world.sam_card.reset()
    world.sam = CardSam(world.sam_card, lambda: PIN)
    session = identify(world.card, ENTERPRISE)
    assert recover(world.card, world.sam, world.journal, session, ref, move).outcome is Outcome.UNKNOWN
    assert world.journal.pending
