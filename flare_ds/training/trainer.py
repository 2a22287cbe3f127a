"""Training one run: the same steps on every rank, validation, the best adapter kept, resumable at every save.

for step:  rows of the step (seeded, the same for any world size)
-> this rank's micro-batches -> forward, loss, backward each -> one clipped optimizer step
every validate_every: score the validation rows, keep the adapter if it is the best
every save_every: write the trainer state
"""

import hashlib
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.adapters.card import write_card
from flare_ds.adapters.files import save_adapter
from flare_ds.config import Config
from flare_ds.data.batching import MicroBatch, split_step
from flare_ds.data.cache import Cache
from flare_ds.data.collate import collate
from flare_ds.evaluation.batches import streams_of
from flare_ds.evaluation.scores import Scores
from flare_ds.evaluation.split import score_split
from flare_ds.exceptions import ConfigError
from flare_ds.files import write_json
from flare_ds.models.loading import load_shape
from flare_ds.training.engine import RunningModel, count_trainable, open_model
from flare_ds.training.loss import for_deepspeed, loss_sum
from flare_ds.training.memory import check_memory
from flare_ds.training.order import number_of_steps, open_order, padded_tokens
from flare_ds.training.process_group import barrier, device, gather_objects, join_process_group, rank, world_size
from flare_ds.training.rank_zero import on_rank_zero
from flare_ds.training.records import Records
from flare_ds.training.schedule import learning_rate
from flare_ds.training.state import Progress, adapter_tensors, load_state, restore_optimizer, save_state
from flare_ds.training.states import prepare_states


