"""Evaluating a run: its best adapter on the test split, written as metrics.json and predictions.parquet.

On other rows than these (see `flare_ds.evaluation.other_rows`) the same is done, and written beside.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import check_settings, load_adapter
from flare_ds.checksums import file_sha256
from flare_ds.config import Config
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.streams import source_streams
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.finite import refuse_not_finite
from flare_ds.evaluation.late import settled
from flare_ds.evaluation.other_rows import OWN, OtherRows
from flare_ds.evaluation.ranked import Ranked
from flare_ds.evaluation.scores import Scores
from flare_ds.evaluation.shown import show_test
from flare_ds.evaluation.split import score_split
from flare_ds.failures import warn
from flare_ds.files import write_json
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_shape
from flare_ds.runs import METRICS_SCHEMA, RunDirectory
from flare_ds.runs.directory import METRICS, at_place
from flare_ds.runtime.ds_config import with_chosen_deepspeed
from flare_ds.runtime.engine import AdapterSource, RunningModel
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.states import prepare_states
from flare_ds.scoring.metrics import INTERVAL, confidence_interval
from flare_ds.scoring.predictions import PREDICTIONS, write_predictions
from flare_ds.tasks.load import task_of
from flare_ds.tasks.sides import are_parallel
from flare_ds.texts import one_line
from flare_ds.versions import versions


def evaluate_run(config: Config, cache: Cache, rows: OtherRows = OWN) -> Scores:
    """Score the test split and write the result into the run directory; metrics.json comes last.

    Args:
        config: the run's settings.
        cache: its tokens, or those of the other rows.
        rows: what is scored; the run's own test split, if nothing is said.

    Raises:
        CheckpointError: the run's adapter is missing, damaged, or was trained with other settings.
        NotFiniteError: a score is not finite; nothing is written.
        ConfigError: answers are to be generated, but the run's head cannot, or label words cannot be told apart; or see
            `OtherRows.check_place`.
        FlareError: see `prepare_states`.
    """
    on_rank_zero(rows.check_place, Path(config.run_dir))
    adapter = agreed(saved_adapter, config)  # with the settings it was trained with, not those of these rows
    config = rows.settings(config)
    states = prepare_states(config, cache, begun=True)
    shape = agreed(load_shape, config.model)
    running = open_model(as_asked(config), shape=shape, label_tokens=cache.label_tokens, adapter=adapter)
    return score_run(Asked(running, cache, config, states), rows)


def score_run(run: Asked, rows: OtherRows = OWN, *, ranked: Ranked | None = None) -> Scores:
    """Score rows with a model that has the run's best adapter, and write the result; metrics.json comes last.

    Args:
        run: the model, opened with the settings of `as_asked`, and the run's settings with the language of the rows.
        rows: as for `evaluate_run`.
        ranked: see `score_labels`.

    Raises:
        NotFiniteError: a score is not finite; nothing is written.
        CheckpointError: see `settled`.
    """
    start, config = time.perf_counter(), run.config
    asked = replace(run, config=as_asked(on_rank_zero(settled, config)))
    scores = score_split(asked, rows.split_name, ranked=ranked)
    on_rank_zero(refuse_not_finite, scores.not_finite, f"{rows.name or 'test'} rows of {config.run_dir}")
    seconds = time.perf_counter() - start + (ranked.seconds if ranked else 0)
    on_rank_zero(_write, Path(config.run_dir), scores, config, run.cache, rows, seconds=seconds)
    return scores


def as_asked(config: Config) -> Config:
    """The settings of the model that is asked: with its whole head where answers are to be written."""
    return with_whole_head(config) if config.evaluate.answers == "generated" else config


def open_trained(config: Config, *, shape: PreTrainedModel, label_tokens: list[list[int]]) -> RunningModel:
    """Open the base with the run's saved adapter (none for a method that trains nothing), without an optimizer."""
    adapter = agreed(saved_adapter, config)
    return open_model(config, shape=shape, label_tokens=label_tokens, adapter=adapter)


def saved_adapter(config: Config) -> AdapterSource | None:
    """What gives the values of a run's adapter; None: the method trains nothing."""
    if not config.recipe.trains:
        return None
    directory = Path(config.run_dir) / "adapter"
    check_settings(directory, config)
    return partial(load_adapter, directory)


def _write(run_dir: Path, scores: Scores, config: Config, cache: Cache, rows: OtherRows, *, seconds: float) -> None:
    predictions, metrics = (rows.beside(run_dir / name) for name in (PREDICTIONS, METRICS))
    metrics.unlink(missing_ok=True)  # a kill here leaves a run that is not scored, not another's score
    write_predictions(predictions, scores.records)
    if config.recipe.trains and not rows:
        test = {"examples": len(scores.records), **scores.figures}
        write_card(run_dir / "adapter", config, task_of(config.task), test=test)
    write_json(metrics, {**_what_was_scored(run_dir, config, cache, rows), **_how_well(scores, seconds)})
    if not rows:
        _show(scores, config, cache)


def _show(scores: Scores, config: Config, cache: Cache) -> None:
    """Show what is written where the run is watched; a service that cannot be reached costs no score."""
    try:
        show_test(scores, config, cache)
    except Exception as error:  # of whatever kind, as each tracker's package has its own
        warn(f"{config.run_dir} is scored, but tracking its scores failed: {one_line(repr(error))}")


def _what_was_scored(run_dir: Path, config: Config, cache: Cache, rows: OtherRows) -> dict[str, Any]:
    return {
        "schema": METRICS_SCHEMA,
        "task": config.task.name,
        "task_version": cache.manifest.fields["task_version"],
        "parallel": are_parallel(task_of(config.task), config.task, rows.split_name),
        **(_of_file(rows.file, config, cache) if rows.file else {"split": rows.split_name}),
        "source_language": config.task.source_language,
        "target_language": config.task.target_language,
        "cache_key": cache.key,
        "method": config.method,
        "seed": config.train.seed,
        "model": config.model.base,
        "model_fingerprint": model_fingerprint(config.model.base),
        "adapter_sha256": RunDirectory(run_dir).adapter_sha256 if config.recipe.trains else None,
        "settings": at_place(with_chosen_deepspeed(config)).model_dump(mode="json"),
        "versions": versions(),
    }


def _of_file(file: Path, config: Config, cache: Cache) -> dict[str, Any]:
    alone = {"num_unfused": _unfused_examples(config, cache.split("test"))} if config.needs_source else {}
    return {"file": str(file.absolute()), "file_sha256": file_sha256(file), **alone}


def _unfused_examples(config: Config, split: CacheSplit) -> int:
    """How many examples have no source text; see `tell_unfused`."""
    prompts = [split.prompt_lengths(stream) for stream in source_streams(len(config.sources_read))]
    return len(np.unique(split.examples[~np.any(prompts, axis=0)]))


def _how_well(scores: Scores, seconds: float) -> dict[str, Any]:
    return {
        "answers": scores.answers,
        "metric": scores.metric,
        "score": scores.score,
        "num_examples": len(scores.records),
        "num_clusters": len(set(scores.clusters)),
        "confidence_interval": list(confidence_interval(scores.metric, [scores.outcomes], scores.clusters)),
        "interval": INTERVAL,
        "figures": scores.figures,
        "evaluate_seconds": seconds,
    }
