"""MultiEmo: sentiment of Polish sentences about medicine and products, machine-translated into ten languages.

Labels are from human annotators of the Polish originals. The English side is itself a translation, so
translating a target back to English is an unusually strong baseline here. Licence: CC BY 4.0.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from flare_ds.tasks.base import TASKS, Pool, Row, Task
from flare_ds.tasks.bigbench import path_in, read_choice, read_examples

_DOMAINS = ("medicine", "products")
_UNALIGNED = {("medicine", "pt")}
"""The Portuguese medicine file lacks 1,273 rows, so its row numbers mean other sentences: it is never read."""


class MultiEmo(Task):
    """Four-way sentiment; row i of a domain is the same sentence in every language."""

    name = "multiemo"
    version = 1
    languages = ("en", "pl", "de", "es", "fr", "it", "ja", "nl", "pt", "ru", "zh")
    original_language = "pl"
    labels: tuple[str, ...] = ("positive", "negative", "neutral", "ambivalent")

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        """Read both domains of one language; ids are `<domain>-<row index>`.

        Raises:
            DataError: the language is not one of MultiEmo's, or a file is missing or malformed.
        """
        self.check_language(language)
        paths = {domain: path_in(data_dir, name, self.name) for domain, name in self.files(language).items()}
        return [row for domain, path in paths.items() for row in self._read_file(path, domain)]

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

    def _read_file(self, path: Path, domain: str) -> Iterator[Row]:
        for number, record in enumerate(read_examples(path, self.name)):
            fields = {"text": record.text("input").strip()}
            yield Row(f"{domain}-{number}", fields, read_choice(record, self.labels))


TASKS.add(MultiEmo.name, MultiEmo())
