"""Issuing terminals: the office's flows over real HTTP, on simulated cards in the terminal's readers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from backoffice import batches, cards, enterprises, members, operators, registry, wallet
from backoffice.operators import Credential, Role
from backoffice.registry import TerminalKind
from cardlib.errors import Conflict, FormatError, NotFound, Refused, TransportError
from cardlib.profile import CardKind, Purse, make_serial
from cardlib.readers import Reader
from keymgmt.batchfile import read_batch
from keymgmt.steps import MemorySteps
from keymgmt.wash import WashPlan, wash
from simulator.card import Card
from simulator.image import save
from simulator.vendor import Vendor
from simulator.world import QUICK
from terminals import issuing
from terminals.issuing import Lending
from terminals.posts.issuing import IssuingPost
from tests.backoffice.desk import OPERATOR, Counter, World, serial_of
from tests.backoffice.kit import ADMIN, ENTERPRISE, sam_serial, terminal_number
from tests.backoffice.test_washing import BATCH_KEY
from tests.backoffice.test_web import new_token
from tests.terminals.issuing_site import OPERATOR_SECRET, SAM, BadLine, Counted, Pile, Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An office with its issuing terminal; nothing is served yet."""
    monkeypatch.setattr(issuing, "RETRY_S", 0.01)
    world = World(tmp_path)
    made = Site(world, tmp_path)
    yield made
    made.close()
    world.close()


def run_batch(post: IssuingPost) -> None:
    """Type ``batch`` and look after it until it has ended."""
    assert post.order(["batch"])
    deadline = time.monotonic() + 60
    while post.busy:
        assert time.monotonic() < deadline
        post.turn()
        time.sleep(0.005)


def refused(act: object) -> str:
    """The reason of a refusal."""
    assert callable(act)
    with pytest.raises(Refused) as error:
        act()
    return error.value.reason


def memory(card: Card, folder: Path) -> bytes:
    """All that a card keeps."""
    card.reset()
    save(card, folder / "memory.img")
    return (folder / "memory.img").read_bytes()


# One card


def test_issue(site: Site) -> None:
    """A blank card becomes the member's, proven by the office, with a label line and a note in the journal."""
    member, card = site.world.member(1), site.world.blank()
    with site.served():
        post = site.post()
        assert post.order(["issue", member])
        outcome = post.serve(card)
        post.stop()
    serial = serial_of(card)
    assert (outcome["event"], outcome["member"], outcome["card"]) == ("issue", member, serial.hex().upper())
    assert site.world.state(serial) == ("active", "in use")
    label = f"{member}\t成员 1\t{serial.hex().upper()}"
    assert label in site.said
    assert (site.folder / "labels.txt").read_text() == label + "\n"
    assert site.terminals[0].journal.collect(1).entries[0].record.text.startswith(serial.hex().upper())  # type: ignore[union-attr]  # a note
    site.world.agrees()


def test_reissue_with_the_old_card_in_the_same_reader(site: Site) -> None:
    """The old card is read and emptied first, then the new one takes its money and its place (D6)."""
    world = site.world
    old, serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, serial, 50_00)
    old.reset()
    new = world.blank()
    with site.served():
        post = site.post()
        assert post.order(["reissue", "M001"])
        assert refused(lambda: post.serve(old)) == "no_wish"
        assert post.order(["reissue", "M001"])
        assert not post.order(["yes"])
        assert not post.order(["REISSUE"])
        assert post.order(["reissue", "M001"])
        assert post.order(["REISSUE"])
        assert post.serve(old) == {"event": "present", "which": "new"}
        outcome = post.serve(new)
    assert outcome["carried_fen"] == {"main": 50_00}
    assert world.on_card(new)[Purse.MAIN] == 50_00
    assert (world.state(serial)[0], world.state(serial_of(new))[0]) == ("replaced", "active")
    assert world.purse(serial_of(new)) == 50_00
    world.agrees()


