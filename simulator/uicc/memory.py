"""What the phone face keeps through resets: one cell an item, all in the memory that both faces share (profile.md)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files as package_files
from typing import Any, NamedTuple

from cardlib.errors import ConfigError
from cardlib.tlv import Tlv
from simulator.nvm import Cell, Nvm
from simulator.table import Table
from simulator.uicc.files import EF_ACCESS_CLASS, EF_ICCID, EF_IMSI, Tree, access_class, iccid, imsi

PIN_TRIES, PUK_TRIES = 3, 10
PIN1_REFERENCE, ADM_REFERENCE = 0x01, 0x0A
SCP02, SCP03 = 2, 3
PROTOCOLS = {"scp02": SCP02, "scp03": SCP03}
ROOT = "phone"


class Pin(NamedTuple):
    """A PIN as VERIFY brings it (8 bytes, FF behind), its unblocking key and what is left of both counters."""

    value: bytes
    puk: bytes
    enabled: bool
    tries: int = PIN_TRIES
    puk_tries: int = PUK_TRIES


class KeySet(NamedTuple):
    """Static keys of the issuer security domain under one version."""

    protocol: int
    enc: bytes
    mac: bytes
    dek: bytes


class OtaKeySet(NamedTuple):
    """Keys for secured packets under one version (ota.md §1) and the last counter that was accepted."""

    algorithm: str
    kic: bytes
    kid: bytes
    counter: int = 0
    kik: bytes = b""

    def __repr__(self) -> str:
        return f"<OtaKeySet {self.algorithm}, counter {self.counter}>"


class LoadFile(NamedTuple):
    """A package that was loaded: its name and its modules. Its code is kept and never executed (uicc.md)."""

    aid: bytes
    modules: tuple[bytes, ...]
    code: bytes = b""


class Instance(NamedTuple):
    """An application made from a module: state, privileges and the parameters it was installed with."""

    aid: bytes
    package: bytes
    module: bytes
    state: int
    privileges: bytes
    parameters: bytes = b""


class Description(NamedTuple):
    """A parsed description: the tree and first values, shared by all SIMs made from it."""

    tree: Tree
    pins: dict[int, Pin]
    key_sets: dict[int, KeySet]
    ota_key_sets: dict[int, OtaKeySet]
    msl: dict[int, int]
    k: bytes
    opc: bytes
    sqn: int
    service_number: str
    overrides: Mapping[str, Any]


class Memory:
    """The cells of one SIM. ``image`` is what the SIM was made from; it does not change."""

    __slots__ = (
        "application_data", "failures", "files", "image", "instances", "key_sets", "life_cycle", "load_files", "ota",
        "pins", "sequence", "sqn", "upward",
    )  # fmt: skip

    def __init__(self, image: Description) -> None:
        self.image = image
        self.files = [Cell(content) for content in image.tree.contents]
        self.pins = {reference: Cell(pin) for reference, pin in image.pins.items()}
        self.sqn = Cell(image.sqn)
        self.key_sets = Cell(image.key_sets)
        self.sequence = Cell(0)  # of SCP02
        self.failures = Cell(0)  # wrong host cryptograms in a row
        self.life_cycle = Cell(0x0F)
        self.load_files: Cell[dict[bytes, LoadFile]] = Cell({})
        self.instances: Cell[dict[bytes, Instance]] = Cell({})
        self.application_data: Cell[dict[int, bytes]] = Cell({})
        self.ota = Cell(image.ota_key_sets)
        self.upward: Cell[dict[int, int]] = Cell({})  # counters of packets from the menu, by key version

    def close_slot(self, nvm: Nvm, slot: int) -> None:
        """The keys of a slot go with its application (ota.md, From the SIM menu); the caller commits."""
        nvm.write(self.ota, {version: one for version, one in self.ota.value.items() if version != slot + 1})

    def number(self, iccid_digits: str, imsi_digits: str) -> None:
        """Give one SIM of many its own numbers, as a factory does."""
        tree = self.image.tree
        for directory, fid, content in (
            ("MF", EF_ICCID, iccid(iccid_digits)), ("GSM", EF_IMSI, imsi(imsi_digits)),
            ("GSM", EF_ACCESS_CLASS, access_class(imsi_digits)),
        ):  # fmt: skip
            self.files[tree.directories[directory].children[fid].index].value = content

    def dump(self) -> dict[str, Any]:
        """Everything as plain values, for an image file."""
        return {
            "overrides": self.image.overrides,
            "files": [cell.value for cell in self.files],
            "pins": {reference: list(cell.value) for reference, cell in self.pins.items()},
            "sqn": self.sqn.value,
            "key_sets": {version: list(one) for version, one in self.key_sets.value.items()},
            "domain": [self.sequence.value, self.failures.value, self.life_cycle.value],
            "load_files": [[one.aid, list(one.modules), one.code] for one in self.load_files.value.values()],
            "instances": [list(one) for one in self.instances.value.values()],
            "application_data": self.application_data.value,
            "ota": {version: list(one) for version, one in self.ota.value.items()},
            "upward": self.upward.value,
        }

    @classmethod
    def load(cls, body: Mapping[str, Any]) -> Memory:
        """Inverse of :meth:`dump`. Whatever does not fit raises, as :func:`simulator.snapshot.reading` expects."""
        memory = cls(describe(body["overrides"]))
        for cell, content in zip(memory.files, body["files"], strict=True):
            if not isinstance(content, bytes) or len(content) != len(cell.value):
                raise ValueError("a file's content has another size")
            cell.value = content
        memory.pins = {reference: Cell(Pin(*one)) for reference, one in body["pins"].items()}
        memory.sqn.value = int(body["sqn"])
        memory.key_sets.value = {version: KeySet(*one) for version, one in body["key_sets"].items()}
        memory.sequence.value, memory.failures.value, memory.life_cycle.value = map(int, body["domain"])
        packages = [LoadFile(aid, tuple(modules), code) for aid, modules, code in body["load_files"]]
        memory.load_files.value = {one.aid: one for one in packages}
        memory.instances.value = {one.aid: one for one in (Instance(*row) for row in body["instances"])}
        memory.application_data.value = dict(body["application_data"])
        memory.ota.value = {version: OtaKeySet(*one) for version, one in body["ota"].items()}
        memory.upward.value = dict(body["upward"])
        return memory


def memory_of(nvm: Nvm) -> Memory:
    """The phone's part of a chip's memory; a chip without one gets the default image."""
    cell = nvm.roots.get(ROOT)
    memory: Memory = (cell or nvm.root(ROOT, Memory(default()))).value
    return memory


@cache
def default() -> Description:
    """The image of uicc.md "Default image"."""
    return describe({})


def describe(overrides: object) -> Description:
    """The default image with these values of a table [phone] instead of its own. Raises ConfigError."""
    if not isinstance(overrides, Mapping):
        raise ConfigError("phone: a table is expected")
    text = package_files("simulator.uicc").joinpath("default.toml").read_text(encoding="utf-8")
    top = Table("phone", _merged(tomllib.loads(text), overrides))
    numbers = {name: _digits(top, name, low, high) for name, low, high in (("iccid", 18, 20), ("imsi", 6, 15))}
    aid = top.hex("usim_aid")
    label = top.text("label").encode()
    values = {
        "iccid": iccid(numbers["iccid"]), "imsi": imsi(numbers["imsi"]), "access_class": access_class(numbers["imsi"]),
        "administrative": bytes((0, 0, 0, top.number("mnc_digits", None, 3))), "usim_aid": aid,
        "directory": bytes(Tlv(0x61, Tlv(0x4F, aid) + Tlv(0x50, label))),
    }  # fmt: skip
    try:
        pins = {int(name, 16): _pin(Table(f"phone.pin.{name}", row)) for name, row in top.table("pin").items()}
        msl = {int(name, 16): int(level) for name, level in top.table("msl").items()}
        tree = Tree(top, values)
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"phone: {e!r} does not belong into a description (docs/simulator.md)") from e
    description = Description(
        tree, pins, dict(map(_key_set, top.tables("key_set"))), dict(map(_ota_key_set, top.tables("ota_key_set"))),
        msl, top.hex("k", None, 16), top.hex("opc", None, 16), top.number("sqn", None, (1 << 48) - 1),
        _digits(top, "service_number", 3, 20), overrides,
    )  # fmt: skip
    top.done()
    if not {PIN1_REFERENCE, ADM_REFERENCE} <= pins.keys():
        raise ConfigError("phone: pin.01 and pin.0A must be there")
    return description


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``over`` says, table by table; a list is replaced as a whole."""
    both = {**base, **over}
    tables = {name for name in base.keys() & over.keys() if isinstance(base[name], dict)}
    return both | {name: _merged(base[name], over[name]) for name in tables if isinstance(over[name], Mapping)}


