"""The card's end of secured packets: order of checks, counters, answers, segments, contexts (ota.md §1 to §3)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cardlib import ota
from cardlib.errors import CardRemoved, FormatError, MacMismatch, Refused
from cardlib.profile import aid
from cardlib.wire import scp80, sms
from cardlib.wire.scp80 import PorStatus, Spi
from simulator.uicc.packets import ONE_CARD_TAR
from tests.simulator import desk
from tests.simulator.air import (
    CENTRE,
    CHALLENGE,
    OPEN_TAR,
    OTHER_ENTERPRISE,
    RESPONSE,
    SENDER,
    SIM_TAR,
    VALUES,
    Air,
    key_set,
    select,
)

REFUSALS = {
    "checksum": PorStatus.CHECKSUM, "low": PorStatus.COUNTER_LOW, "high": PorStatus.COUNTER_HIGH,
    "end": PorStatus.COUNTER_BLOCKED, "security": PorStatus.SECURITY, "tar": PorStatus.TAR_UNKNOWN,
    "level": PorStatus.LEVEL,
}  # fmt: skip


def bare(tar: bytes, status: int) -> bytes:
    return b"\x02\x71\x00\x00\x0b\x0a" + tar + bytes(6) + bytes((status,))


def alter(packet: bytes, **fields: int) -> bytes:
    """A packet with header octets changed: SPI1 stands at 3, SPI2 4, KIc 5, KID 6."""
    changed = bytearray(packet)
    for name, value in fields.items():
        changed[{"spi1": 3, "spi2": 4, "kic": 5, "kid": 6, "tar": 9}[name]] = value
    return bytes(changed)


@pytest.mark.parametrize("kind", VALUES)
def test_each_cipher_carries_a_script(kind: str) -> None:
    """Under each kind of key a script runs and its proof comes back signed, in the report or by a message."""
    air = Air(kind)
    assert air.run(select(), "0084000004") == bytes(4)
    air.run(select(), "0084000004", spi=ota.ONE_CARD_SPI_SUBMIT)
    assert air.key_sets.value[2].counter == 2


def test_refusals_are_uniform_and_move_nothing() -> None:
    """Whatever is wrong, the answer is the bare status, nothing runs, and no counter moves."""
    air = Air()
    air.counters[2] = 7
    air.run(select())
    good = air.make(select()).packet
    before = air.memory()
    cases: list[tuple[str, bytes]] = [
        ("tar", alter(good, tar=0x50)),
        ("level", alter(good, spi1=0x12)), ("level", alter(good, spi1=0x06)), ("level", alter(good, spi1=0x0E)),
        ("level", alter(good, spi1=0x14)[:2] + b"\x0d" + alter(good, spi1=0x14)[3:]),
        ("security", alter(good, kic=0xF2, kid=0xF2)), ("security", alter(good, kic=0x32)),
        ("security", alter(good, kic=0x25)), ("security", alter(good, kid=0x29)), ("security", alter(good, kic=0x20)),
        ("security", alter(good, spi1=0x17)),
        ("checksum", alter(good, kic=0x12, kid=0x12)[:-1] + b"\0"), ("checksum", good[:-1] + bytes((good[-1] ^ 1,))),
        ("checksum", (len(good) - 1).to_bytes(2, "big") + good[2:] + b"\0"),
        ("low", ota.command(key_set(2), 8, [select()]).packet), ("low", ota.command(key_set(2), 1, [select()]).packet),
        ("high", ota.command(key_set(2), 10, [select()], Spi(0x1E, 0x19)).packet),
    ]  # fmt: skip
    for reason, packet in cases:
        tar = packet[7:10]
        answer = air.deliver(sms.header(sms.Element(0x70, b"")) + packet)
        assert answer == (bare(tar, REFUSALS[reason]), 0x9000), (reason, packet.hex())
        assert air.memory() == before, reason
    assert air.deliver(sms.header(sms.Element(0x70, b"")) + good)[1] == 0x9000
    assert air.key_sets.value[2].counter == 9


def test_every_bit_counts() -> None:
    """No packet with one bit changed runs, moves a counter or is answered with more than a bare status."""
    air = Air()
    good = air.make(select()).packet
    before = air.memory()
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        if bit // 8 == 4:  # SPI2 says how to answer: it is covered by the checksum like the rest
            changed[4] |= 1
        if changed == good:
            continue
        data, sw = air.deliver(b"\x02\x70\x00" + bytes(changed))
        assert sw in (0x9000, 0x6200)
        assert not data or data == bare(bytes(changed[7:10]), data[-1])
        assert not data or data[-1] in scp80.UNSIGNED
        assert not air.submitted
    assert air.memory() == before
    for size in range(len(good)):
        assert air.deliver(b"\x02\x70\x00" + good[:size]) == (b"", 0x6200)
        assert air.deliver(b"\x02\x70\x00" + good + bytes(size + 1)) == (b"", 0x6200) or size > 136 - len(good)
        if size > 136 - len(good):
            break
    assert air.memory() == before


def test_pcntr_is_no_oracle() -> None:
    """A padding count that is too large answers like a wrong checksum, even under a right checksum."""
    air = Air()
    keys = key_set(2).keys
    assert keys.kic is not None
    assert keys.kid is not None
    clear = bytes.fromhex("0028151619" + "2222" + "BFFF4F")
    for pad in (16, 17, 255):
        fixed, data = bytes.fromhex(f"00000000 01{pad:02X}".replace(" ", "")), bytes(18)
        body = fixed + keys.kid.checksum(clear + fixed + data)[:8] + data
        assert air.deliver(b"\x02\x70\x00" + clear + keys.kic.encrypt(body)) == (bare(ONE_CARD_TAR, 1), 0x9000)
    assert air.key_sets.value[2].counter == 0


def test_counter_modes() -> None:
    """Higher may jump, next may not; without a counter, or one that is not checked, nothing is stored."""
    air = Air()
    tar, number = SIM_TAR, 1

    def status(one: int, counter: int) -> int:
        outgoing = ota.command(key_set(number), counter, [b"\0\xb0\x90\0\1"], Spi(one, 0x19), tar)
        return air.replies(outgoing, air.deliver(*outgoing.user_data())[0])[0].status

    assert status(0x16, 5) == 0
    assert (status(0x06, 1), status(0x0E, 1), air.key_sets.value[1].counter) == (0, 0, 5)
    assert status(0x1E, 5) == PorStatus.COUNTER_LOW
    assert status(0x1E, 7) == PorStatus.COUNTER_HIGH
    assert status(0x1E, 6) == 0
    assert status(0x16, 1000) == 0
    assert status(0x16, 1000) == PorStatus.COUNTER_LOW
    assert air.key_sets.value[1].counter == 1000
    assert {n: k.counter for n, k in air.key_sets.value.items()} == {1: 1000, 2: 0, 3: 0}


def test_a_counter_at_its_end_stays_there() -> None:
    """At FFFFFFFFFF a keyset is blocked and never wraps; the sender refuses to go there."""
    air = Air()
    keys = key_set(2)
    head = keys.head(ota.ONE_CARD_SPI, ONE_CARD_TAR)
    for counter, expected in ((scp80.COUNTER_MAX, 0), (scp80.COUNTER_MAX, 4), (1, 4)):
        packet = scp80.encode_command(head, counter, scp80.compact([select()]), keys.keys)
        data, _ = air.deliver(b"\x02\x70\x00" + packet)
        response = scp80.decode_response(data[3:], head, keys.keys)
        assert (response.status, response.proven) == (expected, not expected)
    for counter in (0, scp80.COUNTER_MAX, scp80.COUNTER_MAX + 1):
        with pytest.raises(Refused):
            ota.command(keys, counter, [select()])


def test_the_counter_is_stored_before_the_script_runs() -> None:
    """Power cut at any step: what ran had its counter stored, and the same packet never runs twice."""
    for step in range(1, 60):
        air = Air()
        outgoing = air.make("00B0900001", number=1, tar=SIM_TAR, spi=Spi(0x16, 0x19))
        air.power.cut_at(step)
        try:
            air.deliver(*outgoing.user_data())
        except CardRemoved:
            air.reset()
            stored = air.key_sets.value[1].counter == 1
            assert stored or not air.echo.ran
            data, _ = air.deliver(*outgoing.user_data())
            assert len(air.echo.ran) == (0 if stored else 1)
            assert data[-1:] == bytes((PorStatus.COUNTER_LOW,)) or not stored
        else:
            assert step > 5
            return
    raise AssertionError("the command never ran through")


def test_kinds_of_proof() -> None:
    """No PoR, always, only on error; plain, signed, ciphered; and what goes without a word."""
    air = Air()
    ok, wrong = "00B0900001", 0x0F
    for two in (0x00, 0x02, 0x18, 0x1A):
        outgoing = air.make(ok, number=1, tar=SIM_TAR, spi=Spi(0x16, two))
        assert air.deliver(*outgoing.user_data()) == (b"", 0x9000)
    assert len(air.echo.ran) == 4
    for two in (0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39):
        reply = air.send(ok, number=1, tar=SIM_TAR, spi=Spi(0x16, two))
        assert (reply.status, reply.data[:3], reply.proven) == (0, b"\1\x90\0", two & 8 != 0), hex(two)
    for two in (0x01, 0x02, 0x1A, 0x39, 0x3A):
        broken = bytearray(air.make(ok, number=1, tar=SIM_TAR, spi=Spi(0x16, two)).packet)
        broken[-1] ^= wrong
        assert air.deliver(b"\x02\x70\x00" + broken) == (bare(SIM_TAR, 1), 0x9000)
        assert not air.submitted
    for two in (0x00, 0x18, 0x38):
        broken = bytearray(air.make(ok, number=1, tar=SIM_TAR, spi=Spi(0x16, two)).packet)
        broken[-1] ^= wrong
        assert air.deliver(b"\x02\x70\x00" + broken) == (b"", 0x6200)


def test_a_proof_by_short_message() -> None:
    """Asked for by SMS-SUBMIT the report says 0B and the message, to the sender by its centre, has the rest."""
    air = Air()
    outgoing = air.make("00B0900010", number=1, tar=SIM_TAR, spi=Spi(0x16, 0x39))
    report, sw = air.deliver(*outgoing.user_data())
    assert sw == 0x9000
    [(tpdu, centre)] = air.submitted
    submit = sms.Submit.decode(tpdu)
    assert centre == CENTRE
    assert (submit.receiver, submit.pid, submit.dcs, submit.first) == (SENDER, 0x7F, 0xF6, 0x41)
    first, second = air.replies(outgoing, report)
    assert (first.status, first.proven, first.is_final, first.data) == (0x0B, True, False, b"")
    assert (second.status, second.proven, second.is_final) == (0, True, True)
    assert second.data == b"\1\x90\0" + bytes(16)


def test_a_long_answer_comes_in_several_messages() -> None:
    """What does not fit the report comes by short messages, in segments when it must; the report says 08."""
    air = Air()
    for wanted in (80, 130, 0):
        outgoing = air.make(f"00B09000{wanted:02X}", number=1, tar=SIM_TAR, spi=Spi(0x16, 0x19))
        report, _ = air.deliver(*outgoing.user_data())
        assert len(report) <= 128
        segments = len(air.submitted)
        random.Random(wanted).shuffle(air.submitted)
        replies = air.replies(outgoing, report)
        assert replies[-1].data == b"\1\x90\0" + bytes(wanted or 256)
        assert (segments, [r.status for r in replies]) == {80: (0, [0]), 130: (2, [8, 0]), 0: (3, [8, 0])}[wanted]


def test_without_a_checksum_nothing_depends_on_counter_or_key() -> None:
    """An open application takes plain packets, but no counter and no protected answer without a checksum."""
    air = Air()
    script = scp80.expanded([bytes.fromhex("00B0900002")])
    for spi, status in (
        (Spi(0x00, 0x01), 0), (Spi(0x01, 0x01), 0), (Spi(0x08, 0x01), 0), (Spi(0x10, 0x01), 0x0A),
        (Spi(0x18, 0x01), 0x0A), (Spi(0x11, 0x05), 0x0A), (Spi(0x00, 0x09), 0x0A), (Spi(0x00, 0x11), 0x0A),
        (Spi(0x04, 0x01), 0), (Spi(0x14, 0x11), 0x0A), (Spi(0x02, 0x01), 0), (Spi(0x03, 0x01), 0x06),
    ):  # fmt: skip
        kid = 0x25 if spi.integrity is scp80.Integrity.RC else 0x22
        head = scp80.Head(spi, 0x22, kid, OPEN_TAR)
        packet = (
            scp80.encode_command(head, 9, script, key_set(2).keys)
            if spi.one & 3 < 3
            else bytes.fromhex("0014" + "0D0301" + "2222010203" + "000000000900" + "AA0722050000")
        )
        data, _ = air.deliver(b"\x02\x70\x00" + packet)
        response = scp80.decode_response(data[3:], head, key_set(2).keys)
        assert response.status == status, spi
        assert air.key_sets.value[2].counter == 0
        if not status:
            assert scp80.decode_expanded_answer(response.data) == [b"\0\0\x90\0"]


def test_expanded_scripts() -> None:
    """Each command of an expanded script answers in full; it stops at an error, and a bad one says why."""
    air = Air()
    head = scp80.Head(Spi(0, 1), 0, 0, OPEN_TAR)

    def run(script: bytes) -> bytes:
        data, _ = air.deliver(b"\x02\x70\x00" + scp80.encode_command(head, 0, script, scp80.Keys()))
        return scp80.decode_response(data[3:], head, scp80.Keys()).data

    commands = ["00B0900001", "00A4900002AABB", "00A46A8200", "00B0900001"]
    for indefinite in (False, True):
        answer = run(scp80.expanded([bytes.fromhex(c) for c in commands], indefinite=indefinite))
        assert answer[:2].hex() == ("af80" if indefinite else f"ab{len(answer) - 2:02x}")
        assert scp80.decode_expanded_answer(answer) == [b"\0\x90\0", b"\xaa\xbb\x90\0", b"\x6a\x82"]
    for bad, fault in (("AA022105", 1), ("AA032205", 2), ("AA", 3), ("8101", 1)):
        assert run(bytes.fromhex(bad)).hex() == f"ab068001009001{fault:02x}"
    assert scp80.decode_expanded_answer(run(scp80.expanded([b"\0\xa4\0\0\5\1", b"\0"]))) == [b"\x67\0"]


def test_compact_scripts_stop_at_errors() -> None:
    """Warnings and counts go on, errors stop; the answer has the number executed and what the last one said."""
    air = Air()
    for sw, goes_on in (
        ("6110", True), ("6282", True), ("63C2", True), ("9000", True), ("9110", True), ("9F10", True),
        ("6A82", False), ("6982", False), ("9302", False), ("9401", False), ("9406", False), ("6C04", False),
    ):  # fmt: skip
        reply = air.send(f"00A4{sw}00", "00B0900002", number=1, tar=SIM_TAR)
        expected = (2, 0x9000, bytes(2)) if goes_on else (1, int(sw, 16), b"")
        assert reply.answer == expected, sw
    assert air.send(number=1, tar=SIM_TAR).answer == (0, 0x9000, b"")
    many = air.send(*["00B0900001"] * 100, number=1, tar=SIM_TAR).answer
    assert many == (100, 0x9000, b"\0")


def test_a_script_that_ends_in_the_middle() -> None:
    """A command cut off answers 6700 as the last one; those before it were executed."""
    air = Air()
    keys = key_set(1)
    for counter, script in enumerate(("00B09000", "00A4900005AA", "00"), 1):
        head = keys.head(Spi(0x16, 0x19), SIM_TAR)
        packet = scp80.encode_command(head, counter, bytes.fromhex("00B0900001" + script), keys.keys)
        data, _ = air.deliver(b"\x02\x70\x00" + packet)
        response = scp80.decode_response(data[3:], head, keys.keys)
        assert response.data == b"\2\x67\0"


# Segments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_segments_of_two_senders(wide: bool) -> None:
    """Long packets of two senders with one reference, mixed, repeated and out of order, run once each."""
    air = Air()
    more = ["0084000004"] * 60
    packets = {"+861": air.make(select(), *more), "+862": air.make(select(OTHER_ENTERPRISE), *more, number=3)}
    line = [
        (sms.Address.of(name), part)
        for name, one in packets.items()
        for part in sms.split(one.packet, sms.IEI_COMMAND, 7, wide=wide)
    ]
    assert len(line) >= 6
    random.Random(5).shuffle(line)
    answers = [air.deliver(part, sender=sender) for sender, part in line for _ in range(2)]
    done = [data for data, sw in answers if data]
    assert all(sw == 0x9000 for _, sw in answers)
    assert len(done) == 2
    assert {n: k.counter for n, k in air.key_sets.value.items()} == {1: 0, 2: 1, 3: 1}


def test_missing_segments_and_too_many() -> None:
    """A message that lacks a segment never runs, a reset forgets it, and more than eight segments are refused."""
    air = Air()
    outgoing = air.make(select(), *["0084000004"] * 60)
    first, *rest = outgoing.user_data(9)
    assert air.deliver(first) == (b"", 0x9000)
    air.reset()
    assert air.deliver(*rest) == (b"", 0x9000)
    assert air.key_sets.value[2].counter == 0
    assert air.deliver(first)[0][:3] == b"\x02\x71\0"
    assert air.key_sets.value[2].counter == 1
    assert air.deliver(air.make(select(), *["0084000004"] * 250).user_data()[0]) == (b"", 0x6200)


def test_what_is_no_packet() -> None:
    """Texts are let go, other headers and broken messages are refused; nothing changes."""
    air = Air()
    before = air.memory()
    text = sms.Deliver(SENDER, sms.encode_text("hello")[0].user_data, 0, 0, first=4, length=5)
    assert air.packets.download(text.encode()) == (b"", 0x9000)
    assert air.deliver(b"\x02\x71\x00\x00\x0b") == (b"", 0x6200)
    for tpdu in (b"", b"\x40", b"\x41" + bytes(20), text.encode()[:-1], b"\x44" + text.encode()[1:]):
        assert air.packets.download(tpdu) == (b"", 0x6200)
    assert air.memory() == before


# The applet -----------------------------------------------------------------------------------------------------------


def load_scripts(air: Air, amount: int, number: int = 2) -> tuple[Callable[[], bytes], bytes]:
    """Run the first two scripts of a recharge; the third, and the challenge's answer."""
    challenge = air.run(select(), "0084000008", number=number)
    cryptogram = desk.card_key("recharge").cryptogram(challenge)
    body = b"\x01" + amount.to_bytes(4, "big") + desk.TERMINAL
    init = air.run(b"\0\x82\0\2\x08" + cryptogram, b"\x80\x50\0\2\x0b" + body, RESPONSE, number=number)
    session = desk.card_key("load").session(init[8:12] + init[4:6] + b"\x80\0")
    tail = amount.to_bytes(4, "big") + b"\2" + desk.TERMINAL
    assert init[12:16] == session.mac(init[:4] + tail)
    credit = b"\x80\x52\0\0\x0b" + desk.WHEN + session.mac(tail + desk.WHEN)
    return lambda: air.run(credit, RESPONSE, number=number), credit


