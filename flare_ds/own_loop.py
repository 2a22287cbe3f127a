"""A fused model for a training loop of one's own: plain PyTorch, around a model that transformers has loaded.

    model = flare_ds.adapt(hf_model, {"r": 8})
    loss, logits = model(input_ids=..., attention_mask=..., source_input_ids=..., labels=...)

The rows are laid out as in `flare_ds.batches.collate`, and run as in `flare_ds.models.two_stream`; see
examples/minimal_loop.py.

Legend: B rows, L columns of the target, M of the source, N answer tokens, V the vocabulary.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.adapters.files import check_settings, load_adapter, save_adapter
from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import collate
from flare_ds.batches.padded_rows import padded_rows
from flare_ds.config import AdapterConfig, Config
from flare_ds.data.row_answers import NO_TARGET
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.exceptions import ConfigError, FlareError
from flare_ds.failures import warn
from flare_ds.model_files.fingerprint import are_different, model_fingerprint
from flare_ds.models.attention_kernels import choose_attention_kernels
from flare_ds.models.head import use_head
from flare_ds.models.loss import loss_sum
from flare_ds.models.stored_weights import changed_weight
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import check_model, let_go, trainable_parameters
from flare_ds.settings import parse_config

_NAMELESS = "a model that was made in memory"
_SAVE_BASE = "save the model with save_pretrained, load it with from_pretrained, and adapt that"
_WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
"""What FSDP, torch's checkpoint_wrapper and torch.compile put into the names of what they wrap."""


def adapt(
    hf_model: PreTrainedModel, settings: AdapterConfig | Mapping[str, Any] | Config | None = None, *, seed: int = 1
) -> "FusedModel":
    """Freeze a loaded model and add a fresh adapter that fuses a source text into each row.

    Args:
        hf_model: a causal language model, whole, loaded by transformers; it is changed in place. With its
            `gradient_checkpointing_enable()` called before, each layer is recomputed in the backward pass.
        settings: of the adapter (None: the defaults); or all of a run's, whose method is flare or lora. With those
            the saved adapter is the run's.
        seed: of the adapter's first values; not used with a run's settings, which have train.seed.

    Raises:
        ConfigError: a setting is wrong or does not fit the model, the model has an adapter or is not the run's base, or
            the method cannot be run like this.
    """
    if not isinstance(hf_model, PreTrainedModel) or hf_model.get_output_embeddings() is None:
        problem = f"hf_model is a {type(hf_model).__name__}, not a causal language model of transformers"
        raise ConfigError(problem, fix="give what AutoModelForCausalLM.from_pretrained returns, without an adapter")
    if any(isinstance(module, BaseTunerLayer) for module in hf_model.modules()):
        raise ConfigError("hf_model has an adapter already", fix="load it anew: adapt changes the model it is given")
    let_go()
    dtype = str(hf_model.dtype).removeprefix("torch.")
    if isinstance(settings, Config):
        config = settings
        _check_dtype(dtype, (config.model.dtype,))
        _check_base(hf_model, config.model.base)
    else:
        _check_dtype(dtype, ("bfloat16", "float32"))
        config = _run_settings(hf_model, dtype, settings or {}, seed)
    if config.adapter.train_head and config.train.objective == "labels":
        problem = "adapter.train_head=true with train.objective='labels' trains a head of the label words alone"
        fix = "set train.objective=vocabulary (a loop of one's own has no label words), or adapter.train_head=false"
        raise ConfigError(problem, fix=fix)
    config = with_whole_head(config)
    if any(getattr(module, "gradient_checkpointing", False) for module in hf_model.modules()):  # the model's own switch
        config = config.having("train", gradient_checkpointing=True)
    recipe, adapter = config.recipe, config.adapter
    reads_target = recipe.reads == "target" and not recipe.late and config.streams_beside == config.sources <= 1
    if not (recipe.trains and reads_target) or adapter.span == "full":
        raise ConfigError(
            f"method={config.method} with {config.sources} sources and adapter.span={adapter.span!r} cannot be run in "
            "a loop of one's own",
            fix="use method=flare with source.provider=lockstep, one source language and adapter.span=prompt; or lora",
        )
    check_model(config, hf_model)
    choose_attention_kernels()
    peft_model = inject_adapter(hf_model, adapter, sources=config.sources, seed=config.train.seed)
    use_head(hf_model, label_tokens=None, trained=adapter.train_head)
    return FusedModel(TwoStreamModel(peft_model, config), config)


