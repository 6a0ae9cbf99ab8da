"""Recharge terminals and tills on a line to the office: real HTTP, and everything lost that can get lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backoffice import cards, expiry, ledger, registry, subsidies, vouchers, wallet
from backoffice.enterprises import Setting, change_setting
from backoffice.ledger import cash_account
from backoffice.registry import TerminalKind
from backoffice.subsidies import Way
from cardlib.errors import ConfigError, Conflict, FormatError, MacMismatch, OneCardError, Refused, TransportError
from cardlib.profile import Purpose, Purse, TransactionType
from cardlib.purse import initialize_load, open_application
from cardlib.records import local_when
from simulator.card import Card
from terminals.config import Kind
from terminals.office import HttpOffice
from terminals.pos import Pos
from terminals.recharge import Recharge
from tests.backoffice.desk import serial_of
from tests.backoffice.kit import ADMIN, ENTERPRISE, sam_serial, terminal_number
from tests.secretwatch import register
from tests.terminals.office_rig import Site, line_of, patiently, site
from tests.terminals.shop import refused, torn

CALLS = 3
"""What a recharge asks the office: leave, MAC2, the check of the card's proof."""


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Site]:
    """An office that serves terminals."""
    with site(tmp_path) as made:
        yield made


@pytest.fixture
def desk(office: Site) -> Recharge:
    """Recharge terminal 1."""
    return office.recharger(1)


@pytest.fixture
def card(office: Site) -> Card:
    """A member's card, empty."""
    return office.world.issued()[0]


def cash(number: int = 1, shift: int = 1) -> str:
    return cash_account(terminal_number(number), str(shift))


def settled(office: Site, card: Card, fen: int, *terminals: Recharge) -> None:
    """Card and books hold this much, all of it paid in cash, and nothing is left open."""
    office.collect(*terminals)
    books = office.world.books()
    assert office.world.on_card(card)[Purse.MAIN] == office.world.purse(serial_of(card)) == fen
    assert -sum(held for name, held in books.items() if name.startswith("cash/")) == fen
    assert ledger.IN_DOUBT not in books
    office.world.agrees()


def test_cash_is_loaded_and_booked(office: Site, desk: Recharge, card: Card) -> None:
    """A recharge for cash is on the card, in the journal proven, in the books against the drawer of its shift."""
    receipt = desk.recharge(card, 5_000, "C1")
    assert receipt.amount_fen == receipt.balance_fen == 5_000
    assert receipt.moves[0].mac2_verified
    assert receipt.moves[0].sam_serial == sam_serial(1)
    assert desk.totals() == {"load_main_count": 1, "load_main_fen": 5_000}
    settled(office, card, 5_000, desk)
    assert office.world.books()[cash()] == -5_000


def test_the_amount_is_held_before_mac2_is_out(office: Site, desk: Recharge, card: Card) -> None:
    """Whatever a terminal hides, the money of each MAC2 stands against its drawer, in doubt until it is proven."""
    with torn(card, 10_000):
        line_of(desk).break_at(3, answer=False)
        patiently(card, lambda c: desk.recharge(c, 5_000, "C1"))
    books = office.world.books()
    assert (books[cash()], books[ledger.IN_DOUBT]) == (-5_000, 5_000)


def test_every_message_lost(office: Site, desk: Recharge, card: Card) -> None:
    """Each question and each answer lost, then asked again under the same sale: the card is credited once."""
    fen = 0
    for call in range(1, CALLS + 1):
        for answer in (False, True):
            sale = f"lost {call} {answer}"
            line_of(desk).break_at(call, answer=answer)
            receipt = patiently(card, lambda c, s=sale: desk.recharge(c, 100, s))  # type: ignore[misc]
            fen += 100
            assert receipt.balance_fen == fen
            assert desk.recharge(card, 100, sale) == receipt
    settled(office, card, fen, desk)


