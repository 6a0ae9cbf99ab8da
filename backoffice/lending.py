"""Readers of issuing terminals, lent to the office: the desk's own flows run here, the terminal passes commands on.

So keys and books stay in the office, and an issuing terminal is a place to put cards. ``desk/act`` opens an act and
gives its first turn; ``desk/answer`` brings the answer to a turn and gives the next. A turn is numbered: a message that
comes twice counts once, and one whose answer was lost is simply sent again. A terminal that goes away is a card pulled
away: the job's journal goes on when the card is presented again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from hmac import compare_digest
from threading import Condition, Event, Lock
from typing import Any

from backoffice import cards, chips, jobs, members, operators, registry
from backoffice.cards import Application, NewCard, State
from backoffice.database import Tx
from backoffice.operators import Operator, Permission, require
from backoffice.registry import TerminalKind
from backoffice.station import Office
from backoffice.tokens import Caller
from backoffice.web import Fields, Verb, field
from cardlib.errors import CardRemoved, Conflict, FormatError, NotFound, OneCardError, Refused
from cardlib.iso7816 import pin_bytes
from cardlib.profile import Purpose
from cardlib.transport import Transport
from keymgmt.steps import chip_number, read_identity

SESSION_MS = 12 * 3_600_000
"""Who signed on at a terminal signs on again after this."""
ANSWER_S = 60
"""A terminal that says nothing for so long while it has a card is gone."""
PERSON_S = 3600
"""How long a person may take to present a card or to give a PIN."""
POLL_S = 5
"""After so long without a next turn the terminal is told to ask again, so that no line is silent for long."""
OLD_ACT_S = 10
"""How long a new act of a reader waits until the one before it has given its job back."""
MAX_ACTS = 32
"""Acts at work at a time, each in a thread."""
MAX_READERS = 16
"""Readers of one terminal, by their number from 0."""
MAX_ANSWER = 4096
"""Bytes of a card's answer or its ATR."""
KINDS = frozenset({TerminalKind.ISSUING})
OF_THE_MEMBER = {"member", "has_card", "number_has_card", "transfer"}
"""Refusals that are about the member, not about the card: in a batch the next member gets it."""
LOG = logging.getLogger(__name__)


class Act:
    """One act with a terminal's reader: asks as turns, answers as they come. Its end is a turn too."""

    def __init__(self, act_id: str, operator: Operator | None) -> None:
        self.act_id = act_id
        self._operator = operator
        self.gone = False
        self.ended = Event()
        self._turned = Condition()
        self._seq = 0
        self._turn: Fields = {}
        self._answer: Fields | None = None

    @property
    def operator(self) -> Operator:
        """Who signed on at the terminal. Raises Refused ``session``."""
        if self._operator is None:
            raise Refused("session", "nobody is signed on at this terminal: sign on again")
        return self._operator

    def ask(self, do: str, timeout_s: float, **what: Any) -> Fields:  # noqa: ANN401  # JSON values
        """Give the terminal a turn and wait for its answer. Raises CardRemoved, Refused ``stopped``."""
        with self._turned:
            self._show(do, what)
            if not self._turned.wait_for(lambda: self._answer is not None or self.gone, timeout_s) or self.gone:
                self.gone = True
                raise CardRemoved("the issuing terminal went away: present the card again")
            answer = self._answer or {}
        if "stop" in answer:
            raise Refused("stopped", "stopped at the terminal")
        if "lost" in answer:
            raise CardRemoved("the card was lost at the terminal: present it again")
        return answer

    def end(self, **what: Any) -> None:  # noqa: ANN401  # JSON values
        """Give the last turn."""
        with self._turned:
            self._show("end", what)

    def _show(self, do: str, what: Fields) -> None:
        self._seq += 1
        self._turn, self._answer = {"seq": self._seq, "do": do, **what}, None
        self._turned.notify_all()

    def take(self, seq: int, answer: Fields) -> Fields:
        """An answer to turn ``seq`` (0 opens); gives the next turn. Raises Conflict for another number."""
        with self._turned:
            if not self._seq - 1 <= seq <= self._seq:
                raise Conflict(f"turn {seq} is not the one of act {self.act_id}")
            if seq and seq == self._seq and self._answer is None and self._turn["do"] != "end":
                self._answer = answer
                self._turned.notify_all()
            if self._turned.wait_for(lambda: self._seq > seq or self._turn.get("do") == "end", POLL_S):
                return self._turn
            return {"seq": seq, "do": "wait"}

    def give_up(self) -> None:
        """The terminal has begun something else with this reader, or the office ends."""
        with self._turned:
            self.gone = True
            self._turned.notify_all()


