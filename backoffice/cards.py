"""Life of a card and of an application (books.md): guarded transitions, and the flows that make them.

A flow touches chip, list, books and both databases as steps of a journaled job. Torn at any instant, the same
call with the card presented again goes on; a repeated request id gives the first outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum, unique
from typing import NamedTuple

from backoffice import airqueue, audit, batches, blacklists, chips, jobs, ledger, members, outbox, reconcile
from backoffice.audit import Event
from backoffice.batches import WashSteps
from backoffice.chips import CardState
from backoffice.database import Database, Row, Tx
from backoffice.enterprises import Setting, number_setting, setting
from backoffice.jobs import Result
from backoffice.ledger import Entry, card_account
from backoffice.members import Member
from backoffice.operators import Operator, Permission, require
from backoffice.station import Desk, Office, PhaseSteps, Work, run
from backoffice.wallet import Move, carry_out, empty
from cardlib.blacklist import ListReason
from cardlib.errors import CardRemoved, Conflict, CryptoError, NotFound, OneCardError, OutcomeUnknown, Refused
from cardlib.iso7816 import read_binary
from cardlib.money import yuan
from cardlib.profile import AccessRights, CardKind, Holder, Purse, check_serial, load_profile
from cardlib.purse import read_log
from cardlib.transport import Transport
from keymgmt.handle import KeyHandle
from keymgmt.personalise import PersonalPlan, personalise
from keymgmt.retire import retire
from keymgmt.slot import SlotPlan, open_slot
from keymgmt.steps import StepJournal, chip_number, may_try, read_identity, was_refused
from keymgmt.store import KeyStore
from keymgmt.wash import WashPlan, wash

WASH_VERSION = 1
NUMBER_TYPE = 1


@unique
class State(StrEnum):
    """States of an enterprise's application on a card."""

    SLOT = "slot"
    ISSUED = "issued"
    POSTED = "posted"
    ACTIVE = "active"
    LOST = "lost"
    REPLACED = "replaced"
    CANCELLED = "cancelled"


S = State
NEXT: dict[State, tuple[State, ...]] = {
    S.SLOT: (S.ISSUED, S.CANCELLED),
    S.ISSUED: (S.POSTED, S.ACTIVE, S.LOST, S.CANCELLED),
    S.POSTED: (S.ACTIVE, S.LOST, S.REPLACED, S.CANCELLED),
    S.ACTIVE: (S.LOST, S.REPLACED, S.CANCELLED),
    S.LOST: (S.ACTIVE, S.POSTED, S.REPLACED, S.CANCELLED),
    S.REPLACED: (),
    S.CANCELLED: (),
}
USABLE = (S.ISSUED, S.POSTED, S.ACTIVE)


class Application(NamedTuple):
    """An enterprise's application on a card."""

    card_serial: bytes
    member_number: str
    kind: CardKind
    state: State
    key_version: int
    starts: str
    expires: str
    replaces: bytes | None
    replaced_by: bytes | None
    changed_ms: int


@dataclass(frozen=True, slots=True)
class NewCard:
    """A card to make: in the reader, for a member, with a PIN of 2 to 6 bytes as the card has it.

    ``posted``: sent by post, so inactive until its receipt is confirmed. ``kind``: of a card without serial yet.
    """

    card: Transport
    pin: bytes
    posted: bool = False
    kind: CardKind = CardKind.CPU_CARD
    in_slot: Callable[[int], Transport] | None = None
    """The way to the enterprise's own slot once it is open, where that is another one (over the air)."""

    def __repr__(self) -> str:
        return f"<NewCard {self.kind.name}, posted {self.posted}>"


# Reading


_COLUMNS = "card_serial, member_number, kind, state, key_version, starts, expires, replaces, replaced_by, changed_ms"


def get(tx: Tx, enterprise_id: int, serial: bytes) -> Application:
    """The application on one card. Raises NotFound."""
    row = tx.one(
        f"SELECT {_COLUMNS} FROM card_application WHERE enterprise_id = ? AND card_serial = ?", (enterprise_id, serial)
    )
    if row is None:
        raise NotFound(f"enterprise {enterprise_id} has no card {serial.hex().upper()}")
    return _application(row)


