"""Transports and their decorators."""

from __future__ import annotations

import pytest

from cardlib.apdu import Command
from cardlib.errors import CardRemoved, Conflict, StatusError
from cardlib.transport import GetResponse, Recorder, Replay, Tearing, exchange

READ = bytes.fromhex("00B0950008")


def replay(*pairs: tuple[str, str]) -> Replay:
    return Replay([(bytes.fromhex(c), bytes.fromhex(a)) for c, a in pairs], bytes.fromhex("3B00"))


def test_get_response_fetches_and_joins() -> None:
    """After 61xx all waiting data is fetched and joined, in the command's class."""
    card = replay(("80500001", "6102"), ("00C0000002", "AABB6101"), ("00C0000001", "CC9000"))
    assert GetResponse(card).transceive(bytes.fromhex("80500001")).hex() == "aabbcc9000"
    card.close()


def test_wrong_le_is_repeated_with_the_right_one() -> None:
    """After 6Cxx the command is sent again with the Le that the card named."""
    card = replay(("00B0950008", "6C04"), ("00B0950004", "010203049000"))
    assert GetResponse(card).transceive(READ).hex() == "010203049000"


def test_endless_promises_end() -> None:
    """A card that always promises more data is given up."""
    more = [(READ, b"\x61\x01")] + [(bytes.fromhex("00C0000001"), b"\x00\x61\x01")] * 100
    with pytest.raises(StatusError):
        GetResponse(Replay(more)).transceive(READ)


def test_replay_is_strict() -> None:
    """Another command, one too many, or one too few is a conflict."""
    with pytest.raises(Conflict, match="00B0"):
        replay(("00A40000", "9000")).transceive(READ)
    with pytest.raises(Conflict, match="nothing more"):
        replay().transceive(READ)
    with pytest.raises(Conflict, match="1 recorded"):
        replay(("00A40000", "9000")).close()


def test_recorder_sees_lost_cards_too() -> None:
    """Each exchange is reported, one without an answer as empty."""
    seen: list[tuple[bytes, bytes]] = []
    card = Recorder(replay(("00B0950008", "9000"), ("00B0950008", "")), lambda c, a: seen.append((c, a)))
    card.transceive(READ)
    with pytest.raises(CardRemoved):
        card.transceive(READ)
    assert seen == [(READ, b"\x90\x00"), (READ, b"")]
    assert Replay(seen).transceive(READ) == b"\x90\x00"


@pytest.mark.parametrize(("before", "executed"), [(True, 1), (False, 2)])
def test_tearing_before_or_after_execution(before: bool, executed: int) -> None:
    """The card is pulled before the command arrives or before its answer does, and stays away."""
    seen: list[bytes] = []
    card = Tearing(Recorder(replay(*[("00B0950008", "9000")] * 3), lambda c, _: seen.append(c)), 2, before=before)
    card.transceive(READ)
    for _ in range(2):
        with pytest.raises(CardRemoved):
            card.transceive(READ)
    assert len(seen) == executed


def test_status_error_shows_the_header_only() -> None:
    """An error names status word and header, never the data: it may be a PIN."""
    command = Command(0, 0x20, 0, 0, b"\x12\x34\x56")
    with pytest.raises(StatusError) as caught:
        exchange(Replay([(command.encode(), b"\x63\xc2")]), command)
    assert caught.value.sw == 0x63C2
    assert "123456" not in str(caught.value)
    assert exchange(Replay([(command.encode(), b"\x63\xc2")]), command, 0x63C2) == b""
