"""A whole enterprise in software: back office on real databases, tills on real journals, simulated cards and SAMs.

Everything random comes from a seed and every clock from one counter, so that a day can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from backoffice import (
    airkeys,
    airmenu,
    airqueue,
    audit,
    blacklists,
    cards,
    chips,
    journals,
    ledger,
    members,
    ota_server,
    reconcile,
    registry,
    settlement,
    wallet,
)
from backoffice.airqueue import AirJob, AirState
from backoffice.cards import NewCard
from backoffice.database import PLATFORM
from backoffice.enterprises import Application, subscribe
from backoffice.installation import Installation
from backoffice.jobs import Result
from backoffice.operators import Credential
from backoffice.ota_server import Server
from backoffice.registry import TerminalKind
from backoffice.station import Office
from cardlib.crypto import make_key
from cardlib.crypto.packets import PacketAlgorithm, packet_key
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import CheckFailed, OneCardError, OutcomeUnknown, TransportError
from cardlib.iso7816 import pin_bytes
from cardlib.profile import CardKind, Purse
from cardlib.sam import CardSam
from keymgmt.handle import KeyHandle
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import MemorySteps
from keymgmt.wash import WashPlan, wash
from simulator.card import Card
from simulator.files import Df, PurseFile
from simulator.phone import Phone
from simulator.post import Post
from simulator.rig import EXPIRY, START, TRANSPORT_KEY, OneSam
from simulator.sam import SamCard
from simulator.sim import Sim
from simulator.uicc.memory import OtaKeySet
from terminals.config import Kind, TerminalConfig
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.policy import Rules
from terminals.pos import Pos
from terminals.runtime import Receipt
from terminals.screen import MemoryScreen

ENTERPRISE = 1001
MORNING_MS = 1_790_035_200_000
"""2026-09-22 08:00 at +08:00."""
SECRETS = {
    "operator secret": "only in the simulator",
    "platform operator secret": "only in the simulator",
    "key passphrase": "only in the simulator",
}
"""What opens an installation that exists for a demonstration or a test."""
QUICK = Argon2Params(memory_kib=64, iterations=1, lanes=1)
PIN = "123456"
PATIENCE = 5
"""How often a holder presents a torn card again."""


@dataclass
class Till:
    """A POS with its SAM card, journal and lists, and how far its journal was collected."""

    pos: Pos
    sam: SamCard
    lists: TerminalLists
    journal: Journal


class Proof(NamedTuple):
    """What must hold at the end of any day. ``faults`` names what does not."""

    loaded_fen: int
    on_cards_fen: int
    taken_fen: int
    owed_fen: int
    records: int
    audit_events: int
    faults: tuple[str, ...]


@dataclass
class Company:
    """An enterprise of ``people`` with a platform of its own, in ``folder``."""

    folder: Path
    seed: int = 1
    people: int = 50
    clock_ms: int = MORNING_MS
    chips: dict[str, Card] = field(default_factory=dict)
    tills: list[Till] = field(default_factory=list)
    _replacing: dict[str, tuple[Card, bytes, Card]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.system = self._installation(None)
        self.system.create(SECRETS["operator secret"], SECRETS["key passphrase"], QUICK)
        credential = Credential.make(SECRETS["operator secret"], self.random.randbytes, QUICK)
        self.system.close()
        with self._installation(ENTERPRISE, platform=True) as platform:
            platform.open_enterprise(ENTERPRISE, "示范企业", 480, credential)
            with platform.platform.write() as tx:
                subscribe(tx, platform.operator, ENTERPRISE, Application.PAYMENT)
        self.system = self._installation(ENTERPRISE)
        self.admin = self.system.operator
        self.platform_admin = self.system.platform_operator("admin")

    def _installation(self, enterprise_id: int | None, *, platform: bool = False) -> Installation:
        return Installation(
            self.folder, SECRETS.__getitem__, enterprise_id=enterprise_id, purpose="simulation", platform=platform,
            clock=self.now_ms, random_bytes=self.random.randbytes,
        )  # fmt: skip

    def now_ms(self) -> int:
        """Every clock of the world; it ticks when it is asked."""
        self.clock_ms += 1
        return self.clock_ms

    def close(self) -> None:
        """Close databases and journals."""
        for till in self.tills:
            till.journal.close()
        self.system.close()

    def office(self) -> Office:
        """What the flows of the back office need."""
        return self.system.office(self.platform_admin, KeyHandle(make_key(TRANSPORT_KEY), "vendor"))

    # People and cards

    def enrol(self) -> members.Report:
        """Import the sample spreadsheet; as many of its people as this company has get cards."""
        with self.system.database.write() as tx:
            return members.import_file(tx, self.admin, ENTERPRISE, members.sample())

    def staff(self) -> list[str]:
        """Member numbers, in order."""
        with self.system.database.read() as tx:
            return [one.member_number for one in members.listing(tx, ENTERPRISE)][: self.people]

    def fresh_card(self) -> Card:
        """A card as the vendor delivers it."""
        return Card.vendor_fresh(TRANSPORT_KEY, self.random.randbytes)

    def new_card(self, member: str) -> NewCard:
        """A fresh card in the issuing reader, for a member."""
        card = self.chips.setdefault(member, self.fresh_card())
        card.reset()
        return NewCard(card, pin_bytes(PIN), kind=CardKind.CPU_CARD)

    def issue_all(self, batch: str = "opening") -> Iterator[cards.Issued]:
        """Wash, open and personalise a card for everybody."""
        return cards.issue_batch(self.office(), self.admin, self.staff(), self.new_card, batch_id=batch)

    def serial(self, member: str) -> bytes:
        """Serial of a member's card in use, or of the last one."""
        with self.system.database.read() as tx:
            return cards.of_member(tx, ENTERPRISE, member)[-1].card_serial

    def card(self, member: str) -> Card:
        """A member's card, put on a reader."""
        card = self.chips[member]
        card.reset()
        return card

    def recharge(self, member: str, amount_fen: int) -> Result:
        """Load the main purse at the office."""
        return wallet.recharge(self.office(), self.admin, self.card(member), self.serial(member), amount_fen)

    def subsidise(self, member: str, amount_fen: int) -> Result:
        """Load the subsidy purse at the office."""
        return wallet.subsidise(self.office(), self.admin, self.card(member), self.serial(member), amount_fen)

    def lose(self, member: str) -> Result:
        """A report of loss."""
        return cards.lose(self.office(), self.admin, self.serial(member), "reported lost")

    def unlock(self, member: str) -> Result:
        """The card is found."""
        return cards.unlock(self.office(), self.admin, self.serial(member), "found again")

    def reissue(self, member: str, *, old_present: bool) -> Result:
        """A new card for the old one, with its money; torn, the next call goes on with the same two cards."""
        old, serial, new = self._replacing.setdefault(
            member, (self.chips[member], self.serial(member), self.fresh_card())
        )
        old.reset()
        made = NewCard(new, pin_bytes(PIN))
        outcome = cards.reissue(self.office(), self.admin, serial, made, old_card=old if old_present else None)
        self.chips[member] = new
        if outcome["state"] != "waiting":
            del self._replacing[member]
        return outcome

    @property
    def replacing(self) -> list[str]:
        """Members whose reissue was begun and is not finished."""
        return list(self._replacing)

    def forget_reissue(self, member: str) -> None:
        """It was refused before it began: the holder keeps the old card."""
        self._replacing.pop(member, None)

    # Tills

    def open_till(self, number: int, rules: Rules | None = None, versions: tuple[int, ...] = (1,)) -> Till:
        """Make a SAM with keys of some versions, register the terminal, open its shift."""
        terminal = b"TILL" + number.to_bytes(2, "big")
        serial, sam = self.fit_sam(terminal, SamKind.POS, f"canteen {number}", versions)
        path = self.folder / f"till-{number}"
        journal = Journal(path.with_suffix(".db"), ENTERPRISE, terminal, serial, self.now_ms)
        root = self.system.signer.public
        lists = TerminalLists(path.with_suffix(".list"), ENTERPRISE, root, journal)
        config = TerminalConfig(1, Kind.POS, ENTERPRISE, journal.path, path, root, rules=rules or Rules(ENTERPRISE))
        pos = Pos(config, journal, lists, OneSam(CardSam(sam)), self.now_ms, self.random.randbytes, MemoryScreen())
        till = Till(pos, sam, lists, journal)
        self.tills.append(till)
        self.send_list(till)
        pos.open_shift("cashier")
        return till

    def fit_sam(
        self, terminal: bytes, kind: SamKind, name: str, versions: tuple[int, ...] = (1,)
    ) -> tuple[bytes, SamCard]:
        """Register a terminal and make the SAM that belongs into it; returns its serial and the SAM."""
        with self.system.platform.write() as tx:
            serial = chips.next_serial(tx, CardKind.SAM)
        sam = SamCard.vendor_fresh(TRANSPORT_KEY, self.random.randbytes)
        initial = KeyHandle(make_key(TRANSPORT_KEY), "vendor")
        plan = SamPlan("sam", serial, terminal, ENTERPRISE, kind, versions, START, EXPIRY)
        listed = make_sam(sam, plan, initial, self.system.keys, MemorySteps())
        with self.system.database.write() as tx:
            registry.register(tx, self.admin, ENTERPRISE, terminal, TerminalKind(kind.value), name)
            registry.fit_sam(tx, self.admin, ENTERPRISE, terminal, serial)
            registry.note_sam_keys(tx, ENTERPRISE, serial, listed)
        return serial, sam

    def reopen(self, till: Till) -> None:
        """The till's program ends and starts again on the same files, its SAM opened anew."""
        shift = till.journal.shift
        till.journal.close()
        old = till.journal
        till.journal = Journal(old.path, ENTERPRISE, old.terminal, old.sam_serial, self.now_ms)
        till.sam.reset()
        root = self.system.signer.public
        till.lists = TerminalLists(old.path.with_suffix(".list"), ENTERPRISE, root, till.journal)
        sams = OneSam(CardSam(till.sam))
        config, screen = till.pos.config, MemoryScreen()
        till.pos = Pos(config, till.journal, till.lists, sams, self.now_ms, self.random.randbytes, screen)
        assert till.journal.shift == shift

    def publish(self) -> int:
        """Make the staged changes the list's next version."""
        with self.system.database.write() as tx:
            return blacklists.publish(tx, ENTERPRISE, self.admin.name)

    def send_list(self, *tills: Till) -> None:
        """Bring tills up to the published list, as over a line or on a memory stick."""
        self.publish()
        for till in tills:
            with self.system.database.read() as tx:
                made = blacklists.export(tx, self.admin, ENTERPRISE, self.system.signer, till.lists.version)
            till.lists.take(made.raw)

    def pay(self, till: Till, member: str, amount_fen: int, sale: str, cut_at: int = 0) -> tuple[Receipt, int]:
        """Pay; with ``cut_at`` the card is pulled away at that step, and presented again until it is known.

        Returns the receipt and how often the card was presented. Raises Refused.
        """
        card = self.card(member)
        card.power.cut_at(cut_at)
        for tap in range(1, PATIENCE + 1):
            try:
                return till.pos.pay(card, amount_fen, sale), tap
            except (OutcomeUnknown, TransportError):
                card.reset()
            finally:
                card.power.cut_at(0)
        raise OutcomeUnknown(sale, f"sale {sale} never came to an end")

    # The evening

    def collect(self, tills: Sequence[Till] | None = None) -> int:
        """Bring journals to the back office and let the tills know; returns new records."""
        fresh = 0
        for till in self.tills if tills is None else tills:
            file = till.journal.collect()
            if file.entries:
                fresh += journals.collect(self.system.database, ENTERPRISE, file.encode()).records
                till.journal.ack(file.entries[-1].seq)
        return fresh

    def settle(self) -> settlement.Settled:
        """Verify and post everything that came in, then seal books and audit logs."""
        desk = self.office()
        done = settlement.settle(self.system.database, ENTERPRISE, desk.host(), desk.offset_min)
        for db, scope in ((self.system.database, ENTERPRISE), (self.system.platform, PLATFORM)):
            with db.write() as tx:
                if scope != PLATFORM:
                    ledger.seal(tx, scope)
                audit.seal(tx, scope)
        return done

    def on_chip(self, member: str) -> dict[Purse, int]:
        """What a member's chip really holds, looked up in its memory, not asked by protocol."""
        nodes = self.chips[member].mf.files.value.values()
        application = next(node for node in nodes if isinstance(node, Df))
        held = {}
        for purse in Purse:
            file = application.files.value[purse]
            assert isinstance(file, PurseFile)
            held[purse] = file.state.value.balance_fen
        return held

    def prove(self, *, named: frozenset[str] = frozenset()) -> Proof:
        """Money conserved, every record settled, audit chains intact; what is not is named.

        Records that settlement refused are faults but for the verdicts ``named``: those a day brings about itself.
        """
        faults: list[str] = []
        with self.system.database.read() as tx:
            books = ledger.balances(tx, ENTERPRISE)
            found = [r for r in settlement.findings(tx, ENTERPRISE) if r.verdict not in named]
            faults += [f"record {r.record_id}: {r.verdict} {r.cause}" for r in found]
            faults += [f"purse {g.card_serial.hex()}: records missing" for g in reconcile.gaps(tx, ENTERPRISE)]
            differences = reconcile.reconcile(tx, ENTERPRISE)
            odd = [d for d in differences if d.unexplained_fen]
            faults += [f"purse {d.card_serial.hex()}: {d.unexplained_fen} fen" for d in odd]
            records = tx.value("SELECT COUNT(*) FROM transaction_record WHERE enterprise_id = ?", (ENTERPRISE,))
            unsettled = tx.value(
                "SELECT COUNT(*) FROM transaction_record WHERE enterprise_id = ? AND verdict = 'new'", (ENTERPRISE,)
            )
        if unsettled:
            faults.append(f"{unsettled} records are not settled")
        known = {(d.card_serial, d.purse): d.difference_fen for d in differences if named}
        on_cards = self._compare(books, known, faults)
        sums = {kind: sum(fen for name, fen in books.items() if name.startswith(kind)) for kind in ACCOUNTS}
        if sum(books.values()):
            faults.append(f"the books are off by {sum(books.values())} fen")
        loaded = -sum(sums[name] for name in ("bank", "cash", "vouchers", "subsidies"))
        if loaded != on_cards + sums["takings"] + sums["refunds"] + sums["transfers"]:
            faults.append("money went in that is neither on cards nor taken nor owed")
        faults += [f"{name} holds {sums[name]} fen" for name in ("in-doubt", "differences", "transfers") if sums[name]]
        events = self._verify(faults)
        return Proof(loaded, on_cards, sums["takings"], sums["refunds"], records, events, tuple(faults))

    def _compare(self, books: dict[str, int], known: dict[tuple[bytes, Purse], int], faults: list[str]) -> int:
        """Chips beside books, purse by purse, but for ``known`` differences; returns what cards hold by the books."""
        left = {name: fen for name, fen in books.items() if name.startswith("card/")}
        total = sum(left.values())
        for member in self.chips:
            serial = self.serial(member)
            for purse, held in self.on_chip(member).items():
                booked = left.pop(ledger.card_account(serial, purse), 0)
                if booked + known.get((serial, purse), 0) != held:
                    faults.append(f"member {member}, {purse.name.lower()}: chip {held} fen, books {booked} fen")
        explained = {ledger.card_account(*place): fen for place, fen in known.items()}
        faults += [f"{name} still holds {fen} fen" for name, fen in left.items() if fen + explained.get(name, 0)]
        return total

    def _verify(self, faults: list[str]) -> int:
        """Walk books and audit chains; returns how many events are proven."""
        events = 0
        try:
            with self.system.database.read() as tx:
                ledger.verify(tx, ENTERPRISE)
                events += audit.verify(tx, ENTERPRISE).sealed
            with self.system.platform.read() as tx:
                events += audit.verify(tx, PLATFORM).sealed
            for till in self.tills:
                till.journal.verify()
        except OneCardError as e:
            faults.append(str(e))
        return events


