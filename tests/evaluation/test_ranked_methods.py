"""Label words that share first tokens, under the methods that read or meet something else: against the slow oracle.

What a method reads in the target's place is written down here again, from its description.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.rows_read import rows_read
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation.ranked import label_scores
from flare_ds.models.head import use_head
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import RunningModel
from tests.by_hand import LENGTHS, ProjectedBase, build, make_config, make_oracle, make_rows, oracle_base, short_name
from tests.evaluation.test_ranked import WORDS, Given, batch_of, scored_by
from tests.oracle import Oracle, Row, Visit
from tests.small_models import small_model

TOKENS = SimpleNamespace(prefix_ids=[], suffix_ids=[], newline_ids=[7, 8])
WIDTH, TEXTS = 6, (4, 7, 1, 3)
"""Of the states of an MT encoder, and how many it has of each row."""
READ: dict[str, Callable[[list[int], list[int]], list[int]]] = {
    "zero_shot": lambda _, target: target,
    "translate_test": lambda source, target: source or target,
    "source_lora": lambda source, target: source or target,
    "input_fusion": lambda source, target: [*source, 7, 8, *target] if source else target,
}


class BaseAlone(Oracle):
    """Without an adapter."""

    def project(self, i: int, name: str, x: Tensor, row: Row, visits: list[Visit | None]) -> Tensor:
        return x @ self.base.w[name + ".weight"].T


class Encoded:
    """States of an MT encoder, as a store has them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.rows = [torch.randn(length, WIDTH, generator=generator) for length in TEXTS]

    def states(self, row: int) -> Tensor:
        return self.rows[row][:, None]


def model_of(config: Config, words: list[list[int]]) -> TwoStreamModel:
    if config.recipe.trains and not config.reads_mt_encoder:
        return build("llama", config, words=words)
    base, _ = small_model("llama", layers=2)
    model = inject_adapter(base, config.adapter, sources=1, seed=7) if config.recipe.trains else base
    use_head(base, label_tokens=words if config.train.objective == "labels" else None, trained=False)
    projection = nn.Linear(WIDTH, base.config.hidden_size) if config.recipe.trains else None
    two_stream, generator = TwoStreamModel(model, config, projection), torch.Generator().manual_seed(1)
    for name, parameter in two_stream.named_parameters():
        if "lora_B" in name or "projection" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return two_stream.train()


def oracle_of(model: TwoStreamModel, config: Config, encoded: Encoded) -> Oracle:
    frozen = oracle_base("llama")
    if not config.recipe.trains:
        return BaseAlone(frozen, {}, config.adapter)
    projected = ProjectedBase(frozen.w, frozen.s)
    settings = config.adapter.model_copy(update={"pairing": "input", "source_norm": False})
    oracle = make_oracle(model, projected, config.model_copy(update={"adapter": settings}))
    projected.trained = oracle.trained
    projected.encoded = {row: states.double() for row, states in enumerate(encoded.rows)}
    oracle.head_rows = None
    return oracle


def asked_of_oracle(method: str, rows: list[Row]) -> list[Row]:
    """What the method reads of each row; the source of flare_mt is the number of a text that was encoded."""
    if method == "flare_mt":
        return [Row(row.target, [], [([number] * TEXTS[number], [])]) for number, row in enumerate(rows)]
    return [Row(READ[method](row.sources[0][0], row.target), []) for row in rows]


def world(method: str, name: str, objective: str) -> tuple[Config, TwoStreamModel, Given, list[Tensor], Oracle]:
    """A model, its rows, and what the oracle scores of each."""
    words, config, encoded = WORDS[name], make_config(method=method, objective=objective), Encoded()
    rows = make_rows(1, LENGTHS[:4])
    assert not rows[3].sources[0][0], "one row has no source"
    model, given = model_of(config, words), Given(rows, words)
    oracle = oracle_of(model, config, encoded)
    expected = [scored_by(oracle, row, words) for row in asked_of_oracle(method, rows)]
    return config, model, given, expected, oracle


def stored_of(config: Config) -> Encoded | None:
    return Encoded() if config.reads_mt_encoder else None


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("name", ["share a token", "several nodes", "begin another"])
@pytest.mark.parametrize("method", [*READ, "flare_mt"])
def test_scores_are_those_of_the_oracle(method: str, name: str, objective: str) -> None:
    config, model, given, expected, _ = world(method, name, objective)
    batch = batch_of(rows_read(given, config, TOKENS), config, None, stored_of(config))
    found_BK = label_scores(RunningModel(model.eval(), model), batch, LabelTrie(given.words), config)
    expected_BK = torch.stack(expected).detach()
    torch.testing.assert_close(found_BK.double(), expected_BK, atol=1e-5, rtol=1e-5)
    assert expected_BK.std(0).min() > 1e-3, "rows differ"


@pytest.mark.parametrize("method", ["source_lora", "input_fusion", "flare_mt"])
def test_loss_and_gradients_are_those_of_the_oracle(method: str) -> None:
    config, model, given, scores, oracle = world(method, "several nodes", "labels")
    trie = LabelTrie(given.words)
    loss = model(batch_of(rows_read(given, config, TOKENS), config, trie, stored_of(config)), with_loss=True)
    loss.backward()
    expected = -sum(row_K[label] for row_K, label in zip(scores, given.labels, strict=True))
    torch.testing.assert_close(loss.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = oracle.trained[short_name(name)].grad
            scale = wanted.abs().max()
            assert scale > 0, name
            torch.testing.assert_close(parameter.grad.double() / scale, wanted / scale, atol=1e-5, rtol=1e-4, msg=name)
