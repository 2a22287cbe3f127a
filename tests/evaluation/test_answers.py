"""Free answers: the right window speaks for each example, and a QA task is learned on two real ZeRO-3 ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from flare_ds.adapters.files import load_adapter
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.data.cache.encode import form_of
from flare_ds.evaluation import answers
from flare_ds.evaluation.answers import best_windows, score_answers, unsayable
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.evaluate import _how_well
from flare_ds.evaluation.generate import Decoded, generate_split
from flare_ds.evaluation.scores import Scores
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import RunningModel, trainable_parameters
from flare_ds.scoring.predictions import PREDICTIONS, read_predictions
from flare_ds.training.state import Progress
from tests.distributed import run_ranks
from tests.qa_world import ROWS, qa_settings
from tests.report.runs import tables
from tests.toy import word_tokenizer, write_config

LIKELY = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([-3.0, -2.5, -1.0, -0.0])), min_size=1, max_size=30)


@given(LIKELY)
def test_the_likeliest_window_answers(rows: list[tuple[int, float]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    best: dict[int, int] = {}
    for number, (example, likely) in enumerate(rows):
        if example not in best or likely > rows[best[example]][1]:
            best[example] = number
    examples_n, likely_n = np.array([row[0] for row in rows], np.int32), [row[1] for row in rows]
    assert best_windows(examples_n, likely_n).tolist() == list(best.values())


WORDS = ("Rome", "Paris", "the", "moon")


def test_each_example_is_scored_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    golds = [["rome"], ["Paris of the moon", "moon"], ["Paris, not\nRome"]]
    split = SimpleNamespace(
        examples=np.array([0, 0, 1, 2, 2, 2], np.int32),
        clusters=np.array([7, 7, 7, 8, 8, 8]),
        ids=lambda row: "aabccc"[row],
        golds=lambda row: golds[[0, 0, 1, 2, 2, 2][row]],
    )
    cut_off = ([0, 1], [-0.6], False), ([0], [-0.3], False)  # the first does not speak for its example
    decoded = [([3], [-2.0], False), ([2, 0], [-0.5]), ([3], [-9.0]), ([], [-0.4]), *cut_off[::-1]]
    tokenizer = word_tokenizer(WORDS)
    first = tokenizer.convert_tokens_to_ids(WORDS[0])
    decoded = [([first + word for word in words], *rest) for words, *rest in decoded]
    monkeypatch.setattr(answers, "generate_split", lambda *_, **__: [Decoded(*answer) for answer in decoded])
    monkeypatch.setattr(answers, "_tokenizer", lambda _: tokenizer)
    cache = type("OneSplit", (), {"split": lambda self, name: split})()
    config = SimpleNamespace(model=None, task=SimpleNamespace(chat=False), generate=SimpleNamespace(max_new_tokens=2))
    scores = score_answers(Asked(None, cache, config), "test", metric="exact_match")  # type: ignore[arg-type]
    assert scores.clusters == [7, 7, 8]
    assert [(record["id"], record["prediction"]) for record in scores.records] == [
        ("a", "the Rome"),
        ("b", "moon"),
        ("c", "Rome"),
    ]
    assert [record["exact_match"] for record in scores.records] == [True, True, False]
    assert [record["answers"] for record in scores.records] == golds
    assert scores.score == scores.figures["exact_match"] == approx(2 / 3)
    assert scores.figures["f1"] == approx((1 + 1 + 1 / 2) / 3)
    assert scores.figures["cut_off"] == scores.figures["unsayable"] == approx(1 / 3)
    assert "1 of 3 right answers have more tokens than generate.max_new_tokens=2" in capsys.readouterr().err
    assert scores.outcomes == [True, True, False]
    monkeypatch.setattr(answers, "unsayable", lambda *_: pytest.fail("the right answers are tokenized again"))
    again = score_answers(Asked(None, cache, config), "test", metric="exact_match")  # type: ignore[arg-type]
    assert again.figures == scores.figures and scores.figures["empty"] == 0
    silent = [Decoded([], [-1.0])] * 3 + [Decoded(*answer) for answer in decoded[3:]]
    monkeypatch.setattr(answers, "generate_split", lambda *_, **__: silent)
    assert score_answers(Asked(None, cache, config), "test", metric="exact_match").figures["empty"] == approx(2 / 3)  # type: ignore[arg-type]


def test_an_answer_as_long_as_what_is_decoded_can_be_said() -> None:
    form = form_of(word_tokenizer(WORDS), chat=False)
    golds = [["Rome the moon"], ["Rome the moon Paris", "Paris moon"]]
    assert [unsayable(golds, form, most) for most in (1, 2, 3, 4)] == [1, 0.5, 0, 0]


def test_the_interval_of_a_score_draws_the_rows_of_a_cluster_together() -> None:
    """Ten rows that all say what one does leave it as wide as that one does."""
    right, found = [True, False, True, True, False] * 4, []
    for copies in (1, 10):
        rows = [{"cluster": number, "exact_match": one} for number, one in enumerate(right) for _ in range(copies)]
        told = _how_well(Scores("exact_match", "generated", {"exact_match": 0.6}, rows), seconds=1.0)
        assert (told["num_examples"], told["num_clusters"]) == (20 * copies, 20)
        found.append(told["confidence_interval"])
    assert found[0] == approx(found[1]) and 0.3 < found[0][0] < 0.45 and 0.75 < found[0][1] < 0.9  # .6 ± 1.96 · .11


def test_f1_breaks_ties_of_exact_match() -> None:
    few, same, more = (
        Scores("exact_match", "generated", {"exact_match": em, "f1": f1}, []).standing
        for em, f1 in ((0, 0.3), (0, 0.2), (0.1, 0.1))
    )
    assert Progress("").best_standing < same < few < more
    of_labels = Scores("macro_f1", "ranked", {"accuracy": 0.9, "macro_f1": 0.4, "loss": 1.0}, [])
    assert of_labels.score == 0.4 and of_labels.standing == Scores("macro_f1", "ranked", {"macro_f1": 0.4}, []).standing


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return qa_settings(tmp_path_factory.mktemp("qa"), steps=80, validate_every=20)


@pytest.fixture(scope="module")
def learned(settings: dict) -> Path:
    """Trained and evaluated on two ranks."""
    config = str(write_config(settings))
    run_ranks(["flare_ds", "train", config], 2)
    run_ranks(["flare_ds", "evaluate", config], 2)
    return Path(settings["run_dir"])


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(settings: dict) -> tuple[Config, Cache, RunningModel]:
    """The run's cache, and its model with a fresh adapter, in this process."""
    config = Config.model_validate(settings)
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    model = build_model(config, label_tokens=[]).eval()
    return config, cache, RunningModel(model, model)


