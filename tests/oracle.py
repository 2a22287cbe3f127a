"""An independent, deliberately slow FLARE, written from the equations: no PEFT, no DeepSpeed, no Hugging Face code.

One row at a time, no padding, no batch, loops over layers, heads, positions and sources, float64. It reads the same
weights by name and is what the two-stream model is compared with: logits, loss and the gradient of all that trains.

    y = W·t + scaling·B·φ(S, T)      T = A·t, S = Σ share·A·s over the sources that have a partner at the position;
                                     source_down=own: S is made with another A than T

Legend: n positions, d model width, r bottleneck width; vectors of one position carry no suffix.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from flare_ds.config import AdapterConfig


@dataclass
class Settings:
    """What the oracle needs to know of the base model."""

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

    @property
    def gemma(self) -> bool:
        return self.model.startswith("gemma")


@dataclass
class Row:
    """One example in token ids: the target's prompt and answer, and those of each source, empty if it is missing."""

    target: list[int]
    answer: list[int]
    sources: list[tuple[list[int], list[int]]] = field(default_factory=list)


@dataclass
class Visit:
    """What one layer did with a source: the states [n, d] before and after it, and what each projection read."""

    before: Tensor
    after: Tensor
    inputs: dict[str, Tensor]


def softmax(scores: Tensor) -> Tensor:
    share = torch.exp(scores - scores.max())
    return share / share.sum()


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def cap(x: Tensor, limit: float | None) -> Tensor:
    return torch.tanh(x / limit) * limit if limit else x


def rotate(vector: Tensor, position: int, theta: float) -> Tensor:
    """Turn dimensions i and i + half of a head's vector by an angle that falls with i."""
    a, b = vector.chunk(2)
    angles = position * theta ** (-torch.arange(len(a), dtype=torch.float64) / len(a))
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])


def partner(k: int, target_n: int, source_n: int, align: str) -> int | None:
    """Which source position target position k meets, counted from each prompt's start."""
    if align == "left":
        j = k
    elif align == "right":
        j = source_n - (target_n - k)
    else:
        j = source_n - 1 if target_n == 1 else math.floor(k * (source_n - 1) / (target_n - 1) + 0.5)
    return j if 0 <= j < source_n else None


