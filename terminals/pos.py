"""The POS: pay from one or two purses, undo the last payment, with and without a line (terminals.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cardlib.errors import OneCardError
from cardlib.iso7816 import read_binary
from cardlib.profile import AccessRights, Purse, load_profile
from cardlib.purse import balance, composite_debit, debit, load, undo_offline
from cardlib.transport import Transport
from terminals.journal import Job, JobState, LegState
from terminals.policy import Facts, Leg, Operation, decide, local_time
from terminals.prices import NO_PRICES, Charge, discounted, percent_of, price
from terminals.reasons import Reason
from terminals.runtime import UNDOING, Office, Receipt, Tap, Terminal, guarded_host, host_errors, undo_request


class Pos(Terminal):
    """A till. ``pay`` and ``undo_last`` serve one card; ``serve`` asks for it again until they have ended."""

    def pay(
        self, card: Transport, amount: int | Charge, sale: str = "", pin: Callable[[], str | None] | None = None
    ) -> Receipt:
        """Take an amount (fen) or what a charge costs from the card, by the purses' order, once per ``sale`` number.

        The card's groups may change what it pays: the receipt says how much that was.
        ``pin`` asks the holder, None when he gives up. Raises Refused with the reason, OutcomeUnknown when the
        same card must come again (call again with the same ``sale``), TransportError when nothing happened.
        """
        charge = amount if isinstance(amount, Charge) else Charge((amount,))
        if receipt := self.known_sale(sale, charge):
            return receipt
        with self.tap(card) as tap:
            half = self.resolve(tap, lambda job: job.operation is Operation.PAY and job.sale == sale != "")
            if receipt := self.known_sale(sale, charge, recovered=True):
                return receipt
            if half is not None:
                self.require(self.facts(Operation.FINISH, tap, half.amount_fen - half.committed_fen))
                return self._pay_legs(tap, half)
            waits = self.journal.sale(sale) if sale else None
            if waits is not None and waits.waiting:
                raise Reason.PENDING_OTHER_CARD.refusal(f"sale {sale} was begun with another card")
            return self._charge(tap, charge, sale, pin)

    def quote(self, charge: Charge) -> int:
        """What a charge costs now, before any discount (fen). Raises Refused with the reason why it has no price."""
        asked = self._price(charge, self.now_ms())
        if isinstance(asked, Reason):
            raise asked.refusal()
        return asked

    def sign_on(self, card: Transport, pin: Callable[[], str | None]) -> str:
        """The name of the operator whose card and PIN these are. Raises Refused with the reason."""
        with self.tap(card) as tap:
            self.require(self.facts(Operation.SIGN_ON, tap, 0))
            name = self.config.till.operators.get(tap.session.factor)
            if name is None:
                raise Reason.NO_OPERATOR.refusal("this card is no operator's")
            self._verify_pin(tap, pin)
        return name

    def known_sale(self, sale: str, charge: Charge, *, recovered: bool = False) -> Receipt | None:
        """What a sale number gave before, without a card; None when it moved no money. Raises as :meth:`known`."""
        return self.known(sale, self._asked_before(sale, charge), recovered=recovered)

    def _asked_before(self, sale: str, charge: Charge) -> int:
        """What a sale number was asked for if this charge is the same: at its time's prices, by any discount."""
        job = self.journal.sale(sale) if sale else None
        if job is None or job.state is JobState.OPEN:
            return 0
        asked = self._price(charge, job.utc_ms)
        if isinstance(asked, Reason):
            raise asked.refusal(f"sale {sale} was for {job.amount_fen} fen")
        could_be = {discounted(asked, percent) for percent in (100, *self.rules.prices.discounts)}
        return job.amount_fen if job.amount_fen in could_be else asked

    def _price(self, charge: Charge, utc_ms: int) -> int | Reason:
        return price(charge, self.rules.prices, local_time(utc_ms, self.rules.utc_offset_min))

    def _percent(self, tap: Tap) -> int:
        """What the card's groups (0019) pay; the file is read only where there are discounts."""
        discounts = self.rules.prices.discounts
        if discounts == NO_PRICES.discounts:
            return 100
        rights = AccessRights.decode(read_binary(tap.card, load_profile().file("access").fid))
        return percent_of(discounts, int.from_bytes(rights.groups, "big"))

    def _charge(self, tap: Tap, charge: Charge, sale: str, pin: Callable[[], str | None] | None) -> Receipt:
        now_ms, counters = self.now_ms(), self.read_counters(tap)
        asked, percent = self._price(charge, now_ms), self._percent(tap)
        unpriced, gross_fen = (asked, 0) if isinstance(asked, Reason) else (None, asked)
        amount_fen = discounted(gross_fen, percent)
        day, meal = self.counting_day(now_ms)
        today = counters.day == day
        same_meal = today and counters.meal == meal
        facts = replace(
            self.facts(Operation.PAY, tap, amount_fen),
            unpriced=unpriced,
            free=gross_fen > 0 and amount_fen == 0,
            balances_fen=(balance(tap.card, Purse.SUBSIDY), balance(tap.card, Purse.MAIN)),
            times=counters.times if same_meal else 0,
            period_spent_fen=counters.spent_fen if same_meal else 0,
            day_spent_fen=counters.day_spent_fen if today else 0,
            last_paid_ms=self.journal.last_paid_ms(tap.session.factor) if self.rules.repeat_window_ms else None,
        )
        decision = decide(facts, self.rules, now_ms)
        if decision.reason is Reason.PIN_REQUIRED and pin is not None:
            self._verify_pin(tap, pin)
            decision = decide(replace(facts, pin_verified=True), self.rules, now_ms)
        if decision.reason is not None:
            raise decision.reason.refusal()
        self.serve_other(tap)
        # A composite payment writes its counters with the money: then nothing changes before the first intent.
        durable = decision.legs[0].purse is Purse.SUBSIDY
        job = self.journal.begin(
            Operation.PAY, tap.session.factor, decision.legs, sale=sale, counters=counters.encode(), durable=durable
        )
        return self._pay_legs(tap, job)

    def _pay_legs(self, tap: Tap, job: Job) -> Receipt:
        stages = self.counters_by_leg(job)
        for leg in job.legs:
            if leg.state is not LegState.COMMITTED:
                self.run_leg(tap, job, leg.number, partial(self._pay_leg, tap, job, leg.number, stages[leg.number + 1]))
        return self._ended(job)

    def _pay_leg(self, tap: Tap, job: Job, number: int, counters: bytes) -> None:
        request, journal = self.request(tap, job, number), self.journal.leg(job, number)
        if request.purse is Purse.MAIN:
            composite_debit(tap.card, tap.sam, journal, tap.session, request, [counters])
        else:
            self.write_counters(tap, counters)  # before INITIALIZE: a subsidy payment is not composite (profile.md)
            debit(tap.card, tap.sam, journal, tap.session, request)

    def _ended(self, job: Job) -> Receipt:
        now = self.journal.job(job.id)
        return self.receipt(self.journal.finish(now) if now.state is JobState.OPEN else now)

    def _verify_pin(self, tap: Tap, pin: Callable[[], str | None]) -> None:
        """The holder's PIN, or the reason why there is none."""
        digits = pin()
        if digits is None:
            raise Reason.PIN_REQUIRED.refusal()
        self.verify_pin(tap, digits)

    # --- undo ------------------------------------------------------------------------------------------------

    def undo_last(self, card: Transport, *, online: bool = False) -> Receipt:
        """Give the last payment of this terminal back to its card: by the SAM, or ``online`` by the office's host.

        A torn undo goes on when it is called again with the same card. Raises as :meth:`pay`.
        """
        office = self.office if online else None
        if online and office is None:
            raise Reason.HOST_UNREACHABLE.refusal("no line to the back office is set up")
        with self.tap(card, office) as tap:
            before = self._undo_of_last()
            half = self.resolve(tap, lambda job: job.operation in UNDOING)
            if half is None and before is not None:
                now = self.journal.job(before.id)
                if now.state is JobState.DONE and now.card_serial == tap.session.factor:
                    return self.receipt(now, recovered=True)
            return self._undo_legs(tap, half or self._begin_undo(tap, office))

    def _undo_of_last(self) -> Job | None:
        """The undo that waits for its card."""
        waiting = [job for job in self.journal.open_jobs() if job.operation in UNDOING and job.waiting]
        return waiting[-1] if waiting else None

    def _undo_facts(self, tap: Tap, operation: Operation) -> tuple[Facts, Job | None]:
        found = self.journal.last_payment()
        paid, last = found or (None, None)
        amount_fen = paid.committed_fen if paid else 0
        return replace(self.facts(operation, tap, amount_fen), last=last), paid

    def _begin_undo(self, tap: Tap, office: Office | None) -> Job:
        operation = Operation.UNDO_ONLINE if office else Operation.UNDO_OFFLINE
        facts, paid = self._undo_facts(tap, operation)
        self.require(facts)
        assert paid is not None  # else policy found nothing to undo
        if office:
            with host_errors():
                for leg in paid.committed:
                    office.allow_undo(self.journal.transaction(leg))
        legs = [Leg(leg.purse, leg.amount_fen) for leg in reversed(paid.committed)]
        counters = self.read_counters(tap).encode()
        return self.journal.begin(operation, tap.session.factor, legs, undo_of=paid.id, counters=counters)

    def _undo_legs(self, tap: Tap, job: Job) -> Receipt:
        paid = self.journal.job(job.undo_of or 0)
        for leg in job.legs:
            if leg.state is not LegState.COMMITTED:
                self.run_leg(tap, job, leg.number, partial(self._undo_leg, tap, job, leg.number, paid))
        now = self.journal.job(job.id)
        try:
            self.settle_counters(tap, now)
        except OneCardError:
            return self.receipt(now)  # the money is back; the job stays open for the counters' sake
        return self._ended(job)

    def _undo_leg(self, tap: Tap, job: Job, number: int, paid: Job) -> None:
        request, journal = self.request(tap, job, number), self.journal.leg(job, number)
        move = next(m for m in map(self.journal.transaction, paid.committed) if m.purse is request.purse)
        if tap.office is None:
            undo_offline(tap.card, tap.sam, journal, tap.session, move, request)
        else:
            request = replace(request, undo_of=move.origin)
            host = guarded_host(tap.office.loading(undo_request(move)))
            load(tap.card, host, journal, tap.session, request)
