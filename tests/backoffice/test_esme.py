"""The SMPP client: whatever the centre and the line do, each message ends once, and the line comes back."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from backoffice.esme import ANSWER_S, LAST_RETRY_S, QUIET_S, Esme
from cardlib.errors import FormatError, NotFound, TransportError
from cardlib.wire.smpp import Bind, Command, Deframer, Pdu, Status, named
from simulator.smsc import Faults
from tests.simulator.smscrig import BIND, PASSWORD, Clock, End, Ends, World, message, packet


class Script:
    """A client at a line whose other end a test holds: what it sent, as PDUs."""

    def __init__(self, window: int = 10) -> None:
        self.clock, self.owner, self.deframer = Clock(), Ends(), Deframer()
        self.ours, self.theirs = End.pair(Random(1))
        self.ours.is_whole = self.theirs.is_whole = True
        self.esme = Esme(lambda: self.ours, BIND, self.owner, self.clock, window)

    def heard(self) -> list[Pdu]:
        """What the client says, after it had its turn."""
        self.esme.poll()
        return self.said()

    def said(self) -> list[Pdu]:
        return [one for one in self.deframer.feed(self.theirs.read()) if isinstance(one, Pdu)]

    def say(self, command: int, sequence: int, status: int = 0, body: bytes = b"") -> None:
        words = (16 + len(body), command, status, sequence)
        self.theirs.write(b"".join(word.to_bytes(4, "big") for word in words) + body)

    def bound(self) -> Script:
        (bind,) = self.heard()
        assert Bind.decode(bind.body) == BIND
        self.say(Command.BIND_TRANSCEIVER_RESP, bind.sequence, body=named("centre"))
        self.esme.poll()
        assert self.esme.bound
        return self


def test_messages_there_and_back() -> None:
    """A packet reaches the SIM, and what the delivery report holds comes back as a message from the phone."""
    world = World()
    phone = world.phone()
    world.esme.submit("a", packet(b"data"))
    world.run()
    assert world.owner.how == {"a": "accepted"}
    assert world.owner.ids["a"]
    assert phone.packets[0].endswith(b"\x02\x70\x00data")
    (answer,) = world.owner.came
    assert (answer.source.digits, answer.text) == ("8613800000001", b"\x02\x71\x00data")
    assert world.esme.waiting == 0


@pytest.mark.parametrize("seed", range(60))
def test_each_message_ends_once(seed: int) -> None:
    """Lines cut at any moment, throttling, lost answers: accepted, rejected or lost, each message exactly once."""
    random = Random(seed)
    world = World(seed, Faults(0.1, 0.1, 3.0, throttled=0.2, cut=0.05), window=random.randint(1, 12))
    phone = world.phone()
    keys = [f"m{n}" for n in range(25)]
    for key in keys:
        world.esme.submit(key, message(key.encode(), "404" if random.random() < 0.1 else "8613800000001"))
    for _ in range(400):
        world.run(1.0, 0.1)
        if random.random() < 0.05:
            world.cut()
        if not world.esme.waiting:
            break
    assert world.owner.told == dict.fromkeys(keys, 1)
    world.run(5)
    for key, how in world.owner.how.items():
        assert how != "rejected" or key not in phone.inbox


def test_a_lost_answer_is_told_as_lost() -> None:
    """The centre took the message but hung up instead of answering: lost, never sent again by itself."""
    world = World(1, Faults(cut=1.0))
    phone = world.phone()
    for n in range(12):
        world.esme.submit(f"m{n}", message(f"m{n}".encode()))
    world.run(120, 0.5)
    assert set(world.owner.how.values()) == {"lost"}
    assert 0 < len(phone.inbox) < 12
    assert len(set(phone.inbox)) == len(phone.inbox)


def test_a_silent_centre_is_left() -> None:
    """No answer for ANSWER_S: the message is told as lost and the line opened anew."""
    script = Script().bound()
    script.esme.submit("a", message())
    script.heard()
    script.clock.now_s += ANSWER_S + 1
    script.esme.poll()
    assert script.owner.how == {"a": "lost"}
    assert not script.ours.is_open
    assert "does not answer" in script.esme.trouble


def test_calls_become_rare() -> None:
    """A centre that is down is called after 1, 2, 4 .. s and then each minute; once it is back all goes out."""
    world = World()
    world.is_up = False
    world.phone()
    world.esme.submit("a", message())
    world.run(15, 0.25)
    assert world.calls == 4
    world.run(600, 1)
    assert world.calls <= 4 + 3 + 600 / LAST_RETRY_S
    assert world.esme.trouble == "nobody listens"
    world.is_up = True
    world.run(LAST_RETRY_S + 1)
    assert world.owner.how == {"a": "accepted"}
    assert world.esme.trouble == ""


@pytest.mark.parametrize("bind", [Bind("nobody", PASSWORD), Bind("office", "wrong")])
def test_a_refused_bind_sends_nothing(bind: Bind) -> None:
    """A wrong name or password: no message leaves, people are told where to look, the password is not in it."""
    world = World(bind=bind)
    world.esme.submit("a", message())
    world.run(10)
    assert world.owner.told == {}
    assert world.esme.waiting == 1
    assert "name and password" in world.esme.trouble
    assert bind.password not in world.esme.trouble + repr(bind)


def test_who_only_sends_gets_nothing() -> None:
    """A client bound as transmitter sends; what phones say goes to another one."""
    world = World()
    world.esme = Esme(world._call, BIND, world.owner, world.clock, kind=Command.BIND_TRANSMITTER)
    phone = world.phone()
    world.esme.submit("a", packet(b"x"))
    world.run()
    assert (len(phone.packets), world.owner.how, world.owner.came) == (1, {"a": "accepted"}, [])
    other = Ends()
    world.esme = Esme(world._call, BIND, other, world.clock)
    world.run()
    assert [one.text for one in other.came] == [b"\x02\x71\x00" + phone.packets[0][-4:]]


def test_the_window_is_kept() -> None:
    """No more than the window is under way; an answer lets the next one go."""
    script = Script(window=3).bound()
    for n in range(5):
        script.esme.submit(str(n), message())
    sent = script.heard()
    assert len(sent) == 3
    script.say(Command.SUBMIT_SM_RESP, sent[1].sequence, body=b"id\0")
    assert len(script.heard()) == 1
    assert script.owner.ids == {"1": "id"}


def test_throttled_messages_wait() -> None:
    """After THROTTLED nothing leaves for a second; then the same message does."""
    script = Script(window=1).bound()
    script.esme.submit("a", message())
    (sent,) = script.heard()
    script.say(Command.SUBMIT_SM_RESP, sent.sequence, Status.THROTTLED, b"\0")
    assert script.heard() == []
    script.clock.now_s += 1.1
    (again,) = script.heard()
    assert again.body == sent.body
    assert script.owner.told == {}


def test_silence_is_asked_about() -> None:
    """After a quiet time the client asks whether the centre is there, and answers the same question."""
    script = Script().bound()
    script.clock.now_s += QUIET_S + 1
    (asked,) = script.heard()
    assert asked.command is Command.ENQUIRE_LINK
    script.say(Command.ENQUIRE_LINK_RESP, asked.sequence)
    script.say(Command.ENQUIRE_LINK, 77)
    script.say(Command.ENQUIRE_LINK, 0xFFFF_FFFF)  # some centres number like this
    assert script.heard() == [Pdu(Command.ENQUIRE_LINK_RESP, 0, 77), Pdu(Command.ENQUIRE_LINK_RESP, 0, 0xFFFF_FFFF)]
    assert script.esme.bound


@pytest.mark.parametrize("body", [b"", b"\0", b"x" * 70])
def test_empty_and_malformed_ids(body: bytes) -> None:
    """An answer that says OK is acceptance, whatever its message id looks like."""
    script = Script().bound()
    script.esme.submit("a", message())
    (sent,) = script.heard()
    script.say(Command.SUBMIT_SM_RESP, sent.sequence, body=body)
    script.esme.poll()
    assert script.owner.ids == {"a": ""}


def test_a_message_before_the_answer() -> None:
    """DELIVER_SM may come before SUBMIT_SM_RESP; both are taken."""
    script = Script().bound()
    script.esme.submit("a", packet(b"x"))
    (sent,) = script.heard()
    script.say(Command.DELIVER_SM, 9, body=message(b"\x02\x71\x00").encode())
    script.say(Command.SUBMIT_SM_RESP, sent.sequence, body=b"\0")
    assert script.heard() == [Pdu(Command.DELIVER_SM_RESP, 0, 9, b"\0")]
    assert [one.text for one in script.owner.came] == [b"\x02\x71\x00"]
    assert script.owner.how == {"a": "accepted"}


def test_an_owner_that_fails_gets_it_again() -> None:
    """When the owner can't keep a message, the centre is told so, and the error comes out."""

    class Failing(Ends):
        def delivered(self, message: object) -> None:
            raise NotFound("no room")

    script = Script().bound()
    script.esme._owner = Failing()
    script.say(Command.DELIVER_SM, 9, body=message().encode())
    with pytest.raises(NotFound):
        script.esme.poll()
    (answer,) = script.said()
    assert (answer.command, answer.status) == (Command.DELIVER_SM_RESP, Status.SYSTEM_ERROR)


