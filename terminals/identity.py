"""Who installs, and who lets them: the installer's key with its token, and the site's authority that signs.

Private keys stay in files sealed under a passphrase (AES-256-GCM, Argon2id). Beside an installer's key file stand
``.request`` (its public keys, for the authority), ``.token`` and ``.pins`` (terminals it was paired with).
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cardlib.crypto.noise import StaticKey
from cardlib.crypto.sealing import Argon2Params, argon2id, seal, seal_to, unseal
from cardlib.crypto.signing import SigningKey
from cardlib.errors import ConfigError, DatabaseError, FormatError, NotFound
from cardlib.wire import cbor
from cardlib.wire.authority import SignedFile, Token
from console import Hex, Noun, Session, pass_session, require_new, write_new
from keymgmt import store
from terminals import config
from terminals.installer import Installer
from terminals.software import keys_aad, scbks

VERBS = ("provision", "param", "clock", "push", "collect", "diagnose", "pair", "keys")
USUAL = VERBS[:-1]
"""What a token allows when nothing is said; keys must be named."""
FILE = click.Path(path_type=Path, dir_okay=False)
identity_file = click.option(
    "--identity", type=FILE, required=True, envvar="ONECARD_IDENTITY", help="The installer's key file."
)
authority_file = click.option(
    "--authority", type=FILE, required=True, envvar="ONECARD_AUTHORITY", help="The authority's key file."
)
DAY_MS = 86_400_000


def now_ms() -> int:
    """Time of this computer."""
    return time.time_ns() // 1_000_000


def read_file(path: Path, most: int = 1 << 24) -> bytes:
    """A whole file. Raises NotFound, ConfigError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as e:
        raise NotFound(f"{path} is not there") from e
    except OSError as e:
        raise ConfigError(f"{path} can't be read: {e.strerror}") from e
    if len(raw) > most:
        raise ConfigError(f"{path}: more than {most} bytes")
    return raw


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all and on disk. Raises DatabaseError."""
    try:
        store.replace_file(path, data)
    except OSError as e:
        raise DatabaseError(f"{path} can't be written: {e.strerror}") from e


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours, empty when there is no file. Raises FormatError, ConfigError."""
    if not path.exists():
        return {}
    try:
        data = json.loads(read_file(path))
    except ValueError as e:
        raise FormatError(f"{path} is no JSON") from e
    if not isinstance(data, dict):
        raise FormatError(f"{path} is no JSON object")
    return data


def _write_key(path: Path, kind: str, private: bytes, passphrase: str) -> None:
    require_new(path)
    salt = secrets.token_bytes(16)
    sealed = seal(argon2id(passphrase.encode(), salt, Argon2Params()), private, kind.encode(), secrets.token_bytes)
    replace_file(path, json.dumps({"kind": kind, "salt": salt.hex(), "sealed": sealed.hex()}).encode())


def _read_key(path: Path, kind: str, size: int, passphrase: str) -> bytes:
    if not path.exists():
        raise NotFound(f"{path} is not there: make it with terminal {kind} make")
    stored = read_json(path)
    try:
        salt, sealed = bytes.fromhex(stored["salt"]), bytes.fromhex(stored["sealed"])
    except (KeyError, ValueError, TypeError) as e:
        raise FormatError(f"{path} is no key file of an {kind}") from e
    if stored.get("kind") != kind:
        raise FormatError(f"{path} is no key file of an {kind}")
    key = argon2id(passphrase.encode(), salt, Argon2Params())
    private = unseal(key, sealed, kind.encode(), f"{path} (is the passphrase right?)")
    if len(private) != size:
        raise FormatError(f"{path} is damaged")
    return private


def beside(identity: Path, ending: str) -> Path:
    """A file that belongs to an installer's key file."""
    return identity.with_name(identity.name + ending)


