"""predictions.parquet: a row for each test example, in cache order.

    answers             columns
    ranked label words  id, label, prediction, log_probability_WORD for each label word
    generated ones      id, label, prediction (null where the text is none of them), text, log_probability
    free                id, answers, prediction, exact_match, f1, log_probability

`pandas.read_parquet` reads it; equal records give equal bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flare_ds.files import write_atomically

PREDICTIONS = "predictions.parquet"

_TYPES = {
    "id": pa.string(),
    "label": pa.string(),
    "answers": pa.list_(pa.string()),
    "prediction": pa.string(),
    "text": pa.string(),
    "exact_match": pa.bool_(),
    "f1": pa.float64(),
    "log_probability": pa.float64(),
}


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of a scored split, all of one kind.

    Raises:
        HostError: the disk is full or not writable.
    """
    schema = pa.schema([(name, _TYPES.get(name, pa.float64())) for name in records[0]])
    table = pa.Table.from_pylist(list(records), schema)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a scored split.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    return pq.read_table(path).to_pylist()