def test_strange_commands() -> None:
    """Unknown commands get GENERIC_NACK, a malformed message its status; neither costs the line."""
    script = Script().bound()
    script.say(0x103, 5)
    script.say(Command.DELIVER_SM, 6, body=b"\0")
    script.say(Command.SUBMIT_SM, 7, body=message().encode())
    script.say(Command.SUBMIT_SM_RESP, 4711, body=b"id\0")
    assert script.heard() == [
        Pdu(Command.GENERIC_NACK, Status.INVALID_COMMAND, 5),
        Pdu(Command.DELIVER_SM_RESP, Status.INVALID_LENGTH, 6, b"\0"),
        Pdu(Command.GENERIC_NACK, Status.BAD_BIND_STATE, 7),
    ]
    assert script.esme.bound


def test_a_nack_rejects() -> None:
    """GENERIC_NACK to a message rejects it; an answer of another kind ends the line, and the message is lost."""
    script = Script().bound()
    script.esme.submit("a", message())
    script.esme.submit("b", message())
    first, second = script.heard()
    script.say(Command.GENERIC_NACK, first.sequence, Status.INVALID_COMMAND)
    script.say(Command.ENQUIRE_LINK_RESP, second.sequence)
    script.esme.poll()
    assert script.owner.how == {"a": "rejected", "b": "lost"}
    assert not script.ours.is_open


