"""Vouchers and subsidies at recharge terminals: each once, whoever tries it where, whatever gets lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backoffice import ledger, subsidies, vouchers, wallet
from backoffice.ledger import card_account
from backoffice.operators import Operator, Role
from backoffice.subsidies import Way
from backoffice.vouchers import Voucher
from cardlib.errors import Conflict, FormatError, NotFound, OutcomeUnknown, Refused, TransportError
from cardlib.iso7816 import read_record
from cardlib.profile import Purpose, Purse, SubsidyMark, TransactionType
from cardlib.purse import initialize_load, open_application
from cardlib.records import local_when
from simulator.card import Card
from terminals.recharge import Recharge
from tests.backoffice.desk import serial_of
from tests.backoffice.kit import ADMIN, ENTERPRISE, terminal_number
from tests.secretwatch import register
from tests.terminals.office_rig import Site, line_of, patiently, site
from tests.terminals.shop import torn

SUBSIDY, MAIN = TransactionType.LOAD_ED, TransactionType.LOAD_EP
LAST = "2027-12-31"


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


def batch(office: Site, count: int = 1, fen: int = 5_000, expires: str = LAST, name: str = "b1") -> list[Voucher]:
    with office.world.db.write() as tx:
        made = vouchers.make(tx, ADMIN, ENTERPRISE, name, count, fen, expires, office.world.random_bytes)
    for one in made:
        register(one.secret, "a voucher's secret")
    return made


def grant(office: Site, fen: int = 3_000, way: Way = Way.ADD, name: str = "g1", period: int = 202612) -> None:
    with office.world.db.write() as tx:
        subsidies.grant(tx, ADMIN, ENTERPRISE, name, period, fen, way, LAST)


def settled(office: Site, card: Card, account: str, fen: int, *terminals: Recharge) -> None:
    """Both purses are as the books say, all of it from one account, and nothing is left open."""
    office.collect(*terminals)
    books, serial = office.world.books(), serial_of(card)
    for purse, held in office.world.on_card(card).items():
        assert held == books.get(card_account(serial, purse), 0)
    assert books[account] == -fen
    assert ledger.IN_DOUBT not in books
    office.world.agrees()


def why(desk: Recharge, card: Card, one: Voucher) -> str:
    card.reset()
    with pytest.raises(Refused) as e:
        desk.voucher(card, one.number, one.secret)
    return str(e.value)


def test_a_voucher_once(office: Site, desk: Recharge, card: Card) -> None:
    """A voucher is loaded from the vouchers' account, however its secret is written; again gives the same receipt."""
    [one] = batch(office)
    receipt = desk.voucher(card, one.number, one.secret.lower().replace("-", " ").replace("0", "o"))
    assert receipt.balance_fen == 5_000
    card.reset()
    assert desk.voucher(card, one.number, "not asked any more") == receipt
    settled(office, card, ledger.VOUCHERS, 5_000, desk)
    with office.world.db.read() as tx:
        assert vouchers.batches(tx, ENTERPRISE) == [("b1", 5_000, LAST, 1, 1, 0)]
        assert one.secret.replace("-", "") not in repr([tuple(row) for row in tx.all("SELECT * FROM voucher")])


def test_two_terminals_with_one_voucher(office: Site, desk: Recharge, card: Card) -> None:
    """Leave given to both, MAC2 is given to the first that asks; the other holder gets nothing."""
    [one] = batch(office)
    other, second = office.recharger(2), office.world.issued(2)[0]
    for line, holder in ((line_of(desk), card), (line_of(other), second)):
        assert line.redeem(serial_of(holder), one.number, one.secret) == 5_000
    assert desk.voucher(card, one.number, one.secret).balance_fen == 5_000
    assert "was used" in why(other, second, one)
    session = open_application(second, office.world.office.host(), ENTERPRISE, bytes, Purpose.RECHARGE)
    init = initialize_load(second, MAIN, 1, 5_000, terminal_number(2))
    host = line_of(other).loading(f"voucher:{one.number}")
    with pytest.raises(Refused, match="was used"):
        host.load_mac2(init, 5_000, MAIN, terminal_number(2), local_when(office.world.now), session.factor)
    second.reset()
    settled(office, card, ledger.VOUCHERS, 5_000, desk, other)
    assert office.world.on_card(second)[Purse.MAIN] == 0


def test_another_holder_at_the_same_terminal(office: Site, desk: Recharge, card: Card) -> None:
    """A voucher that was tried with a card and given up before MAC2 is good for another; a used one is not."""
    [one] = batch(office)
    second = office.world.issued(2)[0]
    assert line_of(desk).redeem(serial_of(second), one.number, one.secret) == 5_000
    assert desk.voucher(card, one.number, one.secret).balance_fen == 5_000
    with pytest.raises(Conflict, match="another card"):
        line_of(desk).redeem(serial_of(second), one.number, one.secret)


