"""The door terminal over a simulated OSDP line: real cards, SAM and secure channels, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cardlib.errors import CardRemoved, ConfigError, ReaderLost
from cardlib.iso7816 import update_binary
from cardlib.profile import AccessRights, Purpose
from cardlib.purse import identify, open_application
from cardlib.records import Note, PassageReport
from cardlib.sam import CardSam
from cardlib.wire import osdp
from cardlib.wire.osdp_secure import SCBK_D, read_keys
from keymgmt.personalise import protector
from keymgmt.samload import SamKind
from simulator.card import Card
from simulator.osdp import SimulatedReader
from simulator.rig import PIN, Enterprise
from simulator.serialline import NEVER, Faults, SerialLine
from terminals.access import Access
from terminals.config import Kind, TerminalConfig
from terminals.doors import AntiPassback, CardFlag, DoorRules, Hardware, OsdpLine, Week
from terminals.head import Head, credential
from terminals.journal import Journal
from terminals.osdp import Bus, Lasting
from terminals.policy import Rules
from terminals.posts.osdp import FREE_MS, OsdpPost
from terminals.reasons import Reason
from terminals.run import Keyboard, Process, Screen
from terminals.screen import MemoryScreen, Notice, Say
from tests.terminals.osdp_world import key_of
from tests.terminals.shop import FixedLists, OneSam

TERMINAL = bytes.fromhex("320000000002")
RULES = DoorRules(1, zone_inside=10, zone_outside=1, groups=0b10, release_ms=2_000)
HARDWARE = {1: Hardware(5, 6, 6), 2: Hardware(7)}
ALWAYS = Week.daily((0, 1440))


class Quiet(Keyboard):
    """A keyboard at which nobody types."""

    def __init__(self) -> None:
        self.ended = False

    def line(self, timeout_s: float, others: Sequence[int] = ()) -> str | None:
        return None


class Entrance:
    """Two doors with three readers on a line; ``start`` is a new process on the same journal, the readers live on."""

    def __init__(self, enterprise: Enterprise, folder: Path) -> None:
        self.enterprise, self.folder = enterprise, folder
        self.line = SerialLine(115_200, seed=2)
        self.random = Random(7)
        self.sam = enterprise.new_sam(SamKind.ACCESS, TERMINAL)
        self.lists = FixedLists(created_ms=enterprise.clock_ms)
        self.readers = {
            address: SimulatedReader(address, key_of(address), self.random.randbytes) for address in (5, 6, 7)
        }
        self.at_line = [(port := self.line.port(), reader.attach(port)) for reader in self.readers.values()]
        self.panel = self.line.port()
        self.rules: dict[int, DoorRules] = {1: RULES, 2: replace(RULES, door=2)}
        self.heads: frozenset[int] = frozenset()
        self.hardware = HARDWARE
        self.start()

    def start(self, language: str = "en") -> None:
        self.sam.reset()
        opened = CardSam(self.sam)
        info = opened.info()
        self.journal = Journal(
            self.folder / "door.db", info.enterprise_id, info.terminal, info.serial, self.now_ms,
        )  # fmt: skip
        line = OsdpLine("-", 115_200, self.heads)
        config = TerminalConfig(
            1, Kind.ACCESS, info.enterprise_id, Path(), Path(), bytes(32), rules=Rules(info.enterprise_id),
            doors=self.rules, hardware=self.hardware, osdp=line,
        )  # fmt: skip
        self.console: list[str] = []
        self.screen = Screen(open("/dev/null", "w"), language)  # noqa: SIM115, PTH123  # closed with the process
        self.access = Access(
            config, self.journal, self.lists, OneSam(opened), self.now_ms, self.enterprise.random_bytes, self.screen
        )
        bus = Bus(self.panel, 115_200, self.random.randbytes)
        for address in self.readers:
            bus.add(address, key_of(address))
        self.post = OsdpPost(
            self.access, bus, line, self.console.append, language, "kim", lambda: self.line.now_ms, self.pump
        )
        self.events: list[dict[str, Any]] = []
        self.process = Process(
            self.access, self.post, Quiet(), self.post.connect, self.post, self.console.append, self.events.append
        )

    def now_ms(self) -> int:
        return self.enterprise.clock_ms + self.line.now_ms

    def pump(self) -> None:
        self.line.run(self.at_line, self.line.now_us + 1_000)

    def until(self, done: Callable[[], object], limit_ms: int = 30_000) -> None:
        end_ms = self.line.now_ms + limit_ms
        while not done():
            assert self.line.now_ms < end_ms, self.console
            self.process._turn()

    def online(self) -> Entrance:
        self.until(lambda: all(device.online for device in self.post.devices.values()))
        return self

    def run(self, ms: int) -> None:
        end_ms = self.line.now_ms + ms
        self.until(lambda: self.line.now_ms >= end_ms, ms + 10_000)

    def crash(self, language: str = "en") -> None:
        """The terminal's power goes; the line and its readers stay as they are."""
        self.journal.close()
        self.screen._stream.close()
        self.start(language)

    def card(self, groups: int = 0b10, flags: CardFlag = CardFlag.ANTI_PASSBACK) -> Card:
        enterprise, card = self.enterprise, self.enterprise.new_card()
        session = open_application(card, enterprise.host, enterprise.enterprise_id, enterprise.random_bytes)
        rights = AccessRights(None, date(2099, 1, 1), groups.to_bytes(8, "big"), 0, flags)
        protect = protector(enterprise.host, session.factor, session.version, Purpose.MAINTENANCE)
        update_binary(card, 0x0019, rights.encode(), protect=protect)
        card.reset()
        return card

    def show(self, card: Card, address: int = 5) -> dict[str, Any]:
        """A card comes, is served and goes again."""
        before = len(self.events)
        self.readers[address].present(card)
        self.until(lambda: len(self.events) > before)
        self.run(100)
        self.readers[address].remove()
        self.run(100)
        return self.events[before]

    def locked(self, door: int) -> bool:
        return not self.readers[HARDWARE[door].device].outputs[0]

    def texts(self, address: int) -> list[str]:
        return [text.text.decode() for text in self.readers[address].texts]

    def records(self, kind: type[Any]) -> list[Any]:
        self.journal.verify()
        return [entry.record for entry in self.journal.collect(1).entries if isinstance(entry.record, kind)]

    def notes(self) -> list[str]:
        return [note.code for note in self.records(Note)]


