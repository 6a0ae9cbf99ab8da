"""For all tests: no key, PIN or password may be in anything that the suite lets out."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests import secretwatch
from tests.secretwatch import WATCH

_SECTIONS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch; once per process, so in each worker."""
    if not hasattr(pytest_configure, "done"):
        secretwatch.register_vectors()
        secretwatch.patch_sources()
        pytest_configure.done = True  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output holds a secret, and withhold that output."""
    report = yield
    done = item.stash.get(_SECTIONS, 0)  # a report repeats the sections of those before it
    for title, text in report.sections[done:]:
        WATCH.saw(title, text)
    item.stash[_SECTIONS] = len(report.sections)
    WATCH.saw("the failure's text", report.longreprtext)
    WATCH.saw("the test's name", report.nodeid)
    if call.when == "teardown":
        _look_into_files(item)
    found = WATCH.found()
    if call.when == "teardown":
        WATCH.forget_passing()
    if found:
        report.outcome = "failed"
        report.longrepr = "\n".join(["a secret is in the output (withheld):", *found])
        report.sections = []
    return report


def _look_into_files(item: pytest.Item) -> None:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    for path in sorted(Path(folder).rglob("*")) if folder else ():
        if path.suffix in secretwatch.SUFFIXES and path.is_file():
            WATCH.saw(f"file {path.name}", path.read_bytes())
