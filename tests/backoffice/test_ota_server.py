"""Recharge over the air by the server: exactly once, whatever is lost, repeated, late, reset or killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from backoffice import ota_server
from backoffice.ota_server import AirJob, AirState
from cardlib.profile import Purse
from tests.backoffice.air import AirWorld, ordeal
from tests.backoffice.crash import Guillotine
from tests.backoffice.kit import ADMIN, ENTERPRISE

HOUR_MS = 3_600_000


def queue(world: AirWorld, serial: bytes, fen: int, request_id: str | None = None) -> AirJob:
    with world.db.write() as tx:
        arguments = {"amount_fen": fen, "account": "bank"}
        return ota_server.queue(tx, ADMIN, ENTERPRISE, "recharge", serial, arguments, request_id)


def states(world: AirWorld) -> list[AirState]:
    with world.db.read() as tx:
        return [job.state for job in ota_server.listing(tx, ENTERPRISE)]


def test_three_scripts(tmp_path: Path) -> None:
    """A recharge over the air is proven after three messages and booked as one at the reader is."""
    world = AirWorld(tmp_path)
    sim, serial = world.issued_sim()
    queue(world, serial, 12_00)
    [job] = world.server().run()
    assert (job.state, job.attempts, job.outcome["balance_fen"]) == (AirState.PROVEN, 1, 12_00), job
    assert world.network.sent == 3
    assert world.on_card(sim) == {Purse.MAIN: 12_00, Purse.SUBSIDY: 0}
    assert world.books() == {f"card/{serial.hex()}/main": 12_00, "bank": -12_00}
    world.agrees()
    world.close()


@pytest.mark.parametrize("block", range(4))
def test_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Messages lost, doubled, late and reordered, the SIM reset, the server killed: each recharge happens once."""
    world = AirWorld(tmp_path)
    guillotine = Guillotine(monkeypatch)
    sim, serial = world.issued_sim()
    seeds = range(50 * block, 50 * block + 50)
    deaths = sum(ordeal(world, guillotine, serial, seed, 1_00 + seed) for seed in seeds)
    world.network.deliver_late()
    expected = sum(1_00 + seed for seed in seeds)
    assert deaths > len(seeds) // 4
    assert world.on_card(sim)[Purse.MAIN] == expected == world.purse(serial)
    assert set(states(world)) == {AirState.PROVEN}
    world.agrees()
    world.close()
