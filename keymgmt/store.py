"""Key stores: keys are used by reference, their values never leave (keys.md)."""

from __future__ import annotations

import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock, local
from typing import Any, NamedTuple, Protocol, Self, TypedDict, Unpack

import cbor2

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.crypto.sealing import Argon2Params, argon2id, hkdf, hmac_sha256, seal, unseal, verify_hmac
from cardlib.errors import (
    ConfigError,
    Conflict,
    CryptoError,
    DatabaseError,
    FormatError,
    MacMismatch,
    NotFound,
    Refused,
)
from cardlib.profile import Purpose, issuer_id
from keymgmt import keyblock
from keymgmt.handle import KeyHandle, Master, OnUse, UseLog
from keymgmt.keyblock import BlockVersion, Exportability
from keymgmt.keys import KeyInfo, KeyRef, KeyState, check_transition

MAGIC = b"ONEKEYS\x01"
TAG_SIZE = 32


class KeyStore(Protocol):
    """Where master keys are. Every operation names a key; none gives a value out."""

    def create(self, ref: KeyRef, algorithm: Algorithm, made_by: str) -> KeyInfo:
        """Make a key: a random root, or an enterprise's from the root. Raises Conflict when it exists."""

    def import_key(self, ref: KeyRef, algorithm: Algorithm, value: bytes, kcv: bytes, made_by: str) -> KeyInfo:
        """Take in a key of a ceremony or key block. Raises BadKcv when it is not the expected one, Conflict."""

    def list(self) -> Sequence[KeyInfo]:
        """Attributes of all keys, in the order they were made."""

    def info(self, ref: KeyRef) -> KeyInfo:
        """Attributes of one key. Raises NotFound."""

    def set_state(self, ref: KeyRef, state: KeyState, by: str) -> KeyInfo:
        """Move a key on in its life. Raises NotFound, Conflict."""

    def handle(self, ref: KeyRef, *factors: bytes) -> KeyHandle:
        """Key diversified by factors of 8 bytes. Raises NotFound, or Conflict when it is destroyed."""


class Head(NamedTuple):
    """How far a store's file goes: number of entries, tag of the last."""

    entries: int
    tag: bytes


class StoreOptions(TypedDict, total=False):
    """What a store is given from outside: randomness, clock, and who is told of uses."""

    random_bytes: Callable[[int], bytes]
    now_ms: Callable[[], int]
    on_use: OnUse | None


