"""What a method reads in the target's place, as a view of the rows that all methods share.

    target   t                       the target's prompt
    source   s                       the source's; the target's where a row has no source
    joint    s, line break, t        both in one row; t loses the special tokens that it starts with. In a chat both
                                     are one user's turn: t loses its head, s its tail
    behind   line break, t           of joint what stands behind the source, whose own stream it continues; or behind
                                     several sources, where there is any

So one cache serves every method, and nothing behind it (batches, training, scoring) knows which one runs. Answers are
the target's, but where the source alone is read, the source's.

Legend: n rows, p tokens of a prompt.
"""

import numpy as np

from flare_ds.config import Config
from flare_ds.data.cache.encode import Framing
from flare_ds.data.row_answers import Rows
from flare_ds.data.streams import source_streams
from flare_ds.methods import Reads


def rows_read(rows: Rows, config: Config, tokens: Framing) -> Rows:
    """The rows as the config's method reads them."""
    reads, sources = config.recipe.reads, source_streams(max(1, config.streams_beside))
    return rows if reads == "target" else _Fused(rows, reads, tokens, sources)


class _Fused:
    """Rows whose target prompts are others where a row has a source; behind sources, these lose their tail for it."""

    def __init__(self, rows: Rows, reads: Reads, tokens: Framing, sources: tuple[str, ...]) -> None:
        self._rows, self._reads, self._sources = rows, reads, sources
        self._head, self._tail, self._between = tokens.prefix_ids, tokens.suffix_ids, tokens.newline_ids
        self.labels = rows.labels

    def __len__(self) -> int:
        return len(self._rows)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Tokens of a prompt: [p]."""
        prompt = self._rows.prompt(stream, row)
        if stream != "target":
            return prompt[: max(0, len(prompt) - len(self._tail))] if self._reads == "behind" else prompt
        source = np.concatenate([self._rows.prompt(one, row) for one in self._sources])
        if not len(source):
            return prompt
        if self._reads == "source":
            return source
        head, end = len(self._head), len(source) - len(self._tail)
        behind = [np.array(self._between, prompt.dtype), prompt[head:]]
        if self._reads == "behind":
            return np.concatenate(behind)
        assert prompt[:head].tolist() == self._head and source[end:].tolist() == self._tail
        return np.concatenate([source[:end], *behind])

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Tokens of an answer."""
        (first, *_) = self._sources
        answers_source = stream == "target" and self._reads == "source" and len(self._rows.prompt(first, row))
        return self._rows.answer(first if answers_source else stream, row)

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        lengths_n = self._rows.prompt_lengths(stream)
        if stream != "target":
            return np.maximum(0, lengths_n - len(self._tail)) if self._reads == "behind" else lengths_n
        source_n = np.sum([self._rows.prompt_lengths(one) for one in self._sources], 0)
        behind_n = len(self._between) + lengths_n - len(self._head)
        fused_n = {"source": source_n, "joint": source_n - len(self._tail) + behind_n, "behind": behind_n}
        return np.where(source_n > 0, fused_n[self._reads], lengths_n)

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        answers_n = self._answer_lengths(stream)
        if stream == "target" and self._reads == "source":
            (first, *_) = self._sources
            answers_n = np.where(self._rows.prompt_lengths(first) > 0, self._answer_lengths(first), answers_n)
        return self.prompt_lengths(stream) + answers_n

    def _answer_lengths(self, stream: str) -> np.ndarray:
        return self._rows.lengths(stream) - self._rows.prompt_lengths(stream)
