"""TCP lines that do not wait, with TLS where it is wanted, and a place that takes calls."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterable
from typing import Self

from cardlib.errors import ConfigError, ReaderLost, TransportError

CALL_S = 10.0
"""How long a call, and the TLS handshake after it, may take."""
CHUNK, MOST = 1 << 16, 1 << 20
"""Bytes that are read at once, and the most that waits for a far end that does not read."""
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)


class NetPort:
    """One end of a line. ``name``: who is at the other end, for people."""

    def __init__(self, line: socket.socket, name: str) -> None:
        self.name = name
        self._line, self._unsent = line, b""
        line.setblocking(False)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def call(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> Self:
        """Open a line, under TLS with a context for it. The only thing here that waits. Raises TransportError."""
        name = f"{host}:{port}"
        try:
            line = socket.create_connection((host, port), timeout=CALL_S)
        except OSError as e:
            raise TransportError(f"{name} can't be reached: {e.strerror or e}; check address and port") from e
        try:
            return cls(tls.wrap_socket(line, server_hostname=host) if tls else line, name)
        except OSError as e:
            line.close()
            raise TransportError(
                f"{name}: no TLS: {getattr(e, 'reason', None) or e}; check certificate and name"
            ) from e

    def write(self, data: bytes) -> None:
        """Send all, now or as the far end reads. Raises TransportError when the line is gone, or nobody reads."""
        self._unsent += data
        self._flush()
        if len(self._unsent) > MOST:
            raise TransportError(f"{self.name} does not read what it is sent")

    def read(self) -> bytes:
        """What has come, empty for nothing; sends what is left to send. Raises TransportError when the line is gone."""
        if self._unsent:
            self._flush()
        found = b""
        try:
            while len(found) < MOST:
                piece = self._line.recv(CHUNK)
                if not piece:
                    break
                found += piece
        except _LATER:
            return found
        except OSError as e:
            raise self._gone(e) from e
        if not found:
            raise TransportError(f"{self.name} has hung up")
        return found

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._line.send(self._unsent) :]
        except _LATER:
            pass
        except OSError as e:
            raise self._gone(e) from e

    def _gone(self, error: OSError) -> TransportError:
        return TransportError(f"the line to {self.name} is gone: {error.strerror or error}")

    def close(self) -> None:
        """Hang up; twice is allowed."""
        self._line.close()

    def fileno(self) -> int:
        """For ``select``; -1 once it is closed."""
        return self._line.fileno()


class Listener:
    """Takes calls at a port; 0 takes a free one, which ``port`` tells then. Raises ReaderLost when it is taken."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self._socket = socket.create_server((host, port))
        except OSError as e:
            raise ReaderLost(f"{host}:{port} can't be listened at: {e.strerror or e}; give another port") from e
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def accept(self) -> NetPort | None:
        """The next call, None when nobody calls."""
        try:
            line, (host, port, *_) = self._socket.accept()
        except OSError:  # nobody calls, or who called has hung up before it was heard
            return None
        return NetPort(line, f"{host}:{port}")

    def close(self) -> None:
        """Take no calls any more."""
        self._socket.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()


def wait(ends: Iterable[NetPort | Listener], timeout_s: float) -> None:
    """Return when something has come at one of these ends, or the time is over."""
    select.select([end for end in ends if end.fileno() >= 0], [], [], timeout_s)


def tls_context() -> ssl.SSLContext:
    """Checks the far end's certificate against this computer's authorities, or those in SSL_CERT_FILE."""
    return ssl.create_default_context()


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 address in brackets. Raises ConfigError."""
    host, _, digits = text.rpartition(":")
    if not host or not digits.isascii() or not digits.isdigit() or not 0 < int(digits) < 1 << 16:
        raise ConfigError(f"{text} is no HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(digits)
