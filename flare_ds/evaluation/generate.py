"""Free-text answers: greedy or sampled, each row of a split decoded exactly once on any number of ranks.

Under ZeRO-3 every forward is a collective, so a rank whose rows have all ended goes on with steps that count for
nothing until the last rank's have. With evaluate.whole_model each rank decodes on its own.

Legend: S sources, B rows a stream, X rows that decode: the target's B, or (S+1)·B with the sources first.
"""

import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.data.batching import evaluation_batches
from flare_ds.data.cache import Cache
from flare_ds.data.collate import Batch, collate
from flare_ds.data.states import StateStore
from flare_ds.evaluation.decoding import Decoder, TokenChoice
from flare_ds.evaluation.ranked import longest_prompts, streams_of
from flare_ds.exceptions import ConfigError
from flare_ds.training.engine import RunningModel
from flare_ds.training.process_group import device, gather_objects, rank, world_size


def with_whole_head(config: Config) -> Config:
    """The run's settings, but for a model that predicts the whole vocabulary: what generation opens.

    Raises:
        ConfigError: the run's head was trained for the label words alone.
    """
    if config.method != "zero_shot" and config.adapter.train_head and config.train.objective == "labels":
        raise ConfigError(
            "adapter.train_head=true with train.objective='labels' trained the label words' rows of the output matrix "
            "only, so nothing else can be generated",
            fix="train with train.objective=vocabulary, or with adapter.train_head=false",
        )
    return config.model_copy(update={"train": config.train.model_copy(update={"objective": "vocabulary"})})


def eos_ids(base: PreTrainedModel) -> list[int]:
    """The tokens that end an answer; none: every answer has generate.max_new_tokens."""
    settings = base.generation_config
    ids = None if settings is None else settings.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def generate_split(
    running: RunningModel, cache: Cache, split_name: str, config: Config, *, states: StateStore | None
) -> list[list[int]]:
    """Decode an answer for every row of a split; a collective, with the same result on every rank.

    Args:
        running: opened with the settings of `with_whole_head`.
        cache: the run's token cache.
        split_name: train, validation or test.
        config: the run's settings; `generate` says how.
        states: the run's stored source states, if its provider stores them.

    Returns:
        Answer tokens of each row in cache order, without the eos.
    """
    split, streams = cache.split(split_name), streams_of(config)
    stored = None if states is None else states.split(split_name)
    lengths = longest_prompts(split, streams)
    batches = evaluation_batches(lengths, world_size=world_size(), batch_size=config.evaluate.batch_size)[rank()]
    mine: list[tuple[int, list[int]]] = []
    for micro_batch in tqdm(batches, desc=split_name, unit="batch", disable=rank() > 0, leave=False, file=sys.stderr):
        batch = collate(split, micro_batch, streams=streams, objective="labels", pad_id=cache.pad_id, stored=stored)
        rows = micro_batch.rows.tolist()
        answers = generate(running, batch.to(device()), config, eos=eos_ids(running.model.base), rows=rows)
        kept = zip(rows, answers, micro_batch.weights.tolist(), strict=True)
        mine += [(row, answer) for row, answer, weight in kept if weight]
    decoded = [pair for part in gather_objects(mine) for pair in part]
    by_row = dict(decoded)
    assert len(by_row) == len(decoded) == len(split), "a row was decoded twice or not at all"
    return [by_row[row] for row in range(len(split))]


@torch.no_grad()
def generate(
    running: RunningModel, batch: Batch, config: Config, *, eos: Sequence[int], rows: Sequence[int]
) -> list[list[int]]:
    """Decode an answer for every target row of a batch; a collective where the model is sharded.

    Args:
        running: opened with the settings of `with_whole_head`.
        batch: the prompts; answers in it are not read.
        config: the run's settings; `generate` says how.
        eos: tokens that end an answer.
        rows: a number for each of the B rows, from which its random draws follow.

    Returns:
        Answer tokens of each row, without the eos.
    """
    running.root.eval()
    decoder = Decoder(running, batch, config.adapter.span)
    # The target's key is the same whether sources decode along or not.
    streams = [*range(1, decoder.sources + 1), 0]
    choose = TokenChoice(config.generate, [(row, stream) for stream in streams for row in rows])
    # A row without a source, or one that only keeps the ranks in step, has ended before it begins.
    has_source_X = batch.source_lengths_SB[: decoder.sources].flatten() > 0
    alive_X = torch.cat([has_source_X, batch.weights_B > 0])
    eos_E = torch.tensor(eos, dtype=torch.long, device=alive_X.device)
    tokens: list[Tensor] = []
    with decoder.remembering():
        logits_XK = decoder.prefill()
        while True:
            tokens.append(choose(logits_XK))
            alive_X = alive_X & ~torch.isin(tokens[-1], eos_E)
            if len(tokens) == config.generate.max_new_tokens or not _anyone(running, alive_X[-len(rows) :]):
                break
            logits_XK = decoder.step(tokens[-1], alive_X)
    return [_until(row, eos) for row in torch.stack(tokens, 1)[-len(rows) :].tolist()]


def _anyone(running: RunningModel, alive_B: Tensor) -> bool:
    """Whether a row is still being decoded; where the model is sharded, on any rank."""
    going = alive_B.any().float()
    if running.sharded:
        dist.all_reduce(going, op=dist.ReduceOp.MAX)
    return bool(going)


def _until(tokens: list[int], eos: Sequence[int]) -> list[int]:
    """The tokens before the first eos."""
    end = next((place for place, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end]
