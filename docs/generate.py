"""Writes docs/commands.md from the command tree: ``python docs/generate.py``. A test compares."""  # noqa: INP001  # a script

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402  # found from wherever this is run

PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Made by `python docs/generate.py` from the commands themselves; `--help` behind any of them says the same.

`eval "$(_ONECARD_COMPLETE=bash_source onecard)"` in your shell's start-up file completes nouns, verbs and choices with
the tabulator key (`zsh_source`, `fish_source` for other shells).

## Global options

Before the noun or behind the verb; each has a variable: `--request-id` is `ONECARD_REQUEST_ID`.
"""


def value(option: click.Option) -> str:
    """What is written behind an option."""
    if option.is_flag:
        return ""
    return f" {choices(option) or option.type.name.split()[0].upper()}"


def choices(given: click.Parameter) -> str:
    """What a parameter can be, where it is a choice."""
    return "|".join(map(str, given.type.choices)) if isinstance(given.type, click.Choice) else ""


def line(option: click.Option) -> str:
    """An option as an item of a list."""
    notes = ["required"] * option.required + ["may be repeated"] * option.multiple
    if option.show_default and option.default not in (None, ""):
        notes.append(f"default: {option.default}")
    if option.envvar and option.expose_value:  # a global one has its twin by rule
        notes.append(f"or {option.envvar}")
    end = f" ({'; '.join(notes)})" if notes else ""
    return f"- `{', '.join(option.opts)}{value(option)}`: {option.help}{end}"


def argument(given: click.Argument) -> str:
    """An argument in a usage line."""
    name = (given.name or "").upper()
    return f"{name}..." if given.nargs == -1 else name


def verb(path: str, command: click.Command) -> Iterator[str]:
    """The lines of one command."""
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    words = ["[OPTIONS]"] * bool(options) + [argument(p) for p in arguments]
    permission = vars(command.callback).get("permission")
    needs = f", needs permission `{permission}`" if permission else ""
    yield f"### {path}\n"
    yield f"`{' '.join(['onecard', path, *words])}`{needs}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    items = [f"- `{argument(p)}`: {choices(p)}" for p in arguments if choices(p)] + [line(p) for p in options]
    if items:
        yield "\n".join(items) + "\n"


def verbs(path: str, group: click.Group) -> Iterator[str]:
    """The lines of all commands of a group, of groups within it too."""
    for name, inner in sorted(group.commands.items()):
        yield from verbs(f"{path} {name}", inner) if isinstance(inner, click.Group) else verb(f"{path} {name}", inner)


def page() -> str:
    """The whole page."""
    parts = [HEAD, "\n".join(line(p) for p in cli.root.params if isinstance(p, click.Option)) + "\n"]
    context = click.Context(cli.root)
    for noun in cli.root.list_commands(context):
        command = cli.root.get_command(context, noun)
        assert command is not None
        if isinstance(command, click.Group):
            parts.append(f"## {noun}\n\n{inspect.cleandoc(command.help or '')}\n")
            parts += verbs(noun, command)
        else:
            first, *rest = verb(noun, command)
            parts += [first[1:], *rest]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
