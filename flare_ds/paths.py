"""Paths as a user types them: `~` and `$VAR` are filled in, and names that no verb could handle are refused.

A shell fills them in only where it sees them: not in a YAML, not in quotes, not behind `run_dir=`.
"""

import os
import re
from pathlib import Path

from flare_ds.exceptions import ConfigError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def expanded(text: str) -> str:
    """A path with `~`, `~name`, `$VAR` and `${VAR}` filled in; filled in again, it stays as it is.

    Raises:
        ConfigError: it is empty, names a variable or a user that is not there, begins with a dash, or holds a
            character that is not printed.
    """
    path = os.path.expanduser(_VARIABLE.sub(lambda name: _value(text, name[1] or name[2]), text))
    if not path.strip():
        raise ConfigError(f"path {text!r} is empty", fix="name a file or a directory")
    if path.startswith("~") or "~" in Path(path).parts:
        raise ConfigError(f"path {text!r}: there is no such home directory", fix="write the absolute path")
    if path.startswith("-") or str(Path(path)).startswith("-"):
        problem = f"path {text!r} begins with a dash, as the options of a command do"
        raise ConfigError(problem, fix="choose another name, or write the absolute path")
    odd = _UNPRINTABLE.search(path)
    if odd:
        raise ConfigError(f"path {text!r} has {odd[0]!r}, which a path may not contain", fix="choose another name")
    return path


def _value(text: str, name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigError(
            f"path {text!r}: the variable {name} is not set", fix=f"export {name}=..., or write its value"
        )
    if _VARIABLE.search(value):
        problem = f"path {text!r}: the variable {name} is {value!r}, which names a variable itself"
        raise ConfigError(problem, fix=f"set {name} to the value that is meant")
    return value
