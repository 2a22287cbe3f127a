"""All ranks mean the same commit by a hub's name: rank 0 asks once; a run that has begun goes on with its own."""

from flare_ds.config import Config
from flare_ds.fetch.needed import check_base
from flare_ds.model_files.fingerprint import is_commit, model_fingerprint
from flare_ds.model_files.hub import settle
from flare_ds.model_files.names import is_path
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import BASE
from flare_ds.runtime.rank_zero import on_rank_zero


def settle_hub_names(config: Config) -> None:
    """Decide what the names of models mean in this job; a collective, before anything is loaded.

    Raises:
        ConfigError: the base is a path at which nothing is, or a name that no hub answers to.
        DataError: the record of the run's base is damaged.
    """
    on_rank_zero(check_base, config.model.base)
    encoder = (str(config.source.mt_encoder),) if config.reads_mt_encoder else ()
    for name in (config.model.base, *encoder):
        # Where rank 0 looks: the others may lie on another host, and see another directory of that name or none.
        if not on_rank_zero(is_path, name):
            settle(name, on_rank_zero(_meant, name, config))


def _meant(name: str, config: Config) -> str:
    run = RunDirectory(config.run_dir)
    began = run.record(BASE) if run.begun else {}
    known = began.get("fingerprint")
    if began.get("name") == name and is_commit(known):
        return str(known)
    return model_fingerprint(name)  # of a hub's name, its commit
