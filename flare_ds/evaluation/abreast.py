"""Label words of several cells over one base, ranked in joint forwards: what they read in common runs once for all.

    rows of a split, by id    a b | c d | e          cut into batches once, for all cells
    forward 1                 sources of a, b once; cell 1: a b; cell 2: a b; ...

Before anything is trained an adapter changes nothing (B = 0), so of cells that read the same one speaks for all.

Legend: U rows, K label words.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flare_ds.batches.batching import MicroBatch, evaluation_batches
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.joined import join
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import longest, streams_of
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation.answerable import generates
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.batch_size import batch_limits
from flare_ds.evaluation.batches import go_over
from flare_ds.evaluation.ranked import Choices, Ranked
from flare_ds.runtime.process_group import rank, world_size


def ranked_abreast(cells: Sequence[Asked], split_name: str, *, untrained: bool = False) -> list[Ranked | None]:
    """What each cell says of a split's rows, in their order; a collective.

    Cells go abreast where they have the same rows and label words; None stands for one that has no fellow, or whose
    answers are written. All are over one base; `untrained`: their adapters are as they were made.
    """
    found: list[Ranked | None] = [None] * len(cells)
    ids: dict[int, list[str]] = {}
    groups: dict[Any, list[int]] = {}
    for number, cell in enumerate(cells):
        if cell.number is not None and not generates(cell.config):
            split = cell.cache.split(split_name)
            ids[number] = [split.ids(row) for row in range(len(split))]
            alike = frozenset(ids[number]), str(cell.cache.label_tokens), cell.config.train.objective
            groups.setdefault(alike, []).append(number)
    for group in groups.values():
        if len(group) > 1:
            start = time.perf_counter()
            fellows = [cells[number] for number in group]
            speakers = _speakers(fellows) if untrained else [*range(len(group))]
            said = _Abreast(fellows, split_name, [ids[number] for number in group], speakers).ask()
            share = (time.perf_counter() - start) / len(group)
            for number, log_probabilities in zip(group, said, strict=True):
                found[number] = Ranked(log_probabilities, share)
    return found


def _speakers(cells: Sequence[Asked]) -> list[int]:
    """For each cell the first of those whose base reads the same rows in the same way."""
    first: dict[Any, int] = {}
    found = []
    for number, cell in enumerate(cells):
        recipe = cell.config.recipe
        mixes = recipe.fuses == "mixup"
        sources = cell.config.sources_read if recipe.reads != "target" or mixes else ()
        mixture = str(cell.config.mixup) if mixes else None  # at first a fixed share of what is found
        read = cell.cache.path, recipe.reads, recipe.fuses == "keys", sources, mixture
        found.append(first.setdefault(read, number))
    return found


class _Abreast:
    """Cells with the same rows, which stand in each cell's split in an order of its own: those of the first count.

    Args:
        cells: over one base.
        split_name: whose rows they read.
        ids: of these, in each cell's order.
        speakers: for each cell the number of the one that is asked in its place.
    """

    def __init__(self, cells: Sequence[Asked], split_name: str, ids: list[list[str]], speakers: list[int]) -> None:
        self.split_name, self.trie = split_name, LabelTrie(cells[0].cache.label_tokens)
        splits = [cell.cache.split(split_name) for cell in cells]
        number = {row_id: row for row, row_id in enumerate(ids[0])}
        self.numbers = [np.array([number[row_id] for row_id in own]) for own in ids]
        self.asked = sorted(set(speakers))
        self.speakers = [self.asked.index(speaker) for speaker in speakers]
        self.cells = [cells[number] for number in self.asked]
        self.places = [np.argsort(self.numbers[number]) for number in self.asked]
        self.rows = [rows_read(splits[n], cells[n].config, cells[n].cache.manifest) for n in self.asked]
        self.stored = [None if cell.states is None else cell.states.split(split_name) for cell in self.cells]

    def ask(self) -> list[list[list[float]]]:
        """Log-probabilities [U, K] of the label words, for each cell in the order of its own split."""
        self.cells[0].running.root.eval()
        said = go_over(self._batches(), self._ask_batch, what=self.split_name, count=len(self.rows[0]))
        of_asked = np.array(said).transpose(1, 0, 2)
        return [
            of_asked[speaker][numbers].tolist() for speaker, numbers in zip(self.speakers, self.numbers, strict=True)
        ]

    def _batches(self) -> list[MicroBatch]:
        """This rank's, cut by what the cell with the longest rows reads."""
        lengths, limits = [], []
        for cell, rows, places in zip(self.cells, self.rows, self.places, strict=True):
            streams = streams_of(cell.config)
            padded_U = len(streams) * longest(rows.prompt_lengths, streams)
            words = cell.config.train.objective == "vocabulary"
            cells = len(self.cells)
            limits.append(batch_limits(cell.running, rows, cell.config, padded_U, written=0, words=words, cells=cells))
            lengths.append(padded_U[places])
        tokens = [limit for _, limit in limits if limit is not None]
        dealt = evaluation_batches(
            np.max(lengths, axis=0),
            world_size=world_size(),
            batch_size=min(size for size, _ in limits),
            batch_tokens=min(tokens, default=None),
        )
        return dealt[rank()]

    @torch.no_grad()
    def _ask_batch(self, micro_batch: MicroBatch) -> list[list[list[float]]]:
        """For each row, what each cell says of it."""
        batches: dict[int, Batch] = {}
        for cell, rows, places, stored in zip(self.cells, self.rows, self.places, self.stored, strict=True):
            assert cell.number is not None
            batches[cell.number] = collate(
                rows,
                MicroBatch(places[micro_batch.rows], micro_batch.weights),
                streams=streams_of(cell.config),
                objective="labels",
                pad_id=cell.cache.pad_id,
                source_answers=cell.config.fuses_answers,
                stored=stored,
            )
        choices = [Choices(self.trie, cell.config) for cell in self.cells]
        methods = {number: cell.config.recipe for number, cell in zip(batches, self.cells, strict=True)}
        running = self.cells[0].running
        for path in self.trie.paths:
            asked = {cell: batch.followed_by(path) if path else batch for cell, batch in batches.items()}
            joined = join(asked, methods)
            for own, logits_BNV in zip(choices, running.shared_root(joined.to(running.device)), strict=True):
                own.add(path, logits_BNV)
        said = [own.label_scores().tolist() for own in choices]
        return [list(of_row) for of_row in zip(*said, strict=True)]
