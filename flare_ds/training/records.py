"""What a run leaves to read: train_log.jsonl, its curves where it is watched, and what it tells; rank 0 only.

On a terminal it shows a bar; in a log it says once a minute how far it is.

After a resume, lines of steps that will be done again are taken out, and TensorBoard is told to forget them.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flare_ds.config import Config
from flare_ds.files import disk_errors, write_text
from flare_ds.json_text import json_text, parse_object
from flare_ds.progress import IN_A_LOG, bar, on_terminal
from flare_ds.runs.directory import TRAIN_LOG
from flare_ds.runtime.process_group import world_size
from flare_ds.runtime.watchdog import unhurried
from flare_ds.tracking.figures import of_step, of_validation
from flare_ds.tracking.picture import is_due, share_picture
from flare_ds.tracking.trackers import Trackers


class Records:
    """Writes a run's records; on other ranks than 0 it does nothing.

    Args:
        config: the run's settings.
        first_step: the step the run starts at (0, or where it resumes).
        steps: the last step.
        enabled: whether this rank writes.
    """

    def __init__(self, config: Config, *, first_step: int, steps: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        run_dir, self.language = Path(config.run_dir), config.task.target_language
        self._path = run_dir / TRAIN_LOG
        # A run that starts anew scores its start anew as well.
        kept = [line for line in _whole_lines(self._path) if first_step and line["step"] <= first_step]
        write_text(self._path, "".join(f"{json_text(line)}\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        with unhurried():
            self._trackers = Trackers(config, first_step=first_step)
        self._shares = [list(line["source_share"].values()) for line in kept if "source_share" in line]
        self._drawn, self._last_share = len(self._shares), first_step
        self._name, self._steps, self._said = "/".join(run_dir.absolute().parts[-2:]), steps, time.monotonic()
        self._bar = bar(total=steps, initial=first_step, desc=self._name, unit="step", disable=not on_terminal())

    def step(self, step: int, **values: Any) -> None:
        """Record one optimizer step, applied or not."""
        if self.enabled:
            self._write(step, values)
            self._curves(of_step(values, ranks=world_size()), step)
            self._show(step, values)

    def say(self, message: str) -> None:
        """Tell whoever watches."""
        if self.enabled:
            tqdm.write(f"{self._name}: {message}", file=sys.stderr)
            self._said = time.monotonic()

    def validation(self, step: int, *, score: float, figures: Mapping[str, float]) -> None:
        """Record one validation.

        Args:
            step: the optimizer step just done; 0 before the first.
            score: the task's metric, which says what adapter is best.
            figures: all that was measured, by name.
        """
        if self.enabled:
            named = {"score": score, **figures}
            self._write(step, {f"validation_{name}": value for name, value in named.items()})
            self._curves(of_validation(score, figures, self.language), step)
            said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self.say(f"step {step}: validation {said}")

    def fusion(self, step: int, shares: Mapping[str, float]) -> None:
        """Record how much of each fused layer's update is due to the source.

        Args:
            step: the optimizer step just done.
            shares: by the layer's module name, which is shown from its stack of decoder layers on; may be empty.
        """
        if self.enabled and shares:
            self._write(step, {"source_share": {_in_the_stack(name): share for name, share in shares.items()}})
            self._shares.append(list(shares.values()))
            self._last_share = step
            self._curves({"source/share_mean": sum(shares.values()) / len(shares)}, step)
            if is_due(len(self._shares), drawn=self._drawn):
                self._draw()

    def close(self) -> None:
        """Draw what is not drawn yet; flush and close everything."""
        if self.enabled:
            if len(self._shares) > self._drawn:
                self._draw()
            self._bar.close()
            self._file.close()
            with unhurried():
                self._trackers.close()

    def _curves(self, values: Mapping[str, float], step: int) -> None:
        """A place that is out of reach may be asked again for minutes, far longer than a step takes."""
        with unhurried():
            self._trackers.scalars(values, step)

    def _draw(self) -> None:
        """Show the source's share at all validations so far."""
        self._drawn = len(self._shares)
        with unhurried():
            self._trackers.picture("source/share_by_layer", share_picture(self._shares), self._last_share)

    def _show(self, step: int, values: Mapping[str, Any]) -> None:
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        self._bar.update()
        if self._bar.disable and time.monotonic() - self._said >= IN_A_LOG:
            loss, seconds = values["loss"], values["step_seconds"]
            self.say(f"step {step} of {self._steps}: loss {loss:.3f}, {seconds:.2f} s a step")

    def _write(self, step: int, values: dict[str, Any]) -> None:
        with disk_errors(self._path):
            self._file.write(json_text({"step": step, **values}) + "\n")
            self._file.flush()


def _in_the_stack(module: str) -> str:
    """`layers.7.self_attn.q_proj` of `base_model.model.model.layers.7.self_attn.q_proj`."""
    names = module.split(".")
    number = next(place for place, name in enumerate(names) if name.isdigit())
    return ".".join(names[number - 1 :])


def _whole_lines(log: Path) -> Iterator[dict[str, Any]]:
    """The records of a log; a line that a kill cut short is none, and no reason not to go on."""
    for line in log.read_bytes().splitlines() if log.exists() else ():
        with suppress(ValueError):
            yield parse_object(line)
