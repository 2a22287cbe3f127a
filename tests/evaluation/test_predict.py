"""Predicting says what evaluation says of the same texts, whatever the method: on 1 and 2 real ranks, and in Python.

Adapters are random, and equal where their parameters are named alike: so what a method says of a row without a source
is what the method says that reads no source.
"""

import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import flare_ds
from flare_ds.adapters.files import save_adapter
from flare_ds.cli import main
from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.parallel import ParallelRow, load_parallel
from flare_ds.exceptions import ConfigError
from flare_ds.files import write_json
from flare_ds.methods import METHODS
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of
from flare_ds.training.run import begin_run
from tests.distributed import run_ranks, shared_environment, start_afresh
from tests.forms import PAPER_FORM
from tests.mt import write_mt_model
from tests.qa_world import qa_settings
from tests.toy import LABELS, toy_settings, write_config, write_data, write_model

ROWS, ALONE = 23, 6
PROBABILITIES = [f"probability_{word}" for word in LABELS]
SCORES = [f"log_probability_{word}" for word in LABELS]
PAIRS = ("translate_test", "input_fusion", "flare", "flare_mt")
UNFUSED = {
    "translate_test": "zero_shot",
    "zero_shot_both": "zero_shot",
    "source_lora": "lora",
    "input_fusion": "lora",
    "x_mixup": "lora",
    "flare": "lora",
    "source_prefix": "lora",
    "late": "lora",
}
"""Methods that read a source, and which one says the same of a row that has none."""


def write_adapter(config: Config) -> None:
    """An adapter whose values follow from the names of its parameters."""
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    begin_run(config, cache)
    model = build_model(config, label_tokens=cache.label_tokens)
    tensors = {
        name: 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        for name, parameter in trainable_parameters(model).items()
    }
    directory = Path(config.run_dir) / "adapter"
    save_adapter(directory, tensors, model.peft_model, config, label_tokens={}, validation={"step": 0})
    write_json(directory.parent / "training.json", {"steps": 0})  # there is no training left to do


def held_out(config: Config) -> list[ParallelRow]:
    return list(load_parallel(task_of(config.task), config.task).splits["test"])


