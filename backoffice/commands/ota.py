"""``onecard ota``: jobs over the air, and packets for people who look for a fault."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import click

from backoffice import airqueue
from backoffice.airqueue import KINDS, MONEY, AirState
from backoffice.commands import air
from backoffice.commands.air import way_options
from backoffice.commands.base import changing, permitted
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.crypto.packets import PacketAlgorithm, packet_key
from cardlib.errors import ConfigError, FormatError
from cardlib.tlv import find
from cardlib.wire import scp80, sms
from cardlib.wire.scp80 import Head, Integrity, Keys, PorStatus, SealedCommand, Spi
from console import AMOUNT, Hex, Noun, Session, pass_session

ALGORITHMS = {"aes": PacketAlgorithm.AES, "3des": PacketAlgorithm.TDES2, "3des3": PacketAlgorithm.TDES3}
NO_DATA = frozenset((0xB0, 0xB2, 0x84, 0xC0, 0x5C, 0xCA, 0x12))
STATUS, GET_STATUS_CLASS, SECURED = 0xF2, 0x80, 0x0C
TAG_PROACTIVE = 0xD0
RESPONSE_HEADERS = frozenset((10, 12, 14, 18))
"""Header lengths of a response; a command's are 13, 15, 17, 21."""
ENVELOPES = (b"\x80\xc2", b"\xa0\xc2")


@click.group(cls=Noun)
def command() -> None:
    """Jobs and secured packets in short messages."""


@command.command()
@click.argument("packets", nargs=-1, type=Hex())
@click.option("--spi", type=Hex(2), help="SPI of the command that a response answers. [default: 1619]")
@click.option("--kic", type=Hex(1), help="KIc of that command. [default: 12]")
@click.option("--kid", type=Hex(1), help="KID of that command. [default: the same as KIc]")
@click.option("--clear", is_flag=True, help="Ask for no keys: show what can be read without.")
@pass_session
def decode(
    session: Session, packets: tuple[bytes, ...], spi: bytes | None, kic: bytes | None, kid: bytes | None, clear: bool
) -> None:
    """Take PACKETS apart: command or response packets, user data, short messages or ENVELOPE, in hexadecimal.

    Without PACKETS the lines of stdin are read. Segments are put together. Keys are asked for, or come from the file
    that ONECARD_OTA_KEYS_FILE names: KIc and KID in hexadecimal, with a space between.
    """
    given = packets or tuple(_hex(line) for line in sys.stdin if line.strip())
    if not given:
        raise ConfigError("no packet: give one as argument or on stdin")
    code = (kic or b"\x12")[0]
    head = Head(Spi.decode(spi or b"\x16\x19"), code, kid[0] if kid else code, b"")
    segments = sms.Segments()

    @cache
    def ask() -> str:
        return session.secret("ota keys")

    for raw in given:
        carried, is_response, packet = _unwrap(raw, segments)
        if packet is None:
            session.emit(carried | {"kind": "segment"})
        elif is_response:
            session.emit(carried | _response(ask, packet, head._replace(tar=packet[3:6]), clear=clear))
        else:
            session.emit(carried | _command(ask, packet, clear=clear))
    if len(segments):
        session.note(f"{len(segments)} message(s) lack segments")


def _hex(line: str) -> bytes:
    try:
        return bytes.fromhex(line)
    except ValueError as e:
        raise FormatError("stdin: a line is not hexadecimal") from e


def _unwrap(raw: bytes, segments: sms.Segments) -> tuple[dict[str, Any], bool, bytes | None]:
    """What a packet came in, whether it is a response, and the packet once all its segments are there."""
    if raw[:2] in ENVELOPES and len(raw) > 5:
        raw = raw[5 : 5 + raw[4]]
    if raw[:1] == bytes((sms.TAG_DOWNLOAD,)):
        raw = sms.parse_envelope(raw)[1]
    elif raw[:1] == bytes((TAG_PROACTIVE,)):
        raw = find(raw, TAG_PROACTIVE, sms.TAG_TPDU)
    elif int.from_bytes(raw[:2], "big") == len(raw) - 2 and len(raw) > 12:
        return {}, raw[2] in RESPONSE_HEADERS, raw
    carried: dict[str, Any] = {}
    if not _begins_packet(raw):
        message = sms.Submit.decode(raw) if raw[:1] and raw[0] & 3 == 1 else sms.Deliver.decode(raw)
        number = message.receiver if isinstance(message, sms.Submit) else message.sender
        carried = {"number": number.number, "pid": f"{message.pid:02X}", "dcs": f"{message.dcs:02X}"}
        raw = message.user_data
    elements, _ = sms.parse_header(raw)
    concat = sms.concat_of(elements)
    if concat:
        carried |= {"segment": f"{concat.number}/{concat.total}", "reference": concat.reference}
    joined = segments.add(carried.get("number"), raw)
    if joined is None:
        return carried, False, None
    return carried, sms.Element(sms.IEI_RESPONSE, b"") in joined.elements, joined.payload


