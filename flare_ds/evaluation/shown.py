"""What of a test is shown where the run is watched: its figures, and some predictions as they were asked for."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import ConfigError
from flare_ds.markdown import table
from flare_ds.models.loading import load_tokenizer
from flare_ds.runs import RunResult
from flare_ds.texts import one_line
from flare_ds.tracking.figures import of_test
from flare_ds.tracking.trackers import Trackers

_SHOWN = 12
"""Predictions."""


def show_test(scores: Scores, config: Config, cache: Cache) -> None:
    """Show the scores of a run's own test rows at the step of the adapter that was asked; rank 0."""
    if not config.tracking.to:
        return
    step = RunResult(Path(config.run_dir), config).training.get("best_step", 0)
    trackers = Trackers(config, first_step=None if config.recipe.trains else 0)
    trackers.scalars(of_test(scores.score, scores.figures), step)
    with suppress(ConfigError):  # scoring needs no tokenizer, so the base may have none any more
        trackers.text("predictions", _predictions(scores, config, cache), step)
    trackers.close()


def _predictions(scores: Scores, config: Config, cache: Cache) -> str:
    """The first ones, as a table; a prompt that was cut into windows is shown by its first."""
    split, tokenizer, lines = cache.split("test"), load_tokenizer(config.model), []
    for example, record in enumerate(scores.records[:_SHOWN]):
        row = int(np.argmax(split.examples == example))
        prompt = tokenizer.decode(split.prompt("target", row).tolist())
        right = record["label"] if "label" in record else " / ".join(record["answers"])
        lines.append([one_line(str(part)) for part in (record["id"], prompt, right, record["prediction"])])
    return table(["id", "prompt", "right", "predicted"], lines)
