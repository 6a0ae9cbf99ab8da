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
from cardlib.wire.sms import pack
from console import Session
from simulator import image
from simulator.files import BLOCKED, Df
from simulator.phone import PROFILE, Phone
from simulator.sim import Sim
from simulator.uicc.memory import OtaKeySet
from simulator.uicc.toolkit import Answer, Command, Dialogue, alpha, coded, decode_text, once, parse, refresh, send
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
    keys = "9\n2\n\n5\n2\nb\n?\n\nq\n1\n? 2\n\nb\n2\n\nq\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(keys))
    cli.run(["sim", "phone", str(file), "--language", "en"], Session())
    shown = capsys.readouterr().out
    for text in (
        "2 Balances", "Main purse 12.34", "'9' is not on the screen", "Service password", "(4-8)", "Asks to delete",
        "Shows the balances", "2 Messages", "No messages",
    ):  # fmt: skip
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
    assert decode_text(b"\0" + pack(b"1234567")) == "1234567"
    assert decode_text(b"\0" + pack(b"12345678")) == "12345678"
    assert decode_text(b"\0" + pack(b"1234567\r")) == "1234567"
    assert decode_text(bytes.fromhex("084F59")) == "余"
    assert decode_text(b"") == ""
    assert parse(bytes.fromhex("030100") + bytes.fromhex("830120")) == {0x83: b"\0"}


TEMPORARY = (0x20, 0x21)
FAILED = (0x10, 0x12, 0x14, 0x20, 0x21, 0x22, 0x26, 0x30, 0x31, 0x32, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x3C)


@pytest.mark.parametrize("keys", [(), ("Campus",)], ids=["list", "field"])
@pytest.mark.parametrize("result", FAILED, ids="{:02X}".format)
def test_question_that_is_not_answered(result: int, keys: tuple[str, ...]) -> None:
    """Ended, timed out, busy, impossible: the request ends, nothing is sent, and the menu works as before."""
    sim, phone = made("食堂", "Campus")
    remote = sim.phone.toolkit.remote = Remote()
    phone.open("挂失")
    for key in keys:
        phone.press(key)
    for _ in range(4 if result in TEMPORARY else 1):
        assert phone.screen is not None
        phone.respond(result)
    assert phone.screen is None
    assert not remote.requests
    assert phone.choose("卡片信息").startswith("卡号")
    assert phone.choose("挂失", "Campus", PASSWORD) == "请求已发送"


@pytest.mark.parametrize("result", range(0x10), ids="{:02X}".format)
def test_what_was_done_with_a_remark(result: int) -> None:
    """Results 00 to 0F are successes: a choice, a text read, a message sent."""
    sim, phone = made("食堂")
    sim.phone.toolkit.remote = Remote()
    phone.open("删除应用")
    phone.respond(result, Tlv(0x90, b"\x01"))
    phone.respond(result, Tlv(0x0D, coded(PASSWORD)))
    assert len(phone.outbox) == 2
    assert phone.shown == ["请求已发送"]
    phone.respond(result)
    assert phone.screen is None


def test_one_screen_back() -> None:
    """Back leads from the field to the list, from there to the menu; in a long text one page back."""
    sim, phone = made("食堂", "Campus")
    sim.phone.toolkit.remote = Remote()
    first = phone.open("挂失")
    phone.press("Campus")
    phone.back()
    assert phone.screen == first
    phone.press("食堂")
    phone.back()
    phone.back()
    assert phone.screen is None
    _, phone = made("食堂")
    phone.open("挂失")
    phone.back()
    assert phone.screen is None
    _, phone = made(*[f"食堂{n}号楼" for n in range(8)])
    first = phone.open("余额")
    assert phone.press() != first
    phone.back()
    assert phone.screen == first
    phone.back()
    assert phone.screen is None


def test_help() -> None:
    """Help is there on each entry, in both languages, and on each question, which is asked again afterwards."""
    sim, phone = made("食堂", "Campus")
    remote = sim.phone.toolkit.remote = Remote()
    assert phone.menu_has_help
    for language in ("zh", "en"):
        phone.speak(language)
        texts = set()
        for entry in phone.menu.values():
            screen = phone.open(entry, wants_help=True)
            assert screen is not None
            assert screen.text.isascii() == (language == "en")
            texts.add(screen.text)
            assert phone.press() is None
        assert len(texts) == 6
    screen = phone.open("Report loss")
    for key in ("Campus", PASSWORD):
        told = phone.help()
        assert told is not None
        assert "password" in told.text
        assert phone.press() == screen
        screen = phone.press(key)
    assert len(remote.requests) == 1
    with pytest.raises(ConfigError, match="no help"):
        phone.help()
    phone.press()
    phone.open("Report loss")
    phone.help()
    phone.leave()
    assert phone.screen is None
    asked = phone.open("Report loss")
    phone.help()
    phone.back()
    assert phone.screen == asked


