"""One rank that notes how much of a shared base it holds at once: `python -m tests.training.live_worker OUT CONFIG...`.

The first run is trained alone, the others together. Written are the frozen elements that were whole at once, at most,
in forwards and in backwards, of both.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from flare_ds.runtime.engine import make_room
from flare_ds.runtime.process_group import rank
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together


class Watched:
    """DeepSpeed's fetching of weights, of one training."""

    def __init__(self) -> None:
        self.most, self.known = Counter[str](), set[Any]()
        fetch = PartitionedParameterCoordinator.fetch_sub_module

        def noted(coordinator: Any, module: nn.Module, forward: bool) -> None:
            fetch(coordinator, module, forward)
            self.known |= {p for p in module.parameters() if not p.requires_grad and not p.ds_persist}
            whole = sum(p.ds_numel for p in self.known if p.ds_status == ZeroParamStatus.AVAILABLE)
            way = "forward" if forward else "backward"
            self.most[way] = max(self.most[way], whole)

        PartitionedParameterCoordinator.fetch_sub_module, self.fetch = noted, fetch

    def read(self) -> dict[str, int]:
        """What was seen; the watch is over."""
        PartitionedParameterCoordinator.fetch_sub_module = self.fetch
        return {**self.most, "base": sum(p.ds_numel for p in self.known)}


def main(out: str, *paths: str) -> None:
    first, *others = (load_config(path) for path in paths)
    found = []
    for configs in ([first], others):
        watched = Watched()
        train_together([(config, open_run(config, train=True)) for config in configs], evaluate=False)
        make_room()
        found.append(watched.read())
    if rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
