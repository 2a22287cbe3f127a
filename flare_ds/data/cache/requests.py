"""Which cache some settings asked for before: found again without data, translation, MT model, engine or hub.

    cache_dir/requests/<checksum of the request>.json    the key of the cache, and how what it was made from looked

A request is what the settings and the task say, where the data is said to lie, and the files of the tokenizer. Raw
files and those of the MT model that are there must have the sizes and times they had, and translations the manifests;
where one changed, the request is forgotten, and the cache is found as `flare-ds prepare` finds it: by reading every
row. What is gone cannot have changed.
"""

import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from flare_ds.checksums import file_sha256, json_sha256, unchanged_sha256
from flare_ds.config import Config, TaskConfig
from flare_ds.data.cache.key import asked_fields, rows_fingerprint
from flare_ds.data.cache.reader import Cache, open_cache
from flare_ds.data.parallel import load_parallel, parts_read
from flare_ds.exceptions import CacheError, FlareError, HostError
from flare_ds.files import write_json
from flare_ds.model_files.saved_config import saved_config
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import task_file
from flare_ds.tasks.table import TableTask
from flare_ds.translation.store import MANIFEST

_DIRECTORY = "requests"
_OURS = (("config.yaml", "cache.json"), ("sweep.json",))
"""Files that together tell the directory of a run, or of a sweep: what lies there comes and goes, and is no data."""
_VERSION = 4
"""Raised whenever the same request would be answered by other rows: a cache that answered before is then found by its
rows alone."""
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "chat_template*", "*/*.jinja")


def remember(config: Config, key: str, translations: Iterable[Path]) -> None:
    """Note the key of the cache that answered a config, and the directories of the translations it was made from.

    Where nothing can be written, the next run reads the data again.
    """
    try:
        manifests = {directory.name: file_sha256(directory / MANIFEST) for directory in translations}
        write_json(_path(config), {"key": key, "files": _files(config), "translations": manifests})
    except (HostError, OSError):  # OSError: a translation was removed meanwhile
        return


def remembered(config: Config) -> Cache | None:
    """The whole cache that a config was answered with before; None: there is none, or what it was made from changed."""
    try:
        request = json.loads(_path(config).read_text(encoding="utf-8"))
        key, files, translations = request["key"], request["files"], dict(request["translations"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(now and now != files.get(what) for what, now in _files(config).items()):
        return None
    if any(_translated_anew(config, name, manifest) for name, manifest in translations.items()):
        return None
    cache = stored(Path(config.cache_dir), key)
    asked = asked_fields(config, task_of(config.task))
    if cache is None or any(cache.manifest.fields.get(name) != value for name, value in asked.items()):
        return None
    return None if _rows_changed(config, cache) else cache


def _rows_changed(config: Config, cache: Cache) -> bool:
    """Whether a task in Python that is given no directory has other rows now: only it knows where it reads them."""
    if not config.task.is_code or config.task.data_dir is not None:
        return False
    try:
        data = load_parallel(task_of(config.task), config.task, config.translate)
    except (FlareError, OSError):  # what is gone cannot have changed
        return False
    return rows_fingerprint(data) != cache.manifest.fields["rows_sha256"]


def stored(cache_dir: Path, key: str) -> Cache | None:
    """The whole cache of a key, whatever its directory is called; those called after the key are looked at first."""
    directories = chain(cache_dir.glob(f"*-{key[:16]}"), cache_dir.iterdir() if cache_dir.is_dir() else ())
    for path in directories:
        with suppress(CacheError):  # it is something else, or not whole
            if not path.name.startswith(".") and (cache := open_cache(path)).key == key:
                return cache
    return None


def _path(config: Config) -> Path:
    translate = config.translate.model_dump(mode="json", exclude={"directory", "batch_size"})
    request: dict[str, Any] = {
        "version": _VERSION,
        "task_file": config.task.path and file_sha256(task_file(config.task.path)),
        "drop_shared_passages": config.task.drop_shared_passages,
        "asked": asked_fields(config, task_of(config.task)),
        "data_dir": config.task.data_dir and str(Path(config.task.data_dir).absolute()),
        "translate": translate if config.task.is_translated else None,
        "tokenizer": _tokenizer(config.model.base),
        "mt_encoder": Path(str(config.source.mt_encoder)).name if config.caches_mt else None,
    }
    return Path(config.cache_dir) / _DIRECTORY / f"{json_sha256(request)}.json"


def _tokenizer(name: str) -> str:
    """The files of a tokenizer and what decides how they are read, or the model's name where that is no directory here.

    Bases that share one share it, but a Llama and a Qwen2 may cut words otherwise by the very same files.
    """
    files, config = _tokenizer_files(Path(name)), saved_config(name)
    return json_sha256([files, *map(config.get, ("model_type", "tokenizer_class"))]) if files else name


def _tokenizer_files(directory: Path) -> dict[str, str]:
    files = {file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()}
    return {file.name: unchanged_sha256(file) for file in files}


def _files(config: Config) -> dict[str, dict[str, Any]]:
    """How raw files, the model that translates and the MT encoder's tokenizer look; empty where they are gone."""
    ours = [*map(os.path.realpath, (config.cache_dir, config.translate.directory, config.run_dir))]
    return {
        "data": {} if config.task.data_dir is None else _stamps(Path(config.task.data_dir), ours),
        "elsewhere": {} if config.task.data_dir is None else _stamps_elsewhere(config.task, config.task.data_dir),
        "translator": _stamps(Path(config.translate.model), ours) if config.task.is_translated else {},
        "mt_encoder": _tokenizer_files(Path(str(config.source.mt_encoder))) if config.caches_mt else {},
    }


def _translated_anew(config: Config, name: str, manifest_sha256: str) -> bool:
    """Whether a translation is there, and is not the one that had this manifest."""
    manifest = Path(config.translate.directory) / name / MANIFEST
    return manifest.is_file() and file_sha256(manifest) != manifest_sha256


def _stamps(directory: Path, ours: Collection[str]) -> dict[str, list[int]]:
    """Size and time of every file, in folders that are links, too; not of what flare_ds writes."""
    stamps: dict[str, list[int]] = {}
    if directory.is_file():
        return {directory.name: _stamp(directory)}
    seen = {*ours, os.path.realpath(directory)}  # a link may lead back to where it lies
    for parent, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _passed(Path(parent, name), seen)]
        for file in (Path(parent, name) for name in names):
            with suppress(OSError):  # it went meanwhile, or is a link to nowhere
                stamps[str(file.relative_to(directory))] = _stamp(file)
    return stamps


def _stamps_elsewhere(config: TaskConfig, data_dir: str) -> dict[str, list[int]]:
    """Likewise of every table of a declared task that lies outside of `task.data_dir`."""
    task, inside = task_of(config), os.path.abspath(data_dir)
    if not isinstance(task, TableTask):
        return {}
    files = (file for part in parts_read(task, config) for file in task.local_files(data_dir, *part))
    stamps: dict[str, list[int]] = {}
    for place in sorted({Path(os.path.abspath(file)) for file in files}):
        with suppress(OSError):
            if not place.is_relative_to(inside):
                stamps[str(place)] = _stamp(place)
    return stamps


def _stamp(file: Path) -> list[int]:
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def _passed(folder: Path, seen: set[str]) -> bool:
    """Whether a folder is a run or a sweep, or was seen before; it is seen now."""
    real = os.path.realpath(folder)
    if real in seen or any(all((folder / name).is_file() for name in names) for names in _OURS):
        return True
    seen.add(real)
    return False