class AirCompany(Company):
    """A company whose cards are SIMs in phones: after the factory nothing touches them but short messages."""

    def factory(self, member: str) -> Phone:
        """Wash a SIM, give it the platform's keyset, and put it into the member's phone."""
        sim = Sim.vendor_fresh(TRANSPORT_KEY, self.random.randbytes)
        office = self.office()
        serial = office.next_serial(CardKind.RFID_SIM)
        initial = KeyHandle(make_key(TRANSPORT_KEY), "vendor")
        wash(sim, WashPlan("factory", serial, 1, START, office.card_version, initial), office.store, MemorySteps())
        with self.system.platform.write() as tx:
            chips.register(tx, self.platform_admin, serial, wash_version=1)
        keys = airkeys.of_platform(self.system.platform, office.store, serial)
        carried = packet_key(PacketAlgorithm.AES, self.random.randbytes(16))  # between office and factory
        kic, kid, kik = (carried.unwrap(carried.wrap(key)) for key in keys.all)
        cell = sim.phone.memory.ota
        cell.value = {**cell.value, keys.key_set.number: OtaKeySet("aes", kic, kid, 0, kik)}
        sim.reset()
        phone = Phone(sim.phone)
        phone.power_on()
        self.chips[member], self.washed[member] = sim, serial
        self.post.phones = {**self.post.phones, self._number(member): phone}
        return phone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.post = Post({})
        self.washed: dict[str, bytes] = {}

    def _number(self, member: str) -> str:
        with self.system.database.read() as tx:
            return members.get(tx, ENTERPRISE, member).phone_number

    def server(self) -> Server:
        """The server over the air, as a fresh process has it."""
        return Server(self.office(), self.post)

    def issue_by_air(self, member: str) -> Result:
        """Slot, keyset and application by short messages."""
        return ota_server.issue(self.server(), self.admin, member, self.washed[member], pin_bytes(PIN))

    def by_air(self, kind: str, member: str, amount_fen: int = 0) -> AirJob:
        """Queue one job and do what is due; the job as it ended. Raises CheckFailed when it is not proven."""
        given: dict[str, int | str] = {"amount_fen": amount_fen} | ({"account": "bank"} if kind == "recharge" else {})
        serial = self.serial(member)
        with self.system.database.write() as tx:
            job = airqueue.queue(tx, self.admin, ENTERPRISE, kind, serial, given)
        return self.proven(job.air_id)

    def proven(self, air_id: str = "") -> AirJob:
        """Do what is due; one job of it, or the last. Raises CheckFailed when it is not proven."""
        done = {job.air_id: job for job in self.server().run()}
        job = done.get(air_id) or list(done.values())[-1]
        if job.state is not AirState.PROVEN:
            raise CheckFailed(f"{job.kind} over the air is {job.state}: {job.trouble}")
        return job

    def set_service_password(self, member: str, digits: str) -> None:
        """What a member tells the office in person."""
        credential = airmenu.credential_of(digits, self.random.randbytes, QUICK)
        with self.system.database.write() as tx:
            airmenu.set_password(tx, self.admin, ENTERPRISE, member, credential)


ACCOUNTS = (
    "bank",
    "cash",
    "vouchers",
    "subsidies",
    "takings",
    "refunds",
    "transfers",
    "in-doubt",
    "differences",
    "expired",
)
"""Beginnings of the accounts' names, beside the cards'."""
