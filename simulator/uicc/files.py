"""The files of the phone face: a tree made from a data file, shared by all SIMs of one description (uicc.md "Files").

What a file is stands here and never changes; its content is a cell of the card (:class:`simulator.uicc.memory.Memory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, unique

from cardlib.errors import ConfigError
from cardlib.tlv import Tlv
from simulator.table import Table

MF, DF_GSM, DF_TELECOM, ADF, CURRENT_ADF, DF_GSM_ACCESS = 0x3F00, 0x7F20, 0x7F10, 0x7FFF, 0x7FFF, 0x5F3B
EF_IMSI, EF_LANGUAGE, EF_ACCESS_CLASS, EF_ICCID, EF_PREFERRED = 0x6F07, 0x6F05, 0x6F78, 0x2FE2, 0x2F05

ALWAYS, PIN1, ADM, NEVER = range(4)
ACCESS = {"always": ALWAYS, "pin": PIN1, "adm": ADM, "never": NEVER}
GSM_ACCESS = (0x0, 0x1, 0xA, 0xF)
"""The same in the nibbles of GSM 11.11 9.3."""

RULES = [
    (ALWAYS, ALWAYS),
    (ALWAYS, NEVER),
    (ALWAYS, ADM),
    (ALWAYS, PIN1),
    (PIN1, ADM),
    (PIN1, PIN1),
    (ADM, ADM),
    (ADM, NEVER),
    (PIN1, NEVER),
]
"""(read, update) of the records of EF.ARR from 1 on; the last record is that of directories."""
CONDITIONS = (
    bytes.fromhex("9000"), bytes.fromhex("A406830101950108"), bytes.fromhex("A40683010A950108"), bytes.fromhex("9700"),
)  # fmt: skip

MF_CHARACTERISTICS = bytes.fromhex("A506800171870101")
"""UICC characteristics, and TERMINAL CAPABILITY is supported (TS 102 221 11.1.1.4.6)."""
GSM_FREE_BYTES, GSM_CHARACTERISTICS, GSM_CHVS = 0x2000, 0x13, 4


@unique
class Kind(IntEnum):
    """File descriptor byte (TS 102 221 11.1.1.4.3)."""

    DIRECTORY = 0x78
    BINARY = 0x41
    LINEAR = 0x42
    CYCLIC = 0x46


class Node:
    """A directory or file. ``index`` is its content's place in the memory, -1 for a directory."""

    __slots__ = (
        "aid", "by_sfi", "children", "count", "fcp", "fid", "index", "kind", "length", "parent", "read", "rule", "sfi",
        "size", "update",
    )  # fmt: skip

    def __init__(self, fid: int, parent: Node | None, kind: Kind, *, aid: bytes = b"") -> None:
        self.fid, self.kind, self.aid = fid, kind, aid
        self.parent = self if parent is None else parent
        self.children: dict[int, Node] = {}
        self.by_sfi: dict[int, Node] = {}
        self.index = self.sfi = -1
        self.size = self.length = self.count = 0
        self.read = self.update = ALWAYS
        self.rule = len(RULES) + 1
        self.fcp = self._directory_fcp()

    @property
    def is_directory(self) -> bool:
        """Whether files are inside."""
        return self.kind == Kind.DIRECTORY

    def add(self, fid: int, kind: Kind, sfi: int) -> Node:
        """A new file of this directory. Raises ConfigError when its numbers are taken."""
        if fid in self.children or sfi in self.by_sfi:
            raise ConfigError(f"file {fid:04X} of {self.fid:04X}: its identifier or short identifier is taken")
        node = self.children[fid] = Node(fid, self, kind)
        node.sfi = sfi
        if sfi >= 0:
            self.by_sfi[sfi] = node
        return node

    def shape(self, size: int, length: int, count: int, read: int, update: int) -> None:
        """Give a file its size and rights."""
        self.size, self.length, self.count, self.read, self.update = size, length, count, read, update
        self.rule = RULES.index((read, update)) + 1
        record = length.to_bytes(2, "big") + bytes((count,)) if length else b""
        self.fcp = (
            Tlv(0x82, bytes((self.kind, 0x21)) + record) + self._common()
            + Tlv(0x80, size.to_bytes(2, "big")) + Tlv(0x88, bytes((self.sfi << 3,)) if self.sfi >= 0 else b"")
        )  # fmt: skip

    def _common(self) -> bytes:
        name = Tlv(0x84, self.aid) if self.aid else b""
        more = MF_CHARACTERISTICS if self.fid == MF else b""
        rule = Tlv(0x8B, bytes((0x2F, 0x06, self.rule)))
        return Tlv(0x83, self.fid.to_bytes(2, "big")) + name + more + bytes.fromhex("8A0105") + rule

    def _directory_fcp(self) -> bytes:
        return Tlv(0x82, bytes((Kind.DIRECTORY, 0x21))) + self._common()

    def gsm(self, pins: bytes, disabled: bool) -> bytes:
        """The answer of GSM 11.11 9.2.1: 22 bytes for a directory, 14 or 15 for a file.

        ``pins``: status of CHV1, UNBLOCK CHV1, CHV2 and UNBLOCK CHV2.
        """
        fid = self.fid.to_bytes(2, "big")
        if not self.is_directory:
            kind = {Kind.BINARY: 0, Kind.LINEAR: 1, Kind.CYCLIC: 3}[self.kind]
            rights = bytes((GSM_ACCESS[self.read] << 4 | GSM_ACCESS[self.update], 0xFF, 0xAA))
            tail = bytes((2, kind, self.length)) if kind else bytes((1, kind))
            return bytes(2) + self.size.to_bytes(2, "big") + fid + b"\x04\0" + rights + b"\x01" + tail
        directories = sum(node.is_directory for node in self.children.values())
        own = bytes((GSM_CHARACTERISTICS | disabled << 7, directories, len(self.children) - directories, GSM_CHVS))
        head = bytes(2) + GSM_FREE_BYTES.to_bytes(2, "big") + fid + bytes((1 if self.fid == MF else 2,)) + bytes(5)
        return head + b"\x09" + own + b"\0" + pins