def test_wrong_secrets(office: Site, desk: Recharge, card: Card) -> None:
    """Unknown numbers and wrong secrets look alike; five wrong ones lock the voucher for an hour."""
    one, two = batch(office, 2)
    words = {why(desk, card, Voucher(number, "0000-0000-0000-0000")) for number in (one.number, "0" * 12, "x", "")}
    assert words == {"the host refuses: number or secret is wrong"}
    for _ in range(vouchers.MAX_TRIES - 1):
        why(desk, card, Voucher(one.number, two.secret))
    assert "try in an hour" in why(desk, card, one)
    office.world.now += vouchers.LOCK_MS
    desk.lists.created_ms = office.world.now  # type: ignore[misc]  # a test's list
    card.reset()
    assert desk.voucher(card, one.number, one.secret).balance_fen == 5_000
    card.reset()
    assert desk.voucher(card, two.number, two.secret).balance_fen == 10_000


def test_expired_and_void_vouchers(office: Site, desk: Recharge, card: Card) -> None:
    """After its last day a voucher is worth nothing, nor when its batch was cancelled; used ones stay used."""
    [old], [used, void] = batch(office, expires="2026-01-01", name="old"), batch(office, 2)
    assert "was good until 2026-01-01" in why(desk, card, old)
    card.reset()
    desk.voucher(card, used.number, used.secret)
    with office.world.db.write() as tx:
        assert vouchers.cancel(tx, ADMIN, ENTERPRISE, "b1") == 1
        with pytest.raises(NotFound):
            vouchers.cancel(tx, ADMIN, ENTERPRISE, "b9")
    assert "void" in why(desk, card, void)
    settled(office, card, ledger.VOUCHERS, 5_000, desk)


def test_a_voucher_torn_at_every_step(office: Site, desk: Recharge, card: Card) -> None:
    """Pulled away at each step and presented again, or after a power cut without its secret: loaded once."""
    fen = 0
    for step, one in enumerate(batch(office, 100, 100), 1):
        card.reset()
        with torn(card, step) as ended:
            desk.voucher(card, one.number, one.secret)
        open_ = [job for job in desk.journal.open_jobs() if job.waiting]
        if open_:
            patiently(card, lambda c, j=open_[0]: desk.resume(c, j))  # type: ignore[misc]
        else:
            patiently(card, lambda c, v=one: desk.voucher(c, *v))  # type: ignore[misc]
        fen += 100
        if ended:
            break
    assert step > 20
    settled(office, card, ledger.VOUCHERS, fen, desk)


def test_a_voucher_with_every_message_lost(office: Site, desk: Recharge, card: Card) -> None:
    """Each question and each answer lost, then asked again: credited once."""
    made = iter(batch(office, 6, 100))
    for call in range(1, 4):
        for answer in (False, True):
            one = next(made)
            line_of(desk).break_at(call, answer=answer)
            patiently(card, lambda c, v=one: desk.voucher(c, *v))  # type: ignore[misc]
    settled(office, card, ledger.VOUCHERS, 600, desk)


def test_making_vouchers(office: Site) -> None:
    """Numbers and secrets are all different; a name is taken once, and impossible batches are refused."""
    made = batch(office, 500)
    assert len({one.number for one in made}) == len({one.secret for one in made}) == 500
    auditor = Operator(ENTERPRISE, "eve", Role.AUDITOR)
    for error, arguments in (
        (Conflict, (ADMIN, "b1", 1, 1, LAST)), (FormatError, (ADMIN, "b 2", 1, 1, LAST)),
        (FormatError, (ADMIN, "b2", 0, 1, LAST)), (FormatError, (ADMIN, "b2", vouchers.MAX_BATCH + 1, 1, LAST)),
        (FormatError, (ADMIN, "b2", 1, 0, LAST)), (FormatError, (ADMIN, "b2", 1, 1, "20271231")),
        (FormatError, (ADMIN, "b2", 1, 1, "soon")), (Refused, (auditor, "b2", 1, 1, LAST)),
    ):  # fmt: skip
        actor, name, count, fen, expires = arguments
        with office.world.db.write() as tx, pytest.raises(error):
            vouchers.make(tx, actor, ENTERPRISE, name, count, fen, expires, office.world.random_bytes)


def refusal(act: Callable[[], object]) -> str:
    try:
        act()
    except Refused as e:
        return str(e)
    return ""


# --- subsidies ---------------------------------------------------------------------------------------------------


