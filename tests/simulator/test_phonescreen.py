"""The phone on a terminal's screen, held by a pilot; and the same phone's places without a screen."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

import cli
from cardlib.errors import ConfigError, StatusError
from console import Session
from simulator import image
from simulator.handset import Handset, Place
from simulator.phone import Phone
from simulator.phonescreen import PhoneScreen, run
from tests.secretwatch import register
from tests.simulator.test_toolkit import Remote, made

ROOT = Path(__file__).parents[2]
SIZE = (30, 11)
PASSWORD = "70418264"
register(PASSWORD)


def words(app: PhoneScreen) -> str:
    """What a person sees."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


class Hand:
    """Presses keys and looks."""

    def __init__(self, app: PhoneScreen, pilot: Pilot[None]) -> None:
        self.app, self.pilot, self.phone = app, pilot, app.handset.phone

    async def press(self, *keys: str) -> str:
        await self.pilot.press(*keys)
        return await self.look()

    async def look(self) -> str:
        self.app.do(self.app.tick, tidy=False)  # as the clock does
        await self.pilot.pause()
        return words(self.app)


def hold(phone: Phone, act: Callable[[Hand], Awaitable[None]], size: tuple[int, int] = SIZE) -> PhoneScreen:
    """A phone on a screen of that size, without a terminal."""
    app = PhoneScreen(Handset(phone))

    async def held() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(Hand(app, pilot))

    asyncio.run(held())
    assert app.failure is None
    return app


def shown(screen: str, *texts: str) -> None:
    for text in texts:
        assert text in screen, f"{text}\n{screen}"


@pytest.mark.parametrize(
    ("language", "menu", "texts"),
    [
        ("zh", "1 一卡通", ["卡号", "主钱包 12.34", "充值 +2.58", "食堂 正常", "删除应用", "挂失"]),
        (
            "en",
            "1 One card",
            ["Card ", "Main purse 12.34", "load +2.58", "食堂 active", "Delete", "Report loss"],
        ),
    ],
)
def test_whole_menu(language: str, menu: str, texts: list[str]) -> None:
    """Every entry of the menu is chosen by its number, read, and left by Enter or Escape, in both languages."""
    sim, phone = made("食堂", "Campus")
    phone.speak(language)
    sim.phone.toolkit.remote = Remote()

    async def act(hand: Hand) -> None:
        shown(await hand.look(), menu, "▂▄▆█ ONECARD")
        top = await hand.press("1")
        shown(top, *(f"{number} {name}" for number, name in phone.menu.items() if len(name) < 16))
        for number, text in enumerate(texts, 1):
            shown(await hand.press(str(number)), text)
            while phone.screen is not None:
                await hand.press("escape" if phone.screen.items else "enter")
        assert (await hand.press("end")).count(menu) == 1

    hold(phone, act)


def test_delete_with_password() -> None:
    """Arrows and Enter choose, digits are hidden, letters are not taken, a short password is refused by the phone."""
    sim, phone = made("食堂", "Campus")
    remote = sim.phone.toolkit.remote = Remote()

    async def act(hand: Hand) -> None:
        await hand.press("1", "5", "down")
        shown(await hand.press("f1"), "请求删除应用")
        await hand.press("enter")
        assert hand.app.choice.highlighted == 1, "the bar stays on Campus"
        shown(await hand.press("enter"), "服务密码", "4-8 位")
        shown(await hand.press("x", *PASSWORD[:3], "enter"), "takes 4 to 8", "•••")
        screen = await hand.press(*PASSWORD[3:])
        shown(screen, "•" * 8)
        assert PASSWORD[:3] not in screen
        screen = await hand.press("enter")
        shown(screen, "请求已发送")
        assert hand.app.field.value == ""
        shown(await hand.press("enter"), "5 删除应用")

    hold(phone, act)
    assert [body[-4:].hex() for _, body in remote.requests] == [PASSWORD]
    assert len(phone.outbox) == 2


