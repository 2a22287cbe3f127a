"""What the cells of a label column mean. The same number or truth value means the same in csv, jsonl and parquet.

    the task's label words        a cell 1, 1.0 or "1"
    no, yes                       the place of "yes": places count from 0
    1, 2, 3                       the word "1", since words are numbers: never a place
    1.0, 0.0                      the word "1.0", likewise: a word is the number that it says
    1, 2, many                    refused: it may be a word or a place, so `label_values` must say

What `label_values` says, or a table that names the classes of its integers (the hub's ClassLabel), goes first; label
words that are no numbers mean themselves in any case. Texts are compared in NFC.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from flare_ds.exceptions import DataError
from flare_ds.tasks.records import Record
from flare_ds.texts import composed

_NUMBER = re.compile(r"[+-]?[0-9]{1,300}(\.[0-9]{1,300})?")
_TRUTHS = ("True", "False")
_UNTOLD = (None, "", -1, "-1")
"""What stands for the labels of a test set whose publisher keeps them."""


class LabelCells:
    """Reads the cells of a table's label column.

    Args:
        labels: lists of the words that a cell may hold, each in the task's order; where lists differ about a word, the
            last counts.
        label_values: the word of each value, where the task says so.
        classes: names behind the column's integers, where the table says so.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[str]],
        label_values: Mapping[bool | int | str, str],
        classes: Sequence[str] | None,
    ) -> None:
        self._classes = classes
        words = {composed(word): index for of_language in labels for index, word in enumerate(of_language)}
        places: dict[float, int] = {index: index for index in range(len(labels[0]))}
        declared = {spelled(value): words[composed(word)] for value, word in label_values.items()}
        plain = {word: index for word, index in words.items() if number_in(word) is None}
        self._texts = plain | declared if declared else words
        numbers = ((number_in(text), index) for text, index in self._texts.items())
        said = dict.fromkeys((number, index) for number, index in numbers if number is not None)
        often = Counter(number for number, _ in said)
        self._numbers = {number: index for number, index in said if often[number] == 1}
        self._unclear: set[float] = set()
        if not label_values and all(places.get(number) == index for number, index in said):
            self._numbers = places
        elif not label_values and any(number_in(word) is None for word in words):
            self._unclear = {*self._numbers, *places}
        if classes:
            named = {place: index for place, name in enumerate(classes) if (index := self._meant(name)) is not None}
            self._texts = {text: index for text, index in self._texts.items() if number_in(text) is None}
            self._numbers = (self._numbers if label_values else {}) | named
            self._unclear = set()

    def read(self, record: Record, column: str) -> int:
        """The index of a row's label word.

        Raises:
            DataError: the cell is none of the values, or could be several.
        """
        value = record[column]
        if isinstance(value, int | float) and not isinstance(value, bool) and value in self._unclear:
            problem = f"{record.where} has {column}={value!r}, which may be a label word or the index of one"
            raise DataError(problem, fix="give the label word of each value in the task's label_values")
        index = self._meant(value)
        if index is None:
            known = ", ".join(dict.fromkeys([*self._texts, *map(str, self._numbers)]))
            fix = "correct or remove that row, or give the label word of each value in the task's label_values"
            if value in _UNTOLD:
                fix = (
                    f"{fix}; if the split comes without labels, set the task's pools or splits to those that have them"
                )
            raise DataError(
                f"{record.where} has {column}={value!r:.100}{self._named(value)}, not one of {known}", fix=fix
            )
        return index

    def _named(self, value: object) -> str:
        """What the table itself calls an integer."""
        names = self._classes or ()
        return f" (class {names[value]!r})" if isinstance(value, int) and 0 <= value < len(names) else ""

    def _meant(self, value: object) -> int | None:
        """What a cell means, if it means anything: the word it says, or else the number or truth value it holds."""
        match value:
            case bool():
                return self._texts.get(str(value), self._texts.get(spelled(value)))
            # One null among integers makes floats of them all, in pandas; only the null is wrong.
            case int() | float():
                return self._numbers.get(value)
            case str() if (text := composed(value)) in self._texts:
                return self._texts[text]
            case str() if value in _TRUTHS:
                return self._texts.get(value.lower())
            case str() if (number := number_in(value)) is not None:
                return self._numbers.get(number)
        return None


def spelled(value: bool | int | str) -> str:
    """How a value is compared with others, as a text: truth values as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else composed(str(value))


def number_in(text: str) -> float | None:
    """The number that a text says, if it is one: `1.0` is 1."""
    if not _NUMBER.fullmatch(text):
        return None
    whole, _, rest = text.partition(".")
    return float(text) if rest.strip("0") else int(whole)
