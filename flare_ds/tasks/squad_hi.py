"""SQuAD dev and its professional Hindi translation (XQuAD): questions whose answers stand in a passage.

    en   all questions of SQuAD v1.1 dev                          2,067 paragraphs
    hi   XQuAD's part of it, by people, with the same row ids       230 paragraphs

The Hindi texts lie among others in a set that names no source, one text a row: the passage, a space, the question.
Row numbers say which they are (`squad_hi_rows`), so a row of one paragraph and its English counterpart meet:

    rows of a paragraph    "जैक्सनविले ... हुआ। किस वर्ष ...?"     all rows begin with the passage; it ends where the
                           "जैक्सनविले ... हुआ। किसने ...?"        last sentence ends that they share

SQuAD's annotators gave several answers, XQuAD has one. Licences: CC BY-SA 4.0, both.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from flare_ds.exceptions import DataError
from flare_ds.tasks.base import TASKS, Answer, Pool, Row, Task
from flare_ds.tasks.bigbench import as_record, fetch_anew, path_in, read_examples, read_list
from flare_ds.tasks.cells import locate, read_answers
from flare_ds.tasks.records import Record
from flare_ds.tasks.squad_hi_rows import FIRST_ROWS

_SENTENCE_END = re.compile(r"""(?:[।.?!:][\d:–-]*(?:\s?[”"'’)\]])*|])\s+""")
_EDGES = "\ufeff \n"
"""Some Hindi passages begin with a byte order mark."""


class SquadHi(Task):
    """Extractive question answering; a row id is `<article>-<paragraph>-<question>`, all counted in SQuAD's file."""

    name = "squad_hi"
    version = 1
    languages = ("en", "hi")
    original_language = "en"
    fields = ("context", "question")
    split_fields = ("context",)
    long_field = "context"
    metric = "exact_match"
    english_file = "squad_dev.json"
    hindi_file = "hindi_question_answering.json"

    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterator[Row]:
        """Read one language, in the order of SQuAD's file.

        Raises:
            DataError: the language is neither, a file is missing, or (while iterating) a row is malformed.
        """
        self.check_language(language)
        english = _read_english(path_in(data_dir, self.english_file, self.name), self.name)
        if language == "en":
            return chain.from_iterable(english)
        hindi_path = path_in(data_dir, self.hindi_file, self.name)
        hindi = list(read_examples(hindi_path, self.name))
        return chain.from_iterable(_read_hindi(rows, hindi, hindi_path) for rows in english)

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The passage, the question, then the word `Answer:`, as for TyDiQA."""
        return f"Context: {fields['context']}\nQuestion: {fields['question']}\nAnswer:"

    def covers(self, row_id: str, language: str) -> bool:
        """False in Hindi for what XQuAD did not take, and for the paragraphs left out."""
        return language == "en" or _first_hindi_row(row_id) is not None


def _read_english(path: Path, task: str) -> Iterator[list[Row]]:
    """The questions of each paragraph."""
    for number, entry in enumerate(read_list(path, "data", task)):
        article = as_record(entry, f"article {number} of {path}")
        title = article.text("title")
        for index, paragraph in enumerate(_items(article, "paragraphs", f"paragraph {{}} of {title} in {path}")):
            yield _read_questions(paragraph, f"{title}-{index}", f"question {title}-{index}-{{}} of {path}")


def _read_questions(paragraph: Record, paragraph_id: str, where: str) -> list[Row]:
    context = paragraph.text("context")
    rows = []
    for number, question in enumerate(_items(paragraph, "qas", where)):
        fields = {"context": context, "question": question.text("question").strip()}
        answers = tuple(dict.fromkeys(read_answers(question, "answers", context)))
        rows.append(Row(f"{paragraph_id}-{number}", fields, answers=answers))
    return rows


def _items(record: Record, column: str, where: str) -> list[Record]:
    """The objects of a list; `where` names each by its number."""
    found = record[column]
    if not isinstance(found, list) or not found:
        raise record.refuse(column, "a list of objects")
    return [as_record(value, where.format(number)) for number, value in enumerate(found)]


def _read_hindi(english: Sequence[Row], hindi: Sequence[Record], path: Path) -> Iterator[Row]:
    """The questions of one paragraph in Hindi: none, if the paragraph is not among them."""
    first = _first_hindi_row(english[0].id)
    if first is None:
        return
    records = hindi[first : first + len(english)]
    texts = [record.text("input") for record in records]
    end = _end_of_context(texts)
    if len(texts) < len(english) or not end:
        problem = f"rows {first} to {first + len(english) - 1} of {path} do not begin with one passage"
        raise DataError(problem, fix=fetch_anew(path, "squad_hi"))
    context = texts[0][:end].strip(_EDGES)
    for row, record, text in zip(english, records, texts, strict=True):
        answer = record.text("target").strip()
        near = _same_place(row.answers[0], len(row.fields["context"]), len(context))
        fields = {"context": context, "question": text[end:].strip()}
        yield Row(row.id, fields, answers=(locate(answer, context, near=near),))


def _end_of_context(texts: Sequence[str]) -> int:
    """Where the last sentence ends that all texts begin with; of a lone text, but for its own end."""
    shared = os.path.commonprefix(texts) if len(texts) > 1 else "".join(texts).rstrip()  # noqa: RUF071 - texts, not paths
    return max((found.end() for found in _SENTENCE_END.finditer(shared)), default=0)


def _same_place(answer: Answer, length: int, other_length: int) -> int:
    """Where the answer should stand in the translation, which says things in nearly the same order."""
    return round((answer.start or 0) / max(length, 1) * other_length)


def _first_hindi_row(row_id: str) -> int | None:
    article, paragraph, _ = row_id.rsplit("-", 2)
    return FIRST_ROWS.get(article, {}).get(int(paragraph))


TASKS.add(SquadHi.name, SquadHi())
