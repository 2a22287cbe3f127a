"""The command line: one verb a stage, told by `--help` in the groups below. `flare-ds VERB --help` shows examples.

flare-ds tasks                          what tasks there are
flare-ds fetch model|data NAME          the quickstart's model or data, verified
flare-ds translate CONFIG               machine-translate the other side of the data of a config, once, resumable
flare-ds prepare CONFIG                 build (or find) the token cache
flare-ds inspect CONFIG_OR_CACHE        its rows decoded side by side, how long they are, what was dropped and why
flare-ds cache ls|stats|verify|diff|rm  look after the caches

flare-ds models                         what base models there are
flare-ds new FILE                       a config to begin with
flare-ds check CONFIG                   what is wrong with it, or what it would do
flare-ds config --schema                all settings, for editors
flare-ds train CONFIG                   train an adapter; with --ranks N, or under a launcher, on every rank
flare-ds stage1 CONFIG --output DIR     task adapter trained, merged and checked, by one command; on every rank

flare-ds evaluate RUN_OR_CONFIG         score the test split, or other rows
flare-ds predict RUN --target|--file    label words for a text, a pair or a file of rows; with --generate free text
flare-ds merge RUN --output DIR         task adapter into a base model
flare-ds push RUN --output DIR          a folder of a run for the Hugging Face hub
flare-ds lm-eval ARGUMENTS              lm-evaluation-harness with --model flare_ds --model_args run=RUN

flare-ds sweep YAML                     every cell of a grid, resumable
flare-ds status DIR                     how far all runs below DIR are
flare-ds report DIR                     the table of methods and the curves of all runs below DIR

flare-ds completion bash|zsh|tcsh       what a shell needs to complete all this
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from flare_ds.cli import caches, configs, data, lists, lm_eval, runs
from flare_ds.cli.parser import GroupedHelp, Parser, Version
from flare_ds.failures import end
from flare_ds.files import check_temporary


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; problems a user can mend end in one message and exit code 1."""
    options = _parse(arguments)
    # Before torch is imported: its stores tell in forty lines of C++ frames that a rank is gone; we tell it in one.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch renames two collectives and says so at every call; DeepSpeed still uses the old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers")
    try:
        check_temporary()
        if options.ranks:
            return _run_on_ranks(options, sys.argv[1:] if arguments is None else arguments)
        code = options.run(options) or 0
        if options.on_every_rank:
            _finish()
        sys.stdout.flush()  # here, where a closed pipe is still handled
        return code
    except BaseException as error:
        return end(error, on_every_rank=options.on_every_rank)


def _run_on_ranks(options: argparse.Namespace, words: Sequence[str]) -> int:
    from flare_ds.cli.ranks import run_on_ranks

    return run_on_ranks(options, words)


def _finish() -> None:
    from flare_ds.runtime.process_group import finish

    finish()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; what comes after an option still belongs to the list that the verb ends in.

    argparse gives `prepare CONFIG --workers 2 task.test_rows=9` an empty list of overrides, and leaves the last word.
    """
    parser = make_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        parser.exit()
    options, unread = parser.parse_known_args(arguments)
    if unread and ("list" not in options or any(word.startswith("-") for word in unread)):
        options.parser.refuse(unread)
    if unread:
        try:
            getattr(options, options.list).extend(map(options.list_type, unread))
        except argparse.ArgumentTypeError as error:
            options.parser.error(str(error))
    return options


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser: argparse.ArgumentParser = Parser(
        prog="flare-ds", description="Cross-lingual transfer with fused adapters.", formatter_class=GroupedHelp
    )
    # The deepspeed launcher puts this before the verb; the rank itself is read from the environment.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("--version", action=Version, help="show the versions that results depend on")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for of_one_kind in (data, caches, configs, runs, lm_eval, lists):
        of_one_kind.add_verbs(verbs)
    return parser
