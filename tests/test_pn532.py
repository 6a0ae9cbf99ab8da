"""Cards through a PN532 on a serial line: payments, faults by seed, cuts at every step, cards that come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.apdu import Command
from cardlib.errors import (
    CardRemoved,
    ConfigError,
    LineTimeout,
    OneCardError,
    OutcomeUnknown,
    ReaderLost,
    TransportError,
)  # fmt: skip
from cardlib.pn532 import Pn532Reader, connect
from cardlib.readers import NOTHING_KNOWN, Happened, ReaderEvent, Worker
from cardlib.transport import Transport
from cardlib.wire.pn532 import ACK, Code, encode
from simulator.card import Card
from simulator.pn532 import NO_FAULTS, Faults, SimulatedPn532
from simulator.pty import Pty
from simulator.rig import Enterprise

UID = bytes.fromhex("04112233445566")
RANDOM_UIDS = [bytes.fromhex("08112233"), bytes.fromhex("08445566")]
FAULTS = ("garbage", "lost_command", "lost_ack", "damaged_answer", "lost_answer", "late", "pulled_card")


class Echo:
    """A chip that says each command twice, backwards."""

    atr = bytes.fromhex("3B80800101")

    def reset(self) -> None:
        """Nothing to forget."""

    def power_off(self) -> None:
        """Nothing to lose."""

    def transceive(self, command: bytes) -> bytes:
        return 2 * command[::-1] + b"\x90\x00"


class Cable:
    """A line in simulated time; ``plugged`` False is a cable that nobody hears."""

    def __init__(self, chip: SimulatedPn532) -> None:
        self.chip, self.now_s, self.plugged = chip, 0.0, True
        self.waiting: list[tuple[float, bytes]] = []
        self.closed = 0

    def write(self, data: bytes) -> None:
        at_s = self.now_s
        for pause_s, said in self.chip.turn(data) if self.plugged else ():
            at_s += pause_s
            self.waiting.append((at_s, said))

    def read(self) -> bytes:
        if not self.waiting or self.waiting[0][0] > self.now_s:
            self.now_s += 0.005
            return b""
        return self.waiting.pop(0)[1]

    def close(self) -> None:
        self.closed += 1

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def bench(faults: Faults = NO_FAULTS, seed: int = 0) -> tuple[SimulatedPn532, Cable, Pn532Reader]:
    """A chip, its line, and our reader on it."""
    chip = SimulatedPn532(faults, seed)
    cable = Cable(chip)
    return chip, cable, Pn532Reader("COM1", lambda *_: cable, lambda: cable.now_s, cable.sleep)


@contextmanager
def behind_pty(chip: SimulatedPn532) -> Iterator[Pty]:
    """The chip at work behind a pseudo-terminal until the end of the block."""
    pty, stop = Pty(chip), threading.Event()
    thread = threading.Thread(target=pty.serve, args=(lambda: not stop.is_set(),))
    thread.start()
    try:
        yield pty
    finally:
        stop.set()
        thread.join()
        pty.close()


def charged(enterprise: Enterprise, fen: int = 50_00) -> Card:
    card = enterprise.new_card()
    enterprise.recharge(card, fen)
    return card


def pay_until_known(enterprise: Enterprise, present: Callable[[], Transport], sale: str, taps: int = 40) -> None:
    """Present the card again and again until the till says that the sale is paid."""
    for _ in range(taps):
        try:
            card = present()
            try:
                enterprise.pos.pay(card, 3_00, sale)
            finally:
                card.close()
        except (TransportError, OutcomeUnknown):
            continue
        return
    raise AssertionError(sale)


def test_a_payment_behind_a_pseudo_terminal(enterprise: Enterprise) -> None:
    """A worker serves a card once as it comes: it pays, is reported as taken away, and its session is over."""
    card, chip = charged(enterprise), SimulatedPn532()
    events: list[ReaderEvent] = []
    gone = threading.Event()

    def serve(one: Transport) -> None:
        assert one.atr == card.atr
        assert one.transceive(bytes.fromhex("FFCA000000")) == UID + b"\x90\x00"
        enterprise.pos.pay(one, 3_00, "lunch")
        chip.take()

    def tell(event: ReaderEvent) -> None:
        events.append(event)
        if event.what is Happened.REMOVED:
            gone.set()

    with behind_pty(chip) as pty:
        reader = Pn532Reader(pty.name)
        with Worker(reader, serve, tell):
            chip.put(card, UID)
            assert gone.wait(30)
        reader.close()
    assert [event.what for event in events] == [Happened.INSERTED, Happened.REMOVED]
    assert enterprise.balance(card) == 47_00


def test_one_tap_by_name(enterprise: Enterprise) -> None:
    """A card is opened by the port's name, and loses its session at the end; an empty reader says so."""
    card, chip = enterprise.new_card(), SimulatedPn532()
    with behind_pty(chip) as pty:
        with pytest.raises(CardRemoved, match="no card"):
            connect(pty.name)
        chip.put(card, UID)
        one = connect(pty.name)
        assert one.transceive(Command(0, 0x84, 0, 0, le=8).encode())[-2:] == b"\x90\x00"
        one.close()
        one.close()
        with pytest.raises(CardRemoved):
            one.transceive(b"\0\x84\0\0\x08")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_never_charge_twice(enterprise: Enterprise, fault: str) -> None:
    """Whatever goes wrong on line or field, each sale is paid exactly once when the till says so."""
    chip, _, reader = bench(Faults(**{fault: 0.12}), seed=7)
    card = charged(enterprise)

    def present() -> Transport:
        if chip.uid == b"":
            chip.put(card, UID)
        return reader.connect()

    take = chip.take

    def taken() -> None:
        take()
        chip.uid = b""

    chip.take = taken  # type: ignore[method-assign]  # remembers that the card must be put there again
    for number in range(5):
        pay_until_known(enterprise, present, f"{fault} {number}")
    assert enterprise.balance(card) == 35_00


