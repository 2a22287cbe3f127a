"""The mixing layer of x_mixup: at one layer the target's states are mixed with what they find in the source's.

    target h ---> query --+                            c   what the position finds in the source
       |                  v                            H   entropy of its attention, mean over heads
       |     attention over the source's prompt        λ = ratio · sigmoid(w·H + b)
       |       key ^   ^ value    |
       |           |   |          v
       |         source s      c, λ ------> h' = (1 - λ)·h + λ·c ---> next layer
       +------------------------------------^

The method is Yang et al.'s (ICLR 2022, arXiv 2205.04182). Theirs is an encoder, ours a decoder, so some of what their
code does (repository yhy1117/X-Mixup) is done differently here:

    theirs                                              here
    inside an encoder layer, before its feed-forward    between two decoder layers: works with any architecture
    the layer's own attention maps look at the source   maps of its own, the identity plus a low-rank update: at first a
                                                        position asks for what resembles it, and gets those states
    a layer norm after the mixture                      none: the next layer norms what it reads; queries and keys are
                                                        normed here
    λ one a pair of texts, from the entropies of both   one a target position, from its own entropy: anything else would
    directions, λ0 = 0.5; w starts at 1, b at 0         tell a position what comes after it; same start
    behind layer 1 of 24 (sentences), 4 (tagging), 16   a setting; default: half the layers, since no one place served
    (questions)                                         all their tasks
    α·source + (1-α)·target, α = 0.4 (sentences), 0.2   the same, default 0.4
    (questions), 0.8 (tagging), as the task's loss
    + MSE of the two [CLS] states; of the means over    + MSE of the two last prompt states, in front of the head: the
    the tokens for questions                            only ones that have read all of the prompt
    + KL(source || target) of the predictions, not for  + the same where both texts have the same answer, token for
    questions; both of weight 1                         token, so that positions correspond (always, with label words)
    gradients through both texts, no stop anywhere      the same: adapters on for both
    texts drawn between a source and its                one source a row
    back-translation, the latter ever more often
    at test time mixed with the machine translation     mixed with the row's source, in prefill and every decoded token

Legend: B rows, L target columns, M source columns, D the model's width, H heads, K = D / H, R rank.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.config import Config, MixupConfig
from flare_ds.exceptions import ConfigError


@dataclass(frozen=True)
class Memory:
    """What the source offers to every target position, those not yet decoded included.

    Attributes:
        key_BHMK: what it is found by.
        value_BHMK: what is found.
        real_BM: which columns are prompt tokens; none in a row without a source.
    """

    key_BHMK: Tensor
    value_BHMK: Tensor
    real_BM: Tensor


class Mixing(nn.Module):
    """The mixing layer, in fp32.

    Args:
        width: the model's.
        rank: of what trains in the maps.
        heads: of the attention; they divide the width.
        ratio: the largest λ.
    """

    def __init__(self, width: int, *, rank: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.query, self.key, self.value = (_NearIdentity(width, rank) for _ in range(3))
        self.gate = nn.Linear(1, 1, dtype=torch.float32)
        nn.init.ones_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def remember(self, source_BMD: Tensor, real_BM: Tensor) -> Memory:
        """What there is to be found in the source's states."""
        # What stands in padding may be anything, even NaN, which no share of 0 would take out.
        source_BMD = source_BMD.to(self.gate.weight.dtype).masked_fill(~real_BM[..., None], 0.0)
        return Memory(self._split(self.key(self.norm(source_BMD))), self._split(self.value(source_BMD)), real_BM)

    def forward(self, target_BLD: Tensor, memory: Memory) -> Tensor:
        """The mixed states [B, L, D], in the target's precision; rows without a source stay as they are."""
        own_BLD = target_BLD.to(self.gate.weight.dtype)
        query_BHLK = self._split(self.query(self.norm(own_BLD)))
        scores_BHLM = query_BHLK @ memory.key_BHMK.mT / math.sqrt(query_BHLK.shape[-1])
        # Not -inf: a row without a source has no other column.
        unseen_BHLM = ~memory.real_BM[:, None, None]
        log_shares_BHLM = scores_BHLM.masked_fill(unseen_BHLM, torch.finfo(scores_BHLM.dtype).min).log_softmax(-1)
        shares_BHLM = log_shares_BHLM.exp()
        found_BLD = (shares_BHLM @ memory.value_BHMK).transpose(1, 2).flatten(2)
        entropy_BL = -(shares_BHLM * log_shares_BHLM).sum(-1).mean(1)
        share_BL1 = self.ratio * torch.sigmoid(self.gate(entropy_BL[..., None]))
        mixed_BLD = (own_BLD + share_BL1 * (found_BLD - own_BLD)).to(target_BLD.dtype)
        return torch.where(memory.real_BM.any(1)[:, None, None], mixed_BLD, target_BLD)

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _NearIdentity(nn.Module):
    """x + up(down(x)): the identity at first, of which a low-rank difference trains."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False, dtype=torch.float32)
        self.up = nn.Linear(rank, width, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def make_mixing(base: PreTrainedModel, config: Config) -> Mixing:
    """A fresh mixing layer for a model; a function of train.seed alone."""
    check_mixup(base, config.mixup)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        width, mixup = base.config.get_text_config().hidden_size, config.mixup
        return Mixing(width, rank=config.adapter.r, heads=mixup.heads, ratio=mixup.ratio)


def check_mixup(base: PreTrainedModel, mixup: MixupConfig) -> None:
    """Check that the mixing layer's settings fit the model, which may be on the meta device.

    Raises:
        ConfigError: the model has fewer layers, or its width is not divided by the heads.
    """
    text = base.config.get_text_config()
    if mixup.layer is not None and mixup.layer > text.num_hidden_layers:
        raise ConfigError(
            f"mixup.layer={mixup.layer}, but the model has {text.num_hidden_layers} layers",
            fix=f"set mixup.layer to at most {text.num_hidden_layers}, or to null for {mixing_layer(base, None)}",
        )
    if text.hidden_size % mixup.heads:
        raise ConfigError(
            f"mixup.heads={mixup.heads} does not divide the model's width {text.hidden_size}",
            fix=f"set mixup.heads={math.gcd(mixup.heads, text.hidden_size)}",
        )


def mixing_layer(base: PreTrainedModel, layer: int | None) -> int:
    """Behind how many decoder layers the states are mixed: as set, or half of them."""
    return layer or max(1, base.config.get_text_config().num_hidden_layers // 2)
