"""Images of cards and SAMs from a TOML description, and card files that persist (docs/simulator.md)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cardlib.crypto import Algorithm, Key, make_key
from cardlib.errors import ConfigError, FormatError
from cardlib.profile import (
    CardIdentity,
    FileSpec,
    KeySpec,
    Profile,
    PsamApplication,
    PsamIdentity,
    PublicInfo,
    Purpose,
    aid,
    check_serial,
    issuer_id,
    load_profile,
)
from cardlib.tlv import Tlv
from simulator.card import Card, Quirks
from simulator.files import (
    BLOCKED,
    DEAD,
    UNBLOCKED,
    VARIABLE,
    BinaryFile,
    Df,
    Ef,
    KeyFile,
    KeyRecord,
    PurseFile,
    PurseState,
    RecordFile,
    key_id,
)
from simulator.handlers import Refusal, keys, structure
from simulator.handlers.files import check_record
from simulator.mothercard import MotherCard
from simulator.nvm import MEMORY_BYTES, Nvm
from simulator.sam import COUNTER_FID, DF_FILES, MF_FILES, SAM_DF, SAM_DF_NAME, TERMINAL_FID, SamCard, SamKey
from simulator.sim import Sim
from simulator.snapshot import unseal, write_file
from simulator.table import Table
from simulator.uicc.memory import Memory, describe

ALGORITHMS = {"3des": Algorithm.TDES, "des": Algorithm.DES, "sm4": Algorithm.SM4}
BLOCKS = {"no": UNBLOCKED, "temporary": BLOCKED, "permanent": DEAD}
SAM_MF_CREATE = bytes.fromhex("38FFFF080801FFFF") + structure.MF_NAME
SAM_KEY_FILE = bytes.fromhex("3F02000108FFFF")
SAM_DF_CREATE = bytes.fromhex("380400080800FFFF") + SAM_DF_NAME
SAM_TYPE = {
    Purpose.CONTROL: 0x01, Purpose.PURCHASE: 0x02, Purpose.PIN_UNBLOCK: 0x03, Purpose.TAC: 0x04,
    Purpose.MAINTENANCE: 0x05, Purpose.CARD: 0x07, Purpose.LOAD: 0x09, Purpose.TERMINAL: 0x0A,
    Purpose.RECHARGE: 0x0B, Purpose.REFUND: 0x0C,
}  # fmt: skip
LEVEL_ONE = 1 << 5
T = TypeVar("T")


def parse(text: str, random_bytes: Callable[[int], bytes] = os.urandom, *, t0: bool = False) -> Card:
    """The card or SAM of a TOML description. Raises ConfigError that says what is wrong and where."""
    try:
        description = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"image description: {e}") from e
    return build(description, random_bytes, t0=t0)


def build(
    description: Mapping[str, Any], random_bytes: Callable[[int], bytes] = os.urandom, *, t0: bool = False
) -> Card:
    """The card or SAM of a description that is parsed already. Raises ConfigError."""
    top = Table("image", description)
    kind = top.text("kind", "card")
    kinds: dict[str, type[Card]] = {"card": Card, "sam": SamCard, "sim": Sim}
    if kind not in kinds:
        raise top.fail("kind", f"is {kind!r}, use {' or '.join(kinds)}")
    cls = kinds[kind]
    phone = top.take("phone", {}) if kind == "sim" else {}
    memory_bytes = top.number("memory_bytes", MEMORY_BYTES, 1 << 24)
    if transport_key := top.hex("transport_key", b""):
        algorithm = Algorithm(top.choice("algorithm", "3des", ALGORITHMS))
        card = cls.vendor_fresh(transport_key, random_bytes, algorithm=algorithm, memory_bytes=memory_bytes)
    else:
        card = cls(Nvm(memory_bytes), random_bytes)
        if isinstance(card, SamCard):
            _build_sam(card, top)
        elif not top.take("blank", default=False):
            _build_card(card, top)
    card.quirks = Quirks(**({"log_seq_rule": rule} if (rule := top.take("log_seq_rule")) else {}))
    card.t0 = t0
    if isinstance(card, Sim) and phone:
        card.equip(Memory(describe(phone)))
    top.done()
    card.reset()
    return card


def _build_card(card: Card, top: Table) -> None:
    profile = load_profile(top.text("profile", "oc1"))
    algorithm = top.choice("algorithm", "3des", ALGORITHMS)
    serial = _serial(top, "serial")
    mf = _mf(card, top.hex("create", profile.mf_create), algorithm)
    _key_file(top, mf, top.hex("key_file", profile.mf_key_file.create))
    if serial is not None:
        for spec in profile.mf_files:
            _add_file(top, mf, spec, None)
        identity = CardIdentity(
            serial, serial[0], top.number("wash_version", 1, 255), top.day("wash_date", date(2025, 1, 1))
        )
        _binary(mf, 0x0005).data.value = identity.encode()
    _files(top, mf)
    _keys(top.table("keys"), mf, profile, "mf", 1)
    for table in top.tables("application"):
        _application(table, card, profile, serial)
    for table in top.tables("directory"):
        _directory(table, mf, profile)
    if top.take("blocked", default=False):
        card.blocked.value = True
    _check_space(top, mf)


def _serial(top: Table, name: str) -> bytes | None:
    value = top.take(name)
    if value is None:
        return None
    serial = top.bytes_of(name, value, 8)
    try:
        check_serial(serial)
    except FormatError as e:
        raise ConfigError(f"{top.where}: {e}") from e
    return serial


def _mf(card: Card, create: bytes, algorithm: int) -> Df:
    mf = _made("image", lambda: structure.make_mf(_with_algorithm(create, algorithm), card.nvm.size_bytes))
    card.mf_cell.value = mf
    return mf


def _with_algorithm(create: bytes, algorithm: int) -> bytes:
    """CREATE data of a directory with its reserved bytes set: FF04 is SM4 (card.md §12)."""
    return create[:6] + (b"\xff\x04" if algorithm == Algorithm.SM4 else b"\xff\xff") + create[8:]


def _made(where: str, make: Callable[[], T]) -> T:
    """What ``make`` gives; a refusal of the card becomes ConfigError."""
    try:
        return make()
    except Refusal as e:
        raise ConfigError(f"{where}: the card would refuse these creation data or records with {e.sw:04X}") from e


def _key_file(table: Table, df: Df, create: bytes) -> None:
    if len(create) != 7 or create[0] != 0x3F:
        raise table.fail("key_file", "is not 3F size2 DFSFI1 add_right1 FFFF")
    df.key_file.value = KeyFile(int.from_bytes(create[1:3], "big"), create[3], create[4])


def _add_file(table: Table, df: Df, spec: FileSpec, content: object) -> Ef:
    where = f"{table.where}: file {spec.fid:04X}"
    ef = _made(where, lambda: structure.make_ef(spec.fid, spec.create))
    if spec.fid in df.files.value:
        raise ConfigError(f"{where} is there twice")
    df.files.value = {**df.files.value, spec.fid: ef}
    if content is not None:
        _fill(table, ef, content)
    return ef


def _fill(table: Table, ef: Ef, content: object) -> None:
    """Content: hex of a binary file (filled up with 00), list of hex records, or a purse's table."""
    name = f"{ef.fid:04X}"
    if isinstance(ef, BinaryFile):
        value = table.bytes_of(name, content)
        size = len(ef.data.value)
        if len(value) > size:
            raise table.fail(name, f"has {len(value)} bytes, the file has {size}")
        ef.data.value = value.ljust(size, b"\0")
    elif isinstance(ef, RecordFile):
        if not isinstance(content, list):
            raise table.fail(name, "is not a list of records")
        records = tuple(table.bytes_of(name, record) for record in content)
        for record in records:
            _made(f"{table.where}: file {name}", partial(check_record, ef, record))
        full = sum(map(len, records)) > ef.space if ef.kind == VARIABLE else len(records) > ef.count
        if full:
            raise table.fail(name, "has more records than the file can hold")
        ef.records.value = records
    elif isinstance(ef, PurseFile):
        purse = Table(f"{table.where}.{name}", content)
        ef.state.value = PurseState(
            purse.number("balance_fen", 0, 0xFFFFFFFF),
            purse.number("overdraft_fen", 0, 0xFFFFFF),
            purse.number("online_seq", 0, 0xFFFF),
            purse.number("offline_seq", 0, 0xFFFF),
        )
        purse.done()


