"""Recharges over the air: office, message centre and SIMs in one process, each message a real PDU and packet."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from random import Random

from backoffice import airqueue
from backoffice.aircarrier import SmppCarrier
from backoffice.airqueue import AirState
from backoffice.ota_server import Server
from simulator.smsc import Centre
from tests.backoffice.air import AirWorld
from tests.backoffice.kit import ADMIN, ENTERPRISE
from tests.bench.figures import Figure
from tests.simulator.smscrig import BIND, PASSWORD, SERVICE, End

SIMS = int(os.environ.get("ONECARD_BENCH_SIMS", "10000"))
PAGE = os.sysconf("SC_PAGE_SIZE")
FEN = 10_00


def _resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1000


class _Line:
    """The office's way to a centre in the same process: while it waits, the centre works."""

    def __init__(self, world: AirWorld) -> None:
        self.now_s = 1_790_000_000.0
        self.centre = Centre({BIND.system_id: PASSWORD}, self._clock)
        for number, phone in world.network.phones.items():
            self.centre.register(number, phone)
        self.carrier = SmppCarrier(self._connect, BIND, SERVICE, self._clock, self._sleep)

    def _clock(self) -> float:
        return self.now_s

    def _connect(self) -> End:
        ours, theirs = End.pair(Random(1))
        ours.is_whole = theirs.is_whole = True
        self.centre.attach(theirs)
        return ours

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.centre.poll()


def recharges() -> list[Figure]:
    """Jobs a second through the centre, memory of a SIM, and what the server's memory grows over the second half."""
    with tempfile.TemporaryDirectory() as folder:
        world = AirWorld(Path(folder))
        serials = [world.issued_sim(1)[1]]
        before_kb = _resident_kb()
        serials += [world.issued_sim(number)[1] for number in range(2, SIMS + 1)]
        sim_kb = (_resident_kb() - before_kb) / (SIMS - 1)
        with world.db.write() as tx:
            for serial in serials:
                airqueue.queue(tx, ADMIN, ENTERPRISE, "recharge", serial, {"amount_fen": FEN, "account": "bank"})
        server = Server(world.new_office(), _Line(world).carrier)
        began, half_kb, done = time.perf_counter(), 0.0, 0
        for job in server.run():
            if job.state is not AirState.PROVEN:
                raise AssertionError(f"{job.kind} ended as {job.state}")
            done += 1
            if done == SIMS // 2:
                half_kb = _resident_kb()
        rate = done / (time.perf_counter() - began)
        grown_mb = (_resident_kb() - half_kb) / 1000
        world.close()
    if done != SIMS:
        raise AssertionError(f"{done} of {SIMS} jobs ended")
    return [
        Figure(f"over the air: recharges of {SIMS} SIMs through the centre", rate, "jobs/s"),
        Figure("  memory of a simulated SIM with what the office keeps of it", sim_kb, "kB", 50, least=False),
        Figure("  memory grown over the second half", grown_mb, "MB", 20, least=False),
    ]
