"""What each method reads in the target's place: prompts and lengths against the texts themselves."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from flare_ds.batches.rows_read import rows_read
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from tests.data.cache.moods import MOODS, moods_config, said_in, write_data
from tests.data.cache.texts import byte_tokenizer

PREFIX, NEWLINE = [1], [7, 8]
SOURCES = [[1, 20, 21], [], [1, 22]]
TARGETS = [[1, 30], [1, 31, 32], [1, 33, 34, 35]]
READ = {
    "lora": TARGETS,
    "translate_test": [[1, 20, 21], [1, 31, 32], [1, 22]],
    "source_lora": [[1, 20, 21], [1, 31, 32], [1, 22]],
    "input_fusion": [[1, 20, 21, 7, 8, 30], [1, 31, 32], [1, 22, 7, 8, 33, 34, 35]],
    "source_prefix": [[7, 8, 30], [1, 31, 32], [7, 8, 33, 34, 35]],
}


class ThreeRows:
    """Rows whose answers have one token, their sources' two; the second has no source."""

    labels = np.array([2, 0, 1])
    streams = {"source": SOURCES, "target": TARGETS}  # noqa: RUF012 - never changed

    def __len__(self) -> int:
        return 3

    def prompt(self, stream: str, row: int) -> np.ndarray:
        return np.array(self.streams[stream][row], np.uint16)

    def answer(self, stream: str, row: int) -> np.ndarray:
        return np.array([40 + row] if stream == "target" else [50 + row, 60])

    def prompt_lengths(self, stream: str) -> np.ndarray:
        return np.array([len(prompt) for prompt in self.streams[stream]])

    def lengths(self, stream: str) -> np.ndarray:
        return self.prompt_lengths(stream) + (1 if stream == "target" else 2)


def with_method(config: Config, method: str) -> Config:
    return config.model_copy(update={"method": method})


@pytest.mark.parametrize("method", READ)
def test_prompts_and_their_lengths(tmp_path: Path, method: str) -> None:
    tokens = SimpleNamespace(prefix_ids=PREFIX, suffix_ids=[], newline_ids=NEWLINE)
    rows = rows_read(ThreeRows(), with_method(moods_config(tmp_path), method), tokens)
    assert [rows.prompt("target", row).tolist() for row in range(3)] == READ[method]
    assert rows.prompt_lengths("target").tolist() == [len(prompt) for prompt in READ[method]]
    answers = [rows.answer("target", row).tolist() for row in range(3)]
    reads_source = method in ("translate_test", "source_lora")
    assert answers == ([[50, 60], [41], [52, 60]] if reads_source else [[40], [41], [42]])
    whole = [len(prompt) + len(answer) for prompt, answer in zip(READ[method], answers, strict=True)]
    assert rows.lengths("target").tolist() == whole
    assert [rows.prompt("source", row).tolist() for row in range(3)] == SOURCES
    assert rows.lengths("source").tolist() == [5, 2, 4]
    assert rows.answer("source", 0).tolist() == [50, 60]
    assert rows.labels.tolist() == [2, 0, 1] and len(rows) == 3


class SecondSource(ThreeRows):
    """The first row has two sources, the second one, and that is its second."""

    streams = {"source": SOURCES, "source2": [[1, 50], [1, 51, 52], []], "target": TARGETS}  # noqa: RUF012


def test_behind_several_sources(tmp_path: Path) -> None:
    config = with_method(moods_config(tmp_path), "source_prefix")
    several = config.model_copy(update={"task": config.task.model_copy(update={"extra_source_languages": ("de",)})})
    tokens = SimpleNamespace(prefix_ids=PREFIX, suffix_ids=[], newline_ids=NEWLINE)
    rows = rows_read(SecondSource(), several, tokens)
    wanted = [[7, 8, 30], [7, 8, 31, 32], [7, 8, 33, 34, 35]]
    assert [rows.prompt("target", row).tolist() for row in range(3)] == wanted
    assert rows.prompt_lengths("target").tolist() == [3, 4, 5]
    assert rows.prompt("source2", 1).tolist() == [1, 51, 52]


def tokenizer_with_bos() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(bos_token="<s>")
    special = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    return tokenizer


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("moods")
    write_data(root / "data")
    return open_cache(prepare_cache(moods_config(root, max_prompt_tokens=200), tokenizer_with_bos()))


def test_both_texts_stand_in_one_row_as_their_tokenizer_would_cut_them(cache: Cache, tmp_path: Path) -> None:
    tokenizer, split = tokenizer_with_bos(), cache.split("test")
    english = (cache.path.parent.parent / "data/en.txt").read_text(encoding="utf-8").splitlines()
    rows = rows_read(split, with_method(moods_config(tmp_path), "input_fusion"), cache.manifest)
    for row in range(len(split)):
        words = english[int(split.ids(row).removeprefix("rów-"))].split()
        source, target = (MOODS.prompt({"text": " ".join(said_in(language, words))}) for language in ("en", "de"))
        read = rows.prompt("target", row).tolist()
        assert tokenizer.decode(read, skip_special_tokens=True) == f"{source}\n{target}"
        assert read[0] == tokenizer.bos_token_id and read.count(tokenizer.bos_token_id) == 1
        assert len(read) == rows.prompt_lengths("target")[row]
