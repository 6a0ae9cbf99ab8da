"""``onecard demo --over-the-air``: a SIM that nobody touches, from the factory to its end, told and proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cardlib.errors import CheckFailed
from cardlib.money import yuan
from simulator.phone import Phone
from simulator.story import Story
from simulator.uicc.face import Uicc
from simulator.world import AirCompany

HOLDER = "E001"
DIGITS = "729046"
RECHARGE_FEN = 50_00
LOSS, DELETE, BALANCE = "挂失", "删除应用", "余额"
ADF = "00A4040C07A0000000871002"


def telephone(face: Uicc) -> dict[str, Any]:
    """Everything of the SIM that belongs to the telephone: files, PINs, numbers, keys and what channels have open."""
    kept = face.memory.dump()
    names = ("files", "pins", "sqn", "key_sets", "domain", "load_files", "instances", "application_data")
    channels = [one and (one.application, one.mode, one.directory, one.ef, one.record) for one in face.channels]
    return {name: kept[name] for name in names} | {"channels": channels, "probe": _probe(face)}


def _probe(face: Uicc) -> list[str]:
    """What the terminal's basic channel answers: its current file is still current."""
    return [face.transceive(bytes.fromhex(one)).hex() for one in ("00F2000000", "00B0000000")]


def tell(folder: Path, story: Story, seed: int) -> None:
    """The whole story. Raises CheckFailed when something does not come out as it must."""
    company = AirCompany(folder, seed)
    try:
        company.enrol()
        story.chapter("The factory")
        phone = company.factory(HOLDER)
        sim = company.chips[HOLDER]
        face: Uicc = phone.sim  # type: ignore[assignment]  # a phone around this very SIM
        face.transceive(bytes.fromhex(ADF))
        before = telephone(face)
        story.fact("serial", company.washed[HOLDER].hex(), "a SIM is washed, gets the platform's keyset, goes by post")
        _issue(story, company)
        _money(story, company, phone)
        _loss(story, company, phone)
        _end(story, company, phone)
        after = telephone(face)
        changed = [name for name, value in before.items() if after[name] != value]
        if changed:
            raise CheckFailed(f"the telephone's part of the SIM changed: {', '.join(changed)}")
        story.fact(
            "telephone",
            "unchanged",
            f"telephone files, PIN counters and channels of {type(sim).__name__}: as before, to the byte",
        )
    finally:
        company.close()


def _issue(story: Story, company: AirCompany) -> None:
    story.chapter("The card is made, by short messages only")
    outcome = company.issue_by_air(HOLDER)
    story.fact(
        "state", outcome["state"], f"slot opened, its keyset and keys written, every key proven: {outcome['state']}"
    )


def _money(story: Story, company: AirCompany, phone: Phone) -> None:
    story.chapter("Money")
    job = company.by_air("recharge", HOLDER, RECHARGE_FEN)
    fen = job.outcome["amount_fen"]
    story.fact("recharged_fen", fen, f"recharge of {yuan(fen)}: three messages, proven by its TAC")
    shown = phone.choose(BALANCE)
    if f"{yuan(RECHARGE_FEN)}" not in shown:
        raise CheckFailed(f"the phone's menu shows {shown!r}")
    story.fact("menu", shown, "the phone's menu: " + shown.replace("\n", "  "))


def _loss(story: Story, company: AirCompany, phone: Phone) -> None:
    story.chapter("Lost, and found")
    company.set_service_password(HOLDER, DIGITS)
    phone.choose(LOSS, DIGITS)
    company.server().answer()
    job = company.proven()
    story.fact(
        "lost", job.outcome["blocked"], f"reported from the menu; the office: {phone.inbox[-1]}; application blocked"
    )
    company.unlock(HOLDER)
    job = company.proven()
    story.fact("unlocked", not job.outcome["blocked"], "found again: off the blacklist, application unblocked")


def _end(story: Story, company: AirCompany, phone: Phone) -> None:
    story.chapter("The end")
    phone.choose(DELETE, "ONECARD", DIGITS)
    company.server().answer()
    story.fact("not_yet", phone.inbox[-1], f"deletion asked from the menu; the office: {phone.inbox[-1]}")
    company.by_air("refund", HOLDER, RECHARGE_FEN)
    story.fact("refunded_fen", RECHARGE_FEN, f"{yuan(RECHARGE_FEN)} taken off the card and owed to the holder")
    phone.choose(DELETE, "ONECARD", DIGITS)
    company.server().answer()
    company.proven()
    story.fact("deleted", phone.inbox[-1], f"asked again; the office: {phone.inbox[-1]}; deleted in two messages")
    del company.chips[HOLDER]  # nothing of ours is on it any more: the books alone must say so
    company.settle()
    proof = company.prove()
    if proof.faults:
        raise CheckFailed("the story does not add up: " + "; ".join(proof.faults))
