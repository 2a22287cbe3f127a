"""The paper's figures, and ours beside them."""

import numpy as np
import pytest

from flare_ds.methods import METHODS
from flare_ds.reporting import report
from flare_ds.reporting.paper import TABLE
from tests.report.runs import tables, write_run

OURS = {"zero_shot_both", "source_lora", "source_prefix", "late"}
"""Methods that the paper does not have."""
AVERAGES = {  # of the three tasks, in the order of the methods, as the paper's readers computed them
    "Llama 3.1 8B": [50.50, 51.43, 66.11, 67.13, 57.87, 68.25, 64.77],
    "Gemma 2 9B": [51.51, 51.29, 71.40, 69.93, 66.67, 72.67, 70.85],
}


def test_the_papers_figures_have_the_averages_they_are_known_by():
    methods = [method for method in METHODS if method not in OURS]
    found = {model: [np.mean(scores[method]) for method in methods] for model, scores in TABLE.items()}
    assert found.keys() == AVERAGES.keys()
    for model, averages in AVERAGES.items():
        assert found[model] == pytest.approx(averages, abs=0.0051)


def test_scores_stand_beside_the_papers(tmp_path):
    """Under any name of the model, and where it is the base of a task adapter that was merged."""
    merged = tmp_path / "base"
    merged.mkdir()
    (merged / "merged_from.json").write_text('{"base": "google/gemma-2-9b", "run": "runs/en"}')
    for language, correct in (("sw", [True, False]), ("ur", [True, True, True, False])):
        for method in ("lora", "flare"):
            name = f"{language}/{method}-seed1"
            write_run(tmp_path, name, method, 1, correct, target=language, base=str(merged), name="xnli")
    write_run(tmp_path, "th/flare-seed1", "flare", 1, target="th", base=str(merged), name="xnli")
    # English is no target language of the paper's.
    write_run(tmp_path, "en/zero_shot-seed1", "zero_shot", 1, [True], target="en", base=str(merged), name="xnli")
    *_, beside = tables(report(tmp_path).text)
    assert [tuple(line.values()) for line in beside] == [
        ("xnli", "Gemma 2 9B", "lora", "2 of 14", "62.50", "84.89"),
        ("xnli", "Gemma 2 9B", "flare", "2 of 14", "62.50", "85.01"),
    ]


def test_each_setting_has_its_own_average_beside_the_papers(tmp_path):
    """In the shipped sweeps flare stands in our form and in the paper's: neither hides the other, nor are they one."""
    settings = {"base": "Llama-3.1-8B", "name": "xnli"}
    for language, correct in (("sw", [True, False]), ("ur", [True, True])):
        for r, right in ((8, correct), (16, [False, False])):
            write_run(tmp_path, f"{language}/r{r}-seed1", "lora", 1, right, target=language, r=r, **settings)
    *_, beside = tables(report(tmp_path).text)
    assert [(line["method"], line["languages"], line["ours"], line["the paper's"]) for line in beside] == [
        ("lora (r16)", "2 of 14", "0.00", "80.74"),
        ("lora (r8)", "2 of 14", "75.00", "80.74"),
    ]


def test_what_stands_twice_in_a_language_is_not_averaged_to_meet_the_papers(tmp_path):
    for place in ("one", "two"):
        write_run(tmp_path / place, "sw/lora-seed1", "lora", 1, [True], target="sw", base="Llama-3.1-8B", name="xnli")
    *_, ((line),) = tables(report(tmp_path).text)
    assert (line["ours"], line["the paper's"]) == ("-", "80.74")


@pytest.mark.parametrize(("base", "task"), [("google/gemma-2-9b-it", "xnli"), ("google/gemma-2-9b", "multiemo")])
def test_what_the_paper_does_not_have_is_not_compared_with_it(tmp_path, base, task):
    write_run(tmp_path, "lora-seed1", "lora", 1, [True], target="es", base=base, name=task)
    assert "the paper" not in report(tmp_path).text
