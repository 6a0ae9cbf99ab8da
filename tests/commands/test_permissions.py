"""Each command names its permission, and refuses whoever lacks it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import pytest

import cli
from backoffice import enterprises, operators
from backoffice.database import PLATFORM, Database
from backoffice.installation import Installation
from backoffice.operators import PERMISSIONS, Credential, Permission, Role
from console import Session
from simulator.world import QUICK
from tests.secretwatch import register

SECRET = "a secret for every role"
SECRETS = {
    "OPERATOR_SECRET": SECRET,
    "PLATFORM_OPERATOR_SECRET": SECRET,
    "SECOND_OPERATOR_SECRET": SECRET,
    "KEY_PASSPHRASE": SECRET,
    "TRANSPORT_KEY": "606162636465666768696A6B6C6D6E6F",
    "SAM_PIN": "13579B",
    "MOTHER_PIN": "975310",
    "AUTHENTICATION_PIN": "864200",
    "BATCH_KEY": "70" * 32,
    "HOLDER_PIN": "135790",
    "SERVICE_PASSWORD": "864209",
}
ENTERPRISE = 5
SERIAL, TERMINAL = "0201000000000785", "310000000101"

ARGUMENTS: dict[str, list[str]] = {
    "enterprise register": ["Name"],
    "enterprise state": ["suspended"],
    "enterprise subscribe": ["payment"],
    "enterprise set": ["service_fee_fen=1"],
    "operator add": ["x", "--role", "auditor"],
    "operator secret": ["x"],
    "operator role": ["x", "auditor"],
    "operator disable": ["x"],
    "db backup": ["copy"],
    "member import": ["file"],
    "member add": ["M1", "Name"],
    "member change": ["M1"],
    "member leave": ["M1"],
    "member export": ["file.csv"],
    "card issue": ["M1"],
    "card batch receive": ["file"],
    "card batch show": ["b1"],
    "card issue-batch": ["b1", "--pin-sheet", "pins"],
    "card show": [SERIAL],
    "ota queue": ["block", SERIAL],
    "member service-password": ["M1"],
    "ota retry": ["x"],
    "ota cancel": ["x"],
    "card lose": [SERIAL],
    "card unlock": [SERIAL],
    "card confirm": [SERIAL],
    "card reissue": [SERIAL],
    "card cancel": [SERIAL],
    "wallet recharge": ["1"],
    "wallet subsidy": ["1"],
    "wallet refund": ["1"],
    "wallet undo": ["id"],
    "wallet balance": [SERIAL],
    "wallet statement": [SERIAL],
    "terminal register": [TERMINAL, "till", "--kind", "pos"],
    "terminal retire": [TERMINAL],
    "sam personalize": [TERMINAL, "--kind", "pos"],
    "sam load-keys": [SERIAL, "--key-set", "2"],
    "sam lock": [SERIAL],
    "sam replace": [SERIAL],
    "sam report-lost": [SERIAL],
    "blacklist add": [SERIAL],
    "blacklist remove": [SERIAL],
    "blacklist revoke-token": ["0102030405060708"],
    "blacklist export": ["file"],
    "key make": ["card", "2"],
    "key state": ["card", "2", "active"],
    "audit export": ["file"],
    "key ceremony start": ["card", "2", "--components", "2"],
    "key ceremony draw": ["card", "2"],
    "key ceremony add-component": ["card", "2"],
    "key ceremony confirm": ["card", "2", "010203"],
    "key ceremony finish": ["card", "2"],
    "key ceremony abort": ["card", "2"],
    "key ceremony status": ["card", "2"],
    "key export": ["card", "2", "block", "--second-operator", "finance"],
    "key import": ["block"],
    "key mother make": ["--authentication-reader", "sim:b"],
    "key mother list": ["--authentication-reader", "sim:b"],
    "key mother limit": ["card", "5"],
    "key activate": ["2"],
    "key retire": ["1"],
    "key destroy": ["1", "--confirm", "DESTROY"],
    "settle collect": ["file"],
    "settle close-day": ["2026-01-01"],
    "settle accept-gap": [SERIAL, "main", "--reason", "r", "--second-operator", "finance"],
    "settle approve": ["e"],
    "settle unexpire": [SERIAL, "main", "--reason", "r"],
    "notice send": ["--smpp", "127.0.0.1:1", "--system-id", "office"],
    "notice again": ["move/1"],
    "notice statements": ["2026-01"],
    "notice opt-out": ["M1", "payment"],
    "notice language": ["M1", "en"],
    "notice quiet": ["22:00-07:00"],
    "report shift": ["day", "09:00", "18:00"],
    "report plan": ["2026-01-01", "off,off,off,off,off,off,off"],
    "report day": ["off", "2026-01-01"],
    "report tag": ["010063E9AE", "2026-01-01"],
    "report correct": ["M1", "2026-01-01", "09:00", "in", "--reason", "r"],
    "report approve": ["c"],
    "report corrections": ["--month", "2026-01"],
    "report attendance": ["--month", "2026-01"],
    "report punches": ["--from", "2026-01-01"],
    "wallet voucher make": ["b1", "2", "50", "vouchers", "--expires", "2027-12-31"],
    "wallet voucher cancel": ["b1"],
    "wallet grant make": ["b1", "202612", "50", "--expires", "2027-12-31"],
    "web token add": [TERMINAL, "token"],
    "web token revoke": ["t"],
    "terminal adms approve": ["A1", "--name", "gate"],
    "terminal adms retire": ["A1"],
    "settle propose": ["e", "--from", "bank", "--to", "refunds", "--amount-fen", "1", "--note", "n"],
}
"""What a command needs to be understood; those not named here need nothing."""

OPEN = {
    "init": "there is no operator yet",
    "ota decode": "works on what it is given, with keys it is given",
    "ota encode": "works on what it is given, with keys it is given",
    "doctor": "looks at the machine, not into the databases",
    "demo": "works on an installation of its own, which it throws away",
    "sim card": "simulated hardware",
    "sim sam": "simulated hardware",
    "sim mother": "simulated hardware",
    "sim authentication": "simulated hardware",
    "sim make": "simulated hardware",
    "sim sim": "simulated hardware",
    "sim door": "simulated hardware",
    "sim pn532": "simulated hardware",
    "sim uid": "simulated hardware",
    "sim phone": "simulated hardware",
    "sim smsc": "simulated hardware",
    "sim batch": "simulated hardware",
    "apdu send": "whoever holds a card and a reader can do this",
    "apdu atr": "whoever holds a card and a reader can do this",
    "terminal pay": "the till's own: its SAM is its authority",
    "terminal undo": "the till's own",
    "terminal shift": "the till's own",
    "terminal take-list": "the till's own: lists are signed",
    "terminal export": "the till's own",
    "terminal acknowledge": "the till's own",
    "terminal status": "the till's own",
    "sim terminal": "simulated hardware",
    "terminal scan": "says HELLO, as whoever holds the cable can",
    "terminal identity make": "a key that only an authority's token makes good for something",
    "terminal identity show": "the installer's own token",
    "terminal authority make": "a key that only terminals which are given it obey",
    "terminal authority token": "the authority's key is its authority",
    "terminal authority config": "the authority's key is its authority",
    "terminal authority site": "the authority's key is its authority",
    "terminal authority firmware": "the authority's key is its authority",
    "terminal authority keys": "the authority's key is its authority",
    "terminal check-report": "whoever has a record and the public key can check it",
    "terminal info": "the terminal checks the installer's token",
    "terminal pair": "the terminal checks the installer's token",
    "terminal clock": "the terminal checks the installer's token",
    "terminal push": "the terminal checks the installer's token",
    "terminal rollback": "the terminal checks the installer's token",
    "terminal load-keys": "the terminal checks two installers' tokens",
    "terminal param": "the terminal checks the installer's token",
    "terminal collect": "the terminal checks the installer's token",
    "terminal collect-site": "the terminal checks the installer's token",
    "terminal diagnose": "the terminal checks the installer's token",
    "terminal provision": "the terminal checks the installer's token",
    "terminal report": "the terminal checks the installer's token",
    "terminal run": "the terminal's own: its SAM is its authority",
    "terminal head": "its SAM is its authority, and the line's key",
    "terminal schema": "says what a file may hold",
}


_LINE = ["--port", "no-port", "--identity", "an.key"]
_TILL = ["--terminal", "till.toml", "--sam-reader", "sim:sam.img"]
OPEN_ARGUMENTS: dict[str, list[str]] = {
    "ota decode": ["027100000b0abfff4f00000000000009"],
    "ota encode": ["0084000004", "--counter", "1", "--spi", "0001"],
    "sim card": ["--vpcd-port", "9"],
    "sim sam": ["--vpcd-port", "9"],
    "sim mother": ["--vpcd-port", "9"],
    "sim authentication": ["--vpcd-port", "9"],
    "sim make": ["card.img"],
    "sim sim": ["--vpcd-port", "9"],
    "sim phone": ["sim.img"],
    "sim smsc": ["sims"],
    "sim batch": ["chips"],
    "apdu send": ["00840000 08"],
    "terminal pay": ["1", *_TILL],
    "terminal undo": _TILL,
    "terminal shift": ["open", *_TILL],
    "terminal take-list": ["file", *_TILL],
    "terminal export": ["file", *_TILL],
    "terminal acknowledge": ["1", *_TILL],
    "terminal status": _TILL,
    "sim terminal": ["till", "--pty"],
    "sim pn532": ["reader", "--pty"],
    "sim uid": ["reader", "--pty"],
    "sim door": ["line", "--pty"],
    "terminal head": ["--port", "no-port", "--address", "5", "--sam-reader", "sim:sam.img"],
    "terminal scan": ["--port", "no-port"],
    "terminal identity make": ["an.key", "--name", "An"],
    "terminal identity show": ["--identity", "an.key"],
    "terminal authority make": ["site.key"],
    "terminal authority token": ["an.key.request", "--site", "east", "--authority", "site.key"],
    "terminal authority site": ["--plan", "site.toml", "--authority", "site.key"],
    "terminal authority config": ["c.toml", "c.signed", "--serial", "POS-1", "--authority", "site.key"],
    "terminal authority firmware": ["f", "f.signed", "--for", "M", "--version", "1", "--authority", "site.key"],
    "terminal authority keys": [
        "k",
        "k.signed",
        "--serial",
        "POS-1",
        "--x25519",
        "00" * 32,
        "--version",
        "1",
        "--authority",
        "site.key",
    ],
    "terminal rollback": _LINE,
    "terminal load-keys": ["file", "--second", "bo.key", *_LINE],
    "terminal info": _LINE,
    "terminal check-report": ["record.json", "--authority-public", "site.key.pub"],
    "terminal pair": ["--fingerprint", "A" * 26, *_LINE],
    "terminal clock": _LINE,
    "terminal push": ["file", *_LINE],
    "terminal param": _LINE,
    "terminal collect": ["folder", *_LINE],
    "terminal collect-site": ["folder", "--plan", "site.toml", "--identity", "an.key"],
    "terminal diagnose": _LINE,
    "terminal provision": ["--plan", "site.toml", "--identity", "an.key"],
    "terminal report": ["record", "--plan", "site.toml", "--identity", "an.key"],
    "terminal run": _TILL,
    "terminal schema": ["pos"],
}


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every verb of the whole tree with its path."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner, f"{path} {name}".strip())
    else:
        yield path, command


COMMANDS = dict(leaves(cli.root))


def permission_of(command: click.Command) -> Permission | None:
    """The permission that a command asks for, None when it asks for none."""
    found: Permission | None = vars(command.callback).get("permission")
    return found


GUARDED = {path: permission for path, c in COMMANDS.items() if (permission := permission_of(c)) is not None}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform and an enterprise with an operator of each role, named like the role."""
    folder: Path = tmp_path_factory.mktemp("office") / "office"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "COST", QUICK)
        credential = Credential.make(SECRET, bytes, QUICK)
        made = Installation(folder, lambda _: SECRET, operator="platform")
        patch.setattr(Credential, "make", lambda *_: credential)
        made.create(SECRET, SECRET, QUICK)
        made.close()
        with Installation(folder, lambda _: SECRET, operator="platform", enterprise_id=ENTERPRISE, platform=True) as p:
            p.open_enterprise(ENTERPRISE, "Example", 480, credential)
        with Database(folder / f"enterprise-{ENTERPRISE}.sqlite", "enterprise") as db, db.write() as tx:
            admin = operators.get(tx, ENTERPRISE, "admin")
            for role in (Role.ADMINISTRATOR, Role.ISSUER, Role.FINANCE, Role.AUDITOR):
                operators.add(tx, admin, ENTERPRISE, role.value, role, credential)
            enterprises.change_setting(tx, admin, ENTERPRISE, "balance_expires", "2020-12-31")
        with Database(folder / "platform.sqlite", "platform") as db, db.write() as tx:
            platform = operators.get(tx, PLATFORM, "platform")
            assert platform.role is Role.PLATFORM
    return folder


