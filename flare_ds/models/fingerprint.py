"""Telling two models apart: what of a model decides the states it computes."""

from pathlib import Path

from transformers import AutoConfig

from flare_ds.checksums import directory_sha256
from flare_ds.exceptions import ConfigError


def model_fingerprint(name: str) -> str:
    """The commit of a hub model, or one sha256 over the names and contents of a directory's own files.

    Contents, not sizes: two bases merged from adapters of different seeds differ in nothing else. That reads every
    weight once (about 1 GB a second).

    Args:
        name: directory of a saved model, or a hub name.

    Raises:
        ConfigError: there is no model of that name.
    """
    directory = Path(name)
    if directory.is_dir():
        return directory_sha256(directory)
    try:
        commit = getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the model {name!r}: {error}", fix="check the name") from error
    assert isinstance(commit, str), f"{name} came from neither a directory nor a hub"
    return commit
