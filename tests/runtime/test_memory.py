"""What is estimated before loading comes from the shapes of the modules, whatever a configuration calls them."""

import pytest

from flare_ds.runtime.costs import Costs
from flare_ds.runtime.memory import estimate_memory
from tests.models.architectures import ARCHITECTURES, small_base
from tests.models.test_architectures import config_of

WIDTH = 16
INSIDE = dict.fromkeys(ARCHITECTURES, 24) | {"bloom": 4 * WIDTH, "qwen2_moe": WIDTH}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_memory_of_a_token_follows_from_the_layers(name: str) -> None:
    base = small_base(name, ARCHITECTURES[name].attentions[0])
    layers = base.config.get_text_config().num_hidden_layers
    inside = max(INSIDE[name], 4 * getattr(base.config.get_text_config(), "head_dim", 4))
    estimate = estimate_memory(config_of(name, method="lora"), base, streams=1, ranks=1)
    assert estimate.per_token == 4 * layers * (12 * WIDTH + 6 * inside)
    assert estimate.fixed > 1e9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_of_attention_follows_from_the_layers(name: str) -> None:
    base = small_base(name, ARCHITECTURES[name].attentions[0])
    costs = Costs(config_of(name), base, labels=3)
    text = base.config.get_text_config()
    assert costs.per_pair == 4 * text.num_hidden_layers * 4 * (getattr(text, "head_dim", None) or 4)


def test_layers_may_have_heads_of_their_own_width() -> None:
    base = small_base("gemma4", global_head_dim=12)
    assert Costs(config_of("gemma4"), base, labels=3).per_pair == 4 * 4 * (8 + 12)
