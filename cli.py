"""The door: root command, global options, one table from error to exit code, nouns that load when named."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cardlib import errors
from cardlib.transport import GetResponse, Transport
from console import Session, Watcher, global_options

VERSION = "0.1.0"

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (errors.Refused, 1),
    (errors.ConfigError, 2),
    (errors.FormatError, 2),
    (errors.NotFound, 3),
    (errors.Conflict, 4),
    (errors.TransportError, 5),
    (errors.StatusError, 6),
    (errors.CryptoError, 7),
    (errors.CheckFailed, 8),
    (errors.OutcomeUnknown, 9),
    (errors.DatabaseError, 10),
]
"""design.md, "Command line". First match wins; anything else is a bug (70)."""
BUG, INTERRUPTED, USAGE = 70, 130, 2

NOUNS = {
    "init": "backoffice.commands.init",
    "doctor": "backoffice.commands.doctor",
    "demo": "simulator.demo",
    "enterprise": "backoffice.commands.enterprise",
    "operator": "backoffice.commands.operator",
    "member": "backoffice.commands.member",
    "card": "backoffice.commands.card backoffice.commands.wash backoffice.commands.slot backoffice.commands.rekey",
    "wallet": "backoffice.commands.wallet",
    "terminal": "backoffice.commands.terminal backoffice.commands.adms terminals.commands terminals.provisioning",
    "sam": "backoffice.commands.sam backoffice.commands.samwash",
    "blacklist": "backoffice.commands.blacklist",
    "key": "backoffice.commands.key backoffice.commands.ceremony backoffice.commands.mother"
    " backoffice.commands.rotation",
    "settle": "backoffice.commands.settle",
    "report": "backoffice.commands.report backoffice.commands.attendance",
    "notice": "backoffice.commands.notice",
    "audit": "backoffice.commands.audit",
    "web": "backoffice.commands.web",
    "db": "backoffice.commands.db",
    "ota": "backoffice.commands.ota",
    "sim": "simulator.commands simulator.entrance simulator.handset terminals.simulated",
    "apdu": "cardlib.commands",
}
"""Each module has one click command named ``command``; a noun of two rooms has the verbs of both."""


class Root(click.Group):
    """Imports a noun's module only when the noun is named, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """All nouns, without importing one."""
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the noun's module."""
        if cmd_name not in NOUNS:
            return None
        rooms: list[click.Command] = [importlib.import_module(name).command for name in NOUNS[cmd_name].split()]
        for other in rooms[1:]:
            assert isinstance(rooms[0], click.Group)
            assert isinstance(other, click.Group)
            rooms[0].commands.update(other.commands)
        return rooms[0]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete nouns without importing one; verbs come from their noun's own group."""
        nouns = [CompletionItem(noun, help=HELP[noun]) for noun in NOUNS if noun.startswith(incomplete)]
        return nouns + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the nouns with fixed words: importing them all would cost a second."""
        with formatter.section("Commands"):
            formatter.write_dl([(noun, HELP[noun]) for noun in NOUNS])


HELP = {
    "init": "Make the databases, the key store and the first operator.",
    "doctor": "Check this installation and say what to mend.",
    "demo": "Run a company of 50 people for a day on the simulator.",
    "enterprise": "Register enterprises and what they subscribe to.",
    "operator": "People who may use this tool, and their roles.",
    "member": "Members of the enterprise; import from a spreadsheet.",
    "card": "Wash, issue, lose, unlock, reissue, cancel cards.",
    "wallet": "Recharge, refund, subsidy, balance.",
    "terminal": "Terminals: register, pay, recharge, undo, journals.",
    "sam": "SAMs: load keys, register, report lost.",
    "blacklist": "Lists of cards that every terminal refuses.",
    "key": "Keys by reference: make, list, activate.",
    "settle": "Collect journals, verify, post, reconcile.",
    "report": "Attendance: shifts, leave, corrections, the month.",
    "notice": "Short messages to members: send, statements, opt-out.",
    "audit": "Who did what; proof that nothing was changed.",
    "web": "The office over HTTP: serve terminals, make tokens.",
    "db": "State of the databases: status, migrate, backup, verify.",
    "ota": "Jobs over the air; packets: take apart, make.",
    "sim": "Simulated cards and SAMs behind a virtual reader.",
    "apdu": "Send single commands to a card.",
}


def _open_simulated(rest: str) -> Transport:
    from simulator.image import keep, load  # noqa: PLC0415  # only for sim: readers

    name, cut, step = rest.partition("?cut=")
    if cut and not step.isdecimal():
        raise errors.ConfigError(f"sim:{rest}: ?cut= is the step at which the card is pulled away, from 1 on")
    path = Path(name)
    card = load(path)
    keep(card, path)
    card.power.cut_at(int(step or 0))
    return card


def _open_phones(path: Path) -> Any:  # noqa: ANN401  # a way for short messages
    from simulator.post import open_post  # noqa: PLC0415  # only for --phone

    return open_post(path)


READERS = {"pcsc": "cardlib.pcsc", "pn532": "cardlib.pn532", "uid": "cardlib.uid"}
"""Modules with ``connect`` and ``watch``, imported when their scheme is named."""


def _open(module: str, rest: str) -> Transport:
    return GetResponse(importlib.import_module(module).connect(rest))


def _watch(module: str, rest: str) -> Watcher:
    made: Watcher = importlib.import_module(module).watch(rest)
    return made


def _defaults(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take defaults of global options from a TOML file."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise errors.ConfigError(f"config {path}: {e}") from e
    known = {option.name for option in global_options()}
    unknown = set(values) - {str(name) for name in known}
    if unknown:
        raise errors.ConfigError(f"config {path}: unknown {sorted(unknown)}; known are {sorted(map(str, known))}")
    ctx.default_map = values


def _root() -> Root:
    config = click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_defaults,
        envvar="ONECARD_CONFIG",
        help="TOML file with defaults for the options below.",
    )
    root = Root("onecard", params=[config, *global_options()], help=HELP_TEXT, no_args_is_help=True)
    return click.version_option(VERSION, message="onecard %(version)s")(root)


HELP_TEXT = """The toolkit of a one-card system: one card opens doors, clocks attendance and pays.

