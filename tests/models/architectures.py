"""Decoder-only architectures: a small random configuration of each, and where its layers and norms are.

The names are written down here, not found by the package, so the tests that read them do not trust its search.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB = 64
WINDOW = 4
FEED_FORWARD = {"intermediate_size": 24}  # most kinds call it so; OPT, Falcon and BLOOM do not
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        kind: transformers' model_type.
        settings: of the small configuration, beside the common ones.
        layers: path of the list of decoder layers.
        norm: path, in a layer, of the norm its attention reads through; None: no input_layernorm.
        fused: the modules of a layer that hold W_Q and W_V.
        attentions: the implementations it has.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    layers: str = "model.layers"
    norm: str | None = "input_layernorm"
    fused: tuple[str, ...] = ("q_proj", "v_proj")
    attentions: tuple[str, ...] = ("sdpa", "eager")


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TWO_KINDS = ["sliding_attention", "full_attention"]
GEMMA = FEED_FORWARD | {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": WINDOW, "layer_types": TWO_KINDS}
GEMMA4 = FEED_FORWARD | {
    "head_dim": 8,
    "global_head_dim": 8,
    "sliding_window": WINDOW,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
}
MOE = FEED_FORWARD | {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": FEED_FORWARD | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 12},
    "qwen3_moe": MOE | {"head_dim": 8},
}
"""Kinds whose experts lie stacked in one weight, with settings of a small one."""
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

ARCHITECTURES = {
    "llama3": Architecture("llama", FEED_FORWARD | {"rope_parameters": LLAMA3_ROPE}),
    "gemma2": Architecture(
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
        attentions=("eager",),  # sdpa has no soft caps
    ),
    "gemma3": Architecture("gemma3_text", GEMMA),
    # as large Gemma 3 models come: with a vision tower, here as deep as the decoder
    "gemma3_images": Architecture(
        "gemma3",
        {
            "text_config": COMMON | GEMMA,
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": VOCAB - 1,
        },
        layers="model.language_model.layers",
    ),
    "qwen2": Architecture("qwen2", FEED_FORWARD),  # with biases on q, k and v
    "qwen3": Architecture("qwen3", FEED_FORWARD | {"head_dim": 8}),
    "mistral": Architecture("mistral", FEED_FORWARD | {"head_dim": 8, "sliding_window": WINDOW}),
    "phi3": Architecture("phi3", FEED_FORWARD | {"sliding_window": WINDOW}, fused=("qkv_proj",)),
    "olmo2": Architecture("olmo2", FEED_FORWARD, norm=None),  # normed after attention, not before
    "granite": Architecture(
        "granite",
        FEED_FORWARD
        | {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "logits_scaling": 0.5},
    ),
    # attention and MLP read the state side by side; one module holds W_Q, W_K and W_V
    "gpt_neox": Architecture("gpt_neox", FEED_FORWARD, layers="gpt_neox.layers", fused=("query_key_value",)),
    # layers return tuples; one head of keys and values
    "falcon": Architecture("falcon", {"ffn_hidden_size": 24}, layers="transformer.h", fused=("query_key_value",)),
    # positions are slopes: a line for each row's heads
    "falcon_alibi": Architecture(
        "falcon", {"ffn_hidden_size": 24, "alibi": True}, layers="transformer.h", fused=("query_key_value",)
    ),
    "bloom": Architecture("bloom", layers="transformer.h", fused=("query_key_value",), attentions=("eager",)),
    # layers take a further argument each, which a linear layer before them makes
    "gemma4": Architecture("gemma4_text", GEMMA4 | {"layer_types": TWO_KINDS, "num_kv_shared_layers": 0}),
    # the last layers read the keys and values of earlier ones
    "gemma4_shared": Architecture(
        "gemma4_text",
        GEMMA4 | {"num_hidden_layers": 4, "layer_types": 2 * TWO_KINDS, "num_kv_shared_layers": 2},
    ),
    # a dense expert beside those that a token is routed to, which reads rows and columns as one list
    "qwen2_moe": Architecture("qwen2_moe", MOE | {"shared_expert_intermediate_size": 12}),
    # positions are learned; its norm has another name than everybody else's; the MLP flattens rows and columns
    "opt": Architecture("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16}, layers="model.decoder.layers", norm=None),
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ATTENTIONS = [(name, attention) for name, one in ARCHITECTURES.items() for attention in one.attentions]


def small_base(name: str, attention: str = "sdpa", **overrides: Any) -> PreTrainedModel:
    """A random fp32 model of two layers, the same at every call."""
    one = ARCHITECTURES[name]
    config = CONFIG_MAPPING[one.kind](**COMMON | one.settings | overrides)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases: not all ones, not all zeros
            parameter.data += 0.1 * torch.randn_like(parameter)
        else:
            parameter.data *= 10  # far from the linear regime, so a wrong term shows
    return model.eval()


def small_experts(kind: str) -> PreTrainedModel:
    """A random fp32 model of two layers with experts, the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**COMMON | EXPERTS[kind]))
    for parameter in model.parameters():
        parameter.data *= 1 if parameter.ndim == 1 else 10
    return model.eval()


TITLES = {
    "llama3": "Llama (and what is built like it)",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "gemma3_images": "Gemma 3 with images",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "mistral": "Mistral",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "granite": "Granite",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "falcon": "Falcon",
    "falcon_alibi": "Falcon with ALiBi",
    "bloom": "BLOOM",
    "gemma4": "Gemma 4",
    "gemma4_shared": "Gemma 4 with shared keys and values (E2B, E4B)",
    "qwen2_moe": "Qwen 2 MoE",
    "opt": "OPT",
}
"""What people call them."""
_DENSE = ("dense", "dense_4h_to_h")
_WRITES = {"gpt_neox": _DENSE, "falcon": _DENSE, "falcon_alibi": _DENSE, "bloom": _DENSE, "opt": ("out_proj", "fc2")}


def writes(name: str) -> list[str]:
    """The modules whose sums go on to the next layer: what flare fuses by default, by the names they have here."""
    return list(_WRITES.get(name, ("o_proj", "down_proj")))
