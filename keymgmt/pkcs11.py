"""A key store in a hardware module behind PKCS#11: master keys are objects that never leave it (keys.md).

Two-key 3DES only: that is what PKCS#11 and card keys have in common. Card keys come out of it by design, each for one
write: a card's key is the encryption of its serial (card.md §1.4), so whoever has the PIN can have a card's key
computed. What nobody can have is a root or a stored enterprise key.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import cbor2

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.crypto.keys import diversification_input
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
from cardlib.profile import Purpose
from keymgmt.handle import Master, OnUse
from keymgmt.keys import KeyInfo, KeyRef, KeyState
from keymgmt.store import SharedStore

if TYPE_CHECKING:
    import pkcs11

APPLICATION = "onecard key"
"""CKA_APPLICATION of the data object that makes a key known."""
LABEL = "onecard "
"""How the label of each of our key objects begins."""
FORMAT = 1
CHUNK = 1 << 15
"""Bytes enciphered in one call, 2048 cards: modules at the end of a line take little more at once."""
LOOK_MS = 10_000
"""The lock file tells of changes made on this host at once; of those made on others a look after this long."""

_TURN = RLock()
"""python-pkcs11 initialises a module without asking it to lock, so no two threads may be in it."""


class Pkcs11Store(SharedStore):
    """Keys in one token of a PKCS#11 module.

    A key is two objects. The key object is made first: secret, sensitive, not extractable, not changeable, with a
    random CKA_ID. The private data object behind it makes the key known; it holds the attributes, the state and a
    change number. A change of state is a new data object with the next number, then the old one goes. So whenever
    power fails, a key is there as a whole or not at all; what nobody knows of is swept away at the next change.
    Processes of one host take turns by ``lock``, a file. Hosts that share a token find out afterwards: who meets
    another's object for the same change takes his own back.
    """

    def __init__(
        self,
        module: Path,
        token: str,
        pin: str,
        lock: Path,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_use: OnUse | None = None,
    ) -> None:
        """Log in. ``lock`` is made when missing.

        Raises ConfigError (module, python-pkcs11 or PIN missing), NotFound (no such token), CryptoError (wrong PIN),
        Refused ``pin_locked``, TransportError (the module does not answer).
        """
        super().__init__(token, random_bytes, now_ms, on_use)
        self._newest: dict[KeyRef, _Record] = {}
        self._seen, self._looked_ms = -1, 0
        self._dead: deque[pkcs11.Key] = deque()
        self._login: _Login | None = None
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise ConfigError(f"lock file {lock} of token {token} can't be opened: {e.strerror}") from e
        try:
            self._login = _Login.at(find_token(module, token), pin)
            with _told(token):
                self._session = self._login.session.token.open(rw=True)
            with self._locked(fcntl.LOCK_EX):
                self._sweep()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Log out, unless another store of this process is logged in to the token; calling it twice is allowed."""
        super().close()
        with _TURN:
            login, self._login = self._login, None
            if login is not None:
                with _quietly():
                    self._session.close()
                login.leave()

    # One call at a time.

    @contextmanager
    def _module(self) -> Iterator[pkcs11.Session]:
        """The session, for one thread at a time; what the module says no with is one of our errors."""
        with _TURN, _told(self.name):
            if self._login is None:
                raise TransportError(f"token {self.name} was closed: open the key store again")
            while self._dead:
                with _quietly():
                    self._dead.popleft().destroy()
            yield self._session

    def encrypt(self, key: pkcs11.Key, data: bytes) -> bytes:
        """ECB over whole blocks, in as few calls as the module takes."""
        from pkcs11 import Mechanism  # noqa: PLC0415  # the extra hsm

        done = []
        for at in range(0, len(data), CHUNK):
            with self._module():
                done.append(key.encrypt(data[at : at + CHUNK], mechanism=Mechanism.DES3_ECB))  # type: ignore[attr-defined]  # _usable
        return b"".join(done)

    def derive(self, parent: pkcs11.Key, factor: bytes) -> pkcs11.Key:
        """Child for an 8-byte factor (card.md §1.4), made inside the module; gone with the session."""
        from pkcs11 import DEFAULT, Attribute, KeyType, Mechanism, MechanismFlag  # noqa: PLC0415  # the extra hsm

        data = ctypes.create_string_buffer(diversification_input(factor), 16)
        param = bytes(_StringData(ctypes.addressof(data), 16))  # points into data, which lives until the call is over
        template = {**_protection(), Attribute.TOKEN: False, Attribute.VALUE_LEN: DEFAULT}  # the type has one length
        with self._module():
            child: pkcs11.Key = parent.derive_key(  # type: ignore[attr-defined]  # _usable
                KeyType.DES2, 128, mechanism=Mechanism.DES3_ECB_ENCRYPT_DATA, mechanism_param=param,
                capabilities=MechanismFlag.ENCRYPT, template=template,
            )  # fmt: skip
        return child

    def release(self, child: pkcs11.Key) -> None:
        """Let a derived key go, at the next call: a collector runs at any moment, within a call too."""
        self._dead.append(child)

    # What SharedStore asks for.

    def _stale(self) -> bool:
        return self._generation() != self._seen or not 0 <= self._now_ms() - self._looked_ms < LOOK_MS

    def _refresh(self) -> None:
        generation = self._generation()
        newest: dict[KeyRef, _Record] = {}
        for record, _ in self._records():
            ref = record.info.ref
            known = newest.get(ref)
            if known is not None and known.number == record.number:
                raise CryptoError(
                    f"token {self.name} holds two objects for change {record.number} of key {ref}: two hosts made it at"
                    " once and one was interrupted. Remove the wrong one with the module's own tool"
                )
            if known is None or record.number > known.number:
                newest[ref] = record
        for ref, record in self._newest.items():
            if ref not in newest or newest[ref].number < record.number:
                raise TransportError(f"token {self.name} was removed, emptied or replaced: key {ref} is not as it was")
        if newest != self._newest:
            self._newest = newest
            self._info = {r.info.ref: r.info for r in sorted(newest.values(), key=lambda r: r.place)}
            self._count += 1
        self._seen, self._looked_ms = generation, self._now_ms()

    def _own(self, info: KeyInfo) -> Master | None:
        key_id = self._newest[info.ref].key_id
        if not key_id:
            return None
        found = self._find(key_id)
        if len(found) != 1:
            raise CryptoError(
                f"key {info.ref} has {len(found)} key objects in token {self.name} instead of one: restore the token"
            )
        key = ModuleKey(self, self._usable(found[0], info.ref), str(info.ref), info.ref.levels)
        if not compare_digest(key.kcv, info.kcv):
            raise BadKcv(f"key {info.ref} in token {self.name} is another one than its attributes say")
        return key

    def _make(self, ref: KeyRef, algorithm: Algorithm, value: bytes | None, made_by: str) -> KeyInfo:
        from pkcs11 import Attribute, KeyType, ObjectClass  # noqa: PLC0415  # the extra hsm

        if algorithm is not Algorithm.TDES:
            raise ConfigError(
                f"key {ref} can't be {algorithm.name} in token {self.name}: PKCS#11 has no such mechanism, and SoftHSM"
                " 2.6 has none of its own. Make it 3DES, or use the file store"
            )
        self._begin()
        key_id = self._random_bytes(16)
        template: dict[Attribute, Any] = {
            **_protection(),
            Attribute.TOKEN: True,
            Attribute.ENCRYPT: True,
            Attribute.DERIVE: True,
            Attribute.ID: key_id,
            Attribute.LABEL: f"{LABEL}{ref}",
        }
        with self._module() as session:
            if value is None:
                made: Any = session.generate_key(KeyType.DES2, template=template)
            else:
                kind = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.DES2}
                made = session.create_object({**kind, **template, Attribute.VALUE: value})
        kcv = ModuleKey(self, self._usable(made, ref), str(ref), ref.levels).kcv
        if value is not None:
            make_key(value).check(kcv, f"key {ref} as token {self.name} took it in")
        info = KeyInfo(ref, algorithm, kcv, KeyState.PENDING, made_by, self._now_ms())
        return self._write(_Record(info, 1, self._place(), key_id, self._random_bytes(8)))

    def _note(self, info: KeyInfo) -> KeyInfo:
        self._begin()
        return self._write(_Record(info, 1, self._place(), b"", self._random_bytes(8)))

    def _restate(self, info: KeyInfo, by: str) -> None:  # noqa: ARG002  # who it was is in the audit log
        self._begin()
        old = self._newest[info.ref]
        self._write(replace(old, info=info, number=old.number + 1, mark=self._random_bytes(8)))
        self._sweep()

    # The token.

    def _generation(self) -> int:
        return int.from_bytes(os.pread(self._fd, 8, 0), "big")

    def _begin(self) -> None:
        """Before a change: tell the host's other processes of it, and take away what power cuts left."""
        os.pwrite(self._fd, (self._generation() + 1).to_bytes(8, "big"), 0)
        self._sweep()

    def _place(self) -> int:
        return max((record.place for record in self._newest.values()), default=0) + 1

    def _write(self, record: _Record) -> KeyInfo:
        """Make a key or a change of it known, unless another host was first."""
        from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415  # the extra hsm

        ref = record.info.ref
        with self._module() as session:
            made = session.create_object(
                {
                    Attribute.CLASS: ObjectClass.DATA,
                    Attribute.TOKEN: True,
                    Attribute.PRIVATE: True,
                    Attribute.MODIFIABLE: False,
                    Attribute.APPLICATION: APPLICATION,
                    Attribute.LABEL: f"{LABEL}{ref}, {record.info.state}",
                    Attribute.VALUE: record.encode(),
                }
            )
        rivals = [other for other, _ in self._records() if other.claims(record)]
        if rivals or (record.key_id and record.info.state is not KeyState.DESTROYED and not self._find(record.key_id)):
            with self._module():
                made.destroy()
            raise Conflict(f"key {ref} was changed by another host at the same moment: look at it, then repeat")
        self._refresh()
        return record.info

    def _records(self) -> list[tuple[_Record, pkcs11.Object]]:
        from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415  # the extra hsm

        with self._module() as session:
            wanted = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: APPLICATION}
            return [(_Record.decode(one[Attribute.VALUE], self.name), one) for one in list(session.get_objects(wanted))]

    def _find(self, key_id: bytes | None = None) -> list[pkcs11.Object]:
        """Key objects with an identifier, or all that are ours."""
        from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415  # the extra hsm

        wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True}
        if key_id is not None:
            wanted[Attribute.ID] = key_id
        with self._module() as session:
            return [one for one in list(session.get_objects(wanted)) if str(one[Attribute.LABEL]).startswith(LABEL)]

    def _sweep(self) -> None:
        """Destroy replaced data objects, and keys that are destroyed or that a power cut kept from being known."""
        from pkcs11 import Attribute  # noqa: PLC0415  # the extra hsm

        live = {r.key_id for r in self._newest.values() if r.info.state is not KeyState.DESTROYED}
        leftover = [one for record, one in self._records() if record.number < self._newest[record.info.ref].number]
        with self._module():
            for one in [*leftover, *(key for key in self._find() if key[Attribute.ID] not in live)]:
                one.destroy()

    def _usable(self, found: Any, ref: KeyRef) -> pkcs11.Key:  # noqa: ANN401  # python-pkcs11 types by capability
        from pkcs11 import DeriveMixin, EncryptMixin  # noqa: PLC0415  # the extra hsm

        if not isinstance(found, EncryptMixin) or not isinstance(found, DeriveMixin):
            raise CryptoError(f"key {ref} in token {self.name} may not encrypt or derive: the module refuses it that")
        return found  # type: ignore[return-value]  # a secret key has both


