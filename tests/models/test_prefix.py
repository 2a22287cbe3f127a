"""source_prefix against the slow oracle, the joint row under the base, plain LoRA, and Hugging Face's own cache."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from flare_ds.adapters.passes import Pass, during
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.models.prefix_streams import PrefixStreams, windows
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import build, make_batch, make_config, make_rows, oracle_base, short_name
from tests.models.test_two_stream import assert_equal_to_oracle
from tests.oracle import PrefixOracle, Row

LONG = [([(9, 0)], (4, 2)), ([(3, 0)], (7, 3)), ([(0, 0)], (5, 2)), ([(6, 0)], (1, 1))]
"""Sources and targets that are longer than the windows of the small models, and a row without a source."""


def settings(**changed) -> Config:
    return make_config(method="source_prefix", **changed)


def make_oracle(model: TwoStreamModel, name: str, layers: int, config: Config) -> PrefixOracle:
    from tests.by_hand import make_oracle as plain

    oracle = plain(model, oracle_base(name, layers), config)
    return PrefixOracle(oracle.base, oracle.trained, oracle.adapter, oracle.head_rows)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize(
    ("name", "layers", "attention"),
    [
        ("llama", 2, "eager"),
        ("llama", 2, "sdpa"),
        ("gemma2", 2, "eager"),
        ("gemma3", 3, "eager"),
        ("gemma3", 3, "sdpa"),
    ],
)
def test_equals_the_oracle(name: str, layers: int, objective: str, checkpointing: bool, attention: str) -> None:
    """Logits, loss and every gradient; windows shorter than the rows, soft caps, grouped queries, no source."""
    config = settings(objective=objective, checkpointing=checkpointing)
    model = build(name, config, layers=layers)
    model.base.set_attn_implementation(attention)
    assert_equal_to_oracle(model, make_oracle(model, name, layers, config), config, make_rows(1, LONG))


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_several_sources_stand_one_after_another(name: str, objective: str) -> None:
    """Two or three texts, of which any may be missing, the first included."""
    config = settings(objective=objective, sources=3)
    model = build(name, config, layers=3)
    assert_equal_to_oracle(model, make_oracle(model, name, 3, config), config, make_rows(3))


def test_the_order_of_the_sources_matters_and_none_sees_another() -> None:
    config = settings(sources=2)
    model = build("gemma3", config, layers=3)
    rows = make_rows(2, [([(5, 0), (4, 0)], (4, 2))])
    swapped = [Row(row.target, row.answer, row.sources[::-1]) for row in rows]
    with torch.no_grad():
        found, other = model(make_batch(rows, config)), model(make_batch(swapped, config))
    assert (found - other).abs().max() > 1e-3


def test_the_last_layer_reads_of_the_source_its_keys_and_values_alone() -> None:
    """Behind them nobody reads it: of the last layer no module computes what comes after."""
    config, rows = settings(), make_rows(1, LONG)
    model = build("llama", config, layers=2)
    read: dict[str, list[int]] = {}
    for name, module in model.base.named_modules():
        if name.endswith("base_layer"):
            forward = module.forward
            module.forward = lambda x, name=name, forward=forward: (
                read.setdefault(name.split(".", 2)[2], []).append(x.shape[0]) or forward(x)
            )
    model(make_batch(rows, config))
    twice = {name for name, calls in read.items() if len(calls) == 2}
    assert {name for name in read if name.startswith("0.")} <= twice
    assert {name.split(".")[2] for name in twice if name.startswith("1.")} == {"q_proj", "k_proj", "v_proj"}


def test_the_rows_reach_beyond_the_windows() -> None:
    for name in ("gemma2", "gemma3"):
        found = {window for window in oracle_base(name, 3).s.windows if window is not None}
        assert found and max(found) < 4 + 9


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_trained_head_and_rslora(name: str) -> None:
    config = settings(train_head=True, rslora=True)
    model = build(name, config, layers=3)
    assert_equal_to_oracle(model, make_oracle(model, name, 3, config), config, make_rows(1, LONG))


def joined(rows: list[Row]) -> list[Row]:
    return [Row(row.sources[0][0] + row.target, row.answer) for row in rows]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_with_b_at_zero_it_is_the_joint_row_under_the_base(name: str) -> None:
    """Before anything is trained: what the base says behind both texts in one row."""
    config, rows = settings(), make_rows(1, LONG)
    model = build(name, config, layers=3)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.zero_()
    plain = make_config(method="lora")
    alone = build(name, plain, layers=3)
    alone.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, wanted = model(make_batch(rows, config)), alone(make_batch(joined(rows), plain))
    for row, logits, expected in zip(rows, found, wanted, strict=True):
        torch.testing.assert_close(logits[: len(row.answer)], expected[: len(row.answer)], atol=1e-5, rtol=1e-5)


def test_without_a_source_it_is_lora() -> None:
    lengths = [([(0, 0)], (4, 3)), ([(0, 0)], (6, 3))]
    config, plain = settings(), make_config(method="lora")
    model, lora = build("gemma3", config, layers=3), build("gemma3", plain, layers=3)
    lora.load_state_dict(model.state_dict())
    rows = make_rows(1, lengths)
    alone = [Row(row.target, row.answer) for row in rows]
    with torch.no_grad():
        found, wanted = model(make_batch(rows, config)), lora(make_batch(alone, plain))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_what_stands_in_the_padding_reaches_nothing() -> None:
    """Neither tokens there, nor more of it, nor NaN that attention left in a row that has no source at all."""
    config, rows = settings(), make_rows(1, LONG)
    model = build("gemma3", config, layers=3)
    with torch.no_grad():
        clean = model(make_batch(rows, config))
        padded = model(make_batch(rows, config, left=3, pad_seed=1))
    for row, logits, expected in zip(rows, padded, clean, strict=True):
        torch.testing.assert_close(logits[: len(row.answer)], expected[: len(row.answer)], atol=1e-6, rtol=1e-6)
    absent = next(number for number, row in enumerate(rows) if not row.sources[0][0])

    def poison(_, __, output):
        output = output.clone()
        output[absent] = float("nan")  # the sources' rows come first
        return output

    handle = model.base.get_input_embeddings().register_forward_hook(poison)
    try:
        loss = model(make_batch(rows, config), with_loss=True)
        loss.backward()
    finally:
        handle.remove()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_source_has_no_gradient_and_no_adapter() -> None:
    """Its keys are the base's own, whatever the adapter is; nothing flows back into it."""
    config, rows = settings(), make_rows(1, LONG)
    model = build("llama", config)
    seen: list[torch.Tensor] = []
    original = PrefixStreams.sources_of

    def keep(self, batch):
        prefix = original(self, batch)
        seen.append(prefix)
        return prefix

    PrefixStreams.sources_of = keep
    try:
        model(make_batch(rows, config), with_loss=True).backward()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data * 3
        model(make_batch(rows, config))
    finally:
        PrefixStreams.sources_of = original
    before, after = (prefix.beside.state_XMD for prefix in seen)
    assert not before.requires_grad
    torch.testing.assert_close(before, after, atol=0, rtol=0)


