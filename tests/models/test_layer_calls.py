"""What decoder layers are called with is split by name; what is not known is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flare_ds.exceptions import ConfigError
from flare_ds.models.layer_calls import LayerCall, call_layer, hidden_of


class Layer(nn.Module):
    """Takes what it is given."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, position_ids: Any = None, **_: Any) -> Tensor:
        return hidden_states


def split(rows: int = 2, everybody: int = 6, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return LayerCall(Layer()).split(given, rows, everybody)


def test_rows_are_cut_by_the_name_of_the_argument() -> None:
    mask, tables = torch.arange(12).view(6, 2), (torch.arange(6).view(6, 1), torch.arange(4).view(1, 4))
    source, target = split(attention_mask=mask, position_embeddings=tables, alibi=torch.arange(18).view(18, 1))
    assert source["attention_mask"].tolist() == mask[:2].tolist()
    assert target["attention_mask"].tolist() == mask[2:].tolist()
    assert source["position_embeddings"][0].flatten().tolist() == [0, 1]
    assert source["position_embeddings"][1] is tables[1] is target["position_embeddings"][1], "one row is everybody's"
    assert source["alibi"].flatten().tolist() == [*range(6)], "three heads of two rows"
    assert target["alibi"].flatten().tolist() == [*range(6, 18)]


def test_positional_arguments_have_their_names() -> None:
    mask = torch.zeros(6, 2)
    assert LayerCall(Layer()).named((mask, None), {"use_cache": False}) == {
        "attention_mask": mask,
        "position_ids": None,
        "use_cache": False,
    }


@pytest.mark.parametrize("name", ["past_key_values", "cache", "layer_past", "shared_kv_states"])
def test_no_stream_gets_the_targets_store(name: str) -> None:
    store = DynamicCache()
    source, target = split(**{name: store})
    assert source == {name: None} and target[name] is store


def test_plain_values_are_everybodys() -> None:
    given = {"use_cache": True, "mask": None, "layer_type": "full_attention", "scale": 0.5}
    assert split(**given) == (given, given)


UNKNOWN: list[tuple[str, Any]] = [
    ("prev_topk_indices", torch.zeros(6, 2)),  # as long as there are rows, but who made it?
    ("table", torch.zeros(6, 2)),
    ("attention_mask", torch.zeros(5, 2)),
    ("position_ids", torch.zeros(4)),
    ("states", {"full_attention": torch.zeros(6, 2)}),
    ("memory", object()),
    ("attention_mask", (torch.zeros(6, 2), object())),
]


@pytest.mark.parametrize(("name", "value"), UNKNOWN)
def test_anything_else_is_refused_with_the_layer_and_the_argument(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"each Layer of model.base takes '{name}', a \w+.*\n.*lora, input_fusion"):
        split(**{name: value})


@pytest.mark.parametrize("returns", ["state", "tuple"])
def test_a_layer_is_recomputed_whole_before_any_backward_inside(returns: str) -> None:
    """Else ZeRO-3 releases the layer's weights behind its last module, and gathers the others again."""
    torch.manual_seed(0)
    layer, seen = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), list[str]()
    for name, module in layer.named_children():
        module.register_forward_hook(lambda *_, name=name: seen.append(f"forward {name}"))
        module.register_full_backward_pre_hook(lambda *_, name=name: seen.append(f"backward {name}"))

    def run(state: Tensor) -> Any:
        return (layer(state), 7) if returns == "tuple" else layer(state)

    def gradient(*, recompute: bool) -> Tensor:
        state = torch.linspace(-1, 1, 24).view(2, 3, 4).requires_grad_()
        output = call_layer(run, state, recompute=recompute)
        assert returns == "state" or output[1:] == (7,)
        hidden = hidden_of(output)
        (hidden.mul_(2) if recompute else hidden * 2).sum().backward()  # a model may write into it
        assert state.grad is not None
        return state.grad

    once, forward = gradient(recompute=False), [f"forward {number}" for number in (0, 1, 2)]
    seen.clear()
    assert torch.equal(gradient(recompute=True), once)
    assert seen == [*forward, *forward, *(f"backward {number}" for number in (2, 1, 0))]
