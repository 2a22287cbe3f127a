"""The token cache: right tokens, one directory per content, nothing half-written opens, damage is found."""

import itertools
import json
import os
import pickle
import re
import signal
import string
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flare_ds.config import Config
from flare_ds.data.cache import PromptEncoder, differences, open_cache, prepare_cache, verify
from flare_ds.data.cache.encode import label_tokens
from flare_ds.data.cache.format import token_dtype, write_section
from flare_ds.data.cache.key import content_key
from flare_ds.data.parallel import load_parallel
from flare_ds.exceptions import CacheError, DataError, HostError
from flare_ds.settings import parse_config
from flare_ds.tasks.base import TASKS, Row, Task

COLOURS = ("red", "blue", "green", "grey")
WORDS = [*COLOURS, "say", ":", "mood", "good", "bad", "<unk>", "<bos>", "<eos>", "<pad>"]
ROWS = 240


class Moods(Task):
    """Every row is a different sequence of colour words; the other languages say them as `said_in` has it."""

    name = "moods"
    version = 1
    languages = ("en", "de", "fr", "pl")
    original_language = "en"
    labels = ("good", "bad")
    long_field = "text"

    def read(self, directory: Path, language: str) -> list[Row]:
        rows = []
        for index, line in enumerate((directory / "en.txt").read_text(encoding="utf-8").splitlines()):
            words = said_in(language, line.split())
            rows.append(Row(f"rów-{index}", {"text": " ".join(words)}, index % 2))
        return rows

    def prompt(self, fields: Mapping[str, str]) -> str:
        return f"say : {fields['text']} mood :"


def said_in(language: str, words: list[str]) -> list[str]:
    """`de` is English backwards, `fr` says everything twice, `pl` leaves the first word out."""
    return {"en": words, "de": words[::-1], "fr": words * 2, "pl": words[1:]}[language]


class DeadlyMoods(Moods):
    """Kills its own process, as an out-of-memory killer would, at the n-th prompt."""

    name = "deadly_moods"
    prompts_left: int = 0

    def prompt(self, fields: Mapping[str, str]) -> str:
        self.prompts_left -= 1
        if self.prompts_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prompt(fields)


class NestedMoods(Moods):
    """Runs something else in the middle of a build, once."""

    name = "nested_moods"
    meanwhile: Callable[[], object] | None = None

    def prompt(self, fields: Mapping[str, str]) -> str:
        if self.meanwhile is not None and "{" not in fields["text"]:  # not while the template is rendered for the key
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().prompt(fields)


