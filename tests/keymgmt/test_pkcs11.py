"""Keys in a PKCS#11 token: nothing comes out, power may fail between any two calls, and every refusal is told."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, ObjectClass, TokenFlag, exceptions

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import (
    BadKcv,
    ConfigError,
    Conflict,
    CryptoError,
    DatabaseError,
    NotFound,
    OneCardError,
    Refused,
    TransportError,
)
from cardlib.profile import Purpose, issuer_id
from keymgmt import pkcs11 as module
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef, KeyState
from keymgmt.pkcs11 import APPLICATION, LOOK_MS, Pkcs11Store, find_token
from tests.secretwatch import register
from tests.softhsm import MODULE, PIN, TOKEN, softhsm

PURCHASE = KeyRef(Purpose.PURCHASE, 1)
OURS = KeyRef(Purpose.PURCHASE, 1, 1001)
SERIAL = bytes.fromhex("0201000000000107")
VALUE = bytes(range(16))
KCV = make_key(VALUE).kcv
Open = Callable[..., Pkcs11Store]
SECRET_KEYS = {Attribute.CLASS: ObjectClass.SECRET_KEY}


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Path]:
    """A fresh token; gives the folder that SoftHSM has it in."""
    with softhsm(tmp_path / "hsm") as folder:
        yield folder


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, tokens: Path, clock: Clock) -> Iterator[Open]:
    """Opens stores on the token; those with another ``host`` don't see each other's lock file."""
    seeds = count(7)
    with ExitStack() as stack:

        def open_one(host: str = "here", pin: str = PIN) -> Pkcs11Store:
            random = Random(next(seeds)).randbytes
            lock = tmp_path / f"{host}.lock"
            return stack.enter_context(Pkcs11Store(MODULE, TOKEN, pin, lock, random_bytes=random, now_ms=clock))

        yield open_one


@pytest.fixture
def store(opened: Open) -> Pkcs11Store:
    return opened()


def add(store: Pkcs11Store, ref: KeyRef = PURCHASE) -> None:
    store.import_key(ref, Algorithm.TDES, VALUE, KCV, "li")


def objects(store: Pkcs11Store) -> tuple[int, int]:
    """How many key objects and data objects the token has."""
    return len(store._find()), len(store._records())


def test_no_key_can_leave(store: Pkcs11Store) -> None:
    """Made, taken in or derived: a key is sensitive, not extractable, does nothing but encipher and derive."""
    add(store)
    store.create(KeyRef(Purpose.LOAD, 1), Algorithm.TDES, "li")
    assert store.handle(OURS).kcv
    kept = store._tops()[OURS]  # a derived key lives as long as its handle
    assert kept.levels == 1
    no = (
        Attribute.EXTRACTABLE, Attribute.DECRYPT, Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN, Attribute.VERIFY,
        Attribute.MODIFIABLE,
    )  # fmt: skip
    found = list(store._session.get_objects(SECRET_KEYS))
    assert sorted(bool(key[Attribute.TOKEN]) for key in found) == [False, True, True]
    for key in found:
        assert key[Attribute.SENSITIVE]
        assert key[Attribute.PRIVATE]
        assert not any(key[one] for one in no)
        with pytest.raises(exceptions.AttributeSensitive):
            key[Attribute.VALUE]
        with pytest.raises(exceptions.PKCS11Error):
            key[Attribute.EXTRACTABLE] = True
        with pytest.raises(exceptions.PKCS11Error):
            key.copy({Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False})
    assert [key[Attribute.NEVER_EXTRACTABLE] for key in found if key[Attribute.LOCAL]] == [True]


def test_only_the_user_sees_what_there_is(store: Pkcs11Store) -> None:
    """Without PIN neither keys nor their attributes are seen."""
    add(store)
    program = (
        "import sys, pkcs11; t = pkcs11.lib(sys.argv[1]).get_token(token_label='onecard');"
        "print(len(list(t.open().get_objects())))"
    )
    seen = subprocess.run([sys.executable, "-c", program, str(MODULE)], capture_output=True, text=True, check=True)
    assert seen.stdout == "0\n"


def test_what_may_be_written(store: Pkcs11Store) -> None:
    """An enterprise's key derived from its root goes into a SAM's payload; what is in the token itself never does."""
    add(store)
    sam = KeyHandle(make_key(VALUE[::-1]), "SAM control")
    header = bytes.fromhex("220100")
    ours = make_key(VALUE).diversify(issuer_id(1001))
    assert sam.wrap(store.handle(OURS), header) == make_key(VALUE[::-1]).seal_key(header, ours)
    with pytest.raises(CryptoError, match=r"can't leave its module.*mother card"):
        sam.wrap(store.handle(PURCHASE), header)
    other = KeyRef(Purpose.LOAD, 1, 1001)
    add(store, other)
    with pytest.raises(CryptoError, match="can't leave its module"):
        sam.wrap(store.handle(other), header)


def test_derived_keys_do_not_pile_up(store: Pkcs11Store) -> None:
    """The keys of a thousand enterprises leave no object behind once nobody holds them."""
    add(store)
    for enterprise in range(1, 200):
        store.handle(PURCHASE, issuer_id(enterprise), SERIAL)
    assert len(list(store._session.get_objects(SECRET_KEYS))) <= 3


# Power.


class PowerCutError(Exception):
    """Power fails here."""


def _cut(store: Pkcs11Store, at: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let no call at and after number ``at`` reach the module; gives a list whose length is the calls so far."""
    calls: list[int] = []
    original = store._module

    @contextmanager
    def cut() -> Iterator[pkcs11.Session]:
        calls.append(1)
        if len(calls) >= at:
            raise PowerCutError
        with original() as session:
            yield session

    monkeypatch.setattr(store, "_module", cut)
    return calls


