"""The HTTP interface: calls of terminals and operators, each with a token (issue 6).

A call is ``POST /v1/VERB`` with a JSON object and ``Authorization: Bearer TOKEN``; its answer is a JSON object, or
``{"error": {"kind", "code", "message"}}``. Verbs are plain functions that run in a thread: see :class:`Verb`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backoffice import tokens
from backoffice.database import Database
from backoffice.operators import PERMISSIONS, Permission
from backoffice.registry import TerminalKind
from backoffice.tokens import Caller
from cardlib.errors import (
    ConfigError,
    Conflict,
    DatabaseError,
    FormatError,
    MacMismatch,
    NotFound,
    OneCardError,
    Refused,
)

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

MAX_BODY = 64 << 10
"""Bytes of a call, unless its verb says otherwise."""
HEAD_S = 10
"""Who has not sent the head of a call by then is hung up on."""
BODY_S = 60
"""A body that takes longer is given up; whoever sends it comes again."""
WRONG_TOKENS, WRONG_MS = 20, 60_000
"""So many wrong tokens of one address within this time are told; more are only turned away."""
MAX_ADDRESSES = 10_000
THREADS = 64
"""Calls at work at a time. Those of issuing terminals wait for people: the others must never wait for them."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What JSON lets into a text and no database takes: zeros and halves of surrogate pairs."""
LOG = logging.getLogger(__name__)
STATUS: list[tuple[type[OneCardError], int]] = [
    (FormatError, 400), (NotFound, 404), (Conflict, 409), (Refused, 409), (MacMismatch, 422), (DatabaseError, 503),
]  # fmt: skip
Fields = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Verb:
    """What a call does: ``serve`` gets whose it is and its JSON object, in a thread of its own.

    ``kinds`` of terminals may call it, and operators with ``permission``; others get 403.
    """

    serve: Callable[[Caller, Fields], Fields]
    kinds: frozenset[TerminalKind] = frozenset()
    permission: Permission | None = None
    max_body: int = MAX_BODY

    def admits(self, caller: Caller) -> bool:
        """Whether this caller may."""
        if caller.operator is None:
            return caller.kind in self.kinds
        return self.permission in PERMISSIONS[caller.operator.role]


def field(fields: Fields, name: str, kind: type[T]) -> T:
    """A field of a call: text, whole number, true or false; ``bytes`` are hexadecimal. Raises FormatError."""
    value = fields.get(name)
    if kind is bytes and isinstance(value, str):
        try:
            value = bytes.fromhex(value)
        except ValueError:
            value = None
    if isinstance(value, str) and _NO_TEXT.search(value):
        value = None
    if type(value) is not kind:
        raise FormatError(f"{name}: {'hexadecimal text' if kind is bytes else kind.__name__} belongs here")
    return value


class Web:
    """The HTTP side for one enterprise. ``proxy``: the one address that may call, and says for whom it does."""

    def __init__(self, db: Database, enterprise_id: int, verbs: Mapping[str, Verb], proxy: str = "") -> None:
        self.db, self.enterprise_id, self.verbs, self.proxy = db, enterprise_id, verbs, proxy
        self._wrong: dict[str, list[int]] = {}
        self._pool = ThreadPoolExecutor(THREADS, "web")

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Work that waits for a database, or for a person at an issuing terminal."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        from starlette.applications import Starlette  # noqa: PLC0415  # the extra "web"
        from starlette.routing import Route  # noqa: PLC0415  # the extra "web"

        return Starlette(routes=[Route("/{path:path}", self.serve, methods=["GET", "POST", "PUT", "DELETE"])])

    async def serve(self, request: Request) -> Response:
        """Answer one call."""
        from starlette.requests import ClientDisconnect  # noqa: PLC0415  # the extra "web"
        from starlette.responses import JSONResponse  # noqa: PLC0415  # the extra "web"

        headers = {"Cache-Control": "no-store"}
        try:
            status, answer = await self._answer(request)
        except (ClientDisconnect, TimeoutError):
            status, answer = 408, told("FormatError", "slow", "the call was not complete in time")
        except OneCardError as e:
            status = next((code for kind, code in STATUS if isinstance(e, kind)), 500)
            code = e.reason if isinstance(e, Refused) else type(e).__name__.lower()
            answer = told(type(e).__name__, code, str(e))
        except Exception:  # a fault of ours: it goes to the log, its words to nobody else
            LOG.exception("a call failed: %s", request.url.path)
            status, answer = 500, told("OneCardError", "bug", "the office failed: see its log")
        if status in (401, 413, 408, 429):
            headers["Connection"] = "close"  # the rest of a body that was not read is nobody's next call
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(answer, status, headers)

    async def _answer(self, request: Request) -> tuple[int, Fields]:
        address = caller_address(request, self.proxy)
        try:
            token = _bearer(request.headers.get("Authorization", ""))
            caller = await self._in_thread(tokens.check, self.db, self.enterprise_id, token)
        except Refused:
            if self._too_many(address):
                return 429, told("Refused", "too_many", "too many wrong tokens: wait a minute")
            return 401, told("Refused", "token", "a token that is good here belongs in Authorization: Bearer")
        verb = self.verbs.get(request.url.path.removeprefix("/v1/"))
        if verb is None or not verb.admits(caller):
            return 403, told("Refused", "forbidden", "this token is not for this")
        if request.method != "POST":
            return 405, told("FormatError", "method", "calls are POST with a JSON object")
        body = await read_body(request, verb.max_body)
        if body is None:
            return 413, told("FormatError", "too_large", f"a body has at most {verb.max_body} bytes")
        return 200, await self._in_thread(verb.serve, caller, _object(body))

    def _too_many(self, address: str) -> bool:
        """Count a wrong token; whether there were too many of late. Right ones always pass: nobody guesses 32 bytes."""
        now = time.monotonic_ns() // 1_000_000
        seen = [at for at in self._wrong.pop(address, []) if now - at < WRONG_MS][-WRONG_TOKENS:]
        self._wrong[address] = [*seen, now]
        if len(self._wrong) > MAX_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        return len(seen) >= WRONG_TOKENS


