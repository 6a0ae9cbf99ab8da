"""OSDP: panel and device on a simulated line with faults, in simulated time."""

from __future__ import annotations

import socket
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import CardRemoved, ConfigError, Conflict, FormatError, LineTimeout, NotFound, Refused
from cardlib.wire import osdp
from cardlib.wire.osdp import Packet, Scs
from cardlib.wire.osdp_device import MAX_EVENTS
from cardlib.wire.osdp_secure import SCBK_D
from simulator.osdp import SimulatedReader
from simulator.serialline import Faults, Port
from terminals.osdp import (
    MAX_QUEUED,
    OFFLINE_MS,
    REPLY_MS,
    Bus,
    Event,
    Remote,
    Security,
    State,
    Ticket,
    send_file,
    serve,
    wait,
)
from tests.terminals.osdp_world import SocketPort, World, key_of, latencies, now_ms

LED = osdp.Led((osdp.LedControl(permanent=1, on=1, on_color=2),))


def do(world: World, command: osdp.Message, address: int = 0) -> osdp.Message:
    """Send a command and run until its outcome is known."""
    ticket = world.bus.send(address, command)
    world.until(lambda: ticket.is_done)
    return ticket.result()


@pytest.mark.parametrize("damage", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("baud", [9_600, 115_200])
def test_noise_loses_and_doubles_nothing(damage: float, baud: int) -> None:
    """Of 500 card events on a line with damaged packets none is lost, none doubled, and the channel stays."""
    world = World(baud=baud, faults=Faults(damage=damage), seed=7)
    world.connect()
    lost = world.lost()
    reader, random = world.readers[0], Random(3)
    for number in range(500):
        reader.card(number.to_bytes(4, "big"))
        world.run(random.randrange(10, 120))
    world.until(lambda: not reader.device.events)
    world.run(1_000)
    numbers = [int.from_bytes(message.card.data, "big") for _, message in world.messages()
               if isinstance(message, osdp.RawCard)]  # fmt: skip
    assert numbers == list(range(500))
    assert world.lost() == lost
    assert world.line.damaged > 0


def test_every_fault_at_once() -> None:
    """Cuts, delays, gaps, stray bytes and damage together lose and double no event, on two devices."""
    faults = Faults(damage=0.03, cut=0.02, delay=0.05, gap=0.05, noise=0.05, delay_us=300_000)
    world = World(2, baud=38_400, faults=faults, seed=5)
    world.connect()
    for number in range(150):
        world.readers[number % 2].card(number.to_bytes(4, "big"))
        world.run(60)
    world.until(lambda: not any(reader.device.events for reader in world.readers), 200_000)
    world.run(1_000)
    numbers = [int.from_bytes(message.card.data, "big") for _, message in world.messages()
               if isinstance(message, osdp.RawCard)]  # fmt: skip
    assert sorted(numbers) == list(range(150))
    assert world.lost() == 0


def test_reconnects_within_a_second() -> None:
    """After a short and after a long loss of power a reader is online again within a second."""
    world = World()
    world.connect()
    reader = world.readers[0]
    for off_ms in (100, 3_000, 20_000):
        reader.is_on = False
        world.run(off_ms)
        reader.power_cycle()
        reader.is_on = True
        assert world.until(lambda: reader.device.is_secure and world.bus.pd(0).state is State.ONLINE) < 1_000
        reader.card(b"\x01\x02")
        world.until(lambda: not reader.device.events)


def test_eight_devices_at_9600_baud() -> None:
    """Event to handler with 8 secure devices at 9600 baud: mean below 200 ms, maximum below 350 ms."""
    world = World(8)
    world.connect()
    waits = latencies(world, 150, seed=4)
    assert sum(waits) / len(waits) < 200
    assert max(waits) < 350


def test_one_device_at_20_ms_polls() -> None:
    """Event to handler with one device, polled each 20 ms: mean below 15 ms."""
    world = World(baud=115_200)
    world.connect()
    waits = latencies(world, 200, seed=4)
    assert sum(waits) / len(waits) < 15


def test_full_bus() -> None:
    """126 devices connect on one panel and each reports; a 127th is refused."""
    world = World(126, baud=230_400)
    world.connect()
    for reader in world.readers:
        reader.card(bytes([reader.device.address]))
    world.until(lambda: len(world.messages()) == 126)
    assert {address for address, _ in world.messages()} == set(range(126))
    with pytest.raises(Conflict):
        world.bus.add(126, key_of(126))


def test_dead_devices_do_not_stop_the_others() -> None:
    """With half of the readers without power, an event of the others still arrives in half a second."""
    world = World(8, baud=38_400)
    world.connect()
    for reader in world.readers[4:]:
        reader.is_on = False
    world.run(OFFLINE_MS + 5_000)
    assert world.lost() == 4
    world.readers = world.readers[:4]
    waits = latencies(world, 60, seed=2)
    assert max(waits) < 500


def test_retry_sends_the_same_bytes() -> None:
    """Without an answer the panel repeats the same bytes every 200 ms until 8 s are over, then begins again."""
    world = World()
    world.connect()
    world.readers[0].is_on = False
    sent: list[tuple[int, bytes]] = []
    port, write = world.bus._port, world.bus._port.write
    assert isinstance(port, Port)
    port.write = lambda data, after_us=0: (sent.append((world.line.now_ms, data)), write(data))[1]  # type: ignore[method-assign,func-returns-value]
    world.run(OFFLINE_MS + 1_000)
    repeated = [data for _, data in sent if data == sent[0][1]]
    assert len(repeated) >= (OFFLINE_MS - 500) // (REPLY_MS + 20)
    assert osdp.decode(sent[-1][1][1:]).sequence == 0
    assert world.lost() == 1


def test_all_commands_reach_the_reader() -> None:
    """LED, buzzer, text, outputs, status, maker's own: each arrives and is answered, enciphered and in clear."""
    for world in (World(baud=38_400), World(baud=38_400, security=Security.PLAIN, crc=False)):
        world.connect()
        reader = world.readers[0]
        assert do(world, LED) == osdp.Ack()
        assert reader.leds[0].on_color == 2
        assert do(world, osdp.Buz(0, 2, 1, 1, 3)) == osdp.Ack()
        text = osdp.Text(0, 1, 0, 1, 1, "欢迎".encode())
        assert do(world, text) == osdp.Ack()
        assert reader.texts == [text]
        assert do(world, osdp.Out((osdp.OutputControl(1, 2),))) == osdp.OutputStatus(b"\x00\x01\x00\x00")
        assert do(world, osdp.InputStatusRequest()) == osdp.InputStatus(bytes(4))
        assert do(world, osdp.OutputStatusRequest()) == osdp.OutputStatus(b"\x00\x01\x00\x00")
        assert do(world, osdp.LocalStatusRequest()) == osdp.LocalStatus(0, 0)
        assert do(world, osdp.ReaderStatusRequest()) == osdp.ReaderStatus(b"\x00")
        assert do(world, osdp.Mfg(b"abc", b"x")) == osdp.MfgRep(b"abc", b"x")
        for command in (osdp.KeepActive(100), osdp.Abort(), osdp.AcuRxSize(1_024)):
            assert do(world, command) == osdp.Ack()
        with pytest.raises(Refused):
            do(world, osdp.Out((osdp.OutputControl(9, 2),)))
        reader.keys("12")
        world.until(lambda: (0, osdp.Keypad(0, b"12")) in world.messages())  # noqa: B023  # awaited here


def test_key_change_is_proved() -> None:
    """A device takes another key under its present one and proves it; the panel then knows only that one."""
    world = World()
    told: list[tuple[int, bytes]] = []
    world.bus.on_key = lambda address, key: told.append((address, key))
    world.connect()
    new = Random(9).randbytes(16)
    ticket = world.bus.set_key(0, new)
    world.until(lambda: bool(told))
    assert ticket.result() == osdp.Ack()
    assert told == [(0, new)]
    assert world.readers[0].device.scbk == new
    assert world.bus.pd(0).keys == [new]


@pytest.mark.parametrize("took_it", [True, False])
def test_key_change_with_its_answer_lost(took_it: bool) -> None:
    """When the line breaks at a key change, the panel finds out which of the two keys the device has."""
    world = World()
    world.connect()
    new = Random(9).randbytes(16)
    world.bus.set_key(0, new)
    reader = world.readers[0]
    world.until(lambda: world.bus.pd(0).ticket is not None)
    world.line.is_cut = not took_it
    world.until(lambda: not took_it or reader.device.scbk == new)
    world.line.is_cut = True
    world.run(OFFLINE_MS + 1_000)
    world.line.is_cut = False
    world.connect()
    world.run(1_000)
    assert world.bus.pd(0).keys == [new if took_it else key_of(0)]


def test_address_and_speed_change() -> None:
    """COMSET moves a device to another address and the line to another speed; a taken address is refused."""
    world = World()
    world.connect()
    ticket = world.bus.set_com(0, 5, 38_400)
    world.until(lambda: ticket.is_done)
    assert (world.bus.baud, world.line.baud, list(world.bus.pds)) == (38_400, 38_400, [5])
    assert do(world, LED, 5) == osdp.Ack()
    with pytest.raises(ConfigError):
        world.bus.set_com(5, 6, 1_234)
    two = World(2)
    two.connect()
    with pytest.raises(Conflict):
        two.bus.set_com(0, 1, 9_600)
    with pytest.raises(Refused):
        two.bus.set_com(0, 3, 38_400)


@pytest.mark.parametrize("took_it", [True, False])
def test_address_change_with_its_answer_lost(took_it: bool) -> None:
    """When the line breaks at COMSET, the panel finds the device where it is, at the old place or at the new one."""
    world = World()
    world.connect()
    ticket = world.bus.set_com(0, 5, 38_400)
    world.until(lambda: world.bus.pd(0).ticket is not None)
    world.line.is_cut = not took_it
    world.until(lambda: not took_it or world.readers[0].device.address == 5)
    world.line.is_cut = True
    world.run(OFFLINE_MS + 1_000)
    world.line.is_cut = False
    world.connect()
    assert (list(world.bus.pds), world.bus.baud) == (([5], 38_400) if took_it else ([0], 9_600))
    with pytest.raises(LineTimeout):
        ticket.result()


def test_busy_device_is_asked_again() -> None:
    """BUSY has the panel send the same bytes later, and costs neither the command nor the channel."""
    world = World(baud=38_400)
    world.connect()
    device, receive, seen = world.readers[0].device, world.readers[0].device.receive, list[bytes]()

    def busy(data: bytes, now_ms: int) -> bytes:
        seen.append(data)
        return receive(data, now_ms) if len(seen) > 5 else Packet(0, 0, osdp.Busy.code, reply=True).encode()

    ticket = world.bus.send(0, LED)
    world.until(lambda: world.bus.pd(0).ticket is not None)
    device.receive = busy  # type: ignore[method-assign]
    world.until(lambda: ticket.is_done)
    assert ticket.result() == osdp.Ack()
    assert len(set(seen[:6])) == 1
    assert world.lost() == 0
    seen.clear()
    device.receive = lambda data, now_ms: Packet(0, 0, osdp.Busy.code, reply=True).encode()  # type: ignore[method-assign]
    world.until(lambda: world.lost() == 1)


def test_comset_is_answered_otherwise() -> None:
    """A device that names another address than it was given is not followed to somebody else's."""
    world = World(2, baud=38_400)
    world.connect()
    device, handle = world.readers[0].device, world.readers[0].handle
    device._handle = lambda command: osdp.Com(1, 38_400) if isinstance(command, osdp.Comset) else handle(command)
    ticket = world.bus.set_com(0, 9, 38_400)
    world.until(lambda: ticket.is_done)
    with pytest.raises(Refused):
        ticket.result()
    assert sorted(world.bus.pds) == [0, 1]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0x5E, 0xA8), st.binary(max_size=40), st.binary(max_size=4)), max_size=8
    )
)
def test_device_survives_anything(packets: list[tuple[int, int, bytes, bytes]]) -> None:
    """Whole packets of any content neither stop a device nor take its key."""
    for key in (None, key_of(1)):
        reader = SimulatedReader(1, key, Random(1).randbytes, install=key is None)
        for number, (sequence, code, data, scb) in enumerate(packets):
            address = reader.device.address
            for raw in (
                Packet(address, sequence, code, data).encode(),
                Packet(address, sequence, code, data, scb=scb).encode(),
            ):
                answer = reader.device.receive(raw, number)
                assert not answer or osdp.decode(answer).reply
        assert reader.device.scbk == key


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_panel_survives_anything(answers: list[bytes]) -> None:
    """Whatever a line says, the panel goes on."""
    world = World(baud=115_200)
    port = world.line.port()
    for answer in answers:
        whole = Packet(0, len(answer) % 4, (answer or b"@")[0], answer[1:], reply=True).encode()
        port.write(answer + whole)
        world.run(15)
    world.until(lambda: world.bus.pd(0).state is State.ONLINE)


