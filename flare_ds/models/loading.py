"""Loading the frozen base: from a directory or a hub name, straight into ZeRO-3 shards.

Under ZeRO-3 `from_pretrained` builds each parameter partitioned, so no rank ever holds the whole model. That needs a
live `HfDeepSpeedConfig` before the call, which the caller keeps for as long as the model.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flare_ds.config import ModelConfig
from flare_ds.exceptions import ConfigError


def load_base(model: ModelConfig) -> PreTrainedModel:
    """Load the frozen base in evaluation mode.

    Raises:
        ConfigError: nothing loadable is at `model.base`, or its attention implementation is not available.
    """
    _check_base(model.base)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            model.base,
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attention,
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"cannot load model.base={model.base!r}: {error}", fix=_LOAD_FIX) from error
    base.config.use_cache = False
    return base.eval().requires_grad_(False)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer.

    Raises:
        ConfigError: there is none at `model.base`.
    """
    _check_base(model.base)
    try:
        return AutoTokenizer.from_pretrained(model.base, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"cannot load the tokenizer of model.base={model.base!r}: {error}", fix=_LOAD_FIX) from error


def load_shape(model: ModelConfig) -> PreTrainedModel:
    """The base without its weights: every module and parameter shape, on the meta device.

    Raises:
        ConfigError: there is no configuration of a causal language model at `model.base`.
    """
    _check_base(model.base)
    try:
        config = AutoConfig.from_pretrained(model.base, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read model.base={model.base!r}: {error}", fix=_LOAD_FIX) from error


_LOAD_FIX = "give a directory written by save_pretrained, or a hub name this machine can reach and may read"


def _check_base(base: str) -> None:
    path = Path(base)
    if path.is_absolute() or base.startswith(("./", "../", "~")) or path.exists():
        if not path.is_dir():
            raise ConfigError(f"model.base={base!r} is not a directory", fix="check the path")
        if not (path / "config.json").is_file():
            raise ConfigError(f"model.base={base!r} holds no config.json", fix=_LOAD_FIX)
