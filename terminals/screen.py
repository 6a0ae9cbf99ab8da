"""What people see: notices as data, shown on a console or kept in memory (terminals.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Protocol, TextIO

from cardlib.money import yuan
from terminals.reasons import Reason


@unique
class Say(Enum):
    """The few things a terminal says, in Chinese and in English."""

    PRESENT = ("请刷卡", "present the card")
    PRESENT_AGAIN = ("请重新刷卡", "present the same card again")
    PAID = ("消费成功", "paid")
    UNDONE = ("撤销成功", "undone")
    LOADED = ("充值成功", "loaded")
    PASS = ("请通行", "pass")
    PRESENT_SECOND = ("请第二人刷卡", "a second card, please")
    FREE = ("通道常开", "walk through")
    EMERGENCY = ("紧急开放", "emergency: all doors are open")
    PUNCHED = ("打卡成功", "punched")
    NOT_PROVISIONED = ("尚未开通", "not provisioned")
    TEST = ("测试画面", "test picture")
    REFUSED = ("拒绝", "refused")
    PARTLY = ("部分支付", "partly paid")
    IN_DOUBT = ("交易待核", "outcome unknown: settlement will tell")

    def __init__(self, zh: str, en: str) -> None:
        self.zh = zh
        self.en = en


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing shown: an amount and the balance left (fen) where there are any, a reason for a refusal."""

    say: Say
    amount_fen: int | None = None
    balance_fen: int | None = None
    reason: Reason | None = None

    def text(self, language: str = "zh") -> str:
        """The line for people."""
        chinese = language == "zh"
        words = self.say.zh if chinese else self.say.en
        if self.reason is not None:
            words += f": {self.reason.zh if chinese else self.reason.en} ({self.reason.code})"
        if self.amount_fen is not None:
            words += f" {yuan(self.amount_fen)}"
        if self.balance_fen is not None:
            words += f", {'余额' if chinese else 'balance'} {yuan(self.balance_fen)}"
        return words


class Screen(Protocol):
    """Where notices go."""

    def show(self, notice: Notice) -> None:
        """Replace what is shown."""


class ConsoleScreen:
    """A screen that is a line of text."""

    def __init__(self, stream: TextIO, language: str = "zh") -> None:
        self._stream = stream
        self._language = language
        self.place = ""
        """Where it is said, before what is said."""

    def show(self, notice: Notice) -> None:
        """See :class:`Screen`."""
        self._stream.write(self.place + notice.text(self._language) + "\n")
        self._stream.flush()


class MemoryScreen:
    """A screen that remembers all it showed, for tests and rigs."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def show(self, notice: Notice) -> None:
        """See :class:`Screen`."""
        self.notices.append(notice)
