"""Traces: nothing secret is ever written, what is written can be played back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib import iso7816 as iso
from cardlib.errors import CardRemoved, ConfigError, Conflict, FormatError, StatusError
from cardlib.profile import Purse
from cardlib.purse import balance, debit
from cardlib.sam import CardSam
from cardlib.trace import Exchange, TraceReplay, TraceWriter, mask, parse_trace
from cardlib.transport import Recorder
from tests.cardlib.world import PIN, World, make_application, request
from tests.vectors import by_category

SECRET = "5EC7E7" * 8
HIDDEN = "**" * 24


@pytest.mark.parametrize(
    "header",
    [
        "00200000",  # VERIFY
        "805E0100",  # CHANGE PIN
        "805E0000",  # RELOAD PIN
        "84240000",  # PIN UNBLOCK
        "802C0000",  # UNBLOCK
        "80D40100",  # WRITE KEY in clear
        "84D40100",  # WRITE KEY sealed
        "00820000",  # EXTERNAL AUTHENTICATE
        "00880001",  # INTERNAL AUTHENTICATE
        "80FA0000",  # DES CRYPT
        "80E80101",  # DELIVER KEY
        "80E03F00",  # CREATE MF with its transport code
        "80D80000",  # PUT KEY
        "80140000",  # TERMINAL RESPONSE with a typed password
        "80C20000",  # ENVELOPE
        "00D69600",  # UPDATE BINARY of the holder's file
        "04B09600",  # and its protected reading
        "DEAD0000",  # nobody knows
    ],
)
def test_secrets_are_masked_both_ways(header: str) -> None:
    """Commands that may carry secrets keep header, lengths and status word, and lose everything else."""
    command, answer = bytes.fromhex(header + "18" + SECRET + "20"), bytes.fromhex(SECRET + "9000")
    assert mask(command, answer) == (f"{header}18{HIDDEN}20", f"{HIDDEN}9000")


@pytest.mark.parametrize(
    "header",
    ["00A40400", "00D69500", "04DC01B8", "805001 02", "805401 00", "805200 00", "80700000", "80720000", "80740000",
     "84E40000", "80E03F01", "80DC01B8", "801A2701", "841E0000"],
)  # fmt: skip
def test_the_rest_is_shown(header: str) -> None:
    """Selecting, files, purse and SAM commands are shown whole: their MACs prove and open nothing."""
    command, answer = bytes.fromhex(header + "02AABB"), bytes.fromhex("01029000")
    assert mask(command, answer) == (command.hex().upper(), "01029000")


@given(st.binary(max_size=40), st.binary(max_size=20))
def test_any_bytes_can_be_masked(command: bytes, answer: bytes) -> None:
    """Malformed commands are masked behind the header; lengths stay, nothing raises."""
    shown = mask(command, answer)
    assert [len(part) for part in shown] == [2 * len(command), 2 * len(answer)]
    assert shown[0][:8] == command[:4].hex().upper()


@given(st.binary(min_size=1, max_size=255))
def test_no_secret_survives_in_any_length(secret: bytes) -> None:
    """VERIFY and WRITE KEY hide every byte of their data, in short and extended coding."""
    for head in ("0020000000", "84D4010000"):
        command = bytes.fromhex(head)[:4] + bytes([len(secret)]) + secret
        assert mask(command, b"\x90\0")[0][10:] == "**" * len(secret)
        extended = bytes.fromhex(head)[:4] + b"\0" + len(secret).to_bytes(2, "big") + secret
        assert mask(extended, b"\x90\0")[0][14:] == "**" * len(secret)


def test_get_response_is_masked_like_the_command_before(tmp_path: Path) -> None:
    """Data fetched by GET RESPONSE are a secret when the command's own answer would be."""
    path = tmp_path / "t"
    writer = TraceWriter(path, lambda: 5)
    writer(bytes.fromhex("80FA00000801020304050607 08".replace(" ", "")), bytes.fromhex("6108"))
    writer(bytes.fromhex("00C0000008"), bytes.fromhex("1122334455667788 9000"))
    writer(bytes.fromhex("805001020B01000000013100000001010F"), bytes.fromhex("610F"))
    writer(bytes.fromhex("00C000000F"), bytes.fromhex("AA9000"))
    answers = [exchange.answer for exchange in parse_trace(path.read_text())]
    assert answers == ["6108", "**" * 8 + "9000", "610F", "AA9000"]
    assert mask(bytes.fromhex("00C0000008"), b"\1\2\x90\0")[1] == "****9000"


