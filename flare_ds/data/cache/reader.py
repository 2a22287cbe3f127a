"""Opening a cache: sizes are checked at once, sections are memory-mapped when a split opens, slices copy nothing.

Shapes: n rows of a split, p tokens of a prompt, a tokens of an answer.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flare_ds.data.cache.format import REBUILD, Manifest, section_name
from flare_ds.data.cache.manifest import read_manifest
from flare_ds.data.cache.section import map_array
from flare_ds.exceptions import CacheError
from flare_ds.files import readable_again
from flare_ds.json_text import parse_json
from flare_ds.published import check_sizes

REMOVE = f"delete the directory, then {REBUILD}"


class CacheSplit:
    """The rows of one split. Arrays are read-only views of the files; pickling sends no tokens, but reopens.

    A row is an example, or one of several windows of it: those stand one behind another.
    """

    def __init__(self, directory: Path, manifest: Manifest, name: str) -> None:
        self.name = name
        self._directory = directory
        self._manifest = manifest
        self.labels = self._map("labels")
        """int32 [n]: index into the cache's label words; -1 where answers are free."""
        self.examples = self._map("examples")
        """int32 [n]: which example, counted from 0, a row belongs to."""
        self.clusters = self._map("clusters")
        """int64 [n]: alike in rows that were drawn together, see `Task.cluster_fields`."""
        self._texts = {name: self._map_items(name, name) for name in ("ids", *(() if manifest.labels else ("golds",)))}
        self._tokens = {stream: self._map_items(stream, f"{stream}.tokens") for stream in manifest.streams}
        self._prompt_lengths: dict[str, np.ndarray] = {
            stream: self._map(f"{stream}.prompt_lengths") for stream in manifest.streams
        }
        self._check_ends()
        # A memoryview hands out Python's integers, several times faster than an array its own.
        self._rows = {
            stream: (tokens, offsets.data, self._prompt_lengths[stream].data)
            for stream, (tokens, offsets) in self._tokens.items()
        }

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheSplit, (self._directory, self._manifest, self.name)

    def ids(self, index: int) -> str:
        """Id of a row's example.

        Raises:
            CacheError: the section is damaged; so do all that look up a row.
        """
        return self._text("ids", index)

    def golds(self, index: int) -> list[str]:
        """All right answers to a row's example, in the target language; none where there are label words."""
        if "golds" not in self._texts:
            return []
        try:
            golds = parse_json(self._text("golds", index))
        except ValueError as error:
            raise self.damaged("golds", f"row {index}: {error}") from error
        if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
            raise self.damaged("golds", f"row {index} is no list of texts")
        return golds

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt, 0 where a row has none in this stream: int32 [n]."""
        prompts_n = self._prompt_lengths[stream]
        if prompts_n.min() < 0:
            raise self.damaged(f"{stream}.prompt_lengths", "a prompt has less than no tokens")
        return prompts_n

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        _, offsets = self._tokens[stream]
        lengths_n = np.diff(offsets)
        if lengths_n.min() < 0:
            raise self.damaged(f"{stream}.offsets", "a row has less than no tokens")
        return lengths_n

    def largest_id(self, stream: str) -> int:
        """The largest token id in any prompt or answer; reads all of them."""
        tokens, _ = self._tokens[stream]
        return int(tokens.max(initial=0))

    def prompt(self, stream: str, index: int) -> np.ndarray:
        """Tokens of a row's prompt, special tokens included: uint16 or uint32 [p]."""
        tokens, start, middle, _ = self._bounds(stream, index)
        return tokens[start:middle]

    def answer(self, stream: str, index: int) -> np.ndarray:
        """Tokens of a row's label word or answer, then eos if the tokenizer has one: uint16 or uint32 [a]."""
        tokens, _, middle, end = self._bounds(stream, index)
        return tokens[middle:end]

    def _bounds(self, stream: str, index: int) -> tuple[np.ndarray, int, int, int]:
        """All tokens, and where in them a row's prompt starts, where it ends, and where its answer does."""
        tokens, offsets, prompt_lengths = self._rows[stream]
        start, end = offsets[index], offsets[index + 1]
        middle = start + prompt_lengths[index]
        if not 0 <= start <= middle <= end <= tokens.size:
            raise self.damaged(f"{stream}.offsets", f"row {index} has tokens {start}, {middle}, {end} of {len(tokens)}")
        return tokens, start, middle, end

    def _text(self, name: str, index: int) -> str:
        content, offsets = self._texts[name]
        start, end = offsets.item(index), offsets.item(index + 1)
        if not 0 <= start <= end <= len(content):
            raise self.damaged(f"{name}.offsets", f"row {index} has bytes {start} to {end} of {len(content)}")
        try:
            return content[start:end].tobytes().decode("utf-8")
        except ValueError as error:
            raise self.damaged(name, f"row {index}: {error}") from error

    def _check_ends(self) -> None:
        """Refuse labels there are no words for, and numbers that do not begin and end where they should."""
        first, last = (-1, -1) if not self._manifest.labels else (0, len(self._manifest.labels) - 1)
        if self.labels.min() < first or self.labels.max() > last:
            raise self.damaged("labels", f"it holds other labels than {first} to {last}")
        ends = self.examples[[0, -1]].tolist()
        if ends != [0, self._manifest.splits[self.name].examples - 1]:
            raise self.damaged("examples", f"it begins and ends with {ends}")
        for name, (content, offsets) in (self._texts | self._tokens).items():
            if offsets[[0, -1]].tolist() != [0, len(content)]:
                raise self.damaged(f"{name}.offsets", f"it begins and ends with {offsets[[0, -1]].tolist()}")

    def _map_items(self, name: str, content: str) -> tuple[np.ndarray, np.ndarray]:
        return self._map(content), self._map(f"{name}.offsets")

    def _map(self, part: str) -> np.ndarray:
        name = section_name(self.name, part)
        section = self._manifest.sections[name]
        try:
            return map_array(self._directory / name, np.dtype(section.dtype), *section.shape)
        except ValueError as error:
            raise self.damaged(part, str(error)) from error
        except OSError as error:
            problem = f"section {name} of {self._directory} cannot be read: {error.strerror}"
            raise CacheError(problem, fix=readable_again(error, damaged=REMOVE)) from error

    def damaged(self, part: str, why: str) -> CacheError:
        """What to raise about a section that cannot be what was written."""
        name = section_name(self.name, part)
        return CacheError(f"section {name} of {self._directory} is damaged: {why}", fix=REMOVE)


