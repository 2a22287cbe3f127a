"""Merging the task adapter into its base: W + scaling·B·A, one weight file at a time, straight from disk to disk.

Nothing is loaded but one safetensors file and the adapter, so the base may be larger than memory. Sums are made in
fp32 and rounded once to the base's precision. A trained head takes the place of the base's, or of its rows for the
label words; where the base ties it to the embedding, the two are untied. The result is a model directory like any
other.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from flare_ds.adapters.adapted import merge_refused
from flare_ds.adapters.files import SETTINGS, WEIGHTS, check_settings, made_anew, read_weights, saved_settings
from flare_ds.adapters.inject import adapted_linears
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.exceptions import CheckpointError
from flare_ds.files import all_tensors, check_new, new_directory, open_tensors, write_json
from flare_ds.model_files.hub import revision
from flare_ds.model_files.weight_files import INDEX, SINGLE, read_json
from flare_ds.models.loading import load_shape
from flare_ds.models.weight_names import files_of_weights, names_in_files
from flare_ds.progress import bar

_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx")
_OF_WEIGHTS = ("*.safetensors", *_OTHER_WEIGHTS, "*.index.json", "*.index.*.json")
_CHAT_TEMPLATES = "additional_chat_templates"

Update = Callable[[Tensor], Tensor]
"""Makes a weight of the merged model from the base's."""


def check_mergeable(config: Config) -> None:
    """Check, before a task adapter is trained, that the base's files hold each weight that it would change.

    Raises:
        CheckpointError: one is in none of them; or they cannot be read.
    """
    shape = load_shape(config.model)
    base = _open_base(config, shape)
    changed = {f"{name}.weight" for name in adapted_linears(shape, config.adapter)}
    lost = changed - base.name_in_files.keys()
    if config.adapter.train_head and not {base.head, base.embedding} & base.name_in_files.keys():
        lost.add(base.head)
    if lost:
        raise CheckpointError(
            f"the files of model.base={config.model.base!r} lack {len(lost)} weights, as the model has them, that the "
            f"task adapter would be merged into: {min(lost)!r} is the first",
            fix="choose adapter.target_modules whose weights are in the files, or train without stage 1",
        )


def merge_run(config: Config, output: Path) -> Path:
    """Write the run's base with its task adapter merged in.

    Args:
        config: of a finished run whose adapter does not fuse.
        output: the new model directory; must not exist.

    Raises:
        CheckpointError: the run fuses, its adapter is missing or was trained with other settings, one of its matrices
            has no counterpart in the base's files, or `output` exists.
        ConfigError: there is no model at `model.base`.
    """
    if config.recipe.fuses:
        raise merge_refused()
    check_new(output)
    adapter = Path(config.run_dir) / "adapter"
    check_settings(adapter, config)
    base = _open_base(config, load_shape(config.model))
    updates = _updates(adapter, config, base.head)
    placed = base.placed(updates)
    with new_directory(output) as directory:
        _copy_other_files(base.directory, directory)
        _write_weights(base, directory, placed)
        if base.head in updates:
            _untie(directory / "config.json")
        write_json(directory / "merged_from.json", {"base": config.model.base, "run": config.run_dir})
    return output


@dataclass(frozen=True)
class _Base:
    """The files of the base.

    Attributes:
        directory: where they are.
        file_of: name of the file that holds each weight, by the weight's name in the files.
        name_in_files: of each weight of the model, by its name in the model.
        head: the model's name of the output matrix; where it is tied to the embedding it may be in no file.
        embedding: the model's name of the input matrix.
    """

    directory: Path
    file_of: dict[str, str]
    name_in_files: dict[str, str]
    head: str
    embedding: str

    def placed(self, updates: Mapping[str, Update]) -> dict[str, Update]:
        """The updates by the files' names; a head that is in no file goes beside the embedding it was tied to."""
        names = self.name_in_files
        if self.head in updates and self.head not in names and self.embedding in names:
            names[self.head] = self.head
            self.file_of[self.head] = self.file_of[names[self.embedding]]
        if lost := updates.keys() - names.keys():
            raise CheckpointError(
                f"{len(lost)} adapter matrices match no weight of the base, first {min(lost)!r}",
                fix="merge into the base the adapter was trained on",
            )
        return {names[name]: update for name, update in updates.items()}


def _open_base(config: Config, shape: PreTrainedModel) -> _Base:
    names = {module: f"{name}.weight" for name, module in shape.named_modules()}
    head, embedding = names[shape.get_output_embeddings()], names[shape.get_input_embeddings()]
    directory = Path(base := config.model.base)
    try:
        if not directory.is_dir():
            commit = revision(base)
            directory = Path(snapshot_download(base, revision=commit, ignore_patterns=list(_OTHER_WEIGHTS)))
        file_of = files_of_weights(directory)
    except (OSError, ValueError, SafetensorError) as error:
        problem = f"cannot read the weights of model.base={base!r}: {error}"
        raise CheckpointError(problem, fix="save the base again with save_pretrained") from error
    return _Base(directory, file_of, names_in_files(shape, file_of), head, embedding)


