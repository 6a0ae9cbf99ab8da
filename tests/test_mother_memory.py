"""A mother card as the only source of keys, every chip a process of its own: no key is ever in the host."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardlib.crypto import Key, make_key
from cardlib.profile import Purpose, issuer_id, load_profile
from keymgmt.keys import PLATFORM_PURPOSES
from keymgmt.personalise import application_keys
from simulator import image
from simulator.card import Card
from simulator.sam import SamCard
from simulator.vpcd import PORT
from tests import mother_host
from tests.keymgmt import mothers, rig
from tests.keymgmt.mothers import AUTHENTICATION, MOTHER
from tests.keymgmt.rig import ENTERPRISE, SERIAL, Rig, held, same
from tests.keymgmt.test_issue import with_slot
from tests.pcsc_world import PcscWorld, wait_present
from tests.secretwatch import register

CHIPS = ("card", "sam", "mother", "authentication")
PINS = ("271828", "314159", "246810", "161803")
SERIALS = (SERIAL, rig.SAM_SERIAL, MOTHER, AUTHENTICATION)
CHUNK = 1 << 20


def value(key: Key) -> bytes:
    """A key's value, which nothing but a test asks for: what it is in a chip's memory."""
    return key._value


def secret_values(trace: str) -> dict[str, bytes]:
    """Every key of this run: roots, the enterprise's, the chips', those of the payment in the trace."""
    found = {"transport key": rig.TRANSPORT_KEY}
    for purpose in Purpose:
        root = make_key(rig.master(purpose))
        found[f"root {purpose.name}"] = value(root)
        above = [("root", root)]
        if purpose not in PLATFORM_PURPOSES:
            enterprise = root.diversify(issuer_id(ENTERPRISE))
            found[f"enterprise {purpose.name}"] = value(enterprise)
            above = [("enterprise", enterprise)]
        for name, master in above:
            for serial in SERIALS:
                found[f"{name} {purpose.name} of {serial.hex()}"] = value(master.diversify(serial))
    for number, session in enumerate(payments(trace)):
        found[f"session {number}"] = value(session)
    return found


def payments(trace: str) -> Iterator[Key]:
    """Session keys of the payments in a trace: INITIALIZE gives random number and counter, the SAM its number."""
    purchase = make_key(rig.master(Purpose.PURCHASE)).diversify(issuer_id(ENTERPRISE)).diversify(SERIAL)
    init = b""
    for line in trace.splitlines():
        row = json.loads(line)
        command = row.get("command", "")
        if command.startswith("80500302"):
            init = bytes.fromhex(row["answer"])
        elif command.startswith("80700000"):
            yield purchase.session(init[11:15] + init[4:6] + bytes.fromhex(row["answer"])[2:4])


def memory(pid: int) -> Iterator[bytes]:
    """All that a process can read of itself, in overlapping pieces."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as mem:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if "r" not in rights or line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            tail = b""
            for at in range(start, end, CHUNK):
                try:
                    piece = os.pread(mem.fileno(), min(CHUNK, end - at), at)
                except OSError:  # a page that nobody may touch
                    break
                yield tail + piece
                tail = piece[-64:]


def forms(secret: bytes) -> set[bytes]:
    """A key as it could lie in memory or a file: either half, or its first half as hexadecimal."""
    text = secret[:8].hex().encode()
    return {secret[:8], secret[-8:], text, text.upper()}


def found_in(pieces: Iterator[bytes], wanted: dict[str, bytes]) -> set[str]:
    """Names of the secrets that are anywhere in the pieces."""
    needles = [(name, form) for name, secret in wanted.items() for form in forms(secret)]
    return {name for piece in pieces for name, form in needles if form in piece}


@pytest.fixture
def chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Card]:
    """Washed chips of an enterprise with random roots: a card with a slot, an empty SAM, a mother card and its pair."""
    roots = {(purpose, version): secrets.token_bytes(16) for purpose in Purpose for version in (1, 2)}
    monkeypatch.setattr(rig, "master", lambda purpose, version=1: roots[purpose, version])
    for module in (rig, mothers):
        monkeypatch.setattr(module, "TRANSPORT_KEY", roots[Purpose.PIN, 1])
    made = Rig(tmp_path)
    return {
        "card": with_slot(made),
        "sam": mothers.blank_sam(made),
        "mother": mothers.made_mother(made),
        "authentication": mothers.made_authentication(made),
    }


def test_no_key_in_the_host(chips: dict[str, Card], tmp_path: Path) -> None:
    """Card and SAM get all their keys; memory, trace and log of the host that did it hold none of them."""
    for pin, name in zip(PINS, ("mother", "authentication", "SAM", "holder"), strict=True):
        register(pin, f"{name} PIN")
    canary = secrets.token_bytes(16)
    with PcscWorld(tmp_path / "world", slots=len(CHIPS)) as world:
        readers = world.readers()
        for slot, name in enumerate(CHIPS):
            image.save(chips[name], tmp_path / f"{name}.img")
            port, file = str(PORT + slot), str(tmp_path / f"{name}.img")
            world.start([sys.executable, "cli.py", "sim", name, "--vpcd-port", port, "--image", file])
            world.call(wait_present, readers[slot], True)
        host = world.start_call(mother_host.work, readers, list(PINS), str(tmp_path), canary.hex())
        assert host.stderr is not None
        assert host.stdin is not None
        said = host.stderr.readline()
        assert said == mother_host.READY + "\n", said + host.stderr.read()
        trace = (tmp_path / "host.trace").read_text()
        wanted = secret_values(trace)
        assert {"session 0", "enterprise LOAD", f"enterprise TAC of {SERIAL.hex()}"} <= set(wanted)
        assert found_in(memory(host.pid), wanted | {"canary": canary}) == {"canary"}
        host.stdin.write("\n")
        assert world.result(host) == 6
    log = (tmp_path / "host.log").read_text()
    assert "done with <MotherCard" in log
    assert not found_in(iter((trace.encode(), log.encode())), wanted)
    card, sam = (image.load(tmp_path / f"{name}.img") for name in ("card", "sam"))
    for spec in (*application_keys(), load_profile().key(Purpose.CONTROL)):
        want = make_key(wanted[f"enterprise {spec.purpose.name} of {SERIAL.hex()}"])
        assert same(held(card, spec.key_type, spec.kid(1), 0x3F01), want), spec.name
    assert isinstance(sam, SamCard)
    assert {key.value for key in sam.sam_keys.value.values()} <= set(wanted.values())


def test_the_search_finds_what_is_there() -> None:
    """The same search over this very process finds a key that it holds, raw, by halves, as text; and no other."""
    there, absent = secrets.token_bytes(16), secrets.token_bytes(16)
    wanted = {"there": there, "absent": absent}
    assert found_in(memory(os.getpid()), {"there": there}) == {"there"}
    for text in (b"ab" + there[8:] + b"x", there[:8], there.hex().encode(), there.hex().upper().encode()):
        assert found_in(iter([b"nothing", text]), wanted) == {"there"}
    assert found_in(iter([b"nothing", there[1:8]]), wanted) == set()
