"""`late`: to a row's own label scores are added those that the frozen base gives the same words behind its source.

    log p(word)  =  log p(word | the row as its method reads it)  +  γ · log p(word | the source's row)  -  log Σ

The source's row is translate_test's. It is asked of the model at hand with its adapters off, so nothing more is loaded,
and whatever the method is; training is the method's own. A row without a source keeps its own scores.

Legend: n rows, K label words.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flare_ds.adapters.passes import Pass, during
from flare_ds.batches.rows_read import SplitRows
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.base import Task

Scores = NDArray[np.floating]


def base_alone() -> AbstractContextManager[None]:
    """Have the forwards inside go through the frozen base, whatever adapter is in it."""
    return during(Pass(adapted=False))


def late_scores(ask: Callable[[Config], ArrayLike], rows: SplitRows, config: Config) -> Scores:
    """Log-probabilities [n, K] of the label words of some rows, with those of their sources where the settings say so.

    Args:
        ask: gives the log-probabilities [n, K] of all rows, as they are read under the settings it is told.
        rows: them, as a cache has them.
        config: the run's settings.
    """
    own_nK = np.array(ask(config))
    if config.late is None:
        return own_nK
    with base_alone():
        of_source_nK = np.array(ask(config.of_source))
    return added(own_nK, of_source_nK, rows.prompt_lengths("source") > 0, config.late)


def added(own_nK: Scores, of_source_nK: Scores, has_source_n: NDArray[np.bool_], weight: float) -> Scores:
    """Both scores of each row, which together are log-probabilities again; of a row without a source its own alone."""
    both_nK = own_nK + weight * of_source_nK
    both_nK -= np.logaddexp.reduce(both_nK, 1, keepdims=True)
    return np.where(has_source_n[:, None], both_nK, own_nK)


def check_late(config: Config, task: Task) -> None:
    """Refuse label scores that cannot be added.

    Raises:
        ConfigError: answers are to be written, or the label words are others in the source language.
    """
    if config.late is None:
        return
    if task.free_answers or config.evaluate.answers == "generated":
        refuse_to_write(config)
    source, target = config.task.source_language, config.task.target_language
    if task.label_words(source) != task.label_words(target):
        raise ConfigError(
            f"task {task.name} has other label words in {source} than in {target}, so the scores of the two texts "
            f"cannot be added (evaluate.late={config.late})",
            fix="leave late out: method=lora, evaluate.late=null",
        )


def refuse_to_write(config: Config) -> None:
    """Refuse to decode answers where label scores are added.

    Raises:
        ConfigError: the settings add them.
    """
    if config.late is not None:
        raise ConfigError(
            f"method={config.method} with the source's label scores added (late) ranks label words, but answers are to "
            "be written: two texts would have to agree on every token",
            fix="rank label words (evaluate.answers=ranked), or leave late out: method=lora, evaluate.late=null",
        )
