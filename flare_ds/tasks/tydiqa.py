"""TyDiQA-GoldP: questions asked in nine languages, each by people who wanted to know, over a passage that answers them.

All languages lie in one table, and its ids begin with the language. The hub has train and validation; as everywhere in
the literature the latter is the test set, so validation rows are taken from train.
"""

from flare_ds.tasks.base import TASKS
from flare_ds.tasks.table import TableTask

TYDIQA = TableTask(
    name="tydiqa",
    version=1,
    languages=("en", "ar", "bn", "fi", "id", "ko", "ru", "sw", "te"),
    parallel=False,
    hub="google-research-datasets/tydiqa",
    config="secondary_task",
    pools=("train", "test"),
    splits={"test": "validation"},
    fields=("context", "question"),
    split_fields=("context",),
    long_field="context",
    id_column="id",
    id_prefixes={
        "en": "english-",
        "ar": "arabic-",
        "bn": "bengali-",
        "fi": "finnish-",
        "id": "indonesian-",
        "ko": "korean-",
        "ru": "russian-",
        "sw": "swahili-",
        "te": "telugu-",
    },
    template="Context: {context}\nQuestion: {question}\nAnswer:",
    metric="exact_match",
)

TASKS.add(TYDIQA.name, TYDIQA)