@pytest.mark.parametrize(("name", "sources"), [("llama", 1), ("gemma2", 1), ("gemma3", 1), ("gemma3", 2)])
def test_decoding_token_by_token_equals_reading_all_again(name: str, sources: int) -> None:
    """The prefix stays in the cache; sliding layers look back by positions, not by columns."""
    config = settings(sources=sources)
    model = build(name, config, layers=3).eval()
    lengths = [([(9, 0), (2, 0)], (4, 5)), ([(3, 0), (0, 0)], (6, 5)), ([(0, 0), (5, 0)], (5, 5))]
    rows = make_rows(sources, lengths)
    whole = make_batch(rows, config)
    assert_decodes_alike(model, rows, whole)


@torch.no_grad()
def stored(model: TwoStreamModel, rows: list[Row], columns: int = 11) -> torch.Tensor:
    """Each source's keys and values as Hugging Face keeps them of the text alone; padding holds anything."""
    text = model.base.config.get_text_config()
    width = 2 * text.num_key_value_heads * text.head_dim
    stored_BMND = torch.full((len(rows), columns, text.num_hidden_layers, width), 9.0)
    for number, row in enumerate(rows):
        if prompt := row.sources[0][0]:
            cache = DynamicCache()
            with during(Pass(adapted=False)):
                model.base(input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True)
            for layer, kept in enumerate(cache.layers):
                both_HMK = torch.cat([kept.keys[0], kept.values[0]])
                stored_BMND[number, columns - len(prompt) :, layer] = both_HMK.transpose(0, 1).flatten(1)
    return stored_BMND