def _digits(top: Table, name: str, lowest: int, highest: int) -> str:
    value = top.text(name)
    if not (value.isascii() and value.isdigit() and lowest <= len(value) <= highest):
        raise top.fail(name, f"is not {lowest} to {highest} digits")
    return value


def _pin(row: Table) -> Pin:
    value, puk = (row.text(name, "").encode().ljust(8, b"\xff") for name in ("value", "puk"))
    pin = Pin(value, puk, bool(row.take("enabled", default=True)))
    row.done()
    return pin


def _key_set(row: Table) -> tuple[int, KeySet]:
    version, protocol = row.number("version", None, 0x7F), row.choice("protocol", "scp03", PROTOCOLS)
    sizes = (16,) if protocol == SCP02 else (16, 24, 32)
    enc, mac, dek = (row.hex(name, None, *sizes) for name in ("enc", "mac", "dek"))
    row.done()
    return version, KeySet(protocol, enc, mac, dek)


def _ota_key_set(row: Table) -> tuple[int, OtaKeySet]:
    version, algorithm = row.number("version", None, 15), row.text("algorithm")
    if algorithm not in ("3des", "aes"):
        raise row.fail("algorithm", f"is {algorithm!r}, use 3des or aes")
    sizes = (16, 24) if algorithm == "3des" else (16, 24, 32)
    key_set = OtaKeySet(
        algorithm,
        row.hex("kic", None, *sizes),
        row.hex("kid", None, *sizes),
        row.number("counter", 0, (1 << 40) - 1),
        row.hex("kik", b"", 0, *sizes),
    )
    row.done()
    return version, key_set
