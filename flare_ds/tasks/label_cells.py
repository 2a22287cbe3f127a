"""What the cells of a label column mean. The same number or truth value means the same in csv, jsonl and parquet.

    the task's label words        a cell 1, 1.0 or "1"
    no, yes                       the place of "yes": places count from 0
    1, 2, 3                       the word "1", since words are numbers: never a place
    1, 2, many                    refused: it may be a word or a place, so `label_values` must say

What `label_values` says, or a table that names the classes of its integers (the hub's ClassLabel), goes first.
"""

import re
from collections.abc import Mapping, Sequence

from flare_ds.exceptions import DataError
from flare_ds.tasks.records import Record

_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


class LabelCells:
    """Reads the cells of a table's label column.

    Args:
        labels: lists of the words that a cell may hold, each in the task's order; where lists differ about a word, the
            last counts.
        label_values: the word of each value, where the task says so.
        classes: names behind the column's integers, where the table says so.
    """

    def __init__(
        self, labels: Sequence[Sequence[str]], label_values: Mapping[int | str, str], classes: Sequence[str] | None
    ) -> None:
        words = {word: index for of_language in labels for index, word in enumerate(of_language)}
        numbers = {word: index for word, index in words.items() if _NUMBER.fullmatch(word)}
        places = {str(index): index for index in range(len(labels[0]))}
        self._meant = {str(value): words[word] for value, word in label_values.items()} or words
        self._unclear: set[str] = set()
        if not label_values and all(places.get(word) == index for word, index in numbers.items()):
            self._meant = words | places
        elif not label_values and len(numbers) < len(words):
            self._unclear = {*numbers, *places}
        if classes:
            named = {str(i): self._meant[name] for i, name in enumerate(classes) if name in self._meant}
            self._meant = {value: index for value, index in self._meant.items() if not _NUMBER.fullmatch(value)} | named
            self._unclear = set()

    def read(self, record: Record, column: str) -> int:
        """The index of a row's label word.

        Raises:
            DataError: the cell is none of the values, or could be several.
        """
        value = record[column]
        spelled = _spellings(value)
        found = {self._meant[text] for text in spelled if text in self._meant}
        if not isinstance(value, str) and self._unclear.intersection(spelled):
            problem = f"{record.where} has {column}={value!r}, which may be a label word or the place of one"
            raise DataError(problem, fix="say in the task's label_values which word each value is")
        if len(found) != 1:
            known = ", ".join(self._meant)
            fix = "mend or remove that row, or say in the task's label_values which word each value is"
            raise DataError(f"{record.where} has {column}={value!r:.100}, not one of {known}", fix=fix)
        return found.pop()


def _spellings(value: object) -> list[str]:
    """How the value of a cell may be written, where it is a text, a number or a truth value."""
    match value:
        case bool():
            return [str(value), str(value).lower()]
        # One null among integers makes floats of them all, in pandas; only the null is wrong.
        case float() if value.is_integer():
            return [str(int(value))]
        case int() | float():
            return [str(value)]
        case str():
            whole = _WHOLE.fullmatch(value)
            return [value, *([whole[1]] if whole else []), *([value.lower()] if value in ("True", "False") else [])]
    return []
