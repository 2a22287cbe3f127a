"""An independent, deliberately slow FLARE, written from the equations: no PEFT, no DeepSpeed, no Hugging Face code.

One row at a time, no padding, no batch, loops over layers, heads and positions, float64. It reads the same weights
by name and is what the two-stream model is compared with: logits, loss and every adapter gradient.

Legend: n positions, d model width.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Settings:
    """What the oracle needs to know of the model and the adapter."""

    model: str  # llama, gemma2 or gemma3
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    thetas: list[float]  # rope base of each layer
    windows: list[int | None]  # sliding window of each layer
    score_scale: float
    attention_cap: float | None = None
    logit_cap: float | None = None
    targets: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)
    scaling: float = 2.0
    fusion: str = "add_relu"
    pairing: str = "output"
    source_norm: bool = True
    align: str = "right"

    @property
    def gemma(self) -> bool:
        return self.model.startswith("gemma")


def rms(x: Tensor, weight: Tensor, s: Settings) -> Tensor:
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + s.eps)
    return normed * (1 + weight if s.gemma else weight)


def rotate(vector: Tensor, position: int, theta: float) -> Tensor:
    half = vector.shape[0] // 2
    out = vector.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / vector.shape[0])
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def partner(k: int, target_n: int, source_n: int, align: str) -> int | None:
    """Which source position target position k meets, counted from each prompt's start."""
    if align == "left":
        j = k
    elif align == "right":
        j = source_n - (target_n - k)
    else:
        j = source_n - 1 if target_n == 1 else math.floor(k * (source_n - 1) / (target_n - 1) + 0.5)
    return j if 0 <= j < source_n else None


def fuse(s: Tensor, t: Tensor, fusion: str) -> Tensor:
    relu = lambda v: torch.where(v > 0, v, torch.zeros_like(v))  # noqa: E731
    return {
        "add": lambda: s + t,
        "add_relu": lambda: relu(s) + relu(t),
        "mul": lambda: s * t,
        "mul_relu": lambda: relu(s) * relu(t),
    }[fusion]()


class Linear:
    """W, and the adapter on it: y = W·t + scaling·B·φ(A·s, A·t)."""

    def __init__(self, weights: dict[str, Tensor], adapters: dict[str, Tensor], name: str, s: Settings) -> None:
        self.weight, self.s = weights[name + ".weight"], s
        self.short = name.rpartition(".")[2]
        self.a, self.b = adapters.get(name + ".lora_A"), adapters.get(name + ".lora_B")

    def __call__(self, x: Tensor, adapted: bool, source: list[Tensor | None] | None = None) -> Tensor:
        """X [n, d]; source: for each position the source vector it meets, or None."""
        rows = []
        for k in range(x.shape[0]):
            y = self.weight @ x[k]
            if adapted and self.a is not None:
                bottleneck = self.a @ x[k]
                if source is not None and self.short in self.s.fused and source[k] is not None:
                    bottleneck = fuse(self.a @ source[k], bottleneck, self.s.fusion)
                y = y + self.s.scaling * (self.b @ bottleneck)
            rows.append(y)
        return torch.stack(rows)


class Oracle:
    """A two-stream language model computed row by row."""

    def __init__(self, weights: dict[str, Tensor], adapters: dict[str, Tensor], settings: Settings) -> None:
        self.w, self.adapters, self.s = weights, adapters, settings

    def layer(self, i: int, x: Tensor, adapted: bool, given: dict | None) -> tuple[Tensor, dict[str, Tensor]]:
        """One decoder layer over one row [n, d]; also returns the input of each projection."""
        s, p = self.s, f"model.layers.{i}."
        inputs: dict[str, Tensor] = {}

        def project(name: str, value: Tensor) -> Tensor:
            short = name.rpartition(".")[2]
            inputs[short] = value
            source = None if given is None else given[short]
            return Linear(self.w, self.adapters, p + name, s)(value, adapted, source)

        normed = rms(x, self.w[p + "input_layernorm.weight"], s)
        n = x.shape[0]
        q = project("self_attn.q_proj", normed).view(n, s.heads, s.head_dim)
        k = project("self_attn.k_proj", normed).view(n, s.kv_heads, s.head_dim)
        v = project("self_attn.v_proj", normed).view(n, s.kv_heads, s.head_dim)
        if s.model == "gemma3":
            q = rms(q, self.w[p + "self_attn.q_norm.weight"], s)
            k = rms(k, self.w[p + "self_attn.k_norm.weight"], s)
        outs = []
        for t in range(n):
            heads = []
            for h in range(s.heads):
                g = h // (s.heads // s.kv_heads)
                first = 0 if s.windows[i] is None else max(0, t - s.windows[i] + 1)
                query = rotate(q[t, h], t, s.thetas[i])
                scores = torch.stack(
                    [query @ rotate(k[j, g], j, s.thetas[i]) * s.score_scale for j in range(first, t + 1)]
                )
                if s.attention_cap:
                    scores = torch.tanh(scores / s.attention_cap) * s.attention_cap
                share = torch.exp(scores - scores.max())
                share = share / share.sum()
                heads.append(sum(share[j - first] * v[j, g] for j in range(first, t + 1)))
            outs.append(torch.cat(heads))
        attended = project("self_attn.o_proj", torch.stack(outs))
        if s.gemma:
            attended = rms(attended, self.w[p + "post_attention_layernorm.weight"], s)
        x = x + attended
        norm_name = "pre_feedforward_layernorm" if s.gemma else "post_attention_layernorm"
        normed = rms(x, self.w[p + norm_name + ".weight"], s)
        gate, up = project("mlp.gate_proj", normed), project("mlp.up_proj", normed)
        if s.gemma:
            act = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            act = gate / (1 + torch.exp(-gate))
        out = project("mlp.down_proj", act * up)
        if s.gemma:
            out = rms(out, self.w[p + "post_feedforward_layernorm.weight"], s)
        return x + out, inputs

    def embed(self, tokens: list[int]) -> Tensor:
        table = self.w["model.embed_tokens.weight"]
        return table[tokens] * (math.sqrt(table.shape[1]) if self.s.gemma else 1.0)

    def given(self, i: int, before: Tensor, after: Tensor, inputs: dict[str, Tensor], meets: list[int | None]) -> dict:
        """For each projection of layer i, the source vector that each target position meets."""
        s = self.s
        state = after if s.pairing == "output" else before
        if s.source_norm:
            state = rms(state, self.w[f"model.layers.{i}.input_layernorm.weight"], s)
        by_name = {name: inputs[name] if s.pairing == "module" else state for name in inputs}
        return {
            name: [None if j is None or name not in s.fused else value[j] for j in meets]
            for name, value in by_name.items()
        }

    def logits(self, target: list[int], source: list[int] | None, prompt_n: int) -> Tensor:
        """Logits [n, vocabulary] of one target row (its first prompt_n tokens are prompt)."""
        x = self.embed(target)
        s_state = None if source is None else self.embed(source)
        for i in range(self.s.layers):
            given = None
            if s_state is not None:
                with torch.no_grad():
                    s_next, inputs = self.layer(i, s_state, adapted=False, given=None)
                    meets = [
                        partner(k, prompt_n, len(source), self.s.align) if k < prompt_n else None
                        for k in range(len(target))
                    ]
                    given = self.given(i, s_state, s_next, inputs, meets)
                s_state = s_next
            x, _ = self.layer(i, x, adapted=True, given=given)
        x = rms(x, self.w["model.norm.weight"], self.s)
        out = x @ self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]).T
        return torch.tanh(out / self.s.logit_cap) * self.s.logit_cap if self.s.logit_cap else out
