"""Rotation of an enterprise's keys without recalling cards (keys.md, Rotation; requirement B5).

The states of a version are those of the enterprise's own entries in the key store, one per purpose: they are chained
and can't be rolled back unnoticed. Which card and SAM holds which version stands in the enterprise's database.
New cards get the highest active version, and every card that comes to a desk of the office is brought to it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from backoffice import audit, reconcile, registry
from backoffice.audit import Event
from backoffice.database import Tx
from cardlib.errors import CardRemoved, Conflict, NotFound, OutcomeUnknown, Refused
from cardlib.purse import CardSession
from cardlib.transport import Transport
from keymgmt.keys import KeyRef, KeyState
from keymgmt.rotate import RekeyPlan, active_version, rekey, rotated, versions
from keymgmt.store import KeyStore

if TYPE_CHECKING:
    from backoffice.station import Desk

ENDED = "('replaced', 'cancelled')"
LAST_VERSION = 255


class Usage(NamedTuple):
    """Who still uses a version. ``torn``: cards on their way to it, or away from it, that were interrupted.

    ``lacking``: SAMs in use that hold older keys but not all of these; ``records``: not settled yet.
    """

    version: int
    state: KeyState
    cards: int
    torn: int
    sams: int
    lacking: int
    records: int


# At the desk


def renew(desk: Desk, card: Transport, found: CardSession) -> bool:
    """Bring the identified card in the reader to the active version, or finish one that was interrupted.

    False when there was nothing to do. Raises CardRemoved when the card left: present it again, money is where it was.
    """
    office, serial, target = desk.office, found.factor, desk.office.key_set
    with office.db.read() as tx:
        held, open_ = _held(tx, office.enterprise_id, serial)
    if held is None or (found.version == held == target and not open_):
        return False
    if found.version != target:
        with office.db.write() as tx:
            desk.work.job.hold(tx)
            _begin(tx, office.enterprise_id, serial, held, target)
        plan = RekeyPlan("rekey", serial, office.enterprise_id, target, (held, *open_))
        try:
            with desk.renewing():
                rekey(card, plan, desk.station(), desk.open_moves(serial))
        except OutcomeUnknown as e:
            raise CardRemoved("the card was lost while its keys were renewed: present it again") from e
    with office.db.write() as tx:
        _finish(tx, office.enterprise_id, serial, target, desk.work.info.actor)
    return True


def _held(tx: Tx, enterprise_id: int, serial: bytes) -> tuple[int | None, list[int]]:
    """The version a card is known to hold, and those that an interrupted change may have left on it."""
    key = (enterprise_id, serial)
    held = tx.value("SELECT key_version FROM card_application WHERE enterprise_id = ? AND card_serial = ?", key)
    rows = tx.all(
        "SELECT version_to FROM card_key_change WHERE enterprise_id = ? AND card_serial = ? AND done_ms IS NULL"
        " ORDER BY begun_ms DESC",
        key,
    )
    return held, [row[0] for row in rows]


def _begin(tx: Tx, enterprise_id: int, serial: bytes, held: int, target: int) -> None:
    tx.execute(
        "INSERT INTO card_key_change (enterprise_id, change_id, card_serial, version_from, version_to, begun_ms)"
        " SELECT ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT change_id FROM card_key_change WHERE enterprise_id = ?"
        " AND card_serial = ? AND version_to = ? AND done_ms IS NULL)",
        (enterprise_id, tx.new_id(), serial, held, target, tx.now_ms, enterprise_id, serial, target),
    )


def _finish(tx: Tx, enterprise_id: int, serial: bytes, version: int, actor: str) -> None:
    key = (enterprise_id, serial)
    tx.execute(
        "UPDATE card_application SET key_version = ? WHERE enterprise_id = ? AND card_serial = ?", (version, *key)
    )
    tx.execute(
        "UPDATE card_key_change SET done_ms = ? WHERE enterprise_id = ? AND card_serial = ? AND done_ms IS NULL",
        (tx.now_ms, *key),
    )
    card = f"card:{serial.hex().upper()}"
    audit.record(tx, enterprise_id, Event.CARD_REKEYED, actor, card, version=version)


# How far a rotation is


def usage(tx: Tx, store: KeyStore, enterprise_id: int) -> list[Usage]:
    """Every version of the enterprise's keys, and how many cards, SAMs and records still need it."""
    sams = registry.sam_versions(tx, enterprise_id)
    return [
        Usage(
            version,
            state,
            len(cards_with(tx, enterprise_id, version)),
            len(torn_with(tx, enterprise_id, version)),
            len(sams.get(version, ())),
            len(sams_lacking(tx, enterprise_id, version)),
            len(records_with(tx, enterprise_id, version)),
        )
        for version, state in versions(store, enterprise_id).items()
    ]


