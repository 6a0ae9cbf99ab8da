"""A till takes the key version that the card answers, and says in words when it can't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backoffice import cards, rotation
from cardlib.errors import OutcomeUnknown, Refused, TransportError
from cardlib.purse import CHANGING
from simulator.world import ENTERPRISE
from terminals.reasons import Reason
from tests.soak.rotation import Rotation


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Rotation]:
    """Two people, version 2 made and active, one card of each version."""
    made = Rotation(tmp_path, 1, 2)
    made.company.hire(1, 2)
    for issued in made.company.issue_all():
        assert issued.error is None
    for member in made.company.staff():
        made.company.recharge(member, 20_00)
    list(rotation.make_roots(made.store, 2, "root"))
    rotation.begin(made.store, ENTERPRISE, "admin")
    with made.company.system.database.write() as tx:
        rotation.activate(tx, made.store, ENTERPRISE, 2, "admin", without_sams=True)
    renew(made, "M0002")
    assert [made.chip_version(member) for member in made.company.staff()] == [1, 2]
    yield made
    made.company.close()


def renew(made: Rotation, member: str) -> None:
    company = made.company
    cards.update_keys(company.office(), company.admin, company.card(member), company.serial(member))


def test_a_till_of_both_versions_serves_both(company: Rotation) -> None:
    """A SAM with versions 1 and 2 takes cards of either, and the record names the version that settlement checks."""
    till = company.company.open_till(1, versions=(1, 2))
    paid = [company.company.pay(till, member, 1_00, f"sale of {member}")[0] for member in ("M0001", "M0002")]
    assert [receipt.moves[0].key_version for receipt in paid] == [1, 2]
    company.company.collect()
    company.company.settle()
    assert company.company.prove().faults == ()


@pytest.mark.parametrize(("versions", "served", "refused"), [((1,), "M0001", "M0002"), ((2,), "M0002", "M0001")])
def test_a_till_without_the_version_says_so(
    company: Rotation, versions: tuple[int, ...], served: str, refused: str
) -> None:
    """A SAM that lacks the card's version is the reason, by its code and in words; nothing moved."""
    till = company.company.open_till(1, versions=versions)
    company.company.pay(till, served, 1_00, "one")
    with pytest.raises(Refused, match="the SAM lacks the card's key version") as no:
        company.company.pay(till, refused, 1_00, "two")
    assert no.value.reason == Reason.KEY_VERSION.code
    assert not till.journal.open_jobs()


def test_a_torn_card_is_sent_to_the_counter(company: Rotation) -> None:
    """A card torn between two versions is refused with where to go; a payment it left open is found out afterwards."""
    world, member = company.company, "M0001"
    till = world.open_till(1, versions=(1, 2))
    card = world.card(member)
    step = 0
    while not till.journal.open_jobs():
        step += 1
        card = world.card(member)
        card.power.cut_at(step)
        with suppress(OutcomeUnknown, TransportError):
            till.pos.pay(card, 1_00, f"sale {step}")
        card.power.cut_at(0)
    at = 30
    while company.chip_version(member) != CHANGING:
        at += 1
        card = world.card(member)
        card.power.cut_at(at)
        with suppress(TransportError):
            cards.update_keys(world.office(), world.admin, card, world.serial(member))
        card.power.cut_at(0)
    with pytest.raises(Refused, match="recharged") as no:
        world.pay(till, member, 1_00, "later")
    assert no.value.reason == Reason.KEYS_CHANGING.code
    assert till.journal.open_jobs()
    renew(company, member)
    world.pay(till, member, 1, "after")
    assert not till.journal.open_jobs()
    world.collect()
    world.settle()
    assert world.prove().faults == ()
