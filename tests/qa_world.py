"""A toy world of extractive QA in the real formats: who is named in a text?

A text is random words, among which one person stands, first name and family name. The question always is the same. So
a model can learn to answer, and one that is not trained cannot. Long test texts do not fit into a prompt, and name the
person in some place of them.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flare_ds.data import translated
from flare_ds.tasks.base import Row
from tests.toy import FILLER, REPOSITORY, word_tokenizer, write_model

FIRST = [f"first{i}" for i in range(6)]
FAMILY = [f"family{i}" for i in range(6)]
WORDS = ["Text", ":", "Question", "Who", "?", "Answer", *FIRST, *FAMILY, *FILLER]
TASK = {
    "name": "who",
    "languages": ["en", "pl"],
    "pools": ["train", "validation", "test"],
    "fields": ["text", "question"],
    "template": "Text: {text}\nQuestion: {question}\nAnswer:",
    "split_fields": ["text"],
    "id_column": "id",
}
ROWS = {"train": 400, "validation": 24, "test": 40}


def write_data(directory: Path, *, long_test: int = 60) -> Path:
    """Rows in both languages; the last half of the test texts is long."""
    for language in TASK["languages"]:
        for pool, rows in ROWS.items():
            draw = random.Random(f"{language}-{pool}")
            people = random.Random(pool)
            lines = []
            for number in range(rows):
                person = f"{people.choice(FIRST)} {people.choice(FAMILY)}"
                long = pool == "test" and number >= rows // 2
                words = draw.choices(FILLER, k=long_test if long else draw.randint(4, 6))
                words.insert(draw.randint(0, len(words)), person)
                text = " ".join(words)
                answers = {"text": [person, person.upper()], "answer_start": [text.index(person)] * 2}
                lines.append({"id": f"{pool}{number}", "text": text, "question": "Who?", "answers": answers})
            path = directory / language / f"{pool}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def translate_each_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for translations that say each row in words of its own, but for its answers."""
    monkeypatch.setattr(translated, "find_translation", lambda *_: Path("/nowhere"))
    monkeypatch.setattr(translated, "read_translation", lambda _, rows: _worded_anew(rows))


def _worded_anew(rows: Iterable[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        answers = tuple(replace(answer, start=0) for answer in row.answers)
        yield replace(row, fields={**row.fields, "text": f"{answers[0].text} {number}"}, answers=answers)


def qa_settings(root: Path, *, method: str = "flare", name: str = "run", **train: object) -> dict:
    """A run's settings on this world below `root`, made there if absent."""
    if not (root / "model").exists():
        write_model(root / "model", tokenizer=word_tokenizer(WORDS))
        # Not the tokenizer's eos: only the cache knows what ends an answer.
        (root / "model/generation_config.json").write_text('{"eos_token_id": 3}')
        write_data(root / "data")
        (root / "who.yaml").write_text(yaml.safe_dump(TASK))
    return {
        "method": method,
        "run_dir": str(root / name),
        "cache_dir": str(root / "cache"),
        "deepspeed": str(REPOSITORY / "ds_configs/zero3_fp32_cpu.json"),
        "model": {"base": str(root / "model"), "dtype": "float32"},
        "task": {
            "name": "who",
            "path": str(root / "who.yaml"),
            "data_dir": str(root / "data"),
            "target_language": "pl",
            "max_prompt_tokens": 24,
        },
        "adapter": {"pairing": "module"},
        "train": {
            "batch_size": 32,
            "micro_batch_size": 16,
            "learning_rate": 0.01,
            "objective": "vocabulary",
            "save_every": 1000,
            **train,
        },
        "evaluate": {"batch_size": 64},
        "generate": {"max_new_tokens": 4},
    }
