"""The command line: a verb a stage, told by `--help` in groups. `flare-ds VERB --help` shows examples."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from flare_ds.cli import caches, configs, data, lists, lm_eval, runs
from flare_ds.cli.parser import GroupedHelp, Parser, Version
from flare_ds.exceptions import HostError
from flare_ds.failures import end
from flare_ds.files import check_temporary
from flare_ds.host import allocation
from flare_ds.runtime.launched import launched_among


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; problems a user can mend end in one message and exit code 1."""
    options = _parse(arguments)
    # Before torch is imported: its stores tell in forty lines of C++ frames that a rank is gone; we tell it in one.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if options.on_every_rank:
        os.environ.update(allocation(os.environ))
    # torch renames two collectives and says so at every call; DeepSpeed still uses the old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers")
    if not options.on_every_rank and (number := launched_among(os.environ)) > 1:
        return end(_one_process(options.parser.prog, number), on_every_rank=True)
    try:
        check_temporary()
        if options.ranks:
            from flare_ds.cli.ranks import run_on_ranks

            return run_on_ranks(options, sys.argv[1:] if arguments is None else arguments)
        code = options.run(options) or 0
        if options.on_every_rank:
            from flare_ds.runtime.process_group import finish

            finish()
        sys.stdout.flush()  # here, where a closed pipe is still handled
        return code
    except BaseException as error:
        return end(error, on_every_rank=options.on_every_rank)


def _one_process(command: str, number: int) -> HostError:
    """Several would all do the same at once, and end with 0."""
    problem = f"{command} is one process, but a launcher has started {number} (RANK, LOCAL_RANK, WORLD_SIZE)"
    return HostError(problem, fix=f"start it once, without a launcher: {command} ...")


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
