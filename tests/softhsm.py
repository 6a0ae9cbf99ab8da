"""A software HSM in a folder of its own: SoftHSM 2, initialised by its own tool."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11

from tests.secretwatch import register

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN, OFFICER_PIN = "hsm-7315", "officer-2604"
TOKEN = "onecard"
CONFIG = "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"


@contextmanager
def softhsm(folder: Path, *labels: str) -> Iterator[Path]:
    """Tokens with these labels (one named ``onecard`` when none is given) and ``PIN``, for this process and children.

    The module reads its configuration when it is initialised, so it is let go before and after: one folder at a time
    in one process, and no store may be open across. Gives the folder that holds the tokens.
    """
    register(PIN, "the HSM's PIN")
    register(OFFICER_PIN, "the HSM's officer PIN")
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    config = folder / "softhsm2.conf"
    config.write_text(CONFIG.format(tokens))
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(config)
    pkcs11.unload(str(MODULE))
    try:
        for label in labels or (TOKEN,):
            add_token(label)
        yield tokens
    finally:
        pkcs11.unload(str(MODULE))
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


def add_token(label: str) -> None:
    """Initialise one more; a process that has the module open does not see it."""
    argv = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", OFFICER_PIN, "--pin", PIN]
    subprocess.run(argv, check=True, capture_output=True)
