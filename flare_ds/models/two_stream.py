"""The trained model: a frozen base, its adapter, and the streams, as one module with one root forward.

    batch  ->  [source rows; target rows]  ->  the Hugging Face model's own forward  ->  logits at answer positions

Legend: B target rows, L columns, N answer positions, K logits (label words, or the vocabulary).
"""

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.adapters.alignment import align_prompts
from flare_ds.adapters.inject import inject_adapter
from flare_ds.config import Config
from flare_ds.data.collate import Batch
from flare_ds.models.embedding import shard_embedding
from flare_ds.models.head import use_label_head
from flare_ds.models.loading import load_base
from flare_ds.models.streams import LockstepStreams


class TwoStreamModel(nn.Module):
    """A base with an adapter, fed with one or two streams.

    Args:
        model: the base with its adapter (method lora, flare), or the bare base (zero_shot).
        config: the run's settings.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, config: Config) -> None:
        super().__init__()
        self.model = model
        self.align = config.adapter.align
        self.streams = None
        if config.method == "flare":
            assert isinstance(model, PeftModel)
            self.streams = LockstepStreams(model, config.adapter)

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

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, N, K] at the columns that predict the answers."""
        if self.streams is None:
            return self._logits(batch)
        alignment = align_prompts(
            batch.source_lengths_B,
            batch.target_lengths_B,
            prompt_columns=batch.prompt_columns,
            columns=batch.input_ids.shape[1],
            mode=self.align,
        )
        with self.streams.aligned(alignment):
            return self._logits(batch)

    def _logits(self, batch: Batch) -> Tensor:
        output = self.base(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=batch.answer_columns_N,
            use_cache=False,
        )
        return output.logits


def build_model(config: Config, *, label_tokens: list[list[int]], labels: tuple[str, ...]) -> TwoStreamModel:
    """Load the base (partitioned where a ZeRO-3 config is live), add a fresh adapter, choose the head.

    Raises:
        ConfigError: the base cannot be loaded, or does not have the wanted modules.
    """
    base = load_base(config.model)
    model: PeftModel | PreTrainedModel = base
    if config.method != "zero_shot":
        model = inject_adapter(base, config.adapter, fused=config.method == "flare", seed=config.train.seed)
    if config.train.objective == "labels":
        use_label_head(base, label_tokens, labels)
    shard_embedding(base)
    return TwoStreamModel(model, config)
