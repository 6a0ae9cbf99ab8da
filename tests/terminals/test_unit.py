"""The whole terminal as one process: fresh from unpacking, made what it is over its line, at work, collected."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cardlib.blacklist import Blacklist, ListReason, snapshot
from cardlib.crypto.sealing import seal_to
from cardlib.crypto.signing import SigningKey
from cardlib.errors import Refused
from cardlib.records import PunchReport, Transaction
from cardlib.serialport import SerialPort
from cardlib.wire import cbor, smp
from cardlib.wire.authority import SignedFile
from cardlib.wire.link import parse_label
from simulator.rig import PIN, Enterprise
from terminals.config import Kind
from terminals.installer import Client
from terminals.link import Master
from terminals.software import keys_aad
from tests.onecard import onecard
from tests.secretwatch import WATCH
from tests.terminals.linkrig import AUTHORITY, OTHER, VERBS, config_file, installer, token
from tests.terminals.osdp_world import key_of
from tests.terminals.test_osdp_processes import LINE, Readers
from tests.terminals.test_run import DOORS, PATIENCE_S, SIGNER, Site

DAY_MS = 86_400_000
ALL = (*VERBS, "keys")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def lasting() -> dict[str, Any]:
    """When a token holds."""
    return {"not_before_ms": now_ms() - DAY_MS, "not_after_ms": now_ms() + DAY_MS}


class Unit:
    """A terminal's process with pipes at its console, and an installer at its line."""

    def __init__(self, site: Site, *args: str) -> None:
        self.site, self.home = site, site.path("home")
        known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
        self.errors = site.path("console.log").open("a")
        self.process = subprocess.Popen(
            [onecard(), "--json", *args], cwd=site.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env=known | {"ONECARD_HOLDER_PIN_FILE": str(site.path("pin")), "ONECARD_ENTERPRISE": "9"},
        )  # fmt: skip
        self.label = self.event()

    def event(self) -> dict[str, Any]:
        """The next line of data."""
        assert self.process.stdout is not None
        read: dict[str, Any] = json.loads(self.process.stdout.readline())
        return read

    def type(self, line: str = "") -> dict[str, Any]:
        """Type a line and return what it led to."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.event()

    @contextmanager
    def line(self, *, pair: bool = False) -> Iterator[Client]:
        """A session over the line."""
        port = SerialPort(str(self.home / "port"))
        who = installer(verbs=ALL, **lasting())
        try:
            master = Master(port, time.monotonic, os.urandom, port.gap_s)
            one = Client(master, 1, self.label["serial"], time.monotonic, os.urandom)
            if pair:
                code = (self.home / "code").read_text().strip()
                self.public = one.pair(who, code, parse_label(self.label["fingerprint"]))
                one.request(smp.AUTHORITY, {0: AUTHORITY.public})
                assert self.event()["event"] == "configured"
            else:
                one.open(who, self.public)
            yield one
        finally:
            port.close()

    def configure(
        self, one: Client, version: int, kind: str = "pos", more: str = "", enterprise_id: int = 0,
        became: str | None = None,
    ) -> None:  # fmt: skip
        """Sign a configuration, send it and put it in force."""
        body = (
            f'version = {version}\nkind = "{kind}"\njournal = "/nowhere/j"\nlists = "/nowhere/l"\n'
            f"enterprise_id = {enterprise_id or self.site.enterprise.enterprise_id}\n"
            f'list_root_key = "{SIGNER.public.hex()}"\n{more}'
        )
        raw = config_file(version, self.label["serial"], body=body.encode(), created_ms=now_ms() - 1000)
        digest = one.upload("config", raw)
        one.request(smp.CONFIG_APPLY, {0: one.request(smp.CONFIG_GET)[1], 1: digest})
        now = {"kind": kind, "version": version} if became is None else {"kind": became, "version": 0}
        assert self.event() == {"event": "configured", **now}

    def push(self, one: Client, version: int, *lost: bytes) -> None:
        """Sign a list, send it and put it in force."""
        listed = Blacklist.of(
            self.site.enterprise.enterprise_id, version, now_ms(), [(card, ListReason.LOST) for card in lost]
        )
        one.request(smp.LIST_TAKE, {0: one.upload("list", snapshot(SIGNER, listed))})

    def kill(self) -> None:
        """Pull the plug."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def site(enterprise: Enterprise, tmp_path: Path) -> Site:
    made = Site(enterprise, tmp_path, Kind.POS)
    made.path("pin").write_text(PIN)
    return made


