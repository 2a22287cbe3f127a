"""Writing one split of a cache, chunk after chunk.

Legend: e examples of a chunk, n rows made of them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from flare_ds.data.cache.format import Section, SplitSummary, section_name
from flare_ds.data.cache.rows import EncodedRows
from flare_ds.data.cache.section import SectionWriter
from flare_ds.data.digests import cluster_of
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.tasks.base import Task


class SplitWriter:
    """Writes the sections of one split side by side; `dtypes` are those of the tokens of each stream.

    With `answers_source` right is what answers the first source, where a row has one.

    Raises:
        HostError: the disk is full or the directory is not writable; so do `append` and `finish`.
    """

    def __init__(
        self, directory: Path, split: str, dtypes: Mapping[str, np.dtype], task: Task, *, answers_source: bool
    ) -> None:
        self._directory, self._split, self._task = directory, split, task
        self._answers_source = answers_source
        self._open = ExitStack()
        self._sections: dict[str, SectionWriter] = {}
        self._examples = self._windowed = 0
        self._truncated, self._longest = dict.fromkeys(dtypes, 0), dict.fromkeys(dtypes, 0)
        for name in ("labels", "examples", *(f"{stream}.prompt_lengths" for stream in dtypes)):
            self._make(name, np.dtype("<i4"))
        self._make("clusters", np.dtype("<i8"))
        self._texts = ("ids", "golds") if task.free_answers else ("ids",)
        items = dict.fromkeys(self._texts, np.dtype("u1")) | {f"{stream}.tokens": d for stream, d in dtypes.items()}
        for name, dtype in items.items():
            self._make(name, dtype)
            self._make(_offsets_of(name), np.dtype("<i8")).append(np.zeros(1, np.int64))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def append(self, rows: Sequence[ParallelRow], encoded: EncodedRows) -> None:
        """Write some examples, in however many rows each was encoded."""
        kept_e = encoded.windows_e > 0
        windows_e = encoded.windows_e[kept_e]
        kept = [row for row, keep in zip(rows, kept_e, strict=True) if keep]
        labels_e = np.array([-1 if row.label is None else row.label for row in kept], np.int32)
        self._sections["labels"].append(labels_e.repeat(windows_e))
        self._sections["examples"].append((self._examples + np.arange(len(kept))).repeat(windows_e))
        clusters_e = np.array([cluster_of(self._drawn(row).fields, self._task) for row in kept], np.int64)
        self._sections["clusters"].append(clusters_e.repeat(windows_e))
        self._append_texts("ids", [row.id.encode("utf-8") for row in kept], windows_e)
        if "golds" in self._texts:
            self._append_texts("golds", [self._golds(row) for row in kept], windows_e)
        for stream, of_stream in encoded.streams.items():
            self._append_items(f"{stream}.tokens", of_stream.tokens_t, of_stream.lengths_n)
            self._sections[f"{stream}.prompt_lengths"].append(of_stream.prompt_lengths_n)
            self._truncated[stream] += of_stream.truncated
            self._longest[stream] = max(self._longest[stream], int(of_stream.prompt_lengths_n.max(initial=0)))
        self._examples += len(kept)
        self._windowed += int((windows_e > 1).sum())

    def finish(self) -> tuple[SplitSummary, dict[str, Section]]:
        """Complete every file; say what was written."""
        summary = SplitSummary(
            rows=self._sections["labels"].length,
            examples=self._examples,
            windowed=self._windowed,
            tokens={stream: self._sections[f"{stream}.tokens"].length for stream in self._truncated},
            truncated=self._truncated,
            longest_prompt=self._longest,
        )
        return summary, {section.path.name: section.finish() for section in self._sections.values()}

    def _drawn(self, row: ParallelRow) -> Side:
        """The side that says what a row was drawn with: a translator words a passage anew around each answer."""
        return row.read if self._task.free_answers else row.target

    def _golds(self, row: ParallelRow) -> bytes:
        source = row.sources[0] if self._answers_source and row.sources else None
        return json.dumps([answer.text for answer in (source or row.target).answers], ensure_ascii=False).encode(
            "utf-8"
        )

    def _make(self, name: str, dtype: np.dtype) -> SectionWriter:
        section = SectionWriter(self._directory / section_name(self._split, name), dtype)
        self._open.callback(section.close)
        self._sections[name] = section
        return section

    def _append_texts(self, name: str, texts_e: Sequence[bytes], windows_e: np.ndarray) -> None:
        texts_n = [text for text, windows in zip(texts_e, windows_e, strict=True) for _ in range(windows)]
        lengths_n = np.array([len(text) for text in texts_n], np.int64)
        self._append_items(name, np.frombuffer(b"".join(texts_n), np.uint8), lengths_n)

    def _append_items(self, name: str, items: np.ndarray, lengths_n: np.ndarray) -> None:
        self._sections[_offsets_of(name)].append(self._sections[name].length + lengths_n.cumsum(dtype=np.int64))
        self._sections[name].append(items)


def _offsets_of(name: str) -> str:
    """Where items start, and where the last one ends: `ids.offsets`, `source.offsets` ..."""
    return f"{name.removesuffix('.tokens')}.offsets"
