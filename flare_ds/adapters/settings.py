"""Which settings an adapter's function depends on: what its file records, and what must be the same on loading.

Settings go by their full names, e.g. `adapter.align`. What only matters while training (dropout) may differ later, and
so may what the keys of the matrices tell anyway (which modules have an adapter).
"""

from pathlib import Path
from typing import Any, get_args

from flare_ds.config import AdapterConfig, Config
from flare_ds.methods import Fuses
from flare_ds.nested_settings import flat

_PLAIN = ("adapter.r", "adapter.alpha", "adapter.rslora", "adapter.train_head")
_FUSED = tuple(f"adapter.{name}" for name in AdapterConfig.model_fields if name not in ("dropout", "target_modules"))
_SOURCE = ("task.source_language", "task.extra_source_languages")
_MIXED = ("mixup.layer", "mixup.heads", "mixup.ratio", "task.source_language")
_MT = ("source.mt_encoder", "source.mt_language")
_COMPARED = {"bottleneck": _FUSED + _SOURCE, "mixup": _PLAIN + _MIXED, "keys": _PLAIN + _SOURCE, None: _PLAIN}
"""By where states meet the row, see `compared_settings`."""
assert _COMPARED.keys() == {*get_args(Fuses), None}, "where states meet says what its adapters depend on"
_RECORDED = (*(f"adapter.{name}" for name in AdapterConfig.model_fields), *_SOURCE, *_MIXED, *_MT, "train.objective")


def recorded_settings(config: Config) -> dict[str, Any]:
    """The method and every setting that may change the adapter's function, as JSON values."""
    values = flat(config.model_dump(mode="json"))
    return {"method": config.method, **{name: values[name] for name in _RECORDED}}


_ONCE = {"adapter.pairing": "output", "adapter.source_down": "shared"}
"""What some settings were before files told them."""


def untold_setting(name: str) -> Any:
    """What a setting is in a file that does not tell it, as a JSON value: what it was then, else its default."""
    if name in _ONCE:
        return _ONCE[name]
    section, _, key = name.partition(".")
    model: Any = Config.model_fields[section].annotation
    default = model.model_fields[key].default
    return list(default) if isinstance(default, tuple) else default


def compared_settings(config: Config) -> tuple[str, ...]:
    """The settings that must be the same when an adapter is loaded, see `compared`; by name."""
    names = _COMPARED[config.recipe.fuses]
    if config.reads_mt_encoder:
        names += _MT
    if config.adapter.train_head:
        names += ("train.objective",)
    return names


def compared(name: str, value: Any) -> Any:
    """What of a setting's value must be the same: a model keeps the last part of its name wherever it is put."""
    return Path(value).name if name == "source.mt_encoder" and isinstance(value, str) else value