def test_another_sale_after_a_lost_answer(office: Site, desk: Recharge, card: Card) -> None:
    """A sale given up when MAC2's answer was lost pays nothing once another has used the card's counter."""
    line_of(desk).break_at(2, answer=True)
    assert refused(lambda: desk.recharge(card, 100, "given up")) == "host_unreachable"
    card.reset()
    assert office.world.books()[ledger.IN_DOUBT] == 100
    desk.recharge(card, 300, "second")
    settled(office, card, 300, desk)


def test_given_up_for_good(office: Site, desk: Recharge, card: Card) -> None:
    """The office's own reader sees that the card's counter did not move: what was held goes back to the drawer."""
    line_of(desk).break_at(2, answer=True)
    assert refused(lambda: desk.recharge(card, 100, "given up")) == "host_unreachable"
    card.reset()
    world = office.world
    cards.cancel(world.office, ADMIN, serial_of(card), "left", card=card)
    world.settle()
    books = world.books()
    assert ledger.IN_DOUBT not in books
    assert cash() not in books


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_the_server_is_killed(office: Site, desk: Recharge, card: Card, call: int) -> None:
    """A server that ends during any call and starts again knows what it allowed and held."""
    line = line_of(desk)
    for answer in (False, True):
        line.break_at(call, answer=answer)
        line.lost = office.restart
        patiently(card, lambda c, a=answer: desk.recharge(c, 100, f"kill {a}"))  # type: ignore[misc]
    settled(office, card, 200, desk)


def test_a_card_torn_at_every_step(office: Site, desk: Recharge, card: Card) -> None:
    """Pulled away at each step of a recharge and presented again: credited once, and all books agree."""
    fen = 0
    for step in range(1, 400):
        sale = f"step {step}"
        card.reset()
        with torn(card, step) as ended:
            desk.recharge(card, 100, sale)
        patiently(card, lambda c, s=sale: desk.recharge(c, 100, s))  # type: ignore[misc]
        fen += 100
        if ended:
            break
    assert step > 20
    settled(office, card, fen, desk)


def test_the_line_is_away(office: Site, desk: Recharge, card: Card) -> None:
    """Without the office nothing is loaded, and the terminal says so."""
    office.stop()
    assert refused(lambda: desk.recharge(card, 100, "C1")) == "host_unreachable"
    office.start()
    assert patiently(card, lambda c: desk.recharge(c, 100, "C1")).balance_fen == 100


def test_a_mac2_given_before_is_not_given_for_another_counter(office: Site, desk: Recharge, card: Card) -> None:
    """A terminal that hides that a load was done gets no second one under the same request."""
    line, world = line_of(desk), office.world
    serial = serial_of(card)
    line.allow_load(serial, 100, "C1", 1)
    line.allow_load(serial, 100, "C1", 1)
    assert load_at(office, desk, card, "C1") == "done"
    line.allow_load(serial, 100, "C1", 1)
    assert load_at(office, desk, card, "C1") == "open"
    world.settle()
    assert load_at(office, desk, card, "C1") == "open"
    line.allow_load(serial, 100, "C2", 1)
    with pytest.raises(Conflict):
        line.allow_load(serial, 200, "C2", 1)
    assert load_at(office, desk, card, "C2") == "done"
    books = world.books()
    assert (books[cash()], books[ledger.IN_DOUBT]) == (-200, 200)


def load_at(office: Site, desk: Recharge, card: Card, request_id: str, fen: int = 100, terminal: int = 1) -> str:
    """A load by hand, as a terminal of somebody's own would do it, journaled nowhere: done, or the refusal."""
    world = office.world
    card.reset()
    session = open_application(card, office.world.office.host(), ENTERPRISE, world.random_bytes, Purpose.RECHARGE)
    name = terminal_number(terminal)
    init = initialize_load(card, TransactionType.LOAD_EP, 1, fen, name)
    when = local_when(world.now)
    host = line_of(desk).loading(request_id)
    try:
        mac2 = host.load_mac2(init, fen, TransactionType.LOAD_EP, name, when, session.factor)
    except Refused as e:
        return e.reason
    answer = card.transceive(bytes.fromhex("805200000B") + when + mac2 + b"\x04")
    assert answer[-2:] == b"\x90\x00"
    return "done"


