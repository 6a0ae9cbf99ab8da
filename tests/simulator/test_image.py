"""Descriptions, image files, and the errors of both."""

from __future__ import annotations

import stat
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cardlib.crypto import make_key
from cardlib.errors import CardRemoved, ConfigError, FormatError
from cardlib.profile import CardIdentity, PublicInfo, check_serial
from simulator import image, snapshot
from simulator.card import Card, Quirks
from simulator.files import PurseFile, PurseState
from simulator.sam import SamCard
from tests.simulator.desk import (
    MASTERS,
    PIN,
    SERIAL,
    TRANSPORT_KEY,
    Desk,
    application,
    at_home,
    card_key,
    description,
    oc1,
    zeros,
)
from tests.simulator.test_sam import sam_description, sam_desk

PAGE = Path(__file__).parents[2] / "docs" / "simulator.md"


def examples() -> list[str]:
    """The TOML examples of the documentation."""
    parts = PAGE.read_text(encoding="utf-8").split("```toml\n")[1:]
    return [part.split("```")[0] for part in parts]


@pytest.mark.parametrize("index", range(6))
def test_documented_examples_build(index: int) -> None:
    """Each description on the page makes a card or SAM that answers SELECT."""
    assert len(examples()) == 6
    desk = Desk(image.parse(examples()[index], zeros))
    desk("00A40000023F00", 0x6A81 if "blank" in examples()[index] else 0x9000)


def test_application_of_the_profile() -> None:
    """Identity, public information, DIR, diversified keys and balances are as described."""
    desk = oc1(wash_date=date(2025, 2, 3), application=[application(label="食堂", key_set=2, algorithm="sm4")])
    desk.select()
    desk.authenticate(1, card_key("terminal", 4))
    public = PublicInfo.decode(desk("00B0950000"))
    assert (public.card_serial, public.key_set, public.issuer[-2:]) == (SERIAL, 2, b"\x03\xe9")
    assert desk.balance(2) == 10_000
    desk("0020000003" + PIN)
    record = desk.card.df.key(0x3E, 2)
    assert record is not None
    assert record.header.value.hex() == "3ef1f00204"
    assert record.key(4).kcv == card_key("purchase", 4).kcv
    desk("00A4000000")
    identity = CardIdentity.decode(desk("00B0850000"))
    assert (identity.serial, identity.wash_version, identity.wash_date) == (SERIAL, 1, date(2025, 2, 3))
    assert "食堂".encode() in desk("00B2010C00")
    assert check_serial(SERIAL) == 2


def without(name: str, table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"kind": "phone"}, "kind is 'phone'"),
    ({"serial": "0102"}, "serial has 2 bytes, not 8"),
    ({"serial": "0201000000000700"}, "check the digits"),
    ({"serial": "xyz"}, "serial is not hexadecimal"),
    ({"profile": "oc9"}, "no card profile oc9"),
    ({"colour": "red"}, "colour is not known here"),
    ({"memory_bytes": -1}, "memory_bytes is not a number"),
    ({"memory_bytes": True}, "memory_bytes is not a number"),
    ({"memory_bytes": 1000}, "3F00 is too small"),
    ({"log_seq_rule": "never"}, "use after or before"),
    ({"algorithm": "aes"}, "algorithm is 'aes', use one of 3des, des, sm4"),
    ({"wash_date": "today"}, "wash_date is not a date"),
    ({"keys": {"39-00": "11" * 16}}, "39-00 is not a key"),
    ({"keys": {"39/00": "1122"}}, "value has 2 bytes, not 8 or 16"),
    ({"keys": {"39/05": "11" * 16}}, "keys.39/05: header is missing"),
    ({"keys": {"39/00": {"value": "11" * 16, "header": "F0F00835"}}}, "refuse"),
    ({"keys": {"39/00": {}}}, "value is missing"),
    ({"keys": []}, "a table is expected"),
    ({"application": {}}, "application is not a list of tables"),
    ({"application": [{}]}, "enterprise_id is missing"),
    ({"application": [application(slot=9)]}, "slot is not a number from 0 to 8"),
    ({"application": [application(), application(slot=1)]}, "3F01 is there twice"),
    ({"application": [application(blocked="maybe")]}, "blocked is 'maybe'"),
    ({"application": [application(masters={"slot": "11" * 16, "beer": "11" * 16})]}, "beer is no key purpose"),
    ({"application": [application(masters={"pin": "11" * 16})]}, "pin is no diversified key"),
    ({"application": [application(files={"0099": ""})]}, "0099 is no file"),
    ({"application": [application(files={"0015": "00" * 31})]}, "0015 has 31 bytes, the file has 30"),
    ({"application": [application(files={"0017": "00"})]}, "0017 is not a list of records"),
    ({"application": [application(files={"0017": ["0102"]})]}, "file 0017: the card would refuse"),
    ({"application": [application(files={"0017": ["013E" + "00" * 62] * 2})]}, "more records"),
    ({"application": [application(files={"0002": {"balance_fen": 1 << 32}})]}, "balance_fen is not a number"),
    ({"application": [application(files={"0002": {"money": 1}})]}, "0002: money is not known"),
    ({"application": [application(label=5)]}, "label is not a text"),
    ({"application": [application(key_file="3F002095F0FFFF")]}, "3F01 is too small"),
    ({"application": [application(key_file="280000")]}, "key_file is not 3F"),
    ({"file": [{"fid": "0009", "create": "2800"}]}, "file 0009: the card would refuse"),
    ({"file": [{"fid": "0005", "create": "280010F0F0FFFF"}]}, "0005 is there twice"),
    ({"directory": [{"fid": "1001", "create": "38"}]}, "the card would refuse"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[m[:24] for _, m in BROKEN])
