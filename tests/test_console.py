"""What every command shares: options anywhere, output, amounts, secrets, exit codes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import click
import pytest

import cli
from cardlib import errors
from cardlib.money import yuan
from console import Amount, Hex, LeafCommand, Session, pass_session, table


@click.command(cls=LeafCommand)
@click.option("--amount", type=Amount())
@pass_session
def probe(session: Session, amount: int | None) -> None:
    session.emit({"db": session.db, "json": session.json, "enterprise": session.enterprise, "amount_fen": amount})


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.Root, "get_command", lambda *_: probe)


def outcome(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(args, Session())
    out, err = capsys.readouterr()
    return code, out, err


def test_global_options_before_and_behind_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """A global option counts wherever it stands; the one behind the verb wins."""
    _, out, _ = outcome(["--json", "--enterprise", "7", "probe", "--db", "x", "--enterprise", "8"], capsys)
    assert json.loads(out) == {"db": "x", "json": True, "enterprise": 8, "amount_fen": None}


def test_environment_and_config_twins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each global option has its ONECARD_ variable and its line in the config file; the command line wins."""
    config = tmp_path / "onecard.toml"
    config.write_text("enterprise = 5\njson = true\n", encoding="utf-8")
    monkeypatch.setenv("ONECARD_DB", "from-env")
    _, out, _ = outcome(["--config", str(config), "probe"], capsys)
    assert json.loads(out) == {"db": "from-env", "json": True, "enterprise": 5, "amount_fen": None}
    _, out, _ = outcome(["--config", str(config), "probe", "--enterprise", "6"], capsys)
    assert json.loads(out)["enterprise"] == 6


def test_wrong_config_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unknown names, broken TOML and missing files are usage errors that name the file."""
    config = tmp_path / "c.toml"
    for text in ("colour = 1", "= 3"):
        config.write_text(text, encoding="utf-8")
        code, _, err = outcome(["--config", str(config), "probe"], capsys)
        assert (code, "c.toml" in err) == (2, True)
    assert outcome(["--config", str(tmp_path / "none"), "probe"], capsys)[0] == 2


@pytest.mark.parametrize(("text", "fen"), [("12", 1200), ("0.01", 1), ("12.5", 1250), ("999999.99", 99999999)])
def test_amounts(text: str, fen: int) -> None:
    """Yuan with at most two decimals become fen without floating point."""
    assert Amount().convert(text, None, None) == fen


@pytest.mark.parametrize(
    "text", ["0", "0.00", "-1", "1.234", "1e3", "nan", "", ".5", "1000000", "１２", "9" * 40, "1,5", "12.٣"]
)
def test_wrong_amounts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Zero, negative, too large and anything that is no plain number is a usage error."""
    code, _, err = outcome(["probe", "--amount", text], capsys)
    assert (code, "amount" in err) == (2, True)


def test_hex_argument() -> None:
    """Hex is read with spaces and refused otherwise, without repeating what was typed."""
    assert Hex().convert("00 a4", None, None) == b"\0\xa4"
    with pytest.raises(click.BadParameter) as caught:
        Hex(2).convert("zz", None, None)
    assert "zz" not in caught.value.message
    with pytest.raises(click.BadParameter):
        Hex(2).convert("00", None, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("limit", "too much"), 1),
        (errors.ConfigError("no"), 2),
        (errors.FormatError("no"), 2),
        (errors.NotFound("no"), 3),
        (errors.Conflict("no"), 4),
        (errors.CardRemoved("gone"), 5),
        (errors.LineTimeout("late"), 5),
        (errors.StatusError(0x6982, b"\0\xb0\x95\0"), 6),
        (errors.MacMismatch("no"), 7),
        (errors.CheckFailed("no"), 8),
        (errors.OutcomeUnknown(4, "present the card again"), 9),
        (errors.DatabaseError("busy"), 10),
        (PermissionError(errno.EACCES, "Permission denied", "file"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "file"), 10),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error ends with the exit code of the design, in words and as JSON on stderr."""

    @click.command(cls=LeafCommand)
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli.Root, "get_command", lambda *_: fail)
    assert outcome(["fail"], capsys)[0] == code
    ended, out, err = outcome(["fail", "--json"], capsys)
    assert (ended, out) == (code, "")
    assert json.loads(err)["exit"] == code


def test_usage_error_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown option exits with 2 and says where help is."""
    code, _, err = outcome(["probe", "--colour"], capsys)
    assert code == 2
    assert "--help" in err


def test_confirmation_refused_is_not_success(capsys: pytest.CaptureFixture[str]) -> None:
    """An irreversible act without its word is refused with exit 1's error, never done silently."""
    with pytest.raises(errors.Refused) as caught:
        Session(no_input=True).confirm("CANCEL", "This ends the card.")
    assert caught.value.reason == "not_confirmed"
    Session(no_input=True).confirm("CANCEL", "This ends the card.", "CANCEL")


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is a file's first line; with nobody to ask, the error says which variable to set."""
    file = tmp_path / "secret"
    file.write_text("correct horse\nrest\n", encoding="utf-8")
    session = Session(no_input=True)
    assert session.secret("key passphrase", file) == "correct horse"
    with pytest.raises(errors.ConfigError, match="ONECARD_KEY_PASSPHRASE_FILE"):
        session.secret("key passphrase")
    monkeypatch.setenv("ONECARD_KEY_PASSPHRASE_FILE", str(file))
    assert session.secret("key passphrase") == "correct horse"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(errors.ConfigError, match="empty"):
        session.secret("key passphrase")
    with pytest.raises(errors.ConfigError, match="can't be read"):
        session.secret("key passphrase", tmp_path / "missing")


def test_unknown_reader_scheme() -> None:
    """A reader with an unknown scheme is refused with the schemes that exist."""
    with pytest.raises(errors.ConfigError, match="sim:"):
        Session(openers={"sim": lambda _: pytest.fail("not opened")}).open_card("usb:1")


def test_tables_and_money() -> None:
    """Rows align under their heads; money shows two decimals, also below zero."""
    lines = list(table([{"card": b"\x01\x02", "fen": 5}, {"card": None, "fen": 12345}]))
    assert lines == ["card  fen", "0102  5", "-     12345"]
    assert [yuan(5), yuan(-1250)] == ["0.05", "-12.50"]


def test_progress_counts_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress passes all items through, and tells the last count on stderr unless quiet."""
    assert list(Session().progress(range(3), 3, "cards")) == [0, 1, 2]
    assert "cards: 3/3" in capsys.readouterr().err
    assert list(Session(quiet=True).progress(range(3), 3, "cards")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