def cards_with(tx: Tx, enterprise_id: int, version: int) -> list[str]:
    """Serials of the cards in use that hold a version, those in the making too."""
    return _column(
        tx,
        f"SELECT card_serial FROM card_application WHERE enterprise_id = ? AND key_version = ? AND state NOT IN {ENDED}"
        " ORDER BY card_serial",
        (enterprise_id, version),
    )


def torn_with(tx: Tx, enterprise_id: int, version: int) -> list[str]:
    """Serials of cards that may hold keys of a version beside their own: their change was interrupted."""
    return _column(
        tx,
        "SELECT DISTINCT c.card_serial FROM card_key_change c JOIN card_application a ON"
        " a.enterprise_id = c.enterprise_id AND a.card_serial = c.card_serial WHERE c.enterprise_id = ?"
        f" AND c.done_ms IS NULL AND c.version_to = ? AND a.key_version <> ? AND a.state NOT IN {ENDED}"
        " ORDER BY c.card_serial",
        (enterprise_id, version, version),
    )


def records_with(tx: Tx, enterprise_id: int, version: int) -> list[str]:
    """Records whose proof settlement may still have to check with a version."""
    rows = tx.all(
        "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND open = 1 AND key_version = ?"
        " ORDER BY record_id",
        (enterprise_id, version),
    )
    return [row[0] for row in rows]


def sams_lacking(tx: Tx, enterprise_id: int, version: int) -> list[str]:
    """SAMs in terminals in service whose keys of ``version`` are fewer than those of another version they hold."""
    rows = tx.all(
        "SELECT s.sam_serial, k.version, k.purpose FROM terminal_sam s JOIN terminal t ON"
        " t.enterprise_id = s.enterprise_id AND t.terminal = s.terminal LEFT JOIN sam_key k ON"
        " k.enterprise_id = s.enterprise_id AND k.sam_serial = s.sam_serial WHERE s.enterprise_id = ?"
        " AND s.state = 'active' AND t.state = 'active' AND t.kind <> ? ORDER BY s.sam_serial",
        (enterprise_id, registry.TerminalKind.OFFICE.value),
    )
    needs: dict[bytes, set[int]] = {}
    has: dict[bytes, set[int]] = {}
    for serial, held, purpose in rows:
        needs.setdefault(serial, set()).add(purpose)
        if held == version:
            has.setdefault(serial, set()).add(purpose)
    return [serial.hex().upper() for serial, purposes in needs.items() if purposes != has.get(serial)]


def _column(tx: Tx, sql: str, parameters: tuple[object, ...]) -> list[str]:
    return [row[0].hex().upper() for row in tx.all(sql, parameters)]


def holders(tx: Tx, enterprise_id: int, version: int) -> list[str]:
    """Everything that keeps a version from being destroyed, in words: how many, and which first."""
    sams = sorted(serial.hex().upper() for serial in registry.sam_versions(tx, enterprise_id).get(version, ()))
    found = [
        ("cards hold it", cards_with(tx, enterprise_id, version)),
        ("cards were interrupted on their way to it", torn_with(tx, enterprise_id, version)),
        ("SAMs hold it", sams),
        ("records made with it are not settled", records_with(tx, enterprise_id, version)),
    ]
    last_ms = _last_used(tx, enterprise_id, version)
    if last_ms:
        late = [one.terminal.hex().upper() for one in reconcile.behind(tx, enterprise_id, last_ms)]
        found.append(("terminals have not brought their journals since the last card left it", late))
        missing = [gap.card_serial.hex().upper() for gap in reconcile.gaps(tx, enterprise_id)]
        found.append(("purses have records missing", missing))
    return [f"{len(names)} {what} (first {names[0]})" for what, names in found if names]


def _last_used(tx: Tx, enterprise_id: int, version: int) -> int:
    """When the last card left a version or ended with it; 0 when none ever did."""
    last: int = tx.value(
        "SELECT COALESCE(MAX(at_ms), 0) FROM (SELECT MAX(done_ms) AS at_ms FROM card_key_change"
        " WHERE enterprise_id = ? AND version_from = ? UNION ALL SELECT MAX(changed_ms) FROM card_application"
        f" WHERE enterprise_id = ? AND key_version = ? AND state IN {ENDED}) AS uses",
        (enterprise_id, version, enterprise_id, version),
    )
    return last


