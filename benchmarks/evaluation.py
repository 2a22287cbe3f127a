"""What scoring held-out rows costs, by ratios of times; prints JSON.

    python benchmarks/evaluation.py [--model DIR --dtype bfloat16] [--ranks N] [--rows N] [--length N] [--repeat N]

    flare_over_lora      label words ranked, and answers written (greedy, as long as --written)
    ranked_over_written  examples a second
    auto_over_16         examples a second of ranking with batches as large as is good, over those with batches of 16
    once_over_token      seconds to write with the base gathered once, over gathering it for each token (--ranks 2)

Everything takes turns in the same processes, after a turn that is not counted; medians. --ranks 0 (the default) is one
process that holds the base whole, --ranks N shares it out. Without --model it is a small random Llama.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from workload import RandomRows, make_config, run_ranks, write_model

from flare_ds.batches.collate import Batch
from flare_ds.batches.workload import streams_of
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation.batches import ask_rows
from flare_ds.evaluation.generate import generate
from flare_ds.evaluation.ranked import label_scores
from flare_ds.models.loading import load_shape
from flare_ds.runtime import gathered_base
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.process_group import barrier, rank

LABELS = [[2], [3], [4], [5]]
Timed = dict[str, Callable[[], object]]


def settings(options: argparse.Namespace, method: str, objective: str, **evaluate: Any) -> Config:
    """Of a run whose model is asked."""
    config = make_config(Path(options.model), method=method, batch=1, dtype=options.dtype, objective=objective)
    whole = {"evaluate": {"whole_model": options.ranks == 0, **evaluate}}
    return Config.model_validate(config.model_dump() | whole | {"generate": {"max_new_tokens": options.written}})


def scorings(options: argparse.Namespace, rows: RandomRows) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, by name."""
    for method in ("flare", "lora"):
        for objective in ("labels", "vocabulary"):
            config = settings(options, method, objective)
            running = open_model(config, shape=load_shape(config.model), label_tokens=LABELS)
            running.root.eval()
            if objective == "labels":
                yield f"{method} ranked", ranked(running, config, rows)
                yield (
                    f"{method} ranked by 16",
                    ranked(running, settings(options, method, objective, batch_size=16), rows),
                )
            else:
                yield f"{method} written", written(running, config, rows, once=True)
                if options.ranks:
                    yield f"{method} written by token", written(running, config, rows, once=False)


def ranked(running: RunningModel, config: Config, rows: RandomRows) -> Callable[[], object]:
    """Ranks the label words of every row."""
    trie = LabelTrie(LABELS)

    def ask(batch: Batch, _rows: list[int]) -> list[Any]:
        return label_scores(running, batch, trie, config).tolist()

    return lambda: ask_rows(ask, running, rows, config, streams=streams_of(config), what="rows")


def written(running: RunningModel, config: Config, rows: RandomRows, *, once: bool) -> Callable[[], object]:
    """Writes behind every row, to the full length."""

    def ask(batch: Batch, numbers: list[int]) -> list[Any]:
        return generate(running, batch, config, eos=[], rows=numbers)

    def write() -> None:
        fits = gathered_base.fits_whole_beside
        gathered_base.fits_whole_beside = lambda model: once
        with gathered_base.base_gathered(running):
            gathered_base.fits_whole_beside = fits
            new = config.generate.max_new_tokens
            ask_rows(ask, running, rows, config, streams=streams_of(config), what="rows", written=new)

    return write


def worker(options: argparse.Namespace, out: str) -> None:
    """Time everything in turns."""
    vocabulary = AutoConfig.from_pretrained(options.model).get_text_config().vocab_size
    timed = dict(scorings(options, RandomRows(vocabulary=vocabulary, rows=options.rows, length=options.length)))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(options.repeat + 1):
        for name, score in timed.items():
            barrier()
            start = time.perf_counter()
            score()
            barrier()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    if rank() == 0:
        Path(out).write_text(json.dumps({name: statistics.median(values) for name, values in seconds.items()}))


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Of the medians."""
    found = {
        f"flare_over_lora, {how}": seconds[f"flare {how}"] / seconds[f"lora {how}"] for how in ("ranked", "written")
    }
    for method in ("flare", "lora"):
        found[f"ranked_over_written, {method}"] = seconds[f"{method} written"] / seconds[f"{method} ranked"]
        found[f"auto_over_16, {method}"] = seconds[f"{method} ranked by 16"] / seconds[f"{method} ranked"]
        if f"{method} written by token" in seconds:
            found[f"once_over_token, {method}"] = seconds[f"{method} written"] / seconds[f"{method} written by token"]
    return found


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a base")
    parser.add_argument("--dtype", default="float32")
    for name, default in (("ranks", 0), ("rows", 64), ("length", 64), ("written", 8), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        worker(options, options.out)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        model = options.model or str(write_model(Path(directory) / "model", layers=8, width=256, vocabulary=8192))
        asked = {**vars(options), "model": model}
        words = [f"--{name}={value}" for name, value in asked.items() if name != "out"]
        seconds = run_ranks(__file__, [*words, "--out"], options.ranks)
    print(json.dumps({"ratios": ratios(seconds), "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
