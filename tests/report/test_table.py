"""The table of methods: what it says is computed again here, another way, from run directories written by hand."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from flare_ds.reporting import report
from tests.report.runs import (
    bounds,
    differences,
    methods,
    random_correct,
    two_way,
    write_log,
    write_records,
    write_run,
    write_scores,
    write_training,
)


def test_one_seed_is_reported_as_its_files_say(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True, False, True])
    text = report(tmp_path).text
    assert methods(text) == [
        {
            "task": "multiemo",
            "base": "base",
            "language": "pl",
            "method": "lora",
            "seeds": "1 (1)",
            "score": "0.750",
            "deviation": "-",
            "95 % interval": "0.111 to 0.999",
            "trained parameters": "123,456",
            "examples": "640",
            "tokens a step": "812",
            "with padding": "1,024",
            "step time": "2.00",
            "tokens/s": "1,000",
            "FLOPs / lora's": "1.00",
        }
    ]
    assert (tmp_path / "report.md").read_text() == text
    assert f"tensorboard --logdir {tmp_path}" in text


def write_codes(run: Path, begun: str | None, scored: str | None) -> None:
    """None: as an earlier version leaves it."""
    (run / "versions.json").write_text(json.dumps({"flare_ds": "1"} | ({"code": begun} if begun else {})))
    metrics = json.loads((run / "metrics.json").read_text())
    versions = {"flare_ds": "1"} | ({"code": scored} if scored else {})
    (run / "metrics.json").write_text(json.dumps(metrics | {"versions": versions}))


@pytest.mark.parametrize(
    ("lora", "flare", "noted"),
    [
        ([("a", "a"), ("a", "a")], [("a", "a"), ("a", "a")], []),
        ([("a", "b"), ("a", "b")], [("a", "b"), (None, "b")], []),  # trained, then all scored by one other
        ([(None, None), ("a", "a")], [(None, None), (None, None)], []),
        ([("a", "a"), ("a", "a")], [("a", "a"), ("b", "a")], ["flare"]),
        ([("a", "a"), ("a", "a")], [("a", "a"), ("a", "b")], ["flare"]),
        ([("a", "a"), ("a", "a")], [("b", "b"), ("b", "b")], ["flare"]),
        ([("a", "a"), ("b", "a")], [("a", "a"), ("a", "a")], ["lora", "flare"]),
    ],
)
def test_runs_of_different_code_are_told_where_they_stand_in_one_line_or_are_compared(tmp_path, lora, flare, noted):
    for method, codes in (("lora", lora), ("flare", flare)):
        for seed, of_run in enumerate(codes, start=1):
            write_codes(write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, [True, False]), *of_run)
    text = report(tmp_path).text
    assert ("different code" in text) == bool(noted)
    named = ", ".join(f"multiemo base pl {method}" for method in noted)
    assert not noted or f"in the line or against lora: {named};" in text


def test_methods_that_train_nothing_count_once_whatever_their_seeds(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, f"pl/zero_shot-seed{seed}", "zero_shot", seed, [True, False])
    write_run(tmp_path, "es/zero_shot-seed1", "zero_shot", 1, target="es")
    write_run(tmp_path, "es/zero_shot-seed2", "zero_shot", 2, [True, True], target="es")
    es, pl = methods(report(tmp_path).text)
    assert (es["score"], pl["score"]) == ("1.000", "0.500")
    for line in (es, pl):
        assert (line["seeds"], line["deviation"], line["95 % interval"]) == ("-", "-", "0.111 to 0.999")
        assert (line["trained parameters"], line["examples"]) == ("0", "0")
        assert {line[cost] for cost in ("tokens a step", "with padding", "step time", "tokens/s")} == {"-"}


def test_where_all_is_right_in_each_seed_no_interval_is_told(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True] * 50)
    (line,) = methods(report(tmp_path).text)
    assert (line["score"], line["95 % interval"]) == ("1.000", "-")


def test_seeds_are_averaged_and_the_interval_is_over_seeds_and_rows(tmp_path):
    outcomes = {seed: random_correct(seed, 0.6) for seed in (1, 2, 10)}
    for seed, correct in outcomes.items():
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, correct)
    (line,) = methods(report(tmp_path).text)
    table = np.array(list(outcomes.values()), float)
    assert line["seeds"] == "3 (1, 2, 10)"
    assert float(line["score"]) == pytest.approx(table.mean(), abs=5e-4)
    assert float(line["deviation"]) == pytest.approx(statistics.stdev(map(np.mean, outcomes.values())), abs=5e-4)
    assert bounds(line) == pytest.approx(two_way(table), abs=6e-4)
    assert (line["trained parameters"], line["step time"], line["tokens/s"]) == ("123,456", "5.33", "4,333")


def test_flops_are_those_of_lora_in_the_same_setting_times_so_much(tmp_path):
    for seed, flops in ((1, 3.0e9), (2, 4.0e9)):
        run = write_run(tmp_path, f"pl/flare-seed{seed}", "flare", seed, [True])
        write_training(run, flops_per_step=flops, median_step_seconds=1, tokens_per_second=1)
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True])
    write_run(tmp_path, "pl/zero_shot-seed1", "zero_shot", 1, [True])
    write_run(tmp_path, "es/flare-seed1", "flare", 1, [True], target="es")
    lines = {(line["language"], line["method"]): line["FLOPs / lora's"] for line in methods(report(tmp_path).text)}
    assert lines == {("pl", "zero_shot"): "-", ("pl", "lora"): "1.00", ("pl", "flare"): "1.75", ("es", "flare"): "-"}


def test_costs_that_a_run_did_not_count_are_dashes(tmp_path):
    old = {"trained_parameters": 10, "median_step_seconds": 1.0, "tokens_per_second": 5.0}
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True])
    (tmp_path / "pl/lora-seed2/training.json").write_text(json.dumps(old))
    (line,) = methods(report(tmp_path).text)
    assert {line[cost] for cost in ("examples", "tokens a step", "with padding", "FLOPs / lora's")} == {"-"}
    assert line["tokens/s"] == "502"


def test_a_run_that_has_not_begun_reads_what_its_language_reads(tmp_path):
    """Else it would be another group than the finished seeds of its setting, wherever there are two languages."""
    for language in ("de", "es", "pl"):
        begun = write_run(tmp_path, f"{language}/lora-seed1", "lora", 1, [True, False], target=language)
        write_records(begun, rows=language)
        write_run(tmp_path, f"{language}/lora-seed2", "lora", 2, target=language)
    named = [(line["language"], line["method"]) for line in methods(report(tmp_path).text)]
    assert named == [("de", "lora"), ("de", "lora"), ("es", "lora"), ("es", "lora"), ("pl", "lora"), ("pl", "lora")]


def test_unfinished_runs_stand_in_the_table(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, False])
    write_log(write_run(tmp_path, "pl/lora-seed2", "lora", 2), {"step": 17, "loss": 1.0}, torn='{"step": 18, "lo')
    trained = write_run(tmp_path, "pl/flare-seed1", "flare", 1)
    (trained / "training.json").write_text("{}")
    write_run(tmp_path, "pl/zero_shot-seed1", "zero_shot", 1)
    write_run(tmp_path, "es/flare-seed1", "flare", 1, target="es")
    lines = [tuple(line.values())[2:6] for line in methods(report(tmp_path).text)]
    assert lines == [
        ("es", "flare", "1", "unfinished: not started"),
        ("pl", "zero_shot", "-", "unfinished: not started"),
        ("pl", "lora", "1 (1)", "0.500"),
        ("pl", "lora", "2", "unfinished: trained 17 of 40 steps"),
        ("pl", "flare", "1", "unfinished: trained, not evaluated"),
    ]


def test_runs_with_other_settings_are_not_averaged(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True], r=8)
    write_run(tmp_path, "pl/lora-seed2", "lora", 2, [False, False], r=16)
    assert [(line["method"], line["score"], line["FLOPs / lora's"]) for line in methods(report(tmp_path).text)] == [
        ("lora (pl/lora-seed1)", "1.000", "1.00"),
        ("lora (pl/lora-seed2)", "0.000", "1.00"),
    ]


def test_how_a_run_was_sharded_makes_no_other_group_of_it(tmp_path):
    """A run that has begun says what `deepspeed: auto` became, the one beside it that is only planned does not."""
    for seed, sharded in ((1, "auto"), (2, "zero3_cpu")):
        run = write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True, seed == 1])
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("deepspeed: ds.json", f"deepspeed: {sharded}"))
    assert [(line["method"], line["seeds"]) for line in methods(report(tmp_path).text)] == [("lora", "2 (1, 2)")]


def test_a_name_with_a_bar_is_one_cell(tmp_path):
    for rank in (8, 16):
        write_run(tmp_path, f"pl/lora r|{rank}", "lora", 1, [True], r=rank)
    assert r"lora (pl/lora r\|16)" in report(tmp_path).text


def test_runs_made_in_two_places_are_told_apart_by_what_they_read(tmp_path):
    """Copied together from two clones, or two hosts; the third has the path of the first and other contents."""
    for seed, data, base, rows in ((1, "a", "/a/base", "k"), (2, "b", "/b/base", "k"), (3, "a", "/a/base", "other")):
        for method, share in (("lora", 0.5), ("flare", 0.7)):
            correct = random_correct(10 * seed + len(method), share)
            run = write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, correct, base=base, data_dir=data)
            write_records(run, rows=rows)
    write_run(tmp_path, "pl/flare-seed4", "flare", 4, base="/b/base", data_dir="b")  # not begun
    text = report(tmp_path).text
    assert [line["seeds"] for line in methods(text)] == ["2 (1, 2)", "1 (3)", "2 (1, 2)", "4", "1 (3)"]
    assert {(line["seeds"]) for line in differences(text).values()} == {"1, 2", "3"}


def test_runs_whose_answers_stand_elsewhere_in_what_they_trained_on_are_told_apart(tmp_path):
    """An earlier version looked for a free answer elsewhere in its window; label words have no such place."""
    for seed, where in ((1, {}), (2, {"answers": "the first one"}), (3, {"answers": "the first one"})):
        run = write_run(tmp_path, f"hi/lora-seed{seed}", "lora", seed, [True, False], target="hi")
        write_records(run, rows="k", **where)
    assert sorted(line["seeds"] for line in methods(report(tmp_path).text)) == ["1 (1)", "2 (2, 3)"]


def test_stage_1_is_called_the_task_adapter(tmp_path):
    for name, method in (("stage1", "lora"), ("untuned", "zero_shot")):
        write_run(tmp_path, name, method, 1, [True], target="en")
    text = report(tmp_path).text
    assert [line["method"] for line in methods(text)] == ["zero_shot", "task adapter"]
    assert not differences(text), "the base before stage 1 is no method to be compared"


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        ({"name": "multiemo", "data_dir": None}, "pl", "the en side is itself a translation of the pl rows"),
        ({"name": "multiemo", "data_dir": None}, "es", "both sides are translations of the pl rows"),
        ({"name": "xnli", "data_dir": None}, "sw", "the rows are translations of the en side"),
        (
            {"name": "xnli", "data_dir": "/own"},
            "sw",
            "the rows are translations of the en side (unless the files in /own hold other texts)",
        ),
    ],
)
def test_where_the_source_texts_come_from_is_said(tmp_path, task, target, said):
    write_run(tmp_path, "lora-seed1", "lora", 1, [True], target=target, **task)
    assert "translate_test reads" not in report(tmp_path).text, "nothing in the table reads a source"
    write_run(tmp_path, "translate_test-seed1", "translate_test", 1, [True], target=target, **task)
    text = report(tmp_path).text
    assert f"{task['name']} in {target}: {said}, so translate_test reads" in text
    for directory in tmp_path.glob("*-seed1"):
        config = (directory / "config.yaml").read_text()
        (directory / "config.yaml").write_text(config.replace("sides: own", "sides: translated"))
    assert "translate_test reads" not in report(tmp_path).text, "the sources were translated for the test"


def test_free_answers_in_another_language_than_those_they_are_compared_with_are_told(tmp_path):
    for method in ("lora", "flare", "translate_test"):
        run = write_run(tmp_path, f"{method}-seed1", method, 1, [True])
        write_scores(run, "exact_match", 1.0, [{"id": "r0", "answers": ["x"], "exact_match": 1.0, "f1": 1.0}])
    (note,) = (line for line in report(tmp_path).text.splitlines() if "in another language" in line)
    assert note.endswith("partly the languages': multiemo base pl translate_test (en, not pl).")
    for method in ("lora", "flare", "translate_test"):
        write_run(tmp_path / "labels", f"{method}-seed1", method, 1, [True])
    assert "in another language" not in report(tmp_path / "labels").text, "label words are the same labels"


def test_answers_that_could_not_be_right_are_told_where_there_are_any(tmp_path):
    rows = [{"id": "r0", "exact_match": 1.0, "f1": 1.0}]
    figures = {("lora", 1): (0.25, 0.0), ("lora", 2): (0.5, 0.0), ("flare", 1): (0.0, 0.125), ("zero_shot", 1): (0, 0)}
    for (method, seed), (cut_off, unsayable) in figures.items():
        run = write_run(tmp_path, f"pl/{method}-seed{seed}", method, seed, [True])
        write_scores(run, "exact_match", 1.0, rows, cut_off=cut_off, unsayable=unsayable)
    notes = [
        line for line in report(tmp_path).text.splitlines() if line.startswith(("cut_off:", "unsayable:", "not_a"))
    ]
    assert notes == [
        "cut_off: 37.5% (multiemo base pl lora) of the generated answers did not end within generate.max_new_tokens.",
        "unsayable: 12.5% (multiemo base pl flare) of the test examples have no right answer that fits into "
        "generate.max_new_tokens.",
    ]
