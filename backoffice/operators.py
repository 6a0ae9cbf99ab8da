"""Who may do what: operators, their secrets, roles and the permission that each command names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, unique
from hmac import compare_digest
from typing import NamedTuple

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import PLATFORM, Database, Tx
from cardlib.crypto.sealing import Argon2Params, argon2id
from cardlib.errors import Conflict, FormatError, NotFound, Refused

MAX_FAILURES = 5
LOCK_MS = 15 * 60_000
SECRET_SIZES = range(8, 1025)
COST = Argon2Params()
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_VERIFIER = 1
"""Format of a verifier: 1 | memory KiB u32 | iterations 1 | lanes 1 | Argon2id 32."""


@unique
class Role(StrEnum):
    """What an operator is; ``platform`` belongs to no enterprise."""

    PLATFORM = "platform"
    ADMINISTRATOR = "administrator"
    ISSUER = "issuer"
    FINANCE = "finance"
    AUDITOR = "auditor"


@unique
class Permission(StrEnum):
    """What a command asks for."""

    ENTERPRISE_MANAGE = "enterprise.manage"
    ENTERPRISE_SHOW = "enterprise.show"
    SETTING_CHANGE = "setting.change"
    OPERATOR_MANAGE = "operator.manage"
    OPERATOR_SHOW = "operator.show"
    MEMBER_CHANGE = "member.change"
    MEMBER_SHOW = "member.show"
    CARD_WASH = "card.wash"
    CARD_SLOT = "card.slot"
    CARD_ISSUE = "card.issue"
    CARD_LOSE = "card.lose"
    CARD_UNLOCK = "card.unlock"
    CARD_REISSUE = "card.reissue"
    CARD_CANCEL = "card.cancel"
    CARD_SHOW = "card.show"
    WALLET_RECHARGE = "wallet.recharge"
    WALLET_REFUND = "wallet.refund"
    WALLET_SUBSIDY = "wallet.subsidy"
    WALLET_SHOW = "wallet.show"
    TERMINAL_MANAGE = "terminal.manage"
    TERMINAL_OPERATE = "terminal.operate"
    TERMINAL_SHOW = "terminal.show"
    SAM_MANAGE = "sam.manage"
    BLACKLIST_CHANGE = "blacklist.change"
    BLACKLIST_EXPORT = "blacklist.export"
    KEY_MANAGE = "key.manage"
    KEY_SHOW = "key.show"
    SETTLE_RUN = "settle.run"
    SETTLE_CLOSE = "settle.close"
    SETTLE_SHOW = "settle.show"
    LEDGER_CORRECT = "ledger.correct"
    ATTENDANCE_CHANGE = "attendance.change"
    REPORT_SHOW = "report.show"
    NOTICE_SEND = "notice.send"
    NOTICE_SHOW = "notice.show"
    AUDIT_SHOW = "audit.show"
    DATABASE_MANAGE = "database.manage"
    DATABASE_SHOW = "database.show"


P = Permission
_SHOW = frozenset(permission for permission in P if permission.name.endswith("_SHOW"))
PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.PLATFORM: frozenset(
        {
            P.ENTERPRISE_MANAGE, P.ENTERPRISE_SHOW, P.OPERATOR_MANAGE, P.OPERATOR_SHOW, P.CARD_WASH, P.CARD_SLOT,
            P.CARD_SHOW, P.SAM_MANAGE, P.TERMINAL_SHOW, P.KEY_MANAGE, P.KEY_SHOW, P.AUDIT_SHOW,
            P.DATABASE_MANAGE, P.DATABASE_SHOW,
        }
    ),
    Role.ADMINISTRATOR: frozenset(P) - {P.ENTERPRISE_MANAGE, P.CARD_WASH, P.CARD_SLOT},
    Role.ISSUER: frozenset(
        {
            P.ENTERPRISE_SHOW, P.MEMBER_CHANGE, P.MEMBER_SHOW, P.CARD_ISSUE, P.CARD_LOSE, P.CARD_UNLOCK,
            P.CARD_REISSUE, P.CARD_CANCEL, P.CARD_SHOW, P.TERMINAL_SHOW, P.WALLET_SHOW, P.BLACKLIST_CHANGE,
            P.BLACKLIST_EXPORT, P.ATTENDANCE_CHANGE, P.REPORT_SHOW,
        }
    ),
    Role.FINANCE: frozenset(
        {
            P.WALLET_RECHARGE, P.WALLET_REFUND, P.WALLET_SUBSIDY, P.TERMINAL_OPERATE, P.SETTLE_RUN, P.SETTLE_CLOSE,
            P.LEDGER_CORRECT,
        }
    ) | (_SHOW - {P.KEY_SHOW, P.OPERATOR_SHOW}),
    Role.AUDITOR: _SHOW,
}  # fmt: skip


class Operator(NamedTuple):
    """Who acts: an operator of one enterprise, or of the platform (``enterprise_id`` 0)."""

    enterprise_id: int
    name: str
    role: Role


def _head(cost: Argon2Params) -> bytes:
    return bytes([_VERIFIER]) + cost.memory_kib.to_bytes(4, "big") + bytes([cost.iterations, cost.lanes])


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What is kept of a secret: enough to check it, not to know it."""

    salt: bytes
    verifier: bytes

    @classmethod
    def make(cls, secret: str, random_bytes: Callable[[int], bytes], cost: Argon2Params = COST) -> Credential:
        """Derive from a secret of 8 to 1024 bytes; takes about 0.1 s by intent. Raises FormatError."""
        if len(secret.encode()) not in SECRET_SIZES:
            raise FormatError("an operator's secret has 8 to 1024 bytes")
        salt = random_bytes(16)
        return cls(salt, _head(cost) + argon2id(secret.encode(), salt, cost))

    def fits(self, secret: str) -> bool:
        """Compare in constant time."""
        if len(self.verifier) != 39 or self.verifier[0] != _VERIFIER or len(secret.encode()) not in SECRET_SIZES:
            return False
        cost = Argon2Params(int.from_bytes(self.verifier[1:5], "big"), self.verifier[5], self.verifier[6])
        return compare_digest(argon2id(secret.encode(), self.salt, cost), self.verifier[7:])


