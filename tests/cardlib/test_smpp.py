"""SMPP PDUs: what is written is read again, and nothing that comes from a line breaks more than itself."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import FormatError
from cardlib.wire.smpp import (
    HEADER,
    MAX_PDU,
    Address,
    Bind,
    Command,
    Deframer,
    Message,
    Pdu,
    Status,
    Tag,
    UnknownPdu,
    message_id,
    named,
)
from tests import secretwatch

digits = st.text("0123456789", max_size=20)
addresses = st.builds(Address, digits, st.integers(0, 6), st.integers(0, 18))
messages = st.builds(
    Message, addresses, addresses, st.binary(max_size=300), *[st.integers(0, 255)] * 5,
    optional=st.dictionaries(st.sampled_from([Tag.USER_MESSAGE_REFERENCE, 0x1400]), st.binary(max_size=9)),
)  # fmt: skip

SUBMIT = bytes.fromhex(
    "0000003A 00000004 00000000 00000007"  # header
    "00 0101 3836313338303000 0000 3130303600"  # service type, source, destination
    "40 7F 00 00 00 00 00 04 00 0E 027000000B0A16190000BFFF4F00"  # flags, times, text of 14
)
"""Put together by hand from the table of submit_sm in the SMPP 3.4 specification (4.4.1)."""


def test_a_message_put_together_by_hand() -> None:
    """A SUBMIT_SM for a SIM has its fields in the order and size of the standard."""
    text = bytes.fromhex("027000000B0A16190000BFFF4F00")
    message = Message(Address("8613800", 1, 1), Address("1006"), text, 0x40, 0x7F, 0x04)
    raw = Pdu(Command.SUBMIT_SM, Status.OK, 7, message.encode()).encode()
    assert raw == SUBMIT
    (pdu,) = Deframer().feed(raw)
    assert isinstance(pdu, Pdu)
    assert Message.decode(pdu.body) == message


@given(messages)
def test_messages_are_read_as_written(message: Message) -> None:
    """Any message survives, short or in message_payload."""
    assert Message.decode(message.encode()) == message


def test_a_bind_keeps_its_password_out_of_sight() -> None:
    """A bind is read as written, and shows its password nowhere."""
    secretwatch.register("smpp-pw1", "a password of a test")
    bind = Bind("onecard", "smpp-pw1", "OTA")
    pdu = Pdu(Command.BIND_TRANSCEIVER, 0, 1, bind.encode())
    assert Bind.decode(pdu.body) == bind
    assert "smpp-pw1" not in repr(bind) + repr(pdu) + str(pdu)
    for wrong in (Bind("a" * 16, "x"), Bind("a", "x" * 9), Bind("a", "\0"), Bind("一", "x")):
        with pytest.raises(FormatError):
            wrong.encode()


@given(st.lists(st.tuples(st.sampled_from(Command), st.binary(max_size=40)), max_size=5), st.data())
def test_a_stream_is_cut_where_it_may_be(pdus: list[tuple[Command, bytes]], data: st.DataObject) -> None:
    """PDUs come out whole and in order, however the stream was cut."""
    sent = [Pdu(command, 0, number, body) for number, (command, body) in enumerate(pdus)]
    stream = b"".join(pdu.encode() for pdu in sent)
    deframer, got = Deframer(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += list(deframer.feed(stream[:size]))
        stream = stream[size:]
    assert got == sent


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read(raw: bytes) -> None:
    """No bytes bring about anything but FormatError, in the stream and in each body."""
    with contextlib.suppress(FormatError):
        list(Deframer().feed(raw))
    for read in (Message.decode, Bind.decode, message_id):
        with contextlib.suppress(FormatError):
            read(raw)


def test_lengths_that_can_not_be_end_the_line() -> None:
    """A PDU shorter than its header or longer than the limit is refused before it is awaited."""
    for size in (0, HEADER - 1, MAX_PDU + 1, 0xFFFFFFFF):
        with pytest.raises(FormatError):
            list(Deframer().feed(size.to_bytes(4, "big") + bytes(12)))
    assert list(Deframer().feed(b"\0\0\0\x10\0\0\x01\x02\0\0\0\0\0\0\0\x09")) == [UnknownPdu(0x102, 9)]


def test_answers() -> None:
    """Each request has its answer; a message id may be missing; throttling and a full queue pass."""
    assert Command.SUBMIT_SM.answer is Command.SUBMIT_SM_RESP
    assert Command.SUBMIT_SM_RESP.is_answer
    assert message_id(named("A7")) == "A7"
    assert message_id(b"") == ""
    assert [Status.passes(s) for s in (0x58, 0x14, 0x45, 0)] == [True, True, False, False]