@dataclass(frozen=True)
class Cache:
    """An opened cache. Cheap to pickle: it holds no file. Those of one directory are equal."""

    path: Path
    manifest: Manifest = field(compare=False)

    @property
    def key(self) -> str:
        """Content key: equal keys, equal tokens."""
        return self.manifest.key

    @property
    def streams(self) -> tuple[str, ...]:
        """Sources first, e.g. `("source", "source2", "target")`; just `("target",)` for a single language.

        The last is `mt` where an MT encoder reads the target text.
        """
        return tuple(self.manifest.streams)

    @property
    def labels(self) -> list[str]:
        """The label words, in the order of the row labels; none where answers are free."""
        return self.manifest.labels

    @property
    def label_tokens(self) -> list[list[int]]:
        """Token ids of a space and each label word; where one begins another, eos ends each."""
        return self.manifest.label_tokens

    @property
    def pad_id(self) -> int:
        """Token id to pad batches with."""
        return self.manifest.pad_id

    def split(self, name: str) -> CacheSplit:
        """Open `train`, `validation` or `test`.

        Raises:
            CacheError: there is no such split, or one of its sections is damaged.
        """
        if name not in self.manifest.splits:
            raise CacheError(
                f"{self.path} has no split {name!r}", fix=f"give one of: {', '.join(self.manifest.splits)}"
            )
        return CacheSplit(self.path, self.manifest, name)


def open_cache(path: Path) -> Cache:
    """Open a cache directory, checking the manifest and that every section is there in its full size.

    Raises:
        CacheError: no manifest, another format version, or a section missing or of another size.
    """
    manifest = read_manifest(path)
    try:
        check_sizes(path, manifest.sections)
    except ValueError as error:
        raise CacheError(f"section {error}", fix=REBUILD) from error
    return Cache(path, manifest)
