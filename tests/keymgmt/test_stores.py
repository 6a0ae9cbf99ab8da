"""One suite for every key store: file and PKCS#11 keep the same keys in the same way, and give the same payloads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import BadKcv, ConfigError, Conflict, CryptoError, FormatError, NotFound, OneCardError, Refused
from cardlib.profile import Purpose, issuer_id, load_profile
from cardlib.sam import LOADED_USAGE
from keymgmt.delivery import Delivery, KeySource, StoreKeys, protected
from keymgmt.handle import FLUSH_USES, SHARE, KeyHandle
from keymgmt.keys import PLATFORM_PURPOSES, TRANSITIONS, KeyInfo, KeyRef, KeyState
from keymgmt.mothercard import MotherCard
from keymgmt.personalise import personalise
from keymgmt.pkcs11 import CHUNK, Pkcs11Store
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.slot import open_slot
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore, SharedStore
from keymgmt.wash import wash
from simulator.card import Card
from simulator.sam import SamCard
from tests.keymgmt.mothers import PINS, made_authentication, made_mother
from tests.keymgmt.rig import (
    CHEAP,
    ENTERPRISE,
    EXPIRY,
    SAM_SERIAL,
    SERIAL,
    START,
    TERMINAL,
    TRANSPORT_KEY,
    Rig,
    held,
    master,
    same,
)
from tests.softhsm import MODULE, PIN, TOKEN, softhsm

ROOT = Path(__file__).parents[2]
PASSPHRASE = b"open sesame"
PURCHASE = KeyRef(Purpose.PURCHASE, 1)
OURS = KeyRef(Purpose.PURCHASE, 1, ENTERPRISE)
VALUE = bytes(range(16))
KINDS = ("file", "pkcs11")
Uses = list[tuple[KeyRef, str, int]]
Acts = Sequence[Callable[[], object]]


class Place:
    """Where a store of one kind is: made empty at first, opened as often as one likes, all closed at the end."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.uses: Uses = []
        self._stack = ExitStack()
        if kind == "file":
            FileStore.create_file(folder / "keys", PASSPHRASE, CHEAP).close()
        else:
            self._stack.enter_context(softhsm(folder / "hsm"))

    def open(self, seed: int = 7) -> SharedStore:
        ticks = count(1_700_000_000_000)
        options: dict[str, Any] = {
            "random_bytes": Random(seed).randbytes,
            "now_ms": lambda: next(ticks),
            "on_use": lambda *use: self.uses.append(use),
        }
        if self.kind == "file":
            return self._stack.enter_context(FileStore(self.folder / "keys", PASSPHRASE, **options))
        return self._stack.enter_context(Pkcs11Store(MODULE, TOKEN, PIN, self.folder / "lock", **options))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store of each kind."""
    made = Place(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(place: Place) -> SharedStore:
    return place.open()


def add(store: SharedStore, ref: KeyRef = PURCHASE, value: bytes = VALUE) -> None:
    store.import_key(ref, Algorithm.TDES, value, make_key(value).kcv, "li")


# What a key store does.


def test_survives_reopening(place: Place) -> None:
    """What was made, taken in and moved on is there after opening again, in the order of making."""
    with place.open() as store:
        made = [store.create(KeyRef(Purpose.LOAD, version), Algorithm.TDES, "li") for version in (3, 1, 2)]
        add(store)
        store.set_state(PURCHASE, KeyState.ACTIVE, "wang")
        kcv = store.handle(PURCHASE, issuer_id(7), SERIAL).kcv
        kept = list(store.list())
        assert kept[:3] == made
    with place.open() as store:
        assert list(store.list()) == kept
        assert store.info(PURCHASE).state is KeyState.ACTIVE
        assert (store.info(PURCHASE).made_by, store.info(PURCHASE).kcv) == ("li", make_key(VALUE).kcv)
        assert store.handle(PURCHASE, issuer_id(7), SERIAL).kcv == kcv
        assert len({info.kcv for info in store.list()}) == 4


def test_hierarchy(store: SharedStore) -> None:
    """Root, enterprise and card keys are card.md's, by either way down, whether the enterprise's is listed or not."""
    add(store)
    ours = make_key(VALUE).diversify(issuer_id(ENTERPRISE))
    card = ours.diversify(SERIAL)
    for _ in range(2):
        for handle in (store.handle(OURS, SERIAL), store.handle(PURCHASE, issuer_id(ENTERPRISE), SERIAL)):
            assert (handle.kcv, handle.mac(b"same?")) == (card.kcv, card.mac(b"same?"))
        assert store.handle(OURS).kcv == ours.kcv
        if OURS not in [info.ref for info in store.list()]:
            assert store.create(OURS, Algorithm.TDES, "li").kcv == ours.kcv
    assert store.handle(OURS._replace(enterprise_id=2), SERIAL).kcv != card.kcv


def test_enterprise_key_without_root(store: SharedStore) -> None:
    """A store that was given one enterprise's key serves that enterprise and no other."""
    add(store, OURS)
    assert store.handle(OURS, SERIAL).kcv == make_key(VALUE).diversify(SERIAL).kcv
    for ref in (PURCHASE, OURS._replace(enterprise_id=2)):
        with pytest.raises(NotFound):
            store.handle(ref)


