"""Rows that a loop of one's own gives as padded tensors, as Hugging Face's models take them.

    input_ids    . . p0 p1 p2 a0 a1 .       padding anywhere, told by the mask
    labels       . . -100 ... a0 a1 .       the answer's ids where it stands

Legend: B rows, L columns of the target, M of the source.
"""

import numpy as np
import torch
from torch import Tensor

from flare_ds.batches.rows_at_hand import RowsAtHand
from flare_ds.data.row_answers import NO_TARGET
from flare_ds.exceptions import DataError


def padded_rows(
    ids_BL: Tensor,
    mask_BL: Tensor | None,
    source_BM: Tensor | None,
    source_mask_BM: Tensor | None,
    labels_BL: Tensor | None,
    *,
    tokens: int,
) -> RowsAtHand:
    """Such rows, as `flare_ds.batches.collate` wants them.

    Args:
        ids_BL: the target's prompts with their answers.
        mask_BL: 0 on padding; None: there is none.
        source_BM: the source's prompts; None: there are none.
        source_mask_BM: 0 on padding, and all over a row without a source.
        labels_BL: the answers, and NO_TARGET elsewhere; None: they are not known, and all of a row is its prompt.
        tokens: how many the model knows.

    Raises:
        DataError: the tensors are not of the same rows and columns, a row is empty or has a token that the model does
            not know, or its labels do not mark one answer behind a prompt.
    """
    _check_shapes(ids_BL, mask_BL, source_BM, source_mask_BM, labels_BL)
    sources = {} if source_BM is None else {"source": _unpadded(source_BM, source_mask_BM)}
    rows = _unpadded(ids_BL, mask_BL)
    _check_tokens("input_ids", rows, tokens)
    _check_tokens("source_input_ids", sources.get("source", []), tokens)
    if empty := [number for number, row in enumerate(rows) if not len(row)]:
        raise DataError(f"row {empty[0]} of input_ids has no tokens", fix="leave it out, or check attention_mask")
    if labels_BL is None:
        return RowsAtHand(sources | {"target": rows}, None)
    marked = enumerate(zip(rows, _unpadded(labels_BL, mask_BL), strict=True))
    spans = [_answer(number, row, labels) for number, (row, labels) in marked]
    prompts = [row[: span.start] for row, span in zip(rows, spans, strict=True)]
    return RowsAtHand(sources | {"target": prompts}, [row[span] for row, span in zip(rows, spans, strict=True)])


def _check_shapes(
    ids_BL: Tensor,
    mask_BL: Tensor | None,
    source_BM: Tensor | None,
    source_mask_BM: Tensor | None,
    labels_BL: Tensor | None,
) -> None:
    """Refuse tensors that are not of the same rows, or not of the same columns as what they tell of."""
    ids, source = "input_ids", "source_input_ids"
    for name, found in ((ids, ids_BL), (source, source_BM)):
        if found is not None and found.ndim != 2:
            problem = f"{name} has shape {[*found.shape]}, not [rows, columns]"
            raise DataError(problem, fix="pass a batch, also for a single row: unsqueeze(0)")
    if source_BM is None and source_mask_BM is not None:
        raise DataError(f"source_attention_mask is given, but no {source}", fix="give both, or neither")
    if source_BM is not None and len(source_BM) != len(ids_BL):
        raise DataError(
            f"{source} has {len(source_BM)} rows, but {ids} has {len(ids_BL)}",
            fix="give one source per row; for a row without a source, set its source_attention_mask to 0",
        )
    for name, found, of, wanted in (
        ("attention_mask", mask_BL, ids, ids_BL),
        ("labels", labels_BL, ids, ids_BL),
        ("source_attention_mask", source_mask_BM, source, source_BM),
    ):
        if found is not None and wanted is not None and found.shape != wanted.shape:
            problem = f"{name} has shape {[*found.shape]}, but {of} has shape {[*wanted.shape]}"
            raise DataError(problem, fix="give both the same shape")


def _check_tokens(name: str, rows: list[np.ndarray], known: int) -> None:
    for number, row in enumerate(rows):
        unknown_n = row[(row < 0) | (row >= known)]
        if len(unknown_n):
            raise DataError(
                f"row {number} of {name} has token id {unknown_n[0]}, but the model has only {known} tokens",
                fix="use the model's own tokenizer; padding may have any id where the attention mask is 0",
            )


def _unpadded(ids_BL: Tensor, mask_BL: Tensor | None) -> list[np.ndarray]:
    mask_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL
    pairs = zip(ids_BL.cpu().numpy(), mask_BL.cpu().numpy().astype(bool), strict=True)
    return [ids_L[mask_L].astype(np.int64) for ids_L, mask_L in pairs]


def _answer(number: int, row: np.ndarray, labels: np.ndarray) -> slice:
    """Where a row's answer stands."""
    (places,) = np.nonzero(labels != NO_TARGET)
    if not len(places) or not places[0] or len(places) != places[-1] + 1 - places[0]:
        raise DataError(
            f"labels of row {number} do not mark an answer after a prompt",
            fix=f"set labels to the token ids of one contiguous answer, and to {NO_TARGET} before and after it",
        )
    if (labels[places] != row[places]).any():
        raise DataError(f"labels of row {number} differ from its input_ids", fix="do not shift the labels")
    return slice(int(places[0]), int(places[-1]) + 1)