class ModuleKey:
    """A root or enterprise master key inside the module; ``origin`` is the key and factor it was derived from."""

    __slots__ = ("__weakref__", "_key", "_levels", "_origin", "_store", "kcv", "name")

    def __init__(
        self, store: Pkcs11Store, key: pkcs11.Key, name: str, levels: int, origin: tuple[ModuleKey, bytes] | None = None
    ) -> None:
        self._store, self._key, self._levels, self._origin = store, key, levels, origin
        self.name = name
        self.kcv = store.encrypt(key, bytes(8))[:3]

    def __repr__(self) -> str:
        return f"<ModuleKey {self.name}>"

    @property
    def algorithm(self) -> Algorithm:
        """The one that PKCS#11 and cards have in common."""
        return Algorithm.TDES

    def diversify(self, factor: bytes) -> Master:
        """The enterprise's key, in the module; at the last level a card's key, in memory for one write."""
        if self._levels == 1:
            return make_key(self.diversify_many(factor))
        name = f"{self.name}/{factor.hex().upper()}"
        child = ModuleKey(self._store, self._store.derive(self._key, factor), name, self._levels - 1, (self, factor))
        weakref.finalize(child, self._store.release, child._key).atexit = False
        return child

    def diversify_many(self, factors: bytes) -> bytes:
        """See :class:`~keymgmt.handle.Master`."""
        return self._store.encrypt(self._key, diversification_input(factors))

    def for_writing(self) -> Key:
        """An enterprise's key, for the one payload that carries it into a SAM or mother card.

        Raises CryptoError for a key that was made in the module or taken in: it never leaves.
        """
        if self._origin is None:
            raise CryptoError(
                f"key {self.name} can't leave its module. A SAM gets enterprise keys that the module derives from their"
                " root: load it from the store that holds the root, or from the enterprise's mother card"
            )
        root, factor = self._origin
        return make_key(root.diversify_many(factor))


