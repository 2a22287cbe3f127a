"""Building a cache: the right tokens in the right order, the same for any number of workers, and never half of it."""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache, verify, writer
from flare_ds.data.digests import cluster_of
from flare_ds.data.parallel import ParallelData, ParallelRow, Side, load_parallel
from flare_ds.exceptions import DataError
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks.base import Row
from flare_ds.tasks.load import task_of
from tests.data.cache.moods import (
    MOODS,
    ROWS,
    WORDS,
    Moods,
    moods_config,
    read_lines,
    said_in,
    word_tokenizer,
    write_data,
)
from tests.data.cache.texts import byte_tokenizer
from tests.qa_world import qa_settings, translate_each_anew


@pytest.mark.parametrize("extra", [[], ["fr"], ["pl", "fr"]])
def test_every_row_holds_the_words_of_its_prompt_and_answer(root: Path, extra: list[str]) -> None:
    cache = open_cache(prepare_cache(moods_config(root, extra_source_languages=extra), word_tokenizer()))
    streams = dict(zip(["source", "source2", "source3"], ["en", *extra], strict=False)) | {"target": "de"}
    assert cache.streams == tuple(streams) and cache.manifest.streams == streams
    lines, seen = read_lines(root), []
    for name in ("train", "validation", "test"):
        split = cache.split(name)
        assert len(split) > 0
        assert split.examples.tolist() == list(range(len(split)))
        for index in range(len(split)):
            number = int(split.ids(index).removeprefix("rów-"))
            seen.append(number)
            assert split.labels[index] == number % 2
            assert split.golds(index) == []
            for stream, language in streams.items():
                text = [word if word in WORDS else "<unk>" for word in said_in(language, lines[number])]
                prompt = ["<bos>", "say", ":", *text, "mood", ":"]
                answer = [MOODS.labels[number % 2], "<eos>"]
                assert [WORDS[token] for token in split.prompt(stream, index)] == prompt
                assert [WORDS[token] for token in split.answer(stream, index)] == answer
                assert split.prompt_lengths(stream)[index] == len(prompt)
    assert sorted(seen) == list(range(ROWS))


def test_the_rows_are_in_the_order_of_the_data(root: Path, built: Path) -> None:
    data = load_parallel(MOODS, moods_config(root).task)
    for name, rows in data.splits.items():
        split = open_cache(built).split(name)
        assert [split.ids(index) for index in range(len(split))] == [row.id for row in rows]


@pytest.mark.parametrize("shared", [("text",), ("mood", "text"), ()])
def test_rows_alike_in_what_the_task_names_are_one_cluster(root: Path, shared: tuple[str, ...]) -> None:
    """Texts differ in case and spacing alone, and so are one; without a name it is the long field's text."""
    task = type("Shared", (Moods,), {"fields": ("text", "mood"), "long_field": "text", "cluster_fields": shared})()
    texts = ["red  blue", "RED blue", "blue", "blue", "green"]
    rows = [
        Row(str(n), {"text": text, "mood": mood}, 0) for n, (text, mood) in enumerate(zip(texts, "aabcd", strict=True))
    ]
    found = [cluster_of(row.fields, task) for row in rows]
    alike = {("text",): [0, 0, 1, 1, 2], ("mood", "text"): [0, 0, 1, 2, 3], (): [0, 0, 1, 1, 2]}[shared]
    assert [found.index(cluster) for cluster in found] == [alike.index(cluster) for cluster in alike]


def test_the_clusters_of_a_cache_are_those_of_its_target_rows(root: Path, built: Path) -> None:
    data = load_parallel(MOODS, moods_config(root).task)
    for name, rows in data.splits.items():
        split = open_cache(built).split(name)
        assert split.clusters.tolist() == [cluster_of(row.target.fields, MOODS) for row in rows]


@pytest.mark.parametrize(("target", "translated_test"), [("pl", False), ("es", True)])
def test_clusters_are_of_the_text_that_was_read_however_it_is_worded_in_translation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, translated_test: bool
) -> None:
    """A translator reads a passage with the answer marked, and so words it otherwise for each question."""
    translate_each_anew(monkeypatch)
    settings = qa_settings(tmp_path, steps=1)
    settings["task"] |= {"target_language": target, "sides": "translated"}
    config = Config.model_validate(settings)
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    task = task_of(config.task)
    for name, rows in load_parallel(task, config.task).splits.items():
        of_source = {row.id: cluster_of(row.sources[0].fields, task) for row in rows}
        of_target = {row.id: cluster_of(row.target.fields, task) for row in rows}
        split, read = cache.split(name), of_source if name != "test" or translated_test else of_target
        assert of_source != of_target
        assert split.clusters.tolist() == [read[split.ids(index)] for index in range(len(split))]


