"""All ranks mean the same commit by a hub's name: rank 0 asks once; a run that has begun goes on with its own."""

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.fetch.needed import check_base
from flare_ds.model_files.fingerprint import is_commit
from flare_ds.model_files.hub import UNREACHED, commit, settle
from flare_ds.model_files.names import is_path
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import BASE
from flare_ds.runtime.rank_zero import on_rank_zero
from flare_ds.texts import one_line


def settle_hub_names(config: Config) -> None:
    """Decide what the names of models mean in this job; a collective, before anything is loaded.

    Raises:
        ConfigError: the base is a path at which nothing is, or a name that no hub answers to.
        DataError: the record of the run's base is damaged.
    """
    on_rank_zero(check_base, config.model.base)
    encoder = {"source.mt_encoder": str(config.source.mt_encoder)} if config.reads_mt_encoder else {}
    for setting, name in {"model.base": config.model.base, **encoder}.items():
        # Where rank 0 looks: the others may lie on another host, and see another directory of that name or none.
        if not on_rank_zero(is_path, name):
            settle(name, on_rank_zero(_meant, setting, name, config))


def _meant(setting: str, name: str, config: Config) -> str:
    run = RunDirectory(config.run_dir)
    began = run.record(BASE) if run.begun else {}
    known = began.get("fingerprint")
    if began.get("name") == name and is_commit(known):
        return str(known)
    try:
        return commit(name)
    except OSError as error:
        problem = f"cannot read {setting}={name!r}: {one_line(str(error)).rstrip('.')}"
        raise ConfigError(problem, fix=UNREACHED) from error
