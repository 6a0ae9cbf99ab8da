"""Power goes at any write of the key store: what was there stays, the change is there or not, the next one works."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import DatabaseError, NotFound
from keymgmt.keys import KeyInfo, KeyRef, KeyState
from keymgmt.store import FileStore
from tests.keymgmt.test_store import OURS, PURCHASE, make, reopen

VALUE = bytes(range(3, 19))
SECOND = KeyRef(PURCHASE.purpose, 2)
CALLS = ("write", "fsync", "ftruncate", "link", "unlink", "replace", "rename", "open")
CHANGES: dict[str, Callable[[FileStore], KeyInfo]] = {
    "create": lambda store: store.create(SECOND, Algorithm.TDES, "li"),
    "child": lambda store: store.create(OURS, Algorithm.TDES, "li"),
    "import": lambda store: store.import_key(SECOND, Algorithm.TDES, VALUE, make_key(VALUE).kcv, "li"),
    "state": lambda store: store.set_state(PURCHASE, KeyState.ACTIVE, "li"),
}


class PowerCut(BaseException):
    """Nothing of the program runs on."""


@contextmanager
def cut_at(step: int, how: str) -> Iterator[list[str]]:
    """End the program at its ``step``-th call that touches files: before it, behind it, or in the middle of a write."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            original = getattr(os, name)

            def call(*args: Any, _name: str = name, _original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                if len(done) >= step > 0:
                    raise PowerCut  # also whatever a finally does is not done any more
                done.append(_name)
                if len(done) != step:
                    return _original(*args, **kwargs)
                if how == "behind":
                    _original(*args, **kwargs)
                if how == "within" and _name == "write":
                    _original(args[0], args[1][: len(args[1]) // 2])
                raise PowerCut

            patch.setattr(os, name, call)
        yield done


def seen(store: FileStore) -> dict[KeyRef, KeyInfo]:
    return {info.ref: info for info in store.list()}


def steps_of(folder: Path, change: str) -> int:
    with prepared(folder) as store, cut_at(0, "") as done:
        CHANGES[change](store)
    return len(done)


def prepared(folder: Path) -> FileStore:
    folder.mkdir()
    store = make(folder)
    store.create(PURCHASE, Algorithm.TDES, "li")
    return store


@pytest.mark.parametrize("how", ["before", "within", "behind"])
@pytest.mark.parametrize("change", CHANGES)
def test_power_cut_at_every_write(tmp_path: Path, change: str, how: str) -> None:
    """Each change, cut at each step, is done or not done, and can be made or repeated afterwards."""
    count = steps_of(tmp_path / "whole", change)
    assert count >= 6
    outcomes = set()
    for step in range(1, count + 1):
        folder = tmp_path / str(step)
        with prepared(folder) as store:
            before = seen(store)
            kcv = store.handle(OURS, bytes(8)).kcv
            with pytest.raises(PowerCut), cut_at(step, how):
                CHANGES[change](store)
        with reopen(folder) as store:
            after = seen(store)
            changed = after != before
            outcomes.add(changed)
            assert before.keys() <= after.keys()
            if not changed:
                CHANGES[change](store)
            assert store.handle(OURS, bytes(8)).kcv == kcv
            store.create(KeyRef(PURCHASE.purpose, 9), Algorithm.TDES, "li")
        with reopen(folder) as store:
            assert len(store.list()) == len(before) + 1 + (change != "state")
            assert change != "state" or store.info(PURCHASE).state is KeyState.ACTIVE
    assert outcomes == {True, False}


@pytest.mark.parametrize("how", ["before", "within", "behind"])
def test_power_cut_while_the_store_is_made(tmp_path: Path, how: str) -> None:
    """A store cut while it is made is not there, or is there whole and empty."""
    (tmp_path / "whole").mkdir()
    with cut_at(0, "") as done:
        make(tmp_path / "whole").close()
    assert len(done) >= 8
    for step in range(1, len(done) + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        with pytest.raises(PowerCut), cut_at(step, how):
            make(folder)
        try:
            store = reopen(folder)
        except NotFound:
            store = make(folder)
        with store:
            assert not store.list()
            store.create(PURCHASE, Algorithm.TDES, "li")
        with reopen(folder) as again:
            assert again.info(PURCHASE).ref == PURCHASE


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_disk_that_refuses(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or failing disk is a DatabaseError; nothing that was there is lost, and the store works on afterwards."""
    with prepared(tmp_path / "office") as store:
        with monkeypatch.context() as patch:

            def refuse(*_: Any, **__: Any) -> Any:
                raise OSError(28, "No space left on device")

            patch.setattr(os, call, refuse)
            with pytest.raises(DatabaseError, match="No space left"):
                store.create(SECOND, Algorithm.TDES, "li")
        store.create(KeyRef(PURCHASE.purpose, 3), Algorithm.TDES, "li")
        here = seen(store)
    with reopen(tmp_path / "office") as store:
        assert seen(store) == here
        assert {PURCHASE, KeyRef(PURCHASE.purpose, 3)} <= here.keys()
