"""An ADMS server on a real socket, and a terminal that pushes to it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from backoffice import adms
from backoffice.database import Database
from backoffice.web import listen


@contextmanager
def running(server: uvicorn.Server, port: int = 0) -> Iterator[int]:
    """A server in a thread; gives its port."""
    line = listen("127.0.0.1", port)
    thread = threading.Thread(target=server.run, args=([line],))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            assert thread.is_alive()
            time.sleep(0.005)
        yield line.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        line.close()


@contextmanager
def serving(db: Database, enterprise_id: int, proxy: str = "") -> Iterator[tuple[int, uvicorn.Server]]:
    """The ADMS server in a thread; gives its port."""
    server = adms.web_server(adms.Server(db, enterprise_id, 480, proxy))
    with running(server) as port:
        yield port, server


class Pusher:
    """A terminal that keeps its connection open, as they do."""

    def __init__(self, port: int, number: str = "A1B2") -> None:
        self.number = number
        self.line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        self.line.request(method, path.replace("SN=", f"SN={self.number}"), body, headers or {})
        answer = self.line.getresponse()
        return answer.status, answer.read().decode()

    def push(self, body: bytes, stamp: str = "1", table: str = "ATTLOG") -> tuple[int, str]:
        return self.call("POST", f"/iclock/cdata?SN=&table={table}&Stamp={stamp}", body)

    def close(self) -> None:
        self.line.close()
