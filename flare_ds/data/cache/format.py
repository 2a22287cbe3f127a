"""What a cache directory looks like on disk: section names, and the manifest that describes them.

tokenized_cache/README.md describes the same for a user; this module is the only code that knows file names.
"""

from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from flare_ds.published import Count, FileRecord

FORMAT: Final = "flare_ds token cache"
FORMAT_VERSION = 4
MANIFEST = "manifest.json"
HEADER_BYTES = 128
"""Of a section, before its data."""
ELSEWHERE = "set cache_dir to a directory you may write in"
REBUILD = "rebuild it: `flare-ds prepare CONFIG`"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Section(FileRecord):
    """One .npy file: what it must hold."""

    dtype: str
    shape: list[Count]


class SplitSummary(_Record):
    """One split.

    Attributes:
        rows: what a model reads, one after another: examples, or windows of them.
        examples: of the task.
        windowed: examples whose text is read through several windows, one a row.
        tokens: of all prompts and answers, by stream.
        truncated: prompts that leave out text which no other row of the example shows, by stream.
        longest_prompt: its tokens, by stream.
    """

    rows: Count
    examples: Count
    windowed: Count
    tokens: dict[str, Count]
    truncated: dict[str, Count]
    longest_prompt: dict[str, Count]


class Manifest(_Record):
    """Everything about a cache but the tokens; written last, so its presence means the cache is complete.

    Attributes:
        key: content key, the sha256 of `fields`.
        fields: everything the tokens depend on.
        streams: the token streams of each row and the language of each: source, source2 ..., target, and mt where an MT
            encoder reads the target text.
        labels: label words, none where answers are free; `label_tokens` are the token ids of each as it answers a
            prompt (behind a space, or at once where prompts are chats), and eos where a word begins another.
        pad_id: id to pad batches with; masked, so nothing depends on it.
        eos_id: id that ends each answer, if there is one.
        prefix_ids: tokens that every prompt starts with: special ones, or the head of a chat.
        suffix_ids: tokens that every prompt ends with: those that begin the assistant's turn; none without a chat.
        newline_ids: token ids of a line break.
        vocabulary_size: one more than the largest token id the base's tokenizer knows.
        counts: rows read and rows dropped, by reason.
        splits: a summary of each split.
        sections: every file of the directory but the manifest.
    """

    format: Literal["flare_ds token cache"]
    format_version: int
    key: str
    fields: dict[str, Any]
    streams: dict[str, str]
    labels: list[str]
    label_tokens: list[list[Count]]
    pad_id: Count
    eos_id: Count | None
    prefix_ids: list[Count]
    suffix_ids: list[Count] = []
    newline_ids: list[Count]
    vocabulary_size: Count
    counts: dict[str, Count]
    splits: dict[str, SplitSummary]
    sections: dict[str, Section]

    @property
    def languages(self) -> str:
        """The languages in words, e.g. `en+de → pl`; one where source and target are the same."""
        sources = [self.fields["source_language"], *self.fields.get("extra_source_languages", [])]
        target = self.fields["target_language"]
        return str(target) if sources == [target] else f"{'+'.join(sources)} → {target}"


def section_name(split: str, *parts: str) -> str:
    """File name of a section, e.g. `train.source.tokens.npy`."""
    return ".".join((split, *parts, "npy"))


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token id: uint16, or uint32 beyond 65,536 tokens."""
    assert 0 < vocabulary_size <= 2**32
    return np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<u4")
