"""A run of chats from end to end, on one process: the signal is learned, the answer ends its turn, in Polish words.

The English text tells the label, the Polish one is random words: only who reads the source can answer.
"""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from tests.distributed import run_ranks
from tests.toy import FILLER, REPOSITORY, word_tokenizer, write_config, write_model

WORDS = {"en": ["good", "bad"], "pl": ["dobry", "zły"]}
SIGNAL = ["great", "awful"]
TASK = {
    "name": "chats",
    "languages": ["en", "pl"],
    "pools": ["train", "validation", "test"],
    "fields": ["text"],
    "labels": WORDS,
    "template": {"en": "Review: {text}\nSentiment:", "pl": "Opinia: {text}\nOcena:"},
}
SIZES = {"train": 400, "validation": 40, "test": 60}
CHAT = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
SAID = [
    "Review",
    "Sentiment",
    "Opinia",
    "Ocena",
    ":",
    "user",
    "assistant",
    *WORDS["en"],
    *WORDS["pl"],
    *SIGNAL,
    *FILLER,
]


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer(SAID)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def write_data(directory: Path) -> None:
    for language in TASK["languages"]:
        for pool, rows in SIZES.items():
            draw = random.Random(f"{language}-{pool}")
            lines = []
            for number in range(rows):
                words = draw.choices(FILLER, k=5)
                if language == "en":
                    words[draw.randrange(5)] = SIGNAL[number % 2]
                lines.append({"text": " ".join(words), "label": WORDS[language][number % 2]})
            path = directory / language / f"{pool}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def settings(root: Path, **changes: object) -> dict:
    return {
        "method": "flare",
        "run_dir": str(root / "run"),
        "cache_dir": str(root / "cache"),
        "deepspeed": str(REPOSITORY / "ds_configs/zero3_fp32_cpu.json"),
        "model": {"base": str(root / "model"), "dtype": "float32"},
        "task": {
            "name": "chats",
            "path": str(root / "chats.yaml"),
            "data_dir": str(root / "data"),
            "target_language": "pl",
            "chat": True,
        },
        "train": {
            "steps": 80,
            "batch_size": 32,
            "learning_rate": 0.01,
            "objective": "vocabulary",
            "validate_every": 40,
            "save_every": 1000,
        },
        "generate": {"max_new_tokens": 4},
        "evaluate": {"whole_model": True},
    } | changes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained, scored ranked and generated, and asked; each method that trains nothing scored once."""
    root = tmp_path_factory.mktemp("chats")
    write_model(root / "model", tokenizer=chat_tokenizer())
    write_data(root / "data")
    (root / "chats.yaml").write_text(yaml.safe_dump(TASK))
    run = str(write_config(settings(root)))
    lines = [json.loads(line) for line in (root / "data/pl/test.jsonl").read_text().splitlines()]
    sources = [json.loads(line) for line in (root / "data/en/test.jsonl").read_text().splitlines()]
    rows = [
        {"id": f"test-{number}", "target": line["text"], "source": sources[number]["text"]}
        for number, line in enumerate(lines)
    ]
    (root / "rows.json").write_text(json.dumps(rows))
    commands = [["train", run], ["evaluate", run]]
    commands += [["predict", run, "--file", str(root / "rows.json"), "--output", str(root / "ranked.parquet")]]
    commands += [
        ["predict", run, "--file", str(root / "rows.json"), "--generate", "--output", str(root / "written.parquet")]
    ]
    for method in ("translate_test", "zero_shot"):
        commands.append(["evaluate", str(write_config(settings(root, method=method, run_dir=str(root / method))))])
    (root / "commands.json").write_text(json.dumps(commands))
    run_ranks(["tests.evaluation.predict_worker", str(root / "commands.json")], 1)
    return root


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_what_only_the_source_says_is_learned(root: Path) -> None:
    assert metrics(root / "run")["score"] > 0.9
    found = pd.read_parquet(root / "run/predictions.parquet")
    assert set(found["label"]) == set(WORDS["pl"]) and set(found["prediction"]) <= set(WORDS["pl"])


def test_the_form_of_the_prompt_is_in_the_records_of_the_run(root: Path) -> None:
    assert metrics(root / "run")["settings"]["task"]["chat"] is True
    fields = json.loads((root / "run/cache.json").read_text())["fields"]
    assert fields["chat_template"] == {"head": "<bos><turn>user\n", "tail": "<end>\n<turn>assistant\n", "end": "<end>"}
    assert fields["prompt_template"] == TASK["template"] and fields["labels"] == WORDS["pl"]


def test_predicting_asks_as_evaluation_does_in_words_of_the_target(root: Path) -> None:
    evaluated = pd.read_parquet(root / "run/predictions.parquet").set_index("id")
    ranked = pd.read_parquet(root / "ranked.parquet").set_index("id").loc[evaluated.index]
    assert ranked["prediction"].tolist() == evaluated["prediction"].tolist()
    assert [name for name in ranked if name.startswith("probability")] == [
        f"probability_{word}" for word in WORDS["pl"]
    ]


def test_what_is_written_is_a_word_that_ends_the_turn(root: Path) -> None:
    written = pd.read_parquet(root / "written.parquet").set_index("id")
    ranked = pd.read_parquet(root / "ranked.parquet").set_index("id").loc[written.index]
    assert written["prediction"].tolist() == ranked["prediction"].tolist(), "nothing stands behind the word"


def test_who_reads_the_source_is_answered_in_its_words(root: Path) -> None:
    for method, language in (("translate_test", "en"), ("zero_shot", "pl")):
        assert set(pd.read_parquet(root / method / "predictions.parquet")["label"]) == set(WORDS[language])
