"""OSDP: secure exchanges with both ends, and events over a simulated line."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from cardlib.wire import osdp
from cardlib.wire.osdp import Packet, Scs
from cardlib.wire.osdp_secure import SecureChannel
from simulator.osdp import SimulatedReader
from tests.bench.figures import Figure, best_seconds
from tests.terminals.osdp_world import World, key_of, latencies

COUNT = 2_000


def exchanges() -> Callable[[int], None]:
    """A function that does so many secure polls between a panel's channel and a whole device."""
    reader = SimulatedReader(1, key_of(1), Random(1).randbytes)
    device = reader.device
    device.receive(Packet(1, 0, osdp.IdRequest.code, b"\x00").encode(), 0)
    rnd_a = bytes(range(8))
    raw = device.receive(Packet(1, 1, osdp.Chlng.code, rnd_a, scb=bytes([Scs.CHALLENGE, 1])).encode(), 0)
    ccrypt = osdp.Ccrypt.decode(osdp.decode(raw).data)
    channel = SecureChannel(key_of(1), rnd_a, ccrypt.rnd_b)
    scrypt = Packet(1, 2, osdp.Scrypt.code, channel.server_cryptogram, scb=bytes([Scs.SERVER, 1]))
    device.receive(scrypt.encode(), 0)
    sequence = 2

    def run(count: int) -> None:
        nonlocal sequence
        for number in range(count):
            sequence = sequence % 3 + 1
            if number % 4 == 0:
                reader.card(b"\x01\x02\x03\x04")
            answer = device.receive(channel.seal(Packet(1, sequence, osdp.Poll.code)), number)
            packet = channel.open(osdp.decode(answer), answer)
            osdp.parse(packet.code, packet.data, reply=True)

    return run


def figures() -> list[Figure]:
    """Rates in real time, latencies in simulated time."""
    run = exchanges()
    rate = COUNT / best_seconds(lambda: run(COUNT))
    world, full = World(baud=115_200), World(8)
    world.connect()
    full.connect()
    one, eight = latencies(world, 300), latencies(full, 300)
    reader = world.readers[0]
    reader.power_cycle()
    back = world.until(lambda: reader.device.is_secure)
    return [
        Figure("OSDP: secure exchanges, both ends", rate, "a second", 2_000),
        Figure("OSDP: card to handler, one device, 20 ms polls, mean", sum(one) / len(one), "ms", 15, least=False),
        Figure("OSDP: 8 devices at 9600 baud, mean", sum(eight) / len(eight), "ms", 200, least=False),
        Figure("OSDP: 8 devices at 9600 baud, maximum", max(eight), "ms", 350, least=False),
        Figure("OSDP: back after loss of power", back, "ms", 1_000, least=False),
    ]
