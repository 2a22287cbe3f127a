"""What a training step's memory is made of, of every method, beside the estimate; prints JSON.

    python benchmarks/memory_parts.py [--model DIR --dtype bfloat16] [--batch N] [--length N]

Bytes of one process that trains without an engine: the frozen base, what trains, its gradients, the optimizer's state,
and what forward keeps for backward (each storage once; parameters not counted again). `rise_bytes` is how far its
resident memory rose in a step over the loaded model, `estimate_bytes` what runtime/memory.py expects of a rank that is
alone, its runtime and gathered layers included. Each method is a process of its own.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from counting import saved_bytes
from memory import peak_memory
from torch import Tensor
from transformers import AutoConfig
from workload import METHODS, method_batch, method_config, run_ranks, write_encoder, write_model

from flare_ds.batches.workload import streams_of
from flare_ds.models.loading import load_shape
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.runtime.memory import estimate_memory
from flare_ds.runtime.optimizer import CellsAdamW, Learner


def size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def worker(options: str, method: str, out: str) -> None:
    """One method, in a process of its own."""
    given = argparse.Namespace(**json.loads(options))
    config = method_config(method, Path(given.model), batch=given.batch, encoder=Path(given.encoder), dtype=given.dtype)
    vocabulary = AutoConfig.from_pretrained(given.model).get_text_config().vocab_size
    batch = method_batch(config, vocabulary=vocabulary, rows=given.batch, length=given.length)
    estimate = estimate_memory(config, load_shape(config.model), streams=len(streams_of(config)), ranks=1)
    model = build_model(config, label_tokens=[]).train()
    trained = trainable_parameters(model)
    optimizer = CellsAdamW([Learner(config.train, trained)])
    with peak_memory() as found:
        with saved_bytes(model.parameters()) as kept:
            loss = model(batch, with_loss=True)
        loss.backward()
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    parts = {
        "base_bytes": size(parameter for parameter in model.parameters() if not parameter.requires_grad),
        "trained_bytes": size(trained.values()),
        "gradient_bytes": size(parameter.grad for parameter in trained.values()),
        "optimizer_bytes": size(states),
        "kept_bytes": kept["bytes"],
        "rise_bytes": found["rise_bytes"],
        "estimate_bytes": round(estimate.bytes(batch.input_ids.numel())),
    }
    Path(out).write_text(json.dumps(parts))


def main() -> None:
    """Measure every method and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a saved model (default: a small random one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=4, help="target rows")
    parser.add_argument("--length", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    given = parser.parse_args()
    shown = vars(given) | {"model": Path(given.model or "a small random Llama").name}
    with tempfile.TemporaryDirectory() as directory:
        if given.model is None:
            given.model = str(write_model(Path(directory, "base"), layers=4, width=128, vocabulary=512))
        given.encoder = str(write_encoder(Path(directory, "encoder"), width=128))
        options = json.dumps(vars(given))
        found = {name: run_ranks(__file__, ["--worker", options, name], ranks=0) for name in given.methods}
    kept = {
        f"{name}/lora": of["kept_bytes"] / found["lora"]["kept_bytes"] for name, of in found.items() if "lora" in found
    }
    print(json.dumps(shown | {"parts": found, "ratios": {"kept_bytes": kept}}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
