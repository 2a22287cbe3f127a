"""VitaminC: does a sentence of Wikipedia support a claim? Real and contrastive revisions, English only.

Most claims come twice, with two nearly equal sentences that decide them differently, so neither the claim nor the
sentence alone gives the label. Rows are split by Wikipedia page: claims and sentences never leave theirs. The other
side is always a machine translation. Licence: see docs/offline_tasks.md.
"""

from collections.abc import Iterator, Mapping

from flare_ds.tasks.base import TASKS, Pool, Row, Task
from flare_ds.tasks.bigbench import path_in, read_choice, read_examples
from flare_ds.tasks.records import Record

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":"}
"""What the data set writes for brackets and colons (one row in four has some); no translator knows these."""


class VitaminC(Task):
    """Three-way inference from evidence to claim."""

    name = "vitaminc"
    version = 1
    languages = ("en",)
    parallel = False
    original_language = "en"
    fields = ("page", "evidence", "claim")
    split_fields = ("page",)
    long_field = "evidence"
    cluster_fields = ("page",)
    labels: tuple[str, ...] = ("true", "false", "neither")
    file = "vitaminc.json"

    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterator[Row]:
        """Read all rows; ids are row numbers.

        Raises:
            DataError: the language is not English, the file is missing, or (while iterating) a row is malformed.
        """
        self.check_language(language)
        records = read_examples(path_in(data_dir, self.file, self.name), self.name)
        return (self._row(record, str(number)) for number, record in enumerate(records))

    def prompt(self, fields: Mapping[str, str]) -> str:
        """Page, evidence and claim, a line each, then the word `Answer:`."""
        return f"Page: {fields['page']}\nEvidence: {fields['evidence']}\nClaim: {fields['claim']}\nAnswer:"

    def _row(self, record: Record, row_id: str) -> Row:
        r"""Take `<page>: <evidence>\nClaim: <claim>` apart."""
        passage, claim_said, claim = record.text("input").partition("\nClaim: ")
        page, page_said, evidence = passage.partition(": ")
        if not claim_said or not page_said:
            raise record.refuse("input", "`<page>: <evidence>`, a line break and `Claim: <claim>`")
        fields = {"page": page, "evidence": evidence, "claim": claim}
        label = read_choice(record, [word.capitalize() for word in self.labels])
        return Row(row_id, {field: _plain(text) for field, text in fields.items()}, label)


def _plain(text: str) -> str:
    for escape, mark in _ESCAPES.items():
        text = text.replace(escape, mark)
    return text.strip()


TASKS.add(VitaminC.name, VitaminC())
