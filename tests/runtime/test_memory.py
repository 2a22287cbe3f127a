"""What is estimated before loading comes from the shapes of the modules, whatever a configuration calls them."""

import pytest
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.exceptions import HostError
from flare_ds.models.loading import load_shape
from flare_ds.runtime import memory, opening
from flare_ds.runtime.costs import Costs
from flare_ds.runtime.memory import estimate_memory, largest_load
from tests.models.architectures import ARCHITECTURES, small_base
from tests.models.test_architectures import config_of
from tests.toy import toy_settings, write_model

WIDTH = 16
INSIDE = dict.fromkeys(ARCHITECTURES, 24) | {"bloom": 4 * WIDTH, "qwen2_moe": WIDTH}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_memory_of_a_token_follows_from_the_layers(name: str) -> None:
    base = small_base(name, ARCHITECTURES[name].attentions[0])
    layers = base.config.get_text_config().num_hidden_layers
    inside = max(INSIDE[name], 4 * getattr(base.config.get_text_config(), "head_dim", 4))
    estimate = estimate_memory(config_of(name, method="lora"), base, streams=1, ranks=1)
    assert estimate.per_token == 4 * layers * (12 * WIDTH + 6 * inside)
    assert estimate.fixed > 1e9


def test_with_checkpointing_a_layer_keeps_what_it_reads(toy: tuple[Config, PreTrainedModel]) -> None:
    """What the target meets is kept by either; of the layers one at a time is whole."""
    config, shape = toy
    train = config.train.model_copy(update={"gradient_checkpointing": True})
    layers, width = len(shape.model.layers), shape.config.hidden_size
    for method, met in (("lora", 0), ("flare", 1), ("source_prefix", 1)):
        cell = config.model_copy(update={"method": method})
        kept, recomputed = (
            estimate_memory(one, shape, streams=1, ranks=1).per_token
            for one in (cell, cell.model_copy(update={"train": train}))
        )
        alone = kept / (1 + 0.2 * met)
        assert recomputed == pytest.approx(layers * 4 * width + alone / layers + 0.2 * met * alone)


def test_eager_attention_keeps_a_map_of_each_head(toy: tuple[Config, PreTrainedModel]) -> None:
    """Over its own columns; behind keys of a source over those as well. With checkpointing of one layer at a time."""
    config, shape = toy
    layers, heads = len(shape.model.layers), shape.config.num_attention_heads
    eager = config.model.model_copy(update={"attention": "eager"})
    again = config.train.model_copy(update={"gradient_checkpointing": True})
    for method, texts in (("lora", 1), ("flare", 1), ("source_prefix", 2)):
        for train, kept in ((config.train, layers), (again, 1)):
            cell = config.model_copy(update={"method": method, "train": train})
            sdpa, own = (
                estimate_memory(one, shape, streams=1, ranks=1, columns=100).per_token
                for one in (cell, cell.model_copy(update={"model": eager}))
            )
            assert own - sdpa == pytest.approx(kept * 8 * heads * 100 * texts)


def test_words_that_are_predicted_over_the_vocabulary_take_their_logits(toy: tuple[Config, PreTrainedModel]) -> None:
    """Of every row, from the head to the loss: 16 bytes each (benchmarks/head_memory.py)."""
    config, shape = toy
    loads = [largest_load(config.train, row_tokens=60, streams=2, ranks=1, words=words) for words in (0, 5)]
    labels, words = (memory.joint_bytes([config], shape, [load], ranks=None) for load in loads)
    rows = config.train.micro_batch_size
    assert words - labels == pytest.approx(rows * 5 * shape.config.vocab_size * 16)
    assert memory.joint_bytes([config] * 3, shape, [loads[1]] * 3, ranks=None) - words > 2 * (words - labels)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_of_attention_follows_from_the_layers(name: str) -> None:
    base = small_base(name, ARCHITECTURES[name].attentions[0])
    costs = Costs(config_of(name), base, labels=3)
    text = base.config.get_text_config()
    assert costs.per_pair == 4 * text.num_hidden_layers * 4 * (getattr(text, "head_dim", None) or 4)


def test_layers_may_have_heads_of_their_own_width() -> None:
    base = small_base("gemma4", global_head_dim=12)
    assert Costs(config_of("gemma4"), base, labels=3).per_pair == 4 * 4 * (8 + 12)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, PreTrainedModel]:
    root = tmp_path_factory.mktemp("toy")
    write_model(root / "model", layers=12)
    config = Config.model_validate(toy_settings(root))
    return config, load_shape(config.model)


def test_a_whole_base_takes_all_its_weights_and_a_shared_one_what_is_gathered(
    toy: tuple[Config, PreTrainedModel],
) -> None:
    config, shape = toy
    whole, alone, shared = (estimate_memory(config, shape, streams=2, ranks=ranks).fixed for ranks in (None, 1, 1000))
    weights = 4 * sum(parameter.numel() for parameter in shape.parameters())
    trained = whole - 1e9 - weights
    layers = shape.model.layers
    modules = [module for module in layers.modules() if hasattr(module, "in_features")]
    linears = sum(2 * module.in_features + module.out_features for module in modules)
    assert trained == 20 * config.adapter.r * linears
    embedding = 4 * shape.get_input_embeddings().weight.numel()
    gathered = embedding + 3.5 * (weights - embedding) / len(layers)
    assert alone == pytest.approx(whole + gathered)
    assert shared == pytest.approx(1e9 + (weights + trained) / 1000 + gathered)


