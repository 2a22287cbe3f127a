"""The MT encoder of FLARE-MT: a frozen M2M100 or NLLB encoder that reads the target text, in its own language.

Its last hidden states stand in for the source's: no text in the source language is needed. The tokenizer marks the
text with the *target* language's tag (`pol_Latn` for NLLB, `pl` for M2M100). One shared linear layer, which trains,
brings the states to the base's width.

Legend: B texts, M columns, n tokens of a text, D the encoder's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from flare_ds.config import Config, SourceConfig
from flare_ds.model_files.complete import load_seq2seq
from flare_ds.model_files.hub import revision
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer, unusable


class MTEncoder:
    """A frozen encoder and its tokenizer.

    Raises:
        ConfigError: the model cannot be loaded, or does not know the tag.
        CheckpointError: its files lack some of its weights.
    """

    def __init__(self, source: SourceConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        assert not is_deepspeed_zero3_enabled(), "the encoder must be whole: load it before the base"
        name, self.tokenizer = str(source.mt_encoder), load_mt_tokenizer(source)
        try:
            model = load_seq2seq("source.mt_encoder", name, dtype)
        except (OSError, ValueError, ImportError) as error:
            raise unusable(source, error) from error
        self.encoder: PreTrainedModel = model.get_encoder().to(device)

    @torch.no_grad()
    def states(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Last hidden states [n, 1, D] of each tokenized text."""
        padded = self.tokenizer.pad(
            {"input_ids": [list(text) for text in texts]}, padding_side="right", return_tensors="pt"
        )
        inputs = padded.to(self.encoder.device)
        hidden_BMD = self.encoder(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        return [hidden_BMD[row, : len(text), None] for row, text in enumerate(texts)]


def mt_width(source: SourceConfig) -> int:
    """Width of the encoder's states.

    Raises:
        ConfigError: there is no configuration of a model at `source.mt_encoder`.
    """
    name = str(source.mt_encoder)
    try:
        return AutoConfig.from_pretrained(name, revision=revision(name), trust_remote_code=False).hidden_size
    except (OSError, ValueError) as error:
        raise unusable(source, error) from error


def make_projection(base: PreTrainedModel, config: Config) -> nn.Linear | None:
    """A fresh fp32 linear layer from the encoder's width to the base's, where the method reads an encoder's states.

    It is a function of train.seed alone.
    """
    if not config.reads_mt_encoder:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return nn.Linear(mt_width(config.source), base.config.get_text_config().hidden_size, dtype=torch.float32)