def test_all_faults_together(enterprise: Enterprise) -> None:
    """Every kind of fault at once, by many seeds: money is neither lost nor made."""
    card = charged(enterprise, 90_00)
    for seed in range(10):
        chip, _, reader = bench(Faults(**dict.fromkeys(FAULTS, 0.04)), seed)

        def present(chip: SimulatedPn532 = chip, reader: Pn532Reader = reader) -> Transport:
            chip.take()
            chip.put(card, UID)
            return reader.connect()

        pay_until_known(enterprise, present, f"seed {seed}")
    assert enterprise.balance(card) == 60_00


@pytest.mark.parametrize("heard", [False, True])
def test_a_cut_at_every_command(enterprise: Enterprise, heard: bool) -> None:
    """The card is pulled away at each command in turn, before it hears it or before it is heard; then it pays once."""
    for step in count(1):
        chip, _, reader = bench()
        card, left = charged(enterprise, 10_00), step

        def pull(command: bytes, chip: SimulatedPn532 = chip) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if heard:
                    chip.reader._present().transceive(command)
                chip.reader.take()

        chip.reader.before_command = pull
        chip.put(card, UID)
        try:
            enterprise.pos.pay(reader.connect(), 3_00, f"{heard} {step}")
        except (CardRemoved, OutcomeUnknown):
            chip.reader.before_command = None
            chip.put(card, UID)
            pay_until_known(enterprise, reader.connect, f"{heard} {step}")
        assert enterprise.balance(card) == 7_00
        if left > 0:
            assert step > 8
            return


def test_long_apdus() -> None:
    """Commands and answers of every length around the chip's frames arrive whole."""
    chip, _, reader = bench()
    chip.put(Echo(), UID)
    card = reader.connect()
    for size in (4, 261, 262, 263, 524, 525, 3_000):
        command = Random(size).randbytes(size)
        assert card.transceive(command) == Echo().transceive(command), size


def test_who_lies_there() -> None:
    """A card is one presentation while it lies there, made-up UIDs or not; another card is another."""
    chip, _, reader = bench()
    empty = reader.wait(NOTHING_KNOWN, 0)
    assert not empty.present
    chip.put(Echo(), RANDOM_UIDS[0])
    first = reader.wait(empty, 1_000)
    assert first.present
    reader.connect().close()
    chip.uid = RANDOM_UIDS[1]
    assert reader.wait(first, 1_000) == first
    chip.take()
    chip.put(Echo(), UID)
    second = reader.wait(first, 1_000)
    assert second.present
    assert second.changes != first.changes
    chip.take()
    assert not reader.wait(second, 1_000).present


def test_a_plain_tag_is_no_card() -> None:
    """A tag without ISO 14443-4 is seen and refused in words, and does not stop the reader."""
    chip, _, reader = bench()
    chip.put(Echo(), UID, apdus=False)
    seen = reader.wait(NOTHING_KNOWN, 100)
    with pytest.raises(TransportError, match="14443-4"):
        reader.connect()
    chip.take()
    assert not reader.wait(seen, 1_000).present


def test_a_reader_that_is_lost_and_comes_back() -> None:
    """A cable that nobody hears is a lost reader, not a lost card; plugged in again it serves the next card."""
    chip, cable, reader = bench()
    chip.put(Echo(), UID)
    card = reader.connect()
    cable.plugged = False
    with pytest.raises(LineTimeout, match="present the card again"):
        card.transceive(b"\0\x84\0\0\x08")
    with pytest.raises(ReaderLost, match="no PN532"):
        reader.wait(NOTHING_KNOWN, 100)
    assert cable.closed
    cable.plugged = True
    assert reader.wait(NOTHING_KNOWN, 100).present
    assert reader.connect().transceive(b"abcd") == Echo().transceive(b"abcd")


