"""A receipt printer behind a device or file; one that is out of paper or gone never holds a till up."""

from __future__ import annotations

import os
import select
import time

from cardlib.errors import TransportError

PATIENCE_S = 3.0
"""For how long a printer may take nothing before it counts as stuck; a good one takes a receipt at once."""


def send(path: str, data: bytes) -> None:
    """Write all to the device (appended to a file, which is made). Raises TransportError: print it again later."""
    end = time.monotonic() + PATIENCE_S
    try:
        device = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
        try:
            while data:
                if not select.select([], [device], [], max(0.0, end - time.monotonic()))[1]:
                    raise TransportError(f"printer {path} takes nothing more: look at its paper, then print it again")
                data = data[os.write(device, data) :]
        finally:
            os.close(device)
    except OSError as e:
        raise TransportError(f"printer {path}: {e.strerror}: look at it, then print it again") from e
