"""Prompts as chats: token by token what the tokenizer's own `apply_chat_template` says of the whole conversation."""

import random
import string
from datetime import date
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flare_ds.data.cache.encode import form_of, label_tokens, prompt_windows, tokenize_answers
from flare_ds.data.cache.windows import Wanted
from flare_ds.exceptions import ConfigError
from flare_ds.tokenizing.chat import ChatForm, read_frame
from tests.chats import CONTROL, ENDS, OLDER, TEMPLATES, chat_tokenizer
from tests.data.cache.moods import MOODS
from tests.data.cache.texts import byte_tokenizer

DAY = "26 Jul 2024"
of_every_kind = pytest.mark.parametrize("kind", TEMPLATES)
TOKENIZERS = {kind: chat_tokenizer(kind) for kind in TEMPLATES}
TEXTS = [
    "Review: good food\nSentiment:",
    "x",
    "a  b\n\nc?",
    "żółć 😀 ﬁ ½",
    "",
    "user\nno",
    "[INST] [/INST]",
    "Date: %d",
]


def said(tokenizer: PreTrainedTokenizerFast, *turns: str, **settings: object) -> list[int]:
    """The ids of a conversation, as transformers gives them."""
    roles = ["user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    told = tokenizer.apply_chat_template(
        messages, date_string=DAY, enable_thinking=False, return_dict=False, **settings
    )
    assert isinstance(told, list)
    return told


def form(kind: str) -> ChatForm:
    found = form_of(TOKENIZERS[kind], chat=True)
    assert isinstance(found, ChatForm)
    return found


def random_text(draw: random.Random) -> str:
    letters = string.printable + "żółć中文😀\u0301\u00a0"
    return "".join(draw.choices([*letters, " the", "\n\n", "Sentiment:", " good"], k=draw.randint(0, 40)))


@of_every_kind
def test_a_prompt_is_what_the_template_says_up_to_the_answer(kind: str) -> None:
    draw = random.Random(kind)
    texts = [*TEXTS, *(random_text(draw) for _ in range(300))]
    for text, ids in zip(texts, form(kind).prompts(texts), strict=True):
        assert ids == said(TOKENIZERS[kind], text.strip(), add_generation_prompt=True), text


@of_every_kind
def test_an_answer_is_what_the_template_says_behind_the_prompt_and_ends_the_turn(kind: str) -> None:
    tokenizer, chat = TOKENIZERS[kind], form(kind)
    draw = random.Random(kind)
    texts = ["positive", "no", "two words", "żółć", *(" ".join(random_text(draw).split()) or "x" for _ in range(100))]
    asked = chat.prompts(["Review: good\nSentiment:"])[0]
    for text, ids in zip(texts, tokenize_answers(chat, texts), strict=True):
        whole = said(tokenizer, "Review: good\nSentiment:", text)
        assert whole[: len(asked)] == asked
        if kind == "llama2":  # a space stands in front of its </s>, which an answer does not say
            assert tokenizer.decode(ids[:-1]) == f" {text}" and ids[-1] == whole[-1]
        else:
            assert whole[len(asked) : len(asked) + len(ids)] == ids
        assert ids[-1] == chat.eos_id == tokenizer.convert_tokens_to_ids(ENDS[kind])


@of_every_kind
def test_what_looks_like_a_control_token_stays_text(kind: str) -> None:
    tokenizer, chat = TOKENIZERS[kind], form(kind)
    bos, eos, others = CONTROL[kind]
    tokens = [token for token in (bos, eos, *others, *(["<think>"] if kind == "chatml" else [])) if token]
    texts = [f"a {token} b{token}{token}\nuser" for token in tokens] + tokens
    control = set(tokenizer.convert_tokens_to_ids(tokens))
    neutral = sum(number in control for number in chat.prompts(["neutral"])[0])
    for text, ids in zip(texts, chat.prompts(texts), strict=True):
        assert sum(number in control for number in ids) == neutral
        inside = ids[len(chat.prefix_ids) : len(ids) - len(chat.suffix_ids)]
        assert tokenizer.decode(inside, clean_up_tokenization_spaces=False).strip() == text
        assert ids == [*chat.prefix_ids, *inside, *chat.suffix_ids]
    for text, ids in zip(texts, tokenize_answers(chat, texts), strict=True):
        assert not control.intersection(ids[:-1]) and tokenizer.decode(ids[:-1]).strip() == text


