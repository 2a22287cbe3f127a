"""Evaluating a run: its best adapter on the test split, written as metrics.json and predictions.jsonl."""

import json
import time
from pathlib import Path

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import check_settings, load_adapter
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.metrics import confidence_interval
from flare_ds.evaluation.scores import Scores
from flare_ds.evaluation.split import score_split
from flare_ds.files import write_json, write_text
from flare_ds.models.loading import load_shape
from flare_ds.runs import METRICS_SCHEMA
from flare_ds.training.engine import RunningModel, open_model
from flare_ds.training.process_group import rank
from flare_ds.training.states import prepare_states
from flare_ds.versions import versions


def evaluate_run(config: Config, cache: Cache) -> Scores:
    """Score the test split and write the result into the run directory; metrics.json comes last.

    Raises:
        CheckpointError: the run's adapter is missing, damaged, or was trained with other settings.
        FlareError: see `prepare_states`.
    """
    states = prepare_states(config, cache)
    running = open_trained(config, label_tokens=cache.label_tokens, labels=tuple(cache.labels))
    start = time.perf_counter()
    scores = score_split(running, cache, "test", config, states=states)
    if rank() == 0:
        _write(Path(config.run_dir), scores, config, cache, seconds=time.perf_counter() - start)
    return scores


def open_trained(config: Config, *, label_tokens: list[list[int]], labels: tuple[str, ...]) -> RunningModel:
    """Open the base with the run's saved adapter (none for zero_shot), without an optimizer.

    Raises:
        CheckpointError: see `load_adapter` and `check_settings`.
    """
    directory, shape = Path(config.run_dir) / "adapter", load_shape(config.model)
    if config.method == "zero_shot":
        return open_model(config, shape=shape, label_tokens=label_tokens, labels=labels, train=False)
    check_settings(directory, config)
    return open_model(
        config,
        shape=shape,
        label_tokens=label_tokens,
        labels=labels,
        adapter=lambda parameters: load_adapter(directory, parameters),
        train=False,
    )


def _write(run_dir: Path, scores: Scores, config: Config, cache: Cache, *, seconds: float) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in scores.records)
    write_text(run_dir / "predictions.jsonl", "".join(lines))
    if config.method != "zero_shot":
        write_card(run_dir / "adapter", config, test={"examples": len(scores.records), **scores.figures})
    write_json(
        run_dir / "metrics.json",
        {
            "schema": METRICS_SCHEMA,
            "task": config.task.name,
            "split": "test",
            "source_language": config.task.source_language,
            "target_language": config.task.target_language,
            "method": config.method,
            "seed": config.train.seed,
            "metric": scores.metric,
            "score": scores.score,
            "num_examples": len(scores.records),
            "confidence_interval": list(confidence_interval(scores.metric, [scores.outcomes])),
            "figures": scores.figures,
            "evaluate_seconds": seconds,
            "cache_key": cache.key,
            "model": config.model.base,
            "versions": versions(),
        },
    )
