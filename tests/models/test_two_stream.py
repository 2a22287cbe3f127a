"""The two-stream model against the slow oracle: logits, loss, and the gradient of all that trains.

Every fusion, pairing, source_norm and align with each other; every other setting at least once with every value of
every other.
"""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from flare_ds.adapters.fusion import FUSIONS
from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import NO_TARGET, Batch
from flare_ds.config import Config
from flare_ds.models.source_pass import Left, SourcePass
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.training.validation import source_shares
from tests.by_hand import (
    TARGETS,
    build,
    make_batch,
    make_config,
    make_oracle,
    make_rows,
    oracle_base,
    short_name,
)
from tests.oracle import Oracle, Row
from tests.small_models import small_model

# how a layer is shown the source: every meaningful pair of pairing and source_norm
PAIRINGS: list[dict[str, Any]] = [
    {"pairing": "output", "source_norm": True},
    {"pairing": "output", "source_norm": False},
    {"pairing": "input", "source_norm": True},
    {"pairing": "input", "source_norm": False},
    {"pairing": "module"},
]
# every other setting, and gemma3 with its norms on queries and keys and its two rope bases
FACTORS: dict[str, list[Any]] = {
    "model": ["llama", "gemma2", "gemma3"],
    "fusion": [{"fusion": name} for name in FUSIONS],
    "pairing": [*PAIRINGS, {"pairing": "module", "fused_modules": TARGETS}],
    "align": [{"align": name} for name in ("right", "left", "stretch")],
    "answers": [{"span": "prompt"}, {"span": "full"}, {"objective": "labels"}],
    "sources": [
        {"sources": 1},
        {"sources": 2},
        {"sources": 2, "source_weights": "learned"},
        {"sources": 3, "source_weights": "learned"},
    ],
    "down": [{"source_down": "shared"}, {"source_down": "own"}],
    "heads": [{"fusion_heads": 1}, {"fusion_heads": 2}],
    "scaling": [{"rslora": False}, {"rslora": True}],
    "head": [{"train_head": False}, {"train_head": True}],
    "memory": [{"checkpointing": False}, {"checkpointing": True}],
}


