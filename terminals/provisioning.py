"""``onecard terminal provision`` and ``report``: a site's terminals brought to what a plan says, and handed over.

The difference is always taken from the terminal itself, so that the same command goes on after a cut. What a terminal
can't be asked (list certificates taken, tests passed) stands in the manifest beside the plan.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cardlib.blacklist import MAGIC, Head
from cardlib.crypto.signing import verify
from cardlib.errors import CheckFailed, ConfigError, FormatError, LineTimeout, NotFound, Refused, TransportError
from cardlib.wire import cbor, smp
from cardlib.wire.authority import SignedFile, Token
from cardlib.wire.link import label_text, parse_label
from console import Session, pass_session
from terminals import config
from terminals.identity import (
    Identity,
    authority,
    authority_file,
    identity_file,
    load_authority,
    load_identity,
    now_ms,
    public_key,
    read_file,
    read_json,
    replace_file,
)
from terminals.installer import Client
from terminals.installing import (
    Line,
    Where,
    collect_into,
    command,
    config_changes,
    connect,
    drift_words,
    info_of,
    open_session,
    pair_with,
    push_list,
    run_tests,
    sam_values,
    terminal_ms,
)

CLOCK_SLACK_MS, CLOCK_WARN_MS = 1_000, 60_000
REPORT_LABEL = b"OCHR1"
TESTS = ("line", "card", "screen")
_TOP = {"site": str, "authority": str, "port": str, "baud": int, "terminal": list}
_ONE = {
    "serial": str, "fingerprint": str, "port": str, "baud": int, "address": int, "code_file": str, "config": str,
    "lists": list, "tests": list, "sam": str, "check_values": dict,
}  # fmt: skip
FILE = click.Path(path_type=Path, dir_okay=False)
plan_file = click.option("--plan", type=FILE, required=True, help="The site's plan (docs/installer.md).")
only_option = click.option("--serial", "only", help="One terminal of the plan; all when not given.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one terminal shall be. ``lists``: files by the hex of their SHA-256."""

    serial: str
    label: bytes
    where: Where
    code_file: Path | None
    config: bytes
    version: int
    lists: dict[str, bytes]
    tests: tuple[str, ...]
    sam: str
    check_values: dict[str, str]

    @property
    def etag(self) -> bytes:
        """Hash of the configuration, as the terminal has it."""
        return hashlib.sha256(self.config).digest()[:16]

    @property
    def list_version(self) -> int:
        """Version of the newest list in the plan, 0 for none."""
        return max((_list_version(raw) for raw in self.lists.values()), default=0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A site's plan."""

    site: str
    authority: bytes
    terminals: tuple[Wanted, ...]
    manifest: Path


def _list_version(raw: bytes) -> int:
    """Version that a list file leads to; 0 for a certificate. Raises FormatError."""
    return int(Head.decode(raw[9 : 9 + int.from_bytes(raw[5:9], "big")]).to) if raw.startswith(MAGIC) else 0


def _checked(name: str, table: object, types: dict[str, type], need: Iterable[str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{name} is no section")
    for key, value in table.items():
        if key not in types:
            raise ConfigError(f"{name}: no such setting {key}; known are {', '.join(types)}")
        if type(value) is not types[key]:
            raise ConfigError(f"{name}: {key} is no {types[key].__name__}")
    if missing := [key for key in need if key not in table]:
        raise ConfigError(f"{name}: {', '.join(missing)} missing")
    return table


def _wanted(folder: Path, top: dict[str, Any], one: dict[str, Any], authority: bytes, name: str) -> Wanted:
    serial, port = one["serial"], one.get("port", top.get("port", ""))
    if not port:
        raise ConfigError(f"{name}: port is missing, here or at the top")
    raw = read_file(folder / one["config"])
    file = SignedFile.decode(raw, authority)
    if file.kind != "config" or file.serial != serial:
        raise Refused("foreign", f"{one['config']} is a {file.kind} for terminal {file.serial}, not for {serial}")
    where = Where(
        port if "://" in port else str(folder / port), one.get("baud", top.get("baud")), one.get("address"), serial
    )
    tests = tuple(one.get("tests", ["line"]))
    if unknown := [test for test in tests if test not in TESTS]:
        raise ConfigError(f"{name}: no test {unknown[0]!r}; known are {', '.join(TESTS)}")
    lists = [read_file(folder / str(path)) for path in one.get("lists", [])]
    return Wanted(
        serial, parse_label(one["fingerprint"]), where,
        folder / one["code_file"] if "code_file" in one else None, raw, file.version,
        {hashlib.sha256(each).hexdigest(): each for each in lists}, tests, one.get("sam", "").upper(),
        {str(key): str(value).upper() for key, value in one.get("check_values", {}).items()},
    )  # fmt: skip


def load_plan(path: Path, only: str | None) -> Plan:
    """Read a plan and all files that it names. Raises ConfigError, NotFound, Refused, MacMismatch, FormatError."""
    top, tables = _tables(path)
    authority = public_key(path.parent / top["authority"])
    wanted = tuple(
        _wanted(path.parent, top, one, authority, f"{path}, terminal {number}")
        for number, one in enumerate(tables, 1)
        if only is None or one["serial"] == only
    )
    if not wanted:
        raise NotFound(f"{path} has no terminal {only or ''}".rstrip())
    return Plan(top["site"], authority, wanted, path.with_suffix(".manifest.json"))


def _tables(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A plan's own settings and those of its terminals, as they are written. Raises ConfigError."""
    try:
        table = tomllib.loads(read_file(path).decode())
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e
    top = _checked(str(path), table, _TOP, ("site", "authority", "terminal"))
    return top, [
        _checked(f"{path}, terminal {number}", one, _ONE, ("serial", "fingerprint", "config"))
        for number, one in enumerate(top["terminal"], 1)
    ]


@authority.command("site")
@plan_file
@authority_file
@pass_session
def authority_site(session: Session, plan: Path, authority: Path) -> None:
    """Sign the configuration of every terminal of --plan: NAME.toml beside the NAME that its `config` names.

    One that is signed already, word for word, stays as it is.
    """
    made: list[dict[str, Any]] = []
    signer = load_authority(session, authority)
    for one in _tables(plan)[1]:
        target = plan.parent / one["config"]
        source = target.with_suffix(".toml")
        settings, body = config.load(source), read_file(source)
        signed = SignedFile.decode(read_file(target), signer.public) if target.exists() else None
        if signed is None or (signed.serial, signed.body) != (one["serial"], body):
            if signed is not None and signed.version >= settings.version:
                raise ConfigError(f"{source} has changed since version {signed.version} was signed: raise its version")
            if not session.dry_run:
                file = SignedFile("config", one["serial"], settings.version, now_ms(), body)
                replace_file(target, file.encode(signer))
            made.append({"file": target, "serial": one["serial"], "version": settings.version})
    session.emit(made, None if session.json or made else "all are signed")


# --- the manifest --------------------------------------------------------------------------------------------


class Manifest:
    """What was done, by terminal and step; on disk as soon as it was. Another device of the same serial starts anew."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path, self._serial, self._label = path, wanted.serial, label_text(wanted.label)
        stored = read_json(path).get(wanted.serial, {})
        same = isinstance(stored, dict) and stored.get("fingerprint") == self._label
        self.steps: dict[str, Any] = dict(stored["steps"]) if same else {}

    def done(self, step: str, **facts: Any) -> None:  # noqa: ANN401  # JSON values
        """Note a step. Raises DatabaseError."""
        self.steps[step] = {**facts, "at_ms": now_ms()}
        self._save()

    def forget(self) -> None:
        """The terminal was reset: nothing is done."""
        if self.steps:
            self.steps = {}
            self._save()

    def _save(self) -> None:
        data = read_json(self._path) | {self._serial: {"fingerprint": self._label, "steps": self.steps}}
        replace_file(self._path, json.dumps(data, indent=1, sort_keys=True).encode())


# --- provision -----------------------------------------------------------------------------------------------


def difference(wanted: Wanted, line: Line, who: Identity, manifest: Manifest) -> list[dict[str, str]]:
    """What is still to be done, from what the terminal says outside a session."""
    now = info_of(line.client)
    steps: list[tuple[str, str, str]] = []
    if not line.hello.paired or who.pinned(wanted.serial) is None:
        steps.append(("pair", "unknown to this installer", f"paired with {who.token.name}"))
    if not now["authority"]:
        steps.append(("authority", "none", "the plan's"))
    if now["config_hash"] != wanted.etag:
        steps.append(("config", f"version {now['config_version']}", f"version {wanted.version}"))
    for name, raw in wanted.lists.items():
        version = _list_version(raw)
        if version > now["list_version"] or (not version and f"list {name}" not in manifest.steps):
            old = f"version {now['list_version']}" if version else "not taken"
            steps.append((f"list {name}", old, f"version {version}" if version else "list key taken"))
    steps += [
        (f"test {name}", "not passed yet", "passed") for name in wanted.tests if f"test {name}" not in manifest.steps
    ]
    return [{"terminal": wanted.serial, "step": step, "now": old, "then": new} for step, old, new in steps]


def _set_clock(session: Session, client: Client, manifest: Manifest) -> None:
    drift = terminal_ms(client) - now_ms()
    if abs(drift) <= CLOCK_SLACK_MS:
        return
    warning = "warning: " if abs(drift) > CLOCK_WARN_MS else ""
    session.note(f"{warning}the clock of {client.serial} is {drift_words(drift)}: it is set")
    client.set_clock(now_ms())
    manifest.done("clock", drift_ms=drift)


def _check_sam(client: Client, wanted: Wanted) -> None:
    if not wanted.sam and not wanted.check_values:
        return
    sam, values = info_of(client)["sam"].hex().upper(), sam_values(client)
    if wanted.sam and sam != wanted.sam:
        raise CheckFailed(f"terminal {client.serial} holds SAM {sam}, not {wanted.sam}: put the right one in")
    if wrong := [name for name, value in wanted.check_values.items() if values.get(name) != value]:
        raise CheckFailed(f"terminal {client.serial}: keys {', '.join(wrong)} of its SAM are not those of the plan")


def _act(session: Session, client: Client, plan: Plan, wanted: Wanted, step: str, manifest: Manifest) -> None:
    """One step of the difference, then the manifest."""
    kind, _, name = step.partition(" ")
    facts: dict[str, Any] = {}
    if kind == "authority":
        client.request(smp.AUTHORITY, {0: plan.authority})
    elif kind == "config":
        payload, version, changes = config_changes(session, client, wanted.config)
        client.request(smp.CONFIG_APPLY, payload)
        facts = {"version": version, "changes": changes}
    elif kind == "list":
        facts = {"version": push_list(session, client, wanted.lists[name])}
    elif kind == "test":
        passed, words = run_tests(client, (name,))[name]
        if not passed:
            raise CheckFailed(f"terminal {client.serial}: {name} test not passed: {words}")
        facts = {"words": words}
    manifest.done(step, **facts)
    session.note(f"{client.serial}: {step} done")


def _provision(session: Session, plan: Plan, wanted: Wanted, who: Identity) -> list[dict[str, str]]:
    """Bring one terminal to its plan; returns what was (or, on a dry run, would be) done."""
    line = connect(session, wanted.where)
    if line.hello.fingerprint != wanted.label:
        raise Refused("fingerprint", f"terminal {wanted.serial} is not the one of this label: stop and look who it is")
    manifest = Manifest(plan.manifest, wanted)
    if not line.hello.paired and not session.dry_run:
        manifest.forget()
    steps = difference(wanted, line, who, manifest)
    for row in steps:
        session.note(f"{row['terminal']}: {row['step']}: {row['now']} -> {row['then']}")
    if session.dry_run:
        return steps
    if any(row["step"] == "pair" for row in steps):
        client = pair_with(session, line, who, wanted.label, wanted.code_file)
        manifest.done("pair", installer=who.token.name)
    else:
        client = open_session(line, who)
    todo = [row["step"] for row in steps if row["step"] != "pair"]
    if "authority" in todo:  # before all that it signs
        _act(session, client, plan, wanted, "authority", manifest)
    _set_clock(session, client, manifest)
    _check_sam(client, wanted)
    for step in todo:
        if step != "authority":
            _act(session, client, plan, wanted, step, manifest)
    read_back(client, wanted)
    for step in ("pair", "authority", "config", *(f"list {name}" for name in wanted.lists)):
        if step not in manifest.steps:  # done before a cut that came between the act and its note
            manifest.done(step, found=True)
    manifest.done("read back")
    return steps


def read_back(client: Client, wanted: Wanted) -> dict[str, Any]:
    """What is in force, which must be what the plan says. Raises CheckFailed."""
    now = info_of(client)
    if now["config_hash"] != wanted.etag or now["list_version"] < wanted.list_version or not now["authority"]:
        raise CheckFailed(
            f"terminal {wanted.serial} has configuration {now['config_version']} and list {now['list_version']}, "
            f"not {wanted.version} and {wanted.list_version} as planned: run terminal provision again"
        )
    return now


@command.command()
@plan_file
@only_option
@identity_file
@pass_session
def provision(session: Session, plan: Path, only: str | None, identity: Path) -> None:
    """Bring a site's terminals to what --plan says: the difference first (--dry-run stops there), then step by step.

    After a cut the same command goes on where it stopped; PLAN.manifest.json says what is done.
    """
    loaded = load_plan(plan, only)
    who = load_identity(session, identity)
    if loaded.site not in who.token.sites:
        raise Refused("site", f"the token of {who.token.name} is not for site {loaded.site}")
    steps: list[dict[str, str]] = []
    for wanted in loaded.terminals:
        steps += _provision(session, loaded, wanted, who)
        session.close()  # the next one may hang on the same port
    session.emit(steps, None if session.json or steps else "all is as planned")


@command.command("collect-site")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@plan_file
@only_option
@identity_file
@pass_session
def collect_site(session: Session, folder: Path, plan: Path, only: str | None, identity: Path) -> None:
    """Bring the journals of a plan's terminals into FOLDER, one after another, as `terminal collect` does each.

    One that can't be reached does not stop the others; exit 5 when there was one.
    """
    session.refuse_dry_run("what is collected is acknowledged")
    loaded, who = load_plan(plan, only), load_identity(session, identity)
    rows: list[dict[str, Any]] = []
    lost: list[str] = []
    for wanted in session.progress(loaded.terminals, len(loaded.terminals), "terminals"):
        try:
            rows.append(collect_into(open_session(connect(session, wanted.where), who), folder))
        except TransportError as e:
            lost.append(f"{wanted.serial}: {e}")
        session.close()  # the next one may hang on the same port
    session.emit(rows)
    if lost:
        raise LineTimeout("; ".join(lost))


# --- report --------------------------------------------------------------------------------------------------


def _canonical(record: dict[str, Any]) -> bytes:
    return REPORT_LABEL + json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def make_report(client: Client, wanted: Wanted, who: Identity, manifest: Manifest, site: str) -> dict[str, Any]:
    """The signed hand-over record of a provisioned terminal. Raises CheckFailed when it is not as planned."""
    missing = [f"test {name}" for name in wanted.tests if f"test {name}" not in manifest.steps]
    if missing or "read back" not in manifest.steps:
        raise CheckFailed(f"terminal {wanted.serial} is not finished: run terminal provision again")
    now = read_back(client, wanted)
    head = cbor.fields(client.request(smp.JOURNAL_HEAD), "journal", {0: int, 1: bytes, 2: bytes, 3: int, 4: int})
    record = {
        "serial": wanted.serial, "site": site, "model": now["model"], "version": now["software"],
        "fingerprint": label_text(wanted.label), "terminal": now["terminal"].hex().upper(),
        "sam": now["sam"].hex().upper(), "check_values": sam_values(client), "config_version": now["config_version"],
        "config_hash": now["config_hash"].hex().upper(), "list_version": now["list_version"],
        "tests_passed": {name: manifest.steps[f"test {name}"]["words"] for name in wanted.tests},
        "journal_seq": head[0], "journal_head": head[1].hex().upper(), "journal_signature": head[2].hex().upper(),
        "terminal_key": now["ed25519"].hex().upper(), "clock_drift_ms": terminal_ms(client) - now_ms(),
        "installer": who.token.name, "time": datetime.fromtimestamp(now_ms() / 1000, UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    signature = who.signing.sign(_canonical(record))
    return {"record": record, "signature": signature.hex().upper(), "token": who.installer.token.hex().upper()}


def check_report(raw: bytes, authority: bytes) -> dict[str, Any]:
    """The record, once the authority's token and the installer's signature are found right.

    Raises MacMismatch, FormatError, Refused when the token did not hold at the record's time.
    """
    try:
        signed = json.loads(raw)
        record, signature = dict(signed["record"]), bytes.fromhex(signed["signature"])
        token = Token.decode(bytes.fromhex(signed["token"]), authority)
        at_ms = round(datetime.fromisoformat(record["time"]).timestamp() * 1000)
        site = record["site"]
    except (ValueError, KeyError, TypeError) as e:
        raise FormatError("this is no hand-over record") from e
    verify(token.ed25519, _canonical(record), signature)
    if not token.not_before_ms - 1000 <= at_ms <= token.not_after_ms or site not in token.sites:
        raise Refused("token", f"the token of {token.name} did not hold for site {site} at {record['time']}")
    return record


def page(signed: dict[str, Any]) -> str:
    """A page to print and to sign by hand."""
    record = signed["record"]
    width = max(map(len, record))
    lines = [f"HAND-OVER OF TERMINAL {record['serial']}", ""]
    show: Callable[[Any], str] = lambda v: ", ".join(f"{k}: {w}" for k, w in v.items()) or "-"  # noqa: E731  # used once
    for name, value in record.items():
        text = show(value) if isinstance(value, dict) else str(value) or "-"
        lines.append(f"{name.replace('_', ' '):<{width}}  {text}")
    digest = hashlib.sha256(_canonical(record)).hexdigest().upper()
    lines += ["", f"SHA-256 of the signed record: {digest}", "", "Installer: ______________________", ""]
    lines += ["Taken over by: ______________________   Date: ____________", ""]
    return "\n".join(lines)


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@plan_file
@only_option
@identity_file
@pass_session
def report(session: Session, folder: Path, plan: Path, only: str | None, identity: Path) -> None:
    """Read back what was provisioned; write a signed hand-over record and a page to print into FOLDER."""
    loaded = load_plan(plan, only)
    who = load_identity(session, identity)
    written: list[dict[str, Any]] = []
    for wanted in loaded.terminals:
        line = connect(session, wanted.where)
        client = open_session(line, who)
        signed = make_report(client, wanted, who, Manifest(loaded.manifest, wanted), loaded.site)
        session.close()
        record, paper = folder / f"{wanted.serial}.json", folder / f"{wanted.serial}.txt"
        if not session.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(record, json.dumps(signed, indent=1).encode() + b"\n")
            replace_file(paper, page(signed).encode())
        written.append({"serial": wanted.serial, "record": record, "page": paper})
    session.emit(written)


@command.command("check-report")
@click.argument("file", type=FILE)
@click.option("--authority-public", type=FILE, required=True, help="The authority's .pub file.")
@pass_session
def check_report_command(session: Session, file: Path, authority_public: Path) -> None:
    """Check hand-over record FILE: the authority's token, the installer's signature. Shows what it says."""
    session.emit(check_report(read_file(file), public_key(authority_public)))