def _files(table: Table, df: Df) -> None:
    """``[[file]]``: fid, create, content."""
    for row in table.tables("file"):
        fid = int.from_bytes(row.hex("fid", None, 2), "big")
        content = row.take("content")
        _add_file(row, df, FileSpec(fid, "", row.hex("create")), content)
        row.done()


def _binary(df: Df, fid: int) -> BinaryFile:
    ef = df.files.value.get(fid)
    if not isinstance(ef, BinaryFile):
        raise ConfigError(f"directory {df.fid:04X}: file {fid:04X} is missing or no binary file")
    return ef


def _keys(table: Table, df: Df, profile: Profile, level: str, version: int) -> None:
    """``"type/kid" = "hex"`` or ``{value or pin, header, version, algorithm}``; the header is the profile's else."""
    for name, value in table.items():
        row = Table(f"{table.where}.{name}", value if isinstance(value, Mapping) else {"value": value})
        try:
            key_type, kid = (int(part, 16) for part in name.split("/"))
        except ValueError:
            raise table.fail(name, 'is not a key as "39/00"') from None
        spec = _spec(profile, level, key_type, kid)
        is_pin = key_type & 0x3F == 0x3A
        secret = row.hex("pin").ljust(8, b"\xff") if is_pin else row.hex("value", None, 8, 16)
        of_df = "sm4" if df.algorithm == Algorithm.SM4 else "3des"
        algorithm = row.choice("algorithm", of_df, ALGORITHMS)
        own_version = row.number("version", version, 255)
        default = spec.header(own_version, algorithm)[1:] if spec else None
        header = bytes((key_type,)) + row.hex("header", default, 4)
        row.done()
        _add_key(row.where, df, kid, header, secret)


