"""The label head gives the full model's logits at the label tokens, soft-capping included."""

import pytest
import torch

from flare_ds.exceptions import ConfigError
from flare_ds.models.head import use_head
from tests.small_models import small_model

TOKENS = [[5, 6], [9], [30, 2]]
LABELS = ("yes", "no", "perhaps")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_logits_equal_the_full_models(name: str) -> None:
    base, _ = small_model(name)
    ids = torch.arange(3, 17).view(2, 7)
    columns = torch.tensor([4, 6])
    with torch.no_grad():
        full_BNV = base(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
        use_head(base, label_tokens=TOKENS, labels=LABELS, trained=False)
        labels_BNK = base(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
    torch.testing.assert_close(labels_BNK, full_BNV[..., [5, 9, 30]])


def test_label_words_that_begin_alike_are_refused() -> None:
    base, _ = small_model("llama")
    with pytest.raises(ConfigError, match="begin with the same token"):
        use_head(base, label_tokens=[[5, 6], [5, 7]], labels=("unhappy", "unsure"), trained=False)
