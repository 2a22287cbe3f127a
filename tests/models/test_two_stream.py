"""The two-stream model against the slow oracle: logits, loss, and every adapter gradient."""

import itertools

import pytest
import torch

from flare_ds.adapters.inject import ADAPTER, inject_adapter
from flare_ds.config import Config
from flare_ds.data.collate import NO_TARGET, Batch
from flare_ds.models.two_stream import TwoStreamModel
from tests.oracle import Oracle
from tests.small_models import VOCAB, small_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# (source prompt, target prompt, answer) lengths: source longer, equal, shorter, and rows without a source
LENGTHS = [(9, 5, 2), (6, 6, 1), (3, 7, 3), (0, 4, 2), (5, 1, 1)]


def make_config(**adapter: object) -> Config:
    return Config.model_validate(
        {
            "method": adapter.pop("method", "flare"),
            "run_dir": "unused",
            "deepspeed": "unused",
            "model": {"base": "unused", "dtype": "float32"},
            "task": {"name": "unused", "data_dir": "unused", "target_language": "pl"},
            "adapter": {"r": 4, "alpha": 8, "target_modules": TARGETS, **adapter},
            "train": {"steps": 1, "objective": "vocabulary"},
        }
    )


def make_rows(seed: int = 3) -> list[tuple[list[int], list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=generator).tolist()  # noqa: E731
    return [(draw(s), draw(t), draw(a)) for s, t, a in LENGTHS]


def make_batch(rows: list, *, pad: int = 0, source: bool = True) -> Batch:
    """Lay the rows out by hand, so `collate` is not trusted with checking itself."""
    prompt_columns = max(max(len(s), len(t)) for s, t, _ in rows)
    extra = max(len(a) for _, _, a in rows)
    columns = prompt_columns + extra - 1
    lines = [(s, []) for s, _, _ in rows] * source + [(t, a[:-1]) for _, t, a in rows]
    ids = torch.full((len(lines), columns), pad)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(lines):
        for k, token in enumerate(prompt + answer):
            column = prompt_columns - len(prompt) + k
            ids[i, column], mask[i, column], positions[i, column] = token, 1, k
    answers = torch.full((len(rows), extra), NO_TARGET)
    for i, (_, _, answer) in enumerate(rows):
        answers[i, : len(answer)] = torch.tensor(answer)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        source_lengths_SB=torch.tensor([[len(s) for s, _, _ in rows]])[: int(source)],
        source_answers_SB=None,
        target_lengths_B=torch.tensor([len(t) for _, t, _ in rows]),
        answer_columns_N=torch.arange(prompt_columns - 1, prompt_columns - 1 + extra),
        answers_BN=answers,
        weights_B=torch.ones(len(rows)),
        prompt_columns=prompt_columns,
    )


