"""Tokens of the HTTP interface: 32 random bytes, shown once and kept as SHA-256, of one terminal or operator."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from backoffice import audit, operators, registry
from backoffice.audit import Event
from backoffice.database import Database, Tx
from backoffice.operators import Operator, Permission, require
from backoffice.registry import TerminalKind
from cardlib.errors import FormatError, NotFound, Refused

MAX_DAYS = 3650
DAY_MS = 86_400_000
USE_NOTED_MS = 60_000
"""The last use is known to a minute: a write for each call would cost more than the call."""


class Token(NamedTuple):
    """A token as listed, without anything of its value."""

    token_id: str
    terminal: bytes | None
    operator: str | None
    made_by: str
    created_ms: int
    expires_ms: int
    revoked_ms: int | None
    used_ms: int | None


class Caller(NamedTuple):
    """Whose token a call came with: a terminal in use with its kind, or an operator in his role."""

    token_id: str
    enterprise_id: int
    terminal: bytes
    kind: TerminalKind | None
    operator: Operator | None

    @property
    def name(self) -> str:
        """For the audit log."""
        return self.operator.name if self.operator else f"terminal {self.terminal.hex().upper()}"


def add(
    tx: Tx, actor: Operator, enterprise_id: int, holder: bytes | str, days: int, random_bytes: Callable[[int], bytes]
) -> tuple[str, str]:
    """Make a token for a terminal (its number) or an operator (his name): its id, and the token itself, once.

    Raises Refused, NotFound, FormatError.
    """
    require(actor, Permission.TERMINAL_MANAGE, enterprise_id)
    if not 1 <= days <= MAX_DAYS:
        raise FormatError(f"a token is good for 1 to {MAX_DAYS} days, not {days}")
    terminal, operator = (holder, None) if isinstance(holder, bytes) else (None, holder)
    if terminal is not None and registry.get(tx, enterprise_id, terminal).state != "active":
        raise Refused("terminal_state", f"terminal {terminal.hex()} is out of service")
    if operator is not None:
        if actor[:2] != (enterprise_id, operator):
            require(actor, Permission.OPERATOR_MANAGE, enterprise_id)
        operators.get(tx, enterprise_id, operator)
    token = urlsafe_b64encode(random_bytes(32)).decode().rstrip("=")
    token_id, expires_ms = tx.new_id(), tx.now_ms + days * DAY_MS
    tx.execute(
        "INSERT INTO web_token (enterprise_id, token_id, digest, terminal, operator, made_by, created_ms, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (enterprise_id, token_id, _digest(token), terminal, operator, actor.name, tx.now_ms, expires_ms),
    )
    whose = {"operator": operator} if operator else {"terminal": terminal.hex().upper()} if terminal else {}
    audit.record(tx, enterprise_id, Event.WEB_ACCESS, actor.name, f"token:{token_id}", state_to="made", **whose)
    return token_id, token


def revoke(tx: Tx, actor: Operator, enterprise_id: int, token_id: str) -> None:
    """Refuse a token from now on; again changes nothing. Raises Refused, NotFound."""
    require(actor, Permission.TERMINAL_MANAGE, enterprise_id)
    where, key = "WHERE enterprise_id = ? AND token_id = ?", (enterprise_id, token_id)
    row = tx.one(f"SELECT revoked_ms FROM web_token {where}", key)
    if row is None:
        raise NotFound(f"there is no token {token_id}: see `onecard web token list`")
    if row["revoked_ms"] is None:
        tx.execute(f"UPDATE web_token SET revoked_ms = ? {where}", (tx.now_ms, *key))
        audit.record(tx, enterprise_id, Event.WEB_ACCESS, actor.name, f"token:{token_id}", state_to="revoked")


def listing(tx: Tx, enterprise_id: int) -> list[Token]:
    """All tokens that were ever made, oldest first."""
    columns = ", ".join(Token._fields)
    rows = tx.all(f"SELECT {columns} FROM web_token WHERE enterprise_id = ? ORDER BY token_id", (enterprise_id,))
    return [Token(*row) for row in rows]


def check(db: Database, enterprise_id: int, token: str) -> Caller:
    """Whose token this is. Raises Refused ``token``, whatever is wrong with it."""
    with db.read() as tx:
        row = tx.one("SELECT * FROM web_token WHERE enterprise_id = ? AND digest = ?", (enterprise_id, _digest(token)))
        if row is None or row["revoked_ms"] is not None or tx.now_ms >= row["expires_ms"]:
            raise Refused("token", "the token is wrong, expired or revoked")
        caller = _caller(tx, enterprise_id, row["token_id"], row["terminal"], row["operator"])
        stale = row["used_ms"] is None or tx.now_ms - row["used_ms"] >= USE_NOTED_MS
    if stale:
        with db.write() as tx:
            tx.execute(
                "UPDATE web_token SET used_ms = ? WHERE enterprise_id = ? AND token_id = ?",
                (tx.now_ms, enterprise_id, caller.token_id),
            )
    return caller


def _caller(tx: Tx, enterprise_id: int, token_id: str, terminal: bytes | None, operator: str | None) -> Caller:
    """Raises Refused ``token`` when the one it belongs to is out of service."""
    if terminal is not None:
        found = registry.get(tx, enterprise_id, terminal)
        if found.state == "active":
            return Caller(token_id, enterprise_id, terminal, found.kind, None)
    accounts = [one for one in operators.accounts(tx, enterprise_id) if one.name == operator]
    if accounts and accounts[0].state == "active":
        return Caller(token_id, enterprise_id, b"", None, operators.get(tx, enterprise_id, accounts[0].name))
    raise Refused("token", "whoever the token belongs to is out of service")


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