def test_what_was_not_allowed_gets_no_mac2(office: Site, desk: Recharge, card: Card) -> None:
    """Another amount, another card, another terminal's leave, no leave: no MAC2, and nothing held."""
    other, other_card = office.recharger(2), office.world.issued(2)[0]
    line_of(desk).allow_load(serial_of(card), 100, "C1", 1)
    assert load_at(office, desk, card, "C1", 101) == "not_allowed"
    assert load_at(office, desk, card, "C9") == "not_allowed"
    assert load_at(office, desk, other_card, "C1") == "not_allowed"
    assert load_at(office, other, card, "C1", terminal=2) == "not_allowed"
    assert office.world.books() == {}
    with pytest.raises(FormatError):
        load_at(office, other, card, "C1", terminal=1)


def test_a_proof_is_checked_only_for_what_was_held(office: Site, desk: Recharge, card: Card) -> None:
    """Nobody tries proofs against the office: a wrong one is wrong, without MAC2 given there is nothing to check."""
    line, serial = line_of(desk), serial_of(card)
    line.allow_load(serial, 100, "C1", 1)
    data = bytes(4) + bytes(2) + (100).to_bytes(4, "big") + b"\x02" + terminal_number(1) + bytes(7)
    with pytest.raises(Refused, match="no MAC2"):
        line.loading("C1").verify_tac(serial, 1, 0, data, bytes(4))
    assert load_at(office, desk, card, "C1") == "done"
    with pytest.raises(MacMismatch):
        line.loading("C1").verify_tac(serial, 1, 0, data, bytes(4))
    foreign = data[:11] + terminal_number(2) + data[17:]
    with pytest.raises(FormatError):
        line.loading("C1").verify_tac(serial, 1, 0, foreign, bytes(4))


def test_a_wrong_mac1_gets_nothing(office: Site, desk: Recharge, card: Card) -> None:
    """A card that does not prove its balance and counter gets no MAC2, and nothing is held."""
    line, serial = line_of(desk), serial_of(card)
    line.allow_load(serial, 100, "C1", 1)
    session = open_application(card, office.world.office.host(), ENTERPRISE, bytes, Purpose.RECHARGE)
    init = initialize_load(card, TransactionType.LOAD_EP, 1, 200, terminal_number(1))
    when = local_when(office.world.now)
    with pytest.raises(MacMismatch):
        line.loading("C1").load_mac2(init, 100, TransactionType.LOAD_EP, terminal_number(1), when, session.factor)
    assert office.world.books() == {}


def test_limits_of_the_enterprise(office: Site, desk: Recharge, card: Card) -> None:
    """The office's own limits hold whatever the terminal's file says: one recharge, the purse as the card proves it."""
    with office.world.db.write() as tx:
        change_setting(tx, ADMIN, ENTERPRISE, Setting.RECHARGE_LIMIT_FEN.name.lower(), "5000")
        change_setting(tx, ADMIN, ENTERPRISE, Setting.PURSE_LIMIT_FEN.name.lower(), "7000")
    assert refused(lambda: desk.recharge(card, 5_001, "C1")) == "load_limit"
    card.reset()
    desk.recharge(card, 5_000, "C2")
    card.reset()
    assert refused(lambda: desk.recharge(card, 2_001, "C3")) == "maximum_balance"
    card.reset()
    desk.recharge(card, 2_000, "C4")
    settled(office, card, 7_000, desk)