def test_nothing_is_overwritten(place: Place, store: SharedStore) -> None:
    """A reference that exists, in whatever state, is never made, taken in or derived again."""
    add(store)
    store.create(OURS, Algorithm.TDES, "li")
    before = [*store.list()], store.handle(OURS, SERIAL).kcv
    other = place.open(8)
    for again in (store, other):
        for ref in (PURCHASE, OURS):
            with pytest.raises(Conflict, match="exists already"):
                again.create(ref, Algorithm.TDES, "wang")
            with pytest.raises(Conflict, match="exists already"):
                add(again, ref, VALUE[::-1])
    assert ([*other.list()], other.handle(OURS, SERIAL).kcv) == before
    store.set_state(PURCHASE, KeyState.DESTROYED, "li")
    with pytest.raises(Conflict, match="exists already"):
        add(other)


def test_states(store: SharedStore) -> None:
    """A key moves only along its life."""
    versions = count(1)
    for old in KeyState:
        for new in KeyState:
            ref = KeyRef(Purpose.LOAD, next(versions))
            store.create(ref, Algorithm.TDES, "li")
            for state in list(KeyState)[1 : list(KeyState).index(old) + 1]:
                store.set_state(ref, state, "li")
            if new in TRANSITIONS[old]:
                assert store.set_state(ref, new, "li").state is store.info(ref).state is new
            else:
                with pytest.raises(Conflict):
                    store.set_state(ref, new, "li")
                assert store.info(ref).state is old


def test_destroyed_is_of_no_use(place: Place, store: SharedStore) -> None:
    """A destroyed key and what descends from it is refused by every process, its attributes stay."""
    add(store)
    store.create(OURS, Algorithm.TDES, "li")
    other = place.open(8)
    assert other.handle(OURS, SERIAL).kcv
    store.set_state(PURCHASE, KeyState.DESTROYED, "li")
    for one in (store, other, place.open(9)):
        assert one.info(PURCHASE).state is KeyState.DESTROYED
        assert one.info(PURCHASE).kcv == make_key(VALUE).kcv
        for ref in (PURCHASE, OURS, OURS._replace(enterprise_id=2)):
            with pytest.raises(Conflict, match="destroyed"):
                one.handle(ref)


