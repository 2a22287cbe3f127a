"""Each method against lora: differences, intervals and tests computed again here, another way."""

import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from flare_ds.methods import METHODS
from flare_ds.reporting import report
from flare_ds.reporting.differences import Comparison, comparisons
from flare_ds.reporting.groups import Group, grouped
from flare_ds.reporting.over_languages import _clusters, over_languages_table
from flare_ds.runs import RunResult, find_runs
from flare_ds.scoring.sureness import Sureness
from flare_ds.settings import load_config
from tests.report.runs import (
    bounds,
    differences,
    error_and_freedom,
    methods,
    over_languages,
    random_correct,
    tables,
    two_way,
    write_records,
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


def test_how_far_methods_differ_that_say_the_same_is_not_known(tmp_path):
    for method in ("flare", "lora"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, False])
    line = differences(report(tmp_path).text)["flare", "1"]
    assert (line["method − lora"], line["p (Holm)"]) == ("+0.000", "1")
    assert line["95 % interval"] == line["findable"] == "-"


def test_a_difference_below_findable_may_be_there_and_no_note_denies_it(tmp_path):
    """It would be missed more often than once in five; here it was not."""
    correct = np.arange(300) < 200
    for method, right in (("lora", correct), ("flare", correct | (np.arange(300) >= 293))):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, right)
    text = report(tmp_path).text
    line = differences(text)["flare", "1"]
    assert bounds(line)[0] > 0 and float(line["method − lora"]) < float(line["findable"])
    assert "is not shown to be there" not in text
    assert "an interval that contains 0 does not show that there is no difference" in text


def test_a_method_without_a_seed_in_common_with_lora_is_named(tmp_path):
    """Not so where it shares one, where it trains nothing, or where it is not scored yet."""
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, random_correct(seed, 0.5))
    for seed in (3, 4):
        write_run(tmp_path, f"pl/flare-seed{seed}", "flare", seed, random_correct(seed, 0.5))
    write_run(tmp_path, "pl/x_mixup-seed5", "x_mixup", 5)
    write_run(tmp_path, "pl/translate_test", "translate_test", 5, random_correct(5, 0.5))
    text = report(tmp_path).text
    said = "Left out: multiemo base pl flare; it has no seed in common with lora (3, 4 against 1, 2)."
    assert [line for line in text.splitlines() if line.startswith("Left out")] == [said]
    assert differences(text).keys() == {("translate_test", "1, 2")}
    write_run(tmp_path, "pl/flare-seed2", "flare", 2, random_correct(6, 0.5))
    assert "Left out" not in report(tmp_path).text
    write_run(tmp_path / "alone", "pl/lora-seed1", "lora", 1, random_correct(1, 0.5))
    write_run(tmp_path / "alone", "pl/flare-seed2", "flare", 2, random_correct(2, 0.5))
    assert "## Against lora, on the same test rows\n\nLeft out: multiemo" in report(tmp_path / "alone").text


def test_what_lacks_a_language_is_not_counted_among_the_first(tmp_path):
    for language, seed in itertools.product(("pl", "ru", "es"), (1, 2, 3, 4, 5)):
        for method, share in (("lora", 0.5), ("flare", 0.6), ("x_mixup", 0.9)):
            if (language, method) != ("es", "x_mixup"):
                right = random_correct(seed + 10 * len(method) + len(language), share)
                write_run(tmp_path, f"{language}/{method}-seed{seed}", method, seed, right, target=language)
    text = report(tmp_path).text
    assert {method: line["first"] for method, line in over_languages(text).items()} == {"flare": "100%", "x_mixup": "-"}
    assert "a method that lacks one of those languages has a dash and does not compete" in text


