"""Secured packets through the phone face: ENVELOPE, file and content management, REFRESH, closing a slot (ota.md)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cardlib import ota
from cardlib.crypto import make_key
from cardlib.crypto.packets import PacketAlgorithm, packet_key
from cardlib.tlv import Tlv, find
from cardlib.wire import sms
from cardlib.wire.scp80 import PorStatus, Spi
from simulator import image
from simulator.sim import Sim
from simulator.uicc.memory import OtaKeySet, memory_of
from tests.simulator import desk
from tests.simulator.air import CENTRE, CHALLENGE, RESPONSE, SENDER, VALUES, key_set, select

PLATFORM = ota.KeySet.of(
    1,
    PacketAlgorithm.TDES2,
    bytes.fromhex("300102030405060708090A0B0C0D0E0F"),
    bytes.fromhex("301102030405060708090A0B0C0D0E0F"),
)
"""Of the default image (uicc.md)."""
PROFILE = b"\xff" * 20
RAM, UICC, GSM, USIM = (bytes.fromhex(tar) for tar in ("000000", "B00000", "B00010", "B00011"))
SIGNED = Spi(0x16, 0x19)


class Phone:
    """A phone that hands short messages to its SIM and does what it asks; what it sent stands in ``sent``."""

    def __init__(self) -> None:
        chip = image.build(desk.description())
        self.sim = Sim.__new__(Sim)
        Sim.__init__(self.sim, chip.nvm, desk.zeros)
        memory = memory_of(chip.nvm)
        memory.ota.value = {**memory.ota.value, 2: OtaKeySet("aes", *VALUES["aes"])}
        self.phone = self.sim.phone
        self.desk = desk.Desk(self.sim)
        self.counters = {1: 0, 2: 0}
        self.sent: list[bytes] = []
        self.asked: list[int] = []
        self.power_on()

    def power_on(self) -> None:
        self.phone.reset()
        self.do(b"\x80\x10\0\0" + bytes((len(PROFILE),)) + PROFILE)

    def do(self, command: bytes) -> bytes:
        """One command over T=0, then everything that the SIM wants; its data."""
        answer = self.phone.transceive(command)
        data = b""
        while answer[-2] == 0x61:
            answer = self.phone.transceive(bytes((command[0], 0xC0, 0, 0, answer[-1])))
            data += answer[:-2]
        self.sw = answer[-2:]
        while answer[-2] == 0x91:
            proactive = self.phone.transceive(bytes((0x80, 0x12, 0, 0, answer[-1])))[:-2]
            details = find(proactive, 0xD0, 0x81)
            self.asked.append(details[1])
            if details[1] == 0x13:
                self.sent.append(find(proactive, 0xD0, 0x8B))
            if details[1] == 0x01:
                self.refreshed = find(proactive, 0xD0, 0x92)
            body = Tlv(0x81, details) + bytes.fromhex("820282818301" + "00")
            answer = self.phone.transceive(b"\x80\x14\0\0" + bytes((len(body),)) + body)
        return data

    def envelope(self, user_data: bytes) -> bytes:
        data = sms.envelope(sms.Deliver(SENDER, user_data).encode(), sms.Address.decode_whole(CENTRE))
        return self.do(b"\x80\xc2\0\0" + bytes((len(data),)) + data)

    def make(self, *script: str | bytes, number: int = 1, spi: Spi = SIGNED, tar: bytes = UICC) -> ota.Outgoing:
        self.counters[number] += 1
        keys = PLATFORM if number == 1 else key_set(number)
        commands = [bytes.fromhex(c) if isinstance(c, str) else c for c in script]
        return ota.command(keys, self.counters[number], commands, spi, tar)

    def send(self, outgoing: ota.Outgoing) -> list[ota.Reply]:
        self.sent.clear()
        report = b""
        for user_data in outgoing.user_data(9):
            report = self.envelope(user_data)
        inbox, replies = ota.Inbox(), []
        for message in [report, *(sms.Submit.decode(tpdu).user_data for tpdu in self.sent)]:
            packet = inbox.add("card", message) if message else None
            reply = outgoing.read(packet) if packet else None
            if reply is not None:
                replies.append(reply)
        return replies

    def run(self, *script: str | bytes, sw: int = 0x9000, **more: object) -> bytes:
        reply = self.send(self.make(*script, **more))[-1]  # type: ignore[arg-type]  # the same options
        answer = reply.answer
        assert answer is not None, reply
        assert (f"{answer.sw:04X}" == f"{sw:04X}") or (sw == 0x9000 and answer.sw >> 8 == 0x61), answer
        return answer.data


@pytest.fixture
def phone() -> Phone:
    return Phone()


def test_files_over_the_air(phone: Phone) -> None:
    """ICCID and IMSI are read under the TARs of the UICC, the SIM and the USIM, apart from the terminal's channel."""
    phone.do(bytes.fromhex("00A40004022F00"))
    assert phone.run("00A40004022FE2", "00B000000A").hex() == "985898100000000000f1"
    assert phone.run("00A40004023F00", "00A40004022FE2", "00B000000A", tar=USIM).hex() == "985898100000000000f1"
    assert phone.run("00A40004026F07", "00B0000009", tar=USIM).hex() == "080910101032547698"
    assert phone.run("A0A40000027F20", "A0A40000026F07", "A0B0000009", tar=GSM).hex() == "080910101032547698"
    assert len(phone.run("A0A40000027F20", "A0C0000016", tar=GSM)) == 22
    assert phone.phone.transceive(bytes.fromhex("00B2010426"))[-2:] == b"\x90\0"  # EF.DIR is still current


