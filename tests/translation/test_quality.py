"""The quality report: each fault put into good translations is counted, and nothing else."""

import sys
from dataclasses import replace

import pytest

from flare_ds.tasks.base import Answer, Row
from flare_ds.translation import quality
from flare_ds.translation.quality import Inspector, Report

GOOD = [
    ("The doctor was very kind to all of us.", "O médico foi muito gentil com todos nós."),
    ("I waited for three weeks and nobody called me.", "Esperei três semanas e ninguém me ligou."),
    ("This phone broke after one day, do not buy it.", "Este telefone quebrou depois de um dia, não compre."),
    ("The museum is closed on Mondays and Tuesdays.", "O museu está fechado às segundas e terças-feiras."),
    ("Fine", "Bom"),
    ("7", "7"),
]


def row(text: str, *answers: Answer) -> Row:
    return Row("1", {"text": text, "other": ""}, None, answers)


def inspect(*more: tuple[str, str], language: str = "por_Latn", pairs: list[tuple[str, str]] = GOOD) -> Report:
    inspector = Inspector(language)
    for text, translation in [*pairs, *more]:
        inspector.add(row(text), row(translation))
    return inspector.report()


def test_good_translations_have_no_fault() -> None:
    pytest.importorskip("py3langid")
    report = inspect()
    faults = dict.fromkeys(set(Report.model_fields) - {"rows", "languages_told_by"}, 0)
    assert report.model_dump() == {"rows": 6, "languages_told_by": "py3langid", **faults}


def test_each_fault_is_counted() -> None:
    pytest.importorskip("py3langid")
    spanish = ("The streets were full of people.", "Las calles estaban llenas de gente y de niños.")
    assert inspect(spanish).other_language == 1
    copied = inspect(("The streets were full of people.", "The streets were full of people."))
    assert (copied.copied_through, copied.other_language) == (1, 1)
    assert inspect(("The streets were full of people there.", "As ruas")).odd_length == 1
    assert inspect(("The streets were full of people there.", "ruas cheias " * 12)).odd_length == 1


def test_marks_are_counted() -> None:
    inspector = Inspector("por_Latn")
    for marks in ((), ("cut_off",), ("cut_off", "loop")):
        inspector.add(row("Fine"), replace(row("Bom"), marks=marks))
    report = inspector.report()
    assert (report.cut_off, report.loop) == (2, 1)


def test_lengths_are_judged_against_what_is_usual_for_the_languages() -> None:
    chinese = [("The streets were full of people there.", "街上都是人。")] * 9
    assert inspect(language="zho_Hans", pairs=chinese).odd_length == 0
    assert (
        inspect(("The streets were full of people there.", "x" * 40), language="zho_Hans", pairs=chinese).odd_length
        == 1
    )


def test_answers_that_are_not_found_are_counted_if_they_had_a_place() -> None:
    inspector = Inspector("por_Latn")
    inspector.add(
        row("A b c", Answer("b", 2), Answer("c", 4), Answer("d", None)),
        row("X y", Answer("y", 2), Answer("z", None), Answer("d", None)),
    )
    inspector.add(row("A b", Answer("b", 2)), row("X y", Answer("z", None)))
    inspector.add_failed(empty=True)
    inspector.add_failed(empty=False)
    report = inspector.report()
    assert (report.answers, report.answers_not_found, report.no_answer_found) == (3, 2, 1)
    assert (report.rows, report.failed, report.empty) == (4, 2, 1)


@pytest.mark.parametrize(
    ("language", "own", "other"),
    [("ban_Latn", "Tiang demen", "मैं खुश हूँ"), ("bho_Deva", "मैं खुश हूँ, OK", "I am happy"), ("taq_Tfng", "ⵜⴰⵎⴰ", "tama")],
)
def test_languages_py3langid_does_not_know_are_told_by_their_script(language: str, own: str, other: str) -> None:
    report = inspect(language=language, pairs=[("I am happy.", own), ("I am happy!", other)])
    assert report.other_language == 1 and report.languages_told_by == f"script {language[4:]}"


@pytest.mark.parametrize("language", ["klingon", "xxx_Zork", "xx"])
def test_a_tag_of_no_known_script_tells_no_language(language: str) -> None:
    report = inspect(language=language)
    assert report.other_language == 0 and report.languages_told_by == "nothing"


def test_a_language_is_known_by_any_of_its_codes() -> None:
    norwegian = "Det er en veldig fin dag i dag, og jeg er glad for at du kom hit til oss."
    report = inspect(language="nob_Latn", pairs=[("It is a fine day.", norwegian), ("It is a fine day!", GOOD[0][1])])
    assert report.other_language == 1 and report.languages_told_by == "py3langid"


def test_without_py3langid_scripts_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setattr(quality, "_identifier", quality._identifier.__wrapped__)
    report = inspect(("Nine", "Девять"))
    assert report.other_language == 1 and report.languages_told_by == "script Latn"


def test_the_report_says_what_each_number_is() -> None:
    lines = inspect().lines()
    assert len(lines) == len(Report.model_fields) and lines[0].split()[:2] == ["6", "rows:"]
