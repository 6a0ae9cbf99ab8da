"""An installation whose keys are in a token, by commands; and what keystore.toml may say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backoffice import keystores
from backoffice.installation import Installation
from backoffice.keystores import Token
from cardlib.errors import ConfigError
from keymgmt.keys import KeyRef
from keymgmt.pkcs11 import Pkcs11Store
from tests.commands.test_life import HOLDER, Office, _secrets
from tests.commands.test_permissions import ENTERPRISE
from tests.softhsm import MODULE, PIN, TOKEN, softhsm

__all__ = ["_secrets"]
INIT = ("init", "--hsm", str(MODULE), "--token", TOKEN)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """An empty folder, a fresh token, its PIN in a file."""
    (tmp_path / "pin").write_text(PIN + "\n")
    monkeypatch.setenv("ONECARD_HSM_PIN_FILE", str(tmp_path / "pin"))
    with softhsm(tmp_path / "hsm"):
        yield Office(tmp_path)


def test_life_with_a_token(office: Office) -> None:
    """Card and list are made with keys that never leave the token; each use is in the audit log."""
    assert office(*INIT, enterprise=None, dry_run=True)["dry_run"]
    assert not office.db.exists()
    made = office(*INIT, enterprise=None)
    assert (made["token"], made["keys_found"]) == (TOKEN, 0)
    assert not (office.db / "keys.store").exists()
    keys = office("key", "list", enterprise=None)
    assert {key["state"] for key in keys} == {"active"}
    office("enterprise", "register", "示范企业")
    office("enterprise", "subscribe", "payment")
    office("member", "add", HOLDER, "王小明")
    office.vendor(HOLDER)
    issued = office.at(HOLDER, "card", "issue", HOLDER, "--platform-operator", "admin")
    office.at(HOLDER, "wallet", "recharge", "50")
    assert office.at(HOLDER, "card", "show", issued["card"])["state"] == "active"
    key = office("blacklist", "key")
    assert office("blacklist", "key") == key
    used = [row for row in office("audit", "list", enterprise=None) if row["event"] == "key.used"]
    assert any("key:card_control.1" in str(row) and "card issue" in str(row) for row in used)
    assert any(row["subject"] == f"key:purchase.1.{ENTERPRISE}" for row in used), "an enterprise's keys too"
    office("key", "make", "load", "2", enterprise=None)
    told = office("key", "make", "load", "3", "--algorithm", "sm4", code=2, enterprise=None)
    assert "SM4" in str(told)
    office("key", "state", "load", "2", "destroyed", "--confirm", "DESTROY", enterprise=None)
    assert office(*INIT, code=4, enterprise=None)


def test_wrong_secrets(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong PIN or passphrase ends with exit 7 and changes nothing; no list is signed with a mistyped one."""
    wrong = tmp_path / "wrong"
    wrong.write_text("neither PIN nor passphrase\n")
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_HSM_PIN_FILE", str(wrong))
        assert "PIN" in str(office(*INIT, code=7, enterprise=None))
        assert not (office.db / "platform.sqlite").exists()
    office(*INIT, enterprise=None)
    office("enterprise", "register", "示范企业")
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_HSM_PIN_FILE", str(wrong))
        assert "PIN" in str(office("key", "list", code=7, enterprise=None))
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_KEY_PASSPHRASE_FILE", str(wrong))
        assert "passphrase" in str(office("blacklist", "key", code=7))
    assert not list(office.db.glob("lists-*"))
    office("blacklist", "key")


def test_interrupted_init_is_finished(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """An init that was interrupted among its keys goes on with those there are; later ones take over what is there."""
    create = Pkcs11Store.create
    made: list[KeyRef] = []

    def stop(store: Pkcs11Store, ref: KeyRef, *args: Any) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(ref)
        return create(store, ref, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Pkcs11Store, "create", stop)
        assert office.run(*INIT, enterprise=None)[0] == 130
    assert office(*INIT, enterprise=None)["keys_found"] == 5
    keys = office("key", "list", enterprise=None)
    assert {key["state"] for key in keys} == {"active"}
    shutil.rmtree(office.db)
    assert office(*INIT, enterprise=None)["keys_found"] == len(keys)
    assert [key["kcv"] for key in office("key", "list", enterprise=None)] == [key["kcv"] for key in keys]


def test_what_init_refuses(office: Office) -> None:
    """A module or token that is not there, half a choice, and another token than keystore.toml names."""
    assert office("init", "--hsm", str(MODULE), code=2, enterprise=None)
    assert office("init", "--token", TOKEN, code=2, enterprise=None)
    assert office("init", "--hsm", office.path("none.so"), "--token", TOKEN, code=2, enterprise=None)
    assert office("init", "--hsm", str(MODULE), "--token", "other", code=3, enterprise=None)
    assert office("init", "--hsm", str(MODULE), "--token", "x" * 33, code=2, enterprise=None)
    assert not office.db.exists()
    office.db.mkdir()
    keystores.write(office.db, Token(MODULE, TOKEN))
    assert "another key store" in str(office("init", "--hsm", "/another.so", "--token", TOKEN, code=2, enterprise=None))
    assert office("init", enterprise=None)["token"] == TOKEN  # what the file says


def test_doctor_names_the_token(office: Office) -> None:
    """The doctor looks for the token without its PIN, and finds it missing."""
    office(*INIT, enterprise=None)

    def look() -> Any:
        out = office.run("doctor", enterprise=None)[1]
        return next(line for line in out.split("{") if '"key store"' in line)

    assert f"token {TOKEN}" in look()
    keystores.write(office.db, Token(MODULE, "other"))
    assert "no token other" in look()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "kind is None"),
        ('kind = "cloud"', "it is .file. or .pkcs11."),
        ("kind = 1", "kind is 1"),
        ('kind = "file"\nmodule = "/m"', "module unknown"),
        ('kind = "pkcs11"\nmodule = "/m"', "token missing"),
        ('kind = "pkcs11"\nmodule = "/m"\ntoken = "t"\npin = "1"', "pin unknown.*never written"),
        ('kind = "pkcs11"\nmodule = 1\ntoken = "t"', "module is text"),
        ('kind = "pkcs11"\nmodule = "m"\ntoken = "t"', "whole path"),
        ('kind = "pkcs11"\nmodule = "/m"\ntoken = ""', "1 to 32 bytes"),
        ('kind = "pkcs11"\nmodule = "/m"\ntoken = "%s"' % ("x" * 33), "1 to 32 bytes"),
        ('kind = "pkcs11"\nmodule = "/m\\n"\ntoken = "t"', "whole path"),
        ("kind = ", "can't be read"),
        ("\udcff", "can't be read"),
    ],
)
def test_keystore_file_is_checked(tmp_path: Path, text: str, told: str) -> None:
    """Every mistake in keystore.toml is named with its field, before any secret is asked for."""
    (tmp_path / keystores.SETTINGS_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=told):
        keystores.read(tmp_path)

    def never(name: str) -> str:
        raise AssertionError(name)

    with Installation(tmp_path, never) as installation, pytest.raises(ConfigError, match=told):
        _ = installation.keys


def test_keystore_file_is_read_back(tmp_path: Path) -> None:
    """What is written is read; no file, and kind file, are the file store."""
    assert keystores.read(tmp_path) is None
    token = Token(Path('/opt/h"s\\m/libé.so'), 'a "b" \\ 钥')
    keystores.write(tmp_path, token)
    assert keystores.read(tmp_path) == token
    (tmp_path / keystores.SETTINGS_FILE).write_text('kind = "file"\n')
    assert keystores.read(tmp_path) is None
