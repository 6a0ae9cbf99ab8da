"""Recharge over the air by the server: exactly once, whatever is lost, repeated, late, reset or killed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from backoffice import airmenu, airqueue, cards, members, ota_server, wallet
from backoffice.aircarrier import Pace, SmppCarrier
from backoffice.airqueue import AirJob, AirState
from backoffice.ota_server import LAST_RETRY_MS, Server
from cardlib.errors import Conflict, Refused
from cardlib.iso7816 import read_binary
from cardlib.profile import AccessRights, Purse, load_profile
from cardlib.purse import identify, open_application
from simulator.smsc import NO_FAULTS, Centre, Faults
from tests.backoffice.air import AirWorld, air_faults
from tests.backoffice.crash import Guillotine
from tests.backoffice.desk import PIN
from tests.backoffice.kit import ADMIN, CHEAP, ENTERPRISE
from tests.secretwatch import register
from tests.simulator.smscrig import BIND, Clock, End
from tests.simulator.smscrig import PASSWORD as PASSWORD_SMPP

HOUR_MS = 3_600_000


def queue(world: AirWorld, serial: bytes, fen: int, request_id: str | None = None) -> AirJob:
    with world.db.write() as tx:
        arguments = {"amount_fen": fen, "account": "bank"}
        return airqueue.queue(tx, ADMIN, ENTERPRISE, "recharge", serial, arguments, request_id)


def states(world: AirWorld) -> list[AirState]:
    with world.db.read() as tx:
        return [job.state for job in airqueue.listing(tx, ENTERPRISE)]


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
    assert air_faults(world, Guillotine(monkeypatch), range(50 * block, 50 * block + 50)) == ""
    assert set(states(world)) == {AirState.PROVEN}
    world.close()


def send(world: AirWorld, kind: str, serial: bytes, arguments: dict[str, Any] | None = None) -> AirJob:
    """Queue one job and do it."""
    with world.db.write() as tx:
        airqueue.queue(tx, ADMIN, ENTERPRISE, kind, serial, arguments or {})
    [job] = world.server().run()
    return job


def test_block_and_unblock(tmp_path: Path) -> None:
    """A blocked application refuses every terminal until it is unblocked; each twice is once."""
    world = AirWorld(tmp_path)
    sim, serial = world.issued_sim()
    for kind, blocked in (("block", True), ("block", True), ("unblock", False), ("unblock", False)):
        job = send(world, kind, serial)
        assert (job.state, job.outcome) == (AirState.PROVEN, {"blocked": blocked}), job
        sim.reset()
        assert identify(sim, ENTERPRISE).blocked is blocked
    world.close()


def test_rights_and_holder(tmp_path: Path) -> None:
    """What the books say of a member now stands on his card afterwards."""
    world = AirWorld(tmp_path)
    sim, serial = world.issued_sim()
    with world.db.write() as tx:
        members.change(tx, ADMIN, ENTERPRISE, members.get(tx, ENTERPRISE, "M001")._replace(groups=0x21))
    assert send(world, "rights", serial).state is AirState.PROVEN
    sim.reset()
    open_application(sim, world.office.host(), ENTERPRISE, world.random_bytes)
    access = AccessRights.decode(read_binary(sim, load_profile().file("access").fid))
    assert int.from_bytes(access.groups, "big") == 0x21
    world.close()


def test_issue_and_delete(tmp_path: Path) -> None:
    """A washed SIM becomes a card by short messages alone, is recharged, and deleted only when its purses are empty."""
    world = AirWorld(tmp_path)
    sim, serial = world.washed_sim()
    member = world.member(1)
    outcome = ota_server.issue(world.server(), ADMIN, member, serial, PIN)
    assert outcome["state"] == "active"
    assert send(world, "recharge", serial, {"amount_fen": 5_00, "account": "bank"}).state is AirState.PROVEN
    assert world.on_card(sim)[Purse.MAIN] == 5_00
    job = send(world, "delete", serial)
    assert (job.state, "holds 5.00" in job.trouble) == (AirState.FAILED, True)
    wallet.refund(world.office, ADMIN, sim, serial, 5_00)
    before = world.network.sent
    assert send(world, "delete", serial).state is AirState.PROVEN
    assert world.network.sent - before == 2
    sim.reset()
    with pytest.raises(Refused):
        identify(sim, ENTERPRISE)
    assert 2 not in sim.phone.memory.ota.value
    world.close()


PASSWORD = "729046"
register(PASSWORD, "a service password")


def ask(world: AirWorld, entry: str, password: str) -> str:
    """The holder chooses an entry of the menu; what the office says."""
    phone = world.network.phones["13800000001"]
    phone.choose(entry, *(["ONECARD"] if entry == "删除应用" else []), password)
    world.network.texts.clear()
    assert world.server().answer() == 1
    return world.network.texts[-1]


def test_from_the_menu(tmp_path: Path) -> None:
    """Loss and deletion from the menu need the service password; five wrong ones close the way for a day."""
    world = AirWorld(tmp_path)
    _, serial = world.issued_sim()
    assert ask(world, "挂失", PASSWORD) == airmenu.REFUSED  # none was set yet
    credential = airmenu.credential_of(PASSWORD, world.random_bytes, CHEAP)
    with world.db.write() as tx:
        airmenu.set_password(tx, ADMIN, ENTERPRISE, "M001", credential)
    queue(world, serial, 3_00)
    assert [job.state for job in world.server().run()] == [AirState.PROVEN]
    assert "holds 3.00" in ask(world, "删除应用", PASSWORD)
    assert ask(world, "挂失", PASSWORD) == airmenu.LOST
    assert world.state(serial)[0] == "lost"
    assert [job.kind for job in world.server().run()] == ["block"]
    cards.unlock(world.office, ADMIN, serial, "found")
    assert [job.kind for job in world.server().run()] == ["unblock"]
    for _ in range(4):
        assert ask(world, "挂失", "111111") == airmenu.REFUSED
    assert ask(world, "挂失", PASSWORD) == airmenu.REFUSED
    world.now += airmenu.WINDOW_MS
    assert send(world, "refund", serial, {"amount_fen": 3_00}).state is AirState.PROVEN
    assert ask(world, "删除应用", PASSWORD) == airmenu.DELETING
    assert [(job.kind, job.state) for job in world.server().run()] == [("delete", AirState.PROVEN)]
    assert world.state(serial)[0] == "cancelled"
    world.close()


def test_a_recorded_request_does_nothing(tmp_path: Path) -> None:
    """The menu's counter only grows: what was heard once is heard no more, nor is another number's."""
    world = AirWorld(tmp_path)
    world.issued_sim()
    phone = world.network.phones["13800000001"]
    phone.choose("挂失", "111111")
    world.network.poll()
    [(number, recorded)] = world.network.requests
    assert airmenu.take(world.office, number, recorded) == airmenu.REFUSED
    assert airmenu.take(world.office, number, recorded) is None
    assert airmenu.take(world.office, "13800000002", recorded) is None
    for cut in range(len(recorded)):
        assert airmenu.take(world.office, number, recorded[:cut]) is None
    world.close()


@pytest.mark.parametrize("faults", [NO_FAULTS, Faults(loss=0.1, twice=0.2, slowest_s=20.0)])
def test_by_a_message_centre(tmp_path: Path, faults: Faults) -> None:
    """By SMPP and a centre that loses, doubles, delays: proven, once; the menu's request comes back that way."""
    world = AirWorld(tmp_path)
    sim, serial = world.issued_sim()
    clock, random = Clock(), Random(5)
    centre = Centre({BIND.system_id: PASSWORD_SMPP}, clock, faults, seed=5)
    phone = world.network.phones["13800000001"]
    centre.register("13800000001", phone)

    def connect() -> End:
        ours, theirs = End.pair(random)
        centre.attach(theirs)
        return ours

    def sleep(seconds: float) -> None:
        clock.now_s += 10 * seconds
        centre.poll()

    pace = Pace(2.0, clock, sleep)
    server = Server(world.office, SmppCarrier(connect, BIND, "10690000", clock, sleep), attempts=99, pace=pace)
    for number in range(3):
        queue(world, serial, 1_00 + number)
    while set(states(world)) != {AirState.PROVEN}:
        list(server.run())
        world.now += LAST_RETRY_MS
    assert world.on_card(sim)[Purse.MAIN] == 3_03
    world.agrees()
    phone.choose("挂失", "111111")
    answered = 0
    for _ in range(2000):
        sleep(0.1)
        answered += server.answer()
    assert (answered, phone.inbox[:1]) == (1, [airmenu.REFUSED]) or faults is not NO_FAULTS
    server.carrier.close()  # type: ignore[attr-defined]  # of this carrier
    world.close()


