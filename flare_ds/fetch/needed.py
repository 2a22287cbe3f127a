"""Whether the base and the data that a config names are here, and what gets them: asked before torch is imported.

No hub is asked. A base named `owner/name` is the hub's, unless it is meant as a path (`flare_ds.model_files.names`).
"""

import shlex
from pathlib import Path

from flare_ds.config import Config, TaskConfig
from flare_ds.exceptions import Asking, ConfigError, DataError
from flare_ds.fetch.fetch import home
from flare_ds.fetch.sources import DATA, MODELS
from flare_ds.model_files.names import SHIPPED, is_path, missing_directory
from flare_ds.tasks.base import Task
from flare_ds.tasks.bigbench import not_on_hub
from flare_ds.tasks.load import check_languages, task_of


def check_needed(config: Config, *, origin: str) -> None:
    """Refuse a task that is none, languages that it lacks, and data or a base that are not there.

    Raises:
        FlareError: all of that; `origin` is the file that the config comes from.
    """
    asked = Asking()
    task = asked.of(task_of, config.task)
    asked.of(check_base, config.model.base)
    if task is not None:
        asked.of(check_languages, task, config.task)
        asked.of(_check_files, task, config)
    asked.tell(origin)


def check_base(base: str) -> None:
    """Refuse a base that is meant as a path where nothing is.

    Raises:
        ConfigError: saying what makes it.
    """
    path = Path(base)
    if not is_path(base) or path.exists():
        return
    if path.is_absolute() or base.startswith((".", "~")) or len(path.parts) != 2:
        raise ConfigError(f"model.base={base!r} is not a directory", fix="check the path")
    if path.parts[0] == SHIPPED:
        made = f"flare-ds stage1 CONFIG --output {shlex.quote(base)} makes it"
        fix = f"flare-ds fetch model {path.name} --link {shlex.quote(base)}" if path.name in MODELS else made
        raise ConfigError(f"model.base={base!r} is not there", fix=f"{fix}, or correct the path")
    fix = f"correct the path; or, if the hub's model of that name is meant, get it first: hf download {base}"
    raise ConfigError(f"model.base={base!r} is not there: {missing_directory(base)}", fix=fix)


def check_data(config: TaskConfig) -> None:
    """Refuse a directory of data that is not there, or that none is named where the hub has no such data.

    Raises:
        DataError: saying what makes it.
    """
    if config.data_dir is None and config.path is None and config.name in DATA:  # what is fetched is not on the hub
        raise not_on_hub(config.name)
    if config.data_dir is not None and not Path(config.data_dir).is_dir():
        fetched = Path(config.data_dir) == home() / "data" / config.name
        link = "" if fetched else f" --link {shlex.quote(config.data_dir)}"
        fetch = f", or flare-ds fetch data {config.name}{link}" if config.name in DATA else ""
        raise DataError(f"task.data_dir={config.data_dir!r} is not a directory", fix=f"check the path{fetch}")


def _check_files(task: Task, config: Config) -> None:
    """Look into the local files that would be read, a row of each; where a cache will do, they may be gone."""
    from flare_ds.data.parallel import parts_read  # it imports pyarrow, which no rank waits for

    try:
        check_data(config.task)
        for language, pool in parts_read(task, config.task) if config.task.data_dir is not None else ():
            if language in task.languages:
                next(iter(task.read(config.task.data_dir, language, pool)), None)
    except DataError:
        from flare_ds.data.cache import remembered  # it imports transformers

        if remembered(config) is None:
            raise
