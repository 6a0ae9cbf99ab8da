"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

import cli

ROOT = Path(__file__).parent.parent
ROOMS = ["cardlib", "keymgmt", "simulator", "terminals", "backoffice"]
DOORS = ["cli.py", "console.py"]
MAX_LINES = 70
HEAVY = {
    "cryptography",
    "openpyxl",
    "sqlite_utils",
    "sqlite3",
    "smartcard",
    "cbor2",
    "pyroaring",
    "pytest",
    "hypothesis",
    "textual",
}
LOCKS = ["requirements.lock", "requirements-pcsc.lock"]
PEERS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "peers").glob("*.lock"))]
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md")))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[Path]:
    """All files that git holds, as far as they are still there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def sources() -> list[Path]:
    """The product's own modules."""
    return [ROOT / door for door in DOORS] + [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def where(path: Path, line: int) -> str:
    """A place as editors understand it."""
    return f"{path.relative_to(ROOT)}:{line}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a module, inner ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_are_short() -> None:
    """No function of the product has more than 70 lines."""
    long = [
        f"{where(path, function.lineno)} {function.name}"
        for path in sources()
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno >= MAX_LINES
    ]
    assert not long


def test_tests_say_what_must_hold() -> None:
    """Every test has a docstring of one line."""
    silent = [
        f"{where(path, function.lineno)} {function.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for function in functions(path)
        if function.name.startswith("test_") and (ast.get_docstring(function) or "\n").count("\n")
    ]
    assert not silent


def test_broad_excepts_raise_again_or_give_a_reason() -> None:
    """Whoever catches everything raises it again, or says beside the except why not."""
    careless = []
    for path in sources():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            raises = any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
            if broad and not raises and "# " not in lines[node.lineno - 1]:
                careless.append(where(path, node.lineno))
    assert not careless


def test_suppressed_checks_give_a_reason() -> None:
    """Each noqa, type: ignore and ignored lint rule has its reason beside it; a foreign signature is one."""
    bare = re.compile(r"# (noqa(: (?!ANN401|ARG)[A-Z0-9, ]+)?|type: ignore(\[[\w, -]+\])?)\s*$")
    found = [
        where(path, number)
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    inside = itertools.dropwhile(
        lambda line: line != "[tool.ruff.lint]", (ROOT / "pyproject.toml").read_text().splitlines()
    )
    rules = [line for line in inside if re.match(r' *"[A-Z]+[0-9]*",', line)]
    assert rules
    assert not [*found, *(rule for rule in rules if "# " not in rule)]


def test_nothing_is_left_undone() -> None:
    """No stub, no reminder, and no test that is not run."""
    undone = re.compile(
        r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b|pytest\.(skip|xfail|importorskip)|mark\.(skip|xfail)"
    )
    found = [
        where(path, number)
        for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if undone.search(line)
    ]
    assert not found


def test_files_name_no_machine_and_no_registry() -> None:
    """What is in git works anywhere: no path of one machine, no address of one registry."""
    names = [
        "/home/",
        "/work/",
        "/root/",
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "debian" + ".org",
        "ubuntu" + ".com",
    ]
    names += ["npmjs" + ".org", "PIP_INDEX" + "_URL", "--index" + "-url"]
    machine = re.compile(rb"(?<![\w.])" + b"|".join(re.escape(name.encode()) for name in names))
    found = [
        where(path, number)
        for path in tracked()
        if path not in {Path(__file__), ROOT / "script/lock"}  # these say what must not appear in other files
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if machine.search(line)
    ]
    assert not found


@pytest.mark.parametrize("name", [*LOCKS, *PEERS])
def test_lock_has_hashes_and_no_address(name: str) -> None:
    """A locked package is pinned and has hashes; where it comes from is up to the machine."""
    text = (ROOT / name).read_text()
    requirements = re.findall(
        r"^([\w.-]+)==[^ ]+ \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    assert len(requirements) == text.count("==") > 0
    assert "://" not in text


def test_compiled_package_is_locked_apart() -> None:
    """A machine without a compiler can install the main lock file: pyscard is in the other one only."""
    assert "pyscard" not in (ROOT / LOCKS[0]).read_text()


def test_locks_hold_every_dependency() -> None:
    """What pyproject.toml asks for is in one of the lock files."""
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    locked = set(re.findall(r"^([\w.-]+)==", "".join((ROOT / name).read_text() for name in LOCKS), re.MULTILINE))
    assert {re.split("[<>=]", requirement)[0] for requirement in [*wanted, "hatchling", "setuptools"]} <= locked


@pytest.mark.parametrize("script", sorted((ROOT / "script").iterdir()), ids=lambda path: str(path.name))
def test_scripts_are_posix_and_can_be_started(script: Path) -> None:
    """Scripts parse in the smallest shell and carry their execute bit."""
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_start_imports_nothing_heavy() -> None:
    """``onecard --help`` needs neither cryptography nor a database nor a reader."""
    program = (
        "import sys, cli\nsys.argv[1:] = ['--help']\ntry: cli.main()\nfinally: sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Commands" in done.stdout
    assert not HEAVY & {module.split(".")[0] for module in done.stderr.split()}


def test_rooms_do_not_use_the_door() -> None:
    """The door opens rooms, not the other way round; what commands share knows the language of cards only."""
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import cli|from cli import)\b", text, re.MULTILINE), path
    assert set(re.findall(r"^\s*from (\w+)[\w.]* import", (ROOT / "console.py").read_text(), re.MULTILINE)) & {
        *ROOMS
    } <= {"cardlib"}


def test_wheel_holds_all_that_runs(tmp_path: Path) -> None:
    """An installed copy has modules, profiles, migrations and samples, and no tests."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    rooms = tuple(f"{room}/" for room in ROOMS)
    wanted = {str(path.relative_to(ROOT)) for path in tracked()}
    wanted = {name for name in wanted if name.startswith(rooms) or name in DOORS}
    assert wanted <= held
    assert any(name.endswith(".sql") for name in wanted)
    assert any(name.endswith(".toml") for name in wanted)
    assert not {name for name in held if name.startswith(("tests/", "script/"))}


def test_version_is_one() -> None:
    """Package, command and changelog name the same version."""
    version = PYPROJECT["project"]["version"]
    assert version == cli.VERSION
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def commands_of(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each ``onecard`` or ``script/`` command line in a page's code blocks, with a name for messages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:sh|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ")
            if command.startswith(("onecard ", "script/")):
                yield f"{page}: {line}", shlex.split(command, comments=True)


def problem_of(words: list[str]) -> str:
    """Say what about a command line does not exist; empty when all does."""
    if words[0].startswith("script/"):
        return "" if (ROOT / words[0]).is_file() else f"no {words[0]}"
    command: click.Command = cli.root
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return f"no command {word}"
            command = found
            known |= {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        elif word.startswith("--") and word.split("=")[0] not in {*known, "--help", "--version"}:
            return f"no option {word}"
    return ""


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_pages_exist(page: str) -> None:
    """Every command and option that a page shows is there."""
    problems = [f"{line}: {problem}" for line, words in commands_of(page) if (problem := problem_of(words))]
    assert not problems


def test_readme_shows_demo_and_tests() -> None:
    """The page for newcomers names the two commands that are all they need."""
    shown = [words[0] for _, words in commands_of("README.md")]
    assert {"script/demo", "script/test"} <= set(shown)


def test_every_command_has_help() -> None:
    """Each noun and verb says what it does."""

    def walk(command: click.Command, path: str) -> Iterator[str]:
        if not (command.help or "").strip():
            yield path
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None, name
                yield from walk(inner, f"{path} {name}")

    assert not list(walk(cli.root, "onecard"))


def test_nothing_shadows_a_room() -> None:
    """The rooms' short names are import names: each comes from this project."""
    for room in ROOMS:
        assert Path(str(import_module(room).__file__)).is_relative_to(ROOT)
