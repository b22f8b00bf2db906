"""The tables of ``options.md``, from the parsers; ``make docs`` writes them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qatval.cli.main import build_parser
from qatval.testing.options import add_options

PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- From here on `make docs` writes this page. -->\n"


def page() -> str:
    """Return the page: what stands above the mark, and a table for each parser."""
    plugin: Any = argparse.ArgumentParser(add_help=False)
    plugin.addoption, plugin.getgroup = plugin.add_argument, lambda *_: plugin
    add_options(plugin)
    commands = build_parser()
    commands.description = None
    above = PAGE.read_text("utf-8").partition(MARK)[0]
    return "\n".join([above + MARK, *_tables("qatval", commands), *_tables("pytest", plugin)])


def _tables(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"{'#' * max(2, len(name.split()))} `{name}`\n"
    if parser.description:
        yield f"{parser.description}\n"
    deeper = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if rows := [_row(a) for a in parser._actions if a.dest != "help" and a not in deeper]:
        yield "\n".join(["| option | meaning | default |", "|---|---|---|", *rows, ""])
    for action in deeper:
        for command, below in action.choices.items():
            summary = next(c.help for c in action._choices_actions if c.dest == command)
            below.description = below.description or f"{summary[0].upper()}{summary[1:]}."
            yield from _tables(f"{name} {command}", below)


def _row(action: argparse.Action) -> str:
    """Return an option's row; the default is what its help says, else what argparse holds."""
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    names = action.option_strings or [str(value)]
    if action.option_strings and action.nargs != 0 and len(names) == 1:
        names = [f"{names[0]} {value}"]
    found = re.fullmatch(r"(.*?) ?\(?(?:default: (.*?)\)?)?", (action.help or "") % vars(action))
    assert found, action
    meaning, default = found.groups()
    if action.required and action.nargs != "*":
        default = "required"
    elif default is None:
        unsaid = {"True": "on", "False": "off", "None": "", argparse.SUPPRESS: ""}
        default = unsaid.get(str(action.default), str(action.default))
    cells = (", ".join(f"`{name}`" for name in names), meaning, default)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
