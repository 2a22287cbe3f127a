"""Each method against lora: differences, intervals and tests computed again here, another way."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flare_ds.methods import METHODS
from flare_ds.reporting import report
from flare_ds.settings import load_config
from tests.report.runs import (
    bounds,
    differences,
    methods,
    over_languages,
    random_correct,
    two_way,
    write_run,
    write_scores,
)


def test_a_method_minus_lora_pairs_rows_by_id_over_all_seeds(tmp_path):
    difference = []
    for seed in (1, 2, 3):
        flare, lora = random_correct(seed, 0.7), random_correct(seed + 10, 0.5)
        write_run(tmp_path, f"pl/flare-seed{seed}", "flare", seed, flare)
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, lora)
        predictions = tmp_path / f"pl/lora-seed{seed}/predictions.parquet"
        pd.read_parquet(predictions)[::-1].to_parquet(predictions)
        difference.append(flare.astype(float) - lora)
    (line,) = differences(report(tmp_path).text).values()
    table = np.array(difference)
    assert line["seeds"] == "1, 2, 3"
    assert float(line["method − lora"]) == pytest.approx(table.mean(), abs=5e-4)
    assert [float(one) for one in line["by seed"].split()] == pytest.approx(table.mean(1), abs=5.1e-4)
    assert bounds(line) == pytest.approx(two_way(table), abs=6e-4)
    alone = stats.ttest_1samp(table.mean(1), 0).confidence_interval()
    assert bounds(line, "by the seeds alone") == pytest.approx(tuple(alone), abs=6e-4)


def test_one_seed_speaks_for_rows_alone(tmp_path):
    flare, lora = random_correct(1, 0.7), random_correct(11, 0.5)
    write_run(tmp_path, "pl/flare-seed1", "flare", 1, flare)
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, lora)
    write_run(tmp_path, "pl/lora-seed2", "lora", 2, random_correct(5, 0.5))
    line = differences(report(tmp_path).text)["flare", "1"]
    test = stats.ttest_rel(flare.astype(float), lora.astype(float))
    assert bounds(line) == pytest.approx(tuple(test.confidence_interval()), abs=6e-4)
    assert float(line["p (Holm)"]) == pytest.approx(test.pvalue, rel=0.06)
    assert (line["by seed"], line["by the seeds alone"]) == ("-", "-")


def test_every_method_is_compared_with_lora_and_p_counts_among_all(tmp_path):
    """Each with lora of the same seeds; what trains nothing with lora of every seed."""
    correct = {}
    for number, method in enumerate(METHODS):
        for seed in (1, 2) if METHODS.get(method).trains else (1,):
            correct[method, seed] = random_correct(seed + 10 * len(correct), 0.5 + 0.02 * number)
            write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, correct[method, seed])
    write_run(tmp_path, "pl/flare-zh", "flare", 1, [True], target="zh")
    lines = differences(report(tmp_path).text)
    others = [method for method in METHODS if method != "lora"]
    assert lines.keys() == {(method, "1, 2") for method in others}
    for method in others:
        pairs = [(correct.get((method, seed), correct[method, 1]), correct["lora", seed]) for seed in (1, 2)]
        table = np.array([a.astype(float) - b for a, b in pairs])
        line = lines[method, "1, 2"]
        assert float(line["method − lora"]) == pytest.approx(table.mean(), abs=5.1e-4)
        assert bounds(line) == pytest.approx(two_way(table), abs=6e-4)
    smallest = min(others, key=lambda method: float(lines[method, "1, 2"]["p (Holm)"]))
    for method in ("lora", smallest):
        for seed in (1, 2) if METHODS.get(method).trains else (1,):
            write_run(tmp_path / "two", f"pl/{method}-seed{seed}", method, seed, correct[method, seed])
    (only,) = differences(report(tmp_path / "two").text).values()
    among_all = float(lines[smallest, "1, 2"]["p (Holm)"])
    assert among_all == pytest.approx(min(1, len(others) * float(only["p (Holm)"])), rel=0.06)


def test_methods_that_say_the_same_do_not_differ(tmp_path):
    for method in ("flare", "lora"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, False])
    line = differences(report(tmp_path).text)["flare", "1"]
    assert (line["method − lora"], line["p (Holm)"], bounds(line)) == ("+0.000", "1", [0, 0])


def test_over_languages_the_mean_and_who_is_first(tmp_path):
    """Flare is much better than lora in each of three languages, x_mixup a little worse."""
    shares = {"lora": 0.5, "flare": 0.8, "x_mixup": 0.45}
    tables = []
    for place, language in enumerate(("pl", "ru", "es")):
        correct = {}
        for method, share in shares.items():
            for seed in (1, 2):
                right = correct[method, seed] = random_correct(seed + 10 * place + 100 * len(method), share)
                write_run(tmp_path, f"{language}/{method}-seed{seed}", method, seed, right, target=language)
        tables.append(np.array([correct["flare", seed].astype(float) - correct["lora", seed] for seed in (1, 2)]))
    lines = over_languages(report(tmp_path).text)
    assert lines.keys() == {"flare", "x_mixup"}
    means = [table.mean() for table in tables]
    assert float(lines["flare"]["mean − lora"]) == pytest.approx(np.mean(means), abs=6e-4)
    drawn = stats.ttest_1samp(means, 0).confidence_interval()
    assert bounds(lines["flare"], "in ones like these") == pytest.approx(tuple(drawn), abs=6e-4)
    in_these = two_way(np.mean(tables, 0))  # each row is one draw, as is each seed
    assert bounds(lines["flare"], "in these") == pytest.approx(in_these, abs=6e-4)
    assert (lines["flare"]["first"], lines["x_mixup"]["first"]) == ("100%", "0%")


def test_rows_about_one_text_are_one_draw_in_all_three_tables(tmp_path):
    """Ten questions about each of 20 texts, all right or all wrong: 20 draws, not 200."""
    clusters = np.repeat(np.arange(20), 10)
    tables = {}
    for seed in (1, 2):
        for method, share in (("lora", 0.4), ("flare", 0.6)):
            of_text = random_correct(10 * seed + len(method), share)[:20]
            tables[method, seed] = np.repeat(of_text, 10)
    for language in ("pl", "ru"):
        for (method, seed), right in tables.items():
            where = f"{language}/{method}-seed{seed}"
            write_run(tmp_path, where, method, seed, right, target=language, clusters=clusters)
    text = report(tmp_path).text
    flare, lora = (np.array([tables[name, seed].astype(float) for seed in (1, 2)]) for name in ("flare", "lora"))
    of_texts = two_way((flare - lora)[:, ::10])
    line = differences(text)["flare", "1, 2"]
    assert bounds(line) == pytest.approx(of_texts, abs=6e-4)
    assert bounds(over_languages(text)["flare"], "in these") == pytest.approx(of_texts, abs=6e-4)
    scored = next(line for line in methods(text) if line["method"] == "flare")
    assert bounds(scored) == pytest.approx(np.clip(two_way(flare[:, ::10]), 0, 1), abs=6e-4)
    assert "Rows about one text count as one draw" in text
    for path in tmp_path.glob("*/*/predictions.parquet"):
        pd.read_parquet(path).drop(columns="cluster").to_parquet(path)
    assert np.diff(bounds(differences(report(tmp_path).text)["flare", "1, 2"])) < np.diff(of_texts)


def test_two_that_are_right_equally_often_are_first_equally_often(tmp_path):
    for language in ("pl", "ru"):
        for number, method in enumerate(("lora", "flare")):
            for seed in (1, 2):
                right = np.roll(np.arange(300) % 2 == 0, number)
                write_run(tmp_path, f"{language}/{method}-seed{seed}", method, seed, right, target=language)
    (line,) = over_languages(report(tmp_path).text).values()
    assert 40 < float(line["first"].rstrip("%")) < 60


def test_one_language_makes_no_table_over_languages(tmp_path):
    for method in ("lora", "flare"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, False, True])
    assert not over_languages(report(tmp_path).text)


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
            write_scores(directory, "exact_match", float(found.mean()), rows, f1=0.9)
    text = report(tmp_path).text
    (line,) = [line for line in methods(text) if line["method"] == "lora"]
    assert float(line["score"]) == pytest.approx(np.mean([matches["lora", seed] for seed in (1, 2)]), abs=5e-4)
    assert line["f1"] == "0.900", "the other metric stands beside the one that counts"
    table = np.array([matches["flare", seed].astype(float) - matches["lora", seed] for seed in (1, 2)])
    compared = differences(text)["flare", "1, 2"]
    assert float(compared["method − lora"]) == pytest.approx(table.mean(), abs=5e-4)
    assert bounds(compared) == pytest.approx(two_way(table), abs=6e-4)
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
    spread = (1 - samples / (1 + samples)).std()
    assert bounds(line) == pytest.approx([1 - f1 - 1.97 * spread, 1 - f1 + 1.97 * spread], abs=0.002)


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