def outcome(folder: Path, role: Role, path: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """Run a command as the operator of a role; returns exit code and the error."""
    session = Session(db=folder, enterprise=ENTERPRISE, operator=role.value, json=True, quiet=True, no_input=True)
    code = cli.run([*path.split(), *(ARGUMENTS | OPEN_ARGUMENTS).get(path.partition(" --")[0], [])], session)
    err = capsys.readouterr().err
    return code, json.loads(err.splitlines()[-1]) if err else {}


def dump(folder: Path) -> list[str]:
    """Everything in both databases but what a proven log-in itself touches."""
    lines = []
    for name, role in (("platform.sqlite", "platform"), (f"enterprise-{ENTERPRISE}.sqlite", "enterprise")):
        with Database(folder / name, role) as db, db.read() as tx:  # type: ignore[arg-type]  # two literals
            for (table,) in tx.all("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"):
                lines += [f"{table} {tuple(row)}" for row in tx.all(f'SELECT * FROM "{table}"')]
    return lines


def test_every_command_names_its_permission_or_a_reason() -> None:
    """A new command can't slip in without a permission, and the tables here name no command that is gone."""
    assert set(COMMANDS) == set(GUARDED) | set(OPEN)
    assert set(ARGUMENTS) <= set(GUARDED)
    assert set(GUARDED.values()) <= set(Permission)


@pytest.mark.parametrize("role", list(Role))
def test_who_lacks_the_permission_is_refused(
    role: Role, installation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command that a role may not run ends with exit 1 and the permission, and changes nothing."""
    folder = tmp_path / "office"
    shutil.copytree(installation, folder)
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    monkeypatch.setenv("ONECARD_OPERATOR_SECRET_FILE", str(secret))
    before = dump(folder)
    lacking = [path for path, permission in GUARDED.items() if permission not in PERMISSIONS[role]]
    assert lacking
    for path in lacking:
        code, error = outcome(folder, role, path, capsys)
        assert (code, error.get("reason")) in ((1, "permission"), (1, "operator")), f"{role} {path}: {code} {error}"
    assert dump(folder) == before


def test_who_has_it_gets_past_the_door(
    installation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An auditor lists, an administrator adds: the same door lets in who may."""
    folder = tmp_path / "office"
    shutil.copytree(installation, folder)
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("ONECARD_OPERATOR_SECRET_FILE", str(tmp_path / "secret"))
    for role, path in (
        (Role.AUDITOR, "member list"),
        (Role.ADMINISTRATOR, "member add"),
        (Role.FINANCE, "settle gaps"),
        (Role.ISSUER, "card list"),
        (Role.PLATFORM, "enterprise list"),
    ):
        assert outcome(folder, role, path, capsys) == (0, {}), path


def test_dry_run_of_any_command_changes_nothing(
    installation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under --dry-run each command there is leaves databases, keys and folder as they were, or says that it can't."""
    folder = tmp_path / "office"
    shutil.copytree(installation, folder)
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        register(value, name)
        Path(name).write_text(value + "\n")
        monkeypatch.setenv(f"ONECARD_{name}_FILE", name)

    def everything() -> list[str]:
        files = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and ".sqlite" not in p.name]
        return dump(folder) + [f"{p} {sha256(p.read_bytes()).hexdigest()}" for p in files]

    before = everything()
    done = set()
    for path in COMMANDS.keys() - {"demo"}:
        code, said = -1, dict[str, Any]()
        for role in (Role.ADMINISTRATOR, Role.PLATFORM):  # an act of the enterprise, or of the platform
            if code in (-1, 1):
                code, said = outcome(folder, role, f"{path} --dry-run", capsys)
        assert code in (0, 2, 3, 4), f"{path}: {code} {said}"
        assert "--help" not in said.get("message", ""), f"{path} is not understood: {said}"
        assert everything() == before, path
        done |= {path} if code == 0 else set()
    assert {"member add", "key make", "blacklist build", "audit seal", "settle propose", "enterprise set"} <= done
