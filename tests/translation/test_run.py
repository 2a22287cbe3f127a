"""Translating jobs: no row is lost, each text is translated once, and a translation is found by its content."""

import json
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flare_ds.config import Config
from flare_ds.data.parallel import translation_jobs
from flare_ds.exceptions import DataError, HostError
from flare_ds.tasks.base import Answer, Row
from flare_ds.tasks.load import task_of
from flare_ds.translation import run
from flare_ds.translation.batches import said_so_far
from flare_ds.translation.run import describe, translate_jobs
from flare_ds.translation.store import find_translation, read_manifest, read_translation
from tests.toy import toy_settings
from tests.translation.rows import Program, job, random_rows, settings


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path / "program", monkeypatch)


def content(directory: Path) -> dict[str, bytes]:
    top = directory / "translations"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_rows_come_back_in_order_with_their_own_ids_and_labels(tmp_path: Path, program: Program) -> None:
    rows = random_rows(7)
    (directory,) = translate_jobs([job(rows)], settings(tmp_path))
    translated = list(read_translation(find_translation(job(rows), settings(tmp_path)), rows))
    assert len(translated) == len(rows) and directory.parent == tmp_path / "translations"
    for row, other in zip(rows, translated, strict=True):
        assert other is not None
        assert other == replace(
            row,
            fields={name: text.swapcase() for name, text in row.fields.items()},
            answers=tuple(Answer(answer.text.swapcase(), answer.start) for answer in row.answers),
        )
    assert translated[-1] == translated[6] and [path.name for path in (tmp_path / "translations").iterdir()] == [
        directory.name
    ]


def test_each_sentence_is_translated_once_however_often_it_occurs(tmp_path: Path, program: Program) -> None:
    rows = [Row(str(i), {"text": "We met. We left."}) for i in range(9)]
    translate_jobs([job(rows)], settings(tmp_path))
    assert program.finished() == ["We left.||We met.||"]


def test_a_finished_translation_is_found_by_content(tmp_path: Path, program: Program) -> None:
    rows = random_rows(5)
    first = translate_jobs([job(rows)], settings(tmp_path))
    batches = len(program.finished())
    relabelled = [replace(row, id=f"other {row.id}", label=None) for row in rows]
    again = translate_jobs([job(relabelled)], settings(tmp_path, batch_size=9, beams=4))
    assert again == first and len(program.finished()) == batches
    assert translate_jobs([job(rows, split="test")], settings(tmp_path)) != first, "held-out texts have no marks"
    unanswered = [replace(row, answers=()) for row in rows]
    train, test = (translate_jobs([job(unanswered, split=split)], settings(tmp_path)) for split in ("train", "test"))
    assert train == test != first
    for changed in (
        [replace(rows[0], fields={**rows[0].fields, "question": "Why?"}), *rows[1:]],
        [*rows[:1], replace(rows[1], answers=(Answer("Why", None),)), *rows[2:]],
        rows[::-1],
        rows[:-1],
    ):
        with pytest.raises(DataError, match="the train rows are not translated yet") as raised:
            find_translation(job(changed), settings(tmp_path))
        assert raised.value.fix == "flare-ds translate CONFIG"


