"""Opening a cache: sizes are checked at once, sections are memory-mapped when first used, slices copy nothing.

Shapes: n rows of a split, p tokens of a prompt, a tokens of an answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flare_ds.data.cache.format import REBUILD, Manifest, file_sha256, read_manifest, section_name
from flare_ds.exceptions import CacheError

_REMOVE = f"delete the directory, then {REBUILD}"


class CacheSplit:
    """The rows of one split. Arrays are read-only views of the files; pickling sends no tokens, but reopens."""

    def __init__(self, directory: Path, manifest: Manifest, name: str) -> None:
        self.name = name
        self._directory = directory
        self._manifest = manifest
        self._ids = self._map("ids")
        self._id_offsets = self._map("ids", "offsets")
        self.labels = self._map("labels")
        """int32 [n]: index into the cache's label words."""
        self._tokens: dict[str, np.ndarray] = {stream: self._map(stream, "tokens") for stream in manifest.streams}
        self._offsets: dict[str, np.ndarray] = {stream: self._map(stream, "offsets") for stream in manifest.streams}
        self._prompt_lengths: dict[str, np.ndarray] = {
            stream: self._map(stream, "prompt_lengths") for stream in manifest.streams
        }

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheSplit, (self._directory, self._manifest, self.name)

    def ids(self, index: int) -> str:
        """Id of a row."""
        start, end = self._id_offsets[index : index + 2]
        return self._ids[start:end].tobytes().decode("utf-8")

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int32 [n]."""
        return self._prompt_lengths[stream]

    def prompt(self, stream: str, index: int) -> np.ndarray:
        """Tokens of a row's prompt, special tokens included: uint16 or uint32 [p]."""
        start = self._offsets[stream][index]
        return self._tokens[stream][start : start + self._prompt_lengths[stream][index]]

    def answer(self, stream: str, index: int) -> np.ndarray:
        """Tokens of a row's label word, then eos if the tokenizer has one: uint16 or uint32 [a]."""
        start, end = self._offsets[stream][index : index + 2]
        return self._tokens[stream][start + self._prompt_lengths[stream][index] : end]

    def _map(self, *parts: str) -> np.ndarray:
        name = section_name(self.name, *parts)
        section = self._manifest.sections[name]
        try:
            array = np.load(self._directory / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CacheError(f"section {name} of {self._directory} is damaged: {error}", fix=_REMOVE) from error
        if (array.dtype.str, list(array.shape)) != (section.dtype, section.shape):
            problem = f"section {name} of {self._directory} is damaged: it holds {array.dtype.str} {array.shape}"
            raise CacheError(f"{problem}, the manifest says {section.dtype} {section.shape}", fix=_REMOVE)
        return array.view(np.ndarray)  # a plain view: slicing np.memmap itself is several times slower


@dataclass(frozen=True)
class Cache:
    """An opened cache. Cheap to pickle: it holds no file."""

    path: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """Content key: equal keys, equal tokens."""
        return self.manifest.key

    @property
    def streams(self) -> tuple[str, ...]:
        """Sources first, e.g. `("source", "source2", "target")`; just `("target",)` for a single language."""
        return tuple(self.manifest.streams)

    @property
    def labels(self) -> list[str]:
        """The label words, in the order of the row labels."""
        return self.manifest.labels

    @property
    def label_tokens(self) -> list[list[int]]:
        """Token ids of a space and each label word, without special tokens."""
        return self.manifest.label_tokens

    @property
    def pad_id(self) -> int:
        """Token id to pad batches with."""
        return self.manifest.pad_id

    def split(self, name: str) -> CacheSplit:
        """Open `train`, `validation` or `test`.

        Raises:
            CacheError: a section's header is damaged.
        """
        assert name in self.manifest.splits, f"no split {name!r}"
        return CacheSplit(self.path, self.manifest, name)


def open_cache(path: Path) -> Cache:
    """Open a cache directory, checking the manifest and that every section is there in its full size.

    Raises:
        CacheError: no manifest, another format version, or a section missing or of another size.
    """
    manifest = read_manifest(path)
    for name, section in manifest.sections.items():
        file = path / name
        if not file.is_file():
            raise CacheError(f"section {name} of {path} is missing", fix=REBUILD)
        if file.stat().st_size != section.bytes:
            problem = f"section {name} of {path} has {file.stat().st_size} bytes, the manifest says {section.bytes}"
            raise CacheError(problem, fix=REBUILD)
    return Cache(path, manifest)


def verify(path: Path) -> None:
    """Read every byte of a cache and compare the checksums.

    Raises:
        CacheError: as `open_cache`, or naming every section whose content was changed.
    """
    sections = open_cache(path).manifest.sections
    damaged = [name for name, section in sections.items() if file_sha256(path / name) != section.sha256]
    if damaged:
        raise CacheError(f"{path} is damaged: the content of {', '.join(damaged)} was changed", fix=_REMOVE)
