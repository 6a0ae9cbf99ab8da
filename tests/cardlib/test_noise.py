"""Noise against published vectors (cacophony), and what must end a handshake or session."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.crypto.noise import Handshake, Pattern, Session, StaticKey
from cardlib.errors import Conflict, CryptoError, FormatError, MacMismatch, OneCardError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "noise.json").read_text())["vectors"]
INSTALLER, TERMINAL = StaticKey(bytes(range(32))), StaticKey(bytes(range(1, 33)))
PSK = bytes(range(2, 34))


def pair(
    pattern: Pattern, seed: int = 1, *, psk: bytes = PSK, prologue: bytes = b"p", rekey_messages: int = 65_536
) -> tuple[Handshake, Handshake]:
    """Both ends of a handshake; ``psk`` and ``prologue`` are the initiator's."""
    known = pattern is Pattern.KK
    rng = random.Random(seed)

    def end(static: StaticKey, other: StaticKey, secret: bytes, text: bytes, *, initiator: bool) -> Handshake:
        return Handshake(
            pattern, static, rng.randbytes, initiator=initiator, prologue=text,
            remote=other.public if known else b"", psk=b"" if known else secret, rekey_messages=rekey_messages,
        )  # fmt: skip

    return end(INSTALLER, TERMINAL, psk, prologue, initiator=True), end(TERMINAL, INSTALLER, PSK, b"p", initiator=False)


def run(first: Handshake, second: Handshake) -> tuple[Session, Session]:
    """Pass all messages."""
    sender, receiver = first, second
    while not first.finished:
        assert receiver.read(sender.write(b"hello")) == b"hello"
        sender, receiver = receiver, sender
    return first.split(), second.split()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["protocol_name"]))
def test_published_vectors(vector: dict[str, Any]) -> None:
    """Every message of the published vectors comes out byte for byte at both ends, in handshake and session."""
    pattern = Pattern[vector["pattern"]]
    data = {
        name: bytes.fromhex(vector[name]) for name in vector if name not in {"pattern", "protocol_name", "messages"}
    }
    init, resp = StaticKey(data["init_static"]), StaticKey(data["resp_static"])

    def fixed(name: str) -> Callable[[int], bytes]:
        return lambda _: data[name]

    known = pattern is Pattern.KK
    common: dict[str, Any] = {"prologue": data["prologue"], "psk": data["psk"]}
    one = Handshake(
        pattern, init, fixed("init_ephemeral"), initiator=True, remote=resp.public if known else b"", **common
    )
    two = Handshake(
        pattern, resp, fixed("resp_ephemeral"), initiator=False, remote=init.public if known else b"", **common
    )
    messages = [(bytes.fromhex(a), bytes.fromhex(b)) for a, b in vector["messages"]]
    sender, receiver = one, two
    while not one.finished:
        payload, coded = messages.pop(0)
        assert sender.write(payload) == coded
        assert receiver.read(coded) == payload
        sender, receiver = receiver, sender
    assert one.hash == two.hash == data["handshake_hash"]
    sessions = [one.split(), two.split()]
    if pattern is Pattern.XX_PSK3:
        sessions.reverse()  # after three messages it is the responder's turn
    for payload, coded in messages:
        assert sessions[0].encrypt(payload) == coded
        assert sessions[1].decrypt(coded) == payload
        sessions.reverse()


@pytest.mark.parametrize("pattern", Pattern)
@given(data=st.data())
def test_one_flipped_bit_ends_a_handshake(pattern: Pattern, data: st.DataObject) -> None:
    """A handshake with one bit changed in any message never gives both ends a session."""
    first, second = pair(pattern)
    spoilt = data.draw(st.integers(0, len(pattern.value.messages) - 1))

    def attempt() -> None:
        sender, receiver = first, second
        for number in range(len(pattern.value.messages)):
            message = bytearray(sender.write(b"x"))
            if number == spoilt:
                message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            receiver.read(bytes(message))
            sender, receiver = receiver, sender
        one, two = first.split(), second.split()
        two.decrypt(one.encrypt(b"data"))

    with pytest.raises(OneCardError):
        attempt()


