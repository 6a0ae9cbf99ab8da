"""The issuer security domain: GlobalPlatform Card Specification, as uicc.md "Security domain" cuts it down."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from hmac import compare_digest
from typing import TYPE_CHECKING, NamedTuple

from cardlib.apdu import SW
from cardlib.crypto import make_key
from cardlib.crypto.channels import cbc_encrypt
from cardlib.errors import FormatError, NotFound
from cardlib.profile import aid as application_name
from cardlib.tlv import Tlv
from cardlib.tlv import find as find_tlv
from simulator.files import UNBLOCKED, Df
from simulator.handlers import Counted, Refusal
from simulator.uicc.files import EF_ICCID
from simulator.uicc.memory import SCP02, SCP03, Instance, KeySet, LoadFile
from simulator.uicc.session import LEVELS, Scp02, Scp03, SecureChannel, Session

if TYPE_CHECKING:
    from simulator.uicc.face import Channel, Handler, Uicc

ISD = bytes.fromhex("A000000151000000")
ONECARD_MODULE = application_name(1)[:9]
ONECARD_PACKAGE = ONECARD_MODULE[:8]
"""The one-card applet is there from the factory: ``F0 "ONECARD"``, module with version 01, instances per enterprise."""

MAX_FAILURES = 10
MAX_CODE_BYTES = 0x10000
MAX_STORED_BYTES = 1024
MAX_ANSWER = 255
SECURED, CARD_LOCKED, TERMINATED = 0x0F, 0x7F, 0xFF
INSTALLED, SELECTABLE, LOCKED = 0x03, 0x07, 0x80
LOADED = 0x01
ISD_PRIVILEGES = bytes.fromhex("9EFE80")
WRONG, MORE, LOCKED_WARNING, BAD_KCV, BAD_ALGORITHM = 0x6300, 0x6310, 0x6283, 0x9485, 0x9484
DES_TYPE, AES_TYPE = 0x80, 0x88
RECOGNITION = bytes.fromhex(
    "06072A864886FC6B01"  # GlobalPlatform
    "600C060A2A864886FC6B02020201"  # Card Specification 2.2.1, the version that tools know best
    "630906072A864886FC6B03"  # this identification scheme
    "640B06092A864886FC6B040215"  # SCP02, i=15
    "640B06092A864886FC6B040300"  # SCP03, i=00
)
RECEIPT = b"\0"
"""No receipt: what INSTALL, LOAD and DELETE answer."""


class Entry(NamedTuple):
    """What GET STATUS tells about one thing."""

    aid: bytes
    state: int
    privileges: bytes
    package: bytes = b""
    modules: tuple[bytes, ...] = ()


# What is there ----------------------------------------------------------------------------------------------------


def onecard_instances(face: Uicc) -> Iterator[Df]:
    """The applications on the contactless face: one a enterprise, each an instance of the preloaded module."""
    cell = face.nvm.roots.get("mf")
    mf = cell.value if cell else None
    for node in mf.files.value.values() if mf else ():
        if isinstance(node, Df) and node.name.startswith(ONECARD_MODULE):
            yield node


def _applications(face: Uicc) -> list[Entry]:
    ours = [
        Entry(df.name, SELECTABLE if df.blocked.value == UNBLOCKED else SELECTABLE | LOCKED, bytes(3), ONECARD_PACKAGE)
        for df in onecard_instances(face)
    ]
    others = face.memory.instances.value.values()
    return ours + [Entry(one.aid, one.state, one.privileges.ljust(3, b"\0"), one.package) for one in others]


def _load_files(face: Uicc) -> list[Entry]:
    files = [LoadFile(ONECARD_PACKAGE, (ONECARD_MODULE,)), *face.memory.load_files.value.values()]
    return [Entry(one.aid, LOADED, bytes(3), b"", one.modules) for one in files]


def find(face: Uicc, name: bytes) -> bytes:
    """The whole AID that a partial one selects. Raises Refusal."""
    selectable = [one.aid for one in _applications(face) if one.state == SELECTABLE]
    for aid in [ISD, *selectable]:
        if aid.startswith(name):
            return aid
    raise Refusal(SW.FILE_NOT_FOUND)


def fci(face: Uicc, channel: Channel) -> bytes:
    """Answer to SELECT of the domain (Card Specification 11.9.3.1)."""
    life_cycle = face.memory.life_cycle.value
    if life_cycle == CARD_LOCKED:
        channel.sw = LOCKED_WARNING
    elif life_cycle == TERMINATED:
        raise Refusal(SW.CONDITIONS)
    more = Tlv(0x9F6E, bytes((0, 0, 0, 0, life_cycle))) + Tlv(0x9F65, bytes((MAX_ANSWER,)))
    return Tlv(0x6F, Tlv(0x84, ISD) + Tlv(0xA5, Tlv(0x73, RECOGNITION) + more))


def get_data(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """GET DATA: production data, recognition data, keys, and what STORE DATA put there."""
    tag = p1 << 8 | p2
    iccid: bytes = face.memory.files[face.tree.mf.children[EF_ICCID].index].value
    if tag == 0x9F7F:
        return Tlv(0x9F7F, bytes(12) + iccid[-4:] + bytes(26))
    if tag == 0x66:
        return Tlv(0x66, Tlv(0x73, RECOGNITION))
    if tag == 0xE0:
        return Tlv(0xE0, (Tlv(0xC0, row) for row in _key_rows(face)))
    if tag == 0xC1:
        return Tlv(0xC1, face.memory.sequence.value.to_bytes(2, "big"))
    stored = face.memory.application_data.value.get(tag)
    if stored is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    return Tlv(tag, stored)


def _key_rows(face: Uicc) -> Iterator[bytes]:
    for version, key_set in sorted(face.memory.key_sets.value.items()):
        kind = DES_TYPE if key_set.protocol == SCP02 else AES_TYPE
        for number, key in enumerate(key_set[1:], 1):
            yield bytes((number, version, kind, len(key)))


# Secure channel ---------------------------------------------------------------------------------------------------


def _usable(face: Uicc) -> None:
    if face.memory.failures.value >= MAX_FAILURES:
        raise Refusal(SW.KEY_LOCKED)


def initialize_update(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """INITIALIZE UPDATE: begin a session under a key version; 00 means 01."""
    channel.session = None
    if p2:
        raise Refusal(SW.P1P2)
    if len(data) != 8:
        raise Refusal(SW.LENGTH)
    _usable(face)
    version = p1 or 1
    keys = face.memory.key_sets.value.get(version)
    if keys is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    iccid: bytes = face.memory.files[face.tree.mf.children[EF_ICCID].index].value
    if keys.protocol == SCP02:
        sequence, card = face.memory.sequence.value, face.random_bytes(6)
        if sequence == 0xFFFF:
            raise Refusal(SW.KEY_LOCKED)
        head = sequence.to_bytes(2, "big") + card
        session: SecureChannel = Scp02(keys, head[:2], card, data)
    else:
        card = face.random_bytes(8)
        head = b"\0" + card
        session = Scp03(keys, card, data)
    channel.session = session
    return iccid + bytes((version, keys.protocol)) + head + session.card_cryptogram


def external_authenticate(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """EXTERNAL AUTHENTICATE: prove the host and open the channel at a level; wrong cryptograms are counted."""
    session, channel.session = channel.session, None
    _usable(face)
    if not isinstance(session, SecureChannel) or session.opened:
        raise Refusal(SW.CONDITIONS)
    if p1 not in LEVELS or p2:
        raise Refusal(SW.P1P2)
    if len(data) != 16:
        raise Refusal(SW.LENGTH)
    memory = face.memory
    if not session.authenticate(p1, face.command, data):
        face.nvm.write(memory.failures, memory.failures.value + 1)
        raise Counted(WRONG)
    if memory.failures.value:
        face.nvm.write(memory.failures, 0)
    if isinstance(session, Scp02):
        face.nvm.write(memory.sequence, memory.sequence.value + 1)
    channel.session = session
    return b""


def secured(handler: Handler) -> Handler:
    """A command that needs an open channel; its protection is checked and taken off, an error ends the channel."""

    @wraps(handler)
    def within(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
        session, channel.session = channel.session, None
        if session is None or not session.opened:
            raise Refusal(SW.SECURITY)
        data = session.unwrap(face.command, data)
        channel.session = session
        if face.memory.life_cycle.value == TERMINATED:
            raise Refusal(SW.CONDITIONS)
        return handler(face, channel, p1, p2, data, le)

    return within


def get_data_secured(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """GET DATA, with or without a secure channel."""
    if face.command[0] & 0x0C:
        return secured(get_data)(face, channel, p1, p2, data, le)
    return get_data(face, channel, p1, p2, data, le)


# Registry ---------------------------------------------------------------------------------------------------------


@secured
def get_status(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """GET STATUS in the old and the new format, in parts when it does not fit."""
    if p2 > 3:
        raise Refusal(SW.P1P2)
    wanted = _tlv(data, 0x4F)
    if p1 == 0x80:
        entries = [Entry(ISD, face.memory.life_cycle.value, ISD_PRIVILEGES)]
    elif p1 == 0x40:
        entries = _applications(face)
    elif p1 in (0x20, 0x10):
        entries = _load_files(face)
    else:
        raise Refusal(SW.P1P2)
    rows = [_row(one, p1, new=p2 & 2 != 0) for one in entries if one.aid.startswith(wanted)]
    begin = channel.record if p2 & 1 else 0
    if begin >= len(rows):
        raise Refusal(SW.KEY_NOT_FOUND)
    answer, end = rows[begin], begin + 1
    while end < len(rows) and len(answer) + len(rows[end]) <= MAX_ANSWER:
        answer, end = answer + rows[end], end + 1
    channel.record = end
    if end < len(rows):
        channel.sw = MORE
    return answer


def _row(entry: Entry, p1: int, *, new: bool) -> bytes:
    modules = entry.modules if p1 == 0x10 else ()
    if not new:
        row = bytes((len(entry.aid),)) + entry.aid + bytes((entry.state,)) + entry.privileges[:1]
        tail = b"".join(bytes((len(one),)) + one for one in modules)
        return row + (bytes((len(modules),)) + tail if p1 == 0x10 else b"")
    parts = [Tlv(0x4F, entry.aid), Tlv(0x9F70, bytes((entry.state,)))]
    if p1 in (0x80, 0x40):
        parts.append(Tlv(0xC5, entry.privileges))
    if entry.package:
        parts.append(Tlv(0xC4, entry.package))
    if p1 != 0x80:
        parts.append(Tlv(0xCC, ISD))
    return Tlv(0xE3, parts + [Tlv(0x84, one) for one in modules])


def _tlv(data: bytes, tag: int) -> bytes:
    try:
        return find_tlv(data, tag)
    except (FormatError, NotFound):
        raise Refusal(SW.DATA) from None


@secured
def set_status(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """SET STATUS of the card (it only grows older, a lock may be taken off) or of an application (lock, unlock)."""
    memory = face.memory
    if p1 == 0x80:
        now = memory.life_cycle.value
        allowed = {0x01: (0x07, 0x0F), 0x07: (0x0F,), SECURED: (CARD_LOCKED,), CARD_LOCKED: (SECURED,)}.get(now, ())
        if p2 not in (*allowed, TERMINATED):
            raise Refusal(SW.CONDITIONS)
        face.nvm.write(memory.life_cycle, p2)
        return b""
    if p1 != 0x40:
        raise Refusal(SW.P1P2)
    one = memory.instances.value.get(data)
    if one is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    state = one.state | LOCKED if p2 & LOCKED else one.state & ~LOCKED
    face.nvm.write(memory.instances, {**memory.instances.value, data: one._replace(state=state)})
    return b""


@secured
def put_key(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """PUT KEY: a new key version, another instead of an old one, or one key of it; check values are compared."""
    memory = face.memory
    if not data or not 1 <= data[0] <= 0x7F:
        raise Refusal(SW.DATA)
    version, known = data[0], memory.key_sets.value
    if p1 and p1 not in known:
        raise Refusal(SW.KEY_NOT_FOUND)
    if version != p1 and version in known:
        raise Refusal(SW.DATA)
    assert channel.session is not None
    rows = list(_keys(channel.session, data[1:]))
    kinds, keys, kcvs = {one[0] for one in rows}, [one[1] for one in rows], [one[2] for one in rows]
    first, multiple = p2 & 0x7F, p2 & 0x80
    if len(kinds) != 1 or not 1 <= first <= 4 - len(keys) or (len(keys) > 1 and not multiple):
        raise Refusal(SW.DATA)
    protocol = SCP02 if kinds == {DES_TYPE} else SCP03
    old = known.get(p1)
    if len(keys) < 3 and (old is None or old.protocol != protocol):
        raise Refusal(SW.DATA)
    values = list(old[1:] if old else (b"",) * 3)
    values[first - 1 : first - 1 + len(keys)] = keys
    rest = {number: one for number, one in known.items() if number != p1}
    face.nvm.write(memory.key_sets, {**rest, version: KeySet(protocol, *values)})
    return bytes((version,)) + b"".join(kcvs)


def _keys(session: Session, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, value and check value of each key: ``type | L | [size] sealed | 3 | KCV``. Raises Refusal."""
    while data:
        kind, size = data[0], data[1] if len(data) > 1 else 0
        body, tail = data[2 : 2 + size], data[2 + size :]
        if len(body) != size or not size or len(tail) < 4 or tail[0] != 3:
            raise Refusal(SW.DATA)
        kcv, data = tail[1:4], tail[4:]
        try:
            if kind == DES_TYPE:
                value = _value(session, body, 16)
                own = make_key(value).kcv
            elif kind == AES_TYPE:
                value = _value(session, body, 16, 24, 32)
                own = cbc_encrypt(value, b"\x01" * 16, bytes(16), aes=True)[:3]
            else:
                raise Refusal(BAD_ALGORITHM)
        except (FormatError, ValueError) as e:
            raise Refusal(SW.DATA) from e
        if not compare_digest(own, kcv):
            raise Refusal(BAD_KCV)
        yield kind, value, kcv


