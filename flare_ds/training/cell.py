"""One run of a job that trains: its rows, its state, its records and its validations, whoever trains beside it."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore
from flare_ds.exceptions import NotFiniteError, on_every_rank
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import STATE
from flare_ds.runtime.engine import AdapterSource, Engine, RunningModel
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.process_group import rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.states import prepare_states
from flare_ds.training.feed import Feed
from flare_ds.training.records import Records
from flare_ds.training.run import begin_run, warn_of_other_code
from flare_ds.training.skipped import count_step, refuse_to_go_on, refuse_untrained, said_of_skipped
from flare_ds.training.state import Progress, fingerprint, load_state, moments, save_state, saved_adapter
from flare_ds.training.summary import write_summary
from flare_ds.training.validation import Seen, Validation


class Cell:
    """A run directory that is to be trained, from the start or from its last saved state.

    Args:
        config: the run's settings; `config.method` must train something.
        shape: the base on the meta device, for which they were checked.

    Attributes:
        failure: why it can train no more; None: it can.

    Raises:
        ConfigError: a row is larger than a step.
    """

    engine: Engine
    number: int
    states: StateStore | None
    failure: NotFiniteError | None = None
    _saved: dict[str, Tensor] | None = None

    def __init__(self, config: Config, cache: Cache, shape: PreTrainedModel) -> None:
        assert config.recipe.trains, "open_run has refused it"
        join_if_launched()
        self.config, self.cache, self.shape = config, cache, shape
        self.run_dir = Path(config.run_dir)
        self.state_path = self.run_dir / STATE
        self.feed = Feed(config, cache, self.shape)
        self.steps = self.feed.steps
        self.progress = Progress(on_rank_zero(fingerprint, config, cache))

    @property
    def saved_adapter(self) -> AdapterSource | None:
        """What gives the adapter's values in the saved state; None: there is none."""
        if (tensors := self._saved) is None:
            return None
        return lambda parameters: saved_adapter(self.state_path, tensors, parameters)

    @property
    def running(self) -> RunningModel:
        """Its model, to be asked."""
        return self.engine.running(self.number)

    def prepare(self) -> None:
        """Compute the source states that are to be stored, and read the state that training goes on from.

        Raises:
            CheckpointError: that belongs to other data or settings.
            FlareError: see `prepare_states`.
        """
        run = RunDirectory(self.run_dir)
        begun, goes_on = on_rank_zero(lambda: (run.begun, self.state_path.exists() and not run.trained))
        self.states = prepare_states(self.config, self.cache, begun=begun)
        self.feed.stored = None if self.states is None else self.states.split("train")
        if goes_on:
            self.progress, self._saved = agreed(load_state, self.state_path, self.progress.fingerprint)

    def join(self, engine: Engine, number: int) -> None:
        """Be trained by an engine, which was opened with the saved adapter."""
        self.engine, self.number, self.saved_at = engine, number, time.monotonic()
        if self._saved is not None:
            engine.restore(moments(self._saved), self.progress.step - self.progress.skipped, number)
            self._saved = None

    def begin(self) -> None:
        """Write the run's records."""
        assert not on_rank_zero(lambda: RunDirectory(self.run_dir).trained), "its adapter would be lost"
        on_rank_zero(begin_run, self.config, self.cache)
        first = self.progress.step
        self.records = Records(self.config, first_step=first, steps=self.steps, enabled=rank() == 0)
        if rank() == 0 and first:
            tqdm.write(f"continuing {self.run_dir} after step {first}")
            warn_of_other_code(self.run_dir)
        self.validation = Validation(
            self.config,
            self.cache,
            self.states,
            engine=self.engine,
            cell=self.number,
            progress=self.progress,
            records=self.records,
        )

    @property
    def is_new(self) -> bool:
        """Whether it has taken no step, and its adapter is to be scored as it is."""
        return self.progress.step == 0

    def score_start(self, seen: Seen | None) -> None:
        """Score the adapter as it is before the first step; see `Validation.before_training`."""
        self._or_fail(self.validation.before_training, seen)

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or so many validations in a row found nothing better that no more will be."""
        patience = self.config.train.patience
        return self.progress.step == self.steps or (
            patience is not None and self.progress.validations_since >= patience
        )

    @property
    def goes_on(self) -> bool:
        """Whether it takes further steps."""
        return self.failure is None and not self.ended

    @property
    def late(self) -> bool:
        """Whether its last state was saved too long ago."""
        seconds = self.config.train.save_seconds
        return seconds is not None and time.monotonic() - self.saved_at >= seconds

    def after_step(self, values: dict[str, Any], seconds: float) -> None:
        """Record a step just done: what was measured in it, and the seconds that it took."""
        progress = self.progress
        progress.step += 1
        progress.seconds += seconds
        self.records.step(progress.step, **values, step_seconds=seconds)
        skipped = values.get("skipped_rows")
        count_step(progress, applied=skipped is None)
        if skipped is not None:
            said = said_of_skipped(progress.step, skipped, of_loss=not math.isfinite(values["loss"]))
            self.records.say(said)
            self._or_fail(refuse_to_go_on, progress, said)

    @property
    def is_due(self) -> bool:
        """Whether the adapter is to be scored, as it is after the step just done."""
        step = self.progress.step
        return self.failure is None and (step % self.config.train.validate_every == 0 or step == self.steps)

    def look_back(self, seen: Seen | None, *, save: bool) -> None:
        """Validate and save where it is time.

        Args:
            seen: see `Validation.after_step`.
            save: whether the state is to be saved in any case.
        """
        train, progress = self.config.train, self.progress
        if self.failure is not None:
            return
        if self.is_due:
            self.validation.after_step(seen)
        # A new best adapter is on disk: a resume from before it might never meet it again.
        if progress.step % train.save_every == 0 or progress.best_step == progress.step or self.ended or save:
            save_state(self.state_path, self.engine, progress, self.number)
            self.saved_at = time.monotonic()

    def finish(self) -> None:
        """Write `training.json` of a run that has ended, unless there is nothing to show."""
        self.records.close()
        if self.failure is None:
            self._or_fail(refuse_untrained, self.progress)
        if self.failure is None:
            trained, made_by = self.engine.learners[self.number].parameters.values(), self.engine.name
            on_rank_zero(write_summary, self.run_dir, self.progress, trained=trained, engine=made_by, steps=self.steps)

    def _or_fail(self, asked: Callable[..., object], *about: object) -> None:
        """Keep, on every rank alike, why the run cannot go on; those beside it do."""
        try:
            asked(*about)
        except NotFiniteError as error:
            self.failure = on_every_rank(NotFiniteError(f"{self.run_dir}: {error.problem}", fix=error.fix))