def test_updating_refreshes(phone: Phone) -> None:
    """A file updated over the air is read again by the phone: REFRESH names it, with its path."""
    phone.asked.clear()
    phone.run("00A40004022F05", "00D6000004656E7A68")
    assert phone.asked == [0x01]
    assert phone.refreshed.hex() == "013f002f05"
    assert phone.run("00A40004022F05", "00B0000004") == b"enzh"
    phone.run("00A40004022FE2", "00D60000020000", sw=0x6982)
    assert phone.asked == [0x01]
    phone.asked.clear()
    phone.run("00A40004026F05", "00D6000004656E7A68", tar=USIM)
    assert phone.asked == [0x01, 0x25], "the menu follows the language"


def test_only_files_are_managed(phone: Phone) -> None:
    """Toolkit, authentication, channels and secure messaging are out of reach of a file script."""
    for command in (
        "80C2000000",
        "0070000001",
        "80100000021111",
        "0088008100",
        "8012000000",
        "8014000000",
        "80E4000000",
    ):
        phone.run(command, sw=0x6D00)
    for command in ("01B0000001", "0CB0000001", "84D6000000"):
        phone.run(command, sw=0x6E00)


def test_content_over_the_air(phone: Phone) -> None:
    """The security domain lists its applications to the platform, and installs nothing for anyone else."""
    assert phone.run("80F28000024F00", RESPONSE, tar=RAM)[:9] == b"\x08" + bytes.fromhex("A000000151000000")
    assert b"ONECARD" in phone.run("80F24000024F00", RESPONSE, tar=RAM)
    phone.run("80F02000000000"[:10], sw=0x6A86, tar=RAM)
    for tar in (RAM, UICC, GSM, USIM):
        [reply] = phone.send(phone.make("00A40004022FE2", number=2, tar=tar))
        assert (reply.status, reply.proven) == (PorStatus.SECURITY, False)


def test_levels_and_unknown_targets(phone: Phone) -> None:
    """Files want checksum and ciphering (06), the applet also a rising counter (16); other TARs are unknown."""
    for tar, one, status in ((UICC, 0x06, 0), (UICC, 0x02, 10), (UICC, 0x04, 10), (ota.ONE_CARD_TAR, 0x06, 10)):
        [reply] = phone.send(phone.make("00A40000023F00", tar=tar, spi=Spi(one, 0x19)))
        assert reply.status == status, (tar.hex(), one)
    for tar in (b"\xb0\1\x40", b"\xbf\xff\x50", b"\xb2\1\0"):
        assert phone.send(phone.make("00A40000023F00", tar=tar))[0].status == PorStatus.TAR_UNKNOWN


