"""docs/results/xquad.md says of its rows what `flare-ds report` says of them now; docs/results.md says the same."""

import csv
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np

from flare_ds.reporting import report
from flare_ds.scoring.sureness import over_seeds_and_rows
from tests.distributed import REPOSITORY
from tests.docs.blocks import blocks
from tests.docs.test_nusax_page import lines
from tests.report.runs import tables, write_run, write_scores

PAGE = REPOSITORY / "docs/results/xquad.md"
LANGUAGES = ("hi", "zh")
METHODS = ("zero_shot", "zero_shot_both", "lora", "flare", "source_prefix", "input_fusion")


def write_cell(root: Path, language: str, method: str) -> None:
    """A run that was scored on each row as the cell was."""
    with (PAGE.parent / "xquad_rows.csv").open(encoding="utf-8") as file:
        said = [
            {"id": row["id"], "cluster": int(row["passage"])}
            | {name: float(row[f"{language}/{method}/{name}"]) for name in ("exact_match", "f1")}
            for row in csv.DictReader(file)
        ]
    run = write_run(
        root,
        f"{language}/{method}-seed1",
        method,
        1,
        [True],
        name="xquad",
        path=str(root / "xquad.yaml"),
        target=language,
    )
    exact_match, f1 = (mean(row[name] for row in said) for name in ("exact_match", "f1"))
    write_scores(run, "exact_match", exact_match, said, exact_match=exact_match, f1=f1)


def test_source_prefix_against_the_others_follows_from_the_rows() -> None:
    with (PAGE.parent / "xquad_rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def of_rows(method: str) -> np.ndarray:
        return np.mean([[float(row[f"{one}/{method}/exact_match"]) for row in rows] for one in LANGUAGES], 0)

    told = " ".join((REPOSITORY / "docs/results.md").read_text(encoding="utf-8").split())
    for method in ("flare", "input_fusion"):
        sureness = over_seeds_and_rows(
            (of_rows("source_prefix") - of_rows(method))[None], np.array([int(row["passage"]) for row in rows])
        )
        numbers = [
            f"{number:+.3f}".replace("0.", ".").replace("-", "−") for number in (sureness.mean, *sureness.interval)
        ]
        assert any(f"`{method}` {verb}{numbers[0]} ({numbers[1]} to {numbers[2]})" in told for verb in ("is ", "")), (
            numbers
        )


def test_the_report_and_the_table_of_results_follow_from_the_rows(tmp_path: Path) -> None:
    (task,) = (block for block in blocks(REPOSITORY / "docs/tasks.md") if block.file == "xquad.yaml")
    (tmp_path / "xquad.yaml").write_text(task.text, encoding="utf-8")
    for language, method in product(LANGUAGES, METHODS):
        write_cell(tmp_path, language, method)
    found, page = report(tmp_path).text, PAGE.read_text(encoding="utf-8")
    assert lines(page) == lines(found) and len(lines(page)) == 5 * (len(LANGUAGES) + 1)
    scores, told = (
        {(line["language"], line["method"]): (line["score"], line["f1"]) for line in tables(text)[0]}
        for text in (found, page)
    )
    assert scores.items() <= told.items()
    results = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    section = results.partition("\n## XQuAD")[2].partition("\n## ")[0]
    shown = [[*line.values()] for line in tables(section)[0]]
    assert [line[0].split(" ")[0].rstrip(":") for line in shown] == [*METHODS]
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    for method in ("lora", "flare", "source_prefix"):
        first, second = (scores[language, method][0].removeprefix("0") for language in LANGUAGES)
        assert f"`{method}` {first} and {second}" in readme
    over = {told["method"]: told for table in tables(found) if "languages" in table[0] for told in table}
    for line, method in zip(shown, METHODS, strict=True):
        of_language = [" / ".join(scores[language, method]) for language in LANGUAGES]
        low, high = over[method]["in these"].split(" to ") if method in over else ("", "")
        said = f"{over[method]['mean − lora']} ({low} to {high})" if method in over else "–"
        assert line[1:4] == [one.replace("0.", ".").replace("-", "−") for one in (*of_language, said)]
