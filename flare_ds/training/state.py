"""The trainer state: all that a run needs to go on as if it had never stopped, in one small file.

    adapter/NAME   exp_avg/NAME   exp_avg_sq/NAME      whole fp32 matrices, in state.safetensors
    step, scores so far, fingerprint                   in the same file's metadata

Only the adapter trains, so the state is adapter-sized: it is gathered, written by rank 0, and read by any number of
ranks. One file, renamed into place, is never half a state. The data order and the learning rate are functions of the
step, so nothing else has to be kept. The best adapter so far lies in the run's `adapter/`; a state is saved with each.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from flare_ds.checksums import json_sha256
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.answerable import generates
from flare_ds.exceptions import CheckpointError
from flare_ds.files import all_tensors, open_tensors, reading, write_atomically
from flare_ds.json_text import json_text
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.runs.changes import deciding
from flare_ds.runtime.engine import KINDS, MOMENTS, Engine, Kind
from flare_ds.runtime.rank_zero import on_rank_zero


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: steps done, whether they were applied or not.
        skipped: steps of these that were not applied, as a loss or a gradient was not finite.
        skipped_in_a_row: how many of them came last.
        start_score: of the validation before the first; None: not done yet.
        best_step: of the best validation so far; -1: none yet.
        best_standing: the validation score there, and what breaks its ties; see `Scores.standing`.
        validations_since: how many came after it.
        seconds: spent training so far.
        fingerprint: of what the run trains on; a resume with another is refused.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # it is read back from a file

    fingerprint: str
    step: NonNegativeInt = 0
    skipped: NonNegativeInt = 0
    skipped_in_a_row: NonNegativeInt = 0
    start_score: float | None = None
    best_step: int = -1
    best_standing: list[float] = field(default_factory=list)
    validations_since: NonNegativeInt = 0
    seconds: float = 0.0


_PROGRESS = TypeAdapter(Progress)


def save_state(path: Path, engine: Engine, progress: Progress, cell: int = 0) -> None:
    """Gather the state of one of an engine's cells and let rank 0 write it; a collective."""
    whole = {f"{kind}/{name}": tensor for kind in KINDS for name, tensor in engine.tensors(kind, cell).items()}
    metadata = {"progress": json_text(asdict(progress))}
    # All ranks wait for the file: whoever reads it next, on any rank, reads the same.
    on_rank_zero(lambda: write_atomically(path, lambda temporary: save_file(whole, temporary, metadata=metadata)))


def load_state(path: Path, fingerprint: str) -> tuple[Progress, dict[str, Tensor]]:
    """Read a state file: the progress, and all tensors by their prefixed names.

    Raises:
        CheckpointError: the file is damaged, or may not be read, or belongs to other data or settings.
        HostError: no file descriptor is left.
    """
    progress = read_progress(path, fingerprint)
    with reading(path, CheckpointError, damaged=f"delete {path.parent}"), open_tensors(path) as file:
        return progress, all_tensors(file)


def read_progress(path: Path, fingerprint: str) -> Progress:
    """Read where a run stands, without its tensors."""
    with reading(path, CheckpointError, damaged=f"delete {path.parent}"), open_tensors(path) as file:
        progress = _PROGRESS.validate_json(file.metadata()["progress"])
    if progress.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} was written by a run with other data or settings, so it cannot be continued",
            fix=f"use another run_dir, or delete {path.parent.parent} to start over",
        )
    return progress


def saved_adapter(
    path: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The adapter's matrices of a state file, by parameter name; its moments are looked at as well.

    Raises:
        CheckpointError: a matrix or a moment of it is missing, or is of another shape or type.
    """
    for name, parameter in parameters.items():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        for key in (f"{kind}/{name}" for kind in KINDS):
            found = tensors.get(key)
            if found is None or tuple(found.shape) != shape or found.dtype != torch.float32:
                what = "is missing" if found is None else f"has shape {tuple(found.shape)} in {found.dtype}"
                problem = f"{key!r} in {path} {what}, where the model has {shape} in float32"
                raise CheckpointError(problem, fix=f"delete {path.parent}")
    return {name: tensors[f"adapter/{name}"] for name in parameters}


def moments(tensors: Mapping[str, Tensor]) -> dict[Kind, dict[str, Tensor]]:
    """The optimizer's moments of a state file, by kind and parameter name."""
    return {
        kind: {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}
        for kind in MOMENTS
    }


def fingerprint(config: Config, cache: Cache) -> str:
    """What must not change between the parts of one run: data, model, adapter, optimisation, how validation decodes.

    The base counts by its contents: it may be moved.
    """
    models = [config.model.base, *([config.source.mt_encoder] if config.reads_mt_encoder else [])]
    contents = [model_fingerprint(str(name)) for name in models]
    sections = ("method", "model.", "source.", "adapter.", "mixup.", "train.", *(["generate."] * generates(config)))
    parts = {name: value for name, value in deciding(config).items() if name.startswith(sections)}
    return json_sha256([cache.key, contents, parts])
