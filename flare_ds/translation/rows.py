"""A row as the segments a translator reads, and the row in the other language made of their translations.

Of a row to train on, the sentence of the answer is the one translated with marks around it, so that the answer is
found again. Marks change the wording about what they enclose, so the text of a held-out row, where a method would read
this as a hint, is translated as if nobody knew the answer; the marked sentence only says what to look for in it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from flare_ds.tasks.base import Answer, Row
from flare_ds.translation import segments
from flare_ds.translation.answers import find, mark, unmark
from flare_ds.translation.segments import Span

Translations = Mapping[str, str | None]
"""What became of each segment; None, or nothing in it: the engine failed on it."""


class UntranslatedError(Exception):
    """A segment that a row cannot do without has no translation.

    Attributes:
        empty: the engine returned a text with nothing in it, rather than failing.
    """

    def __init__(self, *, empty: bool) -> None:
        self.empty = empty


def segments_of(row: Row, long_field: str, *, held_out: bool) -> Iterator[str]:
    """Everything a translator has to read for `translate_row` to put a row together; may repeat itself."""
    context = _Context.of(row, long_field, held_out=held_out)
    for name, text in row.fields.items():
        yield from (text[slice(*place)] for place in context.sentences) if name == long_field else _plain(text)
    for answer in row.answers:
        yield from _plain(answer.text)
        marked = context.mark(answer)
        if marked is not None:
            yield marked


def translate_row(row: Row, long_field: str, translations: Translations, *, held_out: bool) -> Row:
    """Put a row together from the translations of its segments.

    Args:
        row: in the language it was written in.
        long_field: the field its answers stand in.
        translations: of at least `segments_of` this row.
        held_out: whether its text must not depend on its answers.

    Returns:
        The row in the other language. The text of an answer that was not found again is the answer's own
        translation, and its start None.

    Raises:
        UntranslatedError: a segment of it has no translation.
    """
    fields = {name: _translate(text, translations) for name, text in row.fields.items() if name != long_field}
    context = _Context.of(row, long_field, held_out=held_out)
    marked = next(iter(row.answers), None) if not held_out else None
    fields[long_field], starts = context.translate(marked, translations)
    if row.answers:
        answers = [_answer(answer, context, fields[long_field], starts, translations) for answer in row.answers]
        row = replace(row, answers=tuple(answers))
    return replace(row, fields={name: fields[name] for name in row.fields})


@dataclass(frozen=True)
class _Context:
    """The long field of a row: its text, and its sentences, none of which ends within an answer to train on."""

    text: str
    sentences: list[Span]

    @classmethod
    def of(cls, row: Row, long_field: str, *, held_out: bool) -> "_Context":
        text = row.fields[long_field]
        return cls(text, segments.segment(text, [] if held_out else _answer_spans(row)))

    def sentence(self, answer: Answer) -> int | None:
        """The number of the sentence an answer stands in; None: its place is unknown, or in no sentence."""
        if answer.start is None:
            return None
        end = answer.start + len(answer.text)
        holds = (number for number, (first, last) in enumerate(self.sentences) if first <= answer.start and end <= last)
        return next(holds, None)

    def mark(self, answer: Answer) -> str | None:
        """The sentence of an answer, with marks around the answer; None where there is no such sentence or mark."""
        number = self.sentence(answer)
        if number is None or answer.start is None:
            return None
        start, end = self.sentences[number]
        return mark(self.text[start:end], (answer.start - start, answer.start - start + len(answer.text)))

    def unmark(self, answer: Answer, translations: Translations) -> tuple[str, Span] | None:
        """The translation of an answer's sentence, and where the answer is in it; None if it was not found again."""
        marked, number = self.mark(answer), self.sentence(answer)
        translated = None if marked is None else translations.get(marked)
        if number is None or not translated:
            return None
        start, end = self.sentences[number]
        return unmark(translated, self.text[start:end])

    def translate(self, marked: Answer | None, translations: Translations) -> tuple[str, list[int]]:
        """The translated text, and where its sentences begin; the answer's is the one whose marks were removed."""
        unmarked = None if marked is None else self.unmark(marked, translations)
        number = None if marked is None else self.sentence(marked)
        texts = [
            unmarked[0] if unmarked and place == number else _one(self.text[start:end], translations)
            for place, (start, end) in enumerate(self.sentences)
        ]
        return segments.replace(self.text, self.sentences, texts)


def _answer(answer: Answer, context: _Context, text: str, starts: list[int], translations: Translations) -> Answer:
    """The answer in the translated context: where its marks were, or where its own translation stands."""
    number, unmarked = context.sentence(answer), context.unmark(answer, translations)
    spans = [(0, len(text))]
    if number is not None:
        start, end = starts[number], [*starts, len(text)][number + 1]
        spans.insert(0, (start, end))
        if unmarked and text.startswith(unmarked[0], start):
            first, last = (start + place for place in unmarked[1])
            return Answer(text[first:last], first)
    found = find(unmarked[0][slice(*unmarked[1])], text, spans) if unmarked else None
    if found is None:
        own = _translate(answer.text, translations)
        found = None if answer.start is None else find(own, text, spans)
    return Answer(own, None) if found is None else Answer(text[slice(*found)], found[0])


def _answer_spans(row: Row) -> list[Span]:
    return [(answer.start, answer.start + len(answer.text)) for answer in row.answers if answer.start is not None]


def _plain(text: str) -> Iterator[str]:
    for start, end in segments.segment(text):
        yield text[start:end]


def _translate(text: str, translations: Translations) -> str:
    spans = segments.segment(text)
    return segments.replace(text, spans, [_one(text[start:end], translations) for start, end in spans])[0]


def _one(piece: str, translations: Translations) -> str:
    translation = translations[piece]
    if not translation:
        raise UntranslatedError(empty=translation is not None)
    return translation