def test_recharge_over_three_scripts() -> None:
    """SELECT and challenge, authentication and INITIALIZE, credit: three packets, one context, one credit."""
    air = Air()
    credit, _ = load_scripts(air, 2500)
    assert len(credit()) == 4
    air.desk.select()
    assert air.desk.balance(2) == 12_500
    assert air.run(select(), b"\x80\x5a\0\2\2\0\1", RESPONSE) != b""
    air.run(select(), b"\x80\x5a\0\2\2\0\2", RESPONSE, sw=0x9406)


def test_a_lost_proof_of_the_credit() -> None:
    """The same packet sent again is answered 02 without proof; GET TRANSACTION PROVE then tells that it was done."""
    air = Air()
    _, credit = load_scripts(air, 2500)
    outgoing = air.make(credit, RESPONSE)
    air.deliver(*outgoing.user_data())
    for _ in range(3):
        data, _ = air.deliver(*outgoing.user_data())
        [reply] = air.replies(outgoing, data)
        assert (reply.status, reply.proven) == (PorStatus.COUNTER_LOW, False)
    assert len(air.run(select(), b"\x80\x5a\0\2\2\0\1", RESPONSE)) == 8
    air.desk.select()
    assert air.desk.balance(2) == 12_500


@pytest.mark.parametrize("what", ["reset", "same application", "new script", "other application", "other keyset"])
def test_what_ends_a_context(what: str) -> None:
    """Reset, a script that begins with SELECT and the contactless face in the same application do; nothing else."""
    air = Air(key_sets=(1, 2, 3, 4))
    credit, command = load_scripts(air, 100)
    ends = what in ("reset", "same application", "new script")
    if what == "reset":
        air.reset()
    elif what == "same application":
        air.desk.select()
    elif what == "new script":
        air.run(select())
    elif what == "other application":
        air.desk.card.reset()
        air.desk.select(OTHER_ENTERPRISE)
        air.desk.challenge()
    else:
        air.run(select(OTHER_ENTERPRISE), CHALLENGE, number=3)
    if ends:
        air.run(command, RESPONSE, sw=0x6901 if what == "new script" else 0x6982)
    else:
        assert len(credit()) == 4
    air.desk.card.reset()
    air.desk.select()
    assert air.desk.balance(2) == (10_000 if ends else 10_100)


