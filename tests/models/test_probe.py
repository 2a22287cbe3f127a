"""Bases whose layers cannot run for two texts side by side are refused before anything is loaded."""

from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.inject import inject_adapter
from flare_ds.exceptions import ConfigError
from flare_ds.models.probe import check_layers
from flare_ds.runtime.engine import check_model
from tests.by_hand import make_config
from tests.models.architectures import ARCHITECTURES, ATTENTION, COMMON, EXPERTS, FEED_FORWARD, MOE, small_base
from tests.models.test_architectures import config_of

ALTUP = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.0, 0.0],
    "laurel_rank": 4,
}


def on_meta(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**COMMON | FEED_FORWARD | settings))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_those_that_work_pass(name: str) -> None:
    for method in ("flare", "x_mixup"):
        check_layers(small_base(name, ARCHITECTURES[name].attentions[0]), config_of(name, method=method))


@pytest.mark.parametrize("method", ["flare", "lora"])
def test_what_is_tried_out_is_not_shared_out_where_zero3_is_on(method: str) -> None:
    """As in a loop of one's own, whose model DeepSpeed shards from the start."""
    shape = on_meta("llama", {})
    live = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        check_model(make_config(method=method), shape)
    finally:
        unset_hf_deepspeed_config()
    assert live.is_zero3()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("bert", "see what stands behind a position"),
        ("roberta", "see what stands behind a position"),
        ("xlm-roberta", "see what stands behind a position"),
        ("recurrent_gemma", "read padding"),
    ],
)
@pytest.mark.parametrize("method", ["zero_shot", "lora", "flare"])
def test_bases_that_do_not_look_back_alone_are_refused(kind: str, why: str, method: str) -> None:
    own = {"attention_window_size": 8, "lru_width": 16} if kind == "recurrent_gemma" else {}
    with pytest.raises(ConfigError, match=why):
        check_model(make_config(method=method), on_meta(kind, own))


def test_what_they_do_is_as_it_is_said() -> None:
    """BERT's logits of a position change with what stands behind it; those of a decoder do not."""
    for kind, ahead in (("bert", True), ("llama", False)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**COMMON | FEED_FORWARD)).eval()
        one, two = (model(torch.tensor([[3, 4, last]])).logits[0, 1] for last in (5, 6))
        assert torch.allclose(one, two, atol=1e-6) != ahead


def test_states_of_several_copies_are_refused() -> None:
    shape = on_meta("gemma3n_text", ALTUP)
    with pytest.raises(ConfigError, match=r"Gemma3nTextDecoderLayer .* takes a state of shape \(4, 2, 3, 16\)"):
        check_layers(shape, make_config())
    check_layers(shape, make_config(method="lora"))


def test_layers_that_leave_something_to_the_next_are_refused() -> None:
    sparse = {"index_topk": 2, "index_n_heads": 2, "index_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8}
    heads = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1}
    shape = on_meta("glm_moe_dsa", MOE | sparse | heads | {"topk_group": 1, "num_key_value_heads": 4})
    with pytest.raises(ConfigError, match=r"GlmMoeDsaDecoderLayer of model.base takes 'prev_topk_indices'"):
        check_layers(shape, make_config())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_on_linear_layers_pass(name: str) -> None:
    for target_modules in ("all-linear", list(ARCHITECTURES[name].fused)):
        shape = small_base(name, ARCHITECTURES[name].attentions[0])
        check_model(config_of(name, method="lora", target_modules=target_modules), shape)


def test_a_tower_whose_modules_are_named_like_the_decoders_is_passed_by() -> None:
    """Those of Gemma 4 wrap a linear layer, and PEFT takes none of them."""
    with torch.device("meta"):
        settings = CONFIG_MAPPING["gemma4"](vision_config={"model_type": "gemma4_vision"})
        shape = AutoModelForCausalLM.from_config(settings)
    for target_modules in ("all-linear", ["q_proj", "k_proj", "v_proj", "o_proj"]):
        config = make_config(method="lora", target_modules=target_modules)
        check_model(config, shape)
        with torch.device("meta"):
            injected = inject_adapter(AutoModelForCausalLM.from_config(settings), config.adapter, sources=0, seed=1)
        adapted = [name for name, module in injected.named_modules() if isinstance(module, LoraLayer)]
        assert adapted and not [name for name in adapted if "vision" in name]


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("method", ["lora", "flare"])
def test_an_adapter_on_stacked_experts_is_refused_before_anything_is_loaded(kind: str, method: str) -> None:
    """PEFT knows no linear layers there, and so adapts the experts' weights and the router by means of its own."""
    fused = {"fused_modules": ["o_proj"], "pairing": "module"}
    config, shape = make_config(method=method, target_modules="all-linear", **fused), on_meta(kind, EXPERTS[kind])
    if kind == "qwen2_moe":  # which PEFT rewrites nothing for, so that its experts stay as they are
        check_model(config, shape)
        return
    with pytest.raises(ConfigError, match=r"'all-linear'.*layers\.0\.mlp.* no linear layer.*\n  fix: .*q_proj,k_proj"):
        check_model(config, shape)
    check_model(make_config(method=method, target_modules=ATTENTION, **fused), shape)


def test_names_that_peft_takes_for_experts_are_refused() -> None:
    """A dense layer among those with experts would lose its adapter."""
    heads = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    routed = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    shape = on_meta("deepseek_v3", MOE | heads | routed | {"num_key_value_heads": 4})
    for names in (["gate_proj", "up_proj"], ["o_proj", "down_proj"], ["up_proj"]):
        with pytest.raises(ConfigError, match=rf"adapter\.target_modules=.*{names[-1]}"):
            check_model(make_config(method="lora", target_modules=names), shape)
    check_model(make_config(method="lora", target_modules=["o_proj"]), shape)


class RoutedExpert(torch.nn.Module):
    """Reads the tokens that were sent to it; a test on the meta device sends it some."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.mlp, self.down_proj = layer.mlp, torch.nn.Linear(16, 16)

    def forward(self, states_BLD: torch.Tensor) -> torch.Tensor:
        self.down_proj(states_BLD.flatten(0, 1)[:4])
        return self.mlp(states_BLD)


def test_modules_that_tokens_are_routed_to_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = on_meta("qwen2", {})
    make = type(shape).__init__

    def with_experts(model: PreTrainedModel, config: PreTrainedConfig) -> None:
        make(model, config)
        model.model.layers[1].mlp = RoutedExpert(model.model.layers[1])

    monkeypatch.setattr(type(shape), "__init__", with_experts)
    with pytest.raises(ConfigError, match=r"names 'down_proj', but mlp.down_proj of layer 1 does not read every"):
        check_layers(shape, make_config(fused_modules=["o_proj", "down_proj"]))
    check_layers(shape, make_config(fused_modules=["o_proj"]))