class LentCard:
    """A card in a terminal's reader, asked for when it is first needed; ``check`` looks at it then."""

    def __init__(self, act: Act, which: str, check: Callable[[Transport], None] | None = None) -> None:
        self._act, self._which, self._check = act, which, check
        self._atr: bytes | None = None

    @property
    def atr(self) -> bytes:
        """Answer to reset. Raises CardRemoved when nobody presents the card."""
        if self._atr is None:
            answer = self._act.ask("present", PERSON_S, which=self._which)
            self._atr = field(answer, "atr", bytes)[:MAX_ANSWER]
            if self._check:
                self._check(self)
        return self._atr

    def transceive(self, command: bytes) -> bytes:
        """See ``cardlib.transport.Transport``."""
        _ = self.atr
        answer = field(self._act.ask("card", ANSWER_S, apdu=command.hex()), "apdu", bytes)
        if not 2 <= len(answer) <= MAX_ANSWER:
            raise FormatError(f"the terminal brought an answer of {len(answer)} bytes")
        return answer

    def close(self) -> None:
        """The terminal lets it go."""


class Queue:
    """Who waits for a card in one batch; ``begun`` are half-made cards by their serial, which go on."""

    def __init__(self, batch_id: str, waiting: list[str], begun: dict[bytes, str]) -> None:
        self.batch_id = batch_id
        self.total = len(waiting) + len(begun)
        self._waiting, self._begun = deque(waiting), begun
        self._lock = Lock()

    @property
    def left(self) -> int:
        """How many nobody works on yet."""
        return len(self._waiting) + len(self._begun)

    def begun(self) -> Fields:
        """Half-made cards that must come back, as member by serial."""
        with self._lock:
            return {serial.hex().upper(): member for serial, member in self._begun.items()}

    def take(self, serial: bytes) -> str:
        """Whose card this is or shall be. Raises Refused ``no_member``."""
        with self._lock:
            if serial in self._begun:
                return self._begun.pop(serial)
            if not self._waiting:
                begun = ", ".join(one.hex().upper() for one in self._begun)
                raise Refused("no_member", f"only half-made cards are waited for: {begun}" if begun else "all are done")
            return self._waiting.popleft()

    def give_back(self, member: str, serial: bytes | None) -> None:
        """It did not come to its end: the member is next, or bound to the card that was begun."""
        with self._lock:
            if serial is None:
                self._waiting.appendleft(member)
            else:
                self._begun[serial] = member


