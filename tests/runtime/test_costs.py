"""What a step is said to cost against what torch counts while it is computed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import streams_of
from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.costs import Costs
from tests.forms import PAPER_FORM
from tests.models.architectures import ATTENTION
from tests.toy import toy_settings, word_tokenizer, write_model

LABEL_TOKENS = [[4], [5], [6]]
LENGTHS = {"source": [29, 40, 22], "source2": [33, 12, 25], "target": [31, 18, 36]}
WEIGHTS = [1.0, 1.0, 0.0]  # the last row only keeps the ranks in step
CASES: dict[str, tuple[str, dict, dict]] = {
    "lora": ("lora", {}, {}),
    "lora, words": (
        "lora",
        {"train_head": True, "target_modules": ["q_proj", "down_proj"]},
        {"objective": "vocabulary"},
    ),
    "lora, checkpointed": ("lora", {}, {"gradient_checkpointing": True}),
    "input_fusion": ("input_fusion", {}, {}),
    "source_prefix": ("source_prefix", {}, {}),
    "source_prefix, checkpointed": ("source_prefix", {}, {"gradient_checkpointing": True}),
    "source_prefix, two sources": ("source_prefix", {}, {}),
    "flare": ("flare", {"r": 16, **PAPER_FORM}, {}),
    "flare, pairing=input": ("flare", {"r": 16, **PAPER_FORM, "pairing": "input"}, {}),
    "flare, pairing=module in q and v": ("flare", {"r": 16, **PAPER_FORM, "pairing": "module"}, {}),
    "flare, an A of the source's own": ("flare", {"r": 16}, {}),
    "x_mixup": ("x_mixup", {"r": 16}, {}),
    "lora, experts": ("lora", {"target_modules": ATTENTION}, {}),
    "flare, experts": ("flare", {"r": 16, "target_modules": ATTENTION, "fused_modules": ["o_proj"]}, {}),
    "flare, pairing=input, experts": ("flare", PAPER_FORM | {"target_modules": ATTENTION, "pairing": "input"}, {}),
}


class Rows:
    """Random rows of known lengths."""

    labels = np.array([0, 2, 1])

    def __len__(self) -> int:
        return len(self.labels)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(4, 20, LENGTHS[stream][row])

    def answer(self, stream: str, row: int) -> np.ndarray:
        return np.array([4 + row, 7, 1][row:])

    def prompt_lengths(self, stream: str) -> np.ndarray:
        return np.array(LENGTHS[stream])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("costs")
    # A head that is large beside the layers, so that one computed at too many positions shows.
    tokenizer = word_tokenizer([f"word{number}" for number in range(4000)])
    write_model(root / "model", layers=8, tokenizer=tokenizer)
    tokenizer.save_pretrained(root / "experts")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    routed = {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 3, "pad_token_id": None}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes | routed)).save_pretrained(root / "experts")
    return root


def config_of(root: Path, case: str) -> Config:
    method, adapter, train = CASES[case]
    settings = toy_settings(root, method=method, **train) | {"adapter": adapter}
    if case.endswith("two sources"):
        settings["task"]["extra_source_languages"] = ["de"]
    if case.endswith("experts"):
        settings["model"]["base"] = str(root / "experts")
    settings["model"]["attention"] = "eager"  # torch does not count the fused attention of a CPU
    return Config.model_validate(settings)


def batch_of(config: Config) -> Batch:
    return collate(
        rows_read(Rows(), config, SimpleNamespace(suffix_ids=[], prefix_ids=[], newline_ids=[3])),  # type: ignore[arg-type]
        MicroBatch(np.arange(3), np.array(WEIGHTS, np.float32)),
        streams=streams_of(config),
        objective=config.train.objective,
        pad_id=2,
        source_targets=config.recipe.fuses == "mixup",
    )


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(root: Path, case: str) -> None:
    """What checkpointing computes again does not count: it is no use of a device, but a price of memory."""
    config = config_of(root, case)
    batch = batch_of(config)
    once = config.model_copy(update={"train": config.train.model_copy(update={"gradient_checkpointing": False})})
    model = build_model(once, label_tokens=LABEL_TOKENS).train()
    if case.endswith("experts"):
        model.base.set_experts_implementation("eager")  # torch does not count grouped products either
    with FlopCounterMode(display=False) as counter:
        model(batch, with_loss=True).backward()
    counted = Costs(config, load_shape(config.model), labels=3).of(batch)["flops"]
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    ("case", "tokens", "columns"),
    [("lora", 31 + 18, 36), ("flare", 31 + 18 + 29 + 40, 40 + 36), ("input_fusion", 31 + 18 + 29 + 40 + 2, 61)],
)
def test_tokens_of_all_streams_that_run(root: Path, case: str, tokens: int, columns: int) -> None:
    config = config_of(root, case)
    found = Costs(config, load_shape(config.model), labels=3).of(batch_of(config))
    assert (found["tokens"], found["padded_tokens"]) == (tokens, 3 * columns)
