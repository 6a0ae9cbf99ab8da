"""The back office over HTTP: what a terminal asks its host, which holds keys that no terminal has (card.md §4.2).

Every call may be repeated, so one whose answer was lost is: at once over a fresh connection, later by whoever asked.
"""

from __future__ import annotations

import http.client
import json
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from cardlib.errors import (
    ConfigError,
    Conflict,
    FormatError,
    MacMismatch,
    NotFound,
    OneCardError,
    Refused,
    TransportError,
)
from cardlib.profile import Purpose, TransactionType
from cardlib.records import Transaction
from cardlib.sam import LoadInit, SamInfo
from terminals.journal import Journal
from terminals.reasons import Reason
from terminals.runtime import undo_request

TIMEOUT_S = 10
MAX_ANSWER = 1 << 20
JOURNAL_ENTRIES = 2000
"""Entries of the journal that are sent at a time."""
_ERRORS: dict[str, type[OneCardError]] = {
    "FormatError": FormatError, "NotFound": NotFound, "Conflict": Conflict, "MacMismatch": MacMismatch,
}  # fmt: skip
_REASONS = {
    "purse_limit": Reason.MAXIMUM_BALANCE, "recharge_limit": Reason.LOAD_LIMIT, "void_balance": Reason.VOID_BALANCE,
}  # fmt: skip
"""Refusals of the office that terminals have a word of their own for."""


class HttpOffice:
    """``terminals.runtime.Office`` at a URL. ``token`` says which terminal this is, ``sam`` whose SAM is in it.

    Raises ConfigError for a URL that would send the token in the clear beyond this machine, or a bad CA file.
    """

    def __init__(self, url: str, token: str, sam: SamInfo, journal: Journal, ca: Path | None = None) -> None:
        self._made = url, token, sam, journal, ca
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"office_url is like https://office.example:8443, not {url}")
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise ConfigError(f"office_url: {parts.hostname} is another machine: write https://")
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = _context(ca) if parts.scheme == "https" else None
        self._token, self._journal = token, journal
        self._line: http.client.HTTPConnection | None = None
        self.host = HttpHost(self, sam, "")

    def __repr__(self) -> str:
        return f"<HttpOffice {self._host}>"

    def another(self) -> HttpOffice:
        """A line of its own to the same office: each is of one thread at a time."""
        return HttpOffice(*self._made)

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def loading(self, request_id: str) -> HttpHost:
        """See ``terminals.runtime.Office``."""
        return HttpHost(self, self.host.info(), request_id)

    def allow_load(self, card_serial: bytes, amount_fen: int, request_id: str, shift: int) -> None:
        """See ``terminals.runtime.Office``."""
        self.call(
            "load/allow", card_serial=card_serial.hex(), amount_fen=amount_fen, request_id=request_id, shift=shift
        )

    def allow_undo(self, paid: Transaction) -> None:
        """See ``terminals.runtime.Office``; the books know a payment once the journal is there."""
        self.send_journal()
        given = self.call("undo/allow", origin=paid.origin.hex())
        if given.get("request_id") != undo_request(paid):
            raise FormatError("the office allows another undo than was asked for")

    def redeem(self, card_serial: bytes, number: str, secret: str) -> int:
        """See ``terminals.runtime.Office``."""
        return _fen(self.call("voucher/redeem", card_serial=card_serial.hex(), number=number, secret=secret))

    def claim(self, card_serial: bytes, balance_fen: int) -> tuple[str, int]:
        """See ``terminals.runtime.Office``."""
        given = self.call("subsidy/claim", card_serial=card_serial.hex(), balance_fen=balance_fen)
        return str(given.get("request_id", "")), _fen(given)

    def send_journal(self) -> int:
        """Send what the office does not have of the journal; returns the last sequence it has."""
        while True:
            file = self._journal.collect(count=JOURNAL_ENTRIES)
            if not file.entries:
                return self._journal.acked_seq
            self.call("journal", file=file.encode().hex())
            self._journal.ack(file.entries[-1].seq)

    def call(self, verb: str, **fields: str | int) -> dict[str, Any]:
        """One call. Raises what the office's error is; Refused ``token``; TransportError when it is away or busy."""
        body = json.dumps(fields).encode()
        status, raw = self._ask(verb, body)
        try:
            answer = json.loads(raw)
            if status == http.HTTPStatus.OK and isinstance(answer, dict):
                return answer
            error = answer["error"]
            kind, code, message = str(error["kind"]), str(error["code"]), str(error["message"])
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise TransportError(f"{self._host} answers {status} in no words of the office") from e
        if kind == "Refused":
            reason = _REASONS.get(code)
            raise reason.refusal(message) if reason else Refused(code, message)
        raise _ERRORS.get(kind, TransportError)(message)

    def _ask(self, verb: str, body: bytes) -> tuple[int, bytes]:
        fresh = self._line is None
        try:
            return self._once(verb, body)
        except TimeoutError as e:
            self.close()
            raise TransportError(f"the office at {self._host} does not answer") from e
        except (OSError, http.client.HTTPException) as e:
            self.close()
            if fresh:
                raise TransportError(f"the office at {self._host} can't be reached: {type(e).__name__}") from e
        return self._ask(verb, body)  # a line that was kept open too long

    def _once(self, verb: str, body: bytes) -> tuple[int, bytes]:
        if self._line is None:
            if self._tls is None:
                self._line = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            else:
                self._line = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._tls)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        self._line.request("POST", f"{self._path}/v1/{verb}", body, headers)
        answer = self._line.getresponse()
        raw = answer.read(MAX_ANSWER + 1)
        if len(raw) > MAX_ANSWER:
            raise http.client.LineTooLong("answer")
        return answer.status, raw


