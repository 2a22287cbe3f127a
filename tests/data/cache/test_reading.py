"""What rows with free answers show of long texts: in training around the answer, in evaluation all, whoever answers."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flare_ds.batches.rows_read import rows_read
from flare_ds.cli.statistics import summary, too_long_to_say
from flare_ds.config import Config
from flare_ds.data.cache import build_cache, open_cache, prepare_cache, verify
from flare_ds.data.cache.rows import EncodedRows, EncodedStream, RowEncoder
from flare_ds.data.cache.windows import Windows
from flare_ds.data.parallel import ParallelData, ParallelRow, Side
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import SPLITS, Answer, Pool, Row, Task
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer
from tests.data.cache.moods import MOODS, moods_config, word_tokenizer
from tests.data.cache.texts import byte_tokenizer, decode, make_config, make_settings, write_tables
from tests.mt import write_mt_model

LIMIT = 60
WORD = 40
"""Characters that a window gives up at most to end with a word."""
TOKENIZER = byte_tokenizer()


class Quiz(Task):
    """A question about a text, answered by a piece of it."""

    name = "quiz"
    version = 1
    languages = ("en", "pl")
    fields = ("text", "question")

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        raise NotImplementedError

    def prompt(self, fields: Mapping[str, str]) -> str:
        return f"{fields['text']}\n{fields['question']}\n>"


def text_of(draw: random.Random, length: int) -> str:
    return "".join(draw.choices("abcd żółć ", k=length))


def side(draw: random.Random, length: int, answer: int, *, found: bool = True) -> Side:
    """A text, and an answer of some characters that stands somewhere in it."""
    text, start = text_of(draw, length), draw.randint(0, length - answer)
    said = Answer(text[start : start + answer], start if found else None)
    return Side({"text": text, "question": "who?"}, (said, Answer("another", None)))


def example(number: int, *, found: tuple[bool, bool] = (True, True), answer: int = 6) -> ParallelRow:
    draw = random.Random(number)
    source, target = (side(draw, draw.randint(answer, 300), answer, found=one) for one in found)
    return ParallelRow(f"q{number}", None, (source,), target)


def prompts(stream: EncodedStream) -> list[str]:
    ends = stream.lengths_n.cumsum()
    starts = ends - stream.lengths_n
    return [
        decode(TOKENIZER, stream.tokens_t[start : start + length].tolist())
        for start, length in zip(starts, stream.prompt_lengths_n, strict=True)
    ]


def answers(stream: EncodedStream) -> list[str]:
    ends = stream.lengths_n.cumsum()
    starts = ends - stream.lengths_n + stream.prompt_lengths_n
    return [TOKENIZER.decode(stream.tokens_t[start:end].tolist()) for start, end in zip(starts, ends, strict=True)]


def shown(stream: EncodedStream) -> list[str]:
    """The part of the text in each prompt; none is cut within a character."""
    assert not any("\ufffd" in prompt for prompt in prompts(stream))
    return [prompt.removesuffix("\nwho?\n>") for prompt in prompts(stream)]


def with_limit(limit: int, method: str = "flare") -> Config:
    config = moods_config(Path("unused"), target_language="pl")
    task = config.task.model_copy(update={"max_prompt_tokens": limit})
    return config.model_copy(update={"task": task, "method": method})


def encode(split: str, rows: Sequence[ParallelRow], limit: int = LIMIT, method: str = "flare") -> EncodedRows:
    return RowEncoder(Quiz(), TOKENIZER, with_limit(limit, method)).encode(split, rows)


def room(side: Side) -> int:
    """Bytes of text that fit into a prompt."""
    return LIMIT - len(Quiz().prompt({**side.fields, "text": ""}).encode())


def before(row: ParallelRow) -> float:
    """Which share of what a training prompt shows around the answer stands before it: the row's own."""
    return int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:4], "big") / 2**32


def stands_near(place: float, part: str, text: str, share: float = 0.5) -> bool:
    """Whether a part of a text has a place at a share of it, as far as whole words and the ends of the text allow."""
    start = min(max(0, place - share * len(part)), len(text) - len(part))
    return any(text.startswith(part, near) for near in range(len(text)) if abs(near - start) < WORD)


def cut_between_words(text: str, part: range, answer: range) -> bool:
    """Whether a part ends where the text does or where words do, or no word does between that end and the answer."""
    left, right = text[part.start : answer.start], text[answer.stop : part.stop]
    begins = part.start == 0 or text[part.start - 1] == " " != text[part.start] or " " not in left.strip()
    ends = part.stop == len(text) or text[part.stop] == " " != text[part.stop - 1] or " " not in right.strip()
    return begins and ends


