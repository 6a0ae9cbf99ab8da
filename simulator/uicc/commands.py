"""File, PIN and authentication commands of the phone face (TS 102 221 11; GSM 11.11 for class A0)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from hmac import compare_digest

from cardlib.apdu import SW
from cardlib.errors import FormatError, MacMismatch
from cardlib.tlv import Tlv
from simulator.handlers import Counted, Refusal
from simulator.uicc import domain, toolkit
from simulator.uicc.face import (
    APPLET,
    CHANNELS,
    DOMAIN,
    FILES,
    GSM,
    INTERINDUSTRY,
    PROPRIETARY,
    Channel,
    Handler,
    Uicc,
)
from simulator.uicc.files import CURRENT_ADF, DF_GSM, MF, Kind, Node
from simulator.uicc.memory import ADM_REFERENCE, PIN1_REFERENCE, PIN_TRIES, PUK_TRIES, Pin
from simulator.uicc.milenage import Milenage, gsm

NO_CURRENT_EF, NOT_FOUND, DISABLED, AUTHENTICATION = 0x6986, 0x6282, 0x6984, 0x9862
SELECT_FID, SELECT_PARENT, SELECT_NAME, SELECT_FROM_MF, SELECT_FROM_CURRENT = 0x00, 0x03, 0x04, 0x08, 0x09
NO_DATA = 0x0C
NEXT, PREVIOUS, ABSOLUTE = 2, 3, 4
FORWARD, BACKWARD = 4, 5
SEEK_FIRST, SEEK_LAST, SEEK_NEXT, SEEK_PREVIOUS = range(4)
GSM_CONTEXT, USIM_CONTEXT = 0x80, 0x81
AUTHENTICATED, OUT_OF_STEP = b"\xdb", b"\xdc"
TERMINAL_CAPABILITIES = 0xA9


# Selecting --------------------------------------------------------------------------------------------------------


def select(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """SELECT in all its forms (uicc.md)."""
    if p2 & 0x9F not in (0x00, 0x04, NO_DATA):
        raise Refusal(SW.P1P2)
    if p1 == SELECT_NAME:
        answer = _select_name(face, channel, data)
    else:
        node = _target(face, channel, p1, data)
        if channel.mode != FILES:
            channel.leave(face.tree.mf)
        channel.enter(node)
        answer = fcp(face, node)
    return b"" if p2 & 0x1F == NO_DATA else answer


def _target(face: Uicc, channel: Channel, p1: int, data: bytes) -> Node:
    if p1 == SELECT_PARENT:
        if data:
            raise Refusal(SW.LENGTH)
        return channel.directory.parent
    if len(data) % 2 or not data or (p1 == SELECT_FID and len(data) != 2):
        raise Refusal(SW.LENGTH)
    path = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
    if p1 == SELECT_FID:
        return find(face, channel, path[0])
    if p1 not in (SELECT_FROM_MF, SELECT_FROM_CURRENT):
        raise Refusal(SW.P1P2)
    node = channel.directory
    if p1 == SELECT_FROM_MF:
        node = face.tree.mf
        if path[0] == CURRENT_ADF:
            node, path = adf(face, channel), path[1:]
        elif path[0] == MF:
            path = path[1:]
    for fid in path:
        inner = node.children.get(fid)
        if inner is None:
            raise Refusal(SW.FILE_NOT_FOUND)
        node = inner
    return node


def find(face: Uicc, channel: Channel, fid: int) -> Node:
    """What a file identifier means in the current directory (TS 102 221 8.4.1)."""
    here = channel.directory
    if fid == MF:
        return face.tree.mf
    if fid == CURRENT_ADF:
        return adf(face, channel)
    if (node := here.children.get(fid)) is not None:
        return node
    if fid in (here.fid, here.parent.fid):
        return here if fid == here.fid else here.parent
    node = here.parent.children.get(fid)
    if node is None or not node.is_directory:
        raise Refusal(SW.FILE_NOT_FOUND)
    return node


def adf(face: Uicc, channel: Channel) -> Node:
    """The ADF that is active on a channel."""
    if channel.application != face.tree.adf.aid:
        raise Refusal(SW.FILE_NOT_FOUND)
    return face.tree.adf


def _select_name(face: Uicc, channel: Channel, name: bytes) -> bytes:
    if not name:
        name = domain.ISD
    elif not 5 <= len(name) <= 16:
        raise Refusal(SW.FILE_NOT_FOUND)
    if face.tree.adf.aid.startswith(name):
        channel.leave(face.tree.adf)
        channel.application = face.tree.adf.aid
        return fcp(face, face.tree.adf)
    found = domain.find(face, name)
    channel.leave(face.tree.mf)
    channel.application = found
    channel.mode = DOMAIN if found == domain.ISD else APPLET
    if channel.mode == DOMAIN:
        return domain.fci(face, channel)
    return Tlv(0x6F, Tlv(0x84, found) + Tlv(0xA5, b""))


def fcp(face: Uicc, node: Node) -> bytes:
    """File control parameters; a directory's with the PIN status (TS 102 221 9.5.2: PIN1, ADM)."""
    if not node.is_directory:
        return Tlv(0x62, node.fcp)
    enabled = 0x80 if face.memory.pins[PIN1_REFERENCE].value.enabled else 0
    status = (
        Tlv(0x90, bytes((enabled | 0x40,))) + Tlv(0x83, bytes((PIN1_REFERENCE,))) + Tlv(0x83, bytes((ADM_REFERENCE,)))
    )
    return Tlv(0x62, node.fcp + Tlv(0xC6, status))


