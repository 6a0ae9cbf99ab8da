"""The menu of the one-card applet (requirement A5): what a holder sees of the card, in Chinese or English."""

from __future__ import annotations

from collections.abc import Generator
from enum import IntEnum, unique
from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.errors import FormatError, NotFound
from cardlib.money import yuan
from cardlib.profile import CardIdentity, LogRecord, TransactionType
from cardlib.tlv import find
from simulator.files import UNBLOCKED, BinaryFile, Df, PurseFile, RecordFile
from simulator.handlers import Refusal
from simulator.uicc.domain import onecard_instances
from simulator.uicc.files import EF_LANGUAGE, EF_PREFERRED
from simulator.uicc.toolkit import (
    BACK,
    ENDED,
    HELP,
    REFRESH,
    Answer,
    Command,
    Dialogue,
    ask_digits,
    choose,
    menu,
    once,
    refresh,
    send,
    show,
)

if TYPE_CHECKING:
    from simulator.uicc.face import Uicc

CHINESE, ENGLISH = b"zh", b"en"
DIRECTORY, IDENTITY, LOG, SUBSIDY, MAIN = 0x0001, 0x0005, 0x0018, 0x0001, 0x0002
FIRST_SLOT = 0x3F00
LAST = 5
PASSWORD_DIGITS = (4, 8)
DELETE, REPORT_LOSS = 1, 2
ITEM_CHARACTERS = 10
PAGE_CHARACTERS = 100
"""So that eight items, and a text in UCS2, stay below the 256 bytes of a FETCH."""


@unique
class Item(IntEnum):
    """Entries of the menu."""

    CARD = 1
    BALANCES = 2
    TRANSACTIONS = 3
    APPLICATIONS = 4
    DELETE = 5
    LOSS = 6


TEXTS: dict[str, tuple[str, str]] = {
    "title": ("一卡通", "One card"),
    "CARD": ("卡片信息", "Card information"),
    "BALANCES": ("余额", "Balances"),
    "TRANSACTIONS": ("最近交易", "Last transactions"),
    "APPLICATIONS": ("应用列表", "Applications"),
    "DELETE": ("删除应用", "Delete an application"),
    "LOSS": ("挂失", "Report loss"),
    "number": ("卡号", "Card"),
    "main": ("主钱包", "Main purse"),
    "subsidy": ("补贴钱包", "Subsidy purse"),
    "empty": ("没有应用", "No application"),
    "none": ("没有交易", "No transactions"),
    "blocked": ("已锁定", "blocked"),
    "active": ("正常", "active"),
    "load": ("充值", "load"),
    "pay": ("消费", "purchase"),
    "password": ("服务密码", "Service password"),
    "sent": ("请求已发送", "The request was sent"),
    "failed": ("发送失败，请稍后再试", "Not sent, try again later"),
    "closed": ("服务未开通", "The service is not available"),
    "help CARD": ("显示卡号", "Shows the number of your card"),
    "help BALANCES": ("显示各应用的余额", "Shows the balances of each application"),
    "help TRANSACTIONS": ("显示各应用的最近五笔交易", "Shows the last five transactions of each application"),
    "help APPLICATIONS": ("显示应用及其状态", "Shows the applications and their state"),
    "help DELETE": ("请求删除应用，需要服务密码", "Asks to delete an application. You need your service password"),
    "help LOSS": ("报告卡片丢失，需要服务密码", "Reports your card lost. You need your service password"),
}


def chinese(face: Uicc) -> bool:
    """Whether the phone's user reads Chinese: the first of zh and en in 6F05, else in 2F05 (uicc.md)."""
    tree, files = face.tree, face.memory.files
    for node in (tree.adf.children[EF_LANGUAGE], tree.mf.children[EF_PREFERRED]):
        content: bytes = files[node.index].value
        for code in (content[i : i + 2] for i in range(0, len(content), 2)):
            if code in (CHINESE, ENGLISH):
                return code == CHINESE
    return False


def say(face: Uicc, text: str) -> str:
    """A text in the user's language."""
    return TEXTS[text][0 if chinese(face) else 1]


def set_up(face: Uicc) -> Dialogue:
    """SET UP MENU."""
    face.toolkit.chinese = chinese(face)
    yield menu(say(face, "title"), {one: say(face, one.name) for one in Item})


def refreshed(face: Uicc, paths: list[bytes]) -> Dialogue:
    """Have files read again that changed under the phone; a menu that stands there follows the language."""
    if face.toolkit.supports(REFRESH):
        yield refresh(paths)
    if face.toolkit.chinese not in (None, chinese(face)):
        yield from set_up(face)


def selected(face: Uicc, number: int, *, wants_help: bool = False) -> Dialogue:
    """What happens when the user chose an entry, or help on it. Raises Refusal when there is none of that number."""
    if number not in set(Item):
        raise Refusal(SW.DATA)
    item = Item(number)
    if wants_help:
        return once(show(say(face, f"help {item.name}")))
    if item in (Item.DELETE, Item.LOSS):
        return _request(face, item)
    return _pages(face, {
        Item.CARD: _card, Item.BALANCES: _balances, Item.TRANSACTIONS: _transactions, Item.APPLICATIONS: _applications
    }[item](face))  # fmt: skip