ACTS: dict[str, Callable[[Pkcs11Store], object]] = {
    "create": lambda store: store.create(KeyRef(Purpose.LOAD, 1), Algorithm.TDES, "li"),
    "import": lambda store: add(store, KeyRef(Purpose.LOAD, 1)),
    "derive": lambda store: store.create(OURS, Algorithm.TDES, "li"),
    "activate": lambda store: store.set_state(PURCHASE, KeyState.ACTIVE, "li"),
    "destroy": lambda store: store.set_state(PURCHASE, KeyState.DESTROYED, "li"),
}


@pytest.mark.parametrize("act", ACTS)
def test_power_fails_between_any_two_calls(act: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cut anywhere a key is as before or as after, the act can be repeated, and nothing is left lying about."""
    cuts = 0
    for at in count(1):
        with opened() as store:  # the token empty again
            for one in [*store._find(), *(one for _, one in store._records())]:
                one.destroy()
        with opened() as store:
            add(store)
            before = list(store.list())
        with opened() as store:
            _cut(store, at, monkeypatch)
            try:
                ACTS[act](store)
            except PowerCutError:
                cuts += 1
            else:
                break
            finally:
                monkeypatch.undo()
        with opened() as store:
            now = list(store.list())
            keys = sum(info.state is not KeyState.DESTROYED and info.ref != OURS for info in now)
            assert objects(store) == (keys, len(now))
            if now == before:
                ACTS[act](store)
                now = list(store.list())
            else:
                with pytest.raises(Conflict):
                    ACTS[act](store)
            assert now != before
            assert len(store._find()) == {"create": 2, "import": 2, "derive": 1, "activate": 1, "destroy": 0}[act]
            for info in now:
                if info.state is not KeyState.DESTROYED and (act, info.ref) != ("destroy", OURS):
                    assert store.handle(info.ref).kcv == info.kcv
    assert cuts >= 5


# Others at the same token.


def test_another_host_is_seen_in_time(opened: Open, clock: Clock) -> None:
    """What another host changes shows once the time to look again is over; on this host at once."""
    store, neighbour, far = opened(), opened(), opened("far")
    add(far)
    assert not store.list()
    clock.ms += LOOK_MS
    assert [info.ref for info in store.list()] == [PURCHASE]
    far.set_state(PURCHASE, KeyState.ACTIVE, "li")
    store.create(KeyRef(Purpose.LOAD, 1), Algorithm.TDES, "li")
    assert neighbour.info(PURCHASE).state is KeyState.ACTIVE
    assert len(neighbour.list()) == 2
    clock.ms -= 1_000_000  # a clock that was set back
    far.set_state(PURCHASE, KeyState.RETIRING, "li")
    assert store.info(PURCHASE).state is KeyState.RETIRING


def test_two_hosts_at_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two hosts that make or change one key at the same moment at most one succeeds, and nothing is left behind."""
    store, far = opened(), opened("far")
    sweep = store._sweep

    def rival_before(act: Callable[[], object]) -> None:
        """Run ``act`` on the other host when ``store`` has decided and not yet written."""
        monkeypatch.setattr(store, "_sweep", lambda: (sweep(), act()))

    rival_before(lambda: add(far))
    with pytest.raises(Conflict, match="another host"):
        add(store)
    monkeypatch.undo()
    rival_before(lambda: far.set_state(PURCHASE, KeyState.DESTROYED, "li"))
    with pytest.raises(Conflict, match="another host"):
        store.set_state(PURCHASE, KeyState.ACTIVE, "li")
    monkeypatch.undo()
    with opened("third") as third:
        assert [(info.ref, info.state) for info in third.list()] == [(PURCHASE, KeyState.DESTROYED)]
        assert objects(third) == (0, 1)


def test_two_objects_of_one_change(store: Pkcs11Store, opened: Open, clock: Clock) -> None:
    """Where two hosts were both interrupted, nobody guesses: the key is named with what to do."""
    add(store)
    [(_, record)] = store._records()
    value = bytearray(record[Attribute.VALUE])
    mark = store._newest[PURCHASE].mark
    value[value.index(mark)] ^= 1
    store._session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.APPLICATION: APPLICATION,
            Attribute.VALUE: bytes(value),
        }
    )
    with pytest.raises(CryptoError, match=r"two objects for change 1 of key purchase version 1.*own tool"):
        opened("far")
    clock.ms += LOOK_MS
    with pytest.raises(CryptoError, match="two objects"):
        store.handle(PURCHASE)


