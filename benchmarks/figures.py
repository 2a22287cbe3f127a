"""Figures that do not depend on a machine's speed, compared with the committed ones; prints JSON.

    python benchmarks/figures.py            # exits with 1 and says what differs from benchmarks/baselines.json
    python benchmarks/figures.py --write    # writes them there anew
    python benchmarks/figures.py --quick    # two of the JSONs on 2 ranks, all else as above: what a test compares

`training`: a training step of flare on 2 and 4 real ranks, under each shipped DeepSpeed JSON (`zero3_bf16_hpz` with
two ranks to a copy), of the trainer itself, once its trace is complete, and the first behind a validation:
collectives, elements gathered and their ratio to the base's, collectives that carry pickled objects, and host waits
(see `counting.py`). `model`: forward and backward of each method, in one process: operations as torch counts them in
matrix products and attention, as `runtime/costs.py` tells them, and bytes kept for the backward. The source is half as
long as the target. `plan`: steps of an epoch and the share of padding, cut by rows and by tokens.

Only what torch, DeepSpeed or this package does differently moves them: so each change of a baseline is one to explain.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from counting import StepCounter, saved_bytes
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from workload import METHODS, REPOSITORY, method_batch, method_config, run_ranks, write_encoder, write_model
from world import pairs_config, word_tokenizer, write_base

from flare_ds.batches.batching import split_step
from flare_ds.batches.plan import number_of_steps, open_order
from flare_ds.batches.workload import Workload
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.files import write_text
from flare_ds.models.loading import load_shape
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.costs import Costs
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import rank, world_size
from flare_ds.training.together import train_together

BASELINES = Path(__file__).with_name("baselines.json")
CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
QUICK = ("zero3_bf16_hpz", "zero3_cpu")
LAYERS, WIDTH, VOCABULARY = 8, 64, 512
RANKS = (2, 4)
STEPS, VALIDATED = 5, 4  # of training; a validation is behind step 4, and by then DeepSpeed's trace is complete
MEASURED = {"step": 4, "after_validation": 5}
ROWS, LENGTH = 4, 24


def training_figures(directory: Path, ranks: int) -> dict[str, Any]:
    """Of every DeepSpeed JSON, on the ranks that there are."""
    found = {}
    for place in sorted(directory.glob("*.json")):
        unset_hf_deepspeed_config()  # of the one before
        dtype = "float32" if "fp32" in place.stem else "bfloat16"
        config = training_config(directory, deepspeed=place, dtype=dtype, run=f"{place.stem}-{ranks}")
        frozen = sum(parameter.numel() for parameter in load_shape(config.model).parameters())
        cache = open_cache(prepare_cache(config, word_tokenizer(), workers=1))
        counter = StepCounter(list(MEASURED.values()))
        with counter.watching():
            train_together([(config, cache)], evaluate=False)
        found[place.stem] = {
            name: counter.steps[step] | {"gathered/base": round(counter.steps[step]["gathered"] / frozen, 3)}
            for name, step in MEASURED.items()
        }
    return found


def training_config(directory: Path, *, deepspeed: Path, dtype: str, run: str) -> Config:
    """A run of a few steps of one micro-batch each."""
    train = {"steps": STEPS, "validate_every": VALIDATED, "save_every": 1000, "objective": "labels"}
    config = pairs_config(
        directory,
        method="flare",
        data_dir="60",
        batch=ROWS,
        dtype=dtype,
        deepspeed=deepspeed,
        task={"validation_rows": 4, "test_rows": 4},
        **train,
    )
    return config.model_copy(update={"run_dir": str(directory / run)})


def worker(directory: str, out: str) -> None:
    """One rank."""
    join_process_group()
    found = training_figures(Path(directory), world_size())
    if rank() == 0:
        Path(out).write_text(json.dumps(found))


def write_training(directory: Path, files: list[Path]) -> None:
    """The base, the cache and the JSONs, before any rank reads them."""
    write_base(directory / "base", layers=LAYERS, width=WIDTH)
    for file in files:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if "zero_hpz_partition_size" in settings["zero_optimization"]:
            settings["zero_optimization"]["zero_hpz_partition_size"] = 2
        (directory / file.name).write_text(json.dumps(settings), encoding="utf-8")
    config = training_config(directory, deepspeed=files[0], dtype="float32", run="unused")
    prepare_cache(config, word_tokenizer(), workers=1)


def model_figures(directory: Path) -> dict[str, Any]:
    """Of every method, with a base of both precisions, in this process."""
    base = write_model(directory / "base", layers=LAYERS, width=WIDTH, vocabulary=VOCABULARY)
    encoder = write_encoder(directory / "encoder", width=WIDTH)
    return {
        method: {dtype: measure_model(method, base, encoder, dtype) for dtype in ("float32", "bfloat16")}
        for method in METHODS
    }


def measure_model(method: str, base: Path, encoder: Path, dtype: str) -> dict[str, int]:
    """Forward and backward of one micro-batch."""
    config = method_config(method, base, batch=ROWS, dtype=dtype, encoder=encoder)
    batch = method_batch(config, vocabulary=VOCABULARY, rows=ROWS, length=LENGTH, source_length=LENGTH // 2)
    model = build_model(config, label_tokens=[]).train()
    with FlopCounterMode(display=False) as counter:
        with saved_bytes(model.parameters()) as kept:
            loss = model(batch, with_loss=True)
        loss.backward()
    told = Costs(config, load_shape(config.model), labels=0).of(batch)
    return {
        "flops_counted": counter.get_total_flops(),
        "flops_told": told["flops"],
        "padded_tokens": told["padded_tokens"],
        "bytes_kept": kept["bytes"],
    }


def plan_figures(directory: Path) -> dict[str, Any]:
    """Steps and padding of an epoch of rows of 5 to 80 words, on two ranks."""
    cuts: dict[str, dict[str, Any]] = {"rows": {"batch_size": 16}, "tokens": {"batch_tokens": 2048}}
    found = {}
    for name, cut in cuts.items():
        config = pairs_config(directory, method="flare", data_dir="400x80")
        train = config.train.model_dump() | {"steps": None, "epochs": 1, "micro_batch_size": 4} | cut
        config = Config.model_validate(config.model_dump() | {"train": train})
        found[name] = measure_plan(config, open_cache(prepare_cache(config, word_tokenizer(), workers=1)))
    return found


def measure_plan(config: Config, cache: Cache) -> dict[str, Any]:
    """Of one way to cut steps."""
    order, split = open_order(config, cache), cache.split("train")
    steps = number_of_steps(config.train, order)
    lengths_n, tokens, padded = Workload(config).padded_tokens(split), 0, 0
    real_n = split.prompt_lengths("source") + split.lengths("target") - 1  # the last token is only predicted
    for step in range(steps):
        for of_rank in split_step(
            order.rows(step), lengths_n, world_size=2, micro_batch_size=config.train.micro_batch_size
        ):
            for part in of_rank:
                tokens += int(real_n[part.rows] @ part.weights.astype(np.int64))
                padded += len(part.rows) * int(lengths_n[part.rows].max())
    return {"steps": steps, "tokens": tokens, "padded_tokens": padded, "padded/tokens": round(padded / tokens, 3)}


def measure(quick: bool) -> dict[str, Any]:
    """All figures, or fewer of training's, whose ranks take the time."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place, "training")
        write_training(directory, [file for file in CONFIGS if not quick or file.stem in QUICK])
        ranks = RANKS[: 1 if quick else None]
        training = {f"{number} ranks": run_ranks(__file__, ["--worker", str(directory)], number) for number in ranks}
        return {
            "training": training,
            "model": model_figures(Path(place, "model")),
            "plan": plan_figures(Path(place, "plan")),
        }


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where two figures differ, with their path."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name in dict.fromkeys([*wanted, *found]):
            yield from differences(wanted.get(name), found.get(name), f"{path}/{name}")
    elif wanted != found:
        yield f"{path}: {wanted} in {BASELINES.name}, {found} now"


def main() -> None:
    """Measure, print, and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--write", action="store_true", help="write the baselines anew")
    how.add_argument("--quick", action="store_true", help="fewer of the trainings")
    given = parser.parse_args()
    found = measure(given.quick)
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if given.write:
        write_text(BASELINES, text)
        return
    wanted = json.loads(BASELINES.read_text(encoding="utf-8"))
    if given.quick:
        wanted["training"] = {"2 ranks": {name: wanted["training"]["2 ranks"][name] for name in QUICK}}
    if wrong := list(differences(wanted, found)):
        raise SystemExit("\n".join([*wrong, "explain the change, then run with --write"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
