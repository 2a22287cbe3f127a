"""Label scores of the source, added late: against two forwards of slow oracles and a sum in float64.

The model at hand gives both; the oracle of the source has no adapter at all.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flare_ds.batches.rows_read import rows_read
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation import ranked
from flare_ds.evaluation.answerable import check_late, refuse_to_write
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.late import added, late_scores, settled
from flare_ds.evaluation.ranked import label_scores, score_labels
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import RunningModel
from tests.by_hand import LENGTHS, build, make_config, make_rows, oracle_base
from tests.evaluation.test_ranked import WORDS, Given, batch_of, oracle_of, scored_by
from tests.evaluation.test_ranked_methods import BaseAlone
from tests.oracle import Row

TOKENS = SimpleNamespace(prefix_ids=[], suffix_ids=[], newline_ids=[7, 8])
ROWS = make_rows(2, LENGTHS[:4])
HAS = [bool(row.sources[0][0]) for row in ROWS]


class Prompts(Given):
    """Rows that also say how long their prompts are."""

    def prompt_lengths(self, stream: str) -> np.ndarray:
        return np.array([len(self.prompt(stream, row)) for row in range(len(self))])


def with_late(config: Config, weight: float | None) -> Config:
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"late": weight})})


def both(config: Config, words: list[list[int]], weight: float | None) -> tuple[Tensor, Tensor, Any]:
    """What is said of the rows, the method's own scores of them, and the model."""
    model = build("gemma2", config, words=words).eval()
    given, running, trie = Prompts(ROWS, words), RunningModel(model, model), LabelTrie(words)

    def ask(asked: Config) -> list[list[float]]:
        return label_scores(running, batch_of(rows_read(given, asked, TOKENS), asked, None), trie, asked).tolist()

    found_nK, figures = late_scores(ask, given, with_late(config, weight))
    assert figures == ({"late": weight or 1.0} if weight or config.recipe.late else {})
    return torch.from_numpy(found_nK), torch.tensor(ask(config), dtype=torch.float64), model


def expected_of(own_nK: Tensor, config: Config, words: list[list[int]], weight: float) -> Tensor:
    """The sum, word by word and row by row, in float64."""
    alone = BaseAlone(oracle_base("gemma2"), {}, config.adapter)
    rows = []
    for own_K, row, has in zip(own_nK, ROWS, HAS, strict=True):
        sum_K = own_K + weight * scored_by(alone, Row(row.sources[0][0], []), words) if has else own_K
        rows.append(sum_K - torch.logsumexp(sum_K, 0))
    return torch.stack(rows)


@pytest.mark.parametrize("weight", [None, 0.3])
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("name", ["part at once", "several nodes"])
def test_the_method_is_lora_and_the_base_in_a_sum(name: str, objective: str, weight: float | None) -> None:
    words, config = WORDS[name], make_config(method="late", objective=objective)
    found_nK, _, model = both(config, words, weight)
    oracle = oracle_of(model, config, words)
    with torch.no_grad():
        own_nK = torch.stack([scored_by(oracle, Row(row.target, []), words) for row in ROWS])
        expected_nK = expected_of(own_nK, config, words, 1.0 if weight is None else weight)
    torch.testing.assert_close(found_nK, expected_nK, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_nK.exp().sum(1), torch.ones(len(ROWS), dtype=torch.float64))
    assert (expected_nK - own_nK).abs().max(1).values[HAS].min() > 1e-3, "the source matters"


@pytest.mark.parametrize(
    "case",
    [
        {"method": "lora"},
        {"method": "input_fusion"},
        {"method": "x_mixup", "mixup": {"layer": 1}},
        {"method": "source_prefix"},
        {"span": "full"},
        {"sources": 2},
    ],
    ids=str,
)
def test_it_stands_on_any_method(case: dict[str, Any]) -> None:
    words, config = WORDS["share a token"], make_config(objective="labels", **case)
    found_nK, own_nK, _ = both(config, words, 0.5)
    with torch.no_grad():
        expected_nK = expected_of(own_nK, config, words, 0.5)
    torch.testing.assert_close(found_nK, expected_nK, atol=1e-5, rtol=1e-5)


def test_a_row_without_a_source_keeps_its_scores_bit_for_bit() -> None:
    found_nK, own_nK, _ = both(make_config(method="late", objective="labels"), WORDS["share a token"], 1.0)
    assert not all(HAS) and torch.equal(found_nK[~torch.tensor(HAS)], own_nK[~torch.tensor(HAS)])


class Split(Prompts):
    """Rows of a cache."""

    ids, clusters = str, np.zeros(len(ROWS), int)


