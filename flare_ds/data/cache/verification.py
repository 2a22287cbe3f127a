"""Looking at all of a cache: its bytes are what was written, its numbers can be. Opening it looks at little of that.

Shapes: n rows of a split.
"""

from pathlib import Path

import numpy as np

from flare_ds.data.cache.format import FORMAT, MANIFEST
from flare_ds.data.cache.manifest import read_manifest
from flare_ds.data.cache.reader import REMOVE, Cache, CacheSplit, open_cache
from flare_ds.data.streams import is_base
from flare_ds.exceptions import CacheError
from flare_ds.kept import About, Kind


def check_values(cache: Cache, split: CacheSplit) -> None:
    """Look at every number of a split.

    Raises:
        CacheError: naming the section that holds one that cannot be.
    """
    steps, known = np.diff(split.examples), cache.manifest.vocabulary_size
    if ((steps < 0) | (steps > 1)).any():
        raise split.damaged("examples", "its examples are not numbered in order")
    for stream in cache.streams:
        if (split.prompt_lengths(stream) > split.lengths(stream)).any():
            raise split.damaged(f"{stream}.prompt_lengths", "a prompt is longer than its row")
        # The manifest tells the base's vocabulary alone.
        if is_base(stream) and (largest := split.largest_id(stream)) >= known:
            raise split.damaged(f"{stream}.tokens", f"it holds token {largest} of {known}")


def _about(path: Path) -> About:
    manifest = read_manifest(path)
    rows = " + ".join(f"{split.rows:,}" for split in manifest.splits.values())
    return manifest.fields["task"], manifest.languages, rows


def _look(path: Path) -> None:
    cache = open_cache(path)
    for name in cache.manifest.splits:
        check_values(cache, cache.split(name))


TOKENS = Kind(
    name="tokens",
    manifest=MANIFEST,
    is_manifest=lambda content: content.get("format") == FORMAT,
    file="train.target.*",
    files=lambda path: open_cache(path).manifest.sections,
    damaged=lambda path, why: CacheError(str(why), fix=REMOVE),
    about=_about,
    look=_look,
)

verify = TOKENS.verify
"""Reads every byte of a cache, compares the checksums, and looks at every number; raises CacheError."""
