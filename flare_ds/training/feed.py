"""What this rank trains on, step by step: its micro-batches, and what each of them costs.

Nothing here waits for the device. A micro-batch is laid out while the one before it still runs, and the first one of a
step while the step before it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from flare_ds.batches.batching import MicroBatch, split_step
from flare_ds.batches.collate import Batch, StoredStates, collate
from flare_ds.batches.plan import number_of_steps, open_order
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.source_dropout import WithoutSources, WithoutStates, dropped_rows
from flare_ds.batches.workload import Workload, streams_of
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.row_answers import Rows
from flare_ds.runtime.costs import Costs
from flare_ds.runtime.memory import Load, largest_load
from flare_ds.runtime.process_group import rank, world_size
from flare_ds.runtime.rank_zero import agreed


@dataclass(frozen=True)
class Portion:
    """One micro-batch of this rank.

    Attributes:
        batch: its rows, laid out.
        rows: the numbers of those that count.
        costs: see `Costs.of`.
        last: whether it is the step's last.
    """

    batch: Batch
    rows: list[int]
    costs: dict[str, int]
    last: bool


class Feed:
    """The training rows of a run, as its steps take them.

    Attributes:
        steps: how many the run has.
        stored: the source states of the rows, where they were computed before.
        cut_by: lengths of all rows, by which those of a step are sorted and cut; they are at least their own.

    Raises:
        ConfigError: a row is larger than a step.
    """

    stored: StoredStates | None = None

    def __init__(self, config: Config, cache: Cache, shape: PreTrainedModel) -> None:
        self.config, self.cache = config, cache
        self._rows = cache.split("train")
        self.split = rows_read(self._rows, config, cache.manifest)
        self.streams = streams_of(config)
        self.order = agreed(open_order, config, cache)
        self.steps = agreed(number_of_steps, config.train, self.order)
        self.trie = LabelTrie(cache.label_tokens)
        self.lengths = Workload(config).padded_tokens(self.split, behind=self.trie.depth)
        self.cut_by = self.lengths
        self.answer_lengths = self.split.lengths("target") - self.split.prompt_lengths("target")
        self.costs = Costs(config, shape, labels=len(self.trie.tokens))
        self._begun: dict[int, tuple[_Read, Portion]] = {}

    @property
    def load(self) -> Load:
        """The largest micro-batch."""
        return largest_load(
            self.config.train,
            row_tokens=int(self.lengths.max()),
            streams=len(self.streams),
            ranks=world_size(),
            words=Workload(self.config).words(self.split),
        )

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of a step, of all ranks."""
        return self.order.rows(step)

    def targets(self, step: int) -> int:
        """What a step's loss is the mean over: rows, or answer tokens; known to every rank without asking."""
        rows = self.rows(step)
        return len(rows) if self.config.train.objective == "labels" else int(self.answer_lengths[rows].sum())

    def portions(self, step: int) -> Iterator[Portion]:
        """This rank's share of a step; all ranks have equally many."""
        micro_batches = self._micro_batches(step)
        read, first = self._begun.get(step) or self._begin(step)
        yield first
        for place in range(1, len(micro_batches)):
            yield self._laid_out(read, micro_batches, place)
        if step + 1 < self.steps:
            self._begun = {step + 1: self._begin(step + 1)}

    def _begin(self, step: int) -> "tuple[_Read, Portion]":
        """The rows of a step, and its first micro-batch."""
        read = self._read(step)
        return read, self._laid_out(read, self._micro_batches(step), 0)

    def _read(self, step: int) -> "_Read":
        """The rows of a step, of which some have lost their sources."""
        config, train = self.config, self.config.train
        if not (train.source_dropout and config.recipe.trains_on_source):
            return self.split, self.stored
        dropped_n = dropped_rows(len(self._rows), train.source_dropout, seed=train.seed, step=step)
        split = rows_read(WithoutSources(self._rows, dropped_n), config, self.cache.manifest)
        return split, None if self.stored is None else WithoutStates(self.stored, dropped_n)

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        return split_step(
            self.rows(step),
            self.cut_by,
            world_size=world_size(),
            micro_batch_size=self.config.train.micro_batch_size,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
        )[rank()]

    def _laid_out(self, read: "_Read", micro_batches: list[MicroBatch], place: int) -> Portion:
        micro_batch, (split, stored) = micro_batches[place], read
        batch = collate(
            split,
            micro_batch,
            streams=self.streams,
            objective=self.config.train.objective,
            pad_id=self.cache.pad_id,
            source_answers=self.config.fuses_answers,
            source_targets=self.config.recipe.fuses == "mixup",
            stored=stored,
            trie=self.trie,
        )
        counting = micro_batch.rows[micro_batch.weights > 0].tolist()
        return Portion(batch, counting, self.costs.of(batch), last=place + 1 == len(micro_batches))


_Read = tuple[Rows, StoredStates | None]
"""Rows as a step reads them, and their stored states."""
