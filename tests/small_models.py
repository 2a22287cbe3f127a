"""Small random models of the real architectures, and what the oracle must know of each."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.oracle import Settings

VOCAB = 64
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "sdpa",
}


def small_model(name: str, *, seed: int = 0, layers: int = 3) -> tuple[PreTrainedModel, Settings]:
    """A random fp32 model of up to three layers and its oracle settings: llama, gemma2 or gemma3."""
    torch.manual_seed(seed)
    common = COMMON | {"num_hidden_layers": layers}
    windows: list[int | None] = [None] * 3
    thetas = [10_000.0] * 3
    settings = {"attention_cap": None, "logit_cap": None, "score_scale": 8**-0.5}
    types = ["sliding_attention", "full_attention", "sliding_attention"][:layers]
    if name == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**common))
    elif name == "gemma2":
        config = Gemma2Config(
            **common,
            query_pre_attn_scalar=12,
            sliding_window=4,
            layer_types=types,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=1.5,
        )
        config._attn_implementation = "eager"  # soft-capped scores exist in eager attention only
        model = Gemma2ForCausalLM(config)
        windows = [4, None, 4]
        settings = {"attention_cap": 2.0, "logit_cap": 1.5, "score_scale": 12**-0.5}
    else:
        config3 = Gemma3TextConfig(**common, query_pre_attn_scalar=12, sliding_window=4, layer_types=types)
        config3.rope_parameters["sliding_attention"]["rope_theta"] = 500.0
        model = Gemma3ForCausalLM(config3)
        windows, thetas = [4, None, 4], [500.0, 1_000_000.0, 500.0]
        settings["score_scale"] = 12**-0.5
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        else:
            parameter.data *= 10  # far from the linear regime, so a wrong term shows
    return model.eval(), Settings(
        model=name,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=8,
        eps=1e-6,
        thetas=thetas[:layers],
        windows=windows[:layers],
        **settings,
    )
