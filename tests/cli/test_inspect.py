"""`flare-ds inspect`: what is shown of a row is what the cache holds, and the histograms count right."""

import io
import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flare_ds.cli import main
from flare_ds.cli.inspect import MARK, RowPrinter
from flare_ds.cli.side_by_side import SEPARATOR
from flare_ds.cli.statistics import describe_counts, draw_histogram, histogram
from flare_ds.data.cache import Cache, open_cache
from tests.toy import toy_settings, write_config, write_data, write_model

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    write_model(root / "model")
    write_data(root / "data", rows=60)
    settings = toy_settings(root)
    settings["task"] |= {"validation_rows": 9, "test_rows": 10, "max_prompt_tokens": 9}
    write_config(settings)
    assert main(["prepare", str(root / "run.yaml")]) == 0
    return root


@pytest.fixture(scope="module")
def cache(root: Path) -> Cache:
    (path,) = (root / "cache").glob("multiemo-*")
    return open_cache(path)


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(root / "model")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")


def shown(capsys: Said, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: Said, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def rows_in(output: str) -> dict[str, list[str]]:
    """What each row's columns say, its lines joined, by the row's heading."""
    rows = {}
    for block in output.split("\n\n"):
        heading, *lines = block.splitlines()
        if " row " in heading:
            columns = zip(*(line.split(SEPARATOR) for line in lines[1:] if SEPARATOR in line), strict=True)
            rows[heading] = [" ".join(" ".join(column).split()) for column in columns]
    return rows


def test_rows_are_decoded_side_by_side(
    root: Path, cache: Cache, tokenizer: PreTrainedTokenizerBase, capsys: Said
) -> None:
    rows = rows_in(shown(capsys, root / "run.yaml", "--split", "test", "--first", "2", "--rows", "3"))
    split = cache.split("test")
    assert list(rows) == [
        f"test row {row}   id {split.ids(row)}   label {cache.labels[split.labels[row]]}" for row in (2, 3, 4)
    ]
    for row, columns in zip((2, 3, 4), rows.values(), strict=True):
        for stream, said in zip(("source", "target"), columns, strict=True):
            prompt, answer = said.split(MARK)
            assert prompt == tokenizer.decode(split.prompt(stream, row)).strip()
            assert answer == tokenizer.decode(split.answer(stream, row)).strip()
            assert prompt.startswith("<bos>") and answer == f"{cache.labels[split.labels[row]]} <eos>"


def test_a_cache_without_a_tokenizer_is_shown_as_numbers(cache: Cache, capsys: Said) -> None:
    ((_, columns),) = rows_in(shown(capsys, cache.path, "--rows", "1")).items()
    split = cache.split("train")
    for stream, said in zip(("source", "target"), columns, strict=True):
        numbers = [part.split() for part in said.split(MARK)]
        assert numbers == [[*map(str, part(stream, 0))] for part in (split.prompt, split.answer)]


def test_a_cache_with_its_tokenizer_is_shown_as_the_config_is(
    root: Path, cache: Cache, tmp_path: Path, capsys: Said
) -> None:
    of_config = shown(capsys, root / "run.yaml")
    assert shown(capsys, cache.path, "--tokenizer", root / "model") == of_config
    write_model(tmp_path / "model")
    file = tmp_path / "model/tokenizer.json"
    file.write_text(file.read_text().replace("word19", "word91"))
    assert "tokenizer_sha256" in refused(capsys, cache.path, "--tokenizer", tmp_path / "model")
    assert f"--tokenizer {tmp_path}/nowhere: " in refused(capsys, cache.path, "--tokenizer", tmp_path / "nowhere")


def test_one_row_by_its_id(root: Path, cache: Cache, capsys: Said) -> None:
    wanted = cache.split("train").ids(7)
    (heading,) = rows_in(shown(capsys, cache.path, "--id", wanted))
    assert heading.startswith(f"train row 7   id {wanted}   ")
    assert "no such row" in refused(capsys, cache.path, "--id", wanted, "--split", "test")


def test_rows_past_the_end(cache: Cache, capsys: Said) -> None:
    assert "rows 0 to 9" in refused(capsys, cache.path, "--split", "test", "--first", "10")
    assert len(rows_in(shown(capsys, cache.path, "--split", "test", "--first", "9"))) == 1


def test_lengths_and_cuts_follow_the_rows(cache: Cache, capsys: Said) -> None:
    told = shown(capsys, cache.path, "--split", "validation", "--rows", "0")
    assert told.startswith(f"validation: {len(cache.split('validation'))} examples\n  labels: ") and MARK not in told
    cut = cache.manifest.splits["validation"].truncated
    assert cut["source"] and f"; {cut['source']} cut\n" in told
    assert told.endswith(f"\n{cache.manifest.counts['rows_read']} rows read, 0 dropped\n")


def test_drops_are_told_with_their_reasons() -> None:
    counts = {"rows_read": 1200, "dropped_empty_text": 0, "dropped_text_of_a_test_row": 7, "dropped_longer": 1000}
    assert describe_counts(SimpleNamespace(counts=counts | {"test_rows_without_source": 2})) == [
        "1,200 rows read, 1,007 dropped",
        "  7 dropped: text of a test row",
        "  1,000 dropped: longer",
        "  2 test rows without source",
    ]


def test_what_fits_only_a_cache_or_only_a_config(root: Path, cache: Cache, capsys: Said) -> None:
    assert "no settings to override" in refused(capsys, cache.path, "task.test_rows=3")
    assert "no settings to override" in refused(capsys, cache.path, "--task-path", "my.yaml")
    assert "with a config, whose model.base=" in refused(capsys, root / "run.yaml", "--tokenizer", root / "model")


def test_neither_a_cache_nor_a_config(tmp_path: Path, capsys: Said) -> None:
    assert "no finished cache" in refused(capsys, tmp_path)
    assert "there is no config or run directory" in refused(capsys, tmp_path / "nowhere.yaml")


def test_a_question_is_shown_window_by_window_with_its_right_answers(root: Path, tmp_path: Path, capsys: Said) -> None:
    """A task of the user's own, over files."""
    (tmp_path / "ask.yaml").write_text(yaml.safe_dump(ASK))
    words = " ".join(f"word{number}" for number in range(20))
    for language in ("en", "pl"):
        (tmp_path / language).mkdir()
        for split in ("train", "test"):
            rows = [
                {
                    "id": f"{split}{number}",
                    "question": "word3 ?",
                    "context": f"{split}{number} {words} {words}",
                    "answers": {"text": ["word3"], "answer_start": [words.index("word3") + len(f"{split}{number} ")]},
                }
                for number in range(40)
            ]
            (tmp_path / language / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["--task-path", tmp_path / "ask.yaml", "task.name=ask", f"task.data_dir={tmp_path}"]
    small = ["task.max_prompt_tokens=16", "task.test_rows=null", f"cache_dir={tmp_path}/cache"]
    told = shown(capsys, root / "run.yaml", *own, *small, "--split", "test", "--id", "test3")
    rows = rows_in(told)
    assert len(rows) > 1
    said = [" ".join(columns) for columns in rows.values()]
    for number, heading in enumerate(rows):
        assert heading.endswith(f"id test3   window {number + 1} of {len(rows)}")
    assert all(f"word{number} " in " ".join(said) for number in range(20))
    assert told.count("right answer: word3\n") == len(rows) and "label" not in told
    counts = re.search(r"test: 40 examples in (\d+) rows \((\d+) read through several windows\)\n", told)
    assert counts is not None and int(counts[1]) == 40 * len(rows) and int(counts[2]) == 40


ASK = {
    "name": "ask",
    "version": 1,
    "languages": ["en", "pl"],
    "pools": ["train", "test"],
    "fields": ["context", "question"],
    "long_field": "context",
    "id_column": "id",
    "template": "Review : {context} {question}",
    "metric": "exact_match",
}


def test_a_flipped_byte_is_no_traceback(cache: Cache, tmp_path: Path, capsys: Said) -> None:
    """Opening compares sizes only, so what is shown may be anything; but never a crash."""
    copy = Path(shutil.copytree(cache.path, tmp_path / cache.path.name))
    draw = random.Random(0)
    failed = 0
    for name in cache.manifest.sections:
        content = (cache.path / name).read_bytes()
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(flipped)
        code = main(["inspect", str(copy), "--split", name.split(".")[0], "--rows", "9"])
        assert ("fix: " in capsys.readouterr().err) == (code == 1)
        (copy / name).write_bytes(content)
        failed += code
    assert 0 < failed < len(cache.manifest.sections)


# Streams as no small cache has them: a row without a source, languages written from right to left


def printed(prompts: Mapping[str, list[list[int]]], **split: object) -> str:
    """Print all rows of a made-up split, whose tokens are the codes of characters."""
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)), all_special_tokens=["<s>"])
    streams = {stream: "he" if stream == "target" else "en" for stream in prompts}
    cache = SimpleNamespace(manifest=SimpleNamespace(streams=streams), labels=[])
    rows = len(prompts["target"])
    whole = {
        "name": "train",
        "ids": "row{}".format,
        "labels": np.full(rows, -1),
        "examples": np.arange(rows),
        "golds": lambda row: [],
        "prompt": lambda stream, row: np.array(prompts[stream][row]),
        "answer": lambda stream, row: np.array([*map(ord, "yes")]),
    } | split
    console = Console(file=io.StringIO(), width=60, highlight=False, markup=False)
    printer = RowPrinter(console, cache, SimpleNamespace(**whole), dict.fromkeys(prompts, tokenizer))
    for row in range(rows):
        printer.print(row)
    return console.file.getvalue()


