"""What terminals ask of the office over HTTP: proofs under keys that no terminal holds, leave to load and to undo.

Each call is bound to the terminal of its token and to this enterprise; no key leaves, and each use of one is in the
audit log by purpose and count. What a load or undo needs has to be allowed first: see :mod:`backoffice.permits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from backoffice import audit, journals, permits, registry, subsidies, vouchers
from backoffice.audit import Event
from backoffice.database import Tx
from backoffice.enterprises import Setting, number_setting
from backoffice.ledger import cash_account
from backoffice.permits import Permit
from backoffice.registry import TerminalKind
from backoffice.settlement import LOADS, SPENDS, settle_cards
from backoffice.station import Office
from backoffice.tokens import Caller
from backoffice.web import Fields, Verb, field
from cardlib.errors import FormatError, Refused
from cardlib.profile import Purpose, Purse, TransactionType
from cardlib.records import JournalFile, local_when
from cardlib.sam import LoadInit
from keymgmt.softsam import SoftSam

TERMINALS = frozenset(TerminalKind) - {TerminalKind.OFFICE}
MONEY = frozenset({TerminalKind.POS, TerminalKind.RECHARGE})
RECHARGE = frozenset({TerminalKind.RECHARGE})
MAX_JOURNAL = 8 << 20
CLOCK_MS = 600_000
"""How far a terminal's clock may be off for a load: its date and time are the host's (card.md §4.2)."""


@dataclass(frozen=True, slots=True)
class HostCalls:
    """The verbs over one office; ``uses`` says what master keys are used for while a call is served."""

    office: Office
    uses: Callable[[str], AbstractContextManager[None]]

    def verbs(self) -> Mapping[str, Verb]:
        """By the path behind ``/v1/``."""
        return {
            "whoami": Verb(self.whoami, TERMINALS),
            "journal": Verb(self.journal, TERMINALS, max_body=MAX_JOURNAL),
            "host/authenticate": Verb(self.authenticate, MONEY),
            "host/load-mac2": Verb(self.load_mac2, MONEY),
            "host/verify-tac": Verb(self.verify_tac, MONEY),
            "load/allow": Verb(self.allow_load, RECHARGE),
            "voucher/redeem": Verb(self.redeem, RECHARGE),
            "subsidy/claim": Verb(self.claim, RECHARGE),
            "undo/allow": Verb(self.allow_undo, frozenset({TerminalKind.POS})),
        }

    @contextmanager
    def _host(self, caller: Caller, what: str) -> Iterator[SoftSam]:
        """The keys for one call, and who used them for what. Raises Refused ``sam`` for a terminal without its SAM."""
        office = self.office
        with office.db.read() as tx:
            sam = registry.get(tx, office.enterprise_id, caller.terminal).sam_serial
        if sam is None:
            raise Refused("sam", f"{caller.name} has no SAM in use: register one")
        with self.uses(f"{what}, {caller.name}"):
            yield SoftSam(office.store, office.enterprise_id, caller.terminal, sam)

    def whoami(self, caller: Caller, _: Fields) -> Fields:
        """Whose token it is, and the office's time."""
        return {
            "enterprise_id": caller.enterprise_id,
            "terminal": caller.terminal.hex(),
            "now_ms": self.office.now_ms(),
        }

    def journal(self, caller: Caller, fields: Fields) -> Fields:
        """Take in the caller's journal file. Raises Refused ``foreign_journal``, FormatError."""
        raw = field(fields, "file", bytes)
        file = JournalFile.decode(raw)
        if file.terminal != caller.terminal:
            raise Refused("foreign_journal", "the journal is another terminal's")
        if not file.entries:
            return {"last_seq": 0, "conflicts": 0}
        found = journals.collect(self.office.db, self.office.enterprise_id, raw)
        return {"last_seq": file.entries[-1].seq, "conflicts": len(found.conflicts)}

    def authenticate(self, caller: Caller, fields: Fields) -> Fields:
        """Cryptogram of the recharge authority (39/02) for a card of this enterprise in use."""
        factor, challenge = field(fields, "factor", bytes), field(fields, "challenge", bytes)
        if (len(factor), len(challenge)) != (8, 8):
            raise FormatError("factor and challenge have 8 bytes")
        with self.office.db.read() as tx:
            permits.require_active_card(tx, self.office.enterprise_id, factor)
        with self._host(caller, "authenticate") as host:
            answer = host.authenticate(Purpose.RECHARGE, factor, field(fields, "version", int), challenge)
        return {"cryptogram": answer.hex()}

    def load_mac2(self, caller: Caller, fields: Fields) -> Fields:
        """MAC2 of a load that was allowed, once its amount is held in the books.

        Raises MacMismatch when the card's MAC1 is wrong, Refused of :func:`permits.hold`, ``clock_doubtful``.
        """
        init, when = LoadInit.decode(field(fields, "init", bytes)), field(fields, "when", bytes)
        factor, amount_fen = field(fields, "factor", bytes), field(fields, "amount_fen", int)
        kind = next((one for one in LOADS if one == field(fields, "kind", int)), None)
        if kind is None:
            raise FormatError("kind: a load is of type 1 or 2")
        self._require_now(when)
        office, number = self.office, self.office.enterprise_id
        wanted = Permit(caller.terminal, field(fields, "request_id", str), "", factor, kind.purse, amount_fen, "")
        with office.db.read() as tx:
            permits.find(tx, number, wanted)
        with self._host(caller, "load") as host:
            mac2 = host.load_mac2(init, amount_fen, kind, caller.terminal, when, factor)
        with office.db.write() as tx:
            permits.hold(tx, number, wanted, init.seq, init.balance_fen)
            _tell(tx, caller, wanted)
        return {"mac2": mac2.hex()}

    def _require_now(self, when: bytes) -> None:
        """Raises Refused ``clock_doubtful`` for a time that is not about now (BCD, which sorts by time)."""
        now_ms, offset_min = self.office.now_ms(), self.office.offset_min
        first, last = (local_when(now_ms + off, offset_min) for off in (-CLOCK_MS, CLOCK_MS))
        if not first <= when <= last or len(when) != 7:
            raise Refused("clock_doubtful", "the terminal's clock is not the office's: set it")

    def verify_tac(self, caller: Caller, fields: Fields) -> Fields:
        """Check the card's proof of a load that was held; nothing else can have used its counter then.

        Raises MacMismatch, Refused ``not_allowed``.
        """
        factor, data, tac = (field(fields, name, bytes) for name in ("factor", "data", "tac"))
        if len(data) != 24 or len(tac) != 4 or data[11:17] != caller.terminal or data[10] not in LOADS:
            raise FormatError("data: the input of a TAC of this terminal's load has 24 bytes")
        seq, amount_fen = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:10], "big")
        purse = TransactionType(data[10]).purse
        wanted = Permit(caller.terminal, field(fields, "request_id", str), "", factor, purse, amount_fen, "")
        office, number = self.office, self.office.enterprise_id
        with office.db.read() as tx:
            found = permits.find(tx, number, wanted)
        if found.state not in ("held", "done") or found.card_seq != seq:
            raise Refused("not_allowed", "no MAC2 was given for this load")
        with self._host(caller, "check of a load") as host:
            host.verify_tac(factor, field(fields, "version", int), field(fields, "algorithm", int), data, tac)
        with office.db.write() as tx:
            permits.proven(tx, number, wanted, seq)
        return {}

    def allow_load(self, caller: Caller, fields: Fields) -> Fields:
        """Leave to load the main purse for cash in the drawer of the terminal's shift.

        Raises Refused ``recharge_limit``, ``shift_closed``, and as :func:`permits.allow`.
        """
        shift, amount_fen = field(fields, "shift", int), field(fields, "amount_fen", int)
        if not 1 <= shift <= 0x7FFFFFFF:
            raise Refused("shift_closed", "cash belongs to a shift: open one")
        number = self.office.enterprise_id
        permit = Permit(
            caller.terminal, field(fields, "request_id", str), "", field(fields, "card_serial", bytes), Purse.MAIN,
            amount_fen, cash_account(caller.terminal, str(shift)),
        )  # fmt: skip
        with self.office.db.write() as tx:
            most = number_setting(tx, number, Setting.RECHARGE_LIMIT_FEN)
            if amount_fen > most:
                raise Refused("recharge_limit", f"one recharge is at most {most} fen")
            given = permits.allow(tx, number, permit)
        return {"state": given.state}

    def redeem(self, caller: Caller, fields: Fields) -> Fields:
        """Leave to load a voucher's amount. Raises as :func:`vouchers.redeem`."""
        office = self.office
        given = vouchers.redeem(
            office.db, office.enterprise_id, caller.terminal, field(fields, "card_serial", bytes),
            field(fields, "number", str), field(fields, "secret", str), office.offset_min,
        )  # fmt: skip
        return {"request_id": given.request_id, "amount_fen": given.amount_fen, "state": given.state}

    def claim(self, caller: Caller, fields: Fields) -> Fields:
        """Leave to load a subsidy that was granted to the card's holder. Raises as :func:`subsidies.claim`."""
        office = self.office
        card_serial, balance_fen = field(fields, "card_serial", bytes), field(fields, "balance_fen", int)
        with office.db.write() as tx:
            given = subsidies.claim(
                tx, office.enterprise_id, caller.terminal, card_serial, balance_fen, office.offset_min
            )
        return {"request_id": given.request_id, "amount_fen": given.amount_fen, "state": given.state}

    def allow_undo(self, caller: Caller, fields: Fields) -> Fields:
        """Leave to give back a payment of this terminal: in the books, genuine, not undone (profile.md, Undo).

        Raises Refused ``undo_unknown`` while its journal is not here, ``undo``, and as :func:`permits.allow`.
        """
        origin, office = field(fields, "origin", bytes), self.office
        number = office.enterprise_id
        with self._host(caller, "check of an undo") as host, office.db.write() as tx:
            found = "SELECT * FROM transaction_record WHERE enterprise_id = ? AND record_id = ? AND terminal = ?"
            key = (number, origin.hex(), caller.terminal)
            row = tx.one(found, key)
            if row is not None and row["open"]:
                settle_cards(tx, number, host, [row["card_serial"]], office.offset_min)
                row = tx.one(found, key)
            if row is None:
                raise Refused("undo_unknown", "this payment is not in the books: send the journal first")
            if row["verdict"] != "posted" or row["kind"] not in SPENDS or not row["genuine"]:
                raise Refused("undo", f"this is no proven payment: {row['verdict']}")
            request_id = f"undo:{origin.hex()}"
            given = permits.allow(
                tx, number,
                Permit(
                    caller.terminal, request_id, request_id, row["card_serial"], Purse(row["purse"]),
                    row["amount_fen"], "",
                ),
            )  # fmt: skip
            if row["undone_by"] is not None and given.state == "allowed":
                raise Refused("undo", f"the payment was undone by {row['undone_by']}")
        return {"request_id": request_id, "state": given.state}


def _tell(tx: Tx, caller: Caller, permit: Permit) -> None:
    audit.record(
        tx, caller.enterprise_id, Event.WALLET_MOVED, caller.name, f"card:{permit.card_serial.hex().upper()}",
        kind="terminal load", amount_fen=permit.amount_fen, request=permit.request_id,
    )  # fmt: skip
