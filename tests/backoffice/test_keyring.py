"""A key store that was rolled back with its head is noticed by what the audit log knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from backoffice import audit, keyring
from backoffice.database import PLATFORM, Database
from cardlib.crypto import Algorithm
from cardlib.errors import CryptoError
from keymgmt.keys import KeyRef, KeyState
from tests.keymgmt.test_store import PURCHASE, make, reopen


def test_rollback_of_both_files(tmp_path: Path) -> None:
    """An older copy of store and head is refused at opening, wherever it was taken; the newest goes on."""
    files = (tmp_path / "keys", tmp_path / "keys.head")
    copies = []
    with Database(tmp_path / "platform.sqlite", "platform", migrate=True) as db:
        with make(tmp_path) as store:
            keyring.check(db, store, "li")
            for state in (KeyState.PENDING, KeyState.ACTIVE, KeyState.RETIRING):
                copies.append([file.read_bytes() for file in files])
                if state is KeyState.PENDING:
                    store.create(PURCHASE, Algorithm.TDES, "li")
                else:
                    store.set_state(PURCHASE, state, "li")
                keyring.note(db, store, "li")
                keyring.note(db, store, "li")
        newest = [file.read_bytes() for file in files]
        with db.read() as tx:
            assert len(audit.entries(tx, PLATFORM, subject=keyring.SUBJECT)) == 4
        for copy in copies:
            for file, raw in zip(files, copy, strict=True):
                file.write_bytes(raw)
            with reopen(tmp_path) as store, pytest.raises(CryptoError, match="older copy"):
                keyring.check(db, store, "li")
        for file, raw in zip(files, newest, strict=True):
            file.write_bytes(raw)
        with reopen(tmp_path) as store:
            keyring.check(db, store, "li")


def test_another_store_of_the_same_length(tmp_path: Path) -> None:
    """A store made anew is no substitute for the one that the log knows, however many keys it has."""
    with Database(tmp_path / "platform.sqlite", "platform", migrate=True) as db:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        with make(tmp_path / "one") as store:
            store.create(PURCHASE, Algorithm.TDES, "li")
            keyring.check(db, store, "li")
        with make(tmp_path / "two", b"another passphrase") as store:
            for version in range(1, 4):
                store.create(KeyRef(PURCHASE.purpose, version), Algorithm.TDES, "li")
            with pytest.raises(CryptoError, match="older copy, or another"):
                keyring.check(db, store, "li")


def test_unnoted_changes_are_taken_up(tmp_path: Path) -> None:
    """Killed between a change and its note, the store is ahead of the log: right, and noted at the next opening."""
    with Database(tmp_path / "platform.sqlite", "platform", migrate=True) as db:
        with make(tmp_path) as store:
            keyring.check(db, store, "li")
            store.create(PURCHASE, Algorithm.TDES, "li")
        with reopen(tmp_path) as store:
            keyring.check(db, store, "li")
            with db.read() as tx:
                assert keyring.noted(tx) == store.head
