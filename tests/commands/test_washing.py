"""Washing by commands: a vendor's batch received, its chips washed one by one or all; torn, and with wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cardlib.crypto.sealing import Argon2Params
from simulator import image
from simulator.world import QUICK
from tests.commands.test_life import Office, _secrets, found
from tests.secretwatch import register

__all__ = ["_secrets"]
BATCH_KEY = "A7" * 16 + "5C" * 16
register(bytes.fromhex(BATCH_KEY), "the batch key")


@pytest.fixture(scope="module")
def _platform(tmp_path_factory: pytest.TempPathFactory, _secrets: Path) -> Office:
    """A platform with an enterprise, to be copied."""
    office = Office(tmp_path_factory.mktemp("platform"))
    found(office)
    return office


@pytest.fixture
def office(tmp_path: Path, _platform: Office, monkeypatch: pytest.MonkeyPatch) -> Office:
    """A platform at work; the batch key is in a file, a transport key in none."""
    made = Office(tmp_path)
    for file in _platform.folder.rglob("*"):
        target = tmp_path / file.relative_to(_platform.folder)
        target.mkdir(exist_ok=True) if file.is_dir() else target.write_bytes(file.read_bytes())
    (tmp_path / "batch-key").write_text(BATCH_KEY)
    monkeypatch.setenv("ONECARD_BATCH_KEY_FILE", str(tmp_path / "batch-key"))
    monkeypatch.delenv("ONECARD_TRANSPORT_KEY_FILE")
    assert Argon2Params() == QUICK
    return made


def deliver(office: Office, name: str = "chips", *more: str, count: int = 3) -> Path:
    """A batch of simulated chips; its file is received."""
    made = office("sim", "batch", office.path(name), "--batch", name, "--count", str(count), *more)
    assert len(made["chips"]) == count
    got = office("card", "batch", "receive", made["file"])
    assert (got["batch"], got["chips"], got["washed"]) == (name, count, 0)
    return Path(office.path(name))


def at(office: Office, file: Path, *args: str, code: int = 0) -> dict[str, object]:
    said: dict[str, object] = office(*args, reader=f"sim:{file}", code=code)
    return said


@pytest.mark.parametrize("kind", ["cpu-card", "rfid-sim"])
def test_batch_of_cards(office: Office, kind: str) -> None:
    """From the vendor's file to a washed and issued card, with no transport key typed by anybody."""
    folder = deliver(office, "chips", "--kind", kind)
    card = folder / "0001.img"
    plan = at(office, card, "card", "wash", "--dry-run")["plan"]
    assert "batch chips from Simulated Chips" in str(plan)
    done = at(office, card, "card", "wash")
    assert (done["kind"], done["batch"], done["state"]) == (kind, "chips", "washed")
    assert at(office, card, "card", "wash")["state"] == "washed already"
    rows = office("card", "wash-batch", "--batch", "chips", reader=f"sim:{folder}")
    assert [row["state"] for row in rows] == ["washed already", "washed", "washed"]
    assert office("card", "batch", "list")[0]["washed"] == 3
    shown = office("card", "batch", "show", "chips")["chips"]
    assert {row["card"] for row in shown} == {row["card"] for row in rows}
    assert {row["state"] for row in shown} == {"washed"}
    at(office, card, "card", "open-slot")
    assert at(office, card, "card", "issue", "E001")["card"] == done["card"]


def test_batch_of_sams(office: Office) -> None:
    """SAMs of a batch are washed for one enterprise, one by one or all."""
    folder = deliver(office, "sams", "--kind", "sam", "--one-key")
    first = folder / "0001.img"
    assert "for enterprise" in str(at(office, first, "sam", "wash", "--dry-run")["plan"])
    assert at(office, first, "sam", "wash", "--batch", "sams")["state"] == "washed"
    rows = office("sam", "wash-batch", reader=f"sim:{folder}")
    assert [row["state"] for row in rows] == ["washed already", "washed", "washed"]
    assert len({row["sam"] for row in rows}) == 3
    assert office("sam", "wash", reader=f"sim:{first}", enterprise=None, code=2)["exit"] == 2
    assert "sam wash" in str(at(office, first, "card", "wash", code=4)["message"])


def test_torn_batch_goes_on(office: Office) -> None:
    """A batch whose cards are pulled away names each; the same command ends it, each card under one serial."""
    folder = deliver(office)
    office.cut_at = 40
    code, out, err = office.run("card", "wash-batch", reader=f"sim:{folder}")
    rows = json.loads(out)
    assert (code, len(rows), all(row["error"] for row in rows)) == (8, 3, True)
    assert json.loads(err.splitlines()[-1])["error"] == "CheckFailed"
    begun = {row["chip"]: row["card"] for row in office("card", "batch", "show", "chips")["chips"]}
    office.cut_at = 0
    rows = office("card", "wash-batch", reader=f"sim:{folder}")
    assert {row["chip"]: row["card"] for row in rows} == begun
    assert len(set(begun.values())) == 3


def test_bad_files_and_keys(office: Office, tmp_path: Path) -> None:
    """Each fault of a file or its key has an exit code and words; nothing is kept."""
    office("sim", "batch", office.path("chips"))
    file = Path(office.path("chips")) / "batch.txt"
    good = file.read_bytes()
    before = office.everything()
    for name, data, code, words in (
        ("empty", b"", 2, "empty"),
        ("cut", good[:-9], 2, "truncated"),
        ("edited", good.replace(b"cpu-card", b"rfid-sim"), 7, "changed"),
        ("version", good.replace(b"batch 1", b"batch 7"), 2, "version"),
    ):
        (tmp_path / name).write_bytes(data)
        said = office("card", "batch", "receive", str(tmp_path / name), code=code)
        assert words in said["message"], said
        (tmp_path / name).unlink()
    (tmp_path / "batch-key").write_text("11" * 32)
    assert "wrong batch key" in office("card", "batch", "receive", str(file), code=7)["message"]
    (tmp_path / "batch-key").write_text(BATCH_KEY)
    assert office("card", "batch", "receive", str(file), dry_run=True)["dry_run"]
    assert office.everything() == before
    office("card", "batch", "receive", str(tmp_path / "none"), code=2)
    office("card", "batch", "show", "none", code=3)
    first = office("card", "batch", "receive", str(file), request_id="r1")
    assert office("card", "batch", "receive", str(file), request_id="r1") == first
    office("sim", "batch", office.path("chips"), code=4)
    (tmp_path / "batch-key").write_text("11")
    office("sim", "batch", office.path("more"), code=2)


def test_unknown_batch_and_unwashed_card(office: Office) -> None:
    """A chip that no file names says so; where an issued card is expected, a vendor's one is called unwashed."""
    office("sim", "batch", office.path("chips"))
    card = Path(office.path("chips")) / "0001.img"
    said = at(office, card, "card", "wash", code=3)
    assert "unknown batch" in str(said["message"])
    before = card.read_bytes()
    for args in (["wallet", "recharge", "1"], ["wallet", "subsidy", "1"]):
        said = at(office, card, *args, code=1)
        assert (said["reason"], "not washed" in str(said["message"])) == ("no_application", True)
    loaded = image.load(card)
    assert image.restore(before).snapshot() == loaded.snapshot()
