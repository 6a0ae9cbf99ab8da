"""Both ends of the terminal link over a simulated line: loss, cuts, pairing, tokens, sessions, files, journals."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardlib import blacklist
from cardlib.errors import CheckFailed, FormatError, LineTimeout, MacMismatch, OneCardError, Refused, TransportError
from cardlib.profile import crc8
from cardlib.wire import smp
from cardlib.wire.link import Frame, HelloAnswer, Kind
from cardlib.wire.smp import Message
from terminals.guard import MAX_FAILURES
from terminals.installer import Client, SessionEnded
from terminals.link import Busy, Master
from terminals.services import CHUNK
from tests.terminals.linkrig import AUTHORITY as AUTHORITY_KEY
from tests.terminals.linkrig import (
    CODE,
    DAY_MS,
    INSTALLER,
    NOW,
    OTHER,
    ROOT,
    Line,
    Terminal,
    client,
    config_file,
    installer,
    losing,
    paired,
    plug,
)

DATA = random.Random(5).randbytes(5000)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path / "t", entries=30)
    yield made
    made.journal.close()


def again(terminal: Terminal, line: Line, seed: int = 3, **changes: Any) -> Client:
    """A client in a KK session."""
    terminal.connect(line, seed=seed + 100)
    one = client(line, seed=seed)
    one.open(installer(**changes), terminal.key.public)
    return one


class EchoDesk:
    """Answers each message with a long one, counts them, and is busy as often as told."""

    def __init__(self, serial: str = "T", size: int = 1, busy: int = 0) -> None:
        self.speed_wanted, self.text = 0, False
        self.serial, self.size, self.busy, self.runs = serial, size, busy, 0

    def hello(self, nonce: bytes) -> HelloAnswer:
        return HelloAnswer(nonce, self.serial, "M", 1100, (115_200,), False, bytes(16))

    def answer(self, message: bytes, *, encrypted: bool) -> tuple[bytes, bool] | None:
        if self.busy:
            self.busy -= 1
            raise Busy(200)
        self.runs += 1
        return message * self.size, encrypted

    def answer_line(self, line: bytes) -> bytes:
        return b""


def master(line: Line, seed: int = 1) -> Master:
    return Master(line.end(leads=True), line.clock, random.Random(seed).randbytes, 0.02)


# --- frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_each_command_runs_once_on_a_bad_line(seed: int) -> None:
    """With bytes lost, changed and doubled, each exchange that ends brought the right answer and ran once."""
    line, desk = Line(115_200, 0.004, losing(seed, 0.0004)), EchoDesk(size=3)
    plug(line, desk, 9)
    one, rng, done = master(line, seed), random.Random(seed), 0
    for _ in range(40):
        message = rng.randbytes(rng.randrange(1, 2500))
        before = desk.runs
        try:
            assert one.exchange(9, message).message == message * 3
            assert desk.runs == before + 1
            done += 1
        except LineTimeout:
            assert desk.runs <= before + 1
    assert done >= 36


def test_tries_and_time_outs() -> None:
    """A silent slave is asked five times: after 150, 300, 600, 1200 and 1200 ms of silence."""
    line, times, seen = Line(), [], set()

    def spoil(data: bytes) -> bytes:
        times.append(line.now)
        seen.add(data)
        return data

    line.spoil = spoil
    with pytest.raises(LineTimeout, match="address 9"):
        master(line).exchange(9, b"x")
    assert [round(b - a, 2) for a, b in zip(times, [*times[1:], line.now], strict=True)] == pytest.approx(
        [0.15, 0.3, 0.6, 1.2, 1.2], abs=0.02
    )
    assert len(seen) == 1


def test_repeated_frame_gets_the_stored_bytes() -> None:
    """The same frame again is answered with the same bytes, and its command does not run again."""
    line, desk = Line(), EchoDesk()
    plug(line, desk, 9)
    end = line.end(leads=True)
    coded = Frame(9, Kind.DATA, 7, b"once").encode()
    answers = []
    for _ in range(3):
        end.write(coded)
        answers.append(b"".join(end.read() for _ in range(5)))
    assert answers[0] == answers[1] == answers[2] == Frame(9, Kind.DATA, 7, b"once", from_slave=True).encode()
    assert desk.runs == 1
    end.write(Frame(9, Kind.DATA, 7, b"another master's").encode())
    assert b"another" in b"".join(end.read() for _ in range(5))
    end.write(Frame(8, Kind.DATA, 8, b"x").encode() + Frame(9, Kind.DATA, 9, b"x", from_slave=True).encode())
    assert b"".join(end.read() for _ in range(5)) == b""
    assert desk.runs == 2


def test_fragments_are_acknowledged() -> None:
    """A fragment is answered ACK with its number; the answer's fragments are asked for one by one."""
    line = Line()
    plug(line, EchoDesk(), 9)
    end = line.end(leads=True)
    end.write(Frame(9, Kind.DATA, 255, b"a" * 1100, more=True).encode())
    assert b"".join(end.read() for _ in range(5)) == Frame(9, Kind.ACK, 255, from_slave=True).encode()
    end.write(Frame(9, Kind.DATA, 1, b"b").encode())
    first = Frame(9, Kind.DATA, 1, b"a" * 1100, from_slave=True, more=True).encode()
    assert b"".join(end.read() for _ in range(5)) == first
    end.write(Frame(9, Kind.ACK, 1).encode())
    assert b"".join(end.read() for _ in range(5)) == Frame(9, Kind.DATA, 2, b"b", from_slave=True).encode()
    assert master(line).exchange(9, DATA, encrypted=True) == (DATA, True)