def test_the_base_is_asked_once_about_the_sources_of_each_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation and test rows are others, though there may be as many of both."""
    config, words, asked_of = make_config(method="late", objective="labels"), [[5], [9]], list[str]()
    of_source = {"validation": [0.9, 0.1], "test": [0.2, 0.8]}

    def ask(_: object, asked: Asked, split_name: str) -> list[list[float]]:
        if asked.config is config:
            return np.log([[0.5, 0.5]] * len(ROWS)).tolist()
        asked_of.append(split_name)
        return np.log([of_source[split_name]] * len(ROWS)).tolist()

    monkeypatch.setattr(ranked, "ask_each_row", ask)
    rows = Split(ROWS, words)
    cache = SimpleNamespace(path="cache", label_tokens=words, labels=["yes", "no"], split=lambda _: rows)
    asked = Asked(RunningModel(SimpleNamespace(eval=lambda: None), None), cache, config)  # type: ignore[arg-type]
    for split_name, said in (("validation", "yes"), ("test", "no"), ("validation", "yes")):
        records = score_labels(asked, split_name, metric="accuracy").records
        assert {record["prediction"] for record, has in zip(records, HAS, strict=True) if has} == {said}, split_name
    assert asked_of == ["validation", "test"]


def test_words_that_both_exclude_stay_excluded() -> None:
    """In the logarithm of a probability of nothing there is no number that is not one."""
    low = np.log(np.array([[1e-300, 1 - 1e-300]]))
    found = added(low, low, np.array([True]), 2.0)
    assert np.isfinite(found).all() and found[0, 0] < -2000 and found[0, 1] == 0


@pytest.mark.parametrize(("sure", "between"), [(1.0, (0.05, 4)), (0.2, (4, 15))])
def test_the_fitted_weight_is_the_likeliest_of_many(sure: float, between: tuple[float, float]) -> None:
    """Of a base that is unsure of all it says it is a large one."""
    draw = np.random.default_rng(0)
    own_nK, source_nK = (np.log(draw.dirichlet([1.0, 1.0, 1.0], 200)) for _ in range(2))
    source_nK *= sure
    labels_n = np.where(draw.random(200) < 0.6, source_nK.argmax(1), draw.integers(0, 3, 200))
    alone = draw.random(200) < 0.2

    def loss(weight: float) -> float:
        shares_nK = np.exp(own_nK) * np.exp(source_nK) ** weight
        shares_nK /= shares_nK.sum(1, keepdims=True)
        return -np.log(shares_nK[np.arange(200), labels_n])[~alone].sum()

    rows = SimpleNamespace(prompt_lengths=lambda _: np.where(alone, 0, 3))
    config = with_late(make_config(method="late"), "fitted")
    found_nK, figures = late_scores(lambda c: own_nK if c is config else source_nK, rows, config, labels_n)
    best = min(np.arange(0, 16, 0.01), key=loss)
    assert between[0] < best < between[1] and figures["late"] == pytest.approx(best, abs=0.01)
    np.testing.assert_array_equal(found_nK[alone], own_nK[alone])
    np.testing.assert_array_equal(found_nK, added(own_nK, source_nK, ~alone, figures["late"]))


def test_a_fitted_weight_is_kept_with_the_adapter(tmp_path: Path) -> None:
    config = with_late(make_config(method="late"), "fitted").model_copy(update={"run_dir": str(tmp_path)})
    (tmp_path / "adapter").mkdir()
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"flare_ds": json.dumps({"validation": {"step": 3, "late": 0.25}})})
    assert settled(config).late == 0.25 and settled(with_late(config, 2.0)).late == 2.0
    RunDirectory(tmp_path).claim(with_late(config, 0.25))
    with pytest.raises(CheckpointError, match="no weight was fitted while"):
        settled(config)  # that weight was given; a validation tells it all the same
    RunDirectory(tmp_path).claim(config)
    assert settled(config).late == 0.25
    save_file({"x": torch.zeros(1)}, file, {"flare_ds": json.dumps({"validation": {"step": 3}})})
    with pytest.raises(CheckpointError, match="no weight was fitted while") as refused:
        settled(config)
    assert refused.value.fix.endswith("or train a new run with evaluate.late=fitted"), "this one refuses it"


class OtherWords:
    """A task with label words of its own in each language."""

    name, free_answers = "moods", False

    def label_words(self, language: str) -> tuple[str, ...]:
        return ("yes", "no") if language == "en" else ("tak", "nie")


@pytest.mark.parametrize(
    ("task", "changed", "told", "fix"),
    [
        (OtherWords(), {}, "other label words in en than in pl", "leave late out"),
        (SimpleNamespace(free_answers=True), {}, "ranks label words", "leave late out"),  # it has none to rank
        (OtherWords(), {"answers": "generated"}, "ranks label words", "rank label words"),
    ],
)
def test_what_cannot_be_added_is_refused(task: Any, changed: dict[str, Any], told: str, fix: str) -> None:
    config = make_config(method="late")
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changed)})
    with pytest.raises(ConfigError, match=told) as refused:
        check_late(config, task)
    assert refused.value.fix.startswith(fix)
    assert refused.value.fix.endswith("method=lora, in a new run"), "of method late no weight means 1"
    check_late(make_config(method="lora"), task)
    with pytest.raises(ConfigError, match=told) as refused:
        check_late(with_late(config.model_copy(update={"method": "lora"}), 1.0), task)
    assert refused.value.fix.endswith("evaluate.late=null")


def test_answers_are_not_written() -> None:
    refuse_to_write(make_config(method="lora"))
    with pytest.raises(ConfigError, match="would have to agree on every token"):
        refuse_to_write(with_late(make_config(method="lora"), 1.0))
