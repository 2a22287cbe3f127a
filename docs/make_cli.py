"""The reference of all verbs in docs/cli.md, written by `python docs/make_cli.py docs/cli.md`."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

from flare_ds.cli import make_parser
from flare_ds.cli.parser import GROUPS, verbs_of

_MARK = "<!-- What follows is written by python docs/make_cli.py docs/cli.md -->\n"
_SHARED_BY = 4
"""An argument of so many verbs is explained once."""


def with_reference(page: str) -> str:
    """A page whose end, behind the mark, is the reference."""
    return page.partition(_MARK)[0] + _MARK + _reference()


def _reference() -> str:
    verbs = verbs_of(make_parser())
    times = Counter(line for parser in verbs.values() for line in _arguments(parser))
    shared = {line: name for parser in verbs.values() for line, name in _arguments(parser).items()}
    shared = {line: name for line, name in shared.items() if times[line] >= _SHARED_BY}
    parts = ["\n## What many verbs take\n", *shared, ""]
    for group, names in GROUPS.items():
        parts.append(f"## {group.capitalize()}\n")
        parts += [_section(name, verbs[name], shared) for name in names if name in verbs]
    return "\n".join(parts)


def _section(verb: str, parser: argparse.ArgumentParser, shared: dict[str, str]) -> str:
    told = parser.description or ""
    lines = [f"### flare-ds {verb}\n", fill(f"{told[:1].upper()}{told[1:]}.", 118), "", *_own(parser, shared)]
    for name, below in verbs_of(parser).items():
        lines += [_item(f"`{verb} {name}`: {below.description}"), *(f"    {line}" for line in _arguments(below))]
    *_, examples = (parser.epilog or "").partition("examples:\n")
    if shown := [line.strip() for line in examples.splitlines()]:
        lines += ["", "```text", *shown, "```"]
    return "\n".join([*lines, ""]).replace("\n\n\n", "\n\n")


def _own(parser: argparse.ArgumentParser, shared: dict[str, str]) -> Iterator[str]:
    arguments = _arguments(parser)
    yield from (line for line in arguments if line not in shared)
    if also := [name for line, name in arguments.items() if line in shared]:
        yield _item(f"and {', '.join(also)}: see above")


def _arguments(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Of each argument its line, and its name."""
    formatter = parser._get_formatter()
    actions = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction | argparse._HelpAction)]
    named = [(f"`{formatter._format_action_invocation(action)}`", action) for action in actions]
    return {_item(f"{name}: {formatter._expand_help(action)}"): name for name, action in named}


def _item(text: str) -> str:
    return fill(text, 112, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_reference(path.read_text(encoding="utf-8")), encoding="utf-8")
