"""The streams of source_prefix: the frozen base reads the source, and in every layer the target attends to it as well.

In a causal decoder the source half of a joint row never sees the target half. So it can be a row of its own, read by
the base alone, whose keys and values stand before the target's own:

                  source rows            target row
    layer i       s' = layer(s)          t' = layer(t), adapters on; its attention reads
                      |                      keys    [ those of s | its own ]
                      +--- keys, values ->   values  [ those of s | its own ]
    positions     0 ... n-1              n ...              of several sources each goes on where the one before ends

    mask of a target position at p:   the key is real,  at q <= p,  and p - q < window where the layer has one

With B = 0 the target's states are those of the joint row (input_fusion) under the base alone. As in lockstep both
streams run while a layer's weights are there, and no model file is copied. Where the source's keys and values are
stored (source.provider=cached), only the target's rows run.

Positions, not columns, say what a window covers: padding stands between the source's columns and the target's. When
decoding, the source's keys and values stay in the target's cache, before its own; so that cache keeps all columns.

Legend: S sources, B rows a stream, X = S·B, L columns of a batch, M of a source, P = S·M of all sources, C = P + the
target's so far, Q columns that ask, D width, H heads, K width of a head; stored_BMND: N layers, D of keys and values.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.passes import ADAPTER, alone
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.models.layer_calls import CACHES, OTHER_VERSION, cache_of
from flare_ds.models.source_pass import Beside, Left, Wanted
from flare_ds.models.streams import SideBySide, Streams


@dataclass
class Prefix:
    """What stands before the target's columns in one forward.

    Attributes:
        source_BP: which columns of the sources, one after another, are not padding.
        target_BL: which of the target's so far.
        asking: how many of these, the last ones, ask.
        beside: the sources' rows; None: their keys and values are stored, or in the cache already.
        stored_BMND: these, of each layer, where they are stored.
        masks: by window, as the layers of this forward take them.
    """

    source_BP: Tensor
    target_BL: Tensor
    asking: int
    beside: Beside | None = None
    stored_BMND: Tensor | None = None
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def real_BC(self) -> Tensor:
        """Which columns are not padding."""
        return torch.cat([self.source_BP, self.target_BL], 1)

    @cached_property
    def positions_BC(self) -> Tensor:
        """The positions of all columns: those of one row that holds the sources and then the target."""
        return (self.real_BC.cumsum(1) - 1).clip(min=0)

    def mask(self, window: int | None) -> Tensor:
        """Which columns each column that asks may read: [B, 1, Q, C]."""
        asked_BQ, all_columns = self.positions_BC[:, -self.asking :], self.real_BC.shape[1]
        distance_BQC = asked_BQ[:, :, None] - self.positions_BC[:, None]
        seen_BQC = self.real_BC[:, None] & (distance_BQC >= 0)
        if window is not None:
            seen_BQC &= distance_BQC < window
        # A column may always ask itself, so that padding, whose result nobody reads, never divides by zero.
        columns = torch.arange(all_columns, device=seen_BQC.device)
        return (seen_BQC | (columns[-self.asking :, None] == columns))[:, None]


class PrefixStreams(Streams):
    """Runs the source's rows and the target's through the decoder layers of one model.

    Attributes:
        remembered: when decoding, which of the sources' columns in the cache are not padding [B, P].
    """

    remembered: Tensor | None

    def __init__(self, base: PreTrainedModel, config: Config, adapter: str = ADAPTER) -> None:
        layers, self.adapter = decoder_layers(base), adapter
        reach, recompute = windows(base.config.get_text_config(), len(layers)), config.train.gradient_checkpointing
        self.heads = key_heads(base)
        self.layers = [
            _PrefixLayer(self, layer, number, window, is_last=layer is layers[-1], recompute=recompute)
            for number, (layer, window) in enumerate(zip(layers, reach, strict=True))
        ]

    def sources_of(self, batch: Batch) -> Prefix | None:
        """What stands before the target's columns: the source of the batch or, when decoding, that of the prompts."""
        rows, mask_XL = len(batch.target_lengths_B), batch.attention_mask.bool()
        if batch.stored_BMKD is not None:
            (lengths_B,), columns = batch.source_lengths_SB, batch.stored_BMKD.shape[1]
            source_BP = torch.arange(columns, device=mask_XL.device) >= columns - lengths_B[:, None]
            self.remembered = source_BP if self.is_decoding else None
            return Prefix(source_BP, mask_XL, mask_XL.shape[1], stored_BMND=batch.stored_BMKD)
        if len(batch.source_lengths_SB):
            source, target = batch.columns
            source_BP, target_BL = _in_line(mask_XL[:-rows, source], rows), mask_XL[-rows:, target]
            self.remembered = source_BP if self.is_decoding else None
            return Prefix(source_BP, target_BL, target_BL.shape[1], Beside(len(mask_XL) - rows, batch.columns))
        if self.remembered is None:
            return None
        return Prefix(self.remembered, mask_XL[-rows:], batch.input_ids.shape[1])

    def positions(self, batch: Batch, sources: Prefix | None) -> Tensor:
        """The positions of a batch's columns: each stream's go on where the one before it ends."""
        if sources is None:
            return batch.position_ids
        if sources.beside is None:
            return batch.position_ids + sources.source_BP.sum(1)[:, None]
        ends_SB = batch.source_lengths_SB.cumsum(0)
        before_X = torch.cat([torch.zeros_like(ends_SB[:1]), ends_SB]).flatten()
        return batch.position_ids + before_X[:, None]

    def target_cache(self, config: PreTrainedConfig) -> Cache:
        """A cache for the target's keys and values that keeps every column, in sliding layers too."""
        return DynamicCache()


