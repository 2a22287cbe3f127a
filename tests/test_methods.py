"""Every method end to end on two real ranks: what it can learn, it learns; what it cannot see, it does not.

The ranks share the base in the first world (ZeRO-3), and each holds all of it in the second.

    world     English text      Polish text
    source    tells the label   random words
    target    random words      tells the label, in words of its own

The base is tuned on the first world's English and merged, then each method runs from there in both worlds. Texts are
cut by a byte-pair tokenizer trained on them.
"""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flare_ds.exceptions import ConfigError
from flare_ds.methods import METHODS, Method
from tests.distributed import run_ranks
from tests.mt import write_mt_model
from tests.toy import FILLER, LABELS, SIGNAL, toy_settings, write_config, write_model

TOLD_IN_POLISH = dict(zip(LABELS, ("wspaniały", "okropny", "zwyczajny", "mieszany"), strict=True))
TELLING = {"source": {"en": SIGNAL}, "target": {"pl": TOLD_IN_POLISH}}
CAN_LEARN = {
    "source": set(METHODS) - {"zero_shot", "lora", "flare_mt"},
    "target": set(METHODS) - {"zero_shot", "translate_test", "zero_shot_both", "source_lora"},
}
CHANCE = 0.40  # four labels, 103 test rows: .25 with a standard error of .043


def write_world(directory: Path, telling: dict[str, dict[str, str]], rows: int = 600) -> list[str]:
    """MultiEmo files in which the given languages tell the label; returns their texts."""
    directory.mkdir()
    texts = []
    for domain in ("medicine", "products"):
        labels = random.Random(domain).choices(LABELS, k=rows)
        for language in ("en", "pl"):
            draw, examples = random.Random(f"{domain}-{language}"), []
            for label in labels:
                words = draw.choices(FILLER, k=draw.randint(4, 8))
                if language in telling:
                    words.insert(draw.randint(0, len(words)), telling[language][label])
                scores = {word: int(word == label) for word in LABELS}
                examples.append({"input": " ".join(words), "target_scores": scores})
            texts += [example["input"] for example in examples]
            path = directory / f"{domain}_sentence_{language}.json"
            path.write_text(json.dumps({"examples": examples}), encoding="utf-8")
    return texts


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer that starts texts with <bos>, as Llama's and Gemma's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*texts, *(f"Review: x\nSentiment: {label}" for label in LABELS * 50)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def settings(root: Path, world: str, method: str) -> dict:
    found = toy_settings(root, method=method, name=f"{world}/{method}", steps=60, batch_size=32, micro_batch_size=16)
    found["evaluate"] = {"late": "fitted"} if method == "late" else {}  # which text is noise, it is to find out
    found["train"] |= {"learning_rate": 0.01, "validate_every": 30, "save_every": 1000}
    found["train"]["whole_model"] = found["evaluate"]["whole_model"] = world == "target"
    found["adapter"] = {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]}
    found["task"] |= {"data_dir": str(root / world), "validation_rows": 60, "test_rows": 103}
    found["model"] |= {"base": str(root / "tuned")}
    if world == "target":  # its English is noise: what x_mixup learns from it and draws towards it is to weigh little
        found["mixup"] = {"source_weight": 0.1, "mse_weight": 0.1, "kl_weight": 0.1}
    found["source"] = {"mt_encoder": str(root / "nllb")}  # for all, so that all share one cache
    return found


def stage1(root: Path) -> dict:
    found = settings(root, "source", "lora") | {"run_dir": str(root / "stage1")}
    found["task"] |= {"target_language": "en"}
    found["model"] |= {"base": str(root / "model")}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("methods")
    texts = [text for world, telling in TELLING.items() for text in write_world(root / world, telling)]
    tokenizer = train_tokenizer(texts)
    write_model(root / "model", tokenizer=tokenizer)
    write_mt_model(root / "nllb")
    configs = [write_config(settings(root, world, method)) for world in TELLING for method in METHODS]
    first = write_config(stage1(root))
    run_ranks(["tests.methods_worker", str(first), str(root / "tuned"), *map(str, configs)], 2)
    return root


@pytest.mark.parametrize(
    ("pieces", "fix"),
    [
        ({"states": "source"}, "give both states and fuses"),
        ({"fuses": "bottleneck"}, "give both states and fuses"),
        ({"states": "mt_encoder", "fuses": "mixup"}, "use fuses='bottleneck'"),
        ({"reads": "behind", "states": "mt_encoder", "fuses": "keys"}, "use fuses='bottleneck'"),
        ({"reads": "behind", "states": "source", "fuses": "bottleneck"}, "give both reads='behind' and fuses='keys'"),
        ({"states": "source", "fuses": "keys"}, "give both reads='behind' and fuses='keys'"),
        ({"states": "source", "fuses": "bottleneck", "trains": False}, "fuses='bottleneck' needs trains=True"),
        ({"states": "source", "fuses": "mixup", "trains": False}, "fuses='mixup' needs trains=True"),
    ],
)
def test_pieces_that_would_run_as_another_method_are_refused(pieces: dict, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"do not go together\n  fix: .*{fix}"):
        Method(**pieces)


def read(root: Path, name: str) -> dict:
    return json.loads((root / name).read_text())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("world", TELLING)
def test_what_a_method_can_see_it_learns_and_nothing_else(root: Path, world: str, method: str) -> None:
    score = read(root, f"{world}/{method}/metrics.json")["score"]
    if method in CAN_LEARN[world]:
        assert score > 0.95
    else:
        assert score < CHANCE


@pytest.mark.parametrize("world", TELLING)
def test_what_trains_beats_its_start(root: Path, world: str) -> None:
    for method in CAN_LEARN[world]:
        if METHODS.get(method).trains:
            training = read(root, f"{world}/{method}/training.json")
            start, best = training["start_validation_score"], training["best_validation_score"]
            assert best > 0.95
            # What puts English text or states before a frozen model reads them as the tuned base learned to.
            if world == "source" and method in ("source_lora", "input_fusion", "source_prefix", "late"):
                assert start > 0.95
            elif (world, method) == ("source", "x_mixup"):
                assert start < best
            else:
                assert start < CHANCE


def test_all_methods_read_one_cache_and_draw_the_same_examples(root: Path) -> None:
    for world in TELLING:
        assert len({read(root, f"{world}/{method}/cache.json")["key"] for method in METHODS}) == 1
        trained = [method for method in METHODS if METHODS.get(method).trains]
        assert len({read(root, f"{world}/{method}/training.json")["examples"] for method in trained}) == 1
