"""What the cells of a table mean: ids and answers, each refused by row and column where it means nothing."""

import json
import re

from flare_ds.tasks.base import Answer
from flare_ds.tasks.check import is_unicode
from flare_ds.tasks.records import Record
from flare_ds.texts import find_equivalent


def read_id(record: Record, column: str) -> str:
    """The row's id, as a text.

    Raises:
        DataError: it is missing, empty, or neither a text nor an integer.
    """
    value = record[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise record.refuse(column, "an id")
    return record.text(column) if isinstance(value, str) else str(value)


def read_answers(record: Record, column: str, context: str) -> tuple[Answer, ...]:
    """The right answers and where each stands in the context.

    They come as SQuAD has them, {text: [...], answer_start: [...]}; as a list of pairs; or, in CSV, as JSON of either.

    Raises:
        DataError: there are none, or they are something else.
    """
    found = record[column]
    try:
        found = json.loads(found) if isinstance(found, str) else found
        pairs = [(pair["text"], pair["answer_start"]) for pair in found] if isinstance(found, list) else None
        pairs = pairs if pairs is not None else list(zip(found["text"], found["answer_start"], strict=True))
    except (TypeError, KeyError, ValueError, RecursionError):
        raise record.refuse(column, "{text: [...], answer_start: [...]} of equal lengths") from None
    if not pairs or not all(isinstance(text, str) and text for text, _ in pairs):
        raise record.refuse(column, "at least one answer, each a text")
    if not all(is_unicode(text) for text, _ in pairs):
        raise record.refuse(column, "answers in valid Unicode (UTF-8)")
    if any(isinstance(start, bool) or not isinstance(start, int) for _, start in pairs):
        raise record.refuse(column, "answers with integer starts")
    return tuple(locate(text, context, near=start) for text, start in pairs)


def locate(text: str, context: str, *, near: int) -> Answer:
    """An answer as it stands in its context: at `near` if it does, else at the nearest place.

    An answer whose letters the context writes in another Unicode form is found too, and is then written as there. One
    that is nowhere keeps its text.
    """
    if context[near : near + len(text)] == text and near >= 0:
        return Answer(text, near)
    found = (place.start() for place in re.finditer(f"(?={re.escape(text)})", context))  # also where it overlaps itself
    spans = [(start, start + len(text)) for start in found] or list(find_equivalent(text, context))
    start, end = min(spans, key=lambda span: abs(span[0] - near), default=(None, None))
    return Answer(text) if start is None else Answer(context[start:end], start)
