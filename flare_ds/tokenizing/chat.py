r"""The prompt as a user's turn of a chat, and what answers it as the assistant's, in the base's own chat template.

    head      <bos><start_of_turn>user\n
    text      Review: ...\nSentiment:
    tail      <end_of_turn>\n<start_of_turn>model\n
    answer    positive
    end       <end_of_turn>

A template is asked once, for a chat that holds two marks; what stands around them is the head, the tail and the end.
So a text can change nothing but itself, all that the tokens depend on is known, and cutting a text cuts no template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.exceptions import ConfigError
from flare_ds.tokenizing.plain_text import BEFORE, WHOLE, control_tokens, encode_behind

_TEXT, _ANSWER = 'text "of\nthe" user <&>', 'answer "of\nthe" model <&>'
"""The marks; a template that changes texts in some way would change them."""
_DAY = datetime(2024, 7, 26)
"""What a template that says the date says, every day: the default of Llama's."""
_DATE_PARTS = "aAbBdHIjmMpSyY"
_SETTINGS: dict[str, Any] = {"enable_thinking": False}
"""Behind the prompt stands the answer, not the thoughts that lead to it."""
_NO_TEMPLATE = (
    "put the chat_template.jinja that the base was tuned with into its directory, give an instruct base, or set "
    "task.chat=false"
)


@dataclass(frozen=True)
class ChatFrame:
    """What stands around a text and its answer, as drawn above; not every template ends an answer."""

    head: str
    tail: str
    end: str | None


def read_frame(tokenizer: PreTrainedTokenizerBase) -> ChatFrame:
    """Ask a tokenizer's chat template.

    Raises:
        ConfigError: there is none, it fails, or it does not show both texts as they are.
    """
    name = f"model.base={tokenizer.name_or_path!r}"
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        problem = f"task.chat=true, but the tokenizer of {name} has no chat template"
        raise ConfigError(problem, fix=_NO_TEMPLATE) from None
    turns = [{"role": "user", "content": _TEXT}, {"role": "assistant", "content": _ANSWER}]
    try:
        said = tokenizer.apply_chat_template(
            turns, chat_template=_dated(template), tokenize=False, add_generation_prompt=False, **_SETTINGS
        )
    except Exception as error:  # a template is a program of somebody's
        problem = f"the chat template of {name} fails: {type(error).__name__}: {error}"
        raise ConfigError(problem, fix="correct chat_template.jinja, or set task.chat=false") from error
    head, *behind = str(said).split(_TEXT)
    tail, *ends = behind[0].split(_ANSWER) if len(behind) == 1 else ("",)
    if len(ends) != 1:
        problem = f"the chat template of {name} does not render the user's text and then the assistant's unchanged"
        raise ConfigError(problem, fix="correct chat_template.jinja, or set task.chat=false")
    found = control_tokens(tokenizer).pattern.match(ends[0].lstrip())
    return ChatFrame(head, tail, found[0] if found else tokenizer.eos_token)


def _dated(template: str) -> str:
    """The template, in which the date is always the same."""
    if "strftime_now" not in template:
        return template
    parts = "".join(f"|replace('%{part}', '{_DAY.strftime('%' + part)}')" for part in _DATE_PARTS)
    # transformers lets a line break behind a tag go, so the template begins on a line of its own, as it would alone.
    return f"{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{template}"


@dataclass(frozen=True)
class ChatForm:
    """Tokenizes prompts and answers as the turns of a chat. White space around a text is left out.

    Spaces at the end of the head and of the tail belong to what follows them, as most tokenizers have it.
    """

    tokenizer: PreTrainedTokenizerBase
    frame: ChatFrame

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The tokens that every prompt starts with; line breaks are cut otherwise where nothing follows them."""
        for text in BEFORE:
            (whole,), (own,) = self._encode([self._head + text]), encode_behind(self.tokenizer, [text])
            if whole[-len(own) :] == own:
                return whole[: -len(own)]
        return self._encode([self._head])[0]

    @cached_property
    def suffix_ids(self) -> list[int]:
        """The tokens that every prompt ends with."""
        for before in BEFORE:
            first, whole = self._encode([self._head + before, self._head + before + self._tail])
            if whole[: len(first)] == first:
                return whole[len(first) :]
        return self._encode([self._tail])[0]

    @cached_property
    def newline_ids(self) -> list[int]:
        """A line break between two texts."""
        return encode_behind(self.tokenizer, ["\n"])[0]

    @property
    def eos_id(self) -> int | None:
        """The token that ends an answer."""
        if self.frame.end is None:
            return None
        number = self.tokenizer.convert_tokens_to_ids(self.frame.end)
        assert isinstance(number, int)
        return number

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as a user's turn, up to where the assistant answers."""
        texts = [_spaces_behind(self.frame.head) + text.strip() for text in texts]
        return [
            [*self.prefix_ids, *ids, *self.suffix_ids]
            for ids in self._inside(self._head, texts, self._tail, self.prefix_ids, self.suffix_ids)
        ]

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the beginning of an answer."""
        asked = self._head + BEFORE[0] + self._tail
        answers = [_spaces_behind(self.frame.tail) + text for text in texts]
        return self._inside(asked, answers, "", self._encode([asked])[0], [])

    def _inside(
        self, head: str, texts: Sequence[str], tail: str, prefix: list[int], suffix: list[int]
    ) -> list[list[int]]:
        """The ids of each text between the others; one that would grow into them, or say a control token, by itself."""
        control = control_tokens(self.tokenizer)
        around = control.count(prefix) + control.count(suffix)
        found: dict[int, list[int]] = {}
        for row, ids in enumerate(self._encode([head + text + tail for text in texts])):
            end = len(ids) - len(suffix)
            stands_there = end >= len(prefix) and ids[: len(prefix)] == prefix and ids[end:] == suffix
            if stands_there and control.count(ids) == around:
                found[row] = ids[len(prefix) : end]
        alone = [row for row in range(len(texts)) if row not in found]
        found |= dict(zip(alone, encode_behind(self.tokenizer, [texts[row] for row in alone]), strict=True))
        return [found[row] for row in range(len(texts))]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts in which control tokens are meant; the template has said its own."""
        return self.tokenizer(texts, add_special_tokens=False, **WHOLE)["input_ids"] if texts else []

    @property
    def _head(self) -> str:
        return self.frame.head.rstrip(" ")

    @property
    def _tail(self) -> str:
        return self.frame.tail.rstrip(" ")


def _spaces_behind(text: str) -> str:
    return text[len(text.rstrip(" ")) :]
