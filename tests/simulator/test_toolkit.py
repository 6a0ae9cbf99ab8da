"""The menu of the SIM on a simulated phone, and the rules of proactive commands (ota.md §6)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import cli
from cardlib.errors import ConfigError, StatusError
from cardlib.profile import CardKind, aid, make_serial
from cardlib.tlv import Tlv
from console import Session
from simulator import image
from simulator.files import BLOCKED, Df
from simulator.phone import PROFILE, Phone
from simulator.sim import Sim
from simulator.uicc.memory import OtaKeySet
from simulator.uicc.toolkit import alpha, coded, decode_text, once, parse, refresh, send
from tests.secretwatch import register
from tests.simulator.uicc_desk import Phone as Desk

SERIAL = make_serial(CardKind.RFID_SIM, 1, 9)
PASSWORD = "80915"
register(PASSWORD)


class Remote:
    """Stands for the card's end of secured packets: keeps what it is given."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, bytes]] = []
        self.answer = (b"", 0x9000)
        self.downloads: list[tuple[bytes, bytes]] = []

    def download(self, tpdu: bytes, centre: bytes) -> tuple[bytes, int]:
        self.downloads.append((tpdu, centre))
        return self.answer

    def reset(self) -> None:
        self.requests.clear()

    def request(self, slot: int, body: bytes) -> list[bytes]:
        self.requests.append((slot, body))
        return [b"\x01" + body[:3], b"\x02"]


def application(enterprise: int, label: str) -> dict[str, object]:
    return {
        "enterprise_id": enterprise, "label": label,
        "files": {
            "0002": {"balance_fen": 1234}, "0001": {"balance_fen": 500},
            "0018": ["0002000000000001020200000000000120261124081500"],
        },
    }  # fmt: skip


def made(*labels: str) -> tuple[Sim, Phone]:
    """A SIM with an application of each label, in a phone that is on."""
    rows = [application(1001 + n, label) for n, label in enumerate(labels)]
    sim = image.build({"kind": "sim", "serial": SERIAL.hex(), "application": rows})
    assert isinstance(sim, Sim)
    phone = Phone(sim.phone)
    phone.power_on()
    return sim, phone


def test_menu_in_both_languages() -> None:
    """The menu stands in Chinese first, in English when the phone's user reads that; requirement A5 has its entries."""
    _, phone = made()
    assert phone.title == "一卡通"
    assert list(phone.menu.values()) == ["卡片信息", "余额", "最近交易", "应用列表", "删除应用", "挂失"]
    phone.speak("en")
    assert phone.title == "One card"
    assert list(phone.menu.values()) == [
        "Card information", "Balances", "Last transactions", "Applications", "Delete an application", "Report loss",
    ]  # fmt: skip


def test_what_the_menu_tells() -> None:
    """Card number, balances, last transactions, applications and their state, as the contactless face has them."""
    sim, phone = made("食堂", "Campus")
    assert phone.choose("卡片信息") == f"卡号 {SERIAL.hex().upper()}"
    assert phone.choose("余额") == "食堂\n主钱包 12.34\n补贴钱包 5.00\nCampus\n主钱包 12.34\n补贴钱包 5.00"
    assert phone.choose("最近交易") == "食堂\n11-24 08:15 充值 +2.58\nCampus\n11-24 08:15 充值 +2.58"
    assert phone.choose("应用列表") == "食堂 正常\nCampus 正常"
    campus = sim.mf.files.value[0x3F02]
    assert isinstance(campus, Df)
    campus.blocked.value = BLOCKED
    assert phone.choose("应用列表") == "食堂 正常\nCampus 已锁定"
    _, empty = made()
    assert empty.choose("余额") == "没有应用"


def test_long_texts_are_shown_in_pages() -> None:
    """Eight applications don't fit one screen: the phone shows several, and the user may stop."""
    _, phone = made(*[f"食堂{n}号楼" for n in range(8)])
    text = phone.choose("余额")
    assert len(phone.shown) > 1
    assert text.count("主钱包") == 8
    phone.open("余额")
    phone.back()
    assert phone.screen is None
    assert phone.choose("应用列表").count("正常") == 8


