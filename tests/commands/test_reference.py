"""The command tree explains itself: help, the page made from it, completion by the shell."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest

import cli
from console import Session
from tests.commands.test_permissions import COMMANDS

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"backoffice", "terminals", "keymgmt", "simulator", "cryptography"}


def options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option)]


def test_every_option_has_help() -> None:
    """Each option of each command says what it does, and its help names each argument."""
    silent = [
        f"{path} {one.opts}" for path, c in COMMANDS.items() for one in options(c) if not (one.help or "").strip()
    ]
    for path, command in COMMANDS.items():
        for one in command.params:
            if isinstance(one, click.Argument) and not isinstance(one.type, click.Choice):
                named = (one.name or "").upper() in (command.help or "")
                silent += [] if named else [f"{path} {one.name}"]
    assert not silent


def test_every_verb_takes_the_global_options() -> None:
    """What may stand before the noun may stand behind each verb, and each option has its variable."""
    wanted = {option.opts[0] for option in options(cli.root)} - {"--config", "--version"}
    for path, command in COMMANDS.items():
        assert wanted <= {option.opts[0] for option in options(command)}, path
    assert {option.envvar for option in options(cli.root) if option.opts[0] in wanted} == {
        f"ONECARD_{name[2:].upper().replace('-', '_')}" for name in wanted
    }


def test_page_is_up_to_date() -> None:
    """docs/commands.md is what docs/generate.py makes of the commands as they are."""
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["page"]()
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == made, "run: python docs/generate.py"
    assert all(f" {path}" in made for path in COMMANDS)


def completed(words: str, number: int, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> set[str]:
    """What the shell offers for the word of this number."""
    for name, value in (("COMP_WORDS", words), ("COMP_CWORD", str(number)), ("_ONECARD_COMPLETE", "bash_complete")):
        patch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.run([], Session())
    assert ended.value.code == 0
    return {line.partition(",")[2] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("onecard ", 1, set(cli.NOUNS)),
        ("onecard se", 1, {"settle"}),
        ("onecard terminal ", 2, {path.split()[1] for path in COMMANDS if path.startswith("terminal ")}),
        ("onecard card re", 2, {"reissue", "rekey"}),
        ("onecard key state card 1 ret", 5, {"retiring"}),
        ("onecard operator add x --role iss", 5, {"issuer"}),
        ("onecard --log-level w", 2, {"warning"}),
    ],
)
def test_completion(
    words: str, number: int, offered: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell completes nouns, verbs of both rooms of a noun, choices and values of options."""
    assert completed(words, number, capsys, monkeypatch) == offered


def test_completion_of_nouns_imports_no_room() -> None:
    """The tabulator key behind ``onecard`` is answered without loading what the nouns stand for."""
    program = "import sys, cli\ntry: cli.main()\nfinally: sys.stderr.write(' '.join(sys.modules))"
    env = {"COMP_WORDS": "onecard ", "COMP_CWORD": "1", "_ONECARD_COMPLETE": "bash_complete", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "plain,reissue" not in done.stdout
    assert "plain,card" in done.stdout
    assert not HEAVY & {module.split(".")[0] for module in done.stderr.split()}


def test_bash_takes_the_completion_script(tmp_path: Path) -> None:
    """``_ONECARD_COMPLETE=bash_source onecard`` prints a script that bash runs, and that completes ``onecard``."""
    command = tmp_path / "onecard"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/cli.py" "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_ONECARD_COMPLETE=bash_source onecard)"; complete -p onecard; '
        'COMP_WORDS=(onecard wal); COMP_CWORD=1; _onecard_completion onecard; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-ec", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "wallet"
