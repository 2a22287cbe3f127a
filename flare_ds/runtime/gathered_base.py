"""A base that the ranks share, held whole by each for a while: a decoding would gather it anew for every token."""

from collections.abc import Iterator
from contextlib import contextmanager

from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.memory import fits_whole_beside
from flare_ds.runtime.process_group import gather_objects


@contextmanager
def base_gathered(running: RunningModel) -> Iterator[None]:
    """Gather a sharded base once for all forwards inside, if every rank has room for it; a collective.

    Forwards stay in step on all ranks, whether there is room or not.
    """
    if not (running.sharded and all(gather_objects(fits_whole_beside(running.model)))):
        yield
        return
    from deepspeed.runtime.zero import unwrap_model_for_generation

    with unwrap_model_for_generation(running.shared_root):
        yield
