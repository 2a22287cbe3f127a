"""How a command ends that does not succeed: one message, and no rank left behind.

Under NCCL leaving the process group is a collective, which the others, blocked in another one, would never join. So a
rank that fails ends by `os._exit`; whoever waits for it is told by its job (`flare_ds.runtime.job`).

What all ranks raise together (see `flare_ds.runtime.rank_zero`) rank 0 tells. What one rank has met, that rank tells,
with its number and its host.
"""

import os
import sys
import time
import traceback
from typing import NoReturn, Protocol

from flare_ds.exceptions import FlareError, HostError, RankFailed, ToBeContinued
from flare_ds.locks import release_all

FAILED = 1
TO_BE_CONTINUED = 75
"""The state is saved, and the same command goes on; the number that schedulers know as "try again"."""
STALLED = 76
INTERRUPTED = 130
CLOSED_PIPE = 141  # as a shell says it: 128 + SIGPIPE


class Job(Protocol):
    """The ranks that met, seen from one of them."""

    rank: int

    def tell(self, error: BaseException) -> NoReturn:
        """Let this rank's own failure end the job."""


_job: Job | None = None


def joined(job: Job) -> None:
    """Several ranks have met: from now on the failure of one is that of all."""
    global _job
    _job = job


def end_uncaught() -> None:
    """Let what no command catches end the job, too.

    Called after torch has formed its group: it puts a hook of its own around ours, which swallows what ours says.
    """
    if (job := _job) is not None:
        sys.excepthook = lambda kind, error, trace: _end_all(job, error)


def end(error: BaseException, *, on_every_rank: bool) -> int:
    """Tell an error.

    Args:
        error: what ended the command.
        on_every_rank: whether the command is one that all ranks run.

    Returns:
        The exit status. Where several ranks have met it does not return: the process ends.

    Raises:
        BaseException: the error itself, where a traceback is all there is to tell.
    """
    if _job is not None:
        _end_all(_job, error)
    error = _with_fix(error)
    if isinstance(error, FlareError):
        # Ranks that have not met yet mostly raise the same; those of one host see the same files.
        if not on_every_rank or _first_of_host():
            say(str(error))
        return FAILED
    if isinstance(error, KeyboardInterrupt | ToBeContinued):
        say(_word(error))
    elif isinstance(error, BrokenPipeError):  # `flare-ds inspect ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python must not flush into it at exit
    else:
        raise error
    return _status(error)


def _first_of_host() -> bool:
    told = (os.environ.get(name) for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"))
    return next((number for number in told if number is not None), "0") == "0"


def say(message: str, *, before: str = "") -> None:
    """Tell the user, in one piece that lines of other ranks do not tear apart."""
    sys.stderr.write(f"{before}flare-ds: {message}\n")
    sys.stderr.flush()


def warn(message: str) -> None:
    """Tell the user what may be wrong, and goes on."""
    sys.stderr.write(f"warning: {message}\n")
    sys.stderr.flush()


def leave(status: int) -> NoReturn:
    """End this process at once, without any handler; what it holds is let go, or others would wait for it."""
    release_all()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)


def _end_all(job: Job, error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit | BrokenPipeError):
        leave(_status(error))
    if not (isinstance(error, KeyboardInterrupt | ToBeContinued) or getattr(error, "shared", False)):
        job.tell(error)
    if job.rank == 0:
        say(_word(error), before=getattr(error, "trace", ""))
    else:
        time.sleep(1)  # a launcher that sees a rank end ends the others: rank 0 has to speak first
    leave(_status(error))


def _status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED if error.code else 0
    statuses = {ToBeContinued: TO_BE_CONTINUED, KeyboardInterrupt: INTERRUPTED, BrokenPipeError: CLOSED_PIPE}
    return statuses.get(type(error), FAILED)


def _word(error: BaseException) -> str:
    return "interrupted; run the same command again to continue" if isinstance(error, KeyboardInterrupt) else str(error)


def _with_fix(error: BaseException) -> BaseException:
    """A full GPU as an error of ours, since torch says where and not what helps; any other error as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return error
    fix = (
        "for training, lower train.micro_batch_size (gradients are accumulated, so train.batch_size stays the same) or "
        "set train.gradient_checkpointing=true; for evaluation, set a smaller evaluate.batch_size; or free the GPU "
        "(nvidia-smi)"
    )
    return HostError(f"the GPU is out of memory: {str(error).strip()}", fix=fix)


def described(error: BaseException) -> tuple[str, str]:
    """An error's traceback, empty where its message tells all; and that message."""
    error = _with_fix(error)
    if isinstance(error, FlareError | RankFailed):
        return getattr(error, "trace", ""), str(error)
    return "".join(traceback.format_exception(error)), f"{type(error).__name__}: {error}"
