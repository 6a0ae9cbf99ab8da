"""The simulated line: its clock, its faults by seed, and that two can't speak at once."""

from __future__ import annotations

from simulator.serialline import NEVER, Faults, SerialLine

DATA = bytes(range(200))


def heard(faults: Faults, seed: int, writes: int = 50) -> list[bytes]:
    """What arrives of so many writes, and stays quiet for 1 s between."""
    line = SerialLine(9_600, faults, seed=seed)
    near, far = line.port(), line.port()
    arrived = []
    for _ in range(writes):
        near.write(DATA)
        line.advance(line.now_us + 1_000_000)
        arrived.append(far.read())
    return arrived


def test_bytes_take_their_time() -> None:
    """At 9600 baud a byte takes 10 bits: after 50 ms 48 bytes are there, in order; the sender hears nothing."""
    line = SerialLine(9_600)
    near, far, third = line.port(), line.port(), line.port()
    near.write(DATA, after_us=1_000)
    line.advance(51_000)
    assert far.read() == DATA[:48]
    line.advance(1_000_000)
    assert far.read() == DATA[48:]
    assert third.read() == DATA
    assert near.read() == b""
    near.write(b"ab")
    near.write(b"cd")
    line.advance(2_000_000)
    assert far.read() == b"abcd"
    line.is_cut = True
    near.write(b"lost")
    line.advance(3_000_000)
    assert far.read() == b""


def test_faults_come_by_seed() -> None:
    """Every kind of fault shows, one seed always shows the same, and there is none where none is asked for."""
    assert heard(Faults(), 1) == [DATA] * 50
    kinds = [Faults(damage=0.3), Faults(cut=0.3), Faults(noise=0.3)]
    for faults in kinds:
        once = heard(faults, 1)
        assert once == heard(faults, 1) != heard(faults, 2)
        assert 20 < once.count(DATA) < 50
    assert heard(Faults(damage=1.0), 3).count(DATA) == 0


def test_delays_and_gaps_move_bytes_only() -> None:
    """A late or paused write arrives whole, later."""
    for faults in (Faults(delay=1.0), Faults(gap=1.0)):
        line = SerialLine(115_200, faults, seed=4)
        near, far = line.port(), line.port()
        near.write(DATA)
        line.advance(len(DATA) * 10_000_000 // 115_200)
        early = far.read()
        assert len(early) < len(DATA)
        line.advance(1_000_000)
        assert early + far.read() == DATA


def test_two_speakers_spoil_each_other() -> None:
    """Half duplex: bytes sent at the same time arrive as something else at both ends."""
    line = SerialLine(9_600, seed=2)
    near, far, third = line.port(), line.port(), line.port()
    near.write(b"\xff" * 100)
    far.write(b"\xff" * 100, after_us=50_000)
    line.advance(1_000_000)
    assert near.read() != b"\xff" * 100
    assert far.read() != b"\xff" * 100
    assert third.read()[:40] == b"\xff" * 40


def test_parties_run_by_bytes_and_by_time() -> None:
    """Two parties answer each other in simulated time, and one that only waits is called when it asked to be."""
    line = SerialLine(115_200)
    near, far, third = line.port(), line.port(), line.port()
    near.write(b"x")
    answers, calls = [0, 0], list[int]()

    def ping() -> int:
        if near.read():
            answers[0] += 1
            near.write(b"x", after_us=1_000)
        return NEVER

    def pong() -> int:
        if far.read():
            answers[1] += 1
            far.write(b"y", after_us=1_000)
        return NEVER

    def clock() -> int:
        third.read()
        calls.append(line.now_us)
        return (line.now_us // 100_000 + 1) * 100_000

    line.run([(near, ping), (far, pong), (third, clock)], 1_000_000)
    assert line.now_us == 1_000_000
    assert answers[1] > 400
    assert 0 <= answers[1] - answers[0] <= 1
    assert {at for at in calls if at % 100_000 == 0} == set(range(0, 1_000_001, 100_000))
