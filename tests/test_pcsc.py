"""Real readers: PC/SC through pcscd and vsmartcard's virtual reader, the presence loop, the virtual reader's line."""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib import pcsc
from cardlib.errors import CardRemoved, ConfigError, Conflict, FormatError, NotFound, OneCardError, ReaderLost
from cardlib.readers import Happened, Presence, ReaderEvent, Worker
from cardlib.transport import Replay, Transport
from cardlib.wire.vpcd import Control, Deframer, control, frame
from simulator.vpcd import Slot, call, serve
from tests.pcsc_world import EchoCard, PcscWorld

RESETS = "80FE000000"
HANG_UP = "80FD000000"
WAIT_S = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PcscWorld]:
    """A pcscd with four slots; an echo card in the first two."""
    with PcscWorld(tmp_path_factory.mktemp("pcsc"), slots=4) as world:
        for slot in (0, 1):
            world.start_card("tests.pcsc_world", slot=slot)
        yield world


def exchange(name: str, *commands: str) -> list[str]:
    """Connect, send the commands, return ATR and answers; runs inside the world."""
    card = pcsc.connect(name)
    try:
        return [card.atr.hex(), *(card.transceive(bytes.fromhex(command)).hex() for command in commands)]
    finally:
        card.close()


def hold_both(name: str, other: str) -> list[str]:
    """Use two cards in turn, then ask for one of them twice; runs inside the world."""
    first, second = pcsc.connect(name), pcsc.connect(other)
    answers = [card.transceive(bytes([number] * 5)).hex() for number, card in enumerate((first, second, first))]
    with pytest.raises(Conflict, match="another program"):
        pcsc.connect(name)
    first.close()
    first.close()
    pcsc.connect(name).close()
    second.close()
    return answers


def pull_away(name: str) -> list[str]:
    """Lose the card in the middle of a command, and see what every further command says; runs inside the world."""
    card, said = pcsc.connect(name), []
    for command in (HANG_UP, RESETS, RESETS):
        try:
            said.append(card.transceive(bytes.fromhex(command)).hex())
        except OneCardError as e:
            said.append(type(e).__name__)
    card.close()
    return said


def watch(name: str, stop_at: int) -> list[str]:
    """Serve the cards of a reader until so many events were seen, each told on stderr; runs inside the world."""
    seen: list[str] = []
    enough = Event()

    def tell(event: ReaderEvent) -> None:
        seen.append(event.what.value)
        sys.stderr.write(event.what.value + "\n")
        sys.stderr.flush()
        if len(seen) == stop_at:
            enough.set()

    with Worker(pcsc.PcscReader(name), lambda card: seen.append(card.atr.hex()), tell, retry_ms=100):
        enough.wait(WAIT_S)
    return seen


def test_commands_reach_the_card(world: PcscWorld) -> None:
    """Short and extended commands arrive as sent, answers come back whole, with the card's own ATR."""
    short, extended = "00A4040000", "00D60000" + "000300" + "A5" * 768
    assert world.call(exchange, "0 00 00", short, extended) == [
        EchoCard.atr.hex(), short.lower() + "9000", extended.lower() + "9000"
    ]  # fmt: skip


def test_cards_of_two_readers_are_apart_and_exclusive(world: PcscWorld) -> None:
    """Two cards are used in turn; one that is in use is refused to others until it is let go."""
    assert world.call(hold_both, "0 00 00", "0 00 01") == ["00000000009000", "01010101019000", "02020202029000"]


def test_closing_resets_the_card(world: PcscWorld) -> None:
    """Nobody inherits the security state of a card that was let go."""
    before, after = (int(world.call(exchange, "0 00 00", RESETS)[1][:4], 16) for _ in range(2))
    assert after > before


def test_a_card_pulled_away_is_card_removed(world: PcscWorld) -> None:
    """A card that leaves in the middle of a command is CardRemoved, then and for every later command."""
    world.start_card("tests.pcsc_world", slot=2)
    assert world.call(pull_away, world.reader(2)) == ["CardRemoved"] * 3
    with pytest.raises(CardRemoved, match="no card"):
        world.call(exchange, world.reader(3))


def test_readers_are_found_by_a_part_of_their_name(world: PcscWorld) -> None:
    """The whole name or a part of one only; none says which there are, several ask for more."""
    assert world.call(pcsc.find_reader, "pcd 0 00 01") == world.reader(1)
    with pytest.raises(ReaderLost, match=world.reader(0)):
        world.call(pcsc.find_reader, "no such reader")
    with pytest.raises(ConfigError, match="give more of its name"):
        world.call(pcsc.find_reader, "virtual")