def test_proofs_over_t0(phone: Phone) -> None:
    """A PoR waits behind 61xx; by SMS-SUBMIT it says 0B and a command waits, whose message has the proof."""
    outgoing = phone.make("00A40004022FE2", "00B000000A")
    data = sms.envelope(sms.Deliver(SENDER, outgoing.user_data()[0]).encode())
    answer = phone.phone.transceive(b"\x80\xc2\0\0" + bytes((len(data),)) + data)
    assert answer[0] == 0x61
    assert phone.phone.transceive(b"\x80\xc0\0\0" + answer[1:])[-2:] == b"\x90\0"
    outgoing = phone.make("00A40004022FE2", "00B000000A", spi=Spi(0x16, 0x39))
    first, second = phone.send(outgoing)
    assert (first.status, second.status, phone.asked[-1]) == (0x0B, 0, 0x13)
    assert second.answer is not None
    assert second.answer.data.hex() == "985898100000000000f1"
    assert sms.Submit.decode(phone.sent[0]).receiver == SENDER
    assert phone.sw[0] == 0x91
    silent = phone.make("00A40004022FE2", spi=Spi(0x16, 0x00))
    assert (phone.send(silent), phone.sw) == ([], b"\x90\0")
    assert (phone.envelope(silent.user_data()[0]), phone.sw) == (b"", b"\x62\0")


def test_a_long_script_in_segments(phone: Phone) -> None:
    """Fifty commands in three messages run once, and a second ENVELOPE waits while the phone still has to send."""
    outgoing = phone.make(*["00A40004022FE2", "00B000000A"] * 25, spi=Spi(0x16, 0x39))
    assert len(outgoing.user_data()) == 3
    assert phone.send(outgoing)[-1].answer == (50, 0x9000, bytes.fromhex("985898100000000000F1"))


def test_the_applet_of_a_sim(phone: Phone) -> None:
    """The slot's keyset reaches its application on the contactless face's memory; the platform closes the slot."""
    challenge = phone.run(select(), CHALLENGE, number=2, tar=ota.ONE_CARD_TAR)
    key = desk.card_key("maintenance")
    phone.run(desk.protect("841E0000", b"", key, challenge), number=2, tar=ota.ONE_CARD_TAR)
    phone.desk.select(sw=0x6A81)
    challenge = phone.run("00A40000023F00", CHALLENGE, tar=ota.ONE_CARD_TAR)
    deletion = desk.protect("84E40000", b"\x3f\x01", make_key(desk.LINE), challenge)
    phone.run(deletion, tar=ota.ONE_CARD_TAR)
    assert set(memory_of(phone.sim.nvm).ota.value) == {1}
    phone.desk("00A40000023F01", 0x6A82)
    [reply] = phone.send(phone.make(select(), number=2, tar=ota.ONE_CARD_TAR))
    assert (reply.status, reply.proven) == (PorStatus.SECURITY, False)


def test_the_telephone_part_is_untouched(phone: Phone) -> None:
    """After scripts of all kinds to the applet, broken ones too, every telephone file and PIN counter is as before."""
    memory = memory_of(phone.sim.nvm)

    def telephone() -> list[object]:
        return [*(cell.value for cell in memory.files), *(pin.value for pin in memory.pins.values())]

    before = telephone()
    phone.run(select(), CHALLENGE, number=2, tar=ota.ONE_CARD_TAR)
    phone.run("0020000003123456", number=2, tar=ota.ONE_CARD_TAR)
    phone.run("0020000003000000", number=2, tar=ota.ONE_CARD_TAR, sw=0x63C2)
    good = phone.make(select(), number=2, tar=ota.ONE_CARD_TAR).user_data()[0]
    for place in range(len(good)):
        phone.envelope(good[:place] + bytes((good[place] ^ 0x55,)) + good[place + 1 :])
    assert telephone() == before


def test_a_snapshot_keeps_keysets_and_counters(phone: Phone) -> None:
    """Counters survive in an image: what was sent before is still too low afterwards."""
    outgoing = phone.make("00A40004022FE2")
    assert phone.send(outgoing)[0].status == 0
    restored = Sim.restore(phone.sim.snapshot(), desk.zeros)
    assert memory_of(restored.nvm).ota.value == memory_of(phone.sim.nvm).ota.value
    phone.phone = restored.phone
    assert phone.send(outgoing)[0].status == PorStatus.COUNTER_LOW