@pytest.fixture
def entrance(enterprise: Enterprise, tmp_path: Path) -> Iterator[Entrance]:
    made = Entrance(enterprise, tmp_path)
    yield made
    made.journal.close()
    made.screen._stream.close()


def test_a_card_opens_its_door_for_a_while(entrance: Entrance) -> None:
    """The device with the lock opens it, not the reader outside; it locks by itself, and once the door was shut."""
    entrance.online()
    card = entrance.card()
    assert entrance.show(card)["granted"]
    assert not entrance.locked(1)
    assert not any(entrance.readers[5].outputs)
    assert entrance.readers[5].leds[0].temporary_on_color == 2
    entrance.run(RULES.release_ms)
    assert entrance.locked(1)
    assert entrance.show(card, 6)["granted"]
    entrance.readers[6].contact(True)
    entrance.run(300)
    entrance.readers[6].contact(False)
    entrance.run(300)
    assert entrance.locked(1)
    assert [one.direction for one in entrance.records(PassageReport)] == [0, 1]
    assert entrance.notes().count("door_opened") == entrance.notes().count("door_closed") == 1


def test_contact_tamper_and_power_of_a_reader(entrance: Entrance) -> None:
    """A forced and a held door, an opened housing and a reader without power are noted; its door stays locked."""
    entrance.rules[1] = replace(RULES, held_ms=1_000)
    entrance.crash()
    entrance.online()
    entrance.readers[6].contact(True)
    entrance.run(2_000)
    entrance.readers[6].contact(False)
    entrance.readers[5].sabotage(True)
    entrance.run(500)
    entrance.readers[5].sabotage(False)
    for head in (b"\x02", b"\x02", b"\x00"):
        entrance.readers[5].device.report(osdp.ReaderStatus(head))
    entrance.readers[5].device.report(osdp.LocalStatus(0, 1))
    entrance.run(500)
    assert [one for one in entrance.notes() if one != "reader_back"] == [
        "door_forced", "door_held", "door_held_end", "door_closed", "tamper", "tamper_end", "reader_fault",
        "reader_fault_end", "power_fault",
    ]  # fmt: skip
    entrance.readers[6].is_on = False
    entrance.until(lambda: "reader_away" in entrance.notes())
    assert entrance.show(entrance.card())["reason"] == "door_away"
    assert "the door's hardware does not answer" in entrance.texts(5)
    assert entrance.records(PassageReport) == []
    assert entrance.show(entrance.card(), 7)["granted"]
    entrance.readers[6].power_cycle()
    entrance.readers[6].is_on = True
    entrance.until(lambda: entrance.notes()[-1] == "reader_back")
    assert entrance.show(entrance.card())["granted"]


