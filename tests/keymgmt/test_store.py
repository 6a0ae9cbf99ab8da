"""The key store: values stay inside, every change of the file shows, several processes agree."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.sealing import Argon2Params, argon2id, hkdf, seal, unseal
from cardlib.crypto.signing import SigningKey, verify
from cardlib.errors import BadKcv, ConfigError, Conflict, CryptoError, FormatError, MacMismatch, NotFound
from cardlib.profile import Purpose, issuer_id
from keymgmt.handle import FLUSH_USES, KeyHandle
from keymgmt.keys import TRANSITIONS, KeyRef, KeyState
from keymgmt.store import FileStore
from tests.vectors import algorithm, by_category, raw

CHEAP = Argon2Params(memory_kib=64, iterations=1, lanes=1)
ROOT = Path(__file__).parents[2]
PURCHASE = KeyRef(Purpose.PURCHASE, 1)
OURS = KeyRef(Purpose.PURCHASE, 1, 1001)
SERIAL = bytes.fromhex("0201000000000107")
Uses = list[tuple[KeyRef, str, int]]


def make(folder: Path, passphrase: bytes = b"open sesame", uses: Uses | None = None) -> FileStore:
    ticks = count(1_700_000_000_000)
    return FileStore.create_file(
        folder / "keys",
        passphrase,
        CHEAP,
        random_bytes=Random(7).randbytes,
        now_ms=lambda: next(ticks),
        on_use=None if uses is None else lambda *use: uses.append(use),
    )


def reopen(folder: Path, passphrase: bytes = b"open sesame") -> FileStore:
    return FileStore(folder / "keys", passphrase)


def test_survives_reopening(tmp_path: Path) -> None:
    """A key made before is there after opening again, with its attributes and its value."""
    with make(tmp_path) as store:
        made = store.create(PURCHASE, Algorithm.SM4, "li")
        kcv = store.handle(PURCHASE, issuer_id(7), SERIAL).kcv
    with reopen(tmp_path) as store:
        assert list(store.list()) == [made]
        assert (made.state, made.made_by, made.algorithm) == (KeyState.PENDING, "li", Algorithm.SM4)
        assert store.handle(PURCHASE).kcv == made.kcv
        assert store.handle(PURCHASE, issuer_id(7), SERIAL).kcv == kcv


def test_wrong_passphrase(tmp_path: Path) -> None:
    """A wrong passphrase is a CryptoError that says so, and nothing is opened."""
    make(tmp_path).close()
    with pytest.raises(CryptoError, match="wrong passphrase"):
        reopen(tmp_path, b"open says me")


def test_missing_and_existing_file(tmp_path: Path) -> None:
    """Opening a store that is not there, or making one over another, is refused."""
    with pytest.raises(NotFound):
        reopen(tmp_path)
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        with pytest.raises(Conflict):
            make(tmp_path)
        assert len(store.list()) == 1


def test_file_shows_no_value(tmp_path: Path) -> None:
    """Neither the file nor a repr holds a key's value, and the file is its owner's alone."""
    value = bytes(range(16))
    with make(tmp_path) as store:
        kcv = make_key(value).kcv
        store.import_key(PURCHASE, Algorithm.TDES, value, kcv, "li")
        raw = (tmp_path / "keys").read_bytes()
        assert value not in raw
        assert value.hex() not in repr(store.handle(PURCHASE)) + repr(store) + repr(store.list())
        assert (tmp_path / "keys").stat().st_mode & 0o077 == 0


def test_import_needs_the_right_check_value(tmp_path: Path) -> None:
    """A key that is not the one its check value says is not taken in."""
    with make(tmp_path) as store:
        with pytest.raises(BadKcv):
            store.import_key(PURCHASE, Algorithm.TDES, bytes(16), b"\1\2\3", "li")
        assert not store.list()


@pytest.mark.parametrize("where", range(3))
def test_every_edit_shows(tmp_path: Path, where: int) -> None:
    """One flipped bit anywhere in the file is noticed at opening (a third of the bytes a case)."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        store.create(OURS, Algorithm.TDES, "li")
        store.set_state(PURCHASE, KeyState.ACTIVE, "li")
    good = (tmp_path / "keys").read_bytes()
    for at in range(where, len(good), 3):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        (tmp_path / "keys").write_bytes(bad)
        with pytest.raises((CryptoError, FormatError)):
            reopen(tmp_path)