def test_over_languages_the_mean_and_who_is_first(tmp_path):
    """Flare is much better than lora in each of three languages, x_mixup a little worse."""
    shares = {"lora": 0.5, "flare": 0.8, "x_mixup": 0.45}
    tables = []
    seeds = (1, 2, 3, 4, 5)
    for place, language in enumerate(("pl", "ru", "es")):
        correct = {}
        for method, share in shares.items():
            for seed in seeds:
                right = correct[method, seed] = random_correct(seed + 10 * place + 100 * len(method), share)
                write_run(tmp_path, f"{language}/{method}-seed{seed}", method, seed, right, target=language)
        tables.append(np.array([correct["flare", seed].astype(float) - correct["lora", seed] for seed in seeds]))
    lines = over_languages(report(tmp_path).text)
    assert lines.keys() == {"flare", "x_mixup"}
    means = [table.mean() for table in tables]
    assert float(lines["flare"]["mean − lora"]) == pytest.approx(np.mean(means), abs=6e-4)
    in_these = two_way(np.mean(tables, 0))  # each row is one draw, as is each seed
    assert bounds(lines["flare"], "in these") == pytest.approx(in_these, abs=6e-4)
    error, freedom = error_and_freedom(np.mean(tables, 0))
    total = error**2 + stats.sem(means) ** 2
    drawn = stats.t(total**2 / (error**4 / freedom + stats.sem(means) ** 4 / 2), np.mean(means), total**0.5)
    assert bounds(lines["flare"], "in ones like these") == pytest.approx(drawn.interval(0.95), abs=6e-4)
    assert (lines["flare"]["first"], lines["x_mixup"]["first"]) == ("100%", "0%")
    assert lines["flare"]["by the seeds alone"] == "-"
    for path in tmp_path.glob("*/*-seed5/metrics.json"):
        path.unlink()
    four = over_languages(report(tmp_path).text)
    assert (four["flare"]["first"], four["x_mixup"]["first"]) == ("-", "-"), "of so few seeds nobody can tell"
    by_seed = np.mean(tables, 0)[:4].mean(1)
    alone = stats.ttest_1samp(by_seed, 0).confidence_interval()
    assert bounds(four["flare"], "by the seeds alone") == pytest.approx(tuple(alone), abs=6e-4)
    found = Sureness(0, *error_and_freedom(np.mean(tables, 0)[:4])).findable
    assert float(four["flare"]["findable"]) == pytest.approx(found, abs=6e-4)


def test_languages_without_the_same_seeds_say_nothing_of_these_and_so_nothing_of_others(tmp_path):
    for language, seeds in (("pl", (1, 2)), ("ru", (1, 3))):
        for seed in seeds:
            for method in ("lora", "flare"):
                correct = random_correct(seed + len(method), 0.5)
                write_run(tmp_path, f"{language}/{method}-seed{seed}", method, seed, correct, target=language)
    (line,) = over_languages(report(tmp_path).text).values()
    assert line["in these"] == line["in ones like these"] == "-"


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
            for seed in (1, 2, 3, 4, 5):
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


def test_rows_with_the_same_ids_and_other_labels_are_other_rows(tmp_path):
    """A test file that was replaced between two runs; a source that says the same labels in its words is no other."""

    def scored(name, method, words, labels):
        said = [{"id": f"test-{row}", "label": words[true], "prediction": words[0]} for row, true in enumerate(labels)]
        write_scores(write_run(tmp_path, name, method, 1, [True]), "accuracy", 0.5, said)

    scored("pl/lora-seed1", "lora", ("tak", "nie"), [0, 1, 0, 1])
    scored("pl/flare-seed1", "flare", ("tak", "nie"), [0, 0, 1, 1])
    scored("pl/translate_test", "translate_test", ("yes", "no"), [0, 1, 0, 1])
    found = differences(report(tmp_path).text)
    assert found["flare", "1"]["method − lora"] == "scored on different test rows or by other metrics"
    assert found["translate_test", "1"]["method − lora"] == "+0.000"


