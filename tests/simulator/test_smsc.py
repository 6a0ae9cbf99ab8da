"""The simulated message centre: SMPP as server, texts and packets to phones, faults by seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cardlib.errors import FormatError, StatusError, TransportError
from cardlib.wire import sms
from cardlib.wire.smpp import Address, Bind, Command, Deframer, Message, Pdu, Status, message_id, named
from simulator.phone import Phone
from simulator.sim import Sim
from simulator.smsc import RETRY_S, VALID_S, Centre, Faults, lasting_s
from tests.simulator.smscrig import BIND, PASSWORD, Clock, End, Handset, World, message, packet

NUMBER = "8613800000001"


class Client:
    """Speaks raw PDUs to a centre."""

    def __init__(self, centre: Centre | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.centre = centre or Centre({BIND.system_id: PASSWORD}, self.clock)
        self.deframer = Deframer()
        self.line, theirs = End.pair(Random(1))
        self.line.is_whole = theirs.is_whole = True
        self.centre.attach(theirs)

    def ask(self, command: int, sequence: int = 1, body: bytes = b"") -> list[Pdu]:
        words = (16 + len(body), command, 0, sequence)
        self.line.write(b"".join(word.to_bytes(4, "big") for word in words) + body)
        return self.hear()

    def hear(self) -> list[Pdu]:
        self.centre.poll()
        return [one for one in self.deframer.feed(self.line.read()) if isinstance(one, Pdu)]

    def status(self, command: int, body: bytes = b"") -> tuple[int, int]:
        (answer,) = self.ask(command, 1, body)
        assert answer.sequence == 1
        return answer.command, answer.status


@pytest.mark.parametrize(
    ("bind", "status"),
    [
        (BIND, Status.OK),
        (Bind("nobody", PASSWORD), Status.INVALID_SYSTEM_ID),
        (Bind("office", "wrong"), Status.INVALID_PASSWORD),
    ],
)
@pytest.mark.parametrize("command", [Command.BIND_TRANSCEIVER, Command.BIND_TRANSMITTER, Command.BIND_RECEIVER])
def test_binds(bind: Bind, status: Status, command: Command) -> None:
    """Each kind of bind needs name and password; what is said before a good one has no effect."""
    client = Client()
    client.centre.register(NUMBER, Handset())
    assert client.status(Command.SUBMIT_SM, message().encode()) == (Command.SUBMIT_SM_RESP, Status.BAD_BIND_STATE)
    assert client.status(command, bind.encode()) == (command.answer, status)
    assert client.status(Command.ENQUIRE_LINK) == (Command.ENQUIRE_LINK_RESP, Status.OK)
    may_send = status is Status.OK and command is not Command.BIND_RECEIVER
    wanted = Status.OK if may_send else Status.BAD_BIND_STATE
    assert client.status(Command.SUBMIT_SM, message().encode()) == (Command.SUBMIT_SM_RESP, wanted)
    if status is Status.OK:
        assert client.status(command, bind.encode()) == (command.answer, Status.ALREADY_BOUND)
        assert client.status(Command.UNBIND) == (Command.UNBIND_RESP, Status.OK)
        assert not client.line.other.is_open


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (message(number="404"), Status.INVALID_DESTINATION),
        (message(b"x" * 200, data_coding=4), Status.INVALID_TEXT_LENGTH),
        (Message(Address(""), Address(NUMBER), b"x"), Status.INVALID_SOURCE),
        (message(b"", esm_class=0x40), Status.SUBMIT_FAILED),
        (message(validity="soon"), Status.SUBMIT_FAILED),
        (None, Status.INVALID_LENGTH),
    ],
)
def test_refused_messages(bad: Message | None, status: Status) -> None:
    """What can't be delivered is refused with its status and no message id."""
    client = Client()
    client.centre.register(NUMBER, Handset())
    client.status(Command.BIND_TRANSCEIVER, BIND.encode())
    (answer,) = client.ask(Command.SUBMIT_SM, 1, bad.encode() if bad else b"\1")
    assert (answer.status, message_id(answer.body)) == (status, "")