def _pages(face: Uicc, text: str) -> Dialogue:
    """A text, line by line, as many screens as it needs, forth and back, until the user has had enough."""
    pages = [""]
    for line in (text or say(face, "empty")).split("\n"):
        for part in (line[at : at + PAGE_CHARACTERS] for at in range(0, len(line), PAGE_CHARACTERS)):
            if not pages[-1]:
                pages[-1] = part
            elif len(pages[-1]) + len(part) < PAGE_CHARACTERS:
                pages[-1] += "\n" + part
            else:
                pages.append(part)
    at = 0
    while 0 <= at < len(pages):
        answer = yield show(pages[at])
        if not answer.good and answer.result != BACK:
            return
        at += 1 if answer.good else -1


# What the card says -----------------------------------------------------------------------------------------------


def _names(face: Uicc) -> dict[Df, str]:
    """Applications with the labels that the directory gives them, else the enterprise's number."""
    cell = face.nvm.roots.get("mf")
    mf: Df | None = cell.value if cell else None
    directory = mf.files.value.get(DIRECTORY) if mf else None
    labels: dict[bytes, str] = {}
    for record in directory.records.value if isinstance(directory, RecordFile) else ():
        try:
            labels[find(record, 0x61, 0x4F)] = find(record, 0x61, 0x50).decode("utf-8", "replace")
        except (FormatError, NotFound):
            continue
    enterprise = {df: str(int.from_bytes(df.name[-4:], "big")) for df in onecard_instances(face)}
    return {df: labels.get(df.name) or number for df, number in enterprise.items()}


def _card(face: Uicc) -> str:
    cell = face.nvm.roots.get("mf")
    mf: Df | None = cell.value if cell else None
    identity = mf.files.value.get(IDENTITY) if mf else None
    if not isinstance(identity, BinaryFile):
        return ""
    try:
        serial = CardIdentity.decode(identity.data.value).serial
    except FormatError:
        return ""
    return f"{say(face, 'number')} {serial.hex().upper()}"


def _balances(face: Uicc) -> str:
    lines = []
    for df, name in _names(face).items():
        lines.append(name)
        for fid, purse in ((MAIN, "main"), (SUBSIDY, "subsidy")):
            file = df.files.value.get(fid)
            if isinstance(file, PurseFile):
                state = file.state.value
                lines.append(f"{say(face, purse)} {yuan(state.balance_fen - state.overdraft_fen)}")
    return "\n".join(lines)


def _transactions(face: Uicc) -> str:
    lines = []
    for df, name in _names(face).items():
        log = df.files.value.get(LOG)
        records = log.records.value[:LAST] if isinstance(log, RecordFile) else ()
        lines += [name] + ([_transaction(face, record) for record in records] or [say(face, "none")])
    return "\n".join(lines)


def _transaction(face: Uicc, record: bytes) -> str:
    one = LogRecord.decode(record)
    when = one.when.hex()
    load = one.kind in (TransactionType.LOAD_ED, TransactionType.LOAD_EP)
    what = f"{say(face, 'load')} +" if load else f"{say(face, 'pay')} -"
    return f"{when[4:6]}-{when[6:8]} {when[8:10]}:{when[10:12]} {what}{yuan(one.amount_fen)}"


def _applications(face: Uicc) -> str:
    return "\n".join(
        f"{name} {say(face, 'active' if df.blocked.value == UNBLOCKED else 'blocked')}"
        for df, name in _names(face).items()
    )


# What the user asks for -------------------------------------------------------------------------------------------


def _ask(face: Uicc, item: Item, question: Command) -> Generator[Command, Answer, Answer]:
    """A question, asked again after each help."""
    while (answer := (yield question)).result == HELP:
        told = yield show(say(face, f"help {item.name}"))
        if told.result == ENDED:
            return told
    return answer


def _request(face: Uicc, item: Item) -> Dialogue:
    """Delete an application or report a loss: which one, the service password, a secured packet (ota.md)."""
    names = dict(enumerate(_names(face).items(), 1))
    if not names or face.toolkit.remote is None:
        yield show(say(face, "closed" if names else "empty"))
        return
    rows = {number: name[:ITEM_CHARACTERS] for number, (_, name) in names.items()}
    has_choice = len(names) > 1 or item is Item.DELETE
    answer, chosen = Answer(BACK), 1
    while answer.result == BACK:
        if has_choice:
            answer = yield from _ask(face, item, choose(say(face, item.name), rows))
            if not answer.good or answer.item not in names:
                return
            chosen = answer.item
        answer = yield from _ask(face, item, ask_digits(say(face, "password"), *PASSWORD_DIGITS))
        if answer.result == BACK and not has_choice:
            return
    df, digits = names[chosen][0], answer.text
    lowest, highest = PASSWORD_DIGITS
    if not answer.good or not (digits.isascii() and digits.isdigit() and lowest <= len(digits) <= highest):
        return
    packed = bytes.fromhex(digits + "F" * (len(digits) % 2))
    code = DELETE if item is Item.DELETE else REPORT_LOSS
    body = bytes((code,)) + df.name + bytes((len(packed),)) + packed
    packets = face.toolkit.remote.request(df.fid - FIRST_SLOT, body)
    told = "sent" if packets else "closed"  # without keys of the slot nothing can be asked for
    for tpdu in packets:
        if not (yield send(tpdu)).good:
            told = "failed"
            break
    yield show(say(face, told))
