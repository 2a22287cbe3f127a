"""How a source and a target meet inside LoRA's bottleneck (paper, section "Fusion functions").

    S = A·source, T = A·target        both [B, L, R]: one source vector already chosen for each target position
    φ(S, T)                           [B, L, R], goes on through B

A function is a module, made for a bottleneck of width R: most hold nothing, the gate holds R numbers, cross-attention
three R x R maps, which train and are saved with the adapter. None calls a module: under ZeRO-3 that would be hooks, and
another order of them while the source's share is measured. What a fused layer holds besides A and B is a `Fusion`.

Legend: S sources, B rows, L positions, C >= L positions so far (more than L when decoding with a cache), M source
columns, D width of the layer's input, R of the bottleneck, H heads, K = R / H.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd as _Dropout

from flare_ds.adapters.alignment import Alignment
from flare_ds.config import AdapterConfig
from flare_ds.exceptions import ConfigError
from flare_ds.registry import Registry

FusionFunction = Callable[[int, int], nn.Module]
"""Makes the module of one fused layer from the bottleneck's width and the number of heads."""

FUSIONS: Registry[FusionFunction] = Registry("fusion function")
SCALE = 32.0
"""Of numbers that are no matrix, and are to move while A does: they train as their SCALE-th part.

Adam moves whatever trains by about the learning rate a step. A's elements begin at about 1/√D, so some tens of steps
change A; the same steps would leave a number near 1 where it is."""


class _Elementwise(nn.Module):
    """A function of S and T at the same position; it has nothing to train."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, source_BLR: Tensor, target_BCR: Tensor, real_BC: Tensor) -> Tensor:
        """φ(S, T) [B, L, R]; only the last L target positions are looked at."""
        return self.function(source_BLR, target_BCR[:, -source_BLR.shape[1] :])


class Gate(nn.Module):
    """T + g ∘ S: each dimension of the bottleneck learns how much of the source it reads.

    While B is zero, as at the start, only B has a gradient, made of the φ it is shown. From g = 0 it would learn from
    the target alone and A not from the source at all; from g = 1 it begins as `add`. START is between: B learns to
    read the source from the first step on, and the gate is still near enough to shut.

    It trains as g / SCALE, which begins as small as A does.
    """

    START = 0.25

    def __init__(self, r: int, heads: int) -> None:
        super().__init__()
        self.opening_R = nn.Parameter(torch.full((r,), self.START / SCALE, dtype=torch.float32))

    def forward(self, source_BLR: Tensor, target_BCR: Tensor, real_BC: Tensor) -> Tensor:
        """φ(S, T) [B, L, R]; only the last L target positions are looked at."""
        return target_BCR[:, -source_BLR.shape[1] :] + SCALE * self.opening_R * source_BLR


class CrossAttention(nn.Module):
    """softmax((W_Q S)(W_K T)ᵀ / √K)·W_V T: the source asks, the target answers.

    A position asks only the real target positions up to its own, so nothing looks ahead and padding is never read.
    W_K has no bias: it would add the same number to all scores of a query, which the softmax takes out again.
    """

    def __init__(self, r: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(r, r, dtype=torch.float32)
        self.key = nn.Linear(r, r, bias=False, dtype=torch.float32)
        self.value = nn.Linear(r, r, dtype=torch.float32)

    def forward(self, source_BLR: Tensor, target_BCR: Tensor, real_BC: Tensor) -> Tensor:
        """Attend from each source vector [B, L, R] to the target so far [B, C, R], whose last L positions it meets."""
        query, so_far = source_BLR.shape[1], target_BCR.shape[1]
        own_LC = torch.ones(query, so_far, dtype=torch.bool, device=real_BC.device).tril(so_far - query)
        # A position may always ask itself, so that padding, whose result is dropped, never divides by zero.
        itself_LC = own_LC & ~own_LC.tril(-1 + so_far - query)
        seen_BLC = (own_LC & real_BC[:, None, :]) | itself_LC
        attended_BHLK = nn.functional.scaled_dot_product_attention(
            self._mapped(self.query, source_BLR),
            self._mapped(self.key, target_BCR),
            self._mapped(self.value, target_BCR),
            attn_mask=seen_BLC[:, None],
        )
        return attended_BHLK.transpose(1, 2).flatten(2)

    def _mapped(self, linear: nn.Linear, x_BCR: Tensor) -> Tensor:
        return linear.forward(x_BCR).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def add(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """S + T."""
    return source_BLR + target_BLR


def add_relu(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """ReLU(S) + ReLU(T), the paper's best."""
    return torch.relu(source_BLR) + torch.relu(target_BLR)


