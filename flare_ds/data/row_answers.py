"""What the rows of a batch are to answer, and which tokens of it they read.

    objective     read behind the prompt        predicted
    vocabulary    all tokens but the last       every token, among the whole vocabulary
    labels        up to the last node           the word's branch at each node of its way, among that node's branches

Legend: n rows of a split, B rows, N answer positions, K tokens in which label words part.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flare_ds.data.label_trie import LabelTrie

NO_TARGET = -100
NOTHING = np.empty(0, np.int64)


class Rows(Protocol):
    """What a batch is made from: a split of a cache, rows at hand, or a view of either."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def labels(self) -> np.ndarray:
        """Label index of each row."""

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of one row."""

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Answer tokens of one row."""

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt, told without reading them: int [n]."""

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together, likewise: int [n]."""


class TokenAnswers:
    """Answers of which every token is predicted."""

    def __init__(self, split: Rows) -> None:
        self._split = split

    def targets(self, stream: str, row: int) -> np.ndarray:
        """What a row should predict; nothing where it has no text."""
        return self._split.answer(stream, row) if len(self._split.prompt(stream, row)) else NOTHING

    def inputs(self, stream: str, row: int) -> np.ndarray:
        """The answer tokens that are read: all but the last, which is only predicted."""
        return self._split.answer(stream, row)[:-1]

    def branches(self, rows: list[int], columns: int) -> None:
        """No logit is left out."""


class LabelAnswers:
    """Label words, predicted where they part and nowhere else.

    Args:
        split: the rows.
        trie: of the words; None: as if their first tokens told them apart, so that nothing follows the prompts.
    """

    def __init__(self, split: Rows, trie: LabelTrie | None) -> None:
        self._split, self._trie = split, trie

    def targets(self, stream: str, row: int) -> np.ndarray:
        """Places of the word's branches among the trie's tokens; nothing where a row has no text."""
        if not len(self._split.prompt(stream, row)):
            return NOTHING
        label = int(self._split.labels[row])
        if self._trie is None:
            return np.array([label])
        places = [NO_TARGET if node is None else node.places[branch] for node, branch in self._trie.way(label)]
        return np.array(places)

    def inputs(self, stream: str, row: int) -> np.ndarray:
        """The word's tokens in front of the last that is predicted."""
        if self._trie is None or not len(self._split.prompt(stream, row)):
            return NOTHING
        label = int(self._split.labels[row])
        return np.array(self._trie.words[label][: len(self._trie.way(label)) - 1], np.int64)

    def branches(self, rows: list[int], columns: int) -> Tensor | None:
        """The tokens among which each is chosen: [B, N, K]; None where there is one choice, among all of them."""
        if self._trie is None or len(self._trie.nodes) == 1:
            return None
        among_BNK = torch.zeros(len(rows), columns, len(self._trie.tokens), dtype=torch.bool)
        for line, row in enumerate(rows):
            for column, (node, _) in enumerate(self._trie.way(int(self._split.labels[row]))):
                if node is not None:
                    among_BNK[line, column, list(node.places)] = True
        return among_BNK
