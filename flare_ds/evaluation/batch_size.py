"""How many held-out rows go through the model at once: what the settings say, or what keeps it busy and fits.

A GPU is idle with few tokens, and where the ranks share the base it is gathered for each batch. But a split gives some
batches, so that several ranks have their share. They are the same on any number of ranks that have memory enough.

Legend: n rows.
"""

import numpy as np

from flare_ds.config import Config
from flare_ds.data.row_answers import Rows
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.memory import largest_forward
from flare_ds.runtime.process_group import gather_objects

_BUSY_TOKENS = 2048
"""More at once are no faster on a CPU."""
_BATCHES = 16
"""A GPU is given more, as long as there are so many batches."""


def batch_limits(
    running: RunningModel,
    rows: Rows,
    config: Config,
    lengths_n: np.ndarray,
    *,
    written: int,
    words: bool,
    cells: int = 1,
) -> tuple[int, int | None]:
    """Most rows and most padded tokens of a batch; a collective where the settings leave both open.

    What is set is for all cells that read them in one forward, as what is found: so what fits one alone fits them.

    Args:
        running: the model that is asked.
        rows: what it is asked about.
        config: the run's settings; those of `evaluate` win.
        lengths_n: padded tokens of each row alone, over the streams that run.
        written: tokens decoded behind each row.
        words: whether the head gives the logits of the whole vocabulary.
        cells: how many read the rows in one forward, with an adapter each.
    """
    size, tokens = config.evaluate.batch_size, config.evaluate.batch_tokens
    if size != "auto":
        return max(1, size // cells), None if tokens is None else tokens // cells
    if tokens is not None:
        tokens //= cells
    else:
        answers = int((rows.lengths("target") - rows.prompt_lengths("target")).max())
        longest = int(lengths_n.max())
        fitting = largest_forward(
            config, running.model.base, running.device, row_tokens=longest, logits=answers * words, written=written
        )
        busy = _BUSY_TOKENS if running.device.type == "cpu" else max(_BUSY_TOKENS, int(lengths_n.sum()) // _BATCHES)
        tokens = min(busy, *(one // cells for one in gather_objects(fitting)))
    return len(lengths_n), tokens