GB = 1e9
# train.whole_model, ranks, free memory (None: between what the two engines need); whether whole, and what is said
ENGINES = [
    ("auto", 1, 9 * GB, True, "there is one rank"),
    ("auto", 2, 9 * GB, True, "it needs about 1.0 GB on each rank, and 9.0 GB are free for it"),
    ("auto", 2, None, False, "it needs about 1.0 GB on each rank, but 1.0 GB are free for it"),
    (False, 1, 9 * GB, False, "train.whole_model=false"),
    (True, 2, 9 * GB, True, "train.whole_model=true"),
]


@pytest.mark.parametrize(("wanted", "ranks", "free", "whole", "said"), ENGINES)
def test_who_holds_the_base(
    toy: tuple[Config, PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wanted: str | bool,
    ranks: int,
    free: float | None,
    whole: bool,
    said: str,
) -> None:
    config, shape = toy
    train = config.train.model_copy(update={"whole_model": wanted})
    config = config.model_copy(update={"train": train, "deepspeed": "zero3_fp32_cpu"})
    monkeypatch.setattr(opening, "world_size", lambda: ranks)
    monkeypatch.setattr(memory, "world_size", lambda: 10 * ranks)
    load = largest_load(config.train, row_tokens=8, streams=2, ranks=1)
    if free is None:
        one, other = (memory.joint_memory([config], shape, [load], whole=held).needed for held in (True, False))
        free = (one + other) / 2
        assert other < free < one
    monkeypatch.setattr(memory, "_available", lambda on: free)
    assert opening.trains_whole(config, shape, load) is whole
    told = capfd.readouterr().err
    assert said in told and told.count("\n") == 1
    assert ("each rank holds the whole base" in told) == whole
    assert ("deepspeed=zero3_fp32_cpu is ignored" in told) == whole


@pytest.mark.parametrize(
    ("train", "ranks", "tokens"),
    [
        ({"batch_size": 16, "micro_batch_size": 8}, 1, 8 * 60),
        ({"batch_size": 16, "micro_batch_size": 8}, 8, 2 * 60),  # a step has no more rows for a rank
        ({"batch_size": 17, "micro_batch_size": 8}, 8, 3 * 60),
        ({"batch_size": 16, "micro_batch_size": 1}, 8, 60),
        ({"batch_size": 16, "micro_batch_size": 8, "micro_batch_tokens": 100}, 8, 100),
        ({"batch_size": 16, "micro_batch_size": 8, "micro_batch_tokens": 400}, 8, 2 * 60),
        ({"batch_size": 16, "micro_batch_size": 8, "batch_tokens": 4000}, 8, 8 * 60),  # rows as many as fit
    ],
)
def test_a_micro_batch_is_no_larger_than_a_ranks_share_of_a_step(
    toy: tuple[Config, PreTrainedModel], train: dict[str, int], ranks: int, tokens: int
) -> None:
    settings = toy[0].train.model_copy(update=train)
    assert largest_load(settings, row_tokens=60, streams=2, ranks=ranks).tokens == tokens


def test_what_does_not_fit_is_refused_with_what_would(
    toy: tuple[Config, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shape = toy
    load = largest_load(config.train, row_tokens=8, streams=2, ranks=1)

    def fix(*, whole: bool, free: float, ranks: int) -> str:
        monkeypatch.setattr(memory, "_available", lambda on: free)
        monkeypatch.setattr(memory, "world_size", lambda: ranks)
        with pytest.raises(HostError, match=r"train\.micro_batch_size=8 needs about") as refused:
            memory.check_memory(config, shape, load, whole=whole)
        return refused.value.fix

    estimate = estimate_memory(config, shape, streams=2, ranks=None)
    assert "train.micro_batch_size=3" in fix(whole=True, free=estimate.bytes(31), ranks=2)
    assert "train.whole_model=false" in fix(whole=True, free=0.9e9, ranks=2)
    assert "more ranks" in fix(whole=True, free=0.9e9, ranks=1)
    assert "more ranks" in fix(whole=False, free=0.9e9, ranks=2)
    assert "gradient_checkpointing" in fix(whole=True, free=estimate.bytes(7), ranks=1), "not even one row fits"
    assert "gradient_checkpointing" not in fix(whole=True, free=0.9e9, ranks=1), "not even the base fits"
    assert "in a new run, model.quantization=nf4" in fix(whole=False, free=0.9e9, ranks=2)
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "nf4"})})
    for whole in (True, False):
        assert "ranks" not in fix(whole=whole, free=0.7e9, ranks=2), "each holds all of a quantised base for a while"