Global options stand before or behind the verb; each has an ONECARD_* variable. Secrets are asked for, or read
from a file; they are never arguments. Exit codes: 0 done, 1 refused by a rule, 2 usage, 3 not found, 4 conflict,
5 reader or line (safe to retry), 6 card said no, 7 key wrong, 8 a check found something, 9 outcome unknown
(resolve first), 10 database, 70 bug, 130 interrupted."""

root = _root()


def exit_code(error: BaseException) -> int:
    """The exit code of an error (design.md); 70 for what nobody raised on purpose."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), BUG)


def system_error(error: OSError) -> errors.OneCardError:
    """What a file or folder that can't be used means: no bug of ours, and no refusal by a rule."""
    what = f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return errors.DatabaseError(f"{what}: nothing more was written; make room, then run the same command again")
    return errors.ConfigError(f"{what}: check the path and its permissions")


def _report(error: BaseException, code: int, session: Session) -> None:
    message = str(error) or type(error).__name__
    if session.json:
        detail: dict[str, Any] = {"error": type(error).__name__, "message": message, "exit": code}
        for name in ("reason", "sw", "journal_id"):
            if hasattr(error, name):
                detail[name] = getattr(error, name)
        click.echo(json.dumps(detail, ensure_ascii=False), err=True)
    else:
        click.echo(f"onecard: {message}", err=True)


def run(args: list[str], session: Session) -> int:
    """Run one invocation and return its exit code."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        root.main(args=args, prog_name="onecard", standalone_mode=False, obj=session)
    except click.exceptions.Exit as e:
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report(KeyboardInterrupt("interrupted; what was finished is kept"), INTERRUPTED, session)
        return INTERRUPTED
    except click.ClickException as e:
        ctx = getattr(e, "ctx", None)
        hint = f" (see {ctx.command_path} --help)" if ctx else ""
        _report(errors.ConfigError(e.format_message() + hint), USAGE, session)
        return USAGE
    except BrokenPipeError:
        return 0
    except errors.OneCardError as e:
        _report(e, exit_code(e), session)
        return exit_code(e)
    except OSError as e:
        logging.getLogger("onecard").debug("system", exc_info=True)
        error = system_error(e)
        _report(error, exit_code(error), session)
        return exit_code(error)
    except Exception as e:  # the last net: a bug must not look like a refusal
        logging.getLogger("onecard").debug("bug", exc_info=True)
        _report(RuntimeError(f"bug: {type(e).__name__}; run again with --log-level debug and report it"), BUG, session)
        return BUG
    finally:
        session.close()
    return 0


def main() -> None:
    """Entry point of the ``onecard`` command."""
    openers = {"sim": _open_simulated} | {scheme: partial(_open, module) for scheme, module in READERS.items()}
    watchers = {scheme: partial(_watch, module) for scheme, module in READERS.items()}
    session = Session(openers=openers, watchers=watchers, phones=_open_phones)
    sys.exit(run(sys.argv[1:], session))


if __name__ == "__main__":
    main()