class Desks:
    """All issuing terminals of one enterprise. ``close`` ends their acts as if every card were pulled away."""

    def __init__(self, office: Office, uses: Callable[[str], AbstractContextManager[None]]) -> None:
        """``uses`` says what master keys are used for meanwhile (``keymgmt.store.SharedStore.using``)."""
        self._office, self._uses = office, uses
        self._pool = ThreadPoolExecutor(MAX_ACTS, "lending")
        self._lock = Lock()
        self._sessions: dict[bytes, tuple[str, Operator, int]] = {}
        self._acts: dict[tuple[bytes, int], Act] = {}
        self._queues: dict[bytes, Queue] = {}
        self._does: dict[str, Callable[[Caller, Act, Fields], Fields]] = {
            "sign-on": self._sign_on, "issue": self._issue, "batch": self._batch, "reissue": self._reissue,
            "return": self._return, "read": self._read,
        }  # fmt: skip

    def verbs(self) -> dict[str, Verb]:
        """For ``backoffice.web``: issuing terminals only."""
        return {"desk/act": Verb(self.act, KINDS), "desk/answer": Verb(self.answer, KINDS)}

    def close(self) -> None:
        """End every act and wait for its thread."""
        with self._lock:
            acts = list(self._acts.values())
        for act in acts:
            act.give_up()
        self._pool.shutdown()

    # Calls

    def act(self, caller: Caller, fields: Fields) -> Fields:
        """Open an act under the terminal's own id, or get the turn of the one opened before; gives its first turn."""
        act_id, reader, do = field(fields, "act", str), field(fields, "reader", int), field(fields, "do", str)
        if not (8 <= len(act_id) <= 64 and 0 <= reader < MAX_READERS and do in self._does):
            raise FormatError("there is no such act")
        operator = None if do == "sign-on" else self._signed_on(caller, field(fields, "session", str))
        with self._lock:
            found = self._acts.get((caller.terminal, reader))
            if found is None or found.act_id != act_id:
                if sum(not one.ended.is_set() for one in self._acts.values()) >= MAX_ACTS:
                    raise Refused("busy", "the office has all hands full: try again soon")
                before, found = found, Act(act_id, operator)
                self._acts[caller.terminal, reader] = found
                self._pool.submit(self._run, caller, found, before, do, fields)
        return found.take(0, {})

    def _signed_on(self, caller: Caller, session: str) -> Operator:
        """Raises Refused ``session`` when nobody is, or no more."""
        with self._lock:
            found = self._sessions.get(caller.terminal)
        if found is not None and compare_digest(found[0], session) and self._office.now_ms() < found[2]:
            with self._office.db.read() as tx:
                for account in operators.accounts(tx, caller.enterprise_id):
                    if (account.name, account.state) == (found[1].name, "active"):
                        return operators.get(tx, caller.enterprise_id, account.name)
        raise Refused("session", "nobody is signed on at this terminal: sign on again")

    def answer(self, caller: Caller, fields: Fields) -> Fields:
        """The answer to a turn; gives the next one. Raises NotFound for an act that this office does not have."""
        act_id, reader = field(fields, "act", str), field(fields, "reader", int)
        with self._lock:
            found = self._acts.get((caller.terminal, reader))
        if found is None or found.act_id != act_id:
            raise NotFound("this act is over here: begin it again")
        return found.take(field(fields, "seq", int), fields)

    def _run(self, caller: Caller, act: Act, before: Act | None, do: str, fields: Fields) -> None:
        try:
            if before is not None:
                before.give_up()
                before.ended.wait(OLD_ACT_S)
            with self._uses(f"lending {do}"):
                result = self._does[do](caller, act, fields)
            act.end(result=result)
        except OneCardError as e:
            act.end(error=_told(e))
        except Exception:  # a bug ends this act; the terminal is told, the log has it
            LOG.exception("an act failed: %s", do)
            act.end(error={"kind": "OneCardError", "code": "bug", "message": "the office failed: see its log"})
        finally:
            act.ended.set()

    # Acts

    def _sign_on(self, caller: Caller, act: Act, fields: Fields) -> Fields:
        """A person proves who he is, the terminal's SAM that it is an issuing SAM of this terminal."""
        office, number = self._office, caller.enterprise_id
        name, secret = field(fields, "operator", str), field(fields, "secret", str)
        operator = operators.authenticate(office.db, number, name, secret)
        require(operator, Permission.CARD_ISSUE, number)
        factor, challenge = office.random_bytes(8), office.random_bytes(8)
        version = office.key_set
        said = act.ask("prove", ANSWER_S, factor=factor.hex(), version=version, challenge=challenge.hex())
        with office.db.read() as tx:
            sam = registry.sams(tx, number).get(field(said, "sam", bytes))
        right = office.host().authenticate(Purpose.CONTROL, factor, version, challenge)
        if sam is None or (sam.terminal, sam.kind, sam.state) != (caller.terminal, TerminalKind.ISSUING, "active"):
            raise Refused("sam", "the SAM in this terminal is not the one registered for it, or is not in use")
        if not compare_digest(field(said, "proof", bytes), right):
            raise Refused("sam", "the SAM in this terminal could not prove that it is an issuing SAM of the enterprise")
        session = office.random_bytes(16).hex()
        with self._lock:
            self._sessions[caller.terminal] = session, operator, office.now_ms() + SESSION_MS
            for (terminal, _), one in self._acts.items():
                if terminal == caller.terminal and one is not act:
                    one.give_up()
        return {"session": session, "operator": name}

    def _issue(self, _: Caller, act: Act, fields: Fields) -> Fields:
        return self._make(act, field(fields, "member", str), LentCard(act, "card", self._require_blank))

    def _make(self, act: Act, number: str, card: LentCard) -> Fields:
        person = self._label(number)
        _ = card.atr  # a card that is somebody's is refused before a PIN is asked for
        new = NewCard(card, self._pin(act, person))
        return person | cards.issue(self._office, act.operator, number, new)

    def _pin(self, act: Act, person: Fields) -> bytes:
        return pin_bytes(field(act.ask("pin", PERSON_S, **person), "pin", str))

    def _label(self, number: str) -> Fields:
        with self._office.db.read() as tx:
            return {"member": number, "name": members.get(tx, self._office.enterprise_id, number).name}

    def _batch(self, caller: Caller, act: Act, fields: Fields) -> Fields:
        """One card after another in one reader, until nobody waits any more; readers of a batch share its queue."""
        queue = self._queue(caller, act.operator, field(fields, "batch", str), field(fields, "department", str))
        while queue.left:
            card = LentCard(act, "card", self._require_blank)
            try:
                done = self._make_next(act, queue, card)
            except OneCardError as e:
                if act.gone:
                    raise
                if isinstance(e, Refused) and e.reason == "stopped":
                    break
                act.ask("failed", ANSWER_S, error=_told(e), left=queue.left, total=queue.total)
            else:
                act.ask("issued", ANSWER_S, **done, left=queue.left, total=queue.total)
        return {"left": queue.left, "total": queue.total, "begun": queue.begun()}

    def _queue(self, caller: Caller, operator: Operator, batch_id: str, department: str) -> Queue:
        require(operator, Permission.CARD_ISSUE, caller.enterprise_id)
        with self._lock:
            found = self._queues.get(caller.terminal)
            if found is None or found.batch_id != batch_id:
                with self._office.db.read() as tx:
                    found = Queue(batch_id, *_waiting(tx, caller.enterprise_id, department))
                self._queues[caller.terminal] = found
        return found

    def _make_next(self, act: Act, queue: Queue, card: LentCard) -> Fields:
        """Make the card in the reader somebody's: its own member's where it was begun, else the next one's."""
        identity = read_identity(card)
        serial = identity.serial if identity else bytes(8)
        while True:
            member = queue.take(serial)
            try:
                return self._make(act, member, card)
            except OneCardError as e:
                if isinstance(e, NotFound) or (isinstance(e, Refused) and e.reason in OF_THE_MEMBER):
                    act.ask("failed", ANSWER_S, error=_told(e), member=member, left=queue.left, total=queue.total)
                    continue
                queue.give_back(member, self._begun_card(member))
                raise

    def _begun_card(self, member: str) -> bytes | None:
        with self._office.db.read() as tx:
            held = cards.of_member(tx, self._office.enterprise_id, member)
        return next((one.card_serial for one in held if one.state is State.SLOT), None)

    def _reissue(self, _: Caller, act: Act, fields: Fields) -> Fields:
        """The old card is read first where it is at hand; else it is lost and the books decide (requirement D6)."""
        number, person = field(fields, "member", str), self._label(field(fields, "member", str))
        with self._office.db.read() as tx:
            old = _to_replace(tx, self._office.enterprise_id, number)
        old_card = None if field(fields, "lost", bool) else LentCard(act, "old")
        pin = self._pin(act, person)
        new = NewCard(LentCard(act, "new", lambda card: self._require_blank(card, old)), pin)
        done = cards.reissue(self._office, act.operator, old, new, old_card=old_card)
        return person | {"old": old.hex().upper()} | done

    def _return(self, caller: Caller, act: Act, _: Fields) -> Fields:
        """Empty, erase and block the card; its money is settled by the enterprise's rule (requirement D8)."""
        card = LentCard(act, "card")
        identity = read_identity(card)
        with self._office.db.read() as tx:
            if identity is None or not any(identity.serial):
                raise NotFound("this card is blank: there is nothing to return")
            one = cards.get(tx, caller.enterprise_id, identity.serial)
        done = cards.cancel(self._office, act.operator, one.card_serial, "returned", card=card)
        return self._label(one.member_number) | done

    def _read(self, caller: Caller, act: Act, _: Fields) -> Fields:
        """What is in the reader; it is only read."""
        require(act.operator, Permission.CARD_SHOW, caller.enterprise_id)
        card = LentCard(act, "card")
        identity = read_identity(card)
        if identity is None or not any(identity.serial):
            return {"card": None, "chip": chip_number(card), "state": "blank"}
        found = {"card": identity.serial.hex().upper(), "chip": chip_number(card)}
        mine = self._ours(identity.serial)
        if mine:
            return found | {"state": mine.state.value, "expires": mine.expires} | self._label(mine.member_number)
        with self._office.platform.read() as tx:
            known = chips.find(tx, identity.serial)
        return found | {"state": f"{known.state} at the platform, not ours" if known else "another platform's"}

    def _ours(self, serial: bytes) -> Application | None:
        with self._office.db.read() as tx:
            try:
                return cards.get(tx, self._office.enterprise_id, serial)
            except NotFound:
                return None

    def _require_blank(self, card: Transport, old: bytes | None = None) -> None:
        """Refuse a card that is somebody's before anything is tried on it; the one that replaces ``old`` goes on.

        Raises Refused ``card_used``.
        """
        identity, number = read_identity(card), self._office.enterprise_id
        if identity is None or not any(identity.serial):
            return
        serial = identity.serial
        with self._office.platform.read() as tx:
            given = chips.find(tx, serial) is not None or chips.was_given(tx, serial)
            others = [slot.enterprise_id for slot in chips.slots(tx, serial) if slot.enterprise_id != number]
        name, one = serial.hex().upper(), self._ours(serial)
        if not given:
            raise Refused("card_used", f"card {name} is another platform's: nothing was written on it")
        if others:
            raise Refused("card_used", f"card {name} is one of enterprise {others[0]}: take a blank one")
        if one is not None and one.state is not State.SLOT and (old is None or one.replaces != old):
            raise Refused("card_used", f"card {name} is {one.state} here, of {one.member_number}: take a blank one")