def test_a_training_prompt_holds_its_own_answer_with_as_much_around_it_as_fits() -> None:
    rows = [example(number) for number in range(100)]
    encoded = encode("train", rows)
    assert (encoded.windows_e == 1).all()
    for number, stream in enumerate(("source", "target")):
        cut = whole = 0
        shares = []
        for row, part, said in zip(rows, shown(encoded.streams[stream]), answers(encoded.streams[stream]), strict=True):
            one = (*row.sources, row.target)[number]
            answer, text = one.answers[0], one.fields["text"]
            assert said == f" {' '.join(answer.text.split())}<eos>"
            starts = [start for start in range(answer.start + 1) if text.startswith(part, start)]
            beside = len(part) - len(answer.text)
            start = min(starts, key=lambda start: abs(answer.start - start - before(row) * beside))
            assert start <= answer.start and answer.start + len(answer.text) <= start + len(part)
            if part != text:
                cut += 1
                end = start + len(part)
                assert room(one) - 2 * WORD < len(part.encode()) <= room(one)
                whole += len(part.encode()) > room(one) - 20
                left, right = answer.start - start, end - answer.start - len(answer.text)
                if start > 0 and end < len(text):
                    assert abs(left - before(row) * (left + right)) < WORD
                    shares.append(left / (left + right))
                assert cut_between_words(text, range(start, end), range(answer.start, answer.start + len(answer.text)))
        assert encoded.streams[stream].truncated == cut > 50 and whole > cut / 2
        assert np.histogram(shares, 4, (0, 1))[0].min() > len(shares) / 12, "the answer stands anywhere"


@pytest.mark.parametrize("without", ["source", "target"])
def test_a_side_without_the_answer_shows_the_same_place(without: str) -> None:
    rows = [example(number, found=(without != "source", without != "target")) for number in range(50)]
    for row, part in zip(rows, shown(encode("train", rows).streams[without]), strict=True):
        one, other = (row.sources[0], row.target) if without == "source" else (row.target, row.sources[0])
        answer, text = other.answers[0], one.fields["text"]
        place = (answer.start + len(answer.text) / 2) / len(other.fields["text"])
        assert stands_near(place * len(text), part, text, before(row))


def test_where_no_side_has_the_answer_the_text_begins() -> None:
    nowhere = [example(number, found=(False, False)) for number in range(9)]
    for row, part in zip(nowhere, shown(encode("train", nowhere).streams["target"]), strict=True):
        assert row.target.fields["text"].startswith(part)


@pytest.mark.parametrize("long_side", ["source", "target"])
def test_a_training_row_whose_answer_does_not_fit_is_dropped(long_side: str) -> None:
    fine, long = example(1), example(2, answer=LIMIT)
    mixed = replace(fine, sources=long.sources) if long_side == "source" else replace(fine, target=long.target)
    encoded = encode("train", [fine, mixed, fine])
    assert encoded.windows_e.tolist() == [1, 0, 1]
    assert len(set(prompts(encoded.streams[long_side]))) == 1 and len(prompts(encoded.streams["target"])) == 2
    assert encode("test", [mixed]).windows_e[0] > 0


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("method", "read", "other"), [("flare", "target", "source"), ("source_lora", "source", "target")]
)
def test_windows_of_an_example_show_all_of_what_is_answered_and_the_rest_beside_it(
    split: str, method: str, read: str, other: str
) -> None:
    rows = [example(number) for number in range(60)]
    encoded = encode(split, rows, method=method)
    parts, others = shown(encoded.streams[read]), shown(encoded.streams[other])
    assert encoded.streams[read].truncated == 0 and "no_prompt_shows" not in str(encoded.counts)
    first, cut = 0, 0
    for row, windows in zip(rows, encoded.windows_e.tolist(), strict=True):
        sides = {"target": row.target, "source": row.sources[0]}
        text, whole, at, seen = sides[read].fields["text"], sides[other].fields["text"], 0, 0
        assert (windows > 1) == (len(text.encode()) > room(sides[read]))
        for part, beside in zip(parts[first : first + windows], others[first : first + windows], strict=True):
            at = text.index(part, at)
            assert at <= seen
            seen = at + len(part)
            assert stands_near((at + seen) / 2 / len(text) * len(whole), beside, whole)
            cut += beside != whole
        assert seen == len(text)
        first += windows
    assert encoded.streams[other].truncated == cut > 0


