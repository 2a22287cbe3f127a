"""All of a cache appears, or nothing: beside other builders, dead builds, and disks that cannot be written."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from flare_ds.data.cache import prepare_cache, verify
from flare_ds.data.cache.section import SectionWriter
from flare_ds.exceptions import HostError
from tests.data.cache.moods import NESTED, moods_config, word_tokenizer


def test_of_two_builders_the_first_wins_and_both_end_with_its_cache(root: Path) -> None:
    config = moods_config(root, NESTED.name)
    winners: list[tuple[Path, int]] = []

    def build_first() -> None:
        directory = prepare_cache(config, word_tokenizer())
        winners.append((directory, directory.stat().st_ino))

    NESTED.meanwhile = build_first
    directory = prepare_cache(config, word_tokenizer())
    assert winners == [(directory, directory.stat().st_ino)]
    assert list((root / "caches").glob("*moods*")) == [directory]
    verify(directory)


def test_a_failing_build_removes_what_it_wrote(root: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    NESTED.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        prepare_cache(moods_config(root, NESTED.name), word_tokenizer())
    assert list((root / "caches").glob("*moods*")) == []


def test_only_builds_of_the_same_cache_that_are_surely_dead_are_removed(root: Path, built: Path) -> None:
    """A build that still writes into its files is older than a day, and no other is touched."""
    yesterday = time.time() - 25 * 3600
    names = {
        "dead": f".{built.name}.00000000",
        "writing": f".{built.name}.00000001",
        "recent": f".{built.name}.00000002",
        "of another": ".moods-en-fr-0123456789abcdef.00000000",
    }
    for state, name in names.items():
        build = root / "caches" / name
        build.mkdir()
        (build / "train.labels.npy").write_bytes(b"")
        if state != "recent":
            os.utime(build, (yesterday, yesterday))
        if state not in ("recent", "writing"):
            os.utime(build / "train.labels.npy", (yesterday, yesterday))
    shutil.rmtree(built)
    assert prepare_cache(moods_config(root), word_tokenizer()) == built
    kept = {names[state] for state in ("writing", "recent", "of another")}
    assert {path.name for path in (root / "caches").glob("*moods*")} == {built.name, *kept}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("size", [1, 10**6])
def test_a_full_disk_is_explained(size: int) -> None:
    section = SectionWriter(Path("/dev/full"), np.dtype("u1"))
    with pytest.raises(HostError, match=r"cannot write /dev/full: No space.*\n  fix: free some .*, or set cache_dir"):
        section.append(np.zeros(size, np.uint8))
        section.finish()
    section.close()


def test_a_cache_dir_that_cannot_be_written_is_explained(root: Path) -> None:
    (root / "caches").write_text("a file where the directory should be")
    with pytest.raises(HostError, match=r"cannot write .*caches.*\n  fix: set cache_dir"):
        prepare_cache(moods_config(root), word_tokenizer())
