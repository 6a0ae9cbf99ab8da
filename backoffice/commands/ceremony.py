"""``onecard key``, ceremonies: a root key from components or shares; key blocks between systems."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from backoffice import audit, operators
from backoffice.audit import Event
from backoffice.commands.base import act_outside, digest, permitted
from backoffice.commands.key import ALGORITHMS, PURPOSES
from backoffice.database import PLATFORM
from backoffice.installation import Installation
from backoffice.operators import Permission
from cardlib.errors import ConfigError, Conflict, NotFound, Refused
from cardlib.profile import Purpose
from console import Hex, Noun, Session, require_new, show
from keymgmt import ceremony as steps
from keymgmt import keysheet
from keymgmt.ceremony import Ceremony, Scheme, Slip, Terms
from keymgmt.keyblock import BlockVersion, Exportability, check, check_kbpk, import_block, unwrap
from keymgmt.keys import KeyRef
from keymgmt.store import FileStore

C = TypeVar("C", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)
purpose_argument = click.argument("purpose", type=click.Choice(PURPOSES))
version_argument = click.argument("version", type=click.IntRange(1, 255))


@click.group(cls=Noun)
def command() -> None:
    """Ceremonies: a root key from components or shares; key blocks between systems."""


@command.group()
def ceremony() -> None:
    """Make a root key out of the parts of several custodians, none of whom ever has it.

    The leader starts and finishes; each custodian is another operator with a step of his own.
    """


def which_key(run: C) -> C:
    """The root key that a ceremony is for."""
    return purpose_argument(version_argument(run))


def _ref(purpose: str, version: int, owner: int | None = None) -> KeyRef:
    ref = KeyRef(Purpose[purpose.upper()], version, owner)
    ref.check()
    return ref


def _step(
    session: Session,
    office: Installation,
    ref: KeyRef,
    verb: str,
    arguments: dict[str, Any],
    action: Callable[[], dict[str, Any]],
) -> None:
    """One step of a ceremony, alone in its folder; once per request id."""

    def alone() -> dict[str, Any]:
        with steps.locked(office.folder):
            return action()

    known = {"key": str(ref)} | arguments
    session.emit(act_outside(session, office.platform, PLATFORM, f"key ceremony {verb}", known, alone))


def _keep(
    session: Session, office: Installation, after: Ceremony, step: str, kcv: bytes = b"", number: int = 0
) -> None:
    """Write a step into the audit log, then into the ceremony's file: killed in between, the step is run again."""
    if session.dry_run:
        return
    _transcript(office, after, step, kcv, number)
    steps.save(office.folder, after)


def _transcript(office: Installation, of: Ceremony, step: str, kcv: bytes = b"", number: int = 0) -> None:
    details: dict[str, int | str] = {"kcv": kcv.hex().upper()} if kcv else {}
    if number:
        details["number"] = number
    with office.platform.write() as tx:
        who, subject = office.operator.name, audit.key_subject(of.terms.ref)
        audit.record(tx, PLATFORM, Event.KEY_CEREMONY, who, subject, kind=step, name=of.set, **details)


