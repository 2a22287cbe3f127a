"""The rows of a cache as a reader sees them: decoded, side by side, with where the answer begins and what is right.

train row 17   id products-4711   label positive
source (en): 11 + 2 tokens                 │ target (pl): 14 + 2 tokens
<bos>Review: I waited for weeks.␊          │ <bos>Review: Czekałem tygodniami.␊
Sentiment:▸negative<eos>                   │ Sentiment:▸negative<eos>
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from flare_ds.cli.side_by_side import side_by_side, visible
from flare_ds.data.cache.reader import Cache, CacheSplit
from flare_ds.exceptions import CacheError, DataError
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint

MARK = "▸"
"""Stands where the prompt ends and the answer begins."""


@dataclass(frozen=True)
class RowPrinter:
    """Prints rows of a split of a cache; the tokens of a stream that no tokenizer is given for as numbers."""

    console: Console
    cache: Cache
    split: CacheSplit
    tokenizers: Mapping[str, PreTrainedTokenizerBase]

    def print(self, row: int) -> None:
        """Print one row, and an empty line after it."""
        self.console.print(self._heading(row), soft_wrap=True)
        streams = self.cache.manifest.streams
        headings = [Text(self._lengths(stream, language, row), style="bold") for stream, language in streams.items()]
        texts = [self._text(stream, row) for stream in streams]
        for columns in (headings, texts):
            for line in side_by_side(self.console, columns):
                self.console.print(line, soft_wrap=True)
        for gold in self.split.golds(row):
            self.console.print(Text(f"right answer: {visible(gold)}"), soft_wrap=True)
        self.console.print()

    def _heading(self, row: int) -> Text:
        parts = [f"{self.split.name} row {row}", f"id {visible(self.split.ids(row))}"]
        if (label := int(self.split.labels[row])) >= 0:
            parts.append(f"label {self.cache.labels[label]}")
        windows = np.flatnonzero(self.split.examples == self.split.examples[row])
        if len(windows) > 1:
            parts.append(f"window {row - windows[0] + 1} of {len(windows)}")
        return Text("   ".join(parts), style="bold")

    def _lengths(self, stream: str, language: str, row: int) -> str:
        prompt, answer = len(self.split.prompt(stream, row)), len(self.split.answer(stream, row))
        tokens = f"{prompt} + {answer} tokens" if answer else f"{prompt} tokens"
        return f"{stream} ({language}): {tokens if prompt else 'none'}"

    def _text(self, stream: str, row: int) -> Text:
        """A row's prompt and answer; the answer alone is not worth showing, and an MT encoder reads none."""
        prompt, answer = self.split.prompt(stream, row), self.split.answer(stream, row)
        if not len(prompt) or not len(answer):
            return self._decoded(stream, prompt)
        said = self._decoded(stream, answer)
        said.stylize_before("green")
        return Text.assemble(self._decoded(stream, prompt), (MARK, "bold red"), said)

    def _decoded(self, stream: str, tokens: np.ndarray) -> Text:
        tokenizer = self.tokenizers.get(stream)
        if tokenizer is None:
            return Text(" ".join(map(str, tokens)))
        decoded = tokenizer.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(decoded, str)
        text = Text(visible(decoded))
        text.highlight_words(tokenizer.all_special_tokens, "cyan")
        return text


def rows_of(split: CacheSplit, *, first: int, number: int, row_id: str | None) -> Sequence[int]:
    """Which rows are asked for: a few from one on, or all windows of the example with an id.

    Raises:
        DataError: the split has no such row.
    """
    if row_id is not None:
        found = [row for row in range(len(split)) if split.ids(row) == row_id]
        if not found:
            problem = f"--id {row_id}: the {split.name} split has no such row"
            raise DataError(problem, fix="give another --split, or leave --id out to see the ids of its first rows")
        return found
    if first >= len(split):
        problem = f"--first {first}: the {split.name} split has rows 0 to {len(split) - 1}"
        raise DataError(problem, fix="give one of those")
    return range(first, min(first + number, len(split)))


def check_tokenizer(cache: Cache, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that the cache was not made with: it would decode to other words.

    Raises:
        CacheError: naming both checksums.
    """
    found, wanted = tokenizer_fingerprint(tokenizer), cache.manifest.fields["tokenizer_sha256"]
    if found != wanted:
        problem = f"{cache.path} was made with tokenizer_sha256 {wanted[:16]}, but --tokenizer {name} has {found[:16]}"
        raise CacheError(problem, fix="give the base model it was prepared for, or leave --tokenizer out")
