"""What the prompt of a task does to a row's texts, told from what it makes of some.

Code may say a text in lower case, cut it, or look whether there is a title. None of that shows in the prompt around the
fields' names, which the key has of every task. And it may not say a field at all, as a template may not.
"""

from collections.abc import Iterable, Iterator

from flare_ds.checksums import json_sha256
from flare_ds.tasks.base import Task

_SCRIPTS = "Ёлка ещё, İıßÆŒ e\u0301é, ٣ مُحَمَّدٌ، हिन्दी। १ ไทย 你好，世界。 ｶﾞガ 한글 ΟΔΟΣ 🙂\u200d"
"""Marks that code may take away, letters that it may fold, digits and stops of other scripts than Latin."""
_TEXTS = (
    " Two  Words,\tone ﬁne “quote” & a <b>tag</b> – 1.50\nhttp://x.org @you #it! ",
    _SCRIPTS,
    "A long text. " * 10_000,
    "",
)
_OTHERS = "word"
_SAID = (_OTHERS, "0", "1", '["a", "b"]', *_TEXTS)
"""What may be said differently: what code may look up or take apart, and the texts, the longest of which few need."""


def probed_prompts(task: Task, languages: Iterable[str]) -> str:
    """Checksum of the prompts, in some languages, over rows of such texts."""
    rows = list(_rows(task))
    return json_sha256([[language, [_said(task, language, row) for row in rows]] for language in languages])


def said_fields(task: Task, language: str) -> tuple[str, ...]:
    """The fields whose text changes the prompt of a language, whether or not the others are empty."""
    return tuple(field for field in task.fields if any(_changes(task, language, field, of) for of in (_OTHERS, "")))


def unsaid_fields(task: Task, language: str) -> list[str]:
    """The others."""
    said = said_fields(task, language)
    return [field for field in task.fields if field not in said]


def _changes(task: Task, language: str, field: str, others: str) -> bool:
    row = dict.fromkeys(task.fields, others)
    first, *more = _SAID
    said = _said(task, language, row | {field: first})
    return any(_said(task, language, row | {field: text}) != said for text in more)


def _rows(task: Task) -> Iterator[dict[str, str]]:
    """Each text in all fields, and in one beside others."""
    for text in _TEXTS:
        yield dict.fromkeys(task.fields, text)
        yield from (dict.fromkeys(task.fields, _OTHERS) | {name: text} for name in task.fields)


def _said(task: Task, language: str, fields: dict[str, str]) -> str:
    try:
        return task.prompt_in(language, fields)
    except Exception as error:  # whatever code raises over a text that it does not expect
        return type(error).__name__