def test_leave_taken_by_either() -> None:
    """UNBIND is answered and the line given up; closing says UNBIND and tells what was not answered as lost."""
    script = Script().bound()
    script.say(Command.UNBIND, 3)
    assert script.heard() == [Pdu(Command.UNBIND_RESP, 0, 3)]
    assert not script.ours.is_open
    script = Script().bound()
    script.esme.submit("a", message())
    script.heard()
    script.esme.close()
    (leave,) = script.said()
    assert leave.command is Command.UNBIND
    assert script.owner.how == {"a": "lost"}


def test_garbage_from_the_centre() -> None:
    """Random bytes instead of PDUs never raise, and never make a message end twice."""
    for seed in range(300):
        random = Random(seed)
        script = Script().bound()
        script.esme.submit("a", message())
        script.esme.poll()
        command = random.choice([*Command, random.getrandbits(32)])
        script.say(
            command, random.choice((2, random.getrandbits(31))), random.choice((0, 0x58, 8)), random.randbytes(9)
        )
        script.theirs.write(random.randbytes(random.randint(0, 60)))
        for _ in range(3):
            script.esme.poll()
        with suppress(TransportError):
            script.theirs.close()
        script.clock.now_s += 2 * ANSWER_S
        script.esme.poll()
        assert script.owner.told["a"] <= 1
        assert script.owner.told["a"] or script.esme.waiting


def test_what_can_not_be_sent_is_refused_at_once() -> None:
    """A message that does not fit SMPP raises when it is given, not later."""
    with pytest.raises(FormatError):
        World().esme.submit("a", message(number="1" * 30))
