"""What the benchmarks share: a small random model, random rows, the run's settings, and starting real ranks."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.config import Config
from flare_ds.processes import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
ANSWER_TOKENS = 2
PAPER_FORM = {"pairing": "output", "fused_modules": ["q_proj", "v_proj"], "source_down": "shared"}
"""Of flare: what two whole forwards can compute, too."""


def write_model(directory: Path, *, layers: int, width: int, vocabulary: int) -> Path:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def make_config(
    model: Path, *, method: str, batch: int, dtype: str = "float32", deepspeed: Path | None = None, **train: Any
) -> Config:
    """Settings of a run whose optimizer step is one micro-batch of `batch` rows on each rank.

    Unless `train` says otherwise the objective is `vocabulary`: the output matrix takes part, as it does in plain PEFT.
    """
    precision = "zero3_cpu.json" if dtype == "bfloat16" else "zero3_fp32_cpu.json"
    rows = batch * int(os.environ.get("WORLD_SIZE", "1"))
    return Config.model_validate(
        {
            "method": method,
            "run_dir": "unused",
            "deepspeed": str(deepspeed or REPOSITORY / "ds_configs" / precision),
            "model": {"base": str(model), "dtype": dtype},
            "task": {"name": "random", "data_dir": "unused", "target_language": "pl"},
            "adapter": PAPER_FORM,
            "train": {
                "steps": 1,
                "batch_size": rows,
                "micro_batch_size": batch,
                **({"objective": "vocabulary"} | train),
            },
        }
    )


class RandomRows:
    """Rows of random tokens; both sides of a pair have the same length."""

    def __init__(self, *, vocabulary: int, rows: int, length: int) -> None:
        draw = np.random.default_rng(0)
        self.labels = np.zeros(rows, np.int64)
        self._prompts = {name: draw.integers(2, vocabulary, (rows, length)) for name in ("source", "target")}
        self._answers = draw.integers(2, vocabulary, (rows, ANSWER_TOKENS))

    def __len__(self) -> int:
        return len(self.labels)

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt."""
        return np.array([len(prompt) for prompt in self._prompts[stream]])

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together."""
        return self.prompt_lengths(stream) + ANSWER_TOKENS

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of one row."""
        return self._prompts[stream][row]

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Answer tokens of one row."""
        return self._answers[row]


def make_batch(vocabulary: int, *, rows: int, length: int, objective: str = "vocabulary") -> Batch:
    """A batch of both streams."""
    every = MicroBatch(np.arange(rows), np.ones(rows, np.float32))
    split = RandomRows(vocabulary=vocabulary, rows=rows, length=length)
    return collate(split, every, streams=("source", "target"), objective=objective, pad_id=0)


def run_ranks(script: str, arguments: list[str], ranks: int) -> Any:
    """Run a script on real ranks, to its end; returns what rank 0 wrote as JSON to the file of its last argument.

    With ranks=0 the script is one process without a process group. Whatever the ranks print goes to standard error.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out.json"
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
        processes = [
            subprocess.Popen(
                [sys.executable, script, *arguments, str(out)],
                env={
                    **os.environ,
                    "DS_ACCELERATOR": "cpu",
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    **({**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks else {}),
                },
                stdout=sys.stderr,
            )
            for rank in range(max(ranks, 1))
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"{script} ended with {codes}")
        return json.loads(out.read_text())