def next_step(tx: Tx, store: KeyStore, enterprise_id: int) -> str:
    """What to do next, in words."""
    found = {one.version: one for one in usage(tx, store, enterprise_id)}
    current = active_version(store, enterprise_id)
    for version, one in found.items():
        if one.state is KeyState.PENDING and version > current:
            if one.lacking:
                first = sams_lacking(tx, enterprise_id, version)[0]
                return f"load version {version} into {one.lacking} SAMs (first {first}), then activate it"
            return f"activate version {version}: onecard key activate {version}"
    for version, one in found.items():
        if version == current or one.state in (KeyState.DESTROYED, KeyState.PENDING):
            continue
        if one.cards or one.torn:
            first = [*torn_with(tx, enterprise_id, version), *cards_with(tx, enterprise_id, version)][0]
            more = one.cards + one.torn
            return f"{more} cards still hold version {version} (first {first}): a desk renews each card that comes by"
        if one.state is KeyState.ACTIVE:
            return f"no card holds version {version} any more: onecard key retire {version}"
        left = holders(tx, enterprise_id, version)
        return "; ".join(left) if left else f"nothing uses version {version}: onecard key destroy {version}"
    return f"version {current} is in use everywhere: onecard key rotate begins the next rotation"


# Changing states


def missing_roots(store: KeyStore, version: int) -> list[KeyRef]:
    """Root keys that a version needs and the platform has not made."""
    there = {info.ref for info in store.list() if info.state is not KeyState.DESTROYED}
    return [ref for spec in rotated() if (ref := KeyRef(spec.purpose, version)) not in there]


def make_roots(store: KeyStore, version: int, by: str) -> Iterator[KeyRef]:
    """Make and activate, one by one, the root keys that a version lacks, in the cipher of those before.

    Raises NotFound.
    """
    for ref in missing_roots(store, version):
        store.create(ref, store.info(ref._replace(version=version - 1)).algorithm, by)
        yield store.set_state(ref, KeyState.ACTIVE, by).ref


def following(store: KeyStore, enterprise_id: int) -> int:
    """The version that a rotation is on its way to, else the next one. Raises Conflict after 255."""
    found = versions(store, enterprise_id)
    living = [version for version, state in found.items() if state is not KeyState.DESTROYED]
    top = max(found)
    if len(living) > 1:
        return max(living)
    if top >= LAST_VERSION:
        raise Conflict("there is no key version after 255: issue new cards under another enterprise number")
    return top + 1


def begin(store: KeyStore, enterprise_id: int, by: str) -> int:
    """Begin a rotation, or go on with the one that is going on; returns the version it is on its way to.

    Raises NotFound when the platform's roots lack that version, Conflict when their cipher is another: an application
    can't change it.
    """
    version, current = following(store, enterprise_id), active_version(store, enterprise_id)
    missing = missing_roots(store, version)
    if missing:
        raise NotFound(
            f"the platform has no {missing[0]}, nor {len(missing) - 1} others of that version: it makes them first "
            "(onecard key ceremony, or key make)"
        )
    for spec in rotated():
        old, new = (store.info(KeyRef(spec.purpose, v)).algorithm for v in (current, version))
        if old != new:
            raise Conflict(f"root {spec.name} version {version} is {new.name}: cards work with {old.name} for life")
    _bring(store, enterprise_id, current, KeyState.ACTIVE, by, only_new=True)
    _bring(store, enterprise_id, version, KeyState.PENDING, by, only_new=True)
    return version


def _bring(
    store: KeyStore, enterprise_id: int, version: int, state: KeyState, by: str, *, only_new: bool = False
) -> None:
    """Bring every key of a version to a state, making entries that are missing; once begun it can be repeated."""
    there = {info.ref: info.state for info in store.list()}
    for spec in rotated():
        ref = KeyRef(spec.purpose, version, enterprise_id)
        now = there.get(ref)
        if now is None:
            now = store.create(ref, store.info(ref.root).algorithm, by).state
        elif only_new:
            continue
        for step in _way(now, state):
            store.set_state(ref, step, by)


def _way(now: KeyState, goal: KeyState) -> Iterable[KeyState]:
    """The states to go through; a pending key becomes retiring by way of active."""
    if now is goal:
        return ()
    if (now, goal) == (KeyState.PENDING, KeyState.RETIRING):
        return (KeyState.ACTIVE, KeyState.RETIRING)
    return (goal,)


