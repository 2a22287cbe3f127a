"""The records of a run, written when it begins: after everything that can refuse it, before its first step."""

from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.failures import warn
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import BASE, CACHE, VERSIONS
from flare_ds.runtime.ds_config import with_chosen_deepspeed
from flare_ds.tasks.of_run import keep_task_file
from flare_ds.versions import code, versions


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
