"""A·x, the way into the bottleneck, which keeps no copy of x for the backward pass.

A is fp32 and x in the base's precision. Autograd would keep x as A reads it, a copy of twice the size for every
projection; this keeps x itself, which q, k and v share, and makes the copy again in the backward pass. Numbers and
gradients are those of `linear(dropout(x.to(A.dtype)), A)`, bit by bit. Under autocast the numbers are, too; the
backward pass, which is outside of it, multiplies in A's precision.

Legend: "..." any leading dimensions, N their product, D width of the input, R of the bottleneck.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def down_projection(x: Tensor, a_RD: Tensor, dropout: float = 0.0) -> Tensor:
    """[..., D] in any precision in, [..., R] in A's out; the share `dropout` of x's elements is left out."""
    return _DownProjection.apply(x, a_RD, dropout)


class _DownProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a_RD: Tensor, dropout: float) -> Tensor:
        # Held as the parameter it is: ZeRO-3 takes its elements away and brings them back for the backward.
        ctx.a_RD, ctx.scale, kept = a_RD, 1 / (1 - dropout), None
        if dropout:
            kept = nn.functional.dropout(torch.ones_like(x, dtype=a_RD.dtype), dropout).bool()
        ctx.save_for_backward(x, kept)
        return nn.functional.linear(_dropped(x.to(a_RD.dtype), kept, ctx.scale), a_RD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, kept), a_RD = ctx.saved_tensors, ctx.a_RD
        gradient, of_x, of_a_RD = gradient.to(a_RD.dtype), None, None
        if ctx.needs_input_grad[0]:
            of_x = _dropped(gradient @ a_RD, kept, ctx.scale).to(x.dtype)
        if ctx.needs_input_grad[1]:
            read_ND = _dropped(x.to(a_RD.dtype), kept, ctx.scale).flatten(0, -2)
            of_a_RD = gradient.flatten(0, -2).T @ read_ND
        return of_x, of_a_RD, None


def _dropped(x: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    return x if kept is None else x * (kept * scale)
