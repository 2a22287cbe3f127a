"""NusaX: sentiment of 1,000 Indonesian sentences, translated by people into English and ten languages of Indonesia.

On the hub it is a loading script, which `datasets` no longer runs, so the hub's own conversion to parquet is read.
"""

from flare_ds.tasks.base import TASKS
from flare_ds.tasks.records import PARQUET_CONVERSION
from flare_ds.tasks.table import TableTask

NUSAX = TableTask(
    name="nusax",
    version=1,
    languages=("en", "ace", "ban", "bbc", "bjn", "bug", "ind", "jav", "mad", "min", "nij", "sun"),
    original_language="ind",
    hub="indonlp/NusaX-senti",
    revision=PARQUET_CONVERSION,
    config={"en": "eng"},
    pools=("train", "validation", "test"),
    fields=("text",),
    id_column="id",
    labels=("negative", "neutral", "positive"),
    template="{text}\nSentiment:",
    metric="macro_f1",
)

TASKS.add(NUSAX.name, NUSAX)