@pytest.mark.parametrize("kind", ["3des", "aes", "aes256"])
@pytest.mark.parametrize("platform", ["3des", "aes"])
def test_a_slot_gets_its_keyset(phone: Phone, kind: str, platform: str) -> None:
    """The platform writes a slot's three keys enciphered under its KIK; they work at once, and only if all is right."""
    memory = memory_of(phone.sim.nvm)
    old = memory.ota.value[1]
    kik = bytes(range(0xA0, 0xB0))
    phone.counters[1] += 10
    new = key_set(3, kind)
    assert new.keys.kic is not None
    assert new.keys.kid is not None
    keys = [new.keys.kic, new.keys.kid, new.keys.kic]
    algorithm = PacketAlgorithm.AES if platform == "aes" else PacketAlgorithm.TDES2
    command = ota.put_key_set(3, keys, packet_key(algorithm, kik))
    phone.run(command, tar=RAM, sw=0x6985)
    memory.ota.value = {**memory.ota.value, 1: old._replace(algorithm=platform, kik=kik, counter=20)}
    sender = ota.KeySet.of(1, algorithm, old.kic, old.kid)
    counter = 20

    def run(apdu: bytes) -> int:
        nonlocal counter
        counter += 1
        [reply] = phone.send(ota.command(sender, counter, [apdu], SIGNED, RAM))
        assert reply.answer is not None
        return reply.answer.sw

    for place in (5, 6, 7, len(command) // 2, len(command) - 1):
        assert run(command[:place] + bytes((command[place] ^ 0x41,)) + command[place + 1 :]) != 0x9000
    assert run(command[:2] + b"\x03" + command[3:]) == 0x6A86
    assert 3 not in memory.ota.value
    assert run(command) == 0x9000
    assert run(command) == 0x6A86
    assert run(ota.put_key_set(3, keys, packet_key(algorithm, kik), replaces=True)) == 0x9000
    assert memory.ota.value[3].kik == memory.ota.value[3].kic
    [reply] = phone.send(ota.command(new, 1, [bytes.fromhex("00A40000023F03")]))
    assert (reply.answer or (0, 0))[1] == 0x6982


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_script_breaks_the_card(phone: Phone, data: st.DataObject) -> None:
    """Any bytes as a script under good keys, to any target, are answered with a proof, and the card lives on."""
    tar = data.draw(st.sampled_from([RAM, UICC, GSM, USIM, ota.ONE_CARD_TAR]))
    number = 2 if tar == ota.ONE_CARD_TAR and data.draw(st.booleans()) else 1
    header = st.sampled_from(
        ["00A40004", "00A40400", "00B2", "80F2", "80E6", "80D8", "84D4", "A0A4", "00C0", "0088", "805A"]
    )
    piece = st.binary(max_size=8) | header.map(bytes.fromhex)
    script = b"".join(data.draw(st.lists(piece, max_size=12)))
    phone.counters[number] += 1
    keys = PLATFORM if number == 1 else key_set(number)
    outgoing = ota.command(keys, phone.counters[number], script, SIGNED, tar)
    replies = phone.send(outgoing)
    assert replies
    assert replies[-1].proven
    assert phone.run("00A40004022FE2", "00B000000A").hex() == "985898100000000000f1"


@given(raw=st.binary(max_size=200), cut=st.integers(0, 30))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_message_breaks_the_card(phone: Phone, raw: bytes, cut: int) -> None:
    """Any bytes in an ENVELOPE, and any begin of a good packet before them, get an answer and change no counter."""
    before = memory_of(phone.sim.nvm).ota.value
    good = ota.command(PLATFORM, phone.counters[1] + 1, [bytes(5)], SIGNED, UICC).packet
    for user_data in (raw[:140], (b"\x02\x70\x00" + good[:cut] + raw)[:140]):
        phone.envelope(user_data)
    data = raw[:200]
    phone.do(b"\x80\xc2\0\0" + bytes((len(data),)) + data if data else b"\x80\xc2\0\0")
    phone.do(
        b"\x80\xc2\0\0" + bytes((len(data) + 2,)) + b"\xd1" + bytes((min(len(data), 127),)) + data[:127] + data[127:]
    )
    assert memory_of(phone.sim.nvm).ota.value == before
