"""smpplib, an independent SMPP client, talks over TCP to ``onecard sim smsc`` and the SIM of a phone behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from simulator import image
from simulator.sim import Sim
from tests.simulator.smscrig import PASSWORD

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".peers" / "smpplib" / "bin" / "python"
HEAD = bytes.fromhex("0D" + "0001" + "0000" + "ABCDEF" + "0000000000" + "00")


def test_smpplib_sends_and_receives(tmp_path: Path) -> None:
    """Bind, a refused bind, a packet with header, a text in parts, enquire_link, the answer of the SIM, unbind."""
    assert PYTHON.exists(), "the peer is missing: run script/peers"
    folder, secret = tmp_path / "sims", tmp_path / "password"
    folder.mkdir()
    image.save(Sim.blank(), folder / "8613800000001.img")
    secret.write_text(PASSWORD + "\n", encoding="ascii")
    text = "Your card {canteen} was charged. " * 10
    packet = b"\x02\x70\x00" + len(HEAD).to_bytes(2, "big") + HEAD
    server = subprocess.Popen(
        [sys.executable, "-m", "cli", "--json", "sim", "smsc", folder, "--port", "0"], cwd=ROOT, text=True,
        env=os.environ | {"ONECARD_SMSC_PASSWORD_FILE": str(secret)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        begun = json.loads(server.stdout.readline())
        assert begun["phones"] == 1
        done = subprocess.run(
            [PYTHON, Path(__file__).with_name("speak_smpplib.py"), str(begun["port"]), secret, packet.hex(), text],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == "027100" + "000b" + "0a" + "abcdef" + "0000000000" + "00" + "09"
        assert json.loads(server.stdout.readline()) == {"number": "8613800000001", "text": text}
    finally:
        server.terminate()
        server.communicate(timeout=10)
