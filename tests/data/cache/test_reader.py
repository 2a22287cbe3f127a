"""Opening a cache: what is read, what a reader may do with it, and what is refused with the command that rebuilds."""

import json
import os
import pickle
import re
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flare_ds.data.cache import open_cache, prepare_cache, verify
from flare_ds.exceptions import CacheError, HostError
from tests.data.cache.moods import moods_config, word_tokenizer

REPOSITORY = Path(__file__).resolve().parents[3]


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_arrays_are_read_only_aligned_and_of_the_documented_types(built: Path) -> None:
    split = open_cache(built).split("train")
    numbers = [split.labels, split.examples, split.prompt_lengths("target")]
    for dtype, found in {np.int32: numbers, np.uint16: [split.prompt("target", 0)]}.items():
        for array in found:
            assert array.dtype == dtype
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    for path in built.glob("*.npy"):
        assert np.load(path, mmap_mode="r").offset % 64 == 0


def test_numpy_reads_what_the_reader_reads(built: Path) -> None:
    cache = open_cache(built)
    for name, section in cache.manifest.sections.items():
        array = np.load(built / name, allow_pickle=False)
        assert (array.dtype.str, list(array.shape)) == (section.dtype, section.shape)
    tokens, offsets = (np.load(built / f"test.source.{part}.npy") for part in ("tokens", "offsets"))
    split = cache.split("test")
    for row in range(len(split)):
        said = [*split.prompt("source", row), *split.answer("source", row)]
        assert tokens[offsets[row] : offsets[row + 1]].tolist() == said and split.lengths("source")[row] == len(said)


def test_pickling_sends_no_tokens_but_reopens(built: Path) -> None:
    cache = open_cache(built)
    split = cache.split("train")
    pickled = pickle.dumps(split)
    assert split.prompt("source", 3).tobytes() not in pickled
    assert np.array_equal(pickle.loads(pickled).prompt("source", 3), split.prompt("source", 3))
    again = pickle.loads(pickle.dumps(cache))
    assert again == cache and again.manifest == cache.manifest


def test_the_readme_is_true(built: Path) -> None:
    """Its code runs on this cache and finds what the reader finds; its tables name every file and manifest entry."""
    readme = (REPOSITORY / "tokenized_cache/README.md").read_text(encoding="utf-8")
    cache = open_cache(built)
    with_numpy, with_package = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    variables: dict[str, np.ndarray] = {}
    exec(re.sub(r"tokenized_cache/[\w-]+", str(built), with_numpy), variables)
    train = cache.split("train")
    expected = [*train.prompt("target", 0), *train.answer("target", 0)]
    assert variables["first_row"].tolist() == expected
    exec(re.sub(r"tokenized_cache/[\w-]+", str(built), with_package), {})
    content = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    table = readme.partition("| entry | meaning |")[2].partition("**What")[0]
    first_cells = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(content)
    (splits,) = (line for line in table.splitlines() if line.startswith("| `splits`"))
    assert set(re.findall(r"`(\w+)`", splits)) == {"splits", *content["splits"]["train"]}
    sections = re.findall(r"(train\.[\w.]+npy) +(\w+)[^[\n]*(\[n(?: \+ 1)?\])?", readme)
    alike = {name.replace(".target.", ".source.") for name in cache.manifest.sections if name.startswith("train.")}
    assert {name for name, *_ in sections if not name.startswith("train.golds")} == alike
    for name, dtype, shape in sections:
        if name.startswith("train.golds"):
            continue
        section = cache.manifest.sections[name]
        assert np.dtype(section.dtype) == dtype
        if shape:
            assert section.shape == [len(train) + ("+ 1" in shape)]


@pytest.mark.parametrize(
    "change", ["no directory", "no manifest", "not JSON", "old", "unknown", "edited", "cut off", "white space"]
)
def test_a_bad_manifest_is_refused_with_the_command_that_rebuilds(built: Path, change: str) -> None:
    path = built / "manifest.json"
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    edits = {
        "not JSON": (text[:100], "cannot be used"),
        "old": (json.dumps(content | {"format_version": 1}), "format version 1, this flare_ds reads version 4"),
        "unknown": ('{"something": "else"}', "format version None"),
        "edited": (json.dumps(content | {"labels": ["bad", "good"]}), "was changed"),
        "cut off": (text[:-1], "was changed"),
        "white space": (text.replace("\n ", "\n\t", 1), "was changed"),
    }
    said = "no finished cache"
    if change in edits:
        written, said = edits[change]
        path.write_text(written, encoding="utf-8")
    else:
        path.unlink()
    with pytest.raises(CacheError, match=said) as caught:
        open_cache(built / "nowhere" if change == "no directory" else built)
    assert "flare-ds prepare CONFIG" in caught.value.fix