class Fused(NamedTuple):
    """What a forward gives.

    Attributes:
        loss: mean over the answer tokens of the batch; None without labels.
        logits: [B, N, V] at the positions that predict the answers, right-padded; without labels those of the first
            token behind each row, [B, 1, V].
    """

    loss: Tensor | None
    logits: Tensor


class FusedModel(nn.Module):
    """A frozen model with an adapter that trains; made by `flare_ds.adapt`.

    Its `settings` are the run's, or made from the adapter's: a model's `config` is what transformers means by it.
    """

    def __init__(self, two_streams: TwoStreamModel, settings: Config) -> None:
        super().__init__()
        self.two_streams, self.settings = two_streams, settings
        # Whatever a loop freezes or shards later; ds_shape: where DeepSpeed has sharded it from the start.
        self._shapes = {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in trainable_parameters(two_streams).items()
        }
        self.train()  # so the base is in evaluation mode, whatever it was in

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares nothing, as of any module."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be pickled: what stands in for the layers' forwards would be read back as their forwards."""
        fix = "use save_adapter(DIRECTORY), or save its state_dict()"
        raise ConfigError("an adapted model cannot be pickled, so torch.save cannot save it", fix=fix)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        source_input_ids: Tensor | None = None,
        source_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Fused:
        """Read both texts of each row.

        Padding may stand on either side, and batches may lie on any device.

        Args:
            input_ids: the target's prompts with their answers [B, L].
            attention_mask: 0 on padding; None: there is none.
            source_input_ids: the source's prompts [B, M], without answers; None: every row is read alone.
            source_attention_mask: all 0 where a row has no source.
            labels: input_ids where the answer is, -100 elsewhere; what stands before it is the prompt, which alone is
                fused.

        Raises:
            DataError: the tensors are not of the same rows and columns, a row is empty, or its labels do not mark one
                answer behind a prompt.
            ConfigError: there are sources, but the method reads none.
        """
        if source_input_ids is not None and not self.settings.sources:
            raise ConfigError(
                f"source_input_ids are given, but method={self.settings.method} reads no source",
                fix="leave them out, or adapt with method=flare",
            )
        base = self.two_streams.base
        known = base.config.get_text_config().vocab_size
        rows = padded_rows(input_ids, attention_mask, source_input_ids, source_attention_mask, labels, tokens=known)
        batch = collate(
            rows,
            MicroBatch(np.arange(len(input_ids)), np.ones(len(input_ids), np.float32)),
            streams=("target",) if source_input_ids is None else ("source", "target"),
            objective="vocabulary",
            pad_id=0,
        ).to(base.device)
        logits_BNV = self.two_streams(batch)
        if labels is None:
            return Fused(None, logits_BNV)
        tokens = (batch.answers_BN != NO_TARGET).sum()
        return Fused(loss_sum(logits_BNV, batch.answers_BN, batch.weights_B) / tokens, logits_BNV)

    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapter in the format of a run's `adapter/`.

        Where the directory above holds that run's config.yaml, `flare_ds.load` reads it.

        Raises:
            ConfigError: the model is not as it lies in a directory or on the hub, so nothing tells which it is; or the
                adapter's parameters are sharded, or in the model by other names than they had.
            HostError: the disk is full or not writable.
        """
        if self.settings.model.base == _NAMELESS:
            why = "the model was made in memory, or changed since it was loaded"
            fix = f"{_SAVE_BASE}; to keep this adapter, save its state_dict()"
            raise ConfigError(f"cannot tell which base the adapter belongs to: {why}", fix=fix)
        tensors = {name: tensor.detach().cpu() for name, tensor in self._trained().items()}
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != self._shapes[name] or hasattr(tensor, "full_tensor"):
                problem = f"{name} has shape {tuple(tensor.shape)} now, but had {self._shapes[name]} when it was made"
                raise ConfigError(problem, fix="gather the parameters first, or train without sharding them")
        peft_model = self.two_streams.peft_model
        save_adapter(Path(directory), tensors, peft_model, self.settings, label_tokens={}, validation={})

    def load_adapter(self, directory: str | Path) -> None:
        """Take the values of an adapter that was saved with the same settings.

        Raises:
            CheckpointError: its files are missing or damaged, or it is of other settings or another base.
            ConfigError: the adapter's parameters are in the model by other names than they had.
        """
        check_settings(Path(directory), self.settings)
        parameters = self._trained()
        for name, values in load_adapter(Path(directory), parameters).items():
            parameters[name].data.copy_(values)

    def _trained(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by the names that they were made with, all of them."""
        parameters = {_unwrapped(name): parameter for name, parameter in self.two_streams.named_parameters()}
        if missing := self._shapes.keys() - parameters.keys():
            problem = f"{min(missing)} was made by adapt, but no parameter of the model has that name now"
            raise ConfigError(problem, fix="take off what was put around its layers, or save state_dict()")
        return {name: parameters[name] for name in self._shapes}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _check_base(hf_model: PreTrainedModel, base: str) -> None:
    """Refuse another base than the run's, as far as the model tells what it is."""
    loaded = hf_model.name_or_path or base
    if loaded != base and _are_others(loaded, base):
        raise ConfigError(
            f"hf_model was loaded from {loaded!r}, which is another model than model.base={base!r}",
            fix=f"load it from {base!r}, or set model.base={loaded}",
        )
    if weight := changed_weight(hf_model, base):
        problem = f"hf_model has other values in {weight} than the files of model.base={base!r}"
        raise ConfigError(problem, fix=f"{_SAVE_BASE}, with model.base set to it")


