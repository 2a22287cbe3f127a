r"""A task that is declared: which tables it lies in, what their columns mean, and how a row becomes a prompt.

    a table's row    premise: A dog.    hypothesis: An animal.    label: 0
    the template     "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"    continued by " entailment"

The built-in tasks of the hub are written this way, and so are a user's own, in YAML or Python (docs/tasks.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, permutations
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator
from pydantic.dataclasses import dataclass

from flare_ds.exceptions import DataError
from flare_ds.failures import warn
from flare_ds.registry import suggestion
from flare_ds.tasks.base import POOLS, Metric, Pool, Row, Task, in_language
from flare_ds.tasks.cells import read_answers, read_id
from flare_ds.tasks.label_cells import LabelCells, spelled
from flare_ds.tasks.records import Record, Records, open_files, open_hub, split_files
from flare_ds.texts import composed


@dataclass(config=ConfigDict(extra="forbid"), frozen=True, kw_only=True)
class TableTask(Task):
    """A task over tables of the hub, or over local files with the same columns."""

    name: str = Field(description="how configs call it")
    version: int = Field(default=1, ge=1, description="raised whenever the same files would give other rows or prompts")
    languages: tuple[str, ...] = Field(min_length=1, description="codes of the languages it has")
    nllb_tags: Mapping[str, str] = Field(
        default={}, description="NLLB tags of languages that flare_ds does not know, by code"
    )
    parallel: bool = Field(default=True, description="whether a row says the same in every language")
    original_language: str | None = Field(
        default=None,
        description="the one the rows were written in, whose text decides a split made by us (default: the first)",
    )
    hub: str | dict[str, str] | None = Field(
        default=None, description="data set on the hub, or one for each language (null: local files only)"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    config: str | dict[str, str] | None = Field(
        default="{language}", description="config on the hub, and folder below data_dir: a template, or by language"
    )
    pools: tuple[Pool, ...] = Field(description="all; train and test; or train, validation and test")
    splits: Mapping[Pool, str] = Field(
        default={}, description="names of the tables' splits that differ from the pools'"
    )
    fields: tuple[str, ...] = Field(min_length=1, description="names of a row's texts, in the order they are said")
    columns: Mapping[str, str] = Field(default={}, description="columns of fields that are named otherwise")
    id_column: str | None = Field(default=None, description="column of ids (null: the row's number)")
    id_prefixes: Mapping[str, str] = Field(
        default={}, description="what the ids of each language begin with, where one table holds all languages"
    )
    labels: tuple[str, ...] | Mapping[str, tuple[str, ...]] = Field(
        default=(), description="label words, for all languages or by language; none: answers are free text"
    )
    label_column: str = Field(
        default="label", description="column of labels: words, or their places (if no word is a number)"
    )
    label_values: Mapping[StrictBool | StrictInt | StrictStr, str] = Field(
        default={}, description="label word of each value, if neither"
    )
    answers_column: str = Field(
        default="answers", description="column of free answers: {text: [...], answer_start: [...]}"
    )
    template: str | Mapping[str, str] = Field(
        description="the prompt, with {field}s, for all languages or by language; a space and the answer continue it"
    )
    long_field: str = Field(
        default_factory=lambda data: data["fields"][0], description="the one that is cut when too long"
    )
    split_fields: tuple[str, ...] = Field(
        default_factory=lambda data: data["fields"] if data["labels"] else (data["long_field"],),
        description="those that decide a split made by us (default: all; of free answers the long field, as several "
        "questions are about one passage)",
    )
    cluster_fields: tuple[str, ...] = Field(
        default=(), description="rows alike in these count as one draw in intervals (default: the long field)"
    )
    metric: Metric = Field(
        default_factory=lambda data: "accuracy" if data["labels"] else "exact_match", description="the score"
    )

    @model_validator(mode="after")
    def _declaration_fits_together(self) -> "TableTask":
        for broken, problem, fix in self._conflicts():
            if broken:
                raise ValueError(f"{problem}; {fix}")
        return self

    def _conflicts(self) -> list[tuple[bool, str, str]]:
        """Declarations that mean nothing: whether present, what is wrong, what to do."""
        templates = self.template.values() if isinstance(self.template, Mapping) else [self.template]
        said = {field for template in templates for field in _fields_of(template)}
        strange = sorted(
            (said | {*self.split_fields, *self.cluster_fields, self.long_field, *self.columns}) - set(self.fields)
        )
        words = {*map(composed, self.label_values.values())} - {*map(composed, chain(*self.word_lists))}
        repeating = [list(words) for words in self.word_lists if len({*map(composed, words)}) < len(words)]
        values = [spelled(value) for value in self.label_values]
        one_table = len(self.languages) > 1 and self._shares_a_table
        idle = sorted(set(self.splits) - set(self.pools))
        mixed = [
            f"that of {one!r} begins that of {other!r}"
            for one, other in permutations(self.id_prefixes, 2)
            if self._config_of(one) == self._config_of(other)
            and self.id_prefixes[other].startswith(self.id_prefixes[one])
        ]
        return [
            (bool(strange), f"{', '.join(strange)!r} is not among fields={list(self.fields)}", "name fields only"),
            *self._untold("template", self.template),
            *self._untold("labels", self.labels),
            (any(t != t.rstrip() for t in templates), "template ends in white space", "end it with e.g. 'Label:'"),
            (self.pools not in POOLS, f"pools={list(self.pools)}", "use [all], [train, test] or all three splits"),
            (bool(idle), f"splits names {', '.join(idle)!r}, not among pools={list(self.pools)}", "add it to pools"),
            (bool(repeating), f"labels={repeating[0] if repeating else []} repeats one", "say each word once"),
            (bool(words), f"label_values has the words {sorted(words)}", f"use {', '.join(chain(*self.word_lists))}"),
            (len({*values}) < len(values), "label_values has a value as number and as text", "say it once"),
            (
                (self.metric == "exact_match") != self.free_answers,
                f"metric={self.metric!r} with labels={list(chain(*self.word_lists))}",
                "exact_match is for free answers (no labels), the others are for label words",
            ),
            (
                one_table and set(self.id_prefixes) != set(self.languages),
                f"config={self.config!r} is one table for {len(self.languages)} languages",
                "give each language its id_prefixes and set id_column, or put {language} into config; of a table with "
                "a column for each language, write a table for each language first (docs/tasks.md)",
            ),
            (
                bool(self.id_prefixes) and (self.parallel or self.id_column is None),
                "id_prefixes needs id_column, and rows that are not parallel",
                "set id_column, and parallel: false",
            ),
            (
                bool(mixed),
                f"id_prefixes={dict(self.id_prefixes)}: {next(iter(mixed), '')}, so its rows would be read as both",
                "say what follows, too ('en-', 'eng-')",
            ),
            (
                isinstance(self.hub, dict) and (self.parallel or self.revision is not None),
                "hub names a data set for each language",
                "set parallel: false, and leave revision out",
            ),
            (
                self.original_language is not None and self.original_language not in self.languages,
                f"original_language={self.original_language!r} is not among languages",
                suggestion(self.original_language or "", self.languages),
            ),
        ]

    def _untold(self, key: str, said: Any) -> list[tuple[bool, str, str]]:
        """The languages for which a key that speaks by language says nothing."""
        missing = [] if not isinstance(said, Mapping) else [code for code in self.languages if code not in said]
        fix = "add it, or say it once for all languages"
        return [(True, f"{key} says nothing for language {code!r}", fix) for code in missing]

    @property
    def _shares_a_table(self) -> bool:
        return self.config is None or (isinstance(self.config, str) and "{language}" not in self.config)

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The template of the first language, filled in."""
        return self.prompt_in(self.languages[0], fields)

    def prompt_in(self, language: str, fields: Mapping[str, str]) -> str:
        """The template of a language, filled in.

        Raises:
            DataError: templates differ by language, and it has none.
        """
        template = self.template
        if isinstance(template, Mapping):
            template = in_language("template", template, language, self.name)
        return template.format_map(fields)

    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterator[Row]:
        """Read the rows of one language and pool, lazily, in the order of the table.

        Raises:
            DataError: the task lacks the language, a table is missing, or (while iterating) a row is malformed.
        """
        self.check_language(language)
        assert pool in self.pools, f"task {self.name} has no pool {pool!r}"
        if data_dir is not None and pool == "train":
            self._tell_unread(data_dir, language)
        return self._rows(self._open(data_dir, language, self.splits.get(pool, pool)), language, pool)

    def _tell_unread(self, data_dir: str, language: str) -> None:
        """Warn of a validation part that is there, while another is cut from the training rows."""
        if "validation" in {*self.pools, *self.splits.values()}:
            return
        for file in self.local_files(data_dir, language, "validation"):
            cut = "so validation rows are cut from those of train"
            warn(f"{file} is not read: task {self.name} has pools={list(self.pools)}, {cut}")

    def local_files(self, data_dir: str, language: str, pool: Pool) -> Iterator[Path]:
        """The files that rows of one language and pool may be read from; `config` and `splits` may lead anywhere."""
        split = self.splits.get(pool, pool)
        for folder in self._folders(language):
            yield from split_files(Path(data_dir, folder), split)

    def _open(self, data_dir: str | None, language: str, split: str) -> Records:
        config = self._config_of(language)
        if data_dir is not None:
            return open_files(data_dir, self._folders(language), split, self._read_columns)
        hub = self.hub.get(language) if isinstance(self.hub, dict) else self.hub
        if hub is None:
            of_language = f", language {language!r}," if self.hub else ""
            problem = f"task {self.name}{of_language} is not on the hub"
            raise DataError(problem, fix="set task.data_dir to where its files are")
        return open_hub(hub, config, split, self.revision, self._read_columns)

    def _folders(self, language: str) -> list[str]:
        """Where its local tables may lie, below `task.data_dir`."""
        config = self._config_of(language)
        return [*([config] if config else []), *([""] if self._shares_a_table else [])]

    def _config_of(self, language: str) -> str | None:
        config = self.config.get(language, language) if isinstance(self.config, dict) else self.config
        return config and config.replace("{language}", language)

    @property
    def _read_columns(self) -> set[str]:
        answer = self.answers_column if self.free_answers else self.label_column
        fields = {self.columns.get(field, field) for field in self.fields}
        return fields | {answer, self.id_column or "id"}  # an id that is not told is looked for, to say so

    def _rows(self, records: Records, language: str, pool: Pool) -> Iterator[Row]:
        prefix = self.id_prefixes.get(language, "")
        labels = label_cells(self, language, records.classes.get(self.label_column))
        found = False
        for number, record in enumerate(records):
            if number == 0 and (language, pool) == self._first and "id" in record.values:
                warn(
                    f"{records.origin} has a column 'id' that is not read: rows of two languages are paired by their "
                    "number; to pair them by their ids, set id_column: id in the task"
                )
            row_id = f"{pool}-{number}" if self.id_column is None else read_id(record, self.id_column)
            if row_id.startswith(prefix):
                found = True
                yield self._row(record, row_id, labels)
        if not found:
            problem = f"{records.origin} holds no row of language {language!r}"
            raise DataError(problem, fix=f"its ids should begin with {prefix!r}" if prefix else "write its rows there")

    @property
    def _first(self) -> tuple[str, Pool] | None:
        """The table that tells whether ids are there that nobody reads."""
        return (self.languages[0], self.pools[0]) if self.parallel and self.id_column is None else None

    def _row(self, record: Record, row_id: str, labels: LabelCells) -> Row:
        fields = {field: record.text(self.columns.get(field, field)) for field in self.fields}
        if self.free_answers:
            answers = read_answers(record, self.answers_column, fields[self.long_field])
            return Row(row_id, fields, answers=answers)
        return Row(row_id, fields, labels.read(record, self.label_column))


def label_cells(task: Task, language: str, classes: Sequence[str] | None) -> LabelCells:
    """Reads the label column of a table in some language, which may hold the words of that language or of another.

    Args:
        task: whose labels they are.
        language: whose words count, where one word is a label in several.
        classes: names behind the column's integers, where the table says so.

    Raises:
        DataError: the task has no label words in that language.
    """
    values = task.label_values if isinstance(task, TableTask) else {}
    return LabelCells([*task.word_lists, task.label_words(language)], values, classes)


def _fields_of(template: str) -> set[str]:
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"template={template!r}: {error}; double each brace that is meant literally") from None
    if any(spec or conversion for _, _, spec, conversion in parts):  # a width of 2000000000 fills the memory
        raise ValueError(f"template={template!r} formats a field; write its name alone: {{text}}")
    return {str(name) for _, name, _, _ in parts}
