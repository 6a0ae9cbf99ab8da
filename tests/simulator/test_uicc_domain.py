"""The issuer security domain: secure channels, registry, keys, content (uicc.md "Security domain")."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cardlib.crypto import make_key
from cardlib.crypto.channels import cbc_encrypt
from cardlib.errors import CardRemoved
from cardlib.profile import CardKind, aid, make_serial
from cardlib.tlv import Tlv, find
from simulator import image
from simulator.handlers import Refusal
from simulator.sim import Sim
from simulator.uicc.memory import SCP02, SCP03, KeySet
from simulator.uicc.session import Scp02, Scp03, SecureChannel
from tests.secretwatch import register
from tests.simulator.uicc_desk import ISD, Host, Phone

CHANNELS = [(version, level) for version in (0x01, 0x30) for level in (0, 1, 3)]
NEW_KEYS = [bytes(range(n, n + 16)) for n in (0x61, 0x91, 0xC1)]
for new_key in NEW_KEYS:
    register(new_key)

# Commands wrapped by an independent host (pySim's unit tests): keys, host challenge, answer to INITIALIZE UPDATE,
# EXTERNAL AUTHENTICATE, then commands in their order with what they were before.
PLAIN = {"80F22002": "", "80CA0066": "", "80F22002 ": "4F0212345C054F9F70C5", "80F28002": "4F00"}
PUBLISHED: list[dict[str, Any]] = [
    {
        "keys": "100102030405060708090a0b0c0d0e0f 101102030405060708090a0b0c0d0e0f 102102030405060708090a0b0c0d0e0f",
        "host": "40A62C37FA6304F8", "update": "00000000000000000000700200016B4524ABEE7CF32EA3838BC148F3",
        "open": "8482010010BA6961667737C5BCEBECE14C7D6A4376", "level": 1,
        "wrapped": [
            "84F220020814DB34FA4341DCA8", "84CA00660855ED7C5FF069512B",
            "84F22002124F0212345C054F9F70C58FC1B380C4228AF8", "84F280020A4F003B95F09317DE6A4E",
        ],
    },
    {
        "keys": "000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f 202122232425262728292a2b2c2d2e2f",
        "host": "8e1552d0513c60f3", "update": "0000000000000000000030037030760cd2c47c1dd395065fe5ead8a9d7000001",
        "open": "8482030010fd4721a14d9b07003c451d2f8ae6bb21", "level": 3,
        "wrapped": [
            "84e2910018ca9c00f6713d79bc8baa642bdff51c3f6a4082d3bd9ad26c", "84f2200208c9811b11f1264cf1",
            "84ca006608e10ab60b30547988", "84f22002184e2908bdb48b2315a55482e9e936ca122d6ecfae7d17416e",
            "84f28002180dd10a6b6193e5340b9e77d32d5a179cd710ac2773aefb28",
        ],
    },
    {
        "keys": "000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f "
        "101112131415161718191a1b1c1d1e1f101112131415161718191a1b1c1d1e1f "
        "202122232425262728292a2b2c2d2e2f202122232425262728292a2b2c2d2e2f",
        "host": "c6066990fc426e1d", "update": "000000000000000000003203708682cd81bbd8919f2de3f2664581f118000001",
        "open": "848203001077c493b632edadaf865a1e64acc07ce9", "level": 3,
        "wrapped": [
            "84e29100183ddaa60594963befaada3525b492ede23c2ab2c1ce3afe44", "84f2200208480ddc8e419da38d",
            "84ca0066083e9d6a6c0b2d7320", "84f22002183ebfef2da8b04af2a85f491f299b76973df76ff08a4031be",
            "84f2800218783fff80990f5585b1055010ea95094a26e4a8f1ef4b18e1",
        ],
    },
]  # fmt: skip


@pytest.mark.parametrize("vector", PUBLISHED, ids=["scp02", "scp03-aes128", "scp03-aes256"])
def test_published_sessions(vector: dict[str, Any]) -> None:
    """The card's end agrees with sessions that an independent host computed: cryptograms, C-MACs, deciphered data."""
    enc, mac, dek = map(bytes.fromhex, vector["keys"].split())
    answer, host = bytes.fromhex(vector["update"]), bytes.fromhex(vector["host"])
    session: SecureChannel
    if answer[11] == SCP02:
        session = Scp02(KeySet(SCP02, enc, mac, dek), answer[12:14], answer[14:20], host)
        assert session.card_cryptogram == answer[20:28]
    else:
        session = Scp03(KeySet(SCP03, enc, mac, dek), answer[13:21], host)
        assert session.card_cryptogram == answer[21:29]
    opening = bytes.fromhex(vector["open"])
    assert session.authenticate(vector["level"], opening, opening[5:])
    plain = (["BF3E035C015A"] if answer[11] == SCP03 else []) + list(PLAIN.values())
    for wrapped, expected in zip(map(bytes.fromhex, vector["wrapped"]), plain, strict=True):
        assert session.unwrap(wrapped, wrapped[5:]).hex().upper() == expected
    with pytest.raises(Refusal):
        session.unwrap(wrapped, wrapped[5:])