def test_evaluation_never_looks_where_the_answer_is() -> None:
    rows = [example(number) for number in range(30)]
    blind = [example(number, found=(False, False)) for number in range(30)]
    assert [row.target.fields for row in rows] == [row.target.fields for row in blind]
    for stream, encoded in encode("test", rows).streams.items():
        assert (encoded.tokens_t == encode("test", blind).streams[stream].tokens_t).all()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("method", ["flare", "source_lora"])
def test_a_row_without_a_source_has_nothing_there(split: str, method: str) -> None:
    rows = [replace(example(number), sources=(None,)) if number % 2 else example(number) for number in range(6)]
    encoded = encode(split, rows, method=method)
    numbers = np.repeat(np.arange(6), encoded.windows_e)
    assert ((encoded.streams["source"].lengths_n == 0) == (numbers % 2 == 1)).all()
    assert (encoded.streams["target"].lengths_n > 0).all()
    alone = encode(split, rows[1::2])
    assert encoded.windows_e[1::2].tolist() == alone.windows_e.tolist(), "read through as many as without the others"


def crowded(row: ParallelRow, question: str, *, source: bool) -> ParallelRow:
    """The row with another question on one side."""
    one = row.sources[0] if source else row.target
    other = replace(one, fields=one.fields | {"question": question})
    return replace(row, sources=(other,)) if source else replace(row, target=other)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("source", [True, False])
def test_a_question_that_leaves_no_room_drops_its_row_and_no_other(split: str, source: bool) -> None:
    fine = [example(number) for number in range(4)]
    rows = [*fine[:2], crowded(example(9), "?" * LIMIT, source=source), *fine[2:]]
    encoded, alone = encode(split, rows), encode(split, fine)
    assert encoded.windows_e.tolist() == [*alone.windows_e[:2], 0, *alone.windows_e[2:]]
    assert encoded.counts == {**alone.counts, "dropped_prompt_does_not_fit": 1}
    for stream, of_stream in alone.streams.items():
        assert (encoded.streams[stream].tokens_t == of_stream.tokens_t).all()


@pytest.mark.parametrize("source", [True, False])
def test_of_a_test_row_the_question_is_cut_too_and_no_row_is_lost(source: bool) -> None:
    fine = [example(number) for number in range(4)]
    question = " ".join(f"word{number}" for number in range(20))
    rows = [*fine[:2], crowded(example(9), question, source=source), *fine[2:]]
    encoded = encode("test", rows)
    assert (encoded.windows_e > 0).all() and encoded.counts["test_rows_of_which_other_fields_are_cut"] == 1
    assert all(stream.prompt_lengths_n.max() <= LIMIT for stream in encoded.streams.values())
    of_row = np.repeat(np.arange(5), encoded.windows_e) == 2
    cut = [
        p for p, mine in zip(prompts(encoded.streams["source" if source else "target"]), of_row, strict=True) if mine
    ]
    for prompt in cut:
        text, asked, end = prompt.split("\n")
        assert end == ">" and text and asked.startswith("word0 word1") and question.startswith(f"{asked} ")


def test_the_longest_of_the_other_fields_is_cut_first() -> None:
    shown = windows(30).squeeze({"text": "t" * 50, "long": "l" * 40, "short": "s" * 6})
    assert shown["short"] == "s" * 6 and shown["text"] == "t" * 50 and 0 < len(shown["long"]) < 20
    shown = windows(30).squeeze({"text": "t" * 50, "long": "l" * 40, "short": "s" * 39})
    assert shown["long"] == "" and 0 < len(shown["short"]) < 20


def windows(limit: int) -> Windows:
    """Of a prompt of all texts, a byte a token."""
    return Windows(lambda rows: [[0] * sum(map(len, row.values())) for row in rows], "text", limit)


def test_a_template_that_is_too_long_is_refused_before_any_row() -> None:
    with pytest.raises(DataError, match=r"quiz has 3 tokens without any text, but task\.max_prompt_tokens=3"):
        RowEncoder(Quiz(), TOKENIZER, with_limit(3))


def test_answers_that_no_prompt_shows_are_counted() -> None:
    seen, nowhere = example(1), example(2, found=(True, False))
    assert encode("train", [seen, nowhere, nowhere]).counts == {"train_rows_whose_answer_no_prompt_shows": 2}
    assert encode("test", [seen, nowhere]).counts == {"test_rows_whose_answer_no_prompt_shows": 1}
    text = nowhere.target.fields["text"]
    long = replace(nowhere, target=replace(nowhere.target, answers=(Answer(text[:60], 0),)))  # longer than a window
    assert encode("validation", [seen, long]).counts == {"validation_rows_whose_answer_no_prompt_shows": 1}


