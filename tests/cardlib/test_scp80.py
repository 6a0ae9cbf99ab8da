"""Secured packets and what carries them: every vector of ota.json in both directions, then properties."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.crypto.packets import packet_key
from cardlib.errors import BadKcv, ConfigError, FormatError, MacMismatch
from cardlib.wire import scp80, sms
from cardlib.wire.scp80 import CounterMode, Head, Integrity, Keys, Proof, SealedCommand, Spi
from tests.vectors import ota

VECTORS = list(enumerate(ota()))
ANY = bytes(range(32))


def of(*kinds: str) -> list[Any]:
    return [pytest.param(v, id=f"{place}-{v['id']}") for place, v in VECTORS if v["type"] in kinds]


def raw(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


def head_of(vector: dict[str, Any]) -> Head:
    kic, kid = raw(vector, "kic")[0], raw(vector, "kid")[0]
    return Head(Spi.decode(raw(vector, "spi")), kic, kid, raw(vector, "tar"))


def keys_of(vector: dict[str, Any]) -> Keys:
    """Only the keys that the packet needs: with a redundancy check KID's nibble names no cipher."""
    head = head_of(vector)
    kic, kid = raw(vector, "kic_key"), raw(vector, "kid_key")
    checks = Integrity.CC in (head.spi.integrity, head.spi.por_integrity)
    return Keys(packet_key(head.kic & 15, kic) if kic else None, packet_key(head.kid & 15, kid) if checks else None)


@pytest.mark.parametrize("vector", of("command", "concatenation"))
def test_commands_of_the_vectors(vector: dict[str, Any]) -> None:
    """Each command packet is made byte by byte, and read again."""
    head, keys, packet = head_of(vector), keys_of(vector), raw(vector, "command_packet")
    counter, data = int(vector["cntr"], 16), raw(vector, "secured_data")
    assert scp80.encode_command(head, counter, data, keys) == packet
    sealed = SealedCommand.decode(packet)
    assert sealed.head == head
    assert sealed.open(keys) == (counter, data)


def padded_otherwise(vector: dict[str, Any]) -> bool:
    """Two answers of a real card are padded with 80 00: they can only be read."""
    return vector["id"] in ("live-aes128-1619-c1", "live-aes128-1e19-ok")


@pytest.mark.parametrize("vector", of("response"))
def test_responses_of_the_vectors(vector: dict[str, Any]) -> None:
    """Each response packet is read, and made byte by byte."""
    head, keys, packet = head_of(vector), keys_of(vector), raw(vector, "response_packet")
    response = scp80.decode_response(packet, head, keys)
    assert response[:4] == (head.tar, int(vector["cntr"], 16), vector["status"], raw(vector, "secured_data"))
    assert response.proven == (head.spi.por_integrity is Integrity.CC)
    if "user_data" in vector:
        assert sms.split(packet, sms.IEI_RESPONSE, 0) == [raw(vector, "user_data")]
    made = scp80.encode_response(head, response.counter, response.status, response.data, keys)
    assert (made == packet) != padded_otherwise(vector)
    if "envelope_apdu" in vector:
        _, deliver = sms.parse_envelope(raw(vector, "envelope_apdu")[5:])
        elements, command = sms.parse_header(sms.Deliver.decode(deliver).user_data)
        assert (elements, command) == ([sms.Element(0x70, b"")], raw(vector, "command_packet"))
        assert SealedCommand.decode(command).open(keys)[0] == response.counter


@pytest.mark.parametrize("vector", of("crc"))
def test_redundancy_checks_of_the_vectors(vector: dict[str, Any]) -> None:
    """CRC-16 and CRC-32 are the right ones of many."""
    check = scp80.crc32 if vector["algorithm"].startswith("CRC-32") else scp80.crc16
    assert check(raw(vector, "input")) == raw(vector, "output")


