"""Verbs about runs: stage1, train, evaluate, merge, push, predict, sweep, report.

Each imports what it needs when its config is read, so that a mistake in one is told at once.
"""

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from flare_ds.cli.arguments import add_config, add_verb, at_least, config_of, overrides_of, typed_path
from flare_ds.cli.importing import libraries
from flare_ds.cli.predict import add_predict
from flare_ds.exceptions import ConfigError, FlareError, together
from flare_ds.host import open_more_files
from flare_ds.settings import load_config
from flare_ds.tasks.of_run import task_sha256

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs
    from flare_ds.config import Config
    from flare_ds.data.cache import Cache
    from flare_ds.evaluation.scores import Scores


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    stage1_example = "flare-ds stage1 run.yaml --ranks 2 --output models/tuned"
    summary = "train a task adapter on a run's source language, merge it, check the new base"
    stage1 = add_verb(verbs, "stage1", _stage1, summary, [stage1_example], on_every_rank=True)
    add_config(stage1)
    stage1.set_defaults(read_config=_stage1_config)
    stage1.add_argument("--output", required=True, type=typed_path, help="new model directory")
    examples = [
        "flare-ds train run.yaml train.steps=100",
        "flare-ds train run.yaml --evaluate --ranks all",
        "flare-ds train runs/pl-flare runs/de-flare runs/de-lora --evaluate",
    ]
    summary = "train an adapter; or those of several runs (RUN RUN ...), over one base where they can share it"
    train = add_verb(verbs, "train", _train, summary, examples, on_every_rank=True)
    add_config(train)
    train.set_defaults(read_config=_train_configs)
    evaluate_help = "then score the test split with the best adapter, without loading the base again"
    train.add_argument("--evaluate", action="store_true", help=evaluate_help)
    _add_evaluate(verbs)
    merge_example = "flare-ds merge runs/en-lora --output models/tuned"
    merge = add_verb(verbs, "merge", _merge, "merge a task adapter into its base model", [merge_example])
    merge.add_argument("config", type=typed_path, metavar="RUN", help="run directory")
    merge.add_argument("--output", required=True, type=typed_path, help="new model directory")
    _add_push(verbs)
    add_predict(verbs)
    _add_sweep(verbs)
    report = add_verb(
        verbs, "report", _report, "table and curves of all runs below a directory", ["flare-ds report runs"]
    )
    report.add_argument("directory", type=typed_path, metavar="DIR", help="where runs are looked for")
    out_help = "where report.md and the curves go (default: DIR)"
    report.add_argument("--out", type=typed_path, metavar="DIR", help=out_help)


def _add_sweep(verbs: "Verbs") -> None:
    examples = [
        "flare-ds sweep sweep.yaml 'grid.seeds=[1, 2]'",
        "flare-ds sweep sweep.yaml --dry-run",
        "flare-ds sweep sweep.yaml --only translate,prepare --jobs 4",
    ]
    sweep = add_verb(verbs, "sweep", _sweep, "run every cell of a grid", examples)
    add_config(sweep, "yaml", task_section="base.task")
    sweep.add_argument("--dry-run", action="store_true", help="show the stages in order, and run nothing")
    only_help = "run only these parts: translate, prepare, stage1, cells, report (default: all)"
    sweep.add_argument("--only", type=_parts, metavar="PART,PART", help=only_help)
    jobs_help = "stages run in parallel, each on its own GPUs or its share of the cores (default: 1)"
    sweep.add_argument("--jobs", type=at_least(1, most=1024), default=1, metavar="N", help=jobs_help)
    rerun_help = "move what was run with other settings aside, into OUT/.aside/DATE, and run it again"
    sweep.add_argument("--rerun", choices=("changed",), help=rerun_help)


def _parts(text: str) -> tuple[str, ...]:
    """A type of argument: parts of a sweep."""
    from flare_ds.sweep.nodes import PARTS

    parts = tuple(text.split(","))
    if wrong := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r:.50} is not a stage; use one or more of {', '.join(PARTS)}")
    return parts