class SharedStore(ABC):
    """What stores have in common: processes that take turns, the life of a key, handles, the account of uses.

    ``_fd`` is a file whose lock says whose turn it is. A change takes it exclusively and first reads what others
    changed.
    """

    def __init__(
        self, name: str, random_bytes: Callable[[int], bytes], now_ms: Callable[[], int], on_use: OnUse | None
    ) -> None:
        self.name = name
        self.uses = UseLog(on_use)
        self.using = self.uses.using
        self._random_bytes = random_bytes
        self._now_ms = now_ms
        self._info: dict[KeyRef, KeyInfo] = {}
        self._count = 0  # changes seen; what a thread keeps at hand is good for one count
        self._lock = RLock()
        self._kept = local()
        self._held = 0
        self._fd = -1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {len(self._info)} keys>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the store go; calling it twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def create(self, ref: KeyRef, algorithm: Algorithm, made_by: str) -> KeyInfo:
        """Make a pending key: a random root, or an enterprise's from its root, whose algorithm it has.

        Raises Conflict when it exists, NotFound when there is no root, Refused ``algorithm`` for single DES.
        """
        ref.check()
        refuse_legacy(ref, algorithm)
        with self._locked(fcntl.LOCK_EX):
            self._require_new(ref)
            if ref.enterprise_id is None:
                return self._make(ref, algorithm, None, made_by)
            root = self._master(ref.root)
            if root.algorithm != algorithm:
                raise Conflict(f"key {ref.root} is {root.algorithm.name}: its children can't be {algorithm.name}")
            self.uses.count(ref.root)
            kcv = self._master(ref).kcv
            return self._note(KeyInfo(ref, algorithm, kcv, KeyState.PENDING, made_by, self._now_ms()))

    def import_key(self, ref: KeyRef, algorithm: Algorithm, value: bytes, kcv: bytes, made_by: str) -> KeyInfo:
        """Take in a key of a ceremony or key block, as pending.

        Raises BadKcv when it is not the expected one, Conflict, Refused ``algorithm`` for single DES.
        """
        ref.check()
        refuse_legacy(ref, algorithm)
        if len(value) != 16:
            raise ConfigError("a master key has 16 bytes")
        make_key(value, algorithm).check(kcv, f"key {ref}")
        with self._locked(fcntl.LOCK_EX):
            self._require_new(ref)
            return self._make(ref, algorithm, value, made_by)

    def list(self) -> Sequence[KeyInfo]:
        """Attributes of all keys, in the order they were made."""
        with self._locked(fcntl.LOCK_SH):
            return list(self._info.values())

    def info(self, ref: KeyRef) -> KeyInfo:
        """Attributes of one key. Raises NotFound."""
        with self._locked(fcntl.LOCK_SH):
            if ref not in self._info:
                raise NotFound(f"key {ref} is not in store {self.name}")
            return self._info[ref]

    def set_state(self, ref: KeyRef, state: KeyState, by: str) -> KeyInfo:
        """Move a key on in its life. Raises NotFound, Conflict when the life of a key does not allow it."""
        with self._locked(fcntl.LOCK_EX):
            info = self.info(ref)
            check_transition(ref, info.state, state)
            self._restate(replace(info, state=state), by)
            return self._info[ref]

    def handle(self, ref: KeyRef, *factors: bytes) -> KeyHandle:
        """Key diversified by 8-byte factors; an enterprise's is taken from the root where it is not stored.

        Raises NotFound, Conflict when it is destroyed, CryptoError for too many factors.
        """
        top = self._tops().get(ref)
        if top is None:
            ref.check()
            with self._locked(fcntl.LOCK_SH):
                top = KeyHandle(self._master(ref), str(ref), ref.levels, lambda count: self.uses.count(ref, count))
            self._tops()[ref] = top
        return top.derive(*factors) if factors else top

    def _tops(self) -> dict[KeyRef, KeyHandle]:
        """Master keys this thread has at hand, for as long as nobody changes the store: a batch derives from them."""
        if self._fd < 0 or self._stale():
            with self._locked(fcntl.LOCK_SH):
                pass
        if getattr(self._kept, "count", None) != self._count:
            self._kept.count, self._kept.tops = self._count, {}
        tops: dict[KeyRef, KeyHandle] = self._kept.tops
        return tops

    def _master(self, ref: KeyRef) -> Master:
        info = self._info.get(ref)
        if info and info.state is KeyState.DESTROYED:
            raise Conflict(f"key {ref} is destroyed: use another version")
        own = self._own(info) if info else None
        if own is not None:
            return own
        if ref.enterprise_id is None:
            raise NotFound(f"key {ref} is not in store {self.name}")
        return self._master(ref.root).diversify(issuer_id(ref.enterprise_id))

    def _require_new(self, ref: KeyRef) -> None:
        if ref in self._info:
            raise Conflict(f"key {ref} exists already: make the next version")

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the file's lock (and this object's), with everything read that other processes changed."""
        with self._lock:
            if self._held:  # an exclusive section reads inside itself; a shared one never writes
                yield
                return
            if self._fd < 0:
                raise Conflict(f"key store {self.name} was closed: open it again")
            fcntl.flock(self._fd, kind)
            self._held = kind
            try:
                if self._stale():
                    self._refresh()
                yield
            finally:
                self._held = 0
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    # What a store has to say for itself; all but the first are called with the lock held.

    @abstractmethod
    def _stale(self) -> bool:
        """Whether others may have changed something since the last look."""

    @abstractmethod
    def _refresh(self) -> None:
        """Read what others changed into ``_info`` and count it."""

    @abstractmethod
    def _own(self, info: KeyInfo) -> Master | None:
        """The key, unless it is derived from its root."""

    @abstractmethod
    def _make(self, ref: KeyRef, algorithm: Algorithm, value: bytes | None, made_by: str) -> KeyInfo:
        """Keep a new key: of 16 bytes, or random."""

    @abstractmethod
    def _note(self, info: KeyInfo) -> KeyInfo:
        """Keep the attributes of a key that is derived from its root."""

    @abstractmethod
    def _restate(self, info: KeyInfo, by: str) -> None:
        """Keep a new state."""


def refuse_legacy(ref: KeyRef, algorithm: Algorithm) -> None:
    """Raise Refused ``algorithm`` for single DES: cards of old may have it, no new key does."""
    if algorithm is Algorithm.DES:
        raise Refused("algorithm", f"key {ref} can't be single DES: new keys are 3DES or SM4")


class FileStore(SharedStore):
    """Keys in an append-only file, wrapped (AES-256-GCM) under a passphrase (Argon2id).

    File: magic 8, then frames ``length 2 || CBOR || tag 32``: first [memory KiB, iterations, lanes, salt],
    then one per change. Each tag is an HMAC over the tag before and the frame, so an edit or a removal
    shows. ``PATH.head`` holds the last acknowledged frame's number and tag: a file cut or rolled back
    behind it is refused, an unfinished frame after it (power failed) is dropped. Whoever rolls back both
    files is caught by comparing ``head`` with the one that the audit log holds.
    Several processes may use one file: a change takes an exclusive lock and first reads what others added.
    """

    def __init__(
        self,
        path: Path,
        passphrase: bytes,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_use: OnUse | None = None,
    ) -> None:
        """Open. Raises NotFound, FormatError, and CryptoError for a wrong passphrase or a changed file."""
        super().__init__(path.name, random_bytes, now_ms, on_use)
        self.path = path
        self._sealed: dict[KeyRef, bytes] = {}
        self._checked = False
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise NotFound(f"there is no key store {path.name}: make one first") from e
        try:
            self._open(passphrase)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create_file(
        cls, path: Path, passphrase: bytes, params: Argon2Params | None = None, **options: Unpack[StoreOptions]
    ) -> Self:
        """Make an empty store and open it with the constructor's ``options``. Raises Conflict when it exists."""
        params = params or Argon2Params()
        salt = options.get("random_bytes", os.urandom)(16)
        frame = _frame(cbor2.dumps([params.memory_kib, params.iterations, params.lanes, salt]))
        tag = hmac_sha256(_working_keys(passphrase, params, salt)[1], MAGIC + frame)
        new = path.with_name(path.name + ".new")
        _write_synced(new, MAGIC + frame + tag)
        try:
            os.link(new, path)  # unlike a rename it never replaces a store
        except FileExistsError as e:
            raise Conflict(f"key store {path.name} exists already: nothing was changed") from e
        finally:
            new.unlink()
        store = cls(path, passphrase, **options)
        store._write_head()
        return store

    @property
    def head(self) -> Head:
        """What an audit log keeps, to notice when both files are rolled back."""
        with self._locked(fcntl.LOCK_SH):
            return Head(self._count, self._tag)

    def require_head(self, kept: Head) -> None:
        """Raise CryptoError unless this file goes on from a head that was kept elsewhere: else it is an older copy."""
        with self._locked(fcntl.LOCK_SH):
            if self._count < kept.entries or self._tags[kept.entries] != kept.tag:
                raise CryptoError(
                    f"key store {self.path.name} is an older copy, or another one: it has {self._count} entries and the"
                    f" audit log knows of {kept.entries}. Restore the newest copy; keys made since are not in this one"
                )

    def export_block(
        self, ref: KeyRef, kbpk: bytes, block_version: BlockVersion, exportability: Exportability = Exportability.YES
    ) -> str:
        """A stored key as a TR-31 key block under ``kbpk``: what leaves is the block, never the value.

        Raises NotFound, Conflict when it is destroyed, ConfigError for a bad ``kbpk``, Refused for SM4.
        """
        with self._locked(fcntl.LOCK_SH):
            info = self.info(ref)
            key = self._master(ref)  # refuses a destroyed one
            if ref in self._sealed:
                value = unseal(self._wrapping, self._sealed[ref], _attributes(info), f"key {ref}")
            else:
                value = self._master(ref.root).diversify_many(issuer_id(ref.enterprise_id or 0))
            make_key(value, key.algorithm).check(info.kcv, f"key {ref}")
            self.uses.count(ref)
            return keyblock.wrap(value, info, kbpk, block_version, exportability)

    def _own(self, info: KeyInfo) -> Key | None:
        if info.ref not in self._sealed:
            return None
        value = unseal(self._wrapping, self._sealed[info.ref], _attributes(info), f"key {info.ref}")
        return make_key(value, info.algorithm)

    def _make(self, ref: KeyRef, algorithm: Algorithm, value: bytes | None, made_by: str) -> KeyInfo:
        value = self._random_bytes(16) if value is None else value
        kcv = make_key(value, algorithm).kcv
        info = KeyInfo(ref, algorithm, kcv, KeyState.PENDING, made_by, self._now_ms())
        return self._note(info, seal(self._wrapping, value, _attributes(info), self._random_bytes))

    def _note(self, info: KeyInfo, sealed: bytes | None = None) -> KeyInfo:
        self._append(["key", *info.ref, int(info.algorithm), info.kcv, info.made_by, info.made_at_ms, sealed])
        return info

    def _restate(self, info: KeyInfo, by: str) -> None:
        self._append(["state", *info.ref, info.state.value, by, self._now_ms()])

    # The file.

    @property
    def _head_path(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    def _open(self, passphrase: bytes) -> None:
        start = os.pread(self._fd, 1024, 0)
        if not start.startswith(MAGIC):
            raise FormatError(f"{self.path.name} is no key store of this version")
        body, tag, self._end = _split(start, len(MAGIC))
        try:
            memory_kib, iterations, lanes, salt = cbor2.loads(body)
            params = Argon2Params(memory_kib, iterations, lanes)
            params.check()
            salt = bytes(salt)
        except (ValueError, TypeError, ConfigError, cbor2.CBORError) as e:
            raise FormatError(f"key store {self.path.name}: the header is damaged") from e
        self._wrapping, self._chain = _working_keys(passphrase, params, salt)
        try:
            verify_hmac(self._chain, start[: self._end - TAG_SIZE], tag, "tag")
        except MacMismatch as e:
            raise CryptoError(f"key store {self.path.name}: wrong passphrase, or its header was changed") from e
        self._count, self._tag, self._tags = 0, tag, [tag]
        with self._locked(fcntl.LOCK_SH):
            pass

    def _stale(self) -> bool:
        return os.fstat(self._fd).st_size != self._end or not self._checked

    def _refresh(self) -> None:
        size = os.fstat(self._fd).st_size
        head = self._read_head()
        raw = os.pread(self._fd, max(0, size - self._end), self._end)
        at = 0
        self._compare(head)
        while at < len(raw):
            try:
                body, tag, end = _split(raw, at)
                verify_hmac(self._chain, self._tag + raw[at : end - TAG_SIZE], tag, "tag")
            except (FormatError, MacMismatch):
                break  # unfinished when it is behind the head, else found below
            self._apply(cbor2.loads(body))
            self._count, self._tag = self._count + 1, tag
            self._tags.append(tag)
            self._compare(head)
            at = end
        self._end += at
        if size < self._end or (self._count < head.entries if head else self._count):
            raise CryptoError(
                f"key store {self.path.name} was cut or changed after entry {self._count}: restore it from a backup"
            )
        self._checked = True

    def _compare(self, head: Head | None) -> None:
        if head and head.entries == self._count and head.tag != self._tag:
            raise CryptoError(f"key store {self.path.name} and its head do not belong together at entry {self._count}")

    def _read_head(self) -> Head | None:
        try:
            raw = self._head_path.read_bytes()
        except FileNotFoundError:
            return None
        return Head(int.from_bytes(raw[:-TAG_SIZE], "big"), raw[-TAG_SIZE:])

    def _write_head(self) -> None:
        replace_file(self._head_path, self._count.to_bytes(8, "big") + self._tag)

    def _append(self, entry: Sequence[Any]) -> None:
        frame = _frame(cbor2.dumps(entry))
        tag = hmac_sha256(self._chain, self._tag + frame)
        try:
            if not self._head_path.exists():  # power failed while the store was made
                self._write_head()
            os.ftruncate(self._fd, self._end)
            if os.write(self._fd, frame + tag) != len(frame) + TAG_SIZE:
                raise DatabaseError(f"key store {self.path.name}: the disk is full, nothing was added")
            os.fsync(self._fd)
            self._apply(entry)
            self._count, self._tag, self._end = self._count + 1, tag, self._end + len(frame) + TAG_SIZE
            self._tags.append(tag)
            self._write_head()
        except OSError as e:
            raise DatabaseError(f"key store {self.path.name} can't be written: {e.strerror}") from e

    def _apply(self, entry: Sequence[Any]) -> None:
        kind, purpose, version, enterprise_id, *rest = entry
        ref = KeyRef(Purpose(purpose), version, enterprise_id)
        if kind == "state":
            self._info[ref] = replace(self._info[ref], state=KeyState(rest[0]))
            return
        algorithm, kcv, made_by, made_at_ms, sealed = rest
        self._info[ref] = KeyInfo(ref, Algorithm(algorithm), kcv, KeyState.PENDING, made_by, made_at_ms)
        if sealed is not None:
            self._sealed[ref] = sealed


def _working_keys(passphrase: bytes, params: Argon2Params, salt: bytes) -> tuple[bytes, bytes]:
    """Key that wraps and key that chains."""
    root = argon2id(passphrase, salt, params)
    return hkdf(root, b"onecard key store: wrap"), hkdf(root, b"onecard key store: chain")


def _attributes(info: KeyInfo) -> bytes:
    """What a wrapped value is bound to: it can't be moved to another reference or called by another algorithm."""
    return cbor2.dumps([*info.ref, int(info.algorithm), info.kcv, info.made_by, info.made_at_ms])


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def _split(raw: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Body, tag and end of the frame at ``at``. Raises FormatError when it is not all there."""
    end = at + 2 + int.from_bytes(raw[at : at + 2], "big") + TAG_SIZE
    if end > len(raw):
        raise FormatError("a frame of the key store is incomplete")
    return raw[at + 2 : end - TAG_SIZE], raw[end - TAG_SIZE : end], end


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file as a whole: after a power cut it is the old one or the new one, synced."""
    new = path.with_name(path.name + ".new")
    _write_synced(new, data)
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder has."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