_NOBODY = Credential(bytes(16), _head(COST) + bytes(32))
"""An unknown name costs as long as a known one."""


def require(operator: Operator, permission: Permission, enterprise_id: int) -> None:
    """Raise Refused("permission") unless the operator may do this in this enterprise."""
    if operator.enterprise_id not in (enterprise_id, PLATFORM):
        raise Refused("permission", f"operator {operator.name} belongs to enterprise {operator.enterprise_id}")
    if permission not in PERMISSIONS[operator.role]:
        raise Refused("permission", f"operator {operator.name} is {operator.role}, which may not do {permission}")


def require_two(first: Operator, second: Operator, permission: Permission, enterprise_id: int) -> None:
    """Raise Refused unless two different operators both may do this; books are corrected by two."""
    require(first, permission, enterprise_id)
    require(second, permission, enterprise_id)
    if first[:2] == second[:2]:
        raise Refused("two_operators", f"{permission} needs two operators: {first.name} can't confirm alone")


def add_first(tx: Tx, enterprise_id: int, name: str, role: Role, credential: Credential) -> Operator:
    """Make the first operator of a fresh database, without anybody's permission. Raises Conflict when there is one."""
    if tx.one("SELECT name FROM operator WHERE enterprise_id = ?", (enterprise_id,)):
        raise Conflict(f"enterprise {enterprise_id} has operators already: one of them adds others")
    return _insert(tx, name, Operator(enterprise_id, name, role), credential)


def add(tx: Tx, actor: Operator, enterprise_id: int, name: str, role: Role, credential: Credential) -> Operator:
    """Add an operator. The platform's own open administrator accounts; administrators add the others.

    Raises Refused, Conflict when the name is taken, FormatError for a malformed name.
    """
    require(actor, Permission.OPERATOR_MANAGE, enterprise_id)
    if actor.enterprise_id != enterprise_id and role is not Role.ADMINISTRATOR:
        raise Refused("permission", "the platform opens administrator accounts; the administrator adds the others")
    if tx.one("SELECT name FROM operator WHERE enterprise_id = ? AND name = ?", (enterprise_id, name)):
        raise Conflict(f"operator {name} exists in enterprise {enterprise_id}")
    return _insert(tx, actor.name, Operator(enterprise_id, name, role), credential)


def _insert(tx: Tx, actor: str, operator: Operator, credential: Credential) -> Operator:
    enterprise_id, name, role = operator
    if not _NAME.fullmatch(name):
        raise FormatError("an operator's name has 1 to 32 of a-z 0-9 . _ -")
    if (role is Role.PLATFORM) != (enterprise_id == PLATFORM):
        raise FormatError("the platform role belongs to the platform, all others to an enterprise")
    tx.execute(
        "INSERT INTO operator (enterprise_id, name, role, state, salt, verifier, created_ms)"
        " VALUES (?, ?, ?, 'active', ?, ?, ?)",
        (enterprise_id, name, role.value, credential.salt, credential.verifier, tx.now_ms),
    )
    audit.record(tx, enterprise_id, Event.OPERATOR_ADDED, actor, f"operator:{name}", role=role.value)
    return operator


def change_secret(tx: Tx, actor: Operator, enterprise_id: int, name: str, credential: Credential) -> None:
    """Give a new secret and lift a lock: an operator's own, or anybody's by who manages operators. Raises NotFound."""
    if actor[:2] != (enterprise_id, name):
        require(actor, Permission.OPERATOR_MANAGE, enterprise_id)
    get(tx, enterprise_id, name)
    tx.execute(
        "UPDATE operator SET salt = ?, verifier = ?, failures = 0, locked_until_ms = 0"
        " WHERE enterprise_id = ? AND name = ?",
        (credential.salt, credential.verifier, enterprise_id, name),
    )
    audit.record(tx, enterprise_id, Event.OPERATOR_CHANGED, actor.name, f"operator:{name}", kind="secret")