def of_member(tx: Tx, enterprise_id: int, member_number: str) -> list[Application]:
    """All cards that a member ever had, oldest first."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM card_application WHERE enterprise_id = ? AND member_number = ? ORDER BY created_ms",
        (enterprise_id, member_number),
    )
    return [_application(row) for row in rows]


def listing(tx: Tx, enterprise_id: int, state: State | None = None) -> list[Application]:
    """All cards of an enterprise, by serial, of one state if given."""
    rows = tx.all(
        f"SELECT {_COLUMNS} FROM card_application WHERE enterprise_id = ? AND (state = ? OR ? = '')"
        " ORDER BY card_serial",
        (enterprise_id, state or "", state or ""),
    )
    return [_application(row) for row in rows]


def history(tx: Tx, enterprise_id: int, serial: bytes) -> list[Row]:
    """Transitions of a card, oldest first: state_from, state_to, actor, reason, request_id, at_ms."""
    return tx.all(
        "SELECT state_from, state_to, actor, reason, request_id, at_ms FROM card_transition"
        " WHERE enterprise_id = ? AND card_serial = ? ORDER BY at_ms, transition_id",
        (enterprise_id, serial),
    )


def _application(row: Row) -> Application:
    serial, member, kind, state, *rest = row
    return Application(serial, member, CardKind(kind), State(state), *rest)


# Changing a state


def transition(
    tx: Tx, enterprise_id: int, serial: bytes, new: State, actor: str, reason: str, request_id: str | None = None
) -> bool:
    """Move an application on; False when it is there already. Tells the audit log and the subsystems.

    Raises NotFound, Conflict that says what is possible.
    """
    old = get(tx, enterprise_id, serial).state
    if old is new:
        return False
    if new not in NEXT[old]:
        possible = ", ".join(NEXT[old]) or "nothing any more"
        raise Conflict(f"card {serial.hex().upper()} is {old}: it can become {possible}, not {new}")
    tx.execute(
        "UPDATE card_application SET state = ?, changed_ms = ? WHERE enterprise_id = ? AND card_serial = ?",
        (new.value, tx.now_ms, enterprise_id, serial),
    )
    _write_transition(tx, enterprise_id, serial, old, new, actor, reason, request_id)
    card = serial.hex().upper()
    audit.record(
        tx, enterprise_id, Event.CARD_CHANGED, actor, f"card:{card}",
        state_from=old.value, state_to=new.value, reason=reason[:64],
    )  # fmt: skip
    outbox.publish(tx, enterprise_id, f"card.{new}", {"card": card, "from": old.value, "to": new.value})
    return True


def _write_transition(
    tx: Tx, enterprise_id: int, serial: bytes, old: State, new: State, actor: str, reason: str, request_id: str | None
) -> None:
    tx.execute(
        "INSERT INTO card_transition (enterprise_id, transition_id, card_serial, state_from, state_to, actor, reason,"
        " request_id, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (enterprise_id, tx.new_id(), serial, old.value, new.value, actor, reason, request_id, tx.now_ms),
    )


def lose(office: Office, operator: Operator, serial: bytes, reason: str, *, request_id: str | None = None) -> Result:
    """Report a card lost: state, blacklist, subsystems (requirement D4). Twice is once. Raises Refused, Conflict."""
    require(operator, Permission.CARD_LOSE, office.enterprise_id)

    def act(work: Work) -> Result:
        def change(tx: Tx) -> Result:
            transition(tx, office.enterprise_id, serial, S.LOST, operator.name, reason, request_id)
            blacklists.put(tx, office.enterprise_id, serial, ListReason.LOST, operator.name)
            _tell_phone(tx, operator, office.enterprise_id, serial, "block")
            return {}

        work.once("lost", change)
        _platform_state(office, work, serial, CardState.LOST, reason)
        return {"card": serial.hex().upper(), "state": S.LOST.value}

    return run(office, operator, "lose", serial.hex(), {}, request_id, act)


def unlock(office: Office, operator: Operator, serial: bytes, reason: str, *, request_id: str | None = None) -> Result:
    """A lost card is found: active again, off the list, subsystems told (requirement D5).

    Raises Refused, Conflict unless it is lost; a replaced card never comes back.
    """
    require(operator, Permission.CARD_UNLOCK, office.enterprise_id)

    def act(work: Work) -> Result:
        def change(tx: Tx) -> Result:
            state = get(tx, office.enterprise_id, serial).state
            if state is not S.LOST:
                raise Conflict(f"card {serial.hex().upper()} is {state}, not lost: there is nothing to unlock")
            posted = _before(tx, office.enterprise_id, serial) is S.POSTED
            after = S.POSTED if posted else S.ACTIVE
            transition(tx, office.enterprise_id, serial, after, operator.name, reason, request_id)
            if not posted:
                blacklists.take_off(tx, office.enterprise_id, serial, operator.name)
            _tell_phone(tx, operator, office.enterprise_id, serial, "unblock")
            return {"state": after.value}

        state = work.once("unlocked", change)["state"]
        _platform_state(office, work, serial, CardState.IN_USE, reason)
        return {"card": serial.hex().upper(), "state": state}

    return run(office, operator, "unlock", serial.hex(), {}, request_id, act)


def _tell_phone(tx: Tx, operator: Operator, enterprise_id: int, serial: bytes, kind: str) -> None:
    """Beside the blacklist a SIM's application is blocked over the air, best effort; the last word counts."""
    if get(tx, enterprise_id, serial).kind is CardKind.RFID_SIM:
        airqueue.queue(tx, operator, enterprise_id, kind, serial, {})