def _spec(profile: Profile, level: str, key_type: int, kid: int) -> KeySpec | None:
    for spec in profile.keys:
        if spec.level == level and spec.key_type == key_type and kid in spec.kids:
            return spec
    return None


def _add_key(where: str, df: Df, kid: int, header: bytes, value: bytes) -> None:
    def check() -> None:
        keys.check_size(header + value, 0x6700)
        keys.check_record(df, header, value)

    _made(where, check)
    df.keys.value = {**df.keys.value, key_id(header[0], kid): KeyRecord(kid, header, value, df.algorithm)}


def _application(table: Table, card: Card, profile: Profile, serial: bytes | None) -> None:
    """One enterprise's application, its files and keys those of the profile unless the description says otherwise."""
    if serial is None:
        raise ConfigError("image: serial is missing: applications need the card's serial")
    mf = card.mf
    enterprise_id = table.number("enterprise_id", None, 0xFFFFFFFF)
    slot = table.number("slot", len([n for n in mf.files.value.values() if isinstance(n, Df)]) + 1, profile.slots)
    name = aid(max(1, enterprise_id))
    algorithm = table.choice("algorithm", "3des", ALGORITHMS)
    create = _with_algorithm(profile.adf_create, algorithm) + name
    df = _new_df(table, mf, profile.adf_first_fid + slot - 1, create)
    _key_file(table, df, table.hex("key_file", profile.adf_key_file.create))
    for spec in profile.adf_files:
        _add_file(table, df, spec, None)
    key_set = table.number("key_set", 1, 255)
    info = PublicInfo(
        issuer_id(max(1, enterprise_id)), 3, key_set, b"\0\0" + serial,
        table.day("start", date(2025, 1, 1)), table.day("expiry", date(2099, 12, 31)),
    )  # fmt: skip
    _binary(df, profile.file("public").fid).data.value = info.encode()
    contents = table.table("files")
    for fid, content in contents.items():
        ef = df.files.value.get(int.from_bytes(contents.bytes_of(fid, fid, 2), "big"))
        if not isinstance(ef, Ef):
            raise contents.fail(fid, "is no file of the application")
        _fill(contents, ef, content)
    _masters(table.table("masters"), df, profile, serial, key_set, algorithm)
    _keys(table.table("keys"), df, profile, "adf", key_set)
    label = table.text("label", "ONECARD").encode()
    directory = mf.files.value.get(profile.file("dir").fid)
    assert isinstance(directory, RecordFile)
    directory.records.value += (bytes(Tlv(0x61, Tlv(0x4F, name) + Tlv(0x50, label))),)
    df.blocked.value = table.choice("blocked", "no", BLOCKS)
    table.done()
    _check_space(table, df)


