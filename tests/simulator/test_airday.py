"""``onecard demo --over-the-air``: everything by short messages, and the telephone never notices."""

from __future__ import annotations

import json

import pytest

import cli
from console import Session


def test_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue, recharge, loss, unlock and deletion over the air come out, with the telephone's part as it was."""
    assert cli.run(["demo", "--over-the-air", "--json"], Session()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["telephone"] == "unchanged"
    assert (facts["state"], facts["lost"], facts["unlocked"], facts["refunded_fen"]) == ("active", True, True, 50_00)
