"""Stage 1: the task adapter trained on the source language and merged into a base that is seen to be better for it.

    untuned base -> trained adapter, the best on validation -> merged, under a temporary name -> loaded as later runs
    will load it, and scored on the same validation rows as the untuned base -> only if it is better: its own name

A merge, or a load, that silently did nothing leaves the score where it was, and so is never taken for a tuned base.
What is done already is not done again.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.finite import refuse_not_finite
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import CheckpointError, ConfigError, FlareError
from flare_ds.files import disk_errors, write_json
from flare_ds.json_text import parse_object
from flare_ds.locks import hold, release
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.loading import load_shape
from flare_ds.models.merge import check_mergeable, merge_run
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import TRAINING
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.process_group import rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.signals import leave_if_asked, leaving_between_batches, stopping
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together
from flare_ds.training.validation import validate

RECORD = "stage1.json"


@dataclass(frozen=True)
class Stage1:
    """What became of a stage 1; stage1.json in its run directory.

    Attributes:
        output: where the merged base was written; it may be moved.
        fingerprint: of the merged base, by which it is known: see `model_fingerprint`.
        metric: the task's.
        validation_examples: how many were scored.
        untuned: score of the base as it was.
        tuned: of the best adapter beside it.
        merged: of the merged base.
    """

    output: str
    fingerprint: str
    metric: str
    validation_examples: int
    untuned: float
    tuned: float
    merged: float


def run_stage1(config: Config, output: Path) -> Stage1:
    """Train the task adapter, merge it, and check what came of it; a collective.

    Args:
        config: of method lora, whose target language is the source language (see `load_stage1`).
        output: the new model directory.

    Raises:
        ConfigError: the settings are not those of a task adapter.
        CheckpointError: the merged base scores no better than the untuned one, and is not kept; `output` holds
            something else; or see `train_together` and `merge_run`.
        HostError: another process is making `output`.
        ToBeContinued: a signal asked to stop; what is trained is saved.
        NotFiniteError: the scores of one of the two are not finite.
        FlareError: see `open_run` and `train_together`.
    """
    _check_settings(config)
    join_if_launched()
    with stopping():
        cache = open_run(config, train=True)
        leave_if_asked()  # while it was opened
        trained = on_rank_zero(lambda: RunDirectory(config.run_dir).trained)
        if on_rank_zero(output.exists):
            return on_rank_zero(_finished, config, output, trained)
        making = output.with_name(f".{output.name}.lock")
        on_rank_zero(hold, making, doing=f"is making the base {output}")
        try:
            if not trained:
                on_rank_zero(check_mergeable, config)
                train_together([(config, cache)], evaluate=False)
            with leaving_between_batches():
                return _merged_and_checked(config, cache, output)
        finally:
            if rank() == 0:
                release(making)


def _merged_and_checked(config: Config, cache: Cache, output: Path) -> Stage1:
    leave_if_asked()  # in the last steps
    # Beside its final name, so that a rename is all that is left to do.
    candidate = output.with_name(f".{output.name}.unchecked")
    try:
        on_rank_zero(_merge, config, candidate)
        untuned, merged = _score(config, cache, config.model.base), _score(config, cache, str(candidate))
        return on_rank_zero(_accept, config, output, candidate, untuned, merged)
    finally:
        if rank() == 0:
            shutil.rmtree(candidate, ignore_errors=True)


def _check_settings(config: Config) -> None:
    if config.has_source:
        task = config.task
        raise ConfigError(
            f"task.target_language={task.target_language!r}, but stage 1 tunes on the source language alone",
            fix=f"set task.target_language={task.source_language}",
        )
    if config.recipe.fuses or not config.recipe.trains:
        raise ConfigError(
            f"method={config.method} trains no task adapter that could be merged", fix="set method=lora for stage 1"
        )


def _finished(config: Config, output: Path, trained: bool) -> Stage1:
    """The record of an earlier call that made `output`."""
    try:
        found = Stage1(**parse_object((Path(config.run_dir) / RECORD).read_bytes()))
        made = trained and found.fingerprint == model_fingerprint(str(output))
    except (OSError, ValueError, TypeError, FlareError):  # no record, or `output` is no model
        made = False
    if not made:
        raise CheckpointError(
            f"{output} exists already, and stage 1 in {config.run_dir} did not make it",
            fix="choose another --output, or delete it; or name the stage 1 that made it by run_dir=",
        )
    return replace(found, output=str(output))


def _merge(config: Config, candidate: Path) -> None:
    shutil.rmtree(candidate, ignore_errors=True)  # left by a call that was killed
    merge_run(config, candidate)


def _score(config: Config, cache: Cache, base: str) -> Scores:
    """Score a base alone on the validation rows."""
    config = config.having("model", base=base).model_copy(update={"method": "zero_shot"})
    running = open_model(config, shape=agreed(load_shape, config.model), label_tokens=cache.label_tokens)
    scores = validate(Asked(running, cache, config))
    on_rank_zero(refuse_not_finite, scores.not_finite, f"validation rows by {base}")
    del running
    make_room()
    return scores


def _accept(config: Config, output: Path, candidate: Path, untuned: Scores, merged: Scores) -> Stage1:
    """Give a base that is better than the untuned one its name."""
    run_dir = Path(config.run_dir)
    tuned = RunDirectory(run_dir).read(TRAINING)["best_validation_score"]
    made = model_fingerprint(str(candidate))
    result = Stage1(str(output), made, merged.metric, len(merged.records), untuned.score, tuned, merged.score)
    if merged.standing <= untuned.standing:
        raise _refused(config, result)
    with disk_errors(output):
        write_json(run_dir / RECORD, asdict(result))
        candidate.rename(output)
    return result


def _refused(config: Config, result: Stage1) -> CheckpointError:
    fix = "train longer (train.steps) or with another train.learning_rate"
    if result.tuned > result.untuned:
        fix = (
            "merging lost what the adapter had gained, perhaps by rounding to the precision of the base's files: save "
            "the base in float32, and set model.base to that"
        )
    return CheckpointError(
        f"the merged base of {config.run_dir} has {result.metric} {result.merged:.4f} on {result.validation_examples} "
        f"validation examples and the untuned base {result.untuned:.4f}, so nothing was gained "
        f"(the best adapter: {result.tuned:.4f}); it is not kept",
        fix=f"{fix}, in another run_dir",
    )
