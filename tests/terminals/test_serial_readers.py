"""Terminals as processes with readers on serial ports: a PN532, and a module that only tells tags' numbers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardlib.records import PunchReport, Transaction
from simulator.rig import PIN, Enterprise
from terminals.config import Kind
from tests.onecard import onecard
from tests.terminals.test_run import DOORS, PATIENCE_S, ROOT, Site

TAG, OTHER = "010063E9AE", "0A0B0C0D0E"


class Device:
    """``onecard sim pn532`` or ``onecard sim uid`` as a process; lines say what is presented to it."""

    def __init__(self, kind: str, folder: Path) -> None:
        known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
        self.process = subprocess.Popen(
            [onecard(), "sim", kind, str(folder), "--pty", "--json"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=known | {"PYTHONPATH": str(ROOT)}, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["link"]

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def site(request: pytest.FixtureRequest, enterprise: Enterprise, tmp_path: Path) -> Iterator[Site]:
    made = Site(enterprise, tmp_path, request.param)
    made.path("pin").write_text(PIN)
    yield made
    for one in made.running:
        one.close()


@pytest.fixture
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    made = Device(request.param, tmp_path / "device")
    yield made
    made.close()


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
    return subprocess.run(
        [onecard(), *words], env=known, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("site", "device"), [(Kind.POS, "pn532")], indirect=True)
def test_a_till_on_a_pn532(site: Site, device: Device) -> None:
    """Cards that come to a PN532 pay one after another, each once while it lies there."""
    site.configure()
    site.new_card(fen=100_00)
    site.new_card("other.img", fen=50_00)
    till = site.start("--cashier", "kim", "--amount", "8", "--reader", f"pn532:{device.port}")
    device.type(f"card {site.path('card.img')}")
    assert [one["balance_fen"] for one in till.events(1)] == [92_00]
    device.type("remove")
    device.type(f"card {site.path('other.img')}")
    assert [one["balance_fen"] for one in till.events(2)] == [92_00, 42_00]
    assert till.end() == 0
    assert site.balance() == 92_00
    assert len(site.records(Transaction)) == 4
    atr = typed("apdu", "atr", "--reader", f"pn532:{device.port}")
    assert atr.stdout.strip().startswith("3B878001"), atr


@pytest.mark.parametrize(("site", "device"), [(Kind.ATTENDANCE, "uid")], indirect=True)
def test_tags_punch_where_the_clock_allows_it(site: Site, device: Device) -> None:
    """Each presentation of a tag is one punch, of an unverified source; without leave in its file no clock starts."""
    reader = ["--reader", f"uid:{device.port}"]
    site.configure("[punches]\n")
    assert "uid_reader = true" in site.start(*reader).until("uid_reader = true")
    site.configure("[punches]\nuid_reader = true\n")
    clock = site.start(*reader, "--language", "en")
    device.type(f"tag {TAG}")
    assert clock.events(1) == [{"event": "punch", "direction": "in", "repeated": False}]
    device.type(f"tag {OTHER}")
    clock.events(2)
    device.type(f"tag {TAG}")
    assert clock.events(3)[2]["repeated"]
    device.type("tag nonsense")
    assert clock.end() == 0
    found = [(one.record.card_serial.hex(), one.record.verified) for one in site.records(PunchReport)]
    assert found == [(f"000000{tag.lower()}", False) for tag in (TAG, OTHER)]
    told = typed("apdu", "send", "FFCA000000", "00A4000000", "--json", "--reader", f"uid:{device.port}")
    assert f"{TAG}" in told.stdout, told
    assert "6E00" in told.stdout
    device.type("remove")


@pytest.mark.parametrize("site", [Kind.POS, Kind.ACCESS], indirect=True)
def test_tags_pay_nothing_and_open_nothing(site: Site) -> None:
    """A till and a door refuse to run with a reader whose tags prove nothing."""
    site.configure(DOORS if site.kind is Kind.ACCESS else "")
    refused = site.start("--reader", "uid:COM9")
    assert refused.process.wait(PATIENCE_S) == 2
    assert "attendance only" in refused.console.read_text()
