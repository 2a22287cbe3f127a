"""Half characters, and rows of a Python task that are none: refused by row, before anything is made of them."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

import pytest

from flare_ds.exceptions import ConfigError, DataError
from flare_ds.tasks import TASKS, TableTask
from flare_ds.tasks.base import Answer, Pool, Row, Task
from flare_ds.tasks.check import check_task, checked_rows
from flare_ds.tasks.probes import probed_prompts, said_fields

HALF = "\ud83d"
GOOD = {"text": "a text", "note": "b"}


class Given(Task):
    name, version, languages, fields = "given", 1, ("en",), ("text", "note")

    def __init__(self, labels: tuple[str, ...], said: str = "") -> None:
        self.labels, self.said = labels, said
        self.metric = "accuracy" if labels else "exact_match"

    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterable[Row]:
        return []

    def prompt(self, fields: Mapping[str, str]) -> str:
        return f"{self.said}{fields['text']} {fields['note']}:"


LABELLED, FREE = Given(("yes", "no")), Given(())


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (LABELLED, Row(HALF, GOOD, 0), "an id"),
        (LABELLED, Row("", GOOD, 0), "an id"),
        (LABELLED, Row(3, GOOD, 0), "an id"),  # type: ignore[arg-type]
        (LABELLED, Row("7", {"text": "a"}, 0), "note=None"),
        (LABELLED, Row("7", GOOD | {"note": HALF}, 0), "note='.ud83d'"),
        (LABELLED, Row("7", GOOD | {"text": 5}, 0), "text=5"),
        (LABELLED, Row("7", [("text", "a")], 0), "no mapping"),  # type: ignore[arg-type]
        (LABELLED, ("7", GOOD, 0), "the type tuple"),
        (LABELLED, Row("7", GOOD, None), "label=None, not one of 0 to 1"),
        (LABELLED, Row("7", GOOD, 2), "label=2"),
        (LABELLED, Row("7", GOOD, -1), "label=-1"),
        (LABELLED, Row("7", GOOD, True), "label=True"),
        (FREE, Row("7", GOOD), "no answer"),
        (FREE, Row("7", GOOD, answers=(Answer("text"), Answer(HALF))), "answer Answer"),
        (FREE, Row("7", GOOD, answers=(Answer(""),)), "answer Answer"),
        (FREE, Row("7", GOOD, answers=(Answer("text", 99),)), "answer Answer"),
        (FREE, Row("7", GOOD, answers=(Answer("text", -2),)), "answer Answer"),
        (FREE, Row("7", GOOD, answers=("text",)), "answer 'text'"),  # type: ignore[arg-type]
    ],
)
def test_a_row_that_is_none_is_refused_by_its_number_and_id(task: Task, row: Row, said: str) -> None:
    good = Row("6", GOOD, 1) if task.labels else Row("6", GOOD, answers=(Answer("text", 2), Answer("else")))
    rows = checked_rows([good, row], task, "language 'en'")
    assert next(rows) is good
    with pytest.raises(DataError, match=f"row 1 of language 'en', id .* has .*{said}"):
        next(rows)


@pytest.mark.parametrize("long_field", ["text", "note"])
def test_a_long_field_in_which_no_answer_stands_is_told(long_field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it was left out it is the first field: a question, say, before its context."""
    task = Given(())
    task.long_field = long_field
    found = 7 if long_field == "note" else None
    rows = [Row(str(n), {"text": "who?", "note": f"it was {n}"}, answers=(Answer(str(n), found),)) for n in range(3)]
    rows += [
        Row("3", {"text": "was it 4?", "note": "?"}, answers=(Answer("4"),)),
        Row("4", GOOD, answers=(Answer("no"),)),
    ]
    assert list(checked_rows(rows, task, "language 'en'")) == rows
    told = "3 answers of language 'en' stand in 'note', not in long_field='text', which is cut"
    assert (told in capsys.readouterr().err) == (long_field == "text")


def test_what_a_tasks_own_read_raises_is_noted_with_the_row() -> None:
    def read() -> Iterable[Row]:
        yield Row("6", GOOD, 1)
        yield Row("7", GOOD, int("neither"))

    with pytest.raises(ValueError, match="neither") as caught:
        list(checked_rows(read(), LABELLED, "language 'en'"))
    assert caught.value.__notes__ == ["while row 1 of language 'en' was read"]


