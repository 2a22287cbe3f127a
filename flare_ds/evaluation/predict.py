"""Predicting for free texts, alone or with their sources.

Rows are batched and shared among ranks as in evaluation, so what is said of one does not depend on the others. The
command line asks once; `flare_ds.load` and `predict --interactive` keep a `Predictor` and ask it again.

Legend: n rows, one for each window of an example; B rows of a micro-batch, K label words.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from flare_ds.batches.collate import Batch
from flare_ds.batches.rows_at_hand import RowsAtHand
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import positions, streams_of
from flare_ds.config import Config
from flare_ds.data.cache.rows import FURTHER_CUT, EncodedStream, RowEncoder
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.parallel import ParallelRow
from flare_ds.data.streams import MT
from flare_ds.evaluation.answerable import check_late, refuse_to_write, with_whole_head
from flare_ds.evaluation.answers import Written, best_windows
from flare_ds.evaluation.batches import Ask, T, ask_rows
from flare_ds.evaluation.evaluate import open_trained, saved_adapter
from flare_ds.evaluation.finite import not_finite, refuse_not_finite
from flare_ds.evaluation.generate import eos_ids, generate
from flare_ds.evaluation.late import late_scores, settled
from flare_ds.evaluation.ranked import label_scores
from flare_ds.evaluation.same_questions import check_same_questions
from flare_ds.exceptions import HostError
from flare_ds.failures import warn
from flare_ds.model_files.limits import check_positions
from flare_ds.models.head import label_head
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.models.mt_encoder import MTEncoder
from flare_ds.runs import RunDirectory
from flare_ds.runs.hub_names import settle_hub_names
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.filled import open_whole
from flare_ds.runtime.gathered_base import base_gathered
from flare_ds.runtime.memory import whole_model_problem
from flare_ds.runtime.process_group import device, rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.states import FreeTextStates, for_free_text
from flare_ds.tasks.base import Task
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer


@dataclass(frozen=True)
class Labelled:
    """What a model says of a text by the label words.

    Attributes:
        label: the likeliest.
        probabilities: of each label word, among them.
    """

    label: str
    probabilities: Mapping[str, float]

    @property
    def record(self) -> dict[str, str | float]:
        """The columns of a file: prediction, and probability_WORD for each label word."""
        shares = {f"probability_{word}": share for word, share in self.probabilities.items()}
        return {"prediction": self.label, **shares}


class Predictor:
    """A run's model, to be asked about texts as often as one likes; it is loaded for the first question.

    Its methods are collectives, with the same result on every rank.

    Args:
        config: of a trained run, or of a method that trains nothing.
        task: its task.
        writes: whether it is to write answers, too, and not only to rank label words.
        alone_on: the device on which this process holds the whole model, alone; None: the rank's device, and
            evaluate.whole_model says how.

    Raises:
        ConfigError: it is to write, but the run's head cannot; or see `check_late` and `check_same_questions`.
        DataError: the prompt does not fit even without any text.
        CheckpointError: see `settled`.
    """

    def __init__(
        self, config: Config, task: Task, *, writes: bool = False, alone_on: torch.device | None = None
    ) -> None:
        check_late(config, task)
        self.config = for_free_text(on_rank_zero(settled, config))
        self.task, self.alone_on = task, alone_on
        settle_hub_names(config)
        self.opened = with_whole_head(self.config) if writes else self.config
        self.tokenizer = agreed(load_tokenizer, config.model)
        on_rank_zero(check_same_questions, config, task, self.tokenizer)
        mt_tokenizer = agreed(load_mt_tokenizer, config.source) if config.reads_mt_encoder else None
        self.encoder = RowEncoder(task, self.tokenizer, config, mt_tokenizer)
        self.trie = LabelTrie(self.encoder.label_tokens)
        self.shape = agreed(load_shape, config.model)

    @cached_property
    def running(self) -> RunningModel:
        """The model; of a run whose training has not ended the best so far, which is told.

        Raises:
            CheckpointError: the run has no adapter that fits.
            HostError: one process is to hold the whole base, but it does not fit.
        """
        _ = self.mt_encoder  # first: it is loaded whole
        if self.alone_on is None:
            running = open_trained(self.opened, shape=self.shape, label_tokens=self.encoder.label_tokens)
        else:
            running = self._alone(self.alone_on)
        run = RunDirectory(self.config.run_dir)
        if rank() == 0 and (problem := run.under_way(self.config)):
            warn(f"{problem}: its best adapter so far is used")
        running.root.eval()
        return running

    @cached_property
    def mt_encoder(self) -> MTEncoder | None:
        """What reads the target texts beside the base (flare_mt)."""
        if not self.config.reads_mt_encoder:
            return None
        source, dtype = self.config.source, getattr(torch, self.config.model.dtype)
        return agreed(lambda: MTEncoder(source, dtype=dtype, device=self.alone_on or device()))

    def rank(self, rows: Sequence[ParallelRow]) -> list[Labelled]:
        """The probability of each label word for each row; the arguments and errors of `log_probabilities`."""
        shares_nK = np.exp(self.log_probabilities(rows)).tolist()
        words = self.encoder.words
        return [
            Labelled(words[int(np.argmax(shares_K))], dict(zip(words, shares_K, strict=True))) for shares_K in shares_nK
        ]

    def log_probabilities(self, rows: Sequence[ParallelRow]) -> np.ndarray:
        """The log-probability of each label word, among them, for each row: float [n, K].

        Args:
            rows: the texts that the method reads; a row whose sources are None is read without them.

        Raises:
            ConfigError: a text is longer than the base's positions.
            NotFiniteError: a score is not finite.
        """
        if not rows:
            return np.empty((0, len(self.encoder.words)))
        texts, _ = self._encode(rows, written=1 + self.trie.depth)

        def ask(batch: Batch, _rows: list[int]) -> list[list[float]]:
            return label_scores(self.running, batch, self.trie, self.config).tolist()

        # A model that was opened to write has the whole vocabulary's head, which the label words' is taken from.
        own = self.opened.train.objective == self.config.train.objective
        tokens = self.encoder.label_tokens
        with nullcontext() if own else label_head(self.running.model.base, tokens):
            scores_nK, _ = late_scores(lambda config: self._ask(ask, texts, config), texts, self.config)
        _refuse_not_finite(zip((row.id for row in rows), scores_nK.tolist(), strict=True))
        return scores_nK

    def write(self, rows: Sequence[ParallelRow]) -> list[Written]:
        """The answer decoded for each row, as `config.generate` says; arguments and errors of `log_probabilities`.

        Of a text too long for one prompt, the likeliest window answers, as in evaluation.
        """
        refuse_to_write(self.config)
        if not rows:
            return []
        texts, examples_n = self._encode(rows, written=self.config.generate.max_new_tokens)
        eos = eos_ids(self.running.model.base, self.encoder.form.eos_id)

        def ask(batch: Batch, numbers: list[int]) -> list[Written]:
            decoded = generate(self.running, batch, self.config, eos=eos, rows=numbers)
            return [answer.written(self.tokenizer) for answer in decoded]

        with base_gathered(self.running):
            said = self._ask(ask, texts, self.config, written=self.config.generate.max_new_tokens)
        ids = (rows[row].id for row in examples_n.tolist())
        _refuse_not_finite(zip(ids, ([answer.log_probability] for answer in said), strict=True))
        return [said[window] for window in best_windows(examples_n, [answer.log_probability for answer in said])]

    def _alone(self, on: torch.device) -> RunningModel:
        run = Path(self.config.run_dir)
        if problem := whole_model_problem(self.config, self.shape, on):
            shared = f"flare-ds predict {shlex.quote(str(run))} --file FILE on several ranks"
            fix = f"choose another device, or share the base out: {shared}"
            raise HostError(f"the whole base of {run} {problem}", fix=fix)
        adapter = saved_adapter(self.config)
        return open_whole(self.opened, label_tokens=self.encoder.label_tokens, adapter=adapter, device=on)

    def _encode(self, rows: Sequence[ParallelRow], *, written: int) -> tuple[RowsAtHand, np.ndarray]:
        """The tokens of rows behind which so many are written, the last only predicted; and whose window each is."""
        encoded = self.encoder.encode("test", rows)
        if rank() == 0 and (cut := encoded.counts.get(FURTHER_CUT)):
            warn(f"{cut} rows fit only after all of their texts were truncated")
        texts = RowsAtHand({name: _prompts(stream) for name, stream in encoded.streams.items()}, None)
        for config in self.config.readings:
            read = rows_read(texts, config, self.encoder.form)
            longest = int(positions(read, config, read.prompt_lengths).max()) + written - 1
            warning = check_positions(self.shape, longest, of="the longest text with its prompt and answer")
            if rank() == 0 and warning:
                warn(warning)
        return texts, np.arange(len(rows)).repeat(encoded.windows_e)

    def _ask(self, ask: Ask[T], texts: RowsAtHand, config: Config, *, written: int = 0) -> list[T]:
        """Ask something of every text, as it is read under these settings, and so many tokens decoded behind it."""
        stored = None
        if self.mt_encoder is not None and config.reads_mt_encoder:
            stored = FreeTextStates(self.mt_encoder, [texts.prompt(MT, row).tolist() for row in range(len(texts))])
        read = rows_read(texts, config, self.encoder.form)
        streams = streams_of(config)
        return ask_rows(
            ask, self.running, read, config, streams=streams, what="predict", written=written, stored=stored
        )


def _prompts(stream: EncodedStream) -> list[np.ndarray]:
    starts_n = np.cumsum(stream.lengths_n) - stream.lengths_n
    spans = zip(starts_n, starts_n + stream.prompt_lengths_n, strict=True)
    return [stream.tokens_t[start:end].astype(np.int64) for start, end in spans]


def _refuse_not_finite(scored: Iterable[tuple[str, Sequence[float]]]) -> None:
    on_rank_zero(refuse_not_finite, not_finite(scored), "rows")
