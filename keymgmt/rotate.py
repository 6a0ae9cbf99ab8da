"""Rotation: the keys of an application on a card give way to another version (keys.md, Rotation, second washing).

Most keys have one place on a card, so they can't all change in one instant. While they do, 0015 names key set 00:
no terminal meets a card of two minds, none takes money by a purchase key of one version and a TAC key of another.
0015 therefore always tells the truth: N or M is a whole key set, 00 is a card to be finished where it is recharged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cardlib.apdu import SW
from cardlib.errors import CheckFailed, Conflict, CryptoError, FormatError, NotFound, Refused, StatusError
from cardlib.iso7816 import read_binary, unblock_pin, update_binary, write_key_sealed
from cardlib.profile import KeySpec, Purpose, TransactionType, load_profile
from cardlib.purse import (
    CHANGING,
    CardSession,
    authenticate,
    identify,
    initialize_purchase,
    open_application,
    recover,
)
from cardlib.records import Transaction
from cardlib.transport import Transport
from keymgmt.delivery import sealed_by
from keymgmt.keys import KeyRef, KeyState
from keymgmt.personalise import (
    HOST_ONLY,
    Station,
    application_keys,
    holds,
    protector,
    prove_money_keys,
    prove_purchase,
)
from keymgmt.steps import ADD, require_card
from keymgmt.store import KeyStore

LAST_SEQ = 0xFFF0
"""Beyond this payment counter a card is replaced, not renewed: each proof of new keys uses up a number."""
ORDER = tuple(KeyState)


@dataclass(frozen=True, slots=True)
class RekeyPlan:
    """One application to be brought to ``key_set``. ``known`` are versions that a torn one may hold, likely first."""

    job: str
    serial: bytes
    enterprise_id: int
    key_set: int
    known: tuple[int, ...] = ()

    def check(self) -> None:
        """Raises FormatError when there is no such key set."""
        if not 1 <= self.key_set <= 255:
            raise FormatError(f"a key set is 1 to 255, not {self.key_set}")

    def lines(self) -> list[str]:
        """The plan for people to read before it is carried out (dry run)."""
        keys = ", ".join(spec.name for spec in application_keys())
        return [
            f"card {self.serial.hex().upper()}, enterprise {self.enterprise_id}, to key set {self.key_set}",
            "authenticate with the key set that the card holds; find out how interrupted payments ended",
            "write key set 00 into the public information: no terminal takes the card until it is finished",
            f"replace under the control key: {keys}; then the control key itself",
            "prove each new key by using it, with a payment of 0.00 for purchase and TAC key; money and PIN stay",
            f"write key set {self.key_set} into the public information: from here terminals use the new keys",
        ]


def rotated() -> list[KeySpec]:
    """The keys of a key set: all of an application but the holder's PIN; the control key last."""
    return [*application_keys(), load_profile().key(Purpose.CONTROL)]


def versions(store: KeyStore, enterprise_id: int) -> dict[int, KeyState]:
    """Versions of an enterprise's key set with their states; of a half-done change, the state that it left.

    An enterprise that never rotated has no entries of its own: its version follows from the platform's roots.
    """
    states = {info.ref: info.state for info in store.list()}
    purposes = [spec.purpose for spec in rotated()]
    own = {r.version for r in states if r.enterprise_id == enterprise_id and r.purpose in purposes}
    if not own:
        roots = [r.version for r, state in states.items() if r.root == r and r.purpose is Purpose.CONTROL]
        own = {min((v for v in roots if states[KeyRef(Purpose.CONTROL, v)] is KeyState.ACTIVE), default=1)}
    return {version: min((_state(states, purpose, version, enterprise_id) for purpose in purposes), key=ORDER.index)
            for version in sorted(own)}  # fmt: skip


def _state(states: Mapping[KeyRef, KeyState], purpose: Purpose, version: int, enterprise_id: int) -> KeyState:
    """An enterprise key's own state, else its root's."""
    root = states.get(KeyRef(purpose, version), KeyState.PENDING)
    return states.get(KeyRef(purpose, version, enterprise_id), root)


