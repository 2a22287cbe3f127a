"""From texts to token ids: the one way a prompt, a label word and an answer are tokenized, in a cache and outside it.

A prompt is tokenized with the special tokens of the tokenizer, but never ends in eos; what answers it continues it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from transformers import PreTrainedTokenizerBase

from flare_ds.data.cache.windows import Fields, Windows
from flare_ds.data.plain_text import encode_behind, encode_texts
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Task

_WHOLE = {"padding": False, "truncation": False, "verbose": False}


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizes the prompts of one task; picklable, so that worker processes can hold one."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int

    @property
    def windows(self) -> Windows:
        """Chooses what prompts show of texts that are too long."""
        return Windows(self.tokenize_prompts, self.task.long_field, self.max_prompt_tokens)

    def tokenize_prompts(self, fields: Sequence[Fields]) -> list[list[int]]:
        """Token ids of each row's prompt, however long."""
        return tokenize_prompts(self.tokenizer, [self.task.prompt(row) for row in fields])


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, special tokens included."""
    return [_without_final_eos(tokenizer, prompt) for prompt in tokenize(tokenizer, prompts, special_tokens=True)]


def prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that every prompt starts with."""
    return tokenize_prompts(tokenizer, [""])[0]


def newline_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A line break between two prompts."""
    return tokenize_behind(tokenizer, ["\n"])[0]


def _without_final_eos(tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> list[int]:
    end = len(prompt)
    while end and prompt[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return prompt[:end]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; nothing is padded or truncated, and text that looks like a control token stays text."""
    return encode_texts(tokenizer, texts, add_special_tokens=special_tokens, **_WHOLE)


def tokenize_behind(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as it continues a prompt, without special tokens."""
    return encode_behind(tokenizer, texts, **_WHOLE)


def tokenize_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of a space and each answer, then eos, if the tokenizer has one."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [ids + eos for ids in tokenize_behind(tokenizer, [f" {text}" for text in answers])]


def label_tokens(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of a space and each label word, checked to be told apart by their tokens.

    Where one word begins another, eos ends all of them: it is what tells the shorter one.

    Raises:
        DataError: two words have the same tokens, or one begins another and the tokenizer has no eos.
    """
    tokens = tokenize_behind(tokenizer, [f" {word}" for word in labels])
    alike = [
        (word, other, ids == other_ids)
        for (word, ids), (other, other_ids) in permutations(zip(labels, tokens, strict=True), 2)
        if other_ids[: len(ids)] == ids
    ]
    for word, other, equal in alike:
        if equal or tokenizer.eos_token_id is None:
            how = "equal" if equal else "begin"
            problem = f"the tokens of label word {word!r} {how} those of {other!r}"
            fix = "choose label words that this tokenizer tells apart, or another base model"
            raise DataError(problem, fix=fix)
    return [[*ids, tokenizer.eos_token_id] for ids in tokens] if alike else tokens


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id the tokenizer knows, M2M's languages included: they are no words to it."""
    return max(*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]) + 1
