"""Importing torch, transformers, PEFT and DeepSpeed, which is most of what a short command does."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flare_ds.config import ModelConfig


@contextmanager
def libraries(*models: ModelConfig) -> Iterator[None]:
    """Import inside what runs on these bases need, and in less time.

    The garbage collector takes a fifth of it, and what it looks at is all in use. Another fifth is bitsandbytes, which
    PEFT imports wherever it is installed: only quantised bases have anything of it, so for others it is not there.
    """
    if all(model.quantization == "none" for model in models) and "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # no later collection looks at it either