@pytest.fixture
def phone() -> Phone:
    return Phone()


@pytest.mark.parametrize(("version", "level"), CHANNELS)
def test_channel(phone: Phone, version: int, level: int) -> None:
    """Each protocol at each level: the registry can be read, and not without the channel."""
    host = Host(phone, version)
    phone("80F28002024F00", 0x6982)
    host = Host(phone, version).open(level)
    row = find(host("80F28002024F00"), 0xE3)
    assert find(row, 0x4F).hex().upper() == ISD
    assert find(row, 0x9F70) == b"\x0f"
    assert find(host("80CA0066"), 0x66, 0x73)
    assert host("80F28000024F00")[:9].hex().upper() == "08" + ISD
    if level:
        phone("80F28002024F00", 0x6982)
        phone(host.wrapped("80F28002024F00"), 0x6982)


def test_default_version_is_01(phone: Phone) -> None:
    """P1 00 of INITIALIZE UPDATE means key version 01; the sequence counter counts sessions, not attempts."""
    host = Host(phone, 0)
    assert host.protocol == SCP02
    assert phone.face.memory.sequence.value == 0
    host.open(1)
    assert phone.face.memory.sequence.value == 1
    phone("00A4040008" + ISD)
    phone("8050020008" + "00" * 8, 0x6A88)
    phone("8050300008" + "00" * 8)
    phone("8050300007" + "00" * 7, 0x6700)


def test_lock_out(phone: Phone) -> None:
    """Ten wrong host cryptograms in a row lock the domain for good; a right one before starts the count again."""
    phone("00A40400")
    for _ in range(9):
        phone("8050300008" + "00" * 8)
        phone("8482000010" + "00" * 16, 0x6300)
        phone("8482000010" + "00" * 16, 0x6985)
    Host(phone, 0x30).open(1)
    for _ in range(10):
        phone("8050010008" + "00" * 8)
        phone("8482000010" + "00" * 16, 0x6300)
    phone.face.reset()
    phone("00A40400")
    phone("8050300008" + "00" * 8, 0x6983)
    phone("8482000010" + "00" * 16, 0x6983)
    phone.usim()


