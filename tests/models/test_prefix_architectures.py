"""source_prefix on every architecture: equal to a joint row of the plain Hugging Face model, or refused with a reason.

The reference reads one row at a time, without padding or masks of ours; hooks put the adapter behind the source alone.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flare_ds.exceptions import ConfigError
from flare_ds.models.probe import check_layers
from tests.by_hand import make_batch, make_rows
from tests.models.architectures import ARCHITECTURES, ATTENTIONS, small_base
from tests.models.test_architectures import TwoForwards, build, config_of
from tests.models.test_prefix import LONG
from tests.oracle import Row

REFUSED = {
    "falcon_alibi": "has keys without positions",
    "bloom": "has keys without positions",
    "gemma4_shared": "keeps no keys and values of its own",
}


class JointRow(TwoForwards):
    """The source and the target in one row of the base, with the adapter on what stands behind the source."""

    @torch.no_grad()
    def logits(self, row: Row) -> Tensor:
        """Logits [L, V] at each token of the target's prompt and, but for its last, of the answer."""
        source = row.sources[0][0]
        hooks = [
            self.base.get_submodule(name).register_forward_hook(partial(self._behind, name, len(source)))
            for name in self.adapted
        ]
        logits_LV = self.base(input_ids=torch.tensor([source + row.target + row.answer[:-1]])).logits[0]
        for hook in hooks:
            hook.remove()
        return logits_LV[len(source) :]

    def _behind(self, name: str, source: int, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        a_RD, b_OR = self.trained[f"{name}.lora_A.weight"], self.trained[f"{name}.lora_B.weight"]
        update_LO = self.adapter.alpha / self.adapter.r * args[0].flatten(0, -2) @ a_RD.T @ b_OR.T
        update_LO[:source] = 0
        return output + update_LO.view_as(output)


@pytest.mark.parametrize(("name", "attention"), [pair for pair in ATTENTIONS if pair[0] not in REFUSED])
def test_equals_the_joint_row(name: str, attention: str) -> None:
    config, rows = config_of(name, method="source_prefix"), make_rows(1, LONG)
    check_layers(small_base(name, attention), config)
    model = build(name, attention, config)
    reference, batch = JointRow(name, attention, model, config), make_batch(rows, config)
    with torch.no_grad():
        logits_BNV = model(batch)
    for found_NV, row in zip(logits_BNV, rows, strict=True):
        expected_NV = reference.logits(row)[len(row.target) - 1 :]
        torch.testing.assert_close(found_NV[: len(expected_NV)], expected_NV, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_bases_whose_keys_cannot_stand_before_others_are_refused(name: str) -> None:
    base = small_base(name, ARCHITECTURES[name].attentions[0])
    live = config_of(name, method="source_prefix")
    stored = live.model_copy(update={"source": live.source.model_copy(update={"provider": "cached"})})
    for config in (live, stored):
        with pytest.raises(ConfigError, match=f"of model.base {REFUSED[name]}.*\n.*input_fusion"):
            check_layers(base, config)
    check_layers(base, config_of(name, method="flare"))
