"""The file tree and key records of a card: values in cells, everything else fixed at creation (card.md §6)."""

from __future__ import annotations

from typing import NamedTuple

from cardlib.crypto import Algorithm, Key, make_key
from simulator.nvm import Cell

BINARY, FIXED, VARIABLE, CYCLIC, PURSE, DF_TYPE, KEY_FILE = 0x28, 0x2A, 0x2C, 0x2E, 0x2F, 0x38, 0x3F

NOT_COUNTED = 0xFF
"""Error counter of a key that wrong attempts never lock (card.md §6.4)."""

ALGORITHM_TYPES = frozenset((0x30, 0x31, 0x32, 0x34, 0x3C, 0x3D, 0x3E, 0x3F))
"""Key types whose record holds version and algorithm; the others hold next state and error counter."""

UNBLOCKED, BLOCKED, DEAD = 0, 1, 2
"""Block states of an application: none, temporary, permanent (card.md §3.2)."""


class KeyRecord:
    """One key: header ``type use change x y`` and value, with the parsed key kept until the value changes."""

    __slots__ = ("_made", "_made_of", "df_algorithm", "header", "kid", "value")

    def __init__(self, kid: int, header: bytes, value: bytes, df_algorithm: int) -> None:
        self.kid = kid
        self.header = Cell(header)
        self.value = Cell(value)
        self.df_algorithm = df_algorithm
        self._made: Key | None = None
        self._made_of: tuple[bytes, int] = (b"", 0)

    def __repr__(self) -> str:
        return f"<KeyRecord {self.header.value[0]:02X}/{self.kid:02X}>"

    @property
    def algorithm(self) -> int:
        """Algorithm byte of the record, or its DF's for types without one (card.md §12)."""
        header = self.header.value
        return header[4] if header[0] & 0x3F in ALGORITHM_TYPES else self.df_algorithm

    def key(self, algorithm: int | None = None) -> Key:
        """The key for use under ``algorithm``, its own by default; built once per value."""
        value = self.value.value
        if algorithm is None:
            algorithm = self.algorithm
        made = self._made
        if made is None or self._made_of[0] is not value or self._made_of[1] != algorithm:
            made = self._made = make_key(value, algorithm)
            self._made_of = (value, algorithm)
        return made

    @property
    def counted(self) -> bool:
        """Whether wrong attempts are counted."""
        return self.header.value[4] != NOT_COUNTED

    @property
    def locked(self) -> bool:
        """Whether no attempt is left."""
        return self.header.value[4] & 15 == 0


class KeyFile(NamedTuple):
    """``3F size2 DFSFI add_right FF FF``."""

    size: int
    df_sfi: int
    add_right: int


class Ef:
    """What every elementary file has: identifier, type byte with its protection bits, rights, cost."""

    __slots__ = ("cost", "created", "encrypted", "fid", "kind", "opt", "protected", "read", "write")

    def __init__(self, fid: int, created: bytes, cost: int) -> None:
        self.fid = fid
        self.created = created
        self.kind = created[0] & 0x3F
        self.protected = created[0] & 0xC0 != 0  # bit 8 = MAC, bit 7 = also encrypted; 68 counts as E8
        self.encrypted = created[0] & 0x40 != 0
        self.read, self.write = created[3], created[4]
        self.opt = created[6]
        self.cost = cost

    @property
    def protected_reading(self) -> bool:
        """Whether reading needs secure messaging (card.md §12)."""
        return self.protected and self.opt & 0x80 == 0


class BinaryFile(Ef):
    """Type 28."""

    __slots__ = ("data",)

    def __init__(self, fid: int, created: bytes) -> None:
        size = int.from_bytes(created[1:3], "big")
        super().__init__(fid, created, 11 + size)
        self.data = Cell(bytes(size))


class RecordFile(Ef):
    """Types 2A, 2C and 2E. ``records[0]`` is record 1; of a cyclic file that is the newest."""

    __slots__ = ("count", "length", "records", "space")

    def __init__(self, fid: int, created: bytes) -> None:
        if created[0] & 0x3F == VARIABLE:
            self.count, self.length, self.space = 255, 0, int.from_bytes(created[1:3], "big")
            super().__init__(fid, created, 11 + self.space)
        else:
            self.count, self.length = created[1], created[2]
            self.space = self.count * self.length
            super().__init__(fid, created, self.count * (self.length + 1) + 8)
        self.records: Cell[tuple[bytes, ...]] = Cell(())