def section_files() -> list[str]:
    streams = [
        f"{stream}.{part}" for stream in ("source", "target") for part in ("tokens", "offsets", "prompt_lengths")
    ]
    parts = [*streams, "labels", "examples", "clusters", "ids", "ids.offsets"]
    return [f"{split}.{part}.npy" for split in ("train", "validation", "test") for part in parts]


def test_every_missing_or_truncated_section_is_found_at_once(built: Path) -> None:
    assert set(section_files()) == set(open_cache(built).manifest.sections)
    for name in section_files():
        content = (built / name).read_bytes()
        (built / name).write_bytes(content[:-1])
        with pytest.raises(CacheError, match=rf"{name}.*has {len(content) - 1} bytes.*says {len(content)}"):
            open_cache(built)
        (built / name).unlink()
        with pytest.raises(CacheError, match=f"{name} .* is missing"):
            open_cache(built)
        (built / name).write_bytes(content)
    verify(built)


def test_every_flipped_byte_is_found_by_verify(built: Path) -> None:
    for name in section_files():
        size = (built / name).stat().st_size
        for position in (0, 40, size // 2, size - 1):
            flip_byte(built / name, position)
            with pytest.raises(CacheError, match=f"damaged: the content of {name} was changed") as caught:
                verify(built)
            assert "flare-ds prepare CONFIG" in caught.value.fix
            flip_byte(built / name, position)
    verify(built)


def test_a_damaged_header_is_refused_when_the_split_opens(built: Path) -> None:
    path = built / "train.labels.npy"
    original = path.read_bytes()
    for damaged in (b"?" + original[1:], original.replace(b"<i4", b"<f4"), original.replace(b"{", b"(", 1)):
        assert len(damaged) == len(original) and damaged != original
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"section train\.labels\.npy .* is damaged"):
            open_cache(built).split("train")


def test_a_split_that_a_cache_lacks_is_told_with_those_it_has(built: Path) -> None:
    """A cache of a file's rows has only the one."""
    cache = open_cache(built)
    manifest = cache.manifest.model_copy(update={"splits": {"test": cache.manifest.splits["test"]}})
    with pytest.raises(CacheError, match="has no split 'train'") as refused:
        replace(cache, manifest=manifest).split("train")
    assert refused.value.fix == "give one of: test"


@pytest.mark.parametrize("left", [0, 1, 4])
def test_what_cannot_be_opened_for_want_of_descriptors_is_not_damaged(built: Path, left: int) -> None:
    """A descriptor for nothing, for the manifest alone, for a few of the sections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
    try:
        with pytest.raises(HostError, match=r"cannot open .*: Too many open files") as refused:
            open_cache(built).split("train")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in refused.value.fix


@pytest.mark.parametrize("number", [-1, 3, 2**40])
@pytest.mark.parametrize("part", ["ids.offsets", "target.offsets", "target.prompt_lengths"])
def test_a_row_that_points_outside_its_section_is_refused(built: Path, part: str, number: int) -> None:
    section = open_cache(built).manifest.sections[f"train.{part}.npy"]
    content = np.load(built / f"train.{part}.npy")
    content[5] = np.int64(number).astype(content.dtype) if number != 2**40 else np.iinfo(content.dtype).max
    np.save(built / f"train.{part}.npy", content)
    assert (built / f"train.{part}.npy").stat().st_size == section.bytes
    split = open_cache(built).split("train")
    split.ids(3), split.answer("target", 3)
    if part == "target.prompt_lengths" and number == 3:
        assert len(split.prompt("target", 5)) == 3  # only `verify` can tell
        return
    with pytest.raises(CacheError, match=r"section train\.(ids|target)\.offsets.npy of .* is damaged: row [45] has"):
        for row in (4, 5):
            split.ids(row), split.prompt("target", row)


def test_prepare_replaces_a_cache_that_does_not_open(root: Path, built: Path, capsys: pytest.CaptureFixture) -> None:
    good = {path.name: path.read_bytes() for path in built.iterdir()}
    (built / "test.labels.npy").unlink()
    assert prepare_cache(moods_config(root), word_tokenizer()) == built
    assert {path.name: path.read_bytes() for path in built.iterdir()} == good
    assert "building it again: section test.labels.npy" in capsys.readouterr().err
    assert list((root / "caches").glob("moods*")) == [built]


def test_prepare_refuses_another_cache_in_its_place_and_names_the_difference(root: Path, built: Path) -> None:
    other = prepare_cache(moods_config(root, max_prompt_tokens=64), word_tokenizer())
    built.rename(root / "caches/away")
    other.rename(built)
    with pytest.raises(CacheError, match="holds another cache: max_prompt_tokens: 64, not 128") as caught:
        prepare_cache(moods_config(root), word_tokenizer())
    assert "flare-ds prepare CONFIG" in caught.value.fix
