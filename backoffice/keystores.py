"""Which key store an installation has: ``keystore.toml`` in its folder; without that file the file store.

::

    kind = "pkcs11"                               # or "file", and nothing more
    module = "/usr/lib/softhsm/libsofthsm2.so"    # the PKCS#11 module, by its whole path
    token = "onecard"                             # the token's label

The token's PIN is never in it: it is asked for as ``hsm pin`` (ONECARD_HSM_PIN_FILE).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardlib.errors import ConfigError
from keymgmt.store import replace_file

SETTINGS_FILE = "keystore.toml"
FIELDS = {"file": {"kind"}, "pkcs11": {"kind", "module", "token"}}
MAX_LABEL_BYTES = 32


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a PKCS#11 module: the module's file, the token's label."""

    module: Path
    label: str

    def check(self) -> None:
        """Raises ConfigError for a module that is no whole path, a label that no token can have."""
        if not self.module.is_absolute() or not str(self.module).isprintable():
            raise ConfigError(f"PKCS#11 module {self.module}: give the whole path of its file")
        if not 1 <= len(self.label.encode()) <= MAX_LABEL_BYTES or not self.label.isprintable():
            raise ConfigError(f"token label {self.label!r}: 1 to {MAX_LABEL_BYTES} bytes of printable text")


def read(folder: Path) -> Token | None:
    """The token that an installation has its keys in; None for the file store. Raises ConfigError naming the field."""
    path = folder / SETTINGS_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} can't be read: {e}") from e
    kind = values.get("kind")
    fields = FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ConfigError(f'{path}: kind is {kind!r}; it is "file" or "pkcs11"')
    unknown, missing = sorted(values.keys() - fields), sorted(fields - values.keys())
    if unknown or missing:
        wrong = f"{', '.join(unknown)} unknown" if unknown else f"{', '.join(missing)} missing"
        only = f"kind {kind!r} has {', '.join(sorted(fields))} and no more; a PIN or passphrase is never written here"
        raise ConfigError(f"{path}: {wrong}; {only}")
    return None if kind == "file" else _token(values, path)


def _token(values: dict[str, Any], path: Path) -> Token:
    for name in ("module", "token"):
        if not isinstance(values[name], str):
            raise ConfigError(f"{path}: {name} is text in quotation marks")
    token = Token(Path(values["module"]), values["token"])
    try:
        token.check()
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e
    return token


def choose(folder: Path, token: Token | None) -> Token | None:
    """What a new installation gets: ``token``, else what its folder says. Raises ConfigError when they differ."""
    said = read(folder)
    if token is not None and token != said and (folder / SETTINGS_FILE).exists():
        raise ConfigError(f"{folder / SETTINGS_FILE} names another key store: change it, or leave --hsm out")
    return token or said


def write(folder: Path, token: Token) -> None:
    """Make the file, whole or not at all. Raises ConfigError."""
    token.check()
    lines = ['kind = "pkcs11"', f"module = {_quoted(str(token.module))}", f"token = {_quoted(token.label)}", ""]
    replace_file(folder / SETTINGS_FILE, "\n".join(lines).encode())


def _quoted(text: str) -> str:
    """Printable text as a TOML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
