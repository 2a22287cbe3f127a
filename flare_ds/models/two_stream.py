"""The trained model: a frozen base, its adapter, and the streams, as one module with one root forward.

    batch  ->  [source rows; target rows]  ->  the Hugging Face model's own forward  ->  logits at answer positions

Legend: B target rows, L columns, N answer positions, K logits (label words, or the vocabulary).
"""

from contextlib import nullcontext

from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from flare_ds.adapters.alignment import align_streams
from flare_ds.adapters.inject import inject_adapter
from flare_ds.config import Config
from flare_ds.data.collate import Batch
from flare_ds.models.embedding import shard_embedding
from flare_ds.models.head import use_head
from flare_ds.models.loading import load_base
from flare_ds.models.mt_encoder import make_projection
from flare_ds.models.streams import LockstepStreams, Sources


class TwoStreamModel(nn.Module):
    """A base with an adapter, fed with one or two streams.

    Args:
        model: the base with its adapter (method lora, flare), or the bare base (zero_shot).
        config: the run's settings.
        projection: brings an MT encoder's states to the base's width; trains beside the adapter (mt_encoder).
    """

    def __init__(self, model: PeftModel | PreTrainedModel, config: Config, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.model = model
        self.projection = projection
        self.align = config.adapter.align
        self.fuses = config.sources > 0
        self.streams = LockstepStreams(model, config) if isinstance(model, PeftModel) else None

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model, adapters inside it."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def peft_model(self) -> PeftModel:
        """The model with its adapter; there is one unless the method is zero_shot."""
        assert isinstance(self.model, PeftModel)
        return self.model

    def train(self, mode: bool = True) -> "TwoStreamModel":
        """Put only the adapters in training mode: the frozen base, and so the source, never sees dropout."""
        super().train(False)
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        self.training = mode
        return self

    def forward(self, batch: Batch, *, sources: Sources | None = None, past: Cache | None = None) -> Tensor:
        """Logits [B, N, K] at the columns that predict the answers.

        Args:
            batch: the rows.
            sources: what the target meets, when decoding; None: what follows from the batch.
            past: keys and values of the target's earlier columns, when decoding; added to.
        """
        if sources is None and self.fuses and len(batch.source_lengths_SB):
            sources = self.sources_of(batch)
        with nullcontext() if self.streams is None else self.streams.reading(sources):
            return self.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=batch.answer_columns_N,
                past_key_values=past,
                use_cache=past is not None,
            ).logits

    def sources_of(self, batch: Batch) -> Sources:
        """How the sources of a batch meet its target rows."""
        rows = batch.target_lengths_B.shape[0]
        stored = batch.stored_BMKD
        if self.projection is not None:
            assert stored is not None, "an MT encoder's states are always stored"
            stored = self.projection(stored.float())
        alignment = align_streams(
            batch.source_lengths_SB,
            batch.target_lengths_B,
            prompt_columns=batch.prompt_columns,
            real_BL=batch.attention_mask[-rows:].bool(),
            mode=self.align,
            source_columns=None if stored is None else stored.shape[1],
            source_answers_SB=batch.source_answers_SB,
        )
        return Sources(alignment, stored_BMKD=stored)


def build_model(config: Config, *, label_tokens: list[list[int]], labels: tuple[str, ...]) -> TwoStreamModel:
    """Load the base (partitioned where a ZeRO-3 config is live), add a fresh adapter, choose the head.

    Raises:
        ConfigError: the base or the MT encoder cannot be loaded, or the base does not have the wanted modules.
    """
    base = load_base(config.model)
    model: PeftModel | PreTrainedModel = base
    if config.method != "zero_shot":
        model = inject_adapter(base, config.adapter, sources=config.sources, seed=config.train.seed)
    use_head(
        base,
        label_tokens=label_tokens if config.train.objective == "labels" else None,
        labels=labels,
        trained=config.adapter.train_head and config.method != "zero_shot",
    )
    shard_embedding(base)
    projection = None
    if config.sources and config.source.provider == "mt_encoder":
        width = base.config.get_text_config().hidden_size
        projection = make_projection(config.source, width, seed=config.train.seed)
    return TwoStreamModel(model, config, projection)