def _masters(table: Table, df: Df, profile: Profile, serial: bytes, version: int, algorithm: int) -> None:
    """``purpose = "hex"``: enterprise master keys; the card's are diversified by its serial (card.md §1.4)."""
    for name, value in table.items():
        master = make_key(table.bytes_of(name, value, 16), algorithm)
        try:
            spec = profile.key(Purpose[name.upper()])
        except KeyError:
            raise table.fail(name, "is no key purpose of the profile") from None
        if spec.level != "adf" or spec.purpose is Purpose.PIN:
            raise table.fail(name, "is no diversified key of an application")
        header = spec.header(version, algorithm)
        _add_key(f"{table.where}.{name}", df, spec.kid(version), header, _value(master, serial))


def _value(master: Key, serial: bytes) -> bytes:
    child = serial + bytes(b ^ 0xFF for b in serial)
    return master.encrypt(child)


def _directory(table: Table, parent: Df, profile: Profile) -> None:
    """Any directory: fid, create, key_file, keys, files, blocked, directories inside."""
    fid = int.from_bytes(table.hex("fid", None, 2), "big")
    df = _new_df(table, parent, fid, table.hex("create"))
    key_file = table.hex("key_file", b"")
    if key_file:
        _key_file(table, df, key_file)
    _files(table, df)
    _keys(table.table("keys"), df, profile, "adf", 1)
    for inner in table.tables("directory"):
        _directory(inner, df, profile)
    df.blocked.value = table.choice("blocked", "no", BLOCKS)
    table.done()
    _check_space(table, df)


def _new_df(table: Table, parent: Df, fid: int, create: bytes) -> Df:
    if fid in parent.files.value:
        raise table.fail(f"{fid:04X}", "is there twice")
    df = _made(table.where, lambda: structure.make_df(fid, create, parent))
    parent.files.value = {**parent.files.value, fid: df}
    return df


def _check_space(table: Table, df: Df) -> None:
    key_file = df.key_file.value
    if df.free_bytes < 0 or df.key_bytes > (key_file.size if key_file else 0):
        raise ConfigError(f"{table.where}: directory {df.fid:04X} is too small for its files or keys")