def told(kind: str, code: str, message: str) -> Fields:
    """An error as callers get it: its class, its code, words for people."""
    return {"error": {"kind": kind, "code": code, "message": message}}


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not 1 <= len(token) <= 128:
        raise Refused("token", "no token")
    return token


def _object(body: bytes) -> Fields:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as e:
        raise FormatError("the body is no JSON") from e
    if not isinstance(found, dict):
        raise FormatError("the body is no JSON object")
    return found


# What any server of ours has: see also backoffice.adms


def caller_address(request: Request, proxy: str) -> str:
    """Where a call comes from. Raises Refused ``proxy`` when it went around the proxy."""
    peer = request.client.host if request.client else ""
    if not proxy:
        return peer
    if peer != proxy:
        raise Refused("proxy", "calls come through the proxy")
    return request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()


async def read_body(request: Request, limit: int, *, keep: bool = True) -> bytes | None:
    """The body of a call, empty when it is not kept, None when it is above the limit. Raises TimeoutError."""
    size, parts = 0, []
    async with asyncio.timeout(BODY_S):
        async for part in request.stream():
            size += len(part)
            if size > limit:
                return None
            if keep:
                parts.append(part)
    return b"".join(parts)


def listen(host: str, port: int, proxy: str = "", *, tls: bool = False) -> socket.socket:
    """A socket to serve on. Raises ConfigError beyond this machine with neither TLS nor a proxy before it; OSError."""
    try:
        address = ip_address(host)
        if proxy:
            ip_address(proxy)
    except ValueError as e:
        raise ConfigError("the server's and the proxy's address are written as numbers, such as 127.0.0.1") from e
    if not address.is_loopback and not proxy and not tls:
        raise ConfigError(f"{host} is seen from elsewhere: put a TLS proxy before it and give --behind-proxy ADDRESS")
    line = socket.create_server((host, port), family=socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    # Every connection inherits it; asyncio sets it only on sockets that say which protocol they are.
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def http_server(app: ASGIApp, tls: tuple[Path, Path] | None = None) -> uvicorn.Server:
    """What serves an application; ``tls`` is its certificate and key. Raises ConfigError without the extra."""
    try:
        import uvicorn  # noqa: PLC0415  # the extra "web"
        from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415  # likewise
    except ImportError as e:
        raise ConfigError('the server needs the extra "web": install onecard[web]') from e

    class Impatient(H11Protocol):
        """Hangs up on who does not come to the end of a call's head: uvicorn would wait for ever."""

        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self.access_log = False  # whatever handlers the root logger has
            self._watch(waiting=True)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch(waiting=False)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch(waiting=getattr(self.cycle, "response_complete", True))

        def _watch(self, *, waiting: bool) -> None:
            if waiting and self.late is None:
                self.late = self.loop.call_later(HEAD_S, self.transport.abort)
            elif not waiting and self.late is not None:
                self.late.cancel()
                self.late = None

    certificate, key = tls or (None, None)
    # Addresses and serial numbers are personal enough: no access log. X-Forwarded-For is read by our own rule.
    config = uvicorn.Config(
        app, http=Impatient, log_config=None, access_log=False, proxy_headers=False, server_header=False,
        lifespan="off", ws="none", limit_concurrency=512, timeout_keep_alive=75, timeout_graceful_shutdown=10,
        ssl_certfile=certificate, ssl_keyfile=key,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ValueError) as e:  # ssl's errors are OSErrors
        raise ConfigError(f"{certificate} and {key} are no certificate and its key: {e}") from e
    return uvicorn.Server(config)
