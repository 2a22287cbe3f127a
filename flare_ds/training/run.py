"""Opening a run on every rank: its directory claimed, its config and versions saved, its cache found.

`cache.json` in the run directory says what the run's tokens were made of; a run that has begun goes on with no others.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache, differences, open_cache, prepare_cache
from flare_ds.exceptions import CacheError, ConfigError
from flare_ds.files import write_json, write_text
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks.load import task_of
from flare_ds.training.process_group import join_process_group
from flare_ds.training.rank_zero import on_rank_zero
from flare_ds.versions import versions

_WHICH_ROWS = ("train_rows", "validation_rows", "test_rows", "rows_sha256")
"""Fields of a cache in which a trained run may be evaluated on another."""


def open_run(config: Config, *, train: bool) -> Cache:
    """Save what the run is into its directory and open its cache, built by rank 0 if it is not there yet.

    Args:
        config: the run's settings.
        train: whether the run is to be trained, rather than evaluated.

    Raises:
        ConfigError: the objective does not suit the task.
        CacheError: the run has begun with other tokens (naming what differs).
        FlareError: what else rank 0 met, on every rank, before any of them starts work.
    """
    join_process_group()
    return open_cache(on_rank_zero(partial(_prepare, config, train)))


def _prepare(config: Config, train: bool) -> Path:
    _check_objective(config)
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    run_dir = Path(config.run_dir)
    _check_same_tokens(run_dir, cache, train)
    write_json(run_dir / "cache.json", {"key": cache.key, "fields": cache.manifest.fields})
    write_text(run_dir / "config.yaml", config.to_yaml())
    write_json(run_dir / "versions.json", versions())
    return cache.path


def _check_objective(config: Config) -> None:
    task = task_of(config.task)
    if task.free_answers and config.train.objective != "vocabulary":
        raise ConfigError(
            f"train.objective={config.train.objective!r}, but the answers of task {task.name} are free text",
            fix="set train.objective=vocabulary",
        )


def _check_same_tokens(run_dir: Path, cache: Cache, train: bool) -> None:
    record = run_dir / "cache.json"
    if not (record.exists() and (run_dir / "state").exists()):
        return
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["fields"]
    wanted = cache.manifest.fields
    if not train:
        found, wanted = ({k: v for k, v in fields.items() if k not in _WHICH_ROWS} for fields in (found, wanted))
    if changes := differences(found, wanted):
        raise CacheError(
            f"{run_dir} has begun with other tokens than {cache.path} holds: {'; '.join(changes)}",
            fix="set that back to go on with the run, or choose another run_dir for a new one",
        )
