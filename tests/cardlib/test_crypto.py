"""Card cryptography against known answers, and what a key refuses to do."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.errors import BadKcv, ConfigError, FormatError, MacMismatch
from tests.vectors import algorithm, by_category, pboc, public_by_op, raw

Vector = dict[str, Any]


def ids(vector: Vector) -> str:
    return str(vector.get("id") or f"{vector['op']}-{vector['what']}")


def key_of(vector: Vector, *names: str) -> Key:
    values = raw(vector["inputs"])
    return make_key(next(values[n] for n in names if n in values), algorithm(vector))


def exported(key: Key) -> bytes:
    """A key's value, seen through a key that only permutes nothing: by unsealing what it sealed."""
    carrier = make_key(bytes(range(16)))
    return carrier.unseal(carrier.seal_key(b"", key))


@pytest.mark.parametrize("vector", by_category("primitive"), ids=ids)
def test_primitive(vector: Vector) -> None:
    """One block under two-key EDE or SM4, and the folded TAC key, are the published ones."""
    inputs, expected = raw(vector["inputs"]), bytes.fromhex(vector["output"])
    if "dtk" in inputs:
        assert exported(make_key(inputs["dtk"]).folded()) == expected
    else:
        key = make_key(inputs["key"], algorithm(vector))
        assert key.encrypt(inputs["data"]) == expected
        assert key.decrypt(expected) == inputs["data"]


@pytest.mark.parametrize("vector", by_category("primitive-mac"), ids=ids)
def test_mac(vector: Vector) -> None:
    """MACs pad always and follow the key's length: CBC for 8 bytes, algorithm 3 for 16."""
    inputs = raw(vector["inputs"])
    key = key_of(vector, "key8", "key16", "key")
    assert key.mac(inputs["data"], inputs["iv"]) == bytes.fromhex(vector["output"])


@pytest.mark.parametrize("vector", by_category("diversify-1", "diversify-2", "diversify-3"), ids=ids)
def test_diversify(vector: Vector) -> None:
    """Each level's child is the master of the next."""
    inputs = raw(vector["inputs"])
    key = make_key(inputs.pop("master"), algorithm(vector))
    for name in sorted(inputs):
        key = key.diversify(inputs[name])
    assert exported(key) == bytes.fromhex(vector["output"])


def test_world_card_keys() -> None:
    """The test world's card keys come from its master keys by issuer, then card serial."""
    world = pboc()["world"]
    for suite, alg in (("3des", 0), ("sm4", 4)):
        for name, value in world[f"card_keys_{suite}_2level"].items():
            master = make_key(bytes.fromhex(world["master_keys"][name]), alg)
            card = master.diversify(bytes.fromhex(world["issuer"])).diversify(bytes.fromhex(world["card_factor"]))
            assert exported(card).hex().upper() == value, name


@pytest.mark.parametrize("vector", by_category("external-auth"), ids=ids)
def test_cryptogram(vector: Vector) -> None:
    """EXTERNAL AUTHENTICATE cryptograms over challenges of 4, 8 and 16 bytes."""
    expected = vector["output"].get("cryptogram") or vector["output"]["cryptogram8"]
    key = key_of(vector, "key")
    assert key.cryptogram(bytes.fromhex(vector["inputs"]["challenge"])) == bytes.fromhex(expected)


@pytest.mark.parametrize("vector", by_category("write-key"), ids=ids)
def test_seal(vector: Vector) -> None:
    """Key records are sealed with a length byte, padded only when not aligned, then MACed."""
    inputs = raw(vector["inputs"])
    key = make_key(inputs["master_key_39_00"], algorithm(vector))
    sealed = key.seal(inputs["key_data"])
    assert sealed == bytes.fromhex(vector["output"]["enc"])
    assert key.mac(inputs["header"] + sealed, inputs["rand"]) == bytes.fromhex(vector["output"]["mac"])
    assert key.unseal(sealed) == inputs["key_data"]


@pytest.mark.parametrize("vector", public_by_op("mac_des", "mac_alg3"), ids=ids)
def test_public_mac(vector: Vector) -> None:
    """MACs printed by others, some answered by real cards."""
    inputs = raw(vector["inputs"])
    assert make_key(inputs["key"]).mac(inputs["data"], inputs.get("iv", b"")).hex().upper() == vector["expected"]


@pytest.mark.parametrize("vector", public_by_op("session_online", "session_offline"), ids=ids)
def test_public_session(vector: Vector) -> None:
    """Session keys printed by others: load from 8000, purchase from the terminal sequence's right half."""
    i = raw(vector["inputs"])
    tail = i["term_seq"][2:] if "term_seq" in i else b"\x80\0"
    session = make_key(i["key"]).session(i["rand"] + i["seq"] + tail)
    assert exported(session).hex().upper() == vector["expected"]


