"""``onecard key mother``: mother cards and their authentication cards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from backoffice import mothercards
from backoffice.commands.base import act_outside, permitted
from backoffice.database import PLATFORM
from backoffice.installation import Installation
from backoffice.mothercards import Pair
from backoffice.operators import Permission
from cardlib.errors import ConfigError
from cardlib.iso7816 import pin_bytes
from cardlib.profile import CardKind, Purpose
from cardlib.transport import Transport
from console import Noun, Session
from keymgmt.delivery import KeyLine, require_enterprise
from keymgmt.handle import KeyHandle
from keymgmt.mothercard import (
    DELIVERED,
    DELIVERIES,
    AuthenticationPlan,
    MotherCard,
    MotherPlan,
    Pins,
    card_of_kind,
    check_limit,
    make_authentication,
    make_mother,
    set_limit,
)
from keymgmt.steps import FileSteps, read_identity
from keymgmt.wash import WashPlan

PURPOSES = [purpose.name.lower() for purpose in DELIVERED]
WASH_VERSION = 1
authentication_reader_option = click.option(
    "--authentication-reader", required=True, help="Reader of the authentication card."
)
key_version_option = click.option(
    "--key-version", type=click.IntRange(1, 255), default=1, show_default=True, help="Of the platform's keys."
)


@click.group(cls=Noun)
def command() -> None:
    """Mother cards and their authentication cards."""


@command.group()
def mother() -> None:
    """Mother cards: an enterprise's keys on a card that delivers them and never shows them."""


def open_mother(session: Session, mother_reader: str | None, authentication_reader: str) -> MotherCard:
    """The mother card in a reader (``--reader`` by default), opened with both PINs: a source of keys."""
    if authentication_reader == (mother_reader or session.reader):
        raise ConfigError("mother card and authentication card need a reader each: name two")
    pins = _pins(session, new=False)
    return MotherCard(session.open_card(mother_reader), session.open_card(authentication_reader), pins)


def _pins(session: Session, *, new: bool) -> Pins:
    first, second = (pin_bytes(session.secret(name, new=new)) for name in ("mother pin", "authentication pin"))
    return Pins(first, second)


def _rows(lines: Sequence[KeyLine]) -> list[dict[str, Any]]:
    return [
        {
            "purpose": line.purpose.name.lower(),
            "version": line.version,
            "algorithm": line.algorithm.name,
            "kcv": line.kcv,
            "left": line.left if line.purpose in DELIVERED else None,
        }
        for line in lines
    ]