def mark(office: Site, card: Card) -> SubsidyMark:
    card.reset()
    open_application(card, office.world.office.host(), ENTERPRISE, bytes)
    found = SubsidyMark.decode(read_record(card, 0x17, 3, by_tag=True))
    card.reset()
    return found


def test_a_subsidy_is_claimed_once(office: Site, desk: Recharge, card: Card) -> None:
    """Oldest period first, each once, into the subsidy purse; the card is marked with period and day."""
    grant(office, 2_000, name="g2", period=202701)
    grant(office, 3_000)
    assert desk.claim(card).balance_fen == 3_000
    assert mark(office, card).period == 202612
    assert desk.claim(card).balance_fen == 5_000
    assert mark(office, card).period == 202701
    with pytest.raises(Refused, match="no subsidy waits"):
        desk.claim(card)
    other = office.recharger(2)
    card.reset()
    with pytest.raises(Refused, match="no subsidy waits"):
        other.claim(card)
    settled(office, card, ledger.SUBSIDIES, 5_000, desk, other)
    with office.world.db.read() as tx:
        assert [(one.batch, one.members, one.claimed) for one in subsidies.listing(tx, ENTERPRISE)] == [
            ("g1", 1, 1), ("g2", 1, 1),
        ]  # fmt: skip


def test_a_purse_is_filled_up(office: Site, desk: Recharge, card: Card) -> None:
    """A claim that zeroes the rest brings the purse to just the amount, by what the card proves, not by a word."""
    wallet.subsidise(office.world.office, ADMIN, card, serial_of(card), 1_000)
    card.reset()
    grant(office, 3_000, Way.FILL)
    line = line_of(desk)
    sale, fen = line.claim(serial_of(card), 0)
    assert fen == 3_000
    session = open_application(card, office.world.office.host(), ENTERPRISE, bytes, Purpose.RECHARGE)
    init = initialize_load(card, SUBSIDY, 1, fen, terminal_number(1))
    with pytest.raises(Refused, match="holds 1000 fen"):
        line.loading(sale).load_mac2(
            init, fen, SUBSIDY, terminal_number(1), local_when(office.world.now), session.factor
        )
    card.reset()
    receipt = desk.claim(card)
    assert (receipt.amount_fen, receipt.balance_fen) == (2_000, 3_000)
    grant(office, 3_000, Way.FILL, "g2", 202701)
    card.reset()
    with pytest.raises(Refused, match="and holds 3000"):
        desk.claim(card)
    settled(office, card, ledger.SUBSIDIES, 3_000, desk)


def test_a_claim_after_its_last_day(office: Site, desk: Recharge, card: Card) -> None:
    """What was not claimed until its last day is gone; who was not granted anything gets nothing."""
    with office.world.db.write() as tx:
        subsidies.grant(tx, ADMIN, ENTERPRISE, "old", 202512, 100, Way.ADD, "2025-12-31")
        with pytest.raises(FormatError, match="M999 is no member"):
            subsidies.grant(tx, ADMIN, ENTERPRISE, "g2", 1, 100, Way.ADD, LAST, ["M999"])
    with pytest.raises(Refused, match="no subsidy waits"):
        desk.claim(card)


def test_a_claim_torn_at_every_step(office: Site, desk: Recharge, card: Card) -> None:
    """Pulled away at each step and claimed again: each grant is on the card once."""
    fen = 0
    for step in range(1, 200):
        grant(office, 100, name=f"g{step}", period=step)
        card.reset()
        with torn(card, step) as ended:
            desk.claim(card)
        card.power.cut_at(0)
        for _ in range(5):
            card.reset()
            with suppress(TransportError, OutcomeUnknown):
                if "no subsidy waits" in refusal(lambda: desk.claim(card)):
                    break
        fen += 100
        assert office.world.on_card(card)[Purse.SUBSIDY] == fen
        card.reset()
        if ended:
            break
    assert step > 20
    settled(office, card, ledger.SUBSIDIES, fen, desk)


def test_no_way_between_purse_and_airtime() -> None:
    """Neither account can become the other: the recharge terminal knows no airtime, what knows airtime no purse."""
    root = Path(__file__).parent.parent.parent
    for name in ("terminals/recharge.py", "terminals/office.py", "backoffice/hostcalls.py", "backoffice/permits.py"):
        words = (root / name).read_text(encoding="utf-8").lower()
        assert not {word for word in ("import ota", "uicc", "telephony", "operator_account") if word in words}, name
    assert not [name for name in vars(Recharge) if "airtime" in name]
    assert not any("airtime" in str(value) for value in vars(ledger).values() if isinstance(value, str))
