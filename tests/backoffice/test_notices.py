"""Notices: each event told at most once, in the right words, to who wants it, when it may be told."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from backoffice import attendance, journals, notices, settlement
from backoffice.database import Database
from backoffice.enterprises import change_setting
from backoffice.notices import OLD_MS, STALE_MS, TEMPLATES, Kind, Sender
from backoffice.operators import Operator, Role
from backoffice.shifts import Shift
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from cardlib.profile import Purse, TransactionType
from cardlib.wire import sms
from cardlib.wire.smpp import Address
from simulator.smsc import NO_FAULTS, Faults
from tests.backoffice.conftest import Clock
from tests.backoffice.kit import ADMIN, ENTERPRISE, T0, Kit, Till, card_serial
from tests.simulator.smscrig import BIND, Handset, World

PHONE = "13800000001"
CHINA_MIN = 480
ENDING = card_serial(1).hex().upper()[-4:]
T0_LOCAL = "09-21 22:13"
NOON_MS = T0 + 14 * 3_600_000
AUDITOR = Operator(ENTERPRISE, "olga", Role.AUDITOR)


@dataclass
class Post:
    """An enterprise with one member and his phone, a till, a centre, a sender."""

    kit: Kit
    clock: Clock
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.till = self.kit.till(1)
        self.card = self.kit.card(1)
        self.phone = self.reach("M1", PHONE)
        with self.kit.db.write() as tx:
            change_setting(tx, ADMIN, ENTERPRISE, "notice_quiet_until_min", "1320")  # no quiet time
        self.sender = self.make_sender()

    def reach(self, member: str, phone: str) -> Handset:
        with self.kit.db.write() as tx:
            tx.execute("UPDATE member SET phone_number = ? WHERE member_number = ?", (phone, member))
        return self.world.phone(phone)

    def make_sender(self, signature: str = "") -> Sender:
        self.world.are_whole = True
        return Sender(
            self.kit.db, ENTERPRISE, CHINA_MIN, self.world._call, BIND, Address("10690001"), self.world.clock, signature
        )

    def settle(self, *tills: Till) -> None:
        for till in tills or (self.till,):
            journals.collect(self.kit.db, ENTERPRISE, till.file())
        settlement.settle(self.kit.db, ENTERPRISE, self.kit.host)

    def run(self, seconds: float = 12.0, step_s: float = 0.5) -> list[str]:
        end = self.world.clock.now_s + seconds
        while self.world.clock.now_s < end:
            self.sender.poll()
            self.world.centre.poll()
            self.world.clock.now_s += step_s
            self.clock.forward(int(step_s * 1000))
        return self.phone.inbox

    def states(self) -> dict[str, str]:
        with self.kit.db.read() as tx:
            return {one.origin: one.state for one in notices.listing(tx, ENTERPRISE)}

    def act(self, what: str, *args: object) -> None:
        with self.kit.db.write() as tx:
            getattr(notices, what)(tx, ADMIN, ENTERPRISE, *args)


@pytest.fixture
def post(db: Database, clock: Clock, tmp_path: Path) -> Iterator[Post]:
    """A post office that nothing has passed yet."""
    kit = Kit(db, tmp_path)
    with kit.store:
        yield Post(kit, clock)


def test_money_is_told_in_order(post: Post) -> None:
    """Recharge and payments of both purses: amount, balance, time, the end of the card's number; nothing else of it."""
    post.card.load(post.till, 5000)
    post.card.load(post.till, 700, purse=Purse.SUBSIDY)
    post.card.pay(post.till, 1205)
    post.settle()
    assert sorted(post.run()) == sorted(
        [
            f"您尾号{ENDING}的卡{T0_LOCAL}充值50.00元，主钱包余额50.00元。",
            f"您尾号{ENDING}的卡{T0_LOCAL}充值7.00元，补贴钱包余额7.00元。",
            f"您尾号{ENDING}的卡{T0_LOCAL}消费12.05元，主钱包余额37.95元。",
        ]
    )
    assert set(post.states().values()) == {"sent"}
    assert card_serial(1).hex().upper() not in "".join(post.phone.inbox)