def test_emergency_frees_and_locks_again(entrance: Entrance) -> None:
    """An emergency opens all doors, one whose reader comes back too; a dead panel's doors lock by themselves."""
    entrance.readers[6].is_on = False
    entrance.until(lambda: entrance.post.devices[5].online and entrance.post.devices[7].online)
    assert entrance.post.order(["emergency", "on"])
    entrance.run(500)
    assert not entrance.locked(2)
    entrance.readers[6].is_on = True
    entrance.until(lambda: not entrance.locked(1))
    entrance.run(FREE_MS + 2_000)
    assert not entrance.locked(1)
    assert "emergency: all doors are open" in entrance.texts(7)
    entrance.line.run(entrance.at_line, entrance.line.now_us + 1000 * FREE_MS)
    for reader in entrance.readers.values():
        reader.receive(b"", entrance.line.now_ms)
    assert entrance.locked(1)
    assert entrance.locked(2)
    entrance.run(500)
    entrance.post.order(["emergency", "off"])
    entrance.run(500)
    assert entrance.locked(2)
    assert entrance.texts(7)[-1] == "present the card"


def test_a_restart_locks_what_stood_free(entrance: Entrance) -> None:
    """A terminal killed in an emergency, or with a lock released, locks all doors when it comes back."""
    entrance.online()
    entrance.post.order(["emergency", "on"])
    entrance.run(500)
    entrance.crash()
    entrance.online().run(200)
    assert entrance.locked(1)
    assert entrance.locked(2)
    entrance.rules[1] = replace(RULES, release_ms=60_000)
    entrance.crash()
    entrance.online()
    entrance.show(entrance.card())
    assert not entrance.locked(1)
    entrance.crash()
    entrance.online().run(200)
    assert entrance.locked(1)


def test_an_orderly_end_locks(entrance: Entrance) -> None:
    """The last thing a terminal tells its doors is to lock; then the port is free for the next one."""
    closed: list[bool] = []
    entrance.post._close = lambda: closed.append(entrance.locked(1))
    entrance.online()
    entrance.post.order(["emergency", "on"])
    entrance.run(500)
    entrance.post.stop()
    assert closed == [True]
    assert entrance.locked(2)


def test_two_cards_at_once(entrance: Entrance) -> None:
    """Cards at two readers are served one after the other, each at its own door; a second one on a reader is not."""
    entrance.online()
    one, two = entrance.card(), entrance.card(groups=0b100)
    entrance.readers[5].present(one)
    entrance.readers[7].present(two)
    entrance.until(lambda: len(entrance.events) == 2)
    assert [event.get("granted", event.get("reason")) for event in entrance.events] in (
        [True, "not_this_door"], ["not_this_door", True],
    )  # fmt: skip
    entrance.run(100)
    assert (entrance.locked(1), entrance.locked(2)) == (False, True)


def test_a_card_changed_between_two_commands(entrance: Entrance) -> None:
    """Whatever command comes when the card is exchanged for another: no door opens by a mixture of both."""
    entrance.online()
    mine, other = entrance.card(), entrance.card(groups=0b100)
    reader = entrance.readers[5]
    for step in range(1, 40):
        count = [0]

        def swap(_: bytes, step: int = step, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] == step:
                reader.remove()
                reader.present(other)

        reader.reader.before_command = swap
        before = len(entrance.events)
        reader.present(mine)
        entrance.until(lambda before=before: len(entrance.events) > before)  # type: ignore[misc]
        entrance.run(500)
        reader.reader.before_command = None
        reader.remove()
        entrance.run(100)
        assert entrance.locked(1) or count[0] < step
        if count[0] < step:
            break
        assert [event.get("event") for event in entrance.events[before:]] == ["torn", "refused"]
    else:
        raise AssertionError("it never came to the end")
    assert [one.granted for one in entrance.records(PassageReport)].count(True) == 1


