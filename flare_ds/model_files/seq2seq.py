"""Loading a translation model, whole: NLLB or M2M100, for its encoder's states or for what it says."""

from typing import TYPE_CHECKING, Any

from flare_ds.model_files.complete import check_complete
from flare_ds.model_files.hub import revision

if TYPE_CHECKING:
    import torch


def load_seq2seq(setting: str, name: str, dtype: "torch.dtype") -> Any:  # a PreTrainedModel, whose types know no `to`
    """Load one to read with: it does not train.

    Args:
        setting: that names the model.
        name: a directory, or a name at the hub.
        dtype: of its weights.

    Raises:
        CheckpointError: the files lack some of its weights.
        OSError: it cannot be loaded; so do ValueError and ImportError.
    """
    from transformers import AutoModelForSeq2SeqLM

    model, found = AutoModelForSeq2SeqLM.from_pretrained(
        name, revision=revision(name), dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    check_complete(setting, name, model, found["missing_keys"])
    return model.eval().requires_grad_(False)
