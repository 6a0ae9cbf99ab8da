"""An enterprise's keys are rotated by commands alone."""

from __future__ import annotations

from typing import Any

from tests.commands.test_life import HOLDER, OTHER, Office, _founded, _secrets, office
from tests.commands.test_permissions import ENTERPRISE

__all__ = ["_founded", "_secrets", "office"]


def versions(office: Office) -> dict[int, tuple[str, int]]:
    """State and cards of each version."""
    rows = office("key", "status")["versions"]
    return {row["version"]: (row["state"], row["cards"]) for row in rows}


def test_a_rotation_by_commands(office: Office) -> None:
    """Begun, activated, a card renewed by a recharge and on its own, back and forth; each step says what is next."""
    assert versions(office) == {1: ("active", 1)}
    assert len(office("key", "rotate", "--dry-run")["missing_roots"]) == 11
    assert "platform" in office("key", "rotate", code=3)["message"]
    begun = office("key", "rotate", "--platform-operator", "admin", "--request-id", "k1")
    assert (begun["version"], begun["state"]) == (2, "pending")
    assert office("key", "rotate", "--platform-operator", "admin", "--request-id", "k1") == begun
    assert office("key", "rotate")["version"] == 2
    assert "load version 2 into 1 SAMs" in begun["next"]
    refused = office("key", "activate", "2", code=1)
    assert (refused["reason"], "1 SAMs lack version 2" in refused["message"]) == ("not_confirmed", True)
    active = office("key", "activate", "2", "--confirm", "ACTIVATE", "--request-id", "k2")
    assert (active["state"], active["next"]) == ("active", office("key", "status")["next"])
    assert office("key", "activate", "2", "--confirm", "ACTIVATE", "--request-id", "k2") == active
    office.vendor(OTHER)
    office.at(OTHER, "card", "issue", OTHER, "--platform-operator", "admin")
    assert versions(office) == {1: ("active", 1), 2: ("active", 1)}
    assert office.till("pay", "1", card=OTHER, code=1)["reason"] == "key_version"
    assert "key set 2" in "".join(office.at(HOLDER, "card", "rekey", "--dry-run")["plan"])
    assert office.at(HOLDER, "wallet", "recharge", "1")["balance_fen"] == 51_00
    assert versions(office)[2] == ("active", 2)
    assert office("key", "rollback")["version"] == 1
    renewed = office.at(HOLDER, "card", "rekey")
    assert (renewed["version_before"], renewed["version"]) == (2, 1)
    office("key", "activate", "2", "--confirm", "ACTIVATE")
    office.at(HOLDER, "card", "rekey", "--card", office.serials[HOLDER])
    ends(office)


def ends(office: Office) -> None:
    """Version 1 retires and is destroyed; only then by its word, and nothing of it is needed any more."""
    assert office("key", "retire", "1")["state"] == "retiring"
    assert office("key", "retire", "2", code=4)["error"] == "Conflict"
    assert office("key", "destroy", "1", code=1)["reason"] == "not_confirmed"
    in_use: dict[str, Any] = office("key", "destroy", "1", "--confirm", "DESTROY", code=1)
    assert (in_use["reason"], "journals" in in_use["message"]) == ("in_use", True)
    office.till("shift", "close")
    office.collect("journal-1")
    office("settle", "run")
    [sam] = [row["sam"] for row in office("sam", "list") if row["kind"] == "pos"]
    office("sam", "report-lost", sam)  # a SAM can't give a version back: it is replaced
    done = office("key", "destroy", "1", "--confirm", "DESTROY", "--request-id", "k3")
    assert done["state"] == "destroyed"
    assert office("key", "destroy", "1", "--confirm", "DESTROY", "--request-id", "k3") == done
    assert office("key", "destroy", "1", "--confirm", "DESTROY", code=4)["error"] == "Conflict"
    assert office("key", "rollback", code=4)["error"] == "Conflict"
    assert office.at(HOLDER, "wallet", "recharge", "1")["balance_fen"] == 52_00
    root = ["key", "state", "purchase"]
    told = office(*root, "2", "destroyed", "--confirm", "DESTROY", code=4, enterprise=None)["message"]
    assert f"enterprises {ENTERPRISE}" in told, "a root that enterprises descend from is not destroyed"
    office(*root, "1", "retiring", enterprise=None)
    assert office(*root, "1", "destroyed", "--confirm", "DESTROY", enterprise=None)["state"] == "destroyed"
    status = office("key", "status")
    assert (status["current"], status["next"].endswith("begins the next rotation")) == (2, True)
    assert {row["purpose"] for row in status["others"]} >= {"card_control", "card_maintenance", "sam_control", "slot"}