def active_version(store: KeyStore, enterprise_id: int) -> int:
    """The version that new cards get and old ones are brought to: the highest active one, 1 before any is."""
    return max((v for v, state in versions(store, enterprise_id).items() if state is KeyState.ACTIVE), default=1)


def rekey(
    card: Transport, plan: RekeyPlan, station: Station, open_moves: Iterable[tuple[int, Transaction]] = ()
) -> tuple[Purpose, ...]:
    """Bring an application to another key set, or finish one that was interrupted, whatever it was on its way to.

    A card that is there already is only authenticated. ``open_moves`` are the journal's unfinished moves with this
    card: they are closed before its TAC key changes. Returns the purposes that this station's host can't prove.
    Raises NotFound, Refused, Conflict before anything is changed; CryptoError when no control key that the source has
    opens the card; CheckFailed naming what can't be proven; OutcomeUnknown when the card left during the payment of
    zero: present it again.
    """
    plan.check()
    moves = tuple(open_moves)
    if station.keys.enterprise_id != plan.enterprise_id:
        raise Conflict(f"these are keys of enterprise {station.keys.enterprise_id}, not {plan.enterprise_id}")
    require_card(card, plan.serial)
    session = identify(card, plan.enterprise_id)
    if session.blocked or session.factor != plan.serial:
        why = "is blocked: unblock it first" if session.blocked else "names another card"
        raise Conflict(f"the application on card {plan.serial.hex().upper()} {why}")
    _expect_keys(plan, station, session.version)
    if session.version == plan.key_set:
        _resolve(card, station, _opened(card, plan, station), moves)
        return ()
    if session.version != CHANGING:
        _begin(card, plan, station, moves)
        moves = ()
    under = _control(card, plan, station, session.version)
    _write_keys(card, plan, station, under)
    session = replace(session, public_info=replace(session.public_info, key_set=plan.key_set))
    left = _prove(card, plan, station, session, moves)
    station.steps.done(plan.job, "proven")
    _write_public(card, station, session, plan.key_set, plan.key_set)
    station.steps.done(plan.job, "complete")
    return left


def _opened(card: Transport, plan: RekeyPlan, station: Station) -> CardSession:
    return open_application(card, station.host, plan.enterprise_id, station.random_bytes)


def _expect_keys(plan: RekeyPlan, station: Station, version: int) -> None:
    """All that is needed can be had from the source, before anything on the card changes. Raises NotFound, Refused."""
    lines = station.keys.lines()
    controls = [line.version for line in lines if line.purpose is Purpose.CONTROL]
    if version not in (CHANGING, *controls):
        raise NotFound(f"the card holds key set {version}, and there is no control key of that version to write under")
    left = {line.purpose: line.left for line in lines if line.version == plan.key_set}
    for spec in rotated():
        if spec.purpose not in left:
            raise NotFound(f"there is no {spec.name} key of version {plan.key_set} to write")
        if left[spec.purpose] < len(spec.kids):
            raise Refused("out_of_deliveries", f"the source may deliver {left[spec.purpose]} more {spec.name} keys")


def _resolve(card: Transport, station: Station, session: CardSession, moves: Iterable[tuple[int, Transaction]]) -> None:
    for ref, move in moves:
        recover(card, station.host, station.journal, session, ref, move)


def _begin(card: Transport, plan: RekeyPlan, station: Station, moves: Iterable[tuple[int, Transaction]]) -> None:
    """Close what is open under the old keys; from the mark on, no terminal takes the card."""
    session = _opened(card, plan, station)
    _resolve(card, station, session, moves)
    kid = load_profile().key(Purpose.PURCHASE).kid(session.version)
    terminal = station.host.info().terminal
    if initialize_purchase(card, TransactionType.COMPOSITE, kid, 0, terminal).seq > LAST_SEQ:
        raise Refused("counter_full", "the card has hardly any payments left: replace it")
    _write_public(card, station, session, session.version, CHANGING)
    station.steps.done(plan.job, "marked")


