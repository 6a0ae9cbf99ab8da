"""TR-31 key blocks: published examples open, ours come back the same, anything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest
from psec import tr31

from cardlib.crypto import Algorithm, make_key
from cardlib.errors import BadKcv, ConfigError, Conflict, CryptoError, FormatError, NotFound, OneCardError, Refused
from cardlib.profile import Purpose
from keymgmt import keyblock
from keymgmt.keyblock import BlockVersion, Exportability, import_block, unwrap
from keymgmt.keys import KeyRef, KeyState
from keymgmt.store import FileStore
from tests.keymgmt.test_store import CHEAP, OURS, PURCHASE
from tests.keymgmt.test_store import make as make_store

KBPK = {BlockVersion.AES: Random(1).randbytes(32), BlockVersion.TDES: Random(2).randbytes(16)}
VALUE = Random(3).randbytes(16)
KCV = make_key(VALUE).kcv

PUBLISHED = {
    "TR-31:2018 A.7.2.2": (
        "DD7515F2BFC17F85CE48F3CA25CB21F6",
        "B0080P0TE00E000094B420079CC80BA3461F86FE26EFC4A3B8E4FA4C5F5341176EED7B727B8A248E",
        "3F419E1CB7079442AA37474C2EFBF8B8",
        "PTE E",
        "57C409",
    ),
    "TR-31:2018 A.7.3.2": (
        "1D22BF32387C600AD97F9B97A51311AC",
        "B0104B0TX12S0100KS1800604B120F9292800000BB68BE8680A400D9191AD4ECE45B6E6C0D21C4738A52190E248719E24B433627",
        "E8BC63E5479455E26577F715D587FE68",
        "BTX S",
        "9A4212",
    ),
    "TR-31:2018 A.7.4": (
        "88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6",
        "D0112P0AE00E0000B82679114F470F540165EDFBF7E250FCEA43F810D215F8D207E2E417C07156A27E8E31DA05F7425509593D03A457DC34",
        "3F419E1CB7079442AA37474C2EFBF8B8",
        "PAE E",
        "",
    ),
    "X9.143:2021 8.1": (
        "88E1AB2A2E3DD38C1FA039A536500CC8A87AB9D62DC92C01058FA79F44657DE6",
        (
            "D0144P0AE00E00002C77FA3F4A553BED6E88AE5C172A4166E3D4ACA8E2AC71C158A476FAC12C13C3829DE55D3AB54C48"
            "F4C4FEF7AC75E90FC47F1B77E7B19A73ED46E64410082557"
        ),
        "3F419E1CB7079442AA37474C2EFBF8B8",
        "PAE E",
        "",
    ),
}
"""Clause of the standard: protection key, block, the key in it, what its header says, check value where it is TDES."""

DEPRECATED = {
    "TR-31:2018 A.7.2.1": (
        "89E88CF7931444F334BD7547FC3F380C",
        "A0072P0TE00E0000F5161ED902807AF26F1D62263644BD24192FDB3193C730301CEE8701",
    ),
    "TR-31:2018 A.7.3.1": (
        "B8ED59E0A279A295E9F5ED7944FD06B9",
        "C0096B0TX12S0100KS1800604B120F9292800000BFB9B689CB567E66FC3FEE5AD5F52161FC6545B9D60989015D02155C",
    ),
}


def store_with_key(folder: Path, algorithm: Algorithm = Algorithm.TDES) -> FileStore:
    store = make_store(folder)
    store.import_key(PURCHASE, algorithm, VALUE, make_key(VALUE, algorithm).kcv, "li")
    return store


def other(folder: Path) -> FileStore:
    return FileStore.create_file(folder / "other", b"open sesame", CHEAP)


def block_of(**changes: str) -> str:
    """A block like ours under the AES key, but for what is said."""
    said = {"version_id": "D", "key_usage": "E0", "algorithm": "T", "mode_of_use": "X", "exportability": "E"}
    header = tr31.Header(version_num="00", **(said | {k: v for k, v in changes.items() if k in said}))
    for name, data in changes.items():
        if name.startswith("block_"):
            header.blocks[name[6:]] = data
    return tr31.wrap(KBPK[BlockVersion.AES], header, bytes.fromhex(changes.get("value", VALUE.hex())))


@pytest.mark.parametrize("clause", PUBLISHED)
def test_published_examples(clause: str) -> None:
    """The standards' own blocks open to the standards' own keys, with the check value of those that are TDES."""
    kbpk, text, value, said, kcv = PUBLISHED[clause]
    block = unwrap(text, bytes.fromhex(kbpk))
    assert block.value.hex().upper() == value
    assert (block.usage[0] + block.algorithm + block.mode, block.exportability) == tuple(said.split())
    assert value not in repr(block).upper()
    if kcv:
        assert make_key(block.value).kcv.hex().upper() == kcv


def test_published_block_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the padding of X9.143:2021 8.1 the library makes that very block."""
    kbpk, text, value, *_ = PUBLISHED["X9.143:2021 8.1"]
    padding = bytes.fromhex("1A87BBFA2CFE78D383E5F4C6AA83473C1C2965473CE206BB855B01533782")
    monkeypatch.setattr("psec.tr31._urandom", lambda size: padding[:size])
    assert tr31.wrap(bytes.fromhex(kbpk), "D0000P0AE00E0000", bytes.fromhex(value)) == text


