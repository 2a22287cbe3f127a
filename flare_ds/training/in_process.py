"""Training from Python: one run, in this process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.signals import handlers_kept, stopping
from flare_ds.settings import config_of, load_config
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together


def train(
    config: Config | Mapping[str, Any] | str | Path, overrides: Sequence[str] = (), *, trust_task_code: bool = False
) -> Path:
    """Train a run in this process: alone, or with the other ranks that a launcher has started, which all call it.

    Without a launcher, several ranks are `flare-ds train CONFIG --ranks N`. What is done already is not done again, and
    a run that was interrupted goes on.

    Args:
        config: a YAML file or a run directory; or the settings themselves, as a nested mapping or a `Config`.
        overrides: settings that differ, e.g. `["train.steps=100"]`.
        trust_task_code: whether a task in Python that a run directory names may be run.

    Returns:
        The run directory, for `flare_ds.load` or `flare-ds evaluate`.

    Raises:
        ConfigError: a setting is unknown, mistyped or out of range, or does not suit the model or the task.
        DataError: the task's files are missing or malformed.
        CheckpointError: the run directory holds a run of other data or settings.
        ToBeContinued: a signal (SIGTERM, SIGUSR1) asked it to stop; the state is saved, and the same call goes on.
        FlareError: see `flare_ds.exceptions` for what else can be mended.
    """
    settings = _settings(config, overrides, trust_task_code)
    run = RunDirectory(settings.run_dir)
    try:
        with handlers_kept(), stopping():
            train_together([(settings, open_run(settings, train=True))], evaluate=False)
    finally:
        run.unlock()
        make_room()
    return run.path


def _settings(config: Config | Mapping[str, Any] | str | Path, overrides: Sequence[str], trusted: bool) -> Config:
    if isinstance(config, str | Path):
        return load_config(config, overrides, trust_task_code=trusted)
    settings = config.model_dump(mode="json") if isinstance(config, Config) else config
    return config_of(settings, overrides)