def test_an_event_is_told_once(post: Post) -> None:
    """Settling, collecting, gathering and sending again tell nothing twice."""
    post.card.load(post.till, 5000)
    post.settle()
    post.run()
    for _ in range(3):
        post.settle()
        post.sender.close()
        post.sender = post.make_sender()
        post.run()
    assert len(post.phone.inbox) == 1


def test_what_is_in_doubt_is_not_told_yet(post: Post) -> None:
    """A payment without proof is told once the card's next record has decided it."""
    post.card.load(post.till, 5000)
    post.card.torn(post.till, 100)
    post.settle()
    assert len(post.run()) == 1
    post.card.pay(post.till, 50)
    post.settle()
    assert len(post.run()) == 3


def test_an_undo_is_told_if_its_payment_was(post: Post) -> None:
    """A payment undone before it was told is no news; one that was told is taken back."""
    post.card.load(post.till, 5000)
    paid = post.card.pay(post.till, 100)
    post.card.do(post.till, TransactionType.LOAD_EP, 100, undo_of=paid.origin)
    post.settle()
    assert len(post.run()) == 1
    paid = post.card.pay(post.till, 200)
    post.settle()
    post.run()
    post.card.do(post.till, TransactionType.LOAD_EP, 200, undo_of=paid.origin)
    post.settle()
    assert ["撤销消费" in text for text in post.run()] == [False, False, True]


def test_loss_and_unlock(post: Post) -> None:
    """Both are told; other changes of a card are not."""
    post.kit.turn(card_serial(1), "active", "lost", T0)
    post.kit.turn(card_serial(1), "lost", "active", T0 + 60_000)
    post.kit.turn(card_serial(1), "active", "cancelled", T0 + 120_000)
    lost, found = post.run()
    assert lost.startswith(f"您尾号{ENDING}的卡已于09-21 22:13挂失。")
    assert found.startswith(f"您尾号{ENDING}的卡已于09-21 22:14解挂，")


def test_english_and_a_signature(post: Post) -> None:
    """A member's own language, with what must stand before each text; English texts take one 7-bit message."""
    post.act("speak", "M1", "en")
    post.sender = post.make_sender("[Canteen] ")
    post.card.load(post.till, 5000)
    post.settle()
    wanted = f"[Canteen] Card ending {ENDING}: recharged CNY 50.00 on {T0_LOCAL}, main balance CNY 50.00."
    assert post.run() == [wanted]
    post.act("speak", "M1", "")
    post.card.load(post.till, 100)
    post.settle()
    assert post.run()[1].startswith("[Canteen] 您")


def test_opt_out_by_kind(post: Post) -> None:
    """What a member refused is dropped, also when he takes it again later; the rest goes out."""
    post.act("refuse", "M1", [Kind.PAYMENT])
    post.card.load(post.till, 5000)
    post.card.pay(post.till, 100)
    post.settle()
    assert len(post.run()) == 1
    post.act("refuse", "M1", [])
    assert len(post.run()) == 1
    post.card.pay(post.till, 100)
    post.settle()
    assert len(post.run()) == 2
    assert Counter(post.states().values()) == {"sent": 2, "dropped": 1}


def test_quiet_hours(post: Post) -> None:
    """At night only loss and unlocking are told; the rest follows in the morning."""
    with post.kit.db.write() as tx:
        change_setting(tx, ADMIN, ENTERPRISE, "notice_quiet_until_min", "420")
    post.card.load(post.till, 5000)
    post.kit.turn(card_serial(1), "active", "lost", T0 + 1000)
    post.settle()
    assert len(post.run()) == 1
    assert "挂失" in post.phone.inbox[0]
    post.clock.now_ms = NOON_MS
    assert len(post.run()) == 2


