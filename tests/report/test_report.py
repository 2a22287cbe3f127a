"""The report on run directories written by hand: its files, its learning curves, and what it refuses."""

import csv
import sys
import tracemalloc

import numpy as np
import pytest

from flare_ds.exceptions import DataError, HostError
from flare_ds.reporting import report
from flare_ds.runs import find_runs
from tests.report.runs import methods, tables, validation, write_log, write_run


def test_learning_curves_hold_the_validations(tmp_path):
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    write_log(
        directory,
        {"step": 20, "loss": 2.0},
        validation(20, 0.5),
        {"step": 40, "loss": 1.0},
        validation(40, 0.6),
    )
    out = tmp_path / "elsewhere"
    text = report(tmp_path, out=out).text
    rows = list(csv.DictReader((out / "learning_curves.csv").open()))
    assert [(row["run"], row["step"], row["validation_score"]) for row in rows] == [
        ("pl/lora-seed1", "20", "0.5"),
        ("pl/lora-seed1", "40", "0.6"),
    ]
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "(learning_curves.png)" in text
    assert sorted(path.name for path in out.iterdir()) == ["learning_curves.csv", "learning_curves.png", "report.md"]


def test_learning_curves_of_free_answers_have_no_loss(tmp_path):
    directory = write_run(tmp_path, "hi/lora-seed1", "lora", 1, [True])
    write_log(directory, {"step": 20, "validation_score": 0.5, "validation_exact_match": 0.5, "validation_f1": 0.6})
    report(tmp_path)
    (row,) = csv.DictReader((tmp_path / "learning_curves.csv").open())
    assert (row["validation_score"], row["validation_loss"]) == ("0.5", "")


def figure_of(tmp_path, monkeypatch):
    """The picture of a report, as matplotlib has it."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    report(tmp_path)
    return figures[0]


def test_a_method_has_one_colour_in_all_panels(tmp_path, monkeypatch):
    for place, method in (("es", "lora"), ("pl", "flare"), ("pl", "lora")):
        write_log(write_run(tmp_path, f"{place}/{method}", method, 1, target=place), validation(20, 0.5))
    panels = figure_of(tmp_path, monkeypatch).axes
    colours = {
        panel.get_title(): {line.get_label(): line.get_color() for line in panel.get_lines()} for panel in panels
    }
    assert list(colours) == ["es", "pl"] and list(colours["pl"]) == ["flare", "lora"]
    assert colours["es"]["lora"] == colours["pl"]["lora"] != colours["pl"]["flare"]


def test_two_tasks_in_one_language_have_a_panel_each(tmp_path, monkeypatch):
    for task, base in (("xnli", "a"), ("tydiqa", "a"), ("tydiqa", "b")):
        run = write_run(tmp_path, f"{task}-{base}/lora", "lora", 1, target="sw", name=task, base=base)
        write_log(run, validation(20, 0.5))
    assert [panel.get_title() for panel in figure_of(tmp_path, monkeypatch).axes] == ["tydiqa a", "tydiqa b", "xnli a"]


def test_the_picture_of_many_languages_grows_downwards(tmp_path, monkeypatch):
    """One row of 98 panels would be wider than the 2^16 pixels a picture may have: six stand beside each other."""
    languages = [f"xx{letter}_Latn" for letter in "abcdefghijklm"]
    for language in languages:
        write_log(write_run(tmp_path, f"{language}/lora", "lora", 1, target=language), validation(20, 0.5))
    figure = figure_of(tmp_path, monkeypatch)
    assert [panel.get_title() for panel in figure.axes] == languages
    wide, high = figure.get_size_inches()
    assert 6 * 4.5 < wide < 6 * 4.5 + 2 and high == 3 * 3.6


def test_settings_of_one_method_are_told_apart_in_the_picture(tmp_path, monkeypatch):
    """As flare in our form and in the paper's; seeds share a colour, and so do languages."""
    for language in ("es", "pl"):
        for name, method in (("lora", "lora"), ("flare", "flare"), ("flare_paper", "flare")):
            for seed in (1, 2):
                run = write_run(tmp_path, f"{language}/{name}-seed{seed}", method, seed, target=language)
                write_log(run, validation(20, 0.5))
    figure = figure_of(tmp_path, monkeypatch)
    (legend,) = figure.legends
    told = {t.get_text(): line.get_color() for t, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert list(told) == ["flare (flare)", "flare (flare_paper)", "lora"] and len({*told.values()}) == 3
    for panel in figure.axes:
        assert [line.get_color() for line in panel.get_lines()] == [*told.values()] and panel.get_legend() is None


def test_all_names_of_a_picture_are_in_it_and_panels_keep_their_size(tmp_path, monkeypatch):
    for rate in range(1, 31):
        name = f"pl/lora-with-a-long-name-of-a-variant-{rate}-seed1"
        write_log(write_run(tmp_path, name, "lora", 1, target="pl"), validation(20, 0.5))
    figure = figure_of(tmp_path, monkeypatch)
    figure.draw_without_rendering()
    (legend,), (panel,) = figure.legends, figure.axes
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1
    assert panel.get_window_extent().width > 3 * figure.dpi


def test_no_two_lines_of_a_picture_look_alike(tmp_path, monkeypatch):
    """As a grid over learning rates has them; there are ten colours."""
    for rate in range(1, 24):
        write_log(write_run(tmp_path, f"pl/lora-rate{rate}-seed1", "lora", 1, target="pl"), validation(20, 0.5))
    (panel,) = figure_of(tmp_path, monkeypatch).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in panel.get_lines()}
    assert len(looks) == len(panel.get_lines()) == 23