def check_activate(tx: Tx, store: KeyStore, enterprise_id: int, version: int, *, without_sams: bool = False) -> None:
    """What must hold before a version is activated; raises as :func:`activate`."""
    expect(store, enterprise_id, version, KeyState.PENDING, KeyState.RETIRING, KeyState.ACTIVE)
    lacking = sams_lacking(tx, enterprise_id, version)
    if lacking and not without_sams:
        raise Refused("sams", f"{len(lacking)} SAMs lack version {version} (first {lacking[0]}): load them first")
    newer = [v for v, state in versions(store, enterprise_id).items() if v > version and state is KeyState.ACTIVE]
    if newer:
        raise Conflict(f"version {newer[0]} is active and newer: onecard key rollback goes back")


def activate(tx: Tx, store: KeyStore, enterprise_id: int, version: int, by: str, *, without_sams: bool = False) -> None:
    """From now on new cards get this version, and desks bring old ones to it.

    Raises NotFound for an unknown version, Conflict when it is destroyed or an older one, Refused ``sams`` while SAMs
    lack it, unless that is accepted.
    """
    check_activate(tx, store, enterprise_id, version, without_sams=without_sams)
    _bring(store, enterprise_id, version, KeyState.ACTIVE, by)
    _note(tx, enterprise_id, version, KeyState.ACTIVE, by)


def check_retire(store: KeyStore, enterprise_id: int, version: int) -> None:
    """What must hold before a version retires; raises as :func:`retire`."""
    expect(store, enterprise_id, version, KeyState.ACTIVE, KeyState.RETIRING)
    if version == active_version(store, enterprise_id):
        raise Conflict(f"version {version} is what new cards get: activate another one first")


def retire(tx: Tx, store: KeyStore, enterprise_id: int, version: int, by: str) -> None:
    """A version is on its way out: no new card gets it. Raises NotFound, Conflict."""
    check_retire(store, enterprise_id, version)
    _bring(store, enterprise_id, version, KeyState.RETIRING, by)
    _note(tx, enterprise_id, version, KeyState.RETIRING, by)


def before(store: KeyStore, enterprise_id: int) -> int:
    """The version that a rollback goes to. Raises as :func:`roll_back`."""
    current, found = active_version(store, enterprise_id), versions(store, enterprise_id)
    older = [v for v, state in found.items() if v < current and state in (KeyState.ACTIVE, KeyState.RETIRING)]
    if not older:
        raise Conflict(f"no version before {current} is left to go back to; a pending one can be destroyed")
    return max(older)


def roll_back(tx: Tx, store: KeyStore, enterprise_id: int, by: str) -> int:
    """Go back to the version before: active again, the newer one retiring; cards follow at the desks.

    Returns the version gone back to. Raises Conflict when none is left that is not destroyed.
    """
    current, back = active_version(store, enterprise_id), before(store, enterprise_id)
    _bring(store, enterprise_id, back, KeyState.ACTIVE, by)
    _bring(store, enterprise_id, current, KeyState.RETIRING, by)
    _note(tx, enterprise_id, back, KeyState.ACTIVE, by)
    return back


def destroy(tx: Tx, store: KeyStore, enterprise_id: int, version: int, by: str) -> None:
    """End a version for good. Raises NotFound, Conflict, Refused ``in_use`` naming who still needs it, and how many."""
    check_destroy(tx, store, enterprise_id, version)
    _bring(store, enterprise_id, version, KeyState.DESTROYED, by)
    _note(tx, enterprise_id, version, KeyState.DESTROYED, by)


def check_destroy(tx: Tx, store: KeyStore, enterprise_id: int, version: int) -> None:
    """What must hold before a version is destroyed; raises as :func:`destroy`."""
    expect(store, enterprise_id, version, KeyState.RETIRING, KeyState.PENDING)
    if version == active_version(store, enterprise_id):
        raise Refused("in_use", f"version {version} is what new cards get")
    left = holders(tx, enterprise_id, version)
    if left:
        raise Refused("in_use", f"version {version} is still used: {'; '.join(left)}")


def expect(store: KeyStore, enterprise_id: int, version: int, *states: KeyState) -> None:
    """Raise NotFound or Conflict unless a version is in one of these states."""
    found = versions(store, enterprise_id)
    if version not in found:
        known = ", ".join(map(str, found))
        raise NotFound(f"enterprise {enterprise_id} has no key version {version}: it has {known}")
    if found[version] not in states:
        raise Conflict(f"key version {version} is {found[version]}, not {' or '.join(states)}")


def _note(tx: Tx, enterprise_id: int, version: int, state: KeyState, by: str) -> None:
    audit.record(tx, enterprise_id, Event.KEY_CHANGED, by, f"key:set.{version}", state_to=state.value, version=version)
