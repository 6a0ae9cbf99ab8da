"""``onecard ota``: packets are taken apart and made, with keys from a file that shows up nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cli
from console import Session
from tests.secretwatch import register
from tests.vectors import ota

VECTORS = {v["id"]: v for v in ota()}
AES = VECTORS["gen-aes128-1e19-long"]
LIVE = VECTORS["live-3des2-1619-c1"]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(vector: dict[str, Any]) -> None:
        for name in ("kic_key", "kid_key"):
            register(bytes.fromhex(vector[name]), name)
        file = tmp_path / "keys"
        file.write_text(f"{vector['kic_key']} {vector['kid_key'] or '00'}\n")
        monkeypatch.setenv("ONECARD_OTA_KEYS_FILE", str(file))

    return give


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    ended = cli.run(["ota", *words, "--json", "--no-input"], Session())
    out, err = capsys.readouterr()
    assert ended == code, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_command_is_taken_apart(keys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A packet shows its header, counter, data and commands; without keys its header."""
    keys(AES)
    [shown] = run(capsys, "decode", AES["command_packet"])
    assert (shown["counter"], shown["script"], shown["data"]) == (
        5,
        [AES["secured_data"].upper()],
        AES["secured_data"].upper(),
    )
    assert (shown["protection"], shown["counter_mode"], shown["por_by"]) == ("CC ciphered", "NEXT", "REPORT")
    [shown] = run(capsys, "decode", AES["command_packet"], "--clear")
    assert "counter" not in shown


def test_a_real_cards_answer(keys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """ENVELOPE as it went to a card, and the card's answer, open under the same keys."""
    keys(LIVE)
    options = ["--spi", LIVE["spi"], "--kic", LIVE["kic"]]
    shown = run(capsys, "decode", LIVE["envelope_apdu"], LIVE["user_data"], LIVE["response_packet"], *options)
    assert [one["kind"] for one in shown] == ["command", "response", "response"]
    assert {one["counter"] for one in shown} == {16}
    assert (shown[1]["status"], shown[1]["sw"], shown[1]["proven"]) == ("00 OK", "9000", True)
    assert shown[0]["number"] == "1234"


def test_segments_and_refusals_need_no_order(keys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Segments are put together whatever their order; a refusal is read without keys."""
    vector = VECTORS["concat-3des2"]
    keys(vector)
    *early, last = run(capsys, "decode", *vector["user_data_segments"][::-1])
    assert [one["kind"] for one in early] == ["segment"]
    assert last["data"] == vector["secured_data"].upper()
    [refused] = run(capsys, "decode", "027100000b0abfff4f00000000000009", "--clear")
    assert (refused["status"], refused["proven"], refused["tar"]) == ("09 TAR_UNKNOWN", False, "BFFF4F")


@pytest.mark.parametrize(
    "name", ["gen-aes128-0619-sel", "gen-aes256-1619-sel", "gen-3des2-0601-sel", "gen-3des3-0601-sel"]
)
def test_packets_are_made(name: str, keys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A packet made of a vector's parts is the vector's."""
    vector = VECTORS[name]
    keys(vector)
    kind = {"2": "aes", "5": "3des", "9": "3des3"}[vector["kic"][1]]
    [made] = run(
        capsys, "encode", vector["secured_data"], "--spi", vector["spi"], "--tar", vector["tar"], "--algorithm", kind,
        "--key-set", str(int(vector["kic"][0], 16)), "--counter", str(int(vector["cntr"], 16)),
    )  # fmt: skip
    assert made["packet"] == vector["command_packet"].upper()
    [shown] = run(capsys, "decode", made["envelopes"][0])
    assert shown["data"] == vector["secured_data"].upper()


def test_expanded_and_long(keys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An expanded script is cut into its commands again; a long one makes several ENVELOPEs."""
    keys(AES)
    commands = ["00A40000023F00", "0084000004"] * 20
    [made] = run(capsys, "encode", *commands, "--counter", "7", "--expanded", "--key-set", "2")
    assert len(made["envelopes"]) == 3
    shown = run(capsys, "decode", *made["envelopes"])
    assert shown[-1]["script"] == commands


def test_what_can_not_be_read(keys: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong keys, damage and missing keys end with the code of their kind."""
    run(capsys, "decode", "00", code=2)
    monkeypatch.delenv("ONECARD_OTA_KEYS_FILE", raising=False)
    run(capsys, "decode", AES["command_packet"], code=2)
    keys(AES)
    run(capsys, "decode", AES["command_packet"][:-2] + "00", code=7)
    keys({"kic_key": "00", "kid_key": "00"} | {k: AES[k][::-1] for k in ("kic_key", "kid_key")})
    run(capsys, "decode", AES["command_packet"], code=7)