def test_a_qa_task_is_learned_from_cache_to_score(learned: Path, settings: dict) -> None:
    config, cache, running = opened(settings)
    before = score_answers(Asked(running, cache, config), "test", metric="exact_match")
    metrics = json.loads((learned / "metrics.json").read_text())
    lines = read_predictions(learned / PREDICTIONS)
    assert metrics["metric"] == "exact_match" and metrics["num_examples"] == len(lines) == ROWS["test"]
    assert metrics["answers"] == "generated"
    assert before.score < 0.1 and metrics["score"] > 0.75
    assert metrics["score"] == approx(np.mean([line["exact_match"] for line in lines]))
    figures = {name: np.mean([line[name] for line in lines]) for name in ("exact_match", "f1")}
    assert metrics["figures"] == approx({**figures, "cut_off": 0, "empty": 0, "unsayable": 0})
    lo, hi = metrics["confidence_interval"]
    assert lo <= metrics["score"] <= hi
    raw = read_lines(Path(settings["task"]["data_dir"]) / "pl/test.jsonl")
    assert {line["id"]: line["answers"] for line in lines} == {row["id"]: row["answers"]["text"] for row in raw}
    for line in lines:
        assert line["exact_match"] == (line["prediction"].lower() == line["answers"][0])


def test_the_window_that_holds_the_answer_speaks(learned: Path, settings: dict) -> None:
    """One process without an engine, rows decoded one at a time, and another choice say what the two ranks said."""
    config, cache, running = opened(settings)
    parameters = trainable_parameters(running.model)
    for name, tensor in load_adapter(learned / "adapter", parameters).items():
        parameters[name].data.copy_(tensor)
    alone = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"batch_size": 1})})
    decoded = generate_split(Asked(running, cache, alone), "test")
    split, tokenizer = cache.split("test"), load_tokenizer(config.model)
    windows: dict[str, list[Decoded]] = {}
    for row, answer in enumerate(decoded):
        windows.setdefault(split.ids(row), []).append(answer)
    assert sum(len(of_example) > 2 for of_example in windows.values()) == ROWS["test"] // 2
    lines = read_predictions(learned / PREDICTIONS)
    assert [line["id"] for line in lines] == list(windows)
    for line in lines:
        best = max(windows[line["id"]], key=lambda answer: answer.log_probability)
        assert line["prediction"] == tokenizer.decode(best.tokens)
        assert line["log_probability"] == approx(best.log_probability, abs=1e-4)
    read_long = [line for line in lines if len(windows[line["id"]]) > 2]
    first = [tokenizer.decode(windows[line["id"]][0].tokens) == line["answers"][0] for line in read_long]
    assert np.mean([line["exact_match"] for line in read_long]) > np.mean(first) + 0.3


def test_a_long_text_on_the_command_line_is_answered_as_in_the_cache(learned: Path, settings: dict) -> None:
    line = read_predictions(learned / PREDICTIONS)[-1]
    texts = {}
    for option, language in (("--source", "en"), ("--target", "pl")):
        rows = read_lines(Path(settings["task"]["data_dir"]) / language / "test.jsonl")
        (row,) = [row for row in rows if row["id"] == line["id"]]
        texts[option] = json.dumps({"text": row["text"], "question": row["question"]})
    both = [word for option in texts.items() for word in option]
    (output,) = run_ranks(["flare_ds", "predict", str(learned), *both], 1)
    assert output.strip().splitlines()[-1] == line["prediction"]
    (refused,) = run_ranks(["flare_ds", "predict", str(learned), "--source", "x", "--target", "x"], 1, expect=1)
    assert "does not give text and question of task who" in refused


def test_the_best_adapter_is_kept(learned: Path) -> None:
    validations = [line for line in read_lines(learned / "train_log.jsonl") if "validation_score" in line]
    untrained, *validations = validations
    assert untrained["step"] == 0 and [line["step"] for line in validations] == [20, 40, 60, 80]
    standings = [(line["validation_exact_match"], line["validation_f1"]) for line in validations]
    assert [line["validation_score"] for line in validations] == [standing[0] for standing in standings]
    best = validations[standings.index(max(standings))]
    training = json.loads((learned / "training.json").read_text())
    assert training["best_step"] == best["step"]
    assert training["best_validation_score"] == best["validation_score"]
    validated, tested = tables((learned / "adapter/README.md").read_text())[0]
    assert validated["split"] == f"validation (step {best['step']})"
    assert validated["exact match"] == f"{best['validation_exact_match']:.4f}"
    assert tested["examples"] == str(ROWS["test"])