def test_what_was_said_so_far_is_kept_by_batches_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the advice is where the memory is too small."""
    rows = [Row(str(number), {"text": f"{'so ' * (9 - number)}on"}) for number in range(9)]
    log = str(tmp_path / "program/batches.log")
    full = f"import os\nif os.path.exists({log!r}) and open({log!r}).read().count('|\\n') >= 2: sys.exit(1)"
    Program(tmp_path / "program", monkeypatch, first=full)
    with pytest.raises(HostError, match="translates nothing"):
        translate_jobs([job(rows)], settings(tmp_path, batch_size=3))
    program = Program(tmp_path / "program", monkeypatch)
    before = len(program.finished())
    (directory,) = translate_jobs([job(rows)], settings(tmp_path, batch_size=2))
    assert [batch.count("||") for batch in program.finished()[before:]] == [2, 1]
    assert read_manifest(directory).report.failed == 0


def test_what_is_finished_is_not_cut_into_sentences_again(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = translate_jobs([job(random_rows(3))], settings(tmp_path))
    monkeypatch.setattr(run, "segments_of", lambda *_: pytest.fail("a row is cut"))
    assert translate_jobs([job(random_rows(3))], settings(tmp_path)) == first


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, program: Program) -> None:
    jobs = [job(random_rows(6)), job(random_rows(6, seed=1), split="test")]
    for workers in (1, 3):
        translate_jobs(jobs, settings(tmp_path / str(workers)), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "3") != {}


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@given(fields=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
@hypothesis_settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_for_every_row(fields: list[tuple[str, str]], tmp_path: Path, program: Program) -> None:
    shutil.rmtree(tmp_path / "translations", ignore_errors=True)
    rows = [Row(str(i), {"question": first, "text": second}) for i, (first, second) in enumerate(fields)]
    translate_jobs([job(rows)], settings(tmp_path))
    translated = list(read_translation(find_translation(job(rows), settings(tmp_path)), rows))
    assert [row.id for row in translated if row is not None] == [row.id for row in rows]


def test_a_row_whose_sentence_fails_is_marked_and_counted_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Program(tmp_path / "program", monkeypatch, fails="bomb", empty="void")
    texts = ["One fine day", "A bomb here", "Two days", "Nothing void", "A void bomb here", "Good. A bomb too."]
    rows = [Row(str(i), {"text": text}) for i, text in enumerate(texts)]
    (directory,) = translate_jobs([job(rows)], settings(tmp_path, batch_size=3))
    translated = list(read_translation(find_translation(job(rows), settings(tmp_path)), rows))
    assert [row and row.fields["text"] for row in translated] == ["oNE FINE DAY", None, "tWO DAYS", None, None, None]
    report = read_manifest(directory).report
    assert (report.rows, report.failed, report.empty) == (6, 4, 1)
    assert "A bomb here" in capfd.readouterr().err


def test_a_split_of_which_no_row_is_whole_is_no_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path / "program", monkeypatch, fails="bomb")
    rows = [Row("1", {"text": "One day. A bomb."}), Row("2", {"text": "Two days. No bomb."})]
    with pytest.raises(HostError, match=r"translate.engine='apertium' translated no row of the train split"):
        translate_jobs([job(rows)], settings(tmp_path))
    assert content(tmp_path) == {}


def test_two_commands_at_once_translate_each_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they name the jobs; a job that stands twice does not wait for itself."""
    program = Program(tmp_path / "program", monkeypatch, seconds=0.02)
    jobs = [job(random_rows(4)), job(random_rows(4, seed=1)), job(random_rows(4))]
    translate_jobs(jobs[:2], settings(tmp_path / "alone"))
    alone = program.finished()
    with ThreadPoolExecutor(2) as pool:
        made = [*pool.map(lambda some: translate_jobs(some, settings(tmp_path)), (jobs, jobs[::-1]))]
    assert made[0] == made[1][::-1] and content(tmp_path) == content(tmp_path / "alone")
    assert sorted(program.finished()[len(alone) :]) == sorted(alone)
    assert {path.name for path in (tmp_path / "translations").iterdir()} == {path.name for path in made[0]}


def test_damage_is_told_with_the_commands_that_mend_it(tmp_path: Path, program: Program) -> None:
    rows = random_rows(3)
    (directory,) = translate_jobs([job(rows)], settings(tmp_path))
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    for name, old in whole.items():
        flipped = bytes([old[7] ^ 4]).join((old[:7], old[8:]))
        edited = old.replace(b'"failed": 0', b'"failed": 1').replace(b'["', b'[  "')
        for new in (old[:-3], flipped, edited, b"", None):
            (directory / name).unlink()
            if new is not None:
                (directory / name).write_bytes(new)
            with pytest.raises(DataError, match=f"{directory} is damaged: .*{name}") as raised:
                list(read_translation(find_translation(job(rows), settings(tmp_path)), rows))
            assert raised.value.fix == f"rm -r {directory}; flare-ds translate CONFIG"
            (directory / name).write_bytes(old)
    assert len(list(read_translation(find_translation(job(rows), settings(tmp_path)), rows))) == 3


def test_what_is_to_be_removed_is_named_as_a_shell_reads_it(tmp_path: Path, program: Program) -> None:
    place = tmp_path / "of its own"
    (directory,) = translate_jobs([job(random_rows(3))], settings(place))
    (directory / "manifest.json").write_text("{}")
    with pytest.raises(DataError) as whole:
        read_manifest(directory)
    (batch := place / "00.json").write_text("[0]")
    with pytest.raises(DataError) as part:
        said_so_far(place)
    assert shlex.split(whole.value.fix.partition(";")[0]) == ["rm", "-r", str(directory)]
    assert shlex.split(part.value.fix.partition(";")[0]) == ["rm", str(batch)]


def test_a_config_is_translated_and_its_report_names_stand_ins(tmp_path: Path, program: Program) -> None:
    given = toy_settings(tmp_path)
    given["task"] |= {"sides": "translated", "target_language": "cat_Latn"}
    given["task"] |= {"train_rows": 5, "validation_rows": 2, "test_rows": 3}
    given["translate"] = settings(tmp_path).model_dump()
    config = Config.model_validate(given)
    paths = translate_jobs(translation_jobs(task_of(config.task), config.task), config.translate)
    assert [json.loads((path / "manifest.json").read_text())["report"]["rows"] for path in paths] == [5, 2, 3]
    lines = describe(config.task, paths)
    assert lines[0] == str(paths[0]) and any("5  rows" in line for line in lines)
    stood_in = describe(config.task.model_copy(update={"target_language": "bbc"}), [])
    assert stood_in == ["bbc is in no NLLB model: ind_Latn stands in for it"]
