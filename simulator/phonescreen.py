"""The simulated phone on a terminal's screen, by Textual: it shows what ``simulator.handset.Handset`` shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from cardlib.errors import OneCardError
from simulator.handset import Handset
from simulator.phone import Screen

LOOK_S = 0.25
"""How often it is looked whether something has come from the network."""


class PhoneScreen(App[None]):
    """``tick`` is called four times a second, for whatever brings messages to the phone in this process.

    ``failure`` is what ended it: an error must not be shown here, since Textual shows variables with it.
    """

    CSS = """
    Screen { align: center middle; }
    #phone { width: 36; max-width: 100%; height: 18; max-height: 100%; border: round $primary; padding: 0 1; }
    #status { height: 1; color: $text-muted; }
    #text { height: 1fr; }
    #text.-title { height: auto; max-height: 3; text-style: bold; }
    #items { height: 1fr; border: none; padding: 0; background: transparent; }
    Input { border: none; height: 1; padding: 0 1; background: $boost; }
    #remark { height: auto; color: $warning; }
    #keys { height: 1; }
    #keys Button { width: 1fr; min-width: 8; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "ok"), Binding("escape", "go_back"), Binding("f1,question_mark", "help"),
        Binding("end", "leave", priority=True), Binding("q", "leave"),
    ]  # fmt: skip

    def __init__(self, handset: Handset, tick: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.handset, self.tick = handset, tick
        self.failure: Exception | None = None
        self.shown: Screen | None = None
        self.bars: dict[str, int | None] = {}
        self.status, self.words, self.remark = (Static(id=one, markup=False) for one in ("status", "words", "remark"))
        self.text, self.choice, self.field = VerticalScroll(id="text"), OptionList(id="items", markup=False), Input()
        self.keys = [Button(id=action, compact=True) for action in ("ok", "help", "go_back")]

    def compose(self) -> ComposeResult:
        """A phone: status line, text, list or field, soft keys."""
        with Vertical(id="phone"):
            yield self.status
            with self.text:
                yield self.words
            yield self.choice
            yield self.field
            yield self.remark
            with Horizontal(id="keys"):
                yield from self.keys

    def on_mount(self) -> None:
        """Begin."""
        for key in self.keys:
            key.can_focus = False
        self.do(lambda: None)
        self.set_interval(LOOK_S, lambda: self.do(self.tick, tidy=False))

    # Showing ----------------------------------------------------------------------------------------------------

    def do(self, act: Callable[[], None], *, tidy: bool = True) -> None:
        """Do something with the phone, and show what it shows then."""
        try:
            act()
            if tidy:
                self.say("")
            self.refresh_phone()
        except OneCardError as e:
            self.say(str(e))
        except Exception as e:  # noqa: BLE001  # kept for the caller: Textual would print what was typed with it
            self.failure = e
            self.exit()

    def say(self, remark: str) -> None:
        """A line above the soft keys, when there is something to say."""
        self.remark.update(remark)
        self.remark.display = bool(remark)

    def refresh_phone(self) -> None:
        """Show what the phone shows; a screen that stands there already keeps what was typed into it."""
        handset, choice, field = self.handset, self.choice, self.field
        screen = handset.screen
        self.status.update(handset.status)
        if screen is self.shown or (screen.kind == 0 and screen == self.shown):
            return
        if self.shown is not None and self.shown.items:
            self.bars[self.shown.text] = choice.highlighted
        self.shown = screen
        low, high = screen.lengths
        self.words.update(screen.text)
        self.text.set_class(bool(screen.items), "-title")
        self.text.display, choice.display, field.display = bool(screen.text), bool(screen.items), high > 0
        choice.clear_options()
        choice.add_options([Option(f"{number} {name}", id=str(number)) for number, name in screen.items.items()])
        choice.highlighted = self.bars.get(screen.text, 0) if screen.items else None
        field.value, field.password, field.max_length = "", screen.hidden, high
        field.restrict = "[0-9*#+]*" if screen.digits else None
        ok, more, back = self.keys
        ok.label = handset.say("ok")
        more.label = handset.say("help") if screen.has_help else ""
        back.label = handset.say("off" if handset.is_home else "back")
        if high:
            self.say(f"{low}-{high} {handset.say('lengths')}")
        (field if high else choice if screen.items else self.text).focus()

    # Keys -------------------------------------------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        """A digit chooses from a list."""
        screen = self.handset.screen
        if event.character and event.character.isdecimal() and int(event.character) in screen.items:
            event.stop()
            number = int(event.character)
            self.choice.highlighted = list(screen.items).index(number)
            self.do(lambda: self.handset.press(number))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """An item was chosen by arrows or mouse."""
        number = int(event.option.id or 0)
        self.do(lambda: self.handset.press(number))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Something was typed."""
        self.do(lambda: self.handset.press(event.value))

    async def on_button_pressed(self, event: Button.Pressed) -> None:
        """A soft key."""
        await self.run_action(event.button.id or "")

    async def action_ok(self) -> None:
        """The left soft key, and Enter on a text."""
        screen = self.handset.screen
        if screen.items:
            self.choice.action_select()
        elif screen.lengths[1]:
            await self.field.action_submit()
        else:
            self.do(self.handset.press)

    def action_help(self) -> None:
        """Help on the question, or on the entry that the bar is on."""
        at = self.choice.highlighted
        number = None if at is None else list(self.handset.screen.items)[at]
        self.do(lambda: self.handset.help(number))

    def action_go_back(self) -> None:
        """One screen back; on the first one the phone is put away."""
        if self.handset.is_home:
            self.exit()
        else:
            self.do(self.handset.back)

    def action_leave(self) -> None:
        """The red key: to the first screen; there the phone is put away."""
        if self.handset.is_home:
            self.exit()
        else:
            self.do(self.handset.leave)


def run(handset: Handset, tick: Callable[[], None] = lambda: None) -> None:
    """Hold the phone until the person puts it away. Raises what went wrong."""
    app = PhoneScreen(handset, tick)
    app.run()
    if app.failure is not None:
        raise app.failure
