"""Every decoder-only architecture runs in two streams with no code of its own.

The reference is the step as the paper's equations put it, in two forwards of the plain Hugging Face model: the source
alone, whose states are noted; then the target, with a forward hook on each adapted linear layer. It reads one row at a
time, without padding or masks, so masks, windows and positions in a padded batch of two streams are checked as well.

Legend: L target columns, M source columns, D the model's width, R of the bottleneck, V vocabulary.
"""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from flare_ds.adapters.inject import check_adapter, inject_adapter
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.evaluation.decoding import Decoder
from flare_ds.exceptions import ConfigError
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import RunningModel
from tests.by_hand import make_batch, make_config, make_rows, short_name
from tests.models.architectures import ARCHITECTURES, ATTENTIONS, WINDOW, small_base
from tests.oracle import Row

# (prompt, answer) of the source and of the target: sources longer, shorter, equal and missing, most beyond the window
LENGTHS = [([(9, 1)], (6, 2)), ([(3, 1)], (8, 3)), ([(7, 1)], (7, 1)), ([(0, 0)], (5, 2))]
# how a layer is shown the source; a norm only where the architecture has one
PAIRINGS: list[dict[str, Any]] = [
    {"pairing": "output", "source_norm": True},
    {"pairing": "output", "source_norm": False},
    {"pairing": "input", "source_norm": True},
    {"pairing": "input", "source_norm": False},
    {"pairing": "module", "source_norm": False},
]
WITH_WINDOW = [name for name, one in ARCHITECTURES.items() if "sliding_window" in one.settings]


