"""Looking at what a task gives before anything is made of it: one in Python may give anything, a file any text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from flare_ds.exceptions import ConfigError, DataError, FlareError
from flare_ds.failures import warn
from flare_ds.registry import suggestion
from flare_ds.tasks.base import POOLS, Answer, Metric, Row, Task
from flare_ds.tasks.probes import unsaid_fields

Conflict = tuple[bool, str, str]
"""Whether it is there, what is wrong, what to do."""
_BARE = "write the bare word: a space is put before it"
_WHOLE = "write whole characters: \\ud83d alone, for one, is half of one"


def is_unicode(text: str) -> bool:
    """Whether a text can be written and tokenized: half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_task(task: Task) -> Task:
    """Refuse a task whose attributes mean nothing, and words of it that are no text, before anything is read.

    Raises:
        ConfigError: naming the first attribute, label word or prompt; a prompt fails, or does not say a field.
        DataError: one of its languages has no prompt or no label words.
    """
    for broken, problem, fix in (*_conflicts(task), *_label_conflicts(task)):
        if broken:
            raise ConfigError(f"task {task.name} has {problem}", fix=fix)
    for language in task.languages:
        _check_prompt(task, language)
    return task


def _conflicts(task: Task) -> list[Conflict]:
    """Attributes that mean nothing."""
    version = getattr(task, "version", None)
    strange = {task.long_field, *task.split_fields, *task.cluster_fields} - {*task.fields}
    original = task.original_language
    return [
        (type(version) is not int, f"version={version!r}", "set version = 1, and raise it with every change"),
        (tuple(task.pools) not in POOLS, f"pools={task.pools!r}", "use one of " + ", ".join(map(str, POOLS))),
        (
            bool(strange),
            f"{', '.join(map(repr, sorted(strange)))} in long_field, split_fields or cluster_fields, but "
            f"fields={task.fields!r}",
            "set long_field, the one that is cut when a prompt is too long, and the others to names among fields",
        ),
        (
            original is not None and original not in task.languages,
            f"original_language={original!r}, but languages={task.languages!r}",
            suggestion(original or "", task.languages),
        ),
    ]


def _label_conflicts(task: Task) -> list[Conflict]:
    """Label words that are none, and a metric that does not go with them."""
    free = "exact_match is for free answers (no labels), the others are for label words"
    words, metrics = [word for of_language in task.word_lists for word in of_language], get_args(Metric)
    return [
        (any(isinstance(of, str) for of in task.word_lists), f"labels={task.labels!r}", "write a tuple of words"),
        *((not is_text(word), f"the label word {word!r}, which is not valid Unicode", _WHOLE) for word in words),
        *((not word or word != word.strip(), f"the label word {word!r}", _BARE) for word in words),
        (
            len({len(of_language) for of_language in task.word_lists}) > 1,
            f"not equally many label words in each language: {task.labels}",
            "say in each language one word for each label, in the same order",
        ),
        (task.metric not in metrics, f"metric={task.metric!r}", suggestion(str(task.metric), metrics)),
        ((task.metric == "exact_match") != task.free_answers, f"metric={task.metric!r} with labels={words}", free),
    ]


def _check_prompt(task: Task, language: str) -> None:
    task.label_words(language)
    blank = {field: "{" + field + "}" for field in task.fields}
    prompt, bare = (_prompt(task, language, fields) for fields in (blank, dict.fromkeys(task.fields, "")))
    if not is_text(prompt):
        raise ConfigError(f"task {task.name} has the prompt {prompt!r}, which is not valid Unicode", fix=_WHOLE)
    if prompt == bare:
        problem = f"task {task.name} has the prompt {prompt!r} for every row of language {language!r}"
        fix = f"use a field of the row in it, such as {{{task.long_field}}} in a template, in single braces"
        raise ConfigError(problem, fix=fix)
    drawn = {*task.split_fields, *task.cluster_fields}
    if idle := [field for field in unsaid_fields(task, language) if field not in drawn]:
        problem = (
            f"task {task.name} has fields={task.fields!r}, but its prompt in {language!r} does not use {idle[0]!r}"
        )
        fix = "use it in the prompt, remove it from fields, or, if it only tells which rows belong together, name it in"
        raise ConfigError(problem, fix=f"{fix} split_fields or cluster_fields")


