"""Whether a task's answers can be trained on, written, ranked and added up as a run's settings say.

It is asked of settings and task alone, so of all cells of a sweep before the first begins; nothing here imports torch.
"""

from collections.abc import Sequence

from flare_ds.config import Config
from flare_ds.evaluation.qa import unpunctuated
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.base import Task
from flare_ds.tasks.load import task_of


def check_answers(config: Config, task: Task) -> None:
    """Refuse before anything is read what neither training nor evaluation could do with the task's answers.

    Raises:
        ConfigError: naming the setting.
    """
    if task.free_answers and config.train.objective != "vocabulary":
        raise ConfigError(
            f"train.objective={config.train.objective!r}, but the answers of task {task.name} are free text",
            fix="set train.objective=vocabulary",
        )
    check_late(config, task)
    if not task.free_answers and config.evaluate.answers == "generated":
        with_whole_head(config)
        label_readings(task.label_words(config.answer_language))


def check_late(config: Config, task: Task) -> None:
    """Refuse label scores that cannot be added.

    Raises:
        ConfigError: answers are to be written, or the label words are others in the source language.
    """
    if config.late is None:
        return
    if task.free_answers or config.evaluate.answers == "generated":
        refuse_to_write(config, has_words=not task.free_answers)
    source, target = config.task.source_language, config.task.target_language
    if task.label_words(source) != task.label_words(target):
        raise ConfigError(
            f"task {task.name} has other label words in {source} than in {target}, so the scores of the two texts "
            f"cannot be added (evaluate.late={config.late})",
            fix=_without_late(config),
        )


def _without_late(config: Config) -> str:
    """How to leave late out: of its own method it is the weight, whatever evaluate.late says."""
    return f"leave late out: {'method=lora, in a new run' if config.recipe.late else 'evaluate.late=null'}"


def refuse_to_write(config: Config, *, has_words: bool = True) -> None:
    """Refuse to decode answers where label scores are added; where the task `has_words`, these could be ranked instead.

    Raises:
        ConfigError: the settings add them.
    """
    if config.late is not None:
        without = _without_late(config)
        raise ConfigError(
            f"method={config.method} with the source's label scores added (late) ranks label words, but answers are to "
            "be written: two texts would have to agree on every token",
            fix=f"rank label words (evaluate.answers=ranked), or {without}" if has_words else without,
        )


def can_write(config: Config) -> bool:
    """Whether a run's model can generate: unless its head was trained for the label words alone."""
    return not (config.recipe.trains and config.adapter.train_head and config.train.objective == "labels")


def generates(config: Config) -> bool:
    """Whether a split is scored by what the model writes, so that `generate` matters."""
    # A head that is trained for the label words alone ranks them; it cannot write.
    writes_labels = config.evaluate.answers == "generated" and config.train.objective == "vocabulary"
    return writes_labels or task_of(config.task).free_answers


def with_whole_head(config: Config) -> Config:
    """The run's settings, but for a model that predicts the whole vocabulary: what generation opens.

    Raises:
        ConfigError: the run's head was trained for the label words alone.
    """
    if not can_write(config):
        raise ConfigError(
            "adapter.train_head=true with train.objective='labels' trained the label words' rows of the output matrix "
            "only, so nothing else can be generated",
            fix="train with train.objective=vocabulary, or with adapter.train_head=false",
        )
    return config.having("train", objective="vocabulary")


def label_readings(words: Sequence[str]) -> dict[str, str]:
    """The label words by how they are compared.

    Raises:
        ConfigError: of two words the same is left, or of one nothing.
    """
    readings = {as_compared(word): word for word in words}
    if len(readings) < len(words) or "" in readings:
        raise ConfigError(
            f"evaluate.answers='generated', but the label words {list(words)} differ in nothing but case, punctuation "
            "or spacing",
            fix="set evaluate.answers=ranked",
        )
    return readings


def as_compared(text: str) -> str:
    """A label word, or what was written in its place: case, ASCII punctuation and spacing do not count."""
    return "".join(unpunctuated(text).split())
