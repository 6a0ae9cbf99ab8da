"""A site in software: terminals as processes behind pseudo-terminals, brought into service by the installer's commands.

    site = Site(folder, company)
    till = site.unpack("POS-0001", "pos", "canteen 1")
    site.provision()
    till.type("12.50"); print(till.type(f"card {image}"))

Everything goes the way it would at a real site: `onecard` commands on a line, signed configurations, lists, journals.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backoffice import blacklists, journals, tokens
from cardlib.errors import CheckFailed
from cardlib.records import JournalFile, Note
from keymgmt.samload import SamKind
from simulator import image, world
from simulator.card import Card
from simulator.rig import TRANSPORT_KEY
from simulator.world import ENTERPRISE, PIN, Company

ONECARD = [sys.executable, str(Path(__file__).parent.parent / "cli.py")]
OFFICE_KINDS = (SamKind.RECHARGE, SamKind.ISSUING)
"""Terminals that need a line to the office."""
PATIENCE_S = 30
SITE = "demo"
SECRETS = {"authority passphrase": "only in the simulator", "identity passphrase": "only in the simulator",
           "holder pin": PIN, "transport key": TRANSPORT_KEY.hex()} | world.SECRETS  # fmt: skip
"""What opens keys that exist for a demonstration or a test."""


class RealTime(Company):
    """A company by this computer's clock, as its terminals have it."""

    def now_ms(self) -> int:
        """UTC milliseconds, each later than the one before."""
        self.clock_ms = max(self.clock_ms + 1, time.time_ns() // 1_000_000)
        return self.clock_ms


@dataclass
class Terminal:
    """One terminal's process: lines go in, events come out."""

    serial: str
    number: bytes
    kind: SamKind
    folder: Path
    settings: str
    process: subprocess.Popen[str] = field(repr=False)
    label: dict[str, Any]

    def type(self, line: str, *, silent: bool = False) -> dict[str, Any]:
        """Type a line; returns what it led to, nothing for a line that leads to no event (``silent``)."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return {} if silent else self.event()

    def event(self) -> dict[str, Any]:
        """The next thing that happens. Raises CheckFailed when the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CheckFailed(f"terminal {self.serial} ended with {self.process.wait(PATIENCE_S)}")
        read: dict[str, Any] = json.loads(line)
        return read

    def end(self) -> None:
        """Switch it off."""
        _end(self.process)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=PATIENCE_S)