def test_every_truncation_shows(tmp_path: Path) -> None:
    """A file cut anywhere behind what was acknowledged is refused, at entry boundaries too."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        store.set_state(PURCHASE, KeyState.ACTIVE, "li")
    good = (tmp_path / "keys").read_bytes()
    for size in range(0, len(good), 2):
        (tmp_path / "keys").write_bytes(good[:size])
        with pytest.raises((CryptoError, FormatError)):
            reopen(tmp_path)


def test_rollback_shows(tmp_path: Path) -> None:
    """An older copy of the file is refused by its head; an older copy of both differs from the noted head."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        old, old_head = (tmp_path / "keys").read_bytes(), (tmp_path / "keys.head").read_bytes()
        store.set_state(PURCHASE, KeyState.ACTIVE, "li")
        noted = store.head
    (tmp_path / "keys").write_bytes(old)
    with pytest.raises(CryptoError, match="cut or changed after entry 1"):
        reopen(tmp_path)
    (tmp_path / "keys.head").write_bytes(old_head)
    with reopen(tmp_path) as store:
        assert store.head != noted
    (tmp_path / "keys.head").unlink()
    with pytest.raises(CryptoError):
        reopen(tmp_path)


def test_unfinished_entry_is_dropped(tmp_path: Path) -> None:
    """What power left half written behind the last acknowledged entry is no damage: the next entry replaces it."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
    with (tmp_path / "keys").open("ab") as file:
        file.write(b"\x00\x40half of an entry")
    with reopen(tmp_path) as store:
        store.set_state(PURCHASE, KeyState.ACTIVE, "li")
    with reopen(tmp_path) as store:
        assert store.info(PURCHASE).state is KeyState.ACTIVE


def test_entry_without_head_is_kept(tmp_path: Path) -> None:
    """Power failing between entry and head loses nothing."""
    with make(tmp_path) as store:
        before = (tmp_path / "keys.head").read_bytes()
        store.create(PURCHASE, Algorithm.TDES, "li")
    (tmp_path / "keys.head").write_bytes(before)
    with reopen(tmp_path) as store:
        assert store.info(PURCHASE).ref == PURCHASE


def test_open_stores_see_each_other(tmp_path: Path) -> None:
    """A store open twice: each sees what the other appends, and can't make the same key again."""
    with make(tmp_path) as one, reopen(tmp_path) as two:
        one.create(PURCHASE, Algorithm.TDES, "li")
        with pytest.raises(Conflict):
            two.create(PURCHASE, Algorithm.TDES, "wang")
        two.set_state(PURCHASE, KeyState.ACTIVE, "wang")
        assert one.info(PURCHASE).state is KeyState.ACTIVE
        assert one.handle(OURS, SERIAL).kcv == two.handle(OURS, SERIAL).kcv