def _updates(adapter: Path, config: Config, head: str) -> dict[str, Update]:
    """What becomes of each weight that the adapter changes, by its name in the model; every matrix is used once."""
    left, settings = read_weights(adapter), config.adapter
    scaling = settings.alpha / (math.sqrt(settings.r) if settings.rslora else settings.r)
    updates: dict[str, Update] = {}
    for key in sorted(left):
        name = key.removesuffix(_DOWN)
        if key != name and name + _UP in left:
            factors = {"down": left.pop(key), "up": left.pop(name + _UP)}
            updates[name.removeprefix(_PREFIX) + ".weight"] = partial(_add, **factors, scaling=scaling)
    if settings.train_head and _PREFIX + head in left:
        rows = _label_rows(adapter) if config.train.objective == "labels" else None
        updates[head] = partial(_replace, trained=left.pop(_PREFIX + head), rows=rows)
    if left:
        raise CheckpointError(
            f"{len(left)} matrices of {adapter / WEIGHTS} cannot be merged, first {min(left)!r}",
            fix="train the run again; an adapter made elsewhere is merged by what made it",
        )
    return updates


def _label_rows(adapter: Path) -> list[int]:
    """The rows of the head that the adapter has trained."""
    ids = saved_settings(adapter).get("label_ids")
    words = [word if isinstance(word, list) else [word] for word in (ids.values() if isinstance(ids, dict) else ())]
    if not any(words) or not all(type(token) is int and token >= 0 for token in chain(*words)):
        raise CheckpointError(f"{adapter / SETTINGS} does not tell label_ids", fix=made_anew(adapter))
    return LabelTrie(words).tokens


def _add(weight: Tensor, *, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    return torch.addmm(weight.float(), up, down, alpha=scaling).to(weight.dtype)


def _replace(weight: Tensor, *, trained: Tensor, rows: list[int] | None) -> Tensor:
    if rows is None:
        return trained.to(weight.dtype)
    weight = weight.clone()
    weight[rows] = trained.to(weight.dtype)
    return weight


def _copy_other_files(base: Path, output: Path) -> None:
    """Configuration, tokenizer and the like; weights in other formats would still be the base's."""
    for file in base.iterdir():
        if file.is_file() and not any(file.match(pattern) for pattern in _OF_WEIGHTS):
            shutil.copy2(file, output / file.name)
    if (base / _CHAT_TEMPLATES).is_dir():
        shutil.copytree(base / _CHAT_TEMPLATES, output / _CHAT_TEMPLATES)


def _write_weights(base: _Base, output: Path, updates: Mapping[str, Update]) -> None:
    files = sorted(set(base.file_of.values()))
    total = sum(_write_file(base, file, output, updates) for file in bar(files, desc="merge", unit="file"))
    if files != [SINGLE]:
        write_json(output / INDEX, {"metadata": {"total_size": total}, "weight_map": base.file_of})


def _write_file(base: _Base, file: str, output: Path, updates: Mapping[str, Update]) -> int:
    """Write one weight file, the only one in memory meanwhile; returns the bytes of its weights."""
    with open_tensors(base.directory / file) as weights:
        metadata, tensors = weights.metadata(), all_tensors(weights)
    for name, update in updates.items():
        if base.file_of[name] == file:
            if name not in tensors:
                tensors[name] = tensors[base.name_in_files[base.embedding]].clone()
            # In place: what was read is replaced in memory, so that nothing is held twice.
            tensors[name].copy_(_updated(name, tensors[name], update))
    save_file(tensors, output / file, metadata=metadata)
    return sum(tensor.nbytes for tensor in tensors.values())


def _updated(name: str, weight: Tensor, update: Update) -> Tensor:
    try:
        after = update(weight)
        fits, problem = after.shape == weight.shape, str(tuple(after.shape))
    except (RuntimeError, IndexError) as error:
        fits, problem = False, str(error)
    if not fits:
        raise CheckpointError(
            f"the adapter does not fit {name!r} of the base, which has shape {tuple(weight.shape)}: {problem}",
            fix="merge into the base the adapter was trained on",
        )
    return after


def _untie(path: Path) -> None:
    """Say in config.json that the output matrix is no longer the embedding."""
    settings = read_json(path)
    for part in (settings, settings.get("text_config")):
        if part is not None:
            part["tie_word_embeddings"] = False
    write_json(path, settings)
