"""Rows in no cache, whose tokens are at hand: texts just tokenized, lm-eval's requests, tensors of one's own loop.

Legend: n rows, p tokens of a prompt.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from flare_ds.data.row_answers import NOTHING


class RowsAtHand:
    """Such rows, as `collate` and `rows_read` want them.

    Args:
        prompts: those of each stream, one a row; in a stream that is not among them no row has any.
        answers: what follows a row's prompts; None: not known, so a placeholder, which is never an input.

    Attributes:
        labels: not known; 0.
    """

    def __init__(self, prompts: Mapping[str, Sequence[np.ndarray]], answers: Sequence[np.ndarray] | None) -> None:
        self._prompts = prompts
        self._answers = [np.zeros(1, np.int64)] * len(prompts["target"]) if answers is None else answers
        self.labels = np.zeros(len(self._answers), np.int32)

    def __len__(self) -> int:
        return len(self._answers)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of one row: [p]; none where it has no such text."""
        return self._prompts[stream][row] if stream in self._prompts else NOTHING

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Answer tokens of one row, the same in every stream that has a text."""
        return self._answers[row] if len(self.prompt(stream, row)) else NOTHING

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        return np.array([len(self.prompt(stream, row)) for row in range(len(self))])

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        return self.prompt_lengths(stream) + [len(self.answer(stream, row)) for row in range(len(self))]