@pytest.mark.parametrize("vector", of("spi"))
def test_spi_of_the_vectors(vector: dict[str, Any]) -> None:
    """Each bit of SPI means what the standard says, not what the source's names say about counters."""
    spi, fields = Spi.decode(raw(vector, "spi")), vector["fields"]
    counters = ["no_counter", "counter_no_replay_or_seq", "counter_must_be_higher", "counter_must_be_lower"]
    checks = ["no_rc_cc_ds", "rc", "cc", "ds"]
    assert spi.counter is CounterMode(counters.index(fields["counter"]))
    assert spi.integrity is Integrity(checks.index(fields["rc_cc_ds"]))
    assert spi.por_integrity is Integrity(checks.index(fields["por_rc_cc_ds"]))
    assert spi.por is Proof(["no_por", "por_required", "por_only_when_error"].index(fields["por"]))
    assert spi.ciphered == fields["ciphering"]
    assert spi.por_ciphered == fields["por_shall_be_ciphered"]
    assert spi.por_by_submit == fields["por_in_submit"]


@pytest.mark.parametrize("vector", of("tpdu", "envelope"))
def test_short_messages_of_the_vectors(vector: dict[str, Any]) -> None:
    """Each SMS-DELIVER and ENVELOPE is read, and made byte by byte."""
    tpdu = raw(vector, "sms_deliver")
    deliver = sms.Deliver.decode(tpdu)
    assert deliver.encode() == tpdu
    if "command_packet" in vector:
        packet = raw(vector, "command_packet")
        assert sms.split(packet, sms.IEI_COMMAND, 0) == [deliver.user_data]
        sender = sms.Address.of(vector["oa"].split()[0])
        again = sms.Deliver(sender, deliver.user_data, scts=raw(vector, "scts"), first=sms.UDHI)
        assert again.encode() == tpdu
        assert (deliver.pid, deliver.dcs) == (int(vector["pid"], 16), int(vector["dcs"], 16))
    if vector["type"] == "envelope":
        center, inner = sms.parse_envelope(raw(vector, "envelope_data"))
        assert inner == tpdu
        assert sms.envelope(inner, center) == raw(vector, "envelope_data")
        if "smsc" in vector:
            assert center == sms.Address.of(vector["smsc"])
            assert sms.envelope(tpdu) == raw(vector, "envelope_data_without_address")


@pytest.mark.parametrize("vector", of("concatenation"))
def test_concatenation_of_the_vectors(vector: dict[str, Any]) -> None:
    """A long packet is cut as the vectors say, and joined in any order."""
    packet, segments = raw(vector, "command_packet"), [bytes.fromhex(s) for s in vector["user_data_segments"]]
    assert sms.split(packet, sms.IEI_COMMAND, 0xA5) == segments
    for order in (segments, segments[::-1]):
        store = sms.Segments()
        *early, joined = [store.add("a", segment) for segment in order]
        assert not any(early)
        assert joined is not None
        assert joined.payload == packet
        assert sms.Element(sms.IEI_COMMAND, b"") in joined.elements


# Properties -----------------------------------------------------------------------------------------------------------

KINDS = [(0x1, 8), (0xD, 8), (0x5, 16), (0x9, 24), (0x2, 16), (0x2, 24), (0x2, 32)]


@cache
def keys_for(nibble: int, size: int) -> Keys:
    return Keys(packet_key(nibble, ANY[:size]), packet_key(1 if nibble == 13 else nibble, ANY[::-1][:size]))


@st.composite
def packets(draw: st.DrawFn) -> tuple[Head, Keys, int, bytes]:
    """Any command that can be said: each cipher, each protection of it and of its answer."""
    nibble, size = draw(st.sampled_from(KINDS))
    one = draw(st.sampled_from([0x00, 0x02, 0x04, 0x06])) | draw(st.integers(0, 3)) << 3
    two = draw(st.integers(0, 2)) | draw(st.sampled_from([0, 8])) | draw(st.sampled_from([0, 0x10, 0x20, 0x30]))
    keyset = draw(st.integers(0, 15)) << 4
    head = Head(
        Spi(one, two),
        keyset | nibble,
        keyset | (1 if nibble == 13 else nibble),
        draw(st.binary(min_size=3, max_size=3)),
    )
    return head, keys_for(nibble, size), draw(st.integers(0, scp80.COUNTER_MAX)), draw(st.binary(max_size=300))


