"""TCP lines: nothing waits, everything arrives, and a line that is gone says so."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    day = datetime(2026, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), day, day.replace(2099))
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False).sign(
        key, hashes.SHA256()
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
    return paths


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under TLS data pass both ways; a certificate that nobody vouches for, or of another name, is refused."""
    cert, key = certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for _ in range(3):
                line, _ = listener.accept()
                with line, suppress(OSError), server.wrap_socket(line, server_side=True) as tls:
                    tls.sendall(tls.recv(100)[::-1] * 20_000)

        thread = Thread(target=serve)
        thread.start()
        with pytest.raises(TransportError, match="check certificate and name"):
            NetPort.call("localhost", port, netport.tls_context())
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with pytest.raises(TransportError, match="check certificate and name"):
            NetPort.call("127.0.0.1", port, netport.tls_context())
        line = NetPort.call("localhost", port, netport.tls_context())
        assert line.read() == b""
        line.write(b"abc")
        found = b""
        while len(found) < 60_000:
            wait([line], 0.05)
            found += line.read()
        assert found == b"cba" * 20_000
        line.close()
        thread.join()


def test_addresses() -> None:
    """HOST:PORT is taken apart; anything else is refused."""
    assert parse_address("smsc.example:2775") == ("smsc.example", 2775)
    assert parse_address("[::1]:2775") == ("::1", 2775)
    for bad in ("smsc.example", ":2775", "smsc.example:0", "smsc.example:65536", "smsc.example:x"):
        with pytest.raises(ConfigError):
            parse_address(bad)
