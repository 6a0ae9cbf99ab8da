"""``onecard apdu``: single commands to a card, for people who look for a fault."""

from __future__ import annotations

import click

from cardlib.apdu import SW, Command, meaning
from cardlib.errors import StatusError
from cardlib.trace import mask
from cardlib.transport import send
from console import Hex, Noun, Session, pass_session


@click.group(cls=Noun)
def command() -> None:
    """Send single commands to a card."""


@command.command("send")
@click.argument("commands", nargs=-1, required=True, type=Hex())
@click.option("--any-status", is_flag=True, help="Go on after a status word other than 9000.")
@pass_session
def send_command(session: Session, commands: tuple[bytes, ...], any_status: bool) -> None:
    """Send COMMANDS (hexadecimal APDUs) in one session with the card and print each answer.

    Stops at the first status word that is not 9000. Do not write secrets on a command line.
    """
    session.refuse_dry_run("a command is sent or not")
    parsed = [Command.decode(raw) for raw in commands]
    card = session.open_card()
    for command_apdu in parsed:
        response = send(card, command_apdu)
        _, shown = mask(command_apdu.encode(), response.encode())
        data = {"command": command_apdu.header, "answer": shown, "meaning": meaning(response.sw)}
        session.emit(data, f"{shown}  {data['meaning']}".rstrip())
        if response.sw != SW.OK and not any_status:
            raise StatusError(response.sw, command_apdu.header, meaning(response.sw))


@command.command()
@pass_session
def atr(session: Session) -> None:
    """Show the answer to reset of the card in the reader."""
    answer = session.open_card().atr
    session.emit({"atr": answer}, answer.hex().upper())
