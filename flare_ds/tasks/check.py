"""Looking at what a task gives before anything is made of it: one in Python may give anything, a file any text."""

from collections.abc import Iterable, Iterator, Mapping

from flare_ds.exceptions import ConfigError, DataError
from flare_ds.tasks.base import Answer, Row, Task


def is_unicode(text: str) -> bool:
    """Whether a text can be written and tokenized: half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_task(task: Task) -> Task:
    """Refuse words of a task that are no text: its label words, and what its prompts say around the fields.

    Raises:
        ConfigError: naming the first; a prompt says no field; or one language has more label words than another.
        DataError: one of its languages has no prompt or no label words.
    """
    blank = {field: "{" + field + "}" for field in task.fields}
    texts = [("prompt", task.prompt_in(language, blank)) for language in task.languages]
    texts += [("label word", word) for language in task.languages for word in task.label_words(language)]
    for what, text in texts:
        if not isinstance(text, str) or not is_unicode(text):
            problem = f"task {task.name} has the {what} {text!r}, which is not valid Unicode"
            raise ConfigError(problem, fix="write whole characters: \\ud83d alone, for one, is half of one")
    for language in task.languages:
        if task.prompt_in(language, blank) == (prompt := task.prompt_in(language, dict.fromkeys(task.fields, ""))):
            problem = f"task {task.name} has the prompt {prompt!r} for every row of language {language!r}"
            fix = f"say a field of the row in it, such as {{{task.long_field}}} in a template, in single braces"
            raise ConfigError(problem, fix=fix)
    if len({len(words) for words in task.word_lists}) > 1:
        problem = f"task {task.name} has not equally many label words in each language: {task.labels}"
        raise ConfigError(problem, fix="say in each language one word for each label, in the same order")
    return task


def checked_rows(rows: Iterable[Row], task: Task, name: str) -> Iterator[Row]:
    """The rows a task has read, each looked at.

    Args:
        rows: as the task gives them.
        task: whose they are.
        name: what they are, for messages.

    Raises:
        DataError: one of them (named by its number and id) is not what `Row` says.
    """
    for number, row in enumerate(rows):
        if problem := _problem(row, task):
            where = f"row {number} of {name}, id {getattr(row, 'id', None)!r:.80},"
            raise DataError(f"{where} has {problem}", fix="mend what the task reads, or its `read` (docs/tasks.md)")
        yield row


def _problem(row: Row, task: Task) -> str | None:
    """What is wrong with a row; None: nothing."""
    if not isinstance(row, Row) or not isinstance(row.fields, Mapping):
        return f"the type {type(row).__name__}, or fields that are no mapping"
    if not _is_text(row.id) or not row.id:
        return "an id that is no text, or not valid Unicode"
    for field in task.fields:
        if not _is_text(row.fields.get(field)):
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
    if not isinstance(answer, Answer) or not _is_text(answer.text) or not answer.text:
        return False
    start = answer.start
    return start is None or (type(start) is int and 0 <= start <= len(text) - len(answer.text))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)
