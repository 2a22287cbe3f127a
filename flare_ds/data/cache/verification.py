"""Looking at all of a cache: its bytes are what was written, its numbers can be. Opening it looks at little of that.

Shapes: n rows of a split.
"""

from pathlib import Path

import numpy as np
from flare_ds.checksums import file_sha256
from flare_ds.data.cache.format import Section
from flare_ds.data.cache.reader import REMOVE, Cache, CacheSplit, open_cache
from flare_ds.data.streams import is_base
from flare_ds.exceptions import CacheError
from tqdm import tqdm

_AT_ONCE = 2**22


def verify(path: Path) -> None:
    """Read every byte of a cache, compare the checksums, and look at every number.

    Raises:
        CacheError: as `open_cache`, or naming every section whose content was changed, or one that cannot be.
    """
    cache = open_cache(path)
    if damaged := _changed(path, cache.manifest.sections):
        raise CacheError(f"{path} is damaged: the content of {', '.join(damaged)} was changed", fix=REMOVE)
    for name in cache.manifest.splits:
        check_values(cache, cache.split(name))


def _changed(path: Path, sections: dict[str, Section]) -> list[str]:
    """Names of the sections whose content is not what the manifest says."""
    changed = []
    total = sum(section.bytes for section in sections.values())
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, delay=1) as progress:
        for name, section in sections.items():
            try:
                if file_sha256(path / name) != section.sha256:
                    changed.append(name)
            except OSError as error:
                raise CacheError(f"cannot read {error.filename}: {error.strerror}", fix=REMOVE) from error
            progress.update(section.bytes)
    return changed


def check_values(cache: Cache, split: CacheSplit) -> None:
    """Look at every number of a split.

    Raises:
        CacheError: naming the section that holds one that cannot be.
    """
    steps = np.diff(split.examples)
    _refuse(split, "examples", bool(((steps < 0) | (steps > 1)).any()), "its examples are not numbered in order")
    for stream in cache.streams:
        lengths_n, prompts_n = split.lengths(stream), split.prompt_lengths(stream)
        _refuse(
            split, f"{stream}.prompt_lengths", bool((prompts_n > lengths_n).any()), "a prompt is longer than its row"
        )
        if is_base(stream):  # the manifest tells no other vocabulary
            largest = _largest(split.tokens(stream))
            known = cache.manifest.vocabulary_size
            _refuse(split, f"{stream}.tokens", largest >= known, f"it holds token {largest} of {known}")


def _refuse(split: CacheSplit, part: str, wrong: bool, why: str) -> None:
    if wrong:
        raise split.damaged(part, why)


def _largest(tokens: np.ndarray) -> int:
    pieces = range(0, len(tokens), _AT_ONCE)
    return max((int(tokens[start : start + _AT_ONCE].max()) for start in pieces), default=0)