def test_reissue_of_a_lost_card_waits_for_the_books(site: Site) -> None:
    """Without the old card the new one works at once, and its money comes when the books are complete."""
    world = site.world
    old, serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, serial, 30_00)
    new, till = world.blank(), Counter(world, 5)
    with site.served():
        post = site.post()
        post.order(["reissue", "M001", "lost"])
        post.order(["REISSUE"])
        assert refused(lambda: post.serve(new)) == "not_lost"
        cards.lose(world.office, ADMIN, serial, "gone")
        for waits in (True, False):
            post.order(["reissue", "M001", "lost"])
            post.order(["REISSUE"])
            new.reset()
            outcome = post.serve(new)
            assert (outcome["state"] == "waiting") is waits
            till.close_books()
    assert world.on_card(new)[Purse.MAIN] == 30_00


def test_return(site: Site) -> None:
    """A returned card is emptied, erased and ended; its money stands where the enterprise's rule says."""
    world = site.world
    card, serial = world.issued()
    wallet.recharge(world.office, ADMIN, card, serial, 12_00)
    card.reset()
    with site.served():
        post = site.post()
        post.order(["return"])
        post.order(["RETURN"])
        outcome = post.serve(card)
    assert outcome["settled_fen"] == {"main": 12_00}
    assert world.state(serial) == ("cancelled", "cancelled")
    assert world.purse(serial) == 0
    world.agrees()


def test_read(site: Site) -> None:
    """What is in the reader is told and not changed: blank, ours with its member, another platform's."""
    world = site.world
    card, serial = world.issued()
    blank, stranger = world.blank(), foreign(world)
    with site.served():
        post = site.post()
        found = []
        for one in (card, blank, stranger):
            before = memory(one, site.folder)
            post.order(["read"])
            found.append(post.serve(one))
            assert memory(one, site.folder) == before
    assert (found[0]["member"], found[0]["card"], found[0]["state"]) == ("M001", serial.hex().upper(), "active")
    assert found[1]["state"] == "blank"
    assert found[2]["state"] == "another platform's"


def foreign(world: World) -> Card:
    """A card that another platform has washed."""
    card = world.blank()
    assert world.office.initial is not None
    serial = make_serial(CardKind.CPU_CARD, 9, 5)
    wash(card, WashPlan("w", serial, 1, date(2026, 9, 1), 1, world.office.initial), world.store, MemorySteps())
    card.reset()
    return card


def test_cards_of_others_stay_untouched(site: Site) -> None:
    """A card of another platform, of another enterprise or in use is refused, and not one bit of it changes."""
    world = site.world
    used, _ = world.issued(1)
    theirs, serial = world.issued(2)
    with world.platform.write() as tx:
        enterprises.register(tx, OPERATOR, 2002, "Another company", "o.db")
        tx.execute("UPDATE slot SET enterprise_id = 2002 WHERE card_serial = ?", (serial,))
    with world.db.write() as tx:
        tx.execute("UPDATE card_application SET state = 'cancelled' WHERE card_serial = ?", (serial,))
    member = world.member(3)
    with site.served():
        post = site.post()
        for card in (used, theirs, foreign(world)):
            before = memory(card, site.folder)
            post.order(["issue", member])
            assert refused(lambda card=card: post.serve(card)) == "card_used"
            assert memory(card, site.folder) == before
        post.order(["return"])
        post.order(["RETURN"])
        with pytest.raises(NotFound):
            post.serve(foreign(world))
        post.order(["issue", member])
        with pytest.raises(Refused):
            post.serve(used)
        assert post.serve(world.blank())["member"] == member  # the wish outlives a wrong card


