"""``onecard demo --terminals``: five terminals as processes, from unpacking to the proof that the morning adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_morning_at_five_terminals() -> None:
    """Each kind is provisioned, works, is collected and settled; a torn lunch is paid once, a forced door is noted."""
    argv = [sys.executable, str(ROOT / "cli.py"), "demo", "--terminals", "--json"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
    facts = json.loads(ran.stdout)
    assert facts["provisioned"] == 5
    assert (facts["torn"], facts["paid_fen"], facts["loaded_fen"]) == ("unknown", 15_00, 100_00)
    assert (facts["refused"], facts["forced"]) == ("lost", True)
    assert facts["proof"]["faults"] == []
    assert facts["proof"]["loaded_fen"] == facts["proof"]["on_cards_fen"] + facts["proof"]["taken_fen"] == 100_00