def test_what_is_refused(place: Place, store: SharedStore) -> None:
    """Single DES by policy, wrong check values, values of other sizes, impossible and unknown references."""
    legacy: Acts = (
        lambda: store.create(PURCHASE, Algorithm.DES, "li"),
        lambda: store.import_key(PURCHASE, Algorithm.DES, VALUE[:8], make_key(VALUE[:8]).kcv, "li"),
        lambda: store.import_key(PURCHASE, Algorithm.DES, VALUE, make_key(VALUE).kcv, "li"),
    )
    for act in legacy:
        with pytest.raises(Refused) as refused:
            act()
        assert refused.value.reason == "algorithm"
    with pytest.raises(BadKcv):
        store.import_key(PURCHASE, Algorithm.TDES, VALUE, b"\1\2\3", "li")
    with pytest.raises(ConfigError):
        store.import_key(PURCHASE, Algorithm.TDES, VALUE[:8], make_key(VALUE[:8]).kcv, "li")
    for bad in (KeyRef(Purpose.LOAD, 0), KeyRef(Purpose.LOAD, 256), KeyRef(Purpose.CARD_CONTROL, 1, 5)):
        with pytest.raises(FormatError):
            store.create(bad, Algorithm.TDES, "li")
    unknown: Acts = (
        lambda: store.handle(PURCHASE),
        lambda: store.info(PURCHASE),
        lambda: store.set_state(PURCHASE, KeyState.ACTIVE, "li"),
        lambda: store.create(OURS, Algorithm.TDES, "li"),
    )
    for act in unknown:
        with pytest.raises(NotFound):
            act()
    assert not store.list()


def test_sm4_is_the_file_stores(place: Place, store: SharedStore) -> None:
    """The file store makes SM4 keys; a token says that it has no SM4 and what to do, and nothing is left behind."""
    kcv = make_key(VALUE, Algorithm.SM4).kcv
    acts: Sequence[Callable[[], KeyInfo]] = (
        lambda: store.create(PURCHASE, Algorithm.SM4, "li"),
        lambda: store.import_key(KeyRef(Purpose.LOAD, 1), Algorithm.SM4, VALUE, kcv, "li"),
    )
    for act in acts:
        if isinstance(store, Pkcs11Store):
            with pytest.raises(ConfigError, match=r"SM4.*use the file store"):
                act()
            assert not store.list()
            assert not store._find()
        else:
            assert act().algorithm is Algorithm.SM4


def test_one_call_for_many_cards(store: SharedStore) -> None:
    """The keys of many cards in one call are those of one call each, beyond a module's call and a core's share."""
    add(store)
    cards = 3 * SHARE // 8 + 5
    assert cards > CHUNK // 16
    serials = [number.to_bytes(8, "big") for number in range(cards)]
    batch = store.handle(OURS).derive_many(serials)
    assert len(batch) == cards
    for at in (0, 1, CHUNK // 16 - 1, CHUNK // 16, SHARE // 8, cards // 2, cards // 2 + 1, cards - 1):
        assert batch[at].mac(b"same?") == store.handle(OURS, serials[at]).mac(b"same?")
    assert [key.kcv for key in batch[-3:]] == [store.handle(OURS, serial).kcv for serial in serials[-3:]]
    assert len(store.handle(OURS).derive_many([])) == 0


def test_uses_are_told(place: Place, store: SharedStore) -> None:
    """Each use of a master key is told: at once alone, in a job once at its start and the rest in sums."""
    add(store)
    store.handle(OURS, SERIAL)
    store.handle(OURS).derive_many([SERIAL] * 5)
    assert place.uses == [(OURS, "single use", 1), (OURS, "single use", 5)]
    place.uses.clear()
    with store.using("issue batch 7"):
        for number in range(FLUSH_USES + 50):
            store.handle(OURS, number.to_bytes(8, "big"))
        store.handle(PURCHASE, issuer_id(7), SERIAL)
    assert {(ref, text) for ref, text, _ in place.uses} == {(OURS, "issue batch 7"), (PURCHASE, "issue batch 7")}
    assert sum(times for ref, _, times in place.uses if ref == OURS) == FLUSH_USES + 50
    place.uses.clear()
    KeyHandle(make_key(VALUE[::-1]), "SAM control").wrap(store.handle(OURS), bytes.fromhex("220100"))
    store.create(OURS, Algorithm.TDES, "li")
    assert place.uses == [(OURS, "single use", 1), (PURCHASE, "single use", 1)]


def test_master_keys_are_no_oracle(store: SharedStore) -> None:
    """A master key computes nothing over data: with a factor as data that would be a card's key."""
    add(store)
    for top in (store.handle(PURCHASE), store.handle(OURS)):
        for use in (top.encrypt, top.answer, top.cryptogram, top.mac, top.tac, top.seal, top.session):
            with pytest.raises(CryptoError):
                use(SERIAL)
    with pytest.raises(CryptoError):
        store.handle(OURS, SERIAL, SERIAL)
    with pytest.raises(FormatError):
        store.handle(OURS, SERIAL[1:])


def test_shows_no_value(place: Place, store: SharedStore) -> None:
    """No repr holds a value, and no file of the store holds one in clear or is for others to read."""
    add(store)
    texts = repr(store) + repr(store.list()) + repr(store.handle(PURCHASE)) + repr(store.handle(OURS))
    texts += repr(store.handle(OURS)._key)
    assert VALUE.hex() not in texts.lower()
    for path in place.folder.rglob("*"):
        if path.is_file():
            assert VALUE not in path.read_bytes()
    assert not (place.folder / ("keys" if place.kind == "file" else "lock")).stat().st_mode & 0o077


def test_threads(store: SharedStore) -> None:
    """Threads that derive at the same time get their own keys, while another changes the store."""
    add(store)
    ours = make_key(VALUE).diversify(issuer_id(ENTERPRISE))
    serials = [number.to_bytes(8, "big") for number in range(200)]
    expected = [ours.diversify(serial).kcv for serial in serials]
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(lambda: [store.handle(OURS, serial).kcv for serial in serials]) for _ in range(4)]
        changes = [pool.submit(store.create, KeyRef(Purpose.LOAD, n), Algorithm.TDES, "li") for n in range(1, 9)]
        assert all(job.result() == expected for job in jobs)
        assert len({change.result().kcv for change in changes}) == 8