class Trainer:
    """Trains the adapter of one run directory, from the start or from its last saved state.

    Args:
        config: the run's settings; `config.method` must train something.
        cache: the run's token cache.

    Raises:
        ConfigError: the method trains nothing, a row is larger than a step, or the model cannot be built.
        CheckpointError: a saved state belongs to other data or settings.
        HostError: a micro-batch does not fit into memory.
        FlareError: see `prepare_states`.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        if config.method == "zero_shot":
            raise ConfigError("method=zero_shot trains nothing", fix="use `evaluate`, or method=lora or flare")
        join_process_group()
        self.config, self.cache = config, cache
        self.split = cache.split("train")
        self.streams = streams_of(config)
        self.run_dir = Path(config.run_dir)
        self.state_path = self.run_dir / "state" / "state.safetensors"
        self.order = open_order(config, cache)
        self.steps = number_of_steps(config.train, self.order)
        self.lengths = padded_tokens(config, self.split)
        self.answer_lengths = self.split.lengths("target") - self.split.prompt_lengths("target")
        shape = load_shape(config.model)
        check_memory(config, shape, row_tokens=int(self.lengths.max()), streams=len(self.streams))
        self.progress = Progress(fingerprint=fingerprint(config, cache))
        self.states = prepare_states(config, cache)
        self.stored = None if self.states is None else self.states.split("train")
        self.running = self._open(shape)

    def _open(self, shape: PreTrainedModel) -> RunningModel:
        saved = load_state(self.state_path, self.progress.fingerprint) if self.state_path.exists() else None
        if saved is None:
            return open_model(
                self.config,
                shape=shape,
                label_tokens=self.cache.label_tokens,
                labels=tuple(self.cache.labels),
            )
        self.progress, tensors = saved
        running = open_model(
            self.config,
            shape=shape,
            label_tokens=self.cache.label_tokens,
            labels=tuple(self.cache.labels),
            adapter=lambda parameters: {name: tensors[f"adapter/{name}"] for name in parameters},
        )
        restore_optimizer(running, tensors, self.progress.step)
        return running

    def train(self) -> None:
        """Run the remaining steps and write `training.json`."""
        train = self.config.train
        self.trained_parameters = count_trainable(self.running.model)
        first = self.progress.step
        self.records = Records(self.run_dir, first_step=first, steps=self.steps, enabled=rank() == 0)
        if rank() == 0 and first:
            tqdm.write(f"continuing {self.run_dir} after step {first}")
        for step in range(first, self.steps):
            self._timed_step(step)
            done = step + 1
            if done % train.validate_every == 0 or done == self.steps:
                self._validate()
            if done % train.save_every == 0 or done == self.steps:
                save_state(self.state_path, self.running, self.progress)
        self.records.close()
        if rank() == 0:
            write_json(self.run_dir / "training.json", self._summary())
        barrier()

    def _timed_step(self, step: int) -> None:
        start = time.perf_counter()
        values = self._step(step)
        seconds = time.perf_counter() - start
        self.progress.step = step + 1
        self.progress.seconds += seconds
        self.records.step(step + 1, **values, step_seconds=seconds)

    def _step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns what is recorded of it."""
        train, engine = self.config.train, self.running.engine
        rows = self.order.rows(step)
        micro_batches = self._micro_batches(rows)
        rate = learning_rate(step, train, steps=self.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((train.seed, step, rank())) % 2**63)  # dropout of this step, whatever came before
        engine.train()
        targets, total = self._targets(rows), 0.0
        for place, micro_batch in enumerate(micro_batches, start=1):
            engine.set_gradient_accumulation_boundary(place == len(micro_batches))
            total += self._micro_step(micro_batch, targets)
        return {
            "loss": sum(gather_objects(total)) / targets,
            "learning_rate": rate,
            "grad_norm": float(engine.get_global_grad_norm()),
            "tokens": int(self.split.prompt_lengths("target")[rows].sum()),
        }

    def _micro_batches(self, rows: np.ndarray) -> list[MicroBatch]:
        """This rank's share of a step; all ranks have equally many."""
        return split_step(
            rows,
            self.lengths,
            world_size=world_size(),
            micro_batch_size=self.config.train.micro_batch_size,
            micro_batch_tokens=self.config.train.micro_batch_tokens,
        )[rank()]

    def _micro_step(self, micro_batch: MicroBatch, step_targets: int) -> float:
        """Forward, loss, backward of one micro-batch; at the boundary the engine steps. Returns the loss sum."""
        engine = self.running.engine
        batch = collate(
            self.split,
            micro_batch,
            streams=self.streams,
            objective=self.config.train.objective,
            pad_id=self.cache.pad_id,
            source_answers=self.config.adapter.span == "full",
            stored=self.stored,
        ).to(device())
        loss = loss_sum(engine(batch), batch.answers_BN, batch.weights_B)
        engine.backward(for_deepspeed(loss, step_targets=step_targets, world_size=world_size()))
        engine.step()
        return loss.item()

    def _targets(self, rows: np.ndarray) -> int:
        """What the loss is the mean over: rows, or answer tokens; known to every rank without asking."""
        if self.config.train.objective == "labels":
            return len(rows)
        return int(self.answer_lengths[rows].sum())

    def _validate(self) -> None:
        streams = self.running.model.streams
        assert streams is not None, "a model that trains has an adapter"
        with streams.measuring() as energies:
            scores = score_split(self.running, self.cache, "validation", self.config, states=self.states)
        self.records.validation(self.progress.step, score=scores.score, figures=scores.figures)
        self.records.fusion(self.progress.step, source_shares(gather_objects(energies)))
        if scores.standing > self.progress.best_standing:
            self.progress.best_standing, self.progress.best_step = scores.standing, self.progress.step
            tensors = adapter_tensors(self.running)
            on_rank_zero(lambda: self._keep(tensors, scores))

    def _keep(self, tensors: dict[str, torch.Tensor], scores: Scores) -> None:
        """Write the adapter, and the card beside it."""
        directory = self.run_dir / "adapter"
        save_adapter(
            directory,
            tensors,
            self.running.model.peft_model,
            self.config,
            label_ids={word: ids[0] for word, ids in zip(self.cache.labels, self.cache.label_tokens, strict=True)},
            validation={"step": self.progress.step, **scores.figures},
        )
        write_card(directory, self.config)

    def _summary(self) -> dict[str, float | int]:
        lines = [json.loads(line) for line in (self.run_dir / "train_log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "step_seconds" in line]
        median = statistics.median(line["step_seconds"] for line in steps)
        return {
            "steps": self.progress.step,
            "trained_parameters": self.trained_parameters,
            "median_step_seconds": median,
            "tokens_per_second": sum(line["tokens"] for line in steps) / sum(line["step_seconds"] for line in steps),
            "best_step": self.progress.best_step,
            "best_validation_score": self.progress.best_standing[0],
            "train_seconds": self.progress.seconds,
            "world_size": world_size(),
        }


def source_shares(energies: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """How much of each fused layer's update is due to the source: |B·(φ(S,T) - φ(0,T))| / |B·φ(S,T)|.

    Args:
        energies: of each rank, see `LockstepStreams.measuring`.
    """
    totals = {name: torch.stack([part[name] for part in energies]).sum(0).tolist() for name in energies[0]}
    return {name: math.sqrt(source / whole) if whole > 0 else 0.0 for name, (source, whole) in totals.items()}


def fingerprint(config: Config, cache: Cache) -> str:
    """What must not change between the parts of one run: data, model, adapter, optimisation."""
    parts = config.model_dump(mode="json", include={"method", "model", "source", "adapter", "train"})
    del parts["source"]["max_store_gb"]  # how much disk there is
    return hashlib.sha256(json.dumps([cache.key, parts], sort_keys=True).encode()).hexdigest()
