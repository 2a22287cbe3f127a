"""A trained run as a Python object: loaded once into this process, asked as often as one likes.

No launcher, no process group, no DeepSpeed: the whole base lies on one device. In a group, each rank asks for itself.

Legend: n texts, K label words.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.evaluation.answerable import can_write
from flare_ds.evaluation.answers import Written
from flare_ds.evaluation.given_rows import Text, asked_rows
from flare_ds.evaluation.predict import Labelled, Predictor
from flare_ds.evaluation.translated_rows import RowTranslator
from flare_ds.exceptions import ConfigError
from flare_ds.runtime.engine import let_go
from flare_ds.runtime.process_group import alone
from flare_ds.runtime.process_group import device as own_device
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of

_DEVICES = "give cpu, cuda or cuda:1, or leave it out"
Targets = Text | Iterable[Text | None] | None
Sources = Text | Iterable[Text | Sequence[Text | None] | None] | None


def load(
    run: str | Path,
    device: str | torch.device | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_task_code: bool = False,
) -> "TrainedModel":
    """Load a trained run to ask it, in this process alone.

    Args:
        run: a run directory, wherever it lies now; or a YAML file, for a method that trains nothing.
        device: "cpu", "cuda" or "cuda:1"; None: a GPU where there is one.
        overrides: settings that differ, as on the command line, e.g. `["evaluate.batch_size=64"]`.
        trust_task_code: whether a task in Python that the run directory names may be run.

    Returns:
        The model; what it says is what `flare-ds evaluate` scores.

    Raises:
        ConfigError: a setting is wrong, or there is no such device.
        DataError: the prompt does not fit even without any text.
        CheckpointError: the run has no adapter that fits its base.
        HostError: the base does not fit on the device.
    """
    config = load_config(run, overrides, trust_task_code=trust_task_code)
    return TrainedModel(config, own_device() if device is None else _device(device))


class TrainedModel:
    """A run's model on one device; made by `flare_ds.load`.

    A text is a string; of a task of several fields a mapping of them. Texts are given one at a time or several (any
    iterable), and answers come as a list, in their order. A source of None, or none at all, lets the model read the
    target alone. Threads may share it: they are answered one after the other.

    Attributes:
        config: the run's settings.
        labels: the label words; none where answers are free text.
        device: where the model lies.
    """

    @alone()
    def __init__(self, config: Config, device: torch.device) -> None:
        let_go()
        self.config, self.device = config, device
        self._task = task_of(config.task)
        self._predictor = Predictor(config, self._task, writes=can_write(config), alone_on=device)
        self.labels = self._predictor.encoder.words
        _ = self._predictor.running  # loads it now
        self._translator: RowTranslator | None = None
        self._asking = Lock()  # the streams and the head of a model know of one batch at a time

    @alone()
    def label(self, target: Targets = None, source: Sources = None) -> list[Labelled]:
        """The likeliest label word of each text, and the probabilities of all.

        Args:
            target: the texts in the target language; may be left out where the method reads the source only.
            source: the same texts in the source language, where the method reads it; of several source languages a
                list of texts for each row.

        Raises:
            ConfigError: the task has no label words; or see `asked_rows`.
            NotFiniteError: a score is not finite.
        """
        rows = self._ranked_rows(target, source)
        with self._asking:
            return self._predictor.rank(rows)

    @alone()
    def scores(self, target: Targets = None, source: Sources = None) -> np.ndarray:
        """The log-probability of each label word among them, float [n, K], columns as in `labels`; see `label`."""
        rows = self._ranked_rows(target, source)
        with self._asking:
            return self._predictor.log_probabilities(rows)

    @alone()
    def generate(self, target: Targets = None, source: Sources = None) -> list[Written]:
        """What the model writes for each text, as the run's `generate` settings say; the arguments of `label`.

        Raises:
            ConfigError: the head was trained for the label words alone; or see `asked_rows`.
            NotFiniteError: a score is not finite.
        """
        rows = self._rows(target, source)
        with self._asking:
            return self._predictor.write(rows)

    @alone()
    def translate(self, target: Text | Iterable[Text]) -> Any:
        """The texts in the source language, by machine: what `source` takes beside them.

        The engine is the one that the run's `translate` settings name, on a GPU where there is one. It is loaded by the
        first call, and kept.

        Returns:
            For a text its translation, for several a list of them; of several source languages each is a list in
            their order. None where the engine has none, and translates another text: the model then reads the target
            alone.

        Raises:
            ConfigError: the method reads no source; the engine does not know the languages, or there is no such model;
                or see `asked_rows`.
            DataError: a language has no NLLB tag.
            HostError: this machine lacks what the engine needs, or it translates nothing.
        """
        rows = self._rows(target, None)
        with self._asking:
            gpu = self.device.index or 0
            self._translator = self._translator or RowTranslator(self.config, self._task, gpu=gpu)
            rows = self._translator.fill(rows)
        said = [self._given(row.sources) for row in rows]
        return said[0] if isinstance(target, str | Mapping) else said

    def _given(self, sides: Sequence[Side | None]) -> Any:
        """A row's sources as one gives them."""
        plain = len(self._task.fields) == 1
        texts = [side and (side.fields[self._task.fields[0]] if plain else dict(side.fields)) for side in sides]
        return texts if len(texts) > 1 else texts[0]

    def _ranked_rows(self, target: Targets, source: Sources) -> list[ParallelRow]:
        if not self.labels:
            raise ConfigError(f"task {self._task.name} has no label words to rank", fix="ask by generate(...)")
        return self._rows(target, source)

    def _rows(self, target: Targets, source: Sources) -> list[ParallelRow]:
        return asked_rows(self.config, self._task, target, source)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        held = torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = f"device={str(name)!r} cannot be used: {str(error).partition(chr(10))[0]}"
        raise ConfigError(problem, fix=_DEVICES) from error
    if held.is_meta:
        raise ConfigError(f"device={str(name)!r} cannot be used: nothing is computed there", fix=_DEVICES)
    return device