def _build_sam(sam: SamCard, top: Table) -> None:
    """A SAM: who it is, its terminal, its own keys and PIN, its keys for cards."""
    algorithm = top.choice("algorithm", "3des", ALGORITHMS)
    mf = _mf(sam, SAM_MF_CREATE, algorithm)
    _key_file(top, mf, SAM_KEY_FILE)
    for fid, create in MF_FILES.items():
        _add_file(top, mf, FileSpec(fid, "", bytes.fromhex(create)), None)
    df = _new_df(top, mf, SAM_DF, _with_algorithm(SAM_DF_CREATE, algorithm))
    for fid, create in DF_FILES.items():
        _add_file(top, df, FileSpec(fid, "", bytes.fromhex(create)), None)
    serial = _serial(top, "serial")
    if serial is None:
        raise top.fail("serial", "is missing")
    issuer = issuer_id(max(1, top.number("enterprise_id", None, 0xFFFFFFFF)))
    _binary(mf, 0x0015).data.value = PsamIdentity(b"\0\0" + serial, 1, 0).encode()
    _binary(mf, TERMINAL_FID).data.value = top.hex("terminal", None, 6)
    _binary(df, 0x0017).data.value = PsamApplication(
        1, issuer, issuer, top.day("start", date(2025, 1, 1)), top.day("expiry", date(2099, 12, 31))
    ).encode()
    _binary(df, COUNTER_FID).data.value = top.number("counter", 1, 0xFFFFFFFF).to_bytes(4, "big")
    _add_key(f"{top.where}.control_key", mf, 0, bytes.fromhex("39F0F008FF"), top.hex("control_key", None, 8, 16))
    if own := top.hex("own_key", b""):
        _add_key(f"{top.where}.own_key", mf, 0, bytes((0x30, 0xF0, 0xF0, 1, algorithm)), own)
    if pin := top.hex("pin", b""):
        _add_key(f"{top.where}.pin", mf, 0, bytes.fromhex("3AF0EF0133"), pin.ljust(8, b"\xff"))
    held = [_sam_key(row, algorithm) for row in top.tables("sam_key")]
    sam.sam_keys.value = {(key.usage, key.version): key for key in held}
    _check_space(top, mf)


def _sam_key(row: Table, algorithm: int) -> SamKey:
    """``purpose`` (level 1) or ``usage`` (hex byte), version, value, algorithm."""
    usage = row.take("usage")
    if usage is None:
        name = row.text("purpose")
        types = {purpose.name.lower(): LEVEL_ONE | type_ for purpose, type_ in SAM_TYPE.items()}
        if name not in types:
            raise row.fail("purpose", f"is {name!r}, use one of {', '.join(types)} (or usage)")
        byte = bytes((types[name],))
    else:
        byte = row.bytes_of("usage", usage, 1)
    own = next(name for name, value in ALGORITHMS.items() if value == algorithm)
    chosen = row.choice("algorithm", own, ALGORITHMS)
    record = byte + bytes((row.number("version", 1, 255), chosen)) + row.hex("value", None, 8, 16)
    row.done()
    return _made(row.where, lambda: SamKey.parse(record))


def save(card: Card, path: Path) -> None:
    """Write the card's image, replacing the file as a whole."""
    write_file(path, card.snapshot())


def keep(card: Card, path: Path) -> None:
    """Save the card now and after each transaction it commits, before its answer leaves."""
    save(card, path)
    card.nvm.on_commit = lambda: save(card, path)


def load(path: Path, random_bytes: Callable[[int], bytes] = os.urandom, *, t0: bool = False) -> Card:
    """The chip of an image file. Raises ConfigError when it can't be read, FormatError when it is none."""
    try:
        image = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"image {path}: {e.strerror}") from e
    return restore(image, random_bytes, t0=t0)


def restore(image: bytes, random_bytes: Callable[[int], bytes] = os.urandom, *, t0: bool = False) -> Card:
    """The chip of a snapshot, whichever it is. Raises FormatError."""
    kind = unseal(image).get("kind")
    for cls in (Card, SamCard, MotherCard, Sim):
        if kind == cls.KIND:
            return cls.restore(image, random_bytes, t0=t0)
    raise FormatError(f"the image holds a {kind!r}, which this program does not know")
