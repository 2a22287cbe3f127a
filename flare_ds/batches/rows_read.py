"""What a method reads in the target's place, as a view of the rows that all methods share.

    target   t                       the target's prompt
    source   s                       the source's; the target's where a row has no source
    joint    s, line break, t        both in one row; t loses the special tokens that it starts with. In a chat both
                                     are one user's turn: t loses its head, s its tail
    behind   line break, t           of joint what stands behind the source, whose own stream it continues; or behind
                                     several sources, where there is any

So one cache serves every method, and nothing behind it (batches, training, scoring) knows which one runs. Answers are
the target's in any case.

Legend: n rows, p tokens of a prompt.
"""

from typing import Protocol

import numpy as np

from flare_ds.batches.collate import Rows
from flare_ds.config import Config
from flare_ds.data.cache.encode import Framing
from flare_ds.data.streams import source_streams
from flare_ds.methods import Reads


class SplitRows(Rows, Protocol):
    """Rows whose lengths are known without reading them."""

    def __len__(self) -> int:
        """Number of rows."""

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""


def rows_read(rows: SplitRows, config: Config, tokens: Framing) -> SplitRows:
    """The rows as the config's method reads them."""
    reads = config.recipe.reads
    return rows if reads == "target" else _VIEWS[reads](rows, tokens, source_streams(max(1, config.streams_beside)))


class _SourceRows:
    """Rows whose target prompts are the source's.

    Args:
        rows: what they are made of.
        tokens: around each prompt.
        sources: the streams of the sources that are read.
    """

    def __init__(self, rows: SplitRows, tokens: Framing, sources: tuple[str, ...]) -> None:
        self._rows, self._tokens, self._sources = rows, tokens, sources
        self.labels = rows.labels

    def __len__(self) -> int:
        return len(self._rows)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Tokens of a prompt: [p]."""
        prompt = self._rows.prompt(stream, row)
        if stream != "target":
            return prompt
        source = np.concatenate([self._rows.prompt(one, row) for one in self._sources])
        return self._joined(source, prompt) if len(source) else prompt

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Tokens of an answer."""
        return self._rows.answer(stream, row)

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        lengths_n = self._rows.prompt_lengths(stream)
        if stream != "target":
            return lengths_n
        source_n = np.sum([self._rows.prompt_lengths(one) for one in self._sources], 0)
        return np.where(source_n > 0, self._joined_lengths(source_n, lengths_n), lengths_n)

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        answers_n = self._rows.lengths(stream) - self._rows.prompt_lengths(stream)
        return self.prompt_lengths(stream) + answers_n

    def _joined(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return source

    def _joined_lengths(self, source_n: np.ndarray, target_n: np.ndarray) -> np.ndarray:
        return source_n


class _JointRows(_SourceRows):
    """Rows whose target prompts are the source's and then the target's."""

    def _joined(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        prefix, suffix = self._tokens.prefix_ids, self._tokens.suffix_ids
        end = len(source) - len(suffix)
        assert target[: len(prefix)].tolist() == prefix and source[end:].tolist() == suffix
        between = np.array(self._tokens.newline_ids, source.dtype)
        return np.concatenate([source[:end], between, target[len(prefix) :]])

    def _joined_lengths(self, source_n: np.ndarray, target_n: np.ndarray) -> np.ndarray:
        around = len(self._tokens.prefix_ids) + len(self._tokens.suffix_ids)
        return source_n + len(self._tokens.newline_ids) + target_n - around


class _BehindRows(_SourceRows):
    """Rows whose target prompts go on where the source's end; these lose their tail."""

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Tokens of a prompt: [p]."""
        prompt = super().prompt(stream, row)
        return prompt if stream == "target" else prompt[: max(0, len(prompt) - len(self._tokens.suffix_ids))]

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        lengths_n = super().prompt_lengths(stream)
        return lengths_n if stream == "target" else np.maximum(0, lengths_n - len(self._tokens.suffix_ids))

    def _joined(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        between = np.array(self._tokens.newline_ids, target.dtype)
        return np.concatenate([between, target[len(self._tokens.prefix_ids) :]])

    def _joined_lengths(self, source_n: np.ndarray, target_n: np.ndarray) -> np.ndarray:
        return len(self._tokens.newline_ids) + target_n - len(self._tokens.prefix_ids)


_VIEWS: dict[Reads, type[_SourceRows]] = {"source": _SourceRows, "joint": _JointRows, "behind": _BehindRows}
