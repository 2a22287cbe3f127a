"""Time and peak memory of a training step, of every method and form, against plain LoRA; prints JSON.

    python benchmarks/step_cost.py [--model DIR --dtype bfloat16] [--engine RANKS] [--steps N] [--batch N] [--length N]
                                   [--source-length N] [--objective labels] [--variants NAME ...]

The same model, the same rows, the same optimizer. `plain_lora` is PEFT alone on the target rows: no part of flare_ds is
in it but the label head (with --objective labels) and, under the engine, the embedding that is read on the host, which
all have, so that the ratios are about the streams. `flare_two_forwards` computes what `flare_paper` does (see
two_forwards.py). A large output matrix, --objective vocabulary, makes all alike. --engine 0 (the default) is plain
PyTorch in one process, --engine N the DeepSpeed engine on N ranks. Without --model it is a small random Llama.

Times: all in one process, taking turns step by step, after two steps that are not counted; medians. Memory: a fresh
process for each; how far the resident memory of the fullest rank rose over the loaded model (`rise_bytes`), and its
peak. Compare times only on a machine that does nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from memory import peak_memory
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from two_forwards import TwoForwards
from workload import METHODS, method_batch, method_config, run_ranks, write_encoder, write_model

from flare_ds.adapters.inject import lora_config
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.embedding import read_on_host
from flare_ds.models.head import use_head
from flare_ds.models.loading import load_base, load_shape
from flare_ds.models.loss import loss_sum
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime.ds_config import resolve_ds_config
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.optimizer import CellsAdamW, Learner
from flare_ds.runtime.process_group import barrier, gather_objects, rank

VARIANTS = ("plain_lora", *METHODS, "flare_two_forwards")
WARM_UP = 2


def label_tokens(config: Config) -> list[list[int]] | None:
    """Tokens of the label words; None: the whole vocabulary is predicted."""
    return [[2], [3], [4], [5]] if config.train.objective == "labels" else None


class PlainLora(nn.Module):
    """PEFT's LoRA on the target rows, with logits at the same positions as flare's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        base = load_base(config.model)
        use_head(base, label_tokens=label_tokens(config), trained=False)
        torch.manual_seed(config.train.seed)  # of the draw of A, as ours
        self.model = get_peft_model(base, lora_config(config.adapter, base))
        self.host_rows = read_on_host(base, config.model.base)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, N, K] at the columns that predict the answers."""
        if self.host_rows is not None:
            self.host_rows.read(batch)
        return self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=batch.answer_columns_N,
            use_cache=False,
        ).logits


class Training:
    """One variant: a model, its optimizer or engine, and its step."""

    def __init__(self, variant: str, config: Config, *, engine: bool) -> None:
        self.zero_init: HfDeepSpeedConfig | None = None
        if engine:
            unset_hf_deepspeed_config()  # of the variant before
            settings = resolve_ds_config([config], load_shape(config.model))
            self.zero_init = HfDeepSpeedConfig(settings)
        model = (
            PlainLora(config)
            if variant == "plain_lora"
            else build_model(config, label_tokens=label_tokens(config) or [])
        )
        self.optimizer = CellsAdamW([Learner(config.train, trainable_parameters(model))])
        self.root: Any = model.train()
        if engine:
            self.root, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=settings)
        self.loss: Callable[[Any, Batch], Tensor] = lambda root, batch: root(batch, with_loss=True)
        if variant == "plain_lora":
            self.loss = lambda root, batch: loss_sum(root(batch), batch.answers_BN, batch.weights_B)
        if variant == "flare_two_forwards":
            assert isinstance(model, TwoStreamModel), "not PEFT's own"
            forward = TwoForwards(model)
            self.loss = lambda root, batch: loss_sum(forward(root, batch), batch.answers_BN, batch.weights_B)

    def step(self, batch: Batch) -> float:
        """Forward, backward, optimizer step; returns the loss."""
        loss = self.loss(self.root, batch)
        if self.zero_init is not None:
            self.root.backward(loss)
            self.root.step()
        else:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def config_of(variant: str, given: argparse.Namespace) -> Config:
    """Settings of a variant."""
    method = {"plain_lora": "lora", "flare_two_forwards": "flare_paper"}.get(variant, variant)
    return method_config(
        method,
        Path(given.model),
        batch=given.batch,
        encoder=Path(given.encoder),
        dtype=given.dtype,
        objective=given.objective,
    )


def worker(options: str, variants: str, out: str) -> None:
    """Train the variants in turns, on one rank; rank 0 writes what was measured."""
    given = argparse.Namespace(**json.loads(options))
    if given.engine:
        join_process_group()
    chosen = variants.split(",")
    configs = {name: config_of(name, given) for name in chosen}
    vocabulary = AutoConfig.from_pretrained(given.model).get_text_config().vocab_size
    sizes = {"rows": given.batch, "length": given.length, "source_length": given.source_length}
    batches = {name: method_batch(configs[name], vocabulary=vocabulary, **sizes) for name in chosen}
    trainings = {name: Training(name, configs[name], engine=bool(given.engine)) for name in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    losses: dict[str, list[float]] = {name: [] for name in trainings}
    with peak_memory() as memory:
        for _ in range(WARM_UP + given.steps):
            for name, training in trainings.items():
                barrier()
                start = time.perf_counter()
                losses[name].append(training.step(batches[name]))
                seconds[name].append(time.perf_counter() - start)
    every_rank = gather_objects(memory)
    if rank() == 0:
        fullest = max(every_rank, key=lambda one: one["rise_bytes"])
        timed = {name: values[WARM_UP:] for name, values in seconds.items()}
        Path(out).write_text(json.dumps({"memory": fullest, "seconds": timed, "losses": losses}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of all variants together, then the memory of each alone."""

    def run(variants: Sequence[str]) -> dict[str, Any]:
        options = json.dumps(vars(arguments))
        return run_ranks(__file__, ["--worker", options, ",".join(variants)], ranks=arguments.engine)

    together = run(arguments.variants)
    found: dict[str, Any] = {}
    for name in arguments.variants:
        seconds = together["seconds"][name]
        found[name] = {"median_seconds": statistics.median(seconds), "seconds": seconds}
        found[name] |= run([name])["memory"] | {"losses": together["losses"][name]}
    return found