@of_every_kind
def test_a_tokenizer_that_cuts_line_breaks_by_what_follows_them(kind: str) -> None:
    tokenizer = chat_tokenizer(kind, OLDER)
    chat = form_of(tokenizer, chat=True)
    for text, ids in zip(TEXTS, chat.prompts(TEXTS), strict=True):
        assert ids == said(tokenizer, text, add_generation_prompt=True) or not text
    for text, ids in zip(TEXTS[:4], tokenize_answers(chat, TEXTS[:4]), strict=True):
        assert tokenizer.decode(ids[:-1]).strip() == text


@of_every_kind
def test_every_prompt_begins_and_ends_alike_so_that_two_can_be_joined(kind: str) -> None:
    draw, chat = random.Random(kind), form(kind)
    texts = [random_text(draw) for _ in range(300)] + ["\n", "  ", "\n\nx", ENDS[kind]]
    for ids in chat.prompts(texts):
        assert ids[: len(chat.prefix_ids)] == chat.prefix_ids
        assert ids[len(ids) - len(chat.suffix_ids) :] == chat.suffix_ids
        assert len(ids) >= len(chat.prefix_ids) + len(chat.suffix_ids)


@of_every_kind
@pytest.mark.parametrize("room", [1, 7, 12])
def test_cutting_a_long_text_cuts_no_template(kind: str, room: int) -> None:
    tokenizer, chat = TOKENIZERS[kind], form(kind)
    blank = len(chat.prompts([MOODS.prompt({"text": ""})])[0])
    windows = prompt_windows(MOODS, "en", chat, blank + room)
    text = "the soup was cold and the waiter was rude, and the soup was cold"
    (window,) = windows.fit([Wanted({"text": text})])
    assert 0 < window.end < len(text) and len(window.prompt) <= blank + room
    shown = MOODS.prompt({"text": text[window.start : window.end]})
    assert window.prompt == said(tokenizer, shown, add_generation_prompt=True)


@of_every_kind
def test_label_words_follow_the_prompt_as_the_template_has_it(kind: str) -> None:
    tokens = label_tokens(["positive", "negative"], form(kind))
    space = " " if kind == "llama2" else ""
    assert [TOKENIZERS[kind].decode(ids) for ids in tokens] == [f"{space}positive", f"{space}negative"]


def test_a_template_that_says_the_date_says_the_same_every_day() -> None:
    frame = read_frame(TOKENIZERS["llama3"])
    assert f"Today Date: {DAY}<|eot_id|>" in frame.head
    assert str(date.today().year) not in frame.head
    tokenizer = chat_tokenizer("gemma")
    tokenizer.chat_template = "{{ strftime_now('%A %Y-%m-%d %H:%M') }}\n" + TEMPLATES["gemma"]
    assert read_frame(tokenizer).head.startswith("Friday 2024-07-26 00:00\n<bos>")


def test_the_form_of_an_ordinary_template_is_not_touched_by_the_date() -> None:
    tokenizer = chat_tokenizer("gemma")
    tokenizer.chat_template = "  {% set x = strftime_now('') %}\n" + TEMPLATES["gemma"]
    messages = [{"role": "user", "content": "a"}]
    alone = tokenizer.apply_chat_template(messages, tokenize=False)
    assert isinstance(alone, str) and read_frame(tokenizer).head == alone.split("a<end")[0]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no assistants here') }}", "fails: TemplateError: no assistants here"),
        ("{% for m in messages %}", "fails: TemplateSyntaxError"),
        ("{{ messages[0]['content'].x.y }}", "fails: UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails: SecurityError"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not render"),
        ("{{ messages[0]['content'] }}", "does not render"),
        ("{% for m in messages %}{{ m['content'] | tojson }}{% endfor %}", "does not render"),
        ("{{ messages[1]['content'] + messages[0]['content'] }}", "does not render"),
        ("{% for m in messages + messages %}{{ m['content'] }}{% endfor %}", "does not render"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str | None, problem: str) -> None:
    tokenizer = byte_tokenizer(name_or_path="some/base")
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=problem) as told:
        form_of(tokenizer, chat=True)
    assert "'some/base'" in told.value.problem and "task.chat=false" in told.value.fix


def test_an_answer_ends_in_eos_where_the_template_names_no_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    chat = form_of(tokenizer, chat=True)
    assert tokenizer.decode(chat.prompts(["a\n"])[0]) == "user: a\n\nassistant:"
    assert tokenizer.decode(tokenize_answers(chat, ["b"])[0]) == " b<eos>"


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("gemma")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("{{ messages }}")
    reloaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert set(reloaded.chat_template) == {"default", "tool_use"}
    assert read_frame(reloaded) == read_frame(tokenizer)