class Limit(click.ParamType[tuple[Purpose, int]]):
    """``PURPOSE=COUNT``."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Purpose, int]:  # noqa: ANN401  # click's signature
        """Refuse what is never delivered and counts that do not fit."""
        name, _, count = str(value).partition("=")
        if name not in PURPOSES or not count.isascii() or not count.isdigit():
            self.fail(f"{value}: write PURPOSE=COUNT, a purpose of {', '.join(PURPOSES)}", param, ctx)
        purpose = Purpose[name.upper()]
        check_limit(purpose, int(count))
        return purpose, int(count)


class Versions(click.ParamType[tuple[int, ...]]):
    """Key versions, ``1,2``."""

    name = "versions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: ANN401  # click's signature
        """Refuse anything but numbers from 1 to 255."""
        parts = str(value).split(",")
        if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 255 for part in parts):
            self.fail(f"{value}: write versions from 1 to 255, as 1,2", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@mother.command()
@authentication_reader_option
@click.option("--versions", type=Versions(), default="1", show_default=True, help="Key versions to load, as 1,2.")
@click.option(
    "--limit", "limits", type=Limit(), multiple=True, metavar="PURPOSE=COUNT",
    help=f"Deliveries of one purpose, 0 to 65535; {DELIVERIES} of those not named.",
)  # fmt: skip
@key_version_option
@click.option("--again", is_flag=True, help="The enterprise's mother card is lost or spoilt: make another one.")
@click.option("--confirm", "word", help="AGAIN, with --again.")
@permitted(Permission.KEY_MANAGE, platform=True)
def make(
    session: Session, office: Installation, authentication_reader: str, versions: tuple[int, ...],
    limits: tuple[tuple[Purpose, int], ...], key_version: int, again: bool, word: str | None,
) -> None:  # fmt: skip
    """Make the vendor-fresh chip in --reader the mother card of --enterprise, the other one its authentication card.

    Asks for the vendor's transport key and for a PIN of each card. Torn, it goes on when the same command runs again
    with the same cards. --dry-run shows the plan.
    """
    number = office.enterprise.enterprise_id
    if authentication_reader == session.reader:
        raise ConfigError("mother card and authentication card need a reader each: name two")
    initial, pins = office.initial_key(), _pins(session, new=True)
    if again and not session.dry_run:
        text = f"Enterprise {number} gets another mother card; an earlier one works on until it is destroyed."
        session.confirm("AGAIN", text, word)
    counts = dict.fromkeys(DELIVERED, DELIVERIES) | dict(limits)

    def plans(pair: Pair) -> tuple[MotherPlan, AuthenticationPlan]:
        first, second = (
            _wash_plan(office, serial, key_version, initial) for serial in (pair.serial, pair.authentication_serial)
        )
        return MotherPlan(first, number, pins.mother, versions, counts), AuthenticationPlan(
            second, pair.serial, pins.authentication
        )

    def action() -> dict[str, Any]:
        cards = session.open_card(), session.open_card(authentication_reader)
        serials = _serial(cards[0], CardKind.MOTHER), _serial(cards[1], CardKind.AUTHENTICATION)
        if session.dry_run:
            both = plans(Pair(serials[0] or bytes(8), number, serials[1] or bytes(8), ""))
            return {"plan": [*both[0].lines(), *both[1].lines()], "dry_run": True}
        with office.platform.write() as tx:
            pair = mothercards.reserve(tx, office.operator, number, *serials, again=again)
        session.note(f"making mother card {pair.serial.hex().upper()}; if interrupted, run the same command again")
        steps = session.keep(FileSteps(office.folder / "cards.steps"))
        first, second = plans(pair)
        lines = make_mother(cards[0], first, office.keys, steps)
        make_authentication(cards[1], second, office.keys, steps)
        with office.platform.write() as tx:
            mothercards.made(tx, office.operator, pair, WASH_VERSION)
        names = {"mother": pair.serial, "authentication": pair.authentication_serial, "enterprise": number}
        return names | {"keys": _rows(lines)}

    asked = {"enterprise": number, "versions": versions, "limits": [[p.name, n] for p, n in limits], "again": again}
    data = act_outside(session, office.platform, PLATFORM, "key mother make", asked, action)
    session.emit(
        data, data["plan"] if session.dry_run else f"mother card {data['mother']} of enterprise {number} is made"
    )


def _wash_plan(office: Installation, serial: bytes, key_version: int, initial: KeyHandle) -> WashPlan:
    today = datetime.fromtimestamp(office.clock() / 1000, UTC).date()
    return WashPlan(serial.hex(), serial, WASH_VERSION, today, key_version, initial)


def _serial(card: Transport, kind: CardKind) -> bytes | None:
    """Serial of a chip that is, or is to be, of this kind; None while it has none. Raises Conflict for another."""
    identity = read_identity(card)
    if identity is None or not any(identity.serial):
        return None
    return card_of_kind(card, kind, finished=False)


@mother.command("list")
@authentication_reader_option
@permitted(Permission.KEY_SHOW)
def list_command(session: Session, office: Installation, authentication_reader: str) -> None:
    """Open the mother card in --reader and list its keys: purpose, version, check value, deliveries left.

    Asks for the PINs of both cards.
    """
    session.refuse_dry_run("opening presents PINs, and wrong ones are counted")
    keys = open_mother(session, None, authentication_reader)
    if office.scope != PLATFORM:
        require_enterprise(keys, office.scope)
    lines = keys.lines()
    with office.platform.write() as tx:
        details = {"enterprise": keys.enterprise_id, "count": len(lines)}
        mothercards.note(tx, office.operator, keys.serial, "listed", **details)
    session.emit(_rows(lines))


@mother.command()
@click.argument("purpose", type=click.Choice(PURPOSES))
@click.argument("count", type=click.IntRange(0, 0xFFFF))
@key_version_option
@permitted(Permission.KEY_MANAGE, platform=True)
def limit(session: Session, office: Installation, purpose: str, count: int, key_version: int) -> None:
    """Let the mother card in --reader deliver keys of PURPOSE another COUNT times, no more and no less."""
    wanted = Purpose[purpose.upper()]

    def action() -> dict[str, Any]:
        card = session.open_card()
        if session.dry_run:
            return {"mother": card_of_kind(card, CardKind.MOTHER), "purpose": purpose, "left": count, "dry_run": True}
        serial = set_limit(card, wanted, count, office.keys, key_version)
        with office.platform.write() as tx:
            mothercards.note(tx, office.operator, serial, "limit", purpose=purpose, count=count)
        return {"mother": serial, "purpose": purpose, "left": count}

    asked = {"purpose": purpose, "count": count}
    session.emit(act_outside(session, office.platform, PLATFORM, "key mother limit", asked, action))
