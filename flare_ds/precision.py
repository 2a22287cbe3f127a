"""Which precision a machine computes in without a detour: what `model.dtype: auto` means on it.

A GPU of the last years and a CPU with AVX-512 multiply bfloat16. Another CPU does it number by number: with AVX2 alone
a linear layer was measured at 8.5 times the time of float32.
"""

import os
from typing import Literal

AUTO = "auto"


def native_dtype() -> Literal["bfloat16", "float32"]:
    """bfloat16 where this machine's accelerator, or else its CPU, multiplies it; float32 elsewhere."""
    import torch  # slow to import, and most configs say their precision

    if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"