def test_two_processes(tmp_path: Path) -> None:
    """Two processes that append at the same time lose nothing and break no chain."""
    make(tmp_path).close()
    program = """
import sys
from pathlib import Path
from cardlib.crypto import Algorithm
from cardlib.profile import Purpose
from keymgmt.keys import KeyRef
from keymgmt.store import FileStore
from tests.vectors import algorithm, by_category, raw
with FileStore(Path(sys.argv[1]), sys.stdin.buffer.read()) as store:
    for version in range(int(sys.argv[2]), 40, 2):
        store.create(KeyRef(Purpose.LOAD, version + 1), Algorithm.TDES, sys.argv[2])
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "keys"), str(n)],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for n in range(2)
    ]
    for worker in workers:
        worker.communicate(b"open sesame", timeout=20)
        assert worker.returncode == 0
    with reopen(tmp_path) as store:
        assert sorted(info.ref.version for info in store.list()) == list(range(1, 41))
        for info in store.list():
            assert store.handle(info.ref).kcv == info.kcv


def test_states(tmp_path: Path) -> None:
    """A key moves only along its life, and a destroyed one can't be used, nor its children."""
    for old in KeyState:
        for new in KeyState:
            folder = tmp_path / f"{old}-{new}"
            folder.mkdir()
            with make(folder) as store:
                store.create(PURCHASE, Algorithm.TDES, "li")
                for state in list(KeyState)[1 : list(KeyState).index(old) + 1]:
                    store.set_state(PURCHASE, state, "li")
                if new in TRANSITIONS[old]:
                    assert store.set_state(PURCHASE, new, "li").state is new
                else:
                    with pytest.raises(Conflict):
                        store.set_state(PURCHASE, new, "li")
                if store.info(PURCHASE).state is KeyState.DESTROYED:
                    with pytest.raises(Conflict):
                        store.handle(OURS, SERIAL)


def test_enterprise_key_is_the_roots_child(tmp_path: Path) -> None:
    """The two ways down the hierarchy meet, whether the enterprise's key is listed or not."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        from_root = store.handle(PURCHASE, issuer_id(1001), SERIAL).kcv
        assert store.handle(OURS, SERIAL).kcv == from_root
        info = store.create(OURS, Algorithm.TDES, "li")
        assert info.kcv == store.handle(PURCHASE, issuer_id(1001)).kcv
        assert store.handle(OURS, SERIAL).kcv == from_root
        assert store.handle(KeyRef(Purpose.PURCHASE, 1, 1002), SERIAL).kcv != from_root
        with pytest.raises(Conflict):
            store.create(KeyRef(Purpose.PURCHASE, 1, 1002), Algorithm.SM4, "li")


def test_enterprise_store_without_root(tmp_path: Path) -> None:
    """A store that was given one enterprise's keys serves that enterprise and no other."""
    with make(tmp_path) as store:
        store.import_key(OURS, Algorithm.TDES, bytes(range(16)), make_key(bytes(range(16))).kcv, "li")
        assert store.handle(OURS, SERIAL).kcv == make_key(bytes(range(16))).diversify(SERIAL).kcv
        with pytest.raises(NotFound):
            store.handle(KeyRef(Purpose.PURCHASE, 1, 1002), SERIAL)


@pytest.mark.parametrize("vector", by_category("diversify-2"), ids=lambda v: str(v["id"]))
def test_diversification_vectors(tmp_path: Path, vector: dict[str, Any]) -> None:
    """Two levels down from a known root give the vector's card key."""
    inputs, kind = raw(vector["inputs"]), Algorithm(algorithm(vector))
    with make(tmp_path) as store:
        store.import_key(PURCHASE, kind, inputs["master"], make_key(inputs["master"], kind).kcv, "li")
        child = store.handle(PURCHASE, inputs["factor_level1"], inputs["factor_level2"])
        want = make_key(bytes.fromhex(vector["output"]), kind)
        assert (child.kcv, child.mac(b"same key")) == (want.kcv, want.mac(b"same key"))


def test_master_keys_are_no_oracle(tmp_path: Path) -> None:
    """A master key computes nothing over data: with a factor as data that would be a card's key."""
    with make(tmp_path) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        for master in (store.handle(PURCHASE), store.handle(OURS)):
            for use in (master.encrypt, master.answer, master.cryptogram, master.mac, master.tac, master.seal,
                        master.session):  # fmt: skip
                with pytest.raises(CryptoError):
                    use(SERIAL)
            with pytest.raises(CryptoError):
                master.wrap(store.handle(OURS, SERIAL), b"")
        with pytest.raises(CryptoError):
            store.handle(OURS, SERIAL, SERIAL)
        with pytest.raises(FormatError):
            store.handle(OURS, SERIAL[1:])


