"""What each kind of terminal does with cards and lines at its console."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from cardlib.errors import ConfigError
from cardlib.wire.osdp_secure import read_keys
from terminals.access import Access
from terminals.attendance import Attendance
from terminals.config import Kind
from terminals.issuing import Issuing
from terminals.pos import Pos
from terminals.posts.access import AccessPost
from terminals.posts.attendance import AttendancePost, TagPost
from terminals.posts.base import Post, asking
from terminals.posts.pos import PosPost
from terminals.posts.recharge import RechargePost
from terminals.recharge import Recharge
from terminals.runtime import Terminal

KINDS: dict[Kind, type[Terminal]] = {
    Kind.POS: Pos,
    Kind.ACCESS: Access,
    Kind.ATTENDANCE: Attendance,
    Kind.RECHARGE: Recharge,
    Kind.ISSUING: Issuing,
}


def make_post(
    terminal: Terminal, amount_fen: int | None, stream: TextIO, language: str, operator: str,
    secret: Callable[[str], str], note: Callable[[str], None], scbks: Callable[[], list[str]], *, tags: bool = False,
) -> Post:  # fmt: skip
    """The post for a terminal; ``scbks`` gives the lines with its readers' keys when it has readers.

    ``tags`` come from a reader of numbers that prove nothing. Raises ConfigError when an amount or tags are given to
    what takes none, or a reader has no key.
    """

    def tell(text: str) -> None:
        stream.write(text + "\n")
        stream.flush()

    if amount_fen is not None and not isinstance(terminal, Pos):
        raise ConfigError(f"--amount is for a POS, not for {terminal.config.kind.value} terminals")
    if tags and not isinstance(terminal, Attendance):
        raise ConfigError(
            "a uid: reader is for attendance only: its tags prove nothing, so no door and no till takes them"
        )
    if isinstance(terminal, Access) and terminal.config.osdp is not None:
        from terminals.posts.osdp import open_post  # noqa: PLC0415  # few doors hang on a line

        return open_post(terminal, terminal.config.osdp, read_keys(scbks()), tell, language, operator)
    pin = asking(secret, note)
    if isinstance(terminal, Access):
        return AccessPost(terminal, tell, language, pin, operator)
    if isinstance(terminal, Attendance):
        return TagPost(terminal) if tags else AttendancePost(terminal)
    if isinstance(terminal, Recharge):
        if terminal.office is None:
            raise ConfigError(
                "a recharge terminal needs a line to the back office, which computes every load: set office_url, or "
                "recharge at the office with `onecard wallet recharge`"
            )
        return RechargePost(terminal, tell, language, secret, note)
    assert isinstance(terminal, Pos)
    return PosPost(terminal, amount_fen, pin, tell, language)
