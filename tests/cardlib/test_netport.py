"""TCP lines: nothing waits, everything arrives, and a line that is gone says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cardlib import netport
from cardlib.errors import ConfigError, ReaderLost, TransportError
from cardlib.netport import Listener, NetPort, parse_address, wait


@contextmanager
def lines() -> Iterator[tuple[NetPort, NetPort]]:
    listener = Listener("127.0.0.1", 0)
    assert listener.accept() is None
    ours = NetPort.call("127.0.0.1", listener.port)
    wait([listener], 5)
    theirs = listener.accept()
    assert theirs is not None
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()
        listener.close()


def test_everything_arrives_in_order() -> None:
    """More than the system's buffers hold is sent bit by bit while the far end reads."""
    data = bytes(range(256)) * 12_000
    with lines() as (ours, theirs):
        assert theirs.read() == b""
        sent, found = 0, b""
        while len(found) < len(data):
            ours.write(data[sent : sent + 100_000])
            sent += 100_000
            wait([theirs], 5)
            found += theirs.read()
        assert found == data


def test_a_far_end_that_does_not_read() -> None:
    """What nobody reads piles up to a limit, then the line counts as gone."""
    with lines() as (ours, _), pytest.raises(TransportError, match="does not read"):
        ours.write(bytes(100 * netport.MOST))


def test_a_line_that_is_gone() -> None:
    """Hanging up is told by the next read, after what came before it; a port where nobody listens at once."""
    with lines() as (ours, theirs):
        theirs.write(b"last")
        theirs.close()
        theirs.close()
        wait([ours], 5)
        assert ours.read() == b"last"
        with pytest.raises(TransportError):
            ours.read()
        assert theirs.fileno() == -1
    listener = Listener("127.0.0.1", 0)
    with pytest.raises(ReaderLost):
        Listener("127.0.0.1", listener.port)
    listener.close()
    with pytest.raises(TransportError, match="check address and port"):
        NetPort.call("127.0.0.1", listener.port)


def test_addresses() -> None:
    """HOST:PORT is taken apart; anything else is refused."""
    assert parse_address("smsc.example:2775") == ("smsc.example", 2775)
    assert parse_address("[::1]:2775") == ("::1", 2775)
    for bad in ("smsc.example", ":2775", "smsc.example:0", "smsc.example:65536", "smsc.example:x"):
        with pytest.raises(ConfigError):
            parse_address(bad)