def test_rows_with_the_same_ids_and_other_right_answers_are_other_rows(tmp_path):
    """Whatever the order of rows and answers, and where a run does not tell them, as ever."""

    def scored(name, method, answers):
        rows = [{"id": row, "prediction": "x", "exact_match": True, "answers": of} for row, of in answers.items()]
        rows = [{key: value for key, value in row.items() if value} for row in rows]
        write_scores(write_run(tmp_path, name, method, 1, [True]), "exact_match", 1.0, rows)

    scored("pl/lora-seed1", "lora", {"r0": ["Rome", "Roma"], "r1": ["1989"]})
    scored("pl/flare-seed1", "flare", {"r0": ["Rome", "Roma"], "r1": ["1990"]})
    scored("pl/x_mixup-seed1", "x_mixup", {"r1": ["1989"], "r0": ["Roma", "Rome"]})
    scored("pl/zero_shot", "zero_shot", {"r0": None, "r1": None})
    found = differences(report(tmp_path).text)
    assert found["flare", "1"]["method − lora"] == "scored on different test rows or by other metrics"
    assert {found[method, "1"]["method − lora"] for method in ("x_mixup", "zero_shot")} == {"+0.000"}


def test_answers_in_two_languages_are_of_the_same_rows_where_the_passages_are(tmp_path):
    """translate_test has the source's right answers, which are other words: what was drawn together tells the rows."""

    def difference(place, passages):
        said_by = {"lora": (["Rzym", "Polska"], [7, 8]), "translate_test": (["Rome", "Poland"], passages)}
        for method, (answers, clusters) in said_by.items():
            rows = [
                {"id": f"r{i}", "prediction": "x", "exact_match": True, "answers": [said], "cluster": cluster}
                for i, (said, cluster) in enumerate(zip(answers, clusters, strict=True))
            ]
            write_scores(write_run(tmp_path / place, f"pl/{method}-seed1", method, 1, [True]), "exact_match", 1.0, rows)
        return differences(report(tmp_path / place).text)["translate_test", "1"]["method − lora"]

    assert difference("same", [7, 8]) == "+0.000"
    assert difference("others", [7, 9]) == "scored on different test rows or by other metrics"


def test_clusters_are_those_of_whichever_run_knows_them(tmp_path):
    """Before 0.3 predictions told none; rows that stand in another order are still drawn with their own."""
    clusters, generator = np.arange(200) // 10, np.random.default_rng(3)
    easy, found = generator.random(20) < 0.5, []
    right = [
        {"lora": generator.random(200) < 0.5, "flare": generator.random(200) < np.where(easy[clusters], 0.95, 0.2)}
        for _ in range(3)
    ]
    for known in (("lora", "flare"), ("lora",), ("flare",)):
        root = tmp_path / "-".join(known)
        for seed, correct in enumerate(right, start=1):
            for method in correct:
                told = clusters if method in known else None
                run = write_run(root, f"pl/{method}-seed{seed}", method, seed, correct[method], clusters=told)
                if method == known[-1]:
                    shuffled = pd.read_parquet(run / "predictions.parquet").sample(frac=1, random_state=seed)
                    shuffled.to_parquet(run / "predictions.parquet")
        found.append(bounds(*differences(report(root).text).values()))
    assert found[0] == pytest.approx(found[1], abs=2e-3) and found[0] == pytest.approx(found[2], abs=2e-3)