def test_request_of_the_holder() -> None:
    """Delete an application and report a loss: application, hidden password as packed BCD, packets sent, told."""
    sim, phone = made("食堂", "Campus")
    remote = sim.phone.toolkit.remote = Remote()
    assert phone.choose("删除应用", "Campus", PASSWORD) == "请求已发送"
    packed = bytes.fromhex(PASSWORD + "F")
    assert remote.requests == [(2, b"\x01" + aid(1002) + b"\x03" + packed)]
    assert phone.outbox == [b"\x01\x01" + aid(1002)[:2], b"\x02"]
    phone.open("挂失")
    screen = phone.press("食堂")
    assert screen is not None
    assert screen.hidden
    assert screen.lengths == (4, 8)
    with pytest.raises(ConfigError, match="4 to 8"):
        phone.press("123")
    phone.leave()
    assert len(remote.requests) == 1
    phone.send = lambda _: False
    assert phone.choose("挂失", "食堂", PASSWORD) == "发送失败，请稍后再试"
    assert remote.requests[-1][1][:1] == b"\x02"


def test_request_is_a_secured_packet() -> None:
    """What the phone sends is addressed to the service number and secured under the slot's key set, counted upwards."""
    sim, phone = made("食堂", "Campus")
    memory = sim.phone.memory
    memory.ota.value = {**memory.ota.value, 3: OtaKeySet("aes", bytes(range(16)), bytes(range(16, 32)))}
    for _ in range(2):
        assert phone.choose("删除应用", "Campus", PASSWORD) == "请求已发送"
    first, second = phone.outbox
    assert first != second
    assert all(bytes.fromhex("027000") in one and b"\x32\x32\xbf\xff\x4f" in one for one in phone.outbox)
    assert not any(aid(1002) in one for one in phone.outbox)
    assert image.restore(sim.snapshot()).nvm.roots["phone"].value.upward.value == {3: 2}


def test_eight_long_names_fit() -> None:
    """A list of eight applications with long Chinese names fits one FETCH."""
    sim, phone = made(*[f"{n}号科技园区行政管理中心员工食堂" for n in range(8)])
    sim.phone.toolkit.remote = Remote()
    screen = phone.open("删除应用")
    assert screen is not None
    assert len(screen.items) == 8


def test_nothing_to_delete() -> None:
    """Without an application, or where nobody takes requests, the menu says so and sends nothing."""
    sim, phone = made("食堂")
    sim.phone.toolkit.remote = None
    assert phone.choose("删除应用") == "服务未开通"
    sim, phone = made()
    sim.phone.toolkit.remote = Remote()
    assert phone.choose("挂失") == "没有应用"
    _, phone = made("食堂")
    assert phone.choose("挂失", PASSWORD) == "服务未开通"
    assert not phone.outbox


def test_no_menu() -> None:
    """Nothing is asked of a phone that can't, nor when the menu is off, nor before TERMINAL PROFILE."""
    sim, _ = made()
    assert Desk(sim.phone).raw("80F2000C") == "9000"
    for profile in (b"\xff", PROFILE[:3] + b"\xdf"):
        phone = Phone(sim.phone, profile=profile)
        phone.power_on()
        assert not phone.menu
    sim.phone.toolkit.menu = False
    phone = Phone(sim.phone)
    phone.power_on()
    assert not phone.menu
    sim.phone.reset()
    assert Desk(sim.phone).raw("80F2000C") == "9000"


def test_proactive_rules() -> None:
    """91xx on every 9000 until fetched, exact FETCH, TERMINAL RESPONSE in any order, refused when it doesn't fit."""
    sim, _ = made()
    desk = Desk(sim.phone)
    sim.phone.reset()
    assert desk.raw("8012000000") == "6985"
    length = desk.raw("8010000009" + PROFILE.hex())[2:]
    assert desk.raw("80F2000C") == "91" + length
    desk.raw("00A40004022FE2")
    assert desk.raw("00C0000019")[-4:] == "91" + length
    assert desk.raw("00B000000B") == "6C0A"
    assert desk.raw("8012000001") == "6C" + length
    assert desk.raw("80140000" + "0C810301250082028281830100") == "6985"
    command = desk.raw("80120000" + length)
    assert command[:2] == "D0"
    assert desk.raw("80F2000C") == "9000"
    assert desk.raw("80140000" + "0C810301210082028281830100") == "6A80"
    assert desk.raw("80140000" + "0C810302250082028281830100") == "6A80"
    assert desk.raw("80140000" + "09" + "810301250082028281") == "6A80"
    assert desk.raw("80140000" + "0C030100" + "01030125000202" + "8281") == "9000"
    assert desk.raw("80140000" + "0C810301250082028281830100") == "6985"


