"""A step of our lora against PEFT + transformers' Trainer + DeepSpeed ZeRO-3, as users write it; prints JSON.

    python benchmarks/peer_trainer.py [--config RUN.yaml] [--steps 6] [--rounds 3] [--batch 16] [--ranks 2]

Both train LoRA on the same base with the same rows in the same order, 16 a step on two ranks, with the same rank,
learning rate and clipping, no dropout. Four variants, each a launch of its own, in turn, for so many rounds:

    ours               train.objective=labels: the label words at the answer's position, as users get it
    peer               the Trainer as users get it: the vocabulary at every position, loss at the answers
    ours_vocabulary    train.objective=vocabulary: the vocabulary at the answers' positions
    peer_vocabulary    the Trainer with logits at the answers' positions only (`logits_to_keep`)

The last two say the same losses but for rounding: both draw the same A, too. The peer shards
with the shipped JSON, less what is ours to fill in. `seconds`: the median of all steps but the first two of a launch;
`peak_bytes`: of the fullest rank, as Linux counts it. Without --config the world is a small random one; with it, it is
the YAML's base and task. Compare times only within one call.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from memory import peak_memory
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from workload import run_ranks
from world import pairs_config, write_base

from flare_ds.batches.plan import open_order
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.models.loading import load_tokenizer
from flare_ds.runtime.ds_config import read_ds_config
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import gather_objects, rank
from flare_ds.settings import load_config
from flare_ds.training.together import train_together

VARIANTS = ("ours", "peer", "ours_vocabulary", "peer_vocabulary")
WARM_UP = 2
IGNORED = -100


class Rows(Dataset):
    """The rows of every step, one step behind the other: prompt and answer in one text, the answer to be said."""

    def __init__(self, config: Config, cache: Cache, steps: int) -> None:
        order, self.split = open_order(config, cache), cache.split("train")
        self.rows = [int(row) for step in range(steps) for row in order.rows(step)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        row = self.rows[place]
        prompt, answer = self.split.prompt("target", row).tolist(), self.split.answer("target", row).tolist()
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def padded(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Rows as a batch: padding on the left, so that answers end together."""
    longest = max(len(row["input_ids"]) for row in rows)

    def grid(name: str, filler: int) -> Tensor:
        return torch.tensor([[filler] * (longest - len(row[name])) + row[name] for row in rows])

    ids = grid("input_ids", pad_id)
    mask = torch.tensor([[int(column >= longest - len(row["labels"])) for column in range(longest)] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": grid("labels", IGNORED)}


class PeerTrainer(Trainer):
    """The Trainer, with the rows in the order that is given; `keep_answers`: no logits but where answers are."""

    keep_answers = False

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, of the answers' columns where only those have logits."""
        if self.keep_answers:
            said = (inputs["labels"] != IGNORED).any(0)
            kept = len(said) - int(said.int().argmax()) + 1  # one column before the first answer predicts it
            inputs = {**inputs, "labels": inputs["labels"][:, -kept:], "logits_to_keep": kept}
        return super().compute_loss(model, inputs, *args, **kwargs)


class Clock(TrainerCallback):
    """When each optimizer step ended, and the loss that was logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """The loss of a step."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    def seconds(self) -> list[float]:
        """Of each step."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def train_peer(config: Config, cache: Cache, *, keep_answers: bool, ranks: int) -> dict[str, Any]:
    """The peer's training."""
    train, clock = config.train, Clock()
    arguments = TrainingArguments(
        output_dir=f"{config.run_dir}-peer",
        per_device_train_batch_size=train.batch_size // ranks,
        max_steps=int(train.steps or 0),
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=config.model.dtype == "bfloat16",
        deepspeed=peer_deepspeed(config),
        remove_unused_columns=False,
    )
    base = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=getattr(torch, config.model.dtype))
    adapter = config.adapter
    lora = LoraConfig(r=adapter.r, lora_alpha=int(adapter.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(train.seed)  # of the draw of A, as ours
    trainer = PeerTrainer(
        model=get_peft_model(base, lora),
        args=arguments,
        train_dataset=Rows(config, cache, int(train.steps or 0)),
        data_collator=lambda rows: padded(rows, cache.pad_id),
        callbacks=[clock],
    )
    trainer.keep_answers = keep_answers
    trainer.train()
    return {"seconds": clock.seconds(), "losses": clock.losses}


def peer_deepspeed(config: Config) -> dict[str, Any]:
    """The JSON, with DeepSpeed's defaults where ours are filled in."""
    settings = read_ds_config(config)
    zero = {name: value for name, value in settings["zero_optimization"].items() if value != "auto"}
    return settings | {"zero_optimization": zero}


def train_ours(config: Config, cache: Cache) -> dict[str, Any]:
    """Our training; its own log says the seconds and the losses."""
    train_together([(config, cache)], evaluate=False)
    lines = (Path(config.run_dir) / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "step_seconds" in line]
    return {"seconds": [step["step_seconds"] for step in steps], "losses": [step["loss"] for step in steps]}


def config_of(given: argparse.Namespace, directory: Path, objective: str) -> Config:
    """Settings of a run of both."""
    train = {
        "steps": given.steps,
        "batch_size": given.batch,
        "micro_batch_size": given.batch // given.ranks,
        "objective": objective,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "validate_every": 1000,
        "validate_rows": 2,
        "save_every": 1000,
    }
    if given.config is None:
        return pairs_config(directory, method="lora", data_dir="400", task={"validation_rows": 4}, **train)
    config = load_config(given.config)
    own = {"method": "lora", "run_dir": str(directory / "run"), "cache_dir": str(directory / "cache"), "train": train}
    return Config.model_validate(config.model_dump() | own)


def worker(options: str, directory: str, variant: str, run_dir: str, out: str) -> None:
    """One rank of one launch."""
    given = argparse.Namespace(**json.loads(options))
    join_process_group()
    objective = "labels" if variant == "ours" else "vocabulary"
    config = config_of(given, Path(directory), objective)
    config = config.model_copy(update={"run_dir": run_dir})
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model), workers=1))
    with peak_memory() as memory:
        if variant.startswith("ours"):
            found = train_ours(config, cache)
        else:
            found = train_peer(config, cache, keep_answers=variant == "peer_vocabulary", ranks=given.ranks)
    peaks = gather_objects(memory["peak_bytes"])
    if rank() == 0:
        Path(out).write_text(json.dumps(found | {"peak_bytes": max(peaks)}))