def _prompt(task: Task, language: str, fields: Mapping[str, str]) -> str:
    try:
        return task.prompt_in(language, fields)
    except FlareError:
        raise
    except Exception as error:  # a task in Python may fail in any way
        problem = f"the prompt of task {task.name} in language {language!r} fails: {type(error).__name__}: {error}"
        fix = f"let it read what fields={task.fields!r} names, whatever the texts are, empty ones too"
        raise ConfigError(problem, fix=fix) from error


def checked_rows(rows: Iterable[Row], task: Task, name: str) -> Iterator[Row]:
    """The rows a task has read, each looked at; warns of a long field that is not the one the answers stand in.

    Messages call them by `name`.

    Raises:
        DataError: one of them (named by its number and id) is not what `Row` says.
    """
    answered = Counter({task.long_field: 0})
    for number, row in enumerate(_numbered(rows, name)):
        if problem := _problem(row, task):
            where = f"row {number} of {name}, id {getattr(row, 'id', None)!r:.80},"
            raise DataError(f"{where} has {problem}", fix="correct the task's data, or its `read` (docs/tasks.md)")
        answered.update(_answered_in(row, task))
        yield row
    ((field, often),) = answered.most_common(1)
    if often > answered[task.long_field]:
        lies = f"{often} answers of {name} stand in {field!r}, not in long_field={task.long_field!r}"
        warn(f"{lies}, which is cut when a prompt is too long: set the task's long_field to {field!r}")


def _numbered(rows: Iterable[Row], name: str) -> Iterator[Row]:
    """The rows; what a task's own `read` raises is noted with the row that it failed at."""
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except FlareError:
        raise
    except Exception as error:
        error.add_note(f"while row {number} of {name} was read")
        raise


def _answered_in(row: Row, task: Task) -> list[str]:
    """The fields that a row's free answers stand in: the long one, or else any others."""
    if any(answer.start is not None for answer in row.answers):
        return [task.long_field]
    return [field for field in task.fields if any(answer.text in row.fields[field] for answer in row.answers)]


def _problem(row: Row, task: Task) -> str | None:
    """What is wrong with a row; None: nothing."""
    if not isinstance(row, Row) or not isinstance(row.fields, Mapping):
        return f"the type {type(row).__name__}, or fields that are no mapping"
    if not is_text(row.id) or not row.id:
        return "an id that is no text, or not valid Unicode"
    for field in task.fields:
        if not is_text(row.fields.get(field)):
            return f"{field}={row.fields.get(field)!r:.80}, which is not valid Unicode, or no text"
    return _answer_problem(row, task)


def _answer_problem(row: Row, task: Task) -> str | None:
    if task.labels:
        labels = range(len(task.word_lists[0]))
        right = type(row.label) is int and row.label in labels
        return None if right else f"label={row.label!r:.80}, not one of 0 to {len(labels) - 1}"
    if not row.answers:
        return "no answer"
    wrong = [answer for answer in row.answers if not _is_answer(answer, row.fields[task.long_field])]
    return f"answer {wrong[0]!r:.80}: no text, not valid Unicode, or outside of {task.long_field!r}" if wrong else None


def _is_answer(answer: Answer, text: str) -> bool:
    if not isinstance(answer, Answer) or not is_text(answer.text) or not answer.text:
        return False
    start = answer.start
    return start is None or (type(start) is int and 0 <= start <= len(text) - len(answer.text))


def is_text(value: object) -> bool:
    """Whether a value is a text that a tokenizer takes: half of a surrogate pair is none."""
    return isinstance(value, str) and is_unicode(value)