class PurseState(NamedTuple):
    """card.md §4: the balance of ED includes its overdraft limit; counters are the next ones to be used."""

    balance_fen: int = 0
    overdraft_fen: int = 0
    online_seq: int = 0
    offline_seq: int = 0


class PurseFile(Ef):
    """Type 2F: state, the two kept proofs (``type1 seq2 mac4 tac4``), the purchase that may be refunded."""

    __slots__ = ("log_sfi", "offline_proof", "online_proof", "refundable", "state", "tac_kid")

    def __init__(self, fid: int, created: bytes) -> None:
        super().__init__(fid, created, 22)
        self.tac_kid, self.log_sfi = created[4], created[6] & 0x1F
        self.state = Cell(PurseState())
        self.offline_proof = Cell(b"")
        self.online_proof = Cell(b"")
        self.refundable = Cell(b"")  # amount4 terminal6 of the last purchase, empty once refunded


class Df:
    """A directory: MF, application or directory inside one."""

    __slots__ = (
        "_index",
        "_indexed",
        "algorithm",
        "blocked",
        "cost",
        "create_right",
        "created",
        "erase_right",
        "fci_sfi",
        "fid",
        "files",
        "kept_fci",
        "key_file",
        "keys",
        "level",
        "name",
        "parent",
        "size",
        "unblock_failures",
        "uses",
        "write_failures",
    )

    def __init__(self, fid: int, created: bytes, parent: Df | None, size: int, name: bytes) -> None:
        self.fid = fid
        self.created = created
        self.parent = parent
        self.level: int = 1 if parent is None else parent.level + 1
        self.size = self.cost = size
        self.create_right, self.erase_right, self.fci_sfi = created[3], created[4], created[5]
        self.algorithm = Algorithm.SM4 if created[6:8] == b"\xff\x04" else Algorithm.TDES
        self.name = name
        self.files: Cell[dict[int, Ef | Df]] = Cell({})
        self.keys: Cell[dict[int, KeyRecord]] = Cell({})
        self.key_file: Cell[KeyFile | None] = Cell(None)
        self.blocked = Cell(UNBLOCKED)
        self.write_failures = Cell(0)
        self.unblock_failures = Cell(0)
        self.kept_fci: tuple[bytes | None, bytes] | None = None
        self.uses = 0  # commands that the contactless face ran in it; volatile
        self._index: dict[int, Ef] = {}
        self._indexed: dict[int, Ef | Df] | None = None

    def __repr__(self) -> str:
        return f"<Df {self.fid:04X}>"

    def ef(self, sfi: int) -> Ef | None:
        """The file whose identifier ends in these five bits, the first created when there are two."""
        files = self.files.value
        if files is not self._indexed:
            self._index = {n.fid & 0x1F: n for n in reversed(files.values()) if isinstance(n, Ef)}
            self._indexed = files
        return self._index.get(sfi)

    def key(self, key_type: int, kid: int) -> KeyRecord | None:
        """The record of a key type (without its protection bits) and identifier."""
        return self.keys.value.get(key_type << 8 | kid)

    @property
    def free_bytes(self) -> int:
        """Space left for files."""
        key_file = self.key_file.value
        used = sum(node.cost for node in self.files.value.values())
        return self.size - used - (11 + key_file.size if key_file else 0)

    @property
    def key_bytes(self) -> int:
        """Space that key records take in the key file (card.md §6.3)."""
        return sum(record_cost(record.value.value) for record in self.keys.value.values())

    @property
    def attached(self) -> bool:
        """Whether the directory is still part of the card."""
        node = self
        while node.parent is not None:
            if node.parent.files.value.get(node.fid) is not node:
                return False
            node = node.parent
        return True


def record_cost(value: bytes) -> int:
    """Bytes of the key file that a key of this value takes: its length + 8, so that the keys of card.md §6.5 fit."""
    return len(value) + 8


def key_id(key_type: int, kid: int) -> int:
    """Index of a key in its DF: the type without its protection bits, and the identifier."""
    return (key_type & 0x3F) << 8 | kid
