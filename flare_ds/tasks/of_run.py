"""The task file of a run: copied into its directory when it begins, and what counts from then on.

    RUN/task.yaml or task.py     the copy        RUN/task_file.json     where it came from, and its sha256

A config that a user names says what code they want to run. A run directory may come from anybody, so a `.py` that it
names is run only with --trust-task-code. Which of the two a config is, is known where it is loaded, and kept here.
"""

from pathlib import Path

from flare_ds.checksums import file_sha256
from flare_ds.exceptions import ConfigError
from flare_ds.failures import say
from flare_ds.files import reading, write_atomically, write_json
from flare_ds.json_text import parse_object

_RECORD = "task_file.json"
_copies: dict[str, Path] = {}  # by task.path, of the run that was loaded last with it
_untrusted: set[str] = set()


def keep_task_file(path: str | None, run_dir: Path) -> None:
    """Copy the file that `task.path` means into a run's directory; one that has begun goes on with no other.

    Raises:
        ConfigError: the run has begun with another task file.
        HostError: the disk is full or not writable.
    """
    if path is None:
        return
    source = task_file(path)
    copy = run_dir / f"task{source.suffix}"
    same = copy.is_file() and file_sha256(copy) == file_sha256(source)
    if source == copy or (same and _is_recorded(copy)):  # a kill may have come between the two writes
        return
    if copy.is_file() and not same and (run_dir / "state").exists():
        problem = f"task.path={path!r} was changed since the run {run_dir} began with it ({copy})"
        raise ConfigError(problem, fix=f"restore it, name {run_dir} instead of the config, or choose another run_dir")
    content = source.read_bytes()
    write_atomically(copy, lambda temporary: temporary.write_bytes(content))
    write_json(run_dir / _RECORD, {"path": path, "sha256": file_sha256(copy)})


def use_task_of_run(path: str, run_dir: Path, *, trusted: bool) -> None:
    """Let `task.path` of a loaded run mean the run's own copy, where it has one.

    Args:
        path: `task.path`, as the run's config says it.
        run_dir: of the run.
        trusted: whether code in it may be run.

    Raises:
        ConfigError: the copy was changed.
    """
    copy = run_dir / f"task{Path(path).suffix}"
    has_copy = copy.is_file()
    if has_copy:
        _check_copy(copy, path)  # first: a run that is refused changes nothing for those that were loaded before
    _untrusted.discard(path)
    if not trusted:
        _untrusted.add(path)
    _copies.pop(path, None)  # that of another run, which was loaded before
    if has_copy:
        _copies[path] = copy


def use_named_task(path: str) -> None:
    """Let `task.path` mean that file itself: the user has named it."""
    _copies.pop(path, None)
    _untrusted.discard(path)


def task_file(path: str) -> Path:
    """The file that `task.path` means.

    Raises:
        ConfigError: it holds code that a run directory names, and nobody has said that it may be run.
    """
    file = _copies.get(path, Path(path))
    if path in _untrusted and file.suffix == ".py":
        problem = f"the run's task.path={path!r} is Python code ({file}), which whoever made the run has written"
        fix = "read it; if you trust it, add --trust-task-code (in Python: trust_task_code=True)"
        raise ConfigError(problem, fix=fix)
    return file


def task_sha256(path: str | None) -> str | None:
    """Checksum of the file that `task.path` means; None: it names none, or none that is there."""
    file = None if path is None else task_file(path)
    return file_sha256(file) if file is not None and file.is_file() else None


def _recorded(copy: Path) -> object:
    return parse_object((copy.parent / _RECORD).read_bytes()).get("sha256")


def _is_recorded(copy: Path) -> bool:
    try:
        return _recorded(copy) == file_sha256(copy)
    except (OSError, ValueError):
        return False


def _check_copy(copy: Path, path: str) -> None:
    with reading(copy.parent / _RECORD, ConfigError, damaged="restore it from where the run was"):
        recorded = _recorded(copy)
    if recorded != file_sha256(copy):
        fix = "restore it, or name the config that the run was made from"
        raise ConfigError(f"{copy} was changed since the run began with it", fix=fix)
    original = Path(path)
    if original.is_file() and file_sha256(original) != recorded:
        say(f"{original} was changed since the run began; its own copy {copy} is used")