@pytest.mark.parametrize("pattern", Pattern)
def test_both_ends_know_each_other(pattern: Pattern) -> None:
    """After the handshake each end has the other's static key, and both directions carry messages."""
    first, second = pair(pattern)
    one, two = run(first, second)
    assert (first.remote, second.remote) == (TERMINAL.public, INSTALLER.public)
    assert one.hash == two.hash
    assert two.decrypt(one.encrypt(b"up")) == b"up"
    assert one.decrypt(two.encrypt(b"down")) == b"down"


def test_wrong_code_and_wrong_prologue_are_found() -> None:
    """Another pre-shared key is found in message 3, another prologue in message 2, each ending the handshake."""
    first, second = pair(Pattern.XX_PSK3, psk=bytes(range(3, 35)))
    second.read(first.write())
    first.read(second.write())
    with pytest.raises(MacMismatch):
        second.read(first.write(b"token"))
    with pytest.raises(Conflict):
        second.split()
    first, second = pair(Pattern.XX_PSK3, prologue=b"another terminal")
    with pytest.raises(MacMismatch):
        second.read(first.write())


def test_a_session_ends_with_its_first_error() -> None:
    """A message replayed, changed or skipped ends the session for good."""
    for spoil in ("replay", "change", "skip"):
        one, two = run(*pair(Pattern.KK))
        message = one.encrypt(b"pay")
        if spoil == "replay":
            two.decrypt(message)
        elif spoil == "change":
            message = message[:-1] + bytes([message[-1] ^ 1])
        else:
            message = one.encrypt(b"pay")
        with pytest.raises(MacMismatch):
            two.decrypt(message)
        with pytest.raises(Conflict):
            two.decrypt(one.encrypt(b"more"))
        with pytest.raises(Conflict):
            two.encrypt(b"more")


def test_keys_change_in_step_with_the_messages() -> None:
    """Both ends re-key before the same message of a direction; an end that does not is found out at that message."""
    one, two = run(*pair(Pattern.KK, rekey_messages=4))
    for number in range(10):
        assert two.decrypt(one.encrypt(bytes([number]))) == bytes([number])
    one, two = run(*pair(Pattern.KK, rekey_messages=4))
    two.rekey_messages = 1 << 30
    for _ in range(4):
        two.decrypt(one.encrypt(b""))
    with pytest.raises(MacMismatch):
        two.decrypt(one.encrypt(b""))


def test_misuse_is_refused() -> None:
    """Turns, lengths, missing keys and public keys of low order are checked."""
    first, second = pair(Pattern.KK)
    with pytest.raises(Conflict):
        second.write()
    with pytest.raises(Conflict):
        first.split()
    with pytest.raises(FormatError):
        second.read(b"short")
    with pytest.raises(FormatError):
        Handshake(Pattern.KK, INSTALLER, random.Random(1).randbytes, initiator=True)
    with pytest.raises(FormatError):
        Handshake(Pattern.XX_PSK3, INSTALLER, random.Random(1).randbytes, initiator=True, psk=b"short")
    with pytest.raises(CryptoError):
        INSTALLER.shared(bytes(32))
    with pytest.raises(FormatError):
        StaticKey(b"far too short")
    one, _ = run(*pair(Pattern.KK))
    with pytest.raises(FormatError):
        one.encrypt(bytes(65_520))


@given(st.binary(max_size=300))
def test_garbage_raises_only_our_errors(message: bytes) -> None:
    """Whatever comes as a handshake message, only errors of the project leave."""
    for pattern in Pattern:
        first, second = pair(pattern)
        try:
            second.read(message)
            first.write()
            first.read(message)
        except OneCardError:
            pass