def confirm_receipt(office: Office, operator: Operator, serial: bytes, *, request_id: str | None = None) -> Result:
    """The holder has his posted card: active, off the list (requirement D6). Raises Refused, Conflict."""
    require(operator, Permission.CARD_ISSUE, office.enterprise_id)

    def act(work: Work) -> Result:
        def change(tx: Tx) -> Result:
            state = get(tx, office.enterprise_id, serial).state
            if state not in (S.POSTED, S.ACTIVE):
                raise Conflict(f"card {serial.hex().upper()} is {state}, not posted: there is no receipt to confirm")
            transition(tx, office.enterprise_id, serial, S.ACTIVE, operator.name, "receipt confirmed", request_id)
            blacklists.take_off(tx, office.enterprise_id, serial, operator.name)
            return {}

        work.once("confirmed", change)
        return {"card": serial.hex().upper(), "state": S.ACTIVE.value}

    return run(office, operator, "receipt", serial.hex(), {}, request_id, act)


def _before(tx: Tx, enterprise_id: int, serial: bytes) -> State:
    """The state before the present one."""
    return State(history(tx, enterprise_id, serial)[-1]["state_from"])


def _platform_state(office: Office, work: Work, serial: bytes, state: CardState, reason: str) -> None:
    """The chip's own state. What other enterprises have on it outlives the end of our application."""

    def act() -> None:
        with office.platform.write() as tx:
            others = [slot for slot in chips.slots(tx, serial) if slot.enterprise_id != office.enterprise_id]
            if others and state in (CardState.CANCELLED, CardState.REPLACED):
                return
            now = chips.get(tx, serial).state
            if now is not state and state in chips.NEXT[now]:
                chips.change_state(tx, serial, state, work.info.actor, reason[:64])

    work.phase(f"platform {state}", act)


# Keys


def update_keys(
    office: Office, operator: Operator, card: Transport, serial: bytes, *, request_id: str | None = None
) -> Result:
    """Bring the card in the reader to the active key version, or finish one that was torn (requirement B5).

    Every other flow with a card in the reader does the same first. Raises Refused, Conflict, NotFound; CardRemoved
    when the card was pulled away: present it again.
    """
    require(operator, Permission.CARD_ISSUE, office.enterprise_id)
    key_set = office.key_set

    def act(work: Work) -> Result:
        with office.db.read() as tx:
            held = get(tx, office.enterprise_id, serial).key_version
        office.desk(work).open_card(card, serial)
        return {"card": serial.hex().upper(), "version_before": held, "version": key_set}

    return run(office, operator, "rekey", serial.hex(), {"version": key_set}, request_id, act)


# Issuing


def issue(
    office: Office, operator: Operator, member_number: str, new: NewCard, *, request_id: str | None = None
) -> Result:
    """Make a member's card: wash it if that is needed, open its slot, personalise, prove (requirement D3).

    Raises Refused: permission, ``member``, ``has_card``, ``transfer``, ``number_has_card``, ``card_used``, ``wash``;
    Conflict when another card is presented midway; whatever the card says no with.
    """
    require(operator, Permission.CARD_ISSUE, office.enterprise_id)

    def act(work: Work) -> Result:
        mine = (work.result("card") or {}).get("serial", "")
        with office.db.read() as tx:
            member = _member(tx, office.enterprise_id, member_number)
            _check_has_none(tx, office.enterprise_id, member_number, mine)
        _check_number(office, member, mine, operator.name)
        _, make_official = _make(office, work, member, new)
        return work.conclude("issued", make_official)

    return run(office, operator, "issue", member_number, {"posted": new.posted}, request_id, act)


class Issued(NamedTuple):
    """One card of a batch: its outcome, or the error that stopped it."""

    member_number: str
    outcome: Result | None
    error: OneCardError | None


def issue_batch(
    office: Office,
    operator: Operator,
    member_numbers: Iterable[str],
    next_card: Callable[[str], NewCard],
    *,
    batch_id: str,
) -> Iterator[Issued]:
    """Issue one card after another; run again with the same ``batch_id``, it continues where it was stopped.

    ``next_card`` asks for the card of a member. A card that fails does not stop the others.
    """
    require(operator, Permission.CARD_ISSUE, office.enterprise_id)
    for number in member_numbers:
        request_id = f"{batch_id}:{number}"
        with office.db.read() as tx:
            done = jobs.by_request(tx, office.enterprise_id, request_id)
        try:
            if done is not None and done.state == "done":
                yield Issued(number, done.outcome, None)
            else:
                yield Issued(number, issue(office, operator, number, next_card(number), request_id=request_id), None)
        except OneCardError as error:
            yield Issued(number, None, error)


def _member(tx: Tx, enterprise_id: int, member_number: str) -> Member:
    member = members.get(tx, enterprise_id, member_number)
    if member.state != "active":
        raise Refused("member", f"member {member_number} has left")
    return member


