"""A directory that is either whole or absent: built under a hidden name beside its place, then renamed.

A build that dies leaves a hidden directory without a manifest, which never opens; a later build of the same cache
removes it once it is surely dead. Builders of the same cache do not wait for each other: the first to finish wins, the
others find its cache and drop their own.
"""

import errno
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flare_ds.data.cache.format import ELSEWHERE
from flare_ds.data.cache.reader import open_cache
from flare_ds.data.cache.trash import is_trash, set_aside, sweep_trash
from flare_ds.exceptions import CacheError
from flare_ds.files import disk_errors, sync

_DEAD_AFTER_S = 24 * 3600
"""A living build writes every few seconds; a day leaves room for one that was suspended, and for clocks that differ."""


@contextmanager
def building(directory: Path) -> Iterator[Path]:
    """Yield a fresh directory to fill with a cache, which then appears as `directory`.

    Raises:
        HostError: the place is not writable.
    """
    with disk_errors(directory.parent, elsewhere=ELSEWHERE):
        partial = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
        partial.mkdir(parents=True)
    _remove_dead_builds(directory)
    try:
        yield partial
        with disk_errors(directory.parent, elsewhere=ELSEWHERE):
            _publish(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, directory: Path) -> None:
    """Rename into place; where a good cache is already, another builder was faster, and a bad one makes way."""
    while True:
        try:
            partial.rename(directory)
            return sync(directory.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            open_cache(directory)
            return None
        except CacheError:
            with suppress(FileNotFoundError):  # another builder moved it first
                set_aside(directory)


def _remove_dead_builds(directory: Path) -> None:
    sweep_trash(directory.parent)
    for build in (path for path in directory.parent.glob(f".{directory.name}.*") if not is_trash(path)):
        with suppress(FileNotFoundError):  # it has just been finished or removed
            written = max(path.stat().st_mtime for path in (build, *build.iterdir()))
            if time.time() - written > _DEAD_AFTER_S:
                shutil.rmtree(build, ignore_errors=True)