@pytest.mark.parametrize("lost", ["yaml", "py"])
def test_whether_rows_are_parallel_is_known_where_the_task_is_not_there_any_more(tmp_path, lost):
    declaration = "{name: own, languages: [en, pl, de], parallel: false, fields: [text], labels: [yes, no], "
    declaration += "pools: [train, test], template: '{text}:'}"
    task, found = tmp_path / "own.yaml", []
    task.write_text(declaration)
    for place in ("there", "copied"):
        for number, language in enumerate(("de", "pl")):
            for method in ("lora", "flare"):
                correct = random_correct(number, 0.5 + 0.1 * (method == "flare"))
                run = write_run(
                    tmp_path / place, f"{language}/{method}-seed1", method, 1, correct, target=language, name="own",
                    path=str(task), sides="translated",
                )  # fmt: skip
                config = (run / "config.yaml").read_text()
                (run / "config.yaml").write_text(config.replace("own.yaml", f"gone.{lost}"))
                if place == "copied" and lost == "yaml":
                    (run / "task.yaml").write_text(declaration)
                elif place == "copied":
                    metrics = json.loads((run / "metrics.json").read_text())
                    (run / "metrics.json").write_text(json.dumps(metrics | {"parallel": False}))
        found.append(differences_of(tmp_path / place))
    assert found == [{"r0", "r1"}, {"de r0", "pl r0"}]


@pytest.mark.parametrize("told", [None, False, True])
def test_one_test_set_in_several_translations_is_one_draw(tmp_path, told):
    """VitaminC is English: its rows in other languages are translations. Earlier versions said that they are others."""
    for language in ("de", "pl"):
        for method in ("lora", "flare"):
            where = f"{language}/{method}-seed1"
            task = {"name": "vitaminc", "sides": "translated"}
            run = write_run(tmp_path, where, method, 1, random_correct(1, 0.5), target=language, **task)
            metrics = json.loads((run / "metrics.json").read_text())
            (run / "metrics.json").write_text(json.dumps(metrics | ({} if told is None else {"parallel": told})))
    assert differences_of(tmp_path) == {"r0", "r1"}


def differences_of(root):
    """Some ids of the rows of all comparisons."""
    groups = grouped(find_runs(root)[0], root)
    rows = [one.rows for one in comparisons(groups)]
    return {row for of in rows for row in of} & {"r0", "r1", "de r0", "pl r0"}


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


def merged(directory, base: str) -> str:
    directory.mkdir(parents=True)
    (directory / "merged_from.json").write_text(json.dumps({"base": base, "run": "stage1"}))
    return str(directory)


def test_every_table_says_which_model_a_line_is_about(tmp_path):
    """Two models, each tuned on the source language first, so that the base of both is a directory `base`."""
    for model in ("google/gemma-2-9b", "meta-llama/Llama-3.1-8B"):
        name = model.rpartition("/")[2]
        base = merged(tmp_path / name / "base", model)
        for language in ("es", "pl"):
            for method in ("lora", "flare"):
                run = f"{name}/{language}/{method}"
                write_run(tmp_path, run, method, 1, random_correct(len(run), 0.5), target=language, base=base)
    for lines in tables(report(tmp_path).text):
        about = [tuple(line.get(key, "") for key in ("base", "language", "method")) for line in lines]
        assert len(set(about)) == len(about) and {base for base, *_ in about} == {"gemma-2-9b", "Llama-3.1-8B"}
        assert {method for *_, method in about} <= {"lora", "flare"}, "a base tells them apart, so no place does"


def test_every_table_says_which_setting_a_line_is_about(tmp_path):
    for r in (8, 16):
        for method in ("lora", "flare"):
            write_run(tmp_path, f"pl/{method}-r{r}", method, 1, random_correct(r, 0.5), r=r)
    write_run(tmp_path, "pl/x_mixup-r32", "x_mixup", 1, random_correct(1, 0.5), r=32)
    assert {method for method, _ in differences(report(tmp_path).text)} == {
        "flare (pl/flare-r16)",
        "flare (pl/flare-r8)",
        "x_mixup against lora (pl/lora-r16), set otherwise",
        "x_mixup against lora (pl/lora-r8), set otherwise",
    }


