"""Two hundred ways to damage a cache: `verify` finds each, and whoever reads on without it gets our errors or numbers.

What changes a file's size, its header or the manifest never gets as far as numbers.
"""

import json
import random
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flare_ds.checksums import file_sha256
from flare_ds.data.cache import Cache, open_cache, prepare_cache, verify
from flare_ds.exceptions import CacheError
from flare_ds.published import write_manifest
from tests.data.cache.texts import byte_tokenizer, make_config, some_tables, write_tables

CORRUPTIONS = 200
HEADER = 128
MOST_MEMORY = 2**24
"""Bytes; what is read of a cache of these tests takes far fewer, and a damaged number may ask for far more."""
Damage = Callable[[random.Random, Path, Path], bool]


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(draw: random.Random, path: Path, first: int, last: int) -> None:
    """Turn one bit round, of the bytes from `first` up to `last`."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(first, min(last, len(content)))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def flip_in_a_payload(draw: random.Random, cache: Path, _: Path) -> bool:
    path = draw.choice([path for path in files(cache) if path.suffix == ".npy" and path.stat().st_size > HEADER])
    flip(draw, path, HEADER, path.stat().st_size)
    return False


def flip_in_a_header(draw: random.Random, cache: Path, _: Path) -> bool:
    flip(draw, draw.choice([path for path in files(cache) if path.suffix == ".npy"]), 0, HEADER)
    return True


def flip_in_the_manifest(draw: random.Random, cache: Path, _: Path) -> bool:
    path = cache / "manifest.json"
    flip(draw, path, 0, path.stat().st_size)
    return True


def truncate(draw: random.Random, cache: Path, _: Path) -> bool:
    path = draw.choice(files(cache))
    content = path.read_bytes()
    path.write_bytes(content[: draw.choice([0, 1, len(content) - 1, draw.randrange(len(content))])])
    return True


def append(draw: random.Random, cache: Path, _: Path) -> bool:
    path = draw.choice(files(cache))
    path.write_bytes(path.read_bytes() + draw.choice([b"\n", b" ", b"\0", draw.randbytes(draw.randint(1, 200))]))
    return True


def delete(draw: random.Random, cache: Path, _: Path) -> bool:
    draw.choice(files(cache)).unlink()
    return True


def swap_two_files(draw: random.Random, cache: Path, _: Path) -> bool:
    """Two of one kind, so that their sizes and headers may agree."""
    while True:
        one = draw.choice(files(cache))
        other = draw.choice([path for path in files(cache) if path.suffix == one.suffix])
        content, others = one.read_bytes(), other.read_bytes()
        if content != others:
            one.write_bytes(others)
            other.write_bytes(content)
            return content[:HEADER] != others[:HEADER]


def take_a_file_of_another_cache(draw: random.Random, cache: Path, other: Path) -> bool:
    while True:
        path = draw.choice(files(cache))
        content, others = path.read_bytes(), (other / path.name).read_bytes()
        if content != others:
            path.write_bytes(others)
            return path.suffix == ".npy" and content[:HEADER] != others[:HEADER]


DAMAGES: list[Damage] = [
    flip_in_a_payload,
    flip_in_a_header,
    flip_in_the_manifest,
    truncate,
    append,
    delete,
    swap_two_files,
    take_a_file_of_another_cache,
]


def read(cache: Cache) -> list[object]:
    """Everything that can be read of a cache."""
    found: list[object] = [cache.manifest]
    for name in cache.manifest.splits:
        split = cache.split(name)
        found += [split.labels.tolist(), split.examples.tolist()]
        for stream in cache.streams:
            found += [split.prompt_lengths(stream).tolist(), split.lengths(stream).tolist()]
        for row in range(len(split)):
            found += [split.ids(row), split.golds(row)]
            for stream in cache.streams:
                found += [split.prompt(stream, row).tolist(), split.answer(stream, row).tolist()]
    return found


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of the same shapes and different texts."""
    built = []
    for said in ("word", "wrod"):
        root = tmp_path_factory.mktemp(said)
        write_tables(root, some_tables(30, said=said))
        built.append(prepare_cache(make_config(root), byte_tokenizer()))
    return built[0], built[1]


@pytest.mark.parametrize("seed", range(0, CORRUPTIONS, 20))
def test_every_corruption_is_found_and_none_breaks_the_reader(
    caches: tuple[Path, Path], tmp_path: Path, seed: int
) -> None:
    whole = read(open_cache(caches[0]))
    for number in range(seed, seed + 20):
        cache = tmp_path / str(number)
        shutil.copytree(caches[0], cache)
        damage = DAMAGES[number % len(DAMAGES)]
        seen_at_once = damage(random.Random(number), cache, caches[1])
        said = f"corruption {number}: {damage.__name__}"
        assert refuses(verify, cache), said
        found = read_or_refuse(cache, said)
        assert found is None or (not seen_at_once and len(found) == len(whole)), said


@pytest.mark.parametrize(
    ("section", "number", "why"),
    [
        ("train.examples.npy", 7, "its examples are not numbered in order"),
        ("validation.source.prompt_lengths.npy", 2**20, "a prompt is longer than its row"),
        ("test.target.tokens.npy", 60_000, "it holds token 60000 of"),
    ],
)
def test_numbers_that_cannot_be_are_found_though_all_checksums_are_right(
    caches: tuple[Path, Path], tmp_path: Path, section: str, number: int, why: str
) -> None:
    """As of a cache that anybody may have made."""
    cache = Path(shutil.copytree(caches[0], tmp_path / "made"))
    verify(cache)
    content = json.loads((cache / "manifest.json").read_bytes())
    del content["checksum"]
    written = (cache / section).read_bytes()
    wrong = np.array([number], content["sections"][section]["dtype"]).tobytes()
    second = HEADER + len(wrong)  # the ends are looked at by whoever opens it
    (cache / section).write_bytes(written[:second] + wrong + written[second + len(wrong) :])
    content["sections"][section]["sha256"] = file_sha256(cache / section)
    write_manifest(cache / "manifest.json", content)
    with pytest.raises(CacheError, match=why):
        verify(cache)


def refuses(open: Callable[[Path], object], cache: Path) -> bool:
    try:
        open(cache)
    except CacheError:
        return True
    return False


def read_or_refuse(cache: Path, said: str) -> list[object] | None:
    """What is read, or None if it was refused; nothing else happens, and no memory is asked for without bounds."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return read(open_cache(cache))
    except CacheError as error:
        assert error.problem and "flare-ds prepare" in error.fix, said
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_MEMORY, said
