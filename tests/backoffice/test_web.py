"""The HTTP interface: who calls it is known by his token alone, and nobody can hold it up."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import ssl
import subprocess
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from backoffice import operators, registry, tokens, web
from backoffice.database import Database
from backoffice.operators import Credential, Operator, Permission, Role
from backoffice.registry import TerminalKind
from backoffice.tokens import Caller
from backoffice.web import Fields, Verb, Web, field, http_server, listen
from cardlib.errors import ConfigError, DatabaseError, FormatError, MacMismatch, NotFound, OneCardError, Refused
from simulator.world import QUICK
from tests.backoffice.adms_rig import running
from tests.backoffice.conftest import ENTERPRISE, Clock
from tests.backoffice.kit import ADMIN, terminal_number
from tests.secretwatch import register

RANDOM = Random(11)
RAISED: dict[str, OneCardError | Exception] = {
    "refused": Refused("limit", "too much"),
    "mac": MacMismatch("wrong"),
    "missing": NotFound("no such card"),
    "busy": DatabaseError("busy"),
    "form": FormatError("no number"),
    "bug": ValueError("inside"),
}


def _raise(_: Caller, fields: Fields) -> Fields:
    raise RAISED[field(fields, "what", str)]


def _echo(caller: Caller, fields: Fields) -> Fields:
    return {"name": caller.name, "terminal": caller.terminal.hex(), **fields}


VERBS = {
    "echo": Verb(_echo, frozenset({TerminalKind.RECHARGE}), Permission.CARD_ISSUE),
    "raise": Verb(_raise, frozenset({TerminalKind.RECHARGE})),
    "big": Verb(_echo, frozenset({TerminalKind.RECHARGE}), max_body=1 << 20),
}


def new_token(db: Database, holder: bytes | str, days: int = 1, enterprise_id: int = ENTERPRISE) -> str:
    """A token that the watch looks for from now on."""
    with db.write() as tx:
        token = tokens.add(tx, ADMIN, enterprise_id, holder, days, RANDOM.randbytes)[1]
    register(token, "a web token")
    register(urlsafe_b64decode(token + "="), "a web token's bytes")
    return token


@pytest.fixture
def office(db: Database) -> Database:
    """A recharge terminal, a till and three operators."""
    with db.write() as tx:
        for number, kind in ((1, TerminalKind.RECHARGE), (2, TerminalKind.POS)):
            registry.register(tx, ADMIN, ENTERPRISE, terminal_number(number), kind, "one")
        credential = Credential.make("a secret that is long", RANDOM.randbytes, QUICK)
        for role in (Role.ISSUER, Role.FINANCE, Role.ADMINISTRATOR):
            operators.add(tx, ADMIN, ENTERPRISE, role.value, role, credential)
    return db


@pytest.fixture
def port(office: Database) -> Iterator[int]:
    """The server's port."""
    with running(http_server(Web(office, ENTERPRISE, VERBS).app())) as number:
        yield number


def call(port: int, path: str, token: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    try:
        line.request(method, path, raw, {"Authorization": f"Bearer {token}"} if token else {})
        answer = line.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        line.close()


def reset(line: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    try:
        return line.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_token_says_who_calls(port: int, office: Database) -> None:
    """A terminal and an operator are told apart by their tokens, and the last use is known."""
    terminal, person = new_token(office, terminal_number(1)), new_token(office, "issuer")
    assert call(port, "/v1/echo", terminal, {"n": 1}) == (
        200, {"name": "terminal 000000000001", "terminal": "000000000001", "n": 1},
    )  # fmt: skip
    assert call(port, "/v1/echo", person)[1]["name"] == "issuer"
    with office.read() as tx:
        assert all(one.used_ms == tx.now_ms for one in tokens.listing(tx, ENTERPRISE))
        everything = [tuple(row) for row in tx.all("SELECT * FROM web_token")]
    assert terminal not in repr(everything)


def test_wrong_tokens_are_all_told_the_same(port: int, office: Database, clock: Clock) -> None:
    """No token, a wrong, revoked, expired one, one of who is out of service: one answer, and nothing is done."""
    revoked, expired = new_token(office, terminal_number(1), 9), new_token(office, terminal_number(1), 1)
    retired, disabled = new_token(office, terminal_number(2), 9), new_token(office, "issuer", 9)
    with office.write() as tx:
        tokens.revoke(tx, ADMIN, ENTERPRISE, tokens.listing(tx, ENTERPRISE)[0].token_id)
        registry.retire(tx, ADMIN, ENTERPRISE, terminal_number(2))
        operators.set_active(tx, ADMIN, ENTERPRISE, "issuer", active=False)
    clock.forward(tokens.DAY_MS)
    found = [call(port, "/v1/echo", one) for one in ("", "x", "x" * 200, revoked, expired, retired, disabled)]
    found += [call(port, "/v1/nothing", "x"), call(port, "/v1/big", "x", b"x" * 100_000)]
    assert {code for code, _ in found} == {401}
    assert len({json.dumps(body) for _, body in found}) == 1


def test_another_enterprises_token_is_wrong(port: int, office: Database) -> None:
    """A token is good in its own enterprise alone, even in one database."""
    other = Operator(7, "root", Role.ADMINISTRATOR)
    with office.write() as tx:
        registry.register(tx, other, 7, terminal_number(1), TerminalKind.RECHARGE, "one")
        token = tokens.add(tx, other, 7, terminal_number(1), 1, RANDOM.randbytes)[1]
    assert call(port, "/v1/echo", token)[0] == 401


def test_who_may_not_is_told_the_same_as_where_nothing_is(port: int, office: Database) -> None:
    """A right token that is not for a verb learns nothing about it: one 403."""
    till, finance = new_token(office, terminal_number(2)), new_token(office, "finance")
    found = [
        call(port, "/v1/echo", till), call(port, "/v1/echo", finance), call(port, "/v1/raise", finance),
        call(port, "/v1/nothing", till), call(port, "/", till), call(port, "/v1/echo/..", till),
    ]  # fmt: skip
    assert {code for code, _ in found} == {403}
    assert len({json.dumps(body) for _, body in found}) == 1


def test_too_many_wrong_tokens(port: int, office: Database) -> None:
    """After twenty wrong tokens an address is turned away; a right one still passes, or anybody could silence it."""
    token = new_token(office, terminal_number(1))
    codes = [call(port, "/v1/echo", f"wrong{n}")[0] for n in range(web.WRONG_TOKENS + 2)]
    assert codes == [401] * web.WRONG_TOKENS + [429] * 2
    assert call(port, "/v1/echo", token)[0] == 200


@pytest.mark.parametrize(
    ("what", "status", "kind", "code"),
    [
        ("refused", 409, "Refused", "limit"), ("mac", 422, "MacMismatch", "macmismatch"),
        ("missing", 404, "NotFound", "notfound"), ("busy", 503, "DatabaseError", "databaseerror"),
        ("form", 400, "FormatError", "formaterror"), ("bug", 500, "OneCardError", "bug"),
    ],
)  # fmt: skip
def test_errors_have_a_code_and_words(
    what: str, status: int, kind: str, code: str, port: int, office: Database
) -> None:
    """Each error of the house has its status and class; a fault of ours says nothing of the inside."""
    found = call(port, "/v1/raise", new_token(office, terminal_number(1)), {"what": what})
    words = "the office failed: see its log" if what == "bug" else str(RAISED[what])
    assert found == (status, {"error": {"kind": kind, "code": code, "message": words}})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 50_000, b'{"what": 1}', b'{"what": null}', b"\xff\xfe{}"])
