"""Each method against lora: differences, intervals and tests computed again here, another way."""

import math

import numpy as np
import pandas as pd
import pytest

from flare_ds.methods import METHODS
from flare_ds.reporting import report
from flare_ds.settings import load_config
from tests.report.runs import bounds, differences, methods, random_correct, write_run, write_scores


def test_a_method_minus_lora_pairs_rows_by_id_for_each_seed_and_for_all(tmp_path):
    difference = []
    for seed in (1, 2):
        flare, lora = random_correct(seed, 0.7), random_correct(seed + 10, 0.5)
        write_run(tmp_path, f"pl/flare-seed{seed}", "flare", seed, flare)
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, lora)
        predictions = tmp_path / f"pl/lora-seed{seed}/predictions.parquet"
        pd.read_parquet(predictions)[::-1].to_parquet(predictions)
        difference.append(flare.astype(float) - lora)
    lines = differences(report(tmp_path).text)
    for seeds, values in {"1": difference[0], "2": difference[1], "1, 2": np.mean(difference, axis=0)}.items():
        half = 1.96 * values.std() / np.sqrt(len(values))
        line = lines["flare", seeds]
        assert float(line["method − lora"]) == pytest.approx(values.mean(), abs=5e-4)
        assert bounds(line) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.007)


def test_every_method_is_compared_with_lora(tmp_path):
    """Each with lora of the same seed; what trains nothing with lora of every seed."""
    shares = {method: 0.3 + 0.07 * number for number, method in enumerate(METHODS)}
    correct = {}
    for method, share in shares.items():
        for seed in (1, 2) if METHODS.get(method).trains else (1,):
            correct[method, seed] = random_correct(seed + 10 * len(correct), share)
            write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, correct[method, seed])
    write_run(tmp_path, "pl/flare-zh", "flare", 1, [True], target="zh")
    lines = differences(report(tmp_path).text)
    assert lines.keys() == {(method, seeds) for method in METHODS if method != "lora" for seeds in ("1", "2", "1, 2")}
    for (method, seeds), line in lines.items():
        pairs = [
            (correct.get((method, int(s)), correct[method, 1]), correct["lora", int(s)]) for s in seeds.split(", ")
        ]
        mean = np.mean([a.mean() - b.mean() for a, b in pairs])
        assert float(line["method − lora"]) == pytest.approx(mean, abs=5.1e-4)
        if len(pairs) > 1:
            assert (line["McNemar p"], line["right alone : lora alone"]) == ("-", "-")
            continue
        ((a, b),) = pairs
        wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
        tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
        assert line["right alone : lora alone"] == f"{wins} : {losses}"
        assert float(line["McNemar p"]) == pytest.approx(min(1, 2 * tail), rel=0.06)


def test_methods_that_say_the_same_do_not_differ(tmp_path):
    for method in ("flare", "lora"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, False])
    line = differences(report(tmp_path).text)["flare", "1"]
    assert (line["method − lora"], line["right alone : lora alone"], line["McNemar p"]) == ("+0.000", "0 : 0", "1")


def test_runs_scored_on_different_rows_are_not_compared(tmp_path):
    write_run(tmp_path, "pl/flare-seed1", "flare", 1, [True, True])
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True, False])
    text = report(tmp_path).text
    assert "scored on different test rows" in differences(text)["flare", "1"]["method − lora"]
    assert "+0." not in text


def test_free_answers_are_compared_by_their_exact_matches(tmp_path):
    matches = {}
    for method, share in (("flare", 0.7), ("lora", 0.5)):
        for seed in (1, 2):
            found = matches[method, seed] = random_correct(seed + len(method), share)
            # What was said never equals a gold answer letter by letter.
            rows = [
                {"id": f"r{i}", "answers": ["Rome"], "prediction": "rome.", "exact_match": bool(match), "f1": 0.9}
                for i, match in enumerate(found)
            ]
            directory = write_run(tmp_path, f"hi/{method}-seed{seed}", method, seed, [True])
            write_scores(directory, "exact_match", float(found.mean()), rows)
    text = report(tmp_path).text
    (line,) = [line for line in methods(text) if line["method"] == "lora"]
    assert float(line["score"]) == pytest.approx(np.mean([matches["lora", seed] for seed in (1, 2)]), abs=5e-4)
    values = sum(matches["flare", seed].astype(float) - matches["lora", seed] for seed in (1, 2)) / 2
    half = 1.96 * values.std() / np.sqrt(len(values))
    lines = differences(text)
    assert float(lines["flare", "1, 2"]["method − lora"]) == pytest.approx(values.mean(), abs=5e-4)
    assert bounds(lines["flare", "1, 2"]) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.007)
    wins, losses = (int((matches[a, 1] & ~matches[b, 1]).sum()) for a, b in (("flare", "lora"), ("lora", "flare")))
    assert lines["flare", "1"]["right alone : lora alone"] == f"{wins} : {losses}"
    assert "Score: exact_match on 300 test rows" in text


def test_macro_f1_is_compared_as_itself_not_as_a_mean_over_rows(tmp_path):
    """The rare class decides macro F1 and hardly moves accuracy."""
    true = ["neutral"] * 180 + ["negative"] * 20
    said = {"flare": true, "lora": ["neutral"] * 200}
    for method, predictions in said.items():
        directory = write_run(tmp_path, f"ace/{method}-seed1", method, 1, [True])
        rows = [
            {"id": f"r{i}", "label": label, "prediction": prediction}
            for i, (label, prediction) in enumerate(zip(true, predictions, strict=True))
        ]
        write_scores(directory, "macro_f1", 1.0, rows)
    line = differences(report(tmp_path).text)["flare", "1"]
    f1 = 2 * 0.9 / 1.9 / 2  # of the lora run: the rare class is never right
    assert float(line["method − lora"]) == pytest.approx(1 - f1, abs=5e-4)
    samples = np.random.default_rng(0).binomial(200, 0.9, 20_000) / 200
    expected = np.quantile(1 - samples / (1 + samples), [0.025, 0.975])
    assert bounds(line) == pytest.approx(expected, abs=0.002)
    assert line["McNemar p"] == "-", "it is a test of right rows"


@pytest.mark.parametrize(("ours", "theirs"), [("accuracy", "macro_f1"), ("ranked", "generated")])
def test_runs_scored_in_different_ways_are_not_compared(tmp_path, ours, theirs):
    for method in ("flare", "lora"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, True])
    metrics = tmp_path / "pl/lora-seed1/metrics.json"
    assert ours in metrics.read_text()
    metrics.write_text(metrics.read_text().replace(ours, theirs))
    assert "by other metrics" in report(tmp_path).text


def test_seeds_that_were_run_with_other_batches_are_seeds_of_one_method(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True, seed == 1])
    second = tmp_path / "pl/lora-seed2"
    changed = load_config(second, ["evaluate.batch_size=4", "train.micro_batch_size=2", "cache_dir=elsewhere"])
    (second / "config.yaml").write_text(changed.to_yaml())
    assert "| 2 (1, 2)" in report(tmp_path).text
