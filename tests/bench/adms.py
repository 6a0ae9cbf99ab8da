"""Third-party attendance terminals: punches a second through the real server, each post committed before its answer."""

from __future__ import annotations

import socket
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from backoffice import adms
from backoffice.database import Database
from tests.backoffice.adms_rig import serving
from tests.backoffice.kit import ADMIN, ENTERPRISE
from tests.bench.figures import Figure

SINGLE, POSTS, LINES = 2000, 100, 500
START = datetime.fromisoformat("2026-11-02 06:00:00")


def _post(lines: list[str]) -> bytes:
    body = "\n".join(lines).encode()
    head = (
        "POST /iclock/cdata?SN=A1B2&table=ATTLOG&Stamp=1 HTTP/1.1\r\nHost: office\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _line(n: int, day: int) -> str:
    return f"{n % 1000 + 1}\t{START + timedelta(days=day, seconds=n)}\t{n % 2}\t1\t0\t0\t0"


def _per_second(port: int, posts: list[bytes], answer: bytes) -> float:
    """Posts a second from one device that waits for each answer."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        for post in posts:
            line.sendall(post)
            got = b""
            while not got.endswith(answer):
                part = line.recv(4096)
                assert part, got
                got += part
        return len(posts) / (time.perf_counter() - began)


def figures() -> list[Figure]:
    """One punch a post, then the catch-up of a device that was away; best of three, WAL with synchronous FULL."""
    single, many = [], []
    with tempfile.TemporaryDirectory() as folder, Database(Path(folder) / "e.db", "enterprise", migrate=True) as db:
        with db.write() as tx:
            adms.approve(tx, ADMIN, ENTERPRISE, "A1B2", "gate")
        with serving(db, ENTERPRISE) as (port, _):
            for day in range(3):
                posts = [_post([_line(n, day)]) for n in range(SINGLE)]
                single.append(_per_second(port, posts, b"OK: 1"))
            for day in range(3, 6):
                posts = [_post([_line(n * LINES + i, day) for i in range(LINES)]) for n in range(POSTS)]
                many.append(LINES * _per_second(port, posts, b"OK: %d" % LINES))
        with db.read() as tx:
            assert tx.value("SELECT COUNT(*) FROM punch") == 3 * (SINGLE + POSTS * LINES)
    return [
        Figure("adms: punches of one device, each committed", max(single), "/s", 1000),
        Figure("adms: catch-up in posts of 500", max(many), "/s", 40_000),
    ]
