"""smpclient uploads a file to a bench terminal behind a pseudo-terminal, and reads information from it."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from terminals.guard import bench_desk
from terminals.services import Base, FileStore
from tests.terminals.linkrig import WallClock
from tests.terminals.test_link_pty import served

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".peers" / "smpclient" / "bin" / "python"


def test_smpclient_uploads_and_asks(tmp_path: Path) -> None:
    """Echo, parameters, information, an upload, its hash and a download all work with an independent client."""
    assert PYTHON.exists(), "the peer is missing: run script/peers"
    data = random.Random(1).randbytes(20_000)
    (tmp_path / "hello.bin").write_bytes(data)
    host = Base("BENCH", "OC-POS", "0.1.0", WallClock(), FileStore(tmp_path / "bench", 1 << 20))
    with served(bench_desk(host)) as port:
        done = subprocess.run(
            [PYTHON, Path(__file__).with_name("smp_peer.py"), port, tmp_path / "hello.bin"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "OC-POS BENCH 0.1.0" in done.stdout
    assert (tmp_path / "bench" / "hello.bin").read_bytes() == data
