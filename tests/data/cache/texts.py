"""A task of any texts in two languages, and a tokenizer whose tokens are bytes, so that nothing is lost on the way."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flare_ds.config import Config
from flare_ds.settings import parse_config
from tests.toy import REPOSITORY

LANGUAGES = ("en", "pl")
LABELS = ("good", "bad")
TASK = {
    "name": "texts",
    "languages": [*LANGUAGES],
    "pools": ["train", "validation", "test"],
    "fields": ["text", "note"],
    "template": "{note}: {text} Answer:",
    "id_column": "id",
}
Tables = Mapping[str, Mapping[str, Sequence[Mapping[str, object]]]]
"""Records by split and language."""


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a byte, and an eos."""
    ids = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>"} | special)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What tokens say, special ones left out."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def prompt(record: Mapping[str, object]) -> str:
    """The prompt of a record that is not cut."""
    return f"{record['note']}: {record['text']} Answer:"


def write_tables(root: Path, tables: Tables) -> None:
    """Write each table where the task finds it."""
    for split, by_language in tables.items():
        for language, records in by_language.items():
            path = root / "data" / language / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def some_tables(rows: int, *, said: str = "word") -> dict[str, dict[str, list[dict[str, object]]]]:
    """Tables of that many training rows, and a tenth as many others, with a label each; texts get longer and longer."""

    def record(split: str, language: str, number: int) -> dict[str, object]:
        text = f"{said} ł {language} " * (number % 7)
        return {"id": f"{split}-{number}", "text": text, "note": f"{split} {number}", "label": LABELS[number % 2]}

    sizes = {"train": rows, "validation": rows // 10, "test": rows // 10}
    return {
        split: {language: [record(split, language, number) for number in range(size)] for language in LANGUAGES}
        for split, size in sizes.items()
    }


def make_settings(root: Path, *, free_answers: bool = False, **task: object) -> dict:
    """A config's settings on the tables below `root`."""
    declaration = TASK if free_answers else TASK | {"labels": [*LABELS]}
    (root / "texts.yaml").write_text(yaml.safe_dump(declaration), encoding="utf-8")
    settings = {"name": "texts", "path": str(root / "texts.yaml"), "data_dir": str(root / "data")}
    return {
        "method": "lora",
        "run_dir": str(root / "run"),
        "cache_dir": str(root / "caches"),
        "deepspeed": str(REPOSITORY / "ds_configs/zero3_fp32_cpu.json"),
        "model": {"base": str(root / "model")},
        "task": settings | {"target_language": "pl", "max_prompt_tokens": 100_000} | task,
        "train": {"steps": 1, "objective": "vocabulary"},
    }


def make_config(root: Path, *, free_answers: bool = False, **task: object) -> Config:
    """The same as a config."""
    return parse_config(make_settings(root, free_answers=free_answers, **task), origin="test")