def test_a_blank_card_of_a_received_batch(site: Site) -> None:
    """Its vendor's key comes from the batch file that the office holds; without any key it is refused and untouched."""
    world = site.world
    [card], data = Vendor("Example Chips", "B1", BATCH_KEY, world.random_bytes, CardKind.CPU_CARD).deliver(1)
    with world.platform.write() as tx:
        batches.receive(tx, OPERATOR, read_batch(data, BATCH_KEY), data)
    member, before = world.member(1), memory(card, site.folder)
    keyless = replace(world.office, initial=None)
    with site.served(keyless):
        post = site.post()
        post.order(["issue", member])
        assert refused(lambda: post.serve(card)) == "wash"
    assert memory(card, site.folder) == before
    with site.served(replace(keyless, batch_key=BATCH_KEY)):
        post = site.post()
        post.order(["issue", member])
        assert post.serve(card)["member"] == member


# A batch


def test_batch_with_two_readers_at_once(site: Site) -> None:
    """All members without a card get one, side by side in two readers; PINs and labels are on paper, each once."""
    world = site.world
    world.issued(1)
    people = [world.member(number) for number in range(2, 8)]
    blanks = [world.blank() for _ in people]
    piles: list[Reader] = [Pile("left", blanks[:3]), Pile("right", blanks[3:])]
    with site.served():
        run_batch(site.post(readers=piles))
    assert [event["event"] for event in site.events] == ["issued"] * 6 + ["batch_ended"]
    assert sorted(event["member"] for event in site.events[:-1]) == people
    labels = [line.split("\t") for line in (site.folder / "labels.txt").read_text().splitlines()]
    assert sorted(label[0] for label in labels) == people
    assert {label[2] for label in labels} == {serial_of(card).hex().upper() for card in blanks}
    assert sorted(line.split(",")[0] for line in (site.folder / "pins.csv").read_text().splitlines()) == people
    assert (site.folder / "pins.csv").stat().st_mode & 0o777 == 0o600
    assert any(line.startswith("batch: 6 issued, 0 failed, 0 to go") for line in site.said)
    for card in blanks:
        assert world.state(serial_of(card)) == ("active", "in use")
    world.agrees()


def test_batch_goes_on_with_half_made_cards(site: Site) -> None:
    """Torn cards are named at the end of a batch; put on again in the next one each becomes its own member's."""
    world = site.world
    people = [world.member(number) for number in range(1, 5)]
    torn, second, third = world.blank(), world.blank(), world.blank()
    torn.power.cut_at(150)
    with site.served():
        post = site.post(readers=[Pile("one", [torn, second, third, world.blank()])])
        assert post.order(["batch"])
        while len([one for one in site.events if one["event"] == "issued"]) < 3:
            post.turn()
            time.sleep(0.005)
        post.stop()
        ended = site.events[-1]
        serial = serial_of(torn).hex().upper()
        assert (ended["issued"], ended["failed"], ended["begun"]) == (3, 1, {serial: people[0]})
        torn.power.cut_at(0)
        run_batch(site.post(readers=[Pile("one", [second, torn])]))
    last = [one for one in site.events if one["event"] == "issued"][-1]
    assert (last["member"], last["card"]) == (people[0], serial)
    assert "card_used" in {one["error"]["code"] for one in site.events if one["event"] == "failed"}
    world.agrees()


def test_a_member_who_can_have_no_card_holds_nobody_up(site: Site) -> None:
    """In a batch a refusal that is about the member is told, and the same card becomes the next member's."""
    world = site.world
    people = [world.member(number) for number in (1, 2, 3)]
    with site.served():
        post = site.post()
        post.order(["batch"])
        assert post.serve(world.blank()) == {"event": "batch", "left": 2}
        with world.db.write() as tx:
            members.leave(tx, ADMIN, ENTERPRISE, people[1])
        assert post.serve(world.blank()) == {"event": "batch", "left": 0}
        post.turn()
    said = [(one["event"], one.get("member")) for one in site.events]
    assert said == [("issued", people[0]), ("failed", people[1]), ("issued", people[2]), ("batch_ended", None)]


# Faults


