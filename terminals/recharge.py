"""The recharge terminal: money into a purse, computed by the host (terminals.md).

For cash that an operator took, for a voucher, or a subsidy that waits for the card's holder. It knows the purses of
cards, and nothing of a phone's airtime.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from cardlib.errors import OneCardError
from cardlib.iso7816 import update_record
from cardlib.profile import Purpose, Purse, SubsidyMark
from cardlib.purse import balance, load
from cardlib.records import tac_input
from cardlib.transport import Transport
from terminals.journal import Job, JobState
from terminals.policy import Leg, Operation, local_time
from terminals.reasons import Reason
from terminals.runtime import Office, Receipt, Tap, Terminal, guarded_host, host_errors

SUBSIDY_FILE, SUBSIDY_RECORD = 0x0017, 3


class Recharge(Terminal):
    """A recharge terminal. ``serve`` asks for the card again until what was asked for has ended."""

    purpose = Purpose.RECHARGE

    def recharge(self, card: Transport, amount_fen: int, sale: str = "", purse: Purse = Purse.MAIN) -> Receipt:
        """Load ``amount_fen`` of cash into a purse, at most once per ``sale`` number.

        Without a ``sale`` number each call is a load of its own.
        Raises Refused with the reason (host_unreachable: keep the cash), OutcomeUnknown when the same card must
        come again with the same ``sale`` before the cash is settled, TransportError when nothing happened.
        """
        sale = sale or self._random_bytes(8).hex()
        leg = Leg(purse, amount_fen)

        def ask(tap: Tap, office: Office) -> tuple[str, Leg]:
            self._check(tap, leg)
            with host_errors():
                office.allow_load(tap.session.factor, amount_fen, sale, self.journal.shift or 0)
            return sale, leg

        return self._once(card, sale, amount_fen, ask)

    def voucher(self, card: Transport, number: str, secret: str) -> Receipt:
        """Load what a voucher is worth, once. Raises as :meth:`recharge`; Refused ``voucher`` when it is no good."""
        sale = f"voucher:{number}"

        def ask(tap: Tap, office: Office) -> tuple[str, Leg]:
            with host_errors():
                leg = Leg(Purse.MAIN, office.redeem(tap.session.factor, number, secret))
            self._check(tap, leg)
            return sale, leg

        return self._once(card, sale, None, ask)

    def claim(self, card: Transport) -> Receipt:
        """Load the oldest subsidy that the card's holder has not claimed; its period is marked on the card.

        Raises as :meth:`recharge`; Refused ``nothing_to_claim``.
        """

        def ask(tap: Tap, office: Office) -> tuple[str, Leg]:
            held_fen = balance(tap.card, Purse.SUBSIDY)
            with host_errors():
                sale, amount_fen = office.claim(tap.session.factor, held_fen)
            leg = Leg(Purse.SUBSIDY, amount_fen)
            if not self.journal.sale(sale):
                self._check(tap, leg)
            return sale, leg

        return self._once(card, "", None, ask)

    def resume(self, card: Transport, begun: Job) -> Receipt:
        """Go on with a load that its card tore: the office gave leave for it already. Raises as ``recharge``."""
        leg = Leg(begun.legs[0].purse, begun.amount_fen)

        def ask(tap: Tap, _: Office) -> tuple[str, Leg]:
            self._check(tap, leg)
            return begun.sale, leg

        return self._once(card, begun.sale, begun.amount_fen, ask)

    def _once(
        self, card: Transport, sale: str, amount_fen: int | None, ask: Callable[[Tap, Office], tuple[str, Leg]]
    ) -> Receipt:
        """One load by its sale number; ``ask`` gets leave for it, and says what it is where only the office knows."""
        if receipt := self._before(sale, amount_fen):
            return receipt
        if self.office is None:
            raise Reason.HOST_UNREACHABLE.refusal("no line to the back office is set up")
        with self.tap(card) as tap:
            self.resolve(tap, lambda _: False)
            if receipt := self._before(sale, amount_fen, recovered=True):
                return self._prove(self.office, receipt)
            waits = self.journal.sale(sale) if sale else None
            if waits is not None and waits.waiting:
                raise Reason.PENDING_OTHER_CARD.refusal(f"sale {sale} was begun with another card")
            sale, leg = ask(tap, self.office)
            receipt = self._before(sale, None, recovered=True) or self._credit(tap, self.office, leg, sale)
            self._mark(tap, sale)
            return self._prove(self.office, receipt)

    def _prove(self, office: Office, receipt: Receipt) -> Receipt:
        """Let the office see a proof that it could not check at its time; if it can't now, the journal tells it."""
        for move in receipt.moves:
            if move.tac and not move.mac2_verified:
                with suppress(OneCardError):
                    host = office.loading(receipt.job.sale)
                    host.verify_tac(move.card_serial, move.key_version, move.algorithm, tac_input(move), move.tac)
        return receipt

    def _before(self, sale: str, amount_fen: int | None, *, recovered: bool = False) -> Receipt | None:
        """What a sale gave before; None when it moved no money. Raises as :meth:`known`."""
        if amount_fen is None:
            job = self.journal.sale(sale) if sale else None
            amount_fen = job.amount_fen if job else 0
        return self.known(sale, amount_fen, recovered=recovered)

    def _check(self, tap: Tap, leg: Leg) -> None:
        """Raise Refused when policy objects to a load."""
        balances = balance(tap.card, Purse.SUBSIDY), balance(tap.card, Purse.MAIN)
        facts = self.facts(Operation.LOAD, tap, leg.amount_fen)
        self.require(replace(facts, balances_fen=balances, load_purse=leg.purse))

    def _credit(self, tap: Tap, office: Office, leg: Leg, sale: str) -> Receipt:
        self.serve_other(tap)
        job = self.journal.begin(Operation.LOAD, tap.session.factor, [leg], sale=sale, durable=False)
        self.run_leg(tap, job, 0, lambda: self._load(tap, office, job))
        now = self.journal.job(job.id)
        return self.receipt(self.journal.finish(now) if now.state is JobState.OPEN else now)

    def _load(self, tap: Tap, office: Office, job: Job) -> None:
        host = guarded_host(office.loading(job.sale))
        load(tap.card, host, self.journal.leg(job, 0), tap.session, self.request(tap, job, 0))

    def _mark(self, tap: Tap, sale: str) -> None:
        """Write a claim's period into the card (0017 record 03): what it says is for people, the office decides."""
        kind, _, rest = sale.partition(":")
        period = rest.partition(":")[0]
        if kind == "claim" and period.isdecimal() and int(period) <= 0xFFFFFFFF:
            today = local_time(self.now_ms(), self.rules.utc_offset_min).date()
            with suppress(OneCardError):  # the money is there
                mark = SubsidyMark.of(int(period), today).encode()
                update_record(tap.card, SUBSIDY_FILE, SUBSIDY_RECORD, mark, by_tag=True)