@pytest.mark.parametrize("version", [1, 0x30])
def test_tampered_messages(phone: Phone, version: int) -> None:
    """Any flipped bit of a secured command, or one left out, ends the channel; nothing was done."""
    command = "80F04080054142434445"
    size = len(bytes.fromhex(Host(phone, version).open(3).wrapped(command)))
    for bit in range(5 * 8, size * 8, 3):
        host = Host(phone, version).open(3)
        raw = bytearray.fromhex(host.wrapped(command))
        raw[bit // 8] ^= 1 << bit % 8
        phone(raw.hex(), 0x6982)
        phone(host.wrapped(command), 0x6982)
    host = Host(phone, version).open(3)
    host.wrapped(command)
    host(command, 0x6982)


def sealed_keys(host: Host, version: int, keys: list[bytes], aes: bool) -> str:
    body = bytes((version,))
    for key in keys:
        if aes:
            value = cbc_encrypt(host.dek, key + bytes(-len(key) % 16), bytes(16), aes=True)
            kcv = cbc_encrypt(key, b"\1" * 16, bytes(16), aes=True)[:3]
            body += bytes((0x88, len(value) + 1, len(key))) + value + b"\3" + kcv
        else:
            body += b"\x80\x10" + make_key(host.dek).encrypt(key) + b"\3" + make_key(key).kcv
    return f"{len(body):02X}{body.hex()}"


@pytest.mark.parametrize("version", [1, 0x30])
def test_put_key(phone: Phone, version: int) -> None:
    """A new version, then another in its place; check values come back; the new keys open a channel."""
    aes = version == 0x30
    keys = [NEW_KEYS[0]] * 3
    host = Host(phone, version).open(3)
    answer = host("80D80081" + sealed_keys(host, 0x20, keys, aes))
    assert answer[0] == 0x20
    assert len(answer) == 10
    again = Host(phone, 0x20, keys[0]).open(1)
    again("80D82081" + sealed_keys(again, 0x21, [NEW_KEYS[1]] * 3, aes))
    phone("00A40400")
    phone("8050200008" + "00" * 8, 0x6A88)
    last = Host(phone, 0x21, NEW_KEYS[1]).open(3)
    rows = [one.value[1] for one in Tlv.parse_list(find(last("80CA00E0"), 0xE0))]
    assert sorted(set(rows)) == [0x01, 0x21, 0x30]


def test_put_key_refused(phone: Phone) -> None:
    """Wrong check value, unknown type, existing version, one key of a version that is not there: nothing changes."""
    host = Host(phone, 1).open(0)
    before = phone.face.memory.key_sets.value
    good = sealed_keys(host, 0x20, [NEW_KEYS[0]] * 3, aes=False)
    host("80D80081" + good[:-2] + "00", 0x9485)
    host("80D80081" + good[:4] + "82" + good[6:], 0x9484)
    host("80D80081" + sealed_keys(host, 0x30, [NEW_KEYS[0]] * 3, aes=False), 0x6A80)
    host("80D80001" + sealed_keys(host, 0x20, [NEW_KEYS[0]], aes=False), 0x6A80)
    host("80D84081" + good, 0x6A88)
    host("80D80081" + "0120", 0x6A80)
    assert phone.face.memory.key_sets.value == before


def one_card(*enterprises: int) -> Phone:
    """A SIM with an application of each enterprise on its contactless face."""
    sim = image.build({
        "kind": "sim", "serial": make_serial(CardKind.RFID_SIM, 1, 9).hex(),
        "application": [{"enterprise_id": one, "label": f"E{one}"} for one in enterprises],
    })  # fmt: skip
    assert isinstance(sim, Sim)
    return Phone(sim.phone)


def test_applications_are_instances() -> None:
    """The one-card applet is a preloaded module with an instance for each enterprise, as `gp -l` lists it."""
    phone = one_card(1001, 1002)
    host = Host(phone, 1).open(1)
    rows = [one.value for one in Tlv.parse_list(host("80F24002024F00"))]
    assert [find(row, 0x4F) for row in rows] == [aid(1001), aid(1002)]
    assert {find(row, 0x9F70) for row in rows} == {b"\7"}
    module = find(host("80F21002024F00"), 0xE3)
    assert find(module, 0x84) == aid(1)[:9]
    assert find(module, 0x4F) == find(rows[0], 0xC4) == aid(1)[:8]
    old = host("80F24000024F00")
    assert old.startswith(b"\x0d" + aid(1001) + b"\7\0")
    assert find(host("80F240020F4F0D" + aid(1002).hex()), 0xE3, 0x4F) == aid(1002)
    host("80F24002074F05AABBCCDDEE", 0x6A88)
    host("80E40000" + "0F4F0D" + aid(1001).hex(), 0x6985)
    host("80E40000" + "0A4F08" + aid(1)[:8].hex(), 0x6985)
    answer = phone("00A404000D" + aid(1002).hex())
    assert find(answer, 0x6F, 0x84) == aid(1002)
    phone("00B0950010", 0x6D00)
    phone("00A40004023F00")
    phone("80F2000C")


def test_get_status_in_parts() -> None:
    """What does not fit in one answer says 6310; the next ones bring the rest, each thing once."""
    phone = one_card(*range(1001, 1009))
    for form in (0, 2):
        host = Host(phone, 0x30).open(1)
        seen = b""
        for part in itertools.count():
            command = f"80F240{form | (part > 0):02X}024F00"
            answer = phone.raw(host.wrapped(command))
            data = bytes.fromhex(phone.raw("80C00000" + answer[2:4]))
            assert len(data) <= 257
            seen += data[:-2]
            if data[-2:] == b"\x90\0":
                break
            assert data[-2:] == b"\x63\x10"
        assert all(seen.count(aid(number)) == 1 for number in range(1001, 1009))


def cap_file(package: bytes, *applets: bytes) -> bytes:
    """The components that a loader looks at."""
    header = bytes.fromhex("DECAFFED") + bytes((1, 2, 4, 0, 1, len(package))) + package
    modules = bytes((len(applets),)) + b"".join(bytes((len(one),)) + one + b"\0\0" for one in applets)
    parts = b"".join(bytes((tag,)) + len(part).to_bytes(2, "big") + part for tag, part in ((1, header), (3, modules)))
    return bytes(Tlv(0xC4, parts + b"\x07" + (300).to_bytes(2, "big") + bytes(300)))


def fields(*values: bytes) -> str:
    body = b"".join(bytes((len(one),)) + one for one in values)
    return f"{len(body):02X}{body.hex()}"


def test_load_install_delete(phone: Phone) -> None:
    """A CAP file is loaded in blocks, listed with its modules, installed, locked, selected, deleted; never executed."""
    package, applet, instance = b"\xf0TEST", b"\xf0TESTA", b"\xf0TESTI"
    host = Host(phone, 0x30).open(3)
    isd = bytes.fromhex(ISD)
    assert host("80E60200" + fields(package, isd, b"", b"", b"")) == b"\0"
    code = cap_file(package, applet)
    blocks = [code[i : i + 100] for i in range(0, len(code), 100)]
    for number, block in enumerate(blocks):
        host(f"80E8{0x80 if block is blocks[-1] else 0:02X}{number:02X}{len(block):02X}{block.hex()}")
    rows = {find(one.value, 0x4F): one.value for one in Tlv.parse_list(host("80F21002024F00"))}
    assert find(rows[package], 0x84) == applet
    host("80E60200" + fields(package, isd, b"", b"", b""), 0x6985)
    host("80E60C00" + fields(package, b"\xf0OTHER", instance, b"\0", b"\xc9\0", b""), 0x6A80)
    host("80E60400" + fields(package, applet, instance, b"\0", b"\xc9\0", b""))
    phone("00A4040006" + instance.hex(), 0x6A82)
    host = Host(phone, 0x30).open(3)
    host("80E60800" + fields(b"", b"", instance, b"\0", b"", b""))
    host("80E60C00" + fields(package, applet, instance, b"\0", b"\xc9\0", b""), 0x6985)
    assert find(host("80F24002024F00"), 0xE3, 0x9F70) == b"\7"
    phone("00A4040006" + instance.hex())
    host = Host(phone, 0x30).open(3)
    host("80F04080" + "06" + instance.hex())
    phone("00A4040006" + instance.hex(), 0x6A82)
    host = Host(phone, 0x30).open(3)
    host("80E40000" + "074F05" + package.hex(), 0x6985)
    host("80E40080" + "074F05" + package.hex())
    host("80E40000" + "084F06" + instance.hex(), 0x6A88)
    host("80F24002024F00", 0x6A88)
    host("80E80000" + "0100", 0x6985)


def test_bad_load_files(phone: Phone) -> None:
    """Blocks out of order, another package's code, damaged components: refused, and nothing is kept."""
    package = b"\xf0TEST"
    good = cap_file(package, b"\xf0TESTA")[:200]
    other = bytes(Tlv(0xC4, cap_file(b"\xf0OTHR", b"\xf0TESTA")[4:40]))
    for code, block, sw in (
        (good, 1, 0x6A86), (other, 0, 0x6A80), (good, 0, 0x6A80), (b"\xc4\x02\x01\xff", 0, 0x6A80),
    ):  # fmt: skip
        host = Host(phone, 1).open(0)
        host("80E60200" + fields(package, b"", b"", b"", b""))
        host(f"80E880{block:02X}{len(code):02X}{code.hex()}", sw)
        host("80E880000100", 0x6985)
    assert not phone.face.memory.load_files.value


def test_life_cycle(phone: Phone) -> None:
    """A locked card answers SELECT with a warning, a terminated one is closed; telephony goes on."""
    host = Host(phone, 1).open(1)
    host("80F0800F", 0x6985)
    host("80F0807F")
    phone("00A4040008" + ISD, 0x6283)
    channel = phone("8050010008" + bytes(range(8)).hex())
    assert len(channel) == 28
    phone.face.memory.life_cycle.value = 0x0F
    host = Host(phone, 1).open(1)
    host("80F080FF")
    phone("00A4040008" + ISD, 0x6985)
    phone.usim()


def test_store_data(phone: Phone) -> None:
    """What STORE DATA puts, GET DATA gives."""
    host = Host(phone, 0x30).open(3)
    host("80E2900007420202034501AA")
    assert phone("80CA004200").hex() == "42020203"
    assert phone("80CA004500").hex() == "4501aa"
    phone("80CA004300", 0x6A88)
    phone("80CA9F7F00")


def test_torn_put_key() -> None:
    """A key set is there whole or not at all when power goes at any step."""
    seen = set()
    for step in itertools.count(1):
        phone = Phone()
        host = Host(phone, 1).open(1)
        command = bytes.fromhex(host.wrapped("80D80081" + sealed_keys(host, 0x20, NEW_KEYS, aes=False)))
        phone.face.power.cut_at(step)
        try:
            phone.face.transceive(command)
        except CardRemoved:
            phone.face.reset()
            found = phone.face.memory.key_sets.value.get(0x20)
            assert found in (None, KeySet(SCP02, *NEW_KEYS))
            seen.add(found is None)
        else:
            break
    assert seen == {True, False}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([0xD8, 0xE6, 0xE8, 0xE4, 0xE2, 0xF0, 0xF2]),
    st.binary(min_size=2, max_size=2),
    st.binary(max_size=60),
)
def test_garbage_inside_a_channel(ins: int, places: bytes, data: bytes) -> None:
    """Whatever a proven host sends, the answer is a status word and keys stay."""
    phone = Phone()
    Host(phone, 1).open(0)
    phone.face.transceive(bytes((0x80, ins)) + places + bytes((len(data),)) + data)
    assert set(phone.face.memory.key_sets.value) == {0x01, 0x30}