def again(post: IssuingPost, card: Card, *, typed: list[str]) -> dict[str, object]:
    """Present the card until its act has ended, typing the wish again where it is over."""
    for _ in range(3):
        card.reset()
        try:
            return post.serve(card)
        except TransportError:
            continue
        except Refused as e:
            assert e.reason == "no_wish", e  # noqa: PT017  # the terminal was started anew
            assert post.order(typed)
    raise AssertionError("the card was never made")


def test_card_pulled_away_anywhere(site: Site) -> None:
    """Wherever the card is pulled away, presenting it again makes it the member's; numbers and records agree."""
    world, number, step = site.world, 0, 3
    with site.served():
        post = site.post()
        while True:
            number += 1
            member, card = world.member(number), world.blank()
            post.order(["issue", member])
            card.power.cut_at(step)
            with suppress(TransportError):
                assert post.serve(card)["member"] == member
                break
            card.power.cut_at(0)
            assert again(post, card, typed=[])["member"] == member
            step += 67
    assert number > 4
    world.agrees()


@pytest.mark.parametrize("heard", [False, True])
def test_line_broken_anywhere(site: Site, heard: bool) -> None:
    """Whatever message is lost on the way, each command reaches the card once and the card is made in one go."""
    world = site.world
    with site.served():
        terminal = site.terminal()
        post = site.post(terminal)
        exact = set()
        for number, at in enumerate((0, 1, 2, 10, 77), 1):
            member, card = world.member(number), Counted(world.blank())
            terminal._lines[0] = BadLine(site.line(), at, heard=heard)
            post.order(["issue", member])
            assert post.serve(card)["member"] == member
            exact.add(len(card.told))
        assert len(exact) == 1
    world.agrees()


@pytest.mark.parametrize("gone", ["office", "terminal"])
def test_office_or_terminal_gone_anywhere(site: Site, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An office started anew, or a terminal, in the middle of a card: it goes on when it is presented again."""
    monkeypatch.setattr(Lending, "patience_s", 0.05)
    world = site.world
    for number, at in enumerate((1, 30, 90), 1):
        member, card = world.member(number), world.blank()
        with ExitStack() as office:
            office.enter_context(site.served())
            terminal = site.terminal()
            post = site.post(terminal)
            post.order(["issue", member])
            terminal.sign_on("anna", OPERATOR_SECRET)
            end = office.close if gone == "office" else lambda: None
            terminal._lines[0] = BadLine(site.line(), at, heard=True, act=end, for_good=True)
            with suppress(TransportError):
                post.serve(card)
            if gone == "terminal":
                post = site.post()
                assert again(post, card, typed=["issue", member])["member"] == member
        if gone == "office":
            with site.served():
                terminal._lines = {0: site.line()}
                assert again(post, card, typed=["issue", member])["member"] == member
    world.agrees()


def test_office_gone_in_a_batch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose office was started anew ends in words, and the next one makes what is left, half-made cards too."""
    monkeypatch.setattr(Lending, "patience_s", 0.05)
    people = [site.world.member(number) for number in range(1, 4)]
    blanks = [site.world.blank() for _ in range(3)]
    with ExitStack() as office:
        office.enter_context(site.served())
        terminal = site.terminal()
        post = site.post(terminal, readers=[Pile("one", blanks * 100)])
        post.order(["batch"])
        terminal._lines[1] = BadLine(site.line(), 200, heard=True, act=office.close, for_good=True)
        while not any("does not answer" in one or "line broke" in one for one in site.said):
            time.sleep(0.005)
    with site.served():
        terminal._lines = {0: site.line()}
        deadline = time.monotonic() + 60
        while post.busy:
            assert time.monotonic() < deadline
            post.turn()
        assert "the office has begun anew: type batch again" in site.said
        again = site.post(terminal, readers=[Pile("one", blanks)])
        run_batch(again)
    assert sorted(one["member"] for one in site.events if one["event"] == "issued") == people
    site.world.agrees()


# Who may


def test_only_the_right_sam_and_person_may_sign_on(site: Site) -> None:
    """A wrong secret, a SAM that is not this terminal's, or one that can't prove itself signs nobody on."""
    with site.served():
        terminal = site.terminal()
        assert refused(lambda: terminal.sign_on("anna", "not her secret")) == "operator"
        terminal._prove = lambda _: {"sam": sam_serial(5).hex(), "proof": bytes(8).hex()}  # type: ignore[assignment,method-assign]
        assert refused(lambda: terminal.sign_on("anna", OPERATOR_SECRET)) == "sam"
        terminal._prove = lambda _: {"sam": SAM.hex(), "proof": bytes(8).hex()}  # type: ignore[assignment,method-assign]
        assert refused(lambda: terminal.sign_on("anna", OPERATOR_SECRET)) == "sam"
        with site.world.db.write() as tx:
            credential = Credential.make("the auditor's secret", site.world.random_bytes, QUICK)
            operators.add(tx, ADMIN, ENTERPRISE, "otto", Role.AUDITOR, credential)
        assert refused(lambda: site.terminal().sign_on("otto", "the auditor's secret")) == "permission"


def test_an_act_needs_who_signed_on_and_who_still_may(site: Site) -> None:
    """Without a session, with another's, or with that of an operator put out of office, nothing is begun."""
    with site.served():
        terminal = site.terminal()
        wish = {"do": "read"}
        assert refused(lambda: terminal.begin(0, dict, wish).go_on()) == "session"
        terminal.sign_on("anna", OPERATOR_SECRET)
        assert terminal.begin(0, dict, wish).go_on() is None
        with site.world.db.write() as tx:
            tx.execute("UPDATE operator SET state = 'disabled' WHERE name = 'anna'")
        assert refused(lambda: terminal.begin(0, dict, wish).go_on()) == "session"


def test_other_terminals_may_not_lend(site: Site) -> None:
    """A till's token opens no act."""
    till = terminal_number(5)
    with site.world.db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, till, TerminalKind.POS, "till")
    site.token = new_token(site.world.db, till)
    with site.served():
        assert refused(lambda: site.terminal().sign_on("anna", OPERATOR_SECRET)) == "forbidden"


