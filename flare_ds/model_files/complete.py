"""Loading a model whole: transformers makes up the weights that its files lack, with a warning at most."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flare_ds.exceptions import CheckpointError
from flare_ds.model_files.hub import revision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def check_complete(setting: str, name: str, model: "PreTrainedModel", missing: Iterable[str]) -> None:
    """Refuse a model of which some weights are made up (its `missing_keys`); those tied to another are in no file.

    Raises:
        CheckpointError: naming the first of them.
    """
    lacking = sorted(set(missing) - set(model.all_tied_weights_keys))
    if lacking:
        raise CheckpointError(
            f"the files of {setting}={name!r} lack {len(lacking)} weights of a {type(model).__name__}, "
            f"the first of them {lacking[0]!r}",
            fix="check that config.json and the weight files belong together; write them again with save_pretrained",
        )


def load_seq2seq(setting: str, name: str, dtype: "torch.dtype") -> Any:  # a PreTrainedModel, whose types know no `to`
    """Load a translation model, NLLB or M2M100, to read with, for its encoder's states or for what it says.

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
