"""What an engine is: something that translates sentences of one language into another, in one process."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import HostError
from flare_ds.extras import install
from flare_ds.registry import Registry


class Direction(NamedTuple):
    """From which language into which, as NLLB tags."""

    from_language: str
    to_language: str

    def __str__(self) -> str:
        return f"{self.from_language}->{self.to_language}"


class Said(NamedTuple):
    """A translation.

    Attributes:
        text: what the engine says.
        cut_off: it stopped at its longest, before it had come to its end.
        unknown: something of the sentence, or of what the engine says, is not in its vocabulary, and left out.
    """

    text: str
    cut_off: bool = False
    unknown: bool = False


class Engine(ABC):
    """A translator of one direction, loaded.

    Args:
        translate: which model, and how it decodes.
        direction: of the translation.
        worker: number of this process; it uses the GPU of that number, where there is one.

    Raises:
        ConfigError: the engine does not know the direction, or the model cannot be loaded.
        HostError: this machine lacks a package or a program.
    """

    uses_gpus: ClassVar[bool] = False
    """Whether a worker computes on a GPU where there is one; without one, a single worker uses all cores."""

    @abstractmethod
    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None: ...

    @classmethod
    @abstractmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        """All that its translations depend on beside the text, as JSON values.

        Raises:
            ConfigError: the engine does not know the direction, or there is no such model.
            HostError: this machine lacks a package or a program.
        """

    @abstractmethod
    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        """Translate sentences, none of which is empty or holds a line break.

        Returns:
            A translation of each; None: it has none. Raises anything if it cannot do these at once, as does whoever
            asks where there are more or fewer.
        """


ENGINES: Registry[type[Engine]] = Registry("translate.engine")


def missing_package(engine: str, package: str) -> HostError:
    """What to raise when an engine's Python package is not installed."""
    return HostError(f"translate.engine={engine!r} needs the Python package {package}", fix=install("translation"))
