"""The content key: everything the tokens depend on, as named fields, and their checksum.

Two configs share a cache exactly when all fields are equal; two unequal ones are told apart field by field. A field
that a cache or run of an earlier version does not have is taken for None.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.checksums import canonical_json
from flare_ds.config import Config, TaskConfig
from flare_ds.data.cache.encode import PlainForm
from flare_ds.data.cache.format import FORMAT_VERSION
from flare_ds.data.cache.windows import WINDOWS_VERSION
from flare_ds.data.parallel import ParallelData, Side, split_language
from flare_ds.progress import bar
from flare_ds.tasks.base import Task
from flare_ds.tasks.probes import probed_prompts, unsaid_fields
from flare_ds.tokenizing.chat import read_frame
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint
from flare_ds.tokenizing.mt_tokens import MT_TEXT_VERSION, load_mt_tokenizer

SPECIAL_TOKENS = (
    "prompt: the tokenizer's own, less a final eos; text that looks like one stays text; "
    "answer: as it follows a text, then eos, if there is one"
)
CHAT_TOKENS = (
    "prompt: those of the chat template, for a user's turn; text that looks like one stays text; "
    "answer: as the assistant's turn begins, then the token that ends it"
)
"""The same of chats; raised, like a version, whenever the same template would give other tokens."""
ANSWERS = "the first one, on one line, anywhere in its window"


def key_fields(config: Config, task: Task, data: ParallelData, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Collect all that the tokens of a cache depend on, as JSON values.

    What a translation or a file of the user's own contributes is in the rows and the prompt template.

    Raises:
        ConfigError: the MT encoder's tokenizer cannot be used, or the base's has no chat template that can.
    """
    form = None if config.task.chat else PlainForm(tokenizer)
    return {
        **asked_fields(config, task),
        **chat_fields(config, tokenizer),
        # Only with eos in it: a cache of such prompts once had them otherwise, all others have the tokens they had.
        "prefix_ids": form.prefix_ids if form and form.eos_id in form.prefix_ids else None,
        "rows_sha256": rows_fingerprint(data),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "mt_tokenizer_sha256": tokenizer_fingerprint(load_mt_tokenizer(config.source)) if config.caches_mt else None,
    }


def chat_fields(config: Config, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a chat template contributes; nothing where prompts are no chats."""
    return {"chat_template": asdict(read_frame(tokenizer))} if config.task.chat else {}


SPLIT = "split_language"
"""The language that decides a split made here, where others once did."""
CLUSTERS = "clusters_of"
"""Whose texts say what was drawn together, where the target's once did: a translated passage had many wordings."""
ANSWERED = "right_answers_of"
"""Whose free answers are right, and whose text is read through several windows, where it is not the target's, as once
it was in any case."""
PROBES = "prompts_of_texts"
"""What a prompt in code does to texts, which the template does not show."""
UNSAID = "unsaid_fields"
"""Those that a prompt does not say, by language; once they told rows apart that are alike to a model. Only where there
are any: the keys of all other caches are what they were."""


def asked_fields(config: Config, task: Task) -> dict[str, Any]:
    """Those of the fields that the settings and the task say, without data or tokenizers."""
    settings = config.task
    unsaid = {code: fields for code in settings.languages if (fields := unsaid_fields(task, code))}
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "task_version": task.version,
        "sides": settings.sides,
        "source_language": settings.source_language,
        "extra_source_languages": list(settings.extra_source_languages),
        "target_language": settings.target_language,
        "train_rows": settings.train_rows,
        "validation_rows": settings.validation_rows,
        "test_rows": settings.test_rows,
        "labels": list(task.label_words(config.answer_language)),
        "prompt_template": _prompts(settings, task),
        "long_field": task.long_field,
        "cluster_fields": list(task.cluster_fields),
        "max_prompt_tokens": settings.max_prompt_tokens,
        "windows_version": WINDOWS_VERSION,
        "special_tokens": CHAT_TOKENS if settings.chat else SPECIAL_TOKENS,
        "answers": ANSWERS if task.free_answers else None,
        "mt_language": config.source.mt_language if config.caches_mt else None,
        "mt_text_version": MT_TEXT_VERSION if config.caches_mt else None,
        SPLIT: split_language(task, settings),
        CLUSTERS: "the side that was read" if settings.is_translated and task.free_answers else None,
        ANSWERED: "the source, through its windows" if config.answers_source and task.free_answers else None,
        PROBES: probed_prompts(task, settings.languages) if settings.is_code else None,
        **({UNSAID: unsaid} if unsaid else {}),
    }


def _prompts(settings: TaskConfig, task: Task) -> str | dict[str, str]:
    """The prompt around a row's fields; that of each language, where they differ."""
    prompts = {code: _prompt_around(task, code) for code in settings.languages}
    return prompts if len(set(prompts.values())) > 1 else prompts[settings.target_language]


def _prompt_around(task: Task, language: str) -> str:
    """The prompt with `{text}` for the field text; marked as no prompt has it, where this one says `{text}` itself."""
    blank = {name: "{" + name + "}" for name in task.fields}
    marked = task.prompt_in(language, {name: "{\0" + name + "}" for name in task.fields})
    return marked if any(text in marked for text in blank.values()) else task.prompt_in(language, blank)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Say field by field how a cache differs from what is wanted, e.g. `max_prompt_tokens: 64, not 128`."""
    return [f"{name}: {found.get(name)!r}, not {wanted.get(name)!r}" for name in differing(wanted, found)]


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two caches differ."""
    return [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]


def rows_fingerprint(data: ParallelData) -> str:
    """Checksum of every row of every split, in order; independent of where the files lie. Reads each row once."""
    checksum = hashlib.sha256()
    with bar(total=sum(map(len, data.splits.values())), desc="checksum", unit="row") as progress:
        for split, rows in data.splits.items():
            for row in rows:
                sides = [side and _content(side) for side in (*row.sources, row.target)]
                checksum.update(canonical_json([split, row.id, row.label, *sides]) + b"\n")
                progress.update()
    return checksum.hexdigest()


def _content(side: Side) -> list[Any]:
    return [dict(side.fields), [[answer.text, answer.start] for answer in side.answers]]
