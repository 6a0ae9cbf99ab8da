"""A company whose keys are rotated while it works: torn cards and SAMs, a change of mind, the old keys destroyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from backoffice import cards, jobs, members, registry, rotation, wallet
from backoffice.members import Member
from cardlib.errors import OutcomeUnknown, Refused, TransportError
from cardlib.profile import PublicInfo
from cardlib.purse import CHANGING
from cardlib.sam import CardSam
from keymgmt.delivery import StoreKeys
from keymgmt.keys import KeyState
from keymgmt.rotate import versions
from keymgmt.samload import HOLDS, SamKind, load_keys
from keymgmt.store import SharedStore
from simulator.files import BinaryFile, Df
from simulator.world import ENTERPRISE, Company, Proof, Till

LONGEST_CUT = 300
START_FEN = 20_00


class Workforce(Company):
    """A company of as many people as one likes."""

    def hire(self, *numbers: int) -> None:
        with self.system.database.write() as tx:
            for number in numbers:
                members.add(tx, self.admin, ENTERPRISE, Member(f"M{number:04}", f"成员 {number}"))

    def staff(self) -> list[str]:
        """Everybody, in order."""
        with self.system.database.read() as tx:
            return [one.member_number for one in members.listing(tx, ENTERPRISE)]


class Rotation:
    """One company on its way from key version 1 to 2. ``log`` is what a failing seed prints."""

    def __init__(self, folder: Path, seed: int, people: int) -> None:
        self.random = Random(seed)
        self.people = people
        self.company = Workforce(folder, seed, people)
        self.log: list[str] = []
        self.met: Counter[str] = Counter()
        self._sales = 0

    @property
    def store(self) -> SharedStore:
        return self.company.system.keys

    def run(self, acts: int) -> Proof:
        """Rotate from beginning to end, with ``acts`` random acts at each stage; returns the proof."""
        company, store = self.company, self.store
        company.hire(*range(1, self.people + 1))
        for issued in company.issue_all():
            if issued.error:
                raise issued.error
        tills = [company.open_till(1), company.open_till(2)]
        for member in company.staff():
            company.recharge(member, START_FEN)
        self.count({1: self.people}, {1: 2})
        list(rotation.make_roots(store, 2, "root"))
        assert rotation.begin(store, ENTERPRISE, "admin") == 2
        self._refused("activate", 2, "sams")
        for till in tills:
            self._load(till)
        self.count({1: self.people, 2: 0}, {1: 2, 2: 2})
        self._act(acts, tills)
        self._change("activate", 2)
        company.hire(self.people + 1)
        late = company.staff()[-1]
        assert cards.issue(company.office(), company.admin, late, company.new_card(late))["state"] == "active"
        assert self.chip_version(late) == 2
        self._act(acts, tills)
        company.collect()
        company.settle()
        with company.system.database.write() as tx:
            assert rotation.roll_back(tx, store, ENTERPRISE, "admin") == 1
        self._act(acts, tills)
        self._refused("destroy", 2, "in_use")
        self._change("activate", 2)
        self._act(acts, tills)
        self._change("retire", 1)
        self._refused("destroy", 1, "in_use")
        return self._end(tills)

    # Counting

    def chip_version(self, member: str) -> int:
        """What 0015 of a chip says, looked up in its memory."""
        nodes = self.company.chips[member].mf.files.value.values()
        application = next(node for node in nodes if isinstance(node, Df))
        public = application.files.value[0x0015]
        assert isinstance(public, BinaryFile)
        return PublicInfo.decode(public.data.value).key_set

    def count(self, cards_: dict[int, int] | None = None, sams: dict[int, int] | None = None) -> None:
        """What the office counts is what the chips hold: no card has a version that it is not counted for."""
        company = self.company
        with company.system.database.read() as tx:
            found = {one.version: one for one in rotation.usage(tx, self.store, ENTERPRISE)}
            holds = {v: set(rotation.cards_with(tx, ENTERPRISE, v)) for v in found}
            torn = {v: set(rotation.torn_with(tx, ENTERPRISE, v)) for v in found}
        assert all((one.cards, one.torn) == (len(holds[v]), len(torn[v])) for v, one in found.items())
        assert sum(len(serials) for serials in holds.values()) == len(company.chips)
        for member in company.chips:
            serial, version = company.serial(member).hex().upper(), self.chip_version(member)
            if version == CHANGING:
                assert any(serial in serials for serials in torn.values()), f"{serial} is torn and not counted"
            else:
                assert serial in holds[version] | torn[version], f"{serial} holds {version} and is not counted"
        if cards_ is not None:
            assert {v: one.cards for v, one in found.items()} == cards_
        if sams is not None:
            assert {v: one.sams for v, one in found.items() if one.sams} == sams

    # Changing

    def _change(self, name: str, version: int) -> None:
        change = {"activate": rotation.activate, "retire": rotation.retire, "destroy": rotation.destroy}[name]
        with self.company.system.database.write() as tx:
            change(tx, self.store, ENTERPRISE, version, "admin")
        self.log.append(f"{name} {version}")

    def _refused(self, name: str, version: int, reason: str) -> None:
        with pytest.raises(Refused) as refused:
            self._change(name, version)
        assert refused.value.reason == reason

    def _load(self, till: Till) -> None:
        """Load version 2 into a till's SAM, its power cut over and over."""
        system = self.company.system
        serial, keys = till.journal.sam_serial, StoreKeys(self.store, ENTERPRISE)
        for cut in (3, 9, 14, 0):
            till.sam.reset()
            till.sam.power.cut_at(cut)
            with suppress(TransportError):
                load_keys(till.sam, serial, HOLDS[SamKind.POS], (2,), keys)
        till.sam.power.cut_at(0)
        self.company.reopen(till)
        with system.database.write() as tx:
            registry.note_sam_keys(tx, ENTERPRISE, serial, CardSam(till.sam).keys())
        self.company.reopen(till)

    # Working

    def _act(self, acts: int, tills: list[Till]) -> None:
        staff = self.company.staff()
        kinds: list[tuple[int, Callable[[str, Till], None]]] = [
            (8, self._pay), (5, self._recharge), (3, self._update), (1, self._crash), (1, self._collect),
        ]  # fmt: skip
        for number in range(acts):
            act = self.random.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]
            member, till = self.random.choice(staff), self.random.choice(tills)
            self.company.clock_ms += self.random.randrange(1, 60_000)
            said = "done"
            try:
                act(member, till)
            except (Refused, OutcomeUnknown, TransportError) as e:
                said = f"{type(e).__name__}: {e}"
                self.met[getattr(e, "reason", type(e).__name__)] += 1
            finally:
                self.company.chips[member].power.cut_at(0)
                till.sam.power.cut_at(0)
            self.log.append(f"{act.__name__[1:]} {member} (keys {self.chip_version(member)}): {said}")
            if number % 10 == 0:
                self.count()

    def _cut(self, member: str, longest: int = LONGEST_CUT) -> None:
        card = self.company.card(member)
        card.power.cut_at(self.random.randrange(1, longest) if self.random.random() < 0.5 else 0)

    def _pay(self, member: str, till: Till) -> None:
        self._sales += 1
        self._cut(member, 100)
        if self.random.random() < 0.1:
            till.sam.power.cut_at(self.random.randrange(1, 20))
        try:
            till.pos.pay(self.company.chips[member], self.random.choice([1, 50, 1_20]), f"sale-{self._sales}")
        finally:
            if not till.sam.power.on:
                self.company.reopen(till)

    def _recharge(self, member: str, _: Till) -> None:
        company, card = self.company, self.company.chips[member]
        office, serial = company.office(), company.serial(member)
        self._at_desk(member, lambda: wallet.recharge(office, company.admin, card, serial, 5_00))

    def _update(self, member: str, _: Till) -> None:
        self._at_desk(member, lambda: self._renewed(member))

    def _renewed(self, member: str) -> None:
        company, card = self.company, self.company.chips[member]
        outcome = cards.update_keys(company.office(), company.admin, card, company.serial(member))
        assert outcome["version"] == self.chip_version(member)

    def _at_desk(self, member: str, act: Callable[[], object]) -> None:
        """An act at the office's reader; the card is pulled away now and then, and perhaps presented again."""
        for _ in range(self.random.randrange(1, 3)):
            self._cut(member)
            with suppress(OutcomeUnknown, TransportError):
                act()
                return
        if self.chip_version(member) == CHANGING:
            self.met["torn"] += 1

    def _crash(self, _: str, till: Till) -> None:
        till.sam.reset()
        self.company.reopen(till)

    def _collect(self, _: str, till: Till) -> None:
        self.company.collect([till])
        self.company.settle()

    # The end

    def _end(self, tills: list[Till]) -> Proof:
        """Everybody comes to a desk once more; new SAMs; the old keys are destroyed, and work goes on without them."""
        company = self.company
        for member in company.staff():
            company.card(member)
            self._renewed(member)
            if any(job.card_serial == company.serial(member) for till in tills for job in till.journal.open_jobs()):
                for till in tills:
                    self._sales += 1
                    with suppress(Refused):
                        company.pay(till, member, 1, f"sale-{self._sales}")
        self._finish_loads()
        self._refused("destroy", 1, "in_use")
        for till in tills:
            till.journal.note("closed")
        company.collect()
        company.settle()
        fresh = [company.open_till(number, versions=(2,)) for number in (3, 4)]
        with company.system.database.write() as tx:
            for till in tills:
                registry.lose_sam(tx, company.admin, ENTERPRISE, till.journal.sam_serial, company.now_ms())
                registry.retire(tx, company.admin, ENTERPRISE, till.journal.terminal)
        for till in fresh:
            company.pay(till, company.staff()[0], 1, f"first of {till.journal.terminal.hex()}")
        company.collect()
        company.settle()
        self.count({1: 0, 2: self.people + 1}, {2: 2})
        self._change("destroy", 1)
        assert versions(self.store, ENTERPRISE) == {1: KeyState.DESTROYED, 2: KeyState.ACTIVE}
        self._act(20, fresh)
        for member in company.staff():
            if any(job.card_serial == company.serial(member) for till in fresh for job in till.journal.open_jobs()):
                for till in fresh:
                    self._sales += 1
                    with suppress(Refused):
                        company.pay(till, member, 1, f"sale-{self._sales}")
        self._finish_loads()
        for _ in range(2):
            company.collect()
            company.settle()
        return company.prove()

    def _finish_loads(self) -> None:
        """Whoever went away with a torn recharge comes back to the counter: the same order goes on."""
        by_serial = {self.company.serial(member).hex(): member for member in self.company.chips}
        with self.company.system.database.read() as tx:
            begun = jobs.running(tx, ENTERPRISE)
        for job in begun:
            if job.kind == "recharge":
                self.company.recharge(by_serial[job.subject], job.arguments["amount_fen"])
