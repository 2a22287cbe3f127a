"""x_mixup against a slow oracle: logits, loss, and the gradient of all that trains; and what holds for any row."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import Batch
from flare_ds.config import Config, MixupConfig
from flare_ds.exceptions import ConfigError
from flare_ds.models.mixup import check_mixup, make_mixing
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import LABELS, LENGTHS, build, make_batch, make_config, make_oracle, make_rows, oracle_base
from tests.oracle import Oracle, Row, softmax
from tests.small_models import small_model

WIDTH, HEADS = 16, 2
# Each part of the loss counts differently, and none as by default.
MIXUP = {"heads": HEADS, "ratio": 0.8, "source_weight": 0.3, "mse_weight": 0.7, "kl_weight": 1.9}


def mixed(**settings: Any) -> Config:
    mixup = MIXUP | settings.pop("mixup", {})
    return make_config(method="x_mixup", mixup=mixup, **settings)


def rows_of(lengths: list = LENGTHS) -> list[Row]:
    """Rows with one source; in the second and the third both languages have the same answer."""
    rows = make_rows(1, lengths)
    for number in (1, 2):
        rows[number] = replace(rows[number], sources=[(rows[number].sources[0][0], rows[number].answer)])
    return rows


class MixupOracle:
    """One row at a time, without padding, by loops over heads and positions; the layers are those of `tests.oracle`.

    Args:
        oracle: knows the base, what trains, and plain LoRA.
        config: the run's settings.
        behind: the number of layers below the mixture.
    """

    def __init__(self, oracle: Oracle, config: Config, behind: int) -> None:
        self.oracle, self.base, self.trained = oracle, oracle.base, oracle.trained
        self.mixup, self.labels, self.behind = config.mixup, config.train.objective == "labels", behind

    def linear(self, name: str, x: Tensor) -> Tensor:
        down, up = (self.trained[f"mixing.{name}.{part}.weight"] for part in ("down", "up"))
        return x + up @ (down @ x)

    def mix(self, h: Tensor, source: Tensor) -> Tensor:
        """The mixture of every target state [n, d] with the states of the source's prompt [m, d]."""
        normed = [[x / torch.sqrt((x * x).mean() + 1e-6) for x in states] for states in (h, source)]
        queries, keys = ([self.linear(name, x) for x in xs] for name, xs in zip(("query", "key"), normed, strict=True))
        values, width, mixtures = [self.linear("value", x) for x in source], WIDTH // HEADS, []
        for own, query in zip(h, queries, strict=True):
            found, entropies = [], []
            for first in range(0, WIDTH, width):
                part = slice(first, first + width)
                share = softmax(torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(width))
                found.append(sum(p * value[part] for p, value in zip(share, values, strict=True)))
                entropies.append(-sum(p * p.log() for p in share))
            gate = self.trained["mixing.gate.weight"] * sum(entropies) / HEADS + self.trained["mixing.gate.bias"]
            ratio = (self.mixup.ratio / (1 + torch.exp(-gate))).squeeze()
            mixtures.append((1 - ratio) * own + ratio * torch.cat(found))
        return torch.stack(mixtures)

    def states(self, tokens: list[int], source: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states behind the layers below the mixture, and those the head reads."""
        plain, x = Row([], []), self.base.embed(tokens)
        between = x
        for i in range(self.base.s.layers):
            x = self.base.layer(i, x, lambda name, x, i=i: self.oracle.project(i, name, x, plain, []))
            if i + 1 == self.behind:
                between = x
                x = x if source is None else self.mix(x, source)
        return between, self.base.norm(x, "model.norm")

    def logits(self, states: Tensor) -> Tensor:
        head = self.trained.get("lm_head.weight")
        if head is None:
            head = self.base.head() if self.oracle.head_rows is None else self.base.head()[self.oracle.head_rows]
        logits, limit = states @ head.T, self.base.s.logit_cap
        return torch.tanh(logits / limit) * limit if limit else logits

    def row(self, row: Row) -> tuple[Tensor, Tensor]:
        """Logits [n, k] of the target's answer, and the row's loss."""
        ((prompt, said),) = row.sources
        answer = [row.answer[0] % len(LABELS)] if self.labels else row.answer
        said = answer if self.labels else said
        read = (lambda prompt, answer: prompt) if self.labels else (lambda prompt, answer: prompt + answer[:-1])
        if not prompt:
            _, t = self.states(read(row.target, answer))
            logits = self.logits(t[len(row.target) - 1 :])
            return logits, likelihood_loss(logits, answer)
        between, s = self.states(read(prompt, said))
        _, t = self.states(read(row.target, answer), between[: len(prompt)])
        s, t = s[len(prompt) - 1 :], t[len(row.target) - 1 :]
        logits, of_source = self.logits(t), self.logits(s)
        alpha, n = self.mixup.source_weight, len(answer)
        loss = (1 - alpha) * likelihood_loss(logits, answer)
        loss = loss + alpha * n * likelihood_loss(of_source, said) / len(said)
        loss = loss + self.mixup.mse_weight * n * ((s[0] - t[0]) ** 2).mean()
        if answer == said:
            for p, q in zip(of_source, logits, strict=True):
                loss = loss + self.mixup.kl_weight * sum(softmax(p) * (softmax(p).log() - softmax(q).log()))
        return logits, loss


def likelihood_loss(logits: Tensor, answer: list[int]) -> Tensor:
    return sum(torch.logsumexp(of, 0) - of[token] for of, token in zip(logits, answer, strict=True))


def oracle_of(model: TwoStreamModel, name: str, config: Config, behind: int, layers: int = 2) -> MixupOracle:
    oracle = make_oracle(model, oracle_base(name, layers), config)
    return MixupOracle(oracle, config, behind)


CASES = [
    ("llama", {"objective": "labels"}),
    ("llama", {"mixup": {"layer": 2}, "rslora": True}),
    ("gemma2", {"checkpointing": True}),
    ("gemma2", {"objective": "labels", "train_head": True, "checkpointing": True}),
    ("gemma3", {"mixup": {"layer": 2}, "checkpointing": True}),
    ("gemma3", {"objective": "labels", "span": "full"}),  # the span is of no matter here
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda case: str(case))
def test_equals_the_oracle(name: str, settings: dict[str, Any]) -> None:
    """To 1e-5; gradients to 1e-5 of their largest element. The last two rows have no source."""
    config = mixed(**settings)
    model, rows = build(name, config), rows_of()
    oracle = oracle_of(model, name, config, behind=config.mixup.layer or 1)
    expected = [oracle.row(row) for row in rows]
    logits_BNK = model(make_batch(rows, config))
    for row, (logits_NK, _) in enumerate(expected):
        torch.testing.assert_close(logits_BNK[row, : len(logits_NK)].double(), logits_NK, atol=1e-5, rtol=1e-5)
    loss = model(make_batch(rows, config, source_targets=True), with_loss=True)
    expected_loss = sum(loss for _, loss in expected)
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected_loss.backward()
    compared = set()
    for name, parameter in model.named_parameters():
        short = name.removeprefix("model.base_model.model.").replace(".default", "")
        if short not in oracle.trained:
            assert parameter.grad is None, f"{name} is frozen but has a gradient"
            continue
        wanted = oracle.trained[short].grad
        largest = float(wanted.abs().max())
        assert largest > 0, f"{name}: the oracle's gradient is zero, nothing is compared"
        worst = float((parameter.grad.double() - wanted).abs().max())
        assert worst <= 1e-5 * largest + 1e-7, f"{name}: gradient off by {worst}, largest element {largest}"
        compared.add(short)
    assert compared == oracle.trained.keys() and sum("mixing" in name for name in compared) == 8


def test_a_weighed_row_counts_so_much() -> None:
    config = mixed()
    model, rows = build("llama", config), rows_of()
    oracle = oracle_of(model, "llama", config, behind=1)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    batch = replace(make_batch(rows, config, source_targets=True), weights_B=weights)
    expected = sum(weight * oracle.row(row)[1] for weight, row in zip(weights.tolist(), rows, strict=True))
    torch.testing.assert_close(model(batch, with_loss=True).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def double() -> TwoStreamModel:
    """In float64, so that what should be untouched is equal bit for bit."""
    return build("gemma3", mixed()).double().eval()


@torch.no_grad()
def everywhere(model: TwoStreamModel, rows: list[Row], **layout: Any) -> tuple[Tensor, Batch]:
    batch = make_batch(rows, mixed(), everywhere=True, **layout)
    return model(batch), batch


def test_no_position_knows_what_comes_after_it(double: TwoStreamModel) -> None:
    rows = rows_of()
    before, batch = everywhere(double, rows)
    for place in range(len(rows[1].target)):
        target = [*rows[1].target]
        target[place] = (target[place] + 7) % 64
        after, _ = everywhere(double, [rows[0], replace(rows[1], target=target), *rows[2:]])
        column = batch.prompt_columns - len(target) + place
        assert torch.equal(after[1, :column], before[1, :column])
        assert (after[1, column:] != before[1, column:]).any(-1)[: len(target) - place].all()
        assert torch.equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])


def test_every_target_position_reads_the_sources_prompt_and_not_its_answer(double: TwoStreamModel) -> None:
    rows = rows_of()
    before, batch = everywhere(double, rows)
    real = batch.attention_mask[-len(rows) :].bool()
    for place in range(len(rows[0].sources[0][0])):
        ((prompt, answer),) = rows[0].sources
        prompt = [*prompt[:place], (prompt[place] + 7) % 64, *prompt[place + 1 :]]
        after, _ = everywhere(double, [replace(rows[0], sources=[(prompt, answer)]), *rows[1:]])
        assert (after[0] != before[0]).any(-1)[real[0]].all()
        assert torch.equal(after[1:], before[1:])
    config, weights = mixed(), torch.tensor([1.0, 0, 0, 0, 0])
    laid_out = replace(make_batch(rows, config, source_targets=True), weights_B=weights)
    with torch.no_grad():
        logits_XNK = double(laid_out)
        other = replace(laid_out, input_ids=laid_out.input_ids.clone())
        other.input_ids[: len(rows), laid_out.prompt_columns :] = 9  # what the source answers
        found_XNK = double(other)
    assert torch.equal(found_XNK[len(rows) :], logits_XNK[len(rows) :])
    assert not torch.equal(found_XNK[: len(rows)], logits_XNK[: len(rows)])


def test_padding_changes_nothing(double: TwoStreamModel) -> None:
    rows, config = rows_of(), mixed()
    for targets in (False, True):
        plain = make_batch(rows, config, source_targets=targets)
        for layout in ({"pad_seed": 3}, {"pad_seed": 4, "left": 3, "right": 2}):
            padded = make_batch(rows, config, source_targets=targets, **layout)
            with torch.no_grad():
                found, expected = (double(batch, with_loss=targets) for batch in (padded, plain))
            real = ... if targets else plain.answers_BN >= 0
            torch.testing.assert_close(found[real], expected[real], atol=1e-9, rtol=1e-9)


def test_a_row_without_source_is_plain_lora() -> None:
    config, plain_config = mixed(), make_config(method="lora")
    rows = rows_of()
    logits_BNK = build("llama", config)(make_batch(rows, config))
    plain_BNK = build("llama", plain_config)(make_batch(rows, plain_config))
    same = [torch.equal(*of_row) for of_row in zip(logits_BNK, plain_BNK, strict=True)]
    assert same == [False, False, False, True, True]
    without = make_batch([replace(row, sources=[([], [])]) for row in rows], config, source_targets=True)
    losses = [build("llama", config)(without, with_loss=True)]
    losses.append(build("llama", plain_config)(make_batch(rows, plain_config), with_loss=True))
    torch.testing.assert_close(*losses)


def test_a_fresh_layer_follows_from_the_seed() -> None:
    base, config = small_model("llama")[0], mixed()
    state = torch.get_rng_state()
    seeds = [config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})}) for seed in (1, 1, 2)]
    first, same, other = ([*make_mixing(base, one).parameters()] for one in seeds)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, same)) and not all(map(torch.equal, first, other))


def test_a_fresh_layer_gives_what_resembles_the_position() -> None:
    """A text mixed with itself, in sharp attention, stays nearly what it is; the maps begin as the identity."""
    config = mixed(mixup={"heads": 1})
    base, _ = small_model("llama", layers=2)
    mixing = TwoStreamModel(inject_adapter(base, config.adapter, sources=0, seed=7), config).mixing
    states = 10 * torch.eye(WIDTH)[None, :5]  # a position's score with itself is 16 / 4, with others 0
    found = mixing(states, mixing.remember(states, torch.ones(1, 5, dtype=torch.bool)))
    share = math.exp(4) / (math.exp(4) + 4)
    entropy = -share * math.log(share) - (1 - share) * math.log((1 - share) / 4)
    ratio = 0.8 / (1 + math.exp(-entropy))
    torch.testing.assert_close(found[0, 0, 0].item(), 10 * (1 - ratio + ratio * share), rtol=1e-4, atol=0)


def test_a_bf16_base_is_mixed_in_fp32() -> None:
    config = mixed(objective="labels")
    model = build("llama", config)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert all(parameter.dtype == torch.float32 for parameter in model.mixing.parameters())
    seen: list[torch.dtype] = []
    model.mixing.gate.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    next_layer = model.base.model.layers[1].input_layernorm
    next_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    model(make_batch(rows_of(), config, source_targets=True), with_loss=True).backward()
    assert seen == [torch.float32, torch.bfloat16]
    assert all(parameter.grad.isfinite().all() for parameter in model.mixing.parameters())


@pytest.mark.parametrize(
    ("settings", "problem", "fix"),
    [
        ({"layer": 4}, "mixup.layer=4, but the model has 3 layers", "at most 3, or to null for 1"),
        ({"heads": 6}, "mixup.heads=6 does not divide the model's width 16", "mixup.heads=2"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: dict, problem: str, fix: str) -> None:
    base, _ = small_model("llama")
    with pytest.raises(ConfigError) as refused:
        check_mixup(base, MixupConfig(**settings))
    assert problem in refused.value.problem and fix in refused.value.fix
