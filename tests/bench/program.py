"""The program itself: how quickly it is there."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.figures import Figure, best_seconds


def start() -> list[Figure]:
    """``onecard --help``, from nothing, beside a bare interpreter."""

    def run(*argv: str) -> float:
        return 1000 * best_seconds(lambda: subprocess.run(argv, check=True, capture_output=True))

    ours = run(sys.executable, "-c", "import cli, sys; sys.argv = ['onecard', '--help']; cli.main()")
    bare = run(sys.executable, "-c", "pass")
    return [
        Figure("onecard --help", ours, "ms", 150, least=False),
        Figure("  of which the bare interpreter", bare, "ms"),
    ]
