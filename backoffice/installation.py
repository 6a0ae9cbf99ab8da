"""One installation: a directory with the platform's database, one database per enterprise, keys.

Whoever opens it is an operator who proved who he is.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Self

from backoffice import audit, enterprises, keyring, keystores, operators
from backoffice.audit import Event
from backoffice.database import PLATFORM, Database, DatabaseRole, Tx
from backoffice.enterprises import Enterprise
from backoffice.keystores import Token
from backoffice.operators import Credential, Operator, Permission, Role
from backoffice.station import IssuingStation, Office, no_store
from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.sealing import Argon2Params, argon2id, seal, unseal
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError, Conflict, CryptoError, FormatError, MacMismatch, NotFound
from cardlib.profile import Purpose
from keymgmt.handle import KeyHandle, UseLog
from keymgmt.keys import KeyRef, KeyState
from keymgmt.pkcs11 import Pkcs11Store
from keymgmt.store import FileStore, SharedStore, replace_file

PLATFORM_FILE = "platform.sqlite"
KEY_FILE = "keys.store"
LOCK_FILE = "keys.lock"
"""By which the processes of this host take turns at a token."""
PASSPHRASE_FILE = "passphrase.check"  # noqa: S105  # a file's name
"""What the key passphrase has to open, also where keys are in a token. The last that ``create`` makes."""
SIGNER_MAGIC = b"ONESIGN\x01"
ROOT_PURPOSES: Sequence[Purpose] = tuple(p for p in Purpose if p is not Purpose.PIN)


def now_ms() -> int:
    """UTC milliseconds of this computer's clock."""
    return time.time_ns() // 1_000_000


def is_made(folder: Path) -> bool:
    """Whether a folder holds an installation; an interrupted one is none."""
    return (folder / PLATFORM_FILE).exists() and (folder / PASSPHRASE_FILE).exists()


