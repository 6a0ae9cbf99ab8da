"""What commands over the air share: the way to the phones, and a server on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import click

from backoffice.aircarrier import Pace, SmppCarrier
from backoffice.airqueue import AirJob, AirState
from backoffice.installation import Installation
from backoffice.ota_server import Carrier, Server
from cardlib.errors import CheckFailed, ConfigError, OutcomeUnknown
from cardlib.netport import NetPort, parse_address
from cardlib.wire.smpp import Bind
from console import Session

FOLLOW_S = 1.0
"""How often new jobs are looked for."""
OVER_THE_AIR = "By short messages to the holder's phone instead of a card in --reader."


class Way(Carrier, Protocol):
    """A carrier that is let go at the end."""

    def close(self) -> None:
        """Let it go."""


def way_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say how messages reach phones."""
    for option in (
        click.option("--rate", type=click.FloatRange(0.01), default=10.0, show_default=True, help="Messages a second."),
        click.option("--sender", default="10690000", show_default=True, help="Number that messages come from."),
        click.option("--smpp-name", default="onecard", show_default=True, help="Our name at the message centre."),
        click.option("--phone", type=click.Path(path_type=Path, exists=True), help="Image of a simulated phone's SIM, "
                     "or a folder of NUMBER.img, instead of a message centre."),
        click.option("--smpp", help="HOST:PORT of the message centre. Asks for the smpp password."),
    ):  # fmt: skip
        command = option(command)
    return command


def server(
    session: Session, office: Installation, way: dict[str, Any], platform_operator: str | None = None
) -> Server | None:
    """The server on the way that the options name; None when they name none: others send.

    Raises ConfigError for an address that is none.
    """
    carrier: Way
    if way["phone"] is not None:
        carrier = session.phones(way["phone"])
        pace: Callable[[int], None] = lambda _: None  # noqa: E731  # nothing to wait for
    elif way["smpp"]:
        host, port = parse_address(way["smpp"])
        bind = Bind(way["smpp_name"], session.secret("smpp password"))
        carrier = SmppCarrier(partial(NetPort.call, host, port), bind, way["sender"], time.monotonic, time.sleep)
        pace = Pace(way["rate"], time.monotonic, time.sleep)
    else:
        return None
    session.keep(carrier)
    acts = office.platform_operator(platform_operator) if platform_operator else None
    return Server(office.office(acts), carrier, pace=pace)


def need(made: Server | None) -> Server:
    """Raises ConfigError when no way was named."""
    if made is None:
        raise ConfigError("how do messages get to the phones? Give --smpp HOST:PORT or --phone FILE")
    return made


def row(job: AirJob) -> dict[str, Any]:
    """A job for output."""
    return {
        "job": job.air_id, "card": job.card_serial, "kind": job.kind, "state": job.state.value,
        "attempts": job.attempts, "trouble": job.trouble,
    }  # fmt: skip


def settle(job: AirJob) -> dict[str, Any]:
    """What one job came to. Raises OutcomeUnknown, CheckFailed."""
    if job.state is AirState.UNKNOWN:
        raise OutcomeUnknown(job.air_id, f"job {job.air_id}: {job.trouble}. It is tried again: onecard ota send")
    if job.state is AirState.FAILED:
        raise CheckFailed(f"job {job.air_id} failed: {job.trouble}")
    return row(job) | job.outcome
