"""Evaluating a run: its best adapter on the test split, written as metrics.json and predictions.jsonl."""

import json
import time
from pathlib import Path

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import check_settings, load_adapter
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.metrics import confidence_interval, macro_f1
from flare_ds.evaluation.ranked import Scores, score_split
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
    correct = scores.predictions_n == scores.labels_n
    split = cache.split("test")
    lines = [
        {
            "id": split.ids(row),
            "label": cache.labels[scores.labels_n[row]],
            "prediction": cache.labels[scores.predictions_n[row]],
            "scores": dict(zip(cache.labels, scores.log_probabilities_nK[row].tolist(), strict=True)),
        }
        for row in range(len(split))
    ]
    write_text(run_dir / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    f1 = macro_f1(scores.predictions_n, scores.labels_n)
    if config.method != "zero_shot":
        write_card(run_dir / "adapter", config, test={"accuracy": scores.accuracy, "f1": f1, "rows": len(split)})
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
            "metric": "accuracy",
            "score": scores.accuracy,
            "num_examples": len(split),
            "confidence_interval": list(confidence_interval(correct)),
            "macro_f1": f1,
            "evaluate_seconds": seconds,
            "cache_key": cache.key,
            "model": config.model.base,
            "versions": versions(),
        },
    )