def test_a_reader_without_power_in_the_middle(entrance: Entrance) -> None:
    """A reader that dies at any command of a tap opens nothing; back again, the same card passes, anti-passback too."""
    entrance.rules[1] = replace(RULES, anti_passback=AntiPassback.HARD)
    entrance.crash()
    entrance.online()
    card, reader = entrance.card(), entrance.readers[5]
    for step in (1, 4, 8, 9, 10, 11, 12):
        count = [0]

        def die(_: bytes, step: int = step, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] == step:
                reader.is_on = False
                reader.reader.take()

        reader.reader.before_command = die
        before = len(entrance.events)
        reader.present(card)
        entrance.until(lambda before=before: len(entrance.events) > before)  # type: ignore[misc]
        reader.reader.before_command = None
        if count[0] < step:
            reader.remove()
            break
        assert entrance.events[before]["event"] == "torn"
        assert entrance.locked(1)
        reader.power_cycle()
        reader.is_on = True
        entrance.until(lambda: entrance.post.devices[5].online)
    else:
        raise AssertionError("it never came to the end")
    entrance.run(2_000)
    assert entrance.show(card, 6)["granted"]
    assert entrance.show(card)["granted"]


def test_a_lock_that_fails_locks_nobody_out(entrance: Entrance) -> None:
    """When the lock's device dies at the last moment the journal says so, and the passage does not count."""
    entrance.rules[1] = replace(RULES, anti_passback=AntiPassback.HARD)
    entrance.crash()
    entrance.online()
    card = entrance.card()
    ask = entrance.post.ask
    entrance.post.ask = lambda address, command: ask(99, command)  # type: ignore[method-assign]
    assert entrance.show(card)["reason"] == "door_away"
    assert entrance.locked(1)
    assert "lock_failed" in entrance.notes()
    entrance.post.ask = ask  # type: ignore[method-assign]
    assert entrance.show(card)["granted"]


def test_a_pin_at_the_keypad(entrance: Entrance) -> None:
    """Digits count with # behind them, once, for some seconds, before or after the card; * takes them back."""
    entrance.rules[1] = replace(RULES, pin_hours=ALWAYS)
    entrance.crash()
    entrance.online()
    card, reader = entrance.card(), entrance.readers[5]
    assert entrance.show(card)["reason"] == "pin_required"
    assert reader.leds[0].temporary_on_color == 3
    reader.keys(f"1\x7f{PIN}\r")
    entrance.run(100)
    assert entrance.show(card)["granted"]
    assert entrance.show(card)["reason"] == "pin_required"
    reader.keys(PIN)
    entrance.run(100)
    assert entrance.show(card)["reason"] == "pin_required"
    reader.keys(f"{PIN}\r")
    entrance.run(16_000)
    assert entrance.show(card)["reason"] == "pin_required"
    reader.present(card)
    entrance.run(500)
    before = len(entrance.events)
    reader.keys(f"{PIN}\r")
    entrance.until(lambda: len(entrance.events) > before)
    assert entrance.events[-1]["granted"]
    reader.remove()
    duress = PIN[:-1] + str((int(PIN[-1]) + 1) % 10)
    reader.keys(f"{duress}\r")
    entrance.run(100)
    assert entrance.show(card)["granted"]
    assert "duress" in entrance.notes()
    reader.keys("é\r")
    entrance.run(100)
    assert entrance.show(card)["reason"] == "pin_required"


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_refusal_is_shown_at_the_reader(entrance: Entrance, language: str) -> None:
    """Each reason stands on the display in the language of the place, with a red light and three beeps."""
    entrance.crash(language)
    entrance.online().run(100)
    card = entrance.card()
    serial = identify(card, entrance.enterprise.enterprise_id).factor
    for listed in (Reason.LOST, Reason.CANCELLED, Reason.REPLACED, Reason.FRAUD):
        entrance.lists.listed = {serial: listed}
        assert entrance.show(card)["reason"] == listed.code
        assert entrance.texts(5)[-1] == (listed.zh if language == "zh" else listed.en)
    reader = entrance.readers[7]
    for reason in Reason:
        entrance.post._spot = entrance.post._spots[7]
        reader.texts.clear()
        reader.buzzes.clear()
        entrance.screen.show(Notice(Say.REFUSED, reason=reason))
        entrance.run(80)
        assert [text.text.decode() for text in reader.texts] == [reason.zh if language == "zh" else reason.en]
        led = reader.leds[0]
        asks = reason is Reason.PIN_REQUIRED
        assert (led.temporary_on_color, led.temporary_off > 0) == (3 if asks else 1, True)
        assert reader.buzzes[0].count == (2 if asks else 3)


