"""All ranks mean the same commit by a hub's name: rank 0 asks once; a run that has begun goes on with its own."""

import re
from functools import partial

from flare_ds.config import Config
from flare_ds.model_files.hub import commit, settle
from flare_ds.model_files.names import is_path
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import BASE
from flare_ds.runtime.rank_zero import on_rank_zero

_COMMIT = re.compile(r"[0-9a-f]{40}")


def settle_hub_names(config: Config) -> None:
    """Decide what the names of models mean in this job; a collective, before anything is loaded.

    Raises:
        DataError: the record of the run's base is damaged.
    """
    encoder = config.source.mt_encoder if config.reads_mt_encoder else None
    for name in filter(None, (config.model.base, encoder)):
        # Where rank 0 looks: the others may lie on another host, and see another directory of that name or none.
        if on_rank_zero(partial(is_path, name)):
            continue
        found = on_rank_zero(partial(_meant, name, config))
        if found is not None:
            settle(name, found)


def _meant(name: str, config: Config) -> str | None:
    run = RunDirectory(config.run_dir)
    began = run.record(BASE) if run.begun else {}
    known = str(began.get("fingerprint"))
    if began.get("name") == name and _COMMIT.fullmatch(known):
        return known
    try:
        return commit(name)
    except OSError:
        return None  # whoever loads it says so