def test_busy() -> None:
    """BUSY makes the master send the same frame again after the time told; after 60 s it gives up."""
    line, desk = Line(), EchoDesk(busy=3)
    plug(line, desk, 9)
    began = line.now
    assert master(line).exchange(9, b"x").message == b"x"
    assert 0.6 <= line.now - began < 0.8
    assert desk.runs == 1
    desk.busy = 1 << 30
    began = line.now
    with pytest.raises(LineTimeout, match="busy"):
        master(line).exchange(9, b"y")
    assert 59 < line.now - began < 62


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_discovery_finds_all_on_a_bus(count: int) -> None:
    """Terminals on one pair answer in their slots; rounds go on until all are found."""
    line = Line(115_200, 0.001)
    for number in range(count):
        plug(line, EchoDesk(f"T-{number}"), number)
    found = master(line).discover()
    assert {serial: address for serial, (address, _) in found.items()} == {f"T-{n}": n for n in range(count)}


def test_hello_does_not_end_a_session(terminal: Terminal) -> None:
    """HELLO to a slave or to all is answered in clear, and the session goes on."""
    line = Line()
    one = paired(terminal, line)
    assert one.master.hello(5).serial == "POS-0001"
    assert list(one.master.discover()) == ["POS-0001"]
    assert one.request(smp.LIST_STATUS) == {0: 0, 1: 0}


@pytest.mark.parametrize("works", [True, False])
def test_speed(terminal: Terminal, works: bool) -> None:
    """A new speed is confirmed by a good frame within 500 ms, or both ends fall back."""
    line = Line(115_200)
    one = paired(terminal, line)
    slave_end = line.ends[0]
    if not works:
        slave_end.set_baud = lambda baud: setattr(slave_end, "baud", 300 if baud == 230_400 else baud)  # type: ignore[method-assign]
    assert one.set_speed(230_400) == (230_400 if works else 115_200)
    assert slave_end.baud == one.master.port.baud == (230_400 if works else 115_200)
    assert one.request(smp.ECHO, {"d": "hi"}) == {"r": "hi"}


def test_two_masters(terminal: Terminal) -> None:
    """Another master takes over only by a handshake of its own; the first one is told and runs nothing twice."""
    line = Line()
    one = paired(terminal, line)
    stranger = client(line, seed=9)
    assert stranger.request(smp.ECHO, {"d": "x"}) == {"r": "x"}
    with pytest.raises(Refused, match="session"):
        stranger.request(smp.JOURNAL_HEAD)
    assert one.request(smp.ECHO, {"d": "hi"}) == {"r": "hi"}
    second = client(line, seed=8)
    second.open(installer(), terminal.key.public)
    assert second.request(smp.ECHO, {"d": "me"}) == {"r": "me"}
    with pytest.raises(SessionEnded):
        one.request(smp.RESET)
    with pytest.raises(SessionEnded):
        one.request(smp.RESET)
    assert terminal.resets == 0


# --- pairing and tokens --------------------------------------------------------------------------------------


