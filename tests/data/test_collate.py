"""Batches laid out by hand, token by token."""

import numpy as np
import torch

from flare_ds.data.batching import MicroBatch
from flare_ds.data.collate import collate


class Rows:
    """Two parallel rows."""

    labels = np.array([3, 1], np.int32)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        prompts = {"source": [[11, 12, 13, 14], [15]], "target": [[21, 22], [23, 24, 25]]}
        return np.array(prompts[stream][row], np.uint16)

    def answer(self, stream: str, row: int) -> np.ndarray:
        return np.array([[31, 2], [32, 33, 2]][row], np.uint16)


BOTH = MicroBatch(np.array([0, 1]), np.array([1.0, 0.0], np.float32))


def test_two_streams_with_answers() -> None:
    batch = collate(Rows(), BOTH, streams=("source", "target"), objective="vocabulary", pad_id=0)
    assert batch.input_ids.tolist() == [
        [11, 12, 13, 14, 0, 0],
        [0, 0, 0, 15, 0, 0],
        [0, 0, 21, 22, 31, 0],
        [0, 23, 24, 25, 32, 33],
    ]
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1],
    ]
    real = batch.attention_mask.bool()
    assert batch.position_ids[real].tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.answer_columns_N.tolist() == [3, 4, 5]
    assert batch.answers_BN.tolist() == [[31, 2, -100], [32, 33, 2]]
    assert batch.source_lengths_SB.tolist() == [[4, 1]] and batch.target_lengths_B.tolist() == [2, 3]
    assert batch.weights_B.tolist() == [1, 0] and batch.prompt_columns == 4


def test_labels_need_no_answer_columns() -> None:
    batch = collate(Rows(), BOTH, streams=("target",), objective="labels", pad_id=7)
    assert batch.input_ids.tolist() == [[7, 21, 22], [23, 24, 25]]
    assert batch.answers_BN.tolist() == [[3], [1]]
    assert batch.answer_columns_N.tolist() == [2]
    assert batch.source_lengths_SB.shape == (0, 2)
    assert batch.to(torch.device("cpu")).input_ids.dtype == torch.int64