def test_odd_answers_end_the_act(site: Site) -> None:
    """An answer without what was asked for, or to another turn, is refused; the card is made afterwards."""
    member, card = site.world.member(1), site.world.blank()
    with site.served():
        terminal = site.terminal()
        terminal.sign_on("anna", OPERATOR_SECRET)
        line = site.line()
        opened: dict[str, str | int] = {
            "act": "a" * 32,
            "reader": 0,
            "session": terminal._session,
            "do": "issue",
            "member": member,
        }
        assert line.call("desk/act", **opened)["do"] == "present"
        assert line.call("desk/act", **opened) == {"seq": 1, "do": "present", "which": "card"}
        for seq in (5, -1):
            with pytest.raises(Conflict):
                line.call("desk/answer", act="a" * 32, reader=0, seq=seq, atr="3B00")
        with pytest.raises(NotFound):
            line.call("desk/answer", act="b" * 32, reader=0, seq=1, atr="3B00")
        assert line.call("desk/answer", act="a" * 32, reader=0, seq=1, atr="3B00")["do"] == "card"
        end = line.call("desk/answer", act="a" * 32, reader=0, seq=2, apdu="zz")
        assert end["error"]["kind"] == "FormatError"
        assert line.call("desk/answer", act="a" * 32, reader=0, seq=2, apdu="9000") == end
        odds: tuple[dict[str, str | int], ...] = ({"reader": 99}, {"do": "shell"}, {"act": "x"}, {"session": 7})
        for odd in odds:
            with pytest.raises(FormatError):
                line.call("desk/act", **(opened | {"act": "c" * 32} | odd))
        post = site.post(terminal)
        post.order(["issue", member])
        assert post.serve(card)["member"] == member
