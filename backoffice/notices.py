"""Notices by short message: payments, recharges, loss, unlocking, and the month's statements (requirement G2).

Notices are gathered from what the books say and known by the origin of what they tell, so that an event is told at
most once, whatever is retried or settled again. A notice twice is worse than none: one whose answer was lost is
``unknown`` and is not sent again by itself. Words are found when it is sent, in the member's language.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum, unique
from hashlib import sha256
from typing import Any, NamedTuple

from backoffice import attendance, audit, members
from backoffice.attendance import month_days
from backoffice.audit import Event
from backoffice.database import Database, Row, Tx
from backoffice.enterprises import Setting, number_setting, setting
from backoffice.esme import WINDOW, Esme, Port
from backoffice.operators import Operator, Permission, require
from cardlib.errors import Conflict, FormatError, NotFound
from cardlib.money import yuan
from cardlib.profile import Purse, TransactionType
from cardlib.wire import sms
from cardlib.wire.smpp import Address, Bind, Command, Message

OLD_MS = 2 * 86_400_000
"""What happened longer ago is not told any more."""
STALE_MS = 600_000
"""A notice that a sender took so long ago and did not close: the sender was stopped in the middle."""
GATHER_S = 5.0
VALIDITY = "000001000000000R"
"""For how long the centre tries: a day."""
UDHI = 0x40
_LOADS = (TransactionType.LOAD_ED, TransactionType.LOAD_EP)
_SPENDS = (
    TransactionType.WITHDRAW,
    TransactionType.PURCHASE_ED,
    TransactionType.PURCHASE_EP,
    TransactionType.COMPOSITE,
)
_TOLD_ORDERS = (None, "recharge", "subsidy")
"""Loads that are news to the holder; others carry his own money from card to card."""


@unique
class Kind(StrEnum):
    """What a notice is about; each can be refused by a member."""

    PAYMENT = "payment"
    RECHARGE = "recharge"
    LOSS = "loss"
    UNLOCK = "unlock"
    CONSUMPTION = "consumption"
    ATTENDANCE = "attendance"


URGENT = (Kind.LOSS, Kind.UNLOCK)
"""Told at once, also at night: who did not ask for it must know."""
PURSES = {"zh": {Purse.MAIN: "主钱包", Purse.SUBSIDY: "补贴钱包"}, "en": {Purse.MAIN: "main", Purse.SUBSIDY: "subsidy"}}
TEMPLATES: dict[str, dict[str, str]] = {
    "payment": {
        "zh": "您尾号{card}的卡{when}消费{amount}元，{purse}余额{balance}元。",
        "en": "Card ending {card}: paid CNY {amount} on {when}, {purse} balance CNY {balance}.",
    },
    "undone": {
        "zh": "您尾号{card}的卡{when}撤销消费{amount}元，{purse}余额{balance}元。",
        "en": "Card ending {card}: payment of CNY {amount} undone on {when}, {purse} balance CNY {balance}.",
    },
    "recharge": {
        "zh": "您尾号{card}的卡{when}充值{amount}元，{purse}余额{balance}元。",
        "en": "Card ending {card}: recharged CNY {amount} on {when}, {purse} balance CNY {balance}.",
    },
    "loss": {
        "zh": "您尾号{card}的卡已于{when}挂失。如非本人办理，请立即联系管理员。",
        "en": "Card ending {card} was reported lost on {when}. If this was not you, tell the office at once.",
    },
    "unlock": {
        "zh": "您尾号{card}的卡已于{when}解挂，可以继续使用。如非本人办理，请立即联系管理员。",
        "en": "Card ending {card} was unlocked on {when}. If this was not you, tell the office at once.",
    },
    "consumption": {
        "zh": "{month}账单：消费{count}笔，共{amount}元；充值{loaded}元。",
        "en": "{month}: {count} payments, CNY {amount} in all; recharged CNY {loaded}.",
    },
    "attendance": {
        "zh": (
            "{month}考勤：应到{planned}天，实到{present}天，迟到{late}次，早退{early}次，"
            "缺勤{absent}天，加班{overtime}小时。"
        ),
        "en": (
            "Attendance {month}: present {present} of {planned} days, late {late}, left early {early},"
            " absent {absent}, overtime {overtime} h."
        ),
    },
}


class Notice(NamedTuple):
    """A notice as listed, without a person's name or number."""

    origin: str
    kind: str
    member_number: str
    at_ms: int
    state: str
    cause: str


