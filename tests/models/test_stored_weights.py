"""A model that was changed in memory is told from the files it was loaded from, whatever these call its weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flare_ds.adapters.decoder import decoder_layers, linears_of
from flare_ds.models.stored_weights import changed_weight
from tests.models.architectures import ARCHITECTURES, small_base


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_told(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    small_base(name, attention := ARCHITECTURES[name].attentions[0]).save_pretrained(tmp_path, max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation=attention)
    assert changed_weight(model, str(tmp_path)) is None
    *_, weight = (linear.weight for linear in linears_of(decoder_layers(model)[-1]).values())
    weight += 0.01 * torch.randn_like(weight)
    named = {parameter: name for name, parameter in model.named_parameters()}
    assert changed_weight(model, str(tmp_path)) == named[weight]
    assert changed_weight(model.to("meta"), str(tmp_path)) is None
    assert changed_weight(model, str(tmp_path / "gone")) is None
