"""What the cells of a sweep need in memory, told before any of them starts, where their caches and base are there.

It is the estimate by which a run refuses a batch that cannot fit, and by which cells are cut into groups that do
(`flare_ds.runtime.memory`). A cell that may hold the whole base is taken to do so.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import Workload, streams_of
from flare_ds.config import Config
from flare_ds.data.cache import Cache, remembered
from flare_ds.data.label_trie import LabelTrie
from flare_ds.exceptions import ConfigError
from flare_ds.host import visible_gpus
from flare_ds.models.loading import load_shape
from flare_ds.runtime.memory import Load, joint_bytes, largest_load
from flare_ds.sweep.nodes import cache_key
from flare_ds.sweep.plan import Plan, PlannedRun


class CellMemory:
    """The memory of a plan's cells; each base and each cache is opened once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._shapes: dict[str, PreTrainedModel | None] = {}
        self._caches: dict[Any, Cache | None] = {}
        self._longest: dict[tuple, tuple[int, int]] = {}

    def of(self, runs: Sequence[PlannedRun]) -> float | None:
        """Bytes that the cells of one command take on each rank while they train; None: it cannot be told yet."""
        first, caches = runs[0], [self._cache(run) for run in runs]
        found = [cache for cache in caches if cache is not None]
        ranks = self._sharing(first.config)
        if not first.config.recipe.trains or len(found) < len(runs) or ranks == 0:
            return None
        shape = self._shape(first)
        loads = [self._load(run.config, cache) for run, cache in zip(runs, found, strict=True)]
        return None if shape is None else joint_bytes([run.config for run in runs], shape, loads, ranks=ranks)

    def _sharing(self, config: Config) -> int | None:
        """How many ranks share the base; None: each holds it whole; 0: it is not known."""
        return None if config.train.whole_model is not False else self._ranks

    @cached_property
    def _ranks(self) -> int:
        """How many train; 0: it is not known."""
        return visible_gpus() if self.plan.ranks == "all" else self.plan.ranks or 0

    def _shape(self, run: PlannedRun) -> PreTrainedModel | None:
        """The base on the meta device; the tuned base, not there yet, has the shape of the untuned one."""
        model = run.prepared.model
        key = model.model_dump_json()
        if key not in self._shapes:
            try:
                self._shapes[key] = load_shape(model)
            except ConfigError:  # not there yet
                self._shapes[key] = None
        return self._shapes[key]

    def _cache(self, run: PlannedRun) -> Cache | None:
        key = cache_key(run)
        if key not in self._caches:
            self._caches[key] = remembered(run.prepared)
        return self._caches[key]

    def _load(self, config: Config, cache: Cache) -> Load:
        """The largest micro-batch of a cell."""
        streams = streams_of(config)
        key = cache.path, streams, config.recipe, config.train.objective
        if key not in self._longest:
            split = rows_read(cache.split("train"), config, cache.manifest)
            behind = LabelTrie(cache.label_tokens).depth
            runs = Workload(config)
            self._longest[key] = int(runs.padded_tokens(split, behind=behind).max()), runs.words(split)
        (row_tokens, words), ranks = self._longest[key], self._ranks or 1
        return largest_load(config.train, row_tokens=row_tokens, streams=len(streams), ranks=ranks, words=words)
