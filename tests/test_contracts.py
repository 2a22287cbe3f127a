"""Names of libraries that nobody promises to keep, and that we lean on: one that is gone or changed fails here by name.

setup.py keeps each library below the release that may break them; where a bound is raised, these tests come first.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import deepspeed
import pytest
import torch
import transformers
from deepspeed.comm.torch import build_shm_op
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_grad,
    safe_get_local_optimizer_state,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import DynamicCache
from transformers.generation import logits_process
from transformers.integrations import deepspeed as of_transformers
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from flare_ds.models.layer_calls import CACHES
from tests.distributed import REPOSITORY
from tests.small_models import small_model


def parameters(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.fixture(scope="module")
def layer() -> LoraLayer:
    """A LoRA layer as PEFT makes it, B not zero."""
    base, _ = small_model("llama", layers=1)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    (found,) = (module for module in model.modules() if isinstance(module, LoraLayer))
    torch.nn.init.ones_(found.lora_B["default"].weight)
    return found


@pytest.fixture
def x_BLD(layer: LoraLayer) -> Iterator[torch.Tensor]:
    yield torch.randn(2, 3, layer.in_features)


def test_a_peft_layer_is_called_by_its_forward(layer: LoraLayer, x_BLD: torch.Tensor) -> None:
    """What stands in for `LoraLayer.forward` is all that a call of the layer runs; `base_layer` is the frozen one."""
    adapted_BLO = layer(x_BLD)
    layer.forward = layer.base_layer.forward
    try:
        plain_BLO = layer(x_BLD)
    finally:
        del layer.forward
    torch.testing.assert_close(plain_BLO, x_BLD @ layer.base_layer.weight.T)
    assert (layer(x_BLD) - plain_BLO).abs().max() > 0 and torch.equal(layer(x_BLD), adapted_BLO)


def test_peft_computes_lora_as_it_is_written_down(layer: LoraLayer, x_BLD: torch.Tensor) -> None:
    """`lora_A`, `lora_B`, `scaling`, `lora_dropout`, `base_layer`, by adapter name."""
    a_RD, b_OR = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    assert isinstance(layer.lora_dropout["default"], torch.nn.Identity)
    expected_BLO = layer.base_layer(x_BLD) + layer.scaling["default"] * (x_BLD @ a_RD.T @ b_OR.T)
    torch.testing.assert_close(layer(x_BLD), expected_BLO)


def test_torch_modules_give_up_a_parameter() -> None:
    """`Module._parameters`: what is taken out is no parameter any more, and a plain tensor may take its place."""
    module = torch.nn.Embedding(4, 2)
    del module._parameters["weight"]
    assert not list(module.parameters())
    module.weight = torch.ones(4, 2)
    assert module(torch.tensor([1])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (DeepSpeedEngine.set_gradient_accumulation_boundary, ["self", "is_boundary"]),
        (safe_get_local_fp32_param, ["param"]),
        (safe_get_local_grad, ["param"]),
        (safe_set_local_grad, ["param", "value"]),
        (safe_get_local_optimizer_state, ["param", "optim_state_key"]),
        (safe_set_local_optimizer_state, ["param", "value", "optim_state_key"]),
        (build_shm_op, []),
        (of_transformers.unset_hf_deepspeed_config, []),
        (of_transformers.deepspeed_config, []),
        (of_transformers.is_deepspeed_zero3_enabled, []),
        (of_transformers.HfDeepSpeedConfig.__init__, ["self", "config_file_or_dict"]),
        (logits_process.TemperatureLogitsWarper.__init__, ["self", "temperature"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_function_takes_what_it_took(function: Callable, expected: list[str]) -> None:
    assert parameters(function) == expected


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (stage3, r"self\.fp32_partitioned_groups_flat = \[\]"),
        (stage3, r"self\.optimizer\b"),
        (stage3, r"self\.sub_group_to_group_id = "),
        (stage3, r"self\.optimizer\.param_groups\[param_group_id\]\['params'\] = \[fp32_param\]"),
        (partition_parameters, r"param\.ds_tensor = "),
        (partition_parameters, r"param\.ds_shape = "),
    ],
)
def test_zero3_still_keeps_what_we_read(module: object, name: str) -> None:
    """Attributes of DeepSpeed's ZeRO-3 that exist only in a process group; what they hold, the ranks' tests say."""
    assert re.search(name, inspect.getsource(module))


def test_zero3_gathers_what_is_registered_with_a_module() -> None:
    """`register_external_parameter`: what a module reads of others counts as its own wherever those are looked up."""
    module, other = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
    for parameter in other.parameters():
        deepspeed.zero.register_external_parameter(module, parameter)
    assert [id(parameter) for parameter in partitioned_param_coordinator.iter_params(module)] == [
        id(parameter) for parameter in (module.weight, other.weight, other.bias)
    ]


def test_deepspeed_names_its_shared_memory_as_we_unlink_it() -> None:
    source = Path(deepspeed.__file__).parent / "ops/csrc/cpu/comm/shm.cpp"
    assert '"deepspeed_allreduce_buffer"' in source.read_text()
    used = (REPOSITORY / "flare_ds/runtime/forming.py").read_text()
    assert "/dev/shm/deepspeed_allreduce_buffer_" in used


def test_zero3_knows_the_settings_we_fill_in() -> None:
    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    names = ("max_reuse_distance", "max_live_parameters", "prefetch_bucket_size", "param_persistence_threshold")
    assert {f"stage3_{name}" for name in names} <= known


def test_transformers_stores_a_cache_by_layer() -> None:
    """`Cache.layers` and `batch_select_indices`: x_mixup cuts the source's rows out of one layer's store."""
    cache = DynamicCache()
    cache.update(torch.arange(4.0).view(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), 0)
    cache.layers[0].batch_select_indices(torch.tensor([1, 3]))
    assert cache.layers[0].keys.flatten().tolist() == [1.0, 3.0]


def test_transformers_leaves_sentencepiece_within_reach() -> None:
    """`SentencePieceBackend`: its `sp_model`, and the method that makes pieces of a text."""
    source = inspect.getsource(SentencePieceBackend)
    assert "self.sp_model" in source and "def _tokenize(self, text" in source and "def save_vocabulary(" in source


@pytest.mark.parametrize("library", ["peft", "deepspeed", "transformers", "torch"])
def test_a_library_is_bounded_from_above(library: str) -> None:
    assert re.search(rf'"{library}>=[\d.]+,<[\d.]+"', (REPOSITORY / "setup.py").read_text())


def test_decoder_layers_keep_the_names_of_what_they_take() -> None:
    """The two streams hand each decoder layer what its own forward takes, by name."""
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    assert {"hidden_states", "attention_mask", "position_ids"} <= set(parameters(layer.forward))
    assert set(CACHES) & set(parameters(layer.forward)), "`cache` since 5.24, `past_key_values` before"


def test_one_generator_draws_the_dropout_of_all_cells() -> None:
    """Its state can be taken out and put back, which is how each cell draws what it would alone."""
    before = torch.default_generator.get_state()
    drawn = torch.rand(3)
    torch.default_generator.set_state(before)
    assert torch.equal(torch.rand(3), drawn)
