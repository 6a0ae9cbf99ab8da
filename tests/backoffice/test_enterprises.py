"""Enterprises, subscriptions, settings: guarded changes, each in the audit log."""

from __future__ import annotations

import pytest

from backoffice import audit, enterprises
from backoffice.database import PLATFORM, Database
from backoffice.enterprises import Application, Setting, State
from backoffice.operators import Operator, Role
from cardlib.errors import ConfigError, Conflict, FormatError, NotFound, Refused
from tests.backoffice.conftest import ENTERPRISE

ROOT = Operator(PLATFORM, "root", Role.PLATFORM)
BOSS = Operator(ENTERPRISE, "boss", Role.ADMINISTRATOR)


@pytest.fixture
def registered(platform: Database) -> Database:
    """A platform with one enterprise."""
    with platform.write() as tx:
        enterprises.register(tx, ROOT, ENTERPRISE, " 东湖食品 ", "enterprise.db")
    return platform


def test_register(registered: Database) -> None:
    """A registered enterprise is found, with its place and local time."""
    with registered.read() as tx:
        found = enterprises.get(tx, ENTERPRISE)
        assert enterprises.listing(tx) == [found]
        assert enterprises.require_active(tx, ENTERPRISE) == found
    assert found[:5] == (ENTERPRISE, "东湖食品", State.ACTIVE, 480, "enterprise.db")


@pytest.mark.parametrize(
    ("number", "name", "offset"),
    [(0, "a", 0), (2**32, "a", 0), (-1, "a", 0), (1, "", 0), (1, "x" * 81, 0), (1, "a\nb", 0), (1, "a", 900)],
)
def test_bad_registration(platform: Database, number: int, name: str, offset: int) -> None:
    """Numbers, names and offsets out of bounds are refused."""
    with pytest.raises(FormatError), platform.write() as tx:
        enterprises.register(tx, ROOT, number, name, "x.db", offset)


def test_registered_once(registered: Database) -> None:
    """A taken number is a conflict; an unknown one is not found."""
    with pytest.raises(Conflict), registered.write() as tx:
        enterprises.register(tx, ROOT, ENTERPRISE, "other", "x.db")
    with pytest.raises(NotFound), registered.read() as tx:
        enterprises.get(tx, 7)


def test_states(registered: Database) -> None:
    """Suspended comes back, closed doesn't; neither is served."""
    with registered.write() as tx:
        for state in (State.SUSPENDED, State.SUSPENDED, State.ACTIVE, State.CLOSED):
            enterprises.change_state(tx, ROOT, ENTERPRISE, state)
    with pytest.raises(Refused, match="closed"), registered.read() as tx:
        enterprises.require_active(tx, ENTERPRISE)
    with pytest.raises(Conflict, match="can't become"), registered.write() as tx:
        enterprises.change_state(tx, ROOT, ENTERPRISE, State.ACTIVE)


def test_subscriptions(registered: Database) -> None:
    """What is subscribed is allowed, what ended is refused with that reason; a repeat is no event."""
    with registered.write() as tx:
        enterprises.subscribe(tx, ROOT, ENTERPRISE, Application.PAYMENT)
        enterprises.subscribe(tx, ROOT, ENTERPRISE, Application.ACCESS)
        enterprises.subscribe(tx, ROOT, ENTERPRISE, Application.ACCESS, active=False)
        enterprises.subscribe(tx, ROOT, ENTERPRISE, Application.ACCESS, active=False)
        enterprises.require_subscription(tx, ENTERPRISE, Application.PAYMENT)
        events = [entry.event for entry in audit.entries(tx, PLATFORM)]
    assert events == ["enterprise.registered"] + ["enterprise.subscription"] * 3
    with pytest.raises(Refused) as refused, registered.read() as tx:
        enterprises.require_subscription(tx, ENTERPRISE, Application.ACCESS)
    assert refused.value.reason == "not_subscribed"


def test_only_the_platform_registers(registered: Database) -> None:
    """An enterprise's administrator changes nothing in the platform."""
    with pytest.raises(Refused), registered.write() as tx:
        enterprises.register(tx, BOSS, 7, "mine", "x.db")
    with pytest.raises(Refused), registered.write() as tx:
        enterprises.change_state(tx, BOSS, ENTERPRISE, State.CLOSED)
    with pytest.raises(Refused), registered.write() as tx:
        enterprises.subscribe(tx, BOSS, ENTERPRISE, Application.ACCESS)


def test_settings(db: Database) -> None:
    """A setting has its default until it is set, for this enterprise alone."""
    with db.write() as tx:
        assert enterprises.number_setting(tx, ENTERPRISE, Setting.SERVICE_FEE_FEN) == 0
        assert enterprises.change_setting(tx, BOSS, ENTERPRISE, "service_fee_fen", " 300 ") == 300
        enterprises.change_setting(tx, BOSS, ENTERPRISE, "service_fee_fen", "200")
        enterprises.change_setting(tx, BOSS, ENTERPRISE, "balance_expires", "2027-12-31")
        assert enterprises.number_setting(tx, ENTERPRISE, Setting.SERVICE_FEE_FEN) == 200
        assert enterprises.setting(tx, ENTERPRISE, Setting.BALANCE_EXPIRES) == "2027-12-31"
        assert enterprises.setting(tx, ENTERPRISE, Setting.CANCEL_BALANCE) == "refund"
        assert enterprises.setting(tx, 2002, Setting.SERVICE_FEE_FEN) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("service_fee_fen", "10001"),
        ("service_fee_fen", "-1"),
        ("service_fee_fen", "1.5"),
        ("service_fee_fen", "٣"),
        ("service_fee_fen", "9" * 5000),
        ("cancel_balance", "keep"),
        ("balance_expires", "31.12.2027"),
    ],
)
def test_bad_settings(db: Database, name: str, text: str) -> None:
    """A value out of the platform's bounds is refused."""
    with pytest.raises(ConfigError, match=name), db.write() as tx:
        enterprises.change_setting(tx, BOSS, ENTERPRISE, name, text)


def test_unknown_setting(db: Database) -> None:
    """An unknown setting is not found, and the error names those there are."""
    with pytest.raises(NotFound, match="service_fee_fen"), db.write() as tx:
        enterprises.change_setting(tx, BOSS, ENTERPRISE, "colour", "red")


@pytest.mark.parametrize("which", list(Setting))
def test_defaults_are_allowed_values(which: Setting) -> None:
    """Every default is within its own bounds."""
    assert which.value.read(which.name, str(which.value.default)) == which.value.default