def test_what_has_expired_is_taken_off_before_anything_is_loaded(office: Site, desk: Recharge, card: Card) -> None:
    """A chip that still holds an expired balance gets no leave and no MAC2, in that purse alone, until emptied."""
    world, serial = office.world, serial_of(card)
    desk.recharge(card, 5_000, "C1")
    office.collect(desk)
    line_of(desk).allow_load(serial, 100, "C2", 1)  # leave given before the balance expired
    with world.db.write() as tx:
        change_setting(tx, ADMIN, ENTERPRISE, Setting.BALANCE_EXPIRES.name, "2026-09-20")
    assert [one.left for one in expiry.expire(world.db, ADMIN, ENTERPRISE)] == [""]
    card.reset()
    assert refused(lambda: desk.recharge(card, 100, "C2")) == "void_balance"
    assert load_at(office, desk, card, "C2") == "void_balance"
    with world.db.write() as tx:
        subsidies.grant(tx, ADMIN, ENTERPRISE, "G", 202609, 700, Way.ADD, "2030-12-31")
    paper = voucher(office)
    card.reset()
    assert refused(lambda: desk.voucher(card, paper.number, paper.secret)) == "void_balance"
    card.reset()
    assert desk.claim(card).amount_fen == 700
    card.reset()
    assert wallet.expire(world.office, ADMIN, card, serial)["amount_fen"] == 5_000
    card.reset()
    assert desk.voucher(card, paper.number, paper.secret).balance_fen == 100
    office.collect(desk)
    world.agrees()


def voucher(office: Site, fen: int = 100) -> vouchers.Voucher:
    with office.world.db.write() as tx:
        (paper,) = vouchers.make(tx, ADMIN, ENTERPRISE, "B", 1, fen, "2030-12-31", office.world.random_bytes)
    register(paper.secret, "a voucher's secret")
    return paper


def test_a_request_made_up_for_cash_never_becomes_a_vouchers(office: Site, desk: Recharge, card: Card) -> None:
    """A terminal that names its cash load like a voucher gets that voucher paid once, not once more elsewhere."""
    other, serial, paper = office.recharger(2), serial_of(card), voucher(office)
    line_of(desk).allow_load(serial, 100, f"voucher:{paper.number}", 1)
    with pytest.raises(Conflict):
        line_of(desk).redeem(serial, paper.number, paper.secret)
    assert load_at(office, desk, card, f"voucher:{paper.number}") == "done"
    card.reset()
    assert other.voucher(card, paper.number, paper.secret).amount_fen == 100
    books = office.world.books()
    assert (books[cash()], books[ledger.VOUCHERS]) == (-100, -100)


def test_a_voucher_cancelled_after_leave_was_given_loads_nothing(office: Site, desk: Recharge, card: Card) -> None:
    """Cancelling a batch counts at once, also for a terminal that asked before."""
    paper = voucher(office)
    line_of(desk).redeem(serial_of(card), paper.number, paper.secret)
    with office.world.db.write() as tx:
        vouchers.cancel(tx, ADMIN, ENTERPRISE, "B")
    assert load_at(office, desk, card, f"voucher:{paper.number}") == "voucher_expired"
    assert office.world.books() == {}


def test_a_voucher_given_back_is_good_for_another_card(office: Site, desk: Recharge, card: Card) -> None:
    """A load that another move proved not done leaves its voucher good at the same terminal, for whatever card."""
    paper, other = voucher(office), office.world.issued(2)[0]
    line_of(desk).break_at(2, answer=True)
    assert refused(lambda: desk.voucher(card, paper.number, paper.secret)) == "host_unreachable"
    card.reset()
    desk.recharge(card, 300, "cash")
    assert line_of(desk).redeem(serial_of(other), paper.number, paper.secret) == 100
    assert load_at(office, desk, other, f"voucher:{paper.number}") == "done"
    assert office.world.books()[ledger.VOUCHERS] == -100


def test_text_that_no_database_takes_is_a_wrong_call(office: Site, desk: Recharge, card: Card) -> None:
    """Half a surrogate pair or a zero is the caller's fault, not one of ours."""
    for text in ("\ud800", "C\0"):
        with pytest.raises(FormatError):
            line_of(desk).allow_load(serial_of(card), 100, text, 1)


