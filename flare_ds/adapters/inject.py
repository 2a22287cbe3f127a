"""Putting adapters into a base: PEFT's LoRA on the target modules, fusion on some of them, and our forward on all."""

import re

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from flare_ds.adapters.adapted import AdaptedLinear
from flare_ds.adapters.decoder import decoder_layers, input_norm, linears_of
from flare_ds.adapters.fusion import FUSIONS, Fusion
from flare_ds.adapters.passes import ADAPTER
from flare_ds.config import AdapterConfig, Config
from flare_ds.exceptions import ConfigError
from flare_ds.registry import suggestion


def lora_config(adapter: AdapterConfig, base: PreTrainedModel) -> LoraConfig:
    """The PEFT configuration of the adapter; fusion is added on top of it.

    Only the decoder layers are adapted: what stands before them is read by the source as well, which knows no adapter.
    """
    inside = {module for layer in decoder_layers(base) for module in layer.modules()}
    names = {name.rpartition(".")[2] for name in _linears(base)}  # an image tower's may be alike, and no linear layers
    outside = [
        name
        for name, module in base.named_modules()
        if module not in inside and (isinstance(module, nn.Linear) or name.rpartition(".")[2] in names)
    ]
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.r,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        use_rslora=adapter.rslora,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        exclude_modules="|".join(map(re.escape, outside)) or None,
        bias="none",
    )


def inject_adapter(
    base: PreTrainedModel | PeftModel, adapter: AdapterConfig, *, sources: int, seed: int, name: str = ADAPTER
) -> PeftModel:
    """Freeze the base and add a fresh adapter, all of it fp32: A random, B zero.

    The random numbers come from `seed` alone, so every rank and every world size starts from the same adapter.

    Args:
        base: a causal language model, whole or partitioned by zero.Init; or one that has adapters of other names.
        adapter: its settings.
        sources: how many sources the fused modules see; 0: none is fused, all are plain LoRA.
        seed: of the initialisation.
        name: what PEFT is to know the adapter by.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _with_lora(base, adapter, name)
        layers = [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer)]
        for path, layer in layers:
            if name not in layer.lora_A:
                continue
            adapted: AdaptedLinear | object = layer.forward  # type: ignore[attr-defined]
            if not isinstance(adapted, AdaptedLinear):
                adapted = layer.forward = AdaptedLinear(layer)  # type: ignore[attr-defined]
            adapted.own |= model.peft_config.keys()
            if sources and path.rpartition(".")[2] in adapter.fused_modules:
                fusion = Fusion(adapter, sources, layer.in_features)  # type: ignore[arg-type]
                adapted.fuse(name, fusion.to(next(layer.lora_A[name].parameters()).device))
            _gather_together(layer)
    return model


def _with_lora(base: PreTrainedModel | PeftModel, adapter: AdapterConfig, name: str) -> PeftModel:
    if isinstance(base, PeftModel):
        model = base
        model.add_adapter(name, lora_config(adapter, model.get_base_model()))  # type: ignore[arg-type]
    else:
        model = get_peft_model(base, lora_config(adapter, base), adapter_name=name)
    for path, parameter in model.named_parameters():
        if f".{name}." in path:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)  # PEFT trains one adapter at a time
    return model


def _gather_together(layer: LoraLayer) -> None:
    """Have ZeRO-3 gather all that a layer's forward reads when the layer is called, as its parts are not."""
    if is_deepspeed_zero3_enabled():
        from deepspeed.runtime.zero import register_external_parameter

        for parameter in layer.parameters():  # type: ignore[attr-defined]
            register_external_parameter(layer, parameter)


def fused_layers(model: nn.Module, adapter: str = ADAPTER) -> dict[str, LoraLayer]:
    """The LoRA layers below `model` in which an adapter fuses, by full name."""
    return {path: module for path, module in model.named_modules() if adapter in getattr(module, "lora_fusion", ())}


def adapted_linears(base: PreTrainedModel, adapter: AdapterConfig) -> list[str]:
    """The full names of the layers of a base that an adapter of these settings stands on."""
    wanted = adapter.target_modules
    return [name for name in _linears(base) if isinstance(wanted, str) or name.rpartition(".")[2] in wanted]


def check_adapter(base: PreTrainedModel, config: Config) -> None:
    """Check that the settings of what trains fit the base, which may be on the meta device.

    Raises:
        ConfigError: the model has no linear layers, or not the target or fused ones; the fusion function is unknown;
            the fused ones do not take what they would meet; or the layers have no input norm that the source could go
            through.
    """
    adapter = config.adapter
    linears = {name.rpartition(".")[2] for name in _linears(base)}
    wanted = adapter.target_modules
    targets = linears if isinstance(wanted, str) else set(wanted)
    _require("adapter.target_modules", targets, linears)
    if config.sources:
        FUSIONS.get(adapter.fusion)
        _require("adapter.fused_modules", set(adapter.fused_modules), targets)
        if config.pairing != "module":
            _check_widths(base, config)
        if config.norms_source:
            input_norm(decoder_layers(base)[0])


def _linears(base: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder layers, by full name."""
    inside = {linear for layer in decoder_layers(base) for linear in linears_of(layer).values()}
    linears = {name: module for name, module in base.named_modules() if module in inside}
    if not linears:
        raise ConfigError(
            f"model.base is a {type(base).__name__}, whose layers hold no torch.nn.Linear that could take an adapter",
            fix="use a decoder-only Hugging Face model such as Llama or Gemma",
        )
    return linears


def _check_widths(base: PreTrainedModel, config: Config) -> None:
    """A state that all fused modules of a layer meet is as wide as the model, so they have to be."""
    width = base.config.get_text_config().hidden_size
    handing = f"method={config.method}"
    instead = "name modules of that width, e.g. adapter.fused_modules=[q_proj,v_proj]"
    if not config.reads_mt_encoder:
        handing += f" with adapter.pairing={config.adapter.pairing!r}"
        instead += "; or set adapter.pairing=module, where each module meets the source's input to that same module"
    for name, module in _linears(base).items():
        short = name.rpartition(".")[2]
        if short in config.adapter.fused_modules and module.in_features != width:
            raise ConfigError(
                f"{handing} hands one state of width {width} to adapter.fused_modules, but {short!r} takes "
                f"{module.in_features}",
                fix=instead,
            )


def _require(setting: str, names: set[str], known: set[str]) -> None:
    for name in sorted(names - known):
        raise ConfigError(f"{setting} names {name!r}, which is not among {sorted(known)}", fix=suggestion(name, known))