@dataclass(frozen=True, slots=True)
class Identity:
    """An installer at work."""

    path: Path
    installer: Installer
    signing: SigningKey
    token: Token

    def pinned(self, serial: str) -> bytes | None:
        """The X25519 public key of a terminal that this installer was paired with."""
        stored = read_json(beside(self.path, ".pins")).get(serial)
        return bytes.fromhex(stored) if isinstance(stored, str) else None

    def pin(self, serial: str, public: bytes) -> None:
        """Remember a terminal. Raises DatabaseError."""
        path = beside(self.path, ".pins")
        replace_file(path, json.dumps(read_json(path) | {serial: public.hex()}, indent=1).encode())


def load_identity(session: Session, path: Path, whose: str = "identity") -> Identity:
    """Ask for the passphrase and open an identity. Raises NotFound, FormatError, MacMismatch."""
    token_path = beside(path, ".token")
    private = _read_key(path, "identity", 64, session.secret(f"{whose} passphrase"))
    if not token_path.exists():
        raise NotFound(f"{token_path} is not there: give {beside(path, '.request')} to the authority for a token")
    raw = read_file(token_path, 1024)
    token, static = Token.decode(raw, None), StaticKey(private[:32])
    if token.x25519 != static.public:
        raise FormatError(f"{token_path} is another installer's")
    return Identity(path, Installer(static, raw), SigningKey(private[32:]), token)


def load_authority(session: Session, path: Path) -> SigningKey:
    """Ask for the passphrase and open an authority's key. Raises NotFound, FormatError, MacMismatch."""
    return SigningKey(_read_key(path, "authority", 32, session.secret("authority passphrase")))


@click.group(cls=Noun)
def identity() -> None:
    """The installer's own key, which an authority's token vouches for."""


@identity.command("make")
@click.argument("file", type=FILE)
@click.option("--name", required=True, help="Of the installer, for journals and reports.")
@pass_session
def identity_make(session: Session, file: Path, name: str) -> None:
    """Make an installer's key in FILE and FILE.request, which the authority needs for a token."""
    request = beside(file, ".request")
    require_new(file)
    require_new(request)
    private = secrets.token_bytes(64)
    static, signing = StaticKey(private[:32]), SigningKey(private[32:])
    if not session.dry_run:
        _write_key(file, "identity", private, session.secret("identity passphrase", new=True))
        wanted = {"name": name, "x25519": static.public.hex(), "ed25519": signing.public.hex()}
        write_new(request, json.dumps(wanted).encode())
    session.emit({"identity": file, "request": request}, f"{file} made; give {request} to the authority")


@identity.command("show")
@identity_file
@pass_session
def identity_show(session: Session, identity: Path) -> None:
    """Show the token: name, sites, verbs, when it ends, and the id by which it is revoked."""
    token = Token.decode(read_file(beside(identity, ".token"), 1024), None)
    session.emit({
        "name": token.name, "sites": token.sites, "verbs": token.verbs, "not_before_ms": token.not_before_ms,
        "not_after_ms": token.not_after_ms, "token_id": token.token_id,
    })  # fmt: skip


@click.group(cls=Noun)
def authority() -> None:
    """The site's authority: signs installers' tokens and the configurations of terminals."""


@authority.command("make")
@click.argument("file", type=FILE)
@pass_session
def authority_make(session: Session, file: Path) -> None:
    """Make an authority's key in FILE and its public key in FILE.pub (hex)."""
    public = beside(file, ".pub")
    require_new(file)
    require_new(public)
    key = SigningKey.generate(secrets.token_bytes)
    if not session.dry_run:
        _write_key(file, "authority", key.seed, session.secret("authority passphrase", new=True))
        write_new(public, key.public.hex().encode() + b"\n")
    session.emit({"authority": file, "public": public}, f"{file} made; its public key is in {public}")