def test_the_sam_pulled_out(entrance: Entrance) -> None:
    """Without its SAM a terminal opens nothing and says why at the reader; other cards are told the same."""
    entrance.online()
    entrance.sam.power_off()
    assert entrance.show(entrance.card())["reason"] == "sam_fault"
    assert "the terminal's SAM can not be used" in entrance.texts(5)
    assert entrance.locked(1)


def test_a_bad_line_loses_no_card(entrance: Entrance) -> None:
    """With every twentieth packet damaged, every card opens its door exactly once."""
    entrance.online()
    entrance.line.faults = Faults(damage=0.05, noise=0.05)
    cards = [entrance.card() for _ in range(4)]
    for card in cards * 3:
        assert entrance.show(card)["granted"]
    assert len(entrance.records(PassageReport)) == 12
    assert "reader_away" not in entrance.notes()


def test_only_heads_are_believed(entrance: Entrance) -> None:
    """A verified credential counts from a head alone; the journal says that the card itself was not seen."""
    entrance.heads = frozenset({7})
    entrance.crash()
    entrance.online()
    serial = bytes.fromhex("0201000000000785")
    rights = AccessRights(None, date(2099, 1, 1), (0b10).to_bytes(8, "big"))
    for address in (5, 7):
        entrance.readers[address].device.report(credential(serial, rights))
        entrance.run(500)
    assert [event["granted"] for event in entrance.events] == [True]
    assert (entrance.locked(1), entrance.locked(2)) == (True, False)
    assert [one.text for one in entrance.records(Note) if one.code == "verified_by_head"] == [
        f"reader 7 card {serial.hex().upper()}"
    ]
    assert entrance.notes().count("foreign_credential") == 1
    entrance.lists.listed[serial] = Reason.LOST
    entrance.readers[7].device.report(credential(serial, rights))
    entrance.run(500)
    assert entrance.events[-1]["reason"] == "lost"
    for data in (b"", serial, bytes(27), bytes(40)):
        entrance.readers[7].card(data)
    entrance.readers[7].card(serial + rights.encode(), bits=255)
    entrance.run(1_000)
    assert len(entrance.events) == 2
    assert entrance.show(entrance.card(), 5)["granted"]


def test_a_head_verifies_cards_by_its_own_sam(entrance: Entrance) -> None:
    """Between head and terminal nothing but a genuine card opens; a head without panel or SAM reports nothing."""
    entrance.heads = frozenset({7})
    entrance.hardware = HARDWARE | {2: Hardware(7, None, 6, 1, 1)}
    entrance.readers[7].is_on = False
    sam = entrance.enterprise.new_sam(SamKind.ACCESS, bytes.fromhex("320000000003"))
    screen = MemoryScreen()
    told: list[str] = []
    head = Head(7, key_of(7), OneSam(CardSam(sam)), entrance.random.randbytes, screen, told.append)
    port = entrance.line.port()

    def answer() -> int:
        if reply := head.device.receive(port.read(), entrance.line.now_ms):
            port.write(reply, 2_000)
        return NEVER

    entrance.at_line.append((port, answer))
    entrance.crash()
    card = entrance.card()
    head.present(card, 0)
    entrance.online()
    for one, event in ((card, {"granted": True}), (entrance.card(groups=0b100), {"reason": "not_this_door"})):
        one.reset()
        head.present(one, entrance.line.now_ms)
        entrance.run(600)
        assert entrance.events[-1] | event == entrance.events[-1]
    assert entrance.readers[6].outputs[1]
    assert told[-1] == "no right to pass this door"
    count = len(entrance.events)
    card.reset()
    card.power.cut_at(3)
    head.present(card, entrance.line.now_ms)
    card.power.cut_at(0)
    head.present(Card.blank(entrance.random.randbytes), entrance.line.now_ms)
    assert [one.say for one in screen.notices[-2:]] == [Say.PRESENT_AGAIN, Say.REFUSED]
    card.reset()
    head.present(card, entrance.line.now_ms)
    head.expire(entrance.line.now_ms + 3_001)
    sam.power_off()
    card.reset()
    head.present(card, entrance.line.now_ms)
    assert [one.reason for one in screen.notices[:1] + screen.notices[-1:]] == [Reason.DOOR_AWAY, Reason.SAM_FAULT]
    entrance.run(1_000)
    assert len(entrance.events) == count