def _are_others(loaded: str, base: str) -> bool:
    try:
        return are_different(model_fingerprint(loaded), model_fingerprint(base))
    except FlareError:  # the files that the model was loaded from are gone
        return False


def _check_dtype(dtype: str, able: tuple[str, ...]) -> None:
    """Refuse a precision in which states may be too large to be told, or another than the run's."""
    if dtype not in able:
        wanted = " or ".join(f"torch.{one}" for one in able)
        raise ConfigError(f"hf_model is in {dtype}, not {wanted}", fix=f"load it with dtype={wanted}")


def _run_settings(
    hf_model: PreTrainedModel, dtype: str, settings: AdapterConfig | Mapping[str, Any], seed: int
) -> Config:
    """A run that has nothing but its base, as it is to be run, and its adapter."""
    adapter = settings.model_dump() if isinstance(settings, AdapterConfig) else dict(settings)
    if of_a_run := [name for name in adapter if str(name).partition(".")[0] == "adapter"]:
        fix = "leave out the prefix `adapter`, e.g. {'r': 8}, or give the whole Config of a run"
        raise ConfigError(f"adapt takes the settings of an adapter, not {of_a_run[0]!r} as in a run's config", fix=fix)
    found = {
        "method": "flare",
        "run_dir": ".",
        "model": {"base": _name_of(hf_model) or _NAMELESS, "dtype": dtype},
        "task": {"name": "own", "source_language": "en", "target_language": "own"},
        "adapter": adapter,
        "train": {"steps": 1, "objective": "vocabulary", "seed": seed},
    }
    return parse_config(found, origin="the settings given to adapt")


def _name_of(hf_model: PreTrainedModel) -> str | None:
    """The place of the files that hold the model."""
    name = hf_model.name_or_path
    if name and (weight := changed_weight(hf_model, name)):
        warn(f"hf_model has other values in {weight} than the files of {name}: save_adapter will refuse; {_SAVE_BASE}")
        return None
    return name
