"""Texts in the target language alone are put into the sources' by the engine that the run names."""

from pathlib import Path

import pytest

import flare_ds
from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.evaluation.translated_rows import RowTranslator
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.base import TASKS, Answer
from tests.toy import toy_settings, write_config
from tests.translation.rows import Program


def config_of(method: str = "flare", *, task: str = "multiemo", target: str = "es", **task_settings: object) -> Config:
    sections = {
        "model": {"base": "base"},
        "task": {"name": task, "target_language": target, **task_settings},
        "translate": {"engine": "apertium", "batch_size": 2},
        "train": {"steps": 1},
    }
    return Config.model_validate({"method": method, "run_dir": "run", "deepspeed": "ds.json", **sections})


def translator(config: Config) -> RowTranslator:
    return RowTranslator(config, TASKS.get(config.task.name))


def row(target: str, *sources: str | None) -> ParallelRow:
    sides = [None if source is None else Side({"text": source}) for source in sources]
    return ParallelRow("7", 0, tuple(sides), Side({"text": target}))


def test_a_row_gets_the_source_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentence by sentence, as a whole split is translated; each sentence once, in batches of the run's size."""
    program = Program(tmp_path, monkeypatch)
    rows = [row("Ya. Uno dos.\n 9:00", None), row("tres", "three"), row("Uno dos.", None)]
    filled = translator(config_of()).fill(rows)
    assert filled == [row("Ya. Uno dos.\n 9:00", "yA. uNO DOS.\n 9:00"), rows[1], row("Uno dos.", "uNO DOS.")]
    assert len(program.finished()) == 1


def test_what_the_engine_cannot_say_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path, monkeypatch, fails="bomba")
    filled = translator(config_of()).fill([row("una bomba", None), row("tres", None)])
    assert [found.sources for found in filled] == [(None,), (Side({"text": "TRES"}),)]


def test_each_source_language_has_a_translation_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(tmp_path, monkeypatch)
    config = config_of(target="en", source_language="es", extra_source_languages=["ca"])
    (filled,) = translator(config).fill([row("one", None, "un")])
    assert filled.sources == (Side({"text": "ONE"}), Side({"text": "un"}))
    (filled,) = translator(config).fill([row("one", None, None)])
    assert filled.sources == (Side({"text": "ONE"}), Side({"text": "ONE"}))
    assert len(program.finished()) == 3


def test_a_question_keeps_that_its_answer_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path, monkeypatch)
    config = config_of(task="squad_hi", target="es")
    asked = ParallelRow("7", None, (None,), Side({"question": "Que?", "context": "Si."}, (Answer(""),)))
    (filled,) = translator(config).fill([asked])
    assert filled.sources == (Side({"question": "qUE?", "context": "sI."}, (Answer(""),)),)


def test_a_method_without_a_source_has_nothing_to_translate() -> None:
    with pytest.raises(ConfigError, match="method=lora reads no source"):
        translator(config_of("lora"))


def test_a_loaded_run_translates_what_it_is_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path / "program", monkeypatch)
    settings = toy_settings(tmp_path, method="zero_shot_both")
    settings["task"]["target_language"] = "es"
    settings["translate"] = {"engine": "apertium"}
    model = flare_ds.load(write_config(settings), "cpu")
    assert model.translate("word1 word2") == "WORD1 WORD2"
    texts = ("word1", "Word2. word3")
    assert model.translate(iter(texts)) == ["WORD1", "wORD2. WORD3"]
    both = model.scores(texts, source=model.translate(texts))
    assert (both != model.scores(texts)).any()
