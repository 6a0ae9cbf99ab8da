"""An independent reader of ADMS posts and ours take the same punches from the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from backoffice import adms

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".peers" / "iclockhelper" / "bin" / "python"


def test_both_read_the_same_punches() -> None:
    """Posts of 5, 7 and 10 fields mean the same to iclockhelper as to us."""
    assert PYTHON.exists(), "the peer is missing: run script/peers"
    dice, start = random.Random(4), datetime.fromisoformat("2026-11-02 00:00:00")
    lines = []
    for n in range(300):
        more = ["0"] * dice.choice([0, 2, 5])
        at = start + timedelta(seconds=dice.randrange(10**7))
        work = str(dice.randrange(99))
        lines.append("\t".join([str(n + 1), str(at), str(dice.randrange(6)), str(dice.randrange(16)), work, *more]))
    body = "\n".join(lines).encode()
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("iclock_peer.py")], input=body, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = json.loads(done.stdout), adms.parse("A1B2", body)
    assert (theirs["sn"], theirs["stamp"]) == ("A1B2", "77")
    assert ours.bad == []
    assert theirs["rows"] == [
        [one.person.removeprefix("pin:"), one.local_time, one.status, one.verify, one.workcode] for one in ours.punches
    ]
