"""From texts to token ids: the one way a prompt, a label word and an answer are tokenized, in a cache and outside it.

    plain    the tokenizer's special tokens, the prompt    a space and the answer, then eos
    chat     the prompt as a user's turn                   the answer as the assistant's, then what ends it

A prompt never ends in eos; what answers it continues it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import permutations

from transformers import PreTrainedTokenizerBase

from flare_ds.data.cache.format import Manifest
from flare_ds.data.cache.windows import Fields, Windows
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Task
from flare_ds.tokenizing.chat import ChatForm, read_frame
from flare_ds.tokenizing.plain_text import encode_behind, encode_texts


@dataclass(frozen=True)
class PlainForm:
    """Tokenizes prompts as plain texts."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The special tokens that every prompt starts with."""
        return self.prompts([""])[0]

    @property
    def suffix_ids(self) -> list[int]:
        """A prompt ends with its text."""
        return []

    @cached_property
    def newline_ids(self) -> list[int]:
        """A line break between two prompts."""
        return encode_behind(self.tokenizer, ["\n"])[0]

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's eos."""
        return self.tokenizer.eos_token_id

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, special tokens included, but a final eos."""
        return [self._without_final_eos(prompt) for prompt in encode_texts(self.tokenizer, texts)]

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of a space and each text, as they follow a prompt."""
        return encode_behind(self.tokenizer, [f" {text}" for text in texts])

    @cached_property
    def _front(self) -> int:
        """How many special tokens stand before a text; they stay, even if one of them is eos as well (OPT's)."""
        (whole,), (text,) = (encode_texts(self.tokenizer, ["x"], add_special_tokens=own) for own in (True, False))
        return next((start for start in range(len(whole)) if whole[start : start + len(text)] == text), 0)

    def _without_final_eos(self, prompt: list[int]) -> list[int]:
        end = len(prompt)
        while end > self._front and prompt[end - 1] == self.eos_id:
            end -= 1
        return prompt[:end]


Form = PlainForm | ChatForm
"""How prompts and what answers them become tokens."""
Framing = Form | Manifest
"""What is to be known of prompts to join them."""


def form_of(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Form:
    """How the prompts of a run are tokenized."""
    return ChatForm(tokenizer, read_frame(tokenizer)) if chat else PlainForm(tokenizer)


def prompt_windows(task: Task, language: str, form: Form, most_tokens: int) -> Windows:
    """Chooses what a task's prompts in one language show of texts that are too long; worker processes can hold it."""
    return Windows(partial(_prompts, task, language, form), task.long_field, most_tokens)


def _prompts(task: Task, language: str, form: Form, fields: Sequence[Fields]) -> list[list[int]]:
    return form.prompts([task.prompt_in(language, row) for row in fields])


def tokenize_answers(form: Form, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer, then the token that ends it, if there is one."""
    eos = [] if form.eos_id is None else [form.eos_id]
    return [ids + eos for ids in form.words(answers)]


def label_tokens(labels: Sequence[str], form: Form) -> list[list[int]]:
    """Token ids of each label word as it answers a prompt, checked to be told apart by their tokens.

    Where one word begins another, eos ends all of them: it is what tells the shorter one.

    Raises:
        DataError: two words have the same tokens, or one begins another and there is no eos.
    """
    tokens = form.words(labels)
    alike = [
        (word, other, ids == other_ids)
        for (word, ids), (other, other_ids) in permutations(zip(labels, tokens, strict=True), 2)
        if other_ids[: len(ids)] == ids
    ]
    for word, other, equal in alike:
        if equal or form.eos_id is None:
            how = "equal" if equal else "are a prefix of"
            problem = f"the tokens of label word {word!r} {how} those of {other!r}"
            fix = "choose label words that this tokenizer tells apart, or another base model"
            raise DataError(problem, fix=fix)
    return tokenize_answers(form, labels) if alike else tokens


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id the tokenizer knows, M2M's languages included: they are no words to it."""
    return max(*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]) + 1