def test_what_over_languages_leaves_out_it_says(tmp_path):
    for language in ("es", "pl"):
        for method in ("lora", "flare", "x_mixup", "flare_mt"):
            write_run(tmp_path, f"{language}/{method}", method, 1, random_correct(1, 0.5), target=language)
    for language in ("es", "pl"):
        write_run(tmp_path, f"{language}/lora-r16", "lora", 1, random_correct(1, 0.5), target=language, r=16)
        write_run(tmp_path, f"{language}/flare_mt-r32", "flare_mt", 1, random_correct(1, 0.5), target=language, r=32)
    write_scores(tmp_path / "es/x_mixup", "accuracy", 1.0, [{"id": "other", "label": "yes", "prediction": "yes"}])
    text = report(tmp_path).text
    assert list(over_languages(text)) == ["flare", "flare_mt (flare_mt)"]
    assert [line for line in text.splitlines() if line.startswith("Left out: ")] == [
        "Left out: multiemo base x_mixup; in es it was scored on different test rows or by other metrics.",
        "Left out: multiemo base flare_mt (flare_mt-r32); it stands twice in pl.",
    ]


def test_of_methods_that_meet_different_loras_none_is_called_the_first(tmp_path):
    for language, seed in itertools.product(("es", "pl"), (1, 2, 3, 4, 5)):
        for method, r in (("lora", 8), ("flare", 8), ("lora", 16), ("x_mixup", 16)):
            name, correct = f"{language}/{method}-r{r}-seed{seed}", random_correct(seed + r, 0.5, n=50)
            write_run(tmp_path, name, method, seed, correct, target=language, r=r)
    lines = over_languages(report(tmp_path).text)
    assert {method: line["first"] for method, line in lines.items()} == {"flare": "-", "x_mixup": "-"}


def test_a_row_that_several_languages_have_is_drawn_with_those_of_the_first(tmp_path):
    first, second = (
        SimpleNamespace(rows=rows, clusters_N=np.array(clusters))
        for rows, clusters in ((["a", "b"], [1, 1]), (["b", "c"], [2, 2]))
    )
    assert _clusters([first, second]) == {"a": 1, "b": 1, "c": 2}
    assert _clusters([second, first]) == {"a": 1, "b": 2, "c": 2}


def test_of_a_grid_each_meets_its_own(tmp_path):
    """Rows to train on, and a setting of fusing, which lora has not; in two languages, as a sweep lays them."""
    for language, rows, seed in itertools.product(("es", "pl"), (250, 1000), (1, 2)):
        for method in ("lora", "flare"):
            name = f"{language}/{method}-train_rows{rows}-seed{seed}"
            correct = random_correct(seed + rows + len(method), 0.5)
            write_run(tmp_path, name, method, seed, correct, target=language, train_rows=rows)
    write_run(tmp_path, "pl/flare-train_rows500-seed1", "flare", 1, random_correct(1, 0.5), train_rows=500)
    text = report(tmp_path).text
    assert {method for method, _ in differences(text)} == {
        *(f"flare ({language}/flare-train_rows{rows}-seed1)" for language in ("es", "pl") for rows in (250, 1000)),
        *(
            f"flare (pl/flare-train_rows500-seed1) against lora (pl/lora-train_rows{rows}-seed1), set otherwise"
            for rows in (250, 1000)
        ),
    }
    assert list(over_languages(text)) == ["flare (flare-train_rows1000)", "flare (flare-train_rows250)"]
    assert "Left out" not in text


def test_a_method_meets_the_lora_that_read_its_rows_or_says_so(tmp_path):
    """Rows are mended between two calls of a sweep, or two translations are compared: neither is a setting here."""
    for name, method, rows in (("lora-a", "lora", "a"), ("lora-b", "lora", "b"), ("flare-a", "flare", "a")):
        run = write_run(tmp_path, f"pl/{name}-seed1", method, 1, random_correct(len(rows), 0.5))
        write_records(run, rows=rows)
    assert {method for method, _ in differences(report(tmp_path).text)} == {"flare"}
    run = write_run(tmp_path, "pl/x_mixup-c-seed1", "x_mixup", 1, random_correct(2, 0.5))
    write_records(run, rows="c")
    assert {method for method, _ in differences(report(tmp_path).text)} == {
        "flare",
        *(f"x_mixup against lora (pl/lora-{rows}-seed1), on other rows" for rows in "ab"),
    }


