"""Runs in the peer's own environment: ``smpplib`` binds, sends a packet and texts, and gets the SIM's answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from smpplib import client, consts, exceptions, gsm

NUMBER, SERVICE = "8613800000001", "10690001"


def main(port: str, password_file: str, packet_hex: str, text: str) -> None:
    password = Path(password_file).read_text(encoding="ascii").strip()
    line = client.Client("127.0.0.1", int(port), timeout=1, allow_unknown_opt_params=True)
    line.connect()
    refused = None
    try:
        line.bind_transceiver(system_id="onecard", password="wrong")
    except exceptions.PDUError as e:
        refused = e.args[1]
    assert refused == consts.SMPP_ESME_RINVPASWD, refused
    line.bind_transceiver(system_id="onecard", password=password)
    ids: list[str] = []
    answers: list[str] = []

    def sent(pdu: Any, **_: Any) -> None:
        ids.append(pdu.message_id.decode())

    def came(pdu: Any, **_: Any) -> None:
        assert pdu.source_addr.decode() == NUMBER
        assert pdu.destination_addr.decode() == SERVICE
        assert pdu.esm_class == consts.SMPP_GSMFEAT_UDHI
        answers.append(pdu.short_message.hex())

    line.set_message_sent_handler(sent)
    line.set_message_received_handler(came)

    def send(data: bytes, esm_class: int, coding: int, pid: int) -> None:
        line.send_message(
            source_addr=SERVICE, dest_addr_ton=consts.SMPP_TON_INTL, dest_addr_npi=consts.SMPP_NPI_ISDN,
            destination_addr=NUMBER, short_message=data, esm_class=esm_class, data_coding=coding, protocol_id=pid,
        )  # fmt: skip

    send(bytes.fromhex(packet_hex), consts.SMPP_GSMFEAT_UDHI, 4, 0x7F)
    parts, coding, esm_class = gsm.make_parts(text)
    for part in parts:
        send(part, esm_class, coding, 0)
    while len(ids) < 1 + len(parts) or not answers:
        line.read_once()
    line.read_once()  # nothing comes: after its timeout the peer sends enquire_link
    answer = line.read_pdu()
    assert answer.command == "enquire_link_resp", answer.command
    assert len(set(ids)) == 1 + len(parts), ids
    line.unbind()
    line.disconnect()
    sys.stdout.write(f"{answers[0]}\n")


main(*sys.argv[1:])