def codes(*texts: str) -> list[list[int]]:
    return [[*map(ord, text)] for text in texts]


def test_a_row_without_a_source_says_so() -> None:
    out = printed({"source": codes("text", ""), "target": codes("one", "two")})
    first, second = out.strip().split("\n\n")
    assert "source (en): 4 + 3 tokens" in first and first.count(MARK) == 2
    assert "source (en): none" in second and second.count(MARK) == 1
    assert re.search(rf"\n +│ two{MARK}yes$", second)


def test_a_stream_without_answers_has_no_mark() -> None:
    """As that of an MT encoder."""
    out = printed({"target": codes("text")}, answer=lambda stream, row: np.zeros(0, int))
    assert "target (he): 4 tokens\ntext\n" in out and MARK not in out


def test_several_right_answers_are_listed_on_a_line_each() -> None:
    out = printed({"target": codes("one")}, golds=lambda row: ["1992", "in\x1b[31m 1992"])
    assert out.endswith("\nright answer: 1992\nright answer: in␛[31m 1992\n\n")


def test_right_to_left_text_keeps_to_its_column_and_escapes_do_nothing() -> None:
    out = printed({"source": codes("plain"), "target": codes("<s>שלום\x1b[2J")})
    assert f"│ \u2068<s>שלום␛[2J{MARK}yes\u2069\n" in out and "\x1b" not in out


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_histograms_count_every_length_once(lengths: list[int]) -> None:
    start, width, counts = histogram(np.array(lengths))
    assert len(counts) <= 12 and re.fullmatch("[125]0*", str(width))
    for number, count in enumerate(counts):
        assert count == sum(start + number * width <= length < start + (number + 1) * width for length in lengths)
    assert sum(counts) == len(lengths)


def test_bars_are_as_long_as_their_counts() -> None:
    lengths = [3] * 20 + [8] * 10 + [27] * 1
    assert list(draw_histogram(np.array(lengths))) == [
        " 0–4   " + "█" * 40 + " 20",
        " 5–9   " + "█" * 20 + " 10",
        "10–14  0",
        "15–19  0",
        "20–24  0",
        "25–29  ██ 1",
    ]
