"""Opening a run on every rank: its directory claimed, its config and versions saved, its cache found.

`cache.json` in the run directory says which cache the run reads, what that is made of, and which settings asked for
it. A run that has begun goes on with no other tokens; one that is evaluated with the same settings opens its cache by
the key, so neither the raw data nor the tokenizer need be there any more.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache, differences, open_cache, prepare_cache
from flare_ds.data.cache.directory import stored_caches
from flare_ds.data.cache.trash import mark_used
from flare_ds.evaluation.generate import with_whole_head
from flare_ds.evaluation.generated_labels import label_readings
from flare_ds.exceptions import CacheError, ConfigError, FlareError
from flare_ds.files import write_json, write_text
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import keep_task_file
from flare_ds.training.ds_config import read_ds_config
from flare_ds.training.process_group import join_process_group
from flare_ds.training.rank_zero import agreed, on_rank_zero
from flare_ds.training.readable import check_readable
from flare_ds.training.same_files import check_same_files
from flare_ds.versions import versions

_RECORD = "cache.json"
_WHICH_ROWS = ("train_rows", "validation_rows", "test_rows", "rows_sha256")
"""Fields of a cache in which a trained run may be evaluated on another."""


def open_run(config: Config, *, train: bool) -> Cache:
    """Save what the run is into its directory and open its cache, built by rank 0 if it is not there yet.

    Args:
        config: the run's settings.
        train: whether the run is to be trained, rather than evaluated.

    Raises:
        ConfigError: the settings do not suit the task, or the DeepSpeed JSON cannot work.
        CacheError: the run has begun with other tokens (naming what differs), or its cache is gone and cannot be
            built again.
        HostError: the hosts see different files.
        FlareError: what else rank 0 met, on every rank, before any of them starts work.
    """
    read_ds_config(config)
    join_process_group()
    check_same_files(config)
    path = on_rank_zero(partial(_prepare, config, train))
    return agreed(partial(open_cache, path))


def _prepare(config: Config, train: bool) -> Path:
    _check_answers(config)
    run_dir = Path(config.run_dir)
    record = _record(run_dir)
    cache = _prepared(config) if train or not _asks_the_same(record, config) else _recorded(config, record["key"])
    _check_same_tokens(run_dir, record, cache, train)
    check_readable(config, cache, load_shape(config.model))
    write_json(
        run_dir / _RECORD, {"key": cache.key, "fields": cache.manifest.fields, "settings": _cache_settings(config)}
    )
    keep_task_file(config.task.path, run_dir)
    write_text(run_dir / "config.yaml", config.to_yaml())
    write_json(run_dir / "versions.json", versions())
    mark_used(cache.path)
    return cache.path


def _check_answers(config: Config) -> None:
    """Refuse before anything is read what neither training nor evaluation could do with the task's answers."""
    task = task_of(config.task)
    if task.free_answers and config.train.objective != "vocabulary":
        raise ConfigError(
            f"train.objective={config.train.objective!r}, but the answers of task {task.name} are free text",
            fix="set train.objective=vocabulary",
        )
    if not task.free_answers and config.evaluate.answers == "generated":
        with_whole_head(config)
        label_readings(task.labels)


def _record(run_dir: Path) -> dict[str, Any]:
    """cache.json; empty for a run that has none yet."""
    path = run_dir / _RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _cache_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which cache a run reads."""
    return config.model_dump(
        mode="json",
        include={"task": True, "translate": True, "model": {"base"}, "source": {"mt_encoder", "mt_language"}},
    )


def _asks_the_same(record: dict[str, Any], config: Config) -> bool:
    return record.get("settings") == _cache_settings(config)


def _prepared(config: Config) -> Cache:
    return open_cache(prepare_cache(config, load_tokenizer(config.model)))


def _recorded(config: Config, key: str) -> Cache:
    """The cache of a key, wherever in cache_dir; where it is gone, built again from the raw data."""
    cache_dir = Path(config.cache_dir)
    for stored in stored_caches(cache_dir) if cache_dir.is_dir() else []:
        if stored.state == "whole" and stored.manifest is not None and stored.manifest.key == key:
            return open_cache(stored.path)
    try:
        return _prepared(config)
    except FlareError as error:
        problem = f"the run's cache {key[:16]} is not in cache_dir={config.cache_dir!r}, and it cannot be built again"
        fix = f"set cache_dir to where a directory *-{key[:16]} is, or build it again: {error.fix}"
        raise CacheError(f"{problem}: {error.problem}", fix=fix) from error


def _check_same_tokens(run_dir: Path, record: dict[str, Any], cache: Cache, train: bool) -> None:
    if not (record and (run_dir / "state").exists()):
        return
    found, wanted = record["fields"], cache.manifest.fields
    if not train:
        found, wanted = ({k: v for k, v in fields.items() if k not in _WHICH_ROWS} for fields in (found, wanted))
    if changes := differences(found, wanted):
        raise CacheError(
            f"{run_dir} has begun with other tokens than {cache.path} holds: {'; '.join(changes)}",
            fix="set that back to go on with the run, or choose another run_dir for a new one",
        )