def test_only_some_commands_need_no_session(terminal: Terminal) -> None:
    """Outside a session only echo, params and identity are answered; everything else is refused, text and group."""
    line = Line()
    terminal.connect(line)
    one = client(line)
    for number, command in enumerate(vars(smp).copy().values()):
        if not (isinstance(command, tuple) and len(command) == 3 and isinstance(command[2], smp.Op)):
            continue
        if command in (smp.ECHO, smp.PARAMS, smp.INFO):
            assert one.request(command, {"d": str(number)} if command == smp.ECHO else {})
        else:
            with pytest.raises(Refused):
                one.request(command)


def test_pairing_pins_both_and_ends_the_code(terminal: Terminal) -> None:
    """After the first contact both know each other, the code is used up, and KK opens the next session."""
    one = paired(terminal, Line())
    assert one.request(smp.INFO)[0] == "POS-0001"
    with pytest.raises(Refused, match="reset key"):
        client_on(terminal, seed=4).pair(installer(OTHER), CODE, terminal.label)
    with pytest.raises(Refused, match="does not know"):
        client_on(terminal, seed=4).open(installer(OTHER), terminal.key.public)
    terminal.start()
    two = again(terminal, Line())
    two.request(smp.PAIRING_CODE, {0: "11112222"})
    other = client_on(terminal, seed=5)
    other.pair(installer(OTHER, verbs=("clock",)), "11112222", terminal.label)
    with pytest.raises(Refused, match="does not allow pair"):
        other.request(smp.PAIRING_CODE, {0: "33334444"})
    assert again(terminal, Line(), seed=6).request(smp.ECHO, {"d": "x"})


def client_on(terminal: Terminal, seed: int) -> Client:
    line = Line()
    terminal.connect(line, seed=seed + 50)
    return client(line, seed=seed)


def test_wrong_fingerprint_stops_before_message_3(terminal: Terminal) -> None:
    """A terminal that is not the label's gets neither code nor token, and no failure is counted."""
    line = Line()
    terminal.connect(line)
    one = client(line)
    sent = record(line)
    with pytest.raises(Refused, match="not the one of this label"):
        one.pair(installer(), CODE, bytes(16))
    assert len(sent) == 1
    assert terminal.pairing.state.failures == 0
    with pytest.raises(FormatError):
        one.pair(installer(), CODE, b"")


def test_five_wrong_codes_then_one_an_hour(terminal: Terminal) -> None:
    """Five wrong codes lock pairing, over a restart too; then one try an hour; the right one ends it."""
    for number in range(MAX_FAILURES):
        with pytest.raises(Refused, match="not the code"):
            client_on(terminal, seed=number).pair(installer(), "00000000", terminal.label)
        terminal.start()
    for _ in range(2):
        with pytest.raises(Refused, match="in an hour"):
            client_on(terminal, seed=20).pair(installer(), CODE, terminal.label)
        terminal.start()
        terminal.wall.ms += 3_600_000
        with pytest.raises(Refused):
            client_on(terminal, seed=21).pair(installer(), "00000000", terminal.label)
    terminal.wall.ms += 3_600_000
    client_on(terminal, seed=22).pair(installer(), CODE, terminal.label)
    assert terminal.pairing.state.failures == 0


def test_tokens_are_checked(terminal: Terminal) -> None:
    """Expired, not yet valid, of another site, authority or installer: each token is refused with its reason."""
    one = paired(terminal, Line())
    one.request(smp.AUTHORITY, {0: AUTHORITY_KEY.public})
    with pytest.raises(Refused, match="another authority"):
        one.request(smp.AUTHORITY, {0: ROOT.public})
    terminal.host.site = "east"
    wrong: dict[str, dict[str, Any]] = {
        "expired": {"not_before_ms": NOW - 9 * DAY_MS, "not_after_ms": NOW - 1},
        "not_yet": {"not_before_ms": NOW + 1, "not_after_ms": NOW + 2},
        "site": {"sites": ("west",)},
        "crypto": {"authority": ROOT},
        "token": {"x25519": OTHER.public},
    }
    for reason, changes in wrong.items():
        with pytest.raises(Refused) as refused:
            again(terminal, Line(), **changes)
        assert refused.value.reason == reason
    assert again(terminal, Line()).request(smp.ECHO, {"d": "x"})