def test_report_loss_and_back() -> None:
    """Escape leads from the field to the list and on; End leaves at once; nothing is sent until it is confirmed."""
    sim, phone = made("食堂", "Campus")
    remote = sim.phone.toolkit.remote = Remote()

    async def act(hand: Hand) -> None:
        await hand.press("1", "6", "2", "1")
        shown(await hand.press("escape"), "1 食堂", "2 Campus")
        shown(await hand.press("escape"), "6 挂失")
        await hand.press("6", "2", "1", "2")
        shown(await hand.press("end"), "1 一卡通")
        assert not remote.requests
        await hand.press("1", "6", "1", *PASSWORD[:5])
        phone.signal = 0
        shown(await hand.press("enter"), "发送失败", "无服务")

    hold(phone, act)
    assert [slot for slot, _ in remote.requests] == [1]


def test_messages() -> None:
    """A text that comes while something is typed waits, unread, in the status line; nothing in it is markup."""
    sim, phone = made("食堂")
    sim.phone.toolkit.remote = Remote()

    async def act(hand: Hand) -> None:
        await hand.press("1", "6", "1", "2")
        phone.receive("食堂 消费 12.50，余额 88.00")
        phone.receive("[b]Second[/b]\nline")
        shown(await hand.look(), "新信息 2", "服务密码", "••")
        with pytest.raises(StatusError) as busy:
            phone.deliver(b"\x40\x01")
        assert busy.value.sw == 0x9300
        await hand.press("end")
        shown(await hand.press("2"), "1 * [b]Second[/b] li", "2 * 食堂 消费 12.50")
        shown(await hand.press("2"), "余额", "88.00", "新信息 1")
        shown(await hand.press("enter"), "1 * [b]", "2   食堂")
        shown(await hand.press("up", "enter"), "[b]Second[/b]", "line")
        assert "新信息" not in await hand.press("escape")
        assert not phone.unread
        phone.deliver(b"\x40\x01")

    hold(phone, act)


def test_small_and_resized() -> None:
    """40 x 12 shows the whole menu with its soft keys; a change of size loses neither screen nor what was typed."""
    sim, phone = made("食堂")
    sim.phone.toolkit.remote = Remote()

    async def act(hand: Hand) -> None:
        await hand.press("1")
        await hand.pilot.resize_terminal(40, 12)
        shown(await hand.look(), "1 卡片信息", "6 挂失", "确定", "返回")
        await hand.press("6", "1", "2", "3")
        await hand.pilot.resize_terminal(100, 30)
        shown(await hand.look(), "服务密码", "•••", "4-8")
        lines = (await hand.look()).split("\n")
        assert len(lines) == 30
        await hand.pilot.resize_terminal(20, 8)
        await hand.look()

    hold(phone, act, (80, 24))


def test_keys_under_the_finger() -> None:
    """Soft keys work by mouse; at home the right one puts the phone away."""
    _, phone = made("食堂")

    async def act(hand: Hand) -> None:
        for key, text in (
            ("#ok", "1 卡片信息"), ("#ok", "卡号"), ("#ok", "2 余额"), ("#help", "显示卡号"), ("#go_back", "2 余额"),
            ("#go_back", "2 信息"),
        ):  # fmt: skip
            await hand.pilot.click(key)
            shown(await hand.look(), text)
        await hand.pilot.click("#go_back")
        await hand.pilot.pause()
        assert hand.app._exit

    hold(phone, act)


