"""The label head gives the full model's logits at the label tokens, soft-capping included."""

import pytest
import torch

from flare_ds.models.head import use_head
from tests.small_models import small_model

TOKENS = [[5, 6], [9], [30, 2]]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_logits_equal_the_full_models(name: str) -> None:
    base, _ = small_model(name)
    ids = torch.arange(3, 17).view(2, 7)
    columns = torch.tensor([4, 6])
    with torch.no_grad():
        full_BNV = base(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
        use_head(base, label_tokens=TOKENS, trained=False)
        labels_BNK = base(input_ids=ids, logits_to_keep=columns, use_cache=False).logits
    torch.testing.assert_close(labels_BNK, full_BNV[..., [5, 9, 30]])


def test_a_row_for_each_token_in_which_words_part() -> None:
    base, _ = small_model("llama")
    own = base.get_output_embeddings().weight.clone()
    use_head(base, label_tokens=[[5, 6, 7], [5, 6, 8], [9, 5, 3], [9, 8]], trained=False)
    assert torch.equal(base.get_output_embeddings().weight, own[[5, 9, 7, 8]])


def test_an_untrained_head_over_the_vocabulary_stays_the_models_own() -> None:
    base, _ = small_model("llama")
    own = base.get_output_embeddings()
    use_head(base, label_tokens=None, trained=False)
    assert base.get_output_embeddings() is own


@pytest.mark.parametrize("tokens", [TOKENS, None])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_trained_head_is_an_fp32_copy_apart_from_the_embedding(name: str, tokens: list | None) -> None:
    base, _ = small_model(name)
    base = base.bfloat16().requires_grad_(False)
    embedding = base.get_input_embeddings().weight
    own = base.get_output_embeddings().weight.clone()
    use_head(base, label_tokens=tokens, trained=True)
    head = base.get_output_embeddings().weight
    assert head.requires_grad and head.dtype == torch.float32 and not embedding.requires_grad
    assert torch.equal(head, (own if tokens is None else own[[5, 9, 30]]).float())
    before = embedding.clone()
    with torch.no_grad():
        head += 1
    assert torch.equal(embedding, before), "tied no more"


def test_the_heads_bias_is_taken_along() -> None:
    """Some models (Phi, GPT-J) add a bias to their logits."""
    base, _ = small_model("llama")
    head = torch.nn.Linear(16, 64)
    base.set_output_embeddings(head)
    use_head(base, label_tokens=TOKENS, trained=False)
    hidden = torch.randn(2, 1, 16)
    torch.testing.assert_close(base.get_output_embeddings()(hidden), head(hidden)[..., [5, 9, 30]])
