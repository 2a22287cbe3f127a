"""argparse, answering a mistyped word with the nearest that it knows, and showing verbs by what they are about."""

import argparse
import re
from typing import Any, NoReturn

from flare_ds.registry import suggestion

GROUPS = {
    "data": ("tasks", "fetch", "translate", "prepare", "inspect", "cache"),
    "train": ("models", "new", "check", "config", "train", "stage1"),
    "use": ("evaluate", "predict", "merge", "push", "lm-eval"),
    "compare": ("sweep", "status", "report"),
    "shell": ("completion",),
}
"""Verbs, by what they are about."""


class GroupedHelp(argparse.RawDescriptionHelpFormatter):
    """The help of the command itself."""

    def start_section(self, heading: str | None) -> None:
        """The verbs have headings of their own."""
        super().start_section(None if heading == "positional arguments" else heading)

    def _format_action(self, action: argparse.Action) -> str:
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        told = {verb.dest: verb for verb in action._get_subactions()}
        parts = []
        self._indent()
        self._action_max_length += self._indent_increment  # not foreseen when it was counted
        for group, names in GROUPS.items():
            verbs = "".join(super(GroupedHelp, self)._format_action(told[name]) for name in names if name in told)
            parts.append(f"  {group}:\n{verbs}")
        self._dedent()
        return "\n".join(parts)


class Version(argparse.Action):
    """`--version`, which looks for the versions only when it is asked."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print them and end."""
        from flare_ds.versions import versions

        print("\n".join(f"{name} {version}" for name, version in versions().items()))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Parsers of verbs are of this kind, too."""

    def error(self, message: str) -> NoReturn:
        """End with the usage, the problem and what was probably meant."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            choices = re.findall(r"[^ ,']+", wrong[2])
            message = f"{message[: wrong.start()]}invalid choice: {wrong[1]!r}; {suggestion(wrong[1], choices)}"
        super().error(message)

    def refuse(self, words: list[str]) -> NoReturn:
        """End because of words that belong to nothing; of an unknown option, with what was probably meant."""
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            self.error(f"unrecognized arguments: {' '.join(words)}")
        known = ["--help", *re.findall(r"--[\w-]+", self.format_usage())]
        self.error(f"unrecognized argument {option}: {suggestion(option.partition('=')[0], known)}")


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs that a parser has below it."""
    found = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, {})
