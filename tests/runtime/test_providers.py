"""Stored source states in real runs on two ZeRO-3 ranks: what they give, against one plain process without a store."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import collate
from flare_ds.batches.order import RowOrder
from flare_ds.batches.rows_read import rows_read
from flare_ds.config import Config
from flare_ds.data.cache import Cache, CacheSplit, open_cache, prepare_cache
from flare_ds.data.states_writer import Layout, check_size
from flare_ds.exceptions import ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.mt_encoder import MTEncoder
from flare_ds.models.two_stream import build_model
from flare_ds.runs.changes import changes
from flare_ds.runtime.providers import _of_prompts
from flare_ds.runtime.states import FreeTextStates, _without, for_free_text, store_id
from flare_ds.settings import config_of
from tests.distributed import run_ranks
from tests.forms import PAPER_FORM
from tests.mt import write_mt_model
from tests.qa_world import qa_settings
from tests.toy import REPOSITORY, toy_settings, write_config, write_data
from tests.training.providers_worker import SAVED, STEPS

ROWS = {"train_rows": 35, "validation_rows": 8, "test_rows": 21}  # the batches of 16 run over two epochs
RUNS = {
    "cached-output": ({"provider": "cached"}, {"pairing": "output", "source_norm": False}),
    "cached-input": ({"provider": "cached"}, {"pairing": "input", "align": "stretch"}),
    "cached-keys": ({"provider": "cached"}, {}),
    "mt": ({"mt_encoder": "nllb"}, {"align": "left"}),
    "mt-bf16": ({"mt_encoder": "nllb"}, {}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy")
    write_mt_model(directory / "nllb")
    write_data(directory / "data", languages=("en", "pl", "de"))
    return directory


def make_settings(root: Path, name: str) -> dict:
    source, adapter = RUNS[name]
    settings = toy_settings(root, name=name, steps=10, micro_batch_size=4, max_grad_norm=0.5)
    if "mt_encoder" in source:
        settings["train"]["gradient_checkpointing"] = True
        settings["method"], source = "flare_mt", {"mt_encoder": str(root / "nllb"), "mt_language": "pol_Latn"}
    if name == "cached-keys":
        settings["method"] = "source_prefix"
    if name == "mt-bf16":
        settings["model"]["dtype"] = "bfloat16"
        settings["deepspeed"] = str(REPOSITORY / "ds_configs/zero3_cpu.json")
    settings["task"] |= ROWS
    settings["evaluate"] = {"batch_size": 8}
    return {**settings, "source": source, "adapter": PAPER_FORM | adapter}


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, dict]:
    """What the runs gave on two ranks, by name."""
    out = root / "found.json"
    configs = [str(write_config(make_settings(root, name))) for name in RUNS]
    run_ranks(["tests.training.providers_worker", str(out), *configs], 2)
    return json.loads(out.read_text())


class EncodedTexts:
    """The MT states of a split, each text found by its id in the data's own file, and encoded alone."""

    def __init__(self, config: Config, split: CacheSplit) -> None:
        self.split, self.directory = split, Path(config.task.data_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(config.source.mt_encoder, src_lang="pol_Latn")
        self.encoder = AutoModelForSeq2SeqLM.from_pretrained(config.source.mt_encoder).eval().get_encoder()

    def text(self, row: int) -> str:
        domain, _, number = self.split.ids(row).partition("-")
        examples = json.loads((self.directory / f"{domain}_sentence_pl.json").read_text())["examples"]
        return examples[int(number)]["input"]

    @torch.no_grad()
    def states(self, row: int) -> Tensor:
        inputs = self.tokenizer(self.text(row), return_tensors="pt")
        return self.encoder(**inputs).last_hidden_state[0, :, None]


def plain_torch(config: Config) -> tuple[list[float], Tensor, int]:
    """Losses, scores and trained parameters of the same run without engine and store: cached runs in lockstep."""
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    lockstep = config.source.provider == "cached"
    if lockstep:
        config = config.model_copy(update={"source": config.source.model_copy(update={"provider": "lockstep"})})
    model = build_model(config, label_tokens=cache.label_tokens).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=config.train.weight_decay)

    def forward(rows: np.ndarray, split: CacheSplit) -> tuple[Tensor, Tensor]:
        batch = collate(
            rows_read(split, config, cache.manifest),
            MicroBatch(rows, np.ones(len(rows), np.float32)),
            streams=("source", "target") if lockstep else ("target",),
            objective="labels",
            pad_id=cache.pad_id,
            stored=None if lockstep else EncodedTexts(config, split),
        )
        return model(batch)[:, 0], batch.answers_BN[:, 0]

    losses = train_plainly(config, cache, optimizer, trained, forward)
    test = cache.split("test")
    with torch.no_grad():
        logits_nK, _ = forward(np.arange(len(test)), test)
    return losses, logits_nK.log_softmax(-1), sum(parameter.numel() for parameter in trained)


