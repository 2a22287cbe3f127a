"""Which commit a hub's name means: asked for once, then the same for whatever this process loads by that name.

A name alone means whatever its main branch is at that moment: a tokenizer could be of one commit and the weights of
another, and so could two ranks. `flare_ds.training.hub_names` makes all ranks mean the same.
"""

from transformers import AutoConfig

from flare_ds.models.names import is_path

_COMMITS: dict[str, str] = {}


def commit(name: str) -> str:
    """The commit that a hub's name means.

    Raises:
        OSError: no hub can be reached, or has none of that name.
        ValueError: its configuration is of no known kind.
    """
    if name not in _COMMITS:
        found = getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None)
        assert isinstance(found, str), f"{name} came from neither a directory nor a hub"
        _COMMITS[name] = found
    return _COMMITS[name]


def settle(name: str, commit: str) -> None:
    """From now on a name means this commit."""
    _COMMITS[name] = commit


def revision(name: str) -> str | None:
    """What `from_pretrained` is to be told beside a name; None: that is a path.

    Raises:
        OSError: see `commit`.
        ValueError: see `commit`.
    """
    return None if is_path(name) else commit(name)
