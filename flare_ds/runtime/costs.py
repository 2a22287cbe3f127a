"""What a training step costs: the tokens that are read, and the floating-point operations they take.

Counted from the shapes of the model and of the batch, padding included: what a step computes, and not what of it is
used. A stream has the columns that its own longest row fills. A multiplication with its addition is two operations, so
N elements of weights cost a token 2N a pass:

                               forward   gradient of inputs   of weights
    frozen, in a row             2N             2N                 –
    frozen, source stream        2N              –                 –
    adapter, in a row            2N             2N                2N
    A, for a source state        2N              –                2N

Attention costs every pair of columns 4 operations a layer and unit of its heads' width in a forward, twice that in a
backward. Where a source stream has a gradient (x_mixup) it costs what the row does. The head is counted where it is
computed: at the positions that predict answers.

Of experts that transformers keeps stacked in one weight, a token goes through as many as the base's config says.

Not counted: other experts, and the router; what train.gradient_checkpointing computes again; looking up embeddings;
norms, rotary tables, activations and softmax; what a fusion function computes between A and B; loss, clipping and
optimizer; stored source states, which are computed before the first step. Counted, though nobody needs them: the
gradients of the very first layer's inputs.

Legend: S source streams that run, B rows, L columns, N answer positions, M columns of stored states, D their width.
"""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers, linears_of
from flare_ds.batches.collate import Batch
from flare_ds.batches.workload import Workload
from flare_ds.config import Config


class Costs:
    """Counts what a micro-batch costs.

    Args:
        labels: how many tokens tell the label words apart.
    """

    def __init__(self, config: Config, shape: PreTrainedModel, *, labels: int) -> None:
        self.config = config
        text = shape.config.get_text_config()
        self.width = text.hidden_size
        self.logits = labels if config.train.objective == "labels" else text.vocab_size
        layers = decoder_layers(shape)
        pairs = [4 * text.num_attention_heads * _head_width(layer, text) for layer in layers]
        meets_inputs = config.sources > 0 and config.pairing == "input"
        self.per_pair, self.per_source_pair = sum(pairs), sum(pairs[: -1 if meets_inputs else None])
        linears = [named for layer in layers for named in _named_linears(layer)]
        adapted = _named(linears, config.adapter.target_modules)
        fused = _named(linears, config.adapter.fused_modules if config.sources else [])
        experts = [_experts(layer, text) for layer in layers]
        self.frozen = _elements(linear for _, linear in linears) + sum(experts)
        self.frozen_of_source = self.frozen - _elements(_unread(layers[-1], config)) - meets_inputs * experts[-1]
        self.adapter = config.adapter.r * sum(linear.in_features + linear.out_features for linear in adapted)
        self.source_down = config.adapter.r * sum(linear.in_features for linear in fused)
        self.runs = Workload(config)

    def of(self, batch: Batch) -> dict[str, int]:
        """What forward and backward of a micro-batch cost.

        Returns:
            tokens: of all streams that run, without padding and filler rows; padded_tokens: with both; flops.
        """
        passing, trained, rows = self.runs.passing(batch), self.runs.training(batch), len(batch.weights_B)
        flops = trained.tokens * self._trained_token(trained.columns) + passing.tokens * self._token(passing.columns)
        flops += self._head(trained.rows * len(batch.answer_columns_N)) + self._sources(batch)
        if self.runs.reads_keys:  # attention over the sources' columns, whose gradient a backward makes, too
            flops += 3 * trained.tokens * self.per_pair * self.runs.columns_before(batch) * self.runs.reads_keys
        flops += self._mixing(rows, trained.columns, batch.prompt_columns) if self.runs.mixes else 0
        tokens_SB = batch.attention_mask.sum(1).view(-1, rows)
        return {
            "tokens": int((tokens_SB * batch.weights_B).sum()),
            "padded_tokens": trained.tokens + passing.tokens,
            "flops": flops,
        }

    def _trained_token(self, columns: int) -> int:
        """A token whose states have a gradient."""
        return 2 * self.frozen * 2 + 2 * self.adapter * 3 + self.per_pair * columns * 3

    def _token(self, columns: int) -> int:
        """A token of a source stream, which only passes through."""
        return 2 * self.frozen_of_source + self.per_source_pair * columns

    def _head(self, positions: int) -> int:
        return 2 * positions * self.width * self.logits * (2 + self.config.adapter.train_head)

    def _sources(self, batch: Batch) -> int:
        """Source states on their way into the bottleneck; stored ones perhaps through a projection of their width."""
        rows, stored = len(batch.weights_B), batch.stored_BMKD
        if stored is None:
            return 2 * self.source_down * 2 * self.runs.passing(batch).tokens
        projection = stored.shape[-1] * self.width if self.config.reads_mt_encoder else 0
        gradient_of_inputs = int(projection > 0)
        per_state = 2 * self.source_down * (2 + gradient_of_inputs) + 2 * projection * 2
        return per_state * rows * stored.shape[1]

    def _mixing(self, rows: int, columns: int, prompt_columns: int) -> int:
        """The mixing layer: three low-rank maps, of the row's columns or the source's prompt, and an attention."""
        maps = 2 * self.config.adapter.r * self.width * (columns + 2 * prompt_columns)
        return rows * 3 * (2 * maps + 4 * self.width * columns * prompt_columns)


def _head_width(layer: nn.Module, text: PreTrainedConfig) -> int:
    """The width of a layer's heads, which layers of one model may differ in."""
    own = (getattr(module, "head_dim", None) for module in layer.modules())
    return next((width for width in own if isinstance(width, int)), text.hidden_size // text.num_attention_heads)


def _experts(layer: nn.Module, text: PreTrainedConfig) -> int:
    """The elements of a layer's stacked experts that a token goes through: each weight holds all experts' [E, ., .]."""
    names = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    a_token = next((number for name in names if isinstance(number := getattr(text, name, None), int)), 0)
    stacks = [module for module in layer.modules() if hasattr(module, "is_transposed")]  # transformers marks them so
    weights = [weight for stack in stacks for weight in stack.parameters(recurse=False) if weight.ndim == 3]
    return a_token * sum(weight[0].numel() for weight in weights)


def _named_linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a decoder layer, by the last part of their names."""
    return [(name.rpartition(".")[2], linear) for name, linear in linears_of(layer).items()]


def _unread(layer: nn.Module, config: Config) -> list[nn.Linear]:
    """What the sources do not go through in the last layer, since nobody would read it: see the streams."""
    linears = _named_linears(layer)
    if config.recipe.fuses == "keys":  # what its attention makes of them, and all behind it
        return _named(linears[_of_attention(layer) - 1 :], config.adapter.target_modules)
    if not config.sources or config.pairing == "output":
        return []
    if config.pairing == "input":
        return [linear for _, linear in linears]
    last = max(place for place, (name, _) in enumerate(linears) if name in config.adapter.fused_modules)
    return _named(linears[last:], config.adapter.target_modules)


def _of_attention(layer: nn.Module) -> int:
    """How many of a layer's linear layers are its attention's, which come first."""
    parents = [name.rpartition(".")[0] for name in linears_of(layer)]
    return parents.count(parents[0])


def _elements(linears: Iterable[nn.Linear]) -> int:
    return sum(linear.in_features * linear.out_features for linear in linears)


def _named(linears: list[tuple[str, nn.Linear]], names: list[str] | str) -> list[nn.Linear]:
    """Those of these names, or all of them (`all-linear`)."""
    return [linear for name, linear in linears if isinstance(names, str) or name in names]