def train_plainly(config: Config, cache: Cache, optimizer: torch.optim.Optimizer, trained: list, forward) -> list:
    train, split = config.train, cache.split("train")
    order, losses = RowOrder(len(split), train.batch_size, train.seed), []
    for step in range(STEPS):
        warmup = train.steps * 0.1
        share = (step + 1) / warmup if step < warmup else 1 - (step - warmup) / (train.steps - warmup)
        optimizer.param_groups[0]["lr"] = train.learning_rate * share
        logits, answers = forward(order.rows(step), split)
        loss = torch.nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["cached-output", "cached-input", "cached-keys", "mt"])
def test_a_store_gives_what_its_states_would(root: Path, found: dict, name: str) -> None:
    losses, scores, trained = plain_torch(Config.model_validate(make_settings(root, name)))
    np.testing.assert_allclose(found[name]["losses"], losses, rtol=1e-5)
    np.testing.assert_allclose(found[name]["scores"], scores.numpy(), atol=1e-4)
    assert found[name]["trained"] == trained


@pytest.mark.parametrize("name", ["mt", "mt-bf16"])
def test_a_broken_off_run_continues_bit_for_bit(found: dict, name: str) -> None:
    assert found[name]["continued"] == found[name]["losses"][SAVED:]


def test_the_projection_trains_and_is_saved(root: Path, found: dict) -> None:
    assert found["mt"]["projection"].keys() == {"projection.weight", "projection.bias"}
    start = build_model(Config.model_validate(make_settings(root, "mt")), label_tokens=[[4], [5]])
    weight = torch.tensor(found["mt"]["projection"]["projection.weight"])
    assert weight.shape == (64, 24) and (weight - start.projection.weight).abs().max() > 1e-3


def test_every_text_is_encoded_once(found: dict) -> None:
    """Two epochs, an evaluation and a second start later; a rank without a row of its own repeats one."""
    rows, fillers = sum(ROWS.values()), 3
    assert rows <= found["mt"]["encoded_at_start"] <= rows + fillers
    assert found["mt"]["encoded_in_all"] == found["mt"]["encoded_at_start"]


def test_a_free_text_gets_the_states_it_would_be_stored_with(root: Path) -> None:
    config = Config.model_validate(make_settings(root, "mt"))
    split = open_cache(prepare_cache(config, load_tokenizer(config.model))).split("test")
    texts = EncodedTexts(config, split)
    encoder = MTEncoder(config.source, dtype=torch.float32, device=torch.device("cpu"))
    stored = FreeTextStates(encoder, [split.prompt("mt", 5).tolist()])
    torch.testing.assert_close(stored.states(0), texts.states(5))


def test_where_states_would_be_stored_a_free_text_has_its_source_beside_it(root: Path) -> None:
    assert for_free_text(Config.model_validate(make_settings(root, "cached-output"))).source.provider == "lockstep"


