"""Which side of a row the data set says itself, where the other is its machine translation (task.sides: translated)."""

from flare_ds.config import TaskConfig
from flare_ds.tasks.base import Split, Task


def read_language(task: Task, config: TaskConfig, split: Split) -> str:
    """The language the rows of a split are read in; the other side is its translation.

    The target's own test rows are what it is tested on, where the data set has any.
    """
    own_test = split == "test" and config.target_language in task.languages
    return config.target_language if own_test else config.source_language


def are_parallel(task: Task, config: TaskConfig, split: Split) -> bool:
    """Whether the rows of a split say the same in every target language: of themselves, or as translations of one."""
    translated = config.sides == "translated" and read_language(task, config, split) == config.source_language
    return task.parallel or translated
