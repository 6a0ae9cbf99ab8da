"""Personalising: the enterprise puts its keys and contents into its slot and proves each key (keys.md, profile.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date

from cardlib.apdu import SW
from cardlib.crypto import Algorithm
from cardlib.errors import CheckFailed, Conflict, CryptoError, FormatError, StatusError
from cardlib.iso7816 import (
    Protect,
    append_record,
    external_authenticate,
    get_challenge,
    read_binary,
    read_record,
    select_name,
    unblock_pin,
    update_binary,
    verify_pin,
    write_key_sealed,
)
from cardlib.ota import AirCard
from cardlib.profile import (
    AccessRights,
    DayCounters,
    Holder,
    KeySpec,
    LastPassage,
    PublicInfo,
    Purpose,
    Purse,
    SubsidyMark,
    TransactionType,
    aid,
    issuer_id,
    load_profile,
)
from cardlib.purse import (
    CardSession,
    Journal,
    MoneyRequest,
    balance,
    composite_debit,
    initialize_load,
    open_application,
    recover,
)
from cardlib.records import DEFAULT_OFFSET_MIN, Transaction, local_when, tac_input
from cardlib.sam import Host
from cardlib.transport import Transport
from keymgmt.delivery import KeySource, require_enterprise, sealed_by
from keymgmt.steps import ADD, Payload, StepJournal, authenticates, put_key, require_card

APP_TYPE = 0x03
"""ED and EP (card.md §5)."""
HOST_ONLY = (Purpose.RECHARGE, Purpose.LOAD, Purpose.REFUND, Purpose.UNLOAD, Purpose.TAC)
"""Keys that an issuing SAM does not hold (profile.md, held by)."""
OWN_KEYS = (Purpose.CONTROL, Purpose.SLOT, Purpose.PIN)
"""Written apart from the application's other keys."""


@dataclass(frozen=True, slots=True)
class PersonalPlan:
    """What one card of an enterprise will hold. ``key_set`` is the version of all its keys (1 to 255).

    ``pin`` is 2 to 6 bytes as the card has it (``cardlib.iso7816.pin_bytes``).
    """

    job: str
    serial: bytes
    enterprise_id: int
    key_set: int
    holder: Holder
    access: AccessRights
    start: date
    expiry: date
    pin: bytes = field(repr=False)
    algorithm: Algorithm = Algorithm.TDES
    slot_version: int = 1

    def public(self) -> PublicInfo:
        """Contents of 0015."""
        return PublicInfo(
            issuer_id(self.enterprise_id), APP_TYPE, self.key_set, b"\0\0" + self.serial, self.start, self.expiry
        )

    def contents(self) -> dict[str, bytes]:
        """Contents of the files that the enterprise writes, by name in the profile."""
        return {"public": self.public().encode(), "holder": self.holder.encode(), "access": self.access.encode()}

    def check(self) -> None:
        """Raises FormatError when something does not fit the card."""
        self.contents()
        if not 1 <= self.key_set <= 255 or not 2 <= len(self.pin) <= 6:
            raise FormatError("a key set is 1 to 255, a PIN 2 to 6 bytes")
        if self.expiry < self.start:
            raise FormatError(f"the card would expire on {self.expiry}, before it starts on {self.start}")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        keys = ", ".join(spec.name for spec in application_keys())
        return [
            f"card {self.serial.hex().upper()}, enterprise {self.enterprise_id}, key set {self.key_set}",
            f"write under the slot key: {keys}",
            "replace the slot key by the control key; from here the platform can't write keys",
            f"write public information ({self.start} to {self.expiry}), holder, access rights, counters, PIN",
            "prove each key by using it, with a payment of 0.00 for purchase and TAC key; compare all contents",
        ]


@dataclass(frozen=True, slots=True)
class Station:
    """The issuing station: its host, where keys come from, journals, clock and randomness."""

    host: Host
    keys: KeySource
    steps: StepJournal
    journal: Journal
    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    offset_min: int = DEFAULT_OFFSET_MIN


def protector(host: Host, serial: bytes, version: int, purpose: Purpose, *, encrypt: bool = False) -> Protect:
    """Secure messaging of an application's card through the host that holds its keys."""
    return lambda header, data, challenge: host.protect(purpose, serial, version, header, data, challenge, encrypt)


def application_keys() -> list[KeySpec]:
    """Keys written under the slot key, in the profile's order."""
    return [spec for spec in load_profile().keys if spec.level == "adf" and spec.purpose not in OWN_KEYS]