def test_nobody_to_tell_and_old_news(post: Post) -> None:
    """Without a phone number, or after two days, nothing is sent, then or later."""
    post.kit.card(2).load(post.till, 300)
    post.card.load(post.till, 5000)
    post.settle()
    with post.kit.db.write() as tx:
        notices.gather(tx, ENTERPRISE, CHINA_MIN)
    post.clock.forward(OLD_MS + 1)
    assert post.run() == []
    assert set(post.states().values()) == {"dropped"}
    post.kit.turn(card_serial(1), "active", "lost", T0)
    assert post.run() == []


def test_a_lost_answer_is_unknown(post: Post) -> None:
    """Nobody knows whether the centre has it: unknown, not sent again until a person says so."""
    post.card.load(post.till, 5000)
    post.settle()
    post.world.centre.faults = Faults(cut=1.0)
    post.run(60)
    assert set(post.states().values()) == {"unknown"}
    arrived = len(post.phone.inbox)
    assert arrived <= 1
    post.world.centre.faults = NO_FAULTS
    post.run(120)
    assert len(post.phone.inbox) == arrived
    (origin,) = post.states()
    post.act("again", origin)
    post.run(10)
    assert len(post.phone.inbox) == arrived + 1
    with pytest.raises(Conflict):
        post.act("again", origin)
    with pytest.raises(NotFound):
        post.act("again", "move/none")


def test_a_killed_sender_sends_nothing_twice(post: Post) -> None:
    """What a sender had taken when it was killed becomes unknown after a while; another sender leaves it alone."""
    post.card.load(post.till, 5000)
    post.settle()
    with post.kit.db.write() as tx:
        notices.gather(tx, ENTERPRISE, CHINA_MIN)
        assert len(notices.claim(tx, ENTERPRISE, 10, CHINA_MIN)) == 1
    assert post.run() == []
    assert set(post.states().values()) == {"sending"}
    post.clock.forward(STALE_MS)
    assert post.run() == []
    assert set(post.states().values()) == {"unknown"}


def test_leaving_gives_back_what_has_not_left(post: Post) -> None:
    """A sender that stops while the centre throttles leaves its notices to the next one."""
    post.card.load(post.till, 5000)
    post.settle()
    post.world.centre.faults = Faults(throttled=1.0)
    assert post.run() == []
    assert set(post.states().values()) == {"sending"}
    for _ in range(3):  # the clock stands still: the centre's answer comes, and nothing is tried again
        post.world.centre.poll()
        post.sender.poll()
    post.sender.close()
    assert set(post.states().values()) == {"waiting"}
    post.world.centre.faults = NO_FAULTS
    post.sender = post.make_sender()
    assert len(post.run()) == 1


def test_a_refused_number_is_rejected(post: Post) -> None:
    """A number that the centre does not know ends the notice with the centre's status."""
    with post.kit.db.write() as tx:
        tx.execute("UPDATE member SET phone_number = '19999999999'")
    post.card.load(post.till, 5000)
    post.settle()
    post.run()
    with post.kit.db.read() as tx:
        assert [(one.state, one.cause) for one in notices.listing(tx, ENTERPRISE)] == [("rejected", "status 0B")]


@pytest.mark.parametrize("seed", range(10))
def test_never_twice_whatever_breaks(seed: int, db: Database, clock: Clock, tmp_path: Path) -> None:
    """Cut lines, throttling, lost answers, restarts: each notice arrives at most once, and just once when sent."""
    random = Random(seed)
    kit = Kit(db, tmp_path)
    with kit.store:
        post = Post(kit, clock, World(seed, Faults(throttled=0.2, cut=0.1, slowest_s=2.0)))
        post.card.load(post.till, 9000)
        for n in range(12):
            post.card.pay(post.till, 100 + n)
        post.settle()
        for _ in range(8):
            post.run(4)
            if random.random() < 0.3:
                post.world.cut()
            if random.random() < 0.3:
                if random.random() < 0.5:
                    post.sender.close()
                post.sender = post.make_sender()
        post.world.centre.faults = NO_FAULTS
        post.clock.forward(STALE_MS)
        post.run(30)
        found = Counter(post.phone.inbox)
        states = Counter(post.states().values())
        assert set(found.values()) <= {1}
        assert set(states) <= {"sent", "unknown"}
        assert states["sent"] <= len(found) <= states["sent"] + states["unknown"]