def test_uses_are_told(tmp_path: Path) -> None:
    """Each use of a master key is told: at once alone, in a job once at its start and the rest in sums."""
    uses: Uses = []
    with make(tmp_path, uses=uses) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        store.handle(OURS, SERIAL)
        assert uses == [(OURS, "single use", 1)]
        uses.clear()
        with store.using("issue batch 7"):
            for n in range(FLUSH_USES + 50):
                store.handle(OURS, n.to_bytes(8, "big"))
                assert uses[0] == (OURS, "issue batch 7", 1)
            store.handle(PURCHASE, issuer_id(7), SERIAL)
        assert {(ref, text) for ref, text, _ in uses} == {(OURS, "issue batch 7"), (PURCHASE, "issue batch 7")}
        assert sum(n for ref, _, n in uses if ref == OURS) == FLUSH_USES + 50
        assert len(uses) <= 5
        uses.clear()
        sam = KeyHandle(make_key(bytes(16)), "SAM control")
        sam.wrap(store.handle(OURS), bytes.fromhex("220100"))
        assert uses == [(OURS, "single use", 1)]


@pytest.mark.parametrize("ref", [KeyRef(Purpose.LOAD, 0), KeyRef(Purpose.LOAD, 256), KeyRef(Purpose.LOAD, 1, 0),
                                 KeyRef(Purpose.CARD_CONTROL, 1, 5)])  # fmt: skip
def test_impossible_references(tmp_path: Path, ref: KeyRef) -> None:
    """Versions and enterprises outside their range, and MF keys of an enterprise, are refused."""
    with make(tmp_path) as store:
        for use in (lambda: store.create(ref, Algorithm.TDES, "li"), lambda: store.handle(ref)):
            with pytest.raises(FormatError):
                use()


def test_sealing() -> None:
    """What was sealed opens only with its key and its associated data."""
    box = seal(b"k" * 32, b"secret", b"label", Random(1).randbytes)
    assert unseal(b"k" * 32, box, b"label") == b"secret"
    for key, data, label in ((b"x" * 32, box, b"label"), (b"k" * 32, box, b"other"), (b"k" * 32, box[:-1], b"label"),
                             (b"k" * 32, b"", b"label")):  # fmt: skip
        with pytest.raises(MacMismatch):
            unseal(key, data, label)


def test_argon2id_vector() -> None:
    """Argon2id gives what the reference implementation (argon2-cffi 25.1) gave, and refuses to eat the machine."""
    params = Argon2Params(memory_kib=256, iterations=2, lanes=2)
    expected = bytes.fromhex("e90e6e1a1288527a2f5e91125f8daad90893d9caadb9d5c768da6e3fd19d7881")
    assert argon2id(b"passphrase", b"s" * 16, params) == expected
    for bad in (Argon2Params(1 << 21, 1, 1), Argon2Params(64, 0, 1), Argon2Params(64, 65, 1), Argon2Params(8, 1, 4)):
        with pytest.raises(ConfigError):
            argon2id(b"p", b"s" * 16, bad)


def test_hkdf_vector() -> None:
    """RFC 5869, test case 1."""
    ikm, salt = b"\x0b" * 22, bytes(range(13))
    okm = hkdf(ikm, bytes(range(0xF0, 0xFA)), 42, salt)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_signing_vector() -> None:
    """RFC 8032 §7.1 test 2, and a changed message or signature is refused."""
    key = SigningKey(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = key.sign(b"\x72")
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540")
    verify(key.public, b"\x72", signature)
    for message, mark in ((b"\x73", signature), (b"\x72", signature[:-1] + b"\1"), (b"\x72", b"")):
        with pytest.raises(MacMismatch):
            verify(key.public, message, mark)
    assert key.seed.hex() not in repr(key)
