"""Telling a mistyped path from a hub name: `out/base` may be either.

./x  /x  ~/x  a/b/c  x y     a path: no hub has a model of such a name
models/x                     a path: the shipped configs have their bases there
out/x                        a path, where something is there; or where `out` is a directory here, unless the hub's
                             cache holds a model of that name
owner/x                      else a hub's name
"""

import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHIPPED = "models"
"""The directory of bases that every shipped config names."""


def is_path(name: str) -> bool:
    """Whether a model's name is meant as a path, whether or not something is there: no hub is asked for it."""
    if name.startswith((".", "~", "/")) or not _HUB_NAME.fullmatch(name) or Path(name).exists():
        return True
    parent = Path(name).parts[0]
    return "/" in name and (parent == SHIPPED or (Path(parent).is_dir() and not _is_cached(name)))


def missing_directory(name: str) -> str | None:
    """What is wrong with a path at which nothing is; None: nothing like it is there."""
    for parent in Path(name).parents:
        if parent != Path() and parent.is_dir():
            return f"there is no such directory: {str(parent)!r} holds no {Path(name).relative_to(parent).parts[0]!r}"
    return None


def _is_cached(name: str) -> bool:
    """Whether a hub's model of that name was downloaded once."""
    from huggingface_hub import constants  # takes a moment, and most names do not ask for it
    from huggingface_hub.file_download import repo_folder_name

    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots").is_dir()
