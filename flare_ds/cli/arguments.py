"""What the verbs share: how a verb is declared, how a config is given to it, how a problem is told."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.paths import expanded
from flare_ds.settings import load_config

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_OVERRIDES = "settings to change; values are parsed as in YAML, but texts are taken literally"
_CONFIGS = {
    "config": "YAML of a run, or a run directory",
    "run": "run directory",
    "run_or_config": "run directory, or the YAML of a run",
    "config_or_cache": "YAML of a run, or the directory of a run or of a cache",
    "yaml": "YAML of a sweep",
}
"""What each of these positional arguments is."""
_RANKS = "start N ranks on this host, one per GPU (all: on every visible GPU); without GPUs, N on the CPU"
ALL = "all"
Run = Callable[[argparse.Namespace], int | None]


def add_verb(
    verbs: "Verbs", name: str, run: Run | None, summary: str, examples: Sequence[str], *, on_every_rank: bool = False
) -> argparse.ArgumentParser:
    """Declare a verb.

    Args:
        verbs: of `add_subparsers`.
        name: what the user types.
        run: what it does, returning an exit code or None for 0; None where verbs of its own do it.
        summary: for the list of verbs, and above its own help.
        examples: whole commands, shown below its help.
        on_every_rank: whether a launcher may start it on several ranks; others are one process.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser, on_every_rank=on_every_rank, ranks=None)
    if on_every_rank:
        parser.add_argument("--ranks", type=ranks_wanted, metavar="N|all", help=_RANKS)
    return parser


def add_config(parser: argparse.ArgumentParser, name: str = "config", *, task_section: str = "task") -> None:
    """Let a verb take a config with overrides, and a file of the user's own that defines the task.

    Args:
        parser: of the verb.
        name: of the positional argument, one of `_CONFIGS`.
        task_section: where the config describes its task.
    """
    example = f"{task_section.removesuffix('task')}train.steps=10"
    parser.add_argument("config", type=typed_path, metavar=name.upper(), help=_CONFIGS[name])
    add_list(parser, "overrides", "*", metavar="key=value", help=f"{_OVERRIDES}, e.g. {example}")
    parser.add_argument(
        "--task-path", type=typed_path, metavar="FILE", help=f"{task_section}.path=FILE: .yaml or .py of your own task"
    )
    add_trust(parser)
    parser.set_defaults(task_section=task_section, read_config=config_of)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Let a verb run the code of a task that a run directory names."""
    trust = "run the Python code of the task of a run directory; only if you trust its author"
    parser.add_argument("--trust-task-code", action="store_true", help=trust)


def add_list(
    parser: argparse.ArgumentParser, name: str, nargs: str, *, metavar: str, help: str, type: Callable[[str], Any] = str
) -> None:
    """Let a verb end in a list, whose items may also stand after its options."""
    parser.add_argument(name, nargs=nargs, type=type, metavar=metavar, help=help)
    parser.set_defaults(list=name, list_type=type)


def typed_path(text: str) -> Path:
    """A type of argument: a path, with what a shell did not fill in (see `flare_ds.paths`)."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error.problem}; {error.fix}") from None


def at_least(least: int, *, most: int = 10**9) -> Callable[[str], int]:
    """A type of argument: a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r:.50} is not a whole number from {least} to {most}")
        return int(text)

    return number


def ranks_wanted(text: str) -> int | str:
    """A type of argument: a number of ranks, or `all`."""
    return ALL if text == ALL else at_least(1, most=1024)(text)


def split_off_ranks(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--ranks` among the words of a command, and the words without it."""
    option = argparse.ArgumentParser(add_help=False)
    option.add_argument("--ranks")
    known, rest = option.parse_known_args(words)
    return known.ranks, rest


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The overrides of a verb with a config; `--task-path` is one of them."""
    if options.task_path is None:
        return options.overrides
    return [*options.overrides, f"{options.task_section}.path={json.dumps(str(options.task_path))}"]


def config_of(options: argparse.Namespace) -> Config:
    """Read the config of a verb."""
    return load_config(options.config, overrides_of(options), trust_task_code=options.trust_task_code)


def is_cache_path(path: str | Path) -> bool:
    """Whether a cache is named, and not a config: a directory that is no run directory."""
    path = Path(path)
    return path.is_dir() and not (path / "config.yaml").is_file()