def ratios(found: dict[str, Any], quantity: str) -> dict[str, float]:
    """Each variant over plain LoRA, or where that is not among them over ours."""
    base = next((name for name in ("plain_lora", "lora") if name in found), None)
    return {f"{name}/{base}": one[quantity] / found[base][quantity] for name, one in found.items() if base is not None}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a saved model (default: a small random one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--objective", choices=["vocabulary", "labels"], default="vocabulary")
    parser.add_argument("--engine", type=int, default=0, metavar="RANKS", help="0: no engine")
    parser.add_argument("--steps", type=int, default=10, help="counted steps")
    parser.add_argument("--batch", type=int, default=4, help="target rows on a rank")
    parser.add_argument("--length", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--source-length", type=int, metavar="LENGTH", help="of each source prompt (default: as many)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default: all")
    arguments = parser.parse_args()
    shown = vars(arguments) | {"model": Path(arguments.model or "a small random Llama").name}
    with tempfile.TemporaryDirectory() as directory:
        if arguments.model is None:
            arguments.model = str(write_model(Path(directory, "base"), layers=4, width=128, vocabulary=512))
        arguments.encoder = str(write_encoder(Path(directory, "encoder"), width=128))
        found = measure(arguments)
    quantities = ("median_seconds", "rise_bytes", "peak_bytes")
    result = {"variants": found, "ratios": {name: ratios(found, name) for name in quantities}}
    print(json.dumps(shown | result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
