"""predictions.parquet: a row for each test example, in cache order.

    answers             columns
    ranked label words  id, cluster, label, prediction, log_probability_WORD for each label word
    generated ones      id, cluster, label, prediction (null where the text is none of them), text, log_probability
    free                id, cluster, answers, prediction, exact_match, f1, log_probability

Examples of one cluster were drawn together, see `flare_ds.tasks.base.Task.cluster_fields`.
`pandas.read_parquet` reads it; equal records give equal bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare_ds.files import write_atomically

if TYPE_CHECKING:
    from pyarrow import Schema

PREDICTIONS = "predictions.parquet"
# pyarrow is imported where it is used: a rank that starts has no predictions yet.


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of a scored split, all of one kind.

    Raises:
        HostError: the disk is full or not writable.
    """
    from pyarrow import Table
    from pyarrow.parquet import write_table

    table = Table.from_pylist(list(records), _schema(records[0]))
    write_atomically(path, lambda temporary: write_table(table, temporary))


def read_predictions(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The records of a scored split; all columns, or those that are wanted, of which the file may lack some.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:  # by itself: a file, and no data set of many
        return file.read(None if columns is None else list(columns), use_threads=False).to_pylist()


def _schema(names: Iterable[str]) -> "Schema":
    import pyarrow as pa

    texts = dict.fromkeys(("id", "label", "prediction", "text"), pa.string())
    types = {**texts, "cluster": pa.int64(), "answers": pa.list_(pa.string()), "exact_match": pa.bool_()}
    return pa.schema([(name, types.get(name, pa.float64())) for name in names])
