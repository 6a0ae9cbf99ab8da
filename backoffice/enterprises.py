"""Enterprises: which there are, where they live, what they subscribe to, and their settings."""

from __future__ import annotations

from datetime import date
from enum import Enum, StrEnum, unique
from typing import NamedTuple

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import PLATFORM, Row, Tx
from backoffice.operators import Operator, Permission, require
from cardlib.errors import ConfigError, Conflict, FormatError, NotFound, Refused
from cardlib.profile import MAX_ENTERPRISE_ID

DAY_MS = 86_400_000
CHINA_MINUTES = 480
"""Default offset of local time: +08:00."""


@unique
class Application(StrEnum):
    """What an enterprise subscribes to."""

    ACCESS = "access"
    ATTENDANCE = "attendance"
    PAYMENT = "payment"


@unique
class State(StrEnum):
    """Whether the platform serves an enterprise."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Enterprise(NamedTuple):
    """An enterprise as the platform knows it; ``database`` says where everything else about it is."""

    enterprise_id: int
    name: str
    state: State
    utc_offset_minutes: int
    database: str
    created_ms: int


_COLUMNS = ", ".join(Enterprise._fields)
_NEXT = {
    State.ACTIVE: (State.SUSPENDED, State.CLOSED),
    State.SUSPENDED: (State.ACTIVE, State.CLOSED),
    State.CLOSED: (),
}


def register(
    tx: Tx,
    actor: Operator,
    enterprise_id: int,
    name: str,
    database: str,
    utc_offset_minutes: int = CHINA_MINUTES,
) -> Enterprise:
    """Write a new enterprise into the platform's database. Raises FormatError, Conflict when the number is taken."""
    require(actor, Permission.ENTERPRISE_MANAGE, PLATFORM)
    name = name.strip()
    if not 1 <= enterprise_id <= MAX_ENTERPRISE_ID:
        raise FormatError(f"an enterprise's number is 1 to {MAX_ENTERPRISE_ID}, not {enterprise_id}")
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise FormatError("an enterprise's name has 1 to 80 characters")
    if not -720 <= utc_offset_minutes <= 840:
        raise FormatError("local time is -720 to 840 minutes from UTC")
    if tx.one("SELECT name FROM enterprise WHERE enterprise_id = ?", (enterprise_id,)):
        raise Conflict(f"enterprise {enterprise_id} is registered")
    made = Enterprise(enterprise_id, name, State.ACTIVE, utc_offset_minutes, database, tx.now_ms)
    tx.execute(f"INSERT INTO enterprise ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", made)
    audit.record(tx, PLATFORM, Event.ENTERPRISE_REGISTERED, actor.name, f"enterprise:{enterprise_id}")
    return made


def get(tx: Tx, enterprise_id: int) -> Enterprise:
    """One enterprise, from the platform's database. Raises NotFound."""
    row = tx.one(f"SELECT {_COLUMNS} FROM enterprise WHERE enterprise_id = ?", (enterprise_id,))
    if row is None:
        raise NotFound(f"no enterprise {enterprise_id}: register it first")
    return _enterprise(row)


def listing(tx: Tx) -> list[Enterprise]:
    """All enterprises, by number."""
    return [_enterprise(row) for row in tx.all(f"SELECT {_COLUMNS} FROM enterprise ORDER BY enterprise_id")]


def change_state(tx: Tx, actor: Operator, enterprise_id: int, state: State) -> None:
    """Suspend, resume or close an enterprise; closed is for good. Raises Conflict for any other change."""
    require(actor, Permission.ENTERPRISE_MANAGE, PLATFORM)
    was = get(tx, enterprise_id).state
    if was is state:
        return
    if state not in _NEXT[was]:
        raise Conflict(f"enterprise {enterprise_id} is {was}, which can't become {state}")
    tx.execute("UPDATE enterprise SET state = ? WHERE enterprise_id = ?", (state.value, enterprise_id))
    subject = f"enterprise:{enterprise_id}"
    audit.record(tx, PLATFORM, Event.ENTERPRISE_STATE, actor.name, subject, state_from=was.value, state_to=state.value)


def require_active(tx: Tx, enterprise_id: int) -> Enterprise:
    """The enterprise. Raises Refused("enterprise_state") when it is suspended or closed, NotFound."""
    found = get(tx, enterprise_id)
    if found.state is not State.ACTIVE:
        raise Refused("enterprise_state", f"enterprise {enterprise_id} is {found.state}: ask the platform")
    return found


def subscribe(tx: Tx, actor: Operator, enterprise_id: int, application: Application, active: bool = True) -> None:
    """Subscribe an application, or end it; a repeat changes nothing. Raises NotFound."""
    require(actor, Permission.ENTERPRISE_MANAGE, PLATFORM)
    get(tx, enterprise_id)
    if (application in subscriptions(tx, enterprise_id)) == active:
        return
    state = "active" if active else "ended"
    tx.execute(
        "INSERT INTO subscription VALUES (?, ?, ?, ?) ON CONFLICT (enterprise_id, application)"
        " DO UPDATE SET state = excluded.state, changed_ms = excluded.changed_ms",
        (enterprise_id, application.value, state, tx.now_ms),
    )
    subject = f"enterprise:{enterprise_id}"
    audit.record(tx, PLATFORM, Event.SUBSCRIPTION, actor.name, subject, application=application.value, state_to=state)