def test_clock_set_back_lengthens_no_token(terminal: Terminal) -> None:
    """Expiry is checked against the newest journal record when the clock is behind it."""
    paired(terminal, Line())
    terminal.wall.ms = NOW + 21 * DAY_MS
    terminal.journal.note("later")
    terminal.wall.ms = NOW
    with pytest.raises(Refused, match="expired"):
        again(terminal, Line())


def test_revoked_installer(terminal: Terminal) -> None:
    """A token revoked by a signed configuration works no longer: not in the session under way, not in a new one."""
    one = paired(terminal, Line())
    one.request(smp.AUTHORITY, {0: AUTHORITY_KEY.public})
    digest = one.upload("config", config_file(revoked=(b"tok1",)))
    one.request(smp.CONFIG_APPLY, {0: b"", 1: digest})
    with pytest.raises(Refused, match="revoked"):
        one.request(smp.JOURNAL_HEAD)
    with pytest.raises(Refused, match="revoked"):
        again(terminal, Line())
    terminal.start()
    with pytest.raises(Refused, match="revoked"):
        again(terminal, Line())


def test_revoked_by_a_list(terminal: Terminal) -> None:
    """A token revoked in the head of a list works no longer once the list is in force, nor after a restart."""
    one = paired(terminal, Line())
    whole = blacklist.Blacklist(1001, 1, NOW, {}, (b"tok1",))
    one.request(smp.LIST_TAKE, {0: one.upload("list", blacklist.snapshot(ROOT, whole))})
    with pytest.raises(Refused, match="revoked"):
        one.request(smp.JOURNAL_HEAD)
    terminal.start()
    with pytest.raises(Refused, match="revoked"):
        again(terminal, Line())


def test_verbs(terminal: Terminal) -> None:
    """A token allows its verbs and no others."""
    paired(terminal, Line())
    one = again(terminal, Line(), verbs=("collect",))
    assert one.request(smp.JOURNAL_READ, {0: 1, 1: 1})
    for command, payload in (
        (smp.DATETIME_SET, {"datetime": "2027-01-01T00:00:00"}), (smp.UPLOAD, {"off": 0, "data": b"", "name": "list"}),
    ):  # fmt: skip
        with pytest.raises(Refused) as refused:
            one.request(command, payload)
        assert refused.value.reason == "verb"


# --- sessions ------------------------------------------------------------------------------------------------


def record(line: Line) -> list[bytes]:
    """All that the master sends from now on."""
    sent: list[bytes] = []
    end = next(one for one in line.ends if one.leads)
    write = end.write

    def watched(data: bytes) -> None:
        sent.append(data)
        write(data)

    end.write = watched  # type: ignore[method-assign]  # this end only
    return sent


def test_replayed_session_does_nothing(terminal: Terminal) -> None:
    """All frames of a session sent again, in whatever order, run nothing and end no session in force."""
    paired(terminal, Line())
    line = Line()
    terminal.connect(line)
    one = client(line)
    sent = record(line)
    one.open(installer(), terminal.key.public)
    one.request(smp.RESET)
    one.request(smp.PAIRING_CODE, {0: "55556666"})
    terminal.pairing.save(code="")
    assert terminal.resets == 1
    handshake = sent[0]
    end = line.end(leads=True)
    end.write(handshake)
    for _ in range(10):
        end.read()
    assert one.request(smp.ECHO, {"d": "still here"})
    for data in (*sent, *reversed(sent)):
        end.write(data)
        for _ in range(10):
            end.read()
    assert terminal.resets == 1
    assert terminal.pairing.state.code == ""
    terminal.connect(fresh := Line(), seed=77)
    end = fresh.end(leads=True)
    for data in sent:
        end.write(data)
        for _ in range(10):
            end.read()
    assert terminal.resets == 1


def test_another_terminal_in_its_place(terminal: Terminal, tmp_path: Path) -> None:
    """A terminal with another key can't take the place of a paired one, nor one with another address or serial."""
    paired(terminal, Line())
    other = Terminal(tmp_path / "o", key=OTHER)
    other.pairing.save(pinned=(INSTALLER.public.hex(),))
    line = Line()
    other.connect(line)
    with pytest.raises((MacMismatch, Refused)):
        client(line).open(installer(), terminal.key.public)
    line = Line()
    terminal.connect(line, address=6)
    one = client(line, serial="POS-0002", address=6)
    with pytest.raises((MacMismatch, Refused)):
        one.open(installer(), terminal.key.public)
    other.journal.close()