def test_an_answer_is_trained_on_one_line() -> None:
    row = example(1)
    broken = replace(row.target, answers=(Answer("red\n\n blue\u2028green ", None),))
    assert answers(encode("train", [replace(row, target=broken)]).streams["target"]) == [" red blue green<eos>"]


# The same in a cache


def table(split: str, rows: int) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {"en": [], "pl": []}
    for number in range(rows):
        for language in found:
            draw = random.Random(f"{split}-{number}-{language}")
            one = side(draw, draw.randint(100, 400), 5 if number else 90)
            said = [{"text": answer.text, "answer_start": answer.start} for answer in one.answers[:1]]
            record = {"id": f"{split}{number}", "text": one.fields["text"], "note": f"{split}{number}", "answers": said}
            found[language].append(record)
    return found


@pytest.fixture(scope="module")
def quiz_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quiz")
    write_tables(root, {split: table(split, rows) for split, rows in (("train", 300), ("validation", 9), ("test", 20))})
    return root


def test_a_cache_numbers_examples_and_counts_windows_and_dropped_rows(quiz_root: Path) -> None:
    config = make_config(quiz_root, free_answers=True, max_prompt_tokens=80)
    cache = open_cache(prepare_cache(config, TOKENIZER))
    verify(cache.path)
    assert cache.labels == [] and cache.label_tokens == []
    assert cache.manifest.counts["dropped_answer_does_not_fit_in_prompt"] == 1
    for name, examples in (("train", 299), ("validation", 9), ("test", 20)):
        split, summary = cache.split(name), cache.manifest.splits[name]
        assert summary.rows == len(split) and summary.examples == examples
        numbers, windows = np.unique(split.examples, return_counts=True)
        assert numbers.tolist() == list(range(examples)) and (np.diff(split.examples) >= 0).all()
        assert summary.windowed == (windows > 1).sum()
        assert (len(split) > examples) == (name != "train") == (summary.windowed > 0)
        assert (split.labels == -1).all()
        records = {record["id"]: record for record in table(name, 300)["pl"]}
        ids = [split.ids(row) for row in range(len(split))]
        assert len(set(ids)) == examples
        for row in range(len(split)):
            assert (ids[row] == ids[row - 1]) == (row > 0 and split.examples[row] == split.examples[row - 1])
            assert split.golds(row) == [answer["text"] for answer in records[ids[row]]["answers"]]
        for stream in cache.streams:
            lengths = [len(split.prompt(stream, row)) + len(split.answer(stream, row)) for row in range(len(split))]
            assert summary.tokens[stream] == sum(lengths)
            assert summary.longest_prompt[stream] == max(split.prompt_lengths(stream)) <= 80


def test_right_is_what_answers_the_text_that_is_read(quiz_root: Path) -> None:
    """translate_test writes in the source's language: the target's answers would make all that it says wrong.

    A lora that is trained on the source has to learn its answers, too.
    """
    settings = make_settings(quiz_root, free_answers=True, max_prompt_tokens=80)
    caches = {}
    for method, language in (("lora", "pl"), ("input_fusion", "pl"), ("translate_test", "en"), ("source_lora", "en")):
        config = Config.model_validate(settings | {"method": method})
        caches[method] = cache = open_cache(prepare_cache(config, TOKENIZER))
        train, said = cache.split("train"), {record["id"]: record for record in table("train", 300)[language]}
        rows = rows_read(train, config, cache.manifest)
        for row in range(len(train)):
            learned = TOKENIZER.decode(rows.answer("target", row), skip_special_tokens=True)
            assert learned.split() == said[train.ids(row)]["answers"][0]["text"].split()
        held_out = rows_read(cache.split("test"), config, cache.manifest)
        longest = max(len(held_out.answer("target", row)) for row in range(len(held_out))) - 1  # without the eos
        assert any(line.endswith(f"; {longest} would be enough for all") for line in too_long_to_say(cache, 0))
        for name in ("validation", "test"):
            split, records = cache.split(name), {record["id"]: record for record in table(name, 20)[language]}
            for row in range(len(split)):
                assert split.golds(row) == [answer["text"] for answer in records[split.ids(row)]["answers"]]
    assert caches["lora"].key == caches["input_fusion"].key != caches["translate_test"].key
    assert caches["translate_test"].key == caches["source_lora"].key