def test_from_unpacking_to_collection_in_one_process(site: Site) -> None:
    """A fresh terminal serves only its line; what comes over it counts from the next tap; collect reads the taps."""
    card = site.new_card(fen=100_00)
    unit = Unit(
        site, "terminal", "run", "--home", "home", "--link-pty", "--serial", "POS-0001", "--sam-reader", "sim:sam.img",
        "--reader", "sim:card.img", "--amount", "8", "--cashier", "kim", "--language", "en",
    )  # fmt: skip
    assert "code" not in unit.label
    assert unit.type() == {"event": "refused", "reason": "not_provisioned"}
    with unit.line(pair=True) as one:
        info = one.request(smp.INFO)
        assert (info[6], info[7].hex(), info[8]) == (site.enterprise.enterprise_id, "310000000777", site.serial)
        serial, _, values = one.request(smp.SAM_INFO).values()
        assert serial == site.serial
        assert {"card-1", "terminal-1", "purchase-1"} <= values.keys()
        assert unit.type()["reason"] == "not_provisioned"
        unit.configure(one, 1)
        assert unit.type()["reason"] == "list_too_old"
        unit.push(one, 1)
        assert unit.type()["balance_fen"] == 92_00
        unit.configure(one, 2, more="[rules]\npayment_limit_fen = 500\n")
        assert unit.type()["reason"] == "payment_limit"
        unit.push(one, 2, card)
        unit.configure(one, 3)
        assert unit.type()["reason"] == "lost"
        unit.push(one, 3)
        assert one.request(smp.SCREEN_TEST)[0] is True
        passed, words = one.request(smp.CARD_TEST).values()
        assert (passed, card.hex().upper() in words, serial.hex().upper() in words) == (True, True, True)
    unit.kill()
    again = Unit(
        site, "terminal", "run", "--home", "home", "--link-pty", "--sam-reader", "sim:sam.img",
        "--reader", "sim:card.img", "--amount", "8", "--cashier", "kim",
    )  # fmt: skip
    again.public = unit.public
    assert {**again.label, "port": ""} == {**unit.label, "port": ""}
    assert again.type()["balance_fen"] == 84_00
    with again.line() as one:
        file = one.collect(site.path("dump"))
    moves = [entry.record for entry in file.entries if isinstance(entry.record, Transaction) and entry.event == 2]
    assert [move.amount_fen for move in moves] == [8_00, 8_00]
    again.kill()
    WATCH.saw("the console", site.path("console.log").read_text())
    assert "not provisioned" in site.path("console.log").read_text()
    assert "test picture" in site.path("console.log").read_text()


def test_a_simulated_terminal_becomes_each_kind(site: Site) -> None:
    """Without a restart the same process is a time clock, a door, a till; what can't run says so and waits."""
    site.new_card(fen=20_00)
    unit = Unit(site, "sim", "terminal", "home", "--pty", "--sam", "sam.img", "--cashier", "kim")
    with unit.line(pair=True) as one:
        assert one.request(smp.CARD_TEST)[0] is False
        unit.configure(one, 1, "attendance")
        unit.push(one, 1)
        assert unit.type("card card.img")["event"] == "punch"
        assert one.request(smp.CARD_TEST)[0] is True
        unit.configure(one, 2, "access", DOORS)
        assert unit.type("card card.img")["granted"] is True
        unit.configure(one, 3)
        assert unit.process.stdin is not None
        unit.process.stdin.write("2.50\n")
        assert unit.type("card card.img")["balance_fen"] == 17_50
        with pytest.raises(Refused, match="SAM is of"):
            unit.configure(one, 4, enterprise_id=4711)
        file = one.collect(site.path("dump"))
    assert len([entry for entry in file.entries if isinstance(entry.record, PunchReport)]) == 1
    unit.kill()


def test_doors_whose_readers_keys_came_over_the_line(enterprise: Enterprise, tmp_path: Path) -> None:
    """A door terminal waits for its readers' keys, works once two operators loaded them, and takes a new plan live."""
    site = Site(enterprise, tmp_path, Kind.ACCESS)
    for name, text in (("pin", PIN), ("scbk", "".join(f"{n} {key_of(n).hex()}\n" for n in (5, 6, 7)))):
        site.path(name).write_text(text)
    site.path("scbk").chmod(0o600)
    site.new_card()
    readers = Readers(site)
    unit = Unit(site, "sim", "terminal", "home", "--pty", "--kind", "access", "--sam", "sam.img", "--language", "en")
    try:
        with unit.line(pair=True) as one:
            unit.configure(one, 1, "access", LINE, became="")
            unit.push(one, 1)
            second = SigningKey(bytes(range(7, 39)))
            sealed = seal_to(
                one.request(smp.INFO)[3], cbor.encode({1: {n: key_of(n) for n in (5, 6, 7)}}),
                keys_aad(unit.label["serial"], 1), os.urandom,
            )  # fmt: skip
            raw = SignedFile("keys", unit.label["serial"], 1, now_ms(), sealed).encode(AUTHORITY)
            one.allow(token(OTHER, ed25519=second.public, verbs=ALL, **lasting()), second, "keys")
            assert one.request(smp.KEYS_LOAD, {0: one.upload("keys", raw)}) == {0: 1, 1: 3}
            assert unit.event() == {"event": "configured", "kind": "access", "version": 1}
            for version in (2, 3):
                readers.until("text present the card", 3)
                readers.type(f"5 card {site.path('card.img')}")
                assert unit.event()["granted"] is True
                readers.type("5 take")
                unit.configure(one, version, "access", LINE)
    finally:
        unit.kill()
        readers.close()