class _StringData(ctypes.Structure):
    """CK_KEY_DERIVATION_STRING_DATA, which python-pkcs11 passes on as it is."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_ulong))


@dataclass(frozen=True, slots=True)
class _Record:
    """A data object: attributes and state after change ``number``; CKA_ID of the key object, none for a derived key.

    ``place`` is the key's in the order of making, ``mark`` tells two hosts' records of one change apart.
    """

    info: KeyInfo
    number: int
    place: int
    key_id: bytes
    mark: bytes

    def claims(self, other: _Record) -> bool:
        """Whether this is another's record of the same change."""
        return (self.info.ref, self.number) == (other.info.ref, other.number) and self.mark != other.mark

    def encode(self) -> bytes:
        i = self.info
        head = [FORMAT, self.number, self.place, self.key_id, self.mark]
        return cbor2.dumps([*head, *i.ref, int(i.algorithm), i.kcv, i.state.value, i.made_by, i.made_at_ms])

    @classmethod
    def decode(cls, raw: bytes, token: str) -> Self:
        try:
            form, number, place, key_id, mark, purpose, version, owner, algorithm, kcv, state, by, at = cbor2.loads(raw)
            if form != FORMAT:
                raise ConfigError(f"token {token} holds keys of format {form}: this program knows format {FORMAT}")
            ref = KeyRef(Purpose(purpose), version, owner)
            ref.check()
            info = KeyInfo(ref, Algorithm(algorithm), bytes(kcv), KeyState(state), str(by), int(at))
            return cls(info, int(number), int(place), bytes(key_id), bytes(mark))
        except (ValueError, TypeError, cbor2.CBORError) as e:
            raise CryptoError(f"token {token} holds a data object {APPLICATION!r} that can't be read: remove it") from e


