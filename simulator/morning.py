"""``onecard demo --terminals``: a morning of a company at five terminals, each a process behind a pseudo-terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cardlib.errors import CheckFailed
from cardlib.money import yuan
from simulator.site import RealTime, Site, Terminal
from simulator.story import Story

PEOPLE = 4
DOOR = "[weeks.1]\ndaily = ['00:00-24:00']\n[doors.1]\nzone_inside = 10\n"
TORN = "?cut=25"
"""A step in the middle of the command that takes the money off the card."""


def _expect(said: dict[str, Any], /, **wanted: object) -> dict[str, Any]:
    """Raises CheckFailed when a terminal said something else."""
    if any(said.get(key) != value for key, value in wanted.items()):
        raise CheckFailed(f"a terminal said {said} where {wanted} was to be")
    return said


class Morning:
    """Five terminals in ``folder`` and what happens at them."""

    def __init__(self, folder: Path, story: Story, seed: int) -> None:
        self._story, self._fact = story, story.fact
        (folder / "office").mkdir()
        self.company = RealTime(folder / "office", seed, PEOPLE)
        self.site = Site(folder / "site", self.company, lambda line: story.tell(f"  $ {line}"))

    def tell(self) -> None:
        """All of it. Raises CheckFailed when anything is not as it must be."""
        try:
            self._unpack()
            self._cards()
            self._serve()
            self._evening()
        finally:
            self.site.close()
            self.company.close()

    def _unpack(self) -> None:
        self._story.chapter("Unpacking: five terminals, brought into service over their lines")
        company, site = self.company, self.site
        company.enrol()
        site.open_office()
        english = ("--language", "en")
        self.till = site.unpack("POS-0001", "pos", "canteen", "", "--cashier", "kim", *english)
        self.door = site.unpack("DOOR-001", "access", "entrance", DOOR, *english)
        self.clock = site.unpack("CLOCK-01", "attendance", "entrance", "", *english)
        self.cash = site.unpack("CASH-001", "recharge", "hall", "", "--cashier", "lee", *english)
        self.desk = site.unpack("DESK-001", "issuing", "personnel", "", *english)
        site.found()
        site.wait_for_office()
        site.provision()
        count = len(site.terminals)
        self._fact("provisioned", count, f"{count} terminals paired, clocks set, configured, listed, tested, read back")

    def _cards(self) -> None:
        self._story.chapter("Personnel: cards")
        first, *others = self.company.staff()
        blank = self.site.hand_out(first, self.company.fresh_card())
        self.desk.type(f"issue {first}", silent=True)
        made = _expect(self.desk.type(f"card {blank}"), event="issue")
        self.company.chips[first] = self.company.fresh_card()  # the one in the file; looked at in the evening
        self._fact(
            "issued",
            made["card"],
            f"the issuing terminal made card {made['card']} of member {first}; no key left the office",
        )
        for one in self.company.issue_all("rest"):
            if one.error and one.member_number != first:
                raise one.error
        for member in others:
            self.site.hand_out(member)
        self.first, self.others = first, others

    def _show(self, terminal: Terminal, member: str, torn: str = "") -> dict[str, Any]:
        return terminal.type(f"card {self.site.image(member)}{torn}")

    def _serve(self) -> None:
        self._story.chapter("A morning: doors, punches, a recharge, lunch")
        first, lost, *_ = self.first, *self.others
        _expect(self._show(self.door, first), event="passage", granted=True)
        _expect(self._show(self.clock, first), event="punch", direction="in")
        for line in ("open 1", "shut 1"):
            self.door.type(line, silent=True)
        self._fact("passed", first, f"member {first}: the door opens, the clock takes the punch")
        self.cash.type("100", silent=True)
        loaded = _expect(self._show(self.cash, first), event="load", amount_fen=100_00)
        self._fact(
            "loaded_fen",
            loaded["amount_fen"],
            f"member {first}: {yuan(loaded['amount_fen'])} cash onto the card, computed by the office",
        )
        self.till.type("15.00", silent=True)
        torn = self._show(self.till, first, TORN)
        _expect(torn, event="unknown")
        self._fact("torn", torn["event"], "lunch: the card is pulled away in the middle: present it again")
        paid = _expect(self._show(self.till, first), event="pay", amount_fen=15_00, balance_fen=85_00)
        self._fact(
            "paid_fen", paid["amount_fen"], f"the same card again: charged once, balance {yuan(paid['balance_fen'])}"
        )
        self._forced()
        self._lost(lost)

    def _forced(self) -> None:
        self.door.type("open 1", silent=True)
        self.door.type("shut 1", silent=True)
        self._fact("forced", True, "somebody forces the door: the alarm is in its journal")

    def _lost(self, member: str) -> None:
        self.company.lose(member)
        self.site.push_list(self.door)
        refused = _expect(self._show(self.door, member), event="refused", reason="lost")
        self._fact(
            "refused",
            refused["reason"],
            f"member {member} reports a loss; the list goes over the line, the door refuses",
        )

    def _evening(self) -> None:
        self._story.chapter("Evening: journals over the line, settlement, and the proof")
        site, company = self.site, self.company
        self._fact("collected", site.collect(), "five journals fetched; every record at most once")
        notes = site.notes(self.door)
        if "door_forced" not in notes:
            raise CheckFailed(f"the door's journal has no alarm: {notes}")
        site.take_back()
        company.settle()
        proof = company.prove()
        self._fact(
            "proof",
            proof._asdict(),
            f"{yuan(proof.loaded_fen)} loaded = {yuan(proof.on_cards_fen)} on cards + {yuan(proof.taken_fen)} taken",
        )
        if proof.faults:
            raise CheckFailed("the morning does not add up: " + "; ".join(proof.faults))