def test_a_key_object_of_another_key(store: Pkcs11Store, opened: Open) -> None:
    """A key object that is missing, or not the one that the attributes describe, is named and not used."""
    add(store)
    [key] = store._find()
    key_id = key[Attribute.ID]
    key.destroy()
    with pytest.raises(CryptoError, match="0 key objects"):
        opened("far").handle(PURCHASE)
    template: dict[Attribute, Any] = {
        Attribute.TOKEN: True,
        Attribute.ID: key_id,
        Attribute.LABEL: "onecard forged",
        Attribute.ENCRYPT: False,
        Attribute.DERIVE: True,
    }
    made = store._session.generate_key(pkcs11.KeyType.DES2, template=template)
    with pytest.raises(CryptoError, match="may not encrypt"):
        opened("far").handle(PURCHASE)
    made.destroy()
    store._session.generate_key(pkcs11.KeyType.DES2, template=template | {Attribute.ENCRYPT: True})
    with pytest.raises(BadKcv, match="another one"):
        opened("far").handle(PURCHASE)


@pytest.mark.parametrize("value", [b"", b"\x80", b"\x8d" + b"\x01" * 13, b"not CBOR at all"])
def test_a_data_object_that_is_none(store: Pkcs11Store, opened: Open, value: bytes) -> None:
    """A data object under our name that can't be read is named; no key is swept because of it."""
    add(store)
    store._session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.APPLICATION: APPLICATION,
            Attribute.VALUE: value,
        }
    )
    with pytest.raises(CryptoError, match="can't be read"):
        opened("far")
    assert len(store._find()) == 1


def test_strangers_are_left_alone(store: Pkcs11Store, opened: Open) -> None:
    """Objects of other programs in the same token are neither listed nor swept."""
    mine = {Attribute.TOKEN: True, Attribute.LABEL: "payroll"}
    store._session.generate_key(pkcs11.KeyType.DES2, template=mine)
    add(store)
    store.set_state(PURCHASE, KeyState.DESTROYED, "li")
    with opened() as again:
        assert [info.ref for info in again.list()] == [PURCHASE]
        assert [key[Attribute.LABEL] for key in again._session.get_objects(SECRET_KEYS)] == ["payroll"]


# Errors.


def test_wrong_pin(tokens: Path, tmp_path: Path) -> None:
    """A wrong PIN is told as one that counts, and the right one works afterwards."""
    register("not the pin", "a wrong PIN")
    for pin in ("not the pin", "x", ""):
        with pytest.raises(CryptoError, match=r"HSM PIN of token onecard is wrong; the token counts"):
            Pkcs11Store(MODULE, TOKEN, pin, tmp_path / "lock")
    with Pkcs11Store(MODULE, TOKEN, PIN, tmp_path / "lock") as store:
        with pytest.raises(CryptoError, match="was not tried"):  # the process is logged in
            Pkcs11Store(MODULE, TOKEN, "not the pin", tmp_path / "lock")
        assert not store.list()