class _PrefixLayer(SideBySide):
    """Takes the target's rows through one decoder layer, behind the source's keys and values."""

    streams: PrefixStreams

    def __init__(
        self,
        streams: PrefixStreams,
        layer: nn.Module,
        number: int,
        window: int | None,
        *,
        is_last: bool,
        recompute: bool,
    ) -> None:
        super().__init__(layer, streams, wanted=Wanted(keys=True), is_last=is_last)
        self.number, self.window, self.recompute = number, window, recompute

    def read(self, hidden_states: Tensor, left: Left | None, given: dict[str, Any]) -> Any:
        """See `SideBySide.read`."""
        prefix: Prefix | None = self.streams.sources
        if prefix is not None:
            if self.window not in prefix.masks:
                prefix.masks[self.window] = _as(given["attention_mask"], prefix.mask(self.window), hidden_states)
            given["attention_mask"] = prefix.masks[self.window]
            kept = self._stored(prefix.stored_BMND) if left is None else self._keys(left, ~prefix.source_BP)
            if kept is not None:  # else they are in the cache already
                before = _Before(*kept, cache_of(given))
                given |= dict.fromkeys([name for name in CACHES if name in given], before)
        return self.call.run(hidden_states, given, alone(self.streams.adapter), recompute=self.recompute)

    def _stored(self, stored_BMND: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The source's keys and values as they were stored, if they were, zeros where padding is."""
        if stored_BMND is None:
            return None
        both_BMHK = stored_BMND[:, :, self.number].unflatten(-1, (2 * self.streams.heads, -1))
        keys_BMHK, values_BMHK = both_BMHK.split(self.streams.heads, 2)
        return keys_BMHK.transpose(1, 2), values_BMHK.transpose(1, 2)

    def _keys(self, left: Left, padding_BP: Tensor) -> tuple[Tensor, Tensor]:
        """The sources' keys and values, one after another, with zeros where padding is: attention may leave NaN there.

        Raises:
            ConfigError: the layer keeps none.
        """
        keys_XHMK, values_XHMK = left.keys.keys_XHMK, left.keys.values_XHMK
        if keys_XHMK is None or values_XHMK is None:
            raise no_keys(self.call.kind)
        of_sources_XMHK = (left.own(kept_XHMK.transpose(1, 2)) for kept_XHMK in (keys_XHMK, values_XHMK))
        in_line_BPHK = (_in_line(kept_XMHK, len(padding_BP)) for kept_XMHK in of_sources_XMHK)
        padding_BP11 = padding_BP[..., None, None]
        keys_BHPK, values_BHPK = (kept.masked_fill(padding_BP11, 0).transpose(1, 2) for kept in in_line_BPHK)
        return keys_BHPK, values_BHPK


def _in_line(of_sources_XM: Tensor, rows: int) -> Tensor:
    """What each source has of its columns, as each row has it of all: from [S·B, M, ...] to [B, S·M, ...]."""
    return of_sources_XM.unflatten(0, (-1, rows)).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True)
class _Before:
    """Stands in the place of a cache in the target's pass; it writes nothing of its own, so a pass may be repeated.

    Attributes:
        past: takes them and the target's when decoding; None: nobody does.
    """

    keys_BHPK: Tensor
    values_BHPK: Tensor
    past: Cache | None

    def update(self, keys_BHLK: Tensor, values_BHLK: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The sources', then these."""
        both = torch.cat([self.keys_BHPK, keys_BHLK], 2), torch.cat([self.values_BHPK, values_BHLK], 2)
        return both if self.past is None else self.past.update(*both, layer)


def _as(given: Tensor | None, mask_B1QC: Tensor, state: Tensor) -> Tensor:
    """The mask as a layer is given its own: numbers to be added for eager attention, otherwise yes or no."""
    if given is None or not given.is_floating_point():
        return mask_B1QC
    return torch.zeros_like(mask_B1QC, dtype=state.dtype).masked_fill(~mask_B1QC, torch.finfo(state.dtype).min)


def key_heads(base: PreTrainedModel) -> int:
    """How many heads of keys a layer of a base has."""
    text = base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    assert isinstance(heads, int)
    return heads


def windows(config: PreTrainedConfig, layers: int) -> list[int | None]:
    """How many positions back each layer's attention reaches, its own counted; None: all of them.

    Raises:
        ConfigError: a layer's attention is of another kind.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * layers
    if other := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"model.base has {', '.join(sorted(other))} layers, where no source keys can be put before the target's",
            fix="use another base, or method=input_fusion, which reads both texts in one row",
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def no_keys(layer: str, why: str = "keeps no keys and values of its own") -> ConfigError:
    """Why a base cannot be asked so."""
    return ConfigError(
        f"each {layer} of model.base {why}, so the source's keys cannot be put before the target's",
        fix=f"use another base, or method=input_fusion, which reads both texts in one row; {OTHER_VERSION}",
    )