def test_money_moved_over_the_air_meets_a_terminal() -> None:
    """A recharge between INITIALIZE and the second command at a terminal: a payment goes on, a load does not."""
    air = Air()
    air.desk.select()
    debit = air.desk.debit_command(1, 2, 300, desk.card_key("purchase"))
    load_scripts(air, 100)[0]()
    air.desk(debit)
    assert air.desk.balance(2) == 9_800
    air.desk.authenticate(2, desk.card_key("recharge"))
    load = air.desk.load_command(2, 50, desk.card_key("load"))
    load_scripts(air, 100)[0]()
    air.desk(load, 0x6901)
    assert air.desk.balance(2) == 9_900


def test_a_slot_sees_its_own_application_only() -> None:
    """Under KVN n + 1 only the ADF of slot n can be selected, and nothing works before it is: 6982."""
    air = Air()
    air.run("00A4000000", sw=0x6982)
    air.run("00A40000023F00", sw=0x6982)
    air.run("00A40000023F02", sw=0x6982)
    air.run(select(OTHER_ENTERPRISE), sw=0x6982)
    air.run(select(4711), sw=0x6982)
    air.run(CHALLENGE, sw=0x6982)
    air.run("00B0950004", sw=0x6982)
    air.run(select(), select(OTHER_ENTERPRISE), sw=0x6982)
    air.run(select(), "00A40000020099", sw=0x6A82)
    air.run(select(), CHALLENGE)
    air.run("00A40000023F01", CHALLENGE)
    assert air.run(select(OTHER_ENTERPRISE), CHALLENGE, number=3) == bytes(4)
    for name in (desk.ENTERPRISE, OTHER_ENTERPRISE):
        air.run(select(name), CHALLENGE, number=1)
    air.run("00A40000023F00", CHALLENGE, number=1)


