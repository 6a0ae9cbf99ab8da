"""A repeated request id gives the first outcome (design.md, Command line)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from backoffice.database import Database, Tx
from cardlib.errors import Conflict, FormatError, NotFound, OneCardError, Refused

Outcome = dict[str, Any]
"""What an act came to: plain JSON."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_ERRORS: dict[str, type[Refused | Conflict | NotFound]] = {
    "Refused": Refused,
    "Conflict": Conflict,
    "NotFound": NotFound,
}
"""Outcomes that are answers; any other error means that there is no outcome yet."""


def once(
    db: Database,
    enterprise_id: int,
    request_id: str | None,
    command: str,
    arguments: Mapping[str, Any],
    action: Callable[[Tx], Outcome],
) -> Outcome:
    """Run ``action`` in one write transaction, at most once per request id; a repeat gets its outcome or refusal.

    Without a request id it is just run. Raises what the action raises; Conflict when the id was used for
    another command or other arguments. Never put secrets into ``arguments``: their digest is kept.
    """
    if request_id is None:
        with db.write() as tx:
            return action(tx)
    digest = digest_of(arguments)
    try:
        with db.write() as tx:
            kept = recall(tx, enterprise_id, request_id, command, digest)
            if kept is None:
                kept = {"outcome": action(tx)}
                _remember(tx, enterprise_id, request_id, command, digest, kept)
    except (Refused, Conflict, NotFound) as error:
        kept = _keep_refusal(db, enterprise_id, request_id, command, digest, error)
    if "error" in kept:
        raise _error(kept)
    outcome: Outcome = kept["outcome"]
    return outcome


def around(
    db: Database,
    enterprise_id: int,
    request_id: str | None,
    command: str,
    arguments: Mapping[str, Any],
    action: Callable[[], Outcome],
) -> Outcome:
    """The same for an act on files, keys or a card, which no transaction holds: its outcome is kept after it.

    Killed in between, a repeat runs it again, and it finds out itself what is there. An error is no outcome here.
    """
    if request_id is None:
        return action()
    with db.read() as tx:
        known = recall(tx, enterprise_id, request_id, command, digest_of(arguments))
    outcome = {} if known else action()
    return once(db, enterprise_id, request_id, command, arguments, lambda _: outcome)


def digest_of(arguments: Mapping[str, Any]) -> bytes:
    """SHA-256 of arguments as canonical JSON."""
    return sha256(json.dumps(arguments, sort_keys=True, separators=(",", ":")).encode()).digest()


def recall(tx: Tx, enterprise_id: int, request_id: str, command: str, digest: bytes) -> Outcome | None:
    """What is kept of a request, or None. Raises Conflict when the id stands for something else."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise FormatError("a request id has 1 to 64 of A-Z a-z 0-9 . _ : -")
    row = tx.one("SELECT * FROM request WHERE enterprise_id = ? AND request_id = ?", (enterprise_id, request_id))
    if row is None:
        return None
    if (row["command"], row["arguments_digest"]) != (command, digest):
        raise _OtherRequest(f"request id {request_id} was used for another {row['command']}: give a new one")
    kept: Outcome = json.loads(row["outcome"])
    return kept


class _OtherRequest(Conflict):
    """The id belongs to another request: never kept as this one's outcome."""


def _remember(tx: Tx, enterprise_id: int, request_id: str, command: str, digest: bytes, kept: Outcome) -> None:
    text = json.dumps(kept, separators=(",", ":"))
    row = (enterprise_id, request_id, command, digest, text, tx.now_ms)
    tx.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?)", row)


def _keep_refusal(
    db: Database, enterprise_id: int, request_id: str, command: str, digest: bytes, error: OneCardError
) -> Outcome:
    """Keep a refusal as the outcome, unless another with the same id came first."""
    if isinstance(error, _OtherRequest):
        raise error
    name = next(name for name, kind in _ERRORS.items() if isinstance(error, kind))
    kept: Outcome = {"error": name, "reason": getattr(error, "reason", ""), "message": str(error)}
    with db.write() as tx:
        first = recall(tx, enterprise_id, request_id, command, digest)
        if first is not None:
            return first
        _remember(tx, enterprise_id, request_id, command, digest, kept)
    return kept


def _error(kept: Outcome) -> OneCardError:
    if kept["error"] == "Refused":
        return Refused(kept["reason"], kept["message"])
    return _ERRORS[kept["error"]](kept["message"])  # type: ignore[call-arg]  # only Refused takes two
