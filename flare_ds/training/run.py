"""Opening a run on every rank: its directory claimed, its config and versions saved, its cache found."""

from pathlib import Path

from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.files import write_json, write_text
from flare_ds.models.loading import load_tokenizer
from flare_ds.training.process_group import join_process_group
from flare_ds.training.rank_zero import on_rank_zero
from flare_ds.versions import versions


def open_run(config: Config) -> Cache:
    """Save what the run is into its directory and open its cache, built by rank 0 if it is not there yet.

    Raises:
        FlareError: what rank 0 met, on every rank, before any of them starts work.
    """
    join_process_group()
    return open_cache(on_rank_zero(lambda: _prepare(config)))


def _prepare(config: Config) -> Path:
    path = prepare_cache(config, load_tokenizer(config.model))
    write_text(Path(config.run_dir) / "config.yaml", config.to_yaml())
    write_json(Path(config.run_dir) / "versions.json", versions())
    return path
