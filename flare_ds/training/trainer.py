"""Training one run: the same steps on every rank, validation, the best adapter kept, resumable at every save.

for step:  rows of the step (seeded, the same for any world size)
-> this rank's micro-batches -> forward, loss, backward each -> one clipped optimizer step
every validate_every: score the validation rows, keep the adapter if it is the best; after `patience` without: stop
every save_every steps, every save_seconds, and when asked to stop by a signal: write the trainer state
"""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.batches.batching import MicroBatch, split_step
from flare_ds.batches.collate import collate
from flare_ds.batches.plan import number_of_steps, open_order, padded_tokens
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.streams import streams_of
from flare_ds.checksums import json_sha256
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation.split import generates
from flare_ds.exceptions import ToBeContinued
from flare_ds.files import write_json
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_shape
from flare_ds.models.loss import for_deepspeed
from flare_ds.runs.changes import deciding
from flare_ds.runtime.costs import Costs
from flare_ds.runtime.engine import RunningModel, count_trainable
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.memory import check_memory
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.process_group import device, gather_objects, rank, world_size
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.states import prepare_states
from flare_ds.runtime.watchdog import pace
from flare_ds.training.begin import begin_run
from flare_ds.training.records import Records
from flare_ds.training.schedule import learning_rate
from flare_ds.training.signals import StopRequest
from flare_ds.training.skipped import count_step, refuse_to_go_on, refuse_untrained, said_of_skipped
from flare_ds.training.state import (
    Progress,
    load_state,
    read_progress,
    restore_optimizer,
    save_state,
    saved_adapter,
    state_path,
)
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
        join_process_group()
        self.config, self.cache = config, cache
        self.split = rows_read(cache.split("train"), config, cache.manifest)
        self.streams = streams_of(config)
        self.run_dir = Path(config.run_dir)
        self.state_path = state_path(config)
        self.order = agreed(partial(open_order, config, cache))
        self.steps = agreed(partial(number_of_steps, config.train, self.order))
        self.trie = LabelTrie(cache.label_tokens)
        self.lengths = padded_tokens(config, self.split, behind=self.trie.depth)
        self.answer_lengths = self.split.lengths("target") - self.split.prompt_lengths("target")
        shape = agreed(partial(load_shape, config.model))
        self.costs = Costs(config, shape, labels=len(self.trie.tokens))
        row_tokens = int(self.lengths.max())
        agreed(partial(check_memory, config, shape, row_tokens=row_tokens, streams=len(self.streams)))
        self.progress = Progress(fingerprint=on_rank_zero(partial(fingerprint, config, cache)))
        self.states = prepare_states(config, cache)
        self.stored = None if self.states is None else self.states.split("train")
        self.running = self._open(shape)
        self.saved_at, self.stop = time.monotonic(), StopRequest()

    def _open(self, shape: PreTrainedModel) -> RunningModel:
        there = on_rank_zero(self.state_path.exists)
        saved = agreed(partial(load_state, self.state_path, self.progress.fingerprint)) if there else None
        if saved is not None:
            self.progress, tensors = saved
        running = open_model(
            self.config,
            shape=shape,
            label_tokens=self.cache.label_tokens,
            adapter=None if saved is None else lambda names: saved_adapter(self.state_path, tensors, names),
        )
        if saved is not None:
            restore_optimizer(running, tensors, self.progress.step - self.progress.skipped)
        return running

    def train(self) -> None:
        """Run the remaining steps and write `training.json`.

        Raises:
            NotFiniteError: three steps in a row had no finite loss or gradient; or see `refuse_untrained` and
                `Validation.before_training`.
        """
        train = self.config.train
        on_rank_zero(partial(begin_run, self.config, self.cache))
        self.trained_parameters = count_trainable(self.running.model)
        first = self.progress.step
        self.records = Records(self.run_dir, first_step=first, steps=self.steps, enabled=rank() == 0)
        if rank() == 0 and not self._ended():
            (self.run_dir / "training.json").unlink(missing_ok=True)  # of an earlier training, whose state is gone
        if rank() == 0 and first:
            tqdm.write(f"continuing {self.run_dir} after step {first}")
        validation = Validation(
            self.config, self.cache, self.states, running=self.running, progress=self.progress, records=self.records
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
                    save_state(self.state_path, self.running, self.progress)
                    self.saved_at = time.monotonic()
                if wishes["stop"] and not self._ended():
                    self._stop()
                beat()
        self.records.close()
        on_rank_zero(partial(refuse_untrained, self.progress))
        on_rank_zero(lambda: write_json(self.run_dir / "training.json", self._summary()))

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

    def _wishes(self) -> dict[str, float]:
        """What this rank wishes to be done after a step; one is enough, and only rank 0 looks at the clock."""
        seconds = self.config.train.save_seconds
        late = seconds is not None and rank() == 0 and time.monotonic() - self.saved_at >= seconds
        return {"stop": float(bool(self.stop.signal)), "save": float(late)}

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
        train, engine = self.config.train, self.running.engine
        rows = self.order.rows(step)
        micro_batches = self._micro_batches(rows)
        rate = learning_rate(step, train, steps=self.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        torch.manual_seed(hash((train.seed, step, rank())) % 2**63)  # dropout of this step, whatever came before
        engine.train()
        targets, mine, suspects = self._targets(rows), [], []
        for place, micro_batch in enumerate(micro_batches, start=1):
            engine.set_gradient_accumulation_boundary(place == len(micro_batches))
            mine.append(self._micro_step(micro_batch, targets))
            if not math.isfinite(mine[-1]["loss"]):
                suspects += micro_batch.rows[micro_batch.weights > 0].tolist()
        everybody = gather_objects((_added(mine) | self._wishes(), suspects))
        sums = _added([part for part, _ in everybody])
        values = {
            **sums,
            "loss": sums["loss"] / targets,
            "learning_rate": rate,
            "grad_norm": float(engine.get_global_grad_norm()),
            "examples": len(rows),
        }
        if engine.was_step_applied():
            return values
        found = sorted(row for _, part in everybody for row in part) or rows.tolist()
        return {**values, "skipped_rows": [self.cache.split("train").ids(row) for row in found]}

    def _micro_batches(self, rows: np.ndarray) -> list[MicroBatch]:
        """This rank's share of a step; all ranks have equally many."""
        return split_step(
            rows,
            self.lengths,
            world_size=world_size(),
            micro_batch_size=self.config.train.micro_batch_size,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
        )[rank()]

    def _micro_step(self, micro_batch: MicroBatch, step_targets: int) -> dict[str, float]:
        """Forward, loss, backward of one micro-batch; at the boundary the engine steps. Returns loss sum and costs."""
        engine = self.running.engine
        batch = collate(
            self.split,
            micro_batch,
            streams=self.streams,
            objective=self.config.train.objective,
            pad_id=self.cache.pad_id,
            source_answers=self.config.adapter.span == "full",
            source_targets=self.config.recipe.fuses == "mixup",
            stored=self.stored,
            trie=self.trie,
        ).to(device())
        loss = engine(batch, with_loss=True)
        engine.backward(for_deepspeed(loss, step_targets=step_targets, world_size=world_size()))
        engine.step()
        return {"loss": loss.item(), **self.costs.of(batch)}

    def _targets(self, rows: np.ndarray) -> int:
        """What the loss is the mean over: rows, or answer tokens; known to every rank without asking."""
        if self.config.train.objective == "labels":
            return len(rows)
        return int(self.answer_lengths[rows].sum())

    def _summary(self) -> dict[str, float | int | None]:
        lines = [json.loads(line) for line in (self.run_dir / "train_log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "step_seconds" in line and "skipped_rows" not in line]
        costs = ("examples", "tokens", "padded_tokens", "flops", "step_seconds")
        totals = _added([{name: line[name] for name in costs} for line in steps])
        return {
            "steps": self.progress.step,
            "skipped_steps": self.progress.skipped,
            "stopped_early": self.progress.step < self.steps,
            "trained_parameters": self.trained_parameters,
            "examples": totals["examples"],
            "tokens_per_step": totals["tokens"] / len(steps),
            "padded_tokens_per_step": totals["padded_tokens"] / len(steps),
            "flops_per_step": totals["flops"] / len(steps),
            "median_step_seconds": statistics.median(line["step_seconds"] for line in steps),
            "tokens_per_second": totals["tokens"] / totals["step_seconds"],
            "start_validation_score": self.progress.start_score,
            "best_step": self.progress.best_step,
            "best_validation_score": self.progress.best_standing[0],
            "train_seconds": self.progress.seconds,
            "world_size": world_size(),
        }


def _added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def is_trained(config: Config, cache: Cache) -> bool:
    """Whether a run was trained to its end.

    Raises:
        CheckpointError: it was trained with other data or settings.
    """
    state = state_path(config)
    if not (state.exists() and (Path(config.run_dir) / "training.json").exists()):
        return False
    read_progress(state, fingerprint(config, cache))
    return True


def fingerprint(config: Config, cache: Cache) -> str:
    """What must not change between the parts of one run: data, model, adapter, optimisation, how validation decodes.

    The base counts by its contents: it may be moved.
    """
    sections = ["method", "model.", "source.", "adapter.", "mixup.", "train.", *(["generate."] * generates(config))]
    parts = {name: value for name, value in deciding(config).items() if name.startswith(tuple(sections))}
    models = [config.model.base, *([config.source.mt_encoder] if config.reads_mt_encoder else [])]
    return json_sha256([cache.key, [model_fingerprint(str(name)) for name in models], parts])