def test_busy_phone() -> None:
    """A phone that is busy is offered the command again, three times."""
    sim, _ = made()
    desk = Desk(sim.phone)
    sim.phone.reset()
    answer = desk.raw("8010000009" + PROFILE.hex())
    for _ in range(3):
        desk.raw("80120000" + answer[2:])
        answer = desk.raw("80140000" + "0D81030125008202828183022001")
        assert answer[:2] == "91"
    desk.raw("80120000" + answer[2:])
    assert desk.raw("80140000" + "0D81030125008202828183022001") == "9000"


def test_envelopes() -> None:
    """Downloads go to the card's end of secured packets; one at a time; what is no ENVELOPE is refused."""
    sim, phone = made("食堂")
    desk = Desk(sim.phone)
    body = Tlv(0x82, b"\x83\x81") + Tlv(0x06, b"\x91\x21") + Tlv(0x0B, b"\x40\x01")
    data = Tlv(0xD1, body)
    command = f"80C20000{len(data):02X}{data.hex()}"
    sim.phone.toolkit.remote = None
    assert desk.raw(command) == "9000"
    remote = sim.phone.toolkit.remote = Remote()
    remote.answer = (b"\x02\x71\x00", 0x9000)
    assert desk.raw(command) == "6103"
    assert desk.raw("80C0000003") == "0271009000"
    assert desk.raw("A0" + command[2:]) == "9F03"
    assert remote.downloads == [(b"\x40\x01", b"\x91\x21")] * 2
    assert phone.deliver(b"\x40\x01") == b"\x02\x71\x00"
    remote.answer = (b"", 0x6200)
    with pytest.raises(StatusError) as refused:
        phone.deliver(b"\x40\x01")
    assert refused.value.sw == 0x6200
    assert desk.raw("A0" + command[2:]) == "9E00"
    phone.open("余额")
    assert desk.raw(command) == "9300"
    phone.press()
    assert desk.raw(command) == "6200"
    assert desk.raw("80C20000" + "09D30782020181900107") == "6A80"
    assert desk.raw("80C20000" + "06D30482020181") == "6A80"
    assert desk.raw("80C20000" + "03D60182") == "9000"
    assert desk.raw("80C20000" + "03990182") == "6A80"
    assert desk.raw("80C20000" + "03D10582") == "6A80"


def test_what_remote_commands_ask_of_the_phone() -> None:
    """A message and a refresh wait for each other and for the menu."""
    sim, phone = made()
    sim.phone.toolkit.start(once(send(b"\x01\x02", b"\x91\x21")))
    sim.phone.toolkit.start(once(refresh([bytes.fromhex("3F007F206F07")])))
    Phone._command(phone, bytes.fromhex("80F2000C"))
    assert phone.outbox == [b"\x01\x02"]
    assert phone.refreshed == [bytes.fromhex("013F007F206F07")]


def test_phone_in_a_persons_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`onecard sim phone` shows screens and takes keys: menu, a text, a list, a hidden field, back, leave."""
    file = tmp_path / "sim.img"
    sim, _ = made("食堂", "Campus")
    image.save(sim, file)
    keys = "9\n2\n\n5\n2\nb\nq\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(keys))
    cli.run(["sim", "phone", str(file), "--language", "en"], Session())
    shown = capsys.readouterr().out
    for text in ("2 Balances", "Main purse 12.34", "'9' is not on the screen", "Service password", "(4-8)"):
        assert text in shown, text
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    cli.run(["sim", "phone", str(file)], Session())
    assert "One card" in capsys.readouterr().out


def test_page_of_the_phone() -> None:
    """The example of docs/phone.md runs."""
    page = (Path(__file__).parents[2] / "docs" / "phone.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})  # it is our page


def test_text_coding() -> None:
    """Items and texts in the alphabet they fit, and texts from a phone in all three codings."""
    assert alpha("One card") == b"One card"
    assert alpha("余额").hex() == "804f59989d"
    assert coded("a") == b"\x04a"
    assert coded("@") == b"\x08\0@"
    assert decode_text(bytes.fromhex("00D4F29C0E")) == "Test"
    assert decode_text(bytes.fromhex("084F59")) == "余"
    assert decode_text(b"") == ""
    assert parse(bytes.fromhex("030100") + bytes.fromhex("830120")) == {0x83: b"\0"}
