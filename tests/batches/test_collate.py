"""Batches laid out by hand, token by token."""

import numpy as np
import torch

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import collate
from flare_ds.data.streams import source_streams


class Rows:
    """Two parallel rows."""

    labels = np.array([3, 1], np.int32)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        prompts = {
            "source": [[11, 12, 13, 14], [15]],
            "source2": [[41], []],
            "target": [[21, 22], [23, 24, 25]],
        }
        return np.array(prompts[stream][row], np.uint16)

    def answer(self, stream: str, row: int) -> np.ndarray:
        answers = {
            "source": [[16, 17, 18, 2], [19, 2]],
            "source2": [[42, 2], []],
            "target": [[31, 2], [32, 33, 2]],
        }
        return np.array(answers[stream][row], np.uint16)


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


def test_source_answers_follow_their_prompts() -> None:
    streams = (*source_streams(2), "target")
    batch = collate(Rows(), BOTH, streams=streams, objective="vocabulary", pad_id=0, source_answers=True)
    assert batch.input_ids.tolist() == [
        [11, 12, 13, 14, 16, 17, 18],
        [0, 0, 0, 15, 19, 0, 0],
        [0, 0, 0, 41, 42, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 21, 22, 31, 0, 0],
        [0, 23, 24, 25, 32, 33, 0],
    ]
    assert torch.equal(batch.attention_mask, (batch.input_ids != 0).long())
    assert batch.source_lengths_SB.tolist() == [[4, 1], [1, 0]]
    assert batch.source_answers_SB.tolist() == [[3, 1], [1, 0]]
    assert batch.target_lengths_B.tolist() == [2, 3]
    assert batch.position_ids[0].tolist() == list(range(7)) and batch.position_ids[5, 1:6].tolist() == list(range(5))
    assert batch.answers_BN.tolist() == [[31, 2, -100], [32, 33, 2]] and batch.answer_columns_N.tolist() == [3, 4, 5]


def test_source_rows_may_be_asked_for_their_answers_too() -> None:
    """Those of a row without a text predict nothing; there are as many answer columns as the longest answer takes."""
    layout = {"streams": ("source", "target"), "pad_id": 0, "source_targets": True}
    batch = collate(Rows(), BOTH, objective="vocabulary", **layout)
    assert batch.input_ids[:2].tolist() == [[11, 12, 13, 14, 16, 17, 18], [0, 0, 0, 15, 19, 0, 0]]
    assert batch.source_targets_SBN.tolist() == [[[16, 17, 18, 2], [19, 2, -100, -100]]]
    assert batch.answers_BN.tolist() == [[31, 2, -100, -100], [32, 33, 2, -100]]
    assert batch.answer_columns_N.tolist() == [3, 4, 5, 6]
    assert collate(Rows(), BOTH, objective="labels", **layout).source_targets_SBN.tolist() == [[[3], [1]]]
    without = collate(Rows(), BOTH, objective="labels", **layout | {"streams": ("source2", "target")})
    assert without.source_targets_SBN.tolist() == [[[3], [-100]]] and without.answers_BN.tolist() == [[3], [1]]


def test_without_source_answers_only_the_targets_are_read() -> None:
    batch = collate(Rows(), BOTH, streams=("source", "source2", "target"), objective="vocabulary", pad_id=0)
    assert batch.input_ids[:4, 4:].any().item() is False and batch.source_answers_SB is None
    assert source_streams(3) == ("source", "source2", "source3") and source_streams(0) == ()


class Stored:
    """States of two rows, two a position, three wide; row r, position p holds 10r + p + 1."""

    def states(self, row: int) -> torch.Tensor:
        length = (3, 1)[row]
        return torch.arange(1.0, length + 1)[:, None, None].expand(-1, 2, 3) + 10 * row


def test_stored_states_are_left_padded_in_columns_of_their_own() -> None:
    batch = collate(Rows(), BOTH, streams=("target",), objective="labels", pad_id=0, stored=Stored())
    assert batch.input_ids.tolist() == [[0, 21, 22], [23, 24, 25]]
    assert batch.stored_BMKD.shape == (2, 3, 2, 3)
    assert batch.stored_BMKD[:, :, 0, 0].tolist() == [[1, 2, 3], [0, 0, 11]]
    assert batch.source_lengths_SB.tolist() == [[3, 1]] and batch.source_answers_SB is None
