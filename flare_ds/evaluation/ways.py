"""In which way a split is scored: by what the model writes, or by the label words it ranks."""

from flare_ds.config import Config
from flare_ds.tasks.load import task_of


def generates(config: Config) -> bool:
    """Whether a split is scored by what the model writes, so that `generate` matters."""
    # A head that is trained for the label words alone ranks them; it cannot write.
    writes_labels = config.evaluate.answers == "generated" and config.train.objective == "vocabulary"
    return writes_labels or task_of(config.task).free_answers
