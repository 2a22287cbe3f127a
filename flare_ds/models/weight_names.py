"""What the files of a model call its weights, where transformers has other names for them than those files.

    in the model                        in the files
    model.language_model.layers...      language_model.model.layers...    Gemma 3 with images
    lm_head.weight                      embed_out.weight                  GPT-NeoX (Pythia)
    transformer.h.0...                  h.0...                            BLOOM, on the hub

A weight that is found by its name in the files is found by the same rules with which `from_pretrained` reads it.
"""

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from flare_ds.files import open_tensors
from flare_ds.model_files.weight_files import weight_files


def files_of_weights(directory: Path) -> dict[str, str]:
    """The name of the file that holds each weight of a model, by the weight's name in the files.

    Raises:
        CheckpointError: see `weight_files`.
        OSError, ValueError, SafetensorError: a file cannot be read.
    """
    file_of: dict[str, str] = {}
    for file in weight_files(directory):
        with open_tensors(directory / file) as weights:
            file_of |= dict.fromkeys(weights.keys(), file)
    return file_of


def names_in_files(shape: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The name in the files of each weight that they hold as the model has it, by its name in the model.

    Args:
        shape: the model, which may be on the meta device.
        stored: all names in its files; what `from_pretrained` would split or join is left out.
    """
    changes = get_model_conversion_mapping(shape)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    own, found = shape.state_dict(), dict[str, str]()
    for name in sorted(stored):  # in order: some renamings follow from an earlier one
        renamed, converted = rename_source_key(name, renamings, converters, shape.base_model_prefix, own)
        if converted is None:
            found[renamed] = name
    return found
