"""The owner of a run directory: what it holds, when it has begun, when it is finished, who writes it.

    config.yaml  cache.json  base.json  versions.json    records: what the run is, written once, when it begins
    state/  adapter/  training.json  train_log.jsonl     training
    metrics.json  predictions.parquet                    scores, of the adapter whose sha256 metrics.json holds
    tracked_as.txt                                       what W&B and MLflow know it by, if they do
    .lock                                                while it is written

Nothing is written before everything that can refuse a command has been asked; then the records are only read. (An
accepted resume may say other housekeeping: smaller batches, where things lie. It is kept in config.yaml.)
"""

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from flare_ds.checksums import unchanged_sha256
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError, ConfigError, DataError, HostError
from flare_ds.files import ASK_OWNER, opening, readable_again, reading, write_json, write_text
from flare_ds.json_text import parse_lines, parse_object
from flare_ds.locks import Holder, hold, holder_of, release
from flare_ds.places import placed
from flare_ds.runs.changes import changes, differs
from flare_ds.settings import parse_config, saved_config
from flare_ds.versions import code_of

CONFIG, CACHE, BASE, VERSIONS = "config.yaml", "cache.json", "base.json", "versions.json"
TRAINING, TRAIN_LOG, METRICS = "training.json", "train_log.jsonl", "metrics.json"
VALIDATION_METRICS = "metrics-validation.json"
"""What `evaluate --split validation` writes in place of the other."""
_MADE_BY = {METRICS: "flare-ds evaluate {}", VALIDATION_METRICS: "flare-ds evaluate {} --split validation"}
"""The command that writes a file of the run at a path; `train`, if nothing is said."""
_TRAIN = "flare-ds train {}"
_LOCK = ".lock"
STATE, ADAPTER_WEIGHTS = Path("state/state.safetensors"), Path("adapter/adapter_model.safetensors")


