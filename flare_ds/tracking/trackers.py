"""The trackers that a run's settings name, as one; none: everything is thrown away."""

from collections.abc import Callable, Mapping
from importlib import import_module

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
        self.all = [_opened(name, config, first_step) for name in config.tracking.to]
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


_TRACKERS = {"tensorboard": "OnTensorBoard", "wandb": "OnWandb", "mlflow": "OnMlflow"}
"""By name, which is its extra's and its package's too: the class in `on_NAME.py`, which alone imports that package."""


def _opened(name: str, config: Config, first_step: int | None) -> Tracker:
    kind = _TRACKERS[name]
    opened: Tracker = getattr(import_module(f"flare_ds.tracking.on_{name}"), kind)(config, first_step)
    return opened


def check_trackers(config: Config) -> None:
    """Refuse trackers whose packages are not here, before anything begins.

    Raises:
        ConfigError: naming the package, and how it is installed.
    """
    for name in config.tracking.to:
        if missing := lacking(name, name):
            raise ConfigError(f"tracking.to names {missing}", fix=f"{install(name)}, or take it out")