def test_unknown_commands_and_lengths() -> None:
    """Unknown commands get GENERIC_NACK and cost nothing; an impossible length ends the line."""
    client = Client()
    assert client.ask(0x103, 4) == [Pdu(Command.GENERIC_NACK, Status.INVALID_COMMAND, 4)]
    client.line.write(bytes(16))
    assert client.hear() == [Pdu(Command.GENERIC_NACK, Status.INVALID_LENGTH, 0)]
    assert not client.line.other.is_open


TEXTS = ["hello {world}", "余额 12.00 元", "long " * 60, "很长的通知。" * 30, "€" * 100]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_reach_the_holder(text: str) -> None:
    """GSM 7-bit and UCS2, in one message or in parts that overtake each other, arrive as they were written."""
    world = World(3, Faults(slowest_s=20.0))
    phone = world.phone()
    for n, part in enumerate(sms.encode_text(text, 7)):
        esm_class = 0x40 if part.has_header else 0
        one = message(sms.to_centre(part), esm_class=esm_class, data_coding=part.dcs)
        world.esme.submit(str(n), one)
    world.run(40, 0.5)
    assert phone.inbox == [text]


def test_a_client_gets_what_phones_send() -> None:
    """An SMS-SUBMIT of a SIM comes as DELIVER_SM to a bound receiver, again after a refusal or a line that broke."""
    client = Client()
    phone = Handset()
    client.centre.register(NUMBER, phone)
    submit = sms.Submit(sms.Address.of("10690001"), b"\x02\x71\x00data", 1)
    assert phone.send is not None
    assert phone.send(submit.encode())
    assert not phone.send(b"\xff")
    _, brought = client.ask(Command.BIND_RECEIVER, 1, BIND.encode())
    found = Message.decode(brought.body)
    assert (found.source.digits, found.destination.digits) == (NUMBER, "10690001")
    assert (found.text, found.esm_class, found.protocol_id, found.data_coding) == (submit.user_data, 0x40, 0x7F, 0xF6)
    client.line.write(Pdu(Command.DELIVER_SM_RESP, Status.SYSTEM_ERROR, brought.sequence, named("")).encode())
    assert client.hear() == []
    client.clock.now_s += RETRY_S
    client.centre.poll()
    (again,) = client.hear()
    assert again.body == brought.body
    client.line.close()
    client.centre.poll()
    other = Client(client.centre, client.clock)
    _, last = other.ask(Command.BIND_TRANSCEIVER, 1, BIND.encode())
    assert last.body == brought.body
    other.line.write(Pdu(Command.DELIVER_SM_RESP, Status.OK, last.sequence, named("")).encode())
    assert other.hear() == []
    assert client.centre.next_s is None


@pytest.mark.parametrize("error", [StatusError(0x9300, b"\x80\xc2\0\0"), TransportError("switched off")])
def test_a_busy_phone_gets_it_later(error: Exception) -> None:
    """A SIM that is busy or a phone that is off gets the message when it is tried again, until its time is over."""
    world = World()
    phone = world.phone()
    phone.error = error
    world.esme.submit("a", packet(b"first"))
    world.esme.submit("b", replace(packet(b"short-lived"), validity="000000000010000R"))
    world.run(RETRY_S / 2, 1)
    phone.error = None
    world.run(2 * RETRY_S, 1)
    assert [one[-5:] for one in phone.packets] == [b"first"]
    assert len(world.owner.came) == 1


def test_faults_by_seed() -> None:
    """Loss, duplicates and overtaking happen, and the same seed gives the same world."""

    def played(seed: int) -> list[bytes]:
        world = World(seed, Faults(loss=0.2, twice=0.2, slowest_s=5.0))
        phone = world.phone()
        for n in range(40):
            world.esme.submit(str(n), packet(b"%02d" % n))
        world.run(20, 0.25)
        assert set(world.owner.how.values()) == {"accepted"}
        return [one[-2:] for one in phone.packets]

    found = played(5)
    assert found == played(5) != played(6)
    assert found != sorted(found)
    assert 20 < len(set(found)) < 40
    assert len(found) > len(set(found))