def test_worker_survives_cards_and_the_daemon(tmp_path: Path) -> None:
    """Cards that come and go are served once each; without the daemon the reader is lost, and afterwards back."""
    with PcscWorld(tmp_path) as world:
        card = world.start_card("tests.pcsc_world", slot=0)
        watching = world.start_call(watch, world.reader(0), 8)
        told = watching.stderr
        assert told is not None
        assert told.readline() == "inserted\n"
        world.remove_card(card, slot=0)
        assert told.readline() == "removed\n"
        world.start_card("tests.pcsc_world", slot=0)
        assert told.readline() == "inserted\n"
        world.stop_daemon()
        assert [told.readline(), told.readline()] == ["removed\n", "lost\n"]
        with pytest.raises(ReaderLost, match="pcscd"):
            world.call(pcsc.list_readers)
        world.start_daemon()
        atr = EchoCard.atr.hex()
        assert world.result(watching) == ["inserted", atr, "removed", "inserted", atr, "removed", "lost", "back"]


def test_without_pyscard_a_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyscard the module still imports, and asking for a reader names the way out."""
    monkeypatch.setitem(sys.modules, "smartcard", None)
    pcsc._scard.cache_clear()
    with pytest.raises(ConfigError, match="script/setup"):
        pcsc.list_readers()
    pcsc._scard.cache_clear()


def test_errors_are_told_apart_by_code() -> None:
    """Every code in the table raises its error with the code in hex; signed or unsigned makes no difference."""
    for code, (kind, _) in pcsc._ERRORS.items():
        for given_code in (code, code - (1 << 32)):
            with pytest.raises(kind, match=f"reader R: .*{code:08X}"):
                pcsc._check(given_code, "reader R")
    pcsc._check(0, "reader R")


@pytest.mark.parametrize(
    "atr",
    [
        "3B80800101",  # T=0 and T=1 named, a check byte, no historical bytes (PC/SC part 3, ISO 14443-4)
        "3B9F96801FC68031E073FE211B63F102000000000026",  # uicc.md "ATR and T=0"
        "3B6800000073C84000009000",  # T=0 only: no check byte
        "3B00",
    ],
)
def test_answer_to_reset_is_cut_to_its_length(atr: str) -> None:
    """Padding behind an answer to reset falls off; the whole and a torn one stay as they are."""
    whole = bytes.fromhex(atr)
    assert pcsc.cut_atr(whole + bytes(33 - len(whole))) == whole
    for size in range(len(whole) + 1):
        assert pcsc.cut_atr(whole[:size]) == whole[:size]


class Scripted:
    """A reader that plays a list of presences; a ReaderLost among them is raised."""

    name = "scripted"

    def __init__(self, *looks: Presence | ReaderLost, connect: Callable[[], Transport]) -> None:
        self._looks = iter(looks)
        self.connect = connect
        self.done = Event()

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """Play the next one; then stay as is."""
        look = next(self._looks, None)
        if look is None:
            self.done.set()
            time.sleep(0.001)
            return known
        if isinstance(look, ReaderLost):
            raise look
        return look


def run_worker(
    *looks: Presence | ReaderLost, connect: Callable[[], Transport], serve: Callable[[Transport], None]
) -> list[Happened]:
    """Let a worker see a script to its end; return what it told."""
    events: list[Happened] = []
    reader = Scripted(*looks, connect=connect)
    with Worker(reader, serve, lambda event: events.append(event.what), retry_ms=1):
        assert reader.done.wait(WAIT_S)
    return events


def fail(error: BaseException) -> Callable[..., Any]:
    """A function that raises an error whatever it is asked."""

    def raising(*_: object) -> None:
        raise error

    return raising


ABSENT, HERE, GONE, HERE_AGAIN = (Presence(present=p, changes=n) for n, p in enumerate([False, True, False, True]))


def test_worker_serves_each_presentation_once() -> None:
    """One call per presentation, also when the card was exchanged between two looks."""
    served: list[Transport] = []
    looks = (ABSENT, HERE, HERE, HERE_AGAIN, HERE_AGAIN, Presence(present=False, changes=4))
    events = run_worker(*looks, connect=lambda: Replay([]), serve=served.append)
    assert len(served) == 2
    assert events == [Happened.INSERTED, Happened.REMOVED] * 2


def test_worker_needs_no_count_to_see_a_card_leave() -> None:
    """A reader that misses a count, as pcscd does when a card leaves while it is powered up, is still understood."""
    looks = (HERE, HERE._replace(present=False), HERE, HERE._replace(present=False))
    events = run_worker(*looks, connect=fail(CardRemoved("pulled")), serve=print)
    assert events == [Happened.INSERTED, Happened.REMOVED] * 2


def test_worker_reports_errors_and_goes_on() -> None:
    """A card pulled away is no failure, another error is one; the next card is served all the same."""
    fails = fail(CardRemoved("pulled"))
    assert Happened.FAILED not in run_worker(HERE, GONE, connect=lambda: Replay([]), serve=fails)
    assert Happened.FAILED not in run_worker(HERE, GONE, connect=fails, serve=print)
    errors = fail(NotFound("no application"))
    events = run_worker(HERE, GONE, HERE_AGAIN, connect=lambda: Replay([]), serve=errors)
    assert events.count(Happened.FAILED) == 2


def test_worker_tells_a_lost_reader_once() -> None:
    """However often a lost reader is looked for, LOST is told once, with the card on it gone, and BACK once."""
    lost = [ReaderLost("unplugged")] * 3
    events = run_worker(HERE, *lost, ABSENT, connect=lambda: Replay([]), serve=lambda card: None)
    assert events == [Happened.INSERTED, Happened.REMOVED, Happened.LOST, Happened.BACK]


def test_a_bug_in_a_worker_comes_out_of_stop() -> None:
    """An error that is not the project's own ends the worker and is raised where it is stopped."""
    reader = Scripted(HERE, connect=lambda: Replay([]))
    worker = Worker(reader, fail(ZeroDivisionError()), lambda event: None).start()
    worker._thread.join(WAIT_S)
    with pytest.raises(ZeroDivisionError):
        worker.stop()