def select_gsm(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """SELECT of class A0: by identifier only, with the answer of GSM 11.11 9.2.1."""
    if p1 or p2:
        raise Refusal(SW.P1P2)
    if len(data) != 2:
        raise Refusal(SW.LENGTH)
    if channel.mode != FILES:
        channel.leave(face.tree.mf)
    channel.enter(find(face, channel, int.from_bytes(data, "big")))
    return _gsm_answer(face, channel.ef or channel.directory)


def _gsm_answer(face: Uicc, node: Node) -> bytes:
    pin = face.memory.pins[PIN1_REFERENCE].value
    return node.gsm(bytes((0x80 | pin.tries, 0x80 | pin.puk_tries, 0, 0)), not pin.enabled)


def status(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """STATUS: about the current directory or application."""
    if p1 > 2 or p2 not in (0, 1, NO_DATA):
        raise Refusal(SW.P1P2)
    if p2 == NO_DATA:
        return b""
    if p2 == 1:
        return Tlv(0x84, channel.application)
    return fcp(face, channel.directory)


def status_gsm(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """STATUS of class A0: 22 bytes, or as many of them as are wanted."""
    if p1 or p2:
        raise Refusal(SW.P1P2)
    answer = _gsm_answer(face, channel.directory)
    return answer[: le or None]


def manage_channel(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """MANAGE CHANNEL: open (the card chooses when P2 is 0) or close."""
    if p1 == 0x80:
        number = p2 or channel.number
        if number == 0 or number >= CHANNELS or face.channels[number] is None:
            raise Refusal(SW.P1P2 if not number or number >= CHANNELS else 0x6881)
        face.channels[number] = None
        return b""
    if p1 or p2 >= CHANNELS:
        raise Refusal(SW.P1P2)
    free = [number for number in ([p2] if p2 else range(1, CHANNELS)) if face.channels[number] is None]
    if not free:
        raise Refusal(SW.NOT_SUPPORTED)
    opened = face.channels[free[0]] = Channel(free[0], face.tree.mf)
    if channel.number and channel.mode == FILES:
        opened.directory, opened.application = channel.directory, channel.application
    return b"" if p2 else bytes((opened.number,))


# Files ------------------------------------------------------------------------------------------------------------


def _file(face: Uicc, channel: Channel, sfi: int, access: str, *kinds: Kind) -> Node:
    """The file a command means, by short identifier or the current one, once its rights are met."""
    if sfi >= 0:
        node = channel.directory.by_sfi.get(sfi)
        if node is None:
            raise Refusal(SW.FILE_NOT_FOUND)
    elif channel.ef is None:
        raise Refusal(NO_CURRENT_EF)
    else:
        node = channel.ef
    if node.kind not in kinds:
        raise Refusal(SW.FILE_TYPE)
    if not face.allowed(channel, node.read if access == "read" else node.update):
        raise Refusal(SW.SECURITY)
    if sfi >= 0:
        channel.enter(node)
    return node


def _binary_place(p1: int, p2: int) -> tuple[int, int]:
    """Short identifier (-1 none) and offset."""
    if p1 & 0x80:
        if p1 & 0x60 or not p1 & 0x1F:
            raise Refusal(SW.P1P2)
        return p1 & 0x1F, p2
    return -1, p1 << 8 | p2


def read_binary(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """READ BINARY."""
    sfi, offset = _binary_place(p1, p2)
    node = _file(face, channel, sfi, "read", Kind.BINARY)
    if offset >= node.size:
        raise Refusal(SW.OFFSET)
    left = node.size - offset
    if le > left:
        raise Refusal(0x6C00 | left & 0xFF)
    content: bytes = face.memory.files[node.index].value
    return content[offset : offset + (le or min(left, 256))]


def update_binary(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """UPDATE BINARY."""
    sfi, offset = _binary_place(p1, p2)
    node = _file(face, channel, sfi, "update", Kind.BINARY)
    if offset >= node.size or offset + len(data) > node.size:
        raise Refusal(SW.OFFSET if offset >= node.size else SW.LENGTH)
    if not data:
        raise Refusal(SW.LENGTH)
    cell = face.memory.files[node.index]
    face.nvm.write(cell, cell.value[:offset] + data + cell.value[offset + len(data) :])
    return b""


def _record_place(channel: Channel, node: Node, number: int, mode: int) -> int:
    """The number of the record that P1 and the mode mean; 0 when it is the current one and there is none."""
    if mode == ABSOLUTE:
        number = number or channel.record
    elif mode not in (NEXT, PREVIOUS) or number:
        raise Refusal(SW.P1P2)
    elif channel.record == 0:
        number = 1 if mode == NEXT or node.kind == Kind.CYCLIC else node.count
    else:
        number = channel.record + (1 if mode == NEXT else -1)
        if node.kind == Kind.CYCLIC:
            number = (number - 1) % node.count + 1
    if not 1 <= number <= node.count:
        raise Refusal(SW.RECORD_NOT_FOUND)
    if mode != ABSOLUTE:
        channel.record = number
    return number


def read_record(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """READ RECORD: next, previous, absolute or current."""
    node = _file(face, channel, (p2 >> 3) or -1, "read", Kind.LINEAR, Kind.CYCLIC)
    if le and le != node.length:
        raise Refusal(0x6C00 | node.length)
    number = _record_place(channel, node, p1, p2 & 7)
    content: bytes = face.memory.files[node.index].value
    return content[(number - 1) * node.length : number * node.length]


def update_record(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """UPDATE RECORD; of a cyclic file the oldest record becomes the new first one."""
    node = _file(face, channel, (p2 >> 3) or -1, "update", Kind.LINEAR, Kind.CYCLIC)
    if len(data) != node.length:
        raise Refusal(SW.LENGTH)
    cell = face.memory.files[node.index]
    if node.kind == Kind.CYCLIC:
        if p2 & 7 != PREVIOUS or p1:
            raise Refusal(SW.P1P2)
        channel.record = 1
        face.nvm.write(cell, data + cell.value[: -node.length])
        return b""
    start = (_record_place(channel, node, p1, p2 & 7) - 1) * node.length
    face.nvm.write(cell, cell.value[:start] + data + cell.value[start + node.length :])
    return b""


def search_record(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """SEARCH RECORD, simple: the numbers of the records that have the bytes in them, from P1 on or back."""
    node = _file(face, channel, (p2 >> 3) or -1, "read", Kind.LINEAR, Kind.CYCLIC)
    mode = p2 & 7
    if mode not in (FORWARD, BACKWARD):
        raise Refusal(SW.P1P2)
    start = p1 or channel.record or (1 if mode == FORWARD else node.count)
    if start > node.count:
        raise Refusal(SW.RECORD_NOT_FOUND)
    numbers = range(start, node.count + 1) if mode == FORWARD else range(start, 0, -1)
    found = bytes(number for number in numbers if data in _record(face, node, number))
    return _found(channel, data, found)


def _found(channel: Channel, pattern: bytes, found: bytes) -> bytes:
    if not pattern:
        raise Refusal(SW.LENGTH)
    if not found:
        raise Refusal(NOT_FOUND)
    channel.record = found[0]
    return found


def _record(face: Uicc, node: Node, number: int) -> bytes:
    content: bytes = face.memory.files[node.index].value
    return content[(number - 1) * node.length : number * node.length]


def seek(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """SEEK of GSM 11.11 8.7: a record that begins with the pattern; type 2 tells its number."""
    node = _file(face, channel, -1, "read", Kind.LINEAR)
    way, kind = p2 & 15, p2 >> 4
    if p1 or kind > 1 or way > SEEK_PREVIOUS:
        raise Refusal(SW.P1P2)
    numbers = {
        SEEK_FIRST: range(1, node.count + 1), SEEK_LAST: range(node.count, 0, -1),
        SEEK_NEXT: range(channel.record + 1, node.count + 1),
        SEEK_PREVIOUS: range((channel.record or node.count + 1) - 1, 0, -1),
    }[way]  # fmt: skip
    found = bytes(number for number in numbers if _record(face, node, number).startswith(data))
    number = _found(channel, data, found)[:1]
    return number if kind else b""


# PINs -------------------------------------------------------------------------------------------------------------


def _pin(face: Uicc, p1: int, reference: int) -> Pin:
    if p1:
        raise Refusal(SW.P1P2)
    cell = face.memory.pins.get(reference)
    if cell is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    return cell.value


def _compare(face: Uicc, reference: int, given: bytes) -> Pin:
    """The PIN with its counter full again. Raises Refusal 63Cx, having counted, or 6983."""
    cell = face.memory.pins[reference]
    pin = cell.value
    if pin.tries == 0:
        raise Refusal(SW.KEY_LOCKED)
    if not compare_digest(given, pin.value):
        face.nvm.write(cell, pin._replace(tries=pin.tries - 1))
        face.verified.discard(reference)
        raise Counted(0x63C0 | pin.tries - 1)
    face.verified.add(reference)
    return pin._replace(tries=PIN_TRIES)


def _new_pin(value: bytes) -> bytes:
    """4 to 8 digits, FF behind (TS 102 221 9.5.1). Raises Refusal."""
    digits = value.rstrip(b"\xff")
    if not (len(digits) >= 4 and digits.isdigit()):
        raise Refusal(SW.DATA)
    return value


def verify(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """VERIFY PIN; without data it tells the tries left."""
    pin = _pin(face, p1, p2)
    if not data:
        raise Refusal(0x63C0 | pin.tries if pin.tries else SW.KEY_LOCKED)
    if len(data) != 8:
        raise Refusal(SW.LENGTH)
    face.nvm.write(face.memory.pins[p2], _compare(face, p2, data))
    return b""


def change_pin(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """CHANGE PIN: old and new value."""
    pin = _pin(face, p1, p2)
    if not data:
        raise Refusal(0x63C0 | pin.tries if pin.tries else SW.KEY_LOCKED)
    if len(data) != 16:
        raise Refusal(SW.LENGTH)
    new = _new_pin(data[8:])
    face.nvm.write(face.memory.pins[p2], _compare(face, p2, data[:8])._replace(value=new))
    return b""


def _switch(face: Uicc, p1: int, p2: int, data: bytes, enabled: bool) -> bytes:
    _pin(face, p1, p2)
    if p2 == ADM_REFERENCE:
        raise Refusal(SW.CONDITIONS)  # an administrator's code is never off
    if len(data) != 8:
        raise Refusal(SW.LENGTH)
    face.nvm.write(face.memory.pins[p2], _compare(face, p2, data)._replace(enabled=enabled))
    return b""


def disable_pin(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """DISABLE PIN."""
    return _switch(face, p1, p2, data, False)


def enable_pin(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """ENABLE PIN."""
    return _switch(face, p1, p2, data, True)


def unblock_pin(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """UNBLOCK PIN: unblocking key and new value; without data it tells the tries left."""
    pin = _pin(face, p1, p2)
    cell = face.memory.pins[p2]
    if pin.puk.strip(b"\xff") == b"":
        raise Refusal(SW.KEY_NOT_FOUND)
    if not pin.puk_tries or not data:
        raise Refusal(0x63C0 | pin.puk_tries if pin.puk_tries else SW.KEY_LOCKED)
    if len(data) != 16:
        raise Refusal(SW.LENGTH)
    new = _new_pin(data[8:])
    if not compare_digest(data[:8], pin.puk):
        face.nvm.write(cell, pin._replace(puk_tries=pin.puk_tries - 1))
        raise Counted(0x63C0 | pin.puk_tries - 1)
    face.nvm.write(cell, Pin(new, pin.puk, enabled=True, tries=PIN_TRIES, puk_tries=PUK_TRIES))
    face.verified.add(p2)
    return b""


def unblock_gsm(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """UNBLOCK CHV of class A0: P2 00 means CHV1 (GSM 11.11 9.2.13)."""
    return unblock_pin(face, channel, p1, p2 or PIN1_REFERENCE, data, le)


# Authentication ---------------------------------------------------------------------------------------------------


def _milenage(face: Uicc, channel: Channel, data: bytes, *sizes: int) -> Milenage:
    if not face.allowed(channel, 1):
        raise Refusal(SW.SECURITY)
    if len(data) not in sizes:
        raise Refusal(SW.LENGTH)
    return Milenage(face.memory.image.k, face.memory.image.opc)


def authenticate(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """AUTHENTICATE in the 2G or 3G context (TS 31.102 7.1.2)."""
    if p1 or p2 not in (GSM_CONTEXT, USIM_CONTEXT):
        raise Refusal(SW.P1P2)
    if channel.application != face.tree.adf.aid:
        raise Refusal(SW.CONDITIONS)
    rand, autn = data[1:17], data[18:34]
    if p2 == GSM_CONTEXT:
        milenage = _milenage(face, channel, data, 17)
        sres, kc = gsm(milenage.answers(rand))
        return _counted(sres) + _counted(kc)
    milenage = _milenage(face, channel, data, 34)
    if data[0] != 16 or data[17] != 16:
        raise Refusal(SW.DATA)
    try:
        sqn, answers = milenage.check(rand, autn)
    except MacMismatch:
        raise Refusal(AUTHENTICATION) from None
    own = face.memory.sqn.value
    if sqn <= own:
        return OUT_OF_STEP + _counted(milenage.auts(rand, own))
    face.nvm.write(face.memory.sqn, sqn)
    return AUTHENTICATED + b"".join(map(_counted, (answers.res, answers.ck, answers.ik, gsm(answers)[1])))


def _counted(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def run_gsm(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """RUN GSM ALGORITHM (GSM 11.11 9.2.16): SRES and Kc, in the directory of the GSM application."""
    if p1 or p2:
        raise Refusal(SW.P1P2)
    if channel.directory.fid != DF_GSM:
        raise Refusal(SW.FILE_NOT_FOUND)
    return b"".join(gsm(_milenage(face, channel, data, 16).answers(data)))


def terminal_capability(face: Uicc, channel: Channel, p1: int, p2: int, data: bytes, le: int) -> bytes:
    """TERMINAL CAPABILITY: taken note of."""
    try:
        objects = Tlv.parse_list(data)
    except FormatError:
        objects = []
    if p1 or p2 or [one.tag for one in objects] != [TERMINAL_CAPABILITIES]:
        raise Refusal(SW.P1P2 if p1 or p2 else SW.DATA)
    return b""


_Table = dict[int, tuple[int, Handler]]

TOOLKIT: _Table = {
    0x10: (3, toolkit.terminal_profile),
    0x12: (2, toolkit.fetch),
    0x14: (3, toolkit.terminal_response),
    0xC2: (4, toolkit.envelope),
}
COMMON: _Table = {0xA4: (4, select), 0x70: (2, manage_channel), 0xCA: (2, domain.get_data)}
FILE: _Table = {
    0xB0: (2, read_binary),
    0xD6: (3, update_binary),
    0xB2: (2, read_record),
    0xDC: (3, update_record),
}
PINS: _Table = {0x20: (3, verify), 0x24: (3, change_pin), 0x26: (3, disable_pin), 0x28: (3, enable_pin)}
UICC_ONLY: _Table = {**FILE, **PINS, 0xA2: (4, search_record), 0x2C: (3, unblock_pin), 0x88: (4, authenticate)}
TABLES: dict[int, dict[int, _Table]] = {
    FILES: {
        INTERINDUSTRY: {**COMMON, **UICC_ONLY},
        PROPRIETARY: {**TOOLKIT, 0xF2: (2, status), 0xAA: (3, terminal_capability), 0xCA: (2, domain.get_data)},
    },
    DOMAIN: {INTERINDUSTRY: COMMON, PROPRIETARY: {**TOOLKIT, 0xAA: (3, terminal_capability), **domain.COMMANDS}},
    APPLET: {INTERINDUSTRY: COMMON, PROPRIETARY: {**TOOLKIT, 0xAA: (3, terminal_capability)}},
}
GSM_TABLE: _Table = {
    **TOOLKIT,
    **FILE,
    **PINS,
    0xA4: (4, select_gsm),
    0xF2: (2, status_gsm),
    0xA2: (4, seek),
    0x2C: (3, unblock_gsm),
    0x88: (4, run_gsm),
}
HANDLERS = {mode: {**families, GSM: GSM_TABLE} for mode, families in TABLES.items()}
"""Handler and ISO case by what is selected on the channel, class and instruction."""