def test_a_payment_is_undone_at_the_till_or_at_the_desk(office: Site, desk: Recharge, till: Pos, card: Card) -> None:
    """Once a till has MAC2 for an undo the desk refuses it; once the desk undid it, leave given before is void."""
    world, origins = office.world, []
    for fen in (100, 101):
        origins.append(till.pay(card, fen, f"S{fen}").moves[0].origin.hex())
        card.reset()
    office.collect(desk, till)
    for origin in origins:
        line_of(till).call("undo/allow", origin=origin)
    assert load_at(office, till, card, f"undo:{origins[0]}", 100, 3) == "done"  # type: ignore[arg-type]  # a till
    card.reset()
    with pytest.raises(Refused, match="a terminal may have undone"):
        wallet.undo(world.office, ADMIN, card, origins[0])
    card.reset()
    wallet.undo(world.office, ADMIN, card, origins[1])
    world.settle()
    assert load_at(office, till, card, f"undo:{origins[1]}", 101, 3) == "undo"  # type: ignore[arg-type]  # a till
    assert world.on_card(card)[Purse.MAIN] == 5_000


def test_cards_that_are_not_in_use(office: Site, desk: Recharge, card: Card) -> None:
    """A lost card and a card that the office does not know are not loaded."""
    cards.lose(office.world.office, ADMIN, serial_of(card), "lost")
    with pytest.raises(Refused, match="is lost, not active"):
        desk.recharge(card, 100, "C1")
    with pytest.raises(Refused, match="not issued here"):
        line_of(desk).allow_load(bytes(8), 100, "C2", 1)
    with pytest.raises(Refused, match="not issued here"):
        line_of(desk).host.authenticate(Purpose.RECHARGE, bytes(8), 1, bytes(8))


def test_terminals_out_of_service(office: Site, desk: Recharge, card: Card) -> None:
    """A lost SAM ends all that needs keys, a retired terminal everything."""
    with office.world.db.write() as tx:
        registry.lose_sam(tx, ADMIN, ENTERPRISE, sam_serial(1), office.world.now)
    assert refused(lambda: desk.recharge(card, 100, "C1")) == "host_refused"
    with office.world.db.write() as tx:
        registry.retire(tx, ADMIN, ENTERPRISE, terminal_number(1))
    with pytest.raises(Refused, match="a token that is good"):
        line_of(desk).call("whoami")


def test_a_clock_that_is_off(office: Site, desk: Recharge, card: Card) -> None:
    """Date and time of a load are the host's: a terminal's clock that is off by more than ten minutes is refused."""
    desk.now_ms = lambda: office.world.clock() + 700_000
    assert refused(lambda: desk.recharge(card, 100, "C1")) == "clock_doubtful"


def test_uses_of_keys_are_audited(office: Site, desk: Recharge, card: Card) -> None:
    """Each use of a master key for a terminal is in the audit log by purpose and count, with its terminal."""
    told: list[tuple[str, str, int]] = []
    office.world.store.uses._on_use = lambda ref, text, count: told.append((ref.purpose.name, text, count))
    desk.recharge(card, 100, "C1")
    assert {("LOAD", "load, terminal 000000000001", 1), ("TAC", "check of a load, terminal 000000000001", 1)} <= {*told}
    with office.world.db.read() as tx:
        row = tx.one("SELECT actor, details FROM audit_event WHERE event = 'wallet.moved'")
    assert row is not None
    assert row["actor"] == "terminal 000000000001"


# --- undo --------------------------------------------------------------------------------------------------------


@pytest.fixture
def till(office: Site, desk: Recharge, card: Card) -> Pos:
    """A till with a line, and 50 yuan on the card."""
    desk.recharge(card, 5_000, "fill")
    card.reset()
    made = office.terminal(3, Kind.POS)
    assert isinstance(made, Pos)
    return made


