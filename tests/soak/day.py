"""A random day of a small company: every fault that can be simulated, by seed, and the proof at its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from backoffice import jobs
from cardlib.errors import Conflict, OutcomeUnknown, Refused, TransportError
from simulator.world import ENTERPRISE, Company, Proof, Till

PEOPLE = 5
ACTS = 40
LONGEST_CUT = 250
HOUR_MS = 3_600_000


class Day:
    """One company and what happens to it. ``log`` is what a failing seed prints."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.company = Company(folder, seed, PEOPLE)
        self.log: list[str] = []
        self._sales = 0

    def run(self, acts: int = ACTS) -> Proof:
        """Live through the day and return its proof."""
        company = self.company
        company.enrol()
        for issued in company.issue_all():
            if issued.error:
                raise issued.error
        tills = [company.open_till(1), company.open_till(2)]
        staff = company.staff()
        for member in staff:
            company.recharge(member, 50_00)
        for _ in range(acts):
            self._act(self.random.choice(staff), self.random.choice(tills))
        return self._evening(staff, tills)

    def _act(self, member: str, till: Till) -> None:
        kinds: list[tuple[int, Callable[[str, Till], None]]] = [
            (10, self._pay), (3, self._recharge), (2, self._subsidy), (3, self._undo), (1, self._lose),
            (1, self._unlock), (1, self._reissue), (2, self._send), (2, self._collect), (1, self._crash),
        ]  # fmt: skip
        act = self.random.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]
        self.company.clock_ms += self.random.randrange(1, HOUR_MS // 10)
        said = "done"
        try:
            act(member, till)
        except (Refused, Conflict, OutcomeUnknown, TransportError) as e:
            said = f"{type(e).__name__}: {e}"
        finally:
            for card in self.company.chips.values():
                card.power.cut_at(0)
        self.log.append(f"{act.__name__[1:]} {member} at {till.journal.terminal.hex()}: {said}")

    def _cut(self) -> int:
        """A step to cut power at, now and then."""
        return self.random.randrange(1, LONGEST_CUT) if self.random.random() < 0.5 else 0

    def _torn(self, member: str, act: Callable[[], object]) -> None:
        """An act at the office's reader; the card is pulled away now and then, and perhaps presented again."""
        card = self.company.chips[member]
        for _ in range(self.random.randrange(1, 4)):
            card.reset()
            card.power.cut_at(self._cut())
            try:
                act()
            except (OutcomeUnknown, TransportError):
                continue
            finally:
                card.power.cut_at(0)
            return

    def _pay(self, member: str, till: Till) -> None:
        self._sales += 1
        amount = self.random.choice([1, 5_00, 12_00, 30_00])
        for _ in range(self.random.randrange(1, 4)):
            card = self.company.card(member)
            card.power.cut_at(self._cut())
            try:
                till.pos.pay(card, amount, f"sale-{self._sales}")
            except (OutcomeUnknown, TransportError):
                continue
            finally:
                card.power.cut_at(0)
            return

    def _recharge(self, member: str, _: Till) -> None:
        self._torn(member, lambda: self.company.recharge(member, 20_00))

    def _subsidy(self, member: str, _: Till) -> None:
        self._torn(member, lambda: self.company.subsidise(member, 5_00))

    def _undo(self, member: str, till: Till) -> None:
        card = self.company.card(member)
        card.power.cut_at(self._cut())
        till.pos.undo_last(card)

    def _lose(self, member: str, _: Till) -> None:
        self.company.lose(member)

    def _unlock(self, member: str, _: Till) -> None:
        self.company.unlock(member)

    def _reissue(self, member: str, _: Till) -> None:
        self.company.chips[member].power.cut_at(self._cut())
        try:
            self.company.reissue(member, old_present=True)
        except (Refused, Conflict):
            self.company.forget_reissue(member)
            raise

    def _send(self, _: str, till: Till) -> None:
        self.company.send_list(till)

    def _collect(self, _: str, till: Till) -> None:
        self.company.collect([till])
        if self.random.random() < 0.5:
            self.company.settle()

    def _crash(self, _: str, till: Till) -> None:
        """The till loses power: its SAM forgets the open purchase."""
        till.sam.reset()
        self.company.reopen(till)

    def _finish_loads(self, members: dict[str, str]) -> None:
        """Whoever went away with a torn recharge comes back to the counter: the same order goes on."""
        with self.company.system.database.read() as tx:
            begun = jobs.running(tx, ENTERPRISE)
        for job in begun:
            load = {"recharge": self.company.recharge, "subsidy": self.company.subsidise}[job.kind]
            if job.subject in members:  # an old card's order ended with the card
                with suppress(Refused):  # of a card that was lost since: found out, but not loaded any more
                    load(members[job.subject], job.arguments["amount_fen"])

    def _evening(self, staff: list[str], tills: list[Till]) -> Proof:
        """Everybody comes by once more, so that nothing stays unknown; then the books are closed and proven."""
        for member in self.company.replacing:
            self.company.reissue(member, old_present=True)
        self._finish_loads({self.company.serial(member).hex(): member for member in staff})
        for member in staff:
            for till in tills:
                self._sales += 1
                with suppress(Refused):
                    self.company.pay(till, member, 1, f"sale-{self._sales}")
            with suppress(Refused, Conflict):
                self.company.recharge(member, 1)
        for _ in range(2):
            self.company.collect()
            self.company.settle()
        # A till with an old list serves a lost card: settlement refuses that by name, as it should.
        return self.company.prove(named=frozenset({"card_state"}))
