"""Whether a model's files hold all of its weights: transformers makes up what they lack, with a warning at most."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flare_ds.exceptions import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_complete(setting: str, name: str, model: "PreTrainedModel", missing: Iterable[str]) -> None:
    """Refuse a model of which some weights are made up; those tied to another are in no file.

    Args:
        setting: that names the model.
        name: where it is.
        model: loaded.
        missing: the weights that the files lack (`missing_keys`).

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
