r"""What a task is: rows in several languages, a prompt, and either label words or free answers.

    rows of a language ──read──> Row(id, fields, label | answers) ──prompt──> "Premise: ...\nLabel:" ──> " neutral"

Rows of several languages meet by their ids; what a row asks is the prompt, and what answers it continues the prompt.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from flare_ds.exceptions import DataError
from flare_ds.registry import Registry, suggestion

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Pool = Literal["all", "train", "validation", "test"]
"""A part of a data set as its publisher cut it; `all` where nobody did."""
POOLS: tuple[tuple[Pool, ...], ...] = (("all",), ("train", "test"), ("train", "validation", "test"))
"""The parts a data set may have."""
Metric = Literal["accuracy", "macro_f1", "exact_match"]


@dataclass(frozen=True)
class Answer:
    """One right answer in free text.

    Attributes:
        text: the answer.
        start: where it stands in the task's long field, in characters; None: it was not found there.
    """

    text: str
    start: int | None = None


@dataclass(frozen=True)
class Row:
    """One example in one language.

    Attributes:
        id: the same in every language, so the sides of a pair meet by it.
        fields: the texts the prompt is made of, by name; each may be empty, none is missing.
        label: index into the task's `labels`; None where answers are free text.
        answers: the right answers, the first of which is trained on; none where there are label words.
        marks: what looks wrong with it, where it is a machine translation: cut_off, loop, unknown.
    """

    id: str
    fields: Mapping[str, str]
    label: int | None = None
    answers: tuple[Answer, ...] = ()
    marks: tuple[str, ...] = ()


class Task(ABC):
    """A data set that exists, row by row, in one or several languages.

    Attributes:
        name: how configs call it.
        version: raised whenever the same files would give other rows or prompts, so that caches are rebuilt.
        languages: codes of the languages it has.
        nllb_tags: NLLB tags of languages that `flare_ds.tasks.languages` does not know, by code.
        parallel: whether a row says the same in every language; otherwise the other side is machine-translated.
        original_language: the one the rows were written in, whose text decides a split made by us; None where each
            language was written by itself (the first one's text then decides, where rows are parallel).
        pools: the parts it is published in: all; train and test; or train, validation and test.
        fields: names of a row's texts, in the order they are said; one that no prompt says is in the next or among
            `cluster_fields`, and tells no prompts apart.
        split_fields: those whose text decides a split made by us, so that rows that share them stay together.
        long_field: the field that is cut, or read through windows, when a prompt is too long.
        cluster_fields: rows alike in these were drawn together (questions about one passage) and count as one draw in
            intervals; none named: the long field.
        labels: the label words, in the order of `Row.label`: in all languages alike, or by language; none where answers
            are free text.
        metric: how predictions are scored.
    """

    name: str
    version: int
    languages: tuple[str, ...]
    nllb_tags: Mapping[str, str] = {}
    parallel: bool = True
    original_language: str | None = None
    pools: tuple[Pool, ...] = ("all",)
    fields: tuple[str, ...] = ("text",)
    split_fields: tuple[str, ...] = ("text",)
    long_field: str = "text"
    cluster_fields: tuple[str, ...] = ()
    labels: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    metric: Metric = "accuracy"

    @abstractmethod
    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterable[Row]:
        """Read the rows of one language and pool, in the order of the files; may be lazy.

        Args:
            data_dir: directory that holds the task's files; None: the hub.
            language: one of `languages`.
            pool: one of `pools`.

        Raises:
            DataError: the task lacks the language, or a file or row is missing or malformed (naming file, row and
                field).
        """

    @abstractmethod
    def prompt(self, fields: Mapping[str, str]) -> str:
        """Render one row; the text ends so that a space and a label word or an answer continue it."""

    def prompt_in(self, language: str, fields: Mapping[str, str]) -> str:
        """Render a row in the words of its language; one prompt for all, unless a task has it otherwise.

        Raises:
            DataError: the task has no prompt in that language.
        """
        return self.prompt(fields)

    def label_words(self, language: str) -> tuple[str, ...]:
        """The label words of a language, in the order of `Row.label`.

        Raises:
            DataError: the task has none in that language.
        """
        if not isinstance(self.labels, Mapping):
            return self.labels
        return in_language("labels", self.labels, language, self.name)

    @property
    def word_lists(self) -> tuple[tuple[str, ...], ...]:
        """The label words of every language that has its own; one list where all languages share it."""
        return tuple(self.labels.values()) if isinstance(self.labels, Mapping) else (self.labels,)

    def covers(self, row_id: str, language: str) -> bool:
        """Whether the data set has this row in that language: False only for gaps known and documented."""
        return True

    @property
    def free_answers(self) -> bool:
        """Whether answers are free text rather than label words."""
        return not any(self.word_lists)

    def text_form(self, text: str = "TEXT") -> str:
        """How a text of the task is given to be predicted: as it is, or each of its fields by name, in JSON."""
        return text if len(self.fields) == 1 else json.dumps(dict.fromkeys(self.fields, text), ensure_ascii=False)

    def check_language(self, language: str) -> None:
        """Refuse a language the task lacks.

        Raises:
            DataError: naming the language, with the nearest one the task has.
        """
        if language not in self.languages:
            raise DataError(f"task {self.name} has no language {language!r}", fix=suggestion(language, self.languages))


T = TypeVar("T")


def in_language(what: str, said: Mapping[str, T], language: str, task: str) -> T:
    """What a task says in one language under a key, `what`, that speaks by language.

    Raises:
        DataError: it is not said in that language.
    """
    if language not in said:
        fix = f"add {language!r} to the task's {what}, or write {what} once for all languages"
        raise DataError(f"task {task} has {what} for {', '.join(said)}, but not for language {language!r}", fix=fix)
    return said[language]


TASKS: Registry[Task] = Registry("task")
