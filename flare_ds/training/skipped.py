"""Steps that are not finite: counted, named, never taken for training, and after three in a row the end of the run.

An engine applies a step whose gradient norm is not finite on no rank (`Engine.step`). One such step is a bad row, and
the run goes on without it. Several in a row are a base, a setting or a kernel that makes NaN of everything.
"""

from collections.abc import Sequence

from flare_ds.evaluation.finite import listed
from flare_ds.exceptions import NotFiniteError
from flare_ds.training.state import Progress

IN_A_ROW = 3
_FIX = (
    "look at these rows (flare-ds inspect); or lower train.learning_rate, or try model.dtype=float32 or "
    "model.attention=eager, in another run_dir or once this one is deleted (in a sweep: methods.NAME.…)"
)


def count_step(progress: Progress, *, applied: bool) -> None:
    """Count a step just done."""
    progress.skipped += not applied
    progress.skipped_in_a_row = 0 if applied else progress.skipped_in_a_row + 1


def said_of_skipped(step: int, ids: Sequence[str], *, of_loss: bool) -> str:
    """What is told of a step that was not applied.

    Args:
        step: its number, from 1.
        ids: the rows it may be due to.
        of_loss: whether the loss of these rows was not finite, or a gradient that came of finite losses.
    """
    what = "the loss" if of_loss else "a gradient"
    return f"step {step} was not applied: {what} of the rows {listed(ids)} is not finite"


def refuse_to_go_on(progress: Progress, said: str) -> None:
    """End a run that does not train; on every rank alike.

    Raises:
        NotFiniteError: too many steps in a row were not applied.
    """
    if progress.skipped_in_a_row >= IN_A_ROW:
        raise NotFiniteError(f"{IN_A_ROW} steps in a row were not applied, so the run ends; {said}", fix=_FIX)


def refuse_untrained(progress: Progress) -> None:
    """Refuse to call a run trained that has nothing to show; on every rank alike.

    Raises:
        NotFiniteError: no step was applied, or the scores of no validation were finite.
    """
    if progress.skipped == progress.step:
        raise NotFiniteError(f"none of {progress.step} steps was applied: none had finite gradients", fix=_FIX)
    if progress.best_step < 0:
        raise NotFiniteError(f"no validation in {progress.step} steps had finite scores", fix=_FIX)
