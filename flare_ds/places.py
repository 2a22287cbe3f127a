"""Where a run's settings point to: recorded as absolute paths, found again when the run was moved or copied.

A run lies where it lies, whatever its config.yaml says. What that names is looked for at the same place beside the
run as when it began (the run was moved together with it), and else where it was.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flare_ds.nested_settings import flat, merged, nested
from flare_ds.shipped import AUTO, is_name

_PATHS = ("cache_dir", "task.path", "task.data_dir", "translate.directory")
_PATHS_OR_NAMES = ("model.base", "translate.model", "source.mt_encoder")
"""Directories, or names of the hub: a path only where there is something."""
_FILES = ("deepspeed", *_PATHS, *_PATHS_OR_NAMES)
PLACES = ("run_dir", *_FILES)


def placed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested, whose paths are absolute: they mean the same in every working directory."""
    said = flat(settings)
    names = tuple(name for name in _PATHS_OR_NAMES if Path(said.get(name) or "").exists())
    own_json = () if is_name(said.get("deepspeed") or AUTO) else ("deepspeed",)
    return _changed(settings, ("run_dir", *own_json, *_PATHS, *names), os.path.abspath)


def relocated(settings: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The saved settings of the run that lies in `directory` now."""
    saved = settings.get("run_dir")
    began = os.path.abspath(saved if saved and isinstance(saved, str) else directory)
    now = os.path.abspath(directory)

    def find(path: str) -> str:
        beside = os.path.normpath(os.path.join(now, os.path.relpath(path, began)))
        return beside if os.path.isabs(path) and os.path.exists(beside) else path

    found = settings if began == now else _changed(settings, _FILES, find)
    return {**found, "run_dir": str(directory)}


def _changed(settings: Mapping[str, Any], names: tuple[str, ...], change: Callable[[str], str]) -> dict[str, Any]:
    said = flat(settings)
    values = ((name, said.get(name)) for name in names)
    return merged(settings, nested({name: change(value) for name, value in values if isinstance(value, str) and value}))
