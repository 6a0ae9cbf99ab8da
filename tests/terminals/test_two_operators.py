"""What an installer may not do alone, and firmware that only goes forward: over a simulated line, cut at each step."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cardlib.blacklist import Blacklist, snapshot
from cardlib.crypto.noise import StaticKey
from cardlib.crypto.sealing import seal_to
from cardlib.crypto.signing import SigningKey
from cardlib.errors import Refused
from cardlib.wire import cbor, smp
from cardlib.wire.authority import SignedFile
from cardlib.wire.osdp_secure import SCBK_D
from terminals.home import HomeClock
from terminals.installer import Client
from terminals.policy import CLOCK_SLACK_MS
from terminals.software import Firmware, keys_aad
from tests.secretwatch import register
from tests.terminals.linkrig import (
    AUTHORITY,
    DAY_MS,
    INSTALLER,
    NOW,
    OTHER,
    ROOT,
    TERMINAL,
    VERBS,
    Line,
    Terminal,
    client,
    config_file,
    installer,
    paired,
    token,
)

SECOND = SigningKey(random.Random(21).randbytes(32))
FIRST = SigningKey(random.Random(22).randbytes(32))
SCBK = bytes.fromhex("00112233445566778899AABBCCDDEE21")
register(SCBK, "a reader's key")
ALL = (*VERBS, "keys")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path / "t")
    yield made
    made.journal.close()


@pytest.fixture
def one(terminal: Terminal) -> Client:
    """An installer with all verbs in a session, the authority pinned."""
    paired(terminal, Line()).request(smp.AUTHORITY, {0: AUTHORITY.public})
    return again(terminal)


def again(terminal: Terminal, seed: int = 30) -> Client:
    line = Line()
    terminal.connect(line, seed=seed)
    made = client(line, seed=seed + 1)
    made.open(installer(verbs=ALL, ed25519=FIRST.public), terminal.key.public)
    return made


def second(**changes: Any) -> bytes:
    """The other operator's token."""
    return token(OTHER, **{"ed25519": SECOND.public, "name": "Bo", "verbs": ALL, "token_id": b"tok2", **changes})


