"""Card commands: the exact APDUs of the vectors, and what a wrong answer does."""

from __future__ import annotations

from typing import Any

import pytest

from cardlib import iso7816 as iso
from cardlib.apdu import Command
from cardlib.crypto.keys import Key, make_key
from cardlib.errors import FormatError, MacMismatch, StatusError
from cardlib.iso7816 import SecureMessaging
from cardlib.transport import Replay
from tests.vectors import algorithm, by_category, raw

OK = b"\x90\x00"
SM = [v for v in by_category("secure-messaging") if v["id"] != "SM-READ-1"]


def card(*pairs: tuple[str | bytes, str | bytes]) -> Replay:
    """A card that expects exactly these commands."""
    return Replay([(_raw(command), _raw(answer)) for command, answer in pairs])


def _raw(value: str | bytes) -> bytes:
    return bytes.fromhex(value) if isinstance(value, str) else value


def _challenge(rand: str) -> tuple[str, bytes]:
    return f"00840000{len(rand) // 2:02X}", bytes.fromhex(rand) + OK


def _key(vector: dict[str, Any], name: str) -> Key:
    return make_key(bytes.fromhex(vector["inputs"][name]), algorithm(vector))


def _send_protected(transport: Replay, vector: dict[str, Any], protect: SecureMessaging) -> None:
    """Call the function that a vector's header asks for."""
    header = bytes.fromhex(vector["inputs"]["header"])
    data = bytes.fromhex(vector["inputs"].get("data", ""))
    ins, p1, p2 = header[1:4]
    match ins:
        case 0xD6:
            iso.update_binary(transport, p1 & 0x1F, data, p2, protect)
        case 0xDC:
            iso.update_record(transport, p2 >> 3, p1, data, protect)
        case 0xE2:
            iso.append_record(transport, p2 >> 3, data, protect)
        case 0x1E:
            iso.block_application(transport, protect, permanent=bool(p2))
        case 0x18:
            iso.unblock_application(transport, protect)
        case 0x16:
            iso.block_card(transport, protect)
        case _:
            raise AssertionError(f"vector {vector['id']}: no function for {ins:02X}")


@pytest.mark.parametrize("vector", SM, ids=lambda v: v["id"])
def test_protected_commands_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """Challenge first, then exactly the vector's APDU, MAC only or encrypted."""
    transport = card(_challenge(vector["inputs"]["rand"]), (vector["output"]["capdu"], OK))
    _send_protected(transport, vector, SecureMessaging(_key(vector, "key"), "enc" in vector["output"]))
    transport.close()


def _read_vector() -> tuple[SecureMessaging, dict[str, Any]]:
    vector = next(v for v in by_category("secure-messaging") if v["id"] == "SM-READ-1")
    return SecureMessaging(_key(vector, "key")), vector


def test_protected_read_is_that_of_the_vector() -> None:
    """The command carries its MAC, the answer's MAC is checked under the same challenge."""
    guard, vector = _read_vector()
    answer = bytes.fromhex(vector["inputs"]["response_data"] + vector["output"]["resp_mac"]) + OK
    transport = card(_challenge(vector["inputs"]["rand"]), (vector["output"]["capdu"], answer))
    assert iso.read_binary_guarded(transport, 0x0015, 16, guard).hex().upper() == vector["inputs"]["response_data"]
    transport.close()


