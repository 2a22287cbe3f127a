"""Opening a run on every rank: its directory held, everything asked that can refuse it, its cache found.

Which cache it reads is recorded: by the run itself (cache.json) once it has begun, and before that beside the caches
(see `flare_ds.data.cache.requests`). So neither the raw data nor what translated them need be there any more. A run
begins, and its records are written, after everything that can refuse it, before its first step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache, build_cache, differences, open_cache, prepare_cache, remembered, stored
from flare_ds.data.cache.format import FORMAT_VERSION
from flare_ds.data.cache.key import CLUSTERS, PROBES, asked_fields
from flare_ds.data.parallel import ParallelData
from flare_ds.evaluation.answerable import check_answers
from flare_ds.evaluation.given_rows import tell_unfused
from flare_ds.evaluation.labelled_rows import read_labelled
from flare_ds.evaluation.other_rows import OtherRows
from flare_ds.evaluation.same_questions import check_same_questions, check_same_split
from flare_ds.exceptions import CacheError, CheckpointError, ConfigError, FlareError
from flare_ds.failures import warn
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.published import mark_used
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import BASE, CACHE, STATE, VERSIONS, at_place
from flare_ds.runs.hub_names import settle_hub_names
from flare_ds.runtime.ds_config import read_ds_config, with_chosen_deepspeed
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.same_files import check_same_files
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import keep_task_file
from flare_ds.tracking.trackers import check_trackers
from flare_ds.training.readable import check_readable
from flare_ds.training.state import fingerprint, read_progress
from flare_ds.versions import code, versions

_WHICH_ROWS = ("train_rows", "validation_rows", "test_rows", "rows_sha256", "answers")
"""Fields of a cache in which a trained run may be evaluated on another; answers: where in its window one stands that
is trained on."""
_NO_TOKENS = ("format_version", "cluster_fields", CLUSTERS)
"""Fields that say nothing of a token: how a version of this package stores them, and which rows were drawn together."""


def open_run(config: Config, *, train: bool) -> Cache:
    """Hold a run's directory until this process ends, and open its cache, built by rank 0 if it is not there yet.

    What is refused is refused before anything is written.

    Args:
        config: the run's settings.
        train: whether the run is to be trained, rather than evaluated.

    Raises:
        ConfigError: the settings do not suit the task, are not those the run has begun with, or the DeepSpeed JSON
            cannot work.
        CheckpointError: the run is to be scored and its training has not ended; or its base has other contents.
        CacheError: the run has begun with other tokens (naming what differs), or its cache is gone and cannot be
            built again.
        HostError: another process writes the run, or the hosts see different files.
        FlareError: what else rank 0 met, on every rank, before any of them starts work.
    """
    return _open(config, lambda run: _checked(run, config, train))


def open_beside(config: Config, rows: OtherRows) -> Cache:
    """Hold the directory of a run that can be scored, and open the cache of other rows than its own.

    Raises:
        CheckpointError: the run has not been trained; or see `open_run`.
        ConfigError: the rows ask something else than the run was trained to answer; or see `open_run`.
        DataError: the rows cannot be read.
        FlareError: see `open_run`.
    """
    return _open(config, lambda run: _checked_beside(run, config, rows))


def begin_run(config: Config, cache: Cache) -> None:
    """Write what a run is; of one that has begun, only other housekeeping. For rank 0.

    What `deepspeed: auto` means here is written, so that a resume elsewhere shows what changes.

    Raises:
        ConfigError: it has begun with another task file.
        HostError: the disk is full or not writable.
    """
    records: dict[str, dict[str, Any]] = {
        CACHE: {"key": cache.key, "fields": cache.manifest.fields},
        BASE: {"name": config.model.base, "fingerprint": model_fingerprint(config.model.base)},
        VERSIONS: versions(),
    }
    keep_task_file(config.task.path, Path(config.run_dir))
    RunDirectory(config.run_dir).begin(with_chosen_deepspeed(config), records)


def warn_of_other_code(run_dir: Path) -> None:
    """Say that a run which goes on was begun by other code of this package; an earlier version did not tell its own."""
    begun = RunDirectory(run_dir).code
    if begun not in (None, code()):
        warn(f"{run_dir} was begun by other code of flare_ds ({begun}, this is {code()}): what comes of it is of both")


def _open(config: Config, checked: Callable[[RunDirectory], Path]) -> Cache:
    """Open the cache that rank 0 finds or builds, once all ranks can work."""
    if config.train.whole_model is False:  # otherwise it is asked about where a model is to be sharded
        read_ds_config(config)
    join_if_launched()
    settle_hub_names(config)
    check_same_files(config)
    path = on_rank_zero(_held, config, checked)
    return agreed(open_cache, path)


def _held(config: Config, checked: Callable[[RunDirectory], Path]) -> Path:
    """The cache's path: ask all that can refuse with the run's directory held, given back if something does; rank 0."""
    check_answers(config, task_of(config.task))
    run = RunDirectory(config.run_dir)
    mine = run.lock()
    try:
        return checked(run)
    except BaseException:
        if mine:
            run.unlock()
        raise


def _checked(run: RunDirectory, config: Config, train: bool) -> Path:
    """Ask everything that can refuse the command; a run that trains nothing begins by its evaluation."""
    if train and not config.recipe.trains:
        fix = "score it with `evaluate` (in Python: flare_ds.load), or set method=lora or flare"
        raise ConfigError(f"method={config.method} trains nothing", fix=fix)
    check_trackers(config)
    _check_settings(run, config, train)
    goes_on = train and not run.trained and (run.path / STATE).exists()
    if goes_on and run.begun:
        _check_version(run)
    cache = _cache(run, config, train)
    if run.begun:
        _check_same_tokens(run, cache, train and not run.trained)
    check_readable(config, cache, load_shape(config.model))
    if goes_on:
        read_progress(run.path / STATE, fingerprint(config, cache))
    if not (train or config.recipe.trains):
        begin_run(config, cache)
    mark_used(cache.path)
    return cache.path


def _check_version(run: RunDirectory) -> None:
    """Refuse to continue what an earlier version began, whose cache cannot be made again; before one is looked for."""
    version = run.record(CACHE).get("fields", {}).get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"an earlier flare_ds began {run.path} (its cache has format {version}, this one writes {FORMAT_VERSION}), "
            "and this one cannot continue it",
            fix="train it to its end with that version, or choose another run_dir to begin anew",
        )


def _checked_beside(run: RunDirectory, config: Config, rows: OtherRows) -> Path:
    """Ask everything that can refuse a scoring on other rows; a run that trains nothing begins by it."""
    _check_settings(run, config, train=False)
    if not run.begun:
        if config.recipe.trains:
            fix = "restore it from where the run was, or train it"
            raise CheckpointError(f"{run.path} lacks its cache.json", fix=fix)
        _checked(run, config, train=False)
    asked = rows.settings(config)
    if asked is not config:
        check_answers(asked, task_of(asked.task))
    cache = _cache_of_file(asked, rows.file) if rows.file else _cache(run, asked, train=False)
    if asked is not config and not rows.file:
        check_same_split(asked, task_of(asked.task))
    if rows.file or asked is not config:
        check_same_questions(asked, task_of(asked.task), load_tokenizer(asked.model))
    else:
        _check_same_tokens(run, cache, train=False)
    check_readable(asked, cache, load_shape(asked.model))
    mark_used(cache.path)
    return cache.path


def _check_settings(run: RunDirectory, config: Config, train: bool) -> None:
    run.check(config, train=train)
    run.check_base(config)
    if not train:
        run.check_trained(config)


def _cache_of_file(config: Config, file: Path) -> Cache:
    """The tokens of a file's rows, as a test split; found again where the same rows were asked about before."""
    rows = read_labelled(config, task_of(config.task), file)
    tell_unfused(config, rows)
    data = ParallelData({"test": rows}, {"rows_read": len(rows)})
    return open_cache(build_cache(config, data, load_tokenizer(config.model)))


