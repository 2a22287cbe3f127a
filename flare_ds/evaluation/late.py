"""`late`: to a row's own label scores are added those that the frozen base gives the same words behind its source.

    log p(word)  =  log p(word | the row as its method reads it)  +  γ · log p(word | the source's row)  -  log Σ

The source's row is translate_test's. It is asked of the model at hand with its adapters off, so nothing more is loaded,
and whatever the method is; training is the method's own. A row without a source keeps its own scores. The weight γ is
given, or fitted: each validation takes the one for which its rows' labels are likeliest, and the adapter that is kept
keeps it.

Legend: n rows, K label words.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from flare_ds.adapters.files import saved_figures
from flare_ds.adapters.passes import Pass, during
from flare_ds.config import Config
from flare_ds.data.row_answers import Rows
from flare_ds.exceptions import CheckpointError
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import CONFIG

Scores = NDArray[np.floating]
_MOST = 16.0
"""A weight at which one text says all."""


def base_alone() -> AbstractContextManager[None]:
    """Have the forwards inside go through the frozen base, whatever adapter is in it."""
    return during(Pass(adapted=False))


def late_scores(
    ask: Callable[[Config], ArrayLike], rows: Rows, config: Config, labels_n: NDArray[np.integer] | None = None
) -> tuple[Scores, dict[str, float]]:
    """Log-probabilities [n, K] of the label words of some rows, with those of their sources where the settings say so.

    Args:
        ask: gives the log-probabilities [n, K] of all rows, as they are read under the settings it is told.
        rows: them, as a cache has them.
        config: the run's settings.
        labels_n: of validation rows, to which the weight may be fitted; None: it is settled.

    Returns:
        Them, and the figure `late`, their weight, if they are added.
    """
    own_nK = np.array(ask(config))
    if config.late is None:
        return own_nK, {}
    with base_alone():
        of_source_nK = np.array(ask(config.of_source))
    has_source_n, weight = rows.prompt_lengths("source") > 0, config.late
    if weight == "fitted":
        assert labels_n is not None, "settled before anything else is scored"
        weight = fitted(own_nK[has_source_n], of_source_nK[has_source_n], labels_n[has_source_n])
    return added(own_nK, of_source_nK, has_source_n, weight), {"late": weight}


def fitted(own_nK: Scores, of_source_nK: Scores, labels_n: NDArray[np.integer]) -> float:
    """The weight that makes the labels likeliest, up to 16; 0 where there is no source. The loss is convex in it."""
    rows = np.arange(len(labels_n))

    def loss(weight: float) -> float:
        both_nK = added(own_nK, of_source_nK, np.ones(len(rows), bool), weight)
        return -float(both_nK[rows, labels_n].sum())

    return float(minimize_scalar(loss, bounds=(0.0, _MOST), method="bounded").x) if len(rows) else 0.0


def settled(config: Config) -> Config:
    """The run's settings with the weight that was fitted while it trained.

    Raises:
        CheckpointError: none was; or see `saved_figures`.
        ConfigError: the run's saved settings are damaged.
    """
    if config.late != "fitted":
        return config
    run = RunDirectory(config.run_dir)
    given = (run.path / CONFIG).is_file() and run.config.late != "fitted"  # and told with its validations all the same
    weight = None if given else saved_figures(run.path / "adapter").get("late")
    if weight is None:
        raise CheckpointError(
            f"evaluate.late='fitted', but no weight was fitted while {config.run_dir} was trained",
            fix="give one, e.g. evaluate.late=1, or train a new run with evaluate.late=fitted",
        )
    return config.having("evaluate", late=weight)


def added(own_nK: Scores, of_source_nK: Scores, has_source_n: NDArray[np.bool_], weight: float) -> Scores:
    """Both scores of each row, which together are log-probabilities again; of a row without a source its own alone."""
    both_nK = own_nK + weight * of_source_nK
    both_nK -= np.logaddexp.reduce(both_nK, 1, keepdims=True)
    return np.where(has_source_n[:, None], both_nK, own_nK)
