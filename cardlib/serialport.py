"""Serial lines for real: pyserial's ports of every kind, and a pseudo-terminal. The only user of pyserial.

Both have the same few members (``baud``, ``write``, ``read``, ``set_baud``, ``close``), as simulated lines do.
"""

from __future__ import annotations

import errno
import os
import select
import tty
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cardlib.errors import ConfigError, ReaderLost
from cardlib.wire.link import GAP_BUFFERED_S, GAP_UART_S

if TYPE_CHECKING:
    import serial

WAIT_S = 0.005
"""How long ``read`` waits for a first byte."""
WRITE_S = 10.0
_HINTS = {
    errno.EACCES: "permission denied: add the user to group dialout, then log in again",
    errno.EPERM: "permission denied: add the user to group dialout, then log in again",
    errno.EBUSY: "another program has it open: stop that one first",
    errno.EAGAIN: "another program has it open: stop that one first",
    errno.EWOULDBLOCK: "another program has it open: stop that one first",
    errno.ENOENT: "there is no such port: plug the adapter in, and look with terminal scan",
    errno.ENODEV: "the adapter is gone: plug it in again",
    errno.ENXIO: "the adapter is gone: plug it in again",
    errno.EIO: "the adapter or the other end is gone: plug it in again",
    errno.ENOTTY: "this is no serial port",
    errno.ECONNREFUSED: "nobody listens there: check address and port of the converter",
    errno.EHOSTUNREACH: "the network has no way there: check the address",
}


class Found(NamedTuple):
    """A port of this computer. ``by_id``: its lasting name where the system gives one, else ``device``."""

    device: str
    by_id: str
    description: str
    vendor_id: int | None
    product_id: int | None
    serial_number: str


def ports() -> list[Found]:
    """Serial ports of this computer, in order of their names."""
    from serial.tools import list_ports  # noqa: PLC0415  # kept out of programs that open no port

    stable = {os.path.realpath(link.path): link.path for link in _entries("/dev/serial/by-id")}
    return sorted(
        Found(
            one.device, stable.get(os.path.realpath(one.device), one.device), one.description or "",
            one.vid, one.pid, one.serial_number or "",
        )
        for one in list_ports.comports()
    )  # fmt: skip


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def gap_s(url: str) -> float:
    """The longest silence within a frame on a kind of port: 20 ms on a UART, 500 ms where bytes pass buffers."""
    if "://" in url:
        return GAP_BUFFERED_S
    name = Path(url).resolve().name
    return GAP_UART_S if name.startswith(("ttyS", "ttyAMA", "ttymxc", "COM")) else GAP_BUFFERED_S


class SerialPort:
    """A port by name or URL (``/dev/ttyUSB0``, ``socket://host:port``, ``rfc2217://host:port``).

    Opened exclusively, with DTR and RTS low. Raises ReaderLost with a hint by cause, ConfigError for a URL that is
    none.
    """

    def __init__(self, url: str, baud: int = 115_200) -> None:
        import serial  # noqa: PLC0415  # kept out of programs that open no port

        self.url = url
        self.gap_s = gap_s(url)
        self._lost = (serial.SerialException, OSError)
        try:
            self._port: serial.SerialBase = serial.serial_for_url(
                url, baudrate=baud, timeout=WAIT_S, write_timeout=WRITE_S, do_not_open=True
            )
            self._port.dtr = self._port.rts = False
            if "://" not in url:
                self._port.exclusive = True
            self._port.open()
        except self._lost as e:
            raise ReaderLost(f"{url} can't be opened: {_hint(e)}") from e
        except (ValueError, TypeError, AttributeError) as e:
            raise ConfigError(f"{url} is no serial port or URL: {e}") from e
        self.baud = 0 if url.startswith("socket://") or "/pts/" in os.path.realpath(url) else baud

    def write(self, data: bytes) -> None:
        """Send all. Raises ReaderLost."""
        try:
            self._port.write(data)
        except self._lost as e:
            raise ReaderLost(f"{self.url} is lost: {_hint(e)}") from e

    def read(self) -> bytes:
        """What has come, after waiting at most 5 ms for a first byte. Raises ReaderLost."""
        try:
            first = bytes(self._port.read(max(self._port.in_waiting, 1)))
            return first + bytes(self._port.read(self._port.in_waiting)) if first else b""
        except self._lost as e:
            raise ReaderLost(f"{self.url} is lost: {_hint(e)}") from e

    def fileno(self) -> int | None:
        """What ``select`` waits for; None where the port has nothing of the kind (``rfc2217://``)."""
        try:
            return int(self._port.fileno())
        except (AttributeError, OSError):  # io's "unsupported operation" among them
            return None

    def set_baud(self, baud: int) -> None:
        """Change the speed once all has left. Raises ReaderLost, ConfigError when the port does not have it."""
        try:
            self._port.flush()
            self._port.baudrate = baud
        except ValueError as e:
            raise ConfigError(f"{self.url} does not have {baud} baud") from e
        except self._lost as e:
            raise ReaderLost(f"{self.url} is lost: {_hint(e)}") from e
        self.baud = baud if self.baud else 0

    def close(self) -> None:
        """Let the port go."""
        self._port.close()


class PtyPort:
    """A pseudo-terminal: ``name`` is what the other end opens. Bytes take no time of their own."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()  # theirs stays open, so that a peer may come and go
        tty.setraw(self._theirs)
        self.name = os.ttyname(self._theirs)
        self.baud = 0
        self.gap_s = GAP_BUFFERED_S

    def write(self, data: bytes) -> None:
        """Send all. Raises ReaderLost when the other end takes nothing for 10 s."""
        while data:
            if not select.select([], [self._ours], [], WRITE_S)[1]:
                raise ReaderLost(f"{self.name}: the other end takes nothing")
            data = data[os.write(self._ours, data) :]

    def read(self) -> bytes:
        """What has come, after waiting at most 5 ms for a first byte."""
        return os.read(self._ours, 1 << 16) if select.select([self._ours], [], [], WAIT_S)[0] else b""

    def fileno(self) -> int:
        """What ``select`` waits for."""
        return self._ours

    def set_baud(self, baud: int) -> None:
        """Nothing: a pseudo-terminal has no speed."""

    def close(self) -> None:
        """Take the pseudo-terminal away."""
        os.close(self._theirs)
        os.close(self._ours)


def _hint(error: Exception) -> str:
    """What to do, by the error's number; never by its text."""
    number = getattr(error, "errno", None)
    cause = error.__cause__ or error.__context__
    if number is None and cause is not None and cause.args and type(cause.args[0]) is int:
        number = cause.args[0]  # an OSError's, or a termios.error's, which is none
    return _HINTS.get(number or 0, os.strerror(number) if number else "check the cable and the adapter")