def mul(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """S ∘ T, element by element."""
    return source_BLR * target_BLR


def mul_relu(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """ReLU(S) ∘ ReLU(T)."""
    return torch.relu(source_BLR) * torch.relu(target_BLR)


def _elementwise(function: Callable[[Tensor, Tensor], Tensor]) -> FusionFunction:
    return lambda r, heads: _Elementwise(function)


for _function in (add_relu, add, mul, mul_relu):
    FUSIONS.add(_function.__name__, _elementwise(_function))
FUSIONS.add("gate", Gate)
FUSIONS.add("cross_attention", CrossAttention)


class Fusion(nn.Module):
    """What a fused layer holds besides A and B.

    Attributes:
        source_down: the source's own A, which begins as PEFT begins A; None: it goes through the target's.
        function: φ.
        source_scores_S: SCALE times them, their softmax weighs the sources; None: they weigh the same.
    """

    def __init__(self, adapter: AdapterConfig, sources: int, width: int) -> None:
        super().__init__()
        own = adapter.source_down == "own"
        self.source_down = nn.Linear(width, adapter.r, bias=False, dtype=torch.float32) if own else None
        self.function = FUSIONS.get(adapter.fusion)(adapter.r, adapter.fusion_heads)
        _check_keeps_parameters_alone(self.function, adapter.fusion)
        self.sources = sources
        learned = adapter.source_weights == "learned" and sources > 1
        self.source_scores_S = nn.Parameter(torch.zeros(sources, dtype=torch.float32)) if learned else None

    @property
    def a_RD(self) -> Tensor | None:
        """The source's own A."""
        return None if self.source_down is None else self.source_down.weight

    def fuse(self, source_SBMR: Tensor, target_BCR: Tensor, alignment: Alignment) -> Tensor:
        """The fused bottleneck [B, L, R] of the last L target positions; T itself where there is no partner.

        Raises:
            ConfigError: φ has another shape.
        """
        scores_S = source_SBMR.new_zeros(self.sources) if self.source_scores_S is None else self.source_scores_S
        source_BLR = alignment.combine(source_SBMR, (SCALE * scores_S).softmax(0))
        fused_BLR = self.function.forward(source_BLR, target_BCR, alignment.real_BC)
        if fused_BLR.shape != source_BLR.shape:  # it would be broadcast
            given, wanted = tuple(fused_BLR.shape), tuple(source_BLR.shape)
            problem = f"the fusion function {type(self.function).__name__} returned {given}, not φ [B, L, R] = {wanted}"
            raise ConfigError(problem, fix="let it return φ for each of the last L positions (docs/extending.md)")
        return torch.where(alignment.partner_BL[..., None], fused_BLR, target_BCR[:, -source_BLR.shape[1] :])


def _check_keeps_parameters_alone(function: nn.Module, name: str) -> None:
    """Refuse a function with anything else that would have to be saved, or to be switched for training."""
    held = [name for name, _ in function.named_buffers()]
    held += [type(module).__name__ for module in function.modules() if isinstance(module, _Dropout)]
    if held:
        raise ConfigError(
            f"adapter.fusion={name!r} holds {', '.join(held)}: buffers are not saved with the adapter, and a fusion "
            "function is never in training mode",
            fix="let it hold parameters alone, and use adapter.dropout",
        )
