"""``onecard`` for tests with many processes: a server that has imported everything forks one for each.

Run with a socket's path it is the server; :data:`SHIM` is the command that hands its arguments, folder, environment
and open files over, passes signals on, and ends as the forked process does. Killed, it takes that along.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({path!r})
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda got, _: line.send(bytes([got])))
old = os.umask(0)
wish = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), old]).encode()
socket.send_fds(line, [len(wish).to_bytes(4, "big")], [0, 1, 2])
line.sendall(wish)
answer = line.recv(4)
os._exit(int.from_bytes(answer, "big") if answer else 70)
"""
EVERYTHING = ("backoffice/commands", "terminals", "simulator", "terminals/posts")


@cache
def onecard() -> str:
    """The command's path; its server runs until this process ends."""
    folder = TemporaryDirectory(prefix="onecard-tests-")
    path = str(Path(folder.name) / "socket")
    program = Path(folder.name) / "onecard"
    program.write_text(SHIM.format(python=sys.executable, path=path))
    program.chmod(0o755)
    argv = [sys.executable, "-m", "tests.onecard", path]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.terminate()
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return str(program)


def _wish(line: socket.socket) -> tuple[list[int], list[Any]]:
    """What came over the line: open files, and arguments, folder, environment, umask."""
    head, files, _, _ = socket.recv_fds(line, 4, 3)
    size, raw = int.from_bytes(head, "big"), b""
    while len(raw) < size:
        raw += line.recv(size - len(raw))
    return files, json.loads(raw)


def _command(files: list[int], wish: list[Any]) -> None:
    """Be the command; never returns."""
    arguments, folder, environment, umask = wish
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.umask(umask)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["onecard", *arguments]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 70
    try:
        cli.main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else bool(e.code)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _watch(line: socket.socket) -> None:
    """Run the command as a child, tell how it ended; it is ended when whoever asked is."""
    files, wish = _wish(line)
    child = os.fork()
    if not child:
        _command(files, wish)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([line.fileno(), ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(OSError):
                line.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
            os._exit(0)
        told = line.recv(1)
        os.kill(child, told[0] if told else signal.SIGKILL)


def main() -> None:
    """Import all commands, then fork one process for each that comes."""
    for folder in EVERYTHING:
        for module in sorted((ROOT / folder).glob("*.py")):
            __import__(f"{folder.replace('/', '.')}.{module.stem}".removesuffix(".__init__"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen(16)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            line, _ = server.accept()
            if not os.fork():
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _watch(line)
            line.close()


if __name__ == "__main__":
    import cli

    main()