def test_two_processes(place: Place) -> None:
    """Processes that change one store at the same time lose nothing, and one of two makers of the same key fails."""
    program = """
import sys
from pathlib import Path
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict
from cardlib.profile import Purpose
from keymgmt.keys import KeyRef, KeyState
from keymgmt.pkcs11 import Pkcs11Store
from keymgmt.store import FileStore
kind, module, token, folder, me = sys.argv[1:]
secret, folder, made = sys.stdin.read(), Path(folder), 0
with (FileStore(folder / "keys", secret.encode()) if kind == "file"
      else Pkcs11Store(Path(module), token, secret, folder / "lock")) as store:
    for version in range(1, 11):
        store.create(KeyRef(Purpose.LOAD, 2 * version - int(me)), Algorithm.TDES, me)
        try:
            store.create(KeyRef(Purpose.PURCHASE, version), Algorithm.TDES, me)
            made += 1
        except Conflict:
            pass
print(made)
"""
    store = place.open()
    argv = [sys.executable, "-c", program, place.kind, str(MODULE), TOKEN, str(place.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([*argv, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for n in range(2)
    ]
    secret = PASSPHRASE.decode() if place.kind == "file" else PIN
    made = [int(worker.communicate(secret, timeout=60)[0]) for worker in workers]
    assert sum(made) == 10
    for seen in (store, place.open(8)):
        refs = [info.ref for info in seen.list()]
        assert sorted(refs) == sorted(KeyRef(Purpose.PURCHASE, n) for n in range(1, 11)) + sorted(
            KeyRef(Purpose.LOAD, n) for n in range(1, 21)
        )
        assert all(seen.handle(info.ref).kcv == info.kcv for info in seen.list())


# What fills cards and SAMs.


@contextmanager
def _store_keys(kind: str, folder: Path) -> Iterator[KeySource]:
    place = Place(kind, folder)
    try:
        yield StoreKeys(Rig(folder, store=place.open()).store, ENTERPRISE)
    finally:
        place.close()


@contextmanager
def _mother_keys(folder: Path) -> Iterator[KeySource]:
    """A mother card of the same roots."""
    rig = Rig(folder)
    yield MotherCard(made_mother(rig, versions=(1, 2)), made_authentication(rig), PINS)
    rig.store.close()


SOURCES: dict[str, Callable[[Path], AbstractContextManager[KeySource]]] = {
    **{kind: partial(_store_keys, kind) for kind in KINDS},
    "mother": _mother_keys,
}
"""Kinds of sources: each is given a folder, and is filled with versions 1 and 2 of the rig's roots (``master``)."""


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeySource]:
    """One enterprise's keys, from each kind of source."""
    with SOURCES[request.param](tmp_path) as keys:
        yield keys


CHALLENGE = bytes.fromhex("A1B2C3D4")
ADF_KEYS = [
    spec for spec in load_profile().keys if spec.level == "adf" and spec.purpose not in (Purpose.PIN, Purpose.SLOT)
]


def key_of(purpose: Purpose, version: int = 1, serial: bytes | None = SERIAL) -> Any:
    """A key of the enterprise from the known root, by cardlib alone."""
    ours = make_key(master(purpose, version)).diversify(issuer_id(ENTERPRISE))
    return ours if serial is None else ours.diversify(serial)


def sealed(under: Any, header: bytes, record: bytes, challenge: bytes = CHALLENGE) -> bytes:
    """E || MAC as card.md §6.4 has it; a record is given with its clear value."""
    body = under.seal(record)
    return bytes(body + under.mac(header + bytes([len(body) + 4]) + body, challenge))


@pytest.mark.parametrize("challenge", [CHALLENGE, CHALLENGE * 2], ids=["4", "8"])
def test_card_keys_are_delivered(source: KeySource, challenge: bytes) -> None:
    """Every key of an application goes out as card.md §6.4 has it, by adding and by replacing."""
    for spec in ADF_KEYS:
        for version in (1, 2):
            kid, under_purpose = spec.kid(version), Purpose.CONTROL if version == 2 else Purpose.SLOT
            under, key = key_of(under_purpose), key_of(spec.purpose, version)
            for p1 in (0x01, spec.key_type):
                header = bytes([0x84, 0xD4, p1, kid])
                wanted = Delivery(spec.purpose, version, header, under_purpose, 1, SERIAL, challenge)
                record = spec.header(version, key.algorithm) + key._value
                assert source.deliver(wanted) == sealed(under, header, record, challenge)


def test_pins_are_delivered(source: KeySource) -> None:
    """A PIN goes out under the control key of a card or SAM, enciphered and MACed."""
    spec = load_profile().key(Purpose.PIN)
    header = bytes([0x84, 0xD4, 0x01, spec.kid(1)])
    wanted = Delivery(Purpose.PIN, 1, header, Purpose.CONTROL, 1, SERIAL, CHALLENGE, b"\x12\x34\x56")
    under = key_of(Purpose.CONTROL)
    record = spec.header(1, Algorithm.TDES) + b"\x12\x34\x56".ljust(8, b"\xff")
    assert source.deliver(wanted) == sealed(under, header, record)
    handle = KeyHandle(under, "control")
    assert source.deliver(wanted) == protected(handle, header, record, CHALLENGE, encrypt=True)


def test_sam_keys_are_delivered(source: KeySource) -> None:
    """An enterprise's key goes into a SAM, under that SAM's control key alone."""
    under, header = key_of(Purpose.SAM_CONTROL, serial=SAM_SERIAL), bytes.fromhex("84D40000")
    for purpose, usage in LOADED_USAGE.items():
        wanted = Delivery(purpose, 1, header, Purpose.SAM_CONTROL, 1, SAM_SERIAL, CHALLENGE)
        record = bytes([usage, 1, Algorithm.TDES]) + key_of(purpose, serial=None)._value
        assert source.deliver(wanted) == sealed(under, header, record)


def test_cryptograms(source: KeySource) -> None:
    """The keys that others go under answer a challenge; no other key does."""
    for control, serial in ((Purpose.SLOT, SERIAL), (Purpose.CONTROL, SERIAL), (Purpose.SAM_CONTROL, SAM_SERIAL)):
        expected = key_of(control, 2, serial).cryptogram(CHALLENGE)
        assert source.cryptogram(control, 2, serial, CHALLENGE) == expected
    for purpose in (Purpose.PURCHASE, Purpose.TAC):
        with pytest.raises(Refused) as refused:
            source.cryptogram(purpose, 1, SERIAL, CHALLENGE)
        assert refused.value.reason == "key_usage"


def test_lines(source: KeySource) -> None:
    """Each key that can be delivered is listed once, with its check value; nothing of the platform is."""
    assert source.enterprise_id == ENTERPRISE
    lines = source.lines()
    assert [(line.purpose, line.version) for line in lines] == sorted((line.purpose, line.version) for line in lines)
    listed = {(line.purpose, line.version): line for line in lines}
    assert len(listed) == len(lines)
    for spec in ADF_KEYS:
        for version in (1, 2):
            line = listed[spec.purpose, version]
            assert (line.kcv, line.algorithm) == (key_of(spec.purpose, version, None).kcv, Algorithm.TDES)
            assert line.left > 0
    assert not PLATFORM_PURPOSES & {line.purpose for line in lines}


def test_wrong_places_and_references(source: KeySource) -> None:
    """A key goes only where its purpose says, under a control key, and only when it is there."""
    good = Delivery(Purpose.LOAD, 1, bytes.fromhex("84D40101"), Purpose.CONTROL, 1, SERIAL, CHALLENGE)
    assert source.deliver(good)
    into_sam = {"under": Purpose.SAM_CONTROL, "serial": SAM_SERIAL}
    bad: list[tuple[dict[str, Any], type[OneCardError]]] = [
        ({"header": bytes.fromhex("84D43001")}, Refused),  # as type 30: an oracle for its session keys
        ({"header": bytes.fromhex("84D40102")}, Refused),
        ({"header": bytes.fromhex("84D43F02")}, Refused),
        ({"header": bytes.fromhex("84D40000")}, Refused),
        ({"under": Purpose.PURCHASE}, Refused),
        ({"purpose": Purpose.SLOT}, Refused),
        ({"purpose": Purpose.SAM_CONTROL}, Refused),
        ({"purpose": Purpose.CARD_CONTROL}, Refused),
        ({**into_sam, "header": bytes.fromhex("84D40000")}, Refused),  # no SAM holds a load key
        ({**into_sam, "purpose": Purpose.PURCHASE}, Refused),
        ({"version": 3}, NotFound),
        ({"under_version": 3}, NotFound),
        ({"pin": b"\x12\x34"}, FormatError),
        ({"purpose": Purpose.PIN}, FormatError),
        ({"serial": SERIAL[1:]}, FormatError),
        ({"challenge": b""}, FormatError),
    ]
    for change, error in bad:
        wanted = {name: getattr(good, name) for name in good.__slots__} | change
        with pytest.raises(error):
            source.deliver(Delivery(**wanted))


def _whole_card(rig: Rig) -> Card:
    rig.random.seed(99)  # what a store draws while it is filled is its own affair
    card = rig.card()
    wash(card, rig.wash_plan, rig.store, rig.steps)
    open_slot(card, rig.slot_plan, rig.store, rig.steps)
    personalise(card, rig.personal_plan, rig.station)
    return card


def _whole_sam(rig: Rig, kind: SamKind) -> SamCard:
    rig.random.seed(98)
    sam = SamCard.vendor_fresh(TRANSPORT_KEY, rig.random.randbytes)
    plan = SamPlan(kind, SAM_SERIAL, TERMINAL, ENTERPRISE, kind, (1, 2), START, EXPIRY, pin=b"\x24\x68\x10")
    make_sam(sam, plan, rig.initial, rig.store, MemorySteps())
    return sam


def test_same_card_and_sams_byte_for_byte(tmp_path: Path) -> None:
    """The same plans and randomness give the same card, and the same SAMs of every kind, from file store and token."""
    made: dict[str, list[bytes]] = {}
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        place = Place(kind, folder)
        rig = Rig(folder, store=place.open())
        card = _whole_card(rig)
        assert same(held(card, 0x39, 0, 0x3F01), rig.expected(Purpose.CONTROL))
        assert same(held(card, 0x3E, 1, 0x3F01), rig.expected(Purpose.PURCHASE))
        made[kind] = [card.snapshot(), *(_whole_sam(rig, one).snapshot() for one in SamKind)]
        place.close()
    assert made["file"] == made["pkcs11"]
    assert len(set(made["file"])) >= len(SamKind)
