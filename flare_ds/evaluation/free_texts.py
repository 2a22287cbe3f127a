"""Free texts: rows that are in no cache, tokenized when they are asked about.

Legend: n rows, one for each window of an example; p tokens of a prompt.
"""

import numpy as np

from flare_ds.data.cache.rows import EncodedRows, EncodedStream


class FreeTexts:
    """Encoded rows as `collate` and `rows_read` want them.

    Args:
        encoded: their tokens.

    Attributes:
        examples: number of the example that each row is a window of: int [n].
        labels: not known; 0.
    """

    def __init__(self, encoded: EncodedRows) -> None:
        self._streams = encoded.streams
        self._prompts = {stream: _prompts(of_stream) for stream, of_stream in encoded.streams.items()}
        self.examples = np.arange(len(encoded.windows_e)).repeat(encoded.windows_e)
        self.labels = np.zeros(len(self), np.int32)

    def __len__(self) -> int:
        return len(self.examples)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of a stream: [p]; none where the row has no such text."""
        return self._prompts[stream][row]

    def answer(self, stream: str, row: int) -> np.ndarray:
        """No answer is known; one placeholder, which is never an input."""
        return np.zeros(1, np.int64)

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt: int [n]."""
        return self._streams[stream].prompt_lengths_n

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and placeholder together: int [n]."""
        return self.prompt_lengths(stream) + 1


def _prompts(stream: EncodedStream) -> list[np.ndarray]:
    starts_n = np.cumsum(stream.lengths_n) - stream.lengths_n
    spans = zip(starts_n, starts_n + stream.prompt_lengths_n, strict=True)
    return [stream.tokens_t[start:end].astype(np.int64) for start, end in spans]
