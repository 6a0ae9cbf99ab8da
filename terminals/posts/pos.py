"""A till at the console: a fixed amount for each card, or a sale keyed for it; shifts, reports, receipts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cardlib.errors import FormatError, Refused, TransportError
from cardlib.money import parse_yuan, yuan
from cardlib.purse import identify
from cardlib.transport import Transport
from terminals import printer, receipts
from terminals.journal import Job
from terminals.policy import Operation
from terminals.pos import Pos
from terminals.posts.base import STOPPED, Come
from terminals.prices import Charge
from terminals.reasons import Reason
from terminals.receipts import Paper
from terminals.register import InTurn
from terminals.runtime import SAID, Receipt
from terminals.screen import Notice, Say

UNSEEN_MS = 60_000
"""For how long after a power cut a payment just before it is told to its card, instead of a new one being made."""
MAX_TIMES = 999
Act = Callable[[Transport], dict[str, Any]]


def charge_of(words: list[str], codes: frozenset[str]) -> tuple[Charge, str] | None:
    """A sale as typed: parts like ``12.50``, ``101*2`` (menu), ``meal``, ``unit*3``, then its number: ``#17``, ``A17``.

    None when it is not understood.
    """
    keyed: list[int] = []
    items: list[tuple[str, int]] = []
    counts = {"meal": 0, "unit": 0}
    sale = ""
    for n, word in enumerate(words):
        what, star, digits = word.partition("*")
        if star and not (digits.isascii() and digits.isdecimal() and 0 < int(digits[:9]) <= MAX_TIMES):
            return None
        times = int(digits) if star else 1
        if what in codes:
            items.append((what, times))
        elif what in counts:
            counts[what] += times
        else:
            try:
                keyed.append(parse_yuan(what) * times)
            except FormatError:
                sale = word.removeprefix("#")
                if star or not n or n + 1 < len(words) or not sale:
                    return None
    return Charge(tuple(keyed), counts["meal"], tuple(items), counts["unit"]), sale


class _Presented:
    """Cards for a cash register's sale, as a process hands them on; each sale waits so long in all."""

    def __init__(self, come: Come, wait_s: int) -> None:
        self._come, self._wait_s = come, wait_s
        self._first, self._until_s = True, 0.0

    def begin(self) -> None:
        """Another sale: its card may lie there already."""
        self._first, self._until_s = True, time.monotonic() + self._wait_s

    def wait(self) -> Transport | None:
        """See ``terminals.runtime.CardSource``."""
        first, self._first = self._first, False
        return self._come(first, self._until_s)


