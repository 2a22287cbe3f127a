"""The output head: the label words' rows of the output matrix, or a copy of all of it that trains.

With ranked labels the loss and the scores need the logits of the tokens in which the label words part, not of the whole
vocabulary. Their K rows of the output matrix are taken once, before training, so a 262,144-word matrix is neither
gathered nor multiplied in any step. Final soft-capping and logit scaling stay the model's own.

With adapter.train_head the head trains, as in the paper's code: in fp32, untied from the embedding, which stays frozen.

Legend: B rows, N answer positions, D the model's width, K tokens in which label words part, or the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.data.label_trie import LabelTrie
from flare_ds.models.partitioned import gathered


class OutputHead(nn.Module):
    """Logits of K tokens, computed in fp32."""

    def __init__(self, weight_KD: Tensor, bias_K: Tensor | None, *, trained: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_KD.float() if trained else weight_KD, requires_grad=trained)
        self.bias = None if bias_K is None else nn.Parameter(bias_K, requires_grad=False)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        """Logits [B, N, K] at the given positions."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden_BND.float(), self.weight.float(), bias)


def use_head(base: PreTrainedModel, *, label_tokens: list[list[int]] | None, trained: bool) -> None:
    """Replace the model's output layer by one for the tokens that tell the label words apart, or by one that trains.

    Args:
        base: a causal language model, whole or partitioned.
        label_tokens: token ids of each label word; None: the whole vocabulary.
        trained: whether the head trains; a whole one that does not stays the model's own.
    """
    if label_tokens is None and not trained:
        return
    head = base.get_output_embeddings()
    rows = slice(None) if label_tokens is None else LabelTrie(label_tokens).tokens
    bias = getattr(head, "bias", None)
    with gathered([head.weight] if bias is None else [head.weight, bias]), torch.no_grad():
        weight_KD = head.weight[rows].clone()
        bias_K = None if bias is None else bias[rows].clone()
    base.set_output_embeddings(OutputHead(weight_KD, bias_K, trained=trained))


@contextmanager
def label_head(base: PreTrainedModel, label_tokens: list[list[int]]) -> Iterator[None]:
    """Let a whole model with the whole vocabulary's head have, inside, the head of the label words."""
    whole = base.get_output_embeddings()
    use_head(base, label_tokens=label_tokens, trained=False)
    try:
        yield
    finally:
        base.set_output_embeddings(whole)
