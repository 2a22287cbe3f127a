"""One rank that trains runs twice, with the whole base and sharded, and goes on with each other's saved states.

Run as `python -m tests.training.whole_worker OUT CONFIG ...`; rank 0 writes what each run gave, and beside each config
the trained matrices of both.
"""

import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from flare_ds.config import Config, TrainConfig
from flare_ds.data.cache import Cache
from flare_ds.runtime.engine import KINDS, make_room, trainable_parameters
from flare_ds.runtime.optimizer import Learner
from flare_ds.runtime.process_group import barrier, rank, world_size
from flare_ds.runtime.whole import WholeEngine
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.state import save_state
from tests.training.alone import Trainer

STEPS, SAVED = 20, 14
TRAIN = TrainConfig(steps=1, learning_rate=0.01, weight_decay=0.1)


def opened(config: Config, cache: Cache, *, whole: bool, state: Path | None = None) -> Trainer:
    """A trainer in a directory of its own, from the start or from a copy of a state."""
    train = config.train.model_copy(update={"whole_model": whole})
    run_dir = Path(config.run_dir) / f"{'whole' if whole else 'sharded'}-{'fresh' if state is None else state.stem}"
    config = config.model_copy(update={"run_dir": str(run_dir), "train": train})
    if state is not None and rank() == 0:
        (run_dir / "state").mkdir(parents=True)
        shutil.copy(state, run_dir / "state/state.safetensors")
    barrier()
    trainer = Trainer(config, cache)
    assert trainer.engine.name == ("whole" if whole else "zero3")
    return trainer


def straight(config: Config, cache: Cache, saved: Path, *, whole: bool) -> dict[str, Any]:
    """All steps, the state kept on the way."""
    trainer = opened(config, cache, whole=whole)
    steps = []
    for number in range(STEPS):
        steps.append(trainer.step(number))
        if number + 1 == SAVED:
            trainer.progress.step = SAVED
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                tensors = {kind: trainer.engine.tensors(kind) for kind in KINDS}
            assert all(bool(found) == (rank() == 0) for found in tensors.values())
            save_state(saved, trainer.engine, trainer.progress)
    matrices = trainer.engine.tensors("adapter")
    if rank() == 0:
        save_file(matrices, saved.with_suffix(".trained"))
    return {
        **{name: [step[name] for step in steps] for name in ("loss", "grad_norm", "tokens", "flops")},
        "gathers_of_a_save": sum(event.name == "gloo:gather" for event in watched.events() or []),
        "collectives_of_a_save": sum(event.name.startswith("gloo:") for event in watched.events() or []),
        "waits_of_a_micro_step": waits(trainer) if whole else None,
        "collectives_of_a_step": collectives(trainer) if whole else None,
    }


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a device, or copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            outside = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            self.found.append(f"{outside[-1].filename}:{outside[-1].lineno} {function}")
        return function(*args, **(kwargs or {}))


def waits(trainer: Trainer) -> list[str]:
    (portion, *_) = list(trainer.feed.portions(0))
    with Waits() as watched:
        trainer.engine.accumulate(portion.batch, targets=[1], last=False)
    return watched.found


def collectives(trainer: Trainer) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        trainer.step(0)
    return sorted({event.name for event in watched.events() or [] if event.name.startswith("gloo:")})


def continued(config: Config, cache: Cache, state: Path, *, whole: bool) -> list[float]:
    """The steps behind a saved state, which is what the engine then holds, bit for bit."""
    trainer = opened(config, cache, whole=whole, state=state)
    for kind in KINDS:
        found = trainer.engine.tensors(kind)
        if rank() == 0:
            saved = load_file(state)
            assert found and all(torch.equal(found[name], saved[f"{kind}/{name}"]) for name in found), kind
    return [trainer.step(number)["loss"] for number in range(SAVED, STEPS)]


def run(config: Config) -> dict[str, Any]:
    cache, found = open_run(config, train=True), {}
    states = {name: Path(config.run_dir) / f"of-{name}.safetensors" for name in ("whole", "sharded")}
    for name, state in states.items():
        found[name] = straight(config, cache, state, whole=name == "whole")
        make_room()
    if config.method == "lora":
        for begun, then in (("whole", "whole"), ("sharded", "whole"), ("whole", "sharded")):
            found[f"{begun}-{then}"] = continued(config, cache, states[begun], whole=then == "whole")
            make_room()
    return found


class Branching(nn.Module):
    """Reaches one matrix always, one for some rows, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, batch: tuple[Tensor, bool], *, with_loss: bool) -> Tensor:
        x, reached = batch
        return ((x * self.always).sum() - 1) ** 2 + ((x * self.sometimes).sum() if reached else 0)


BATCHES = [[([1.0, 2, 3], True), ([3.0, 1, 0], False)], [([0.5, 1, 1], False), ([1.0, 1, 1], False)]]
"""By rank and micro-batch: no last micro-batch reaches the second matrix."""


def branching(model: Branching) -> dict[str, list[float]]:
    """A step that one rank alone spoils, which is as if it had not been; then three on this rank's micro-batches."""
    engine = WholeEngine(model, [Learner(TRAIN, trainable_parameters(model))])  # type: ignore[arg-type]
    portions = [(torch.tensor(x), reached) for x, reached in BATCHES[rank()]]
    spoilt = torch.full((3,), torch.nan if rank() == world_size() - 1 else 1.0), True
    engine.accumulate(spoilt, targets=[2], last=True)  # type: ignore[arg-type]
    assert engine.step({0: TRAIN.learning_rate}) == {0: None}
    for _ in range(3):
        for place, portion in enumerate(portions, start=1):
            engine.accumulate(portion, targets=[4], last=place == len(portions))  # type: ignore[arg-type]
        assert engine.step({0: TRAIN.learning_rate})[0] is not None
    return {name: parameter.tolist() for name, parameter in model.named_parameters()}


def main(out: str, *paths: str) -> None:
    found = {}
    for path in paths:
        config = load_config(path)
        found[Path(config.run_dir).name] = run(config)
    found["branching"] = branching(Branching())
    if rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