class PosPost:
    """A till: a fixed amount for each card, or what was keyed for the next one.

    A payment that a power cut tore goes on with its own sale number when its card comes again: it is never charged
    anew. A printer that fails is named; the receipt can be printed again.
    """

    usage = (
        "a sale like 12.50, 101*2, meal, unit*3 with #NUMBER at its end; start, stop, undo, cancel, x, z, receipt, "
        "shift open NAME, shift close"
    )

    def __init__(
        self,
        pos: Pos,
        fixed_fen: int | None,
        pin: Callable[[], str | None],
        tell: Callable[[str], None],
        language: str = "zh",
    ) -> None:
        self._pos = pos
        self._fixed_fen = fixed_fen
        self._pin = pin
        self._tell = tell
        self._language = language
        self._codes = frozenset(item.code for item in pos.rules.prices.items)
        self._next: Act | None = None
        self._began_ms: int | None = None
        self._register: InTurn | None = None
        self._deafen: Callable[[], None] = lambda: None
        self._unseen = self._paid_unseen()
        if self._unseen:
            job = self._unseen
            self._tell(f"sale {job.sale}, {yuan(job.committed_fen)}: paid by card {job.card_serial.hex().upper()}")
        for job in self._torn():
            self._tell(f"sale {job.sale}, {yuan(job.amount_fen)}: card {job.card_serial.hex().upper()} must come again")
            self._next = partial(self._pay, job.amount_fen, job.sale) if fixed_fen is None else None

    def _torn(self) -> list[Job]:
        jobs = self._pos.journal.open_jobs()
        return [job for job in jobs if job.operation is Operation.PAY and job.waiting and job.sale]

    def _paid_unseen(self) -> Job | None:
        """The payment at the journal's end when the power went just after it: nobody may have seen it."""
        journal = self._pos.journal
        found = journal.last_payment()
        if found is None or not found[0].sale or found[1].undone:
            return None
        if self._fixed_fen not in (None, found[0].amount_fen) or self._pos.now_ms() - found[1].utc_ms > UNSEEN_MS:
            return None
        since = range((found[0].legs[-1].closed_seq or journal.last_seq) + 1, journal.last_seq + 1)
        return None if any(journal.entry(seq).record == STOPPED for seq in since) else found[0]

    # Cards

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        try:
            event = (self._next or self._usual)(card)
        except Refused as e:
            if e.reason != Reason.PENDING_OTHER_CARD.code:
                self._next = None
            raise
        self._next = None
        return event

    def _usual(self, card: Transport) -> dict[str, Any]:
        """The fixed amount, or what this card left torn."""
        if self._fixed_fen is None:
            raise Reason.AMOUNT_INVALID.refusal("key the amount first")
        waiting = [*self._torn(), *([self._unseen] if self._unseen else [])]
        self._unseen = None
        if waiting:
            serial = identify(card, self._pos.config.enterprise_id).factor
            for job in waiting:
                if job.card_serial == serial:
                    return self._pay(job.amount_fen, job.sale, card)
        return self._pay(self._fixed_fen, secrets.token_hex(8), card)

    def _pay(self, charge: int | Charge, sale: str, card: Transport) -> dict[str, Any]:
        return self._done(self._pos.pay(card, charge, sale, self._pin))

    def _undo(self, card: Transport) -> dict[str, Any]:
        return self._done(self._pos.undo_last(card))

    def _done(self, receipt: Receipt) -> dict[str, Any]:
        whole = receipt.amount_fen == receipt.job.amount_fen
        say = SAID[receipt.job.operation] if whole else Say.PARTLY
        self._pos.screen.show(Notice(say, receipt.amount_fen, receipt.balance_fen))
        self._print(receipts.receipt_paper(self._pos, receipt, language=self._language))
        return {
            "event": receipt.job.operation.value,
            "sale": receipt.job.sale,
            "amount_fen": receipt.amount_fen,
            "balance_fen": receipt.balance_fen,
            "card": receipt.job.card_serial,
            "recovered": receipt.recovered,
        }

    def _opened_by(self, card: Transport) -> dict[str, Any]:
        return self._open(self._pos.sign_on(card, self._pin))

    def _closed_by(self, card: Transport) -> dict[str, Any]:
        self._pos.sign_on(card, self._pin)
        return self._close()

    def _open(self, operator: str) -> dict[str, Any]:
        shift = self._pos.open_shift(operator)
        self._tell(f"shift {shift}: {operator}")
        return {"event": "shift_open", "shift": shift, "operator": operator}

    def _close(self) -> dict[str, Any]:
        shift = self._pos.journal.shift
        self._report(receipts.z_report(self._pos, self._language))
        return {"event": "shift_close", "shift": shift}

    # Paper

    def _report(self, paper: Paper) -> None:
        self._tell(paper.text())
        self._print(paper)

    def _print(self, paper: Paper) -> None:
        """Money has moved by now, whatever becomes of the paper."""
        if path := self._pos.config.till.printer:
            try:
                printer.send(path, paper.escpos())
            except TransportError as e:
                self._tell(str(e))

    # Lines

    def order(self, words: list[str]) -> bool:
        """A sale, or one of the words of ``usage``. Raises Refused, Conflict for a shift that is open already."""
        if self._began_ms is not None and words not in (["stop"], ["cancel"]):
            return False
        match words:
            case ["undo"]:
                self._await(self._undo)
            case ["cancel"]:
                self._next = self._began_ms = None
                self._pos.screen.show(Notice(Say.PRESENT))
            case ["start"]:
                self._pos.quote(Charge(seconds=1))
                self._began_ms = self._pos.now_ms()
            case ["stop"] if self._began_ms is not None:
                seconds = -(-max(1, self._pos.now_ms() - self._began_ms) // 1000)
                self._began_ms = None
                self._sell(Charge(seconds=seconds), "")
            case ["x"]:
                self._report(receipts.x_report(self._pos, self._language))
            case ["receipt"]:
                self._report(receipts.last_receipt(self._pos, self._language))
            case ["z"] | ["shift", "close"]:
                self._pos.totals()  # says that no shift is open
                self._signed(self._closed_by, self._close)
            case ["shift", "open", *name] if len(name) < 2:
                self._signed(self._opened_by, partial(self._open, "".join(name)))
            case _:
                found = charge_of(words, self._codes)
                if found is None:
                    return False
                self._sell(*found)
        return True

    def _signed(self, by_card: Act, at_once: Callable[[], dict[str, Any]]) -> None:
        """What only an operator may do: his card comes next; where none are named, who stands here does it."""
        if self._pos.config.till.operators:
            self._await(by_card)
        else:
            at_once()

    def _sell(self, charge: Charge, sale: str) -> None:
        asked_fen = self._pos.quote(charge)
        self._await(partial(self._pay, charge, sale or secrets.token_hex(8)), asked_fen)

    def _await(self, act: Act, amount_fen: int | None = None) -> None:
        self._next = act
        self._pos.screen.show(Notice(Say.PRESENT, amount_fen))

    # The cash register

    def listen(self, come: Come) -> None:
        """Let the cash registers that the configuration names ask; a port that can't be had is named."""
        till = self._pos.config.till
        if till.register_port or till.register_serial:
            self._cards = _Presented(come, till.register_wait_s)
            self._register = InTurn(self._pos, self._cards, self._pin)
            try:
                self._deafen = self._register.listen(till.register_port, till.register_serial, till.register_baud)
            except OSError as e:
                self._tell(f"register_port {till.register_port}: {e.strerror}: no cash register is listened to")

    def turn(self) -> None:
        """Answer a cash register."""
        if self._register is not None:
            self._cards.begin()
            self._register.turn()

    def stop(self) -> None:
        """All is on the disk already."""
        self._deafen()
