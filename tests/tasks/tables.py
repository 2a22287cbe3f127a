"""Small tables in the hub's exact schemas, written in every form that local files may have."""

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

SUFFIXES = ("parquet", "jsonl", "json", "csv")
XNLI = Features(
    {
        "premise": Value("string"),
        "hypothesis": Value("string"),
        "label": ClassLabel(names=["entailment", "neutral", "contradiction"]),
    }
)
NUSAX = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "lang": Value("string"),
        "label": ClassLabel(names=["negative", "neutral", "positive"]),
    }
)
# As the hub stores a Sequence of {text, answer_start}: one struct of two lists.
TYDIQA = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": [Value("string")], "answer_start": [Value("int32")]},
    }
)


def write_table(path: Path, rows: Sequence[dict], features: Features | None = None) -> Path:
    """Write rows in the form that the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_list(list(rows), features=features)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".csv":
        cells = [{key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()}
                 for row in rows]  # fmt: skip
        Dataset.from_list(cells).to_csv(path, index=False)
    else:
        table.to_json(path, lines=path.suffix == ".jsonl", force_ascii=False)
    return path
