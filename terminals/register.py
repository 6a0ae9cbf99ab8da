"""A cash register drives the till: one JSON object a line over TCP or any stream, one answer each (terminals.md, POS).

{"do": "sale", "number": "A17", "amount_fen": 1250}    a second time with this number: the same answer, paid once
{"do": "sale", "number": "A18", "items": [["101", 2]], "meals": 1, "units": 0, "seconds": 0}
{"do": "undo", "number": "A18"}                        the sale's number, while it is the till's last payment
{"do": "status"}                                       shift, list, what is waiting
{"do": "close", "shift": 3}                            Z totals; a second time: the same

Answers have "ok", "code" and the words for people ("zh", "en"); "number" as it was asked. A sale waits for its card.
There is no sign-on: listen on this machine or on a line of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import BufferedIOBase
from queue import Empty, SimpleQueue
from socket import IPPROTO_TCP, TCP_NODELAY
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

from cardlib.errors import (
    Conflict,
    FormatError,
    NotFound,
    OneCardError,
    OutcomeUnknown,
    ReaderLost,
    Refused,
    TransportError,
)
from cardlib.serialport import SerialPort
from terminals.journal import JobState
from terminals.pos import Pos
from terminals.prices import Charge
from terminals.reasons import BY_CODE, Reason
from terminals.runtime import SAID, CardSource, Receipt

MAX_LINE = 1 << 16
MAX_NUMBER = 64
_KEYS = {
    "sale": {"do", "number", "amount_fen", "items", "meals", "units", "seconds"},
    "undo": {"do", "number"},
    "status": {"do"},
    "close": {"do", "shift"},
}
_OTHERS: list[tuple[type[OneCardError], str, str]] = [
    (OutcomeUnknown, "in_doubt", "交易待核"),
    (TransportError, "no_card", "未刷卡"),
    (FormatError, "bad_request", "请求有误"),
    (Conflict, "conflict", "流水号已用"),
    (NotFound, "not_found", "无此流水号"),
    (OneCardError, "fault", "终端故障"),
]
"""What is no refusal: a sale in doubt is asked again with its number, after ``no_card`` nothing was taken."""


class Register:
    """The till as a cash register sees it; one request at a time, whoever asks."""

    def __init__(self, pos: Pos, cards: CardSource, pin: Callable[[], str | None] | None = None) -> None:
        self._pos = pos
        self._cards = cards
        self._pin = pin
        self._one = threading.Lock()

    def answer(self, line: bytes) -> bytes:
        """The answer to one line, with its line end; never raises what a request can cause."""
        number: object = None
        try:
            request = _request(line)
            number = request.get("number")
            with self._one:
                act = {"sale": self._sale, "undo": self._undo, "status": self._status, "close": self._close}
                found = {"ok": True, **act[request["do"]](request)}
        except Refused as e:
            reason = BY_CODE.get(e.reason)
            found = {"ok": False, "code": e.reason, "zh": reason.zh if reason else "拒绝", "en": str(e)}
        except OneCardError as e:
            code, zh = next((code, zh) for kind, code, zh in _OTHERS if isinstance(e, kind))
            found = {"ok": False, "code": code, "zh": zh, "en": str(e)}
        if number is not None:
            found["number"] = number
        # half a surrogate pair in what was asked goes back as the JSON escape that it came as
        return json.dumps(found, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

    def talk(self, lines: BufferedIOBase, answers: BufferedIOBase) -> None:
        """Answer line after line until the stream ends or a line is longer than 64 KiB."""
        while line := lines.readline(MAX_LINE + 1):
            answers.write(self.answer(line))
            answers.flush()
            if len(line) > MAX_LINE:
                return

    def _sale(self, request: dict[str, Any]) -> dict[str, Any]:
        number, charge = _number(request), _charge(request)
        receipt = self._pos.known_sale(number, charge) or self._pos.serve(
            self._cards, lambda card: self._pos.pay(card, charge, number, self._pin)
        )
        return self._told(receipt)

    def _undo(self, request: dict[str, Any]) -> dict[str, Any]:
        number, journal = _number(request), self._pos.journal
        paid, last = journal.sale(number), journal.last_payment()
        if paid is None:
            raise NotFound(f"this till has no sale {number}")
        undo = journal.undo_of(paid)
        if undo is not None and undo.state is JobState.DONE:
            return self._told(self._pos.receipt(undo, recovered=True))
        if undo is None and (last is None or last[0].id != paid.id):
            raise Reason.NOTHING_TO_UNDO.refusal(f"sale {number} is not the last payment")
        return self._told(self._pos.serve(self._cards, self._pos.undo_last))

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        journal, lists = self._pos.journal, self._pos.lists
        return {
            "code": "status",
            "terminal": journal.terminal.hex().upper(),
            "shift": journal.shift,
            "list_version": lists.version,
            "waiting": [job.sale or str(job.id) for job in journal.open_jobs()],
        }

    def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        shift, journal = request.get("shift"), self._pos.journal
        if type(shift) is not int:
            raise FormatError("close needs the number of the shift (status tells it)")
        if not 0 < shift <= journal.last_shift:
            raise NotFound(f"there is no shift {shift}")
        if journal.shift == shift:
            self._pos.close_shift()
        totals = [
            {"what": operation.value, "purse": purse.name.lower(), "count": count, "fen": fen}
            for operation, purse, count, fen in journal.moved(shift)
        ]
        return {"code": "closed", "shift": shift, "totals": totals}

    def _told(self, receipt: Receipt) -> dict[str, Any]:
        say, job = SAID[receipt.job.operation], receipt.job
        return {
            "code": say.name.lower() if receipt.amount_fen == job.amount_fen else "partly",
            "zh": say.zh,
            "en": say.en,
            "amount_fen": receipt.amount_fen,
            "balance_fen": receipt.balance_fen,
            "card": job.card_serial.hex().upper(),
            "tac": [move.tac.hex().upper() for move in receipt.moves],
        }


def _request(line: bytes) -> dict[str, Any]:
    try:
        if len(line) > MAX_LINE:
            raise FormatError(f"a line has at most {MAX_LINE} bytes")
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the line is no JSON: {e}") from None
    if not isinstance(found, dict) or not isinstance(what := found.get("do"), str) or what not in _KEYS:
        raise FormatError(f"a request is an object whose do is one of {', '.join(_KEYS)}")
    if unknown := sorted(found.keys() - _KEYS[what]):
        raise FormatError(f"{what} knows no {unknown[0]!r}")
    return found


def _number(request: dict[str, Any]) -> str:
    number = request.get("number")
    if not isinstance(number, str) or not number.isprintable() or not 0 < len(number.encode()) <= MAX_NUMBER:
        raise FormatError(f"number is a text of 1 to {MAX_NUMBER} bytes")
    return number


def _charge(request: dict[str, Any]) -> Charge:
    counts = [request.get(key, 0) for key in ("meals", "units", "seconds")]
    items = request.get("items", [])
    pairs = isinstance(items, list) and all(
        isinstance(item, list) and len(item) == 2 and type(item[0]) is str and type(item[1]) is int for item in items
    )
    amounts = [request["amount_fen"]] if "amount_fen" in request else []
    if not pairs or any(type(value) is not int for value in (*counts, *amounts)):
        raise FormatError('amounts and counts are whole numbers, items are like [["101", 2]]')
    return Charge(tuple(amounts), counts[0], tuple((code, count) for code, count in items), counts[1], counts[2])


class InTurn(Register):
    """The same for a process with one loop: whoever sends a line waits until ``turn`` has answered it."""

    def __init__(self, pos: Pos, cards: CardSource, pin: Callable[[], str | None] | None = None) -> None:
        super().__init__(pos, cards, pin)
        self._asked: SimpleQueue[tuple[bytes, SimpleQueue[bytes]]] = SimpleQueue()

    def answer(self, line: bytes) -> bytes:
        """See :class:`Register`."""
        reply: SimpleQueue[bytes] = SimpleQueue()
        self._asked.put((line, reply))
        return reply.get()

    def turn(self) -> None:
        """Answer what was asked, if anything was."""
        with suppress(Empty):
            line, reply = self._asked.get_nowait()
            reply.put(super().answer(line))

    def listen(self, port: int | None, serial: str, baud: int) -> Callable[[], None]:
        """Let registers ask, on a port of this machine and a serial port; what is returned ends it. Raises OSError."""
        with ExitStack() as stack:
            if port:
                server = stack.enter_context(RegisterServer(self, ("127.0.0.1", port)))
                threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
                stack.callback(server.shutdown)
            if serial:
                line = SerialLine(self, serial, baud)
                line.start()
                stack.callback(line.stop)
            return stack.pop_all().close


class RegisterServer(ThreadingTCPServer):
    """Listens for cash registers; ``server_address`` says where. Use as a context manager, run ``serve_forever``."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, register: Register, address: tuple[str, int]) -> None:
        self.register = register
        super().__init__(address, _Line)


class _Line(StreamRequestHandler):
    server: RegisterServer

    def handle(self) -> None:
        self.connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        with suppress(OSError):  # the register hung up: it asks again with its number
            self.server.register.talk(self.rfile, self.wfile)


class SerialLine(threading.Thread):
    """A cash register on a serial port, until ``stop``; a port that is lost is looked for again."""

    def __init__(self, register: Register, url: str, baud: int) -> None:
        super().__init__(daemon=True)
        self._register, self._url, self._baud = register, url, baud
        self._over = threading.Event()

    def run(self) -> None:
        """Answer line after line."""
        while not self._over.is_set():
            try:
                port = SerialPort(self._url, self._baud)
                try:
                    self._talk(port)
                finally:
                    port.close()
            except ReaderLost:
                self._over.wait(1)

    def _talk(self, port: SerialPort) -> None:
        raw = b""
        while not self._over.is_set():
            raw += port.read()
            line, newline, rest = raw.partition(b"\n")
            if newline or len(raw) > MAX_LINE:
                raw = rest
                port.write(self._register.answer(line))
            else:
                self._over.wait(0.01)

    def stop(self) -> None:
        """Let the port go."""
        self._over.set()
        self.join(5)