def test_a_dead_line_ends(tmp_path: Path) -> None:
    """A phone that never answers: tried as often as allowed, then failed with nothing moved; a retry begins anew."""
    world = AirWorld(tmp_path)
    sim, serial = world.issued_sim()
    made = queue(world, serial, 7_00)
    deliver, world.network.carry = world.network.carry, lambda *_: []  # type: ignore[method-assign]  # silence
    job = made
    job = made
    for attempt in range(1, 4):
        [job] = world.server(attempts=3).run()
        assert job.attempts == attempt
        assert list(world.server(attempts=3).run()) == []  # it waits
        world.now += LAST_RETRY_MS
    assert job.state is AirState.FAILED
    assert "no proof" in job.trouble
    world.network.carry = deliver  # type: ignore[method-assign]  # the phone is back
    with world.db.write() as tx:
        again = airqueue.retry(tx, ADMIN, ENTERPRISE, made.air_id)
        waits = airqueue.queue(tx, ADMIN, ENTERPRISE, "block", serial, {})
        assert airqueue.cancel(tx, ADMIN, ENTERPRISE, waits.air_id).state is AirState.CANCELLED
    assert [(one.air_id, one.state) for one in world.server().run()] == [(again.air_id, AirState.PROVEN)]
    with world.db.write() as tx, pytest.raises(Conflict):
        airqueue.cancel(tx, ADMIN, ENTERPRISE, again.air_id)
    assert world.on_card(sim)[Purse.MAIN] == 7_00
    world.agrees()
    world.close()