def write_rows(path: Path, config: Config) -> None:
    """The test rows in another order, and some of them once more without their source."""
    rows = held_out(config)
    lines: list[dict] = [
        {"id": row.id, "target": row.target.fields["text"], "source": row.sources[0].fields["text"]} for row in rows
    ]
    random.Random(0).shuffle(lines)
    if config.method == "translate_test":
        for line in lines[::2]:
            del line["target"]
    lines += [{"id": f"alone-{row.id}", "target": row.target.fields["text"]} for row in rows[:ALONE]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def settings(root: Path, method: str) -> dict:
    found = toy_settings(root, method=method, name=method)
    found["task"] |= {"train_rows": 40, "validation_rows": 8, "test_rows": ROWS}
    if METHODS.get(method).fuses == "bottleneck":  # so that its states can be stored
        found["adapter"] = PAPER_FORM
    # Five batches: the second rank is left without one for the last.
    return found | {"source": {"mt_encoder": str(root / "nllb")}, "evaluate": {"batch_size": 6}}


def questions(root: Path) -> dict:
    found = qa_settings(root / "qa", name="flare", steps=1)
    found["task"] |= {"train_rows": 40, "validation_rows": 8, "test_rows": 24}
    return found | {"evaluate": {"batch_size": 10}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method's run asked about its test rows on two sharded ranks; on one it is evaluated, and asked in part."""
    root = tmp_path_factory.mktemp("predict")
    write_model(root / "model")
    write_data(root / "data", rows=200)
    write_mt_model(root / "nllb")
    (root / "qa").mkdir()
    one, two = [], []
    for method in METHODS:
        config = prepared(settings(root, method))
        write_rows(root / f"{method}.jsonl", config)
        one.append(["evaluate", config_file(config)])
        two.append(asked(config, root / f"{method}.jsonl", "--output", root / f"{method}-2.jsonl"))
        if method in PAIRS:
            one.append(pair(config, root / f"{method}-pair.jsonl"))
    flare, flare_mt = (load_config(root / f"{method}.yaml") for method in ("flare", "flare_mt"))
    pd.read_json(root / "flare.jsonl", lines=True, dtype=False).to_csv(root / "flare.csv", index=False)
    cached = "source.provider=cached"  # its states are in no store, so the source runs beside the target
    one.append([*asked(flare, root / "flare.csv", "--output", root / "flare-1.parquet"), cached])
    one.append(asked(flare_mt, root / "flare_mt.jsonl", ">", root / "flare_mt-1.jsonl"))
    config = prepared(questions(root))
    write_questions(root / "qa/rows.json", config)
    one.append(["evaluate", config_file(config)])
    two.append(asked(config, root / "qa/rows.json", "--output", root / "qa/said.parquet"))
    for method in ("flare", "x_mixup"):
        lines = (root / f"{method}.jsonl").read_text().splitlines(keepends=True)
        (root / "alone.jsonl").write_text("".join(lines[-ALONE:]))
        one.append(
            asked(load_config(root / f"{method}.yaml"), root / "alone.jsonl", ">", root / f"{method}-alone.jsonl")
        )
    one += [conversation(root, load_config(root / f"{method}.yaml")) for method in ("flare", "translate_test")]
    launch(root, 1, one)  # whole, by default
    launch(root, 2, two)
    return root


def prepared(found: dict) -> Config:
    config = load_config(write_config(found))
    if config.recipe.trains:
        write_adapter(config)
    return config


def config_file(config: Config) -> str:
    return str(Path(config.run_dir).with_suffix(".yaml"))


def asked(config: Config, rows: Path, how: str, out: Path) -> list[str]:
    return ["predict", config_file(config), "--file", str(rows), how, str(out)]


def pair(config: Config, out: Path) -> list[str]:
    """The first test row on the command line."""
    first = held_out(config)[0]
    texts = ["--source", first.sources[0].fields["text"]]
    if config.method != "translate_test":
        texts += ["--target", first.target.fields["text"]]
    return ["predict", config_file(config), *texts, "--output", str(out)]


def conversation(root: Path, config: Config) -> list[str]:
    """The first rows asked one after another through a pipe, a bad one among them, and the last cut short."""
    rows = held_out(config)[:2]
    lines = []
    for row in rows:
        if config.method == "flare":
            lines += [row.target.fields["text"], row.sources[0].fields["text"], "", "a source, but no target"]
        else:
            lines += [row.sources[0].fields["text"], ""]
    if config.method == "flare":
        lines += [rows[0].target.fields["text"], "", "cut short"]
    (root / f"{config.method}-lines").write_text("\n".join(lines) + "\n")
    out = root / f"{config.method}-talk"
    return ["predict", config_file(config), "--interactive", "<", str(root / f"{config.method}-lines"), ">", str(out)]


def write_questions(path: Path, config: Config) -> None:
    """Rows of two fields, whose texts are read through windows."""
    sides = [(row.id, row.target.fields, row.sources[0].fields) for row in held_out(config)]
    lines = [{"id": row_id, "target": target, "source": source} for row_id, target, source in reversed(sides)]
    path.write_text(json.dumps(lines))


def launch(root: Path, ranks: int, commands: list[list[str]]) -> None:
    path = root / f"commands-{ranks}.json"
    path.write_text(json.dumps(commands))
    (root / f"told-{ranks}").write_text(run_ranks(["tests.evaluation.predict_worker", str(path)], ranks)[0])


def said(root: Path, name: str) -> pd.DataFrame:
    return pd.read_json(root / name, lines=True, dtype={"id": str}).set_index("id")


@pytest.mark.parametrize("method", list(METHODS))
def test_a_file_gets_what_evaluation_says(root: Path, method: str) -> None:
    evaluated = pd.read_parquet(root / method / "predictions.parquet").set_index("id")
    found = said(root, f"{method}-2.jsonl")
    given = [json.loads(line)["id"] for line in (root / f"{method}.jsonl").read_text().splitlines()]
    assert found.index.tolist() == given, "every row once, in the order of the file"
    assert len(found) == ROWS + ALONE
    both = found.loc[evaluated.index]
    np.testing.assert_allclose(both[PROBABILITIES], np.exp(evaluated[SCORES]), atol=1e-5)
    assert (both["prediction"] == evaluated["prediction"]).all()


@pytest.mark.parametrize("method", PAIRS)
def test_a_pair_gets_what_the_file_says(root: Path, method: str) -> None:
    first = pd.read_parquet(root / method / "predictions.parquet")["id"][0]
    pair = said(root, f"{method}-pair.jsonl")
    assert pair.index.tolist() == ["given"]
    expected = said(root, f"{method}-2.jsonl").loc[first]
    np.testing.assert_allclose(
        pair[PROBABILITIES].iloc[0].astype(float), expected[PROBABILITIES].astype(float), atol=1e-5
    )


def test_the_number_of_ranks_and_the_form_of_the_file_do_not_matter(root: Path) -> None:
    for name, on_one in (
        ("flare", pd.read_parquet(root / "flare-1.parquet").set_index("id")),
        ("flare_mt", said(root, "flare_mt-1.jsonl")),
    ):
        on_two = said(root, f"{name}-2.jsonl")
        assert on_one.columns.tolist() == on_two.columns.tolist() == ["prediction", *PROBABILITIES]
        assert on_one.index.tolist() == on_two.index.tolist()
        np.testing.assert_allclose(on_one[PROBABILITIES], on_two[PROBABILITIES], atol=1e-5)


@pytest.mark.parametrize(("method", "alone"), UNFUSED.items())
def test_a_row_without_a_source_is_read_alone(root: Path, method: str, alone: str) -> None:
    found, expected = said(root, f"{method}-2.jsonl"), said(root, f"{alone}-2.jsonl")
    ids = [row_id for row_id in found.index if row_id.startswith("alone-")]
    assert len(ids) == ALONE
    np.testing.assert_allclose(found.loc[ids, PROBABILITIES], expected.loc[ids, PROBABILITIES], atol=1e-5)
    with_source = found.loc[[row_id.removeprefix("alone-") for row_id in ids], PROBABILITIES].to_numpy()
    assert np.abs(with_source - found.loc[ids, PROBABILITIES].to_numpy()).max(1).min() > 1e-4, "the source matters"
    told = f"flare-ds: {ALONE} of {ROWS + ALONE} rows have no source text: method={method} "
    assert (root / "told-2").read_text().count(told) == 1


@pytest.mark.parametrize("method", ["flare", "x_mixup"])
def test_a_file_without_any_source_is_read_alone(root: Path, method: str) -> None:
    found = said(root, f"{method}-alone.jsonl")
    assert len(found) == ALONE
    expected = said(root, "lora-2.jsonl").loc[found.index]
    np.testing.assert_allclose(found[PROBABILITIES], expected[PROBABILITIES], atol=1e-5)
    assert f"{ALONE} of {ALONE} rows have no source text: method={method} " in (root / "told-1").read_text()


def test_methods_that_read_no_source_miss_none(root: Path) -> None:
    told = (root / "told-2").read_text()
    assert told.count("rows have no source text") == len(UNFUSED)


@pytest.mark.parametrize(("method", "bad"), [("flare", 2), ("translate_test", 2)])
def test_a_conversation_goes_on_after_a_bad_line(root: Path, method: str, bad: int) -> None:
    """What is said of the first rows, one block each; of a target alone, what is said of it in a file."""
    blocks = (root / f"{method}-talk").read_text().removesuffix("\n\n").split("\n\n")
    ids = pd.read_parquet(root / method / "predictions.parquet")["id"][:2].tolist()
    ids += [f"alone-{ids[0]}"] * (method == "flare")
    expected = said(root, f"{method}-2.jsonl").loc[ids, PROBABILITIES]
    found = [dict(line.split("  ")[::-1] for line in block.splitlines()) for block in blocks]
    assert len(found) == len(ids)
    for shares, (_, row) in zip(found, expected.iterrows(), strict=True):
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        np.testing.assert_allclose([float(shares[word]) for word in LABELS], row.astype(float), atol=1e-4)
    assert (root / "told-1").read_text().count(f"method={method} was given no text to read") == bad


@pytest.fixture(scope="module")
def loaded(root: Path) -> dict:
    """What every method's run says in a process without DeepSpeed or a process group."""
    out = root / "elsewhere" / "said.json"
    out.parent.mkdir()
    process = start_afresh(["tests.evaluation.load_worker", str(root), str(out)], shared_environment())
    told, _ = process.communicate(timeout=560)
    assert process.returncode == 0, told
    return json.loads(out.read_text())


@pytest.mark.parametrize("method", list(METHODS))
def test_a_loaded_run_says_what_evaluation_says(root: Path, loaded: dict, method: str) -> None:
    evaluated = pd.read_parquet(root / method / "predictions.parquet").set_index("id")
    found, columns = loaded[method], ["label", "probabilities", "scores"]
    both = pd.DataFrame({name: found[name] for name in columns}, index=found["id"]).loc[evaluated.index]
    assert both["label"].tolist() == evaluated["prediction"].tolist()
    np.testing.assert_allclose(both["scores"].tolist(), evaluated[SCORES], atol=1e-5)
    np.testing.assert_allclose(both["probabilities"].tolist(), np.exp(evaluated[SCORES]), atol=1e-5)
    np.testing.assert_allclose(found["first"], found["probabilities"][0], atol=1e-5)
    if method == "late":
        assert "ranks label words, but answers are to be written" in found["written"]
    else:
        assert len(found["written"]) == 3


@pytest.mark.parametrize("method", list(METHODS))
def test_a_loaded_run_says_what_the_command_line_says_of_rows_without_a_source(
    root: Path, loaded: dict, method: str
) -> None:
    expected = said(root, f"{method}-2.jsonl")
    assert loaded[method]["id"] == expected.index.tolist(), "in the order in which they were asked"
    np.testing.assert_allclose(loaded[method]["probabilities"], expected[PROBABILITIES], atol=1e-5)


def test_a_loaded_run_answers_questions_as_evaluation_does(root: Path, loaded: dict) -> None:
    evaluated = pd.read_parquet(root / "qa/flare/predictions.parquet").set_index("id")
    found = pd.DataFrame(loaded["qa"]).set_index("id").loc[evaluated.index]
    assert found["text"].tolist() == evaluated["prediction"].tolist()
    np.testing.assert_allclose(found["log_probability"], evaluated["log_probability"], atol=1e-5)


def test_of_a_long_text_the_likeliest_window_answers(root: Path) -> None:
    evaluated = pd.read_parquet(root / "qa/flare/predictions.parquet").set_index("id")
    found = pd.read_parquet(root / "qa/said.parquet").set_index("id")
    assert found.columns.tolist() == ["prediction", "log_probability"]
    assert found.index.tolist() == [row["id"] for row in json.loads((root / "qa/rows.json").read_text())]
    found = found.loc[evaluated.index]
    assert found["prediction"].tolist() == evaluated["prediction"].tolist()
    np.testing.assert_allclose(found["log_probability"], evaluated["log_probability"], atol=1e-5)


def test_that_a_run_is_not_trained_to_its_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which also says that a pushed folder, with no state of its training, is no such run."""
    config = prepared(toy_settings(tmp_path, method="lora", steps=4, whole_model="auto"))
    ask = ["predict", config_file(config), "--target", "word1"]
    assert main(ask) == 0 and flare_ds.load(config.run_dir, "cpu").label("word1")
    assert "has not ended" not in capsys.readouterr().err
    (Path(config.run_dir) / "training.json").unlink()
    (Path(config.run_dir) / "train_log.jsonl").write_text('{"step": 3}\n')
    told = f"warning: the training of {config.run_dir} has not ended (trained 3 of 4 steps): its best adapter so far"
    for again in (lambda: main(ask), lambda: flare_ds.load(config.run_dir, "cpu")):
        again()
        assert capsys.readouterr().err.count(told) == 1


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99"])
def test_a_device_that_nothing_runs_on_is_refused(tmp_path: Path, device: str) -> None:
    settings = toy_settings(tmp_path, method="zero_shot")
    with pytest.raises(ConfigError, match=f"(?s)device='{device}' cannot be used: .*fix: give cpu, cuda"):
        flare_ds.load(write_config(settings), device)


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_the_file_that_is_read_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str | None
) -> None:
    """Said before anything is loaded: there is no base."""
    config = write_config(toy_settings(tmp_path, method="zero_shot"))
    shutil.rmtree(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"target": "word1"}\n')
    output = tmp_path / "said.jsonl" if link else rows
    if link:
        getattr(output, link)(rows)
    assert main(["predict", str(config), "--file", str(rows), "--output", str(output)]) == 1
    assert f"--output={str(output)!r} is the file that --file={str(rows)!r} reads" in capsys.readouterr().err
    assert rows.read_text() == '{"target": "word1"}\n'