class _Told:
    """A token that refuses a PIN and shows flags before and afterwards: SoftHSM never locks."""

    label, model, serial = TOKEN, "model", b"serial"
    USABLE = TokenFlag.TOKEN_INITIALIZED | TokenFlag.USER_PIN_INITIALIZED

    def __init__(self, error: Exception, before: int = 0, after: int = 0) -> None:
        self.flags = self.USABLE | before
        self.slot = self
        self.tried = 0
        self._error, self._after = error, after

    def open(self, **_: Any) -> None:
        self.tried += 1
        raise self._error

    def get_token(self) -> _Told:
        return _Told(self._error, self._after)


@pytest.mark.parametrize(
    ("token", "error", "told"),
    [
        (_Told(exceptions.PinIncorrect(), after=TokenFlag.USER_PIN_FINAL_TRY), CryptoError, "one try is left"),
        (_Told(exceptions.PinIncorrect(), after=TokenFlag.USER_PIN_LOCKED), CryptoError, "it is locked now"),
        (_Told(exceptions.PinLocked()), Refused, "locked after too many wrong tries"),
        (_Told(exceptions.PinExpired()), Refused, "expired"),
        (_Told(exceptions.AnotherUserAlreadyLoggedIn()), Conflict, "security officer"),
        (_Told(exceptions.SessionCount()), TransportError, "no session left"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pin_refused(token: _Told, error: type[OneCardError], told: str) -> None:
    """What a token says about a PIN is told with what is left and whom to ask."""
    with pytest.raises(error, match=told):
        module._log_in(token, "2718281")  # type: ignore[arg-type]  # stands for a token


def test_a_locked_pin_is_not_tried() -> None:
    """Where the token says that its PIN is locked, none is presented."""
    token = _Told(exceptions.PinIncorrect(), before=TokenFlag.USER_PIN_LOCKED)
    with pytest.raises(Refused) as refused:
        module._log_in(token, "2718281")  # type: ignore[arg-type]  # stands for a token
    assert refused.value.reason == "pin_locked"
    assert not token.tried


def test_no_such_module(tokens: Path, tmp_path: Path) -> None:
    """A module file that is missing, or no PKCS#11 module, is a ConfigError that names it."""
    junk = tmp_path / "junk.so"
    junk.write_bytes(b"no library")
    [libm] = sorted(Path("/lib").glob("*/libm.so.6"))[:1] or [junk]
    for path, told in ((tmp_path / "none.so", "there is no PKCS#11 module"), (junk, "can't be loaded"), (libm, "load")):
        with pytest.raises(ConfigError, match=told):
            find_token(path, TOKEN)


def test_module_that_does_not_start(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module whose own configuration is wrong is told apart from one that is missing."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "nothing.conf"))
    pkcs11.unload(str(MODULE))
    with pytest.raises(ConfigError, match=r"does not start.*SOFTHSM2_CONF"):
        find_token(MODULE, TOKEN)


def test_without_the_extra(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without python-pkcs11 the error says how to install it."""
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pkcs11":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'onecard\[hsm\]'"):
        find_token(MODULE, TOKEN)


def test_no_such_token(tmp_path: Path) -> None:
    """A label that is not there is answered with those that are; two of one label are refused."""
    told = pytest.raises(NotFound, match=r"no token other in libsofthsm2.so \(one, two\)")
    with softhsm(tmp_path / "a", "one", "two"), told:
        find_token(MODULE, "other")
    with softhsm(tmp_path / "b", "same", "same"), pytest.raises(Conflict, match="2 tokens"):
        find_token(MODULE, "same")
    empty = tmp_path / "c"
    with softhsm(empty) as tokens:
        for path in tokens.iterdir():
            shutil.rmtree(path)
        pkcs11.unload(str(MODULE))
        with pytest.raises(NotFound, match="none is initialised"):
            find_token(MODULE, TOKEN)


def test_no_user_pin(tokens: Path) -> None:
    """A token whose security officer set no user PIN yet is told so."""
    slot = next(slot for slot in pkcs11.lib(str(MODULE)).get_slots() if not slot.get_token().label)
    assert not slot.get_token().flags & TokenFlag.USER_PIN_INITIALIZED
    fresh = _Told(exceptions.PinIncorrect())
    fresh.flags = TokenFlag.TOKEN_INITIALIZED
    library = type("Library", (), {"get_tokens": lambda _: [fresh]})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_library", lambda _: library)
        with pytest.raises(ConfigError, match="no user PIN yet"):
            find_token(MODULE, TOKEN)


def test_removed_token(store: Pkcs11Store, tokens: Path, clock: Clock) -> None:
    """A token that is taken away while it is in use is told at every use, and nothing is taken for an empty store."""
    add(store)
    handle = store.handle(OURS)
    for path in tokens.iterdir():
        shutil.rmtree(path)
    clock.ms += LOOK_MS
    for use in (
        lambda: store.handle(PURCHASE),
        store.list,
        lambda: store.create(KeyRef(Purpose.LOAD, 1), Algorithm.TDES, "li"),
        lambda: store.set_state(PURCHASE, KeyState.ACTIVE, "li"),
    ):
        with pytest.raises(TransportError, match="removed"):
            use()
    assert handle.kcv  # what was worked out before is no secret


SAYS: list[tuple[type[Exception], type[OneCardError], str]] = [
    (exceptions.DeviceMemory, DatabaseError, "full, nothing was added"),
    (exceptions.HostMemory, DatabaseError, "memory"),
    (exceptions.DeviceRemoved, TransportError, "removed"),
    (exceptions.TokenNotPresent, TransportError, "removed"),
    (exceptions.GeneralError, TransportError, "does not answer"),
    (exceptions.SessionHandleInvalid, TransportError, "closed our session"),
    (exceptions.SessionClosed, TransportError, "closed our session"),
    (exceptions.UserNotLoggedIn, TransportError, "closed our session"),
    (exceptions.KeyHandleInvalid, TransportError, "removed, reset"),
    (exceptions.MechanismInvalid, ConfigError, "CKM_DES3_ECB"),
    (exceptions.KeyTypeInconsistent, ConfigError, "two-key 3DES"),
    (exceptions.TokenWriteProtected, ConfigError, "write-protected"),
    (exceptions.PKCS11Error, CryptoError, "0x68"),
]


@pytest.mark.parametrize(("said", "error", "told"), SAYS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_module_says(
    said: type[Exception], error: type[OneCardError], told: str, store: Pkcs11Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal of the module, told apart by code, is an error of ours with what to do; the store stays usable."""
    add(store)
    before = list(store.list())

    class Session:
        def __getattr__(self, name: str) -> Any:
            if name in ("create_object", "generate_key"):
                raise said("Unmapped error code 0x68")
            return getattr(real, name)

    real = store._session
    monkeypatch.setattr(store, "_session", Session())
    for act in (ACTS["create"], ACTS["import"], ACTS["activate"]):
        with pytest.raises(error, match=told):
            act(store)
    monkeypatch.undo()
    assert list(store.list()) == before
    ACTS["create"](store)
    assert objects(store) == (2, 2)


def test_closed(store: Pkcs11Store, opened: Open) -> None:
    """A closed store and its handles say so; another store of the process goes on."""
    add(store)
    handle, other = store.handle(OURS), opened()
    store.close()
    store.close()
    with pytest.raises(Conflict, match="closed"):
        store.list()
    with pytest.raises(Conflict, match="closed"):
        store.handle(PURCHASE)
    with pytest.raises(TransportError, match="closed"):
        handle.derive(SERIAL)
    assert other.handle(OURS, SERIAL).kcv
    other.close()
    with opened() as again:
        assert again.info(PURCHASE).kcv == KCV


def test_lock_file_that_cannot_be(tokens: Path, tmp_path: Path) -> None:
    """A lock file in a folder that is not there is a ConfigError before the PIN is tried."""
    with pytest.raises(ConfigError, match="lock file"):
        Pkcs11Store(MODULE, TOKEN, "x", tmp_path / "none" / "lock")


def test_another_token_beside(tmp_path: Path) -> None:
    """Each token has its own keys and its own login."""
    with softhsm(tmp_path / "hsm", "one", "two"), ExitStack() as stack:
        one, two = (stack.enter_context(Pkcs11Store(MODULE, name, PIN, tmp_path / name)) for name in ("one", "two"))
        add(one)
        assert not two.list()
        one.close()
        add(two, OURS)
        assert two.handle(OURS, SERIAL).kcv == make_key(VALUE).diversify(SERIAL).kcv
