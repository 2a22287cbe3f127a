"""Which of torch's attention kernels are used on a GPU."""

import torch


def choose_attention_kernels() -> None:
    """Keep cuDNN's attention off, whatever the GPU: since torch 2.11 its backward pass may give NaN under a mask.

    On H100 and H200 it does where the number of columns is 64 more than a multiple of 128, as prompts cut to 64
    tokens have (pytorch#196678, trl#7181; torch 2.13.0 has it still). The other kernels are right there.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