class Base:
    """The frozen model; `project(name, x)` is how a linear layer of that name is computed."""

    def __init__(self, weights: dict[str, Tensor], settings: Settings) -> None:
        self.w, self.s = weights, settings
        self.visits: dict[tuple[int, ...], list[Visit]] = {}

    def norm(self, x: Tensor, name: str) -> Tensor:
        normed, weight = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.s.eps), self.w[name + ".weight"]
        return normed * (1 + weight if self.s.gemma else weight)

    def embed(self, tokens: list[int]) -> Tensor:
        table = self.w["model.embed_tokens.weight"]
        return table[tokens] * (math.sqrt(table.shape[1]) if self.s.gemma else 1.0)

    def head(self) -> Tensor:
        return self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])

    def layer(self, i: int, x: Tensor, project: Callable[[str, Tensor], Tensor]) -> Tensor:
        """One decoder layer over one row [n, d]."""
        p, gemma = f"model.layers.{i}.", self.s.gemma
        attended = self.attention(i, self.norm(x, p + "input_layernorm"), project)
        x = x + (self.norm(attended, p + "post_attention_layernorm") if gemma else attended)
        normed = self.norm(x, p + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"))
        gate, up = project(p + "mlp.gate_proj", normed), project(p + "mlp.up_proj", normed)
        if gemma:
            act = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            act = gate / (1 + torch.exp(-gate))
        out = project(p + "mlp.down_proj", act * up)
        return x + (self.norm(out, p + "post_feedforward_layernorm") if gemma else out)

    def attention(self, i: int, x: Tensor, project: Callable[[str, Tensor], Tensor]) -> Tensor:
        s, p, n = self.s, f"model.layers.{i}.self_attn.", x.shape[0]
        q = project(p + "q_proj", x).view(n, s.heads, s.head_dim)
        k = project(p + "k_proj", x).view(n, s.kv_heads, s.head_dim)
        v = project(p + "v_proj", x).view(n, s.kv_heads, s.head_dim)
        if s.model == "gemma3":
            q, k = self.norm(q, p + "q_norm"), self.norm(k, p + "k_norm")
        keys = [torch.stack([rotate(k[j, g], j, s.thetas[i]) for j in range(n)]) for g in range(s.kv_heads)]
        rows = []
        for t in range(n):
            first = 0 if s.windows[i] is None else max(0, t - s.windows[i] + 1)
            heads = []
            for h in range(s.heads):
                g = h // (s.heads // s.kv_heads)
                scores = keys[g][first : t + 1] @ rotate(q[t, h], t, s.thetas[i]) * s.score_scale
                heads.append(softmax(cap(scores, s.attention_cap)) @ v[first : t + 1, g])
            rows.append(torch.cat(heads))
        return project(p + "o_proj", torch.stack(rows))

    @torch.no_grad()
    def read(self, tokens: list[int]) -> list[Visit]:
        """The source stream: every layer without adapters and gradient (remembered, since no adapter changes it)."""
        if tuple(tokens) not in self.visits:
            states, inputs = [self.embed(tokens)], []
            for i in range(self.s.layers):
                seen: dict[str, Tensor] = {}

                def project(name: str, x: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
                    seen[name] = x
                    return x @ self.w[name + ".weight"].T

                states.append(self.layer(i, states[-1], project))
                inputs.append(seen)
            self.visits[tuple(tokens)] = [Visit(*visit) for visit in zip(states, states[1:], inputs, strict=False)]
        return self.visits[tuple(tokens)]


class Oracle:
    """The model with its adapter, computed row by row.

    Args:
        base: the frozen model.
        trained: everything that trains, by name: `model.layers.0.self_attn.q_proj.lora_A.weight` and so on.
        adapter: the adapter's settings.
        head_rows: rows of the output matrix that are used; None: all.
    """

    def __init__(
        self, base: Base, trained: dict[str, Tensor], adapter: AdapterConfig, head_rows: list[int] | None = None
    ) -> None:
        self.base, self.trained, self.adapter, self.head_rows = base, trained, adapter, head_rows
        self.scaling = adapter.alpha / (math.sqrt(adapter.r) if adapter.rslora else adapter.r)
        self.energy: dict[str, Tensor] = {}

    def logits(self, row: Row, answers: int) -> Tensor:
        """Logits [answers, vocabulary or head rows] from the last prompt position on."""
        tokens = row.target + row.answer[: answers - 1]
        x = self.base.embed(tokens)
        for i in range(self.base.s.layers):
            visits = [self.base.read(self.source_tokens(*source))[i] if source[0] else None for source in row.sources]
            x = self.base.layer(i, x, lambda name, x, i=i, v=visits: self.project(i, name, x, row, v))
        x = self.base.norm(x, "model.norm")[len(row.target) - 1 :]
        head = self.trained.get("lm_head.weight")
        if head is None:
            head = self.base.head() if self.head_rows is None else self.base.head()[self.head_rows]
        return cap(x @ head.T, self.base.s.logit_cap)

    def source_tokens(self, prompt: list[int], answer: list[int]) -> list[int]:
        return prompt + (answer[:-1] if self.adapter.span == "full" else [])

    def meets(self, k: int, row: Row) -> dict[int, int]:
        """The sources that have a partner for target position k, and the partner's position in each."""
        found: dict[int, int | None] = {}
        for number, (prompt, answer) in enumerate(row.sources):
            if k < len(row.target):
                found[number] = partner(k, len(row.target), len(prompt), self.adapter.align)
            elif k - len(row.target) < len(self.source_tokens(prompt, answer)) - len(prompt):
                found[number] = len(prompt) + k - len(row.target)
        return {number: j for number, j in found.items() if j is not None}

    def project(self, i: int, name: str, x: Tensor, row: Row, visits: list[Visit | None]) -> Tensor:
        """W, and the adapter on it, over one row [n, d]."""
        weight, a, b = self.base.w[name + ".weight"], *(self.trained[f"{name}.lora_{m}.weight"] for m in "AB")
        bottleneck, out = [], []
        for k in range(x.shape[0]):
            bottleneck.append(a @ x[k])
            fused, met = bottleneck[k], self.meets(k, row)
            if met and name.rpartition(".")[2] in self.adapter.fused_modules:
                states = {number: self.state(i, name, visits[number], j) for number, j in met.items()}
                source_a = self.source_down(name)
                source = self.mix(name, {number: source_a @ state for number, state in states.items()}, len(visits))
                fused = self.phi(name, source, bottleneck)
                without = self.phi(name, torch.zeros_like(source), bottleneck)
                parts = torch.stack([(b @ (fused - without)).square().sum(), (b @ fused).square().sum()])
                self.energy[name] = self.energy.get(name, 0) + parts.detach()
            out.append(weight @ x[k] + self.scaling * (b @ fused))
        return torch.stack(out)

    def source_down(self, name: str) -> Tensor:
        """The A that the source goes through."""
        own = self.adapter.source_down == "own"
        return self.trained[f"{name}.lora_fusion.source_down.weight" if own else f"{name}.lora_A.weight"]

    def state(self, i: int, name: str, visit: Visit, j: int) -> Tensor:
        """What position j of a source shows to a fused projection of layer i."""
        if self.adapter.pairing == "module":
            return visit.inputs[name][j]
        state = visit.after[j] if self.adapter.pairing == "output" else visit.before[j]
        return self.base.norm(state, f"model.layers.{i}.input_layernorm") if self.adapter.source_norm else state

    def mix(self, name: str, met: dict[int, Tensor], sources: int) -> Tensor:
        """The weighted mean of S over the sources that are met here."""
        logits = self.trained.get(f"{name}.lora_fusion.source_scores_S", torch.zeros(sources, dtype=torch.float64))
        share = softmax(32 * torch.stack([logits[number] for number in met]))
        return sum(share[place] * source for place, source in enumerate(met.values()))

    def phi(self, name: str, s: Tensor, so_far: list[Tensor]) -> Tensor:
        """φ(S, T) at the last of the target positions so far."""
        match self.adapter.fusion:
            case "add":
                return s + so_far[-1]
            case "add_relu":
                return relu(s) + relu(so_far[-1])
            case "mul":
                return s * so_far[-1]
            case "mul_relu":
                return relu(s) * relu(so_far[-1])
        part_of = f"{name}.lora_fusion.function."
        w = {key.removeprefix(part_of): value for key, value in self.trained.items() if key.startswith(part_of)}
        if self.adapter.fusion == "gate":
            return so_far[-1] + 32 * w["opening_R"] * s
        query = w["query.weight"] @ s + w["query.bias"]
        keys = [w["key.weight"] @ t for t in so_far]
        values = [w["value.weight"] @ t + w["value.bias"] for t in so_far]
        width, heads = self.adapter.r // self.adapter.fusion_heads, []
        for first in range(0, self.adapter.r, width):
            part = slice(first, first + width)
            share = softmax(torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(width))
            heads.append(sum(share[j] * value[part] for j, value in enumerate(values)))
        return torch.cat(heads)


class PrefixOracle(Oracle):
    """source_prefix: one row that holds the sources and then the target, adapters on behind the sources alone.

    No source sees another. Positions are relative, so a source's states are those that it has by itself.
    """

    def logits(self, row: Row, answers: int) -> Tensor:
        """Logits [answers, vocabulary or head rows] from the last prompt position on."""
        read = [self.base.read(prompt) for prompt, _ in row.sources if prompt]
        x = self.base.embed(row.target + row.answer[: answers - 1])
        for i in range(self.base.s.layers):
            before = torch.cat([x[:0], *(visits[i].before for visits in read)])
            project = partial(self.behind, len(before))
            x = self.base.layer(i, torch.cat([before, x]), project)[len(before) :]
        x = self.base.norm(x, "model.norm")[len(row.target) - 1 :]
        head = self.trained.get("lm_head.weight")
        if head is None:
            head = self.base.head() if self.head_rows is None else self.base.head()[self.head_rows]
        return cap(x @ head.T, self.base.s.logit_cap)

    def behind(self, first: int, name: str, x: Tensor) -> Tensor:
        """W, and the adapter on what stands behind the source."""
        weight, a, b = self.base.w[name + ".weight"], *(self.trained[f"{name}.lora_{m}.weight"] for m in "AB")
        adapted = [self.scaling * (b @ (a @ vector)) for vector in x[first:]]
        return x @ weight.T + torch.cat([torch.zeros(first, len(weight), dtype=x.dtype), torch.stack(adapted)])