class HttpHost:
    """The office's keys as ``cardlib.sam.Host``, as far as a terminal may ask for them; its SAM is the terminal's."""

    open_seq = None

    def __init__(self, office: HttpOffice, sam: SamInfo, request_id: str) -> None:
        self._office, self._sam, self._request_id = office, sam, request_id

    def info(self) -> SamInfo:
        """The terminal's own SAM: moves at this terminal are recorded under it."""
        return self._sam

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See ``cardlib.sam.Sam``: as RECHARGE only."""
        if purpose is not Purpose.RECHARGE:
            self._not_here()
        return self._bytes(
            "host/authenticate", "cryptogram", 8, factor=factor.hex(), version=version, challenge=challenge.hex()
        )

    def load_mac2(
        self, init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes, when: bytes, factor: bytes
    ) -> bytes:
        """See ``cardlib.sam.Host``, for the load that was allowed."""
        if terminal != self._sam.terminal:
            raise FormatError("the office computes loads for this terminal alone")
        return self._bytes(
            "host/load-mac2", "mac2", 4, request_id=self._request_id, init=init.encode().hex(), amount_fen=amount_fen,
            kind=int(kind), when=when.hex(), factor=factor.hex(),
        )  # fmt: skip

    def verify_tac(self, factor: bytes, version: int, algorithm: int, data: bytes, tac: bytes) -> None:
        """See ``cardlib.sam.Host``, of the load that was allowed."""
        self._office.call(
            "host/verify-tac", request_id=self._request_id, factor=factor.hex(), version=version, algorithm=algorithm,
            data=data.hex(), tac=tac.hex(),
        )  # fmt: skip

    def holds(self, purpose: Purpose) -> bool:
        """See ``cardlib.sam.Host``."""
        return purpose in (Purpose.RECHARGE, Purpose.LOAD, Purpose.TAC)

    def _bytes(self, verb: str, name: str, size: int, **fields: str | int) -> bytes:
        answer = self._office.call(verb, **fields)
        try:
            found = bytes.fromhex(answer[name])
        except (KeyError, TypeError, ValueError) as e:
            raise FormatError(f"the office gives no {name}") from e
        if len(found) != size:
            raise FormatError(f"the office gives a {name} of {len(found)} bytes")
        return found

    def _not_here(self, *_: object, **__: object) -> NoReturn:
        """What a terminal asks its own SAM for, or nobody."""
        raise Refused("key_usage", "the office does not do this for a terminal")

    card_answer = purchase_mac1 = verify_mac2 = refund_mac2 = unload_mac2 = verify_mac3 = protect = _not_here


def _fen(answer: dict[str, Any]) -> int:
    amount_fen = answer.get("amount_fen")
    if type(amount_fen) is not int or amount_fen <= 0:
        raise FormatError("the office gives no amount")
    return amount_fen


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ValueError) as e:  # ssl's errors are OSErrors
        raise ConfigError(f"office_ca: {ca} holds no certificate: {e}") from e