def all_pairs(factors: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Few cases that contain every pair of values of any two factors (greedy, always the same)."""
    draw = random.Random(1)

    def pairs(case: dict[str, int]) -> set[tuple]:
        return set(itertools.combinations(case.items(), 2))

    wanted = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(factors, 2)
        for x, y in itertools.product(range(len(factors[a])), range(len(factors[b])))
    }
    cases = []
    while wanted:
        must = dict(min(wanted))
        tries = [{name: draw.randrange(len(factors[name])) for name in factors} | must for _ in range(60)]
        best = max(tries, key=lambda case: len(wanted & pairs(case)))
        wanted -= pairs(best)
        cases.append({name: factors[name][value] for name, value in best.items()})
    return cases


def setting(model: str, *parts: dict[str, Any]) -> Any:
    """One case: its model and its settings, with a name that shows them."""
    merged = {key: value for part in parts for key, value in part.items()}
    shown = "-".join("all" if value is TARGETS else f"{key}:{value}" for key, value in merged.items())
    return pytest.param(model, merged, id=f"{model}-{shown}")


PRODUCT = itertools.product(["llama", "gemma2"], FACTORS["fusion"], PAIRINGS, FACTORS["align"])
CASES = [setting(*case) for case in PRODUCT] + [setting(*case.values()) for case in all_pairs(FACTORS)]


def cross_entropy(logits: torch.Tensor, token: int) -> torch.Tensor:
    return torch.logsumexp(logits, 0) - logits[token]


def assert_equal_to_oracle(
    model: TwoStreamModel, oracle: Oracle, config: Config, rows: list[Row], batch: Batch | None = None
) -> None:
    """Equal to 1e-5; gradients to 1e-5 of their largest element, and to 1e-7 where a sum cancels in fp32.

    What trains as its 32nd part has a gradient 32 times as large.
    """
    batch = batch or make_batch(rows, config)
    logits_BNK = model(batch)
    loss = torch.nn.functional.cross_entropy(
        logits_BNK.flatten(0, 1), batch.answers_BN.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    loss.backward()
    expected_loss = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        answer_N = [token for token in batch.answers_BN[i].tolist() if token != NO_TARGET]
        expected_NK = oracle.logits(row, len(answer_N))
        torch.testing.assert_close(logits_BNK[i, : len(answer_N)].double(), expected_NK, atol=1e-5, rtol=1e-5)
        expected_loss = expected_loss + sum(map(cross_entropy, expected_NK, answer_N))
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-5)
    expected_loss.backward()
    compared = set()
    for name, parameter in model.named_parameters():
        if short_name(name) in oracle.trained:
            wanted = oracle.trained[short_name(name)].grad
            largest = float(wanted.abs().max())
            assert largest > 0, f"{name}: the oracle's gradient is zero, nothing is compared"
            worst = float((parameter.grad.double() - wanted).abs().max())
            cancels = 32e-7 if name.endswith("source_scores_S") else 1e-7
            assert worst <= 1e-5 * largest + cancels, f"{name}: gradient off by {worst}, largest element {largest}"
            compared.add(short_name(name))
        else:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
    assert compared == oracle.trained.keys()


@pytest.mark.parametrize(("model_name", "settings"), CASES)
def test_equals_the_oracle(model_name: str, settings: dict[str, Any]) -> None:
    config = make_config(**settings)
    model = build(model_name, config)
    oracle = make_oracle(model, oracle_base(model_name), config)
    assert_equal_to_oracle(model, oracle, config, make_rows(config.sources))


def test_plain_lora_equals_the_oracle() -> None:
    config = make_config(method="lora")
    model = build("gemma3", config, layers=3)
    assert_equal_to_oracle(model, make_oracle(model, oracle_base("gemma3", 3), config), config, make_rows(0))


@pytest.mark.parametrize("model_name", ["llama", "gemma2"])
@pytest.mark.parametrize(("sources", "rows"), [(1, 3), (1, 6), (2, 2), (2, 3)])
def test_as_many_rows_as_columns(model_name: str, sources: int, rows: int) -> None:
    """Six columns, and six rows of all streams, of the target, or of the sources: nothing takes one for the other."""
    config = make_config(sources=sources, span="full")
    lengths = [([(5, 2)] * sources, (3, 2)), *([([(2, 1)] * sources, (4, 2))] * (rows - 1))]
    model, made = build(model_name, config), make_rows(sources, lengths)
    columns = make_batch(made, config).input_ids.shape[1]
    assert columns == 6 and columns in ((sources + 1) * rows, sources * rows, rows)
    assert_equal_to_oracle(model, make_oracle(model, oracle_base(model_name), config), config, made)


@pytest.mark.parametrize("source_norm", [True, False])
@pytest.mark.parametrize("pairing", ["output", "input"])
def test_stored_states(pairing: str, source_norm: bool) -> None:
    """The target runs alone, beside the states that the oracle's source stream had after (before) each layer."""
    config = make_config(provider="cached", pairing=pairing, source_norm=source_norm)
    model, rows = build("gemma2", config), make_rows(1)
    base, batch = oracle_base("gemma2"), make_batch(rows, config)
    stored_BMKD = torch.full((len(rows), 6, base.s.layers, 16), 9.0)  # padding holds anything
    for i, row in enumerate(rows):
        prompt = row.sources[0][0]
        for number, visit in enumerate(base.read(prompt) if prompt else []):
            stored_BMKD[i, 6 - len(prompt) :, number] = visit.after if pairing == "output" else visit.before
    batch = replace(
        batch,
        input_ids=batch.input_ids[len(rows) :],
        attention_mask=batch.attention_mask[len(rows) :],
        position_ids=batch.position_ids[len(rows) :],
        stored_BMKD=stored_BMKD,
    )
    assert_equal_to_oracle(model, make_oracle(model, base, config), config, rows, batch)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_energy(fusion: str) -> None:
    """How much the source contributes: sums over the positions with a partner, while measuring and only then.

    Of a filler, which is a row that another rank reads, there are none.
    """
    config = make_config(fusion=fusion, sources=2, source_weights="learned", span="full")
    model, rows = build("llama", config), make_rows(2)
    oracle = make_oracle(model, oracle_base("llama"), config)
    with torch.no_grad(), model.streams.measuring() as energies:
        model(make_batch(rows, config))
        model(replace(make_batch(rows[:1], config), weights_B=torch.zeros(1)))
    model(make_batch(rows, config))
    for row in rows:
        oracle.logits(row, len(row.answer))
    found = {short_name(f"model.{name}"): sums for name, sums in energies.items()}
    assert found.keys() == oracle.energy.keys() and len(found) == 4
    for name, sums in found.items():
        torch.testing.assert_close(sums, oracle.energy[name], rtol=1e-5, atol=0)
    # Two ranks, of which the second has the same rows three times, and twice the source's part.
    parts = [dict(energies), {name: sums * torch.tensor([6.0, 3.0]) for name, sums in energies.items()}]
    for name, share in source_shares(parts).items():
        source, whole = oracle.energy[short_name(f"model.{name}")].tolist()
        assert share == pytest.approx((7 * source / (4 * whole)) ** 0.5, rel=1e-5) and share > 0


def test_a_fresh_adapter_has_no_energy_and_no_share() -> None:
    config = make_config()
    base, _ = small_model("llama")
    model = TwoStreamModel(inject_adapter(base, config.adapter, sources=1, seed=7), config)
    with torch.no_grad(), model.streams.measuring() as energies:
        model(make_batch(make_rows(), config))
    assert len(energies) == 6 and all(sums.tolist() == [0, 0] for sums in energies.values())
    assert set(source_shares([energies, energies]).values()) == {0.0}


@pytest.mark.parametrize(("pairing", "kept"), [("output", 0), ("input", 0), ("module", 2)])
def test_what_fused_modules_read_of_the_sources_is_kept_only_where_it_is_met(
    pairing: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lefts: list[Left] = []
    real = SourcePass.__call__
    monkeypatch.setattr(SourcePass, "__call__", lambda self, *given: lefts.append(real(self, *given)) or lefts[-1])
    config = make_config(pairing=pairing, source_norm=False, fused_modules=["q_proj", "v_proj"])
    build("llama", config)(make_batch(make_rows(), config))
    assert [len(left.inputs) for left in lefts] == [kept, kept]


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        *({"fusion": fusion} for fusion in FUSIONS),
        {"sources": 2, "source_weights": "learned", "source_down": "own"},
        {"sources": 2, "span": "full"},
        {"method": "x_mixup"},
        {"method": "source_prefix"},
        {"method": "lora", "train_head": True},
    ],
)
def test_the_default_precision_of_the_process_changes_nothing(settings: dict[str, Any]) -> None:
    """Another thread that loads a model sets it meanwhile."""
    config = make_config(**settings)
    model, batch = build("llama", config).eval(), make_batch(make_rows(settings.get("sources", 1)), config)
    expected = model(batch)
    base, _ = small_model("llama", layers=2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = model(batch)
        fresh = inject_adapter(base, config.adapter, sources=config.sources, seed=7)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert {parameter.dtype for parameter in fresh.parameters()} == {torch.float32}
