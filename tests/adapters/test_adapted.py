"""Adapted linears against PEFT's own, bit by bit: numbers, gradients, and what is kept for the backward pass."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.down_projection import down_projection
from flare_ds.adapters.inject import inject_adapter, lora_config
from flare_ds.adapters.up_projection import up_projection
from flare_ds.exceptions import CheckpointError
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import build, make_batch, make_config, make_rows
from tests.models.architectures import ATTENTION, EXPERTS, small_experts
from tests.oracle import Row
from tests.small_models import VOCAB, small_model

IDS = torch.arange(24).view(3, 8) % VOCAB


def base_in(dtype: torch.dtype) -> PreTrainedModel:
    base, _ = small_model("llama", layers=2)
    return base.to(dtype)


def pair(dtype: torch.dtype = torch.float32, **settings: Any) -> list[PeftModel]:
    """PEFT's LoRA and ours, over bases and with adapters that are the same."""
    adapter = make_config(**settings).adapter
    pefts, base = base_in(dtype), base_in(dtype)
    models = [get_peft_model(pefts, lora_config(adapter, pefts)), inject_adapter(base, adapter, sources=0, seed=7)]
    for model in models:
        draw = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                assert parameter.dtype == torch.float32
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return models


def numbers(model: PeftModel) -> dict[str, Tensor]:
    """Logits and the gradient of everything that trains."""
    torch.manual_seed(11)
    logits = model.train()(input_ids=IDS).logits
    logits.float().logsumexp(-1).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all((gradient != 0).any() for gradient in gradients.values()) and len(gradients) == 2 * 7 * 2
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.4}, {"rslora": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_peft_bit_by_bit(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    expected, found = map(numbers, pair(dtype, **settings))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@torch.no_grad()
@pytest.mark.parametrize("kind", EXPERTS)
def test_attention_beside_experts_equals_peft(kind: str) -> None:
    """So is flare where there is no source; with one, B = 0 leaves the base as it is."""
    settings = {"target_modules": ATTENTION, "fused_modules": ["o_proj"], "pairing": "module"}
    lora, flare = (make_config(method=method, **settings) for method in ("lora", "flare"))
    pefts = small_experts(kind)
    plain = pefts(input_ids=IDS).logits
    models = [
        get_peft_model(pefts, lora_config(lora.adapter, pefts)),
        inject_adapter(small_experts(kind), lora.adapter, sources=0, seed=7),
        inject_adapter(small_experts(kind), flare.adapter, sources=1, seed=7),
    ]
    streams = TwoStreamModel(models[2], flare).eval()
    rows = [Row(row[:6], row[6:], [(row[::-1], row[:1])]) for row in IDS.tolist()]
    torch.testing.assert_close(streams(make_batch(rows, flare))[:, :2], plain[:, 5:7], rtol=1e-4, atol=1e-5)
    for model in models:
        draw = torch.Generator().manual_seed(3)
        assert len([name for name, _ in model.named_parameters() if "lora_" in name]) == 2 * len(ATTENTION) * 2
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    expected, *found = [model.eval()(input_ids=IDS).logits for model in models]
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert [torch.equal(one, expected) for one in found] == [True, True]
    assert (streams(make_batch(rows, flare))[:, :2] - expected[:, 5:7]).abs().max() > 1e-2, "the source is read"


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_of_the_down_projection(dropout: float) -> None:
    def projected(x: Tensor, a_RD: Tensor) -> Tensor:
        torch.manual_seed(5)
        return down_projection(x, a_RD, dropout)

    draw = torch.Generator().manual_seed(1)
    x, a_RD = (torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((2, 5, 6), (3, 6)))
    assert torch.autograd.gradcheck(projected, (x.requires_grad_(), a_RD.requires_grad_()))


def test_the_gradient_of_the_up_projection() -> None:
    draw = torch.Generator().manual_seed(1)
    sizes = ((2, 5, 6), (2, 5, 3), (6, 3))
    given = [torch.randn(shape, dtype=torch.float64, generator=draw, requires_grad=True) for shape in sizes]
    assert torch.autograd.gradcheck(lambda *parts: up_projection(*parts, 0.7), given)


def kept_bytes(model: nn.Module, *inputs: Any) -> int:
    """Bytes that a forward keeps for the backward pass beside the weights, each storage once."""
    kept: dict[int, Tensor] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(id(x), x), lambda x: x):
        model(*inputs)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept.values()}
    return sum(size for place, size in storages.items() if place not in weights)


def test_an_input_is_kept_once_as_it_is() -> None:
    pefts, ours = (model.base_model.model.model.layers[0].self_attn for model in pair(torch.bfloat16))
    x_BLD = torch.randn(2, 64, 16, dtype=torch.bfloat16, requires_grad=True)

    class Three(nn.Module):
        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.linears = nn.ModuleList([attention.q_proj, attention.k_proj, attention.v_proj])

        def forward(self, x_BLD: Tensor) -> list[Tensor]:
            return [linear(x_BLD) for linear in self.linears]

    bottlenecks = 3 * 4 * (2 * 64 * 4)
    assert kept_bytes(Three(ours), x_BLD) == x_BLD.nbytes + bottlenecks
    # At least: where the processor multiplies in bf16 by itself, torch's own linear layer keeps its input too.
    assert kept_bytes(Three(pefts), x_BLD) >= 3 * 2 * x_BLD.nbytes + bottlenecks, "an fp32 copy each"


def called(model: TwoStreamModel) -> Counter[int]:
    """Modules that a forward calls inside the decoder layers, by the number of their layer."""
    calls: Counter[int] = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
        for number, layer in enumerate(decoder_layers(model.base))
        for module in layer.modules()
    ]
    with torch.no_grad():
        model(make_batch(make_rows(), make_config()))
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_each_stream_calls_an_adapted_linear_once(fusion: str) -> None:
    model = build("llama", make_config(fusion=fusion, source_down="own", pairing="module"))
    calls = called(model)
    assert calls == {0: 25, 1: 25}, "the layer; 7 linears and 5 others for each stream"
    assert model.streams is not None
    with model.streams.measuring():
        assert called(model) == calls, "else ZeRO-3 would have to learn the order anew"


def test_peft_merges_lora_and_no_fusion() -> None:
    _, ours = pair()
    expected = ours(input_ids=IDS).logits
    torch.testing.assert_close(ours.merge_and_unload()(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="cannot be merged"):
        build("llama", make_config()).peft_model.merge_and_unload()
