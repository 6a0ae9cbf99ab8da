"""What an installer puts into a terminal beside its configuration: firmware with one kept former version, and keys.

Both are signed files (``cardlib.wire.authority``). Nothing of them is in force before it was checked, and a power cut
at any step leaves the old or the new.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cardlib.crypto.sealing import unseal_from
from cardlib.errors import DatabaseError, FormatError, Refused
from cardlib.wire import cbor
from cardlib.wire.authority import SignedFile
from cardlib.wire.osdp_secure import SCBK_D
from keymgmt import store

SCBK_SIZE, MAX_SCBKS = 16, 126
KEYS_LABEL = b"OCLK1"


def keys_aad(serial: str, version: int) -> bytes:
    """What a sealed payload of keys is bound to."""
    return KEYS_LABEL + bytes([len(serial)]) + serial.encode("ascii") + version.to_bytes(4, "big")


def _write(path: Path, data: bytes) -> None:
    try:
        store.replace_file(path, data)
    except OSError as e:
        raise DatabaseError(f"{path} can't be written: {e.strerror}") from e


def _checked(raw: bytes, authority: bytes, kind: str, names: tuple[str, ...]) -> SignedFile:
    """A signed file of a kind for one of these addressees. Raises MacMismatch, FormatError, Refused ``foreign``."""
    file = SignedFile.decode(raw, authority)
    if file.kind != kind or file.serial not in names:
        raise Refused("foreign", f"a {file.kind} for {file.serial}, not for {' or '.join(names)}")
    return file


class Firmware:
    """Firmware by version, ``vN.signed`` each; ``firmware.json`` says which is in force and which came before it.

    ``names``: the terminal's serial and model, one of which a file must be for. Whoever starts the terminal's software
    takes what ``current`` says.
    """

    def __init__(self, folder: Path, names: tuple[str, str]) -> None:
        self._folder, self._names = folder, names
        folder.mkdir(parents=True, exist_ok=True)
        self.current, self.former = self._read()

    def _read(self) -> tuple[int, int]:
        try:
            read = json.loads((self._folder / "firmware.json").read_bytes())
            return int(read["current"]), int(read["former"])
        except (OSError, ValueError, TypeError, KeyError):  # none yet; or damaged: nothing older may come back
            return max((int(path.stem[1:]) for path in self._folder.glob("v*.signed")), default=0), 0

    def path(self, version: int) -> Path:
        """Where a version is."""
        return self._folder / f"v{version}.signed"

    def take(self, raw: bytes, authority: bytes) -> None:
        """Put a firmware in force. Raises MacMismatch, FormatError, Refused ``foreign``, ``older``, DatabaseError."""
        file = _checked(raw, authority, "firmware", self._names)
        if file.version == self.current:
            if self.path(file.version).read_bytes() != raw:
                raise Refused("older", f"another firmware {file.version} is in force: give this one a new version")
            return
        if file.version == self.former:
            if self.path(file.version).read_bytes() != raw:
                raise Refused("older", f"this is not the firmware {file.version} that was in force before")
            self.roll_back(authority)
            return
        if file.version < max(self.current, self.former):
            newest = max(self.current, self.former)
            raise Refused("older", f"firmware {file.version} is not newer than {newest}, which is here")
        _write(self.path(file.version), raw)
        self._switch(file.version, self.current)

    def roll_back(self, authority: bytes) -> None:
        """Go back to the former version, which the present one then is. Raises Refused, MacMismatch, DatabaseError."""
        if not self.former:
            raise Refused("no_former", "there is no former firmware to go back to")
        _checked(self.path(self.former).read_bytes(), authority, "firmware", self._names)
        self._switch(self.former, self.current)

    def _switch(self, current: int, former: int) -> None:
        _write(self._folder / "firmware.json", json.dumps({"current": current, "former": former}).encode())
        self.current, self.former = current, former
        for path in self._folder.glob("v*.signed*"):
            if path not in (self.path(current), self.path(former)):
                with suppress(OSError):  # it is of no use, and of no harm
                    path.unlink()


class ReaderKeys:
    """Keys of a terminal's OSDP readers (SCBK), sealed for it alone; ``path`` is what its door software reads.

    A payload is CBOR {1: {address: SCBK}} sealed to the terminal's X25519 key. Its version only grows.
    """

    def __init__(self, folder: Path, serial: str, private: Callable[[], bytes]) -> None:
        self.path = folder / "scbk"
        self._sealed = folder / "keys.signed"
        self._serial, self._private = serial, private
        self.version = 0

    def open(self, authority: bytes) -> None:
        """Take up what is on disk, should a cut have come between sealed and plain file. Raises as :meth:`take`."""
        if self._sealed.exists():
            self.version, lines, _ = self._opened(self._sealed.read_bytes(), authority)
            if not self.path.exists() or self.path.read_bytes() != lines:
                _write(self.path, lines)

    def take(self, raw: bytes, authority: bytes) -> int:
        """Put keys in force; returns how many. Raises MacMismatch, FormatError, Refused, DatabaseError."""
        version, lines, count = self._opened(raw, authority)
        if version < self.version or (version == self.version and raw != self._sealed.read_bytes()):
            raise Refused("older", f"keys {version} are not newer than {self.version}, which are here")
        _write(self._sealed, raw)
        _write(self.path, lines)
        self.version = version
        return count

    def _opened(self, raw: bytes, authority: bytes) -> tuple[int, bytes, int]:
        """Version, the lines for the doors' software, number of keys."""
        file = _checked(raw, authority, "keys", (self._serial,))
        plain = unseal_from(self._private(), file.body, keys_aad(self._serial, file.version), "the keys' payload")
        keys = scbks(plain)
        lines = "".join(f"{address} {key.hex()}\n" for address, key in sorted(keys.items()))
        return file.version, lines.encode(), len(keys)


def scbks(plain: bytes) -> dict[int, bytes]:
    """The readers' keys of a payload. Raises FormatError, which names no key."""
    (keys,) = cbor.fields(cbor.decode(plain, "keys"), "keys", {1: dict})
    for address, key in keys.items():
        if type(address) is not int or not 0 <= address <= MAX_SCBKS or type(key) is not bytes or len(key) != SCBK_SIZE:
            raise FormatError("keys: an address is 0 to 126, a key has 16 bytes")
        if key == SCBK_D:
            raise FormatError(f"keys: that of reader {address} is the default key, which everybody knows")
    if not keys:
        raise FormatError("keys: there are none")
    return dict(keys)