def test_what_is_wrong_is_said(change: dict[str, Any], message: str) -> None:
    """ConfigError names the table, the entry and what it should be."""
    with pytest.raises(ConfigError, match=message.replace("?", ".")):
        image.build(description(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serial": None}, "serial is missing"),
        ({"terminal": "01"}, "terminal has 1 bytes, not 6"),
        ({"control_key": None}, "control_key is missing"),
        ({"counter": -1}, "counter is not a number"),
        ({"sam_key": [{"purpose": "slot", "value": "11" * 16}]}, "purpose is 'slot', use one of"),
        ({"sam_key": [{"usage": "2D", "value": "11" * 16}]}, "refuse"),
        ({"sam_key": [{"usage": "27", "value": "11" * 8, "algorithm": "sm4"}]}, "refuse"),
    ],
)
def test_wrong_sam_descriptions(change: dict[str, Any], message: str) -> None:
    """The same for SAMs."""
    whole = {key: value for key, value in (sam_description() | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        image.build(whole)


def test_applications_need_a_serial_and_text_must_be_toml() -> None:
    """No serial to diversify by, no TOML: ConfigError."""
    with pytest.raises(ConfigError, match="serial is missing"):
        image.build(without("serial", description()))
    with pytest.raises(ConfigError, match="image description"):
        image.parse("kind = ")


def test_blank_and_vendor_fresh() -> None:
    """A description can make a card without MF, or one as the vendor delivers it, which needs a card's key."""
    assert image.build({"blank": True}).snapshot() == Card.blank().snapshot()
    for kind, cls in (("card", Card), ("sam", SamCard)):
        made = image.build({"kind": kind, "transport_key": TRANSPORT_KEY.hex()})
        assert made.snapshot() == cls.vendor_fresh(TRANSPORT_KEY).snapshot()
    with pytest.raises(ConfigError, match="5 bytes"):
        image.build({"transport_key": "11" * 5})
    with pytest.raises(ConfigError, match="8 bytes"):
        image.build({"transport_key": "11" * 8, "algorithm": "sm4"})


def test_card_file_follows_each_transaction(tmp_path: Path) -> None:
    """A kept card's file holds what was committed, is private, and no half-written file stays."""
    path = tmp_path / "card.img"
    desk = at_home()
    image.keep(desk.card, path)
    desk.debit(1, 2, 300, card_key("purchase"))
    again = Desk(image.load(path, zeros))
    again.select()
    assert again.balance(2) == 9_700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["card.img"]


def test_card_file_follows_what_power_on_completes(tmp_path: Path) -> None:
    """A transaction cut behind its mark reaches the file when the card is powered again."""
    path = tmp_path / "card.img"
    desk = at_home()
    image.keep(desk.card, path)
    command = desk.debit_command(1, 2, 300, card_key("purchase"))
    desk.card.power.cut_at(12)
    with pytest.raises(CardRemoved):
        desk.card.transceive(command)
    desk.card.reset()
    again = Desk(image.load(path, zeros))
    again.select()
    assert again.balance(2) == 9_700


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses, the file keeps its last good content and nothing lies beside it."""
    path = tmp_path / "card.img"
    desk = at_home()
    image.save(desk.card, path)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        image.save(desk.card, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["card.img"]


def test_images_of_other_kinds(tmp_path: Path) -> None:
    """Card and SAM images know what they are; other versions, unknown kinds and missing files are refused."""
    card, sam = oc1().card.snapshot(), sam_desk(pin="2468").card.snapshot()
    assert isinstance(image.restore(sam), SamCard)
    assert image.restore(sam).snapshot() == sam
    with pytest.raises(FormatError, match="holds a sam"):
        Card.restore(sam)
    with pytest.raises(FormatError, match="version 9"):
        image.restore(card[:4] + b"\x09" + card[5:])
    with pytest.raises(FormatError, match="'toaster'"):
        image.restore(snapshot.seal({"kind": "toaster"}))
    with pytest.raises(FormatError, match="not a map"):
        image.restore(snapshot.seal([]))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="not an image"):
        image.restore(b"")
    with pytest.raises(ConfigError, match="No such file"):
        image.load(tmp_path / "none.img")


def test_everything_persistent_is_in_the_image() -> None:
    """Blocks, failures, proofs, counters, overdraft, refunds and quirks come back."""
    desk = at_home(log_seq_rule="before")
    desk.debit(1, 2, 300, card_key("purchase"))
    desk("00200000029999", 0x63C2)
    desk.card.df.unblock_failures.value = 2
    purse = desk.card.df.files.value[1]
    assert isinstance(purse, PurseFile)
    purse.state.value = PurseState(7, 3, 5, 6)
    again = Card.restore(desk.card.snapshot())
    assert again.snapshot() == desk.card.snapshot()
    assert again.quirks == Quirks("before")
    other = Desk(again)
    other.select()
    assert other("805A000602000108") == desk("805A000602000108")
    assert again.df.unblock_failures.value == 2


def test_masters_are_diversified() -> None:
    """A card's key from a master equals the one a host derives (card.md §1.4), 3DES and SM4."""
    for name, algorithm in (("3des", 0), ("sm4", 4)):
        desk = oc1(application=[application(algorithm=name)])
        desk.select()
        key = make_key(MASTERS["terminal"], algorithm).diversify(SERIAL)
        desk.authenticate(1, key)