@authority.command("token")
@click.argument("request", type=FILE)
@click.option("--site", "sites", multiple=True, required=True, help="Where it holds; may be repeated.")
@click.option(
    "--verb", "verbs", multiple=True, type=click.Choice(VERBS), help="What it allows; all but keys when none."
)
@click.option("--days", type=click.IntRange(1, 30), default=30, show_default=True, help="How long it lasts.")
@authority_file
@pass_session
def authority_token(
    session: Session, request: Path, sites: tuple[str, ...], verbs: tuple[str, ...], days: int, authority: Path
) -> None:
    """Sign a token for REQUEST; it is written beside it, as .token."""
    wanted = read_json(request)
    try:
        x25519, ed25519, name = bytes.fromhex(wanted["x25519"]), bytes.fromhex(wanted["ed25519"]), str(wanted["name"])
    except (KeyError, ValueError, TypeError) as e:
        raise FormatError(f"{request} is no installer's request") from e
    start = now_ms()
    token = Token(
        x25519, ed25519, name, sites, verbs or USUAL, start, start + days * DAY_MS, secrets.token_bytes(8)
    )  # fmt: skip
    raw, target = token.encode(load_authority(session, authority)), request.with_suffix(".token")
    if not session.dry_run:
        replace_file(target, raw)
    data = {"token": target, "token_id": token.token_id, "not_after_ms": token.not_after_ms}
    session.emit(data, f"{target}: token {token.token_id.hex().upper()} for {name}, {days} days")


@authority.command("config")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--serial", required=True, help="Of the one terminal that may take it.")
@click.option("--revoke", multiple=True, type=Hex(), help="Id of a token that no longer counts; may be repeated.")
@authority_file
@pass_session
def authority_config(
    session: Session, source: Path, target: Path, serial: str, revoke: tuple[bytes, ...], authority: Path
) -> None:
    """Sign configuration SOURCE (TOML) for one terminal into new file TARGET."""
    settings = config.load(source)
    file = SignedFile("config", serial, settings.version, now_ms(), read_file(source), revoke)
    raw = file.encode(load_authority(session, authority))
    if not session.dry_run:
        write_new(target, raw)
    data = {"file": target, "serial": serial, "version": settings.version}
    session.emit(data, f"{target}: configuration {settings.version} for {serial}")


def _sign(
    session: Session, target: Path, kind: str, name: str, version: int, body: bytes, authority: Path
) -> None:  # fmt: skip
    raw = SignedFile(kind, name, version, now_ms(), body).encode(load_authority(session, authority))
    if not session.dry_run:
        write_new(target, raw)
    session.emit({"file": target, "for": name, "version": version}, f"{target}: {kind} {version} for {name}")


VERSION = click.option("--version", type=click.IntRange(1, 2**31 - 1), required=True, help="Must grow.")


@authority.command("firmware")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--for", "name", required=True, help="Model of terminals, or serial of the one, that may take it.")
@VERSION
@authority_file
@pass_session
def authority_firmware(
    session: Session, source: Path, target: Path, name: str, version: int, authority: Path
) -> None:  # fmt: skip
    """Sign firmware or application SOURCE for a model of terminals into new file TARGET."""
    _sign(session, target, "firmware", name, version, read_file(source), authority)


@authority.command("keys")
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--serial", required=True, help="Of the one terminal that may take them.")
@click.option("--x25519", type=Hex(32), required=True, help="That terminal's public key, as terminal info shows it.")
@VERSION
@authority_file
@pass_session
def authority_keys(
    session: Session, source: Path, target: Path, serial: str, x25519: bytes, version: int, authority: Path
) -> None:  # fmt: skip
    """Seal the keys of OSDP readers in SOURCE (lines of address and 32 hex digits) for one terminal into new TARGET.

    Only that terminal opens them, and only with two operators; SOURCE is needed no longer.
    """
    try:
        lines = map(str.split, read_file(source).decode().splitlines())
        keys = {int(address): bytes.fromhex(key) for address, key in lines}
    except ValueError:
        raise FormatError(f"{source} has lines that are no address and 32 hexadecimal digits") from None  # shows a key
    plain = cbor.encode({1: keys})
    scbks(plain)
    sealed = seal_to(x25519, plain, keys_aad(serial, version), secrets.token_bytes)
    _sign(session, target, "keys", serial, version, sealed, authority)


def public_key(path: Path) -> bytes:
    """The authority's public key from its .pub file. Raises ConfigError, NotFound."""
    try:
        public = bytes.fromhex(read_file(path, 256).decode())
    except ValueError as e:
        raise ConfigError(f"{path} is no public key: 64 hexadecimal digits") from e
    if len(public) != 32:
        raise ConfigError(f"{path} is no public key: 64 hexadecimal digits")
    return public