def subscriptions(tx: Tx, enterprise_id: int) -> frozenset[Application]:
    """What an enterprise subscribes to, from the platform's database."""
    rows = tx.all("SELECT application FROM subscription WHERE enterprise_id = ? AND state = 'active'", (enterprise_id,))
    return frozenset(Application(row[0]) for row in rows)


def require_subscription(tx: Tx, enterprise_id: int, application: Application) -> None:
    """Raise Refused("not_subscribed") unless the enterprise subscribes to the application."""
    if application not in subscriptions(tx, enterprise_id):
        raise Refused("not_subscribed", f"enterprise {enterprise_id} does not subscribe to {application}")


class Rule(NamedTuple):
    """What a setting may be: a number within bounds, one of some words, or a date (``""`` for none)."""

    default: int | str
    least: int = 0
    most: int = 0
    words: tuple[str, ...] = ()

    def read(self, name: str, text: str) -> int | str:
        """Turn what a person wrote into the setting's value. Raises ConfigError."""
        if isinstance(self.default, int):
            if not (text.isascii() and text.isdecimal() and len(text) <= 15 and self.least <= int(text) <= self.most):
                raise ConfigError(f"setting {name} is a whole number from {self.least} to {self.most}")
            return int(text)
        if self.words:
            if text not in self.words:
                raise ConfigError(f"setting {name} is one of {', '.join(self.words)}")
            return text
        try:
            return text and date.fromisoformat(text).isoformat()
        except ValueError as error:
            raise ConfigError(f"setting {name} is a date like 2027-12-31, or empty") from error


@unique
class Setting(Enum):
    """What an enterprise sets for itself, in its own database."""

    SERVICE_FEE_FEN = Rule(0, 0, 10_000)
    """Per member and month; the bounds are the platform's (requirement D10)."""
    PURSE_LIMIT_FEN = Rule(100_000, 0, 9_999_999)
    """Most that a purse may hold after a recharge."""
    RECHARGE_LIMIT_FEN = Rule(100_000, 100, 9_999_999)
    """Most of one recharge."""
    BALANCE_EXPIRES = Rule("")
    """Last day on which purse balances are worth something (requirement C7)."""
    CANCEL_BALANCE = Rule("refund", words=("refund", "forfeit"))
    """What becomes of the balance of a cancelled card."""
    REISSUE_WAIT_MS = Rule(3 * DAY_MS, 0, 90 * DAY_MS)
    """How long a reissue waits for journals of the old card that are still missing (books.md)."""
    APPLICATION_YEARS = Rule(5, 1, 20)
    """How long a newly issued application is valid."""
    LIST_AGE_MS = Rule(7 * DAY_MS, 3_600_000, 90 * DAY_MS)
    """A of blacklist.md: up to this age a terminal's list is fresh; renewed at least every A/4."""
    NOTICE_LANGUAGE = Rule("zh", words=("zh", "en"))
    """Of notices to members who chose none."""
    NOTICE_QUIET_FROM_MIN = Rule(22 * 60, 0, 1439)
    """Minute of the enterprise's day from which only urgent notices are sent; the same as the other: no quiet time."""
    NOTICE_QUIET_UNTIL_MIN = Rule(7 * 60, 0, 1439)


def setting(tx: Tx, enterprise_id: int, which: Setting) -> int | str:
    """A setting's value, or its default."""
    name = which.name.lower()
    text = tx.value("SELECT value FROM setting WHERE enterprise_id = ? AND name = ?", (enterprise_id, name))
    return which.value.default if text is None else which.value.read(name, text)


def number_setting(tx: Tx, enterprise_id: int, which: Setting) -> int:
    """A setting that is a number."""
    value = setting(tx, enterprise_id, which)
    assert isinstance(value, int)
    return value


def change_setting(tx: Tx, actor: Operator, enterprise_id: int, name: str, text: str) -> int | str:
    """Set by name; returns the value. Raises NotFound for an unknown name, ConfigError for a value out of bounds."""
    require(actor, Permission.SETTING_CHANGE, enterprise_id)
    if name.upper() not in Setting.__members__:
        raise NotFound(f"no setting {name}: there are {', '.join(one.name.lower() for one in Setting)}")
    value: int | str = Setting[name.upper()].value.read(name.lower(), text.strip())
    tx.execute(
        "INSERT INTO setting VALUES (?, ?, ?, ?) ON CONFLICT (enterprise_id, name)"
        " DO UPDATE SET value = excluded.value, changed_ms = excluded.changed_ms",
        (enterprise_id, name.lower(), str(value), tx.now_ms),
    )
    audit.record(tx, enterprise_id, Event.ENTERPRISE_SETTING, actor.name, f"setting:{name.lower()}", outcome=str(value))
    return value


def _enterprise(row: Row) -> Enterprise:
    number, name, state, offset, database, created_ms = row
    return Enterprise(number, name, State(state), offset, database, created_ms)
