"""Texts in the target language alone are put into the sources' by the engine that the run names."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import flare_ds
from flare_ds.cli import main
from flare_ds.config import Config, TranslateConfig
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.evaluation.translated_rows import RowTranslator
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.tasks.base import TASKS, Answer
from flare_ds.translation.engines import Apertium, Direction
from tests.mt import write_mt_model
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


def test_an_engine_that_cannot_be_used_is_refused_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apertium") as raised:
        translator(config_of())
    assert "install" in raised.value.fix
    Program(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="apertium"):
        translator(config_of(target="pl"))


def test_an_engine_that_says_nothing_is_told_from_a_text_that_it_cannot_translate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Program(tmp_path, monkeypatch, fails="bomba")
    asked = translator(config_of())
    with pytest.raises(HostError, match="translates nothing") as raised:
        asked.fill([row("una bomba", None)])
    assert "give the texts with their sources" in raised.value.fix and "again" not in raised.value.fix
    asked.fill([row("tres", None)])
    assert asked.fill([row("una bomba", None)]) == [row("una bomba", None)]


def test_an_engine_of_each_language_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path, monkeypatch)
    opened = []
    monkeypatch.setattr(Apertium, "__init__", recording(Apertium.__init__, opened))
    asked = translator(config_of(target="en", source_language="es", extra_source_languages=["ca"]))
    for _ in range(2):
        asked.fill([row("one", None, None)])
    assert [direction.to_language for direction in opened] == ["spa_Latn", "cat_Latn"]


def recording(open_engine: Callable[..., None], opened: list[Direction]) -> Callable[..., None]:
    def record(self: Apertium, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        opened.append(direction)
        open_engine(self, translate, direction, worker=worker)

    return record


def test_a_language_that_stands_in_for_another_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mt_model(tmp_path / "mt")
    settings = {"engine": "nllb", "model": str(tmp_path / "mt")}
    config = config_of(task="nusax", target="nij").model_copy(update={"translate": TranslateConfig(**settings)})
    with pytest.raises(ConfigError, match="knows no ind_Latn"):
        translator(config)
    monkeypatch.setattr("tests.mt.LANGUAGES", ["eng_Latn", "ind_Latn"])
    write_mt_model(tmp_path / "mt")
    translator(config)
    assert "nij is in no NLLB model: ind_Latn stands in for it" in capsys.readouterr().err


def test_a_method_without_a_source_has_nothing_to_translate() -> None:
    with pytest.raises(ConfigError, match="method=lora reads no source"):
        translator(config_of("lora"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a run that reads Spanish beside the English that its engine makes of it."""
    Program(tmp_path / "program", monkeypatch, fails="bomba")
    settings = toy_settings(tmp_path, method="zero_shot_both")
    settings["task"]["target_language"] = "es"
    settings["translate"] = {"engine": "apertium"}
    return write_config(settings)


def test_a_loaded_run_translates_what_it_is_to_read(run: Path) -> None:
    model = flare_ds.load(run, "cpu")
    assert model.translate("word1 word2") == "WORD1 WORD2"
    texts = ("word1", "Word2. word3", "bomba")
    assert model.translate(text for text in texts if model.label(text)) == ["WORD1", "wORD2. WORD3", None]
    both = model.scores(texts, source=model.translate(texts))
    alone = model.scores(texts)
    assert (both[:2] != alone[:2]).any(axis=1).all() and both[2] == pytest.approx(alone[2], abs=1e-5)


def test_predict_translates_a_text_that_comes_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), "--translate", "--target", "Word2. word3"]) == 0
    told = capsys.readouterr()
    assert "flare-ds: translated: wORD2. WORD3\n" in told.err
    assert main(["predict", str(run), "--source", "wORD2. WORD3", "--target", "Word2. word3"]) == 0
    assert capsys.readouterr().out == told.out != ""


def test_predict_translates_the_rows_of_a_file_that_have_no_source(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for number, sources in enumerate(((None, "WORD2", None), ("WORD1", "WORD2", None))):
        targets = ("word1", "word2", "bomba")
        lines = [{"target": target, "source": source} for target, source in zip(targets, sources, strict=True)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        translate = ["--translate"] * (number == 0)
        assert main(["predict", str(run), "--file", str(tmp_path / f"{number}.jsonl"), *translate]) == 0
        told = capsys.readouterr()
        assert "1 of 3 rows have no source text" in told.err
        said.append(told.out)
    assert said[0] == said[1]


def test_a_question_of_a_conversation_is_its_target_alone(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for lines, translate in (("word1\n\nword2\n", ["--translate"]), ("word1\nWORD1\n\n\nword2\nWORD2\n", [])):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert main(["predict", str(run), "--interactive", *translate]) == 0
        told = capsys.readouterr()
        assert "no text" in told.err and ("translated: WORD2" in told.err) == bool(translate)
        said.append(told.out)
    assert said[0] == said[1] != ""


def test_what_translate_does_not_go_with_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), "--translate", "--source", "a", "--target", "b"]) == 1
    assert "--translate cannot be combined with --source" in capsys.readouterr().err
    assert main(["predict", str(run), "--translate"]) == 1
    assert "--translate has nothing to translate" in capsys.readouterr().err
    assert main(["predict", str(run), "method=zero_shot", "--translate", "--target", "b"]) == 1
    assert "method=zero_shot reads no source" in capsys.readouterr().err