@pytest.mark.parametrize("clause", DEPRECATED)
def test_variant_blocks_are_refused(clause: str) -> None:
    """Blocks of versions A and C are refused by name, under their right key too."""
    kbpk, text = DEPRECATED[clause]
    with pytest.raises(Refused, match="deprecated") as refused:
        unwrap(text, bytes.fromhex(kbpk))
    assert refused.value.reason == "key_block_version"


@pytest.mark.parametrize("version", BlockVersion)
def test_there_and_back(tmp_path: Path, version: BlockVersion) -> None:
    """A key exported from one store and imported into another is the same key under the same reference."""
    with store_with_key(tmp_path) as here, other(tmp_path) as there:
        text = here.export_block(PURCHASE, KBPK[version], version)
        assert text[0] == version
        assert VALUE.hex() not in text.lower()
        info = import_block(there, text, KBPK[version], None, KCV, "wang")
        assert (info.ref, info.kcv, info.state, info.made_by) == (PURCHASE, KCV, KeyState.PENDING, "wang")
        assert there.handle(OURS, bytes(8)).kcv == here.handle(OURS, bytes(8)).kcv
        with pytest.raises(Conflict):
            import_block(there, text, KBPK[version], None, KCV, "wang")


def test_enterprise_key_from_its_root(tmp_path: Path) -> None:
    """An enterprise's key is exported alone, whether it is stored or comes from its root; the root stays here."""
    with store_with_key(tmp_path) as here, other(tmp_path) as there:
        with pytest.raises(NotFound):
            here.export_block(OURS, KBPK[BlockVersion.AES], BlockVersion.AES)
        here.create(OURS, Algorithm.TDES, "li")
        text = here.export_block(OURS, KBPK[BlockVersion.AES], BlockVersion.AES)
        import_block(there, text, KBPK[BlockVersion.AES], OURS, None, "wang")
        assert there.handle(OURS, bytes(8)).kcv == here.handle(OURS, bytes(8)).kcv
        with pytest.raises(NotFound):
            there.handle(PURCHASE)


def test_every_purpose_has_a_usage(tmp_path: Path) -> None:
    """Each purpose that a master key can have goes out and comes back."""
    with make_store(tmp_path) as here, other(tmp_path) as there:
        for purpose in set(Purpose) - {Purpose.PIN}:
            ref = KeyRef(purpose, 7)
            made = here.create(ref, Algorithm.TDES, "li")
            text = here.export_block(ref, KBPK[BlockVersion.AES], BlockVersion.AES, Exportability.SENSITIVE)
            assert import_block(there, text, KBPK[BlockVersion.AES], None, made.kcv, "wang").ref == ref


def test_any_flipped_bit_is_caught(tmp_path: Path) -> None:
    """No bit of a block can be flipped: not of its header, its optional blocks, its key or its MAC."""
    with store_with_key(tmp_path) as here:
        texts = [here.export_block(PURCHASE, KBPK[version], version) for version in BlockVersion]
    for version, text in zip(BlockVersion, texts, strict=True):
        for at, bit in ((at, bit) for at in range(len(text)) for bit in range(7)):
            bad = text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]
            with pytest.raises((CryptoError, FormatError, Refused, ConfigError)):
                unwrap(bad, KBPK[version])
        for bad in (text[:-1], text[:-2], text[:16], text + "00", text.lower(), "", text[:5] + "é" + text[6:]):
            with pytest.raises((FormatError, CryptoError)):
                unwrap(bad, KBPK[version])


def test_another_protection_key(tmp_path: Path) -> None:
    """Under another protection key nothing opens, and the error does not show the block."""
    with store_with_key(tmp_path) as here:
        text = here.export_block(PURCHASE, KBPK[BlockVersion.AES], BlockVersion.AES)
    with pytest.raises(CryptoError, match="another key block protection key") as wrong:
        unwrap(text, bytes(reversed(KBPK[BlockVersion.AES])))
    assert text[40:60] not in str(wrong.value)


@pytest.mark.parametrize(
    ("kbpk", "version"),
    [
        (bytes(range(8)), BlockVersion.AES),
        (bytes(range(20)), BlockVersion.AES),
        (bytes(32), BlockVersion.AES),
        (bytes(range(32)), BlockVersion.TDES),
        (bytes(range(8)) * 2, BlockVersion.TDES),
        (bytes(range(8)) + bytes(b ^ 1 for b in range(8)), BlockVersion.TDES),
        (VALUE, BlockVersion.AES),
    ],
)
def test_bad_protection_keys(tmp_path: Path, kbpk: bytes, version: BlockVersion) -> None:
    """A protection key of a wrong size, of like parts, or that is the key itself, protects nothing."""
    with store_with_key(tmp_path) as here, pytest.raises(ConfigError, match="protect"):
        here.export_block(PURCHASE, kbpk, version)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lambda: block_of(key_usage="E2"), "usage"),
        (lambda: block_of(mode_of_use="E"), "usage"),
        (lambda: block_of(algorithm="A"), "algorithm"),
        (lambda: block_of(algorithm="D", value="0123456789ABCDEF"), "algorithm"),
        (lambda: block_of(value="0123456789ABCDEF" * 2), "algorithm"),
        (lambda: block_of(value="00" * 24), "algorithm"),
        (lambda: block_of(exportability="N"), "exportability"),
        (lambda: block_of(block_10="010801000003E9"), "usage"),
    ],
)
def test_keys_of_another_kind_are_refused(tmp_path: Path, text: Callable[[], str], reason: str) -> None:
    """Usage, mode, algorithm, length, exportability and reference must be those of the key asked for."""
    with other(tmp_path) as there:
        with pytest.raises(Refused) as refused:
            import_block(there, text(), KBPK[BlockVersion.AES], PURCHASE, None, "wang")
        assert refused.value.reason == reason
        assert not there.list()