def personalise(
    card: Transport, plan: PersonalPlan, station: Station, open_moves: Iterable[tuple[int, Transaction]] = ()
) -> PublicInfo:
    """Personalise an open slot, or finish one that was interrupted; a finished one is proven again.

    ``open_moves`` are the journal's unfinished moves with this card (intent number, move). Raises Conflict when
    another card is there, CryptoError when neither slot nor control key opens it, CheckFailed naming what can't
    be proven, OutcomeUnknown when the card was pulled away during the payment of zero: present it again.
    """
    plan.check()
    require_enterprise(station.keys, plan.enterprise_id)
    if not isinstance(card, AirCard):  # a slot's keyset reaches one slot of one card, and no MF
        require_card(card, plan.serial)
    _select(card, plan)
    under = _under(card, plan, station)
    if under != (Purpose.CONTROL, plan.key_set):
        _write_keys(card, plan, station, under)
    _write_contents(card, plan, station)
    prove(card, plan, station, open_moves)
    station.steps.done(plan.job, "complete")
    return plan.public()


def prove(
    card: Transport, plan: PersonalPlan, station: Station, open_moves: Iterable[tuple[int, Transaction]] = ()
) -> tuple[Purpose, ...]:
    """Use every key of the application once and compare its contents; returns purposes left for another host.

    An issuing SAM has no load, unload, refund, recharge or TAC key: the enterprise's host proves those with
    :func:`prove_at_host`. Raises CheckFailed, CryptoError, StatusError.
    """
    session = open_application(card, station.host, plan.enterprise_id, station.random_bytes)
    for ref, move in open_moves:
        recover(card, station.host, station.journal, session, ref, move)
    _write_records(card)
    prove_purchase(card, session, station)
    station.steps.done(plan.job, "purchase and TAC key proven")
    left = tuple(purpose for purpose in HOST_ONLY if not station.host.holds(purpose))
    if not left:
        prove_money_keys(card, session, station)
        station.steps.done(plan.job, "load, refund and unload key proven")
    _prove_pin(card, plan, station)
    station.steps.done(plan.job, "PIN proven")
    if not holds(card, station.keys, plan.serial, Purpose.CONTROL, plan.key_set):
        raise CheckFailed("the card's control key is not the one we wrote")
    _compare(card, plan)
    return left


def prove_at_host(
    card: Transport, serial: bytes, enterprise_id: int, station: Station,
    open_moves: Iterable[tuple[int, Transaction]] = (),
) -> None:  # fmt: skip
    """Prove the keys that an issuing SAM could not: with a payment of zero and loads that are not carried out.

    Raises Conflict when another card is there, CheckFailed, CryptoError, StatusError.
    """
    session = open_application(card, station.host, enterprise_id, station.random_bytes)
    if session.factor != serial:
        raise Conflict(f"this is card {session.factor.hex().upper()}: present card {serial.hex().upper()}")
    for ref, move in open_moves:
        recover(card, station.host, station.journal, session, ref, move)
    prove_purchase(card, session, station)
    prove_money_keys(card, session, station)


def _select(card: Transport, plan: PersonalPlan) -> None:
    try:
        select_name(card, aid(plan.enterprise_id))
    except StatusError as e:
        if e.sw == SW.FILE_NOT_FOUND:
            raise Conflict(f"the card has no slot of enterprise {plan.enterprise_id}: the platform opens one") from e
        if e.sw == SW.NOT_SUPPORTED:
            raise Conflict("the application is blocked: close its slot and open it again") from e
        raise


def _under(card: Transport, plan: PersonalPlan, station: Station) -> tuple[Purpose, int]:
    """What 39/00 is: the slot key, our control key, or that of another key set which an abandoned job wrote.

    These counters are FF, so that asking costs nothing.
    """
    slot, control = (Purpose.SLOT, plan.slot_version), (Purpose.CONTROL, plan.key_set)
    order = [control, slot] if "control key" in station.steps.steps(plan.job) else [slot, control]
    others = (line for line in station.keys.lines() if line.purpose is Purpose.CONTROL and line.version != plan.key_set)
    for purpose, version in (*order, *((line.purpose, line.version) for line in others)):
        if holds(card, station.keys, plan.serial, purpose, version):
            return purpose, version
    raise CryptoError("neither our slot key nor our control key opens this application: it holds another key set")


def holds(card: Transport, keys: KeySource, serial: bytes, purpose: Purpose, version: int) -> bool:
    """Whether 39/00 of the selected application is that key of this card; leaves state 8 when it is."""
    return authenticates(card, 0, lambda challenge: keys.cryptogram(purpose, version, serial, challenge))


def _write_keys(card: Transport, plan: PersonalPlan, station: Station, under: tuple[Purpose, int]) -> None:
    """Application keys under the slot key, the control key last (keys.md, Slots, step 3)."""
    for spec in application_keys():
        put_key(card, spec.key_type, spec.kid(plan.key_set), _payload(plan, station.keys, spec, under))
    station.steps.done(plan.job, "application keys")
    control = load_profile().key(Purpose.CONTROL)
    write_key_sealed(card, control.key_type, control.kid(plan.key_set), _payload(plan, station.keys, control, under))
    station.steps.done(plan.job, "control key")