class Site:
    """A company's site in ``folder``; ``tell`` hears of each command that is run."""

    def __init__(self, folder: Path, company: Company, tell: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self.company, self._tell = folder, company, tell
        self.terminals: list[Terminal] = []
        self._office: subprocess.Popen[str] | None = None
        self.office_url = ""
        self.cards = folder / "cards"
        self.cards.mkdir(parents=True)
        known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
        for name, value in SECRETS.items():
            path = folder / name.replace(" ", "-")
            path.write_text(value + "\n")
            known[f"ONECARD_{name.upper().replace(' ', '_')}_FILE"] = str(path)
        self.environment = known | {"ONECARD_ENTERPRISE": str(ENTERPRISE)}

    def run(self, *args: str) -> str:
        """Run a command of this program in the site's folder. Raises CheckFailed with what it said."""
        self._tell("onecard " + " ".join(args))
        done = subprocess.run(  # noqa: S603  # this very program
            [*ONECARD, *args], cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise CheckFailed(f"onecard {' '.join(args)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _start(self, name: str, args: list[str], **environment: str) -> subprocess.Popen[str]:
        """A process with pipes at its console, its messages in NAME.console."""
        with (self.folder / f"{name}.console").open("w") as console:
            return subprocess.Popen(  # noqa: S603  # this very program
                [*ONECARD, *args], cwd=self.folder, env=self.environment | environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=console,
            )  # fmt: skip

    def open_office(self) -> None:
        """Serve the office over HTTP, to terminals that need it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.office_url = f"http://127.0.0.1:{port}"
        args = ["web", "serve", "--port", str(port), "--platform-operator", "admin"]
        self._tell("onecard " + " ".join(args))
        self._office = self._start("office", ["--db", str(self.company.folder), *args])

    def wait_for_office(self) -> None:
        """Until it answers. Raises CheckFailed when it does not."""
        place = self.office_url.removeprefix("http://").split(":")
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            try:
                socket.create_connection((place[0], int(place[1]))).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise CheckFailed(f"the office does not answer: {(self.folder / 'office.console').read_text()[-500:]}")

    # Cards

    def image(self, member: str) -> Path:
        """Where a member's card is as a file."""
        return self.cards / f"{member}.img"

    def hand_out(self, member: str, card: Card | None = None) -> Path:
        """Put a member's card into a file, where terminals find it."""
        image.save(card or self.company.card(member), self.image(member))
        return self.image(member)

    def take_back(self) -> None:
        """Look at all cards as terminals have left them."""
        for member in self.company.chips:
            if self.image(member).exists():
                self.company.chips[member] = image.load(self.image(member))

    # Terminals

    def unpack(self, serial: str, what: str, name: str, settings: str = "", *options: str) -> Terminal:
        """Fit a terminal (``pos``, ``access``, ...) with its SAM and switch it on; it waits for its installer.

        ``settings`` end its TOML, ``options`` its command.
        """
        kind = SamKind(what)
        number = f"TERM{len(self.terminals) + 1:02}".encode("ascii")
        _, sam = self.company.fit_sam(number, kind, name)
        sam.reset()
        image.save(sam, self.folder / f"{serial}.sam")
        token = {}
        if kind in OFFICE_KINDS:
            company, path = self.company, self.folder / f"{serial}.token"
            with company.system.database.write() as tx:
                path.write_text(tokens.add(tx, company.admin, ENTERPRISE, number, 1, os.urandom)[1])
            settings = f'office_url = "{self.office_url}"\n{settings}'
            token["ONECARD_OFFICE_TOKEN_FILE"] = str(path)
        args = ["sim", "terminal", serial, "--pty", "--kind", kind.value, "--sam", f"{serial}.sam", "--serial", serial]
        process = self._start(serial, ["--json", *args, "--site", SITE, *options], **token)
        made = Terminal(serial, number, kind, self.folder / serial, settings, process, {})
        self.terminals.append(made)
        return made

    def found(self) -> None:
        """The authority of the site and an installer whom it trusts."""
        self.run("terminal", "authority", "make", "site.key")
        self.run("terminal", "identity", "make", "an.key", "--name", "An Installer")
        self.run("terminal", "authority", "token", "an.key.request", "--site", SITE, "--authority", "site.key")
        self.environment["ONECARD_IDENTITY"] = "an.key"

    def provision(self) -> None:
        """Sign each terminal's configuration, write the site's plan, bring all to it."""
        self._write_list()
        plan = [f'site = "{SITE}"\nauthority = "site.key.pub"\n']
        for one in self.terminals:
            one.label = one.event()
            self._configure(one)
            plan.append(
                f'[[terminal]]\nserial = "{one.serial}"\nport = "{one.serial}/port"\n'
                f'address = 1\nfingerprint = "{one.label["fingerprint"]}"\ncode_file = "{one.serial}/code"\n'
                f'config = "{one.serial}.config"\nlists = ["list"]\ntests = ["line", "screen"]\n'
            )
        (self.folder / "site.toml").write_text("\n".join(plan))
        self.run("terminal", "authority", "site", "--plan", "site.toml", "--authority", "site.key")
        self.run("terminal", "provision", "--plan", "site.toml")
        for one in self.terminals:
            while one.event() != {"event": "configured", "kind": one.kind.value, "version": 1}:
                pass

    def _write_list(self) -> None:
        self.company.publish()
        with self.company.system.database.read() as tx:
            made = blacklists.export(tx, self.company.admin, ENTERPRISE, self.company.system.signer, 0)
        (self.folder / "list").write_bytes(made.raw)

    def _configure(self, one: Terminal) -> None:
        (self.folder / f"{one.serial}.toml").write_text(
            f'version = 1\nkind = "{one.kind.value}"\nenterprise_id = {ENTERPRISE}\njournal = "journal.db"\n'
            f'lists = "list.db"\nlist_root_key = "{self.company.system.signer.public.hex()}"\n{one.settings}'
        )

    def collect(self) -> int:
        """Fetch every terminal's journal over its line and give it to the office; returns new records."""
        fresh = 0
        self.run("terminal", "collect-site", "journals", "--plan", "site.toml")
        for one in self.terminals:
            raw = (self.folder / "journals" / f"{one.serial}.journal").read_bytes()
            fresh += journals.collect(self.company.system.database, ENTERPRISE, raw).records
        return fresh

    def push_list(self, *terminals: Terminal) -> None:
        """Publish what is staged and bring it to terminals over their lines."""
        self._write_list()
        for one in terminals:
            self.run("terminal", "push", "list", "--port", f"{one.serial}/port", "--address", "1")

    def notes(self, one: Terminal) -> list[str]:
        """Codes of the notes in a journal that was collected."""
        raw = (self.folder / "journals" / f"{one.serial}.journal").read_bytes()
        return [entry.record.code for entry in JournalFile.decode(raw).entries if isinstance(entry.record, Note)]

    def close(self) -> None:
        """Switch all terminals off."""
        for one in self.terminals:
            one.end()
        if self._office is not None:
            _end(self._office)
