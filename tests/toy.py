"""A toy world in the real formats: a small random model directory, and MultiEmo files whose label only English tells.

The English text names the label; the Polish text is random words. So a model that reads only the target can do no
better than chance, and one that fuses the source can be right every time.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LABELS = ("positive", "negative", "neutral", "ambivalent")
SIGNAL = {"positive": "great", "negative": "awful", "neutral": "plain", "ambivalent": "mixed"}
FILLER = [f"word{i}" for i in range(20)]
REPOSITORY = Path(__file__).resolve().parent.parent


WORDS = ["Review", ":", "Sentiment", *LABELS, *SIGNAL.values(), *FILLER]


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A token for each word."""
    words = ["<bos>", "<eos>", "<pad>", "<unk>", *words]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def write_model(
    directory: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A random Llama with a tokenizer, by default one of the toy world's words."""
    tokenizer = tokenizer or word_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_data(directory: Path, *, rows: int = 600, languages: tuple[str, ...] = ("en", "pl"), seed: int = 0) -> Path:
    """MultiEmo files: `rows` rows a domain; row i is "the same sentence" in every language."""
    directory.mkdir(parents=True, exist_ok=True)
    for domain in ("medicine", "products"):
        draw = random.Random(f"{domain}-{seed}")
        labels = [draw.choice(LABELS) for _ in range(rows)]
        for language in languages:
            draw = random.Random(f"{domain}-{language}-{seed}")
            examples = []
            for label in labels:
                words = draw.choices(FILLER, k=draw.randint(4, 6))
                if language == "en":
                    words.insert(draw.randint(0, len(words)), SIGNAL[label])
                target_scores = {word: int(word == label) for word in LABELS}
                examples.append({"input": " ".join(words), "target_scores": target_scores})
            path = directory / f"{domain}_sentence_{language}.json"
            path.write_text(json.dumps({"examples": examples}), encoding="utf-8")
    return directory


def toy_settings(root: Path, *, method: str = "flare", name: str = "run", **train: object) -> dict:
    """A run's settings on the toy world below `root`, made there if absent; it trains sharded."""
    if not (root / "model").exists():
        write_model(root / "model")
        write_data(root / "data")
    return {
        "method": method,
        "run_dir": str(root / name),
        "cache_dir": str(root / "cache"),
        "deepspeed": str(REPOSITORY / "ds_configs/zero3_fp32_cpu.json"),
        "model": {"base": str(root / "model"), "dtype": "float32"},
        "task": {
            "name": "multiemo",
            "data_dir": str(root / "data"),
            "target_language": "pl",
            "validation_rows": 40,
            "test_rows": 101,
        },
        "train": {
            "steps": 10,
            "batch_size": 16,
            "learning_rate": 0.01,
            "validate_every": 5,
            "save_every": 2,
            "whole_model": False,
            **train,
        },
    }


def write_config(settings: dict) -> Path:
    """Write the settings as YAML beside the run's directory."""
    path = Path(settings["run_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
