"""Which commit a hub's name means: asked for once, then the same for whatever this process loads by that name.

A name alone means whatever its main branch is at that moment: a tokenizer could be of one commit and the weights of
another, and so could two ranks, or two workers that translate. `flare_ds.runs.hub_names` makes all ranks mean the
same; `flare_ds.translation.workers` hands on what was asked.
"""

import tempfile
from pathlib import Path

from huggingface_hub import constants
from transformers.utils import cached_file

from flare_ds.files import disk_errors
from flare_ds.model_files.names import is_path, missing_directory

_COMMITS: dict[str, str] = {}
UNREACHED = "check the name, and that this machine reaches the hub and may read the model; or give a directory"
"""What to do where a name cannot be read."""


def commit(name: str) -> str:
    """The commit that a hub's name means.

    Raises:
        OSError: no hub can be reached, or has none of that name.
        HostError: what is fetched cannot be kept.
    """
    if name not in _COMMITS:
        try:
            file = cached_file(name, "config.json")
        except OSError:
            _check_cache()
            raise
        assert file is not None, "it has raised"
        _COMMITS[name] = Path(file).parent.name  # .../snapshots/COMMIT/config.json
    return _COMMITS[name]


def _check_cache() -> None:
    """Say so where the hub's client could keep nothing; one that is full of what is needed may well be read-only."""
    cache = Path(constants.HF_HUB_CACHE)
    if not constants.HF_HUB_OFFLINE:
        with disk_errors(cache, elsewhere="set HF_HOME to a directory you may write to, with room"):
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()


def settle(name: str, commit: str) -> None:
    """From now on a name means this commit."""
    _COMMITS[name] = commit


def settled() -> dict[str, str]:
    """The commits that names mean by now, for another process to mean the same."""
    return dict(_COMMITS)


def revision(name: str) -> str | None:
    """What `from_pretrained` is to be told beside a name; None: that is a path.

    Raises:
        OSError: it is a path at which nothing is, which `from_pretrained` would ask the hub for; or see `commit`.
        HostError: see `commit`.
    """
    if not is_path(name):
        return commit(name)
    if not Path(name).exists():
        raise FileNotFoundError(missing_directory(name) or f"there is no {name!r}")
    return None


def directory_of(name: str) -> Path:
    """Where a model's files are: its directory, or that in which the hub's client keeps them."""
    config = None if Path(name).is_dir() else cached_file(name, "config.json", revision=revision(name))
    return Path(config).parent if config else Path(name)