def measure(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All rounds."""
    if given.config is None:
        write_base(directory / "base", layers=4, width=128)
    config = config_of(given, directory, "labels")
    prepare_cache(config, load_tokenizer(config.model))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for number, name in enumerate(VARIANTS * given.rounds):
        run_dir = str(directory / f"{number}-{name}")
        arguments = ["--worker", json.dumps(vars(given)), str(directory), name, run_dir]
        found[name].append(run_ranks(__file__, arguments, given.ranks))
    return {
        name: {
            "seconds": statistics.median(second for one in rounds for second in one["seconds"][WARM_UP:]),
            "peak_bytes": statistics.median(one["peak_bytes"] for one in rounds),
            "losses": rounds[0]["losses"],
        }
        for name, rounds in found.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a run's YAML, for its base and its task (default: a small random world)")
    parser.add_argument("--steps", type=int, default=6, help="of each launch, the first two are not counted")
    parser.add_argument("--rounds", type=int, default=3, help="launches of each variant")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step, on all ranks together")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(given, Path(directory))
    pairs = {"ours/peer": ("ours", "peer"), "vocabulary: ours/peer": ("ours_vocabulary", "peer_vocabulary")}
    ratios = {
        quantity: {name: found[ours][quantity] / found[peer][quantity] for name, (ours, peer) in pairs.items()}
        for quantity in ("seconds", "peak_bytes")
    }
    shown = vars(given) | {"config": Path(given.config or "a small random world").name}
    print(json.dumps(shown | {"variants": found, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