def _payload(plan: PersonalPlan, keys: KeySource, spec: KeySpec, under: tuple[Purpose, int]) -> Payload:
    return sealed_by(keys, spec.purpose, plan.key_set, under, plan.serial)


def _write_contents(card: Transport, plan: PersonalPlan, station: Station) -> None:
    profile = load_profile()
    protect = protector(station.host, plan.serial, plan.key_set, Purpose.MAINTENANCE)
    for name, content in plan.contents().items():
        update_binary(card, profile.file(name).fid, content, protect=protect)
    spec = profile.key(Purpose.PIN)
    payload = sealed_by(station.keys, Purpose.PIN, plan.key_set, (Purpose.CONTROL, plan.key_set), plan.serial, plan.pin)
    try:
        write_key_sealed(card, ADD, spec.kid(plan.key_set), payload)
    except StatusError as e:
        if e.sw != SW.P1P2:  # a PIN left by an interrupted run is set anew when key 37 is proven
            raise
    station.steps.done(plan.job, "contents")


def _write_records(card: Transport) -> None:
    """The three composite records of 0017, as far as they are not there; needs an authenticated terminal."""
    fid = load_profile().file("composite").fid
    there = True
    for number, record in enumerate((DayCounters.of(None), LastPassage.of(), SubsidyMark.of()), 1):
        there = there and _has_record(card, fid, number)
        if not there:
            append_record(card, fid, record.encode())


def _has_record(card: Transport, fid: int, number: int) -> bool:
    try:
        read_record(card, fid, number)
    except StatusError as e:
        if e.sw == SW.RECORD_NOT_FOUND:
            return False
        raise
    return True


def _request(station: Station, purse: Purse) -> MoneyRequest:
    now = station.now_ms()
    return MoneyRequest(purse, 0, local_when(now, station.offset_min), now)


def prove_purchase(card: Transport, session: CardSession, station: Station) -> None:
    """Keys 3E and 34, by a composite purchase of amount zero that the station journals (keys.md, Washing)."""
    host = station.host
    move = composite_debit(card, host, station.journal, session, _request(station, Purse.MAIN), ()).move
    if not move.mac2_verified:
        raise CheckFailed("the payment of zero could not be verified: present the card again")
    if host.holds(Purpose.TAC):
        host.verify_tac(session.factor, move.key_version, move.algorithm, tac_input(move), move.tac)


def prove_money_keys(card: Transport, session: CardSession, station: Station) -> None:
    """Keys 3F and 3D by the MAC1 of an INITIALIZE that is not carried on; the last also authenticates with 39/02."""
    host, terminal, factor = station.host, station.host.info().terminal, session.factor
    when, kind = _request(station, Purse.MAIN).when, TransactionType.LOAD_EP
    kid = {p: load_profile().key(p).kid(session.version) for p in (Purpose.REFUND, Purpose.UNLOAD, Purpose.LOAD)}
    # The card begins a refund only of its last purchase: the one of zero just made (card.md §4).
    init = initialize_load(card, kind, kid[Purpose.REFUND], 0, terminal)
    host.refund_mac2(init, 0, kind, when, factor)
    init = initialize_load(card, TransactionType.UNLOAD, kid[Purpose.UNLOAD], 0, terminal)
    host.unload_mac2(init, 0, terminal, when, factor)
    recharge = load_profile().key(Purpose.RECHARGE).kid(session.version)
    cryptogram = host.authenticate(Purpose.RECHARGE, factor, session.version, get_challenge(card))
    external_authenticate(card, recharge, cryptogram)
    init = initialize_load(card, kind, kid[Purpose.LOAD], 0, terminal)
    host.load_mac2(init, 0, kind, terminal, when, factor)


def _prove_pin(card: Transport, plan: PersonalPlan, station: Station) -> None:
    """Keys 37 and 3A: set the PIN once more under 37, then present it."""
    kid = load_profile().key(Purpose.PIN).kid(plan.key_set)
    protect = protector(station.host, plan.serial, plan.key_set, Purpose.PIN_UNBLOCK, encrypt=True)
    unblock_pin(card, plan.pin, protect, kid)
    verify_pin(card, plan.pin, kid)


def _compare(card: Transport, plan: PersonalPlan) -> None:
    profile = load_profile()
    for name, content in plan.contents().items():
        if read_binary(card, profile.file(name).fid) != content:
            raise CheckFailed(f"the card's file {name} does not hold what was written")
    for purse in Purse:
        if balance(card, purse):
            raise CheckFailed(f"the {purse.name.lower()} purse of a new card is not empty")