def test_one_challenge_serves_a_script() -> None:
    """The MAC of a protected command is the challenge of the next one, plain commands between them or not."""
    air = Air()
    key = desk.card_key("maintenance")
    challenge = air.run(select(), CHALLENGE)
    first = desk.protect("04D69500", b"first", key, challenge)
    second = desk.protect("04D69505", b"second", key, first[-4:])
    third = desk.protect("04D6950B", b"third", key, second[-4:])
    air.run(first, second, "00B0950004", third)
    fourth = desk.protect("04D69500", b"FIRST", key, third[-4:])
    air.run(fourth)
    assert air.run("00B0950010") == b"FIRSTsecondthird"
    for wrong in (third[-4:], bytes(4), challenge):
        air.run(select(), CHALLENGE)
        one = desk.protect("04D69500", b"other", key, bytes(4))
        air.run(one, desk.protect("04D69505", b"other", key, wrong if wrong != challenge else b"\1\2\3\4"), sw=0x6988)
        air.run(desk.protect("04D69505", b"other", key, one[-4:]), sw=0x6984)
    air.desk.select()
    assert air.desk("00B0950010") == b"othersecondthird"


def test_blocking_over_the_air() -> None:
    """An application is blocked and unblocked over the air; the other one does not notice."""
    air = Air()
    key = desk.card_key("maintenance")
    challenge = air.run(select(), CHALLENGE)
    air.run(desk.protect("841E0000", b"", key, challenge))
    air.desk.select(sw=0x6A81)
    air.desk.select(OTHER_ENTERPRISE)
    challenge = air.run(select(), CHALLENGE)
    air.run(desk.protect("84180000", b"", key, challenge))
    air.desk.select()