MOODS, DEADLY, NESTED = Moods(), DeadlyMoods(), NestedMoods()
for task in (MOODS, DEADLY, NESTED):
    TASKS.add(task.name, task)


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a word; puts <bos> in front and <eos> behind, as some tokenizers do."""
    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(word, ids[word]) for word in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    chosen = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **chosen)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    ids = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def write_data(directory: Path, rows: int = ROWS) -> None:
    directory.mkdir()
    sentences = itertools.islice(itertools.product(COLOURS, repeat=6), rows)
    lines = [" ".join(words[: 3 + index % 4]) + f" unseen{index}" for index, words in enumerate(sentences)]
    (directory / "en.txt").write_text("\n".join(lines), encoding="utf-8")


def make_config(root: Path, name: str = "moods", **task_settings: object) -> Config:
    settings = {"name": name, "data_dir": str(root / "data"), "target_language": "de"} | task_settings
    return parse_config(
        {
            "method": "lora",
            "run_dir": "unused",
            "cache_dir": str(root / "caches"),
            "deepspeed": "unused",
            "model": {"base": "unused"},
            "task": settings,
            "train": {"steps": 1},
        },
        origin="test",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def built(root: Path) -> Path:
    return prepare_cache(make_config(root), word_tokenizer())


def directory_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def caches_that_open(directory: Path) -> list[Path]:
    """Every directory, hidden ones included, that opens as a cache."""
    found = []
    for path in directory.iterdir():
        try:
            open_cache(path)
        except CacheError:
            continue
        found.append(path)
    return found


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# What is stored


@pytest.mark.parametrize("extra", [[], ["fr"], ["pl", "fr"]])
def test_every_row_holds_the_words_of_its_prompt_and_answer(root: Path, extra: list[str]) -> None:
    cache = open_cache(prepare_cache(make_config(root, extra_source_languages=extra), word_tokenizer()))
    streams = dict(zip(["source", "source2", "source3"], ["en", *extra], strict=False)) | {"target": "de"}
    assert cache.streams == tuple(streams)
    lines = (root / "data/en.txt").read_text(encoding="utf-8").splitlines()
    seen = []
    for name in ("train", "validation", "test"):
        split = cache.split(name)
        assert len(split) > 0
        for index in range(len(split)):
            number = int(split.ids(index).removeprefix("rów-"))
            seen.append(number)
            assert split.labels[index] == number % 2
            for stream, language in streams.items():
                text = [word if word in WORDS else "<unk>" for word in said_in(language, lines[number].split())]
                prompt = ["<bos>", "say", ":", *text, "mood", ":"]
                answer = [MOODS.labels[number % 2], "<eos>"]
                assert [WORDS[token] for token in split.prompt(stream, index)] == prompt
                assert [WORDS[token] for token in split.answer(stream, index)] == answer
                assert split.prompt_lengths(stream)[index] == len(prompt)
    assert sorted(seen) == list(range(ROWS))


def test_the_rows_are_in_the_order_of_the_data(root: Path, built: Path) -> None:
    data = load_parallel(MOODS, make_config(root).task)
    for name, rows in data.splits.items():
        split = open_cache(built).split(name)
        assert [split.ids(index) for index in range(len(split))] == [row.id for row in rows]


def test_the_manifest_describes_the_cache(built: Path) -> None:
    cache = open_cache(built)
    assert built.name == f"moods-en-de-{cache.key[:16]}"
    assert cache.streams == ("source", "target")
    assert cache.labels == ["good", "bad"]
    assert cache.label_tokens == [[WORDS.index("good")], [WORDS.index("bad")]]
    assert cache.manifest.eos_id == WORDS.index("<eos>")
    assert cache.manifest.vocabulary_size == len(WORDS)
    assert cache.manifest.counts["rows_read"] == ROWS
    assert cache.manifest.splits["train"].rows == len(cache.split("train"))
    assert {path.name for path in built.iterdir()} == {"manifest.json", *cache.manifest.sections}


def test_arrays_are_read_only_aligned_and_of_the_documented_types(built: Path) -> None:
    split = open_cache(built).split("train")
    arrays = {np.int32: [split.labels, split.prompt_lengths("target")], np.uint16: [split.prompt("target", 0)]}
    for dtype, found in arrays.items():
        for array in found:
            assert array.dtype == dtype
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    for path in built.glob("*.npy"):
        assert np.load(path, mmap_mode="r").offset % 64 == 0


def test_further_sources_are_named_in_the_directory_and_the_manifest(root: Path) -> None:
    cache = open_cache(prepare_cache(make_config(root, extra_source_languages=["pl", "fr"]), word_tokenizer()))
    assert cache.path.name == f"moods-en+pl+fr-de-{cache.key[:16]}"
    words = [len(line.split()) for line in (root / "data/en.txt").read_text(encoding="utf-8").splitlines()]
    longest = {"source": max(words), "source2": max(words) - 1, "source3": 2 * max(words), "target": max(words)}
    summary = cache.manifest.splits["train"]
    assert summary.longest_prompt == {stream: tokens + 5 for stream, tokens in longest.items()}
    assert set(summary.truncated) == set(longest)
    verify(cache.path)


def test_one_language_makes_one_stream(root: Path) -> None:
    directory = prepare_cache(make_config(root, target_language="en"), word_tokenizer())
    cache = open_cache(directory)
    assert cache.streams == ("target",)
    assert not list(directory.glob("*.source.*"))


@pytest.mark.parametrize(("special", "pad"), [({}, "<pad>"), ({"pad_token": None}, "<eos>")])
def test_pad_id_falls_back_to_eos(root: Path, special: dict[str, str], pad: str) -> None:
    cache = open_cache(prepare_cache(make_config(root), word_tokenizer(**special)))
    assert cache.pad_id == WORDS.index(pad)


def test_without_eos_an_answer_is_only_its_label_word(root: Path) -> None:
    tokenizer = word_tokenizer(eos_token=None, pad_token=None)
    cache = open_cache(prepare_cache(make_config(root), tokenizer))
    split = cache.split("test")
    assert cache.pad_id == 0
    assert split.answer("target", 0).tolist() == cache.label_tokens[split.labels[0]]


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(size: int, dtype: str) -> None:
    assert token_dtype(size) == np.dtype(dtype)
    assert np.array([size - 1]).astype(token_dtype(size))[0] == size - 1


def test_pickling_sends_no_tokens_but_reopens(built: Path) -> None:
    cache = open_cache(built)
    split = cache.split("train")
    pickled = pickle.dumps(split)
    assert split.prompt("source", 3).tobytes() not in pickled
    assert np.array_equal(pickle.loads(pickled).prompt("source", 3), split.prompt("source", 3))
    assert pickle.loads(pickle.dumps(cache)) == cache


def test_the_readme_is_true(built: Path) -> None:
    """Its code runs on this cache and finds what the reader finds; its tables name every file and manifest entry."""
    readme = (Path(__file__).parents[2] / "tokenized_cache/README.md").read_text(encoding="utf-8")
    cache = open_cache(built)
    with_numpy, with_package = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    variables: dict[str, np.ndarray] = {}
    exec(re.sub(r"tokenized_cache/[\w-]+", str(built), with_numpy), variables)
    train = cache.split("train")
    expected = [*train.prompt("target", 0), *train.answer("target", 0)]
    assert variables["first_row"].tolist() == expected
    exec(re.sub(r"tokenized_cache/[\w-]+", str(built), with_package), {})
    content = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    table = readme.partition("| entry | meaning |")[2].partition("**What")[0]
    first_cells = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(content)
    for name, dtype, shape in re.findall(r"(train\.[\w.]+npy) +(\w+)[^[\n]*(\[n(?: \+ 1)?\])?", readme):
        section = cache.manifest.sections[name]
        assert np.dtype(section.dtype) == dtype
        if shape:
            assert section.shape == [len(train) + ("+ 1" in shape)]


# Prompts that are too long


@pytest.mark.parametrize("limit", [24, 25, 40])
def test_a_long_prompt_is_cut_as_little_as_possible(limit: int) -> None:
    encoder = PromptEncoder(MOODS, byte_tokenizer(), limit)
    texts = [string.ascii_lowercase * 2, "", "short", "żółć" * 9, "x" * 9, "x" * 10, "x" * 11]
    prompts, cut = encoder.encode([{"text": text} for text in texts])
    expected = []
    for text in texts:
        prefixes = [MOODS.prompt({"text": text[:end]}).encode() for end in range(len(text) + 1)]
        expected.append(max((prefix for prefix in prefixes if len(prefix) <= limit), key=len))
    assert [encoder.tokenizer.decode(prompt).encode() for prompt in prompts] == expected
    assert cut == sum(len(MOODS.prompt({"text": text}).encode()) > limit for text in texts)


def test_cut_prompts_are_counted_in_the_manifest(root: Path) -> None:
    directory = prepare_cache(make_config(root, max_prompt_tokens=10), word_tokenizer())
    lines = (root / "data/en.txt").read_text(encoding="utf-8").splitlines()
    summary = open_cache(directory).manifest.splits
    for stream in ("source", "target"):
        too_long = sum(len(line.split()) + 5 > 10 for line in lines)
        assert 0 < too_long < ROWS
        assert sum(split.truncated[stream] for split in summary.values()) == too_long
        assert max(split.longest_prompt[stream] for split in summary.values()) == 10


def test_a_template_that_cannot_fit_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"row rów-\d+ of task moods.*13 tokens.*max_prompt_tokens=8"):
        prepare_cache(make_config(root, max_prompt_tokens=8), byte_tokenizer())
    assert caches_that_open(root / "caches") == []


# Label words


def test_label_words_with_equal_tokens_are_refused() -> None:
    with pytest.raises(DataError, match=r"'up'.*equal.*'down'"):
        label_tokens(["good", "up", "down"], word_tokenizer())  # both are unknown to the tokenizer


@pytest.mark.parametrize("labels", [("good", "goodness"), ("goodness", "good")])
def test_a_label_word_that_begins_another_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"'good'.*begin those of 'goodness'"):
        label_tokens(labels, byte_tokenizer())


# The content key


def test_a_second_call_finds_the_first_cache(root: Path, built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    assert prepare_cache(make_config(root), word_tokenizer()) == built
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_the_key_does_not_depend_on_places_or_on_how_the_tokenizer_was_used(root: Path, built: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer(["say", "say mood"], padding=True, truncation=True, max_length=5)
    tokenizer.save_pretrained(root / "tokenizer")
    reloaded = AutoTokenizer.from_pretrained(root / "tokenizer")
    (root / "data").rename(root / "moved")
    again = prepare_cache(make_config(root, data_dir=str(root / "moved")), reloaded)
    assert again == built


@pytest.mark.parametrize(
    ("target", "key", "content"),
    [
        ("de", "bc89decd95abea17", "05d6018fb7b2fbaf"),
        ("en", "42d7d0a0d286109b", "582b714ea184c6b2"),
    ],
)
def test_a_cache_of_one_source_keeps_its_key_and_its_bytes(root: Path, target: str, key: str, content: str) -> None:
    """As format version 1 was first written, when there was only one source: such caches stay valid."""
    manifest = open_cache(prepare_cache(make_config(root, target_language=target), word_tokenizer())).manifest
    assert "extra_source_languages" not in manifest.fields
    fields = manifest.fields | {"tokenizer_sha256": ""}  # depends on the version of the tokenizers library
    assert content_key(fields)[:16] == key
    assert content_key({name: section.sha256 for name, section in manifest.sections.items()})[:16] == content


@pytest.mark.parametrize(
    "change",
    [
        {"max_prompt_tokens": 64},
        {"train_rows": 9},
        {"test_rows": 9},
        {"target_language": "en"},
        {"extra_source_languages": ["fr"]},
    ],
)
def test_every_setting_of_the_data_changes_the_key(root: Path, built: Path, change: dict[str, object]) -> None:
    other = prepare_cache(make_config(root, **change), word_tokenizer())
    assert open_cache(other).key != open_cache(built).key
    found = differences(open_cache(built).manifest.fields, open_cache(other).manifest.fields)
    assert any(line.startswith(next(iter(change))) for line in found)


def test_the_order_of_the_sources_changes_the_key_and_the_method_does_not(root: Path) -> None:
    def directory(method: str, extra: list[str]) -> Path:
        config = make_config(root, extra_source_languages=extra)
        return prepare_cache(config.model_copy(update={"method": method}), word_tokenizer())

    assert directory("lora", ["fr", "pl"]) == directory("flare", ["fr", "pl"])
    one, other = (open_cache(directory("flare", extra)).key for extra in (["fr", "pl"], ["pl", "fr"]))
    assert one != other


def test_one_changed_letter_of_the_data_changes_the_key(root: Path, built: Path) -> None:
    path = root / "data/en.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("unseen7\n", "unseen8x\n"), encoding="utf-8")
    assert prepare_cache(make_config(root), word_tokenizer()) != built


def test_another_tokenizer_changes_the_key(root: Path, built: Path) -> None:
    assert prepare_cache(make_config(root), byte_tokenizer()) != built
    assert prepare_cache(make_config(root), word_tokenizer(eos_token="<pad>")) != built


def test_differences_name_each_field() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 3, not 2", "c: 4, not None"]


# Building


def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=1300)
    config = make_config(tmp_path, max_prompt_tokens=10)
    one = directory_bytes(prepare_cache(config, word_tokenizer()))
    elsewhere = config.model_copy(update={"cache_dir": str(tmp_path / "other")})
    assert directory_bytes(prepare_cache(elsewhere, word_tokenizer(), workers=2)) == one


def build_and_die(root: Path, prompts: int) -> None:
    DEADLY.prompts_left = prompts
    prepare_cache(make_config(root, DEADLY.name), word_tokenizer())


@pytest.mark.parametrize("prompts", [5, 2 * ROWS])  # the last one dies when most sections are written
def test_a_killed_build_leaves_nothing_that_opens_and_the_next_one_succeeds(root: Path, prompts: int) -> None:
    process = get_context("spawn").Process(target=build_and_die, args=(root, prompts))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((root / "caches").iterdir())) == 1  # it had begun
    assert caches_that_open(root / "caches") == []
    directory = prepare_cache(make_config(root, DEADLY.name), word_tokenizer())
    verify(directory)


def test_of_two_builders_the_first_wins_and_both_end_with_its_cache(root: Path) -> None:
    config = make_config(root, NESTED.name)
    winners: list[tuple[Path, int]] = []

    def build_first() -> None:
        directory = prepare_cache(config, word_tokenizer())
        winners.append((directory, directory.stat().st_ino))

    NESTED.meanwhile = build_first
    directory = prepare_cache(config, word_tokenizer())
    assert winners == [(directory, directory.stat().st_ino)]
    assert list((root / "caches").iterdir()) == [directory]
    verify(directory)


def test_a_failing_build_removes_what_it_wrote(root: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    NESTED.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        prepare_cache(make_config(root, NESTED.name), word_tokenizer())
    assert list((root / "caches").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("size", [1, 10**6])
def test_a_full_disk_is_explained(size: int) -> None:
    with pytest.raises(HostError, match=r"cannot write /dev/full: No space.*\n  fix: free some .*, or set cache_dir"):
        write_section(Path("/dev/full"), np.zeros(size))


def test_a_cache_dir_that_cannot_be_written_is_explained(root: Path) -> None:
    (root / "caches").write_text("a file where the directory should be")
    with pytest.raises(HostError, match=r"cannot write .*caches.*\n  fix: set cache_dir"):
        prepare_cache(make_config(root), word_tokenizer())


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=2)
    with pytest.raises(DataError, match="split of task moods has no rows"):
        prepare_cache(make_config(tmp_path), word_tokenizer())


# Opening what is damaged


@pytest.mark.parametrize("change", ["no directory", "no manifest", "not JSON", "old", "unknown", "edited"])
def test_a_bad_manifest_is_refused_with_the_command_that_rebuilds(built: Path, change: str) -> None:
    path = built / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edits = {
        "old": (content | {"format_version": 0}, "format version 0"),
        "unknown": ({"something": "else"}, "does not describe"),
        "edited": (content | {"labels": ["bad", "good"]}, "was changed"),
    }
    message = {"no directory": "no finished cache", "no manifest": "no finished cache", "not JSON": "damaged"}
    if change in edits:
        path.write_text(json.dumps(edits[change][0]), encoding="utf-8")
    elif change == "not JSON":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    directory = built / "nowhere" if change == "no directory" else built
    with pytest.raises(CacheError, match=message.get(change) or edits[change][1]) as caught:
        open_cache(directory)
    assert "flare-ds prepare CONFIG" in caught.value.fix


def section_files() -> list[str]:
    streams = [
        f"{stream}.{part}" for stream in ("source", "target") for part in ("tokens", "offsets", "prompt_lengths")
    ]
    parts = [*streams, "labels", "ids", "ids.offsets"]
    return [f"{split}.{part}.npy" for split in ("train", "validation", "test") for part in parts]


def test_every_missing_or_truncated_section_is_found_at_once(built: Path) -> None:
    for name in section_files():
        content = (built / name).read_bytes()
        (built / name).write_bytes(content[:-1])
        with pytest.raises(CacheError, match=rf"{name}.*has {len(content) - 1} bytes.*says {len(content)}"):
            open_cache(built)
        (built / name).unlink()
        with pytest.raises(CacheError, match=f"{name} .* is missing"):
            open_cache(built)
        (built / name).write_bytes(content)
    verify(built)


def test_every_flipped_byte_is_found_by_verify(built: Path) -> None:
    for name in section_files():
        size = (built / name).stat().st_size
        for position in (0, 40, size // 2, size - 1):
            flip_byte(built / name, position)
            with pytest.raises(CacheError, match=f"damaged: the content of {name} was changed") as caught:
                verify(built)
            assert "flare-ds prepare CONFIG" in caught.value.fix
            flip_byte(built / name, position)
    verify(built)


def test_a_damaged_header_is_refused_when_the_split_opens(built: Path) -> None:
    path = built / "train.labels.npy"
    original = path.read_bytes()
    for damaged in (b"?" + original[1:], original.replace(b"<i4", b"<f4"), original.replace(b"{", b"(", 1)):
        assert len(damaged) == len(original) and damaged != original
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"section train\.labels\.npy .* is damaged"):
            open_cache(built).split("train")


def test_prepare_replaces_a_cache_that_does_not_open(root: Path, built: Path, capsys: pytest.CaptureFixture) -> None:
    good = directory_bytes(built)
    (built / "test.labels.npy").unlink()
    assert prepare_cache(make_config(root), word_tokenizer()) == built
    assert directory_bytes(built) == good
    assert "building it again: section test.labels.npy" in capsys.readouterr().err
    assert list((root / "caches").iterdir()) == [built]


def test_prepare_refuses_another_cache_in_its_place_and_names_the_difference(root: Path, built: Path) -> None:
    other = prepare_cache(make_config(root, max_prompt_tokens=64), word_tokenizer())
    built.rename(root / "caches/away")
    other.rename(built)
    with pytest.raises(CacheError, match="holds another cache: max_prompt_tokens: 64, not 128"):
        prepare_cache(make_config(root), word_tokenizer())
