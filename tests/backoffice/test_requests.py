"""Request ids: one outcome each, whoever repeats them and however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from backoffice.database import Database, Tx
from backoffice.requests import Outcome, once
from cardlib.errors import Conflict, DatabaseError, FormatError, NotFound, Refused
from tests.backoffice.conftest import ENTERPRISE


class Act:
    """Counts how often it really happened, in the database."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, tx: Tx) -> Outcome:
        self.calls += 1
        done = tx.value("SELECT COUNT(*) FROM setting")
        tx.execute("INSERT INTO setting VALUES (1, ?, 'x', 0)", (f"act{done}",))
        if self.error:
            raise self.error
        return {"number": done}


def effects(db: Database) -> int:
    with db.read() as tx:
        return int(tx.value("SELECT COUNT(*) FROM setting"))


def test_repeat_gives_the_first_outcome(db: Database) -> None:
    """The second call with a request id changes nothing and answers as the first did."""
    act = Act()
    outcomes = [once(db, ENTERPRISE, "r-1", "wallet recharge", {"amount_fen": 100}, act) for _ in range(3)]
    assert outcomes == [{"number": 0}] * 3
    assert (act.calls, effects(db)) == (1, 1)


def test_without_request_id(db: Database) -> None:
    """Without a request id each call acts."""
    assert [once(db, ENTERPRISE, None, "c", {}, Act()) for _ in range(2)] == [{"number": 0}, {"number": 1}]


@pytest.mark.parametrize("error", [Refused("limit", "too much"), Conflict("is lost"), NotFound("no card")])
def test_refusal_is_an_outcome(db: Database, error: Exception) -> None:
    """A refusal is repeated as it was, leaves nothing behind, and stays even when the rule would now allow it."""
    with pytest.raises(type(error)) as first:
        once(db, ENTERPRISE, "r-1", "c", {}, Act(error))
    later = Act()
    with pytest.raises(type(error)) as second:
        once(db, ENTERPRISE, "r-1", "c", {}, later)
    assert (str(first.value), vars(first.value)) == (str(second.value), vars(second.value))
    assert (later.calls, effects(db)) == (0, 0)


def test_failure_is_no_outcome(db: Database) -> None:
    """After an error that is no answer, the same request id acts."""
    with pytest.raises(DatabaseError):
        once(db, ENTERPRISE, "r-1", "c", {}, Act(DatabaseError("full")))
    assert once(db, ENTERPRISE, "r-1", "c", {}, Act()) == {"number": 0}


def test_same_id_for_something_else(db: Database) -> None:
    """A request id with other arguments or another command is a conflict, and the first outcome stays."""
    once(db, ENTERPRISE, "r-1", "c", {"amount_fen": 1}, Act())
    for command, amount in (("c", 2), ("d", 1)):
        for _ in range(2):
            with pytest.raises(Conflict, match="give a new one"):
                once(db, ENTERPRISE, "r-1", command, {"amount_fen": amount}, Act())
    assert once(db, ENTERPRISE, "r-1", "c", {"amount_fen": 1}, Act()) == {"number": 0}
    assert effects(db) == 1


def test_enterprises_share_no_request_ids(db: Database) -> None:
    """Another enterprise's request of the same id is another request."""
    once(db, ENTERPRISE, "r-1", "c", {}, Act())
    assert once(db, 2002, "r-1", "c", {}, Act()) == {"number": 1}


def test_two_at_once(db: Database) -> None:
    """Of many calls with one id at once, one acts and all get its outcome."""
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: once(db, ENTERPRISE, "r-1", "c", {}, Act()), range(12)))
    assert outcomes == [{"number": 0}] * 12
    assert effects(db) == 1


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "ü", "-a", "a\n"])
def test_malformed_request_id(db: Database, request_id: str) -> None:
    """A request id is short and plain."""
    with pytest.raises(FormatError):
        once(db, ENTERPRISE, request_id, "c", {}, Act())