def change_role(tx: Tx, actor: Operator, enterprise_id: int, name: str, role: Role) -> None:
    """Give another role. Raises Refused when nobody would be left to manage operators, NotFound."""
    require(actor, Permission.OPERATOR_MANAGE, enterprise_id)
    if (role is Role.PLATFORM) != (enterprise_id == PLATFORM):
        raise FormatError("the platform role belongs to the platform, all others to an enterprise")
    get(tx, enterprise_id, name)
    tx.execute("UPDATE operator SET role = ? WHERE enterprise_id = ? AND name = ?", (role.value, enterprise_id, name))
    _keep_a_manager(tx, enterprise_id)
    audit.record(tx, enterprise_id, Event.OPERATOR_CHANGED, actor.name, f"operator:{name}", role=role.value)


def set_active(tx: Tx, actor: Operator, enterprise_id: int, name: str, active: bool) -> None:
    """Disable or enable an operator. Raises Refused when nobody would be left to manage operators, NotFound."""
    require(actor, Permission.OPERATOR_MANAGE, enterprise_id)
    get(tx, enterprise_id, name)
    state = "active" if active else "disabled"
    tx.execute("UPDATE operator SET state = ? WHERE enterprise_id = ? AND name = ?", (state, enterprise_id, name))
    _keep_a_manager(tx, enterprise_id)
    audit.record(tx, enterprise_id, Event.OPERATOR_CHANGED, actor.name, f"operator:{name}", state_to=state)


def _keep_a_manager(tx: Tx, enterprise_id: int) -> None:
    if not tx.one(
        "SELECT name FROM operator WHERE enterprise_id = ? AND state = 'active'"
        " AND role IN ('platform', 'administrator')",
        (enterprise_id,),
    ):
        raise Refused("last_administrator", "nobody would be left to manage operators: add another one first")


def get(tx: Tx, enterprise_id: int, name: str) -> Operator:
    """One operator. Raises NotFound."""
    row = tx.one("SELECT role FROM operator WHERE enterprise_id = ? AND name = ?", (enterprise_id, name))
    if row is None:
        raise NotFound(f"no operator {name} in enterprise {enterprise_id}")
    return Operator(enterprise_id, name, Role(row["role"]))


class Account(NamedTuple):
    """An operator as listed."""

    name: str
    role: str
    state: str
    locked_until_ms: int
    created_ms: int


def accounts(tx: Tx, enterprise_id: int) -> list[Account]:
    """All operators of an enterprise, by name."""
    columns = ", ".join(Account._fields)
    rows = tx.all(f"SELECT {columns} FROM operator WHERE enterprise_id = ? ORDER BY name", (enterprise_id,))
    return [Account(*row) for row in rows]


def authenticate(db: Database, enterprise_id: int, name: str, secret: str) -> Operator:
    """Check a secret. Raises Refused: "operator" (unknown or wrong), "operator_locked", "operator_disabled".

    Each try is counted before it is checked, so that many at once gain nothing; five wrong ones lock for 15 minutes.
    """
    with db.write() as tx:
        row = tx.one("SELECT * FROM operator WHERE enterprise_id = ? AND name = ?", (enterprise_id, name))
        if row is not None:
            _count_try(tx, enterprise_id, name)
    kept = _NOBODY if row is None else Credential(row["salt"], row["verifier"])
    if not kept.fits(secret) or row is None:
        if row is not None:
            with db.write() as tx:
                audit.record(tx, enterprise_id, Event.OPERATOR_REFUSED, name, f"operator:{name}", reason="secret")
        raise Refused("operator", "operator or secret is wrong")
    with db.write() as tx:
        tx.execute(
            "UPDATE operator SET failures = 0, locked_until_ms = 0 WHERE enterprise_id = ? AND name = ?",
            (enterprise_id, name),
        )
    if row["state"] != "active":
        raise Refused("operator_disabled", f"operator {name} is disabled: ask an administrator")
    return Operator(enterprise_id, name, Role(row["role"]))


def _count_try(tx: Tx, enterprise_id: int, name: str) -> None:
    where, key = "WHERE enterprise_id = ? AND name = ?", (enterprise_id, name)
    until_ms = tx.value(f"SELECT locked_until_ms FROM operator {where}", key)
    if tx.now_ms < until_ms:
        raise Refused("operator_locked", f"operator {name} is locked after {MAX_FAILURES} wrong secrets: try later")
    tx.execute(f"UPDATE operator SET failures = failures + 1 {where}", key)
    if tx.value(f"SELECT failures FROM operator {where}", key) >= MAX_FAILURES:
        tx.execute(f"UPDATE operator SET locked_until_ms = ? {where}", (tx.now_ms + LOCK_MS, *key))
        audit.record(tx, enterprise_id, Event.OPERATOR_LOCKED, name, f"operator:{name}")
