"""Label words told apart by their trie: scores, losses and gradients against the slow oracle, word by word.

The oracle reads each prompt and each beginning of a word in a forward of its own.
"""

import json
import random
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, StoredStates, collate
from flare_ds.batches.workload import streams_of
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.row_answers import Rows
from flare_ds.evaluation.ranked import label_scores
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import RunningModel
from tests.by_hand import LENGTHS, build, make_config, make_oracle, make_rows, oracle_base, short_name
from tests.distributed import run_ranks
from tests.oracle import Oracle, Row
from tests.toy import FILLER, toy_settings, word_tokenizer, write_config, write_model

WORDS = {
    "part at once": [[5, 6], [9], [30, 2]],
    "share a token": [[5, 6], [5, 7, 11], [9]],
    "part behind two": [[5, 6, 7], [5, 6, 8, 9]],
    "several nodes": [[5, 6, 7], [5, 6, 8], [5, 9], [10, 11, 12, 5], [10, 11, 12, 13]],
    "begin another": [[5, 6, 2], [5, 2], [7, 2]],
}
CASES: list[dict[str, Any]] = [
    {"method": "lora"},
    {"sources": 2, "align": "stretch"},
    {"span": "full"},
    {"train_head": True},
]


class Given:
    """Rows of the oracle, as a cache has them."""

    def __init__(self, rows: list[Row], words: list[list[int]]) -> None:
        self.rows, self.words = rows, words
        self.labels = np.arange(len(rows)) % len(words)

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, stream: str, row: int) -> np.ndarray:
        of_row = self.rows[row]
        number = int(stream.removeprefix("source") or 1) - 1 if stream != "target" else None
        return np.array(of_row.target if number is None else of_row.sources[number][0], np.int64)

    def answer(self, stream: str, row: int) -> np.ndarray:
        return np.array(self.words[self.labels[row]] if len(self.prompt(stream, row)) else [], np.int64)


def batch_of(given: Rows, config: Config, trie: LabelTrie | None, stored: StoredStates | None = None) -> Batch:
    rows = np.arange(len(given.labels))
    return collate(
        given,
        MicroBatch(rows, np.ones(len(rows), np.float32)),
        streams=streams_of(config),
        objective="labels",
        pad_id=0,
        source_answers=config.adapter.span == "full",
        source_targets=trie is not None and config.recipe.fuses == "mixup",
        trie=trie,
        stored=stored,
    )


def scored_by(oracle: Oracle, row: Row, words: list[list[int]]) -> Tensor:
    """Log-probability of each word: where others could go on otherwise, that of its token among theirs."""
    scores = []
    for word in words:
        score = torch.zeros((), dtype=torch.float64)
        for place, token in enumerate(word):
            others = sorted({other[place] for other in words if other[:place] == word[:place]})
            if len(others) > 1:
                read = [*word[:place], 0]
                asked = Row(row.target, read, [(prompt, read if prompt else []) for prompt, _ in row.sources])
                logits_V = oracle.logits(asked, len(read))[-1]
                score = score + logits_V[token] - torch.logsumexp(logits_V[others], 0)
        scores.append(score)
    return torch.stack(scores)


def oracle_of(model: TwoStreamModel, config: Config, words: list[list[int]]) -> Oracle:
    """An oracle over the whole vocabulary, whose rows for the words' tokens are those that train."""
    oracle = make_oracle(model, oracle_base("gemma2"), config)
    oracle.head_rows = None
    if config.adapter.train_head and config.train.objective == "labels":
        oracle.of_words = oracle.trained["lm_head.weight"]  # type: ignore[attr-defined]
        tokens = torch.tensor(LabelTrie(words).tokens)
        oracle.trained["lm_head.weight"] = oracle.base.head().index_put((tokens,), oracle.of_words)
    return oracle


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize(
    ("name", "case"), [*product(WORDS, CASES[2:3]), *product(["several nodes"], CASES[:2] + CASES[3:])], ids=str
)
def test_scores_are_those_of_the_oracle(name: str, case: dict[str, Any], objective: str) -> None:
    words, config = WORDS[name], make_config(objective=objective, **case)
    rows = make_rows(config.sources, LENGTHS[2:4])
    model = build("gemma2", config, words=words).eval()
    batch = batch_of(Given(rows, words), config, None)
    found_BK = label_scores(RunningModel(model, model), batch, LabelTrie(words), config)
    oracle = oracle_of(model, config, words)
    with torch.no_grad():
        expected_BK = torch.stack([scored_by(oracle, row, words) for row in rows])
    torch.testing.assert_close(found_BK.double(), expected_BK, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_BK.exp().sum(1), torch.ones(len(rows)))


