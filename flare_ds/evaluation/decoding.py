"""One batch through the model column by column, and the choice of each next token.

    prefill   columns 0 ... P-1   all prompts at once
    step k    column P+k          answer token k of every row, at the position behind its own prompt

Each stream's keys and values are its own: the target's cache never holds a source row. With span=prompt (and for
stored source states) the sources end with the prefill, and the target decodes alone; x_mixup's target goes on asking
the source's states at the mixing layer, which are kept from the prefill. With span=full the sources decode
along, each its own answer, adapters off (a head that trained is everybody's); answer token k of the target meets the
source's as long as that has not ended.

Legend: S sources, B rows a stream, X rows that decode: the target's B, or (S+1)·B with the sources first; C columns so
far, K the vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from flare_ds.adapters.alignment import Alignment
from flare_ds.batches.collate import Batch
from flare_ds.config import GenerateConfig
from flare_ds.models.lockstep_streams import Sources
from flare_ds.models.source_pass import Beside
from flare_ds.runtime.engine import RunningModel


class Decoder:
    """Decodes the rows of one batch; every method that runs the model is a collective where the model is sharded.

    Args:
        running: the model, with its whole head.
        batch: whose prompts are read; answers in it are not.
        along: whether the source streams decode along (span=full).

    Attributes:
        sources: how many source streams decode along.
        target_cache: keys and values of the target's columns so far.
        source_cache: those of the sources, when they decode along.
    """

    def __init__(self, running: RunningModel, batch: Batch, *, along: bool) -> None:
        self.running = running
        # What decodes along shares a grid with the target as long as it lasts; alone, it has its own columns only.
        self.prompts = _prompts(replace(batch, first_columns=(0, 0)) if along else batch)
        self.sources = len(batch.source_lengths_SB) if along else 0
        self.rows = len(batch.target_lengths_B)
        decoding = (self.sources + 1) * self.rows
        self.mask_XC = self.prompts.attention_mask[-decoding:, running.model.streams.first_column(self.prompts) :]
        self.lengths_X = self.mask_XC.sum(1)
        self.steps, self._measured = 0, False
        config = running.model.base.config
        self.target_cache = running.model.streams.target_cache(config)
        self.source_cache = DynamicCache(config=config) if self.sources else None

    def remembering(self) -> AbstractContextManager[None]:
        """Let the streams keep, between the forwards inside, what later ones need of earlier ones."""
        return self.running.model.streams.decoding()

    def prefill(self) -> Tensor:
        """Read the prompts; logits [X, K] of the first answer token."""
        sources = None
        if self.sources:
            sources = self.running.model.streams.sources_of(self.prompts)
            self._measured = sources.measured
            sources.go_on(self.source_cache)
        return self._forward(self.prompts, sources)

    def step(self, tokens_X: Tensor, alive_X: Tensor) -> Tensor:
        """Read one more token in every row; logits [X, K] of the next.

        Args:
            tokens_X: the tokens.
            alive_X: rows that have not ended; the target meets no source that has.
        """
        self.mask_XC = torch.cat([self.mask_XC, torch.ones_like(self.mask_XC[:, :1])], 1)
        column = replace(
            self.prompts,
            input_ids=tokens_X[:, None],
            known_ids=None,
            attention_mask=self.mask_XC,
            position_ids=(self.lengths_X + self.steps)[:, None],
            source_lengths_SB=self.prompts.source_lengths_SB[: self.sources],
            answer_columns_N=torch.zeros_like(self.prompts.answer_columns_N),
            stored_BMKD=None,
        )
        self.steps += 1
        return self._forward(column, self._meeting(alive_X) if self.sources else None)

    def _meeting(self, alive_X: Tensor) -> Sources:
        """The one column of the sources, met by the one of the target."""
        partner_SBL = alive_X[: -self.rows].view(self.sources, self.rows, 1)
        real_BC = self.mask_XC[-self.rows :].bool()
        alignment = Alignment(torch.zeros_like(partner_SBL, dtype=torch.long), partner_SBL, real_BC)
        sources = Sources(alignment, Beside(partner_SBL.numel(), (slice(None), slice(None))), self._measured)
        sources.go_on(self.source_cache)
        return sources

    def _forward(self, batch: Batch, sources: Sources | None) -> Tensor:
        return self.running.root(batch, sources=sources, past=self.target_cache)[:, 0]


class TokenChoice:
    """Chooses the next token of each row: the best one, or one drawn among those the settings leave.

    A row's random numbers follow from the seed and its key alone, so neither its batch nor the number of ranks
    changes what is drawn.

    Args:
        settings: temperature 0 is greedy.
        keys: one for each row that decodes, its own in the whole run.
    """

    def __init__(self, settings: GenerateConfig, keys: Sequence[tuple[int, ...]]) -> None:
        self.warpers: LogitsProcessorList | None = None
        if settings.temperature > 0:
            self.warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
            if settings.top_k:
                self.warpers.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.warpers.append(TopPLogitsWarper(settings.top_p))
        self.generators = [np.random.Generator(np.random.PCG64([settings.seed, *key])) for key in keys]

    def __call__(self, logits_XK: Tensor) -> Tensor:
        """The tokens [X]."""
        if self.warpers is None:
            return logits_XK.argmax(-1)
        before = torch.LongTensor()  # plays no part in these three
        warped_XK = self.warpers(before, logits_XK.float())
        up_to_XK = warped_XK.double().softmax(-1).cumsum(-1)
        up_to_XK = up_to_XK / up_to_XK[:, -1:]  # ends in 1 exactly, which no draw reaches
        drawn_X = torch.tensor([generator.random() for generator in self.generators], dtype=torch.float64)
        tokens_X = torch.searchsorted(up_to_XK, drawn_X[:, None].to(up_to_XK.device), right=True)[:, 0]
        # No draw is below a sum that is NaN: some token, whose log-probability is NaN, too, and refused as such.
        return tokens_X.clamp(max=logits_XK.shape[-1] - 1)


def _prompts(batch: Batch) -> Batch:
    """The batch without the answers that are inputs in it."""
    end = batch.prompt_columns
    return replace(
        batch,
        input_ids=batch.input_ids[:, :end],
        known_ids=batch.host_ids[:, :end],
        attention_mask=batch.attention_mask[:, :end],
        position_ids=batch.position_ids[:, :end],
        source_answers_SB=None,
        source_targets_SBN=None,
        answer_columns_N=batch.answer_columns_N[:1],
    )
