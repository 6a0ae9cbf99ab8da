"""A till at the console: a fixed amount for each card, or an amount keyed for each sale."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from cardlib.errors import FormatError, Refused
from cardlib.money import parse_yuan, yuan
from cardlib.purse import identify
from cardlib.transport import Transport
from terminals.journal import Job
from terminals.policy import Operation
from terminals.pos import Pos
from terminals.posts.base import STOPPED
from terminals.reasons import Reason
from terminals.runtime import SAID, Receipt
from terminals.screen import Notice, Say

UNSEEN_MS = 60_000
"""For how long after a power cut a payment just before it is told to its card, instead of a new one being made."""


class PosPost:
    """A till: a fixed amount for each card, or an amount keyed for each sale.

    A payment that a power cut tore goes on with its own sale number when its card comes again: it is never charged
    anew.
    """

    usage = "AMOUNT [SALE NUMBER], undo"

    def __init__(
        self, pos: Pos, fixed_fen: int | None, pin: Callable[[], str | None], tell: Callable[[str], None]
    ) -> None:
        self._pos = pos
        self._fixed_fen = fixed_fen
        self._pin = pin
        self._tell = tell
        self._next: tuple[int, str] | None = None
        self._undo = False
        self._unseen = self._paid_unseen()
        if self._unseen:
            job = self._unseen
            self._tell(f"sale {job.sale}, {yuan(job.committed_fen)}: paid by card {job.card_serial.hex().upper()}")
        for job in self._torn():
            self._tell(f"sale {job.sale}, {yuan(job.amount_fen)}: card {job.card_serial.hex().upper()} must come again")
            self._next = (job.amount_fen, job.sale) if fixed_fen is None else None

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

    def _sale(self, card: Transport) -> tuple[int, str]:
        """What this card pays: the keyed sale, its own torn one, or the fixed amount."""
        if self._next is not None:
            return self._next
        if self._fixed_fen is None:
            raise Reason.AMOUNT_INVALID.refusal("key the amount first")
        waiting = [*self._torn(), *([self._unseen] if self._unseen else [])]
        self._unseen = None
        if waiting:
            serial = identify(card, self._pos.config.enterprise_id).factor
            for job in waiting:
                if job.card_serial == serial:
                    return job.amount_fen, job.sale
        return self._fixed_fen, secrets.token_hex(8)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        try:
            receipt = self._act(card)
        except Refused as e:
            if e.reason != Reason.PENDING_OTHER_CARD.code:
                self._next, self._undo = None, False
            raise
        self._next, self._undo = None, False
        whole = receipt.amount_fen == receipt.job.amount_fen
        say = SAID[receipt.job.operation] if whole else Say.PARTLY
        self._pos.screen.show(Notice(say, receipt.amount_fen, receipt.balance_fen))
        return {
            "event": receipt.job.operation.value,
            "sale": receipt.job.sale,
            "amount_fen": receipt.amount_fen,
            "balance_fen": receipt.balance_fen,
            "card": receipt.job.card_serial,
            "recovered": receipt.recovered,
        }

    def _act(self, card: Transport) -> Receipt:
        if self._undo:
            return self._pos.undo_last(card)
        amount_fen, sale = self._sale(card)
        return self._pos.pay(card, amount_fen, sale, self._pin)

    def order(self, words: list[str]) -> bool:
        """An amount, with the register's own sale number if it has one; or ``undo``."""
        if words == ["undo"]:
            self._next, self._undo = None, True
        else:
            if len(words) > 2:
                return False
            try:
                self._next, self._undo = (parse_yuan(words[0]), (words[1:] or [secrets.token_hex(8)])[0]), False
            except FormatError:
                return False
        self._pos.screen.show(Notice(Say.PRESENT, self._next[0] if self._next else None))
        return True

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""