def test_check_value_must_fit(tmp_path: Path) -> None:
    """A check value that is not the key's is refused, whether the caller expects it or the block says it."""
    wrong = b"\1\2\3"
    with other(tmp_path) as there:
        for text, kcv in ((block_of(), wrong), (block_of(block_KC="00010203"), None),
                          (block_of(block_KC="00" + KCV.hex().upper()), wrong)):  # fmt: skip
            with pytest.raises(BadKcv):
                import_block(there, text, KBPK[BlockVersion.AES], PURCHASE, kcv, "wang")
        assert not there.list()
        assert import_block(there, block_of(), KBPK[BlockVersion.AES], PURCHASE, KCV, "wang").kcv == KCV


def test_blocks_of_other_systems(tmp_path: Path) -> None:
    """A block without our optional block is taken in as what the caller names, and not without a name."""
    with other(tmp_path) as there:
        for text in (block_of(), block_of(block_10="0299"), block_of(block_10="01FF0100000000")):
            with pytest.raises(ConfigError, match="name purpose and version"):
                import_block(there, text, KBPK[BlockVersion.AES], None, None, "wang")
        assert import_block(there, block_of(), KBPK[BlockVersion.AES], PURCHASE, None, "wang").ref == PURCHASE


def test_sm4_and_destroyed_keys_stay(tmp_path: Path) -> None:
    """X9.143 has no SM4: said so, nothing is written. A destroyed key does not leave either."""
    with store_with_key(tmp_path, Algorithm.SM4) as here:
        with pytest.raises(Refused, match="SM4"):
            here.export_block(PURCHASE, KBPK[BlockVersion.AES], BlockVersion.AES)
        here.set_state(PURCHASE, KeyState.DESTROYED, "li")
        with pytest.raises(Conflict):
            here.export_block(PURCHASE, KBPK[BlockVersion.AES], BlockVersion.AES)


def test_export_is_a_use(tmp_path: Path) -> None:
    """The audit log is told of each export."""
    told: list[tuple[KeyRef, str, int]] = []
    ticks = count()
    with FileStore.create_file(
        tmp_path / "keys", b"open sesame", CHEAP, now_ms=lambda: next(ticks), on_use=lambda *use: told.append(use)
    ) as store:
        store.create(PURCHASE, Algorithm.TDES, "li")
        with store.using("key export"):
            store.export_block(PURCHASE, KBPK[BlockVersion.AES], BlockVersion.AES)
    assert told == [(PURCHASE, "key export", 1)]


KCVS = {
    "08D7B4": ("0123456789ABCDEFFEDCBA9876543210", Algorithm.TDES),
    "5C9405": ("5DB50B454F8389ADCE573BE50861F2BF", Algorithm.TDES),
    "CB9DEA": ("F039121BEC83D26B169BDCD5B22AAF8F", Algorithm.TDES),
    "2677F4": ("0123456789ABCDEFFEDCBA9876543210", Algorithm.SM4),
}
"""The TDES key of most payment test kits; a key with the check value that a payShield 10K gave; TR-31:2018 A.7.2.1;
the key of GB/T 32907 annex A (``openssl enc -sm4-ecb`` over zeros)."""


@pytest.mark.parametrize("kcv", KCVS)
def test_published_check_values(kcv: str) -> None:
    """Check values that others published are ours."""
    value, algorithm = KCVS[kcv]
    assert make_key(bytes.fromhex(value), algorithm).kcv.hex().upper() == kcv


def test_sm4_is_the_standards() -> None:
    """GB/T 32907 annex A: what the check value of an SM4 key is made with is the standard's cipher."""
    value = bytes.fromhex("0123456789ABCDEFFEDCBA9876543210")
    assert make_key(value, Algorithm.SM4).encrypt(value).hex() == "681edf34d206965e86b3e94f536e4246"


def test_errors_are_ours() -> None:
    """Whatever text is given for a block, the error is one of the project's."""
    rng = Random(4)
    good = block_of()
    for _ in range(400):
        text = good[: rng.randrange(len(good))] + "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(40)))
        with pytest.raises(OneCardError):
            unwrap(text, KBPK[BlockVersion.AES])
    assert keyblock.MAX_BLOCK == 9999
