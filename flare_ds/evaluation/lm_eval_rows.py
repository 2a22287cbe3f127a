r"""What lm-eval asks, as rows of tokens: prompts as a cache has them, answers where lm-eval begins them.

    context        "Review: ...\nSentiment:"     prompt: special tokens, then the context's own
    continuation   " positive"                  answer: what tokenizing both together adds to the prompt
    document       {"text_en": ..., ...}        source prompts: rendered from it, tokenized as the prompt is

Spaces at the end of a context belong to the continuation. A prompt that does not fit loses its beginning, but never the
special tokens.

Legend: n rows, p tokens of a prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from jinja2 import Template, TemplateError
from lm_eval.api.instance import Instance
from lm_eval.utils import env, get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from flare_ds.batches.rows_at_hand import RowsAtHand
from flare_ds.data.cache.encode import PlainForm
from flare_ds.data.streams import source_streams
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.registry import suggestion
from flare_ds.tokenizing.plain_text import encode_texts

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TokenRow:
    """One row that the model is to read.

    Attributes:
        prompt: its tokens.
        answer: the tokens to be scored behind it; none where one is to be written.
        sources: the prompt of each source; empty where there is no text.
        lost: tokens that did not fit, of all its prompts.
    """

    prompt: Tokens
    answer: Tokens = ()
    sources: tuple[Tokens, ...] = ()
    lost: int = field(default=0, compare=False)  # the model does not read it

    @property
    def read(self) -> "TokenRow":
        """What the model reads to score the answer: equal for answers that differ in their last token alone."""
        return replace(self, answer=self.answer[:-1])


def rows_of(rows: Sequence[TokenRow]) -> RowsAtHand:
    """Rows as `collate` and `rows_read` want them."""
    names = source_streams(max((len(row.sources) for row in rows), default=0))
    sources = zip_longest(*(row.sources for row in rows), fillvalue=())
    texts = {"target": [row.prompt for row in rows], **dict(zip(names, sources, strict=True))}
    prompts = {name: [np.array(prompt, np.int64) for prompt in of_stream] for name, of_stream in texts.items()}
    return RowsAtHand(prompts, [np.array(row.answer, np.int64) for row in rows])


@dataclass(frozen=True)
class RequestEncoder:
    """Tokenizes requests.

    Attributes:
        tokenizer: of the base.
        templates: of each source's prompt: a field of the documents, or a jinja template over them.
        longest: most tokens in a row.
        joint: whether the target goes on where its sources end, so that they share that length.
    """

    tokenizer: PreTrainedTokenizerBase
    templates: tuple[str, ...]
    longest: int
    joint: bool

    @cached_property
    def form(self) -> PlainForm:
        """How a cache tokenizes prompts."""
        return PlainForm(self.tokenizer)

    @cached_property
    def start(self) -> int:
        """The token before a text that has no context."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return eos if bos is None else bos

    def scored(self, request: Instance) -> TokenRow:
        """The row of a request to score a continuation of a context.

        Raises:
            DataError: the continuation is empty, or too long.
            ConfigError: see `source_text`.
        """
        context, continuation = request.args
        text = context.rstrip()
        prompt, whole = self.form.prompts([text, context + continuation])
        answer = whole[len(prompt) :]
        if not answer:
            problem = f"the continuation {continuation!r} of {context[-40:]!r} ({request.task_name}) has no tokens"
            raise DataError(problem, fix="correct the task's doc_to_choice or doc_to_target")
        sources = self._sources(request, strip=True)
        return self._row([prompt or [self.start], *sources], tuple(answer), len(answer) - 1, request)

    def written(self, request: Instance, longest_answer: int) -> TokenRow:
        """The row of a request to write behind a context.

        Raises:
            DataError: the answer leaves no room for a context.
            ConfigError: see `source_text`.
        """
        (prompt,) = self.form.prompts([request.args[0]])
        sources = self._sources(request, strip=False)
        return self._row([prompt or [self.start], *sources], (), longest_answer, request)

    def windows(self, text: str) -> list[TokenRow]:
        """The rows that together score each token of a text once, with as much before it as fits; they fuse nothing."""
        (tokens,) = encode_texts(self.tokenizer, [text], add_special_tokens=False)
        windows = get_rolling_token_windows(tokens, prefix_token=self.start, max_seq_len=self.longest, context_len=1)
        return [TokenRow(tuple(context), tuple(scored)) for context, scored in map(make_disjoint_window, windows)]

    def _row(self, texts: Sequence[list[int]], answer: Tokens, behind: int, request: Instance) -> TokenRow:
        """A row of a prompt and its sources, with so many tokens behind the prompt."""
        rooms = self._rooms([len(tokens) for tokens in texts], self.longest - behind)
        if min(rooms) <= len(self.form.prefix_ids):
            problem = f"an answer of {behind + 1} tokens leaves no room for the prompt in {self.longest} tokens"
            raise DataError(f"{problem} ({request.task_name})", fix="raise max_length, or lower max_gen_toks")
        lost = sum(max(len(tokens) - room, 0) for tokens, room in zip(texts, rooms, strict=True))
        prompt, *sources = [self._cut(tokens, room) for tokens, room in zip(texts, rooms, strict=True)]
        return TokenRow(prompt, answer, tuple(sources), lost)

    def _rooms(self, lengths: Sequence[int], room: int) -> list[int]:
        """Most tokens of a prompt and of each source; of what they share the longer have what the shorter leave."""
        rooms = [room] * len(lengths)
        if self.joint and any(lengths[1:]):
            left = room - len(self.form.newline_ids) + len(self.form.prefix_ids)
            texts = sorted((place for place, length in enumerate(lengths) if length), key=lengths.__getitem__)
            for done, place in enumerate(texts):
                rooms[place] = left // (len(texts) - done)
                left -= min(lengths[place], rooms[place])
        return rooms

    def _cut(self, prompt: list[int], room: int) -> Tokens:
        """The end of a prompt, behind the special tokens."""
        kept = len(self.form.prefix_ids)
        return tuple(prompt if len(prompt) <= room else self.form.prefix_ids + prompt[kept - room :])

    def _sources(self, request: Instance, *, strip: bool) -> list[list[int]]:
        """The prompt of each source; empty where there is no text."""
        texts = [source_text(template, request) for template in self.templates]
        texts = [text.rstrip() if strip else text for text in texts]
        prompts = zip(texts, self.form.prompts(texts), strict=True)
        return [(prompt or [self.start]) if text.strip() else [] for text, prompt in prompts]


