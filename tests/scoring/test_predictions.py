"""predictions.parquet: what was scored, as pandas reads it."""

from pathlib import Path

import pandas as pd
import pytest

from flare_ds.scoring.predictions import read_predictions, write_predictions

RANKED = [
    {"id": "r0", "label": "no", "prediction": "yes", "log_probability_no": -1.5, "log_probability_yes": -0.25},
    {"id": "r1", "label": "yes", "prediction": "yes", "log_probability_no": -2.0, "log_probability_yes": -0.125},
]
GENERATED = [
    {"id": "ą", "label": "no", "prediction": None, "text": "ไม่\u200b แน่\n", "log_probability": -0.5},
    {"id": "b", "label": "yes", "prediction": None, "text": "", "log_probability": -1.0},
]
ANSWERS = [
    {
        "id": "q",
        "answers": ["১৯৭১ সালে", "1971"],
        "prediction": "",
        "exact_match": False,
        "f1": 0.0,
        "log_probability": -3.5,
    }
]


@pytest.mark.parametrize("records", [RANKED, GENERATED, ANSWERS])
def test_what_is_written_is_read(records: list[dict], tmp_path: Path) -> None:
    path = tmp_path / "method=flare" / "predictions.parquet"  # a directory's name makes no column
    write_predictions(path, records)
    assert read_predictions(path) == records
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    write_predictions(path, records)
    assert path.read_bytes() == first


def test_pandas_has_a_column_for_each_word_and_sees_what_is_missing(tmp_path: Path) -> None:
    write_predictions(tmp_path / "ranked.parquet", RANKED)
    write_predictions(tmp_path / "generated.parquet", GENERATED)
    ranked, generated = (pd.read_parquet(tmp_path / f"{kind}.parquet") for kind in ("ranked", "generated"))
    assert (ranked["label"] == ranked["prediction"]).mean() == 0.5
    assert ranked[["log_probability_no", "log_probability_yes"]].max(axis=1).tolist() == [-0.25, -0.125]
    assert generated["prediction"].isna().all() and generated["text"].notna().all()


def test_types_do_not_depend_on_the_rows(tmp_path: Path) -> None:
    """Of a split where nothing was a label word the column of predictions is still one of texts."""
    for kind, records in (("words", [GENERATED[0] | {"prediction": "no"}]), ("none", GENERATED)):
        write_predictions(tmp_path / f"{kind}.parquet", records)
    words, none = (pd.read_parquet(tmp_path / f"{kind}.parquet") for kind in ("words", "none"))
    assert words.dtypes.to_dict() == none.dtypes.to_dict()
