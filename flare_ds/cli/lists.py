"""Verbs that show what there is: tasks, models, status; and the one that teaches a shell our words: completion."""

import argparse
from typing import TYPE_CHECKING

from flare_ds.cli.arguments import add_verb, typed_path
from flare_ds.cli.parser import verbs_of

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs
    from flare_ds.tasks.base import Task

_SHELLS = ("bash", "zsh", "tcsh")


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    summary = "list the tasks: languages, answers, metric, where their data comes from"
    add_verb(verbs, "tasks", _tasks, summary, ["flare-ds tasks"])
    summary = "list the architectures that were checked, and the models that can be fetched"
    add_verb(verbs, "models", _models, summary, ["flare-ds models"])
    summary = "show progress, score and problems of each run below a directory, and of a sweep"
    status = add_verb(verbs, "status", _status, summary, ["flare-ds status runs"])
    where = "a run, a sweep's `out`, or a directory that contains them"
    status.add_argument("directory", type=typed_path, metavar="DIR", help=where)
    summary = "print a shell's completion script for flare-ds"
    examples = ["flare-ds completion bash"]
    completion = add_verb(verbs, "completion", _completion, summary, examples)
    completion.add_argument("shell", choices=_SHELLS, help="which one")


def _tasks(options: argparse.Namespace) -> None:
    from flare_ds.markdown import table
    from flare_ds.tasks import TASKS

    columns = ("task", "languages", "answers", "metric", "rows of two languages", "data")
    print(table(columns, [_task_cells(TASKS.get(name)) for name in TASKS]))


def _task_cells(task: "Task") -> tuple[str, ...]:
    from flare_ds.fetch.sources import DATA
    from flare_ds.tasks.table import TableTask

    hub = task.hub if isinstance(task, TableTask) and isinstance(task.hub, str) else ""
    data = f"flare-ds fetch data {task.name}" if task.name in DATA else f"hub: {hub}" if hub else "local files"
    pairs = "say the same" if task.parallel and len(task.languages) > 1 else "task.sides: translated"
    return task.name, " ".join(task.languages), ", ".join(task.word_lists[0]) or "free text", task.metric, pairs, data


def _models(options: argparse.Namespace) -> None:
    from flare_ds.fetch.sources import MODELS
    from flare_ds.markdown import table
    from flare_ds.models.checked import checked_table

    fetched = [(f"flare-ds fetch model {name}", MODELS.get(name).licence) for name in MODELS]
    print(f"{checked_table()}\n\n{table(('small models to begin with', 'licence'), fetched)}")


def _status(options: argparse.Namespace) -> int:
    from flare_ds.runs.status import DAMAGED, statuses
    from flare_ds.runs.status import table as status_table
    from flare_ds.sweep.progress import progress_of

    found = statuses(options.directory)
    print(status_table(found, options.directory))
    if (of_sweep := progress_of(options.directory)) is not None:
        print(f"\n{of_sweep}")
    return int(any(one.state == DAMAGED for one in found))


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from flare_ds.cli import make_parser

    parser = make_parser()
    _complete_paths(parser)
    print(shtab.complete(parser, options.shell))


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Say which arguments are paths, as shtab asks for it."""
    from shtab import FILE

    for action in parser._actions:
        if action.type is typed_path:
            action.complete = FILE  # type: ignore[attr-defined]
    for verb in verbs_of(parser).values():
        _complete_paths(verb)
