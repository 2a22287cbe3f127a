"""What each of several jobs at once has of this host: GPUs of its own, or its share of the cores."""

from collections.abc import Mapping
from typing import Literal

from flare_ds.exceptions import ConfigError
from flare_ds.host import gpu_names, threads, visible_gpus


def slots(jobs: int, ranks: int | Literal["all"] | None, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each job; one alone has all there is.

    Args:
        jobs: how many run at once.
        ranks: of each; None: a launcher of the user's own starts them.
        environ: of this process.

    Raises:
        ConfigError: there are not as many GPUs, naming how many there are.
    """
    if jobs == 1:
        return [{}]
    gpus = gpu_names(environ, visible_gpus())
    if not gpus:
        return [threads(jobs * (ranks if isinstance(ranks, int) else 1), environ)] * jobs
    each = ranks if isinstance(ranks, int) else len(gpus) // jobs
    if each == 0 or jobs * each > len(gpus):
        problem = f"--jobs {jobs} with ranks={ranks} needs {jobs * max(each, 1)} GPUs, but {len(gpus)} are visible here"
        fix = f"use at most --jobs {len(gpus) // max(each, 1)}, or fewer ranks"
        raise ConfigError(problem, fix=fix if each <= len(gpus) else f"use at most ranks={len(gpus)}")
    shared = threads(jobs * each, environ)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[job * each : (job + 1) * each])} | shared for job in range(jobs)]
