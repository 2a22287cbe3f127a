"""Fusing two source languages, on two real ZeRO-3 ranks, in a world whose label only both together tell.

English says whether the label is one of the first two, German whether it is the even one, and the Polish target says
nothing. So one source leaves two labels to guess between, however well it is read.
"""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from flare_ds.adapters.files import load_adapter
from flare_ds.batches.collate import Batch
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.split import score_split
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import RunningModel, trainable_parameters
from flare_ds.settings import parse_config
from tests.distributed import run_ranks
from tests.toy import FILLER, LABELS, toy_settings, write_config, write_model

CLUES = {"en": ("great", "great", "awful", "awful"), "de": ("plain", "mixed", "plain", "mixed"), "pl": None}


def write_data(directory: Path, rows: int = 600) -> None:
    """MultiEmo files in which no language alone tells the label; German texts differ most in length."""
    directory.mkdir()
    for domain in ("medicine", "products"):
        labels = random.Random(domain).choices(range(len(LABELS)), k=rows)
        for language, clues in CLUES.items():
            draw = random.Random(f"{domain}-{language}")
            examples = []
            for label in labels:
                words = draw.choices(FILLER, k=draw.randint(4, 9 if language == "de" else 6))
                if clues is not None:
                    words.insert(draw.randint(0, len(words)), clues[label])
                scores = {word: int(number == label) for number, word in enumerate(LABELS)}
                examples.append({"input": " ".join(words), "target_scores": scores})
            path = directory / f"{domain}_sentence_{language}.json"
            path.write_text(json.dumps({"examples": examples}), encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    write_model(root / "model")
    write_data(root / "data")
    return root


LEARN = {
    "steps": 100,
    "batch_size": 32,
    "micro_batch_size": 16,
    "learning_rate": 0.02,
    "validate_every": 25,
    "save_every": 1000,
}


def settings(root: Path, *extra: str) -> dict:
    """A run that fuses English, and what is given beside it."""
    found = toy_settings(root, name="+".join(["en", *extra]), **LEARN)
    found["task"] |= {"extra_source_languages": list(extra), "validation_rows": 100, "test_rows": None}
    found["adapter"] = {"source_weights": "learned", "pairing": "module"}
    found["evaluate"] = {"batch_size": 25}  # three of them, and so a filler for one of two ranks
    return found


def train(settings: dict) -> tuple[float, str]:
    """Train on two ranks; returns the best validation score and what the first rank printed."""
    output, _ = run_ranks(["flare_ds", "train", str(write_config(settings))], 2)
    return json.loads((Path(settings["run_dir"]) / "training.json").read_text())["best_validation_score"], output


@pytest.fixture(scope="module")
def of_both(root: Path) -> tuple[float, str]:
    return train(settings(root, "de"))


def test_two_sources_tell_together_what_neither_tells_alone(root: Path, of_both: tuple[float, str]) -> None:
    assert of_both[0] > 0.9
    alone, _ = train(settings(root))
    assert 0.3 < alone < 0.65  # it reads English, so half of what there is; .5 expected, its standard error .05


def test_the_share_of_the_source_is_on_the_board_and_not_on_the_console(root: Path, of_both: tuple[float, str]) -> None:
    log = map(json.loads, (root / "en+de/train_log.jsonl").read_text().splitlines())
    shares = {line["step"]: line["source_share"] for line in log if "source_share" in line}
    fused = [f"layers.{layer}.{module}" for layer in range(2) for module in ("self_attn.o_proj", "mlp.down_proj")]
    assert list(shares) == [25, 50, 75, 100]
    assert all(list(share) == fused and min(share.values()) > 0 for share in shares.values())
    board = EventAccumulator(str(root / "en+de"))
    board.Reload()
    means = {event.step: event.value for event in board.Scalars("source/share_mean")}
    assert means == pytest.approx({step: sum(share.values()) / 4 for step, share in shares.items()})
    assert [event.step for event in board.Images("source/share_by_layer")] == [25, 50, 75, 100]
    assert "source_share" not in of_both[1]


def test_the_share_of_the_source_is_that_of_all_rows_whichever_rank_reads_them(
    root: Path, of_both: tuple[float, str]
) -> None:
    """Measured again in this process, with the adapter that was kept."""
    config = parse_config(settings(root, "de"), origin="test")
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    model = build_model(config, label_tokens=cache.label_tokens).eval()
    parameters, run = trainable_parameters(model), RunDirectory(config.run_dir)
    for name, tensor in load_adapter(run.path / "adapter", parameters).items():
        parameters[name].data.copy_(tensor)
    with model.streams.measuring() as energies:
        score_split(Asked(RunningModel(model, model), cache, config), "validation")
    best = run.read("training.json")["best_step"]
    (told,) = (line["source_share"] for line in run.train_log() if line["step"] == best and "source_share" in line)
    shares = {name[name.index("layers.") :]: math.sqrt(part / all_of) for name, (part, all_of) in energies.items()}
    assert told == pytest.approx(shares, rel=1e-4)


class _Recorder:
    """Stands in for a model: knows nothing, and remembers the size of its batches."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def eval(self) -> None:
        pass

    def __call__(self, batch: Batch) -> Tensor:
        rows = len(batch.weights_B)
        self.sizes.append((rows, batch.prompt_columns))
        return torch.zeros(rows, 1, len(LABELS))


def test_rows_are_batched_by_their_longest_stream(root: Path) -> None:
    """Most often that is German here; a batch is as wide as the next row in the order of these lengths."""
    config = parse_config(settings(root, "de") | {"evaluate": {"batch_size": 16}}, origin="test")
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    recorder = _Recorder()
    model = SimpleNamespace(base=load_shape(config.model))
    running = SimpleNamespace(root=recorder, model=model, device=torch.device("cpu"))
    score_split(Asked(running, cache, config), "test")  # type: ignore[arg-type]
    split = cache.split("test")
    streams = ("source", "source2", "target")
    longest = sorted((max(len(split.prompt(name, row)) for name in streams) for row in range(len(split))), reverse=True)
    for rows, columns in recorder.sizes:
        assert columns == longest[0]
        del longest[:rows]
    assert longest == []
