"""docs/chat.md: its settings are settings, its example is what the tokens say, its messages are ours."""

import re
from pathlib import Path

import yaml

from flare_ds.config import TaskConfig
from flare_ds.data.cache.encode import form_of, tokenize_answers
from flare_ds.tasks import TASKS
from flare_ds.tokenizing import chat
from tests.chats import chat_tokenizer
from tests.toy import REPOSITORY

PAGE = (REPOSITORY / "docs/chat.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_settings_are_settings() -> None:
    settings = yaml.safe_load(block("yaml"))
    assert TaskConfig.model_validate(settings["task"]).chat


def test_the_printed_chat_is_what_the_tokens_say() -> None:
    tokenizer, task = chat_tokenizer("gemma"), TASKS.get("multiemo")
    form = form_of(tokenizer, chat=True)
    (prompt,) = form.prompts([task.prompt_in("pl", {"text": "Czekałem tygodniami."})])
    (answer,) = tokenize_answers(form, ["negative"])
    assert tokenizer.decode([*prompt, *answer]) == block("text").rstrip("\n")


def test_the_printed_messages_and_the_date_are_ours() -> None:
    code = Path(chat.__file__).read_text(encoding="utf-8")
    table = PAGE.partition("| message | what to do |\n|---|---|\n")[2].partition("\n\n")[0]
    messages = [line.split("|")[1].strip() for line in table.splitlines()]
    assert len(messages) == 3
    for message in messages:
        assert max(message.split("model.base=..."), key=len).strip(". ") in code, message
    assert f"{chat._DAY.day} {chat._DAY:%B %Y}" in " ".join(PAGE.split())
