"""The trackers that a run's settings name, as one; none: everything is thrown away."""

from collections.abc import Callable, Mapping

import numpy as np

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.extras import install, lacking
from flare_ds.failures import say
from flare_ds.texts import one_line
from flare_ds.tracking.tracker import Tracker


class Trackers(Tracker):
    """Several as one.

    Args:
        config: the run's settings; `tracking.to` names them.
        first_step: where the run's training begins or goes on; None: the run is scored, and keeps what it shows.
    """

    def __init__(self, config: Config, *, first_step: int | None = None) -> None:
        self._run_dir = config.run_dir
        opening = [_TRACKERS[name][1] for name in config.tracking.to]
        self.all = [opened(config, first_step) for opened in opening]
        if first_step is not None:
            self.text("config", f"```yaml\n{config.to_yaml()}```", first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.scalars`."""
        self._each(lambda tracker: tracker.scalars(values, step))

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """See `Tracker.picture`."""
        self._each(lambda tracker: tracker.picture(name, image_HWC, step))

    def text(self, name: str, markdown: str, step: int) -> None:
        """See `Tracker.text`."""
        self._each(lambda tracker: tracker.text(name, markdown, step))

    def close(self) -> None:
        """See `Tracker.close`."""
        self._each(lambda tracker: tracker.close())

    def _each(self, show: Callable[[Tracker], None]) -> None:
        """Show something in all places; a service that cannot be reached costs no step, and is asked no more."""
        for tracker in [*self.all]:
            try:
                show(tracker)
            except Exception as error:  # of whatever kind, as each service's package has its own
                if not tracker.is_service:
                    raise
                self.all.remove(tracker)
                name, why = type(tracker).__name__.removeprefix("On"), one_line(repr(error))
                say(f"{name} failed and is off for {self._run_dir} until the next launch: {why}")


def _on_tensorboard(config: Config, first_step: int | None) -> Tracker:
    from flare_ds.tracking.on_tensorboard import OnTensorBoard

    return OnTensorBoard(config, first_step=first_step)


def _on_wandb(config: Config, first_step: int | None) -> Tracker:
    from flare_ds.tracking.on_wandb import OnWandb

    return OnWandb(config)


def _on_mlflow(config: Config, first_step: int | None) -> Tracker:
    from flare_ds.tracking.on_mlflow import OnMlflow

    return OnMlflow(config)


_TRACKERS: Mapping[str, tuple[str, Callable[[Config, int | None], Tracker]]] = {
    "tensorboard": ("tensorboard", _on_tensorboard),
    "wandb": ("wandb", _on_wandb),
    "mlflow": ("mlflow", _on_mlflow),
}
"""By name, which is its extra's too: the module that it needs, and what opens it.

That module is imported there alone: the others start without it."""


def check_trackers(config: Config) -> None:
    """Refuse trackers whose packages are not here, before anything begins.

    Raises:
        ConfigError: naming the package, and how it is installed.
    """
    for name in config.tracking.to:
        module, _ = _TRACKERS[name]
        if missing := lacking(name, module):
            raise ConfigError(f"tracking.to names {missing}", fix=f"{install(name)}, or take it out")
