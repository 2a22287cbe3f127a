"""The label head: the output matrix cut down to the label words' rows.

With ranked labels the loss and the scores need the logits of K label tokens, not of the whole vocabulary. K rows
of the output matrix are taken once, before training, so a 262,144-word matrix is neither gathered nor multiplied
in any step. The rows are frozen copies; final soft-capping and logit scaling stay the model's own.

Legend: B rows, N answer positions, D the model's width, K label words.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.exceptions import ConfigError
from flare_ds.models.partitioned import gathered


class LabelHead(nn.Module):
    """Logits of the label words only, computed in fp32."""

    def __init__(self, rows_KD: Tensor, bias_K: Tensor | None) -> None:
        super().__init__()
        self.rows_KD = nn.Parameter(rows_KD, requires_grad=False)
        self.bias_K = None if bias_K is None else nn.Parameter(bias_K, requires_grad=False)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        """Logits [B, N, K] of the label words at the given positions."""
        bias = None if self.bias_K is None else self.bias_K.float()
        return nn.functional.linear(hidden_BND.float(), self.rows_KD.float(), bias)


def use_label_head(base: PreTrainedModel, label_tokens: list[list[int]], labels: tuple[str, ...]) -> None:
    """Replace the model's output layer by the label words' first tokens.

    Args:
        base: a causal language model, whole or partitioned.
        label_tokens: token ids of each label word.
        labels: the words, for the message.

    Raises:
        ConfigError: two label words begin with the same token, so their first tokens cannot rank them.
    """
    first_tokens = [tokens[0] for tokens in label_tokens]
    if len(set(first_tokens)) < len(first_tokens):
        raise ConfigError(
            f"two of the label words {list(labels)} begin with the same token under this tokenizer",
            fix="choose label words that differ from their first token on",
        )
    head = base.get_output_embeddings()
    bias = getattr(head, "bias", None)
    with gathered([head.weight] if bias is None else [head.weight, bias]), torch.no_grad():
        rows = head.weight[first_tokens].clone()
        bias_rows = None if bias is None else bias[first_tokens].clone()
    base.set_output_embeddings(LabelHead(rows, bias_rows))
