"""A PC/SC daemon with virtual readers, alone in a network and mount namespace of its own.

pcscd 1.9.9 has a fixed socket below /run and the virtual reader a fixed TCP port, so each world gets its own /run and
its own loopback: worlds run side by side, and a daemon of the machine is neither used nor disturbed. Whatever talks
to this pcscd has to run inside: ``run`` a command, ``start`` one, or ``call`` a function of a module.

    with PcscWorld(tmp_path) as world:
        world.start_card("tests.pcsc_world", slot=0)          # python -m tests.pcsc_world --port 35963: an echo card
        assert world.call(list_readers)[0] == world.reader(0)
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, ParamSpec, Self, TypeVar

from cardlib import errors, pcsc
from cardlib.readers import NOTHING_KNOWN
from simulator.vpcd import PORT, Slot

P = ParamSpec("P")
R = TypeVar("R")

ROOT = Path(__file__).parent.parent
DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
START_S = 20
CALL_S = 60
POLL_S = 0.5
"""Pcscd looks at its slots every 400 ms: a card that comes back sooner was never away."""
TOOLS = {"pcscd": "pcscd", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux", "ip": "iproute2"}
ENTRY = """FRIENDLYNAME "Virtual PCD {number}"
DEVICENAME   /dev/null:{port}
LIBPATH      {driver}
CHANNELID    {port}
"""
HOLD = "mount -t tmpfs tmpfs /run; mkdir /run/pcscd; PATH=$PATH:/sbin:/usr/sbin ip link set lo up; echo ready; read end"


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert path, f"{name} is missing: run script/setup tests, or install {TOOLS[name]}"
    return path


class PcscWorld:
    """``slots`` virtual reader slots (a multiple of two: the driver has two each) under a pcscd of its own."""

    def __init__(self, directory: Path, slots: int = 2) -> None:
        self.directory = directory
        self.slots = slots
        self._holder: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start the daemon and wait until it listens. Without one of its tools this fails: it is never skipped."""
        assert DRIVER.exists(), f"{DRIVER} is missing: run script/setup tests, or install vsmartcard-vpcd"
        conf = self.directory / "reader.conf.d"
        conf.mkdir(parents=True, exist_ok=True)
        entries = []
        for number in range(self.slots // 2):
            # The driver keeps its slots in static memory: each pair of slots needs a copy of it.
            driver = shutil.copy(DRIVER, self.directory / f"libifdvpcd-{number}.so")
            entries.append(ENTRY.format(number=number, port=PORT + 2 * number, driver=driver))
        (conf / "vpcd").write_text("\n".join(entries))
        own = [] if os.geteuid() == 0 else ["-r"]
        # The shell holds the namespaces open until its standard input is closed, if only by our death.
        self._holder = subprocess.Popen(
            [_tool("unshare"), *own, "-n", "-m", "sh", "-ec", HOLD], stdin=PIPE, stdout=PIPE, text=True
        )
        assert self._holder.stdout is not None
        try:
            assert self._holder.stdout.readline() == "ready\n", "no network or mount namespace: are you root?"
            self.start_daemon()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all that was started here."""
        for process in [*self._started, self._daemon, self._holder]:
            if process is not None:
                end(process)

    def start_daemon(self) -> None:
        """Start pcscd, and wait until it knows its readers."""
        log = self.directory / "pcscd.log"
        with log.open("a") as output:
            self._daemon = subprocess.Popen(
                self.inside([_tool("pcscd"), "--foreground", "--config", str(self.directory / "reader.conf.d")]),
                stdin=DEVNULL, stdout=output, stderr=output, text=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while len(self.readers()) < self.slots:
            assert self._daemon.poll() is None, f"pcscd ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"pcscd does not start: {log.read_text()}"
            time.sleep(0.05)

    def stop_daemon(self) -> None:
        """Stop pcscd: its readers and the cards in them are gone."""
        assert self._daemon is not None
        end(self._daemon)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command that runs another one inside this world, and ends it when this process dies."""
        assert self._holder is not None
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        enter = [_tool("nsenter"), "-t", str(self._holder.pid), *user, "-n", "-m", f"--wd={ROOT}"]
        return [*enter, _tool("setpriv"), "--pdeathsig", "TERM", *argv]

    def run(
        self, argv: Sequence[str], *, stdin: str = "", env: dict[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; its exit code is for the caller to judge."""
        return subprocess.run(
            self.inside(argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
            env={**os.environ, **(env or {})},
        )  # fmt: skip

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside; it is ended with the world at the latest."""
        process = subprocess.Popen(self.inside(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        self._started.append(process)
        return process

    def start_card(self, *module_and_arguments: str, slot: int) -> subprocess.Popen[str]:
        """Start ``python -m module ... --port P`` as the card in a slot; return when PC/SC sees it."""
        process = self.start([sys.executable, "-m", *module_and_arguments, "--port", str(PORT + slot)])
        self.call(wait_present, self.reader(slot), True)
        return process

    def remove_card(self, process: subprocess.Popen[str], slot: int) -> None:
        """End a card's process; return when PC/SC sees that the card is gone."""
        end(process)
        self.call(wait_present, self.reader(slot), False)
        time.sleep(POLL_S)

    def reader(self, slot: int) -> str:
        """The PC/SC name of a slot's reader."""
        return self.readers()[slot]

    def readers(self) -> list[str]:
        """The PC/SC names of all readers here, in the order of their slots; empty while pcscd starts."""
        try:
            return self.call(pcsc.list_readers)
        except errors.ReaderLost:
            return []

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module's function inside, with JSON arguments and result; the project's own errors come back."""
        return self.result(self.start_call(function, *args, **kwargs))  # type: ignore[no-any-return]  # it is JSON

    def start_call(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> subprocess.Popen[str]:
        """Begin such a call; ``result`` ends it, its standard error can be read meanwhile."""
        assert not kwargs
        process = self.start([sys.executable, "-m", "tests.pcsc_world"])
        assert process.stdin is not None
        print(json.dumps([function.__module__, function.__name__, args]), file=process.stdin, flush=True)
        return process

    def result(self, process: subprocess.Popen[str]) -> Any:
        """Wait for a call to end; return or raise what it returned or raised."""
        self._started.remove(process)
        output, errors_seen = process.communicate(timeout=CALL_S)
        assert process.returncode == 0, errors_seen
        answer = json.loads(output)
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            error = kind.__new__(kind)
            Exception.__init__(error, answer["message"])
            raise error
        return answer["result"]


def end(process: subprocess.Popen[str]) -> None:
    """End a process that this module started."""
    process.terminate()
    try:
        process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def wait_present(name: str, present: bool) -> None:
    """Return when a card is on the reader (or none any more). Raises LineTimeout."""
    reader, known, deadline = pcsc.PcscReader(name), NOTHING_KNOWN, time.monotonic() + START_S
    while known.present != present or known == NOTHING_KNOWN:
        known = reader.wait(known, 200)
        if time.monotonic() > deadline:
            raise errors.LineTimeout(f"reader {name}: card {'never came' if present else 'never left'}")


class EchoCard:
    """Answers each command with itself: the fastest card that there can be, and the yardstick for others.

    Data FE is answered with the number of resets so far; FD hangs up in the middle of the command.
    """

    atr = bytes.fromhex("3B80800101")

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        """Count."""
        self.resets += 1

    def power_off(self) -> None:
        """Lose nothing."""

    def transceive(self, command: bytes) -> bytes:
        """Echo."""
        if command == b"\x80\xfe\x00\x00\x00":
            return self.resets.to_bytes(2, "big") + b"\x90\x00"
        if command == b"\x80\xfd\x00\x00\x00":
            raise errors.CardRemoved("as asked")
        return command + b"\x90\x00"


def main() -> None:
    """Be an echo card (``--port P``), or do one job from standard input for ``PcscWorld.call``."""
    if "--port" in sys.argv:
        Slot(EchoCard(), int(sys.argv[sys.argv.index("--port") + 1])).insert(wait_ms=5000).wait()
        return
    module, name, args = json.loads(sys.stdin.readline())
    try:
        answer = {"result": getattr(importlib.import_module(module), name)(*args)}
    except errors.OneCardError as e:
        answer = {"error": type(e).__name__, "message": str(e)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