class _Login:
    """The login of this process to a token: PKCS#11 has one for all its sessions, so stores share it."""

    _all: dict[tuple[str, bytes], _Login] = {}  # noqa: RUF012  # guarded by _TURN

    def __init__(self, session: pkcs11.Session, proof: bytes) -> None:
        self.session = session
        self._proof = proof
        self._users = 0

    @classmethod
    def at(cls, token: pkcs11.Token, pin: str) -> _Login:
        """Log in, or join those who are. Raises CryptoError for a wrong PIN, Refused ``pin_locked``."""
        name, where = token.label, (token.model, token.serial)
        proof = sha256(token.serial + pin.encode()).digest()
        with _TURN:
            login = cls._all.get(where)
            if login is None:
                login = cls._all[where] = cls(_log_in(token, pin), proof)
            elif not compare_digest(proof, login._proof):
                raise CryptoError(f"the HSM PIN of token {name} is wrong; it was not tried")
            login._users += 1
            return login

    def leave(self) -> None:
        """The last one logs out."""
        with _TURN:
            self._users -= 1
            if self._users:
                return
            for where in [where for where, login in self._all.items() if login is self]:
                del self._all[where]
            with _quietly():
                self.session.close()


def find_token(module: Path, label: str) -> pkcs11.Token:
    """The token with a label. Raises ConfigError about module or PIN, NotFound, Conflict when two have that label."""
    with _TURN:
        library = _library(module)
    from pkcs11 import TokenFlag  # noqa: PLC0415  # there, else _library says what to do

    with _TURN, _told(label):
        tokens: list[pkcs11.Token] = [one for one in library.get_tokens() if one.flags & TokenFlag.TOKEN_INITIALIZED]
    found = [token for token in tokens if token.label == label]
    if not found:
        known = ", ".join(sorted(token.label for token in tokens)) or "none is initialised"
        raise NotFound(
            f"no token {label} in {module.name} ({known}): put it in, or initialise one with the module's own tool"
            " (SoftHSM: softhsm2-util --init-token --free --label LABEL)"
        )
    if len(found) > 1:
        raise Conflict(f"{len(found)} tokens in {module.name} have the label {label}: rename one")
    if not found[0].flags & TokenFlag.USER_PIN_INITIALIZED:
        raise ConfigError(f"token {label} has no user PIN yet: set one with the module's own tool")
    return found[0]