@given(st.lists(st.binary(min_size=1, max_size=300)), st.lists(st.integers(0, 40)))
def test_frames_survive_any_cutting(bodies: list[bytes], cuts: list[int]) -> None:
    """A stream cut anywhere gives the same bodies in the same order."""
    stream = b"".join(frame(body) for body in bodies)
    ends = [0, *itertools.accumulate(cuts), len(stream)]
    deframer = Deframer()
    pieces = [stream[a:b] for a, b in itertools.pairwise(sorted(min(end, len(stream)) for end in ends))]
    assert [body for piece in pieces for body in deframer.feed(piece)] == bodies


@given(st.binary(max_size=50))
def test_frames_from_outside_raise_only_format_errors(stream: bytes) -> None:
    """Whatever comes over the line is bodies or a FormatError."""
    try:
        for body in Deframer().feed(stream):
            control(body)
    except FormatError:
        pass


@pytest.mark.parametrize("body", [b"", bytes(65536)])
def test_bodies_that_fit_no_frame_are_refused(body: bytes) -> None:
    """A frame holds 1 to 65535 bytes."""
    with pytest.raises(FormatError):
        frame(body)


def test_card_answers_the_reader() -> None:
    """ATR and commands are answered, power and reset only act; the card leaves when the reader hangs up."""
    card = EchoCard()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        slot = Slot(card, listener.getsockname()[1]).insert()
        reader, _ = listener.accept()
        with reader, reader.makefile("rb") as answers:
            for body in (b"\x01", b"\x04", b"\x02", b"12345", b"\x00"):
                reader.sendall(frame(body))
            expected = frame(card.atr) + frame(b"12345\x90\x00")
            assert answers.read(len(expected)) == expected
        slot.wait()
        assert card.resets == 2
        with slot:
            listener.accept()[0].close()


def test_card_without_a_reader_says_what_is_missing() -> None:
    """Calling a port where nobody listens is ReaderLost, after the time allowed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ReaderLost, match="pcscd"):
        call("127.0.0.1", port, wait_ms=100)


def test_line_is_closed_on_garbage() -> None:
    """A reader that sends a control byte that does not exist is hung up on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = call("127.0.0.1", listener.getsockname()[1])
        theirs, _ = listener.accept()
    with theirs:
        theirs.sendall(frame(bytes([max(Control) + 1])))
        with pytest.raises(FormatError):
            serve(EchoCard(), ours)
        assert theirs.recv(1) == b""