def test_session_is_renewed_each_hour(terminal: Terminal) -> None:
    """After an hour the master shakes hands anew; a terminal ends a session that is older."""
    line = Line()
    one = paired(terminal, line)
    line.now += 3_601
    assert one.request(smp.ECHO, {"d": "x"})
    one._since_s = line.now + 9_999.0
    line.now += 3_800
    with pytest.raises(SessionEnded):
        one.request(smp.ECHO, {"d": "x"})


@pytest.mark.parametrize("seed", range(6))
def test_damaged_answers_only_end_the_session(terminal: Terminal, seed: int) -> None:
    """Whatever a bad line does to session and files, the file is whole in the end."""
    paired(terminal, Line())
    line = Line(115_200, 0.001, losing(seed, 0.0005))
    terminal.connect(line, seed=seed)
    for attempt in range(40):
        try:
            one = client(line, seed=900 + attempt)
            one.open(installer(), terminal.key.public)
            one.upload("list", DATA)
            break
        except (TransportError, MacMismatch, Refused):
            continue
    assert (terminal.folder / "files" / "list").read_bytes() == DATA


# --- files, clock, configuration, list -----------------------------------------------------------------------


def test_upload_cut_at_every_byte(terminal: Terminal) -> None:
    """An upload cut at any byte goes on where it stopped and sends at most one chunk again."""
    paired(terminal, Line())
    line = Line()
    one = again(terminal, line)
    start = line.passed
    data = DATA[: CHUNK + 100]
    one.upload("list", data)
    total = line.passed - start
    path = terminal.folder / "files" / "list"
    for cut in range(1, total):
        path.unlink(missing_ok=True)
        terminal.start()
        line = Line()
        one = again(terminal, line)
        line.cut_at = line.passed + cut
        with pytest.raises(TransportError):
            one.upload("list", data)
        terminal.start()
        line = Line()
        one = again(terminal, line)
        there = sum(part.stat().st_size for part in path.parent.glob("list.*.part")) or path.exists() * len(data)
        begun = line.passed
        one.upload("list", data)
        assert path.read_bytes() == data
        assert line.passed - begun < len(data) - there + 500
        assert cut < there + CHUNK + 1100


def test_upload_refuses(terminal: Terminal) -> None:
    """Wrong hash, too long, unknown names and paths are refused; nothing of them stays."""
    one = paired(terminal, Line())
    for name in ("../x", "x/list", "/list", "Shell", "", "list\0", "a" * 60):
        with pytest.raises(Refused):
            one.upload(name, b"x")
    with pytest.raises(Refused, match="are more than"):
        one.request(smp.UPLOAD, {"off": 0, "data": b"", "name": "list", "len": 1 << 21})
    one.request(smp.UPLOAD, {"off": 0, "data": b"", "name": "list", "len": 3, "sha": bytes(32)})
    with pytest.raises(Refused, match="SHA-256"):
        one.request(smp.UPLOAD, {"off": 0, "data": b"abc", "name": "list"})
    with pytest.raises(Refused, match="begin"):
        one.request(smp.UPLOAD, {"off": 0, "data": b"abc", "name": "list"})
    assert not list((terminal.folder / "files").iterdir())
    one.upload("list", b"")
    one.upload("list", b"abc")
    assert one.download("list") == b"abc"
    assert one.request(smp.FILE_HASH, {"name": "list"})["output"] == hashlib.sha256(b"abc").digest()
    with pytest.raises(Refused, match="no file"):
        one.download("firmware")


def test_clock(terminal: Terminal) -> None:
    """The clock is set to the millisecond, never before the newest journal record, and the journal says so."""
    one = paired(terminal, Line())
    one.set_clock(NOW + 1234)
    assert terminal.wall.ms == NOW + 1234
    assert one.request(smp.DATETIME_GET)["datetime"].endswith(".234")
    with pytest.raises(Refused) as refused:
        one.set_clock(NOW - 1)
    assert refused.value.reason == "clock_back"
    assert terminal.wall.ms == NOW + 1234