def _check_has_none(tx: Tx, enterprise_id: int, member_number: str, mine: str) -> None:
    """Refuse a second card; ``mine``, the one that this very job makes, does not count."""
    for one in of_member(tx, enterprise_id, member_number):
        serial = one.card_serial.hex()
        if one.state in (*USABLE, S.LOST) and serial != mine:
            what = "unlock or reissue it" if one.state is S.LOST else "reissue or cancel it"
            raise Refused("has_card", f"member {member_number} has card {serial.upper()}, {one.state}: {what}")


def _check_number(office: Office, member: Member, mine: str, actor: str) -> None:
    """Requirement D2, told before anything is written on a card."""
    if not member.phone_number:
        return
    with office.platform.read() as tx:
        bound = chips.binding(tx, number=member.phone_number)
        if bound is not None and bound.card_serial.hex() != mine:
            chips.bind_number(tx, bound.card_serial, member.phone_number, member.name, actor)
            masked, card = chips.mask(member.phone_number), bound.card_serial.hex().upper()
            raise Refused("number_has_card", f"number {masked} has card {card}: cancel or reissue that one")


def _make(
    office: Office, work: Work, member: Member, new: NewCard, replaces: bytes | None = None
) -> tuple[bytes, Callable[[Tx], Result]]:
    """Turn the card in the reader into the member's card; returns its serial and the writing that makes it official."""
    found = work.result("card")
    if found is None:
        washed = _washed(office, work, new)
        found = work.once("card", lambda tx: _reserve(tx, office, washed, member, replaces))
    serial = bytes.fromhex(found["serial"])
    if work.result("issued") is not None:
        return serial, lambda _: {}
    desk = office.desk(work)
    number = _open(office, work, serial, new.card, member, replaces)
    if new.in_slot is not None:
        new = replace(new, card=new.in_slot(number))
    _personalise(office, work, desk, serial, member, new)
    return serial, lambda tx: _issued(tx, work, desk, serial, number, new.posted)


def _washed(office: Office, work: Work, new: NewCard) -> bytes:
    """The serial of the card in the reader, once it is washed. A chip that carries no serial gets a fresh one.

    So a chip torn before it had its serial, or another one put in its place, never shares one (requirement B1).
    """
    identity = read_identity(new.card)
    serial = identity.serial if identity is not None and any(identity.serial) else b""
    known = None
    if serial:
        with office.platform.read() as tx:
            known = chips.find(tx, serial)
    if known is not None and known.wash_version:
        if identity is None or not identity.wash_version:
            raise Refused("card_used", f"another chip has serial {serial.hex().upper()} by now: destroy this one")
        if known.state not in (CardState.WASHED, CardState.IN_USE):
            raise Refused("card_used", f"card {serial.hex().upper()} is {known.state}: take another one")
        return serial
    chip = chip_number(new.card)
    initial = _vendor_key(office, chip)
    if office.platform_operator is None or initial is None:
        raise Refused("wash", "this card is not washed: the platform washes cards first")
    job = f"chip {chip}" if chip else f"chips without number, ATR {new.card.atr.hex().upper()}"
    steps, kcv = _ChipSteps(work, office.platform), initial.kcv.hex().upper()
    tried = steps.steps(job)
    if not may_try(tried, kcv, trusted=bool(chip)) and not was_refused(tried, kcv):
        raise CryptoError(
            f"{job} refused keys before: make sure of the key with check value {kcv}, then run onecard card wash"
            " --try-again with it"
        )
    serial = serial or office.next_serial(new.kind)
    plan = WashPlan(job, serial, WASH_VERSION, _today(office), office.card_version, initial)
    wash(new.card, plan, office.store, steps)
    return serial


def _vendor_key(office: Office, chip: str | None) -> KeyHandle | None:
    """The vendor's key of a chip: from its batch where the office has the batch's key, else the one for all."""
    if chip is not None and office.batch_key is not None:
        with office.platform.read() as tx:
            found = batches.of_chip(tx, chip)
        if found is not None:
            return found[0].transport_key(found[1], office.batch_key)
    return office.initial


class _ChipSteps(PhaseSteps):
    """Steps of washing at a desk: a key that a chip refused is known to every job and command after this one."""

    def __init__(self, work: Work, platform: Database) -> None:
        super().__init__(work)
        self._chips = WashSteps(platform)
        self._past: dict[str, Sequence[str]] = {}

    def done(self, job: str, step: str) -> None:
        """See ``keymgmt.steps.StepJournal``."""
        super().done(job, step)
        if "refused" in step:
            self._chips.done(job, step)

    def steps(self, job: str) -> list[str]:
        """See ``keymgmt.steps.StepJournal``."""
        if job not in self._past:
            self._past[job] = self._chips.steps(job)
        return [*self._past[job], *super().steps(job)]


