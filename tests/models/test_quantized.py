"""4-bit and 8-bit bases compute what the same base with the dequantised weights computes, alone and on two ranks."""

import builtins
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import NO_TARGET
from flare_ds.config import ModelConfig
from flare_ds.exceptions import HostError
from flare_ds.models.loading import load_base, load_shape
from flare_ds.models.quantized import stored_size
from flare_ds.models.two_stream import TwoStreamModel, build_model
from tests.by_hand import make_batch, make_rows
from tests.distributed import run_ranks
from tests.models.quantized_worker import KINDS, SHARDED, STEPS, frozen_checksum, quantized_config
from tests.small_models import VOCAB

# the sixteen numbers of NF4: QLoRA (arXiv 2305.14314), appendix E
NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]

KIND = pytest.mark.parametrize(("quantization", "dtype"), KINDS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model`: big enough that ZeRO-3 partitions it, with biases, and weights that make each term count."""
    directory = tmp_path_factory.mktemp("quantized")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory / "model")
    return directory


def dequantized(layer: Any) -> Tensor:
    """The weights a bitsandbytes layer stores, worked out by hand."""
    codes = layer.weight.detach().contiguous()
    if codes.dtype == torch.int8:
        return codes.float() * layer.scale[:, None] / 127
    codes = codes.view(torch.uint8).flatten()
    numbers = torch.stack([codes >> 4, codes & 15], 1).flatten().long()  # two to a byte, the high half first
    scaled = torch.tensor(NF4)[numbers].view(-1, 64) * layer.scale[:, None]
    return scaled.view(layer.out_features, layer.in_features)


def with_dequantized_weights(quantized: PreTrainedModel, base: Path, dtype: str) -> PreTrainedModel:
    """The base with plain linear layers that hold what the quantised ones store, which is checked on the way."""
    plain = load_base(ModelConfig(base=str(base), dtype=dtype))
    layers = {name: module for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    for name, module in quantized.named_modules():
        if type(module) is not nn.Linear and isinstance(module, nn.Linear):
            weight, stored = layers[name].weight, dequantized(module)
            coarsest = 0.16 if module.weight.dtype != torch.int8 else 0.005
            assert 0 < (stored - weight).abs().max() / weight.abs().max() < coarsest, f"{name} stores something else"
            identity = torch.eye(module.in_features, dtype=weight.dtype)
            product = module(identity) if module.bias is None else module(identity) - module.bias
            ulp = torch.finfo(weight.dtype).eps
            torch.testing.assert_close(product.T, stored.to(weight.dtype), rtol=ulp, atol=ulp)
            weight.data = stored.to(weight.dtype)
            layers.pop(name)
    assert list(layers) == ["lm_head"], "what is not quantised"
    return plain


def with_adapter(base: PreTrainedModel, config: Any) -> TwoStreamModel:
    model = TwoStreamModel(inject_adapter(base, config.adapter, sources=config.sources, seed=7), config).train()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    """The norm of the difference, as a share; nan where all that is wanted is zero."""
    assert found is not None and wanted is not None
    return ((found - wanted).float().norm() / wanted.float().norm()).item()


@KIND
@pytest.mark.parametrize(("method", "checkpointing"), [("flare", False), ("flare", True), ("source_prefix", True)])
def test_equals_the_dequantized_base(
    root: Path, quantization: str, dtype: str, method: str, checkpointing: bool
) -> None:
    config = quantized_config(root / "model", quantization, dtype, method=method, checkpointing=checkpointing)
    base = load_base(config.model)
    pair = [with_adapter(each, config) for each in (with_dequantized_weights(base, root / "model", dtype), base)]
    batch = make_batch(make_rows(), config)
    logits = [model(batch) for model in pair]
    for each in logits:
        summed_loss(each.float(), batch.answers_BN).backward()
    plain, quantized = (dict(model.named_parameters()) for model in pair)
    errors = {"logits": error(logits[1], logits[0])}
    errors |= {name: error(quantized[name].grad, p.grad) for name, p in plain.items() if p.requires_grad}
    assert len(errors) == 1 + 2 * 7 * 2
    # in bf16 the two may dequantise to neighbouring numbers, and each layer rounds
    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert {name: found for name, found in errors.items() if not found < tolerance} == {}
    assert all((parameter.grad is None) == (not parameter.requires_grad) for parameter in quantized.values())


@KIND
def test_the_backward_pass_reads_the_weights_anew(root: Path, quantization: str, dtype: str) -> None:
    """ZeRO-3 takes the weights away after the forward, and lays them out again somewhere else for the backward."""
    base = load_base(ModelConfig(base=str(root / "model"), dtype=dtype, quantization=quantization))
    layer = base.model.layers[0].mlp.up_proj
    x = torch.randn(3, layer.in_features, dtype=getattr(torch, dtype), requires_grad=True)
    product = layer(x)
    layer.weight.data = layer.weight.data.flip(0)
    upstream = torch.randn_like(product)
    product.backward(upstream)
    assert error(x.grad, upstream @ dequantized(layer).to(upstream)) < (1e-6 if dtype == "float32" else 0.02)


@KIND
def test_fuses_in_training_mode_with_checkpointing(root: Path, quantization: str, dtype: str) -> None:
    config = quantized_config(root / "model", quantization, dtype, checkpointing=True)
    model = with_adapter(load_base(config.model), config)
    batch = make_batch(make_rows(), config)
    before = model(batch).detach()
    batch.input_ids[0] = batch.input_ids[0].roll(1) + batch.attention_mask[0]  # the source of the first row
    after = model(batch.__class__(**{**vars(batch), "input_ids": batch.input_ids % VOCAB})).detach()
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert torch.equal(after[1:], before[1:]), "another row changed"


def summed_loss(logits_BNK: Tensor, answers_BN: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        logits_BNK.flatten(0, 1), answers_BN.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )


def plain_losses(config: Any) -> dict[str, Any]:
    """The steps of the worker, without an engine."""
    model = build_model(config, label_tokens=[]).train()
    before = frozen_checksum(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.train.learning_rate, weight_decay=config.train.weight_decay)
    rows = make_rows()
    batch = make_batch(rows, config)
    losses = []
    for _ in range(STEPS):
        loss = summed_loss(model(batch), batch.answers_BN) / sum(len(row.answer) for row in rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, config.train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    assert frozen_checksum(model) == before
    return {"losses": losses, "checksum": before}


def test_two_ranks_whole_or_sharded_equal_one_process(root: Path) -> None:
    outputs = run_ranks(["tests.models.quantized_worker", str(root)], 2)
    for kind in ("nf4", "int8"):
        assert f"{kind} base: " in "".join(outputs), "the peak is not printed"
    ranks = [json.loads((root / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for quantization, dtype in SHARDED:
        expected = plain_losses(quantized_config(root / "model", quantization, dtype))
        for held in ("whole", "sharded"):
            found = ranks[0][f"{held}-{quantization}-{dtype}"]
            tolerance = 1e-5 if dtype == "float32" else 0.01
            torch.testing.assert_close(found["losses"], expected["losses"], rtol=tolerance, atol=0)
            assert found["losses"][-1] < 0.95 * found["losses"][0], "nothing is learned"


@KIND
def test_stored_size_is_what_is_stored(root: Path, quantization: str, dtype: str) -> None:
    model = ModelConfig(base=str(root / "model"), dtype=dtype, quantization=quantization)
    layer = load_base(model).model.layers[0]
    parameters = list(layer.parameters())
    assert not any(parameter.requires_grad for parameter in parameters)
    size = stored_size(load_shape(model).model.layers[0], model)
    assert size.elements == sum(parameter.numel() for parameter in parameters)
    assert size.bytes == sum(parameter.nbytes for parameter in parameters)
    assert size.bytes < 0.7 * stored_size(load_shape(model).model.layers[0], ModelConfig(base="any")).bytes


def test_without_bitsandbytes_the_fix_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else builtins)
    with pytest.raises(HostError, match="pip install 'bitsandbytes>="):
        load_base(ModelConfig(base=str(root / "model"), quantization="nf4"))