class RunDirectory:
    """One run directory, there or not yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Config:
        """The saved settings, with paths as they are now.

        Raises:
            ConfigError: they are missing or damaged.
        """
        return saved_config(self.path)

    @property
    def begun(self) -> bool:
        """Whether something came of it that its records tell the origin of."""
        if not (self.path / CACHE).is_file():
            return False
        if (self.path / "state").exists() or (self.path / ADAPTER_WEIGHTS).exists():
            return True
        return any(self.path.glob("metrics*.json"))  # of other rows, too: of zero_shot that may be all there is

    @property
    def trained(self) -> bool:
        """Whether its training has ended."""
        return (self.path / TRAINING).is_file()

    @property
    def finished(self) -> bool:
        """Whether it is scored, and with this very adapter, and that one's training has ended."""
        try:
            metrics = self.read(METRICS)
        except DataError:
            return False
        scored = metrics.get("adapter_sha256")  # None: the method trains nothing
        return scored == self.adapter_sha256 and (scored is None or self.trained)

    @property
    def adapter_sha256(self) -> str | None:
        """Of its adapter's file; None: it has none.

        Raises:
            DataError: it may not be read.
            HostError: no file descriptor is left.
        """
        weights = self.path / ADAPTER_WEIGHTS
        with reading(weights, DataError, damaged=ASK_OWNER), suppress(FileNotFoundError, NotADirectoryError):
            return unchanged_sha256(weights)
        return None

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            DataError: it is missing or damaged, or may not be read.
            HostError: no file descriptor is left.
        """
        try:
            with opening(self.path / name):
                return parse_object((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            gone = isinstance(error, FileNotFoundError)
            again = _MADE_BY.get(name, _TRAIN) if gone else self._mended(name)
            fix = readable_again(error, damaged=again.format(self._quoted))
            raise DataError(f"cannot read {self.path / name}: {error}", fix=fix) from error

    def _mended(self, name: str) -> str:
        """What helps where one of its files is damaged: commands read what is there, and most write it but once."""
        if name in _MADE_BY:
            return _MADE_BY[name]
        if name == BASE:
            return "delete it; the run goes on with the base that its config.yaml names"
        if name == CACHE and not self.trained and not (self.path / STATE).is_file():  # it trains nothing
            return f"delete it, then {_MADE_BY[METRICS]}"
        if name in (CACHE, TRAINING) and (self.path / STATE).is_file():  # training goes on where it ended
            both = f"it and {TRAINING}" if name == CACHE and self.trained else "it"
            return f"restore it from a copy, or delete {both}, then {_TRAIN}"
        return "restore it from a copy, or delete {} and train it again, by the YAML it was made from"

    @property
    def _quoted(self) -> str:
        """Its path in a command."""
        return shlex.quote(str(self.path))

    def record(self, name: str) -> dict[str, Any]:
        """A record; empty for a run that has none yet.

        Raises:
            DataError: it is damaged.
        """
        return self.read(name) if (self.path / name).exists() else {}

    @property
    def code(self) -> str | None:
        """The code it was begun by, see `flare_ds.versions`; None: nobody tells."""
        try:
            return code_of(self.record(VERSIONS))
        except DataError:
            return None

    def lock(self) -> bool:
        """Hold it until this process ends, or `unlock`; whether it was not held before.

        Raises:
            HostError: another process writes it, or it cannot be written.
        """
        return hold(self.path / _LOCK, doing=f"is writing the run {self.path}")

    def unlock(self) -> None:
        """Let others write."""
        release(self.path / _LOCK)

    @property
    def writer(self) -> tuple[Holder, float] | None:
        """The process that writes it now, and how many seconds ago it gave a sign of life; None: there is none."""
        return holder_of(self.path / _LOCK)

    def check_unwritten(self) -> None:
        """Refuse to change it under a process that writes it: that would go on writing, by its path.

        Raises:
            HostError: naming the process.
        """
        if (writer := self.writer) is not None:
            fix = f"wait for it to end, or stop it; if it is certainly gone, delete {self.path / _LOCK}"
            raise HostError(f"{writer[0]} is writing the run {self.path}", fix=fix)

    def check(self, config: Config, *, train: bool) -> None:
        """Refuse settings that the run was not made with.

        Args:
            config: asked for now.
            train: whether it is to be trained on; what is only scored may be scored otherwise than before.

        Raises:
            ConfigError: naming the first setting, its values, and the fix.
        """
        if not self.begun:
            return
        changed = changes(self.config, config, evaluated=not train)
        if not changed:
            return
        said = "; ".join(f"{name}={before!r}, not {now!r}" for name, (before, now) in changed.items())
        first, (before, _) = next(iter(changed.items()))
        other = "go on with the run" if train else "score it"
        raise ConfigError(
            f"{self.path} was begun with other settings: {said}",
            fix=f"set {first}={json.dumps(before)} to {other}, or choose another run_dir for a new run",
        )

    def check_base(self, config: Config) -> None:
        """Refuse another base than the run was begun with.

        Raises:
            CheckpointError: naming the base.
        """
        from flare_ds.model_files.fingerprint import check_same_base  # imports transformers; `status` does not

        known = self.record(BASE).get("fingerprint") if self.begun else None
        check_same_base(known, config.model.base, what=f"{self.path} was begun")

    def check_trained(self, config: Config) -> None:
        """Refuse to score what is still to be trained.

        Raises:
            CheckpointError: saying how far it came.
        """
        if problem := self.untrained(config):
            named = self._quoted if (self.path / CONFIG).is_file() else "CONFIG, the one named here"
            raise CheckpointError(problem, fix=_TRAIN.format(named))

    def untrained(self, config: Config) -> str | None:
        """That its training has not ended, and how far it came; None: it has, or there is nothing to train."""
        if not config.recipe.trains or self.trained:
            return None
        return f"the training of {self.path} has not ended ({self.progress(config)})"

    def under_way(self, config: Config) -> str | None:
        """The same of what we train ourselves: what a loop of one's own has trained has no log of ours."""
        return self.untrained(config) if (self.path / TRAIN_LOG).is_file() else None

    def progress(self, config: Config) -> str:
        """How far its training came, by its log."""
        steps = max((line["step"] for line in self.train_log()), default=0)
        train = config.train
        of = f"{train.steps} steps" if train.epochs is None else f"the steps of {train.epochs:g} epochs"
        return f"trained {steps} of {of}" if steps else "not started"

    def train_log(self, last_bytes: int | None = None) -> list[dict[str, Any]]:
        """The complete lines of train_log.jsonl, or of its last bytes; none if training has not started.

        Raises:
            DataError: one of them is damaged.
        """
        path = self.path / TRAIN_LOG
        if not path.is_file():
            return []
        mended = "remove the damaged lines" if self.trained else _TRAIN.format(self._quoted)
        with reading(path, DataError, damaged=mended), path.open("rb") as file:
            if last_bytes is not None and (begin := path.stat().st_size - last_bytes) > 0:
                file.seek(begin - 1)
                file.readline()  # the rest of a line that begins before them
            return parse_lines(file.read().decode("utf-8"))

    def begin(self, config: Config, records: dict[str, dict[str, Any]]) -> None:
        """Write what the run is, its records by file name; of one that has begun only accepted housekeeping."""
        if self.begun:
            # What was only scored, with other settings than its own, keeps its own: metrics.json tells the others.
            if differs(self.config, at_place(config)) and not changes(self.config, config):
                self.claim(config)
            return
        for name, value in records.items():
            write_json(self.path / name, value)
        self.claim(config)

    def claim(self, config: Config) -> None:
        """Write config.yaml alone, as a sweep does for each of its runs before the first begins."""
        write_text(self.path / CONFIG, at_place(config).to_yaml())


def at_place(config: Config) -> Config:
    """A config whose paths are absolute."""
    return parse_config(placed(config.model_dump(mode="json")), origin=CONFIG)
