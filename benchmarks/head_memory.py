"""Memory of the logits: at the answer positions against at all positions, with a large vocabulary; prints JSON.

    python benchmarks/head_memory.py [--vocabulary 262144] [--batch 4] [--length 128]

A narrow random Llama, so that the logits are nearly all there is. Each way is one forward, loss and backward in a
fresh process; `rise_bytes` is how far its resident memory rose, `logits_bytes` the size of the logits alone. The losses
are equal: the further positions have no target.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from memory import peak_memory
from workload import make_batch, make_config, run_ranks, write_model

from flare_ds.batches.collate import NO_TARGET, Batch
from flare_ds.models.loss import loss_sum
from flare_ds.models.two_stream import build_model

POSITIONS = ("answer", "all")


def at_all_positions(batch: Batch) -> Batch:
    """The same batch, asking for logits in every column."""
    answers_BL = batch.answers_BN.new_full((len(batch.answers_BN), batch.input_ids.shape[1]), NO_TARGET)
    answers_BL[:, batch.answer_columns_N] = batch.answers_BN
    return replace(batch, answer_columns_N=torch.arange(answers_BL.shape[1]), answers_BN=answers_BL)


def worker(model: str, positions: str, vocabulary: str, rows: str, length: str, out: str) -> None:
    """One way, in a process of its own."""
    two_streams = build_model(make_config(Path(model), method="flare", batch=int(rows)), label_tokens=[])
    batch = make_batch(int(vocabulary), rows=int(rows), length=int(length))
    if positions == "all":
        batch = at_all_positions(batch)
    with peak_memory() as found:
        logits = two_streams(batch)
        loss = loss_sum(logits, batch.answers_BN, batch.weights_B)
        loss.backward()
    found["logits_bytes"] = logits.numel() * logits.element_size()
    Path(out).write_text(json.dumps(found | {"loss": loss.item()}))


def main() -> None:
    """Run both ways and print what they needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--batch", type=int, default=4, help="target rows")
    parser.add_argument("--length", type=int, default=128, help="tokens of each prompt")
    arguments = parser.parse_args()
    sizes = [str(size) for size in (arguments.vocabulary, arguments.batch, arguments.length)]
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory), layers=2, width=64, vocabulary=arguments.vocabulary)
        found = {name: run_ranks(__file__, ["--worker", str(model), name, *sizes], ranks=0) for name in POSITIONS}
    saved = found["all"]["rise_bytes"] - found["answer"]["rise_bytes"]
    print(json.dumps(vars(arguments) | {"positions": found, "saved_bytes": saved}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
