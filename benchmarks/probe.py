"""Where, layer by layer, a frozen base shows the label of a text: in the source, in the target; prints JSON.

    python benchmarks/probe.py CONFIG [key=value ...] [--rows N]

CONFIG is a run's; `model.base` is the frozen base that flare would train on, tuned on the source language, read alone
and without an adapter. Its cache is built if it is not there yet. For every row the state of the last prompt position
and the mean over all of them are taken after the embedding (layer 0) and after each layer; behind the last layer the
final norm has been applied. A logistic regression on the standardised state, fitted to train rows, then tells the
labels of the validation rows: from the source's state, the target's, and both side by side. How strongly it is
regularised is chosen by cross-validation within the train rows. Rows that lack a source are left out; test rows are
not read.

What is reported is how well a straight line can read the label, not whether the model uses it. `majority_share` is
what always saying the commonest label of the train rows would reach, `standard_error` the largest that an accuracy on
so many rows can have.

Legend: n rows, B rows of a batch, L columns, D width, K layers and the embedding.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.config import Config
from flare_ds.data.cache import CacheSplit, open_cache, prepare_cache
from flare_ds.models.loading import load_base, load_tokenizer
from flare_ds.settings import load_config

STREAMS = ("source", "target")
PLACES = ("last", "mean")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: small is strong
FOLDS = 3
States = dict[tuple[str, str], np.ndarray]
"""By stream and place: float32 [K, n, D]."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="where a frozen base shows the label, layer by layer")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rows", type=int, default=2000, help="train rows the probes are fitted to")
    options = parser.parse_intermixed_args()
    json.dump(probe(load_config(options.config, options.overrides), options.rows), sys.stdout, indent=2)
    print()


def probe(config: Config, rows: int) -> dict[str, Any]:
    """All that is printed; see the module's docstring.

    Args:
        config: whose base and cache.
        rows: train rows at most.
    """
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    train, validation = cache.split("train"), cache.split("validation")
    fitted, scored = paired_rows(train)[:rows], paired_rows(validation)
    base = load_base(config.model)
    size = 32 if config.evaluate.batch_size == "auto" else config.evaluate.batch_size
    known, asked = (states_of(base, *part, cache.pad_id, size) for part in ((train, fitted), (validation, scored)))
    labels, answers = train.labels[fitted], validation.labels[scored]
    return {
        "base": config.model.base,
        "languages": {"source": config.task.source_language, "target": config.task.target_language},
        "rows": {"train": len(fitted), "validation": len(scored)},
        "majority_share": round(float(np.mean(answers == np.bincount(labels).argmax())), 4),
        "standard_error": round(0.5 / len(scored) ** 0.5, 4),
        "layers": [
            {"layer": layer, **{place: accuracies(known, asked, place, layer, labels, answers) for place in PLACES}}
            for layer in tqdm(range(len(known[STREAMS[0], PLACES[0]])), desc="probes", unit="layer", file=sys.stderr)
        ],
    }


def paired_rows(split: CacheSplit) -> np.ndarray:
    """The numbers of the rows that have a source."""
    return np.flatnonzero(split.prompt_lengths("source"))


def states_of(base: PreTrainedModel, split: CacheSplit, rows: np.ndarray, pad_id: int, size: int) -> States:
    """Every state that is probed, of some rows of a split, in their order."""
    states: States = {}
    for stream in STREAMS:
        by_length = np.argsort(split.prompt_lengths(stream)[rows], kind="stable")
        found: dict[str, list[Tensor]] = {place: [] for place in PLACES}
        for batch in batches(split, stream, rows[by_length], pad_id, size):
            for place, state_KBD in read(base, batch).items():
                found[place].append(state_KBD)
        for place, parts in found.items():
            states[stream, place] = torch.cat(parts, 1)[:, np.argsort(by_length)].numpy()
    return states


def batches(split: CacheSplit, stream: str, rows: np.ndarray, pad_id: int, size: int) -> Iterator[Batch]:
    """One stream's prompts, laid out as in training."""
    for start in tqdm(range(0, len(rows), size), desc=stream, unit="batch", file=sys.stderr, leave=False):
        some = MicroBatch(rows[start : start + size], np.ones(len(rows[start : start + size]), np.float32))
        yield collate(split, some, streams=(stream,), objective="labels", pad_id=pad_id)


@torch.no_grad()
def read(base: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """The probed states of a batch by place, each [K, B, D]."""
    states = base.base_model(  # without the head, which is the largest part of a small model
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    state_KBLD = torch.stack(states).float()
    real_BL1 = batch.attention_mask[..., None].bool()
    mean_KBD = state_KBLD.where(real_BL1, 0.0).sum(2) / real_BL1.sum(1)
    return {"last": state_KBLD[:, :, batch.prompt_columns - 1], "mean": mean_KBD}


def accuracies(
    known: States, asked: States, place: str, layer: int, labels: np.ndarray, answers: np.ndarray
) -> dict[str, float]:
    """How often the probes of one layer are right: from the source, the target, and both."""
    found = {}
    for name, streams in {**{stream: (stream,) for stream in STREAMS}, "both": STREAMS}.items():
        fitted, scored = (np.hstack([part[stream, place][layer] for stream in streams]) for part in (known, asked))
        said = regression().fit(fitted, labels).predict(scored)
        found[name] = round(float(np.mean(said == answers)), 4)
    return found


def regression() -> Pipeline:
    """The probe: linear, on standardised states, as strongly regularised as unseen train rows want it."""
    chosen = {"Cs": STRENGTHS, "cv": FOLDS, "scoring": "neg_log_loss"}
    return make_pipeline(
        StandardScaler(), LogisticRegressionCV(**chosen, l1_ratios=(0,), max_iter=500, use_legacy_attributes=False)
    )


if __name__ == "__main__":
    main()