def _reserve(tx: Tx, office: Office, serial: bytes, member: Member, replaces: bytes | None) -> Result:
    """Write the application down, so that no second job takes the same card."""
    kind = check_serial(serial)
    if kind not in (CardKind.RFID_SIM, CardKind.CPU_CARD):
        raise Refused("card_used", f"{serial.hex().upper()} is a {kind.name}, no member's card")
    row = tx.one(
        "SELECT member_number, state FROM card_application WHERE enterprise_id = ? AND card_serial = ?",
        (office.enterprise_id, serial),
    )
    if row is not None and (row["member_number"], row["state"]) != (member.member_number, S.SLOT.value):
        raise Refused("card_used", f"card {serial.hex().upper()} is {row['state']} here: take another one")
    starts, key_set = _today(office), office.key_set
    expires = _plus_years(starts, number_setting(tx, office.enterprise_id, Setting.APPLICATION_YEARS))
    tx.execute(
        "INSERT INTO card_application (enterprise_id, card_serial, member_number, kind, state, slot, key_version,"
        " starts, expires, replaces, created_ms, changed_ms) VALUES (?, ?, ?, ?, 'slot', 1, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (enterprise_id, card_serial) DO UPDATE SET replaces = excluded.replaces,"
        " key_version = excluded.key_version",
        (office.enterprise_id, serial, member.member_number, int(kind), key_set, starts.isoformat(),
         expires.isoformat(), replaces, tx.now_ms, tx.now_ms),
    )  # fmt: skip
    return {
        "serial": serial.hex(), "starts": starts.isoformat(), "expires": expires.isoformat(), "key_set": key_set,
    }  # fmt: skip


def _reserved_key_set(work: Work) -> int:
    """The key set that a card was promised when it was reserved; jobs of before there were versions had the first."""
    return int((work.result("card") or {}).get("key_set", 1))


def _today(office: Office) -> date:
    now = datetime.fromtimestamp(office.now_ms() / 1000, UTC) + timedelta(minutes=office.offset_min)
    return now.date()


def _plus_years(start: date, years: int) -> date:
    try:
        return start.replace(year=start.year + years)
    except ValueError:  # 29 February
        return start.replace(year=start.year + years, day=28)


def _open(office: Office, work: Work, serial: bytes, card: Transport, member: Member, replaces: bytes | None) -> int:
    """Register the chip, bind the member's number, open the slot, each unless it is done; returns the slot's number."""
    actor = office.platform_operator
    with office.platform.write() as tx:
        if actor is not None and chips.find(tx, serial) is None:
            chips.register(tx, actor, serial, wash_version=WASH_VERSION)
        if member.phone_number:
            _bind(tx, serial, member, replaces, work.info.actor)
        if actor is None:
            return _open_slot_of(tx, serial, office.enterprise_id).number
        slot = chips.reserve_slot(tx, actor, serial, office.enterprise_id)
    algorithm = office.algorithm(_reserved_key_set(work))
    plan = SlotPlan("slot", serial, office.enterprise_id, office.label, algorithm, office.card_version)
    _open_reserved(office.platform, actor, card, slot, plan, office.store, PhaseSteps(work))
    return slot.number


def prepare_slot(
    platform: Database, actor: Operator, card: Transport, plan: SlotPlan, store: KeyStore, steps: StepJournal
) -> int:
    """The platform opens an enterprise's slot on a washed card, unless it is open; returns its number (keys.md, Slots).

    Raises Refused ``permission``, ``no_slot``; NotFound for a card that the platform does not know; what the card says.
    """
    with platform.write() as tx:
        slot = chips.reserve_slot(tx, actor, plan.serial, plan.enterprise_id)
    _open_reserved(platform, actor, card, slot, plan, store, steps)
    return slot.number


def _open_reserved(
    platform: Database, actor: Operator, card: Transport, slot: chips.Slot, plan: SlotPlan, store: KeyStore,
    steps: StepJournal,
) -> None:  # fmt: skip
    if slot.state == "open":
        return
    open_slot(card, plan, store, steps)
    with platform.write() as tx:
        chips.slot_opened(tx, actor, plan.serial, plan.enterprise_id)


def _open_slot_of(tx: Tx, serial: bytes, enterprise_id: int) -> chips.Slot:
    """The slot that the platform opened for us. Raises Refused ``slot``."""
    for slot in chips.slots(tx, serial):
        if (slot.enterprise_id, slot.state) == (enterprise_id, "open"):
            return slot
    raise Refused("slot", f"card {serial.hex().upper()} has no slot here: the platform opens slots")


def _bind(tx: Tx, serial: bytes, member: Member, replaces: bytes | None, actor: str) -> None:
    """Bind the member's number to the card; a reissue moves it from the old one."""
    if replaces is not None and chips.binding(tx, serial=replaces) is not None:
        chips.rebind_number(tx, replaces, serial, actor)
    else:
        chips.bind_number(tx, serial, member.phone_number, member.name, actor)