def randomize_b(model: TwoStreamModel) -> None:
    """With B = 0 the gradient of A is exactly 0 and proves nothing."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def build(model_name: str, **adapter: object) -> tuple[TwoStreamModel, Oracle, dict[str, torch.Tensor]]:
    """The two-stream model and an oracle holding float64 copies of the same weights."""
    config = make_config(**adapter)
    base, settings = small_model(model_name)
    weights = {name: parameter.detach().double().clone() for name, parameter in base.named_parameters()}
    model = TwoStreamModel(inject_adapter(base, config.adapter, sources=config.sources, seed=7), config).train()
    randomize_b(model)
    leaves = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            short = name.removeprefix("model.base_model.model.").replace(f".{ADAPTER}.weight", "")
            leaves[short] = parameter.detach().double().clone().requires_grad_()
    settings.targets, settings.scaling = TARGETS, 8 / 4
    for key in ("fusion", "pairing", "source_norm", "align"):
        setattr(settings, key, getattr(config.adapter, key))
    settings.fused = config.adapter.fused_modules if config.method == "flare" else []
    return model, Oracle(weights, leaves, settings), leaves


def cross_entropy(logits: torch.Tensor, token: int) -> torch.Tensor:
    return torch.logsumexp(logits, 0) - logits[token]


def assert_equal_to_oracle(model: TwoStreamModel, oracle: Oracle, leaves: dict, rows: list, batch: Batch) -> None:
    logits_BNK = model(batch)
    loss = torch.nn.functional.cross_entropy(
        logits_BNK.flatten(0, 1), batch.answers_BN.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    loss.backward()
    expected_loss = torch.zeros((), dtype=torch.float64)
    for i, (source, target, answer) in enumerate(rows):
        expected = oracle.logits(target + answer[:-1], source or None, prompt_n=len(target))
        for k, token in enumerate(answer):
            wanted = expected[len(target) - 1 + k]
            torch.testing.assert_close(logits_BNK[i, k].double(), wanted, atol=1e-5, rtol=1e-5)
            expected_loss = expected_loss + cross_entropy(wanted, token)
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-5)
    expected_loss.backward()
    checked = 0
    for name, parameter in model.named_parameters():
        short = name.removeprefix("model.base_model.model.").replace(f".{ADAPTER}.weight", "")
        if short in leaves:
            wanted = leaves[short].grad
            scale = wanted.abs().max()
            assert scale > 0, f"{short}: the oracle's gradient is zero, nothing is compared"
            torch.testing.assert_close(parameter.grad.double() / scale, wanted / scale, atol=1e-5, rtol=1e-5)
            checked += 1
        else:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
    assert checked == 2 * 7 * 3


CASES = [
    *itertools.product(["llama", "gemma3"], ["output", "input"], ["right", "left", "stretch"], [True, False]),
    *itertools.product(["llama", "gemma3"], ["module"], ["right", "left", "stretch"], [True]),
    ("gemma2", "output", "right", True),
    ("gemma2", "module", "stretch", True),
]


@pytest.mark.parametrize(("model_name", "pairing", "align", "source_norm"), CASES)
def test_equals_the_oracle(model_name: str, pairing: str, align: str, source_norm: bool) -> None:
    model, oracle, leaves = build(model_name, pairing=pairing, align=align, source_norm=source_norm)
    rows = make_rows()
    assert_equal_to_oracle(model, oracle, leaves, rows, make_batch(rows))


@pytest.mark.parametrize("fusion", ["add", "mul", "mul_relu"])
def test_every_fusion_equals_the_oracle(fusion: str) -> None:
    model, oracle, leaves = build("llama", fusion=fusion)
    rows = make_rows()
    assert_equal_to_oracle(model, oracle, leaves, rows, make_batch(rows))


def test_any_linear_layer_can_be_fused_by_module() -> None:
    model, oracle, leaves = build("gemma3", pairing="module", fused_modules=TARGETS)
    rows = make_rows()
    assert_equal_to_oracle(model, oracle, leaves, rows, make_batch(rows))


def test_plain_lora_equals_the_oracle() -> None:
    model, oracle, leaves = build("llama", method="lora")
    rows = [([], target, answer) for _, target, answer in make_rows()]
    assert_equal_to_oracle(model, oracle, leaves, rows, make_batch(rows, source=False))


def test_what_a_pad_token_holds_changes_nothing() -> None:
    model, _, _ = build("gemma3", align="left")
    first, second = make_batch(make_rows(), pad=0), make_batch(make_rows(), pad=40)
    real = first.answers_BN != NO_TARGET  # the other logits stand behind the row's end
    assert torch.equal(model(first)[real], model(second)[real])


def test_a_source_changes_only_its_own_row() -> None:
    model, _, _ = build("llama")
    rows = make_rows()
    before = model(make_batch(rows))
    rows[1] = ([token % 50 + 5 for token in rows[1][0]], *rows[1][1:])
    after = model(make_batch(rows))
    changed = (before - after).abs().amax((1, 2)) > 0
    assert changed.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("pairing", ["output", "input", "module"])
def test_a_fresh_adapter_leaves_the_base_bit_for_bit(pairing: str) -> None:
    base, _ = small_model("gemma3")
    config = make_config(pairing=pairing)
    batch = make_batch(make_rows())
    rows = batch.target_lengths_B.shape[0]
    with torch.no_grad():
        expected = base(
            input_ids=batch.input_ids[rows:],
            attention_mask=batch.attention_mask[rows:],
            position_ids=batch.position_ids[rows:],
            logits_to_keep=batch.answer_columns_N,
            use_cache=False,
        ).logits
        model = TwoStreamModel(inject_adapter(base, config.adapter, sources=1, seed=7), config)
        assert torch.equal(model(batch), expected)


def test_only_the_dropout_of_the_adapter_trains() -> None:
    config = make_config(dropout=0.5)
    base, _ = small_model("llama")
    model = TwoStreamModel(inject_adapter(base, config.adapter, sources=1, seed=7), config).train()
    training = {name for name, module in model.named_modules() if module.training and name}
    assert training and all("lora_dropout" in name for name in training)
    assert not any(module.training for module in model.eval().modules())
