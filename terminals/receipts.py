"""What a till prints: receipts and shift reports, as text and as ESC/POS bytes (terminals.md, POS)."""

from __future__ import annotations

from dataclasses import dataclass

from cardlib.errors import NotFound
from cardlib.money import yuan
from cardlib.profile import Purse
from terminals.journal import JobState
from terminals.policy import Operation, local_time
from terminals.runtime import UNDOING, Receipt, Terminal

COLUMNS = 32
"""Narrow paper (58 mm) in the printer's font A; a Chinese character is two columns wide."""
INITIALISE, CHINESE_MODE = b"\x1b@", b"\x1c&"
CENTRE, LEFT = b"\x1ba\x01", b"\x1ba\x00"
LARGE, NORMAL = b"\x1d!\x11", b"\x1d!\x00"
FEED_AND_CUT = b"\x1dVB\x18"

_WORDS = {
    "pay": ("消费凭证", "PAYMENT"),
    "undo": ("撤销凭证", "REFUND"),
    "load": ("充值凭证", "RECHARGE"),
    "x": ("交班前报表 X", "X REPORT"),
    "z": ("交班报表 Z", "Z REPORT"),
    "reprint": ("** 重印 **", "** REPRINT **"),
    "undone": ("** 已撤销 **", "** UNDONE **"),
    "partial": ("** 部分支付 **", "** PARTLY PAID **"),
    "terminal": ("终端", "Terminal"),
    "shift": ("班次", "Shift"),
    "time": ("时间", "Time"),
    "card": ("卡号", "Card"),
    "number": ("流水号", "Number"),
    "total": ("合计", "Total"),
    "net": ("净额", "Net"),
    "waiting": ("待核笔数", "Outcome open"),
    "proof": ("TAC", "TAC"),
    "balance": ("余额", "balance"),
    Purse.SUBSIDY: ("补助钱包", "Subsidy purse"),
    Purse.MAIN: ("主钱包", "Main purse"),
    Operation.PAY: ("消费", "Paid"),
    Operation.UNDO_OFFLINE: ("脱机撤销", "Undone"),
    Operation.UNDO_ONLINE: ("联机撤销", "Undone online"),
    Operation.LOAD: ("充值", "Loaded"),
}


@dataclass(frozen=True, slots=True)
class Paper:
    """A printed slip: its head, and rows with a left and a right side."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]

    def text(self, columns: int = COLUMNS) -> str:
        """The slip as lines of text."""
        heads = [" " * max(0, (columns - _width(line)) // 2) + line for line in map(_plain, self.head)]
        return "\n".join([*heads, *self._lines(columns)]) + "\n"

    def escpos(self, columns: int = COLUMNS) -> bytes:
        """The slip for a printer: GB18030 in its Chinese mode (FS &), cut at the end."""
        out = [INITIALISE, CHINESE_MODE, CENTRE, LARGE, *(_encoded(line) for line in self.head[:1]), NORMAL]
        out += [*(_encoded(line) for line in self.head[1:]), LEFT, *(_encoded(line) for line in self._lines(columns))]
        return b"".join([*out, FEED_AND_CUT])

    def _lines(self, columns: int) -> list[str]:
        lines: list[str] = []
        for left, right in (map(_plain, row) for row in self.rows):
            gap = columns - _width(left) - _width(right)
            if gap > 0 or not right:
                lines.append(left + " " * max(0, gap if right else 0) + right)
            else:  # the right side has a line of its own
                lines += [left, " " * max(0, columns - _width(right)) + right]
        return lines


def _plain(text: str) -> str:
    """Text without anything that a printer obeys: a sale's number comes from a cash register."""
    return "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "?" for c in text)


def _width(text: str) -> int:
    return sum(min(2, len(c.encode("gb18030"))) for c in text)


def _encoded(line: str) -> bytes:
    return _plain(line).encode("gb18030") + b"\n"


class _Words:
    """The words of one language."""

    def __init__(self, language: str) -> None:
        self._index = 0 if language == "zh" else 1

    def __getitem__(self, key: str | Purse | Operation) -> str:
        return _WORDS[key][self._index]


def _where(terminal: Terminal, words: _Words, shift: int, utc_ms: int) -> list[tuple[str, str]]:
    at = local_time(utc_ms, terminal.rules.utc_offset_min)
    return [
        (words["terminal"], terminal.journal.terminal.hex().upper()),
        (words["shift"], str(shift)),
        (words["time"], f"{at:%Y-%m-%d %H:%M:%S}"),
    ]


def receipt_paper(terminal: Terminal, receipt: Receipt, *marks: str, language: str = "zh") -> Paper:
    """The slip of one payment, undo or load: what each purse gave or got, what it holds, and the card's proofs.

    ``marks`` are said below the head: "reprint", "undone".
    """
    words, job = _Words(language), receipt.job
    kind = "undo" if job.operation in UNDOING else job.operation.value
    noted = [*marks, *(["partial"] if job.state is JobState.PARTIAL else [])]
    rows = _where(terminal, words, job.shift, job.utc_ms)
    rows += [(words["card"], job.card_serial.hex().upper()), (words["number"], job.sale or str(job.id))]
    for move in receipt.moves:
        rows.append((words[move.purse], yuan(move.amount_fen)))
        rows.append((f"  {words['balance']}", yuan(move.balance_after_fen)))
        rows.append((f"  {words['proof']}", move.tac.hex().upper() or "-"))
    rows.append((words["total"], yuan(receipt.amount_fen)))
    return Paper((*_merchant(terminal), words[kind], *(words[mark] for mark in noted)), tuple(rows))


def last_receipt(terminal: Terminal, language: str = "zh") -> Paper:
    """The last payment's slip once more, marked as such. Raises NotFound when this terminal has sold nothing."""
    found = terminal.journal.last_payment()
    if found is None:
        raise NotFound("no receipt can be printed again: this terminal has sold nothing yet")
    paid, last = found
    marks = ["reprint", *(["undone"] if last.undone else [])]
    return receipt_paper(terminal, terminal.receipt(paid), *marks, language=language)


def x_report(terminal: Terminal, language: str = "zh") -> Paper:
    """The open shift so far; it stays open. Raises Refused ``shift_closed``."""
    terminal.totals()  # says that no shift is open
    return shift_report(terminal, "x", terminal.journal.shift or 0, language)


def z_report(terminal: Terminal, language: str = "zh") -> Paper:
    """Close the shift and report it; :func:`shift_report` prints it again. Raises Refused ``shift_closed``."""
    shift = terminal.journal.shift or 0
    terminal.close_shift()
    return shift_report(terminal, "z", shift, language)


def shift_report(terminal: Terminal, kind: str, shift: int, language: str = "zh") -> Paper:
    """What is certain in a shift, per operation and purse; ``kind`` x or z, the time is that of printing."""
    words, net_fen = _Words(language), 0
    rows = _where(terminal, words, shift, terminal.now_ms())
    for operation, purse, count, fen in terminal.journal.moved(shift):
        rows.append((f"{words[operation]} {words[purse]} x{count}", yuan(fen)))
        net_fen += -fen if operation in UNDOING else fen
    waiting = sum(job.shift == shift for job in terminal.journal.open_jobs())
    rows += [(words["net"], yuan(net_fen)), (words["waiting"], str(waiting))]
    return Paper((*_merchant(terminal), words[kind]), tuple(rows))


def _merchant(terminal: Terminal) -> tuple[str, ...]:
    return (terminal.config.merchant,) if terminal.config.merchant else ()
