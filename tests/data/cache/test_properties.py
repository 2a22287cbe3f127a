"""Whatever the texts are, a cache says them again, each row once: empty, long, of any script, with any white space."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_ds.data.cache import Cache, open_cache, prepare_cache, verify
from tests.data.cache.texts import LABELS, LANGUAGES, Tables, byte_tokenizer, decode, make_config, prompt, write_tables

TOKENIZER = byte_tokenizer()
STREAMS = dict(zip(("source", "target"), LANGUAGES, strict=True))
SPLITS = ("train", "validation", "test")
AWKWARD = " \n\r\t\0\x85\u2028\u200f\u0301\u0323אبक़ﬁ한𝕏😀\U0010ffff<>{}▁"
words = st.text(max_size=20) | st.text(AWKWARD, max_size=12)
texts = words | st.builds(str.__mul__, st.sampled_from(["a", "ż", "𝕏 "]), st.integers(0, 300))
build_often = settings(max_examples=12)


@st.composite
def tables(draw: st.DrawFn, free_answers: bool) -> Tables:
    """A few rows for each split; the notes differ, so that no row counts as a copy of another."""
    ids = iter(draw(st.lists(words.filter(bool), min_size=15, max_size=15, unique=True)))
    found: dict[str, dict[str, list[dict[str, object]]]] = {}
    for split in SPLITS:
        found[split] = {language: [] for language in LANGUAGES}
        for number in range(draw(st.integers(1, 5))):
            row = {"id": next(ids), "label": draw(st.sampled_from(LABELS))}
            for language in LANGUAGES:
                side = {"text": draw(texts), "note": f"{split}{number}"}
                found[split][language].append(row | side | (draw(answers(side)) if free_answers else {}))
    return found


@st.composite
def answers(draw: st.DrawFn, side: dict[str, str]) -> dict[str, object]:
    """A text with right answers at its end, and where they stand."""
    said = draw(st.lists(words.filter(str.strip), min_size=1, max_size=3))
    text = side["text"] + "|".join(said)
    return {"text": text, "answers": [{"text": answer, "answer_start": text.find(answer)} for answer in said]}


@contextmanager
def built(found: Tables, **settings: object) -> Iterator[Cache]:
    """The cache of some tables."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_tables(root, found)
        cache = open_cache(prepare_cache(make_config(root, **settings), TOKENIZER))
        verify(cache.path)
        yield cache


def prompt_bytes(ids: np.ndarray) -> bytes:
    return decode(TOKENIZER, ids.tolist()).encode()


@build_often
@given(tables(free_answers=False))
def test_every_row_is_there_once_and_says_what_its_record_says(found: Tables) -> None:
    with built(found) as cache:
        assert cache.streams == tuple(STREAMS)
        for name in SPLITS:
            split = cache.split(name)
            places = {split.ids(row): row for row in range(len(split))}
            assert len(places) == len(split) == len(found[name]["en"])
            for stream, language in STREAMS.items():
                for record in found[name][language]:
                    row = places[record["id"]]
                    ids = split.prompt(stream, row)
                    assert decode(TOKENIZER, ids.tolist()) == prompt(record)
                    assert len(ids) == len(prompt(record).encode()) == split.prompt_lengths(stream)[row]
                    assert split.labels[row] == LABELS.index(record["label"])
                    *word, eos = split.answer(stream, row).tolist()
                    assert (decode(TOKENIZER, word), eos) == (f" {record['label']}", TOKENIZER.eos_token_id)
                    assert split.golds(row) == []


@build_often
@given(tables(free_answers=True))
def test_free_answers_are_there_as_tokens_and_as_text(found: Tables) -> None:
    with built(found, free_answers=True) as cache:
        for name in SPLITS:
            split = cache.split(name)
            places = {split.ids(row): row for row in range(len(split))}
            assert len(places) == len(split) == len(found[name]["en"])
            assert sorted(split.examples) == list(range(len(split))) and set(split.labels) == {-1}
            for stream, language in STREAMS.items():
                for record in found[name][language]:
                    row = places[record["id"]]
                    said = [answer["text"] for answer in record["answers"]]
                    assert decode(TOKENIZER, split.prompt(stream, row).tolist()) == prompt(record)
                    *word, eos = split.answer(stream, row).tolist()
                    assert (decode(TOKENIZER, word), eos) == (f" {' '.join(said[0].split())}", TOKENIZER.eos_token_id)
                    if stream == "target":
                        assert split.golds(row) == said


@build_often
@given(tables(free_answers=False), st.integers(24, 64))
def test_a_prompt_that_is_too_long_loses_only_the_end_of_its_text(found: Tables, limit: int) -> None:
    with built(found, max_prompt_tokens=limit) as cache:
        for name in SPLITS:
            split = cache.split(name)
            places = {split.ids(row): row for row in range(len(split))}
            for stream, language in STREAMS.items():
                cut = 0
                for record in found[name][language]:
                    text = record["text"]
                    said = [prompt(record | {"text": text[:end]}).encode() for end in range(len(text) + 1)]
                    shown = prompt_bytes(split.prompt(stream, places[record["id"]]))
                    assert shown in said and len(shown) <= limit, "cut between two characters, to what fits"
                    assert len(said[-1]) > limit or shown == said[-1], "what fits is not cut"
                    cut += shown != said[-1]
                assert cache.manifest.splits[name].truncated[stream] == cut