class Tree:
    """All files of a description and what they hold at first; ``adf`` stands beside the MF and is found by its name."""

    def __init__(self, top: Table, values: dict[str, bytes]) -> None:
        """``values``: what ``from`` may name. Raises ConfigError."""
        self.mf = Node(MF, None, Kind.DIRECTORY)
        gsm, telecom = (Node(fid, self.mf, Kind.DIRECTORY) for fid in (DF_GSM, DF_TELECOM))
        self.mf.children.update({DF_GSM: gsm, DF_TELECOM: telecom})
        self.adf = Node(ADF, self.mf, Kind.DIRECTORY, aid=values["usim_aid"])
        access = self.adf.children[DF_GSM_ACCESS] = Node(DF_GSM_ACCESS, self.adf, Kind.DIRECTORY)
        self.directories = {"MF": self.mf, "GSM": gsm, "TELECOM": telecom, "USIM": self.adf, "GSM_ACCESS": access}
        self.contents: list[bytes] = []
        values = {**values, "access_rules": access_rules()}
        for name, directory in self.directories.items():
            rows = top.table(name)
            for fid, row in rows.items():
                self._add(Table(f"{rows.where}.{fid}", row), int(fid, 16), directory, values)

    def _add(self, row: Table, fid: int, directory: Node, values: dict[str, bytes]) -> None:
        sfi = row.number("sfi", 0, 30) or -1
        if same := row.take("same"):
            place, _, other = same.partition("/")
            twin = self.directories[place].children[int(other or f"{fid:X}", 16)]
            node = directory.add(fid, twin.kind, sfi)
            node.index = twin.index
            node.shape(twin.size, twin.length, twin.count, twin.read, twin.update)
            row.done()
            return
        record = row.take("record")
        kind = Kind.BINARY if record is None else Kind.CYCLIC if row.take("cyclic") else Kind.LINEAR
        length, count = record or (0, 0)
        node = directory.add(fid, kind, sfi)
        read, update = (ACCESS[one] for one in row.text("access").split("/"))
        node.shape(length * count if record else row.number("size", None, 0x7FFF), length, count, read, update)
        node.index = len(self.contents)
        self.contents.append(_content(row, node, values))
        row.done()

    def nodes(self) -> Iterator[Node]:
        """Every file that has a content of its own."""
        for directory in self.directories.values():
            for node in directory.children.values():
                if node.index >= 0:
                    yield node


def _content(row: Table, node: Node, values: dict[str, bytes]) -> bytes:
    if (source := row.take("from")) is not None:
        content = values[source]
    elif services := row.take("gsm_services"):
        content = service_table(services, node.size, 2)
    elif services := row.take("usim_services"):
        content = service_table(services, node.size, 1)
    elif each := row.hex("each", b""):
        content = each.ljust(node.length, b"\xff") * node.count
    elif repeat := row.hex("repeat", b""):
        content = repeat * (node.size // len(repeat))
    else:
        content = row.hex("content", b"")
    if len(content) > node.size:
        raise row.fail("content", f"has {len(content)} bytes, the file has {node.size}")
    return content.ljust(node.size, b"\xff")


def access_rules() -> bytes:
    """The records of EF.ARR, 30 bytes each: expanded format of ISO 7816-4 (TS 102 221 9.2.4)."""
    rows = [
        bytes.fromhex("800101") + CONDITIONS[read] + bytes.fromhex("800102") + CONDITIONS[update]
        for read, update in RULES
    ]
    rows.append(bytes.fromhex("800106") + CONDITIONS[ADM])
    return b"".join(row.ljust(30, b"\xff") for row in rows)


def service_table(services: list[int], size: int, bits: int) -> bytes:
    """EF.SST (2 bits a service, allocated and activated) or EF.UST (1 bit). Raises ConfigError."""
    if not all(1 <= one <= size * 8 // bits for one in services):
        raise ConfigError(f"a service is outside a table of {size} bytes")
    total = sum(((1 << bits) - 1) << (one - 1) * bits for one in services)
    return total.to_bytes(size, "little")


def iccid(digits: str) -> bytes:
    """EF.ICCID: 10 bytes, digits swapped, F behind (TS 102 221 13.2)."""
    return swapped(digits.ljust(20, "F"))


def imsi(digits: str) -> bytes:
    """EF.IMSI: length, parity and digits swapped (TS 31.102 4.2.2)."""
    odd = len(digits) % 2
    body = swapped(f"{9 if odd else 1}{digits}{'' if odd else 'F'}")
    return (bytes((len(body),)) + body).ljust(9, b"\xff")


def access_class(digits: str) -> bytes:
    """EF.ACC: one of the classes 0 to 9, by the last digit of the IMSI."""
    return (1 << int(digits[-1])).to_bytes(2, "big")


def swapped(digits: str) -> bytes:
    """Hexadecimal digits, two a byte, the first in the low half."""
    return bytes.fromhex("".join(b + a for a, b in zip(digits[::2], digits[1::2], strict=True)))
