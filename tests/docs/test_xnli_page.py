"""What docs/results.md and docs/results/xnli.md say of XNLI follows from the rows beside them."""

import csv
from pathlib import Path

import numpy as np
import pytest

from flare_ds.reporting import report
from flare_ds.scoring.sureness import over_seeds_and_rows
from tests.distributed import REPOSITORY
from tests.report.runs import tables, write_run, write_scores

RESULTS = REPOSITORY / "docs/results.md"
PAGE = REPOSITORY / "docs/results/xnli.md"
ROWS = REPOSITORY / "docs/results/xnli_rows.csv"
METHODS = ("zero_shot", "translate_test", "lora", "input_fusion", "flare", "source_prefix")
ENGLISH = "lora_on_english"
NAMED = {"source_prefix": "source_prefix (ours)", ENGLISH: "lora on the English alone"}
FUSED = ("flare", "source_prefix", "input_fusion")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with ROWS.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def section() -> str:
    found = RESULTS.read_text(encoding="utf-8").partition("## XNLI: ")[2].partition("\n## ")[0]
    return " ".join(found.split())


def runs(rows: list[dict[str, str]], method: str) -> list[str]:
    """The columns of a method, one for each of its seeds."""
    return [name for name in rows[0] if name.rpartition("-seed")[0] == method]


def right(rows: list[dict[str, str]], method: str) -> np.ndarray:
    """Which rows each seed has right: float [S, N]."""
    return np.array([[row[name] == row["label"] for row in rows] for name in runs(rows, method)], float)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".").replace("-", "−")


def test_the_report_on_these_rows_is_the_page(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    for method in METHODS:
        for name, right_N in zip(runs(rows, method), right(rows, method), strict=True):
            seed = int(name.rpartition("-seed")[2])
            run = write_run(tmp_path, f"sw/{name}", method, seed, [True], name="xnli", target="sw")
            said = [
                {"id": row["id"], "label": row["label"], "prediction": row[name], "cluster": int(row["premise"])}
                for row in rows
            ]
            write_scores(run, "accuracy", float(right_N.mean()), said)
    compared = [
        [list(line.values())[2:] for table in tables(text) if "findable" in table[0] for line in table]
        for text in (report(tmp_path).text, PAGE.read_text(encoding="utf-8"))
    ]
    assert compared[0] == compared[1] != []


def test_scores_and_differences_follow_from_the_rows(rows: list[dict[str, str]], section: str) -> None:
    premises = [int(row["premise"]) for row in rows]
    assert (len(rows), len(set(premises))) == (2000, 1314)
    for method in (*METHODS, ENGLISH):
        named = NAMED.get(method, method)
        means = [right(rows, method).mean(), *(right(rows, method).mean(axis=1) if len(runs(rows, method)) > 1 else ())]
        assert f"| {named} | {' | '.join(f'{mean:.3f}' for mean in means)} |".replace("0.", ".") in section
    for one, other in [
        *((method, "translate_test") for method in FUSED),
        *((method, ENGLISH) for method in FUSED),
        (ENGLISH, "lora"),
        (ENGLISH, "translate_test"),
        ("source_prefix", "flare"),
        ("flare", FUSED[2]),
    ]:
        known = over_seeds_and_rows(right(rows, one) - right(rows, other), premises)
        low, high = known.interval
        assert f"{signed(known.mean)} ({signed(low)} to {signed(high)})" in section, (one, other)
