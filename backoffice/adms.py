"""Server for third-party attendance terminals that push over HTTP, ADMS or iclock (terminals.md, ADMS in brief).

Nothing authenticates such a terminal but its serial number, so each is approved by name and may be tied to an address;
what it says is marked unverified. Only punches are kept: all else it uploads (people, passwords, templates, photos) is
read, dropped and answered OK. An upload is answered after its commit, because it comes until it is answered.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from backoffice import attendance, audit
from backoffice.attendance import Reported
from backoffice.audit import Event
from backoffice.database import Database, Tx
from backoffice.operators import Operator, Permission, require
from backoffice.web import caller_address, http_server, read_body
from cardlib.errors import ConfigError, DatabaseError, FormatError, NotFound, Refused

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_UPLOAD = 4 << 20
"""Bytes of one post of punches: more than 60 000 of them."""
MAX_DROPPED = 64 << 20
"""Bytes of one post of what is not kept, such as photos: it is read and forgotten piece by piece."""
SMALL = 4096
"""Bytes of a post that is committed at once, not in a thread."""
MAX_BAD = 1000
"""Bad lines kept of a device; more of them tell nothing new."""
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_STAMP = re.compile(r"[\x21-\x7e]{1,32}")
_PIN, _NUMBER, _WORK = rb"[A-Za-z0-9._-]{1,24}", rb"\d{1,5}", rb"[\x20-\x7e]{0,32}"
_TIME = rb"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
_MORE = rb"\t[^\t]{0,64}"
_LINE = re.compile(
    rb"(%b)\t(%b)\t(%b)\t(%b)\t(%b)(?:(?:%b){2}(?:(?:%b){3})?)?" % (_PIN, _TIME, _NUMBER, _NUMBER, _WORK, _MORE, _MORE)
)
_FIELDS = (("PIN", _PIN), ("time", _TIME), ("status", _NUMBER), ("verify mode", _NUMBER), ("work code", _WORK))


class Device(NamedTuple):
    """A terminal as approved. ``network``: where it calls from, empty for anywhere; ``stamp``: its own cursor."""

    device: str
    name: str
    state: str
    network: str
    stamp: str


class BadLine(NamedTuple):
    """A line that is no punch, without what may be secret in it."""

    digest: bytes
    cause: str
    line: str


class Upload(NamedTuple):
    """What a post of punches holds; ``lines`` counts all of them, as the answer does."""

    lines: int
    punches: list[Reported]
    bad: list[BadLine]


def approve(tx: Tx, actor: Operator, enterprise_id: int, device: str, name: str, network: str = "") -> None:
    """Let a terminal upload, from an address or network or from anywhere; the same again changes nothing.

    Raises Refused, FormatError, ConfigError for an address that is none.
    """
    require(actor, Permission.TERMINAL_MANAGE, enterprise_id)
    if not _DEVICE.fullmatch(device):
        raise FormatError("a serial number has 1 to 32 of A-Z a-z 0-9 _ -")
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise FormatError("a name has 1 to 64 printable characters")
    try:
        network = str(ip_network(network)) if network else ""
    except ValueError as e:
        raise ConfigError(f"{network} is no address or network, such as 192.0.2.7 or 192.0.2.0/24") from e
    tx.execute(
        "INSERT INTO adms_device (enterprise_id, device, name, state, network, stamp, created_ms, changed_ms)"
        " VALUES (?, ?, ?, 'approved', ?, '', ?, ?) ON CONFLICT (enterprise_id, device) DO UPDATE"
        " SET name = excluded.name, state = 'approved', network = excluded.network, changed_ms = excluded.changed_ms",
        (enterprise_id, device, name, network, tx.now_ms, tx.now_ms),
    )
    audit.record(tx, enterprise_id, Event.TERMINAL_REGISTERED, actor.name, f"device:{device}", kind="adms")


def retire(tx: Tx, actor: Operator, enterprise_id: int, device: str) -> None:
    """Refuse a terminal from now on; what it said stays. Raises Refused, NotFound."""
    require(actor, Permission.TERMINAL_MANAGE, enterprise_id)
    changed = tx.execute(
        "UPDATE adms_device SET state = 'retired', changed_ms = ? WHERE enterprise_id = ? AND device = ?",
        (tx.now_ms, enterprise_id, device),
    ).rowcount
    if not changed:
        raise NotFound(f"no device {device} was approved")
    audit.record(tx, enterprise_id, Event.TERMINAL_CHANGED, actor.name, f"device:{device}", state_to="retired")


def devices(tx: Tx, enterprise_id: int) -> list[Device]:
    """All terminals that were ever approved."""
    columns = ", ".join(Device._fields)
    rows = tx.all(f"SELECT {columns} FROM adms_device WHERE enterprise_id = ? ORDER BY device", (enterprise_id,))
    return [Device(*row) for row in rows]


def bad_lines(tx: Tx, enterprise_id: int) -> list[dict[str, str]]:
    """Lines kept aside, newest last: device, cause, line."""
    rows = tx.all(
        "SELECT device, cause, line FROM adms_bad_line WHERE enterprise_id = ? ORDER BY received_ms, device, digest",
        (enterprise_id,),
    )
    return [dict(zip(row.keys(), row, strict=True)) for row in rows]


def require_approved(tx: Tx, enterprise_id: int, device: str, address: str) -> Device:
    """The terminal when it may talk from where it does. Raises Refused ``device``."""
    columns = ", ".join(Device._fields)
    row = tx.one(f"SELECT {columns} FROM adms_device WHERE enterprise_id = ? AND device = ?", (enterprise_id, device))
    known = Device(*row) if row else None
    if known is None or known.state != "approved" or not _within(address, known.network):
        raise Refused("device", "this serial number is not approved here")
    return known


def _within(address: str, network: str) -> bool:
    if not network:
        return True
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found) in ip_network(network)


def parse(device: str, body: bytes) -> Upload:
    """Read a post of punches, whatever is in it: a line is a punch or a bad one; empty ones are none."""
    source, punches, bad, lines = f"adms:{device}", [], [], 0
    for raw in body.split(b"\n"):
        line = raw.rstrip(b"\r")
        if not line:
            continue
        lines += 1
        match = _LINE.fullmatch(line)
        if match:
            pin, at, status, verify, work = match.groups()
            when = at.decode()
            if int(status) <= 0xFF and int(verify) <= 0xFFFF and _is_time(when):
                punches.append(
                    Reported(f"pin:{pin.decode()}", when, source, int(status), int(verify), 0, work.decode())
                )
                continue
        bad.append(BadLine(sha256(line).digest(), _cause(line), _harmless(line)))
    return Upload(lines, punches, bad)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _cause(line: bytes) -> str:
    fields = line.split(b"\t")
    if len(fields) not in (5, 7, 10):
        return f"{len(fields)} fields where 5, 7 or 10 belong"
    for (name, pattern), value in zip(_FIELDS, fields, strict=False):
        if not re.fullmatch(pattern, value):
            return f"the {name} is wrong"
    if not _is_time(fields[1].decode()):
        return "there is no such time"
    return "a number or a field is too large"


def _harmless(line: bytes) -> str:
    """The line for people to look at, without what stands behind an = sign and without long fields.

    So a password or template that was sent in the wrong place is not kept (terminals.md).
    """
    fields = []
    for field in line[:4096].decode("ascii", "replace").split("\t")[:12]:
        name, equals, _ = field.partition("=")
        shown = name + equals if equals else field
        fields.append(shown if len(shown) <= 32 and shown.isprintable() else f"({len(field)} characters)")
    return "\t".join(fields)


def take(db: Database, enterprise_id: int, device: str, address: str, stamp: str, upload: Upload) -> int:
    """Commit an upload; returns how many punches were new. Raises Refused ``device``, DatabaseError."""
    with db.write() as tx:
        known = require_approved(tx, enterprise_id, device, address)
        new = attendance.keep(tx, enterprise_id, upload.punches)
        if upload.bad:
            _keep_aside(tx, enterprise_id, device, upload.bad)
        if stamp != known.stamp and _STAMP.fullmatch(stamp):
            tx.execute(
                "UPDATE adms_device SET stamp = ? WHERE enterprise_id = ? AND device = ?",
                (stamp, enterprise_id, device),
            )
    return new


def _keep_aside(tx: Tx, enterprise_id: int, device: str, bad: list[BadLine]) -> None:
    kept = "SELECT COUNT(*) FROM adms_bad_line WHERE enterprise_id = ? AND device = ?"
    room = max(0, MAX_BAD - int(tx.value(kept, (enterprise_id, device))))
    tx.executemany(
        "INSERT INTO adms_bad_line (enterprise_id, device, digest, cause, line, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        ((enterprise_id, device, *one, tx.now_ms) for one in list({b.digest: b for b in bad}.values())[:room]),
    )


def options(device: Device, offset_min: int) -> str:
    """What a terminal is told when it calls for the first time: punches at once, and nothing but punches."""
    zone = offset_min // 60 if offset_min % 60 == 0 else offset_min
    lines = (
        f"GET OPTION FROM: {device.device}", f"ATTLOGStamp={device.stamp or 0}", "OPERLOGStamp=9999",
        "ATTPHOTOStamp=9999", "ErrorDelay=60", "Delay=30", "TransTimes=00:00;14:05", "TransInterval=1",
        "TransFlag=TransData AttLog", f"TimeZone={zone}", "Realtime=1", "Encrypt=None",
    )  # fmt: skip
    return "\n".join(lines) + "\n"


class Server:
    """The HTTP side, for one enterprise. ``proxy``: the one address that may call, and says for whom it does."""

    def __init__(self, db: Database, enterprise_id: int, offset_min: int, proxy: str = "") -> None:
        self.db, self.enterprise_id, self.offset_min, self.proxy = db, enterprise_id, offset_min, proxy
        self._seen: set[str] = set()

    def app(self) -> Starlette:
        """The application, for any ASGI server."""
        from starlette.applications import Starlette  # noqa: PLC0415  # the extra "web"
        from starlette.routing import Route  # noqa: PLC0415  # the extra "web"

        return Starlette(routes=[Route("/iclock/{name:path}", self.serve, methods=["GET", "POST"])])

    async def serve(self, request: Request) -> Response:
        """Answer one call of a terminal."""
        from starlette.requests import ClientDisconnect  # noqa: PLC0415  # the extra "web"
        from starlette.responses import PlainTextResponse  # noqa: PLC0415  # the extra "web"

        name = request.path_params["name"].rstrip("/").removesuffix(".aspx")
        try:
            code, text = await self._answer(request, name)
        except Refused:
            code, text = 403, "not approved"
        except (ClientDisconnect, TimeoutError):
            code, text = 408, "the upload was not complete"
        except DatabaseError:
            code, text = 503, "later"  # the terminal keeps its records and comes again
        return PlainTextResponse(text, code)

    async def _answer(self, request: Request, name: str) -> tuple[int, str]:
        query, post = request.query_params, request.method == "POST"
        if (name, post) not in {
            ("cdata", False), ("cdata", True), ("getrequest", False), ("devicecmd", True), ("ping", False),
            ("ping", True),
        }:  # fmt: skip
            return 404, "there is nothing here"
        number, address = query.get("SN", ""), caller_address(request, self.proxy)
        punches = post and name == "cdata" and query.get("table", "").upper() == "ATTLOG"
        if not punches or number not in self._seen:  # a stranger's body is not read; who was here is asked in take()
            with self.db.read() as tx:
                device = require_approved(tx, self.enterprise_id, number, address)
            self._seen.add(number)
            if not post:
                return 200, options(device, self.offset_min) if name == "cdata" else "OK"
        body = await read_body(request, MAX_UPLOAD if punches else MAX_DROPPED, keep=punches)
        if body is None:
            return 413, "too large"
        if not punches:
            return 200, "OK"
        upload = parse(number, body)
        arguments = (self.db, self.enterprise_id, number, address, query.get("Stamp", ""), upload)
        if len(body) <= SMALL:  # a hand-over to a thread takes longer than what it would keep from waiting
            take(*arguments)
        else:
            await asyncio.to_thread(take, *arguments)
        return 200, f"OK: {upload.lines}"


def web_server(server: Server) -> uvicorn.Server:
    """What serves it. Raises ConfigError without the extra."""
    return http_server(server.app())
