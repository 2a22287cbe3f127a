"""The command line: one verb a stage.

flare-ds prepare CONFIG                 build (or find) the token cache
flare-ds train CONFIG                   train an adapter; under `deepspeed --module flare_ds`, on every rank
flare-ds evaluate RUN_OR_CONFIG         score the test split
flare-ds merge RUN --output DIR         task adapter into a base model
flare-ds predict RUN --target TEXT      label words for one text, or a pair; with --generate an answer in free text
flare-ds sweep YAML                     every cell of a grid, resumable
flare-ds report DIR                     the table and the curves of all runs below DIR
flare-ds fetch model|data NAME          the quickstart's model or data, verified
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from flare_ds.config import Config
from flare_ds.exceptions import FlareError
from flare_ds.settings import load_config

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; problems a user can mend end in one message and exit code 1."""
    options = _parser().parse_args(arguments)
    # torch renames two collectives and says so at every call; DeepSpeed still uses the old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers")
    try:
        return options.run(options) or 0
    except FlareError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"flare-ds: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flare-ds: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flare-ds", description="Cross-lingual transfer with fused adapters.")
    # The deepspeed launcher puts this before the verb; the rank itself is read from the environment.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, help_text: str, *positional: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help_text, description=help_text)
        for argument in positional:
            sub.add_argument(argument)
        sub.set_defaults(run=run)
        return sub

    for name, run, text, argument in (
        ("prepare", _prepare, "build (or find) the token cache of a config", "config"),
        ("train", _train, "train an adapter", "config"),
        ("evaluate", _evaluate, "score the test split of a run", "config"),
        ("sweep", _sweep, "run every cell of a grid", "config"),
    ):
        sub = verb(name, run, text, argument)
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=10")
    merge = verb("merge", _merge, "merge a task adapter into its base model", "config")
    merge.add_argument("--output", required=True, type=Path, help="new model directory")
    predict = verb("predict", _predict, "label words, or with --generate an answer, for one text or a pair", "config")
    predict.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. generate.temperature=0.7")
    predict.add_argument("--target", required=True, help="text in the target language")
    predict.add_argument(
        "--source", action="append", default=[], help="the same text in the source language (flare); one for each"
    )
    predict.add_argument("--generate", action="store_true", help="decode an answer, as the generate settings say")
    verb("report", _report, "table and curves of all runs below a directory", "directory")
    verb("fetch", _fetch, "fetch a model or a data set, and print where it is", "kind", "name")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from flare_ds.data.cache import prepare_cache
    from flare_ds.models.loading import load_tokenizer

    config = load_config(options.config, options.overrides)
    print(prepare_cache(config, load_tokenizer(config.model)))


def _train(options: argparse.Namespace) -> None:
    from flare_ds.training.run import open_run
    from flare_ds.training.trainer import Trainer

    config = load_config(options.config, options.overrides)
    Trainer(config, open_run(config)).train()


def _evaluate(options: argparse.Namespace) -> None:
    from flare_ds.evaluation.evaluate import evaluate_run
    from flare_ds.training.process_group import rank
    from flare_ds.training.run import open_run

    config = load_config(options.config, options.overrides)
    scores = evaluate_run(config, open_run(config))
    if rank() == 0:
        print(f"{config.run_dir}: accuracy {scores.accuracy:.4f} on {len(scores.labels_n)} test rows")


def _merge(options: argparse.Namespace) -> None:
    from flare_ds.models.merge import merge_run

    print(merge_run(load_config(options.config), options.output))


def _predict(options: argparse.Namespace) -> None:
    from flare_ds.evaluation.predict import predict, predict_answer
    from flare_ds.training.process_group import rank

    config: Config = load_config(options.config, options.overrides)
    if options.generate:
        lines = [predict_answer(config, target=options.target, sources=options.source)]
    else:
        probabilities = predict(config, target=options.target, sources=options.source)
        best_first = sorted(probabilities.items(), key=lambda item: -item[1])
        lines = [f"{probability:.4f}  {word}" for word, probability in best_first]
    if rank() == 0:
        print("\n".join(lines))


def _sweep(options: argparse.Namespace) -> int:
    from flare_ds.sweep import sweep

    return sweep(options.config, options.overrides)


def _report(options: argparse.Namespace) -> None:
    from flare_ds.report import report

    print(report(options.directory))


def _fetch(options: argparse.Namespace) -> None:
    from flare_ds.data.fetch import main_fetch

    print(main_fetch(options.kind, options.name))
