"""Scoring a run on other rows than its own: the same rows get the same scores, and nothing of the run changes.

Adapters are random, and equal where their parameters are named alike: so a run in Spanish is what the run in Polish
is when it is asked in Spanish.
"""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flare_ds.checksums import directory_sha256, file_sha256
from flare_ds.cli import main
from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.parallel import ParallelRow, load_parallel
from flare_ds.evaluation.labelled_rows import read_labelled
from flare_ds.evaluation.other_rows import OtherRows
from flare_ds.exceptions import ConfigError, FlareError
from flare_ds.locks import release_all
from flare_ds.models.loading import load_tokenizer
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import at_place
from flare_ds.runs.find import find_runs
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of
from flare_ds.training import run
from flare_ds.training.run import begin_run
from tests.distributed import run_ranks
from tests.evaluation.test_predict import held_out, write_adapter
from tests.forms import PAPER_FORM
from tests.mt import write_mt_model
from tests.qa_world import qa_settings
from tests.tasks.tables import write_table
from tests.toy import LABELS, toy_settings, write_config, write_data, write_model

TEST_ROWS, VALIDATION_ROWS = 23, 9


def settings_of(root: Path, name: str) -> dict:
    """Runs by name: a method, then perhaps a language."""
    method, _, language = name.partition("-")
    settings = toy_settings(root, method="flare" if method == "cached" else method, name=f"runs/{name}", steps=1)
    settings["task"] |= {"test_rows": TEST_ROWS, "validation_rows": VALIDATION_ROWS, "train_rows": 40}
    settings["task"] |= {"target_language": language or "pl"}
    if method == "cached":
        settings |= {"source": {"provider": "cached"}, "adapter": PAPER_FORM}
    if method == "flare_mt":
        settings |= {"source": {"mt_encoder": str(root / "nllb")}, "adapter": {"fused_modules": ["q_proj"]}}
    return settings


def qa_settings_of(root: Path) -> dict:
    settings = qa_settings(root / "qa", method="lora", name="run", steps=1)
    settings["task"] |= {"test_rows": 24, "train_rows": 40}
    return settings


def write_file(path: Path, config: Config, *, sources: bool) -> None:
    """The held-out rows, the last first, as somebody would write them down."""
    task, rows = task_of(config.task), held_out(config)[::-1]
    if task.free_answers:
        lines = [
            {"id": row.id, "target": dict(row.target.fields), "answers": [answer.text for answer in row.target.answers]}
            for row in rows
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "target", "label", *(["source"] if sources else [])])
        for row in rows:
            writer.writerow([row.id, row.target.fields["text"], task.labels[row.label], *_source(row)[:sources]])


