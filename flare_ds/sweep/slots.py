"""What each of several jobs at once has of this host: GPUs of its own, or its share of the cores."""

from collections.abc import Iterable, Mapping
from typing import Literal

from flare_ds.exceptions import ConfigError
from flare_ds.host import gpu_names, gpu_variable, threads, visible_gpus
from flare_ds.sweep.nodes import Node
from flare_ds.sweep.plan import Plan

_ON_RANKS = {"stage1", "cells"}


def slots_of(plan: Plan, jobs: int, to_do: Iterable[Node], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each job of a sweep, as `slots` says; translations and caches are made by one process each."""
    return slots(jobs, plan.ranks if any(node.kind in _ON_RANKS for node in to_do) else None, environ)


def slots(jobs: int, ranks: int | Literal["all"] | None, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each job; one alone has all there is.

    Args:
        jobs: how many run at once.
        ranks: of each; None: a launcher of the user's own starts them, perhaps on other hosts.
        environ: of this process.

    Raises:
        ConfigError: there are not as many GPUs, naming how many there are.
    """
    if jobs == 1 and not isinstance(ranks, int):
        return [{}]
    visible = visible_gpus()
    gpus = gpu_names(environ, visible)
    each = ranks if isinstance(ranks, int) else min(visible, len(gpus) // jobs)
    if gpus and (each == 0 or each > visible or jobs * each > len(gpus)):
        raise _too_few(jobs, ranks, max(each, 1), len(gpus), seen_by_one=visible)
    if jobs == 1:
        return [{}]
    if not gpus:
        return [threads(jobs * (ranks if isinstance(ranks, int) else 1), environ)] * jobs
    shared, names = threads(jobs * each, environ), gpu_variable(environ)
    return [{names: ",".join(gpus[job * each : (job + 1) * each])} | shared for job in range(jobs)]


def _too_few(jobs: int, ranks: int | str | None, each: int, gpus: int, *, seen_by_one: int) -> ConfigError:
    asked = f"ranks={ranks}" if jobs == 1 else f"--jobs {jobs}{f' with ranks={ranks}' if ranks else ''}"
    problem = f"{asked} needs {jobs * each} GPUs, but {gpus} {'is' if gpus == 1 else 'are'} visible here"
    if seen_by_one < gpus:
        problem += f", slices (MIG) of which a process sees {seen_by_one}"
    if each > seen_by_one:
        fix = "use ranks=all, or set DS_ACCELERATOR=cpu to use the CPU"
        return ConfigError(problem, fix=fix if jobs == 1 else f"use at most ranks={seen_by_one}")
    return ConfigError(problem, fix=f"use at most --jobs {gpus // each}{', or fewer ranks' if ranks else ''}")
