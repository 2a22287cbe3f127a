"""Importing torch, transformers, PEFT and DeepSpeed, which is most of what a short command does."""

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flare_ds.config import ModelConfig
from flare_ds.runtime.launched import place_of

_TRACKERS = "mlflow", "comet_ml"


def check_bases(models: Iterable[ModelConfig]) -> None:
    """Refuse bases that are paths at which nothing is, before anything heavy is imported."""
    from flare_ds.fetch.needed import check_base

    for base in dict.fromkeys(model.base for model in models):
        check_base(base)


@contextmanager
def libraries(*models: ModelConfig) -> Iterator[None]:
    """Import inside what runs on these bases need, once it is seen that they are there; and in less time.

    The garbage collector takes a fifth of it, and what it looks at is all in use. Another fifth is bitsandbytes, which
    PEFT imports wherever it is installed: only quantised bases have anything of it, so for others it is not there.
    So are, while this lasts, the trackers that DeepSpeed imports for its tuner and monitor; ours are imported later.

    Raises:
        ConfigError: one of the bases is a path at which nothing is. Where ranks are to meet, rank 0 looks for all.
    """
    if not place_of(os.environ).told_by:
        check_bases(models)
    if all(model.quantization == "none" for model in models) and "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    hidden = [name for name in _TRACKERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.enable()
        gc.freeze()  # no later collection looks at it either