def test_serve_runs_on_a_real_clock() -> None:
    """The runner serves a device over a real socket until told to stop, and sleeps between."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        panel, head = SocketPort(ours), SocketPort(theirs)
        reader = SimulatedReader(1, key_of(1), Random(1).randbytes)
        bus = Bus(panel, 115_200, Random(2).randbytes)
        bus.add(1, key_of(1))

        def sleep(seconds: float) -> None:
            head.write(reader.device.receive(head.read(), now_ms()))
            time.sleep(seconds)

        end, seen = time.monotonic() + 10, list[Event]()
        for event in serve(bus, now_ms, sleep, lambda: len(seen) == 3 or time.monotonic() > end):
            seen.append(event)
            if len(seen) < 3:
                reader.card(bytes([len(seen)]))
        assert [event.message is None for event in seen] == [True, False, False]


def test_file_arrives_whole() -> None:
    """A file goes piece by piece over a noisy line, byte for byte; one that is too large is refused."""
    world = World(baud=115_200, faults=Faults(damage=0.02))
    world.connect()
    data = Random(2).randbytes(20_000)
    send_file(world.bus, 0, 1, data, lambda ms: world.run(int(ms) + 1))
    assert world.readers[0].files == [data]
    with pytest.raises(Refused):
        send_file(world.bus, 0, 1, bytes(2 << 20), lambda ms: world.run(int(ms) + 1))


class Echo:
    """A card that answers with its command."""

    atr = b"\x3b\x00"

    def reset(self) -> None:
        """Nothing to do."""

    def power_off(self) -> None:
        """Nothing to do."""

    def transceive(self, command: bytes) -> bytes:
        """The command and 9000."""
        return command + b"\x90\x00"


def test_apdus_through_the_reader() -> None:
    """The panel talks to the card in the reader; without a card it says so; a noisy line changes nothing."""
    world = World(baud=115_200, faults=Faults(damage=0.03))
    world.connect()
    card = Remote(world.bus, 0, lambda: world.run(1))
    with pytest.raises(CardRemoved):
        card.transceive(b"\x00\xa4\x04\x00")
    world.readers[0].reader.put(Echo())
    for size in (4, 5, 15, 16, 255, 261):
        apdu = bytes(range(256)) + bytes(10)
        assert card.transceive(apdu[:size]) == apdu[:size] + b"\x90\x00"
    card.close()


def test_wrong_key_never_connects() -> None:
    """A device with another key is not online, and the panel does not flood the line with attempts."""
    world = World()
    world.readers[0].device.scbk = key_of(77)
    world.run(10_000)
    assert world.bus.pd(0).state is not State.ONLINE
    assert world.line.writes < 10 * 2 * 8
    with pytest.raises(LineTimeout):
        world.bus.send(0, LED)


def test_default_key_is_refused() -> None:
    """SCBK-D serves nobody but a bench, nothing secret goes under it, and a device takes it only in install mode."""
    world = World()
    with pytest.raises(ConfigError):
        world.bus.add(9, SCBK_D)
    with pytest.raises(ConfigError):
        world.bus.add(9)
    for mode in (Security.INSTALL, Security.PLAIN):
        with pytest.raises(Refused):
            world.bus.add(9, security=mode)
    bench = World(security=Security.INSTALL)
    bench.connect()
    assert do(bench, LED) == osdp.Ack()
    with pytest.raises(Refused):
        bench.bus.set_key(0, key_of(1))
    bench.readers[0].device.install = False
    bench.readers[0].power_cycle()
    bench.run(3_000)
    assert bench.bus.pd(0).state is not State.ONLINE


def test_device_refuses_key_under_the_default_key() -> None:
    """Also a device itself never takes a key in clear or under the default key."""
    bench = World(security=Security.INSTALL)
    bench.connect()
    ticket = Ticket(osdp.Keyset(1, key_of(3)))
    bench.bus.pd(0).queue.append(ticket)
    bench.until(lambda: ticket.is_done)
    with pytest.raises(Refused):
        ticket.result()
    assert bench.readers[0].device.scbk is None


def test_queues_are_bounded() -> None:
    """A full queue says so at once, at the panel and at the device; a device that goes away fails what waited."""
    world = World()
    world.connect()
    tickets = [world.bus.send(0, LED) for _ in range(MAX_QUEUED)]
    with pytest.raises(Conflict):
        world.bus.send(0, LED)
    world.readers[0].is_on = False
    world.run(OFFLINE_MS + 1_000)
    for ticket in tickets:
        with pytest.raises(LineTimeout):
            ticket.result()
    for _ in range(MAX_EVENTS):
        world.readers[0].card(b"\x01")
    with pytest.raises(Conflict):
        world.readers[0].card(b"\x01")
    with pytest.raises(NotFound):
        world.bus.send(7, LED)


def test_event_is_not_doubled_by_a_restart() -> None:
    """An event handed on whose acknowledgement got lost in a long cut is not handed on again."""
    world = World()
    world.connect()
    world.readers[0].card(b"\x11\x22")
    world.until(lambda: len(world.messages()) == 1)
    world.line.is_cut = True
    world.run(OFFLINE_MS + 2_000)
    world.line.is_cut = False
    world.connect()
    world.run(1_000)
    assert len(world.messages()) == 1
    world.readers[0].card(b"\x11\x22")
    world.run(500)
    assert len(world.messages()) == 2


def command(reader: SimulatedReader, packet: Packet, now_ms: int = 0) -> Packet | None:
    """One plain command to a device, its reply parsed."""
    raw = reader.device.receive(packet.encode(), now_ms)
    return osdp.decode(raw) if raw else None


def test_device_repeats_its_last_reply() -> None:
    """Same sequence: the same bytes again and nothing is done twice; the event goes with the next sequence."""
    reader = SimulatedReader(1, None, Random(1).randbytes)
    reader.card(b"\x01")
    reader.card(b"\x02")
    poll = Packet(1, 0, osdp.Poll.code)
    first = reader.device.receive(poll.encode(), 0)
    assert len(reader.device.events) == 2
    second = poll._replace(sequence=1).encode()
    answer = reader.device.receive(second, 10)
    assert len(reader.device.events) == 1
    assert reader.device.receive(second, 20) == answer != first
    assert len(reader.device.events) == 1
    buz = Packet(1, 2, osdp.Buz.code, osdp.Buz(0, 2, 1, 1, 1).encode()).encode()
    assert reader.device.receive(buz, 30) == reader.device.receive(buz, 40)
    assert len(reader.buzzes) == 1
    assert not reader.device.events


def test_device_refusals() -> None:
    """Unknown, too short, out of sequence, in clear where the channel is a must, other steps: each has its NAK."""
    plain = SimulatedReader(1, None, Random(1).randbytes)
    secure = SimulatedReader(1, key_of(1), Random(1).randbytes)
    cases = [
        (plain, Packet(1, 0, 0x99), 3),
        (plain, Packet(1, 0, osdp.Led.code, b"\x00"), 2),
        (plain, Packet(1, 2, osdp.Poll.code), 4),
        (secure, Packet(1, 0, osdp.Poll.code), 6),
        (secure, Packet(1, 0, osdp.Chlng.code, bytes(8), scb=bytes([Scs.CHALLENGE, 0])), 5),
        (secure, Packet(1, 0, osdp.Chlng.code, bytes(7), scb=bytes([Scs.CHALLENGE, 1])), 2),
        (secure, Packet(1, 0, osdp.Scrypt.code, bytes(16), scb=bytes([Scs.SERVER, 1])), 6),
        (secure, Packet(1, 0, osdp.Poll.code, scb=bytes([Scs.COMMAND]), mac=bytes(4)), 6),
    ]
    for reader, packet, error in cases:
        reply = command(reader, packet)
        assert reply is not None
        assert (reply.code, reply.data[0]) == (osdp.Nak.code, error)
    assert command(plain, Packet(2, 0, osdp.Poll.code)) is None
    assert command(plain, Packet(osdp.ANY_ADDRESS, 0, osdp.Poll.code)) is not None


def test_settings_are_checked() -> None:
    """Speeds and addresses that OSDP does not have are refused before anything is sent."""
    line = World().line
    with pytest.raises(ConfigError):
        Bus(line.port(), 1_200, Random(1).randbytes)
    bus = Bus(line.port(), 9_600, Random(1).randbytes)
    with pytest.raises(ConfigError):
        bus.add(0x7F, key_of(1))
    bus.add(1, key_of(1))
    with pytest.raises(Conflict):
        bus.add(1, key_of(1))
    ticket = Ticket(LED)
    with pytest.raises(Conflict):
        ticket.result()
    bus.remove(1)
    with pytest.raises(NotFound):
        bus.remove(1)
    world = World()
    world.connect()
    with pytest.raises(FormatError):
        world.bus.send(0, osdp.Out(()))
    assert wait(world.bus.send(0, LED), lambda: world.run(1)) == osdp.Ack()