class TwoForwards:
    """The reference, for add_relu, align=right and span=prompt.

    Args:
        name: of the architecture.
        attention: its implementation.
        model: whose adapter is copied; nothing else of it is used.
        config: the adapter's settings.
        overrides: of the small configuration.
    """

    def __init__(self, name: str, attention: str, model: TwoStreamModel, config: Config, **overrides: Any) -> None:
        self.norm = ARCHITECTURES[name].norm
        self.adapter = config.adapter
        self.base = small_base(name, attention, **overrides)
        self.layers = cast("nn.ModuleList", self.base.get_submodule(ARCHITECTURES[name].layers))
        self.layer_of = {module: number for number, layer in enumerate(self.layers) for module in layer.modules()}
        self.trained = {short_name(name): value.detach() for name, value in model.named_parameters()}
        self.adapted = {name.partition(".lora_")[0] for name in self.trained if ".lora_" in name}
        self.source: dict[str, Tensor] | None = None

    @torch.no_grad()
    def logits(self, row: Row) -> Tensor:
        """Logits [L, V] at each token of the prompt and, but for its last, of the answer."""
        prompt, _ = row.sources[0]
        self.source = self._source(prompt) if prompt else None
        hooks = [
            self.base.get_submodule(name).register_forward_hook(partial(self._add, name, len(row.target)))
            for name in self.adapted
        ]
        logits_LV = self.base(input_ids=torch.tensor([row.target + row.answer[:-1]])).logits[0]
        for hook in hooks:
            hook.remove()
        return logits_LV

    def _source(self, prompt: list[int]) -> dict[str, Tensor]:
        """What each adapted linear layer is shown of the source [M, D]; the base runs alone."""
        inputs: dict[nn.Module, Tensor] = {}
        after: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            inputs[module] = args[0].flatten(0, -2)

        def note_last(layer: nn.Module, args: Any, output: Tensor) -> None:
            after.append(hidden(output))

        modules = {name: self.base.get_submodule(name) for name in self.adapted}
        hooks = [module.register_forward_hook(note) for module in modules.values()]
        hooks.append(self.layers[-1].register_forward_hook(note_last))
        states = self.base(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        # the last of Hugging Face's states is after the final norm, which no layer reads
        around = [state[0] for state in states[:-1]] + after
        return {name: self._shown(module, inputs[module], around) for name, module in modules.items()}

    def _shown(self, module: nn.Module, its_input_MD: Tensor, around: list[Tensor]) -> Tensor:
        if self.adapter.pairing == "module":
            return its_input_MD
        number = self.layer_of[module]
        state_MD = around[number + (self.adapter.pairing == "output")]
        if not self.adapter.source_norm:
            return state_MD
        assert self.norm is not None
        return self.layers[number].get_submodule(self.norm)(state_MD)

    def _add(self, name: str, prompt: int, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Make W·t into W·t + scaling·B·φ(A·s, A·t)."""
        a_RD, b_OR = self.trained[f"{name}.lora_A.weight"], self.trained[f"{name}.lora_B.weight"]
        bottleneck_LR = args[0].flatten(0, -2) @ a_RD.T
        if self.source is not None and name.rpartition(".")[2] in self.adapter.fused_modules:
            source_MR = self.source[name] @ a_RD.T
            for k in range(1, min(prompt, len(source_MR)) + 1):  # counted from the ends, which meet
                bottleneck_LR[prompt - k] = source_MR[-k].relu() + bottleneck_LR[prompt - k].relu()
        return output + (self.adapter.alpha / self.adapter.r * bottleneck_LR @ b_OR.T).view_as(output)


def hidden(output: Any) -> Tensor:
    """A layer's state [L, D] of the only row; some layers return it in a tuple."""
    return (output[0] if isinstance(output, tuple) else output)[0]


def config_of(name: str, *, method: str = "flare", checkpointing: bool = False, **adapter: Any) -> Config:
    one = ARCHITECTURES[name]
    settings: dict[str, Any] = {"target_modules": "all-linear", "fused_modules": list(one.fused)}
    settings |= {"source_norm": one.norm is not None} | adapter
    return make_config(method=method, checkpointing=checkpointing, **settings)


def build(name: str, attention: str, config: Config, *, fresh: bool = False, **overrides: Any) -> TwoStreamModel:
    """A small model with an adapter; unless fresh, as if it had trained."""
    base = small_base(name, attention, **overrides)
    model = TwoStreamModel(inject_adapter(base, config.adapter, sources=1, seed=7), config).train()
    generator = torch.Generator().manual_seed(5)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name and not fresh:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def assert_equal_to_two_forwards(model: TwoStreamModel, reference: TwoForwards, batch: Batch, rows: list[Row]) -> None:
    with torch.no_grad():
        logits_BLV = model(batch)
    for found_LV, row in zip(logits_BLV, rows, strict=True):
        expected_LV = reference.logits(row)
        first = batch.prompt_columns - len(row.target)
        torch.testing.assert_close(found_LV[first : first + len(expected_LV)], expected_LV, atol=1e-5, rtol=1e-5)


def pairings(name: str) -> list[dict[str, Any]]:
    return [pairing for pairing in PAIRINGS if ARCHITECTURES[name].norm or not pairing["source_norm"]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_two_forwards(name: str) -> None:
    rows, attention = make_rows(1, LENGTHS), ARCHITECTURES[name].attentions[0]
    for pairing in pairings(name):
        config = config_of(name, **pairing)
        model = build(name, attention, config)
        batch = make_batch(rows, config, everywhere=True, pad_seed=1)
        assert_equal_to_two_forwards(model, TwoForwards(name, attention, model, config), batch, rows)


@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
def test_a_row_alone_equals_its_row_in_a_padded_batch(name: str, attention: str) -> None:
    config, rows = config_of(name), make_rows(1, LENGTHS)
    model = build(name, attention, config)
    reference = TwoForwards(name, attention, model, config)
    assert_equal_to_two_forwards(model, reference, make_batch(rows, config, everywhere=True, left=2, right=1), rows)
    for row in rows:
        assert_equal_to_two_forwards(model, reference, make_batch([row], config, everywhere=True), [row])


@pytest.mark.parametrize("name", WITH_WINDOW)
def test_the_window_is_shorter_than_the_prompts(name: str) -> None:
    """So that the tests above would see it left out, for either stream: without it the logits are others."""
    one, config, row = ARCHITECTURES[name], config_of(name), make_rows(1, LENGTHS)[0]
    model = build(name, one.attentions[0], config)
    assert WINDOW < len(row.target) < len(row.sources[0][0])
    within, without = (
        TwoForwards(name, one.attentions[0], model, config, sliding_window=window).logits(row)
        for window in (WINDOW, 64)
    )
    assert (within - without)[:WINDOW].abs().max() > 1e-3  # from the source: the target is not that long yet
    assert (within - without).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
def test_a_fresh_adapter_is_the_base_bit_for_bit(name: str, attention: str) -> None:
    config, rows = config_of(name), make_rows(1, LENGTHS)
    model, batch = build(name, attention, config, fresh=True), make_batch(rows, config, everywhere=True)
    with torch.no_grad():
        found = model(batch)
        expected = small_base(name, attention)(
            input_ids=batch.input_ids[len(rows) :],
            attention_mask=batch.attention_mask[len(rows) :],
            position_ids=batch.position_ids[len(rows) :],
            use_cache=False,
        )
    assert torch.equal(found, expected.logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_reach_the_adapter_and_checkpointing_changes_none(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        config = config_of(name, checkpointing=checkpointing)
        model, batch = build(name, ARCHITECTURES[name].attentions[0], config), make_batch(make_rows(1, LENGTHS), config)
        model(batch).logsumexp(-1).sum().backward()
        found.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == {key for key, _ in model.named_parameters() if ".lora_" in key} == checkpointed.keys()
    for key, gradient in plain.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "fused"), [("opt", ["out_proj", "fc2"]), ("qwen2_moe", ["o_proj", "down_proj"])])
def test_modules_that_read_rows_and_columns_as_one_list_are_fused(name: str, fused: list[str]) -> None:
    config, rows = config_of(name, pairing="module", fused_modules=fused), make_rows(1, LENGTHS)
    model = build(name, "sdpa", config)
    batch = make_batch(rows, config, everywhere=True, left=1)
    assert_equal_to_two_forwards(model, TwoForwards(name, "sdpa", model, config), batch, rows)


@pytest.mark.parametrize(
    "settings", [{"span": "prompt"}, {"span": "full"}, {"method": "x_mixup"}], ids=lambda it: next(iter(it.values()))
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_values_kept_while_decoding_change_no_token(name: str, settings: dict[str, Any]) -> None:
    """Column by column is what all columns at once are: no stream reads what another wrote."""
    config = config_of(name, **settings)
    model = build(name, ARCHITECTURES[name].attentions[0], config).eval()
    if name == "gemma4":  # in fp32 its rounding alone comes to 2.3e-5 on some processors
        model = model.double()
    rows = make_rows(1, [([(9, 3)], (6, 3)), ([(3, 3)], (8, 3))])
    at_once = replace(make_batch(rows, config), source_targets_SBN=None)
    decoder = Decoder(RunningModel(model, model), at_once, along=settings.get("span") == "full")
    said = torch.tensor([[*(row.sources[0][1] for row in rows)], [row.answer for row in rows]]).flatten(0, 1)
    said_XN = said[-2 * (decoder.sources + 1) :]
    with torch.no_grad(), decoder.remembering():
        found = [decoder.prefill()]
        found += [decoder.step(said_XN[:, k], torch.ones(len(said_XN), dtype=torch.bool)) for k in range(2)]
    with torch.no_grad():
        expected_BNV = model(at_once)
    torch.testing.assert_close(torch.stack(found, 1)[-2:], expected_BNV, atol=1e-5, rtol=1e-5)


def test_names_that_a_model_lacks_are_refused_with_those_it_has() -> None:
    base, config = small_base("phi3"), config_of("phi3", fused_modules=["q_proj", "v_proj"])
    with pytest.raises(ConfigError, match=r"fused_modules names 'q_proj'.*'qkv_proj'.*\n.*did you mean 'qkv_proj'"):
        check_adapter(base, config)
    check_adapter(base, config_of("phi3"))


def test_a_source_norm_where_there_is_none_is_refused() -> None:
    base = small_base("olmo2")
    for pairing in ("output", "input"):
        with pytest.raises(ConfigError, match=r"Olmo2DecoderLayer has no input_layernorm.*\n.*source_norm=false"):
            check_adapter(base, config_of("olmo2", pairing=pairing, source_norm=True))
    check_adapter(base, config_of("olmo2", pairing="module", source_norm=True))
    for method in ("lora", "flare_mt"):  # no source, or none of the base's own
        check_adapter(base, config_of("olmo2", method=method, source_norm=True))


@pytest.mark.parametrize("pairing", ["output", "input", "module"])
@pytest.mark.parametrize("method", ["flare", "flare_mt"])
def test_a_state_needs_modules_as_wide_as_the_model(method: str, pairing: str) -> None:
    """An encoder's state meets every module alike, so pairing=module does not make it fit."""
    base = small_base("llama3")
    config = config_of("llama3", method=method, pairing=pairing, fused_modules=["q_proj", "down_proj"])
    if (method, pairing) == ("flare", "module"):
        check_adapter(base, config)
        return
    with pytest.raises(ConfigError, match=r"to adapter.fused_modules, but 'down_proj' takes \d+\n") as error:
        check_adapter(base, config)
    assert "adapter.fused_modules=[q_proj,v_proj]" in str(error.value)
    assert ("adapter.pairing=module" in str(error.value)) == (method == "flare")
    assert ("adapter.pairing=" in error.value.problem) == (method == "flare"), "it says nothing to flare_mt"


def test_layers_without_linear_modules_are_refused() -> None:
    with torch.device("meta"):
        base = GPT2LMHeadModel(GPT2Config(n_layer=2))
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel, whose layers hold no torch.nn.Linear"):
        check_adapter(base, config_of("llama3"))