def _told(error: OneCardError) -> Fields:
    code = error.reason if isinstance(error, Refused) else type(error).__name__.lower()
    return {"kind": type(error).__name__, "code": code, "message": str(error)}


def _waiting(tx: Tx, enterprise_id: int, department: str) -> tuple[list[str], dict[bytes, str]]:
    """Active members without a card, and those whose card was begun, by its serial; not who is being reissued to."""
    made = cards.listing(tx, enterprise_id)
    held = {one.member_number for one in made if one.state in (*cards.USABLE, State.LOST)}
    replaced = {job.subject for job in jobs.running(tx, enterprise_id, "reissue")}
    held |= {one.member_number for one in made if one.card_serial.hex() in replaced}
    begun = {one.card_serial: one.member_number for one in made if one.state is State.SLOT}
    waiting, after = [], ""
    while page := members.listing(tx, enterprise_id, after=after):
        after = page[-1].member_number
        waiting += [one.member_number for one in page if department in ("", one.department)]
    ours = set(waiting) - held
    begun = {serial: member for serial, member in begun.items() if member in ours}
    return [one for one in waiting if one in ours and one not in begun.values()], begun


def _to_replace(tx: Tx, enterprise_id: int, member: str) -> bytes:
    """The member's card that a reissue ends: of the one that was begun, else the one in use. Raises NotFound."""
    held = cards.of_member(tx, enterprise_id, member)
    begun = {job.subject for job in jobs.running(tx, enterprise_id, "reissue")}
    for one in reversed(held):
        if one.card_serial.hex() in begun:
            return one.card_serial
    for one in reversed(held):
        if one.state in (State.POSTED, State.ACTIVE, State.LOST):
            return one.card_serial
    raise NotFound(f"member {member} has no card to replace: issue one")