def _begins_packet(raw: bytes) -> bool:
    """Whether these are user data with a header of ours."""
    try:
        elements, _ = sms.parse_header(raw)
    except FormatError:
        return False
    ours = sms.IEI_COMMAND, sms.IEI_RESPONSE, sms.IEI_CONCAT, sms.IEI_CONCAT_16
    return bool(elements) and all(one.iei in ours for one in elements)


def _protection(integrity: Integrity, *, ciphered: bool) -> str:
    return " ".join([integrity.name, *(["ciphered"] if ciphered else [])])


def _head(head: Head) -> dict[str, Any]:
    spi = head.spi
    return {
        "spi": bytes(spi), "protection": _protection(spi.integrity, ciphered=spi.ciphered),
        "counter_mode": spi.counter.name, "por": spi.por.name,
        "por_protection": _protection(spi.por_integrity, ciphered=spi.por_ciphered),
        "por_by": "SUBMIT" if spi.por_by_submit else "REPORT",
        "kic": f"{head.kic:02X}", "kid": f"{head.kid:02X}", "tar": head.tar,
    }  # fmt: skip


def _command(ask: Callable[[], str], packet: bytes, *, clear: bool) -> dict[str, Any]:
    sealed = SealedCommand.decode(packet)
    shown = {"kind": "command", **_head(sealed.head)}
    if clear and sealed.head.needs_keys:
        return shown
    counter, data = sealed.open(_keys(ask(), sealed.head) if sealed.head.needs_keys else Keys())
    return shown | {"counter": counter, "data": data, "script": _script(data)}