def _row(session: Session, of: Ceremony, state: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # any JSON value
    terms = of.terms
    return {
        "key": str(terms.ref),
        "set": of.set,
        "state": state,
        **more,
        "entered": len(of.entered),
        "of": terms.total,
        "needed": terms.total if terms.generated else terms.needed,
        **({"dry_run": True} if session.dry_run else {}),
    }


@ceremony.command()
@which_key
@click.option("--algorithm", type=click.Choice(list(ALGORITHMS)), default="3des", show_default=True, help="Cipher.")
@click.option("--components", type=int, help="Number of components, all of which make the key (XOR).")
@click.option("--shares", type=int, help="Number of shares, of which --needed make the key (SLIP-39).")
@click.option("--needed", type=int, help="How many of the shares make the key.")
@click.option("--generate", is_flag=True, help="Draw the parts here; without it custodians bring theirs.")
@click.option("--kcv", type=Hex(3), default=b"", help="The key's check value, when it is known before.")
@permitted(Permission.KEY_MANAGE, platform=True)
def start(
    session: Session,
    office: Installation,
    purpose: str,
    version: int,
    algorithm: str,
    components: int | None,
    shares: int | None,
    needed: int | None,
    generate: bool,
    kcv: bytes,
) -> None:
    """Begin the ceremony of root key PURPOSE, VERSION, as its leader.

    Asks for a new ceremony secret (ONECARD_CEREMONY_SECRET_FILE), which finishing needs: it is the leader's alone.
    """
    ref = _ref(purpose, version)
    if (components is None) == (shares is None) or (needed is None) != (shares is None):
        raise ConfigError("say either --components N, or --shares N with --needed K")
    scheme = Scheme.COMPONENTS if shares is None else Scheme.SHARES
    terms = Terms(
        ref, ALGORITHMS[algorithm], scheme, needed or components or 0, shares or components or 0, generate, kcv,
        office.operator.name, office.clock(),
    )  # fmt: skip
    terms.check()
    secret = "dry run only" if session.dry_run else session.secret("ceremony secret", new=True)

    def action() -> dict[str, Any]:
        if steps.path_of(office.folder, ref).exists():
            raise Conflict(f"there is a ceremony for key {ref} already: finish or abort it")
        if any(info.ref == ref for info in office.keys.list()):
            raise Conflict(f"key {ref} exists already: make the next version")
        made = steps.start(terms, secret, office.random_bytes)
        _keep(session, office, made, "started", kcv)
        return _row(session, made, "started")

    arguments = {"algorithm": algorithm, "scheme": scheme.value, "parts": [terms.needed, terms.total],
                 "generate": generate, "kcv": kcv.hex()}  # fmt: skip
    _step(session, office, ref, "start", arguments, action)


@ceremony.command()
@which_key
@click.option(
    "--sheet", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write a sheet instead of showing the part: a new file (.svg, .pdf: the QR code; else text), or - for stdout."
    " A file is a secret: print it, then destroy it.",
)  # fmt: skip
@permitted(Permission.KEY_MANAGE, platform=True)
def draw(session: Session, office: Installation, purpose: str, version: int, sheet: Path | None) -> None:
    """Draw the part of the operator who runs this, a custodian of root key PURPOSE, VERSION, and show it to him.

    It is shown on the terminal, and nowhere kept in clear: he writes it down, and enters it with add-component. Shares
    also need the leader's ceremony secret.
    """
    ref = _ref(purpose, version)
    session.refuse_dry_run("a part is drawn to be seen")

    def action() -> dict[str, Any]:
        if sheet and str(sheet) != "-":
            require_new(sheet)
        before = steps.load(office.folder, ref)
        secret = lambda: session.secret("ceremony secret")  # noqa: E731  # asked for only where shares wait
        after, slip = steps.draw(before, office.operator.name, secret, office.random_bytes)
        own = slip.custodian
        _keep(session, office, after, "drawn", own.check, own.number)
        _show(session, slip, sheet)
        return _row(session, after, "drawn", number=own.number, check_value=own.check)

    _step(session, office, ref, "draw", {"who": office.operator.name, "sheet": str(sheet)}, action)


def _show(session: Session, slip: Slip, sheet: Path | None) -> None:
    if sheet is None:
        _on_terminal(keysheet.lines(slip))
    elif str(sheet) == "-":
        click.echo(keysheet.as_text(slip), nl=False)
    else:
        made = keysheet.FORMS.get(sheet.suffix.lower(), keysheet.as_text)(slip)
        fd = os.open(sheet, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(made)
        session.note(f"{sheet} is a secret in clear: print it, then destroy the file")


def _on_terminal(lines: list[str]) -> None:
    """Show on the person's own terminal, not on stdout, which may go anywhere; gone when he has written it down."""
    try:
        with Path("/dev/tty").open("r+b", buffering=0) as tty:
            tty.write("".join(f"{line}\r\n" for line in ["", *lines, "", "Enter when it is written down: "]).encode())
            tty.readline()
            tty.write(b"\033[H\033[2J\033[3J")
    except OSError:
        raise ConfigError("no terminal to show the part on: --sheet FILE, or --sheet - for standard output") from None


@ceremony.command("add-component")
@which_key
@permitted(Permission.KEY_MANAGE, platform=True)
def add_component(session: Session, office: Installation, purpose: str, version: int) -> None:
    """Enter the component or share of the operator who runs this, a custodian of root key PURPOSE, VERSION.

    Asked for (ONECARD_KEY_COMPONENT_FILE; the first line of a sheet; - is stdin): 32 hexadecimal digits with their
    check value behind, or the words of a share.
    """
    ref = _ref(purpose, version)

    def action() -> dict[str, Any]:
        before = steps.load(office.folder, ref)
        after = steps.enter(before, office.operator.name, session.secret("key component"), office.random_bytes)
        own = after.of(office.operator.name)
        assert own is not None
        _keep(session, office, after, "entered", own.check, own.number)
        return _row(session, after, "entered", number=own.number, check_value=own.check)

    _step(session, office, ref, "add-component", {"who": office.operator.name}, action)


@ceremony.command()
@which_key
@click.argument("kcv", type=Hex(3))
@permitted(Permission.KEY_MANAGE, platform=True)
def confirm(session: Session, office: Installation, purpose: str, version: int, kcv: bytes) -> None:
    """Confirm, as a custodian, that root key PURPOSE, VERSION has check value KCV."""
    ref = _ref(purpose, version)

    def action() -> dict[str, Any]:
        after = steps.confirm(steps.load(office.folder, ref), office.operator.name, kcv)
        _keep(session, office, after, "confirmed", kcv)
        return _row(session, after, "confirmed", kcv=kcv, unconfirmed=steps.unconfirmed(after))

    _step(session, office, ref, "confirm", {"who": office.operator.name, "kcv": kcv.hex()}, action)


@ceremony.command()
@which_key
@permitted(Permission.KEY_MANAGE, platform=True)
def finish(session: Session, office: Installation, purpose: str, version: int) -> None:
    """Combine the parts of root key PURPOSE, VERSION, as the leader; asks for the ceremony secret.

    When its check value was not announced at the start, it is shown, each custodian confirms it, and finish is run
    again. Then the key is in the store, pending, and the parts are wiped.
    """
    ref = _ref(purpose, version)

    def action() -> dict[str, Any]:
        before = steps.load(office.folder, ref)
        if office.operator.name != before.terms.leader:
            raise Refused("custodian", f"{before.terms.leader} leads this ceremony and finishes it")
        secret = session.secret("ceremony secret")
        found = before if before.result else steps.combine(before, secret)
        if found is not before:
            _keep(session, office, found, "combined", found.result)
        missing = steps.unconfirmed(found)
        if missing:
            again = f"onecard key ceremony confirm {purpose} {version} {found.result.hex().upper()}"
            session.note(f"each custodian compares the check value and runs: {again}; then run finish again")
        if missing or session.dry_run:
            return _row(session, found, "combined", kcv=found.result, unconfirmed=missing)
        info = steps.finish(found, secret, office.keys)
        _transcript(office, found, "finished", info.kcv)
        steps.wipe(office.folder, ref)
        return _row(session, found, info.state.value, kcv=info.kcv)

    _step(session, office, ref, "finish", {}, action)


@ceremony.command()
@which_key
@click.option("--confirm", "word", help="ABORT")
@permitted(Permission.KEY_MANAGE, platform=True)
def abort(session: Session, office: Installation, purpose: str, version: int, word: str | None) -> None:
    """Give up the ceremony of root key PURPOSE, VERSION: what was entered is wiped."""
    ref = _ref(purpose, version)

    def action() -> dict[str, Any]:
        if not steps.path_of(office.folder, ref).exists():
            raise NotFound(f"there is no ceremony for key {ref}")
        if session.dry_run:
            return {"key": str(ref), "state": "aborted", "dry_run": True}
        session.confirm("ABORT", f"The ceremony of key {ref} is given up, and its parts are wiped.", word)
        with office.platform.write() as tx:  # its file may be damaged, and is not read
            audit.record(tx, PLATFORM, Event.KEY_CEREMONY, office.operator.name, audit.key_subject(ref), kind="aborted")
        steps.wipe(office.folder, ref)
        return {"key": str(ref), "state": "aborted"}

    _step(session, office, ref, "abort", {}, action)


@ceremony.command()
@which_key
@permitted(Permission.KEY_SHOW, platform=True)
def status(session: Session, office: Installation, purpose: str, version: int) -> None:
    """Show how far the ceremony of root key PURPOSE, VERSION is, and who has done his step. No part is shown."""
    found = steps.load(office.folder, _ref(purpose, version))
    rows = [
        {
            "custodian": one.operator,
            "number": one.number,
            "check_value": one.check,
            "state": "confirmed" if one.confirmed else "entered" if one.sealed else "drawn",
        }
        for one in sorted(found.custodians, key=lambda one: one.number)
    ]
    row = _row(session, found, "combined" if found.result else "started", leader=found.terms.leader)
    row |= {"algorithm": found.terms.algorithm.name, "scheme": found.terms.scheme.value, "kcv": found.result or None}
    shown = [f"{name.replace('_', ' ')}: {show(value)}" for name, value in row.items()]
    shown += [", ".join(f"{name.replace('_', ' ')}: {show(value)}" for name, value in one.items()) for one in rows]
    session.emit(row | {"custodians": rows}, shown)


# Key blocks.


def _kbpk(session: Session) -> bytes:
    try:
        return bytes.fromhex(session.secret("key block protection key"))
    except ValueError:
        raise ConfigError("the key block protection key is not hexadecimal") from None


@command.command()
@purpose_argument
@version_argument
@click.argument("file", type=FILE)
@click.option("--owner", type=click.IntRange(1, 0xFFFFFFFF), help="Enterprise whose key it is, instead of the root.")
@click.option("--block-version", type=click.Choice([one.value for one in BlockVersion]), default="D",
              show_default=True, help="D: the protection key is AES; B: it is TDES.")  # fmt: skip
@click.option("--exportability", type=click.Choice([one.value for one in Exportability]), default="E",
              show_default=True, help="E: may be exported again under a good key; S: under any; N: never.")  # fmt: skip
@click.option("--second-operator", required=True, help="Who agrees: ONECARD_SECOND_OPERATOR_SECRET_FILE.")
@permitted(Permission.KEY_MANAGE, platform=True)
def export(
    session: Session,
    office: Installation,
    purpose: str,
    version: int,
    file: Path,
    owner: int | None,
    block_version: str,
    exportability: str,
    second_operator: str,
) -> None:
    """Write key PURPOSE, VERSION as a TR-31 key block (ANSI X9.143) to a new FILE, for another system or HSM.

    Two operators agree. Asks for the key block protection key, in hexadecimal
    (ONECARD_KEY_BLOCK_PROTECTION_KEY_FILE), which the other side has too.
    """
    ref = _ref(purpose, version, owner)
    store = office.keys
    info = store.info(ref)
    secret = session.secret("second operator secret")
    second = operators.authenticate(office.platform, PLATFORM, second_operator, secret)
    operators.require_two(office.operator, second, Permission.KEY_MANAGE, PLATFORM)
    kbpk, kind = _kbpk(session), BlockVersion(block_version)
    check_kbpk(kbpk, kind)
    if not isinstance(store, FileStore):
        raise Refused("not_exportable", "the keys of this store never leave their module: export with its own tools")
    row = {"key": str(ref), "kcv": info.kcv, "file": file, "block_version": block_version}
    if session.dry_run:
        require_new(file)
        session.emit(row | {"dry_run": True})
        return

    def action() -> dict[str, Any]:
        require_new(file)
        text = store.export_block(ref, kbpk, kind, Exportability(exportability))
        with office.platform.write() as tx:
            audit.record(
                tx, PLATFORM, Event.KEY_MOVED, office.operator.name, audit.key_subject(ref),
                kind="exported", kcv=info.kcv.hex().upper(), second_operator=second.name,
            )  # fmt: skip
        fd = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as out:
            out.write(text + "\n")
        return row

    arguments = {"key": str(ref), "file": str(file), "block": block_version + exportability}
    session.emit(act_outside(session, office.platform, PLATFORM, "key export", arguments, action))


@command.command("import")
@click.argument("file", type=FILE)
@click.option("--purpose", type=click.Choice(PURPOSES), help="What the key is for, where the block does not say it.")
@click.option("--version", type=click.IntRange(1, 255), help="Its version, where the block does not say it.")
@click.option("--owner", type=click.IntRange(1, 0xFFFFFFFF), help="Enterprise whose key it is, instead of the root.")
@click.option("--kcv", type=Hex(3), help="The check value that the other side told.")
@permitted(Permission.KEY_MANAGE, platform=True)
def import_command(
    session: Session,
    office: Installation,
    file: Path,
    purpose: str | None,
    version: int | None,
    owner: int | None,
    kcv: bytes | None,
) -> None:
    """Take the key of a TR-31 key block in FILE into the key store, pending.

    Asks for the key block protection key (ONECARD_KEY_BLOCK_PROTECTION_KEY_FILE). A block that was changed, is of
    another usage, may not be exported again, or has another check value is refused.
    """
    if (purpose is None) != (version is None) or (owner and purpose is None):
        raise ConfigError("name --purpose and --version together")
    ref = None if purpose is None or version is None else _ref(purpose, version, owner)
    arguments = {"file": digest(file), "key": str(ref), "kcv": kcv.hex() if kcv else ""}
    text = file.read_text(encoding="ascii", errors="replace")
    kbpk = _kbpk(session)
    if session.dry_run:
        found = unwrap(text, kbpk)
        where = check(found, ref)
        if any(info.ref == where for info in office.keys.list()):
            raise Conflict(f"key {where} exists already: nothing was changed")
        session.emit({"key": str(where), "kcv": found.kcv, "dry_run": True})
        return

    def action() -> dict[str, Any]:
        info = import_block(office.keys, text, kbpk, ref, kcv, office.operator.name)
        with office.platform.write() as tx:
            audit.record(
                tx, PLATFORM, Event.KEY_MOVED, office.operator.name, audit.key_subject(info.ref),
                kind="imported", kcv=info.kcv.hex().upper(),
            )  # fmt: skip
        return {"key": str(info.ref), "kcv": info.kcv, "state": info.state.value}

    session.emit(act_outside(session, office.platform, PLATFORM, "key import", arguments, action))
