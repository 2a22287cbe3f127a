"""The streams of x_mixup: source rows and target rows through the adapted base together, mixed at one layer.

    embed              [2B, L, D]   source rows, then target rows
    layers 1 ... k     [2B, L, D]   adapters on for both, gradients through both
    mixing layer                    target rows ask the source rows' prompts; see `flare_ds.models.mixup`
    layers k+1 ...     [B, L, D]    the target's rows; with a loss the source's too, up to the head
    norm, head

When decoding, the source ends with the prefill: what it offers is kept for the positions to come, and its keys and
values leave the target's cache layer by layer.

The loss of a row, where n is the number of tokens in the target's answer (1 for label words):

    (1-α)·target + α·n·source + mse_weight·n·|s - t|²/D + kl_weight·KL(source || target)

target and KL are sums over the answer, source is the mean over the source's own (of a label word the sum, too). So
dividing by the step's tokens, as the trainer does, makes a mean of each of them. Without a source a row's loss is the
target's alone.

Legend: B rows a stream, X = 2B, L columns, P prompt columns, N answer positions, D the model's width, K logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.passes import ADAPTER
from flare_ds.batches.collate import NO_TARGET, Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import SHARED, cache_of, hidden_of, with_hidden
from flare_ds.models.loss import among_branches, answer_losses, batch_loss
from flare_ds.models.mixup import Memory, Mixing, mixing_layer
from flare_ds.models.source_pass import Left
from flare_ds.models.streams import PlainLayer, Streams


@dataclass(frozen=True)
class MixedSource:
    """The source rows of one forward.

    Attributes:
        real_BP: which of their prompt columns are not padding.
        keep: whether they go on to the head.
    """

    real_BP: Tensor
    keep: bool

    @property
    def rows(self) -> int:
        """B."""
        return self.real_BP.shape[0]


class MixupStreams(Streams):
    """Runs both streams through the decoder layers of one model.

    Attributes:
        last_XD: what the head read at the last prompt position, of source and target.
        remembered: when decoding, what the source of the prompts offers; None: it is forgotten after the forward.
    """

    remembered: Memory | None

    def __init__(self, model: PeftModel, mixing: Mixing, config: Config, adapter: str = ADAPTER) -> None:
        base = model.get_base_model()
        self.mixing, self.weights = mixing, config.mixup
        self.behind = mixing_layer(base, config.mixup.layer)  # type: ignore[arg-type]
        self.one_word = config.train.objective == "labels"
        self.last_XD: Tensor | None = None
        recompute = config.train.gradient_checkpointing
        self.layers = [
            _MixupLayer(self, layer, number, adapter, recompute=recompute)
            for number, layer in enumerate(decoder_layers(base), start=1)
        ]
        base.get_output_embeddings().register_forward_pre_hook(self._keep_last)  # type: ignore[operator]

    def sources_of(self, batch: Batch) -> MixedSource | None:
        """The source rows of a batch, if any; they go on to the head where it says what they should answer."""
        if not len(batch.source_lengths_SB):
            return None
        rows = len(batch.target_lengths_B)
        real_BP = batch.attention_mask[:rows, : batch.prompt_columns].bool()
        return MixedSource(real_BP, keep=batch.source_targets_SBN is not None)

    def first_column(self, batch: Batch) -> int:
        """All of them go through the layers: both streams do so in one call."""
        return 0

    @contextmanager
    def reading(self, source: MixedSource | None, *, at_head: slice = slice(None)) -> Iterator[None]:
        """See `Streams.reading`; what the head read is forgotten, too."""
        with super().reading(source, at_head=at_head):
            yield
        self.last_XD = None

    def mix(self, state_XLD: Tensor) -> Tensor:
        """The states that go on to the next layer: [X, L, D] with the source rows, otherwise [B, L, D]."""
        if self.sources is None:
            return state_XLD if self.remembered is None else self.mixing(state_XLD, self.remembered)
        source_BLD, target_BLD = state_XLD.split(self.sources.rows)
        memory = self.mixing.remember(source_BLD[:, : self.sources.real_BP.shape[1]], self.sources.real_BP)
        if self.is_decoding:
            self.remembered = memory
        mixed_BLD = self.mixing(target_BLD, memory)
        return torch.cat([source_BLD, mixed_BLD]) if self.sources.keep else mixed_BLD

    def loss(self, logits_XNK: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch that was just read, summed over its rows."""
        if self.sources is None:
            return batch_loss(logits_XNK, batch)
        logits_XNK = among_branches(logits_XNK, batch.branches_BNK)
        assert self.last_XD is not None and batch.source_targets_SBN is not None
        answers_BN, of_source_BN = batch.answers_BN, batch.source_targets_SBN[0]
        source_BNK, target_BNK = logits_XNK.chunk(2)
        source_BD, target_BD = self.last_XD.float().chunk(2)
        tokens_B, source_tokens_B = self._tokens(answers_BN), self._tokens(of_source_BN)
        has_source_B = (batch.source_lengths_SB[0] > 0).float()
        alpha_B = self.weights.source_weight * has_source_B
        source_loss_B = answer_losses(source_BNK, of_source_BN) * tokens_B / source_tokens_B.clamp(min=1)
        task_B = (1 - alpha_B) * answer_losses(target_BNK, answers_BN) + alpha_B * source_loss_B
        mse_B = has_source_B * tokens_B * (source_BD - target_BD).square().mean(1)
        kl_B = _divergence(source_BNK, target_BNK, answers_BN) * (answers_BN == of_source_BN).all(1)
        return ((task_B + self.weights.mse_weight * mse_B + self.weights.kl_weight * kl_B) * batch.weights_B).sum()

    def _tokens(self, targets_BN: Tensor) -> Tensor:
        """What n is of each row [B]."""
        tokens_B = (targets_BN != NO_TARGET).sum(1)
        return tokens_B.clamp(max=1) if self.one_word else tokens_B

    def _keep_last(self, _head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.sources is not None and self.sources.keep:
            self.last_XD = inputs[0][self.at_head, 0]


def _divergence(source_BNK: Tensor, target_BNK: Tensor, answers_BN: Tensor) -> Tensor:
    """KL(source || target) of each row [B], summed over its answer."""
    source_BNK, target_BNK = source_BNK.log_softmax(-1), target_BNK.log_softmax(-1)
    divergence_BN = (source_BNK.exp() * (source_BNK - target_BNK)).sum(-1)
    return (divergence_BN * (answers_BN != NO_TARGET)).sum(1)


class _MixupLayer(PlainLayer):
    """Takes the rows of both streams through one decoder layer."""

    def __init__(self, streams: MixupStreams, layer: nn.Module, number: int, adapter: str, *, recompute: bool) -> None:
        super().__init__(layer, adapter, recompute=recompute)
        self.streams, self.number = streams, number

    def read(self, hidden_states: Tensor, left: Left | None, given: dict[str, Any]) -> Any:
        """Take and return [X, L, D], or [B, L, D] where the source has ended."""
        source = self.streams.sources
        if source is not None and not source.keep and self.number > self.streams.behind:
            _, given = self.call.split(given, source.rows, 2 * source.rows)
            source = None
        output = super().read(hidden_states, left, given)
        if source is not None:
            self._keep_target(given, source)
        if self.number != self.streams.behind:
            return output
        return with_hidden(output, self.streams.mix(hidden_of(output)))

    def _keep_target(self, given: dict[str, Any], source: MixedSource) -> None:
        """Leave only the target's keys and values: to later columns, and where the source ends to later layers."""
        past = cache_of(given)
        if past is not None and self.number <= len(past.layers):  # the last ones may read what earlier ones wrote
            past.layers[self.number - 1].batch_select_indices(torch.arange(source.rows, 2 * source.rows))
        if self.number == self.streams.behind and not source.keep:
            shared = given.get(SHARED) or {}
            for name, states in list(shared.items()):
                shared[name] = tuple(state[source.rows :] for state in states)
