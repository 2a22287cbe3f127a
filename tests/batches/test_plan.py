"""What a run trains on: the same examples for every method, as many as fit, for as many steps as the settings say."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from flare_ds.batches.batching import split_step
from flare_ds.batches.collate import collate
from flare_ds.batches.order import RowOrder, TokenOrder
from flare_ds.batches.plan import number_of_steps, open_order
from flare_ds.batches.workload import Workload, streams_of
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.exceptions import CheckpointError, ConfigError, HostError
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.runtime import memory
from flare_ds.settings import load_config
from flare_ds.training.state import Progress, fingerprint, read_progress
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config, write_data, write_model

TOKENS = {"batch_tokens": 400, "micro_batch_tokens": 100}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    write_model(root / "model")
    write_data(root / "data", rows=120)
    return root


@pytest.fixture(scope="module")
def cache(root: Path) -> Cache:
    config = Config.model_validate(toy_settings(root))
    return open_cache(prepare_cache(config, load_tokenizer(config.model)))


@pytest.fixture(scope="module")
def shape(root: Path) -> PreTrainedModel:
    return load_shape(Config.model_validate(toy_settings(root)).model)


def make_config(root: Path, *, method: str = "flare", adapter: dict | None = None, **train: object) -> Config:
    return Config.model_validate(toy_settings(root, method=method, **train) | {"adapter": adapter or {}})


def test_the_order_is_no_business_of_the_method(root: Path, cache: Cache) -> None:
    lora, flare = (open_order(make_config(root, method=method, **TOKENS), cache) for method in ("lora", "flare"))
    assert isinstance(flare, TokenOrder) and flare.steps_per_epoch == lora.steps_per_epoch > 10
    for step in range(2 * flare.steps_per_epoch):
        assert lora.rows(step).tolist() == flare.rows(step).tolist()


def test_a_step_holds_the_tokens_of_all_languages(root: Path, cache: Cache) -> None:
    config, split = make_config(root, **TOKENS), cache.split("train")
    order, sizes = open_order(config, cache), set()
    for step in range(order.steps_per_epoch):
        rows = order.rows(step)
        sizes.add(len(rows))
        by_hand = [
            sum(len(part(stream, row)) for stream in ("source", "target") for part in (split.prompt, split.answer))
            for row in rows
        ]
        assert len(rows) * max(by_hand) <= 400
    assert len(sizes) > 2


def test_the_tokens_of_a_row_are_those_of_all_its_languages(root: Path) -> None:
    lengths = {"source": [3, 9], "source2": [20, 1], "target": [5, 6]}
    split = SimpleNamespace(lengths=lambda stream: np.array(lengths[stream]))
    settings = toy_settings(root, batch_tokens=100)
    settings["task"]["extra_source_languages"] = ["de"]
    order = open_order(Config.model_validate(settings), SimpleNamespace(split=lambda _: split))  # type: ignore[arg-type]
    assert isinstance(order, TokenOrder) and order.lengths.tolist() == [28, 16]


@pytest.mark.parametrize("how", [{"batch_tokens": 400}, {"batch_size": 8}], ids=str)
def test_runs_of_other_seeds_share_the_order_of_their_data_seed(root: Path, cache: Cache, how: dict) -> None:
    orders = [(1, 7), (2, 7), (7, None), (1, 8)]
    of_run = [open_order(make_config(root, seed=seed, data_seed=data, **how), cache) for seed, data in orders]
    rows = [[order.rows(step).tolist() for step in range(10)] for order in of_run]
    assert rows[0] == rows[1] != rows[3]
    assert (rows[0] == rows[2]) == ("batch_tokens" in how), "of rows that are counted it goes by their names"


def test_a_row_larger_than_a_step_is_refused(root: Path, cache: Cache) -> None:
    split = cache.split("train")
    lengths = split.lengths("source") + split.lengths("target")
    longest = int(lengths.max())
    open_order(make_config(root, batch_tokens=longest), cache)
    with pytest.raises(ConfigError) as refused:
        open_order(make_config(root, batch_tokens=longest - 1), cache)
    row = split.ids(int(lengths.argmax()))
    for part in (f"train.batch_tokens={longest - 1}", repr(row), f"{longest} tokens"):
        assert part in refused.value.problem
    assert f"{longest} or more" in refused.value.fix


@pytest.mark.parametrize("method", ["lora", "flare", "x_mixup"])
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("span", ["prompt", "full"])
def test_no_forward_is_larger_than_said(root: Path, cache: Cache, method: str, objective: str, span: str) -> None:
    config = make_config(root, method=method, objective=objective, adapter={"span": span}, **TOKENS)
    split, order, streams = cache.split("train"), open_order(config, cache), streams_of(config)
    lengths, sizes = Workload(config).padded_tokens(split), []
    for step in range(order.steps_per_epoch):
        ranks = split_step(order.rows(step), lengths, world_size=2, micro_batch_size=99, micro_batch_tokens=100)
        sizes += [
            collate(
                split,
                micro,
                streams=streams,
                objective=objective,
                pad_id=0,
                source_answers=span == "full",
                source_targets=method == "x_mixup",
            ).input_ids.numel()
            for micro_batches in ranks
            for micro in micro_batches
        ]
    assert 85 < max(sizes) <= 100


class TwoRows:
    """The lengths of two rows whose source answers are the longer ones."""

    def prompt_lengths(self, stream: str) -> np.ndarray:
        return np.array([5, 9] if stream == "source" else [7, 2])

    def lengths(self, stream: str) -> np.ndarray:
        return self.prompt_lengths(stream) + ([6, 1] if stream == "source" else [2, 3])


@pytest.mark.parametrize(
    ("objective", "span", "columns"),
    [("labels", "full", [7, 9]), ("vocabulary", "prompt", [7 + 2, 9 + 2]), ("vocabulary", "full", [7 + 5, 9 + 5])],
)
def test_the_longest_answer_that_is_read_counts(root: Path, objective: str, span: str, columns: list[int]) -> None:
    config = make_config(root, objective=objective, adapter={"span": span})
    assert Workload(config).padded_tokens(TwoRows()).tolist() == [2 * count for count in columns]
    assert Workload(config).words(TwoRows()) == (3 if objective == "vocabulary" else 0), "the target's are predicted"


def test_x_mixup_reads_the_sources_answers_too(root: Path) -> None:
    config = make_config(root, method="x_mixup", objective="vocabulary")
    assert Workload(config).padded_tokens(TwoRows()).tolist() == [2 * (7 + 5), 2 * (9 + 5)]
    assert Workload(config).words(TwoRows()) == 2 * 6, "and predicts them"


def test_epochs_become_steps(root: Path, cache: Cache) -> None:
    by_rows, by_tokens = RowOrder(50, 4, 1), TokenOrder(np.full(50, 3), 15, 1)
    for epochs, rows, tokens in ((1, 13, 10), (2, 25, 20), (1.1, 14, 11), (0.01, 1, 1)):
        train = make_config(root, steps=None, epochs=epochs).train
        assert number_of_steps(train, by_rows) == rows
        assert number_of_steps(train, by_tokens) == tokens
    assert number_of_steps(make_config(root, steps=7).train, by_tokens) == 7
    assert number_of_steps(make_config(root, steps=None, epochs=0.07).train, RowOrder(100, 1, 1)) == 7
    assert number_of_steps(make_config(root, steps=None, epochs=3).train, RowOrder(5, 3, 1)) == 5


@pytest.mark.parametrize("overrides", [["train.epochs=2"], ["train.steps=null"]])
def test_a_run_is_as_long_as_one_setting_says(root: Path, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps=.* and train\.epochs=.*exactly one"):
        load_config(write_config(toy_settings(root, name="lengths")), overrides)


def test_a_run_is_not_continued_with_other_steps(root: Path, cache: Cache) -> None:
    made = [{}, {"batch_tokens": 400}, {"batch_tokens": 401}, {"steps": None, "epochs": 2}]
    assert len({fingerprint(make_config(root, **train), cache) for train in made}) == len(made)


def test_a_run_whose_validation_writes_is_not_continued_with_another_decoding(root: Path, cache: Cache) -> None:
    def print_of(objective: str, answers: str, most: int, **task: str) -> str:
        settings = toy_settings(root, objective=objective)
        settings["task"] |= task
        settings |= {"evaluate": {"answers": answers}, "generate": {"max_new_tokens": most}}
        return fingerprint(Config.model_validate(settings), cache)

    ways = (("generated", 8), ("generated", 9), ("ranked", 8))
    written, longer, ranked = (print_of("vocabulary", *way) for way in ways)
    assert len({written, longer, ranked}) == 3
    assert print_of("vocabulary", "ranked", 9) == ranked
    assert len({print_of("labels", answers, most) for answers in ("ranked", "generated") for most in (8, 9)}) == 1
    free = {"name": "squad_hi", "target_language": "hi"}
    assert print_of("vocabulary", "ranked", 8, **free) != print_of("vocabulary", "ranked", 9, **free)


def test_a_run_is_continued_whatever_becomes_of_settings_that_it_does_not_read(root: Path, cache: Cache) -> None:
    fused = [{"fusion": "add"}, {"fusion": "mul"}]
    assert len({fingerprint(make_config(root, method="lora", adapter=adapter), cache) for adapter in fused}) == 1
    assert len({fingerprint(make_config(root, adapter=adapter), cache) for adapter in fused}) == 2


def test_a_state_of_other_settings_is_refused(root: Path, cache: Cache) -> None:
    state = root / "begun" / "state" / "state.safetensors"
    state.parent.mkdir(parents=True)
    now, other = (fingerprint(make_config(root, method="lora", steps=steps), cache) for steps in (6, 7))
    save_file({"any": torch.zeros(1)}, state, metadata={"progress": json.dumps(asdict(Progress(now, step=3)))})
    assert read_progress(state, now) == Progress(now, step=3)
    with pytest.raises(CheckpointError, match="other data or settings"):
        read_progress(state, other)


def test_a_run_that_does_not_fit_is_continued_as_the_memory_check_says(root: Path, cache: Cache) -> None:
    made = [{}, {"micro_batch_size": 1}, {"micro_batch_tokens": 100}, {"save_every": 3}, {"whole_model": True}]
    made.append({"gradient_checkpointing": True})
    assert len({fingerprint(make_config(root, **train), cache) for train in made}) == 1


def test_the_memory_check_knows_the_largest_micro_batch(
    root: Path, shape: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_available", lambda on: 1.5e9)

    def check(**train: int) -> None:
        config = make_config(root, batch_size=10**9, **train)
        load = memory.largest_load(config.train, row_tokens=60, streams=2, ranks=1)
        memory.check_memory(config, shape, load, whole=False)

    check(micro_batch_size=10**9, micro_batch_tokens=1000)
    check(micro_batch_size=10, micro_batch_tokens=10**12)
    for setting, train in (
        ("micro_batch_size", {"micro_batch_size": 10**8}),
        ("micro_batch_size", {"micro_batch_size": 10**8, "micro_batch_tokens": 10**12}),
        ("micro_batch_tokens", {"micro_batch_size": 10**9, "micro_batch_tokens": 10**8}),
        ("micro_batch_tokens", {"micro_batch_size": 10**8, "micro_batch_tokens": 10**9}),
    ):
        with pytest.raises(HostError, match=rf"train\.{setting}={train[setting]} needs about") as refused:
            check(**train)
        fitting = int(refused.value.fix.split(f"{setting}=")[1].split()[0])
        check(**train | {setting: fitting})
        with pytest.raises(HostError):
            check(**train | {setting: fitting + 1})
    config = make_config(root)
    one, two = (memory.estimate_memory(config, shape, streams=streams, ranks=1) for streams in (1, 2))
    assert one.bytes(30) == two.bytes(60), "a row of 30 columns, however many streams its tokens are counted over"


def test_ranks_train_on_it_for_every_method_and_continue_bit_for_bit(root: Path, cache: Cache) -> None:
    train = {"steps": None, "epochs": 1.5, "seed": 3, **TOKENS}
    configs = [toy_settings(root, method=method, name=f"tokens-{method}", **train) for method in ("flare", "lora")]
    out = root / "out.json"
    run_ranks(["tests.training.order_worker", str(out), *(str(write_config(config)) for config in configs)], 2)
    order = open_order(Config.model_validate(configs[0]), cache)
    for run in json.loads(out.read_text()):
        assert run["total"] == -(-3 * order.steps_per_epoch // 2)
        assert [step["rows"] for step in run["steps"]] == [
            sorted(order.rows(step)) for step in range(len(run["steps"]))
        ]
        assert len({len(step["rows"]) for step in run["steps"]}) > 1
        for step in run["steps"]:
            assert len(set(step["micro_steps"])) == 1
        assert run["continued"] == run["steps"][-len(run["continued"]) :]