def _personalise(office: Office, work: Work, desk: Desk, serial: bytes, member: Member, new: NewCard) -> None:
    here, kept = work.result("card") or {}, (work.result("read") or {}).get("access")
    starts, expires = date.fromisoformat(here["starts"]), date.fromisoformat(here["expires"])
    key_set = _reserved_key_set(work)
    plan = PersonalPlan(
        "personalise", serial, office.enterprise_id, key_set,
        _holder(serial, member),
        AccessRights.decode(bytes.fromhex(kept)) if kept else _rights(member, starts, expires),
        starts, expires, new.pin, office.algorithm(key_set),
    )  # fmt: skip
    try:
        personalise(new.card, plan, desk.station())
    except OutcomeUnknown as e:  # of a payment of zero: nothing to resolve
        raise CardRemoved("the card was lost while it was proven: present it again") from e


def contents(tx: Tx, enterprise_id: int, serial: bytes) -> dict[str, bytes]:
    """What holder and access files of an issued card should hold now, by name in the profile. Raises NotFound."""
    one = get(tx, enterprise_id, serial)
    member = members.get(tx, enterprise_id, one.member_number)
    rights = _rights(member, date.fromisoformat(one.starts), date.fromisoformat(one.expires))
    return {"holder": _holder(serial, member).encode(), "access": rights.encode()}


def unsettled(tx: Tx, enterprise_id: int, serial: bytes) -> list[str]:
    """Why an application can't be deleted yet: what its purses hold, what is open (requirement D8)."""
    held = {purse: ledger.balance(tx, enterprise_id, card_account(serial, purse)) for purse in Purse}
    left = [f"the {purse.name.lower()} purse holds {yuan(fen)}" for purse, fen in held.items() if fen]
    sql = "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND card_serial = ? AND open = 1 LIMIT 1"
    if tx.one(sql, (enterprise_id, serial)) is not None:
        left.append("a transaction is still open")
    if any(gap.card_serial == serial for gap in reconcile.gaps(tx, enterprise_id)):
        left.append("a terminal's journal is still missing")
    return left


def _holder(serial: bytes, member: Member) -> Holder:
    return Holder(serial[0], 1, members.name_on_card(member.name), member.member_number, NUMBER_TYPE)


def _rights(member: Member, starts: date, expires: date) -> AccessRights:
    since = date.fromisoformat(member.valid_from) if member.valid_from else starts
    until = date.fromisoformat(member.valid_until) if member.valid_until else expires
    return AccessRights(since, until, member.groups.to_bytes(8, "big"))


def _issued(tx: Tx, work: Work, desk: Desk, serial: bytes, slot: int, posted: bool) -> Result:
    """From slot over issued to active or posted, in one go."""
    actor, enterprise_id, card = work.info.actor, work.enterprise_id, serial.hex().upper()
    state = S.POSTED if posted else S.ACTIVE
    changed = tx.execute(
        "UPDATE card_application SET state = ?, slot = ?, changed_ms = ?"
        " WHERE enterprise_id = ? AND card_serial = ? AND state = 'slot'",
        (state.value, slot, tx.now_ms, enterprise_id, serial),
    ).rowcount
    if not changed:
        raise Conflict(f"card {card} is issued already")
    for old, new in ((S.SLOT, S.ISSUED), (S.ISSUED, state)):
        _write_transition(tx, enterprise_id, serial, old, new, actor, work.info.kind, work.info.request_id)
    if posted:
        # Terminals refuse it until its holder confirms that he has it.
        blacklists.put(tx, enterprise_id, serial, ListReason.LOST, actor)
    job_id = work.info.job_id
    audit.record(tx, enterprise_id, Event.CARD_ISSUED, actor, f"card:{card}", state_to=state.value, job=job_id)
    outbox.publish(tx, enterprise_id, f"card.{state}", {"card": card, "from": S.SLOT.value, "to": state.value})
    desk.prove_new(tx, serial)
    return {"job": job_id, "card": card, "state": state.value}


# Reissue and cancel


