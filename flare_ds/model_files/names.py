"""Telling a mistyped path from a hub name: `out/base` may be either."""

import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: it is none that a hub could have, or something is there."""
    return name.startswith((".", "~", "/")) or not _HUB_NAME.fullmatch(name) or Path(name).exists()


def missing_directory(name: str) -> str | None:
    """What is wrong with a name that no hub answers to, if it was meant as a path; None: nothing like it is there."""
    for parent in Path(name).parents:
        if parent != Path() and parent.is_dir():
            return f"there is no such directory: {str(parent)!r} holds no {Path(name).relative_to(parent).parts[0]!r}"
    return None
