"""What terminals ask of the office over HTTP: proofs under keys that no terminal holds, leave to load and to undo."""

from __future__ import annotations

from backoffice.registry import TerminalKind
from backoffice.station import Office
from backoffice.tokens import Caller
from backoffice.web import Fields, Verb

TERMINALS = frozenset(TerminalKind) - {TerminalKind.OFFICE}


def verbs(office: Office) -> dict[str, Verb]:
    """The verbs of the host, by the paths behind ``/v1/``."""

    def whoami(caller: Caller, _: Fields) -> Fields:
        return {"enterprise_id": caller.enterprise_id, "terminal": caller.terminal.hex(), "now_ms": office.now_ms()}

    return {"whoami": Verb(whoami, TERMINALS)}
