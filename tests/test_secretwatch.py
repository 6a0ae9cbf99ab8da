"""The search for secrets in output must itself find them."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest

from cardlib.crypto import make_key
from tests.secretwatch import WATCH, Watch, register

KEY = bytes.fromhex("86642F89B09840AE6B57F4131FAD92F7")
"""DPK of the vectors' world; it is spelt in two halves below where the whole would itself be found."""
FORMS = {
    "upper": KEY.hex().upper(),
    "lower": KEY.hex(),
    "spaced": KEY.hex(" "),
    "colons": KEY.hex(":").upper(),
    "within": f"80D4{KEY.hex()}9000",
    "odd": f"a{KEY.hex()}",
    "base64": base64.b64encode(KEY).decode(),
    "url base64": base64.urlsafe_b64encode(KEY).decode().rstrip("="),
    "inner base64": base64.b64encode(b"xy" + KEY + b"z").decode(),
    "decimal": str(list(KEY)),
    "repr": repr(KEY),
    "repr of more": repr(b"ab'" + KEY),
    "raw": (b"ab" + KEY).decode("utf-8", "surrogateescape"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_key_is_found(form: str) -> None:
    """A key is found in every form that a program could print it in, between other text."""
    watch = Watch()
    watch.register(KEY, "key")
    assert watch.search(f"before {FORMS[form]} after") == {"key"}


@pytest.mark.parametrize("text", ["", "no secret", KEY.hex()[:-2], KEY.hex(" ")[3:], str(list(KEY[1:])), "12345678901"])
def test_other_text_is_no_secret(text: str) -> None:
    """Neither a part of a key nor a number that holds a PIN's digits is mistaken for it."""
    watch = Watch()
    watch.register(KEY, "key")
    watch.register("567890", "PIN")
    assert watch.search(text) == set()
    assert watch.search(f"{text} PIN=567890;") == {"PIN"}


def test_trivial_and_short_values() -> None:
    """All zeros is nobody's key; what is too short to be recognised is refused rather than forgotten."""
    watch = Watch()
    watch.register(bytes(16), "zeros")
    assert watch.search(bytes(16).hex()) == set()
    for value in (b"1234567", "123"):
        with pytest.raises(AssertionError):
            watch.register(value, "short")


LEAKY = """
import logging, subprocess, sys
import click
from click.testing import CliRunner
from cardlib.crypto import make_key
from cardlib.crypto.sealing import Argon2Params
from keymgmt.store import FileStore
from tests.secretwatch import register

KEY = bytes.fromhex("86642F89B09840AE" "6B57F4131FAD92F7")

def test_print(): print(KEY.hex())
def test_log(): logging.getLogger("x").debug("key %s", KEY.hex())
def test_capsys(capsys): print(KEY.hex()); capsys.readouterr()
def test_child(): subprocess.run([sys.executable, "-c", f"print({KEY!r}.hex())"], capture_output=True)
def test_command(): CliRunner().invoke(click.Command("x", callback=lambda: click.echo(KEY.hex())))
def test_failure(): assert KEY.hex() == ""
def test_file(tmp_path): (tmp_path / "a.trace").write_text(KEY.hex())
def test_new_key(): make_key(KEY[::-1]); print(KEY[::-1].hex())
def test_pin(): register("4711-" "0815"); print("PIN 4711-" "0815")
def test_passphrase(tmp_path):
    FileStore.create_file(tmp_path / "keys", b"open " b"sesame", Argon2Params(64, 1, 1)).close()
    print("open " "sesame")
def test_clean(): print("nothing")
"""


def test_a_leak_fails_its_test(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way a secret gets out, its test fails, also in a worker of xdist, and its value is not shown."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makepyfile(LEAKY)
    result = pytester.runpytest_subprocess("-p", "tests.conftest", "-n", "1", "--log-level=DEBUG")
    # The file is looked at when its test, passed by itself, is torn down.
    result.assert_outcomes(failed=9, passed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        ["*master_keys DPK in Captured stdout call*", "*master_keys DPK in file a.trace*"]
    )
    register("4711-0815")
    assert not WATCH.search(result.stdout.str())


def test_keys_show_no_value() -> None:
    """A key's repr, and the error about a wrong one, are clean."""
    key = make_key(KEY)
    assert not WATCH.search(f"{key!r} {key} {sys.getsizeof(key)}")
