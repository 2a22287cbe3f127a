"""The loss: cross-entropy of the answers, normalised so that ranks and micro-steps add up to one global mean.

Gradients are averaged over ranks. With unequal rows (or label tokens) that average is not the mean over the step's
examples, so each micro-batch's loss is its own *sum* over the step's global count, times the number of ranks that
it will be divided by. Over micro-steps they only sum: the trainer says which of them is the last.

Legend: B rows, N answer positions, K logits, C cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_ds.batches.collate import NO_TARGET, Batch


def among_branches(logits_XNK: Tensor, branches_BNK: Tensor | None) -> Tensor:
    """Logits in fp32, of which only those that an answer is chosen among count; the rows of a second stream alike."""
    logits_XNK = logits_XNK.float()
    if branches_BNK is None:
        return logits_XNK
    others_XNK = ~branches_BNK.repeat(len(logits_XNK) // len(branches_BNK), 1, 1)
    return logits_XNK.masked_fill(others_XNK, torch.finfo(torch.float32).min)


def batch_loss(logits_BNK: Tensor, batch: Batch) -> Tensor:
    """The loss of the target's rows of a batch, summed over its answers."""
    return loss_sum(among_branches(logits_BNK, batch.branches_BNK), batch.answers_BN, batch.weights_B)


def loss_sum(logits_BNK: Tensor, answers_BN: Tensor, weights_B: Tensor) -> Tensor:
    """Sum of the answers' negative log-likelihood; filler rows have weight 0."""
    return (answer_losses(logits_BNK, answers_BN) * weights_B).sum()


def answer_losses(logits_BNK: Tensor, answers_BN: Tensor) -> Tensor:
    """Negative log-likelihood of each row's answer [B], in fp32."""
    losses_BN = F.cross_entropy(
        logits_BNK.float().flatten(0, 1), answers_BN.flatten(), ignore_index=NO_TARGET, reduction="none"
    ).view_as(answers_BN)
    return losses_BN.sum(1)


def share_of_mean(losses_C: Tensor, *, step_targets: Sequence[int], world_size: int) -> Tensor:
    """Scale a micro-batch's loss sums so that their gradients, averaged over ranks, add up to those of the step's mean.

    The cells' are added: each adapter has the gradient of its own. A loss that is not finite may still have finite
    gradients (an infinite one has those of a softmax). It is turned into one whose gradients are NaN: the engine then
    applies the step on no rank, and no rank has to ask another.
    """
    trusted_C = torch.where(losses_C.detach().isfinite(), 1.0, torch.nan)
    shares = [world_size / targets for targets in step_targets]
    return torch.stack([loss * share for loss, share in zip(losses_C * trusted_C, shares, strict=True)]).sum()