def _source(row: ParallelRow) -> list[str]:
    return [row.sources[0].fields["text"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, scored on all kinds of other rows; finished.json says how each run was before that."""
    root = tmp_path_factory.mktemp("other")
    (root / "runs").mkdir()
    write_model(root / "model")
    write_data(root / "data", languages=("en", "pl", "es"), rows=120)
    write_mt_model(root / "nllb")
    settings = [settings_of(root, name) for name in ("flare", "flare-es", "lora", "cached", "flare_mt")]
    settings.append(qa_settings_of(root))
    plain = []
    for of_run in settings:
        config = load_config(write_config(of_run))
        write_adapter(config)
        begin_run(config, open_cache(prepare_cache(config, load_tokenizer(config.model))))
        plain.append([str(Path(config.run_dir).with_suffix(".yaml"))])
        file = Path(config.run_dir).with_suffix(".jsonl" if task_of(config.task).free_answers else ".csv")
        write_file(file, config, sources=config.method == "flare")
    score(root, plain)
    text = (root / "runs/flare.csv").read_text()
    (root / "no source.csv").write_text(text.replace("label,source", "label,Source"))
    before = {str(directory): directory_sha256(directory) for directory in directories(root)}
    flare, lora, cached = (str(root / "runs" / name) for name in ("flare", "lora", "cached"))
    beside = [
        [flare, "--split", "test"],
        [flare, "--split", "validation"],
        [flare, "--language", "pl"],
        [flare, "--language", "es"],
        [flare, "--language", "es", "--split", "validation"],
        [flare, "--file", f"{flare}.csv"],
        [flare, "--file", str(root / "no source.csv")],
        [lora, "--file", f"{lora}.csv"],
        [lora, "--language", "en"],
        [cached, "--file", f"{cached}.csv"],
        [str(root / "runs/flare_mt"), "--language", "en"],
        [str(root / "qa/run"), "--file", str(root / "qa/run.jsonl")],
    ]
    score(root, beside)
    (root / "before.json").write_text(json.dumps(before))
    return root


def score(root: Path, cases: list[list[str]]) -> None:
    (root / "commands.json").write_text(json.dumps([["evaluate", *case] for case in cases]))
    run_ranks(["tests.commands_worker", str(root), str(root / "commands.json")], 1)


def directories(root: Path) -> list[Path]:
    return [*sorted(path for path in (root / "runs").iterdir() if path.is_dir()), root / "qa/run"]


def scored(run_dir: Path, name: str = "") -> tuple[pd.DataFrame, dict]:
    predictions = pd.read_parquet(run_dir / f"predictions{name}.parquet").set_index("id").sort_index()
    return predictions, json.loads((run_dir / f"metrics{name}.json").read_text())


@pytest.mark.parametrize(
    ("run_name", "other", "name"),
    [
        ("runs/flare", "runs/flare", "-test"),
        ("runs/flare", "runs/flare", "-pl"),
        ("runs/flare-es", "runs/flare", "-es"),
        ("runs/flare", "runs/flare", "-file-flare"),
        ("runs/lora", "runs/lora", "-file-lora"),
        ("runs/cached", "runs/cached", "-file-cached"),
        ("qa/run", "qa/run", "-file-run"),
    ],
)
def test_the_same_rows_are_scored_alike(root: Path, run_name: str, other: str, name: str) -> None:
    predictions, metrics = scored(root / run_name)
    found, of_found = scored(root / other, name)
    pd.testing.assert_frame_equal(predictions, found, atol=2e-4, rtol=0)
    assert of_found["figures"] == pytest.approx(metrics["figures"], abs=1e-4)
    assert of_found["confidence_interval"] == pytest.approx(metrics["confidence_interval"], abs=1e-4)
    for told in ("metric", "num_examples", "answers", "model_fingerprint", "target_language"):
        assert of_found[told] == metrics[told]
    assert of_found["adapter_sha256"] == file_sha256(root / other / "adapter/adapter_model.safetensors")


BY_LANGUAGE = {
    "name": "moods",
    "languages": ["en", "pl", "es"],
    "original_language": "en",
    "pools": ["train", "validation", "test"],
    "fields": ["text"],
    "labels": {"en": ["great", "awful"], "pl": LABELS[:2], "es": LABELS[2:]},
    "template": {"en": "Review: {text}", "pl": "{text} Sentiment:", "es": "Sentiment: {text} Review:"},
}


def test_another_language_is_asked_in_its_own_prompt_and_label_words(tmp_path: Path) -> None:
    """As a run in that language is."""
    write_model(tmp_path / "model")
    (tmp_path / "moods.yaml").write_text(yaml.safe_dump(BY_LANGUAGE))
    for language in BY_LANGUAGE["languages"]:
        for place, pool in enumerate(BY_LANGUAGE["pools"]):
            rows = [{"text": f"word{place} word{number}", "label": number % 2} for number in range(12)]
            write_table(tmp_path / f"data/{language}/{pool}.jsonl", rows)
    for language in ("pl", "es"):
        settings = toy_settings(tmp_path, method="lora", name=language, steps=1, whole_model="auto")
        settings["task"] = {"name": "moods", "path": str(tmp_path / "moods.yaml"), "data_dir": str(tmp_path / "data")}
        settings["task"]["target_language"] = language
        write_adapter(load_config(write_config(settings)))
    assert main(["evaluate", str(tmp_path / "es")]) == main(["evaluate", str(tmp_path / "pl"), "--language", "es"]) == 0
    pd.testing.assert_frame_equal(scored(tmp_path / "es")[0], scored(tmp_path / "pl", "-es")[0], atol=2e-4, rtol=0)


def test_an_mt_encoder_reads_another_language_by_its_own_tag(root: Path) -> None:
    _, metrics = scored(root / "runs/flare_mt", "-en")
    assert metrics["settings"]["source"]["mt_language"] == "eng_Latn" and metrics["num_examples"] == TEST_ROWS
    assert load_config(root / "runs/flare_mt").source.mt_language == "pol_Latn"


def validation_ids(root: Path, name: str) -> set[str]:
    config = load_config(root / "runs" / name)
    return {row.id for row in load_parallel(task_of(config.task), config.task).splits["validation"]}


def test_what_was_scored_is_told(root: Path) -> None:
    flare = root / "runs/flare"
    found, metrics = scored(flare, "-validation")
    assert set(found.index) == validation_ids(root, "flare") and metrics["split"] == "validation"
    found, metrics = scored(flare, "-es-validation")
    assert set(found.index) == validation_ids(root, "flare-es")
    assert (metrics["split"], metrics["target_language"]) == ("validation", "es")
    assert metrics["settings"]["task"]["target_language"] == "es"
    _, metrics = scored(flare, "-file-flare")
    assert metrics["file"] == f"{flare}.csv" and metrics["file_sha256"] == file_sha256(Path(f"{flare}.csv"))
    _, metrics = scored(root / "runs/lora", "-en")
    assert metrics["target_language"] == metrics["source_language"] == "en"


def test_the_runs_own_result_is_as_it_was(root: Path) -> None:
    """But for the new files, and the lock, which only tells that somebody writes."""
    before = json.loads((root / "before.json").read_text())
    runs, unreadable = find_runs(root / "runs")
    assert all(run.finished for run in runs) and not unreadable and len(runs) == 5
    for directory in directories(root):
        for file in [*directory.glob("metrics-*.json"), *directory.glob("predictions-*.parquet")]:
            file.rename(root / f"{directory.name}.{file.name}")
        assert directory_sha256(directory) == before[str(directory)], directory
        for file in root.glob(f"{directory.name}.*-*"):
            file.rename(directory / file.name.removeprefix(f"{directory.name}."))


@pytest.fixture
def nothing_held() -> Iterator[None]:
    yield
    release_all()


@pytest.mark.usefixtures("nothing_held")
def test_how_many_rows_of_a_file_have_no_source_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flare = load_config(root / "runs/flare")
    run.open_beside(flare, OtherRows(file=root / "runs/flare.csv"))
    assert "no source text" not in capsys.readouterr().err
    run.open_beside(flare, OtherRows(file=root / "no source.csv"))
    assert f"{TEST_ROWS} of {TEST_ROWS} rows have no source text: method=flare " in capsys.readouterr().err
    counts = [scored(root / "runs/flare", name)[1].get("num_unfused") for name in ("-file-flare", "-file-no_source")]
    assert counts == [0, TEST_ROWS]
    assert "num_unfused" not in scored(root / "runs/lora", "-file-lora")[1]


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize(
    ("rows", "content", "told"),
    [
        (OtherRows(language="xx"), None, "no language 'xx'"),
        (OtherRows(language="en"), None, "task.target_language='en' equals task.source_language"),
        (OtherRows(file=Path("no.csv")), None, "no.csv is no file"),
        (OtherRows(file=Path("rows.csv")), "target,source\na,b\n", "no column 'label'"),
        (OtherRows(file=Path("rows.csv")), "target,label\na,splendid\n", "label='splendid', not one of positive"),
        (OtherRows(file=Path("rows.csv")), "label,source\npositive,a\n", "has no text in column target"),
        (OtherRows(file=Path("rows.csv")), "target,label\n", "has no rows"),
        (OtherRows(file=Path("rows.csv")), "id,target,label\n7,a,neutral\n7,b,neutral\n", "id '7' of an earlier row"),
    ],
    ids=str,
)
def test_a_refused_call_leaves_every_byte(
    root: Path, tmp_path: Path, rows: OtherRows, content: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("rows.csv").write_text(content)
    before = directory_sha256(root / "runs/flare")
    with pytest.raises(FlareError) as refused:
        run.open_beside(load_config(root / "runs/flare"), rows)
    assert told in str(refused.value)
    assert directory_sha256(root / "runs/flare") == before


@pytest.mark.usefixtures("nothing_held")
def test_a_run_that_cannot_be_scored_is_not_made(tmp_path: Path) -> None:
    config = Config.model_validate(toy_settings(tmp_path, method="flare", steps=1))
    with pytest.raises(FlareError, match="the training of"):
        run.open_beside(config, OtherRows(split="validation"))
    assert not Path(config.run_dir).exists() and not RunDirectory(config.run_dir).finished


@pytest.mark.usefixtures("nothing_held")
def test_a_run_that_lost_its_record_of_what_it_answers_is_refused(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "flare"
    shutil.copytree(root / "runs/flare", copy)
    (copy / "cache.json").unlink()
    with pytest.raises(FlareError, match=r"flare lacks its cache\.json"):
        run.open_beside(load_config(copy), OtherRows(split="validation"))


@pytest.mark.usefixtures("nothing_held")
def test_one_that_trains_nothing_begins_by_the_first_rows_that_are_asked_for(tmp_path: Path) -> None:
    """Validation rows, too: a sweep that is judged by them scores no test row."""
    config = Config.model_validate(toy_settings(tmp_path, method="zero_shot", steps=1))
    made = RunDirectory(config.run_dir)
    run.open_beside(config, OtherRows(split="validation"))
    assert made.config == at_place(config) and not made.begun
    (made.path / "metrics-validation.json").write_text("{}")
    assert made.begun and not made.finished
    other = config.model_copy(update={"task": config.task.model_copy(update={"max_prompt_tokens": 20})})
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        run.open_beside(other, OtherRows(split="validation"))


def test_a_split_and_a_file_are_not_both_rows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(root / "runs/flare"), "--split", "test", "--file", "a.csv"])
    assert "not allowed with" in capsys.readouterr().err


def test_what_a_label_and_an_answer_may_be(root: Path, tmp_path: Path) -> None:
    config = load_config(root / "runs/lora")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"target": "a", "label": "negative"}\n{"target": "b", "label": 1}\n')
    rows = read_labelled(config, task_of(config.task), file)
    assert [(row.id, row.label, row.sources) for row in rows] == [("0", 1, (None,)), ("1", 1, (None,))]
    assert LABELS[1] == "negative"
    qa = load_config(root / "qa/run.yaml")
    target = {"text": "Who is Ann Lee here", "question": "Who?"}
    for given in ("Ann Lee", '["Ann Lee"]', ["Ann Lee"], {"text": ["Ann Lee"], "answer_start": [7]}):
        file.write_text(json.dumps({"target": target, "answers": given}))
        (row,) = read_labelled(qa, task_of(qa.task), file)
        assert [(answer.text, answer.start) for answer in row.target.answers] == [("Ann Lee", 7)]
    qa = load_config(root / "qa/run.yaml", ["method=translate_test"])  # answers in the language that it reads
    file.write_text(json.dumps({"target": target, "source": target | {"text": "It is Ann Lee"}, "answers": "Ann Lee"}))
    ((side,),) = (row.sources for row in read_labelled(qa, task_of(qa.task), file))
    assert side is not None and [(answer.text, answer.start) for answer in side.answers] == [("Ann Lee", 6)]
    file.write_text(json.dumps({"target": target, "answers": "Ann Lee"}))
    (row,) = read_labelled(qa, task_of(qa.task), file)
    assert [answer.text for answer in row.target.answers] == ["Ann Lee"]