def _response(ask: Callable[[], str], packet: bytes, head: Head, *, clear: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": "response", "tar": head.tar}
    bare = len(packet) == 13 and packet[2] == 10  # a refusal, or a PoR that nothing protects
    if clear and not bare:
        return shown
    if bare:
        head = head._replace(spi=Spi(head.spi.one, scp80.Proof.ALWAYS))
    keys = Keys() if bare else _keys(ask(), head)
    response = scp80.decode_response(packet, head, keys)
    names = {one.value: one.name for one in PorStatus}
    shown |= {
        "status": f"{response.status:02X} {names.get(response.status, 'unknown')}", "counter": response.counter,
        "proven": response.proven, "data": response.data,
    }  # fmt: skip
    if response.data[:1] in (b"\xab", b"\xaf"):
        return shown | {"answers": scp80.decode_expanded_answer(response.data)}
    if len(response.data) >= 3:
        answer = scp80.Answer.decode(response.data)
        shown |= {"executed": answer.executed, "sw": f"{answer.sw:04X}", "answer": answer.data}
    return shown


def _keys(secret: str, head: Head) -> Keys:
    """KIc and KID of the secret, each for the algorithm that the packet names."""
    try:
        kic, kid = (bytes.fromhex(word) for word in secret.split())
    except ValueError as e:
        raise ConfigError("ota keys: write KIc and KID in hexadecimal, with a space between") from e
    no_cipher = head.spi.integrity is Integrity.RC or not head.kid & 15
    return Keys(packet_key(head.kic & 15, kic), None if no_cipher else packet_key(head.kid & 15, kid))


def _has_data(header: bytes) -> bool:
    """The case of a command as far as class and instruction tell it to someone who does not know the card."""
    if header[1] == STATUS:
        return header[0] == GET_STATUS_CLASS
    return header[1] not in NO_DATA or header[0] & SECURED != 0


def _script(data: bytes) -> list[bytes]:
    """Commands of a script, as far as it can be cut."""
    try:
        if data[:1] in (b"\xaa", b"\xae"):
            return scp80.cut_expanded(data)
        return list(scp80.cut_compact(data, _has_data))
    except FormatError:
        return []


@command.command()
@click.argument("commands", nargs=-1, required=True, type=Hex())
@click.option("--key-set", type=click.IntRange(1, 15), default=1, show_default=True, help="Number of the keyset (KVN).")
@click.option("--counter", type=click.IntRange(0, scp80.COUNTER_MAX - 1), required=True, help="Counter to send.")
@click.option("--algorithm", type=click.Choice(list(ALGORITHMS)), default="aes", show_default=True, help="Of the keys.")
@click.option("--tar", type=Hex(3), default="BFFF4F", show_default=True, help="Application that is spoken to.")
@click.option("--spi", type=Hex(2), default="1619", show_default=True, help="Protection, counter mode and answer.")
@click.option("--expanded", is_flag=True, help="Write the script in the expanded format.")
@click.option("--reference", type=click.IntRange(0, 255), default=0, help="Of the segments, when there are several.")
@click.option("--from", "sender", default="+10690000", show_default=True, help="Number that SMS-DELIVER comes from.")
@pass_session
def encode(
    session: Session,
    commands: tuple[bytes, ...],
    key_set: int,
    counter: int,
    algorithm: str,
    tar: bytes,
    spi: bytes,
    expanded: bool,
    reference: int,
    sender: str,
) -> None:
    """Make a secured packet of COMMANDS (C-APDUs in hexadecimal) and the ENVELOPEs that hand it to a SIM.

    Nothing is sent, and no counter is kept. Keys as for decode; single DES is refused.
    """
    code = key_set << 4 | ALGORITHMS[algorithm]
    head = Head(Spi.decode(spi), code, code, tar)
    script = scp80.expanded(list(commands)) if expanded else scp80.compact(commands)
    keys = _keys(session.secret("ota keys"), head) if head.needs_keys else Keys()
    packet = scp80.encode_command(head, counter, script, keys)
    user_data = sms.split(packet, sms.IEI_COMMAND, reference)
    address = sms.Address.of(sender)
    envelopes = [sms.envelope(sms.Deliver(address, one).encode()) for one in user_data]
    apdus = [b"\x80\xc2\0\0" + bytes((len(one),)) + one for one in envelopes]
    lines = [f"packet     {packet.hex().upper()}"]
    lines += [f"user data  {one.hex().upper()}" for one in user_data]
    lines += [f"envelope   {one.hex().upper()}" for one in apdus]
    session.emit({"packet": packet, "user_data": user_data, "envelopes": apdus}, lines)


# The queue -----------------------------------------------------------------------------------------------------------


@command.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("cards", nargs=-1, required=True, type=Hex(8))
@click.option("--amount", type=AMOUNT, help="Yuan, for a recharge or a subsidy.")
@click.option("--account", default="bank", show_default=True, help="Who paid for a recharge.")
@permitted(Permission.CARD_SHOW)
def queue(
    session: Session, office: Installation, kind: str, cards: tuple[bytes, ...], amount: int | None, account: str
) -> None:
    """Queue a job over the air for CARDS (serials); `onecard ota send` sends it.

    Each KIND asks for its own permission too: that of the command that does the same at a reader.
    """
    if (amount is None) == (kind in MONEY):
        raise ConfigError(f"--amount goes with {' and '.join(MONEY)}, and only there")
    arguments: dict[str, Any] = {} if amount is None else {"amount_fen": amount}
    if kind == "recharge":
        arguments["account"] = account
    with changing(session, office.database) as tx:
        made = [
            airqueue.queue(
                tx, office.operator, office.enterprise_id, kind, card, arguments,
                f"{session.request_id}:{card.hex()}" if session.request_id else None,
            )
            for card in cards
        ]  # fmt: skip
    session.emit([air.row(job) for job in made])


@command.command("send")
@way_options
@click.option("--limit", type=click.IntRange(0), default=0, help="At most so many jobs; 0: all that are due.")
@click.option(
    "--platform-operator", help="Opens and deletes slots, where platform and enterprise are one organisation."
)
@click.option("--follow", is_flag=True, help="Go on with what comes: jobs, and requests from the SIM menu.")
@permitted(Permission.CARD_ISSUE)
def send_command(
    session: Session,
    office: Installation,
    /,
    limit: int,
    follow: bool,
    platform_operator: str | None,
    **way: Any,  # noqa: ANN401  # options of the way
) -> None:
    """Send what is due, and wait for the proofs; what gets none is sent again by a later run.

    Killed at any moment, the next run goes on: money moves exactly once.
    """
    session.refuse_dry_run("a message is sent or not: onecard ota status shows what is due")
    server = air.need(air.server(session, office, way, platform_operator))
    with office.database.read() as tx:
        total = airqueue.due(tx, office.enterprise_id)
    asked = server.answer()
    jobs = list(session.progress(server.run(limit), min(limit or total, total), "jobs"))
    session.emit([air.row(job) for job in jobs])
    if asked:
        session.note(f"{asked} request(s) from SIM menus answered")
    while follow:
        time.sleep(air.FOLLOW_S)
        server.answer()
        for job in server.run():
            session.emit([air.row(job)])


@command.command()
@click.argument("job", default="")
@click.option("--state", type=click.Choice([one.value for one in AirState]), help="Only jobs in this state.")
@click.option("--card", type=Hex(8), help="Only jobs of this card.")
@permitted(Permission.CARD_SHOW)
def status(session: Session, office: Installation, job: str, state: str | None, card: bytes | None) -> None:
    """Show JOB, or list jobs over the air with their state and what they wait for."""
    with office.database.read() as tx:
        if job:
            session.emit(air.row(one := airqueue.get(tx, office.enterprise_id, job)) | {"outcome": one.outcome})
            return
        found = airqueue.listing(tx, office.enterprise_id, AirState(state) if state else None, card or b"")
    session.emit([air.row(one) for one in found])


@command.command()
@click.argument("job")
@permitted(Permission.CARD_SHOW)
def retry(session: Session, office: Installation, job: str) -> None:
    """Let JOB be sent anew at the next `onecard ota send`: one that failed, waits, or whose outcome is unknown."""
    with changing(session, office.database) as tx:
        made = airqueue.retry(tx, office.operator, office.enterprise_id, job)
    session.emit(air.row(made))


@command.command()
@click.argument("job")
@permitted(Permission.CARD_SHOW)
def cancel(session: Session, office: Installation, job: str) -> None:
    """Take JOB back, when its card was told nothing yet."""
    with changing(session, office.database) as tx:
        made = airqueue.cancel(tx, office.operator, office.enterprise_id, job)
    session.emit(air.row(made))