class Installation:
    """Opens databases and keys when they are first needed; ``close`` lets all go.

    ``secret`` asks for a secret by name (``operator secret``, ``key passphrase``, ``hsm pin``); ``purpose`` is what
    the audit log says that master keys were used for.
    """

    def __init__(
        self,
        folder: Path,
        secret: Callable[[str], str],
        *,
        operator: str = "admin",
        enterprise_id: int | None = None,
        purpose: str = "command",
        platform: bool = False,
        migrate: bool = False,
        clock: Callable[[], int] = now_ms,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.folder = folder
        self.secret = secret
        self.clock = clock
        self.random_bytes = random_bytes
        self._operator_name = operator
        self._enterprise_id = enterprise_id
        self._purpose = purpose
        self._platform = platform
        self._migrate = migrate
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything that was opened."""
        self._stack.close()

    @cached_property
    def platform(self) -> Database:
        """The platform's database. Raises NotFound before ``onecard init``."""
        return self._database(self.folder / PLATFORM_FILE, "platform")

    def _database(self, path: Path, role: DatabaseRole) -> Database:
        migrate = self._migrate and path.exists()
        made = Database(path, role, migrate=migrate, now_ms=self.clock, random_bytes=self.random_bytes)
        return self._stack.enter_context(made)

    @property
    def enterprise_id(self) -> int:
        """The enterprise that this invocation works on. Raises NotFound when none was named."""
        if self._enterprise_id is None:
            raise NotFound("which enterprise? Give --enterprise NUMBER or set ONECARD_ENTERPRISE")
        return self._enterprise_id

    @cached_property
    def enterprise(self) -> Enterprise:
        """What the platform knows of it. Raises NotFound, Refused when it is suspended or closed."""
        with self.platform.read() as tx:
            return enterprises.require_active(tx, self.enterprise_id)

    @cached_property
    def database(self) -> Database:
        """The enterprise's database."""
        return self._database(self.folder / self.enterprise.database, "enterprise")

    @cached_property
    def operator(self) -> Operator:
        """Who acts, after proving it: an operator of the enterprise, else one of the platform. Raises Refused."""
        name = self._operator_name
        if self.scope != PLATFORM:
            with self.database.read() as tx:
                known = any(account.name == name for account in operators.accounts(tx, self.enterprise_id))
            if known:
                secret = self.secret("operator secret")
                return operators.authenticate(self.database, self.enterprise_id, name, secret)
        return operators.authenticate(self.platform, PLATFORM, name, self.secret("operator secret"))

    @property
    def scope(self) -> int:
        """Enterprise in whose name permissions are asked for; the platform's when none was named."""
        return PLATFORM if self._platform or self._enterprise_id is None else self._enterprise_id

    def require(self, permission: Permission) -> Operator:
        """The operator, when he may do this. Raises Refused("permission")."""
        operators.require(self.operator, permission, self.scope)
        return self.operator

    @cached_property
    def keys(self) -> SharedStore:
        """The key store, file or token; each use of a master key goes into the audit log.

        Raises CryptoError for a wrong passphrase or PIN, and for a file that is an older copy than the audit log
        knows of; NotFound, ConfigError for what ``keystore.toml`` says.
        """
        token = keystores.read(self.folder)
        store = self._file_store() if token is None else self._stack.enter_context(self._token_store(token))
        self._stack.enter_context(store.using(self._purpose))
        return store

    def _file_store(self) -> FileStore:
        passphrase = self.secret("key passphrase").encode()
        store = FileStore(
            self.folder / KEY_FILE, passphrase, random_bytes=self.random_bytes, now_ms=self.clock, on_use=self._key_used
        )
        self._stack.enter_context(store)
        keyring.check(self.platform, store, self._operator_name)
        self._stack.callback(keyring.note, self.platform, store, self._operator_name)
        return store

    def _token_store(self, token: Token) -> Pkcs11Store:
        return Pkcs11Store(
            token.module, token.label, self.secret("hsm pin"), self.folder / LOCK_FILE,
            random_bytes=self.random_bytes, now_ms=self.clock, on_use=self._key_used,
        )  # fmt: skip

    def _key_used(self, ref: KeyRef, purpose: str, count: int) -> None:
        with self.platform.write() as tx:
            who, of = self._operator_name, {"enterprise": ref.enterprise_id} if ref.enterprise_id else {}
            # In the platform's log, whosever the key is: an enterprise's own may be in the middle of a transaction.
            audit.record(tx, PLATFORM, Event.KEY_USED, who, audit.key_subject(ref), kind=purpose, count=count, **of)

    @cached_property
    def uses(self) -> UseLog:
        """Where uses of keys are told that are in no store of ours: a mother card's."""
        log = UseLog(self._key_used)
        self._stack.enter_context(log.using(self._purpose))
        return log

    def platform_operator(self, name: str) -> Operator:
        """An operator of the platform beside the one who acts, where both are one organisation. Raises Refused."""
        return operators.authenticate(self.platform, PLATFORM, name, self.secret("platform operator secret"))

    def office(
        self,
        platform_operator: Operator | None = None,
        initial: KeyHandle | None = None,
        issuing: IssuingStation | None = None,
    ) -> Office:
        """What the flows with a card in the reader work with; with ``issuing`` the key store is not opened."""
        return Office(
            self.platform, self.database, self.enterprise_id, no_store() if issuing else self.keys, self.clock,
            self.random_bytes, platform_operator, initial, self.enterprise.utc_offset_minutes, issuing=issuing,
        )  # fmt: skip

    def initial_key(self, algorithm: Algorithm = Algorithm.TDES) -> KeyHandle:
        """The vendor's transport key, asked for as hex. Raises ConfigError when it can't be one."""
        text = self.secret("transport key")
        try:
            value = bytes.fromhex(text)
        except ValueError:
            raise ConfigError("the transport key is not hexadecimal") from None
        return KeyHandle(make_key(value, algorithm), "transport key")

    # Making things

    def create(
        self,
        operator_secret: str,
        key_passphrase: str,
        params: Argon2Params | None = None,
        token: Token | None = None,
        *,
        roots: bool = True,
    ) -> int:
        """Make the platform: database, first operator, key store with active root keys (``roots``) or empty.

        The store is in ``token``, or where ``keystore.toml`` says, or a file.
        Gives how many keys the token held already: they are kept. Raises Conflict when there is an installation
        already. An interrupted one is finished by calling again.
        """
        self.require_none()
        token = keystores.choose(self.folder, token)
        if len(key_passphrase) < 8:
            raise FormatError("a key passphrase has at least 8 characters")
        credential = Credential.make(operator_secret, self.random_bytes)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            held = stack.enter_context(self._token_store(token)) if token else None  # a wrong PIN shows before all else
            path = self.folder / PLATFORM_FILE
            db = stack.enter_context(Database(path, "platform", migrate=True, now_ms=self.clock))
            with db.write() as tx:
                if not operators.accounts(tx, PLATFORM):
                    operators.add_first(tx, PLATFORM, self._operator_name, Role.PLATFORM, credential)
            store = held or stack.enter_context(self._new_file_store(key_passphrase.encode(), params))
            found = {info.ref: info.state for info in store.list()}
            if roots:
                self._make_roots(store, found)
            if isinstance(store, FileStore):
                keyring.note(db, store, self._operator_name)
            if token:
                keystores.write(self.folder, token)
            replace_file(self.folder / PASSPHRASE_FILE, self._sealed(0, key_passphrase.encode(), b""))
            return len(found) if token else 0

    def _make_roots(self, store: SharedStore, found: Mapping[KeyRef, KeyState]) -> None:
        for ref in (KeyRef(purpose, 1) for purpose in ROOT_PURPOSES):
            if ref not in found:
                store.create(ref, Algorithm.TDES, self._operator_name)
            if found.get(ref, KeyState.PENDING) is KeyState.PENDING:
                store.set_state(ref, KeyState.ACTIVE, self._operator_name)

    def _new_file_store(self, passphrase: bytes, params: Argon2Params | None) -> FileStore:
        """A new one, or that of an interrupted run."""
        path = self.folder / KEY_FILE
        if path.exists():
            return FileStore(path, passphrase, random_bytes=self.random_bytes, now_ms=self.clock)
        return FileStore.create_file(path, passphrase, params, random_bytes=self.random_bytes, now_ms=self.clock)

    def require_none(self) -> None:
        """Raise Conflict when there is an installation here already; an interrupted one is none."""
        if is_made(self.folder):
            raise Conflict(f"{self.folder} holds an installation already: nothing was changed")

    def open_enterprise(
        self, enterprise_id: int, name: str, utc_offset_min: int, administrator: Credential
    ) -> Enterprise:
        """Register an enterprise, make its database with its first administrator, its list signing key.

        The database comes first, so that a registered enterprise always has one. Raises Refused, Conflict.
        """
        self.require(Permission.ENTERPRISE_MANAGE)
        with self.platform.write() as tx:
            made = self.register(tx, enterprise_id, name, utc_offset_min)
            db = Database(self.folder / made.database, "enterprise", migrate=True, now_ms=self.clock)
            with db, db.write() as inner:
                if not operators.accounts(inner, enterprise_id):
                    operators.add_first(inner, enterprise_id, "admin", Role.ADMINISTRATOR, administrator)
        return made

    def register(self, tx: Tx, enterprise_id: int, name: str, utc_offset_min: int) -> Enterprise:
        """Write an enterprise into the platform's database. Raises Refused, FormatError, Conflict."""
        file = f"enterprise-{enterprise_id}.sqlite"
        return enterprises.register(tx, self.operator, enterprise_id, name, file, utc_offset_min)

    @property
    def signer_file(self) -> Path:
        """Where the key that signs this enterprise's lists is kept."""
        return self.folder / f"lists-{self.enterprise_id}.key"

    @cached_property
    def signer(self) -> SigningKey:
        """The key that signs this enterprise's lists; made and sealed under the key passphrase at its first use."""
        path = self.signer_file
        passphrase = self.secret("key passphrase").encode()
        if keystores.read(self.folder) is None:
            self.keys.list()  # a wrong passphrase is told before a key is sealed under it
        else:
            self._open_sealed(self.folder / PASSPHRASE_FILE, 0, passphrase)
        if path.exists():
            return SigningKey(self._open_sealed(path, self.enterprise_id, passphrase))
        key = SigningKey.generate(self.random_bytes)
        sealed = self._sealed(self.enterprise_id, passphrase, key.seed)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        return key

    def _open_sealed(self, path: Path, number: int, passphrase: bytes) -> bytes:
        try:
            raw = path.read_bytes()
        except OSError as e:
            raise NotFound(f"{path.name} can't be read ({e.strerror}): restore it from a backup") from e
        if raw[:8] != SIGNER_MAGIC:
            raise FormatError(f"{path.name} is no signing key")
        key = argon2id(passphrase, raw[8:24], Argon2Params())
        try:
            return unseal(key, raw[24:], SIGNER_MAGIC + number.to_bytes(4, "big"), path.name)
        except MacMismatch as e:
            raise CryptoError(f"{path.name}: wrong key passphrase, or the file was changed") from e

    def _sealed(self, number: int, passphrase: bytes, secret: bytes) -> bytes:
        salt = self.random_bytes(16)
        key = argon2id(passphrase, salt, Argon2Params())
        aad = SIGNER_MAGIC + number.to_bytes(4, "big")
        return SIGNER_MAGIC + salt + seal(key, secret, aad, self.random_bytes)