@pytest.mark.parametrize("bit", range(0, 160, 7))
def test_a_protected_answer_changed_by_one_bit_is_refused(bit: int) -> None:
    """Any changed bit of data or MAC raises MacMismatch."""
    guard, vector = _read_vector()
    answer = bytearray(bytes.fromhex(vector["inputs"]["response_data"] + vector["output"]["resp_mac"]))
    answer[bit // 8] ^= 1 << bit % 8
    transport = card(_challenge(vector["inputs"]["rand"]), (vector["output"]["capdu"], bytes(answer) + OK))
    with pytest.raises(MacMismatch):
        iso.read_binary_guarded(transport, 0x0015, 16, guard)


@pytest.mark.parametrize("algorithm_id", [0, 4])
def test_encrypted_read_asks_for_a_length_and_deciphers_the_answer(algorithm_id: int) -> None:
    """The command carries the enciphered length block 10 80 00.., the answer LD||data comes back clear."""
    key = make_key(bytes(range(16)), algorithm_id)
    guard, challenge, data = SecureMessaging(key, encrypt=True), bytes.fromhex("A1B2C3D4"), bytes(range(16))
    block = key.encrypt(bytes.fromhex("1080").ljust(key.block, b"\0"))
    header = bytes.fromhex("04B20194") + bytes([len(block) + 4])
    sealed = key.seal(data)
    transport = card(
        _challenge("A1B2C3D4"),
        (header + block + key.mac(header + block, challenge) + b"\x10", sealed + key.mac(sealed, challenge) + OK),
    )
    assert iso.read_record_guarded(transport, 0x0012, 1, 16, guard) == data
    transport.close()


@pytest.mark.parametrize("vector", by_category("write-key"), ids=lambda v: v["id"])
def test_sealed_keys_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    """WRITE KEY sends the vector's APDU; the payload is computed over header and challenge."""
    master = _key(vector, "master_key_39_00")
    header = bytes.fromhex(vector["inputs"]["header"])
    protect = SecureMessaging(master, encrypt=True)
    transport = card(_challenge(vector["inputs"]["rand"]), (vector["output"]["capdu"], OK))
    record = bytes.fromhex(vector["inputs"]["key_data"])
    iso.write_key_sealed(transport, header[2], header[3], lambda head, rand: protect(head, record, rand))
    transport.close()


@pytest.mark.parametrize("vector", by_category("external-auth"), ids=lambda v: v["id"])
def test_external_authenticate_is_that_of_the_vectors(vector: dict[str, Any]) -> None:
    """Challenge of the vector's length, cryptogram in the vector's APDU where it prints one."""
    rand = vector["inputs"]["challenge"]
    cryptogram = _key(vector, "key").cryptogram(bytes.fromhex(rand))
    expected = vector["output"].get("capdu") or "0082000008" + vector["output"]["cryptogram8"]
    transport = card(_challenge(rand), (expected, OK))
    assert iso.get_challenge(transport, len(rand) // 2).hex().upper() == rand
    iso.external_authenticate(transport, 0, cryptogram)
    transport.close()


def test_pin_commands_are_those_of_the_vectors() -> None:
    """RELOAD, CHANGE, UNBLOCK and VERIFY send the vectors' APDUs."""
    for v in by_category("pin-reload"):
        key = _key(v, "drpk")
        transport = card((v["output"]["capdu"], OK))
        iso.reload_pin(transport, raw(v["inputs"])["new_pin"], key.folded().mac, raw(v["inputs"])["pin_kid"][0])
        transport.close()
    for v in by_category("pin-change"):
        transport = card((v["output"]["capdu"], OK))
        iso.change_pin(transport, raw(v["inputs"])["old_pin"], raw(v["inputs"])["new_pin"])
        transport.close()
    for v in by_category("pin-unblock"):
        transport = card(_challenge(v["inputs"]["rand"]), (v["output"]["capdu"], OK))
        iso.unblock_pin(transport, raw(v["inputs"])["pin"], SecureMessaging(_key(v, "dpuk"), encrypt=True))
        transport.close()
    transport = card(("0020000003123456", OK))
    iso.verify_pin(transport, iso.pin_bytes("123456"))
    transport.close()


def test_internal_authenticate_is_that_of_the_vectors() -> None:
    """The card's answer to the vector's data comes back."""
    for v in by_category("internal-auth"):
        data, p1 = v["inputs"]["data"], v["inputs"].get("p1", "00")
        transport = card((f"0088{p1}01{len(data) // 2:02X}{data}00", bytes.fromhex(v["output"]["rdata"]) + OK))
        answer = iso.internal_authenticate(transport, 1, bytes.fromhex(data), int(p1, 16))
        assert answer.hex().upper() == v["output"]["rdata"]


@pytest.mark.parametrize(
    ("call", "apdu"),
    [
        (iso.select, "00A40000023F0000"),
        (lambda c: iso.select_name(c, b"\xa0\0"), "00A4040002A00000"),
        (lambda c: iso.read_binary(c, 0x0015), "00B0950000"),
        (lambda c: iso.read_binary(c, 0, 0x0123, 8), "00B0012308"),
        (lambda c: iso.read_record(c, 0x0018, 1, le=23), "00B201C417"),
        (lambda c: iso.read_record(c, 0x17, 2, by_tag=True), "00B202B800"),
        (lambda c: iso.update_binary(c, 0x16, b"\1\2", 3), "00D69603020102"),
        (lambda c: iso.update_binary(c, 0, b"\1", 256), "00D601000101"),
        (lambda c: iso.update_record(c, 0x17, 1, b"\1", by_tag=True), "00DC01B80101"),
        (lambda c: iso.append_record(c, 0x1A, b"\1"), "00E200D00101"),
        (lambda c: iso.create_file(c, 0x3F01, b"\x38"), "80E03F010138"),
        (iso.erase_df, "800E000000"),
        (lambda c: iso.write_key(c, 1, 2, b"\x39"), "80D401020139"),
    ],
)
def test_plain_commands(call: Any, apdu: str) -> None:
    """Each function sends the APDU of card.md §3 and §6."""
    transport = card((apdu, OK))
    call(transport)
    transport.close()


def test_delete_df_is_protected_by_the_mf() -> None:
    """84 E4 with the identifier and a MAC over header and identifier (card.md §3.2)."""
    key, rand = make_key(bytes(range(16))), bytes.fromhex("01020304")
    mac = key.mac(bytes.fromhex("84E40000063F02"), rand)
    transport = card(_challenge("01020304"), (bytes.fromhex("84E40000063F02") + mac, OK))
    iso.delete_df(transport, 0x3F02, SecureMessaging(key))
    transport.close()


def test_refusals_carry_status_and_header_but_no_data() -> None:
    """StatusError tells status word and tries left, never the PIN."""
    with pytest.raises(StatusError) as caught:
        iso.verify_pin(card(("0020000003123456", "63C2")), bytes.fromhex("123456"))
    assert iso.tries_left(caught.value) == 2
    assert "123456" not in str(caught.value)
    assert iso.tries_left(StatusError(0x6983, b"")) == 0
    assert iso.tries_left(StatusError(0x6985, b"")) is None


def test_impossible_arguments_are_refused_before_the_card_sees_them() -> None:
    """Offsets, PINs, challenges and lengths out of range are FormatError; nothing is sent."""
    silent = card()
    for call in (
        lambda: iso.read_binary(silent, 0x15, 256),
        lambda: iso.read_binary(silent, 0, 0x8000),
        lambda: iso.update_binary(silent, 0x15, b"", -1),
        lambda: SecureMessaging(make_key(bytes(16)))(b"\x04\xd6\x95\x00", bytes(252), bytes(4)),
        lambda: SecureMessaging(make_key(bytes(16)))(b"\x04\xd6\x95", b"", bytes(4)),
        lambda: iso.get_challenge(card(("0084000008", "01029000"))),
    ):
        with pytest.raises(FormatError):
            call()
    for digits in ("123", "1234567890123", "12a4", "١٢٣٤"):
        with pytest.raises(FormatError):
            iso.pin_bytes(digits)
    assert iso.pin_bytes("12345").hex() == "12345f"


def test_protecting_an_empty_body_never_enciphers() -> None:
    """A command without data carries its MAC alone, even when encryption is on (card.md §1.6)."""
    key = make_key(bytes(range(16)))
    assert SecureMessaging(key, encrypt=True)(b"\x84\x1e\0\0", b"", bytes(4)) == key.mac(b"\x84\x1e\0\0\4", bytes(4))
    transport = card(_challenge("00000000"), (b"\x84\x1e\0\0\4" + key.mac(b"\x84\x1e\0\0\4", bytes(4)), OK))
    iso.protected(transport, Command(0x80, 0x1E, 0, 0), SecureMessaging(key, encrypt=True))