def test_contexts_cost_nothing_until_used() -> None:
    """A SIM that was never spoken to keeps no context; one that was keeps one a keyset."""
    air = Air()
    assert not air.applet._contexts
    air.run(select())
    assert list(air.applet._contexts) == [2]
    air.reset()
    assert not air.applet._contexts


# What the card sends by itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VALUES)
def test_requests_of_the_menu(kind: str) -> None:
    """The menu's packet goes to the service number with a rising counter of its own; the office reads it."""
    air = Air(kind)
    body = b"\1" + aid(desk.ENTERPRISE) + b"\3\x12\x34\x5f"
    for counter in (1, 2):
        [tpdu] = air.packets.request(1, body)
        submit = sms.Submit.decode(tpdu)
        assert submit.receiver.number == "10690001"
        elements, packet = sms.parse_header(submit.user_data)
        assert elements == [sms.Element(0x70, b"")]
        request = ota.read_request(packet, key_set(2, kind))
        assert request == (counter, ota.Wish.DELETE, aid(desk.ENTERPRISE), "12345")
        assert "12345" not in repr(request)
        with pytest.raises((MacMismatch, FormatError)):
            ota.read_request(packet[:-1] + bytes((packet[-1] ^ 1,)), key_set(2, kind))
        with pytest.raises(FormatError):
            ota.read_request(packet, key_set(3, kind))
    assert air.packets.request(7, body) == []
    air.upward.value = {2: scp80.COUNTER_MAX}
    assert air.packets.request(1, body) == []


@pytest.mark.parametrize(
    "body", ["", "01", "03" + "00" * 13 + "0112", "01" + "00" * 13 + "0212", "02" + "00" * 13 + "01FF"]
)
def test_broken_requests_of_the_menu(body: str) -> None:
    """A request whose fields don't fit is refused, however well it is protected."""
    air = Air()
    [tpdu] = air.packets.request(1, bytes.fromhex(body))
    with pytest.raises(FormatError):
        ota.read_request(sms.parse_header(sms.Submit.decode(tpdu).user_data)[1], key_set(2))


def test_single_des_is_refused() -> None:
    """Single DES is for vectors: no keyset of it is made."""
    with pytest.raises(Refused):
        ota.KeySet.of(2, 1, bytes(range(8)), bytes(range(8)))
