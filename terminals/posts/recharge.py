"""A recharge terminal at the console: cash keyed by the operator, a voucher, or a claim of subsidy, then the card."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from cardlib.errors import ConfigError, FormatError, Refused
from cardlib.money import parse_yuan, yuan
from cardlib.transport import Transport
from terminals.policy import Operation
from terminals.reasons import Reason
from terminals.receipts import receipt_paper
from terminals.recharge import Recharge
from terminals.runtime import SAID, Receipt
from terminals.screen import Notice, Say

GOES_ON = {Reason.PENDING_OTHER_CARD.code, Reason.HOST_UNREACHABLE.code}
"""After these refusals the next card gets what was keyed: nothing is decided yet."""


class RechargePost:
    """What the next card gets is keyed first; torn, or while the line is away, it stays keyed under its number."""

    usage = "AMOUNT [SALE NUMBER], voucher NUMBER, claim"

    def __init__(
        self,
        recharge: Recharge,
        tell: Callable[[str], None],
        language: str,
        secret: Callable[[str], str],
        note: Callable[[str], None],
    ) -> None:
        self._recharge, self._tell, self._language = recharge, tell, language
        self._secret, self._note = secret, note
        self._next: Callable[[Transport], Receipt] | None = None
        for job in recharge.journal.open_jobs():
            if job.operation is Operation.LOAD and job.waiting and job.sale:
                serial = job.card_serial.hex().upper()
                self._tell(f"sale {job.sale}, {yuan(job.amount_fen)}: card {serial} must come again")
                self._next = partial(recharge.resume, begun=job)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        if self._next is None:
            raise Reason.AMOUNT_INVALID.refusal("key the amount, a voucher or claim first")
        try:
            receipt = self._next(card)
        except Refused as e:
            if e.reason not in GOES_ON:
                self._next = None
            raise
        self._next = None
        self._recharge.screen.show(Notice(SAID[Operation.LOAD], receipt.amount_fen, receipt.balance_fen))
        self._tell(receipt_paper(self._recharge, receipt, language=self._language).text())
        return {
            "event": receipt.job.operation.value,
            "sale": receipt.job.sale,
            "amount_fen": receipt.amount_fen,
            "balance_fen": receipt.balance_fen,
            "purse": receipt.moves[-1].purse.name.lower(),
            "card": receipt.job.card_serial,
            "recovered": receipt.recovered,
        }

    def order(self, words: list[str]) -> bool:
        """Cash with the operator's own number if he has one; a voucher, whose secret is asked for; a claim."""
        amount_fen = None
        match words:
            case ["claim"]:
                self._next = self._recharge.claim
            case ["voucher", number] if number.isascii() and number.isdecimal():
                try:
                    secret = self._secret("voucher secret")
                except ConfigError as e:
                    self._note(str(e))
                    return True
                self._next = lambda card: self._recharge.voucher(card, number, secret)
            case [amount, *sale] if len(sale) < 2:
                try:
                    amount_fen = fen = parse_yuan(amount)
                except FormatError:
                    return False
                number = (sale or [secrets.token_hex(8)])[0]
                self._next = lambda card: self._recharge.recharge(card, fen, number)
            case _:
                return False
        self._recharge.screen.show(Notice(Say.PRESENT, amount_fen))
        return True

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""