def test_what_goes_wrong_is_raised_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug ends the screen and is raised to the caller: Textual would print variables, and so what was typed."""
    _, phone = made("食堂")
    handset = Handset(phone)

    def broken() -> None:
        raise KeyError("x")

    monkeypatch.setattr(PhoneScreen, "run", lambda app: asyncio.run(_shortly(app)))
    with pytest.raises(KeyError):
        run(handset, broken)


async def _shortly(app: PhoneScreen) -> None:
    async with app.run_test(size=SIZE) as pilot:
        app.do(app.tick)
        await pilot.pause()


def test_places_of_a_phone() -> None:
    """Home, menu, messages: what is not on the screen is refused; a SIM without a menu has none at home."""
    sim, phone = made("食堂")
    handset = Handset(phone)
    with pytest.raises(ConfigError, match="'7' is not on the screen"):
        handset.press(7)
    with pytest.raises(ConfigError, match="no help"):
        handset.help()
    handset.press(2)
    assert handset.screen.text == "没有信息"
    handset.press()
    assert handset.place is Place.HOME
    handset.press(1)
    handset.help(2)
    assert "余额" in handset.screen.text
    handset.leave()
    assert handset.is_home
    sim.phone.toolkit.menu = False
    phone.power_on()
    assert handset.screen.items == {2: "信息"}
    phone.speak("en")
    assert handset.screen.items == {2: "Messages"}


def pictures() -> Iterator[str]:
    """The screens of docs/phone.md, three in a row."""
    for language in ("zh", "en"):
        sim, phone = made("食堂", "Campus")
        sim.phone.toolkit.remote = Remote()
        phone.speak(language)
        taken: list[str] = []

        async def act(hand: Hand, taken: list[str] = taken) -> None:
            hand.phone.receive("食堂 消费 12.50，余额 88.00")
            for keys in (("end",), ("1",), ("2",), ("enter", "3"), ("enter", "5", "down"), ("enter", *PASSWORD)):
                taken.append(await hand.press(*keys) if not hand.app.handset.is_home or taken else await hand.look())

        hold(phone, act)
        for at in (0, 3):
            rows = zip(*(screen.split("\n") for screen in taken[at : at + 3]), strict=True)
            yield "```text\n" + "\n".join("  ".join(row).rstrip() for row in rows) + "\n```\n"


def test_screens_in_the_page() -> None:
    """The screens of docs/phone.md are those that a person sees."""
    page = (ROOT / "docs" / "phone.md").read_text(encoding="utf-8")
    for picture in pictures():
        assert picture in page, f"docs/phone.md should have\n{picture}"


def test_at_a_terminal(tmp_path: Path) -> None:
    """`onecard sim phone` at a terminal opens the screen; keys work, the password is never shown, End twice ends it."""
    file = tmp_path / "sim.img"
    image.save(made("食堂")[0], file)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "sim", "phone", str(file)]
    surroundings = {**os.environ, "TERM": "xterm-256color", "LINES": "24", "COLUMNS": "80"}
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings) as process:
        os.close(theirs)
        seen = b""

        def until(text: str) -> None:
            nonlocal seen
            begin = len(seen)
            while text.encode() not in seen[begin:]:
                assert select.select([ours], [], [], 20)[0], seen[begin:].decode(errors="replace")
                seen += os.read(ours, 65536)

        until("一卡通")
        for keys, text in (("1", "6 挂失"), ("6", "服务密码"), (PASSWORD, "••••••••"), ("\r", "服务未开通")):
            os.write(ours, keys.encode())
            until(text)
        os.write(ours, b"\x1b[F")
        until("2 信息")
        os.write(ours, b"\x1b[F")
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # the other end was closed
            os.close(ours)
        assert process.wait(20) == 0
    assert PASSWORD.encode() not in seen
    assert PASSWORD[:4].encode() not in seen


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without the extra the command says how to get it; --lines needs none."""
    file = tmp_path / "sim.img"
    image.save(made("食堂")[0], file)

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return ""

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delitem(sys.modules, "simulator.phonescreen")
    monkeypatch.setitem(sys.modules, "textual", None)
    assert cli.run(["sim", "phone", str(file)], Session()) != 0
    assert "install onecard[phone], or --lines" in capsys.readouterr().err
    assert cli.run(["sim", "phone", str(file), "--lines"], Session()) == 0
    assert "1 卡片信息" in capsys.readouterr().out