def test_configuration(terminal: Terminal) -> None:
    """A configuration is planned, applied once, and only a newer one of this terminal and authority after that."""
    one = paired(terminal, Line())
    digest = one.upload("config", config_file(2))
    with pytest.raises(Refused, match="no authority"):
        one.request(smp.CONFIG_APPLY, {0: b"", 1: digest})
    one.request(smp.AUTHORITY, {0: AUTHORITY_KEY.public})
    plan = one.request(smp.CONFIG_PLAN, {0: b"", 1: digest})
    assert plan[0] == 2
    assert "enterprise_id" in plan[1]
    applied = one.request(smp.CONFIG_APPLY, {0: b"", 1: digest})
    assert one.request(smp.CONFIG_APPLY, {0: b"", 1: digest}) == applied
    wrong = {
        "older": config_file(1), "foreign": config_file(3, "POS-0002"), "crypto": config_file(3, authority=ROOT),
        "config": config_file(3, body=b"version = 3"),
    }  # fmt: skip
    for reason, raw in wrong.items():
        digest = one.upload("config", raw)
        with pytest.raises(Refused) as refused:
            one.request(smp.CONFIG_APPLY, {0: applied[1], 1: digest})
        assert refused.value.reason == reason
    digest = one.upload("config", config_file(3))
    with pytest.raises(Refused, match="meanwhile"):
        one.request(smp.CONFIG_APPLY, {0: bytes(16), 1: digest})
    assert one.request(smp.CONFIG_APPLY, {0: applied[1], 1: digest})[0] == 3
    terminal.start()
    assert terminal.host.settings.version == 3


def test_list(terminal: Terminal) -> None:
    """A list comes into force; another enterprise's and an older one are refused."""
    one = paired(terminal, Line())

    body = bytes.fromhex("01010000000001")

    def put(enterprise_id: int, version: int) -> int:
        whole = blacklist.Blacklist.of(enterprise_id, version, NOW, [(body + bytes([crc8(body)]), 0)])
        return int(one.request(smp.LIST_TAKE, {0: one.upload("list", blacklist.snapshot(ROOT, whole))})[0])

    assert put(1001, 7) == 7
    for enterprise_id, version, reason in ((1002, 8, "list_foreign"), (1001, 6, "list_older")):
        with pytest.raises(Refused) as refused:
            put(enterprise_id, version)
        assert refused.value.reason == reason
    assert one.request(smp.LIST_STATUS) == {0: 7, 1: NOW}


def test_diagnosis(terminal: Terminal) -> None:
    """Tests run at the terminal; a line test brings its bytes back."""
    one = paired(terminal, Line())
    assert one.request(smp.CARD_TEST) == {0: True, 1: "card seen"}
    assert one.request(smp.LINE_TEST, {0: b"\x55\xaa", 1: 5001})[0] == b"\x55\xaa" * 2500 + b"\x55"
    with pytest.raises(Refused):
        one.request(smp.SCREEN_TEST)


# --- journal -------------------------------------------------------------------------------------------------


def test_collection_cut_at_every_byte(terminal: Terminal, tmp_path: Path) -> None:
    """A collection cut at any byte goes on at the last entry on disk; nothing is acknowledged before it is there."""
    paired(terminal, Line())
    terminal.journal.ack(20)
    line, dump = Line(), tmp_path / "dump"
    one = again(terminal, line)
    start = line.passed
    acked = terminal.journal.acked_seq
    terminal.journal.ack = lambda seq: None  # type: ignore[method-assign]  # so that each cut finds all to collect
    whole = one.collect(dump)
    total, size = line.passed - start, dump.stat().st_size
    assert [entry.seq for entry in whole.entries] == list(range(acked + 1, terminal.journal.last_seq + 1))
    for cut in range(1, total):
        dump.unlink(missing_ok=True)
        line = Line()
        one = again(terminal, line)
        line.cut_at = line.passed + cut
        with pytest.raises(TransportError):
            one.collect(dump)
        have = dump.stat().st_size if dump.exists() else 0
        line = Line()
        one = again(terminal, line)
        begun = line.passed
        assert one.collect(dump) == whole
        assert line.passed - begun < size - have + CHUNK + 1500


