"""Training several runs in one launch: those that can, together over one base.

    runs -> what makes them joinable -> groups -> as many together as fit -> trained -> scored, if asked

What a directory has in the end is what it has alone: config, state, adapter, logs, scores.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from flare_ds.batches.plan import row_keys
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import ConfigError, FlareError, NotFiniteError, kept, together
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_shape
from flare_ds.runs import RunDirectory
from flare_ds.runtime.ds_config import with_chosen_deepspeed
from flare_ds.runtime.engine import check_model, make_room
from flare_ds.runtime.memory import joint_memory
from flare_ds.runtime.opening import holds_whole
from flare_ds.runtime.process_group import gather_objects, rank, world_size
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.signals import leave_if_asked, leaving_between_batches, stopping
from flare_ds.training.cell import Cell
from flare_ds.training.evaluated import can_say, score_trained
from flare_ds.training.loop import open_cells, train_cells

Run = tuple[Config, Cache]


def check_distinct(configs: Sequence[Config]) -> None:
    """Check that no two runs would write one directory.

    Raises:
        ConfigError: two would.
    """
    places = [os.path.realpath(config.run_dir) for config in configs]
    for place in sorted({place for place in places if places.count(place) > 1}):
        raise ConfigError(
            f"run_dir={place!r} is named {places.count(place)} times", fix="name each run once, without run_dir=..."
        )


def train_together(
    runs: Sequence[Run], *, evaluate: bool, tell: Callable[[Config, Scores], None] = lambda _config, _scores: None
) -> None:
    """Train runs to their ends, and score their best adapters on the test rows if asked; a collective.

    Args:
        runs: open to be trained, each in a directory of its own.
        evaluate: whether they are scored.
        tell: called with the scores of each, as soon as they are there.

    Raises:
        FlareError: some could not be trained to their ends, or scored; the others were. See `Cell`, `open_cells`,
            `train_cells` and `evaluate_run`.
        ToBeContinued: a signal asked to stop; all states are saved.
    """
    outcome = _Outcome(tell)
    if not evaluate:
        trained = _trained(runs)
        for (config, _), is_trained in zip(runs, trained, strict=True):
            if is_trained:
                _say(f"{config.run_dir} is trained; to train it anew, delete it")
        runs = [run for run, is_trained in zip(runs, trained, strict=True) if not is_trained]
    with stopping():
        for alike in _alike(runs):
            _over_one_base(alike, evaluate, outcome)
    if outcome.failures:
        raise together(outcome.failures, "the runs", fix="correct these, and run the same command again")


@dataclass
class _Outcome:
    """What comes of runs.

    Attributes:
        tell: called with the scores of each that is scored; they are not kept, for they hold every row.
        failures: why others could not be trained or scored.
    """

    tell: Callable[[Config, Scores], None]
    failures: list[FlareError] = field(default_factory=list)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """What all ranks refuse alike within this ends with it; what is behind it goes on."""
        try:
            yield
        except FlareError as error:
            if not (error.shared or isinstance(error, NotFiniteError) or world_size() == 1):
                raise  # other ranks go on, and wait there
            self.failures.append(kept(error))


def _joins(run: Run) -> tuple[Any, ...]:
    """What runs must have in common to be trained together."""
    config, cache = run
    train, model = config.train, config.model.model_dump(exclude={"base"})
    words = str(cache.label_tokens) if train.objective == "labels" else ""
    head = train.objective, words, config.adapter.train_head
    sharding = train.whole_model, with_chosen_deepspeed(config).deepspeed  # one that has begun has the name of `auto`
    return model_fingerprint(config.model.base), str(model), *head, *sharding


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, those together that can join; told by rank 0."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(_joins(run), []).append(run)
    for alike in found.values():
        if len(alike) > 1:
            names = ", ".join(config.run_dir for config, _ in alike)
            _say(f"{len(alike)} runs are trained together over one base: {names}")
    return list(found.values())


def _trained(runs: Sequence[Run]) -> list[bool]:
    """Of which runs nothing is left to train; a collective."""
    return on_rank_zero(lambda: [RunDirectory(config.run_dir).trained for config, _ in runs])


def _over_one_base(runs: Sequence[Run], evaluate: bool, outcome: _Outcome) -> None:
    """Train those that are not trained, score all, in groups that fit; last, one by one, what asks another model."""
    trained = _trained(runs)
    new = [run for run, is_trained in zip(runs, trained, strict=True) if not is_trained]
    done = [run for run, is_trained in zip(runs, trained, strict=True) if is_trained]
    abreast = [run for run in done if can_say(run[0])]
    abreast = abreast if len(abreast) > 1 else []  # one alone is asked in a model that is open to nothing else
    later = [run for run in done if run not in abreast]
    for part in (new, abreast):
        groups = list[list[Cell]]()
        with outcome.spared():
            groups = _fitting(sorted(_cells(part, outcome), key=lambda cell: cell.config.train.order_seed))
        while groups:
            leave_if_asked()
            with outcome.spared():
                later += _group(groups.pop(0), train=part is new, evaluate=evaluate, outcome=outcome)
            make_room()
    for config, cache in later if evaluate else ():
        leave_if_asked()
        with outcome.spared(), leaving_between_batches():
            outcome.tell(config, evaluate_run(config, cache))
        make_room()


def _cells(runs: Sequence[Run], outcome: _Outcome) -> list[Cell]:
    """Those of some runs that suit their base; each kind of settings among them is checked once."""
    if not runs:
        return []
    shape, cells, suit = agreed(load_shape, runs[0][0].model), list[Cell](), set[Any]()
    for config, cache in runs:
        kind = config.method, str(config.adapter), str(config.mixup), config.sources, config.streams_beside
        with outcome.spared():
            if kind not in suit:
                agreed(check_model, config, shape)
                suit.add(kind)
            cells.append(Cell(config, cache, shape))
    return cells


def _group(cells: list[Cell], *, train: bool, evaluate: bool, outcome: _Outcome) -> list[Run]:
    """Open cells over one base to train and score them; the runs whose scoring asks another model.

    After the last step the best adapters take the place of the last ones in the model at hand, sharded or whole as it
    is. Only where a run that ranked label words in training is to write them is the base opened anew, with its whole
    head.
    """
    if train and len(cells) > 1:
        _cut_alike(cells)
    cells = open_cells(cells, outcome.spared)
    if not cells:
        return []
    if train:
        outcome.failures += train_cells(cells)
    trained = [cell for cell in cells if cell.failure is None]
    able = [cell for cell in trained if can_say(cell.config)] if evaluate else []
    with leaving_between_batches():
        for cell, found in zip(able, score_trained(able), strict=True):
            if isinstance(found, FlareError):
                outcome.failures.append(found)
            else:
                outcome.tell(cell.config, found)
    return [(cell.config, cell.cache) for cell in trained if cell not in able]


def _fitting(cells: list[Cell]) -> list[list[Cell]]:
    """Cells in groups that fit into memory; one that is too large is cut in two, which is told before it is loaded.

    Those that are next to each other stay together, so they come in the order in which they read the same rows.
    """
    if len(cells) < 2:
        return [cells] if cells else []
    first, configs, loads = cells[0], [cell.config for cell in cells], [cell.feed.load for cell in cells]
    whole, _ = holds_whole(first.config, first.shape, first.feed.load)
    size = agreed(joint_memory, configs, first.shape, loads, whole=whole)
    if all(other.fits for other in gather_objects(size)):
        return [cells]
    _say(f"training {len(cells)} runs together {size}; so they are trained in two groups, one after the other")
    middle = (len(cells) + 1) // 2
    return [*_fitting(cells[:middle]), *_fitting(cells[middle:])]


def _cut_alike(cells: Sequence[Cell]) -> None:
    """Have all cells sort and cut the rows of a step by one length of each, so that the same ones come together."""
    keys = {cell.cache: row_keys(cell.cache) for cell in cells}
    names = reduce(np.union1d, keys.values(), np.array([], np.uint64))
    places = {cache: np.searchsorted(names, own) for cache, own in keys.items()}
    longest = np.zeros(len(names), np.int64)
    for cell in cells:
        np.maximum.at(longest, places[cell.cache], cell.feed.lengths)
    for cell in cells:
        cell.feed.cut_by = longest[places[cell.cache]]


def _say(what: str) -> None:
    if rank() == 0:
        print(what, file=sys.stderr, flush=True)