def _add_evaluate(verbs: "Verbs") -> None:
    summary = "score the test split of a run; or other rows, whose result is written beside the run's own"
    examples = [
        "flare-ds evaluate runs/pl --ranks 2",
        "flare-ds evaluate runs/pl --split validation",
        "flare-ds evaluate runs/pl --language es",
        "flare-ds evaluate runs/pl --file labelled.csv",
    ]
    evaluate = add_verb(verbs, "evaluate", _evaluate, summary, examples, on_every_rank=True)
    add_config(evaluate, "run_or_config")
    rows = evaluate.add_mutually_exclusive_group()
    split_help = "split of the data to score; written to metrics-SPLIT.json"
    rows.add_argument("--split", choices=("validation", "test"), help=split_help)
    file_help = (
        "rows with the columns target, source, label (or answers) and id (.jsonl, .json, .csv, .parquet), "
        "as for predict --file; written to metrics-file-NAME.json"
    )
    rows.add_argument("--file", type=typed_path, metavar="FILE", help=file_help)
    language_help = "another target language, to see how well the adapter transfers; written to metrics-LANG.json"
    evaluate.add_argument("--language", metavar="LANG", help=language_help)


def _add_push(verbs: "Verbs") -> None:
    summary = "write a folder of a trained run that can be put on the Hugging Face hub as it is"
    examples = ["flare-ds push runs/pl-lora --output hub/pl-lora --base google/gemma-3-270m --license gemma"]
    push = add_verb(verbs, "push", _push, summary, examples)
    add_config(push, "run")
    push.add_argument("--output", required=True, type=typed_path, metavar="DIR", help="new folder")
    push.add_argument("--base", metavar="NAME", help="name of the base on the hub, if model.base is a directory")
    push.add_argument("--license", metavar="ID", help="license as the hub names it, e.g. apache-2.0 (default: none)")


def _stage1_config(options: argparse.Namespace) -> "Config":
    from flare_ds.training.stage1_settings import load_stage1

    return load_stage1(options.config, overrides_of(options), trust_task_code=options.trust_task_code)


def _stage1(options: argparse.Namespace) -> None:
    config = _stage1_config(options)

    with libraries(config.model):
        from flare_ds.runtime.process_group import rank
        from flare_ds.training.stage1 import run_stage1

    result = run_stage1(config, options.output)
    if rank() == 0:
        print(
            f"{result.output}: validation {result.metric} {result.merged:.4f} on {result.validation_examples} examples "
            f"(untuned base {result.untuned:.4f}, best adapter {result.tuned:.4f}); use it with\n"
            f"model.base={result.output}"
        )


def _train_configs(options: argparse.Namespace) -> "list[Config]":
    """Of all runs that are named and can be read."""
    return [one for one in _read_runs(options) if not isinstance(one, FlareError)]


def _read_runs(options: argparse.Namespace) -> "list[Config | FlareError]":
    """The config of each run that is named, or why it cannot be read: what is no override is a further run.

    Raises:
        FlareError: none of them can be read; or they mean other contents by one path of a task's file.
    """
    words = overrides_of(options)
    paths = [options.config, *filter(_names_a_run, words)]
    overrides = [word for word in words if not _names_a_run(word)]
    read: list[Config | FlareError] = []
    meant = dict[str | None, tuple[str, str | None]]()
    for path in paths:
        try:
            config = load_config(path, overrides, trust_task_code=options.trust_task_code)
        except FlareError as error:
            read.append(error)
        else:
            read.append(config)
            meant.setdefault(config.task.path, (config.run_dir, task_sha256(config.task.path)))
        # One that cannot be read may have changed what the path means, too.
        for task, (first, content) in meant.items():
            if task_sha256(task) != content:
                problem = f"{first} and {path} began with different contents of task.path={task!r}"
                raise ConfigError(problem, fix="train each by a command of its own; in a sweep, set together=1")
    errors = [one for one in read if isinstance(one, FlareError)]
    if len(errors) == len(read):
        raise errors[0]
    return read


