"""Opening a run on every rank: its directory claimed, its config and versions saved, its cache found."""

from pathlib import Path

from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.exceptions import FlareError
from flare_ds.files import write_json, write_text
from flare_ds.models.loading import load_tokenizer
from flare_ds.training.process_group import gather_objects, join_process_group, rank
from flare_ds.versions import versions


def open_run(config: Config) -> Cache:
    """Save what the run is into its directory and open its cache, built by rank 0 if it is not there yet.

    Raises:
        FlareError: what rank 0 met, on every rank, before any of them starts work.
    """
    join_process_group()
    problem: FlareError | None = None
    path: Path | None = None
    if rank() == 0:
        try:
            path = prepare_cache(config, load_tokenizer(config.model))
            write_text(Path(config.run_dir) / "config.yaml", config.to_yaml())
            write_json(Path(config.run_dir) / "versions.json", versions())
        except FlareError as error:
            problem = error
    # Every rank learns of a problem, so that none is left waiting in the next collective.
    path, problem = gather_objects((path, problem))[0]
    if problem is not None:
        raise problem
    assert path is not None
    return open_cache(path)