@pytest.mark.parametrize(("task", "said"), [(Given(("yes", HALF)), "label word"), (Given((), HALF), "prompt")])
def test_half_a_character_in_a_task_is_refused(task: Task, said: str) -> None:
    assert check_task(LABELLED) is LABELLED
    with pytest.raises(ConfigError, match=f"task given has the {said} '.*ud83d"):
        check_task(task)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ()}, r"metric='accuracy' with labels=\[\]\n  fix: exact_match is for free answers"),
        ({"metric": "exact_match"}, r"metric='exact_match' with labels=\['yes', 'no'\]"),
        ({"metric": "acuracy"}, r"metric='acuracy'\n  fix: did you mean 'accuracy'"),
        ({"labels": "yn"}, "labels='yn'"),
        ({"labels": {"en": ("yes", "no"), "de": ("ja",)}}, "not equally many label words"),
        ({"fields": ("premise", "text")}, r"prompt of task given .* KeyError: 'note'"),
        ({"fields": ("text", "note"), "long_field": "body"}, r"'body' in long_field"),
        ({"split_fields": ("body",)}, r"'body' in long_field, split_fields"),
        ({"pools": ("train", "dev")}, r"pools=\('train', 'dev'\)"),
        ({"original_language": "ne"}, r"original_language='ne'.*\n.*did you mean 'en'"),
        ({"version": None}, "version=None"),
    ],
)
def test_an_attribute_that_means_nothing_is_refused(changes: dict[str, object], said: str) -> None:
    task = Given(("yes", "no"))
    assert check_task(task) is task
    vars(task).update(changes)
    with pytest.raises(ConfigError, match=said):
        check_task(task)


@pytest.mark.parametrize(
    ("changes", "language"),
    [
        ({}, None),
        ({"split_fields": ("text",)}, "en"),
        ({"split_fields": ("text",), "cluster_fields": ("doc",)}, None),
        ({"split_fields": ("text",), "template": {"en": "{doc} {text}:", "de": "{text}:"}}, "de"),
    ],
)
def test_a_field_is_said_or_tells_what_was_drawn_together(changes: dict[str, object], language: str | None) -> None:
    told = {"languages": ("en", "de"), "pools": ("all",), "fields": ("text", "doc"), "labels": ("yes", "no")}
    task = TableTask(**({"name": "own", "template": "{text}:"} | told | changes))  # type: ignore[arg-type]
    if language is None:
        assert check_task(task) is task
        return
    with pytest.raises(ConfigError, match=f"its prompt in '{language}' does not use 'doc'\n.*remove it from fields"):
        check_task(task)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_tasks_that_come_with_it_say_all_of_their_fields(name: str) -> None:
    task = TASKS.get(name)
    for language in check_task(task).languages:
        assert said_fields(task, language) == tuple(task.fields)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{text[:9]}", ("text",)),
        ("{text if note else text.upper()}", ("text", "note")),
        ("{dict(a=1).get(note)}{len(text)}", ("text",)),
        ("{text} {'1' if note == '1' else ''}", ("text", "note")),
        ("{text} {note and ''}", ("text",)),
        ("{text or note}", ("text", "note")),
        ("{text if note else ''}", ("text", "note")),
    ],
)
def test_what_code_does_not_say_of_a_row_is_known(prompt: str, said: tuple[str, ...]) -> None:
    class Code(Given):
        def prompt(self, fields: Mapping[str, str]) -> str:
            return str(eval(f'f"{prompt}"', {**fields}))

    assert said_fields(Code(("yes", "no")), "en") == said


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("ё", "е"),
        lambda text: text.translate(dict.fromkeys(range(0x64B, 0x653))),  # Arabic's marks of vowels
        lambda text: unicodedata.normalize("NFC", text),
        lambda text: text.replace("।", "."),
        lambda text: text.replace("。", "."),
        lambda text: re.sub(r"\d", "0", text),
        str.casefold,
    ],
)
def test_what_code_does_to_letters_of_other_scripts_changes_the_key(change: Callable[[str], str]) -> None:
    class Code(Given):
        def prompt(self, fields: Mapping[str, str]) -> str:
            return fields["text"]

    class Changed(Given):
        def prompt(self, fields: Mapping[str, str]) -> str:
            return change(fields["text"])

    before, after = (probed_prompts(task(("yes", "no")), ["en"]) for task in (Code, Changed))
    assert before != after


@pytest.mark.parametrize("word", [" yes", "yes ", ""])
def test_a_label_word_that_brings_its_own_space_is_refused(word: str) -> None:
    """As other tools have it: the prompt would end in two, and no cell would say the word."""
    with pytest.raises(ConfigError, match=f"the label word '{word}'[\\s\\S]*the bare word"):
        check_task(Given((word, "no")))