def test_answers_of_one_language_are_measured_too(quiz_root: Path) -> None:
    """In stage 1 there is no source."""
    settings = make_settings(quiz_root, free_answers=True, max_prompt_tokens=80, target_language="en")
    cache = open_cache(prepare_cache(Config.model_validate(settings | {"method": "lora"}), TOKENIZER))
    assert list(cache.streams) == ["target"]
    assert [line.partition(":")[0] for line in too_long_to_say(cache, 0)] == ["validation", "test"]


@pytest.mark.parametrize(
    ("tokens", "passes"),
    [
        ([[1], [2], [3]], None),  # told apart by their first
        ([[1, 2], [1, 3], [4]], None),  # one path, on which both nodes lie
        ([[1, 2], [1, 3], [4, 5], [4, 6]], 2),
        ([[1, 2, 3], [1, 2, 4], [1, 5, 6], [1, 5, 7], [8]], 2),
    ],
)
def test_how_many_passes_label_words_take_is_told(
    quiz_root: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[list[int]], passes: int | None
) -> None:
    cache = open_cache(prepare_cache(make_config(quiz_root, free_answers=True, max_prompt_tokens=80), TOKENIZER))
    monkeypatch.setattr(type(cache), "labels", [str(number) for number in range(len(tokens))])
    monkeypatch.setattr(type(cache), "label_tokens", tokens)
    told = [line for line in summary(cache) if "share beginnings" in line]
    assert told == [] if passes is None else f"takes {passes} forward passes" in told[0]


def test_a_row_without_a_source_is_answered_in_the_targets_words(quiz_root: Path) -> None:
    english, polish = (Side({"text": "a b", "note": "c"}, (Answer(said),)) for said in ("a", "b"))
    rows = [ParallelRow("0", None, (english,), polish), ParallelRow("1", None, (None,), polish)]
    settings = make_settings(quiz_root, free_answers=True) | {"method": "translate_test"}
    data = ParallelData(dict.fromkeys(SPLITS, rows), {"rows_read": 6})
    split = open_cache(build_cache(Config.model_validate(settings), data, TOKENIZER)).split("test")
    assert {split.ids(row): split.golds(row) for row in range(2)} == {"0": ["a"], "1": ["b"]}


def test_an_mt_encoder_reads_what_the_target_shows(quiz_root: Path) -> None:
    write_mt_model(quiz_root / "mt")
    source = {"mt_encoder": str(quiz_root / "mt"), "mt_language": "pol_Latn"}
    settings = make_settings(quiz_root, free_answers=True, max_prompt_tokens=80)
    config = Config.model_validate(settings | {"method": "flare_mt", "source": source})
    cache = open_cache(prepare_cache(config, TOKENIZER))
    assert cache.streams == ("source", "target", "mt")
    assert cache.manifest.streams == {"source": "en", "target": "pl", "mt": "pol_Latn"}
    tokenizer = load_mt_tokenizer(config.source)
    for name in ("train", "test"):
        split, cut = cache.split(name), 0
        for row in range(len(split)):
            note, _, text = decode(TOKENIZER, split.prompt("target", row).tolist()).partition(": ")
            whole = tokenizer(f"{text.removesuffix(' Answer:').strip()}. {note}")["input_ids"]
            cut += len(whole) > 80
            assert split.prompt("mt", row).tolist() == (whole if len(whole) <= 80 else [*whole[:79], whole[-1]])
            assert len(split.answer("mt", row)) == 0
        assert cache.manifest.splits[name].truncated["mt"] == cut
    text = Side({"text": "word1 " * 50})
    encoder = RowEncoder(MOODS, word_tokenizer(), with_limit(20), tokenizer)
    encoded = encoder.encode("train", [ParallelRow("1", 0, (text,), text)])
    assert encoded.streams["mt"].truncated == 1
    assert (
        encoded.streams["mt"].tokens_t.tolist() == tokenizer("word1 " * 50, truncation=True, max_length=20)["input_ids"]
    )
    assert prepare_cache(config.model_copy(update={"method": "lora"}), TOKENIZER) == cache.path  # all methods share it
    without = config.model_copy(
        update={"method": "lora", "source": config.source.model_copy(update={"mt_encoder": None})}
    )
    english = config.model_copy(update={"source": config.source.model_copy(update={"mt_language": "eng_Latn"})})
    plain, other = (open_cache(prepare_cache(one, TOKENIZER)) for one in (without, english))
    assert plain.streams == ("source", "target") and len({plain.key, other.key, cache.key}) == 3