def source_text(template: str, request: Instance) -> str:
    """The source prompt of a request's document: one of its fields, or a jinja template over them, as in doc_to_text.

    A null is an empty text; where a template says no text of the document there is no source, and this is empty.

    Raises:
        ConfigError: the document has no such field, or not a text in it.
    """
    doc: Mapping[str, Any] = request.doc
    where = f"doc_to_source={template!r}, but a document of task {request.task_name}"
    if template in doc:
        text = doc[template]
        if text is None or isinstance(text, str):
            return text or ""
        raise ConfigError(f"{where} has {text!r:.80} there, which is no text", fix="name a field that holds texts")
    if "{" not in template:
        raise ConfigError(f"{where} has no such field", fix=suggestion(template, doc))
    try:
        text = _compiled(template).render(_with_texts(doc, lambda text: text))
    except TemplateError as error:
        raise ConfigError(f"{where} does not fill it: {error}", fix=f"its fields are: {', '.join(doc)}") from None
    return "" if _says_no_text(template, doc, text) else text


def _says_no_text(template: str, doc: Mapping[str, Any], text: str) -> bool:
    """Whether only what stands around the texts is rendered, by a template that reads texts at all."""
    bare = _rendered(template, _with_texts(doc, lambda text: "" if text.strip() else text))
    return text == bare and bare != _rendered(template, _with_texts(doc, lambda _: "text"))


def _rendered(template: str, doc: Mapping[str, Any]) -> str | None:
    """None: it cannot be rendered with these texts, which are not the document's."""
    try:
        return _compiled(template).render(doc)
    except Exception:  # a filter may fail in any way
        return None


def _with_texts(value: Any, said: Callable[[str], str]) -> Any:
    """A document, or a part of it, with other texts in place of its own; a null is an empty one."""
    match value:
        case None | str():
            return said(value or "")
        case Mapping():
            return {key: _with_texts(part, said) for key, part in value.items()}
        case list() | tuple():
            return [_with_texts(part, said) for part in value]
    return value


@cache
def _compiled(template: str) -> Template:
    """In the environment of lm-eval's own templates; every request has the same few."""
    return env.from_string(template)