def _library(module: Path) -> Any:  # noqa: ANN401  # python-pkcs11 has no public name for it
    try:
        import pkcs11  # noqa: PLC0415  # an extra: everything but this store works without
    except ImportError as e:
        raise ConfigError("a PKCS#11 key store needs python-pkcs11: pip install 'onecard[hsm]'") from e
    if not module.is_file():
        raise ConfigError(f"there is no PKCS#11 module {module}: install it, or name the right file")
    try:
        return pkcs11.lib(str(module))
    except pkcs11.PKCS11Error as e:
        if type(e) is pkcs11.PKCS11Error:  # the loader's error has no code
            raise ConfigError(f"{module} can't be loaded as a PKCS#11 module of this computer: {e}") from e
        raise ConfigError(
            f"PKCS#11 module {module.name} does not start ({type(e).__name__}): see its own configuration"
            " (SoftHSM: SOFTHSM2_CONF)"
        ) from e


def _log_in(token: pkcs11.Token, pin: str) -> pkcs11.Session:
    from pkcs11 import TokenFlag, exceptions  # noqa: PLC0415  # the extra hsm

    name = token.label
    locked = f"the PIN of token {name} is locked after too many wrong tries: its security officer sets a new one"
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise Refused("pin_locked", locked)
    with _told(name):
        try:
            return token.open(rw=True, user_pin=pin)
        except exceptions.PinLocked as e:
            raise Refused("pin_locked", locked) from e
        except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange) as e:
            flags = token.slot.get_token().flags
            if flags & TokenFlag.USER_PIN_LOCKED:
                left = "it is locked now: its security officer sets a new one"
            elif flags & TokenFlag.USER_PIN_FINAL_TRY:
                left = "one try is left, then it locks"
            else:
                left = "the token counts wrong tries and may lock after a few, how many are left it does not say"
            raise CryptoError(f"the HSM PIN of token {name} is wrong; {left}") from e


