"""A world to train in, for the benchmarks that run the trainer: random words in two languages, and a Llama of them."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from workload import make_config, write_model

from flare_ds.config import Config
from flare_ds.tasks.base import TASKS, Pool, Row, Task

WORDS = [f"w{number}" for number in range(4096)]
SHORTEST, LONGEST = 5, 20


class Pairs(Task):
    """Rows of words in two languages, each with its number, so that no text occurs twice.

    `data_dir` says how many rows, and how many words the longest has: `600` or `600x80`.
    """

    name = "pairs"
    version = 1
    languages = ("en", "pl")
    labels = ("good", "bad")

    def read(self, data_dir: str | None, language: str, pool: Pool) -> Iterator[Row]:
        """The rows of a language."""
        rows, longest = map(int, f"{data_dir or 0}x{LONGEST}".split("x")[:2])
        draw = random.Random(language)
        for number in range(rows):
            words = SHORTEST - 1 + number % (longest - SHORTEST + 1)
            first = draw.randrange(len(WORDS) - words)
            yield Row(str(number), {"text": " ".join([str(number), *WORDS[first : first + words]])}, number % 2)

    def prompt(self, fields: Mapping[str, str]) -> str:
        """The text between two words."""
        return f"say {fields['text']} mood"


TASKS.add(Pairs.name, Pairs())


def word_tokenizer(further: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a word, of ours and further ones."""
    words = ["<unk>", "<eos>", "say", "mood", *Pairs.labels, *WORDS, *further]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", model_max_length=4096
    )


def write_base(directory: Path, *, layers: int, width: int, further: Sequence[str] = ()) -> Path:
    """A random Llama with the tokenizer; see `word_tokenizer`."""
    tokenizer = word_tokenizer(further)
    tokenizer.save_pretrained(directory)
    return write_model(directory, layers=layers, width=width, vocabulary=len(tokenizer))


def pairs_config(
    directory: Path,
    *,
    method: str,
    data_dir: str,
    batch: int = 1,
    dtype: str = "float32",
    deepspeed: Path | None = None,
    task: Mapping[str, Any] | None = None,
    **train: Any,
) -> Config:
    """Settings of a run on `data_dir` rows, with everything below `directory`: base, run and cache; flare's defaults.

    For `batch` and the further arguments see `make_config`; `task` is added to the task's. Unless `train` says
    otherwise the ranks share the base.
    """
    config = make_config(
        directory / "base",
        method=method,
        batch=batch,
        dtype=dtype,
        deepspeed=deepspeed,
        form={},
        **({"whole_model": False} | train),
    )
    about = {"name": Pairs.name, "data_dir": data_dir, "target_language": "pl"}
    places = {"run_dir": str(directory / f"run-{method}"), "cache_dir": str(directory / "cache")}
    return Config.model_validate(config.model_dump() | places | {"task": about | dict(task or {})})
