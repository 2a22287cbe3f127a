"""train.source_dropout: in each step a share of the rows is read as if it had no source.

So one adapter also learns to answer where there is no translation. Which rows follows from seed and step alone: any
number of ranks drops the same ones, and so does a run that is continued.

Legend: n rows, p tokens of a prompt, K stored states a position, D their width.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flare_ds.batches.collate import StoredStates
from flare_ds.data.row_answers import NOTHING, Rows

_STREAM = 2  # of the seed; the order of the rows has others


def dropped_rows(rows: int, share: float, *, seed: int, step: int) -> np.ndarray:
    """Which of so many rows have no source in a step: bool [n]."""
    # numpy promises this stream forever, unlike that of `Generator.random`.
    return np.random.PCG64((seed, step, _STREAM)).random_raw(rows) < share * 2.0**64


@dataclass(frozen=True)
class WithoutSources:
    """Rows of which some have lost their sources: those that `dropped_n` marks."""

    rows: Rows
    dropped_n: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Label index of each row."""
        return self.rows.labels

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Tokens of a prompt: [p]."""
        return NOTHING if self._lost(stream, row) else self.rows.prompt(stream, row)

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Tokens of an answer."""
        return NOTHING if self._lost(stream, row) else self.rows.answer(stream, row)

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        return self._left(stream, self.rows.prompt_lengths(stream))

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        return self._left(stream, self.rows.lengths(stream))

    def _lost(self, stream: str, row: int) -> bool:
        return stream != "target" and bool(self.dropped_n[row])

    def _left(self, stream: str, lengths_n: np.ndarray) -> np.ndarray:
        return lengths_n if stream == "target" else np.where(self.dropped_n, 0, lengths_n)


@dataclass(frozen=True)
class WithoutStates:
    """Stored states of sources, of which those rows have lost theirs."""

    stored: StoredStates
    dropped_n: np.ndarray

    def states(self, row: int) -> Tensor:
        """States of one row, without padding: [p, K, D]."""
        states_pKD = self.stored.states(row)
        return states_pKD[:0] if self.dropped_n[row] else states_pKD