class Claimed(NamedTuple):
    """A notice to be sent now."""

    origin: str
    phone_number: str
    text: str


# What is to be told -----------------------------------------------------------------------------------------------


def gather(tx: Tx, enterprise_id: int, offset_min: int) -> int:
    """Queue what happened and is not queued yet; returns how much. Running it again adds nothing."""
    since_ms = tx.now_ms - OLD_MS
    added = 0
    for row in tx.all(
        "SELECT r.record_id, a.member_number, r.kind, r.card_serial, r.purse, r.amount_fen, r.balance_before_fen,"
        " r.utc_ms, r.local_time, r.undo_of, o.kind AS ordered FROM transaction_record r"
        " JOIN card_application a ON a.enterprise_id = r.enterprise_id AND a.card_serial = r.card_serial"
        " LEFT JOIN money_order o ON o.enterprise_id = r.enterprise_id AND o.request_id = r.request_id"
        " WHERE r.enterprise_id = ? AND r.booked = 'yes' AND r.utc_ms >= ? AND r.amount_fen > 0 AND NOT EXISTS"
        " (SELECT 1 FROM notice n WHERE n.enterprise_id = r.enterprise_id AND n.origin = 'move/' || r.record_id)"
        " ORDER BY r.utc_ms, r.card_seq",
        (enterprise_id, since_ms),
    ):
        added += _tell_move(tx, enterprise_id, row)
    for row in tx.all(
        "SELECT t.transition_id, a.member_number, t.card_serial, t.state_to, t.at_ms FROM card_transition t"
        " JOIN card_application a ON a.enterprise_id = t.enterprise_id AND a.card_serial = t.card_serial"
        " WHERE t.enterprise_id = ? AND t.transition_id >= ? AND t.at_ms >= ? AND (t.state_to = 'lost' OR"
        " (t.state_from = 'lost' AND t.state_to IN ('active', 'posted'))) ORDER BY t.transition_id",
        (enterprise_id, f"{since_ms:011x}", since_ms),
    ):
        kind = Kind.LOSS if row["state_to"] == "lost" else Kind.UNLOCK
        when = f"{datetime.fromtimestamp(row['at_ms'] // 1000, UTC) + timedelta(minutes=offset_min):%m-%d %H:%M}"
        facts = {"card": _ending(row["card_serial"]), "when": when}
        origin = f"card/{row['transition_id']}"
        added += _queue(tx, enterprise_id, origin, kind, kind, row["member_number"], facts, row["at_ms"])
    return added


def _tell_move(tx: Tx, enterprise_id: int, row: Row) -> int:
    """Queue a money move, if it is one to tell. An undo before its payment was told makes both no news."""
    loads, undoes = row["kind"] in _LOADS, f"move/{row['undo_of'].hex()}" if row["undo_of"] else ""
    if (row["ordered"] not in _TOLD_ORDERS) if loads else (row["kind"] not in _SPENDS or row["ordered"] is not None):
        return 0
    kind, template = (Kind.RECHARGE, "recharge") if loads and not undoes else (Kind.PAYMENT, "payment")
    if undoes:
        template = "undone"
        close(tx, enterprise_id, undoes, "dropped", "undone", ("waiting",))
        sql = "SELECT state FROM notice WHERE enterprise_id = ? AND origin = ?"
        if tx.value(sql, (enterprise_id, undoes)) in (None, "dropped", "rejected"):
            return 0
    digits = row["local_time"].hex()
    fen = row["amount_fen"]
    facts = {
        "card": _ending(row["card_serial"]),
        "when": f"{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]}",
        "amount": yuan(fen),
        "balance": yuan(row["balance_before_fen"] + (fen if loads else -fen)),
        "purse": row["purse"],
    }
    origin = f"move/{row['record_id']}"
    return _queue(tx, enterprise_id, origin, kind, template, row["member_number"], facts, row["utc_ms"])


