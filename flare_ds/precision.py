"""Which precision a machine computes in without a detour: what `model.dtype: auto` means on it.

A GPU of the last years and a CPU with AVX-512 multiply bfloat16. Another CPU does it number by number: with AVX2 alone
a linear layer was measured at 8.5 times the time of float32.
"""

from typing import Literal

from flare_ds.host import visible_gpus

AUTO = "auto"


def native_dtype() -> Literal["bfloat16", "float32"]:
    """bfloat16 where this machine's accelerator, or else its CPU, multiplies it; float32 elsewhere."""
    import torch  # slow to import, and most configs say their precision

    if visible_gpus():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"
