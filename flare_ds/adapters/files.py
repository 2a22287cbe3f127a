"""Adapter files: PEFT's layout and key names, with our settings beside them.

    adapter/adapter_config.json         PEFT's LoraConfig; where PEFT alone is not enough also a "flare_ds" section
    adapter/adapter_model.safetensors   base_model.model.…q_proj.lora_A.weight, …; whole, fp32
    adapter/README.md                   the model card, see `flare_ds.adapters.card`

Beside A and B there may be `…q_proj.lora_fusion.…` (what the fusion trains), the head (`…lm_head.weight`),
`projection.…` (MT encoder) and `mixing.…` (the mixing layer of x_mixup). An adapter that PEFT computes as we do is
written as PEFT writes it. Any other carries its own peft_type, so PEFT alone refuses it instead of silently running it
as plain LoRA (PEFT only warns about config keys it does not know).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from flare_ds.adapters.fusion import SCALE
from flare_ds.adapters.passes import ADAPTER
from flare_ds.adapters.settings import compared, compared_settings, recorded_settings, untold_setting
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.files import all_tensors, open_tensors, reading, write_atomically, write_json
from flare_ds.json_text import json_text, parse_object
from flare_ds.methods import METHODS
from flare_ds.model_files.fingerprint import check_same_base, model_fingerprint
from flare_ds.versions import versions

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN_PEFT_TYPE, SECTION = "FLARE_DS", "flare_ds"
KEPT = "flare_ds"
"""Key in the weight file's metadata of what is kept with the weights, as JSON: validation, versions, base."""


def peft_key(parameter_name: str) -> str:
    """PEFT's key of a parameter of the two-stream model: its own prefix and the adapter's name taken out."""
    return parameter_name.removeprefix("model.").replace(f".{ADAPTER}.", ".")


def save_adapter(
    directory: Path,
    tensors: Mapping[str, Tensor],
    model: PeftModel,
    config: Config,
    *,
    label_tokens: Mapping[str, list[int]],
    validation: Mapping[str, float],
    adapter: str = ADAPTER,
) -> None:
    """Write an adapter; weights last, so a directory with weights is complete.

    Args:
        directory: made if absent.
        tensors: whole trained matrices by parameter name.
        model: whose PEFT configuration is written.
        config: the run's settings.
        label_tokens: those that tell each label word apart.
        validation: step and figures of the validation it was kept for.
        adapter: its name in the model.
    """
    write_json(directory / SETTINGS, _settings(model, config, label_tokens, adapter))
    weights = {peft_key(name): tensor.contiguous() for name, tensor in tensors.items()}
    kept = {"validation": dict(validation), "versions": versions(), "base": model_fingerprint(config.model.base)}
    metadata = {"format": "pt", KEPT: json_text(kept)}
    write_atomically(directory / WEIGHTS, lambda path: save_file(weights, path, metadata=metadata))


