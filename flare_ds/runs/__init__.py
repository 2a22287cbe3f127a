"""Run directories: the owner of one (claims, records, locks, finishes, relocates it), and one read back."""

from flare_ds.runs.directory import RunDirectory
from flare_ds.runs.find import Unreadable, find_runs
from flare_ds.runs.result import METRICS_SCHEMA, RunResult

__all__ = ["METRICS_SCHEMA", "RunDirectory", "RunResult", "Unreadable", "find_runs"]
