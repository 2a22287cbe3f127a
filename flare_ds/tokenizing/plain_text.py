"""Texts stay texts: what looks like a control token (`<eos>`, `<start_of_turn>`) is tokenized as the characters it is.

Only the tokenizer itself puts control tokens around a text. A text in which there are more of them is tokenized again,
without its special tokens; and if some are left (a unigram model may hold them as pieces, and a chat template may use
tokens that are not marked as special), cut inside each of them. Any other text has the ids that it always had.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

_RESERVED = re.compile(r"<\|.+\|>|[<\[]unused_?\d+[>\]]")
"""Tokens that no text is meant to hold, though they may not be marked as special."""
WHOLE: dict[str, Any] = {"padding": False, "truncation": False, "verbose": False}
"""Settings of a tokenizer that is to give all tokens of a text and no others, whatever it was set to."""
BEFORE = (":", "x", ".", "ab")
"""Texts that another may follow: one of them does not grow together with it."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **settings: Any) -> list[list[int]]:
    """Token ids of each text, of whose own none is a control token; nothing is padded or, if not asked, truncated."""
    if not texts:
        return []
    settings = WHOLE | settings
    *encoded, empty = tokenizer([*texts, ""], **settings)["input_ids"]
    control = control_tokens(tokenizer)
    around = control.count(empty)
    for row, text in enumerate(texts):
        if control.pattern.search(text) or control.count(encoded[row]) > around:
            (encoded[row],) = tokenizer([text], split_special_tokens=True, **settings)["input_ids"]
            unknown = control.unknown in text and tokenizer.unk_token_id in encoded[row]
            if unknown or control.count(encoded[row]) > around:
                encoded[row] = _cut_up(tokenizer, text, encoded[row], control, settings)
    return encoded


def encode_behind(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **settings: Any) -> list[list[int]]:
    """Token ids of each text as it follows another that does not end in white space.

    So without special tokens, and without what a tokenizer puts in front of the texts it is given.
    """
    settings = {**settings, "add_special_tokens": False}
    found: dict[int, list[int]] = {}
    for before in BEFORE:
        left = [row for row in range(len(texts)) if row not in found]
        first, *whole = encode_texts(tokenizer, [before, *(before + texts[row] for row in left)], **settings)
        if first and tokenizer.unk_token_id not in first:
            kept = [(row, ids) for row, ids in zip(left, whole, strict=True) if ids[: len(first)] == first]
            found |= {row: ids[len(first) :] for row, ids in kept}
        if len(found) == len(texts):
            break
    alone = [row for row in range(len(texts)) if row not in found]
    found |= dict(zip(alone, encode_texts(tokenizer, [texts[row] for row in alone], **settings), strict=True))
    return [found[row] for row in range(len(texts))]


@dataclass(frozen=True)
class Control:
    """The tokens of a tokenizer that are no text.

    Attributes:
        ids: of all but the one for what is unknown, which texts may well have.
        unknown: that one, as it is written.
        pattern: finds all of them, as they are written.
    """

    ids: frozenset[int]
    unknown: str
    pattern: re.Pattern[str]

    def count(self, ids: Sequence[int]) -> int:
        """How many of these ids are control tokens."""
        return sum(number in self.ids for number in ids)


@lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Control:
    """Those of a tokenizer: the special ones, those that its chat template says, and what no text is meant to hold."""
    template = str(tokenizer.chat_template or "")
    found = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    for number, token in tokenizer.added_tokens_decoder.items():
        said = token.content in template and not token.content.isspace()
        if token.special or said or _RESERVED.fullmatch(token.content):
            found[token.content] = number
    longest_first = sorted(filter(None, found), key=len, reverse=True)
    ids = frozenset(number for number in found.values() if number != tokenizer.unk_token_id)
    return Control(ids, str(tokenizer.unk_token), re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"))


def _cut_up(
    tokenizer: PreTrainedTokenizerBase, text: str, encoded: list[int], control: Control, settings: dict[str, Any]
) -> list[int]:
    """The ids of a text that is cut behind the first character of each control token in it."""
    cuts = [found.start() + 1 for found in control.pattern.finditer(text) if len(found[0]) > 1]
    if not cuts:
        return encoded
    first, *others = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    (whole,) = tokenizer([first], **settings)["input_ids"]
    (own,) = tokenizer([first], **{**settings, "add_special_tokens": False})["input_ids"]
    start = next(start for start in range(len(whole) + 1) if whole[start : start + len(own)] == own)
    end = start + len(own)
    behind = [number for ids in encode_behind(tokenizer, others, **settings) for number in ids]
    return [*whole[:end], *behind, *whole[end:]]