def test_a_port_comes_back() -> None:
    """A lost port is looked for at each read, and writing into it is silence."""

    class Loose:
        def __init__(self) -> None:
            self.lost = False

        def write(self, data: bytes) -> None:
            if self.lost:
                raise ReaderLost("gone")

        def read(self) -> bytes:
            if self.lost:
                raise ReaderLost("gone")
            return b"x"

        def set_baud(self, baud: int) -> None:
            pass

    made: list[Loose] = []

    def make() -> Loose:
        made.append(Loose())
        return made[-1]

    port = Lasting(make)
    assert port.read() == b"x"
    made[0].lost = True
    port.write(b"y")
    assert port.read() == b"x"
    made[1].lost = True
    with pytest.raises(ReaderLost):
        port.read()
    port.write(b"y")
    assert port.read() == b"x"
    port.close()


@pytest.mark.parametrize(
    "line",
    ["5", "5 ff", f"127 {'ab' * 16}", f"x {'ab' * 16}", f"5 {SCBK_D.hex()}", f"5 {'xy' * 16}", f"{'9' * 5000} ab"],
)
def test_key_files_with_mistakes(line: str) -> None:
    """A wrong line is named by its number and not shown; comments and empty lines are fine."""
    good = f"# keys\n\n5 {key_of(5).hex()} # front\n"
    assert read_keys(good.splitlines()) == {5: key_of(5)}
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_keys(["", line])
    assert line[2:] not in str(caught.value) or line == "5"


def test_two_keys_for_one_reader() -> None:
    """An address that stands twice in the file is a mistake."""
    with pytest.raises(ConfigError, match="line 2"):
        read_keys([f"5 {key_of(5).hex()}", f"5 {key_of(6).hex()}"])


def test_a_verified_card_that_waited_too_long(entrance: Entrance) -> None:
    """Whom a head reported while another card took its time is asked to come again; no card is none."""
    entrance.heads = frozenset({7})
    entrance.crash()
    entrance.online()
    with pytest.raises(CardRemoved):
        entrance.post.connect()
    rights = AccessRights(None, date(2099, 1, 1), (0b10).to_bytes(8, "big"))
    entrance.readers[7].device.report(credential(bytes(8), rights))
    while not entrance.post._came:
        entrance.post.step()
    entrance.line.advance(entrance.line.now_us + 4_000_000)
    entrance.until(lambda: entrance.events)
    assert entrance.events[0]["event"] == "torn"
    assert entrance.locked(2)


def test_a_reader_that_answers_at_polls(entrance: Entrance) -> None:
    """A reader that acknowledges an APDU and answers at a poll serves cards too; one that forgets does not."""
    entrance.online()
    reader, forgets = entrance.readers[5], [False]
    handle = reader.handle

    def later(command: osdp.Message) -> osdp.Message | None:
        reply = handle(command)
        if not isinstance(reply, osdp.Xrd):
            return reply
        if not forgets[0]:
            reader.device.report(reply)
        return osdp.Ack()

    reader.device._handle = later
    card = entrance.card()
    assert entrance.show(card)["granted"]
    forgets[0] = True
    assert entrance.show(card)["event"] == "torn"


def test_foreign_replies_are_survived(entrance: Entrance) -> None:
    """Replies of odd content from a reader stop neither it nor the others."""
    entrance.online()
    for message in (
        osdp.Xrd(1, 1, b""), osdp.Xrd(0, 9, b"abc"), osdp.Xrd(1, 2, b""), osdp.InputStatus(b""), osdp.Keypad(0, b""),
        osdp.ReaderStatus(b""), osdp.MfgRep(b"abc", b""), osdp.RawCard(0, 1, osdp.BitString(3, b"\xe0")),
    ):  # fmt: skip
        for reader in entrance.readers.values():
            reader.device.report(message)
    entrance.run(1_000)
    assert entrance.show(entrance.card())["granted"]