def load_adapter(directory: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Read an adapter written by `save_adapter`, by parameter name of the model that takes it.

    Raises:
        CheckpointError: the files are missing or damaged, or do not hold exactly this model's adapter.
    """
    path, weights = directory / WEIGHTS, read_weights(directory)
    names = {peft_key(name): name for name in parameters}
    _check_keys(path, wanted=set(names), found=set(weights))
    for key, name in names.items():
        shape = tuple(getattr(parameters[name], "ds_shape", parameters[name].shape))
        if tuple(weights[key].shape) != shape:
            raise CheckpointError(
                f"{key!r} in {path} has shape {tuple(weights[key].shape)}, where the model has {shape}",
                fix="use the base model and the rank (adapter.r) it was trained with",
            )
    return {name: weights[key] for key, name in names.items()}


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All matrices of an adapter by PEFT's keys.

    Raises:
        CheckpointError: the file is missing or damaged, or may not be read.
        HostError: no file descriptor is left.
    """
    path = directory / WEIGHTS
    with reading(path, CheckpointError, damaged=made_anew(directory)), open_tensors(path) as file:
        found = all_tensors(file)
    return dict(_as_now(key, tensor) for key, tensor in found.items())


def _as_now(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A matrix as this version has it: up to 0.2.0 the sources' weights were the softmax of what is kept itself."""
    name = key.removesuffix("source_logits_S")
    return (key, tensor) if name == key else (f"{name}source_scores_S", tensor / SCALE)


def made_anew(directory: Path) -> str:
    """What to do about an adapter that is damaged; a run is not trained again as long as it is there."""
    run = directory.parent
    if not (run / "config.yaml").is_file():  # a loop of one's own may keep its adapter anywhere
        return "restore it from a copy, or make it again"
    return f"restore it from a copy, or delete {run} and train again from the YAML it was made from"


def read_kept(directory: Path) -> dict[str, Any]:
    """What was kept with an adapter's weights, see `KEPT`; nothing where it was made elsewhere.

    Raises:
        OSError, SafetensorError, ValueError: the file is missing or damaged.
        HostError: no file descriptor is left.
    """
    with open_tensors(directory / WEIGHTS) as file:
        return parse_object((file.metadata() or {}).get(KEPT, "{}"))


def saved_figures(directory: Path) -> dict[str, float]:
    """The figures of the validation that an adapter was kept for, by name.

    Raises:
        CheckpointError: the adapter is missing or damaged.
    """
    with reading(directory / WEIGHTS, CheckpointError, damaged=made_anew(directory)):
        return dict(read_kept(directory).get("validation") or {})


def check_settings(directory: Path, config: Config) -> None:
    """Check that an adapter was trained with the settings about to be used, where they change what it computes.

    Raises:
        CheckpointError: naming the first setting that differs; or the base has other contents; or the file is missing
            or damaged.
    """
    saved, wanted = saved_settings(directory), recorded_settings(config)
    if _kind(saved["method"]) != _kind(config.method):
        raise CheckpointError(
            f"{directory} holds an adapter of {_kind(saved['method'])}, not of method={config.method}",
            fix="set method to the one the adapter was trained with",
        )
    for name in compared_settings(config):
        found = saved.get(name, untold_setting(name))
        if compared(name, found) != compared(name, wanted[name]):
            raise CheckpointError(
                f"{directory} was trained with {name}={found!r}, not {wanted[name]!r}", fix=f"set {name}={found!r}"
            )
    _check_base(directory, config)


def _check_base(directory: Path, config: Config) -> None:
    """A base is known by its contents. An adapter made elsewhere, or before this was kept, does not tell."""
    try:
        known = read_kept(directory).get("base")
    except (OSError, SafetensorError, ValueError):
        return  # whoever reads the matrices says it better
    check_same_base(known, config.model.base, what=f"{directory / WEIGHTS} was trained")


def _kind(method: str) -> str:
    """What adapters of a method are; the matrices of plain LoRA do not tell what rows they were trained on."""
    return method if METHODS.get(method).fuses else "plain LoRA"


def saved_settings(directory: Path) -> dict[str, Any]:
    """The settings an adapter was trained with, by full name; those its file does not tell are absent.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = directory / SETTINGS
    with reading(path, CheckpointError, damaged=made_anew(directory)):
        settings = parse_object(path.read_bytes())
        section = settings.get(SECTION)
        if section is None:
            return _from_peft(settings)
        if not isinstance(section, dict):
            raise ValueError(f"{SECTION} is no object")
        # Files of the first version hold the adapter's settings alone, under their short names.
        saved = section if "method" in section else {"method": "flare"} | {f"adapter.{k}": section[k] for k in section}
        if not isinstance(saved["method"], str):
            raise ValueError(f"method is {saved['method']!r}")
        if saved["method"] not in METHODS:
            raise CheckpointError(
                f"{path} is of method {saved['method']!r}, which this version of flare_ds does not know",
                fix=f"use the version, or the fork, that made it (this one knows {', '.join(METHODS)})",
            )
        return saved


def _from_peft(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT's own configuration says; a head that PEFT can load is the whole vocabulary's."""
    return {
        "method": "lora",
        "adapter.r": settings["r"],
        "adapter.alpha": settings["lora_alpha"],
        "adapter.rslora": settings.get("use_rslora", False),
        "adapter.train_head": bool(settings.get("modules_to_save")),
        "train.objective": "vocabulary",
    }


def _check_keys(path: Path, *, wanted: set[str], found: set[str]) -> None:
    problems = [
        f"{len(keys)} {what} (first {min(keys)!r})"
        for what, keys in (("missing", wanted - found), ("unexpected", found - wanted))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"the adapter {path} does not fit the model: of {len(wanted)} matrices {len(wanted & found)} match; "
            + ", ".join(problems),
            fix="use the base model and the adapter settings it was trained with",
        )


def _label_ids(label_tokens: Mapping[str, list[int]]) -> dict[str, int] | dict[str, list[int]]:
    """The first token of each label word, if that tells it apart; or else all of each."""
    first = {word: tokens[0] for word, tokens in label_tokens.items()}
    return first if len(set(first.values())) == len(first) else dict(label_tokens)


def _settings(model: PeftModel, config: Config, label_tokens: Mapping[str, list[int]], adapter: str) -> dict[str, Any]:
    """adapter_config.json: PEFT's own, marked and with our section unless PEFT computes the same function."""
    settings = model.peft_config[adapter].to_dict()
    settings |= {"base_model_name_or_path": config.model.base, "inference_mode": True}
    # Of a base with experts PEFT has sets of more than the modules' names.
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    base = model.get_base_model()
    head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]
    # PEFT saves and loads a trained head with its bias, which does not train here.
    whole_head = config.train.objective == "vocabulary" and getattr(head, "bias", None) is None
    if config.recipe.fuses or (config.adapter.train_head and not whole_head):
        section = recorded_settings(config) | {"label_ids": _label_ids(label_tokens)}
        return settings | {"peft_type": OWN_PEFT_TYPE, SECTION: section}
    if config.adapter.train_head:
        settings["modules_to_save"] = [name for name, module in base.named_modules() if module is head]
    return settings
