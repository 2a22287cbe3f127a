"""MultiEmo: sentiment of Polish sentences about medicine and products, machine-translated into ten languages.

Labels are from human annotators of the Polish originals. The English side is itself a translation, so
translating a target back to English is an unusually strong baseline here. Licence: CC BY 4.0.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare_ds.exceptions import DataError
from flare_ds.tasks.base import TASKS, Row, Task

_DOMAINS = ("medicine", "products")
_UNALIGNED = {("medicine", "pt")}
"""The Portuguese medicine file lacks 1,273 rows, so its row numbers mean other sentences: it is never read."""


class MultiEmo(Task):
    """Four-way sentiment; row i of a domain is the same sentence in every language."""

    name = "multiemo"
    version = 1
    languages = ("en", "pl", "de", "es", "fr", "it", "ja", "nl", "pt", "ru", "zh")
    original_language = "pl"
    labels = ("positive", "negative", "neutral", "ambivalent")
    long_field = "text"

    def read(self, directory: Path, language: str) -> list[Row]:
        """Read both domains of one language; ids are `<domain>-<row index>`.

        Raises:
            DataError: the language is not one of MultiEmo's, or a file is missing or malformed.
        """
        self.check_language(language)
        files = self.files(language)
        return [row for domain, name in files.items() for row in self._read_file(directory / name, domain)]

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The sentence, then the word `Sentiment:`."""
        return f"Review: {fields['text']}\nSentiment:"

    def covers(self, row_id: str, language: str) -> bool:
        """False for the medicine rows in Portuguese."""
        return row_id.partition("-")[0] in self.files(language)

    @staticmethod
    def files(language: str) -> dict[str, str]:
        """The file of each domain that is row-aligned in that language."""
        domains = [domain for domain in _DOMAINS if (domain, language) not in _UNALIGNED]
        return {domain: f"{domain}_sentence_{language}.json" for domain in domains}

    def _read_file(self, path: Path, domain: str) -> list[Row]:
        examples = _load_examples(path)
        return [self._parse(example, f"{domain}-{index}", path) for index, example in enumerate(examples)]

    def _parse(self, example: Any, row_id: str, path: Path) -> Row:
        try:
            text, scores = example["input"], example["target_scores"]
            chosen = [word for word in self.labels if scores[word] == 1]
        except (TypeError, KeyError) as error:
            raise _malformed(path, row_id, f"is not a labelled text: {example!r:.100}") from error
        if not isinstance(text, str):
            raise _malformed(path, row_id, f"has input={text!r}, not a text")
        if len(chosen) != 1 or set(scores) != set(self.labels):
            raise _malformed(path, row_id, f"has target_scores={scores!r}, not exactly one of {', '.join(self.labels)}")
        return Row(row_id, {"text": text.strip()}, self.labels.index(chosen[0]))


def _load_examples(path: Path) -> list[Any]:
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
    except OSError as error:
        fix = "run `flare-ds fetch data multiemo` and set task.data_dir to the path it prints"
        raise DataError(f"cannot read {path}: {error.strerror}", fix=fix) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a MultiEmo file: {error}", fix="delete it and fetch it again") from error
    if not isinstance(examples, list) or not examples:
        raise DataError(f"{path} holds no list of examples", fix="delete it and fetch it again")
    return examples


def _malformed(path: Path, row_id: str, what: str) -> DataError:
    return DataError(f"row {row_id} of {path} {what}", fix="delete the file and fetch it again, or mend that row")


TASKS.add(MultiEmo.name, MultiEmo())
