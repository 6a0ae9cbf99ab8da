"""The recharge terminal: money into a purse, computed by the host, for cash that an operator took (terminals.md)."""

from __future__ import annotations

from dataclasses import replace

from cardlib.profile import Purpose, Purse
from cardlib.purse import balance, load
from cardlib.transport import Transport
from terminals.journal import Job, JobState
from terminals.policy import Leg, Operation
from terminals.reasons import Reason
from terminals.runtime import Office, Receipt, Tap, Terminal, guarded_host, host_errors


class Recharge(Terminal):
    """A recharge terminal. ``serve`` asks for the card again until ``recharge`` has ended."""

    purpose = Purpose.RECHARGE

    def recharge(self, card: Transport, amount_fen: int, sale: str = "", purse: Purse = Purse.MAIN) -> Receipt:
        """Load ``amount_fen`` into a purse, at most once per ``sale`` number.

        Without a ``sale`` number each call is a load of its own.
        Raises Refused with the reason (host_unreachable: keep the cash), OutcomeUnknown when the same card must
        come again with the same ``sale`` before the cash is settled, TransportError when nothing happened.
        """
        sale = sale or self._random_bytes(8).hex()
        if receipt := self.known(sale, amount_fen):
            return receipt
        if self.office is None:
            raise Reason.HOST_UNREACHABLE.refusal("no line to the back office is set up")
        with self.tap(card) as tap:
            self.resolve(tap, lambda _: False)
            if receipt := self.known(sale, amount_fen, recovered=True):
                return receipt
            waits = self.journal.sale(sale)
            if waits is not None and waits.waiting:
                raise Reason.PENDING_OTHER_CARD.refusal(f"sale {sale} was begun with another card")
            return self._credit(tap, self.office, Leg(purse, amount_fen), sale)

    def _credit(self, tap: Tap, office: Office, leg: Leg, sale: str) -> Receipt:
        balances = balance(tap.card, Purse.SUBSIDY), balance(tap.card, Purse.MAIN)
        facts = self.facts(Operation.LOAD, tap, leg.amount_fen)
        self.require(replace(facts, balances_fen=balances, load_purse=leg.purse))
        with host_errors():
            office.allow_load(tap.session.factor, leg.amount_fen, sale, facts.shift or 0)
        self.serve_other(tap)
        job = self.journal.begin(Operation.LOAD, tap.session.factor, [leg], sale=sale, durable=False)
        self.run_leg(tap, job, 0, lambda: self._load(tap, office, job))
        now = self.journal.job(job.id)
        return self.receipt(self.journal.finish(now) if now.state is JobState.OPEN else now)

    def _load(self, tap: Tap, office: Office, job: Job) -> None:
        load(
            tap.card,
            guarded_host(office.loading(job.sale)),
            self.journal.leg(job, 0),
            tap.session,
            self.request(tap, job, 0),
        )
