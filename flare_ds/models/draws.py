"""Random numbers of one cell among several: those that it would draw alone, whatever the others draw between."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OwnDraws:
    """A state of torch's own generator, which goes on only inside `taking`."""

    def begin(self, seed: int, on: torch.device) -> None:
        """Begin anew, as `torch.manual_seed` does, on the device where the numbers are drawn."""
        generator = torch.Generator(on)
        generator.manual_seed(seed)
        self.state: Tensor = generator.get_state()
        self.shared = torch.default_generator
        if on.type == "cuda":
            self.shared = torch.cuda.default_generators[on.index or 0]

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Draw inside from this state; outside all is as it was."""
        outside = self.shared.get_state()
        self.shared.set_state(self.state)
        try:
            yield
        finally:
            self.state = self.shared.get_state()
            self.shared.set_state(outside)
