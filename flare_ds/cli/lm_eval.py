"""The verb that runs lm-evaluation-harness, which knows no plug-ins, with runs of ours among its models."""

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flare_ds.cli.arguments import add_verb, ranks_wanted, split_off_ranks

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs


def add_verbs(verbs: "Verbs") -> None:
    """Declare it."""
    summary = "lm-evaluation-harness's own command line, with `--model flare_ds --model_args run=RUN`"
    verb = add_verb(verbs, "lm-eval", _lm_eval, summary, [], on_every_rank=True)
    help = "passed on to lm-eval, except `--ranks N` or `--ranks all`, which starts the ranks"
    verb.add_argument("arguments", nargs=argparse.REMAINDER, action=_Arguments, metavar="ARGUMENTS", help=help)
    verb.prefix_chars = "\0"  # no word behind it is an option of ours, --help included


class _Arguments(argparse.Action):
    """All words behind the verb, but the one option that is ours."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Take them."""
        ranks, namespace.arguments = split_off_ranks(values)
        try:
            namespace.ranks = None if ranks is None else ranks_wanted(ranks)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --ranks: {error}")


def _lm_eval(options: argparse.Namespace) -> None:
    import_module("flare_ds.evaluation.lm_eval_model")  # registers the model, and says so where lm-eval is missing
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *options.arguments]  # where it looks
    cli_evaluate()
