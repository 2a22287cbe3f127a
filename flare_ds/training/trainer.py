"""Training one run: the same steps on every rank, validation, the best adapter kept, resumable at every save.

for step:  rows of the step (seeded, the same for any world size)
-> this rank's micro-batches -> forward, loss, backward each -> one clipped optimizer step
every validate_every: score the validation rows, keep the adapter if it is the best; after `patience` without: stop
every save_every steps, every save_seconds, and when asked to stop by a signal: write the trainer state
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.exceptions import ToBeContinued
from flare_ds.models.loading import load_shape
from flare_ds.runtime.engine import Engine, check_model
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.opening import open_engine, trains_whole
from flare_ds.runtime.process_group import gather_objects, rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.states import prepare_states
from flare_ds.runtime.watchdog import pace
from flare_ds.training.begin import begin_run
from flare_ds.training.feed import Feed
from flare_ds.training.records import Records
from flare_ds.training.schedule import learning_rate
from flare_ds.training.signals import StopRequest
from flare_ds.training.skipped import count_step, refuse_to_go_on, refuse_untrained, said_of_skipped
from flare_ds.training.state import Progress, fingerprint, load_state, moments, save_state, saved_adapter, state_path
from flare_ds.training.summary import write_summary
from flare_ds.training.tally import Tally
from flare_ds.training.validation import Validation


class Trainer:
    """Trains the adapter of one run directory, from the start or from its last saved state.

    Args:
        config: the run's settings; `config.method` must train something.
        cache: the run's token cache.

    Raises:
        ConfigError: a row is larger than a step, or the model cannot be built.
        CheckpointError: a saved state belongs to other data or settings.
        HostError: a micro-batch does not fit into memory.
        FlareError: see `prepare_states`.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        assert config.recipe.trains, "open_run has refused it"
        join_if_launched()
        self.config, self.cache = config, cache
        self.run_dir, self.state_path = Path(config.run_dir), state_path(config)
        shape = agreed(partial(load_shape, config.model))
        agreed(partial(check_model, config, shape))  # before anything is counted on it
        self.feed = Feed(config, cache, shape)
        self.steps = self.feed.steps
        whole = trains_whole(config, shape, self.feed.load)
        self.progress = Progress(fingerprint=on_rank_zero(partial(fingerprint, config, cache)))
        self.states = prepare_states(config, cache)
        self.feed.stored = None if self.states is None else self.states.split("train")
        self.engine = self._open(shape, whole)
        self.saved_at, self.stop = time.monotonic(), StopRequest()

    def _open(self, shape: PreTrainedModel, whole: bool) -> Engine:
        there = on_rank_zero(self.state_path.exists)
        saved = agreed(partial(load_state, self.state_path, self.progress.fingerprint)) if there else None
        if saved is not None:
            self.progress, tensors = saved
        engine = open_engine(
            self.config,
            shape=shape,
            label_tokens=self.cache.label_tokens,
            whole=whole,
            adapter=None if saved is None else lambda names: saved_adapter(self.state_path, tensors, names),
        )
        if saved is not None:
            engine.restore(moments(tensors), self.progress.step - self.progress.skipped)
        return engine

    def train(self) -> None:
        """Run the remaining steps and write `training.json`.

        Raises:
            NotFiniteError: three steps in a row had no finite loss or gradient; or see `refuse_untrained` and
                `Validation.before_training`.
        """
        train = self.config.train
        on_rank_zero(partial(begin_run, self.config, self.cache))
        first = self.progress.step
        self.records = Records(self.config, first_step=first, steps=self.steps, enabled=rank() == 0)
        if rank() == 0 and not self._ended():
            (self.run_dir / "training.json").unlink(missing_ok=True)  # of an earlier training, whose state is gone
        if rank() == 0 and first:
            tqdm.write(f"continuing {self.run_dir} after step {first}")
        validation = Validation(
            self.config, self.cache, self.states, engine=self.engine, progress=self.progress, records=self.records
        )
        with self.stop, pace("training") as beat:
            if not first:
                validation.before_training()
            while not self._ended():
                wishes = self._timed_step(self.progress.step)
                done = self.progress.step
                if done % train.validate_every == 0 or done == self.steps:
                    validation.after_step()
                if done % train.save_every == 0 or self._ended() or any(wishes.values()):
                    save_state(self.state_path, self.engine, self.progress)
                    self.saved_at = time.monotonic()
                if wishes["stop"] and not self._ended():
                    self._stop()
                beat()
        self.records.close()
        on_rank_zero(partial(refuse_untrained, self.progress))
        summary, log = self.run_dir / "training.json", self.run_dir / "train_log.jsonl"
        on_rank_zero(partial(write_summary, summary, log, self.progress, self.engine, steps=self.steps))

    def _ended(self) -> bool:
        """Whether all steps are done, or so many validations in a row found nothing better that no more will be."""
        patience = self.config.train.patience
        return self.progress.step == self.steps or (
            patience is not None and self.progress.validations_since >= patience
        )

    def _stop(self) -> None:
        """Leave, as a signal asked any of the ranks to; the state is saved."""
        self.stop.followed()
        self.records.close()
        by = next(name for name in gather_objects(self.stop.signal) if name)
        step, run = self.progress.step, self.run_dir
        raise ToBeContinued(
            f"{by}: stopped after step {step} of {self.steps}; {run} is saved, the same command goes on"
        )

    def _wishes(self) -> dict[str, bool]:
        """What this rank wishes to be done after a step; one is enough, and only rank 0 looks at the clock."""
        seconds = self.config.train.save_seconds
        late = seconds is not None and rank() == 0 and time.monotonic() - self.saved_at >= seconds
        return {"stop": bool(self.stop.signal), "save": late}

    def _timed_step(self, step: int) -> dict[str, float]:
        """One step, recorded; returns what the ranks wish to be done after it."""
        start = time.perf_counter()
        values = self._step(step)
        wishes = {name: values.pop(name) for name in self._wishes()}
        seconds = time.perf_counter() - start
        self.progress.step = step + 1
        self.progress.seconds += seconds
        self.records.step(step + 1, **values, step_seconds=seconds)
        skipped = values.get("skipped_rows")
        count_step(self.progress, applied=skipped is None)
        if skipped is not None:
            said = said_of_skipped(step + 1, skipped, of_loss=not math.isfinite(values["loss"]))
            self.records.say(said)
            on_rank_zero(partial(refuse_to_go_on, self.progress, said))
        return wishes

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; returns what is recorded of it.

        Where it could not be applied, `skipped_rows` are the ids of the rows it may be due to: those of the
        micro-batches whose loss is not finite, or all of the step's.
        """
        train, targets = self.config.train, self.feed.targets(step)
        rate = learning_rate(step, train, steps=self.steps)
        torch.manual_seed(hash((train.seed, step, rank())) % 2**63)  # dropout of this step, whatever came before
        self.engine.root.train()
        tally = Tally()
        for portion in self.feed.portions(step, self.engine.device):
            tally.add(portion, self.engine.accumulate(portion.batch, targets=targets, last=portion.last))
        tally.over_ranks(self._wishes())
        norm = self.engine.step(rate)
        values: dict[str, Any] = tally.read()
        rows = self.feed.rows(step)
        values |= {"loss": values["loss"] / targets, "learning_rate": rate, "grad_norm": norm, "examples": len(rows)}
        if norm is not None:
            return values
        found = tally.suspects() or rows.tolist()
        return {**values, "skipped_rows": [self.cache.split("train").ids(row) for row in found]}
