"""Translating what a config needs, once: `flare-ds translate CONFIG`."""

from pathlib import Path

from flare_ds.config import Config
from flare_ds.data.parallel import translation_jobs
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.load import task_of
from flare_ds.translation.run import translate_jobs


def translate(config: Config, *, workers: int | None = None) -> list[Path]:
    """Translate every split of a config whose other side is a translation; what is there already is kept.

    Args:
        config: its `task` and `translate`.
        workers: processes; None: as many as this machine has GPUs or cores for. The translations do not depend on it.

    Returns:
        The directory of each split's translation.

    Raises:
        ConfigError: nothing is to be translated, or the engine cannot be used so.
        DataError: the rows cannot be read.
        HostError: this machine lacks what the engine needs, or disk.
    """
    jobs = translation_jobs(task_of(config.task), config.task)
    if not jobs:
        problem = f"task.sides={config.task.sides!r} from {config.task.source_language!r} into"
        fix = "set task.sides=translated and another task.target_language"
        raise ConfigError(f"{problem} {config.task.target_language!r}: nothing is to be translated", fix=fix)
    return translate_jobs(jobs, config.translate, workers=workers)