def test_a_chip_that_lost_its_power_is_set_up_again() -> None:
    """A chip that starts anew looks for cards for ever; after the first time-out it is told again how to look."""
    _, cable, reader = bench()
    with pytest.raises(CardRemoved):
        reader.connect()
    cable.chip = SimulatedPn532()
    with pytest.raises(LineTimeout):
        reader.connect()
    with pytest.raises(CardRemoved):
        reader.connect()


def test_a_late_answer_is_nobody_elses() -> None:
    """The answer to a command that was given up is not taken for the next one's, even of the same kind."""
    chip, cable, reader = bench()
    chip.put(Echo(), UID)
    card = reader.connect()
    stale = encode(b"\xd5\x41\x00first\x90\x00")
    cable.waiting.append((0.0, stale))
    assert card.transceive(b"abcd") == Echo().transceive(b"abcd")
    cable.plugged = False
    with pytest.raises(LineTimeout):
        card.transceive(b"efgh")
    cable.plugged = True
    cable.waiting.append((0.0, ACK + stale))
    with pytest.raises(CardRemoved):
        card.transceive(b"ijkl")
    assert reader.connect().transceive(b"mnop") == Echo().transceive(b"mnop")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (0x01, CardRemoved, "pulled away"),
        (0x0B, CardRemoved, "pulled away"),
        (0x0D, TransportError, "cool down"),
        (0x2D, TransportError, "metal"),
    ],
)
def test_errors_of_the_chip(status: int, error: type[OneCardError], words: str) -> None:
    """What is the card's fault and what the chip's are told apart by code."""
    chip, _, reader = bench()
    chip.put(Echo(), UID)
    card = reader.connect()
    chip._exchange = lambda data: bytes((status,))  # type: ignore[method-assign]  # the chip's answer
    with pytest.raises(error, match=words) as raised:
        card.transceive(b"abcd")
    assert type(raised.value) is error


def test_another_chip_and_no_port() -> None:
    """A chip that is no PN532, and a name without a port, are named."""
    chip, _, reader = bench()
    chip._do = lambda *_: b"\x33\x01\x02\x03"  # type: ignore[method-assign]  # a PN533
    with pytest.raises(ReaderLost, match="no PN532"):
        reader.connect()
    with pytest.raises(ConfigError, match="pn532:PORT"):
        Pn532Reader("")


@given(st.lists(st.tuples(st.sampled_from(Code), st.binary(max_size=20)), max_size=12))
def test_the_simulated_chip_survives_any_command(commands: list[tuple[Code, bytes]]) -> None:
    """Whatever a host sends is acknowledged and answered, or refused as the chip refuses it."""
    chip = SimulatedPn532()
    chip.put(Echo(), UID)
    list(chip.turn(bytes(8)))
    for code, data in commands:
        if code is not Code.POWER_DOWN:
            said = b"".join(said for _, said in chip.turn(encode(bytes((0xD4, code)) + data)))
            assert said.startswith(ACK)
            assert len(said) > len(ACK)


class Babble(Cable):
    """A line on which something acknowledges every command and says what it likes."""

    def __init__(self, says: list[bytes]) -> None:
        super().__init__(SimulatedPn532())
        self.says = says

    def write(self, data: bytes) -> None:
        self.waiting.append((0.0, ACK + (self.says.pop(0) if self.says else b"")))


ANSWERS = st.sampled_from([0x03, 0x15, 0x13, 0x33, 0x4B, 0x41])


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.builds(lambda code, data: encode(bytes((0xD5, code)) + data), ANSWERS, st.binary(max_size=30)),
        ),
        max_size=12,
    )
)
def test_whatever_answers_is_an_error_of_ours(says: list[bytes]) -> None:
    """Garbage and wrong answers are errors of this project that say what to do, and soon."""
    setup = [encode(bytes((0xD5, code + 1)) + data) for code, data in SET_UP]
    cable = Babble(setup + says)
    reader = Pn532Reader("COM1", lambda *_: cable, lambda: cable.now_s, cable.sleep)
    with suppress(TransportError):
        reader.connect().transceive(b"abcd")
    assert cable.now_s < 60


SET_UP = [
    (Code.FIRMWARE, b"\x32\x01\x06\x07"), (Code.SAM_CONFIGURATION, b""), (Code.PARAMETERS, b""),
    (Code.RF_CONFIGURATION, b""), (Code.RF_CONFIGURATION, b""),
]  # fmt: skip