def stored_batch(model: TwoStreamModel, rows: list[Row], config: Config) -> Batch:
    """Target rows alone, beside what is stored of their sources."""
    lengths_SB = torch.tensor([[len(row.sources[0][0]) for row in rows]])
    batch = make_batch([Row(row.target, row.answer) for row in rows], config)
    return replace(batch, source_lengths_SB=lengths_SB, stored_BMKD=stored(model, rows))


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize(("name", "layers"), [("llama", 2), ("gemma2", 2), ("gemma3", 3)])
def test_stored_keys_equal_the_oracle(name: str, layers: int, objective: str) -> None:
    config, rows = settings(objective=objective, provider="cached"), make_rows(1, LONG)
    model = build(name, config, layers=layers)
    oracle = make_oracle(model, name, layers, config)
    assert_equal_to_oracle(model, oracle, config, rows, stored_batch(model, rows, config))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_decoding_behind_stored_keys_equals_reading_all_again(name: str) -> None:
    config = settings(provider="cached")
    model = build(name, config, layers=3).eval()
    rows = make_rows(1, [([(9, 0)], (4, 5)), ([(3, 0)], (6, 5)), ([(0, 0)], (5, 5))])
    whole = stored_batch(model, rows, config)
    assert_decodes_alike(model, rows, whole)


def assert_decodes_alike(model: TwoStreamModel, rows: list[Row], whole: Batch) -> None:
    """Answers of five tokens, read one at a time behind their prompts, give the logits of the whole rows."""
    prompts = _prompts(whole)
    with torch.no_grad(), model.streams.decoding():
        wanted = model(whole)
        cache = model.streams.target_cache(model.base.config)
        found = [model(prompts, past=cache)]
        mask = prompts.attention_mask[-len(rows) :, model.streams.first_column(prompts) :]
        for step in range(4):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            column = replace(
                prompts,
                input_ids=torch.tensor([[row.answer[step]] for row in rows]),
                attention_mask=mask,
                position_ids=torch.tensor([[len(row.target) + step] for row in rows]),
                source_lengths_SB=prompts.source_lengths_SB[:0],
                stored_BMKD=None,
                answer_columns_N=torch.zeros(1, dtype=torch.long),
            )
            found.append(model(column, past=cache))
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-5, rtol=1e-5)


def _prompts(batch: Batch) -> Batch:
    end = batch.prompt_columns
    return replace(
        batch,
        input_ids=batch.input_ids[:, :end],
        attention_mask=batch.attention_mask[:, :end],
        position_ids=batch.position_ids[:, :end],
        answer_columns_N=batch.answer_columns_N[:1],
    )


def test_windows_are_those_of_each_layer() -> None:
    from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

    assert windows(LlamaConfig(num_hidden_layers=2), 2) == [None, None]
    assert windows(MistralConfig(sliding_window=8), 2) == [8, 8]
    kinds = ["sliding_attention", "full_attention"]
    assert windows(Gemma3TextConfig(num_hidden_layers=2, sliding_window=4, layer_types=kinds), 2) == [4, None]
    with pytest.raises(ConfigError, match="chunked_attention"):
        windows(Gemma3TextConfig(num_hidden_layers=2, layer_types=["full_attention", "chunked_attention"]), 2)


def test_all_that_trains_is_the_adapter() -> None:
    model = build("llama", settings())
    assert {short_name(name).rpartition(".lora_")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        "A.weight",
        "B.weight",
    }