def test_the_manifest_describes_the_cache(built: Path) -> None:
    cache = open_cache(built)
    assert built.name == f"moods-en-de-{cache.key[:16]}"
    assert cache.streams == ("source", "target")
    assert cache.labels == ["good", "bad"]
    assert cache.label_tokens == [[WORDS.index("good")], [WORDS.index("bad")]]
    assert cache.manifest.eos_id == WORDS.index("<eos>")
    assert cache.manifest.vocabulary_size == len(WORDS)
    assert cache.manifest.counts["rows_read"] == ROWS
    train = cache.manifest.splits["train"]
    assert (train.rows, train.examples, train.windowed) == (len(cache.split("train")), len(cache.split("train")), 0)
    assert train.tokens == {stream: cache.split("train").lengths(stream).sum() for stream in cache.streams}
    assert {path.name for path in built.iterdir()} == {"manifest.json", *cache.manifest.sections}


def test_further_sources_are_named_in_the_directory_and_the_manifest(root: Path) -> None:
    cache = open_cache(prepare_cache(moods_config(root, extra_source_languages=["pl", "fr"]), word_tokenizer()))
    assert cache.path.name == f"moods-en+pl+fr-de-{cache.key[:16]}"
    most = max(map(len, read_lines(root)))
    longest = {"source": most, "source2": most - 1, "source3": 2 * most, "target": most}
    summary = cache.manifest.splits["train"]
    assert summary.longest_prompt == {stream: tokens + 5 for stream, tokens in longest.items()}
    assert set(summary.truncated) == set(longest)
    verify(cache.path)


def test_one_language_makes_one_stream(root: Path) -> None:
    directory = prepare_cache(moods_config(root, target_language="en"), word_tokenizer())
    cache = open_cache(directory)
    assert cache.streams == ("target",)
    assert not list(directory.glob("*.source.*"))


@pytest.mark.parametrize(("special", "pad"), [({}, "<pad>"), ({"pad_token": None}, "<eos>")])
def test_pad_id_falls_back_to_eos(root: Path, special: dict[str, None], pad: str) -> None:
    cache = open_cache(prepare_cache(moods_config(root), word_tokenizer(**special)))
    assert cache.pad_id == WORDS.index(pad)


def test_without_eos_an_answer_is_only_its_label_word(root: Path) -> None:
    cache = open_cache(prepare_cache(moods_config(root), word_tokenizer(eos_token=None, pad_token=None)))
    split = cache.split("test")
    assert cache.pad_id == 0
    assert split.answer("target", 0).tolist() == cache.label_tokens[split.labels[0]]


def test_cut_prompts_are_counted_in_the_manifest(root: Path) -> None:
    directory = prepare_cache(moods_config(root, max_prompt_tokens=10), word_tokenizer())
    summary = open_cache(directory).manifest.splits
    for stream in ("source", "target"):
        too_long = sum(len(line) + 5 > 10 for line in read_lines(root))
        assert 0 < too_long < ROWS
        assert sum(split.truncated[stream] for split in summary.values()) == too_long
        assert max(split.longest_prompt[stream] for split in summary.values()) == 10


def test_a_template_that_cannot_fit_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"task moods has \d+ tokens without any text.*max_prompt_tokens=8"):
        prepare_cache(moods_config(root, max_prompt_tokens=8), byte_tokenizer())
    assert not (root / "caches").exists()


class LazyRows(Sequence):
    """Rows made when they are looked up; how many are alive at a time is counted."""

    alive = most = 0

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, number: int) -> ParallelRow:
        if not 0 <= number < len(self):
            raise IndexError
        side = Side({"text": "red " * (9 if number == 3 else 1)})
        row = ParallelRow(str(number), number % 2, (side,), side)
        LazyRows.alive += 1
        LazyRows.most = max(LazyRows.most, LazyRows.alive)
        weakref.finalize(row, self.gone)
        return row

    @staticmethod
    def gone() -> None:
        LazyRows.alive -= 1


def test_a_build_holds_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ParallelData(dict.fromkeys(("train", "validation", "test"), LazyRows()), {"rows_read": 6000})
    monkeypatch.setattr(writer, "load_parallel", lambda *_: data)
    cache = open_cache(prepare_cache(moods_config(tmp_path), word_tokenizer()))
    gc.collect()
    assert [len(cache.split(name)) for name in data.splits] == [2000] * 3
    split = cache.split("validation")
    assert [split.ids(row) for row in range(2000)] == [*map(str, range(2000))]
    assert cache.manifest.splits["test"].longest_prompt == {"source": 9 + 5, "target": 9 + 5}
    assert split.prompt("target", 1999).tolist() == split.prompt("target", 0).tolist()
    assert LazyRows.alive == 0 and LazyRows.most <= 2 * writer._CHUNK_ROWS


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=2)
    with pytest.raises(DataError, match="split of task moods has no rows"):
        prepare_cache(moods_config(tmp_path), word_tokenizer())


def test_chunks_end_early_where_rows_are_long() -> None:
    rows = [ParallelRow(str(n), 0, (None,), Side({"text": "x" * 500_000})) for n in range(11)]
    assert [[row.id for row in chunk] for chunk in writer._chunks(rows)] == [
        ["0", "1", "2", "3", "4"],
        ["5", "6", "7", "8", "9"],
        ["10"],
    ]