@pytest.mark.parametrize(
    "answer",
    [
        "", "00" * 12, "810302210082028281830100", "810301230082028281830100", "8102012182028281830100",
        "81030121008202828183", "8103012100820282818300", "810301210082028281", "82028281830100", "FF",
    ],
)  # fmt: skip
def test_wrong_terminal_response(answer: str) -> None:
    """An answer that does not fit is refused, and the command waits for the right one."""
    sim, phone = made("食堂")
    phone.open("余额")
    desk = Desk(sim.phone)
    assert desk.raw(f"80140000{len(answer) // 2:02X}{answer}")[:2] in ("6A", "67")
    assert desk.raw("80F2000C") == "9000"
    phone.press()
    assert phone.choose("余额").startswith("食堂")


@pytest.mark.parametrize("digits", ["", "123", "123456789", "12a45", "１２３４", "12345\n"])
def test_wrong_digits_go_nowhere(digits: str) -> None:
    """A phone that lets other things pass than 4 to 8 digits has nothing sent."""
    sim, phone = made("食堂")
    remote = sim.phone.toolkit.remote = Remote()
    phone.open("挂失")
    phone.respond(0, Tlv(0x8D, coded(digits)))
    assert phone.screen is None
    assert not remote.requests


def test_one_envelope_at_a_time() -> None:
    """One is outstanding from its ENVELOPE on, also while it waits behind the menu; nothing piles up."""
    sim, _ = made("食堂")
    sim.phone.reset()
    phone = Phone(sim.phone)
    sim.phone.toolkit.remote = Remote()
    desk = Desk(sim.phone)
    assert desk.raw("8010000009" + PROFILE.hex())[:2] == "91"
    selection = "80C20000" + "09D30782020181900102"
    assert desk.raw(selection)[:2] == "91"
    assert desk.raw(selection) == "9300"
    assert desk.raw("80C20000" + "0BD109820283818B03400100") == "9300"
    phone._command(bytes.fromhex("80F2000C"))
    assert phone.menu
    assert phone.screen is not None
    assert phone.screen.text.startswith("食堂")
    phone.press()
    assert desk.raw("80C20000" + "0BD109820283818B03400100") == "9000"


def test_phone_that_can_do_little() -> None:
    """What the phone did not say it can is not asked of it: the dialogue ends as if it had refused."""
    sim, _ = made("食堂")
    remote = sim.phone.toolkit.remote = Remote()
    for byte, bit, entry in ((2, 0, "余额"), (2, 2, "挂失"), (3, 0, "删除应用")):
        profile = bytearray(PROFILE)
        profile[byte] &= ~(1 << bit)
        phone = Phone(sim.phone, profile=bytes(profile))
        phone.power_on()
        assert phone.open(entry) is None
        assert not remote.requests


def test_commands_that_a_phone_can_not_do() -> None:
    """Our phone says what is wrong: type unknown, values missing, no signal, message refused."""
    sim, phone = made()
    heard: list[Answer] = []

    def dialogue(*commands: Command) -> Dialogue:
        for command in commands:
            heard.append((yield command))  # noqa: PERF401  # a generator expression can not yield

    phone.signal = 0
    empty = [Command(kind, 0, 0x82, b"") for kind in (0x40, 0x21, 0x23, 0x24, 0x13, 0x25)]
    sim.phone.toolkit.start(dialogue(*empty, send(b"\x01\x02")))
    phone._command(bytes.fromhex("80F2000C"))
    assert [answer.result for answer in heard] == [0x31, 0x36, 0x36, 0x36, 0x36, 0x36, 0x35]
    assert not phone.outbox


def test_long_line_is_split() -> None:
    """A name longer than a screen is shown in pieces that fit one FETCH."""
    _, phone = made("食" * 42)
    assert phone.choose("应用列表").count("食") == 42
    assert "".join(phone.choose("余额").split("\n")).count("食") == 42
