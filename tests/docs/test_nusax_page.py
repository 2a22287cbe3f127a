"""docs/results/nusax.md says of its rows what `flare-ds report` says of them now."""

import csv
import json
from itertools import product
from pathlib import Path
from statistics import mean

from flare_ds.reporting import report
from flare_ds.scoring.metrics import score
from tests.distributed import REPOSITORY
from tests.report.runs import tables, write_run, write_scores

PAGE = REPOSITORY / "docs/results/nusax.md"
ROWS = REPOSITORY / "docs/results/nusax_rows.csv"
CELLS = REPOSITORY / "docs/results/nusax.json"
METHODS = {"lora": "lora", "input_fusion": "input_fusion", "x_mixup": "x_mixup", "flare_paper": "flare"}
LANGUAGES = ("ace", "bbc", "bug", "mad", "nij")
LEFT_OUT = {"base", "p (Holm)", "first"}


def test_the_intervals_of_later_cells_follow_from_their_rows(tmp_path: Path) -> None:
    """All but p, which Holm's correction counts among lines whose rows were not kept."""
    for language, (cell, method), seed in product(LANGUAGES, METHODS.items(), (1, 2, 3)):
        write_cell(tmp_path, language, f"{cell}-seed{seed}", method, seed)
    later = PAGE.read_text(encoding="utf-8").partition("## Later cells against lora")[2]
    assert lines(later) == lines(report(tmp_path).text)


def test_what_both_texts_tell_untrained_follows_from_the_rows(tmp_path: Path) -> None:
    for language in LANGUAGES:
        write_cell(tmp_path, language, "zero_shot_both-seed1", "zero_shot_both", 1)
        for seed in (1, 2, 3):
            write_cell(tmp_path, language, f"lora-seed{seed}", "lora", seed)
    section = PAGE.read_text(encoding="utf-8").partition("## Both texts, nothing trained")[2].partition("\n## ")[0]
    assert lines(section) == lines(report(tmp_path).text) and len(lines(section)) == len(LANGUAGES) + 1


def test_the_report_in_bfloat16_and_its_means_follow_from_the_rows(tmp_path: Path) -> None:
    page = (PAGE.parent / "nusax_bf16.md").read_text(encoding="utf-8")
    section = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8").partition("### Again in bfloat16")[2]
    section = section.partition("\n## ")[0]
    rows = PAGE.parent / "nusax_bf16_rows.csv"
    shown = [[*line.values()] for line in tables(section)[0]]
    methods = ("zero_shot", "zero_shot_both", "lora", "flare", "source_prefix", "source_lora", "translate_test")
    assert [line[0].split(":")[0].split(" ")[0] for line in shown] == [*methods]
    for language, method in product(("nij", "bbc", "mad", "bug"), methods):
        column = f"{'nij' if method == 'translate_test' else language}/{method}-seed1"
        write_cell(tmp_path, language, f"{method}-seed1", method, 1, rows=rows, column=column)
    found = report(tmp_path).text
    assert lines(page) == lines(found) and len(lines(page)) == 6 * 5
    for line, named in zip(shown, methods, strict=True):
        scores = [told["score"] for language in ("nij", "bbc", "mad", "bug")
                  for told in tables(found)[0] if (told["language"], told["method"]) == (language, named)]  # fmt: skip
        assert line[1:5] == [score.removeprefix("0") for score in scores]
        over = [told for table in tables(found) if "languages" in table[0] for told in table if told["method"] == named]
        low, high = over[0]["in these"].split(" to ") if over else ("", "")
        said = f"{over[0]['mean − lora']} ({low} to {high})" if over else "–"
        assert line[5] == said.replace("0.", ".").replace("-", "−")


def write_cell(
    root: Path, language: str, name: str, method: str, seed: int, *, rows: Path = ROWS, column: str | None = None
) -> None:
    """A run that says what the cell said of each row."""
    run = write_run(root, f"{language}/{name}", method, seed, [True], name="nusax", target=language)
    with rows.open(encoding="utf-8") as file:
        said = [
            {"id": row["id"], "label": row["label"], "prediction": row[column or f"{language}/{name}"]}
            for row in csv.DictReader(file)
        ]
    write_scores(run, "macro_f1", score("macro_f1", [(one["prediction"], one["label"]) for one in said]), said)


def test_the_figures_of_later_cells_are_those_of_the_file_beside_the_page() -> None:
    cells = json.loads(CELLS.read_text(encoding="utf-8"))
    (later,) = (table for table in tables(PAGE.read_text(encoding="utf-8")) if "cell" in table[0])
    for line in later:
        language, cell = line["language"], cells[f"{line['language']}/{line['cell']}"]
        flops = mean(cells[f"{language}/lora-seed{seed}"]["training"]["flops_per_step"] for seed in (1, 2, 3))
        lo, hi = cell["confidence_interval"]
        assert list(line.values())[2:] == [
            f"{cell['score']:.3f}",
            f"{lo:.3f} to {hi:.3f}",
            f"{cell['figures']['accuracy']:.3f}",
            f"{cell['training']['flops_per_step'] / flops:.2f}",
            f"{cell['training']['best_validation_score']:.3f}",
        ]


def lines(text: str) -> set[tuple[str, ...]]:
    """Of each comparison, what is told of it."""
    told = [line for table in tables(text) if "findable" in table[0] for line in table]
    return {tuple(METHODS.get(value, value) for key, value in line.items() if key not in LEFT_OUT) for line in told}


def test_what_five_passes_come_to_follows_from_its_rows() -> None:
    with (REPOSITORY / "docs/results/nusax_160_rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = " ".join((REPOSITORY / "docs/results.md").read_text(encoding="utf-8").split())
    shown = ", ".join(f"{method} {macro_f1(rows, method):.3f}".replace("0.", ".") for method in ("lora", "flare"))
    assert len(rows) == 400 and f"After 160 steps {shown} on the 400 test rows" in told


def macro_f1(rows: list[dict[str, str]], method: str) -> float:
    scores = []
    for label in sorted({row["label"] for row in rows}):
        right = sum(row["label"] == row[method] == label for row in rows)
        scores.append(2 * right / sum((row["label"] == label) + (row[method] == label) for row in rows))
    return mean(scores)
