"""What the documentation tells a reader to type is typed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from backoffice.settlement import Verdict
from terminals.reasons import Reason
from tests.onecard import onecard

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    "README.md",
    "docs/administrator.md",
    "docs/keys.md",
    "docs/terminals.md",
    "docs/test-rigs.md",
    "docs/installer.md",
    "docs/over-the-air.md",
]
NOT_RUN = re.compile(r"^(script/|git clone|\.venv/)", re.MULTILINE)
"""Blocks that set up a machine, run the whole suite, or say where the command is."""


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a reader would: ``onecard`` on the path, an empty folder, each line must succeed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONECARD_")}
    return subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**clean, "PATH": f"{Path(onecard()).parent}:{os.environ['PATH']}"},
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, tmp_path: Path) -> None:
    """The commands of a page, typed one after another in an empty folder, all succeed."""
    script = "\n".join(block for block in blocks(page, "sh") if not NOT_RUN.search(block))
    if not script:
        assert page == "docs/test-rigs.md", "a page without commands to run"
        return
    ran = shell(tmp_path, script)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    if page == "docs/keys.md":
        assert re.search(r"^card +\d{16}\n.*state +active", ran.stdout, re.MULTILINE | re.DOTALL)
        assert (tmp_path / "platform.audit").read_text().count("key.used") > 10
    if page == "README.md":
        assert "12.50 moved, balance 37.50" in ran.stdout
        assert "8.00 moved, balance 37.50" in ran.stdout
        assert re.search(r"^posted +\d", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/test-rigs.md"])
def test_python_of_a_page(page: str, tmp_path: Path) -> None:
    """The tests that a page shows pass as they stand, with nothing but the plugin."""
    code = "\n\n".join(blocks(page, "python"))
    assert "def test_" in code
    (tmp_path / "test_page.py").write_text(code, encoding="utf-8")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    ran = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= code.count("def test_")


def test_pages_link_to_pages_that_exist() -> None:
    """Every relative link in README and docs leads somewhere."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_verdict_of_settlement_is_explained() -> None:
    """docs/books.md has a line for each verdict there is, and for no other."""
    text = (ROOT / "docs" / "books.md").read_text(encoding="utf-8")
    table = text.split("## What settlement says of a record")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` ", table, re.MULTILINE)) == {verdict.value for verdict in Verdict}


def test_every_refusal_is_explained() -> None:
    """docs/terminals.md has each reason of the terminals with its words in both languages, and no other."""
    text = (ROOT / "docs" / "terminals.md").read_text(encoding="utf-8").split("## Why a terminal says no")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(reason.code, reason.zh, reason.en) for reason in Reason]


def test_every_exit_code_is_explained() -> None:
    """docs/administrator.md has a line for each exit code of the command."""
    text = (ROOT / "docs" / "administrator.md").read_text(encoding="utf-8")
    known = {str(code) for _, code in cli.EXIT_CODES} | {str(cli.BUG), str(cli.INTERRUPTED)}
    assert set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE)) == known
