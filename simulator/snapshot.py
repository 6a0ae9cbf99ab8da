"""The image format of simulated cards: header and digest, then CBOR (docs/simulator.md).

``magic 4 | version 1 | SHA-256 of the body 32 | body``. The digest finds damage, it is no protection: an image
holds keys in clear and belongs to a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any, TypeVar

import cbor2

from cardlib.apdu import SW
from cardlib.errors import ConfigError, FormatError
from simulator.files import (
    CYCLIC,
    DEAD,
    FIXED,
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
from simulator.handlers.files import MF_FID, check_record
from simulator.nvm import Nvm

MAGIC = b"OCCI"
VERSION = 1
HEADER_BYTES = len(MAGIC) + 1 + 32
T = TypeVar("T")


def seal(body: dict[str, Any]) -> bytes:
    """Encode a body."""
    encoded = cbor2.dumps(body)
    return MAGIC + bytes((VERSION,)) + sha256(encoded).digest() + encoded


def unseal(image: bytes) -> dict[str, Any]:
    """Check and decode an image. Raises FormatError."""
    if len(image) < HEADER_BYTES or image[:4] != MAGIC:
        raise FormatError("not an image of a simulated card")
    if image[4] != VERSION:
        raise FormatError(f"image of version {image[4]}: this program reads version {VERSION}")
    encoded = image[HEADER_BYTES:]
    if not compare_digest(sha256(encoded).digest(), image[5:HEADER_BYTES]):
        raise FormatError("the image is damaged: its digest does not fit")
    with reading():
        body = cbor2.loads(encoded)
    if not isinstance(body, dict):
        raise FormatError("the image's body is not a map")
    return body


@contextmanager
def reading() -> Iterator[None]:
    """Turn whatever a body of the wrong shape leads to into FormatError."""
    try:
        yield
    except FormatError:
        raise
    except (
        Refusal, ConfigError, KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError,
        RecursionError, cbor2.CBORError,
    ) as e:  # fmt: skip
        raise FormatError(f"the image's content does not fit: {type(e).__name__}") from e


def as_int(value: object, highest: int) -> int:
    """An integer from 0 to ``highest``. Raises FormatError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise FormatError("image: a number is missing or out of range")
    return value


def as_bytes(value: object, size: int | None = None) -> bytes:
    """A byte string, of ``size`` bytes when given. Raises FormatError."""
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise FormatError("image: a byte string is missing or has the wrong size")
    return value


def as_list(value: object, of: type[T]) -> list[T]:
    """A list whose elements have one type. Raises FormatError."""
    if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
        raise FormatError("image: a list is missing or has a wrong element")
    return value


def dump(nvm: Nvm) -> dict[str, Any]:
    """Memory as plain values."""
    mf: Df | None = nvm.roots["mf"].value
    return {
        "memory_bytes": nvm.size_bytes,
        "blocked": nvm.roots["blocked"].value,
        "mf": None if mf is None else _dump_df(mf),
    }


def _dump_df(df: Df) -> dict[str, Any]:
    key_file = df.key_file.value
    return {
        "fid": df.fid,
        "created": df.created,
        "key_file": None if key_file is None else list(key_file),
        "keys": [[r.kid, r.header.value, r.value.value] for r in df.keys.value.values()],
        "blocked": df.blocked.value,
        "failures": [df.write_failures.value, df.unblock_failures.value],
        "files": [_dump_df(n) if isinstance(n, Df) else _dump_ef(n) for n in df.files.value.values()],
    }


def _dump_ef(ef: Ef) -> list[Any]:
    if isinstance(ef, BinaryFile):
        return [ef.fid, ef.created, ef.data.value]
    if isinstance(ef, RecordFile):
        return [ef.fid, ef.created, list(ef.records.value)]
    assert isinstance(ef, PurseFile)
    kept = [ef.online_proof.value, ef.offline_proof.value, ef.refundable.value]
    return [ef.fid, ef.created, [*ef.state.value, *kept]]


def load(body: dict[str, Any]) -> Nvm:
    """Memory from plain values. Raises FormatError and what :func:`reading` catches."""
    nvm = Nvm(as_int(body["memory_bytes"], 1 << 24))
    nvm.root("blocked", bool(as_int(int(body["blocked"]), 1)))
    mf = body["mf"]
    nvm.root("mf", None if mf is None else _load_df(mf, None, nvm.size_bytes))
    return nvm


def _load_df(body: dict[str, Any], parent: Df | None, memory_bytes: int) -> Df:
    fid, created = as_int(body["fid"], 0xFFFF), as_bytes(body["created"])
    if parent is None:
        if fid != MF_FID:
            raise FormatError("image: the first directory is not 3F00")
        df = structure.make_mf(created, memory_bytes)
    else:
        df = structure.make_df(fid, created, parent)
    if body["key_file"] is not None:
        size, df_sfi, right = as_list(body["key_file"], int)
        df.key_file.value = KeyFile(as_int(size, 0xFFFF), as_int(df_sfi, 0xFF), as_int(right, 0xFF))
    df.blocked.value = as_int(body["blocked"], DEAD)
    write_failures, unblock_failures = as_list(body["failures"], int)
    df.write_failures.value, df.unblock_failures.value = as_int(write_failures, 3), as_int(unblock_failures, 3)
    records: dict[int, KeyRecord] = {}
    for kid, header, value in body["keys"]:
        keys.check_size(as_bytes(header, keys.HEADER) + as_bytes(value), SW.DATA)
        keys.check_record(df, header, value)
        record = KeyRecord(as_int(kid, 0xFF), header, value, df.algorithm)
        records[key_id(header[0], record.kid)] = record
    df.keys.value = records
    files: dict[int, Ef | Df] = {}
    for node in body["files"]:
        made = _load_df(node, df, memory_bytes) if isinstance(node, dict) else _load_ef(*node)
        files[made.fid] = made
    df.files.value = files
    if df.free_bytes < 0 or len(files) != len(body["files"]):
        raise FormatError(f"image: the files of {df.fid:04X} do not fit or have one identifier twice")
    return df


def _load_ef(fid: object, created: object, content: Any) -> Ef:  # noqa: ANN401  # its type depends on the file's
    ef = structure.make_ef(as_int(fid, 0xFFFF), as_bytes(created))
    if isinstance(ef, BinaryFile):
        ef.data.value = as_bytes(content, len(ef.data.value))
    elif isinstance(ef, RecordFile):
        records = as_list(content, bytes)
        for record in records:
            check_record(ef, record)
        if len(records) > ef.count or (ef.kind not in (FIXED, CYCLIC) and sum(map(len, records)) > ef.space):
            raise FormatError(f"image: too many records in {ef.fid:04X}")
        ef.records.value = tuple(records)
    elif isinstance(ef, PurseFile):
        balance, overdraft, online, offline, *kept = content
        ef.state.value = PurseState(
            as_int(balance, 0xFFFFFFFF), as_int(overdraft, 0xFFFFFF), as_int(online, 0xFFFF), as_int(offline, 0xFFFF)
        )
        for cell, value, size in zip(
            (ef.online_proof, ef.offline_proof, ef.refundable), kept, (11, 11, 10), strict=True
        ):
            cell.value = as_bytes(value, size if value else 0)
    return ef


def write_file(path: Path, image: bytes) -> None:
    """Replace a file as a whole: written beside it, flushed, renamed; readable by its owner only."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