def reissue(
    office: Office,
    operator: Operator,
    old_serial: bytes,
    new: NewCard,
    *,
    old_card: Transport | None = None,
    request_id: str | None = None,
) -> Result:
    """Give a member a new card for an old one, with its money, moved exactly once (requirement D6).

    ``old_card`` in a reader: read, emptied, wiped and blocked. Without it the old one must be lost, and its money
    follows from the books when no journal can be missing any more, or the waiting time is over: until then the
    outcome's ``state`` is ``waiting``, and the same call with the new card goes on.
    Raises Refused, Conflict, NotFound; OutcomeUnknown when a card was pulled away while money moved.
    """
    require(operator, Permission.CARD_REISSUE, office.enterprise_id)

    def act(work: Work) -> Result:
        with office.db.read() as tx:
            old = get(tx, office.enterprise_id, old_serial)
            member = _member(tx, office.enterprise_id, old.member_number)
        if work.result("replaced") is None:
            _check_replaceable(old, old_card)
        if old_card is not None and work.result("amounts") is None:
            _take_over(office, operator, work, old_serial, old_card, ledger.TRANSFERS)
        work.once("replaced", lambda tx: _end(tx, work, old_serial, S.REPLACED, ListReason.REPLACED))
        _platform_state(office, work, old_serial, CardState.REPLACED, "reissue")
        serial, make_official = _make(office, work, member, new, old_serial)
        work.once("issued", make_official)
        work.once("linked", lambda tx: _link(tx, office.enterprise_id, old_serial, serial))
        card = serial.hex().upper()
        if not _settled(office, work, old_serial, ledger.TRANSFERS):
            return {"card": card, "state": "waiting", "until_ms": _wait_end(office, old_serial)}
        carried = _carry(office, work, serial, new.card)
        return {"card": card, "state": (S.POSTED if new.posted else S.ACTIVE).value, "carried_fen": carried}

    return run(office, operator, "reissue", old_serial.hex(), {"posted": new.posted}, request_id, act)


def cancel(
    office: Office,
    operator: Operator,
    serial: bytes,
    reason: str,
    *,
    card: Transport | None = None,
    request_id: str | None = None,
) -> Result:
    """End a card: balance settled by the enterprise's rule, number freed, listed, told (requirement D8).

    Without the card its money is settled from the books, as in :func:`reissue`: the card counts as lost and the
    outcome's ``state`` is ``waiting`` until then. Raises Refused, Conflict, NotFound, OutcomeUnknown.
    """
    require(operator, Permission.CARD_CANCEL, office.enterprise_id)

    def act(work: Work) -> Result:
        with office.db.read() as tx:
            state = get(tx, office.enterprise_id, serial).state
            rule = setting(tx, office.enterprise_id, Setting.CANCEL_BALANCE)
        account = ledger.REFUNDS if rule == "refund" else ledger.EXPIRED
        if work.result("cancelled") is None:
            if state not in (S.POSTED, S.ACTIVE, S.LOST):
                raise Conflict(f"card {serial.hex().upper()} is {state}: there is nothing to cancel")
            if card is not None and work.result("amounts") is None:
                _take_over(office, operator, work, serial, card, account)
            elif card is None:
                work.once("listed", lambda tx: _give_up(tx, work, serial, reason))
            if not _settled(office, work, serial, account):
                return {"card": serial.hex().upper(), "state": "waiting", "until_ms": _wait_end(office, serial)}
            work.once("cancelled", lambda tx: _end(tx, work, serial, S.CANCELLED, ListReason.CANCELLED))
        work.phase("number", lambda: _release(office, work, serial))
        _platform_state(office, work, serial, CardState.CANCELLED, reason)
        amounts = work.result("amounts") or {}
        return {"card": serial.hex().upper(), "state": S.CANCELLED.value, "account": account, "settled_fen": amounts}

    return run(office, operator, "cancel", serial.hex(), {}, request_id, act)


def _check_replaceable(old: Application, old_card: Transport | None) -> None:
    if old.state is S.LOST or (old_card is not None and old.state in (S.POSTED, S.ACTIVE)):
        return
    card = old.card_serial.hex().upper()
    if old.state in (S.POSTED, S.ACTIVE):
        raise Refused("not_lost", f"card {card} is {old.state}: present it, or report it lost first")
    raise Conflict(f"card {card} is {old.state}: it can't be reissued")


def _take_over(office: Office, operator: Operator, work: Work, serial: bytes, card: Transport, account: str) -> None:
    """Read, empty, wipe and block the old application; what it held stands in ``account`` (profile.md)."""
    desk = office.desk(work, account)

    def read() -> Result:
        empty(office, operator, card, serial)
        desk.open_card(card, serial)
        access = read_binary(card, load_profile().file("access").fid)
        return {"access": access.hex(), "log": [record.encode().hex() for record in read_log(card)]}

    def end() -> None:
        retire(card, desk.station(), "retire", serial, office.enterprise_id, desk.open_moves(serial))

    work.phase("read", read)
    work.phase("retired", end)
    work.once("amounts", lambda tx: _taken(tx, work, serial))


def _taken(tx: Tx, work: Work, serial: bytes) -> Result:
    """What this job took off a card, by purse."""
    rows = tx.all(
        "SELECT purse, SUM(amount_fen) FROM transaction_record WHERE enterprise_id = ? AND card_serial = ?"
        " AND request_id BETWEEN ? AND ? AND verdict = 'posted' GROUP BY purse",
        (work.enterprise_id, serial, f"{work.info.job_id}:", f"{work.info.job_id};"),
    )
    return {Purse(row[0]).name.lower(): row[1] for row in rows}


def _end(tx: Tx, work: Work, serial: bytes, state: State, why: ListReason) -> None:
    transition(tx, work.enterprise_id, serial, state, work.info.actor, work.info.kind, work.info.request_id)
    blacklists.put(tx, work.enterprise_id, serial, why, work.info.actor)