def test_nothing_is_acknowledged_before_it_is_on_disk(terminal: Terminal, tmp_path: Path) -> None:
    """When the disk here fails, the terminal keeps its journal; a torn dump is repaired at the next time."""
    one, dump = paired(terminal, Line()), tmp_path / "dump"
    acks: list[int] = []
    ack = terminal.journal.ack

    def watched(seq: int) -> None:
        assert dump.stat().st_size > 40
        acks.append(seq)
        ack(seq)

    terminal.journal.ack = watched  # type: ignore[method-assign]
    with pytest.raises(OneCardError):
        one.collect(tmp_path / "no" / "dump")
    assert not acks
    file = again(terminal, Line()).collect(dump)
    assert acks == [30]
    assert file.entries[-1].seq == 30
    dump.write_bytes(dump.read_bytes()[:-5])
    assert again(terminal, Line(), seed=7).collect(dump) == file


def test_forged_journal_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    """A terminal whose entries do not follow those collected before, or whose head is not signed, is found out."""
    one, dump = paired(terminal, Line()), tmp_path / "dump"
    one.collect(dump)
    terminal.journal.note("more")
    raw = bytearray(dump.read_bytes())
    raw[-1] ^= 1
    dump.write_bytes(raw)
    with pytest.raises(CheckFailed):
        one.collect(dump)


def test_dump_of_another_terminal(terminal: Terminal, tmp_path: Path) -> None:
    """Entries of another terminal in the dump are found out before anything is acknowledged."""
    dump, other = tmp_path / "dump", Terminal(tmp_path / "o", "POS-0002", entries=35, key=OTHER)
    line = Line()
    other.connect(line)
    one = client(line, serial="POS-0002")
    one.pair(installer(), CODE, other.label)
    one.collect(dump)
    with pytest.raises(CheckFailed):
        paired(terminal, Line()).collect(dump)
    assert terminal.journal.acked_seq == 0
    other.journal.close()


def test_journal_that_grows_while_it_is_collected(terminal: Terminal, tmp_path: Path) -> None:
    """Entries that come meanwhile wait for the next collection, which goes on behind the first."""
    one, dump, request = paired(terminal, Line()), tmp_path / "dump", smp.JOURNAL_READ
    ask = one.request

    def growing(command: smp.Command, payload: dict[Any, Any] | None = None) -> dict[Any, Any]:
        if command == request:
            terminal.journal.note("meanwhile")
        return ask(command, payload)

    one.request = growing  # type: ignore[method-assign]  # the terminal works on
    assert one.collect(dump).entries[-1].seq == 30
    one.request = ask  # type: ignore[method-assign]  # back
    file = one.collect(dump)
    assert file.entries[-1].seq == terminal.journal.last_seq > 30
    assert file.head == terminal.journal.last_hash
    assert terminal.journal.acked_seq == terminal.journal.last_seq


def test_fragments_of_a_lost_master_are_forgotten() -> None:
    """A fragment left over is not put before the message of the next master, whose number happens to follow."""
    line, desk = Line(), EchoDesk()
    plug(line, desk, 9)
    end = line.end(leads=True)
    end.write(Frame(9, Kind.DATA, 1, b"old", more=True).encode())
    end.read()
    line.now += 11
    end.write(Frame(9, Kind.DATA, 2, b"new").encode())
    assert Frame(9, Kind.DATA, 2, b"new", from_slave=True).encode() in b"".join(end.read() for _ in range(5))


def test_garbage_at_the_slave(terminal: Terminal) -> None:
    """Random frames of every kind, encrypted or not, raise nothing at the terminal and change nothing there."""
    line = Line()
    terminal.connect(line)
    end, rng = line.end(leads=True), random.Random(3)
    for _ in range(600):
        kind = Kind(rng.randrange(4))
        body = rng.choice([rng.randbytes(rng.randrange(40)), Message.request(
            (rng.choice([0, 8, 64, 65, 66, 67, 68, 69, 99]), rng.randrange(6), smp.Op(rng.choice([0, 2]))), 1,
            {rng.randrange(4): rng.choice([b"x", 1, "x", [1], None])},
        ).encode()])  # fmt: skip
        if kind is Kind.ACK:
            body = b""
        elif kind is Kind.BUSY:
            body = body[:2].ljust(2)
        flags = kind is Kind.DATA
        frame = Frame(
            5, kind, rng.randrange(1, 256), body,
            more=flags and rng.random() < 0.2, encrypted=flags and rng.random() < 0.3,
        )  # fmt: skip
        end.write(frame.encode() if rng.random() < 0.9 else rng.randbytes(30))
        end.read()
    assert terminal.pairing.state.failures == 0
    assert terminal.journal.last_seq == 30
    assert client(line, seed=44).pair(installer(), CODE, terminal.label)