def reason(act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as refused:
        act()
    return refused.value.reason


def firmware(version: int, name: str = "OC-POS", body: bytes = b"code", signer: SigningKey = AUTHORITY) -> bytes:
    return SignedFile("firmware", name, version, NOW, body * 300).encode(signer)


def keys(version: int, serial: str = "POS-0001", to: StaticKey = TERMINAL, key: bytes = SCBK) -> bytes:
    plain = cbor.encode({1: {5: key, 126: key}})
    sealed = seal_to(to.public, plain, keys_aad(serial, version), random.Random(3).randbytes)
    return SignedFile("keys", serial, version, NOW, sealed).encode(AUTHORITY)


def take(one: Client, raw: bytes) -> list[int]:
    return list(one.request(smp.FIRMWARE_TAKE, {0: one.upload("firmware", raw)}).values())


def load(one: Client, raw: bytes) -> list[int]:
    return list(one.request(smp.KEYS_LOAD, {0: one.upload("keys", raw)}).values())


# --- firmware ------------------------------------------------------------------------------------------------


def test_firmware_goes_forward_and_one_step_back(one: Client, terminal: Terminal) -> None:
    """A newer one is taken, an older one is not, but the one kept before it; each switch starts the terminal anew."""
    assert reason(lambda: one.request(smp.FIRMWARE_BACK)) == "no_former"
    assert take(one, firmware(3)) == [3, 0]
    assert take(one, firmware(5, "POS-0001")) == [5, 3]
    assert terminal.resets == 2
    assert reason(lambda: take(one, firmware(4))) == "older"
    assert reason(lambda: take(one, firmware(3, body=b"evil"))) == "older"
    assert reason(lambda: take(one, firmware(5, body=b"evil"))) == "older"
    assert take(one, firmware(3)) == [3, 5], "the kept former version"
    assert reason(lambda: take(one, firmware(4))) == "older"
    assert list(one.request(smp.FIRMWARE_BACK).values()) == [5, 3]
    assert take(one, firmware(6)) == [6, 5]
    assert reason(lambda: take(one, firmware(3))) == "older"
    terminal.start()
    assert list(again(terminal, 40).request(smp.FIRMWARE_GET).values()) == [6, 5]
    kept = sorted(path.name for path in (terminal.folder / "firmware").glob("v*"))
    assert kept == ["v5.signed", "v6.signed"]


def test_firmware_of_others_is_refused(one: Client, terminal: Terminal) -> None:
    """Another model's, another terminal's, another signer's, another kind of file, a damaged one: nothing changes."""
    assert reason(lambda: take(one, firmware(1, "OC-ACCESS"))) == "foreign"
    assert reason(lambda: take(one, firmware(1, "POS-0002"))) == "foreign"
    assert reason(lambda: take(one, keys(1))) == "foreign"
    assert reason(lambda: take(one, firmware(1, signer=ROOT))) == "crypto"
    assert reason(lambda: take(one, firmware(1)[:-70])) == "crypto"
    assert reason(lambda: take(one, b"no firmware")) == "format"
    one.upload("firmware", firmware(1))
    assert reason(lambda: one.request(smp.FIRMWARE_TAKE, {0: bytes(32)})) == "conflict"
    assert list(one.request(smp.FIRMWARE_GET).values()) == [0, 0]
    assert terminal.resets == 0


def test_firmware_cut_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails at each write, sync, rename and removal: the old or the new is in force, whole, and goes on."""

    class Dark(Exception):
        """No power."""

    left = 0

    def failing(name: str, owner: Any) -> None:
        real = getattr(owner, name)

        def act(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Dark
            return real(*args, **options)

        monkeypatch.setattr(owner, name, act)

    for name, owner in (("fsync", os), ("write", os), ("open", os), ("replace", Path), ("unlink", Path)):
        failing(name, owner)
    whole, seen, names = False, set(), ("POS-0001", "OC-POS")
    for step in range(1, 40):
        folder = tmp_path / str(step)
        store = Firmware(folder, names)
        store.take(firmware(1), AUTHORITY.public)
        store.take(firmware(2), AUTHORITY.public)
        left = step
        with suppress(Dark):
            store.take(firmware(3), AUTHORITY.public)
        whole, left = left > 0, 0
        now = Firmware(folder, names)
        seen.add((now.current, now.former))
        for version in (now.current, now.former):
            assert now.path(version).read_bytes() == firmware(version)
        now.take(firmware(3), AUTHORITY.public)
        assert (now.current, now.former) == (3, 2)
        now.roll_back(AUTHORITY.public)
        if whole:
            break
    assert whole
    assert seen == {(2, 1), (3, 2)}


# --- keys ----------------------------------------------------------------------------------------------------


def test_keys_take_two_operators(one: Client, terminal: Terminal) -> None:
    """One alone, the same one twice, one without the verb, a revoked or foreign one, a false proof: no keys."""
    assert reason(lambda: load(one, keys(1))) == "second_operator"
    for changes, why in (
        ({"x25519": INSTALLER.public}, "second_operator"),
        ({"ed25519": FIRST.public}, "second_operator"),
        ({"verbs": VERBS}, "verb"),
        ({"not_after_ms": NOW - 1}, "expired"),
        ({"authority": ROOT}, "crypto"),
    ):
        assert reason(lambda c=changes: one.allow(second(**c), SECOND, "keys")) == why  # type: ignore[misc]  # bound here
    assert reason(lambda: one.allow(second(), FIRST, "keys")) == "crypto"
    one.allow(second(), SECOND, "clock")
    assert reason(lambda: load(one, keys(1))) == "second_operator"
    one.allow(second(), SECOND, "keys")
    assert load(one, keys(1)) == [1, 2]
    assert reason(lambda: load(one, keys(2))) == "second_operator", "one act each"
    one.allow(second(), SECOND, "keys")
    assert reason(lambda: load(one, keys(2))) == "second_operator", "once a session"
    assert "by Bo too" in [e.record for e in terminal.journal.collect(1).entries][-1].text  # type: ignore[union-attr]


def test_keys_are_for_one_terminal_and_never_given_out(one: Client, terminal: Terminal) -> None:
    """What is sealed for another, older, or known to all is refused; what is loaded no command reads."""
    bad = [(keys(1, "POS-0002"), "foreign"), (keys(1, to=OTHER), "crypto"), (keys(1, key=SCBK_D), "format")]
    for seed, (raw, why) in enumerate(bad):
        other = again(terminal, 50 + 2 * seed)
        other.allow(second(), SECOND, "keys")
        assert reason(lambda o=other, r=raw: load(o, r)) == why  # type: ignore[misc]  # bound here
    for version, seed in ((4, 70), (4, 72)):  # the same again changes nothing
        other = again(terminal, seed)
        other.allow(second(), SECOND, "keys")
        assert load(other, keys(version)) == [4, 2]
    path = terminal.folder / "scbk"
    assert path.read_text() == f"5 {SCBK.hex()}\n126 {SCBK.hex()}\n"
    assert path.stat().st_mode & 0o77 == 0
    for name in ("keys", "scbk", "keys.signed"):
        assert reason(lambda n=name: other.download(n)) in {"not_found", "name"}  # type: ignore[misc]  # bound here
    other = again(terminal, 80)
    other.allow(second(), SECOND, "keys")
    assert reason(lambda: load(other, keys(3))) == "older"


def test_an_approval_is_for_one_session(one: Client, terminal: Terminal) -> None:
    """The second operator's signature of one session allows nothing in another."""
    assert one._session is not None
    proof = SECOND.sign(b"OCSO1" + one._session.hash + b"keys")
    other = again(terminal, 60)
    assert reason(lambda: other.request(smp.SECOND, {0: second(), 1: "keys", 2: proof})) == "crypto"


# --- the clock -----------------------------------------------------------------------------------------------


def doubtful(terminal: Terminal) -> bool:
    """Whether payments are refused with ``clock_doubtful`` (terminals.policy)."""
    return terminal.wall.ms < terminal.journal.standing().clock_floor_ms - CLOCK_SLACK_MS


def test_a_clock_set_back_is_doubtful_until_a_signed_file(one: Client, terminal: Terminal) -> None:
    """One operator can't set it before the newest record, two can; then it counts only once a newer list is there."""
    digest = one.upload("config", config_file(1, created_ms=NOW - 5_000))
    one.request(smp.CONFIG_APPLY, {0: b"", 1: digest})
    terminal.wall.ms = NOW + DAY_MS
    terminal.journal.note("a day ahead")
    assert reason(lambda: one.set_clock(NOW)) == "clock_back"
    assert terminal.wall.ms == NOW + DAY_MS
    one.allow(second(), SECOND, "clock")
    one.set_clock(NOW)
    assert terminal.wall.ms == NOW
    assert doubtful(terminal)
    digest = one.upload("config", config_file(1, created_ms=NOW - 5_000))
    one.request(smp.CONFIG_APPLY, {0: one.request(smp.CONFIG_GET)[1], 1: digest})
    assert doubtful(terminal), "the one in force already"
    push(one, 1, NOW + 10_000)
    assert doubtful(terminal), "a list that the clock is behind confirms nothing"
    terminal.wall.ms = NOW + 20_000
    assert doubtful(terminal)
    push(one, 2, NOW + 15_000)
    assert not doubtful(terminal)
    assert terminal.wall.back is False
    codes = [entry.record.code for entry in terminal.journal.collect(1).entries]  # type: ignore[union-attr]  # notes only
    assert "clock_set" in codes
    assert codes[-2:] == ["list", "clock_confirmed"]


def test_without_two_operators_no_file_confirms_a_clock(one: Client, terminal: Terminal) -> None:
    """A clock that fell back by itself stays doubtful, whatever old file comes."""
    terminal.journal.clock_floor(NOW + DAY_MS)
    push(one, 1, NOW - 5_000)
    assert doubtful(terminal)


def push(one: Client, version: int, created_ms: int) -> None:
    raw = snapshot(ROOT, Blacklist.of(1001, version, created_ms, []))
    one.request(smp.LIST_TAKE, {0: one.upload("list", raw)})


def test_the_homes_clock_remembers(tmp_path: Path) -> None:
    """That it was set back outlives a restart, as the difference does."""
    clock = HomeClock(tmp_path / "clock")
    clock.set_off(5_000)
    clock.back = True
    again = HomeClock(tmp_path / "clock")
    assert again.back
    again.back = False
    assert not HomeClock(tmp_path / "clock").back