def _give_up(tx: Tx, work: Work, serial: bytes, reason: str) -> None:
    """A card that is cancelled without being here counts as lost until its money is settled."""
    transition(tx, work.enterprise_id, serial, S.LOST, work.info.actor, reason, work.info.request_id)
    blacklists.put(tx, work.enterprise_id, serial, ListReason.CANCELLED, work.info.actor)


def _link(tx: Tx, enterprise_id: int, old_serial: bytes, serial: bytes) -> None:
    tx.execute(
        "UPDATE card_application SET replaced_by = ?, changed_ms = ? WHERE enterprise_id = ? AND card_serial = ?",
        (serial, tx.now_ms, enterprise_id, old_serial),
    )


def _settled(office: Office, work: Work, serial: bytes, account: str) -> bool:
    """Move the money of a card that is not here out of the books, once nothing can be missing; False until then."""
    if work.result("amounts") is not None:
        return True
    with office.db.read() as tx:
        if tx.now_ms < _wait_end_of(tx, office, serial) and not _complete(tx, office, serial):
            return False

    def act(tx: Tx) -> Result:
        amounts = {}
        for purse in Purse:
            fen = ledger.balance(tx, office.enterprise_id, card_account(serial, purse))
            if fen > 0:
                entry_id = f"{work.info.job_id}/{purse.name.lower()}"
                postings = {card_account(serial, purse): -fen, account: fen}
                entry = Entry(entry_id, work.info.kind, tx.now_ms, postings, work.info.actor)
                ledger.post(tx, office.enterprise_id, entry)
                amounts[purse.name.lower()] = fen
        return amounts

    work.once("amounts", act)
    return True


def _complete(tx: Tx, office: Office, serial: bytes) -> bool:
    """Whether every till's journal is here up to the loss, and nothing of this card is open or missing."""
    lost_ms = _lost_ms(tx, office.enterprise_id, serial)
    if reconcile.behind(tx, office.enterprise_id, lost_ms):
        return False
    if any(gap.card_serial == serial for gap in reconcile.gaps(tx, office.enterprise_id)):
        return False
    sql = "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND card_serial = ? AND open = 1 LIMIT 1"
    return tx.one(sql, (office.enterprise_id, serial)) is None


def _lost_ms(tx: Tx, enterprise_id: int, serial: bytes) -> int:
    found: int = tx.value(
        "SELECT COALESCE(MAX(at_ms), 0) FROM card_transition WHERE enterprise_id = ? AND card_serial = ?"
        " AND state_to = 'lost'",
        (enterprise_id, serial),
    )
    return found


def _wait_end_of(tx: Tx, office: Office, serial: bytes) -> int:
    wait_ms = number_setting(tx, office.enterprise_id, Setting.REISSUE_WAIT_MS)
    return _lost_ms(tx, office.enterprise_id, serial) + wait_ms


def _wait_end(office: Office, serial: bytes) -> int:
    with office.db.read() as tx:
        return _wait_end_of(tx, office, serial)


def _carry(office: Office, work: Work, serial: bytes, card: Transport) -> Result:
    """Load what was taken off the old card onto the new one, each purse exactly once."""
    amounts = work.result("amounts") or {}
    for name, fen in sorted(amounts.items()):
        _carry_purse(office, work, card, Move("reissue", serial, Purse[name.upper()], fen, True, ledger.TRANSFERS))
    return amounts


def _carry_purse(office: Office, work: Work, card: Transport, move: Move) -> None:
    def act() -> None:
        carry_out(card, office.desk(work, move.account), move, any_state=True)

    work.phase(f"carry {move.purse.name.lower()}", act)


def _release(office: Office, work: Work, serial: bytes) -> None:
    with office.platform.write() as tx:
        chips.release_number(tx, serial, work.info.actor)


def abandon(office: Office, operator: Operator, job_id: str) -> None:
    """Give up an issue that can't be finished, its card dead or gone: the member and the number are free again.

    Raises Refused, NotFound, Conflict when the card is issued already or the job is another kind.
    """
    require(operator, Permission.CARD_ISSUE, office.enterprise_id)
    with jobs.claim(office.db, office.enterprise_id, job_id) as job:
        if job.info.kind != "issue" or job.result("issued") is not None:
            raise Conflict(f"job {job_id} is no unfinished issue: continue it")
        found = job.result("card")
        if found is not None:
            serial = bytes.fromhex(found["serial"])
            with office.platform.write() as tx:
                chips.release_number(tx, serial, operator.name)
            with office.db.write() as tx:
                tx.execute(
                    "DELETE FROM card_application WHERE enterprise_id = ? AND card_serial = ? AND state = 'slot'",
                    (office.enterprise_id, serial),
                )
        job.fail(Conflict(f"issue to member {job.info.subject} was given up by {operator.name}"), "cancelled")
