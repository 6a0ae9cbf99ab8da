"""Terminals and SAMs: registered once, a SAM for one terminal only, a lost one for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backoffice import blacklists, registry
from backoffice.database import Database, Tx
from backoffice.operators import Operator, Role
from backoffice.registry import TerminalKind
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from tests.backoffice.kit import ADMIN, ENTERPRISE, T0, card_serial, sam_serial, terminal_number

ONE, TWO = terminal_number(1), terminal_number(2)
SAM, OTHER = sam_serial(1), sam_serial(2)


def test_register_and_fit(db: Database) -> None:
    """The same registration again changes nothing; a new SAM retires the one before; no SAM moves elsewhere."""
    with db.write() as tx:
        for _ in range(2):
            registry.register(tx, ADMIN, ENTERPRISE, ONE, TerminalKind.POS, "till")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, ONE, SAM)
        registry.register(tx, ADMIN, ENTERPRISE, TWO, TerminalKind.RECHARGE, "counter")
        assert registry.get(tx, ENTERPRISE, ONE).sam_serial == SAM
        registry.fit_sam(tx, ADMIN, ENTERPRISE, ONE, OTHER)
        assert [one.sam_serial for one in registry.terminals(tx, ENTERPRISE)] == [OTHER, None]
        assert {sam.state for sam in registry.sams(tx, ENTERPRISE).values()} == {"active", "retired"}
        registry.seen_list(tx, ENTERPRISE, ONE, 7)
        assert registry.get(tx, ENTERPRISE, ONE).list_version == 7
        registry.retire(tx, ADMIN, ENTERPRISE, ONE)
        assert registry.get(tx, ENTERPRISE, ONE).state == "retired"
    for terminal, serial in ((TWO, SAM), (TWO, OTHER), (ONE, SAM)):
        with pytest.raises(Conflict), db.write() as tx:
            registry.fit_sam(tx, ADMIN, ENTERPRISE, terminal, serial)
    with pytest.raises(Conflict), db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, ONE, TerminalKind.RECHARGE, "till")


def test_bad_numbers(db: Database) -> None:
    """Wrong lengths, mistyped serials, cards for SAMs, unknown terminals: each with its own error."""
    with pytest.raises(FormatError), db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, b"short", TerminalKind.POS, "x")
    with pytest.raises(NotFound), db.write() as tx:
        registry.fit_sam(tx, ADMIN, ENTERPRISE, ONE, SAM)
    for wrong in (card_serial(1), SAM[:7] + bytes([SAM[7] ^ 1]), b""):
        with pytest.raises(FormatError), db.write() as tx:
            registry.fit_sam(tx, ADMIN, ENTERPRISE, ONE, wrong)
    with pytest.raises(NotFound), db.write() as tx:
        registry.get(tx, ENTERPRISE, ONE)
    with pytest.raises(NotFound), db.write() as tx:
        registry.retire(tx, ADMIN, ENTERPRISE, ONE)
    with pytest.raises(NotFound), db.write() as tx:
        registry.lose_sam(tx, ADMIN, ENTERPRISE, SAM, T0)


def test_lost_sam(db: Database) -> None:
    """A lost SAM is listed; an earlier time of loss is taken, a later one changes nothing."""
    with db.write() as tx:
        registry.register(tx, ADMIN, ENTERPRISE, ONE, TerminalKind.POS, "till")
        registry.fit_sam(tx, ADMIN, ENTERPRISE, ONE, SAM)
        for at_ms, kept in ((T0, T0), (T0 + 5, T0), (T0 - 5, T0 - 5)):
            registry.lose_sam(tx, ADMIN, ENTERPRISE, SAM, at_ms)
            assert registry.sams(tx, ENTERPRISE)[SAM].lost_ms == kept
        assert [entry.card_serial for entry in blacklists.listing(tx, ENTERPRISE)] == [SAM]
        assert registry.get(tx, ENTERPRISE, ONE).sam_serial is None


def test_permissions(db: Database) -> None:
    """Who may not manage terminals is told so."""
    issuer = Operator(ENTERPRISE, "ida", Role.ISSUER)
    acts: list[Callable[[Tx], None]] = [
        lambda tx: registry.register(tx, issuer, ENTERPRISE, ONE, TerminalKind.POS, "x"),
        lambda tx: registry.fit_sam(tx, issuer, ENTERPRISE, ONE, SAM),
        lambda tx: registry.lose_sam(tx, issuer, ENTERPRISE, SAM, T0),
        lambda tx: registry.retire(tx, issuer, ENTERPRISE, ONE),
    ]
    for act in acts:
        with pytest.raises(Refused) as refused, db.write() as tx:
            act(tx)
        assert refused.value.reason == "permission"
