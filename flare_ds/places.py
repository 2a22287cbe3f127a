"""Where a run's settings point to: recorded as absolute paths, found again when the run was moved or copied.

A run lies where it lies, whatever its config.yaml says. What that names is looked for at the same place beside the
run as when it began (the run was moved together with it), and else where it was.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flare_ds.shipped import AUTO, is_name

_PATHS = ("cache_dir", "task.path", "task.data_dir", "translate.directory")
_PATHS_OR_NAMES = ("model.base", "translate.model", "source.mt_encoder")
"""Directories, or names of the hub: a path only where there is something."""
_FILES = ("deepspeed", *_PATHS, *_PATHS_OR_NAMES)
PLACES = ("run_dir", *_FILES)


def placed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested, whose paths are absolute: they mean the same in every working directory."""
    names = tuple(name for name in _PATHS_OR_NAMES if Path(_get(settings, name) or "").exists())
    own_json = () if is_name(_get(settings, "deepspeed") or AUTO) else ("deepspeed",)
    return _changed(settings, ("run_dir", *own_json, *_PATHS, *names), os.path.abspath)


def relocated(settings: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The saved settings of the run that lies in `directory` now."""
    began = os.path.abspath(_get(settings, "run_dir") or directory)
    now = os.path.abspath(directory)

    def find(path: str) -> str:
        beside = os.path.normpath(os.path.join(now, os.path.relpath(path, began)))
        return beside if os.path.isabs(path) and os.path.exists(beside) else path

    found = settings if began == now else _changed(settings, _FILES, find)
    return {**found, "run_dir": str(directory)}


def _get(settings: Mapping[str, Any], name: str) -> str | None:
    section, _, leaf = name.rpartition(".")
    holder = (settings.get(section) or {}) if section else settings
    value = holder.get(leaf) if isinstance(holder, Mapping) else None
    return value if isinstance(value, str) else None


def _changed(settings: Mapping[str, Any], names: tuple[str, ...], change: Callable[[str], str]) -> dict[str, Any]:
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for name in names:
        if value := _get(settings, name):
            section, _, leaf = name.rpartition(".")
            holder = changed[section] if section else changed
            holder[leaf] = change(value)
    return changed
