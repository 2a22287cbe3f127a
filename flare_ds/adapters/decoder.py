"""What every Hugging Face decoder has in common: a list of layers, each perhaps with an input norm."""

from torch import nn

from flare_ds.exceptions import ConfigError


def decoder_layers(base: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal language model, in order.

    Raises:
        ConfigError: no list of `num_hidden_layers` layers was found.
    """
    depth = base.config.get_text_config().num_hidden_layers  # type: ignore[operator,union-attr]
    # of a model that also reads images, say, only the part that writes text
    for module in base.get_decoder().modules():  # type: ignore[operator]
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ConfigError(
        f"model.base is a {type(base).__name__} without a list of its {depth} decoder layers",
        fix="use a decoder-only Hugging Face model such as Llama or Gemma",
    )


def linears_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a decoder layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def input_norm(layer: nn.Module) -> nn.Module:
    """The norm that a layer's attention reads its input through.

    Raises:
        ConfigError: the layer has none of that name.
    """
    norm = getattr(layer, "input_layernorm", None)
    if norm is None:
        raise ConfigError(
            f"adapter.source_norm=true, but a {type(layer).__name__} has no input_layernorm",
            fix="set adapter.source_norm=false, or adapter.pairing=module",
        )
    return norm
