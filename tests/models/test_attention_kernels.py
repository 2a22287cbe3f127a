"""The attention kernel that is kept off, for as long as the pinned torch has its fault."""

import re

import torch

from flare_ds.models.attention_kernels import choose_attention_kernels
from tests.toy import REPOSITORY


def test_cudnn_attention_is_off() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    choose_attention_kernels()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_new_torch_is_asked_again() -> None:
    """The pin moved: see whether pytorch#196678 is mended there, and take the kernel back or change this number."""
    pinned = re.search(r"^torch==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and pinned[1] == "2.13.0"
