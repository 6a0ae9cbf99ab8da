"""Deriving the keys of many cards: file store and SoftHSM, in one call for many and in one call each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from cardlib.crypto import Algorithm
from cardlib.crypto.keys import invert
from cardlib.crypto.sealing import Argon2Params
from cardlib.profile import CardKind, Purpose, make_serial
from keymgmt.handle import CORES
from keymgmt.keys import PLATFORM_PURPOSES, KeyRef
from keymgmt.pkcs11 import ModuleKey, Pkcs11Store
from keymgmt.store import FileStore, SharedStore
from tests.bench.figures import Figure
from tests.softhsm import MODULE, PIN, TOKEN, softhsm

CARDS = 100_000
PURPOSES = [one for one in Purpose if one not in PLATFORM_PURPOSES and one is not Purpose.PIN][:12]
ENTERPRISE = 1001
SAMPLE = 500
"""Cards that get one call per key: the rate is the same for more."""
SERIALS = [make_serial(CardKind.CPU_CARD, 1, number) for number in range(CARDS)]


@contextmanager
def _stores() -> Iterator[tuple[FileStore, Pkcs11Store]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cheap = Argon2Params(64, 1, 1)
        with (
            softhsm(folder / "hsm"),
            FileStore.create_file(folder / "keys", b"a bench", cheap) as file,
            Pkcs11Store(MODULE, TOKEN, PIN, folder / "lock") as token,
        ):
            for purpose in PURPOSES:
                file.create(KeyRef(purpose, 1), Algorithm.TDES, "bench")
                token.create(KeyRef(purpose, 1), Algorithm.TDES, "bench")
            with file.using("bench"), token.using("bench"):  # as an installation does
                yield file, token


def _seconds(act: Callable[[], object]) -> float:
    """The better of three runs."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return min(times)


def _batched(store: SharedStore) -> None:
    for purpose in PURPOSES:
        batch = store.handle(KeyRef(purpose, 1, ENTERPRISE)).derive_many(SERIALS)
        if len(batch) != CARDS:
            raise AssertionError("not all cards got their keys")


def _each(store: SharedStore) -> None:
    for serial in SERIALS[:SAMPLE]:
        for purpose in PURPOSES:
            store.handle(KeyRef(purpose, 1, ENTERPRISE), serial)


def _bare() -> None:
    """The same blocks through the library's cipher on as many cores, without a store: two blocks a key."""
    share = bytes(16 * (CARDS // CORES))

    def encipher(key: bytes) -> None:
        Cipher(TripleDES(key), modes.ECB()).encryptor().update(share)

    with ThreadPoolExecutor(CORES) as pool:
        for number in range(len(PURPOSES)):
            list(pool.map(encipher, [bytes(range(number, number + 24))] * CORES))


def _block_by_block(store: Pkcs11Store) -> None:
    """One call to the module for each block, as it is without batching."""
    for purpose in PURPOSES:
        master = store.handle(KeyRef(purpose, 1, ENTERPRISE))._key
        assert isinstance(master, ModuleKey)
        for serial in SERIALS[:SAMPLE]:
            for block in (serial, invert(serial)):
                store.encrypt(master._key, block)


def derivation() -> list[Figure]:
    """All keys of 100 000 cards, 12 each; what is slow is measured on 500 cards, its rate being the same for more."""
    with _stores() as (file, token):
        batch, bare = _seconds(lambda: _batched(file)), _seconds(_bare)
        each = _seconds(lambda: _each(file)) * CARDS / SAMPLE
        hsm = _seconds(lambda: _batched(token))
        blocks = _seconds(lambda: _block_by_block(token)) * CARDS / SAMPLE
    keys = len(PURPOSES) * CARDS
    return [
        Figure("file store: card keys, many in one call", keys / batch, "keys/s"),
        Figure("  one call per key", keys / each, "keys/s"),
        Figure("  many in one call against one call per key", each / batch, "times", 10),
        Figure("  share of it that the bare cipher takes", bare / batch, "of 1"),
        Figure("SoftHSM: cards of 12 keys, many in one call", CARDS / hsm, "cards/s"),
        Figure("  one call per block", CARDS / blocks, "cards/s"),
        Figure("  many in one call against one call per block", blocks / hsm, "times", 10),
    ]
