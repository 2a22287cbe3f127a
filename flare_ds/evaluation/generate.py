"""Free-text answers: greedy or sampled, each row of a split decoded exactly once on any number of ranks.

Under ZeRO-3 every forward is a collective, so a rank whose rows have all ended goes on with steps that count for
nothing until the last rank's have. The base is gathered once for all of them where it fits (see `base_gathered`). With
evaluate.whole_model each rank decodes on its own.

Legend: S sources, B rows a stream, X rows that decode: the target's B, or (S+1)·B with the sources first.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.batches import ask_each_row
from flare_ds.evaluation.decoding import Decoder, TokenChoice
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.gathered_base import base_gathered


class Written(NamedTuple):
    """An answer in words, the mean log-probability of its tokens, and whether it came to its end."""

    text: str
    log_probability: float
    ended: bool = True

    @property
    def record(self) -> dict[str, str | float]:
        """The columns of a file of predictions."""
        return {"prediction": self.text, "log_probability": self.log_probability}


@dataclass(frozen=True)
class Decoded:
    """What the model said behind a prompt.

    Attributes:
        tokens: without the eos.
        log_probabilities: of each, and of the eos, if it came to one; whatever the temperature.
        ended: whether it came to an eos, rather than being cut at generate.max_new_tokens.
    """

    tokens: list[int]
    log_probabilities: list[float]
    ended: bool = True

    @property
    def log_probability(self) -> float:
        """Their mean."""
        return statistics.fmean(self.log_probabilities)

    def written(self, tokenizer: PreTrainedTokenizerBase) -> Written:
        """The answer, which ends with its line: what an untrained model says behind that is no part of it."""
        broken = "\n" in self._said(tokenizer, len(self.tokens)).lstrip()
        counts = range(1, len(self.tokens) + 1) if broken else ()
        end = next((count for count in counts if "\n" in self._said(tokenizer, count).lstrip()), None)
        text, *_ = self._said(tokenizer, len(self.tokens) if end is None else end).strip().split("\n")
        return Written(text.rstrip(), statistics.fmean(self.log_probabilities[:end]), self.ended or broken)

    def _said(self, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
        """The first tokens in words."""
        tokens = self.tokens[:count]
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def eos_ids(base: PreTrainedModel, trained: int | None) -> list[int]:
    """The tokens that end an answer; none: every answer has generate.max_new_tokens.

    Args:
        base: whose generation settings name some.
        trained: the token with which answers end in training, whatever those settings say.
    """
    settings = base.generation_config
    named = None if settings is None else settings.eos_token_id
    ids = {named} if isinstance(named, int) else set(named or [])
    return sorted(ids if trained is None else ids | {trained})


def generate_split(asked: Asked, split_name: str) -> list[Decoded]:
    """An answer decoded for every row of a split, in cache order; a collective, with the same result on every rank.

    The model was opened with the settings of `with_whole_head`; `generate` says how.
    """
    running, config = asked.running, asked.config
    eos = eos_ids(running.model.base, asked.cache.manifest.eos_id)

    def ask(batch: Batch, rows: list[int]) -> list[Decoded]:
        return generate(running, batch, config, eos=eos, rows=rows)

    with base_gathered(running):
        return ask_each_row(ask, asked, split_name, written=config.generate.max_new_tokens)


@torch.no_grad()
def generate(
    running: RunningModel, batch: Batch, config: Config, *, eos: Sequence[int], rows: Sequence[int]
) -> list[Decoded]:
    """An answer decoded for every target row of a batch; a collective where the model is sharded.

    Args:
        running: opened with the settings of `with_whole_head`.
        batch: the prompts; answers in it are not read.
        config: the run's settings; `generate` says how.
        eos: tokens that end an answer.
        rows: a number for each of the B rows, from which its random draws follow.
    """
    running.root.eval()
    batch = batch.to(running.device)
    decoder = Decoder(running, batch, along=config.fuses_answers)
    # The target's key is the same whether sources decode along or not.
    streams = [*range(1, decoder.sources + 1), 0]
    choose = TokenChoice(config.generate, [(row, stream) for stream in streams for row in rows])
    # A row without a source, or one that only keeps the ranks in step, has ended before it begins.
    has_source_X = batch.source_lengths_SB[: decoder.sources].flatten() > 0
    alive_X = torch.cat([has_source_X, batch.weights_B > 0])
    eos_E = torch.tensor(eos, dtype=torch.long, device=alive_X.device)
    tokens: list[Tensor] = []
    log_probabilities: list[Tensor] = []
    with decoder.remembering():
        logits_XK = decoder.prefill()
        while True:
            tokens.append(choose(logits_XK))
            log_probabilities.append(-F.cross_entropy(logits_XK.float(), tokens[-1], reduction="none"))
            alive_X = alive_X & ~torch.isin(tokens[-1], eos_E)
            if len(tokens) == config.generate.max_new_tokens or not _anyone(running, alive_X[-len(rows) :]):
                break
            logits_XK = decoder.step(tokens[-1], alive_X)
    said = zip(torch.stack(tokens, 1).tolist(), torch.stack(log_probabilities, 1).tolist(), strict=True)
    return [_decoded(*row, eos) for row in list(said)[-len(rows) :]]


def _anyone(running: RunningModel, alive_B: Tensor) -> bool:
    """Whether a row is still being decoded; where the model is sharded, on any rank."""
    going = alive_B.any().float()
    if running.sharded:
        dist.all_reduce(going, op=dist.ReduceOp.MAX)
    return bool(going)


def _decoded(tokens: list[int], log_probabilities: list[float], eos: Sequence[int]) -> Decoded:
    """The answer up to the first eos, which counts in its probability."""
    end = next((place for place, token in enumerate(tokens) if token in eos), len(tokens))
    return Decoded(tokens[:end], log_probabilities[: end + 1], end < len(tokens))