def _names_a_run(word: str) -> bool:
    """Not an override: no setting has a slash in its name, but a directory may have a = in its own."""
    return "=" not in word or os.sep in word.partition("=")[0] or os.path.exists(word)


def _train(options: argparse.Namespace) -> None:
    open_more_files()
    read = _read_runs(options)
    configs = [one for one in read if not isinstance(one, FlareError)]

    with libraries(*(config.model for config in configs)):
        from flare_ds.runtime.joining import join_if_launched
        from flare_ds.runtime.signals import stopping
        from flare_ds.training.together import check_distinct, train_together

    check_distinct(configs)
    join_if_launched()  # what is wrong with the job is wrong with none of its runs
    with stopping():
        runs, refused = _opened(read)
        try:
            train_together(runs, evaluate=options.evaluate, tell=_tell)
        except FlareError as error:
            refused.append(error)
    if refused:
        raise together(refused, "the given runs", fix="correct these, and run the same command again")


def _opened(read: "list[Config | FlareError]") -> "tuple[list[tuple[Config, Cache]], list[FlareError]]":
    """Those of several runs that can be trained, with their caches, and why the others cannot; alike on all ranks."""
    from flare_ds.runtime.rank_zero import agreed
    from flare_ds.runtime.signals import leave_if_asked
    from flare_ds.training.run import open_run

    runs, refused = [], list[FlareError]()
    for one in read:
        try:
            config = agreed(_readable, one)  # on another host its files may be others
            runs.append((config, open_run(config, train=True)))
        except FlareError as error:
            if not error.shared:  # the others open it, and wait there
                raise
            refused.append(error)
        leave_if_asked()
    return runs, refused


def _readable(read: "Config | FlareError") -> "Config":
    if isinstance(read, FlareError):
        raise read
    return read


def _evaluate(options: argparse.Namespace) -> None:
    config = config_of(options)

    with libraries(config.model):
        from flare_ds.evaluation.evaluate import evaluate_run
        from flare_ds.evaluation.other_rows import OtherRows
        from flare_ds.training.run import open_beside, open_run

    rows = OtherRows(options.split, options.language, options.file)
    cache = open_beside(config, rows) if rows else open_run(config, train=False)
    _tell(config, evaluate_run(config, cache, rows), rows.name or "test")


def _tell(config: "Config", scores: "Scores", which: str = "test") -> None:
    from flare_ds.runtime.process_group import rank

    if rank() == 0:
        print(f"{config.run_dir}: {scores.metric} {scores.score:.4f} on {len(scores.records)} {which} examples")


def _merge(options: argparse.Namespace) -> None:
    from flare_ds.models.merge import merge_run
    from flare_ds.runs import RunDirectory
    from flare_ds.runs.hub_names import settle_hub_names

    config = load_config(options.config)
    RunDirectory(config.run_dir).check_trained(config)
    settle_hub_names(config)
    print(merge_run(config, options.output))


def _push(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.push import push

    folder = push(config, options.output, base=options.base, licence=options.license)
    print(f"{folder}\nto upload it: hf upload OWNER/NAME {shlex.quote(str(folder))}")


def _sweep(options: argparse.Namespace) -> int:
    from flare_ds.sweep.nodes import PARTS

    only = options.only or PARTS
    if options.dry_run:
        from flare_ds.sweep.dry_run import dry_run

        print(dry_run(options.config, overrides_of(options), jobs=options.jobs, only=only))
        return 0

    from flare_ds.sweep.local import sweep

    rerun_changed = options.rerun == "changed"
    return sweep(options.config, overrides_of(options), jobs=options.jobs, only=only, rerun_changed=rerun_changed)


def _report(options: argparse.Namespace) -> int:
    from flare_ds.reporting import report

    result = report(options.directory, options.out)
    print(result.text)
    return 1 if result.unreadable else 0
