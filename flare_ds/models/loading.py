"""Loading the frozen base: from a directory or a hub name, straight into ZeRO-3 shards.

Under ZeRO-3 `from_pretrained` builds each parameter partitioned, so no rank ever holds the whole model. That needs a
live `HfDeepSpeedConfig` before the call, which the caller keeps for as long as the model. A quantised base is built
whole, and then partitioned: see `flare_ds.models.quantized`. A base that stays whole goes to its device weight by
weight, so that the host never holds all of it.

transformers fills a weight that the files lack with random numbers and goes on; here that is an error.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flare_ds.config import ModelConfig
from flare_ds.exceptions import ConfigError
from flare_ds.fetch.needed import check_base
from flare_ds.model_files.complete import check_complete
from flare_ds.model_files.hub import revision
from flare_ds.model_files.limits import check_tokenizer
from flare_ds.model_files.names import is_path
from flare_ds.model_files.weight_files import INDEX, weight_files
from flare_ds.models.quantized import finish_quantized, quantization_config
from flare_ds.models.sentencepiece_file import bare_model_file, load_model_file
from flare_ds.texts import one_line


def load_base(model: ModelConfig, device: torch.device | None = None) -> PreTrainedModel:
    """Load the frozen base in evaluation mode, quantised if `model.quantization` says so.

    Args:
        model: the run's settings of it.
        device: where it is to lie whole; None: a ZeRO-3 config is live, or transformers chooses: a GPU for a quantised
            base where there is one, else the host.

    Raises:
        ConfigError: nothing loadable is at `model.base`, or its attention implementation is not available.
        CheckpointError: its files lack a weight of the model, or one of them is not there.
        HostError: bitsandbytes is wanted but not installed.
    """
    config, quantization = _load_config(model), quantization_config(model)
    if (directory := Path(model.base)).is_dir() and (directory / INDEX).is_file():
        weight_files(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.base,
            revision=revision(model.base),
            config=config,
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attention,
            trust_remote_code=False,
            quantization_config=quantization,
            device_map=None if device is None else {"": str(device)},
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable("cannot load", model, error) from error
    base, found = loaded
    if getattr(base, "_hf_peft_config_loaded", False):
        raise _adapter_inside(model.base)
    check_complete("model.base", model.base, base, found["missing_keys"])
    base.config.use_cache = False
    base.eval().requires_grad_(False)
    if quantization is not None:
        finish_quantized(base, model)
    return base


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer; where its directory holds but a sentencepiece file, or is one, from that.

    Raises:
        ConfigError: there is none at `model.base`, or it makes ids that the base has no embedding for.
    """
    if file := bare_model_file(model.base):
        return load_model_file(file)
    _check_base(model.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.base, revision=revision(model.base), trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable("cannot load the tokenizer of", model, error) from error
    check_tokenizer(tokenizer, model.base, setting="model.base")
    return tokenizer


def load_shape(model: ModelConfig) -> PreTrainedModel:
    """The base without its weights: every module and parameter shape, on the meta device.

    Raises:
        ConfigError: there is no configuration of a causal language model at `model.base`.
    """
    config = _load_config(model)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise _unreadable("cannot read", model, error) from error


_ADAPTER = "adapter_config.json"
_LOAD_FIX = "give a directory written by save_pretrained, or a hub name this machine can reach and may read"


def _check_base(base: str) -> None:
    check_base(base)
    if is_path(base):
        path = Path(base)
        if not path.is_dir():
            raise ConfigError(f"model.base={base!r} is not a directory", fix="check the path")
        if (path / _ADAPTER).is_file():
            raise _adapter_inside(base)
        if not (path / "config.json").is_file():
            raise ConfigError(f"model.base={base!r} holds no config.json", fix=_LOAD_FIX)


def _unreadable(what: str, model: ModelConfig, error: Exception) -> ConfigError:
    fix = _LOAD_FIX
    if "scaled_dot_product_attention" in str(error):
        fix = "set model.attention=eager"
    elif "flash" in str(error).lower():
        fix = "set model.attention=sdpa, or install what it asks for"
    return ConfigError(f"{what} model.base={model.base!r}: {one_line(str(error)).rstrip('.')}", fix=fix)


def _adapter_inside(base: str) -> ConfigError:
    return ConfigError(
        f"model.base={base!r} holds an adapter ({_ADAPTER}), which transformers would put on top of the base unasked",
        fix="give the base that it was made for; or merge it into that and give the result, or move it elsewhere",
    )


def _load_config(model: ModelConfig) -> PreTrainedConfig:
    _check_base(model.base)
    try:
        config = AutoConfig.from_pretrained(model.base, revision=revision(model.base), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable("cannot read", model, error) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = (config.architectures or [type(config).__name__])[0]
        raise ConfigError(
            f"model.base={model.base!r} holds a {kind}, which transformers has as no causal language model",
            fix="give a decoder-only model such as Llama or Gemma; a decoder inside a larger model (LLaVA, say) can be "
            "loaded by that model's own class and given to flare_ds.adapt",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model.base={model.base!r} is stored quantized, and ZeRO-3 cannot shard it in that form",
            fix="give the unquantized model it was made from, with model.quantization=nf4 or int8",
        )
    return config
