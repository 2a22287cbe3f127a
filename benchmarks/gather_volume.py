"""Elements that DeepSpeed all-gathers in a training step, over the elements of the model; prints JSON.

    python benchmarks/gather_volume.py [--layers 8] [--width 256]

On two real ranks (on CPUs unless DS_ACCELERATOR=cuda) and a small random Llama, for the lockstep step, the same with
gradient checkpointing, the same with a validation before each measured step, and two forwards. Steps 1 and 2 record
DeepSpeed's parameter trace; steps 3 to 5 are measured. `invalidations` counts the message that a trace was invalidated
in those, with log_trace_cache_warnings on. `gathers_a_step` holds one for each adapter matrix, which DeepSpeed gathers
again after the optimizer's step.

A validation reads batches without a gradient while the source's share is measured. What it gathers itself is not
counted, its invalidations are.

The elements of the model are those of the base but for the input embedding, whose rows are read from the base's file
and never gathered (flare_ds/models/embedding.py); the output matrix counts, and is gathered as in any model.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from two_forwards import TwoForwards
from workload import REPOSITORY, make_batch, make_config, run_ranks, write_model

from flare_ds.models.loading import load_shape
from flare_ds.models.loss import loss_sum
from flare_ds.models.partitioned import full_numel
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import Engine
from flare_ds.runtime.gathers import gathers
from flare_ds.runtime.opening import open_engine
from flare_ds.runtime.process_group import rank

FIRST, LAST = 3, 5  # measured steps
VARIANTS = ("lockstep", "lockstep_checkpointing", "lockstep_validating", "two_forwards")
VALIDATION_BATCHES = 3
VOCABULARY, ROWS, LENGTH = 512, 2, 16
DEEPSPEED = "trace_warnings.json"  # beside the model


def write_deepspeed_config(directory: Path) -> None:
    """Write the shipped JSON with the trace's warnings on, before any rank reads it."""
    settings = json.loads((REPOSITORY / "ds_configs/zero3_fp32_cpu.json").read_text())
    settings["zero_optimization"]["log_trace_cache_warnings"] = True
    (directory / DEEPSPEED).write_text(json.dumps(settings))


def measure(variant: str, model: Path) -> dict[str, Any]:
    """Train a few steps and count the last ones."""
    unset_hf_deepspeed_config()  # of the variant before
    config = make_config(
        model,
        method="flare",
        batch=ROWS,
        deepspeed=model / DEEPSPEED,
        gradient_checkpointing=variant == "lockstep_checkpointing",
    )
    running = open_engine([config], shape=load_shape(config.model), label_tokens=[], whole=False)
    fused = running.model
    assert isinstance(fused, TwoStreamModel), "one run alone"
    forward = TwoForwards(fused) if variant == "two_forwards" else lambda root, batch: root(batch)
    elements = sum(full_numel(parameter) for parameter in fused.parameters() if not parameter.requires_grad)
    counts, losses, gathered, calls = gathers(), list[float](), 0, 0
    for step in range(1, LAST + 1):
        if step == FIRST:
            gathered = calls = 0
            warnings = io.StringIO()
        with contextlib.redirect_stdout(warnings if step >= FIRST else sys.stderr):
            if variant == "lockstep_validating" and step >= FIRST:
                validate(running)
            before = counts["gathered_elements"], counts["gathers"]
            losses.append(train_step(running, forward))
        gathered += counts["gathered_elements"] - before[0]
        calls += counts["gathers"] - before[1]
    steps = LAST - FIRST + 1
    return {
        "elements_gathered_a_step": gathered / steps,
        "gathers_a_step": calls / steps,
        "elements_of_the_model": elements,
        "ratio": gathered / steps / elements,
        "invalidations": warnings.getvalue().count("Invalidate trace cache"),
        "losses": losses,
    }


def validate(running: Engine) -> None:
    """Read some batches while the source's share is measured, as a validation does."""
    running.root.eval()
    with torch.no_grad(), running.running(0).model.streams.measuring():
        for _ in range(VALIDATION_BATCHES):
            running.root(make_batch(VOCABULARY, rows=ROWS, length=LENGTH).to(running.device))


def train_step(running: Engine, forward: Callable[..., Any]) -> float:
    """One optimizer step; returns the loss."""
    batch, root = make_batch(VOCABULARY, rows=ROWS, length=LENGTH).to(running.device), running.root
    root.train()
    loss = loss_sum(forward(root, batch), batch.answers_BN, batch.weights_B)
    assert isinstance(root, DeepSpeedEngine), "the ranks share the base"
    root.backward(loss)
    root.step()
    return loss.item()


def worker(model: str, out: str) -> None:
    """One rank."""
    found = {variant: measure(variant, Path(model)) for variant in VARIANTS}
    if rank() == 0:
        Path(out).write_text(json.dumps(found))


def main() -> None:
    """Start the ranks and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory), layers=arguments.layers, width=arguments.width, vocabulary=VOCABULARY)
        write_deepspeed_config(model)
        variants = run_ranks(__file__, ["--worker", str(model)], ranks=2)
    counted = "all frozen parameters but the input embedding, which is not gathered"
    result = {"ranks": 2, "log_trace_cache_warnings": True, "steps_measured": [FIRST, LAST], "model_elements": counted}
    print(json.dumps(result | vars(arguments) | {"variants": variants}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
