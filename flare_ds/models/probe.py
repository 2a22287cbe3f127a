"""The base without its weights, tried out: how its layers are called, what their linear layers read, what PEFT adapts.

Nothing is computed: every tensor is on the meta device. So a base whose layers cannot be run for two texts side by
side is refused before it is loaded. A few kinds (those that look at values to route or to skip) do not run without
values; what they are called with is then seen in the first forward of the run, where the same is an error.

Legend: X rows, L columns, D width of a state.
"""

from copy import deepcopy
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.inject import adapted_linears, inject_adapter
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.models.layer_calls import CACHES, SHARED, LayerCall
from flare_ds.models.prefix_streams import no_keys, windows
from flare_ds.texts import one_line

_READ_PADDING = ("recurrent_gemma",)
"""Kinds whose convolutions run over padding on the left, which transformers does not mask."""
_ROWS, _COLUMNS = 2, 3
_ALL_POSITIONS = ((_ROWS, _COLUMNS), (_ROWS * _COLUMNS,))
_ATTENTION_ALONE = (
    "name the attention's modules alone, e.g. adapter.target_modules=[q_proj,k_proj,v_proj,o_proj], and for flare "
    "adapter.fused_modules=[o_proj]"
)


def check_layers(shape: PreTrainedModel, config: Config) -> None:
    """Check that a base's layers run for several texts side by side, and that PEFT adapts those named and no others.

    Args:
        shape: the base on the meta device, or loaded.
        config: the run's settings.

    Raises:
        ConfigError: a layer takes something that is of no known kind; a fused module does not read every position of
            every row once; or PEFT would adapt something else, leave one of them out, or refuses.
    """
    if config.recipe.trains or config.recipe.fuses:
        copy = _without_weights(shape)
        _check_streams(copy, config)
        if config.recipe.trains:
            _check_injection(copy, config)


def check_looks_back(shape: PreTrainedModel) -> None:
    """Refuse encoders that transformers calls causal language models, and a kind that mixes padding into its rows.

    Raises:
        ConfigError: a layer looks ahead or reads padding.
    """
    attend = {module.is_causal for layer in decoder_layers(shape) for module in layer.modules() if _attends(module)}
    if attend == {False}:
        why = "whose layers see what stands behind a position, so the answer they are to predict"
    elif shape.config.model_type in _READ_PADDING:
        why = "whose layers read padding: a row would mean something else in another batch"
    else:
        return
    problem = f"model.base is a {type(shape).__name__}, {why}"
    raise ConfigError(problem, fix="use a decoder-only Hugging Face model such as Llama or Gemma")


def _attends(module: nn.Module) -> bool:
    return isinstance(getattr(module, "is_causal", None), bool)


def _check_streams(copy: PreTrainedModel, config: Config) -> None:
    reads_keys = config.recipe.fuses == "keys"
    if not (config.sources or config.streams_beside or reads_keys):
        return
    if reads_keys:
        windows(copy.config.get_text_config(), len(decoder_layers(copy)))
    read: dict[str, list[torch.Size]] = {}
    for number, layer in enumerate(decoder_layers(copy)):
        if config.streams_beside or reads_keys:
            check = _CheckKeys if reads_keys else _Check
            layer.register_forward_pre_hook(check(layer), with_kwargs=True)
        for name, module in layer.named_modules() if config.sources else ():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.adapter.fused_modules:
                shapes = read.setdefault(f"{name} of layer {number}", [])
                module.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.append(inputs[0].shape))
    if _runs(copy):
        _check_read(read)


def _check_injection(copy: PreTrainedModel, config: Config) -> None:
    # In many bases with experts PEFT takes `all-linear`, and the names of an MLP, for the experts' stacked weights and
    # their router, whose forwards are no linear layer's.
    adapter = config.adapter
    wanted, named = set(adapted_linears(copy, adapter)), f"adapter.target_modules={adapter.target_modules!r}"
    try:
        with torch.device("meta"):
            inject_adapter(copy, adapter, sources=0, seed=config.train.seed)
    except ValueError as error:
        raise ConfigError(f"PEFT does not take {named}: {one_line(str(error))}", fix=_ATTENTION_ALONE) from error
    adapted = {name for name, module in copy.named_modules() if isinstance(module, LoraLayer)}
    kind = f"of a {type(copy).__name__}"
    if others := adapted - wanted:
        problem = f"with {named} PEFT adapts {min(others)} {kind}, which is no linear layer"
        raise ConfigError(problem, fix=_ATTENTION_ALONE)
    if left_out := wanted - adapted:
        raise ConfigError(f"with {named} PEFT leaves out {min(left_out)} {kind}", fix=_ATTENTION_ALONE)


def _without_weights(shape: PreTrainedModel) -> PreTrainedModel:
    """A copy to be tried out, of the model's own class; not made by transformers, which might shard it (ZeRO-3)."""
    settings = deepcopy(shape.config)  # a model writes into its settings
    settings._attn_implementation = "eager"
    with torch.device("meta"):
        return type(shape)(settings).bfloat16().eval()


class _Check:
    """Looks at what one layer is called with."""

    def __init__(self, layer: nn.Module) -> None:
        self.call = LayerCall(layer)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, *others = args if args else (kwargs["hidden_states"],)
        given = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.call.check_state(state)
        self.call.split(self.call.named(tuple(others), given), 1, _ROWS)


class _CheckKeys(_Check):
    """The same, and that the layer would read keys and values that stand before its own."""

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        super().__call__(layer, args, kwargs)
        kind = type(layer).__name__
        if kwargs.get("alibi") is not None:
            raise no_keys(kind, "has keys without positions (ALiBi)")
        if not any(name in kwargs for name in CACHES):
            raise no_keys(kind)
        return args, kwargs | ({SHARED: _Unread(kind)} if SHARED in kwargs else {})


class _Unread(dict[str, Any]):
    """A store that a layer may leave its keys and values in; one that reads another's there has none of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __getitem__(self, name: str) -> Any:
        raise no_keys(self._kind)


def _runs(copy: PreTrainedModel) -> bool:
    """Run it, if that needs no values."""
    ids_XL = torch.zeros(_ROWS, _COLUMNS, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            copy(input_ids=ids_XL, attention_mask=torch.ones_like(ids_XL), position_ids=ids_XL, use_cache=False)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _check_read(read: dict[str, list[torch.Size]]) -> None:
    for module, shapes in read.items():
        if [tuple(shape[:-1]) for shape in shapes] not in [[positions] for positions in _ALL_POSITIONS]:
            raise ConfigError(
                f"adapter.fused_modules names {module.partition(' ')[0].rpartition('.')[2]!r}, but {module} does not "
                "read every position of every row, so a source's positions cannot meet the target's there",
                fix="name modules that do, e.g. those of the attention: adapter.fused_modules=[q_proj,v_proj]",
            )
