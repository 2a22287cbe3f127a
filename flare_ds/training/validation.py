"""Validation while a run trains: the same rows scored each time, the best adapter kept."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import save_adapter, saved_figures
from flare_ds.batches.first_rows import FirstRows
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore
from flare_ds.evaluation.abreast import ranked_abreast
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.finite import listed, refuse_not_finite
from flare_ds.evaluation.ranked import Ranked
from flare_ds.evaluation.scores import Scores
from flare_ds.evaluation.split import score_split
from flare_ds.exceptions import CheckpointError
from flare_ds.runtime.engine import Engine
from flare_ds.runtime.process_group import gather_objects
from flare_ds.runtime.rank_zero import on_rank_zero
from flare_ds.tasks.load import task_of
from flare_ds.training.records import Records
from flare_ds.training.state import Progress


def validate(run: Asked, *, ranked: Ranked | None = None) -> Scores:
    """Score the first `train.validate_rows` of the validation split; a collective.

    Args:
        run: the model, and what it reads.
        ranked: what the rows were found to say when several cells read them together; None: they are read now.
    """
    return score_split(replace(run, cache=first_rows(run.cache, run.config)), "validation", ranked=ranked)


def first_rows(cache: Cache, config: Config) -> FirstRows:
    """The rows that are seen while a run trains."""
    return FirstRows(cache.path, cache.manifest, config.train.validate_rows)


@dataclass(frozen=True)
class Seen:
    """What a forward with other cells has told of a cell's validation rows.

    Attributes:
        ranked: their label words.
        energies: what the source contributed, on this rank.
    """

    ranked: Ranked
    energies: dict[str, Tensor]


def see_abreast(validations: "Sequence[Validation]", *, untrained: bool = False) -> list[Seen | None]:
    """Have cells that are to be validated read their rows together, where they can; see `ranked_abreast`."""
    asked = [Asked(one.running, first_rows(one.cache, one.config), one.config, one.states) for one in validations]
    with ExitStack() as stack:
        energies = [stack.enter_context(one.running.model.streams.measuring()) for one in validations]
        ranked = ranked_abreast(asked, "validation", untrained=untrained)
    return [None if one is None else Seen(one, found) for one, found in zip(ranked, energies, strict=True)]


class Validation:
    """The validations of a run that an engine trains; its progress and its records are told what is found."""

    def __init__(
        self,
        config: Config,
        cache: Cache,
        states: StateStore | None,
        *,
        engine: Engine,
        cell: int,
        progress: Progress,
        records: Records,
    ) -> None:
        self.config, self.cache, self.states = config, cache, states
        self.engine, self.cell, self.running = engine, cell, engine.running(cell)
        self.progress, self.records = progress, records
        self._task = task_of(config.task)  # its file may change while the run trains
        self._on_disk = on_rank_zero(_kept_step, self._directory)

    @property
    def _directory(self) -> Path:
        return Path(self.config.run_dir) / "adapter"

    def before_training(self, seen: Seen | None) -> None:
        """Score the adapter that changes nothing yet; it is never the best; for `seen` see `after_step`.

        Raises:
            NotFiniteError: the base cannot even score these rows, so no validation could.
        """
        scores = self._scores(seen)
        on_rank_zero(refuse_not_finite, scores.not_finite, "validation rows, before the first step")
        self.progress.start_score = scores.score

    def after_step(self, seen: Seen | None) -> None:
        """Score the adapter as it is now, and keep it if its scores are finite and the best so far.

        A job may end when an adapter is written and the state that names it is not. The step is done again then, and
        its adapter kept however it scores now: the one that the state names is gone.

        Args:
            seen: what the rows were found to say when several cells read them together; None: they are read now.
        """
        streams, progress = self.running.model.streams, self.progress
        with streams.measuring() as energies:
            scores = self._scores(seen)
        energies = energies if seen is None else seen.energies
        self.records.fusion(progress.step, source_shares(gather_objects(energies)))
        progress.validations_since += 1
        best_is_gone = progress.best_step < self._on_disk <= progress.step
        if not scores.not_finite and (best_is_gone or scores.standing > progress.best_standing):
            self._on_disk = progress.step
            progress.best_standing, progress.best_step, progress.validations_since = scores.standing, progress.step, 0
            tensors = self.engine.tensors("adapter", self.cell)
            on_rank_zero(lambda: self._keep(tensors, scores))

    def _scores(self, seen: Seen | None) -> Scores:
        ranked = None if seen is None else seen.ranked
        scores = validate(Asked(self.running, self.cache, self.config, self.states), ranked=ranked)
        self.records.validation(self.progress.step, score=scores.score, figures=scores.figures)
        if scores.not_finite:
            self.records.say(f"step {self.progress.step}: the scores of {listed(scores.not_finite)} are not finite")
        return scores

    def _keep(self, tensors: dict[str, Tensor], scores: Scores) -> None:
        """Write the adapter, and the card beside it."""
        save_adapter(
            self._directory,
            tensors,
            self.running.model.peft_model,
            self.config,
            label_tokens=dict(zip(self.cache.labels, self.cache.label_tokens, strict=True)),
            validation={"step": self.progress.step, **scores.figures},
            adapter=self.running.model.adapter,
        )
        write_card(self._directory, self.config, self._task)


def _kept_step(directory: Path) -> int:
    """The step whose validation the adapter on disk was kept for; -1: there is none that tells."""
    try:
        return int(saved_figures(directory).get("step", -1))
    except CheckpointError:
        return -1


def source_shares(energies: list[dict[str, Tensor]]) -> dict[str, float]:
    """How much of each fused layer's update is due to the source: |B·(φ(S,T) - φ(0,T))| / |B·φ(S,T)|.

    Args:
        energies: of each rank, see `LockstepStreams.measuring`.
    """
    totals = {name: torch.stack([part[name] for part in energies]).sum(0).tolist() for name in energies[0]}
    return {name: math.sqrt(source / whole) if whole > 0 else 0.0 for name, (source, whole) in totals.items()}