def test_late_and_nameless_answers() -> None:
    """The SIM's answer may come before the centre's, which may have no message id."""
    world = World(2, Faults(slowest_s=5.0, late=0.7, nameless=0.5))
    world.phone()
    order: list[str] = []
    world.owner.accepted = lambda key, message_id: order.append(key + message_id[:0])  # type: ignore[method-assign]
    world.owner.delivered = lambda message: order.append(f"{message.text[-2:].decode()}!")  # type: ignore[method-assign]
    for n in range(20):
        world.esme.submit(f"{n:02}", packet(b"%02d" % n))
    world.run(30, 0.2)
    assert sorted(order) == sorted([f"{n:02}" for n in range(20)] + [f"{n:02}!" for n in range(20)])
    assert any(order.index(f"{n:02}!") < order.index(f"{n:02}") for n in range(20))


def test_a_full_queue_asks_for_patience() -> None:
    """QUEUE_FULL makes the client wait, and everything arrives in the end."""
    world = World()
    world.centre._queue = 2
    phone = world.phone()
    for n in range(9):
        world.esme.submit(str(n), message(b"%d" % n))
    world.run(30, 0.5)
    assert sorted(phone.inbox) == [str(n) for n in range(9)]


def test_times_of_smpp() -> None:
    """Relative and absolute times, with a zone; others are refused."""
    now = Clock().now_s
    assert lasting_s("", now, VALID_S) == now + VALID_S
    assert lasting_s("000001020304000R", now, 0) == now + 86_400 + 2 * 3600 + 3 * 60 + 4
    assert lasting_s("700101000000000+", now, 0) == lasting_s("700101080000032+", now, 0)
    assert lasting_s("700101000000000+", now, 0) == lasting_s("691231200000016-", now, 0)
    for bad in ("soon", "701301000000000+", "000001020304000X"):
        with pytest.raises(FormatError):
            lasting_s(bad, now, 0)


def test_a_real_sim_behind_the_centre() -> None:
    """A text and a packet for an unknown application reach a simulated phone: a text in the inbox, 09 as answer."""
    world = World()
    phone = Phone(Sim().phone)
    phone.power_on()
    world.centre.register(NUMBER, phone)
    world.esme.submit("text", message(b"hello"))
    head = bytes.fromhex("0D" + "0001" + "0000" + "ABCDEF" + "0000000000" + "00")
    world.esme.submit("packet", packet(len(head).to_bytes(2, "big") + head))
    world.run()
    assert phone.inbox == ["hello"]
    (answer,) = world.owner.came
    assert answer.text == bytes.fromhex("027100" + "000B" + "0A" + "ABCDEF" + "0000000000" + "00" + "09")


def test_garbage_ends_lines_only() -> None:
    """Random PDUs and bytes never raise; at worst their own line is closed."""
    for seed in range(300):
        random = Random(seed)
        client = Client()
        client.centre.register(NUMBER, Handset())
        client.status(Command.BIND_TRANSCEIVER, BIND.encode())
        body = bytearray(message(random.randbytes(20), data_coding=random.choice((0, 4, 8))).encode())
        body[random.randrange(len(body))] = random.getrandbits(8)
        client.ask(random.choice(list(Command)), random.getrandbits(31), bytes(body[: random.randint(0, len(body))]))
        if client.line.other.is_open:
            client.line.write(random.randbytes(random.randint(1, 80)))
            client.hear()
        client.clock.now_s += 100
        client.centre.poll()


def test_ten_thousand_phones_cost_little() -> None:
    """Each of 10 000 phones gets its own message."""
    world = World(window=500)
    world.are_whole = True
    phones = [world.phone(f"86138{n:08d}") for n in range(10_000)]
    for n in range(10_000):
        world.esme.submit(str(n), message(b"%d" % n, f"86138{n:08d}"))
    world.run(3)
    assert [phone.inbox for phone in phones] == [[str(n)] for n in range(10_000)]