@pytest.mark.parametrize(
    ("name", "case"), [*product(["share a token", "begin another"], CASES[2:3]), *product(["several nodes"], CASES)]
)
def test_loss_and_gradients_are_those_of_the_oracle(name: str, case: dict[str, Any]) -> None:
    words, config = WORDS[name], make_config(objective="labels", **case)
    given = Given(make_rows(config.sources, LENGTHS[2:4]), words)
    model = build("gemma2", config, words=words)
    oracle = oracle_of(model, config, words)
    loss = model(batch_of(given, config, LabelTrie(words)), with_loss=True)
    loss.backward()
    expected = -sum(scored_by(oracle, row, words)[label] for row, label in zip(given.rows, given.labels, strict=True))
    torch.testing.assert_close(loss.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    expected.backward()
    for name_, parameter in model.named_parameters():
        if parameter.requires_grad:
            short = short_name(name_)
            wanted = oracle.of_words if short == "lm_head.weight" else oracle.trained[short]
            scale = wanted.grad.abs().max().item()
            torch.testing.assert_close(parameter.grad.double(), wanted.grad, atol=1e-5 * scale + 1e-7, rtol=1e-4)


def test_one_forward_where_words_part_at_once_and_no_more_than_it_takes() -> None:
    config = make_config(method="lora", objective="labels")
    for name, forwards in {"part at once": 1, "share a token": 1, "part behind two": 1, "several nodes": 2}.items():
        asked: list[Batch] = []
        words = WORDS[name]
        model = build("gemma2", config, words=words)
        root = lambda batch, model=model, asked=asked: asked.append(batch) or model(batch)  # noqa: E731
        prompts = batch_of(Given(make_rows(0), words), config, None)
        label_scores(SimpleNamespace(root=root, device=prompts.weights_B.device), prompts, LabelTrie(words), config)
        assert len(asked) == forwards
        assert torch.equal(asked[0].input_ids, prompts.input_ids) == (name == "part at once")


@pytest.mark.parametrize("name", WORDS)
def test_the_loss_of_mixup_is_that_of_its_scores(name: str) -> None:
    """Of both streams, where nothing else is weighed."""
    words = WORDS[name]
    settings = {"source_weight": 0.25, "mse_weight": 0.0, "kl_weight": 0.0, "layer": 1}
    config = make_config(method="x_mixup", objective="labels", mixup=settings)
    rows = [row for row in make_rows(1) if row.sources[0][0]]
    given = Given(rows, words)
    model = build("gemma2", config, words=words).eval()
    running, trie = RunningModel(model, model), LabelTrie(words)
    loss = model(batch_of(given, config, trie), with_loss=True)
    alone = Given([Row(row.sources[0][0], [], [([], [])]) for row in rows], words)
    mine, of_source = (label_scores(running, batch_of(of, config, None), trie, config) for of in (given, alone))
    places = torch.arange(len(rows)), torch.from_numpy(given.labels)
    expected = -(0.75 * mine[places] + 0.25 * of_source[places]).sum()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


SAID = {"very good": "great", "very bad": "awful", "good": "plain"}


def write_words(root: Path) -> dict[str, Any]:
    """A toy world whose label words share their first token, or are the second of another's; its settings."""
    write_model(root / "model", tokenizer=word_tokenizer(["Say", ":", "very", "good", "bad", *SAID.values(), *FILLER]))
    draw, words = random.Random(0), list(SAID)
    for split, size in {"train": 600, "validation": 80, "test": 4}.items():
        lines = []
        for number in range(size):
            text = [*draw.choices(FILLER, k=5), SAID[words[number % 3]]]
            draw.shuffle(text)
            lines.append(json.dumps({"text": f"{split} {number} {' '.join(text)}", "label": words[number % 3]}) + "\n")
        (root / "data/en").mkdir(parents=True, exist_ok=True)
        (root / f"data/en/{split}.jsonl").write_text("".join(lines))
    task = {"name": "words", "languages": ["en"], "pools": ["train", "validation", "test"], "fields": ["text"]}
    (root / "words.yaml").write_text(yaml.safe_dump(task | {"labels": words, "template": "{text} Say:"}))
    learn = {"steps": 40, "batch_size": 16, "validate_every": 20, "save_every": 1000}
    settings = toy_settings(root, method="lora", **learn)
    given = {"name": "words", "path": str(root / "words.yaml"), "data_dir": str(root / "data"), "target_language": "en"}
    return settings | {"task": given}


def test_words_that_share_their_first_token_are_learned(tmp_path: Path) -> None:
    settings = write_words(tmp_path)
    run_ranks(["flare_ds", "train", str(write_config(settings))], 1)
    found = json.loads((Path(settings["run_dir"]) / "training.json").read_text())
    assert found["start_validation_score"] < 0.6 and found["best_validation_score"] > 0.95