def test_undo_online(office: Site, desk: Recharge, till: Pos, card: Card) -> None:
    """A payment whose proof the till lost is undone by the office once its journal is there; then never again."""
    till.pay(card, 1_200, "S1")
    card.reset()
    receipt = till.undo_last(card, online=True)
    assert (receipt.amount_fen, receipt.balance_fen) == (1_200, 5_000)
    office.collect(desk, till)
    card.reset()
    assert refused(lambda: till.undo_last(card, online=True)) == "nothing_to_undo"
    settled(office, card, 5_000, desk)


@pytest.mark.parametrize("answer", [False, True])
def test_undo_online_with_every_message_lost(office: Site, desk: Recharge, till: Pos, card: Card, answer: bool) -> None:
    """Each question or answer of an online undo lost: asked again, the money is back once."""
    for call in range(1, 6):
        card.reset()
        till.pay(card, 100, f"S{call}")
        line_of(till).break_at(call, answer=answer)
        receipt = patiently(card, lambda c: till.undo_last(c, online=True))
        assert receipt.balance_fen == 5_000
    settled(office, card, 5_000, desk, till)  # type: ignore[arg-type]  # a till's journal too


def test_undo_is_for_a_terminals_own_payment(office: Site, desk: Recharge, till: Pos, card: Card) -> None:
    """No terminal undoes another's payment, nor one that the books do not have."""
    till.pay(card, 1_200, "S1")
    paid = till.journal.transaction(till.journal.job(1).legs[0])
    other = office.terminal(4, Kind.POS)
    line_of(till).send_journal()
    for line in (line_of(other), line_of(desk)):
        with pytest.raises(Refused):
            line.allow_undo(paid)
    line_of(till).allow_undo(paid)


# --- the terminal's end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://office.example", "ftp://127.0.0.1", "127.0.0.1:80", "https://", "http://u:p@127.0.0.1", "http://[::2]"],
)
def test_where_a_token_is_not_sent(url: str, desk: Recharge) -> None:
    """Beyond this machine only https, and no URL with a secret in it."""
    with pytest.raises(ConfigError) as e:
        HttpOffice(url, "token", line_of(desk).host.info(), desk.journal)
    assert "u:p" not in url or "office_url" in str(e.value)


def test_bad_answers_are_no_answers(office: Site, desk: Recharge, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not the office's is as good as none."""
    line = line_of(desk)
    for status, raw in ((200, b"<html>"), (502, b"[]"), (500, b'{"error": 1}'), (503, b'{"error": {"kind": "x"}}')):
        monkeypatch.setattr(line, "_ask", lambda *_, a=(status, raw): a)
        with pytest.raises(TransportError):
            line.call("whoami")
    monkeypatch.setattr(line, "_ask", lambda *_: (200, b'{"mac2": "00"}'))
    with pytest.raises(FormatError):
        line.host.authenticate(Purpose.RECHARGE, bytes(8), 1, bytes(8))


def test_another_terminals_journal(office: Site, desk: Recharge, card: Card) -> None:
    """A terminal sends its own journal and no other."""
    other = office.recharger(2)
    with pytest.raises(OneCardError, match="another terminal's"):
        line_of(other).call("journal", file=desk.journal.collect().encode().hex())


def test_only_money_terminals_ask_for_money(office: Site, desk: Recharge) -> None:
    """A door's token gets nothing of what moves money."""
    with office.world.db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, terminal_number(9), TerminalKind.ACCESS, "door")
    door = HttpOffice(f"http://127.0.0.1:{office.port}", office.token(9), line_of(desk).host.info(), desk.journal)
    assert door.call("whoami")["terminal"] == terminal_number(9).hex()
    for verb in ("host/authenticate", "host/load-mac2", "host/verify-tac", "load/allow", "undo/allow"):
        with pytest.raises(Refused, match="not for this"):
            door.call(verb)
    door.close()
