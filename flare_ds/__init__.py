"""flare_ds: distributed cross-lingual transfer with fused low-rank adapters (FLARE, ACL 2025).

    import flare_ds

    model = flare_ds.load("runs/pl-flare")
    model.label(target=["Czekałem tygodniami"], source=["I waited for weeks"])

The names below are imported when they are first used, so that importing the package costs nothing: see docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flare_ds.exceptions import (
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    FetchError,
    FlareError,
    HostError,
    NotFiniteError,
    ToBeContinued,
)

if TYPE_CHECKING:
    from flare_ds.inference import load
    from flare_ds.own_loop import adapt
    from flare_ds.reporting import report
    from flare_ds.training.in_process import train

__version__ = "0.3.0.dev0"
__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FetchError",
    "FlareError",
    "HostError",
    "NotFiniteError",
    "ToBeContinued",
    "__version__",
    "adapt",
    "load",
    "report",
    "train",
]

_LAZY = {
    "adapt": "flare_ds.own_loop",
    "load": "flare_ds.inference",
    "report": "flare_ds.reporting",
    "train": "flare_ds.training.in_process",
}
"""Where functions live whose modules import torch."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
