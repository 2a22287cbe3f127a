"""W·x + scaling·B·h, the way out of the bottleneck, whose backward pass makes one copy in place of three.

B is fp32 and W·x in the base's precision, in which the sum is returned. Autograd would cast the gradient to fp32, back
again for W·x, and scale a further copy; this hands it to W·x as it came, and scales the one copy that B needs where it
lies. Numbers and gradients are those of `(W·x + linear(h, B) * scaling).to(dtype of W·x)`, bit by bit. Under autocast
the numbers are, too; the backward pass, which is outside of it, multiplies in B's precision.

Legend: "..." any leading dimensions, N their product, O width of the output, R of the bottleneck.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def up_projection(frozen: Tensor, bottleneck: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """W·x [..., O] in any precision and the bottleneck [..., R] in B's in; their sum [..., O] in W·x's out."""
    return _UpProjection.apply(frozen, bottleneck, b_OR, scaling)


class _UpProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frozen: Tensor, bottleneck: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        # Held as the parameter it is: ZeRO-3 takes its elements away and brings them back for the backward.
        ctx.b_OR, ctx.scaling = b_OR, scaling
        ctx.save_for_backward(bottleneck)
        return nn.functional.linear(bottleneck, b_OR).mul_(scaling).add_(frozen).to(frozen.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        (bottleneck,), b_OR, of_bottleneck, of_b_OR = ctx.saved_tensors, ctx.b_OR, None, None
        scaled = gradient.to(b_OR.dtype)
        scaled = scaled * ctx.scaling if scaled is gradient else scaled.mul_(ctx.scaling)
        if ctx.needs_input_grad[1]:
            of_bottleneck = scaled @ b_OR
        if ctx.needs_input_grad[2]:
            of_b_OR = scaled.flatten(0, -2).T @ bottleneck.to(b_OR.dtype).flatten(0, -2)
        return gradient, of_bottleneck, of_b_OR, None
