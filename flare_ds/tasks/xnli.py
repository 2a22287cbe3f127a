"""XNLI: natural language inference, English MultiNLI translated into 14 languages (test and validation by people)."""

from flare_ds.tasks.base import TASKS
from flare_ds.tasks.table import TableTask

XNLI = TableTask(
    name="xnli",
    version=1,
    languages=("en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
    original_language="en",
    hub="facebook/xnli",
    pools=("train", "validation", "test"),
    fields=("premise", "hypothesis"),
    labels=("entailment", "neutral", "contradiction"),
    template="Premise: {premise}\nHypothesis: {hypothesis}\nLabel:",
)

TASKS.add(XNLI.name, XNLI)