_GONE = "was removed, reset or does not answer: see that it is in, then repeat"
_CLOSED = "closed our session: open the key store again"
_UNABLE = "can't do this: it needs two-key 3DES (CKK_DES2) with CKM_DES3_ECB and CKM_DES3_ECB_ENCRYPT_DATA"
_SAID: dict[str, tuple[type[OneCardError], str]] = {
    "DeviceError": (TransportError, _GONE),
    "DeviceRemoved": (TransportError, _GONE),
    "FunctionFailed": (TransportError, _GONE),
    "GeneralError": (TransportError, _GONE),
    "KeyHandleInvalid": (TransportError, _GONE),
    "ObjectHandleInvalid": (TransportError, _GONE),
    "SlotIDInvalid": (TransportError, _GONE),
    "TokenNotPresent": (TransportError, _GONE),
    "TokenNotRecognised": (TransportError, _GONE),
    "SessionClosed": (TransportError, _CLOSED),
    "SessionHandleInvalid": (TransportError, _CLOSED),
    "UserNotLoggedIn": (TransportError, _CLOSED),
    "SessionCount": (TransportError, "has no session left: end another program that uses it, then repeat"),
    "DeviceMemory": (DatabaseError, "is full, nothing was added: destroy what is not needed any more"),
    "HostMemory": (DatabaseError, "ran out of this computer's memory, nothing was added"),
    "SessionReadOnly": (ConfigError, "can only be read: lift its write protection"),
    "TokenWriteProtected": (ConfigError, "is write-protected: lift that with the module's own tool"),
    "UserPinNotInitialized": (ConfigError, "has no user PIN yet: set one with the module's own tool"),
    "UserAlreadyLoggedIn": (Conflict, "is in use by another part of this program: close that first"),
    "AnotherUserAlreadyLoggedIn": (Conflict, "is open for its security officer: let him log out first"),
    "PinExpired": (Refused, "has a PIN that expired: set a new one with the module's own tool"),
    "AttributeReadOnly": (ConfigError, _UNABLE),
    "AttributeTypeInvalid": (ConfigError, _UNABLE),
    "AttributeValueInvalid": (ConfigError, _UNABLE),
    "FunctionNotSupported": (ConfigError, _UNABLE),
    "KeySizeRange": (ConfigError, _UNABLE),
    "KeyTypeInconsistent": (ConfigError, _UNABLE),
    "MechanismInvalid": (ConfigError, _UNABLE),
    "MechanismParamInvalid": (ConfigError, _UNABLE),
    "TemplateIncomplete": (ConfigError, _UNABLE),
    "TemplateInconsistent": (ConfigError, _UNABLE),
}
"""python-pkcs11 has a class per return code (CKR_...): what each means here."""


@contextmanager
def _told(token: str) -> Iterator[None]:
    """Turn what the module says no with into an error of ours that says what to do."""
    from pkcs11 import PKCS11Error  # noqa: PLC0415  # the extra hsm

    try:
        yield
    except PKCS11Error as e:
        said = type(e).__name__
        kind, text = _SAID.get(said, (CryptoError, f"refused: {e}"))
        message = f"token {token} {text} ({said})"
        raise (Refused("pin_expired", message) if kind is Refused else kind(message)) from e


@contextmanager
def _quietly() -> Iterator[None]:
    """Tidying up: a module that is gone has nothing left to tidy."""
    from pkcs11 import PKCS11Error  # noqa: PLC0415  # the extra hsm

    with suppress(PKCS11Error):
        yield


def _protection() -> dict[pkcs11.Attribute, Any]:
    """What no key object of ours lacks."""
    from pkcs11 import Attribute  # noqa: PLC0415  # the extra hsm

    no = (
        Attribute.EXTRACTABLE, Attribute.MODIFIABLE, Attribute.DECRYPT, Attribute.WRAP, Attribute.UNWRAP,
        Attribute.SIGN, Attribute.VERIFY,
    )  # fmt: skip
    return {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, **dict.fromkeys(no, False)}