def test_a_whole_life_leaks_no_key_and_no_pin(tmp_path: Path) -> None:
    """Making a card, opening a SAM and paying, traced: no key of the world and no PIN is in the file."""
    path = tmp_path / "trace"
    writer = TraceWriter(path)
    world = World()
    card = Recorder(type(world.card).blank(world.random.randbytes), writer)
    make_application(card, world.card_key)
    sam = CardSam(Recorder(world.sam_card, writer), lambda: PIN)
    world.fill(Purse.MAIN, 500)
    session = world.tap()
    iso.verify_pin(Recorder(world.card, writer), PIN)
    world.tap()
    debit(Recorder(world.card, writer), sam, world.journal, session, request(Purse.MAIN, 5, 1))
    text = path.read_text()
    keys = [key._value for key in world.masters.values()]
    keys += [key.diversify(session.factor)._value for key in world.masters.values()]
    for secret in keys:
        assert secret.hex().upper() not in text
    assert f"0020000003{PIN.hex()}" not in text
    assert PIN.ljust(8, b"\xff").hex().upper() not in text
    assert text.count("8054") >= 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_vectors_keys_never_pass() -> None:
    """The sealed keys of the vectors and the PINs of the vectors are masked whole."""
    for vector in by_category("write-key", "pin-reload", "pin-change", "pin-unblock"):
        shown, _ = mask(bytes.fromhex(vector["output"]["capdu"]), b"\x90\0")
        assert set(shown[10:]) == {"*"}


def test_a_trace_is_played_back(tmp_path: Path) -> None:
    """Reads are answered as recorded; masked commands match any secret of that length; a lost card is lost again."""
    path = tmp_path / "trace"
    world = World()
    world.fill(Purse.MAIN, 500)
    world.tap()
    traced = Recorder(world.card, TraceWriter(path))
    balance(traced, Purse.MAIN)
    iso.verify_pin(traced, PIN)
    world.card.power_off()
    with pytest.raises(CardRemoved):
        balance(traced, Purse.MAIN)
    replay = TraceReplay(parse_trace(path.read_text()), b"\x3b\0")
    assert replay.atr == b"\x3b\0"
    assert balance(replay, Purse.MAIN) == 500
    iso.verify_pin(replay, b"\x99\x99\x99")
    with pytest.raises(CardRemoved):
        balance(replay, Purse.MAIN)
    replay.close()


def test_replay_is_strict() -> None:
    """Another command, another length, one too many, one too few: Conflict."""
    verify = Exchange("0020000003******", "63C1")
    with pytest.raises(StatusError, match="63C1"):
        iso.verify_pin(TraceReplay([verify]), PIN)
    for pin in (b"\1\2", b"\1\2\3\4"):
        with pytest.raises(Conflict):
            iso.verify_pin(TraceReplay([verify]), pin)
    with pytest.raises(Conflict, match="nothing more"):
        iso.verify_pin(TraceReplay([]), PIN)
    with pytest.raises(Conflict, match="never asked"):
        TraceReplay([verify]).close()


def test_several_traces_in_one_file_are_one(tmp_path: Path) -> None:
    """Appending goes on in the same file."""
    path = tmp_path / "trace"
    for _ in range(2):
        TraceWriter(path, lambda: 1)(bytes.fromhex("00A40000"), b"\x90\0")
    assert parse_trace(path.read_text()) == [Exchange("00A40000", "9000")] * 2


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "no json",
        '{"ms": 1, "command": "00", "answer": "9000"}',
        '{"trace": 2}',
        '{"trace": 1}\n[]',
        '{"trace": 1}\n{"command": "0", "answer": ""}',
        '{"trace": 1}\n{"command": "*0", "answer": ""}',
        '{"trace": 1}\n{"command": "00", "answer": 5}',
        '{"trace": 1}\n{"command": "00"}',
        '{"trace": 1}\n' + "[" * 100_000,
    ],
)
def test_malformed_traces_are_named_by_line(text: str) -> None:
    """Whatever is no trace is FormatError with the line's number."""
    with pytest.raises(FormatError, match="trace line"):
        parse_trace(text)


@given(st.text(max_size=60) | st.builds(json.dumps, st.dictionaries(st.text(max_size=8), st.integers() | st.text())))
def test_parser_raises_only_its_own_error(text: str) -> None:
    """Any text is a trace or FormatError."""
    for whole in (text, '{"trace": 1}\n' + text):
        try:
            parse_trace(whole)
        except FormatError:
            continue


def test_a_trace_file_that_can_not_be_written_is_a_setting_error(tmp_path: Path) -> None:
    """A directory, or one that is not there: ConfigError names the file."""
    for path in (tmp_path, tmp_path / "no" / "trace"):
        with pytest.raises(ConfigError, match=str(path)):
            TraceWriter(path)