@given(packet=packets(), status=st.integers(0, 12))
def test_packets_round_trip(packet: tuple[Head, Keys, int, bytes], status: int) -> None:
    """Whatever is packed with whatever protection comes out the same, command and response."""
    head, keys, counter, data = packet
    sealed = SealedCommand.decode(scp80.encode_command(head, counter, data, keys))
    assert (sealed.head, sealed.open(keys)) == (head, (counter, data))
    response = scp80.decode_response(scp80.encode_response(head, counter, status, data, keys), head, keys)
    expected = head.tar, counter, status, data
    refused = counter == 0 and not data and status in scp80.UNSIGNED
    assert response[:4] == expected or (refused and not response.proven)


@given(packet=packets(), place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_nothing_changed_is_believed(packet: tuple[Head, Keys, int, bytes], place: float, mask: int) -> None:
    """With a checksum no changed octet of a command goes through, ciphered or not."""
    head, keys, counter, data = packet
    head = head._replace(spi=Spi(head.spi.one | 2, head.spi.two))
    whole = bytearray(scp80.encode_command(head, counter, data, keys))
    whole[int(place * len(whole))] ^= mask
    with pytest.raises((FormatError, MacMismatch)):
        SealedCommand.decode(bytes(whole)).open(keys)


@given(raw=st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    """Any bytes are a packet, message, script or answer, or one of two errors."""
    for head in (Head(Spi(0x16, 0x39), 0x15, 0x15, raw[3:6].ljust(3)), Head(Spi(0, 0), 0, 0, raw[3:6].ljust(3))):
        for act in (
            lambda head=head: scp80.decode_response(raw, head, keys_for(5, 16)),
            lambda: SealedCommand.decode(raw).open(keys_for(2, 16)),
            lambda: sms.parse_envelope(raw),
            lambda: sms.Deliver.decode(raw),
            lambda: sms.Submit.decode(raw),
            lambda: sms.Segments().add(0, raw),
            lambda: scp80.cut_expanded(raw),
            lambda: list(scp80.cut_compact(raw, lambda _: True)),
            lambda: scp80.decode_expanded_answer(raw),
            lambda: scp80.Answer.decode(raw),
            lambda: sms.decode_text(8, len(raw), raw, has_header=True),
            lambda: sms.decode_text(0, len(raw), raw, has_header=True),
        ):
            try:
                act()
            except (FormatError, MacMismatch):
                continue


def test_a_response_without_its_header_in_the_checksum_is_rejected() -> None:
    """The checksum of a PoR covers 02 71 00; the variant without it is not believed."""
    keys, head = keys_for(5, 16), Head(Spi(0x16, 0x09), 0x15, 0x15, b"\xb0\0\x10")
    assert keys.kid is not None
    clear, fixed = bytes.fromhex("00151 2B00010".replace(" ", "")), bytes.fromhex("00000000010000")
    for over, good in ((scp80.RESPONSE_UDH + clear, True), (clear, False)):
        packet = clear + fixed + keys.kid.checksum(over + fixed + b"\x90\0") + b"\x90\0"
        if good:
            assert scp80.decode_response(packet, head, keys).data == b"\x90\0"
        else:
            with pytest.raises(MacMismatch):
                scp80.decode_response(packet, head, keys)


@pytest.mark.parametrize("status", sorted(scp80.UNSIGNED))
def test_refusals_are_bare(status: int) -> None:
    """A refusal has no checksum, counter or data; it is understood as a hint, and only when it is exactly that."""
    keys, head = keys_for(5, 16), Head(Spi(0x16, 0x19), 0x15, 0x15, b"\xbf\xff\x4f")
    refusal = scp80.encode_refusal(head.tar, status)
    assert refusal.hex() == f"000b0abfff4f000000000000{status:02x}"
    assert scp80.decode_response(refusal, head, keys) == scp80.Response(head.tar, 0, status, b"", proven=False)
    for other in (refusal[:-1] + b"\0", refusal[:10] + b"\1\0" + refusal[12:], b"\0\x0c" + refusal[2:] + b"\0"):
        with pytest.raises((FormatError, MacMismatch)):
            scp80.decode_response(other, head, keys)


@pytest.mark.parametrize("size", [4, 8])
def test_short_aes_checksum(size: int) -> None:
    """AES-CMAC goes with 8 octets, or with 4 where both sides want that; other sizes are refused."""
    keys, head = keys_for(2, 16), Head(Spi(0x16, 0x19), 0x12, 0x12, b"\xbf\xff\x4f")
    packet = scp80.encode_command(head, 7, b"data", keys, size)
    assert packet[2] == 13 + size
    assert SealedCommand.decode(packet).open(keys) == (7, b"data")
    response = scp80.encode_response(head, 7, 0, b"data", keys, size)
    assert scp80.decode_response(response, head, keys).data == b"data"
    for wrong in (0, 2, 6, 16):
        with pytest.raises(FormatError):
            scp80.encode_command(head, 7, b"data", keys, wrong)
    with pytest.raises(FormatError):
        scp80.encode_command(head._replace(kic=0x15, kid=0x15), 7, b"data", keys_for(5, 16), 4)


def test_keys_fit_their_nibble() -> None:
    """Another length or algorithm than the nibble says is refused, and a key shows nothing of itself."""
    for nibble, size in [(0, 16), (3, 16), (5, 8), (5, 24), (9, 16), (2, 8), (2, 20), (1, 16), (7, 16)]:
        with pytest.raises(ConfigError):
            packet_key(nibble, ANY[:size])
    head = Head(Spi(0x16, 0x39), 0x12, 0x12, b"\xbf\xff\x4f")
    for keys in (keys_for(5, 16), Keys(keys_for(2, 16).kic), Keys(None, keys_for(2, 16).kid)):
        with pytest.raises(FormatError):
            scp80.encode_command(head, 1, b"", keys)
    key = packet_key(2, ANY[:16])
    assert ANY[:16].hex() not in repr(key)
    key.check(key.kcv, "key")
    with pytest.raises(BadKcv):
        key.check(b"\0\0\0", "key")


def test_script_formats() -> None:
    """Compact scripts carry commands as T=0 does; expanded ones answer as the vector says, or name what is wrong."""
    commands = [bytes.fromhex(c) for c in ("00A40000023F0000", "0084000004", "8050000200")]
    script = scp80.compact(commands)
    assert script.hex() == "00a40000023f0000840000048050000200"
    cut = list(scp80.cut_compact(script, lambda head: head[1] == 0xA4))
    assert cut == [commands[0][:-1], commands[1], commands[2]]
    assert scp80.decode_expanded_answer(bytes.fromhex("AB07800101" + "23029000")) == [b"\x90\0"]
    for indefinite in (False, True):
        assert scp80.cut_expanded(scp80.expanded(commands, indefinite=indefinite)) == commands
        answers = [b"\x90\0", b"data\x90\0"]
        assert scp80.decode_expanded_answer(scp80.expanded_answer(answers, indefinite=indefinite)) == answers
        bad = scp80.bad_script_answer(scp80.BadScript.UNKNOWN_TAG, indefinite=indefinite)
        with pytest.raises(scp80.ScriptError):
            scp80.decode_expanded_answer(bad)
    faults = {"": 1, "00": 1, "AA": 3, "AE": 3, "AE81": 3, "AA0522": 2, "AA022205": 2, "AA022105": 1, "AA0100": 1}
    for broken, fault in {**faults, "AA012200": 2, "AE80220100": 2, "AA0122": 3}.items():
        with pytest.raises(scp80.ScriptError) as caught:
            scp80.cut_expanded(bytes.fromhex(broken))
        assert caught.value.fault == fault, broken
