"""The quality report of a translation: what can be told wrong without understanding it, counted over all rows."""

from array import array
from collections import Counter
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import regex
from pydantic import BaseModel, ConfigDict, Field

from flare_ds.tasks.base import Row
from flare_ds.tasks.languages import codes_of
from flare_ds.texts import one_line

_OUTLIER = 2.5
"""A translation is odd when it is that many times longer or shorter than the translations of this job are."""
_ENOUGH = 20
"""Letters of a text from which its length is judged."""
_SURE = 0.9
"""Probability from which another language is believed; few words of any language reach it."""

Speaks = Callable[[str], bool]
"""Whether a text may be in the language it was translated into."""


class Report(BaseModel):
    """Counts of rows, or of answers where the name says so."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rows: int = Field(description="rows")
    failed: int = Field(description="without a translation: the engine failed on a sentence")
    empty: int = Field(description="of them, because it returned nothing")
    copied_through: int = Field(description="the translation is the text itself")
    cut_off: int = Field(description="a sentence came to no end within translate.max_new_tokens")
    loop: int = Field(description="the translation says the same again and again")
    unknown: int = Field(0, description="something is left out that the model's vocabulary lacks")
    odd_length: int = Field(description=f"over {_OUTLIER} times longer or shorter than usual here")
    other_language: int = Field(description="the translation is in another language")
    answers: int = Field(description="answers with a known place")
    answers_not_found: int = Field(description="of them, not found in the translation")
    no_answer_found: int = Field(description="none of the row's answers was found")
    languages_told_by: str = Field(description="how a language is told")

    def lines(self) -> list[str]:
        """The report for people to read."""
        fields = type(self).model_fields.items()
        return [f"{getattr(self, name):>8}  {name}: {field.description}" for name, field in fields]


class Inspector:
    """Looks at the rows of one job, one after the other; `to_language` is the NLLB tag of what they became."""

    def __init__(self, to_language: str) -> None:
        self._speaks, self._told_by = _language_check(to_language)
        self._ratios = array("d")
        self._counts = Counter(dict.fromkeys(Report.model_fields.keys() - {"languages_told_by"}, 0))

    def add(self, row: Row, translated: Row) -> None:
        """Look at a row and its translation."""
        text, translation = "\n".join(row.fields.values()), "\n".join(translated.fields.values())
        letters = sum(character.isalpha() for character in text)
        self._counts.update(rows=1, copied_through=letters > 0 and text == translation)
        self._counts.update(translated.marks)
        self._counts.update(other_language=letters > 0 and not self._speaks(translation))
        if letters >= _ENOUGH:
            self._ratios.append(len(translation) / len(text))
        placed = [new for old, new in zip(row.answers, translated.answers, strict=True) if old.start is not None]
        lost = sum(answer.start is None for answer in placed)
        self._counts.update(answers=len(placed), answers_not_found=lost, no_answer_found=0 < lost == len(placed))

    def add_failed(self, *, empty: bool) -> None:
        """Count a row without a translation."""
        self._counts.update(rows=1, failed=1, empty=empty)

    def report(self) -> Report:
        """What was seen."""
        usual = median(self._ratios) if self._ratios else 1.0
        odd = sum(not usual / _OUTLIER <= ratio <= usual * _OUTLIER for ratio in self._ratios)
        return Report.model_validate({**self._counts, "odd_length": odd, "languages_told_by": self._told_by})


def _language_check(tag: str) -> tuple[Speaks, str]:
    """How to tell whether a text is in a language: by py3langid where it knows the language, else by its script."""
    identifier = _identifier()
    codes = {*codes_of(tag), tag.partition("_")[0]}
    if identifier is None or codes.isdisjoint(identifier.labels):
        return _by_script(tag)

    def speaks(text: str) -> bool:
        language, probability = identifier.classify(one_line(text))
        return bool(language in codes or probability < _SURE)

    return speaks, "py3langid"


@cache
def _identifier() -> Any:
    """The identifier of py3langid, which takes a second to load; None where it is not installed."""
    try:
        from py3langid import langid
    except ImportError:
        return None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


_JOINED = {"Hans": ("Hani",), "Hant": ("Hani",), "Jpan": ("Hani", "Hira", "Kana")}
"""What Unicode calls the scripts of NLLB tags that it does not know by their own names."""


def _by_script(tag: str) -> tuple[Speaks, str]:
    script = tag.partition("_")[2]
    try:
        own = regex.compile("|".join(rf"\p{{scx={code}}}" for code in _JOINED.get(script, (script,))))
    except regex.error:  # of a model of one's own, whose tags may be any words
        return lambda text: True, "nothing"

    def speaks(text: str) -> bool:
        letters = [character for character in text if character.isalpha()]
        return 2 * sum(own.match(letter) is not None for letter in letters) >= len(letters)

    return speaks, f"script {script}"
