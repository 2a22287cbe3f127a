"""Verbs about runs: train, evaluate, merge, predict, sweep, report.

Each imports what it needs when its config is read, so that a mistake in one is told at once.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flare_ds.cli.arguments import add_config, add_verb, config_of, overrides_of
from flare_ds.settings import load_config

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    ranks = "deepspeed --num_accelerators 2 --module flare_ds"
    train = add_verb(verbs, "train", _train, "train an adapter", [f"{ranks} train run.yaml train.steps=100"])
    add_config(train)
    evaluate = add_verb(verbs, "evaluate", _evaluate, "score the test split of a run", [f"{ranks} evaluate runs/pl"])
    add_config(evaluate, "run_or_config")
    merge_example = "flare-ds merge runs/en-lora --output models/tuned"
    merge = add_verb(verbs, "merge", _merge, "merge a task adapter into its base model", [merge_example])
    merge.add_argument("config", metavar="RUN")
    merge.add_argument("--output", required=True, type=Path, help="new model directory")
    _add_predict(verbs)
    sweep = add_verb(
        verbs, "sweep", _sweep, "run every cell of a grid", ["flare-ds sweep sweep.yaml 'grid.seeds=[1, 2]'"]
    )
    add_config(sweep, "yaml", task_section="base.task")
    report = add_verb(
        verbs, "report", _report, "table and curves of all runs below a directory", ["flare-ds report runs"]
    )
    report.add_argument("directory", metavar="DIR")


def _add_predict(verbs: "Verbs") -> None:
    summary = "label words, or with --generate an answer, for one text or a pair"
    examples = [
        'flare-ds predict runs/pl-flare --source "I waited for weeks" --target "Czekałem tygodniami"',
        "flare-ds predict runs/hi-lora --generate --target '{question: ..., context: ...}'",
    ]
    predict = add_verb(verbs, "predict", _predict, summary, examples)
    add_config(predict, "run_or_config")
    predict.add_argument(
        "--target",
        required=True,
        metavar="TEXT",
        help="text in the target language; for a task of several fields a YAML or JSON mapping of them",
    )
    predict.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="TEXT",
        help="the same in the source language (flare); once for each",
    )
    predict.add_argument("--generate", action="store_true", help="decode an answer, as the generate settings say")


def _train(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.training.run import open_run
    from flare_ds.training.trainer import Trainer

    Trainer(config, open_run(config, train=True)).train()


def _evaluate(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.evaluation.evaluate import evaluate_run
    from flare_ds.training.process_group import rank
    from flare_ds.training.run import open_run

    scores = evaluate_run(config, open_run(config, train=False))
    if rank() == 0:
        print(f"{config.run_dir}: {scores.metric} {scores.score:.4f} on {len(scores.records)} test examples")


def _merge(options: argparse.Namespace) -> None:
    from flare_ds.models.merge import merge_run

    print(merge_run(load_config(options.config), options.output))


def _predict(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.evaluation.predict import predict, predict_answer
    from flare_ds.tasks.load import task_of
    from flare_ds.training.process_group import rank

    if options.generate or task_of(config.task).free_answers:
        lines = [predict_answer(config, target=options.target, sources=options.source)]
    else:
        probabilities = predict(config, target=options.target, sources=options.source)
        best_first = sorted(probabilities.items(), key=lambda item: -item[1])
        lines = [f"{probability:.4f}  {word}" for word, probability in best_first]
    if rank() == 0:
        print("\n".join(lines))


def _sweep(options: argparse.Namespace) -> int:
    from flare_ds.sweep import sweep

    return sweep(options.config, overrides_of(options))


def _report(options: argparse.Namespace) -> None:
    from flare_ds.report import report

    print(report(options.directory))
