"""What the benchmarks share: a small random model, random rows, the run's settings, and starting real ranks."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, M2M100Config

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.workload import streams_of
from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.models.mt_encoder import mt_width
from flare_ds.processes import free_port
from flare_ds.runtime.providers import key_width, states_dtype

REPOSITORY = Path(__file__).resolve().parent.parent
ANSWER_TOKENS = 2
PAPER_FORM: dict[str, Any] = {"pairing": "output", "fused_modules": ["q_proj", "v_proj"], "source_down": "shared"}
"""Of flare: what two whole forwards can compute, too."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "input_fusion": ("input_fusion", {}),
    "x_mixup": ("x_mixup", {}),
    "flare": ("flare", {}),
    "flare_paper": ("flare", PAPER_FORM),
    "source_prefix": ("source_prefix", {}),
    "source_prefix_stored": ("source_prefix", {}),
    "flare_mt": ("flare_mt", {"fused_modules": ["q_proj", "v_proj"]}),
}
"""What trains, and in which form: the defaults, or what is said here (an MT encoder's state fits no down_proj).

Of those that end in `_stored` the source's keys and values were computed before."""


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
    model: Path,
    *,
    method: str,
    batch: int,
    dtype: str = "float32",
    deepspeed: Path | None = None,
    form: Mapping[str, Any] = PAPER_FORM,
    encoder: Path | None = None,
    provider: str = "lockstep",
    **train: Any,
) -> Config:
    """Settings of a run whose optimizer step is one micro-batch of `batch` rows on each rank.

    Args:
        model: directory of the base.
        method: which one.
        batch: rows of a micro-batch.
        dtype: of the base.
        deepspeed: the JSON (None: the shipped one for this precision on CPUs).
        form: settings of the adapter; those of the paper's form, unless given; {}: the defaults.
        encoder: directory of an MT encoder, for the method that reads one.
        provider: where the source's states come from.
        train: settings of `train`. Unless they say otherwise the objective is `vocabulary`: the output matrix takes
            part, as it does in plain PEFT.
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
            "source": ({} if encoder is None else {"mt_encoder": str(encoder), "mt_language": "pol_Latn"})
            | {"provider": provider},
            "adapter": dict(form),
            "train": {
                "steps": 1,
                "batch_size": rows,
                "micro_batch_size": batch,
                **({"objective": "vocabulary"} | train),
            },
        }
    )


class RandomRows:
    """Rows of random tokens; one that both texts are read in has the source's before the target's.

    Args:
        vocabulary: tokens to draw from.
        rows: how many.
        length: tokens of each target prompt.
        source_length: of each source prompt (None: as many).
        joint: whether the target's prompt begins with the source's.
    """

    def __init__(
        self, *, vocabulary: int, rows: int, length: int, source_length: int | None = None, joint: bool = False
    ) -> None:
        draw = np.random.default_rng(0)
        self.labels = np.zeros(rows, np.int64)
        source, target = (draw.integers(2, vocabulary, (rows, n)) for n in (source_length or length, length))
        self._prompts = {"source": source, "target": np.concatenate([source, target], 1) if joint else target}
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


class RandomStates:
    """What a run reads from its store of random rows: K states of width D a position."""

    def __init__(self, *, length: int, states: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self._states_MKD = torch.randn(length, states, width, generator=torch.Generator().manual_seed(0)).to(dtype)

    def states(self, row: int) -> Tensor:
        """Of one row: [M, K, D]."""
        return self._states_MKD


def stored_states(config: Config, length: int) -> RandomStates | None:
    """What rows of a length have in the store of a run; None: it has none."""
    if config.reads_mt_encoder:
        return RandomStates(length=length, states=1, width=mt_width(config.source))
    if not config.stores_states:
        return None
    layers = decoder_layers(load_shape(config.model))
    width, dtype = 2 * key_width(layers), states_dtype(config)
    return RandomStates(length=length, states=len(layers), width=width, dtype=dtype)


def make_batch(vocabulary: int, *, rows: int, length: int, objective: str = "vocabulary") -> Batch:
    """A batch of both streams."""
    split = RandomRows(vocabulary=vocabulary, rows=rows, length=length)
    return collate(split, all_of(rows), streams=("source", "target"), objective=objective, pad_id=0)


def all_of(rows: int) -> MicroBatch:
    """All rows of a split, in order, as one micro-batch."""
    return MicroBatch(np.arange(rows), np.ones(rows, np.float32))


def method_config(name: str, model: Path, *, batch: int, encoder: Path, **settings: Any) -> Config:
    """Settings of one of METHODS; for the others see `make_config`."""
    method, form = METHODS[name]
    provider = "cached" if name.endswith("_stored") else "lockstep"
    return make_config(model, method=method, batch=batch, form=form, encoder=encoder, provider=provider, **settings)


def method_batch(config: Config, *, vocabulary: int, rows: int, length: int, source_length: int | None = None) -> Batch:
    """Random rows as a method reads them while it trains."""
    split = RandomRows(
        vocabulary=vocabulary,
        rows=rows,
        length=length,
        source_length=source_length,
        joint=config.recipe.reads == "joint",
    )
    return collate(
        split,
        all_of(rows),
        streams=streams_of(config),
        objective=config.train.objective,
        pad_id=0,
        source_targets=config.recipe.fuses == "mixup",
        stored=stored_states(config, length if config.reads_mt_encoder else source_length or length),
    )


def write_encoder(directory: Path, *, width: int) -> Path:
    """What is read of an MT encoder whose states are stored: how wide they are."""
    M2M100Config(d_model=width).save_pretrained(directory)
    return directory


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
                    "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
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
