"""The trained model: a frozen base, its adapter, and the streams, as one module with one root forward.

    batch  ->  [source rows; target rows]  ->  the Hugging Face model's own forward  ->  logits at answer positions

Legend: B target rows, L columns, N answer positions, K logits (of the label words' tokens, or the vocabulary).
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.inject import check_adapter, inject_adapter
from flare_ds.adapters.passes import ADAPTER
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.embedding import HostRows, read_on_host
from flare_ds.models.head import use_head
from flare_ds.models.joint_head import OF_CELLS
from flare_ds.models.loading import load_base
from flare_ds.models.lockstep_streams import LockstepStreams
from flare_ds.models.mixup import make_mixing
from flare_ds.models.mixup_streams import MixupStreams
from flare_ds.models.mt_encoder import make_projection
from flare_ds.models.prefix_streams import PrefixStreams
from flare_ds.models.streams import PlainStreams, Streams


class TwoStreamModel(nn.Module):
    """A base with an adapter, fed with one or several streams.

    Args:
        model: the base with its adapter, or the bare base where the method trains nothing.
        config: the run's settings.
        projection: brings an MT encoder's states to the base's width; trains beside the adapter (flare_mt).
        host_rows: reads the rows of the embedding; None: the base does so itself.
        among: the adapter's name among others in the same layers, whose forward is then left to `JointModel`; None: it
            is alone.

    Attributes:
        adapter: its name.
        mixing: the mixing layer, which trains beside the adapter (x_mixup).
        streams: how the rows go through the layers.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        config: Config,
        projection: nn.Linear | None = None,
        host_rows: HostRows | None = None,
        among: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.adapter = config, among or ADAPTER
        self.model = model
        self.host_rows = host_rows
        self.projection = projection
        self.mixing = make_mixing(self.base, config) if config.recipe.fuses == "mixup" else None
        self.streams: Streams
        if self.mixing is not None:
            self.streams = MixupStreams(self.peft_model, self.mixing, config, self.adapter)
        elif config.recipe.fuses == "keys":
            self.streams = PrefixStreams(self.base, config, self.adapter)
        elif config.sources:
            self.streams = LockstepStreams(self.peft_model, config, projection, self.adapter)
        else:
            self.streams = PlainStreams(self.base, config, self.adapter)
        if among is None:
            for layer, stand_in in zip(decoder_layers(self.base), self.streams.layers, strict=True):
                layer.forward = stand_in

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model, adapters inside it."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def peft_model(self) -> PeftModel:
        """The model with its adapter; there is one if the method trains."""
        assert isinstance(self.model, PeftModel)
        return self.model

    @property
    def cells(self) -> "tuple[TwoStreamModel, ...]":
        """The one cell there is; a joint model has several."""
        return (self,)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, in the model's order, by the names they have where the adapter is alone."""
        mine = "" if self.adapter == ADAPTER else f".{self.adapter}."
        return {
            name.replace(f".{OF_CELLS}.{self.adapter}.", ".").replace(f".{self.adapter}.", f".{ADAPTER}."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and (mine in name or not name.startswith("model."))
        }

    def seed(self, seeds: Mapping[int, int]) -> None:
        """Begin the random numbers of dropout anew; of the one cell there is."""
        torch.manual_seed(seeds[0])

    def train(self, mode: bool = True) -> "TwoStreamModel":
        """Put only the adapters in training mode: the frozen base, and so the source, never sees dropout."""
        super().train(False)
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        self.training = mode
        return self

    def forward(
        self, batch: Batch, *, sources: Any = None, past: Cache | None = None, with_loss: bool = False
    ) -> Tensor:
        """Logits [B, N, K] at the columns that predict the answers, or the loss that is made of them.

        Where source rows go on to the head as well, their logits come first.

        Args:
            batch: the rows.
            sources: what the target meets, as `Streams.sources_of` puts it; None: what follows from the batch.
            past: keys and values of the target's earlier columns, when decoding; added to.
            with_loss: return the loss of the batch instead, summed over its answers: a number.
        """
        if self.host_rows is not None:
            self.host_rows.read(batch)
        if sources is None:
            sources = self.streams.sources_of(batch)
        with self.streams.reading(sources):
            logits_BNK = self.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=self.streams.positions(batch, sources),
                logits_to_keep=batch.answer_columns_N,
                past_key_values=past,
                use_cache=past is not None,
            ).logits
            return self.streams.loss(logits_BNK, batch) if with_loss else logits_BNK


def build_model(config: Config, *, label_tokens: list[list[int]], device: torch.device | None = None) -> TwoStreamModel:
    """Load the base as `load_base` does, add a fresh adapter, choose the head.

    Raises:
        ConfigError: the base or the MT encoder cannot be loaded; or see `check_adapter`.
    """
    base = load_base(config.model, device)
    model: PeftModel | PreTrainedModel = base
    if config.recipe.trains:
        check_adapter(base, config)
        model = inject_adapter(base, config.adapter, sources=config.sources, seed=config.train.seed)
    use_head(
        base,
        label_tokens=label_tokens if config.train.objective == "labels" else None,
        trained=config.adapter.train_head and config.recipe.trains,
    )
    return TwoStreamModel(model, config, make_projection(base, config), read_on_host(base, config.model.base))