@pytest.mark.parametrize("vector", public_by_op("des_enc", "sm4_enc", "sm_encrypt_LD", "diversify", "tac_key"), ids=ids)
def test_public_cipher(vector: Vector) -> None:
    """Single blocks, sealed data, diversified and TAC keys printed by others."""
    i, op = raw(vector["inputs"]), vector["op"]
    key = make_key(i.get("key") or i["dtk"], 4 if op == "sm4_enc" else 0)
    answer = {
        "des_enc": lambda: key.encrypt(i["data"]),
        "sm4_enc": lambda: key.encrypt(i["data"]),
        "sm_encrypt_LD": lambda: key.seal(i["data"]),
        "diversify": lambda: exported(key.diversify(i["factor"])),
        "tac_key": lambda: exported(key.folded()),
    }[op]()
    assert answer.hex().upper() == vector["expected"]


def test_public_ansi_anchor() -> None:
    """ANSI X9.9 pads with zeros, not with 80: the bare chaining gives its number."""
    (vector,) = public_by_op("x99_zero_pad")
    i = raw(vector["inputs"])
    assert make_key(i["key"]).mac_padded(i["data"], bytes(8)).hex().upper() == vector["expected"]


def test_every_public_operation_is_tested() -> None:
    """A public vector of a new operation can't slip by untested."""
    known = {
        "mac_des",
        "mac_alg3",
        "session_online",
        "session_offline",
        "des_enc",
        "sm4_enc",
        "sm_encrypt_LD",
        "diversify",
        "tac_key",
        "x99_zero_pad",
    }
    assert {v["op"] for v in pboc()["public_vectors"]} == known


def test_all_zero_tac_key() -> None:
    """Equal halves fold to an all-zero TAC key, which is valid on real cards (card.md §10.3)."""
    assert exported(make_key(b"\x34" * 16).folded()) == bytes(8)


SUITES = [(8, 0), (16, 0), (16, 4)]


@pytest.mark.parametrize(("size", "alg"), SUITES)
@given(data=st.binary(max_size=200))
def test_seal_is_invertible(size: int, alg: int, data: bytes) -> None:
    """What is sealed comes out again, and its length is whole blocks."""
    key = make_key(bytes(range(size)), alg)
    assert key.unseal(key.seal(data)) == data
    assert len(key.seal(data)) % key.block == 0


@pytest.mark.parametrize(("size", "alg"), SUITES)
@given(data=st.binary(min_size=1, max_size=100), bit=st.integers(0, 799))
def test_mac_catches_a_flipped_bit(size: int, alg: int, data: bytes, bit: int) -> None:
    """One flipped bit changes the MAC and verification raises, it never returns."""
    key = make_key(bytes(range(size)), alg)
    flipped = bytearray(data)
    flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    key.verify(data, key.mac(data), "MAC")
    with pytest.raises(MacMismatch):
        key.verify(bytes(flipped), key.mac(data), "MAC")


@pytest.mark.parametrize(("size", "alg"), SUITES)
@given(raw_bytes=st.binary(max_size=64))
def test_unseal_raises_only_format_errors(size: int, alg: int, raw_bytes: bytes) -> None:
    """Any bytes unseal to data or to a FormatError."""
    key = make_key(bytes(range(size)), alg)
    try:
        key.unseal(raw_bytes)
    except FormatError:
        return
    assert key.seal(key.unseal(raw_bytes)) == raw_bytes


@given(messages=st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=8)), min_size=2, max_size=5))
def test_kept_context_changes_nothing(messages: list[tuple[bytes, bytes]]) -> None:
    """A key used many times gives the MACs that a fresh key gives."""
    for size, alg in SUITES:
        kept = make_key(bytes(range(size)), alg)
        for data, iv in messages:
            assert kept.mac(data, iv) == make_key(bytes(range(size)), alg).mac(data, iv)


def test_key_hides_its_value() -> None:
    """Neither repr nor pickle gives a key away."""
    key = make_key(bytes(range(16)))
    assert "0102" not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize(("size", "alg"), [(0, 0), (7, 0), (24, 0), (8, 4), (16, 2), (16, 255)])
def test_no_such_key(size: int, alg: int) -> None:
    """Lengths and identifiers that no card key has are refused."""
    with pytest.raises(ConfigError):
        make_key(bytes(size), alg)


def test_algorithm_follows_length() -> None:
    """Identifier 01 with 16 bytes is two-key 3DES as on real cards (card.md §1.7)."""
    assert make_key(bytes(range(16)), 1).algorithm is Algorithm.TDES
    assert make_key(bytes(8), 0).algorithm is Algorithm.DES


def test_check_value() -> None:
    """A wrong check value names what was checked."""
    key = make_key(bytes.fromhex("0123456789ABCDEF"))
    key.check(bytes.fromhex("D5D44F"), "test key")
    with pytest.raises(BadKcv, match="test key"):
        key.check(bytes(3), "test key")
