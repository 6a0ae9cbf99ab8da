"""The card profile: identity, key table, records."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cardlib.profile as cp
from cardlib.errors import ConfigError, FormatError, NotFound
from cardlib.fields import Record


@given(
    kind=st.sampled_from(cp.CardKind),
    platform=st.integers(0, 255),
    sequence=st.integers(0, 2**40 - 1),
    at=st.integers(0, 63),
)
def test_mistyped_serials_are_caught(kind: cp.CardKind, platform: int, sequence: int, at: int) -> None:
    """A serial tells its kind; one flipped bit makes it no serial."""
    serial = cp.make_serial(kind, platform, sequence)
    assert cp.check_serial(serial) is kind
    flipped = bytearray(serial)
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(FormatError):
        cp.check_serial(bytes(flipped))


@given(enterprise_id=st.integers(1, cp.MAX_ENTERPRISE_ID))
def test_enterprise_in_its_names(enterprise_id: int) -> None:
    """Issuer identifier and application name carry the enterprise."""
    assert cp.issuer_id(enterprise_id) == b"ONEC" + enterprise_id.to_bytes(4, "big")
    assert cp.enterprise_of_aid(cp.aid(enterprise_id)) == enterprise_id


@pytest.mark.parametrize("enterprise_id", [0, -1, 1 << 32])
def test_no_such_enterprise(enterprise_id: int) -> None:
    """Numbers outside 1 to 4 294 967 295 have no identifier."""
    with pytest.raises(FormatError):
        cp.aid(enterprise_id)


def test_key_table() -> None:
    """Key records start as profile.md says, and versions alternate between the two kids."""
    profile = cp.load_profile()
    load = profile.key(cp.Purpose.LOAD)
    assert load.header(1, 0) == bytes.fromhex("3F32F00100")
    assert load.header(2, 4) == bytes.fromhex("3F32F00204")
    assert [load.kid(v) for v in (1, 2, 3)] == [1, 2, 1]
    assert profile.key(cp.Purpose.TERMINAL).header(9, 0) == bytes.fromhex("39F0F001FF")
    assert profile.key(cp.Purpose.PIN).header(1, 0)[-1] == 0x33
    with pytest.raises(NotFound):
        profile.key(cp.Purpose.SAM_CONTROL)


def test_file_table() -> None:
    """Files are found by name with their short identifier and creation data."""
    profile = cp.load_profile()
    assert profile.file("public").sfi == 0x15
    assert profile.file("log").create == bytes.fromhex("2E1417F1EFFFFF")
    with pytest.raises(NotFound):
        profile.file("photo")


def test_record_sizes_fit_their_files() -> None:
    """Each record layout has the size that its file is created with."""
    profile = cp.load_profile()
    layouts: dict[str, type[Record]] = {
        "public": cp.PublicInfo,
        "holder": cp.Holder,
        "access": cp.AccessRights,
        "identity": cp.CardIdentity,
    }
    for name, record in layouts.items():
        assert int.from_bytes(profile.file(name).create[1:3], "big") == record.size()
    assert profile.file("log").create[2] == cp.LogRecord.size() == 23
    assert profile.file("punches").create[2] == cp.Punch.size() == 16
    for mark in (cp.DayCounters.of(date(2026, 1, 1)), cp.LastPassage.of(), cp.SubsidyMark.of()):
        coded = mark.encode()
        assert coded[1] == len(coded) - 2


def test_wrong_profiles_are_refused() -> None:
    """A profile with a missing part, a bad number or broken TOML is refused with the reason."""
    text = (Path(cp.__file__).parent / "profiles" / "oc1.toml").read_text(encoding="utf-8")
    assert cp.parse_profile(text) == cp.load_profile()
    for broken in (
        text.replace("[adf]", "[adf"),
        text.replace("purpose = 0x01", "purpose = 0x77"),
        text.replace("slots = 8", ""),
        text.replace('"F0F008FF"', '"F0F008F"'),
        text.replace('level = "mf"', 'level = "xx"'),
        text.replace("files = [", "files = 3 #[", 1),
        "",
    ):
        with pytest.raises(ConfigError):
            cp.parse_profile(broken)
    with pytest.raises(ConfigError):
        cp.load_profile("oc99")