def test_statements_of_a_month(post: Post) -> None:
    """After the month each member is told what he spent, and how he attended, once; undone payments do not count."""
    post.card.load(post.till, 5000)
    post.card.pay(post.till, 1000)
    paid = post.card.pay(post.till, 300)
    post.card.do(post.till, TransactionType.LOAD_EP, 300, undo_of=paid.origin)
    post.settle()
    with post.kit.db.write() as tx:
        attendance.define_shift(tx, ADMIN, ENTERPRISE, Shift("day", 540, 1080))
        week = dict.fromkeys(range(5), "day")
        attendance.plan(tx, ADMIN, ENTERPRISE, "member:M1", attendance.month_days("2026-09")[0], week)
    with pytest.raises(Conflict):
        post.act("statements", "2026-09", CHINA_MIN)
    post.clock.forward(15 * 86_400_000)
    for _ in range(2):
        post.act("statements", "2026-09", CHINA_MIN)
    assert sorted(post.run()) == [
        "2026-09考勤：应到22天，实到0天，迟到0次，早退0次，缺勤22天，加班0.0小时。",
        "2026-09账单：消费1笔，共10.00元；充值50.00元。",
    ]
    post.act("statements", "2026-09", CHINA_MIN)
    assert len(post.run()) == 2


def test_who_may_not(post: Post) -> None:
    """Permissions hold in the functions themselves; unknown members and languages are refused."""
    with post.kit.db.write() as tx:
        for act in (
            lambda: notices.refuse(tx, AUDITOR, ENTERPRISE, "M1", [Kind.LOSS]),
            lambda: notices.speak(tx, AUDITOR, ENTERPRISE, "M1", "en"),
            lambda: notices.statements(tx, AUDITOR, ENTERPRISE, "2026-08", CHINA_MIN),
            lambda: notices.again(tx, AUDITOR, ENTERPRISE, "move/1"),
        ):
            with pytest.raises(Refused):
                act()
        with pytest.raises(NotFound):
            notices.refuse(tx, ADMIN, ENTERPRISE, "M9", [Kind.LOSS])
        with pytest.raises(FormatError):
            notices.speak(tx, ADMIN, ENTERPRISE, "M1", "de")


def test_every_template_has_both_languages_and_fits() -> None:
    """English stays in the 7-bit alphabet and one message; Chinese takes at most two."""
    facts = {
        "card": "0001", "when": T0_LOCAL, "amount": "99999.99", "balance": "99999.99", "purse": 1, "month": "2026-09",
        "count": 999, "loaded": "99999.99", "planned": 22, "present": 22, "late": 22, "early": 22, "absent": 22,
        "overtime": "100.0",
    }  # fmt: skip
    for template in TEMPLATES:
        assert len(sms.encode_text(notices.words(template, "en", facts))) == 1, template
        assert len(sms.encode_text(notices.words(template, "zh", facts))) <= 2, template


def test_logs_say_nothing_of_people(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """Neither number nor text of a notice gets into a log or an error."""
    caplog.set_level(logging.DEBUG)
    post.card.load(post.till, 5000)
    post.settle()
    post.world.is_up = False
    post.run(4)
    post.world.is_up = True
    post.run(20)
    assert post.phone.inbox
    assert PHONE not in caplog.text + post.sender.esme.trouble
    assert "50.00" not in caplog.text
