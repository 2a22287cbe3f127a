"""Adapters of every kind with trained-looking values, and what a model with one says of a batch; used by tests here."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import save_adapter
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.tasks.load import task_of
from tests.by_hand import LABELS, TARGETS, make_batch, make_rows
from tests.distributed import REPOSITORY
from tests.forms import PAPER_FORM
from tests.mt import write_mt_model
from tests.small_models import COMMON

LABEL_TOKENS = {word: [token] for word, token in LABELS.items()}
VALIDATION = {"step": 20, "accuracy": 0.75, "macro_f1": 0.625, "loss": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "rslora": {"method": "lora", "adapter": {"rslora": True}},
    "lora_head": {"method": "lora", "adapter": {"train_head": True}, "train": {"objective": "vocabulary"}},
    "lora_words": {"method": "lora", "adapter": {"train_head": True}},
    "flare": {},
    "flare_words": {"adapter": {"train_head": True, "align": "left", "pairing": "input", "fusion": "gate"}},
    "flare_full": {
        "adapter": {
            "fusion": "cross_attention",
            "fusion_heads": 2,
            "source_weights": "learned",
            "source_down": "own",
            "train_head": True,
            "rslora": True,
        },
        "train": {"objective": "vocabulary"},
        "task": {"extra_source_languages": ["de"]},
    },
    "flare_mt": {"method": "flare_mt", "source": {"mt_language": "pol_Latn"}},
    "x_mixup": {"method": "x_mixup", "mixup": {"layer": 2, "heads": 4}},
}
PLAIN = ("lora", "rslora", "lora_head")


def tied_model() -> PreTrainedModel:
    """A random Llama whose output matrix is the embedding: a trained head must not become the embedding too."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**COMMON | {"num_hidden_layers": 2}, tie_word_embeddings=True)).eval()


def make_settings(root: Path, kind: str) -> dict[str, Any]:
    """Settings of a run of that kind, on the model at root/model; if there is none, a small one with a tied head."""
    if not (root / "model").exists():
        tied_model().save_pretrained(root / "model")
    if not (root / "mt").exists():
        write_mt_model(root / "mt")
    settings: dict[str, Any] = {
        "method": "flare",
        "run_dir": str(root / kind),
        "deepspeed": str(REPOSITORY / "ds_configs/zero3_fp32_cpu.json"),
        "model": {"base": str(root / "model"), "dtype": "float32"},
        "task": {"name": "multiemo", "data_dir": "unused", "target_language": "pl"},
        "source": {"mt_encoder": str(root / "mt")},
        "adapter": {"r": 4, "alpha": 8, "target_modules": TARGETS, **PAPER_FORM},
        "train": {"steps": 1},
    }
    for section, value in KINDS[kind].items():
        settings[section] = settings.get(section, {}) | value if isinstance(value, dict) else value
    return settings


def trained_model(config: Config, words: Mapping[str, list[int]] = LABEL_TOKENS) -> TwoStreamModel:
    """A model none of whose trained matrices is as it began."""
    model = build_model(config, label_tokens=[*words.values()]).eval()
    generator = torch.Generator().manual_seed(11)
    for parameter in trainable_parameters(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def save_trained(config: Config, model: TwoStreamModel, words: Mapping[str, list[int]] = LABEL_TOKENS) -> Path:
    """Write its adapter and card as training does."""
    directory = Path(config.run_dir) / "adapter"
    tensors = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    save_adapter(directory, tensors, model.peft_model, config, label_tokens=words, validation=VALIDATION)
    write_card(directory, config, task_of(config.task))
    return directory


def a_batch(config: Config) -> Batch:
    """Rows of several lengths; with stored states where the config's provider stores them."""
    if not config.reads_mt_encoder:
        return make_batch(make_rows(max(config.sources, 1)), config)
    batch = make_batch(make_rows(), config.model_copy(update={"method": "lora"}))
    stored_BMKD = torch.randn(5, 6, 1, 24, generator=torch.Generator().manual_seed(2))
    return replace(batch, stored_BMKD=stored_BMKD, source_lengths_SB=torch.tensor([[6, 5, 4, 3, 2]]))


@torch.no_grad()
def says(model: TwoStreamModel, config: Config) -> Tensor:
    """Its logits for the batch."""
    return model(a_batch(config))