def _write_public(card: Transport, station: Station, session: CardSession, version: int, key_set: int) -> None:
    """Write 0015 with a key set, under the maintenance key of ``version``. Raises CheckFailed."""
    fid = load_profile().file("public").fid
    content = replace(session.public_info, key_set=key_set).encode()
    protect = protector(station.host, session.factor, version, Purpose.MAINTENANCE)
    update_binary(card, fid, content, protect=protect)
    if read_binary(card, fid) != content:
        raise CheckFailed("the card's public information does not hold what was written")


def _control(card: Transport, plan: RekeyPlan, station: Station, version: int) -> int:
    """The version whose control key opens the application: its own, or of a torn one the first that does.

    These keys have error counter FF, so that asking costs nothing.
    """
    if version == CHANGING:
        listed = [line.version for line in station.keys.lines() if line.purpose is Purpose.CONTROL]
        candidates = tuple(dict.fromkeys((*(v for v in plan.known if v in listed), plan.key_set, *listed)))
    else:
        candidates = (version,)
    for candidate in candidates:
        if holds(card, station.keys, plan.serial, Purpose.CONTROL, candidate):
            return candidate
    tried = ", ".join(map(str, candidates))
    raise CryptoError(
        f"card {plan.serial.hex().upper()} accepts no control key of version {tried}: its keys are those of another "
        "version or enterprise; look up which source wrote it"
    )


def _write_keys(card: Transport, plan: RekeyPlan, station: Station, under: int) -> None:
    """Each key of the new set, the control key last: a torn card opens with one of the two, and all is written anew.

    Purchase and load key of the other parity stay under their identifier (profile.md); no terminal asks for them.
    """
    for spec in rotated():
        if spec.purpose is Purpose.CONTROL:
            station.steps.done(plan.job, "application keys")
            if under == plan.key_set:
                continue
        kid = spec.kid(plan.key_set)
        payload = sealed_by(station.keys, spec.purpose, plan.key_set, (Purpose.CONTROL, under), plan.serial)
        try:
            write_key_sealed(card, spec.key_type, kid, payload)
        except StatusError as e:
            if e.sw != SW.KEY_NOT_FOUND:
                raise
            write_key_sealed(card, ADD, kid, payload)
    station.steps.done(plan.job, "control key")


def _prove(
    card: Transport,
    plan: RekeyPlan,
    station: Station,
    session: CardSession,
    moves: Iterable[tuple[int, Transaction]],
) -> tuple[Purpose, ...]:
    """Use every new key once, as personalising does; the maintenance key proves itself when 0015 is written."""
    if not holds(card, station.keys, plan.serial, Purpose.CONTROL, plan.key_set):
        raise CheckFailed("the card's control key is not the one we wrote")
    session = authenticate(card, station.host, session, station.random_bytes)
    _resolve(card, station, session, moves)
    prove_purchase(card, session, station)
    left = tuple(purpose for purpose in HOST_ONLY if not station.host.holds(purpose))
    if not left:
        prove_money_keys(card, session, station)
    _prove_pin_unblock(card, plan, station)
    return left


def _prove_pin_unblock(card: Transport, plan: RekeyPlan, station: Station) -> None:
    """Key 37 without the holder's PIN: to an empty PIN a card says 6A80, but only once the MAC was right."""
    protect = protector(station.host, plan.serial, plan.key_set, Purpose.PIN_UNBLOCK, encrypt=True)
    try:
        unblock_pin(card, b"", protect, load_profile().key(Purpose.PIN).kid(plan.key_set))
    except StatusError as e:
        if e.sw in (SW.DATA, SW.KEY_NOT_FOUND):  # 6A88: a card without PIN
            return
        raise CheckFailed(f"the card's PIN unblock key is not the one we wrote: status {e.sw:04X}") from e
    raise CheckFailed("the card took an empty PIN: return it to its maker")