def _cache(run: RunDirectory, config: Config, train: bool) -> Cache:
    """The cache that is recorded for the run, or for these settings; else found or built from the raw data."""
    if run.begun and (train or (_asks_the_same(at_place(run.config), config) and _is_clustered(run, config))):
        return _recorded(config, run.record(CACHE)["key"])
    return remembered(config) or _prepared(config)


def _asks_the_same(saved: Config, config: Config) -> bool:
    """Whether the settings that decide which rows are read are the run's."""
    placed = at_place(config)
    return saved.task == placed.task and saved.translate == placed.translate


def _is_clustered(run: RunDirectory, config: Config) -> bool:
    """Whether the run's cache says which rows were drawn together as one that is built now; tokens do not tell."""
    return bool(run.record(CACHE)["fields"].get(CLUSTERS) == asked_fields(config, task_of(config.task)).get(CLUSTERS))


def _prepared(config: Config) -> Cache:
    return open_cache(prepare_cache(config, load_tokenizer(config.model)))


def _recorded(config: Config, key: str) -> Cache:
    """The cache of a key, wherever in cache_dir; where it is gone, built again from the raw data."""
    cache = stored(Path(config.cache_dir), key)
    if cache is not None:
        return cache
    try:
        return _prepared(config)
    except FlareError as error:
        problem = f"the run's cache {key[:16]} is not in cache_dir={config.cache_dir!r}, and it cannot be built again"
        fix = f"set cache_dir to where a directory *-{key[:16]} is, or build it again: {error.fix}"
        raise CacheError(f"{problem}: {error.problem}", fix=fix) from error


def _check_same_tokens(run: RunDirectory, cache: Cache, train: bool) -> None:
    recorded = run.record(CACHE)["fields"]
    untold = {PROBES} if recorded.get(PROBES) is None else set()  # an earlier version wrote none
    apart = {*_NO_TOKENS, *untold, *(() if train else _WHICH_ROWS)}
    found, wanted = ({k: v for k, v in f.items() if k not in apart} for f in (recorded, cache.manifest.fields))
    if changes := differences(found, wanted):
        raise CacheError(
            f"{run.path} has begun with other tokens than {cache.path} holds: {'; '.join(changes)}",
            fix="set that back to go on with the run, or choose another run_dir for a new one",
        )