def test_bad_bodies(body: bytes, port: int, office: Database) -> None:
    """What is no JSON object with the right fields is 400."""
    assert call(port, "/v1/raise", new_token(office, terminal_number(1)), body)[0] == 400


def test_giant_bodies_are_not_read(port: int, office: Database) -> None:
    """Above the verb's limit a body is refused, whether its length is told or comes in pieces."""
    token = new_token(office, terminal_number(1))
    assert call(port, "/v1/echo", token, b" " * (web.MAX_BODY + 1))[0] == 413
    assert call(port, "/v1/big", token, {"x": "y" * web.MAX_BODY})[0] == 200
    line = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST /v1/echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with line:
        line.sendall(head.encode() + (b"1000\r\n" + b" " * 0x1000 + b"\r\n") * 20)
        assert line.recv(4096).startswith(b"HTTP/1.1 413")


def test_slow_clients_are_hung_up_on(port: int, office: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a head nor a body that never ends keeps a connection."""
    monkeypatch.setattr(web, "HEAD_S", 0.2)
    monkeypatch.setattr(web, "BODY_S", 0.2)
    token = new_token(office, terminal_number(1))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(b"POST /v1/echo HT")
        assert not reset(line)
    head = f"POST /v1/echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(head.encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 408")


def test_operators_tokens_need_their_permission(office: Database) -> None:
    """Who does not manage terminals makes no token, and nobody makes one for who is not there."""
    finance = Operator(ENTERPRISE, "finance", Role.FINANCE)
    with office.write() as tx:
        with pytest.raises(Refused, match="may not do"):
            tokens.add(tx, finance, ENTERPRISE, terminal_number(1), 1, RANDOM.randbytes)
        for holder in (terminal_number(9), "nobody"):
            with pytest.raises(NotFound):
                tokens.add(tx, ADMIN, ENTERPRISE, holder, 1, RANDOM.randbytes)


def test_only_this_machine_without_tls_or_proxy() -> None:
    """Another address than this machine's needs a certificate or a proxy; behind one only the proxy is answered."""
    with pytest.raises(ConfigError, match="seen from elsewhere"):
        listen("0.0.0.0", 0)
    listen("0.0.0.0", 0, tls=True).close()
    listen("0.0.0.0", 0, "192.0.2.1").close()


def test_calls_around_the_proxy(office: Database) -> None:
    """Who does not come through the proxy is refused with his right token."""
    token = new_token(office, terminal_number(1))
    with running(http_server(Web(office, ENTERPRISE, VERBS, "192.0.2.1").app())) as port:
        assert call(port, "/v1/echo", token)[1]["error"]["code"] == "proxy"


def test_tls(office: Database, tmp_path: Path) -> None:
    """With a certificate calls come through TLS, and what is no certificate is refused at the start."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no certificate"):
        http_server(Web(office, ENTERPRISE, VERBS).app(), (key, cert))
    with running(http_server(Web(office, ENTERPRISE, VERBS).app(), (cert, key))) as port:
        line = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=20, context=ssl.create_default_context(cafile=str(cert))
        )
        token = new_token(office, terminal_number(1))
        line.request("POST", "/v1/echo", b"{}", {"Authorization": f"Bearer {token}"})
        assert line.getresponse().status == 200
        line.close()


def test_tokens_are_in_no_log(port: int, office: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a right nor a wrong token gets into the log."""
    caplog.set_level(logging.DEBUG)
    token = new_token(office, terminal_number(1))
    call(port, "/v1/raise", token, {"what": "bug"})
    call(port, "/v1/echo", token + "x")
    assert token not in caplog.text
