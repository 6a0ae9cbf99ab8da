"""Events to subsystems: never lost, in order, and known by id when one comes twice."""

from __future__ import annotations

import pytest

from backoffice import outbox
from backoffice.database import Database
from cardlib.errors import Conflict, FormatError, LineTimeout, NotFound
from tests.backoffice.conftest import ENTERPRISE, NOW, Clock


@pytest.fixture
def told(db: Database) -> Database:
    """Two subsystems and three events."""
    with db.write() as tx:
        for subsystem in ("doors", "canteen"):
            outbox.subscribe(tx, ENTERPRISE, subsystem)
            outbox.subscribe(tx, ENTERPRISE, subsystem)
        for number in range(3):
            outbox.publish(tx, ENTERPRISE, "card.lost", {"card": f"{number:016X}"})
    return db


def waiting(db: Database, subsystem: str) -> list[str]:
    with db.read() as tx:
        return [event.body["card"][-1] for event in outbox.pending(tx, ENTERPRISE, subsystem)]


def test_acknowledged_once(told: Database) -> None:
    """An acknowledged event is not told again; acknowledging twice is known; the other subsystem still waits."""
    with told.write() as tx:
        first = outbox.pending(tx, ENTERPRISE, "doors", limit=1)
        assert outbox.acknowledge(tx, ENTERPRISE, "doors", [first[0].event_id]) == 1
        assert outbox.acknowledge(tx, ENTERPRISE, "doors", [first[0].event_id]) == 0
    assert waiting(told, "doors") == ["1", "2"]
    assert waiting(told, "canteen") == ["0", "1", "2"]


def test_rolled_back_act_tells_nobody(told: Database) -> None:
    """An event belongs to its act: when that is rolled back, there is none."""
    with pytest.raises(FormatError), told.write() as tx:
        outbox.publish(tx, ENTERPRISE, "card.lost", {"card": outbox.publish(tx, ENTERPRISE, "x", {}) + "x" * 5000})
    assert len(waiting(told, "doors")) == 3


def test_delivery_stops_at_the_first_failure(told: Database) -> None:
    """Order is kept: what can't be told stops the rest, and the next run goes on there."""
    seen: list[str] = []

    def send(event: outbox.Told) -> None:
        if len(seen) == 1 and event.attempts == 0:
            raise LineTimeout("no answer")
        seen.append(event.body["card"][-1])

    count, error = outbox.deliver(told, ENTERPRISE, "doors", send)
    assert (count, type(error), seen) == (1, LineTimeout, ["0"])
    assert outbox.deliver(told, ENTERPRISE, "doors", send) == (2, None)
    assert seen == ["0", "1", "2"]


def test_crash_before_acknowledgement_repeats_the_same_id(told: Database) -> None:
    """A subsystem whose acknowledgement got lost sees the same event id again."""
    ids: list[str] = []

    def crash(event: outbox.Told) -> None:
        ids.append(event.event_id)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            outbox.deliver(told, ENTERPRISE, "doors", crash)
    assert len(set(ids)) == 1


def test_new_subsystem_hears_from_now_on(told: Database) -> None:
    """Who subscribes later is not flooded with the past."""
    with told.write() as tx:
        outbox.subscribe(tx, ENTERPRISE, "gate")
    assert waiting(told, "gate") == []


def test_unsubscribe(told: Database) -> None:
    """A subsystem leaves only when nothing waits for it."""
    with pytest.raises(Conflict), told.write() as tx:
        outbox.unsubscribe(tx, ENTERPRISE, "doors")
    outbox.deliver(told, ENTERPRISE, "doors", lambda _: None)
    with told.write() as tx:
        outbox.unsubscribe(tx, ENTERPRISE, "doors")
    with pytest.raises(NotFound):
        waiting(told, "doors")


def test_backlog(told: Database, clock: Clock) -> None:
    """The administrator sees how far behind each subsystem is."""
    outbox.deliver(told, ENTERPRISE, "doors", lambda _: None)
    clock.forward(1000)
    with told.read() as tx:
        assert outbox.backlog(tx, ENTERPRISE) == [("canteen", 3, NOW), ("doors", 0, None)]


def test_unknown(told: Database) -> None:
    """Unknown subsystems and events are not found, and another enterprise has none of these."""
    with pytest.raises(NotFound), told.write() as tx:
        outbox.acknowledge(tx, ENTERPRISE, "doors", ["nothing"])
    with pytest.raises(NotFound), told.read() as tx:
        outbox.pending(tx, 2002, "doors")
    with pytest.raises(FormatError), told.write() as tx:
        outbox.subscribe(tx, ENTERPRISE, "Tür")