def _ending(card_serial: bytes) -> str:
    """What a notice says of a card's number."""
    return card_serial.hex().upper()[-4:]


def _queue(
    tx: Tx, enterprise_id: int, origin: str, kind: Kind, template: str, member_number: str, facts: dict[str, Any],
    at_ms: int,
) -> int:  # fmt: skip
    row = (enterprise_id, origin, kind, template, member_number, json.dumps(facts), at_ms, tx.now_ms)
    return tx.execute(
        "INSERT INTO notice (enterprise_id, origin, kind, template, member_number, facts, at_ms, state, changed_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting', ?) ON CONFLICT DO NOTHING",
        row,
    ).rowcount


def statements(tx: Tx, actor: Operator, enterprise_id: int, month: str, offset_min: int) -> int:
    """Queue what each member spent in a month (YYYY-MM) and how he attended; returns how much is new.

    Raises Refused, FormatError, Conflict for a month that is not over.
    """
    require(actor, Permission.NOTICE_SEND, enterprise_id)
    first, last = month_days(month)
    if last >= (datetime.fromtimestamp(tx.now_ms // 1000, UTC) + timedelta(minutes=offset_min)).date():
        raise Conflict(f"{month} is not over: its statements can't be sent yet")
    added = 0
    active = {row[0] for row in tx.all(_ACTIVE, (enterprise_id,))}
    for row in _month_money(tx, enterprise_id, first.strftime("%Y%m%d"), (last + timedelta(1)).strftime("%Y%m%d")):
        number, *money = row
        paid_fen, undone_fen, loaded_fen, paid, undone = (int(one) for one in money)
        if number in active:
            amount, loaded = yuan(paid_fen - undone_fen), yuan(loaded_fen)
            facts = {"month": month, "count": paid - undone, "amount": amount, "loaded": loaded}
            added += _month(tx, enterprise_id, Kind.CONSUMPTION, number, facts)
    for total, _ in attendance.statement(tx, actor, enterprise_id, month, offset_min):
        if total.planned:
            facts = {"month": month, "overtime": f"{total.overtime_min / 60:.1f}"} | {
                name: getattr(total, name) for name in ("planned", "present", "late", "early", "absent")
            }
            added += _month(tx, enterprise_id, Kind.ATTENDANCE, total.member_number, facts)
    return added


_ACTIVE = "SELECT member_number FROM member WHERE enterprise_id = ? AND state = 'active'"


def _month(tx: Tx, enterprise_id: int, kind: Kind, member_number: str, facts: dict[str, Any]) -> int:
    origin = f"{kind}/{facts['month']}/{member_number}"
    return _queue(tx, enterprise_id, origin, kind, kind, member_number, facts, tx.now_ms)


def _month_money(tx: Tx, enterprise_id: int, first: str, after: str) -> list[Row]:
    """By member: fen paid, undone and recharged, numbers of payments and of undone ones."""
    spends, loads = (",".join(str(int(kind)) for kind in kinds) for kinds in (_SPENDS, _LOADS))
    paid = f"r.kind IN ({spends}) AND o.kind IS NULL"
    undone, loaded = f"r.kind IN ({loads}) AND r.undo_of <> ?", f"r.kind IN ({loads}) AND r.undo_of = ?"
    told = "(o.kind IS NULL OR o.kind IN ('recharge', 'subsidy'))"
    wanted = (paid, "r.amount_fen"), (undone, "r.amount_fen"), (f"{loaded} AND {told}", "r.amount_fen")
    sums = ", ".join(
        f"SUM(CASE WHEN {which} THEN {what} ELSE 0 END)" for which, what in (*wanted, (paid, "1"), (undone, "1"))
    )
    return tx.all(
        f"SELECT a.member_number, {sums} FROM transaction_record r"
        " JOIN card_application a ON a.enterprise_id = r.enterprise_id AND a.card_serial = r.card_serial"
        " LEFT JOIN money_order o ON o.enterprise_id = r.enterprise_id AND o.request_id = r.request_id"
        " WHERE r.enterprise_id = ? AND r.booked = 'yes' AND r.local_time >= ? AND r.local_time < ?"
        " GROUP BY a.member_number ORDER BY a.member_number",
        (b"", b"", b"", enterprise_id, bytes.fromhex(first), bytes.fromhex(after)),
    )


# What members want ------------------------------------------------------------------------------------------------


def refuse(tx: Tx, actor: Operator, enterprise_id: int, member_number: str, kinds: Iterable[Kind]) -> None:
    """Send a member no notices of these kinds any more, and those of the others. Raises Refused, NotFound."""
    _prefer(tx, actor, enterprise_id, member_number, refused=",".join(sorted(set(kinds))))


def speak(tx: Tx, actor: Operator, enterprise_id: int, member_number: str, language: str) -> None:
    """Write to a member in ``zh`` or ``en``; empty for the enterprise's language. Raises Refused, NotFound."""
    if language not in ("", *PURSES):
        raise FormatError(f"a language is one of {', '.join(PURSES)}")
    _prefer(tx, actor, enterprise_id, member_number, language=language)


def _prefer(tx: Tx, actor: Operator, enterprise_id: int, member_number: str, **wanted: str) -> None:
    require(actor, Permission.MEMBER_CHANGE, enterprise_id)
    members.get(tx, enterprise_id, member_number)
    ((column, value),) = wanted.items()
    row = (enterprise_id, member_number, wanted.get("language", ""), wanted.get("refused", ""), tx.now_ms, value)
    tx.execute(
        "INSERT INTO notice_preference (enterprise_id, member_number, language, refused, changed_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (enterprise_id, member_number)"
        f" DO UPDATE SET {column} = ?, changed_ms = excluded.changed_ms",
        row,
    )
    audit.record(
        tx, enterprise_id, Event.MEMBER_CHANGED, actor.name, f"member:{member_number}", outcome=f"notice {column}"
    )


# What is sent -----------------------------------------------------------------------------------------------------


def claim(tx: Tx, enterprise_id: int, count: int, offset_min: int) -> list[Claimed]:
    """Take up to ``count`` notices to send now, the oldest first: from then on no other sender takes them.

    Those that are too old, refused by their member or without a phone number are dropped. At night only urgent ones.
    """
    found: list[Claimed] = []
    enterprise_language = str(setting(tx, enterprise_id, Setting.NOTICE_LANGUAGE))
    urgent = ", ".join(f"'{kind}'" for kind in URGENT)
    only = f" AND n.kind IN ({urgent})" if _is_quiet(tx, enterprise_id, offset_min) else ""
    while len(found) < count:
        row = tx.one(
            "SELECT n.origin, n.kind, n.template, n.facts, n.at_ms, m.phone_number, p.language, p.refused FROM notice n"
            " JOIN member m ON m.enterprise_id = n.enterprise_id AND m.member_number = n.member_number"
            " LEFT JOIN notice_preference p"
            " ON p.enterprise_id = n.enterprise_id AND p.member_number = n.member_number"
            f" WHERE n.enterprise_id = ? AND n.state = 'waiting'{only} ORDER BY n.at_ms, n.origin LIMIT 1",
            (enterprise_id,),
        )
        if row is None:
            break
        cause = _unwanted(row, tx.now_ms)
        close(tx, enterprise_id, row["origin"], "dropped" if cause else "sending", cause, ("waiting",))
        if not cause:
            text = words(row["template"], row["language"] or enterprise_language, json.loads(row["facts"]))
            found.append(Claimed(row["origin"], row["phone_number"], text))
    return found


def _unwanted(row: Row, now_ms: int) -> str:
    if row["kind"] in (row["refused"] or "").split(","):
        return "refused by the member"
    if not row["phone_number"]:
        return "no phone number"
    return "too old" if row["at_ms"] < now_ms - OLD_MS else ""


def _is_quiet(tx: Tx, enterprise_id: int, offset_min: int) -> bool:
    begin = number_setting(tx, enterprise_id, Setting.NOTICE_QUIET_FROM_MIN)
    end = number_setting(tx, enterprise_id, Setting.NOTICE_QUIET_UNTIL_MIN)
    minute = (tx.now_ms // 60_000 + offset_min) % 1440
    return begin <= minute < end if begin <= end else not end <= minute < begin


def words(template: str, language: str, facts: dict[str, Any]) -> str:
    """The text of a notice."""
    if "purse" in facts:
        facts = facts | {"purse": PURSES[language][Purse(facts["purse"])]}
    return TEMPLATES[template][language].format(**facts)


def close(tx: Tx, enterprise_id: int, origin: str, state: str, cause: str, before: tuple[str, ...]) -> None:
    """Note what became of a notice, if it is in one of the states ``before``."""
    tx.execute(
        "UPDATE notice SET state = ?, cause = ?, changed_ms = ? WHERE enterprise_id = ? AND origin = ?"
        f" AND state IN ({', '.join('?' * len(before))})",
        (state, cause, tx.now_ms, enterprise_id, origin, *before),
    )


def give_up(tx: Tx, enterprise_id: int, mine: Iterable[str] = ()) -> int:
    """Notices of a sender that was stopped in the middle become unknown; not those that the caller has (``mine``)."""
    sql = "SELECT origin FROM notice WHERE enterprise_id = ? AND state = 'sending' AND changed_ms < ?"
    stale = {row[0] for row in tx.all(sql, (enterprise_id, tx.now_ms - STALE_MS))} - set(mine)
    for origin in stale:
        close(tx, enterprise_id, origin, "unknown", "the sender was stopped", ("sending",))
    return len(stale)


def again(tx: Tx, actor: Operator, enterprise_id: int, origin: str) -> None:
    """Send a notice again whose end is unknown or that was rejected, because a person says so. Raises NotFound."""
    require(actor, Permission.NOTICE_SEND, enterprise_id)
    row = tx.one("SELECT state FROM notice WHERE enterprise_id = ? AND origin = ?", (enterprise_id, origin))
    if row is None:
        raise NotFound(f"no notice {origin}")
    if row["state"] not in ("unknown", "rejected"):
        raise Conflict(f"notice {origin} is {row['state']}: only unknown and rejected ones are sent again")
    close(tx, enterprise_id, origin, "waiting", "", ("unknown", "rejected"))


def listing(tx: Tx, enterprise_id: int, state: str = "", limit: int = 1000) -> Iterator[Notice]:
    """Notices, newest first; all or those in a state."""
    where, more = ("AND state = ?", (state,)) if state else ("", ())
    for row in tx.execute(
        f"SELECT {', '.join(Notice._fields)} FROM notice WHERE enterprise_id = ? {where}"
        " ORDER BY at_ms DESC, origin LIMIT ?",
        (enterprise_id, *more, limit),
    ):
        yield Notice(*row)


@dataclass
class _Open:
    """A notice on its way: parts without an answer, and how the others ended."""

    left: int
    ends: list[str] = field(default_factory=list)


class Sender:
    """Gathers, claims and sends for as long as it is polled. ``signature`` stands before each text, where it must.

    ``clock``: seconds of a clock that never goes back.
    """

    def __init__(
        self, db: Database, enterprise_id: int, offset_min: int, connect: Callable[[], Port], bind: Bind,
        source: Address, clock: Callable[[], float], signature: str = "",
    ) -> None:  # fmt: skip
        self._db, self._enterprise_id, self._offset_min = db, enterprise_id, offset_min
        self._source, self._signature, self._clock = source, signature, clock
        self.esme = Esme(connect, bind, self, clock, kind=Command.BIND_TRANSMITTER)  # answers of SIMs are not for us
        self._open: dict[str, _Open] = {}
        self._ended: dict[str, tuple[str, str]] = {}
        self._gather_s, self._are_more = float("-inf"), True
        self.counts: dict[str, int] = {}
        """How many notices ended how."""

    def poll(self, *, takes: bool = True) -> None:
        """Do what is due; ``takes`` off: finish only what is on its way.

        Raises DatabaseError; what was answered is noted at the next poll then.
        """
        now = self._clock()
        if takes and now - self._gather_s >= GATHER_S:
            with self._db.write() as tx:
                give_up(tx, self._enterprise_id, self._open)
                gather(tx, self._enterprise_id, self._offset_min)
            self._gather_s, self._are_more = now, True
        if takes and self.esme.bound and self._are_more and self.esme.waiting < WINDOW:
            with self._db.write() as tx:
                claimed = claim(tx, self._enterprise_id, WINDOW, self._offset_min)
            for one in claimed:
                self._submit(one)
            self._are_more = bool(claimed)
        self.esme.poll()
        self._note()

    @property
    def is_idle(self) -> bool:
        """Nothing is on its way, and nothing may be sent now."""
        return self.esme.bound and not (self._are_more or self._open)

    def close(self) -> None:
        """Take leave; what had not begun to leave waits for the next sender."""
        self.esme.close()
        for origin, one in self._open.items():
            self._ended[origin] = ("unknown", "the line broke") if one.ends else ("waiting", "")
        self._note()

    def _submit(self, notice: Claimed) -> None:
        """Give a notice to the client, in as many parts as it takes."""
        reference = sha256(notice.origin.encode()).digest()[0]
        try:
            to = sms.Address.of(notice.phone_number)
            parts = [
                Message(
                    self._source, Address(to.digits, to.toa >> 4 & 7, to.toa & 15), sms.to_centre(part),
                    UDHI if part.has_header else 0, 0, part.dcs, validity=VALIDITY,
                )
                for part in sms.encode_text(self._signature + notice.text, reference)
            ]  # fmt: skip
            for part in parts:
                part.encode()
        except FormatError as e:
            self._ended[notice.origin] = "rejected", str(e)
            return
        self._open[notice.origin] = _Open(len(parts))
        for number, part in enumerate(parts):
            self.esme.submit(f"{notice.origin}#{number}", part)

    def _part(self, key: str, end: str) -> None:
        origin = key.rpartition("#")[0]
        one = self._open[origin]
        one.left -= 1
        one.ends.append(end)
        if not one.left:
            del self._open[origin]
            worst = next((end for end in one.ends if end == "lost"), max(one.ends))
            self._ended[origin] = {"lost": ("unknown", "the answer was lost"), "": ("sent", "")}.get(
                worst, ("rejected", worst)
            )

    def _note(self) -> None:
        if self._ended:
            with self._db.write() as tx:
                for origin, (state, cause) in self._ended.items():
                    close(tx, self._enterprise_id, origin, state, cause, ("sending", "unknown"))
            for state, _ in self._ended.values():
                self.counts[state] = self.counts.get(state, 0) + 1
            self._ended.clear()

    # What the client tells

    def accepted(self, key: str, message_id: str) -> None:  # noqa: ARG002  # nothing is asked of the centre later
        """One part is at the centre."""
        self._part(key, "")

    def rejected(self, key: str, status: int) -> None:
        """The centre will not take one part."""
        self._part(key, f"status {status:02X}")

    def lost(self, key: str) -> None:
        """Nobody knows of one part."""
        self._part(key, "lost")

    def delivered(self, message: Message) -> None:
        """Never, since a transmitter is brought nothing; what a centre brings all the same is forgotten."""