def test_runs_are_held_without_what_no_table_needs(tmp_path):
    """1.5 MB a run would be 1.5 GB of a thousand."""
    for seed in range(1, 6):
        run = write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, np.arange(4000) % 3 > 0, clusters=range(4000))
        write_log(run, validation(20, 0.5))
    find_runs(tmp_path)
    tracemalloc.start()
    runs, _ = find_runs(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(runs) == 5 and held / len(runs) < 300_000


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write"):
        report(tmp_path, out=tmp_path / "file" / "below")


def test_without_matplotlib_there_is_still_the_csv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_log(write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True]), validation(20, 0.5))
    text = report(tmp_path).text
    assert (tmp_path / "learning_curves.csv").is_file()
    assert "learning_curves.png" not in text
    assert "pip install matplotlib" in text


def test_a_directory_without_runs_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no runs below"):
        report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "training.json", "train_log.jsonl"])
def test_a_damaged_run_is_a_line_and_the_rest_stands(tmp_path, name):
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True, False])
    (tmp_path / "pl/lora-seed2" / name).write_text("{broken\n")
    found = report(tmp_path)
    assert [run.directory for run in found.unreadable] == [tmp_path / "pl/lora-seed2"]
    assert [(line["method"], line["seeds"]) for line in methods(found.text)] == [("lora", "1 (1)")]
    (line,) = tables(found.text)[1]
    assert line["run"] == "pl/lora-seed2" and line["problem"].startswith("cannot be read:") and name in line["problem"]


def test_damaged_settings_are_a_line_too(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    write_run(tmp_path, "pl/lora-seed2", "lora", 2, [True])
    path = tmp_path / "pl/lora-seed2/config.yaml"
    path.write_text(path.read_text().replace("steps: 40", "steps: forty"))
    assert "train.steps='forty'" in report(tmp_path).unreadable[0].problem


def test_metrics_of_another_schema_are_a_line(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / "pl/lora-seed1/metrics.json").write_text('{"schema": 1}')
    assert "schema 1" in report(tmp_path).text


@pytest.mark.parametrize("name", ["wandb/config.yaml", "x/.hydra/config.yaml", "config.yaml"])
@pytest.mark.parametrize("text", ["lr: {value: 1}\n", "method: sgd\nmodel: resnet\n", "a: [\n", "- 1\n", ""])
def test_the_config_of_another_program_is_passed_by(tmp_path, name, text):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    found = report(tmp_path)
    assert not found.unreadable and len(methods(found.text)) == 1


def test_what_wandb_keeps_in_a_run_is_no_run(tmp_path):
    """It writes all settings of the run under their names into a config.yaml of its own."""
    run = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    theirs = run / "wandb/run-20261130_081500-0a1b2c3d/files/config.yaml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text(
        "".join(f"{name}: {{value: 1}}\n" for name in ("method", "run_dir", "deepspeed", "model", "task"))
    )
    found = report(tmp_path)
    assert not found.unreadable and len(methods(found.text)) == 1


def test_linked_runs_are_found_once_and_cycles_end(tmp_path):
    write_run(tmp_path, "runs/pl/lora-seed1", "lora", 1, [True])
    write_run(tmp_path, "disk/lora-seed2", "lora", 2, [False])
    (tmp_path / "runs/pl/lora-seed2").symlink_to("../../disk/lora-seed2")
    (tmp_path / "runs/again").symlink_to("pl")
    (tmp_path / "runs/pl/up").symlink_to("..")
    (line,) = methods(report(tmp_path / "runs").text)
    assert line["seeds"] == "2 (1, 2)"


def test_a_run_directory_itself_can_be_reported(tmp_path):
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    assert [run.directory for run in find_runs(directory)[0]] == [directory]


def test_scores_of_another_adapter_are_not_shown(tmp_path):
    """A better adapter came after the evaluation: the run waits for another one."""
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (directory / "adapter/adapter_model.safetensors").write_bytes(b"better")
    (line,) = methods(report(tmp_path).text)
    assert line["score"] == "unfinished: trained; its scores belong to another adapter"
