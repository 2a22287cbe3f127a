"""Prompts, label words and their tokens."""

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from flare_ds.data.cache.encode import PlainForm, label_tokens, prompt_windows, tokenize_answers
from flare_ds.data.cache.format import token_dtype
from flare_ds.data.cache.rows import RowEncoder
from flare_ds.data.cache.windows import Wanted
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.exceptions import DataError
from tests.data.cache.moods import MOODS, WORDS, eos_first, moods_config, word_tokenizer
from tests.data.cache.texts import byte_tokenizer


@pytest.mark.parametrize("limit", [24, 25, 40])
def test_a_long_prompt_is_cut_as_little_as_possible(limit: int) -> None:
    tokenizer = byte_tokenizer()
    chooser = prompt_windows(MOODS, "en", PlainForm(tokenizer), limit)
    texts = [string.ascii_lowercase * 2, "", "short", "żółć" * 9, "x" * 9, "x" * 10, "x" * 11]
    windows = chooser.fit([Wanted({"text": text}) for text in texts])
    expected = []
    for text in texts:
        prefixes = [MOODS.prompt({"text": text[:end]}).encode() for end in range(len(text) + 1)]
        expected.append(max((prefix for prefix in prefixes if len(prefix) <= limit), key=len))
    assert [tokenizer.decode(window.prompt).encode() for window in windows] == expected


def test_a_prompt_begins_with_bos_and_never_ends_in_eos() -> None:
    windows = prompt_windows(MOODS, "en", PlainForm(word_tokenizer()), 100)
    (prompt,) = windows.tokenize([{"text": "red blue"}])
    assert [WORDS[token] for token in prompt] == ["<bos>", "say", ":", "red", "blue", "mood", ":"]


@pytest.mark.parametrize("template", ["<eos> $A", "<eos> $A <eos>"])
def test_a_bos_that_is_eos_as_well_stays_in_front_of_every_prompt(template: str) -> None:
    """As OPT's does."""
    form = PlainForm(eos_first(template))
    eos, text = WORDS.index("<eos>"), [WORDS.index("red"), WORDS.index("blue")]
    assert form.prompts(["", "red blue"]) == [[eos], [eos, *text]]
    assert form.prefix_ids == [eos]


def test_text_that_looks_like_a_control_token_stays_text() -> None:
    windows = prompt_windows(MOODS, "en", PlainForm(word_tokenizer()), 100)
    (prompt,) = windows.tokenize([{"text": "<bos> red <eos>"}])
    control = {WORDS.index("<bos>"), WORDS.index("<eos>")}
    assert prompt[0] in control and not control.intersection(prompt[1:])
    assert WORDS.index("<eos>") not in tokenize_answers(PlainForm(byte_tokenizer()), ["a <eos>"])[0][:-1]


def test_an_answer_follows_a_space_and_ends_in_eos_if_there_is_one() -> None:
    tokenizer = byte_tokenizer()
    (ids,) = tokenize_answers(PlainForm(tokenizer), ["zażółć"])
    assert tokenizer.decode(ids[:-1]) == " zażółć" and ids[-1] == tokenizer.eos_token_id
    assert tokenize_answers(PlainForm(word_tokenizer(eos_token=None, pad_token=None)), ["good"]) == [
        [WORDS.index("good")]
    ]


def test_label_words_with_equal_tokens_are_refused() -> None:
    with pytest.raises(DataError, match=r"'up'.*equal.*'down'"):
        label_tokens(["good", "up", "down"], PlainForm(word_tokenizer()))  # both are unknown to the tokenizer


@pytest.mark.parametrize("labels", [("good", "goodness"), ("goodness", "good")])
def test_a_label_word_that_begins_another_is_told_by_eos(labels: tuple[str, ...]) -> None:
    tokenizer = byte_tokenizer()
    tokens = label_tokens(labels, PlainForm(tokenizer))
    assert tokens == tokenize_answers(PlainForm(tokenizer), labels)
    assert LabelTrie(tokens).tokens == [tokens[labels.index(word)][5] for word in labels]
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"'good' are a prefix of those of 'goodness'"):
        label_tokens(labels, PlainForm(tokenizer))


@pytest.mark.parametrize(("size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(size: int, dtype: str) -> None:
    assert token_dtype(size) == np.dtype(dtype)
    assert np.array([size - 1]).astype(token_dtype(size))[0] == size - 1


class StrangeTokenizer(PreTrainedTokenizerFast):
    """Gives an id that it does not know, once it has been made use of."""

    strange = 0

    def __call__(self, texts: Sequence[str], **settings: object) -> dict[str, list[list[int]]]:
        return {
            "input_ids": [[0, self.strange] if self.strange else ids for ids in super().__call__(texts)["input_ids"]]
        }


@pytest.mark.parametrize("token", [len(WORDS), 2**16 + 1, -1])
def test_a_token_that_does_not_fit_is_refused(token: int, tmp_path: Path) -> None:
    tokenizer = StrangeTokenizer(tokenizer_object=word_tokenizer().backend_tokenizer, eos_token="<eos>")
    encoder = RowEncoder(MOODS, tokenizer, moods_config(tmp_path, max_prompt_tokens=100))
    tokenizer.strange = token
    side = Side({"text": "red"})
    with pytest.raises(DataError, match=f"gave token id {token}, but knows only 0 to {len(WORDS) - 1}"):
        encoder.encode("test", [ParallelRow("1", 0, (side,), side)])