def _value(session: Session, body: bytes, *sizes: int) -> bytes:
    """Hosts put the key's size before the sealed value, or only when the value was padded (Tables 11-70, 11-71)."""
    size, sealed = (body[0], body[1:]) if len(body) % 8 == 1 else (len(body), body)
    value = session.key(sealed)[:size]
    if size not in sizes or len(value) != size:
        raise Refusal(SW.DATA)
    return value


# Content ----------------------------------------------------------------------------------------------------------


def _fields(data: bytes) -> list[bytes]:
    """Length-value fields that fill ``data``. Raises Refusal."""
    fields = []
    while data:
        size = data[0]
        if len(data) <= size:
            raise Refusal(SW.DATA)
        fields.append(data[1 : 1 + size])
        data = data[1 + size :]
    return fields


@secured
def install(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """INSTALL: for load, for install, to make selectable, for personalization."""
    if p2 or p1 not in (0x02, 0x04, 0x08, 0x0C, 0x20):
        raise Refusal(SW.P1P2)
    if face.memory.life_cycle.value == CARD_LOCKED:
        raise Refusal(SW.CONDITIONS)
    fields = _fields(data)
    if len(fields) < (5 if p1 == 0x02 else 6) or (p1 == 0x02 and not 5 <= len(fields[0]) <= 16):
        raise Refusal(SW.DATA)
    if p1 == 0x02:
        if any(one.aid == fields[0] for one in _load_files(face)) or fields[1] not in (b"", ISD):
            raise Refusal(SW.CONDITIONS)
        face.loading = (fields[0], b"", 0)
        return RECEIPT
    package, module, aid, privileges, parameters = fields[:5]
    instances = face.memory.instances.value
    if p1 == 0x20:
        _instance(face, aid)
        return RECEIPT
    if p1 & 0x04:
        if not 5 <= len(aid) <= 16 or not any(
            package == one.aid and module in one.modules for one in _load_files(face)
        ):
            raise Refusal(SW.DATA)
        taken = {ISD, face.tree.adf.aid, *(one.aid for one in _applications(face))}
        if package == ONECARD_PACKAGE or aid in taken:
            raise Refusal(SW.CONDITIONS)  # an instance of ours is made by opening a slot (keys.md)
        one = Instance(aid, package, module, INSTALLED, privileges, parameters)
    else:
        one = _instance(face, aid)
    state = SELECTABLE if p1 & 0x08 else INSTALLED
    face.nvm.write(face.memory.instances, {**instances, aid: one._replace(state=state)})
    return RECEIPT


def _instance(face: Uicc, aid: bytes) -> Instance:
    one = face.memory.instances.value.get(aid)
    if one is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    return one


@secured
def load(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """LOAD: the blocks of a load file in their order; the last one completes it."""
    if face.loading is None:
        raise Refusal(SW.CONDITIONS)
    aid, code, block = face.loading
    face.loading = None
    if p1 not in (0, 0x80) or p2 != block & 0xFF:
        raise Refusal(SW.P1P2)
    code += data
    if len(code) > MAX_CODE_BYTES:
        raise Refusal(SW.NO_SPACE)
    if p1 == 0:
        face.loading = (aid, code, block + 1)
        return RECEIPT
    components = _components(_tlv(code, 0xC4))
    header = components.get(1, b"")
    if (
        header[:4] != bytes.fromhex("DECAFFED")
        or header[10 : 10 + len(aid)] != aid
        or header[9:10] != bytes((len(aid),))
    ):
        raise Refusal(SW.DATA)
    one = LoadFile(aid, tuple(_modules(components.get(3, b""))), code)
    face.nvm.write(face.memory.load_files, {**face.memory.load_files.value, aid: one})
    return RECEIPT


def _components(cap: bytes) -> dict[int, bytes]:
    """Components of a CAP file: tag, 2-byte size, data (Java Card VM specification 6)."""
    found = {}
    while cap:
        size = int.from_bytes(cap[1:3], "big")
        if len(cap) < 3 + size:
            raise Refusal(SW.DATA)
        found[cap[0]], cap = cap[3 : 3 + size], cap[3 + size :]
    return found


def _modules(applets: bytes) -> Iterator[bytes]:
    rest = applets[1:]
    for _ in range(int.from_bytes(applets[:1], "big")):
        if not rest or len(rest) < 3 + rest[0]:
            raise Refusal(SW.DATA)
        yield rest[1 : 1 + rest[0]]
        rest = rest[3 + rest[0] :]


@secured
def delete(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """DELETE an instance, or a load file (P2 80: with its instances). What is ours is deleted by DELETE DF."""
    if p1 or p2 not in (0, 0x80):
        raise Refusal(SW.P1P2)
    aid = _tlv(data, 0x4F)
    memory = face.memory
    instances, load_files = memory.instances.value, memory.load_files.value
    if aid in instances:
        face.nvm.write(memory.instances, {name: one for name, one in instances.items() if name != aid})
        return RECEIPT
    if aid not in load_files:
        known = {ISD, ONECARD_PACKAGE, *(df.name for df in onecard_instances(face))}
        raise Refusal(SW.CONDITIONS if aid in known else SW.KEY_NOT_FOUND)
    rest = {name: one for name, one in instances.items() if one.package != aid}
    if len(rest) < len(instances) and not p2:
        raise Refusal(SW.CONDITIONS)
    face.nvm.write(memory.instances, rest)
    face.nvm.write(memory.load_files, {name: one for name, one in load_files.items() if name != aid})
    return RECEIPT


@secured
def store_data(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """STORE DATA: objects that GET DATA gives back."""
    try:
        objects = {one.tag: one.value for one in Tlv.parse_list(data)}
    except FormatError:
        raise Refusal(SW.DATA) from None
    stored = {**face.memory.application_data.value, **objects}
    if sum(map(len, stored.values())) > MAX_STORED_BYTES:
        raise Refusal(SW.NO_SPACE)
    face.nvm.write(face.memory.application_data, stored)
    return b""


COMMANDS: dict[int, tuple[int, Handler]] = {
    0x50: (4, initialize_update),
    0x82: (3, external_authenticate),
    0xCA: (2, get_data_secured),
    0xF2: (4, get_status),
    0xF0: (3, set_status),
    0xD8: (4, put_key),
    0xE6: (4, install),
    0xE8: (4, load),
    0xE4: (4, delete),
    0xE2: (3, store_data),
}