def test_a_run_counts_with_the_settings_it_was_scored_with(tmp_path):
    """A lora that was scored once more with late is not the lora that others are measured against."""
    for seed in (1, 2):
        for method in ("lora", "flare"):
            write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, random_correct(seed + len(method), 0.5))
    metrics = tmp_path / "pl/lora-seed2/metrics.json"
    settings = yaml.safe_load((tmp_path / "pl/lora-seed2/config.yaml").read_text())
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"settings": settings}))
    before = report(tmp_path).text
    assert [line["method"] for line in methods(before)] == ["lora", "flare"]
    assert list(differences(before)) == [("flare", "1, 2")]
    settings["evaluate"]["late"] = 1.0
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"settings": settings}))
    after = report(tmp_path).text
    assert [line["method"] for line in methods(after)] == ["lora", "lora with late", "flare"]
    assert list(differences(after)) == [("flare", "1")]


@pytest.mark.parametrize("copy", ["pl/a-copy", "pl/lora-seed3"])
def test_a_copy_of_a_run_is_no_other_seed(tmp_path, copy):
    for seed in (1, 2):
        for method in ("lora", "flare"):
            write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, random_correct(seed + len(method), 0.5))
    before = report(tmp_path).text
    write_run(tmp_path, copy, "lora", 1)
    unfinished = report(tmp_path).text
    write_run(tmp_path, f"{copy}-again", "lora", 1, random_correct(1 + len("lora"), 0.5))
    after = report(tmp_path).text
    assert differences(before) == differences(unfinished) == differences(after)
    assert methods(before) == methods(unfinished) == methods(after)
    assert "Left out" not in before and f"{copy.rpartition('/')[2]} (multiemo base pl lora)" in unfinished


@dataclass(frozen=True)
class InMemory(RunResult):
    """A run that has the outcomes it is told, of rows that are numbered alike in every language."""

    right: tuple[bool, ...] = ()
    cluster: tuple[int, ...] = ()
    answers = None

    @property
    def metrics(self):
        return {"metric": "exact_match", "answers": "generated"}

    @cached_property
    def outcomes(self):
        return {f"test-{row}": right for row, right in enumerate(self.right)}

    @property
    def clusters(self):
        return np.array(self.cluster)


def test_in_these_holds_as_often_as_it_says_where_rows_of_languages_are_others(tmp_path):
    """Short passages in one language, long ones in the other, whose rows are numbered alike; equal methods."""
    rng, held = np.random.default_rng(1), []
    places = {
        (language, method): write_run(tmp_path, f"{language}/{method}", method, 1, target=language, name="tydiqa")
        for language in ("fi", "sw")
        for method in ("lora", "flare")
    }
    configs = {about: load_config(place) for about, place in places.items()}
    for _ in range(600):
        compared = []
        for language, sizes in (("fi", [1] * 300), ("sw", [10] * 30)):
            passages = np.repeat(np.arange(len(sizes)), sizes)
            known = 0.5 + rng.normal(0, 0.25, (2, len(sizes)))[:, passages]
            rights = (rng.random((2, len(passages))) < known).tolist()
            flare, lora = (
                InMemory(places[language, method], configs[language, method], right, 1000 * sizes[0] + passages)
                for method, right in zip(("flare", "lora"), rights, strict=True)
            )
            compared.append(
                Comparison(Group([flare]), Group([lora]), [(flare, lora)], ("tydiqa", "base", language, "flare"))
            )
        ((line,),) = tables(over_languages_table(compared))
        lo, hi = bounds(line, "in these")
        held.append(lo <= 0 <= hi)
    assert 0.93 <= np.mean(held) <= 0.97