def test_whatever_changes_the_states_changes_their_store(root: Path) -> None:
    def key(name: str, *, task: dict | None = None, **sections: dict) -> str:
        settings = make_settings(root, name)
        settings["task"] |= task or {}
        rows = Config.model_validate(settings)
        for section, values in sections.items():
            settings[section] = settings[section] | values
        cache = open_cache(prepare_cache(rows, load_tokenizer(rows.model)))
        return store_id(Config.model_validate(settings), cache).key

    write_mt_model(root / "another", seed=1)
    keys = [
        key("cached-output"),
        key("cached-input"),
        key("cached-keys"),
        key("cached-output", task={"validation_rows": 7}),
        key("cached-output", model={"dtype": "bfloat16"}),
        key("cached-output", model={"quantization": "int8"}),
        key("cached-output", model={"base": str(root / "another")}),
        key("mt"),
        key("mt", task={"validation_rows": 7}),
        key("mt-bf16"),
        key("mt", source={"mt_language": "eng_Latn"}),
        key("mt", source={"mt_encoder": str(root / "another")}),
    ]
    assert len(set(keys)) == len(keys)
    german = {"task": {"target_language": "de"}}
    assert key("cached-output", **german) == keys[0], "it stores what it reads, which is English"
    assert key("mt", **german) != keys[7]
    assert key("cached-output", adapter={"r": 2, "align": "left"}, train={"seed": 5}) == keys[0]
    assert key("mt", adapter={"pairing": "module"}, model={"base": str(root / "another")}) == keys[7]


def test_of_a_row_without_a_source_nothing_is_stored() -> None:
    batch = SimpleNamespace(target_lengths_B=torch.tensor([2, 0, 3]))
    states_BLKD = torch.arange(18.0).view(3, 3, 1, 2)
    kept = _of_prompts(states_BLKD, batch)  # type: ignore[arg-type]
    assert [states_nKD.tolist() for states_nKD in kept] == [states_BLKD[0, 1:].tolist(), [], states_BLKD[2].tolist()]


def test_bf16_learns_too(found: dict) -> None:
    assert np.isfinite(found["mt-bf16"]["losses"]).all()
    assert found["mt-bf16"]["losses"] != found["mt"]["losses"]


@pytest.mark.parametrize("method", ["flare", "source_prefix"])
def test_sources_of_a_task_without_label_words_are_stored_by_a_base_that_ranks_share(
    tmp_path: Path, method: str
) -> None:
    """Its cache has no label words, so the small head of the pass would have no rows."""
    settings = qa_settings(tmp_path, method=method, steps=1) | {"source": {"provider": "cached"}}
    settings["train"] |= {"whole_model": False}
    settings["adapter"] = PAPER_FORM
    settings["task"] |= {"train_rows": 16, "validation_rows": 4, "test_rows": 4}
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps([["train", str(write_config(settings))]]))
    run_ranks(["tests.commands_worker", str(tmp_path), str(commands)], 1)
    assert (tmp_path / "run/training.json").is_file()


WAYS = {"lower task.train_rows": "task.train_rows=34", "set source.provider=lockstep": "source.provider=lockstep"}
FEWER, BESIDE = WAYS


@pytest.mark.parametrize(
    ("name", "new"), [("cached-output", [FEWER, BESIDE]), ("cached-keys", [FEWER, BESIDE]), ("mt", [FEWER])]
)
def test_what_does_without_a_store_is_what_the_run_takes(root: Path, tmp_path: Path, name: str, new: list[str]) -> None:
    """One that has begun is neither trained on nor scored with settings that make another of it."""
    made = make_settings(root, name)
    config = config_of(made)
    taken = [way for way in new if not changes(config, config_of(made, [WAYS[way]]))]
    assert [_without(config, begun) for begun in (False, True)] == [new, taken]
    layout = Layout({"train": np.array([1_000_000])}, (32, 4096), torch.bfloat16)
    with pytest.raises(ConfigError) as refused:
        check_size(layout, tmp_path, 20, new)
    assert refused.value.fix == ", or ".join(["raise source.max_store_gb", *new])


def test_every_rank_refuses_what_cannot_be(found: dict) -> None:
    large, same, tag, as_well = found["refusals"]
    assert large == same and "the source states take" in large and "but source.max_store_gb=1e-06" in large
    assert tag == as_well and "source.mt_language='pol_latn'" in tag and "did you mean 'pol_Latn'?" in tag
